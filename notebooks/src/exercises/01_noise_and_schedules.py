# %% [markdown]
# # Exercises 01 · Noise and schedules
#
# Five functions to write, in the order of [the chapter](../01_noise_and_schedules.ipynb). Put your lines where
# `raise NotImplementedError` stands and run the cell below: `check` asks your function a few questions, compares, and says
# what is wrong if something is. It never crashes, whatever your function does. `hint("01.1")` helps, a little more each
# time it is called.

# %%
import torch

import minidiff as md
from minidiff.course import check, hint, progress

# %% [markdown]
# ## 01.1 · Add noise in one line
#
# $$x_t = \alpha_t\,x_0 + \sigma_t\,\epsilon \qquad\text{(DDPM, eq. 4)}$$
#
# `x0` and `eps` are images of shape (B, C, H, W); `level.like(x0)` gives `alpha` and `sigma` in a shape that multiplies them,
# whether the whole batch is at one level or every image at its own.


# %%
def add_noise(x0, eps, level):
    """x_t, in the shape of x0."""
    raise NotImplementedError


# %%
check("01.1", add_noise)

# %% [markdown]
# ## 01.2 · A schedule from its betas
#
# $$\bar\alpha_t = \prod_{s \le t} (1-\beta_s), \qquad \alpha_t = \sqrt{\bar\alpha_t}, \qquad \sigma_t = \sqrt{1-\bar\alpha_t}$$
#
# `beta` has shape (T,). Take the product in float64, round once at the end, and give back the pair `alpha, sigma`, two float32
# tensors of shape (T,).


# %%
def from_betas(beta):
    """(alpha, sigma) of a variance-preserving schedule."""
    raise NotImplementedError


# %%
check("01.2", from_betas)

# %% [markdown]
# ## 01.3 · The cosine schedule
#
# $$\bar\alpha(u) \propto \cos^2\!\left(\frac{u + s}{1 + s}\cdot\frac{\pi}{2}\right), \quad u = t/T, \quad s = 0.008
# \qquad\text{(Nichol \& Dhariwal 2021, eq. 17)}$$
#
# Betas come from neighbours, $\beta_t = 1 - \bar\alpha_t/\bar\alpha_{t-1}$, each at most 0.999. You may use what you wrote
# above. Again `alpha, sigma`.


# %%
def cosine(T=1000):
    """(alpha, sigma), each of shape (T,)."""
    raise NotImplementedError


# %%
check("01.3", cosine)

# %% [markdown]
# ## 01.4 · The image, from the noise
#
# Solve the line of 01.1 for $x_0$ (DDPM, eq. 15).


# %%
def predict_x0(xt, eps, level):
    """x0, in the shape of xt."""
    raise NotImplementedError


# %%
check("01.4", predict_x0)

# %% [markdown]
# ## 01.5 · End in pure noise
#
# $$\alpha'_t = (\alpha_t - \alpha_{T-1})\,\frac{\alpha_0}{\alpha_0 - \alpha_{T-1}}, \qquad \sigma'_t = \sqrt{1 - \alpha_t'^2}
# \qquad\text{(Lin et al. 2023, algorithm 1)}$$
#
# `schedule.alpha` and `schedule.sigma` are its tables. Compute in float64, return `alpha, sigma` in float32.


# %%
def zero_terminal_snr(schedule):
    """(alpha, sigma) of the same schedule, bent so that its last alpha is 0."""
    raise NotImplementedError


# %%
check("01.5", zero_terminal_snr)

# %%
progress()
