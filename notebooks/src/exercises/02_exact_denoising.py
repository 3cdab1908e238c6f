# %% [markdown]
# # Exercises 02 · Exact denoising
#
# Two denoisers with nothing to learn, one step, and the walk that is made of it: four pieces to write, in the order of
# [the chapter](../02_exact_denoising.ipynb). Put your lines where `raise NotImplementedError` stands, run the cell below, and
# read what `check` says. `hint("02.1")` helps, a little more each time.

# %%
from itertools import pairwise

import torch

import minidiff as md
from minidiff.course import check, hint, progress

# %% [markdown]
# ## 02.1 · The best guess, if the data are Gaussian
#
# Every coordinate of $x_0$ is a draw of $\mathcal N(\mu, s^2)$. Bayes' rule, on the line $x_t = \alpha x_0 + \sigma\epsilon$:
#
# $$\mathbb E[x_0 \mid x_t] = \mu + \frac{\alpha s^2}{\alpha^2 s^2 + \sigma^2}\,(x_t - \alpha\mu), \qquad
# \hat\epsilon = \frac{x_t - \alpha\,\mathbb E[x_0 \mid x_t]}{\sigma}$$
#
# `mean` and `std` are numbers, or tensors that broadcast against one image; `xt` has shape (B, ...). A call returns
# `md.Estimate(x0, eps)`, both in the shape of `xt`. `level.like(xt)` gives alpha and sigma in a shape that multiplies it.


# %%
class GaussianDenoiser:
    """The exact denoiser of data drawn from N(mean, std^2), each coordinate for itself."""

    def __init__(self, mean=0.0, std=1.0):
        raise NotImplementedError

    def __call__(self, xt, level):
        """Estimate(x0, eps)."""
        raise NotImplementedError


# %%
check("02.1", GaussianDenoiser)

# %% [markdown]
# ## 02.2 · The best guess, if the data are a heap of images
#
# Now $x_0$ is one of $N$ known images $x_1 \dots x_N$. Each votes, by how well it explains $x_t$:
#
# $$\mathbb E[x_0 \mid x_t] = \sum_i w_i\, x_i, \qquad
# w_i = \operatorname{softmax}_i\!\left(-\frac{\|x_t - \alpha x_i\|^2}{2\sigma^2}\right)
# \qquad\text{(Karras et al. 2022, eq. 57)}$$
#
# `data` has shape (N, ...), `xt` (B, ...) with images of the same shape, and the answer is again `md.Estimate(x0, eps)`. Mind
# the exponents: an image has 3072 numbers, and at little noise $e^{-1500}$ is 0 on any computer. You need not handle
# $\sigma = 0$.


# %%
class DatasetDenoiser:
    """The exact denoiser of a finite dataset (N, ...)."""

    def __init__(self, data):
        raise NotImplementedError

    def __call__(self, xt, level):
        """Estimate(x0, eps)."""
        raise NotImplementedError


# %%
check("02.2", DatasetDenoiser)

# %% [markdown]
# ## 02.3 · DDPM's step
#
# From $(\alpha, \sigma)$ `here` to a cleaner $(\alpha', \sigma')$ `there`: a draw of $q(x' \mid x_t, x_0)$, with the estimate's
# $x_0$ for the true one. Between the two levels, however far apart, the chain kept $a = \alpha/\alpha'$ of the image and added
# noise of variance $b^2 = \sigma^2 - a^2\sigma'^2$. (Between neighbours $a^2 = 1 - \beta_t$ and $b^2 = \beta_t$.) Then
#
# $$x' = \frac{\alpha'\, b^2}{\sigma^2}\, x_0 + \frac{a\,\sigma'^2}{\sigma^2}\, x_t + \sqrt{\tilde\beta}\;\text{noise}, \qquad
# \tilde\beta = \frac{\sigma'^2}{\sigma^2}\, b^2 \qquad\text{(DDPM, eqs. 6 and 7)}$$
#
# `xt` and `noise` have shape (B, ...), and so has the answer; draw the noise if `noise` is None. On the way to `CLEAN`
# ($\alpha' = 1, \sigma' = 0$) the formula gives $x_0$, without noise, by itself. Use `estimate.x0` only: it may have been
# clipped, and then `estimate.eps` no longer fits it.


# %%
def ddpm_step(xt, estimate, here, there, noise=None):
    """x at there."""
    raise NotImplementedError


# %%
check("02.3", ddpm_step)

# %% [markdown]
# ## 02.4 · The walk: ancestral sampling
#
# DDPM's algorithm 2. `levels` is a list, noisy to clean. For every pair of neighbours `here`, `there`: ask
# `denoise(x, here)`, take the step above with fresh noise, and `yield md.State(x, x0, level)`, where `x0` is the estimate's and
# `level` the one just reached. So `ddpm` is a generator. Draw with `torch.randn(x.shape, generator=generator)`: the same seed
# should make the same images.


# %%
def ddpm(denoise, x, levels, generator=None):
    """Walk x (B, ...) from levels[0] to levels[-1]; a State after every step."""
    raise NotImplementedError


# %%
check("02.4", ddpm)

# %%
progress()
