# %% [markdown]
# # Exercises 03 · Learning to denoise
#
# Five functions of [the chapter](../03_learning_to_denoise.ipynb): how a network is told the time, what it is asked, how its
# answer is read, and the loss it learns from. Put your lines where `raise NotImplementedError` stands and run the cell below.
# `hint("03.1")` helps, a little more each time it is called.

# %%
import torch

import minidiff as md
from minidiff.course import check, hint, progress

# %% [markdown]
# ## 03.1 · Tell the time in waves
#
# $$\big[\cos(\omega_0 t), \dots, \cos(\omega_{d/2-1}\, t),\; \sin(\omega_0 t), \dots, \sin(\omega_{d/2-1}\, t)\big],
# \qquad \omega_k = P^{-k/(d/2)} \qquad\text{(Vaswani et al. 2017, section 3.5)}$$
#
# `t` has shape (B,), whole or fractional; `dim` is $d$, `max_period` is $P$. Return float32 of shape (B, dim), all cosines
# first.


# %%
def sinusoidal(t, dim, max_period=10_000.0):
    """t (B,) -> (B, dim): cosines, then sines, at dim/2 frequencies."""
    raise NotImplementedError


# %%
check("03.1", sinusoidal)

# %% [markdown]
# ## 03.2 · Four things to ask for
#
# | `predicts` | the network is to answer |
# |---|---|
# | `"eps"` | $\epsilon$ |
# | `"x0"` | $x_0$ |
# | `"v"` | $\alpha_t\,\epsilon - \sigma_t\,x_0$ (Salimans & Ho 2022, section 4) |
# | `"flow"` | $\epsilon - x_0$ |
#
# `level.like(x0)` gives `alpha, sigma` in a shape that multiplies images, as in chapter 01.


# %%
def target(x0, eps, level, predicts):
    """What a network of this kind is trained to answer, in the shape of x0."""
    raise NotImplementedError


# %%
check("03.2", target)

# %% [markdown]
# ## 03.3 · Read the answer
#
# The way back. You have $x_t = \alpha_t x_0 + \sigma_t \epsilon$ and the network's `output`, which is one of the four above:
# two equations for the two unknowns $x_0$ and $\epsilon$. Return both, `md.Estimate(x0, eps)`.
#
# Solve them for any $\alpha_t, \sigma_t$, so that $v$ can be read on a flow as well. And divide by no $\alpha_t$ where it is
# not needed: from $v$ and flow, $\hat x_0$ can be had even in pure noise.


# %%
def to_estimate(output, xt, level, predicts):
    """md.Estimate(x0, eps), each in the shape of xt."""
    raise NotImplementedError


# %%
check("03.3", to_estimate)

# %% [markdown]
# ## 03.4 · Weigh the levels
#
# $$w_t = \frac{\min(\mathrm{SNR}_t, \gamma)}{k_t}, \qquad \mathrm{SNR}_t = \frac{\alpha_t^2}{\sigma_t^2}
# \qquad\text{(min-SNR-}\gamma\text{, Hang et al. 2023, section 3.4)}$$
#
# $k_t$ says how many times a squared error in the answer counts, compared with the error in $\hat x_0$ that it makes: 1 for
# `"x0"`, the SNR for `"eps"`. For `"v"` and `"flow"`, read it off your `to_estimate`: if the answer is wrong by $\delta$, by
# how much is $\hat x_0$ wrong?
#
# `level.alpha` and `level.sigma` are numbers, or tensors (B,): `torch.as_tensor` takes both. Return weights () or (B,).


# %%
def min_snr_weight(level, predicts, gamma=5.0):
    """Weights of the squared error, one for each level."""
    raise NotImplementedError


# %%
check("03.4", min_snr_weight)

# %% [markdown]
# ## 03.5 · The loss
#
# $$L = E_{x_0,\, t,\, \epsilon}\; w_t\,\big|\,\mathrm{net}(x_t, t) - \mathrm{target}\,\big|^2
# \qquad\text{(DDPM, eq. 14, with }w_t = 1)$$
#
# `x0` has shape (B, …). Draw `t` of shape (B,) with `schedule.draw` and `noise` like `x0` where they are not given; ask
# `net(xt, t, **cond)`, t being what `level.timesteps(xt)` says; and return the mean over everything, a scalar. `min_snr` is the
# $\gamma$ of the task before; None weighs all levels alike. `measured` may stay unused: no question is asked about it. You may
# use what you wrote above, and `md.add_noise`.


# %%
def diffusion_loss(net, x0, schedule, predicts="eps", t=None, noise=None, *, min_snr=None, measured=None, **cond):
    """The mean squared error of net's answer: a scalar that gradients flow through."""
    raise NotImplementedError


# %%
check("03.5", diffusion_loss)

# %%
progress()
