# %% [markdown]
# # Exercises 06 · DDPM vs DDIM
#
# A walk of a thousand steps becomes a walk of twenty, with as much chance in it as you like, and then it goes uphill: four
# functions, in the order of [the chapter](../06_ddpm_vs_ddim.ipynb). `check` says what is wrong, `hint("06.1")` helps.

# %%
from itertools import pairwise

import torch

import minidiff as md
from minidiff.course import check, hint, progress

# %% [markdown]
# ## 06.1 · Which levels to visit
#
# A network was trained at $T$ timesteps, and a walk of $n$ steps visits $n$ of them, then `last`. Lin et al. 2023 (table 2)
# count three ways that are in use; with $i = 0 \dots n-1$ they visit
#
# | spacing | timesteps | $T = 1000, n = 4$ |
# |---|---|---|
# | `"leading"` | $i \lfloor T/n \rfloor + \text{offset}$ | 750, 500, 250, 0 |
# | `"trailing"` | $\operatorname{round}(T - i\,T/n) - 1$ | 999, 749, 499, 249 |
# | `"linspace"` | $\operatorname{round}\big(i\,(T-1)/(n-1)\big)$ | 999, 666, 333, 0 |
#
# **always from noisy to clean**. Return a list: `schedule.at(t)` for each timestep, and at its end `last`, unless that is None.
# $T$ is `len(schedule)`; `spacing=None` means leading; `offset` is for leading only. Variance-preserving schedules will do.


# %%
def levels(schedule, n, spacing=None, offset=0, last=md.CLEAN):
    """The n + 1 levels (n if last is None) that a sampler of n steps walks, noisy first."""
    raise NotImplementedError


# %%
check("06.1", levels)

# %% [markdown]
# ## 06.2 · DDIM's step
#
# From $(\alpha, \sigma)$ `here` to $(\alpha', \sigma')$ `there`, with the estimate's $\hat x_0$ and $\hat\epsilon$:
#
# $$x' = \alpha'\,\hat x_0 + \sqrt{\sigma'^2 - \text{std}^2}\;\hat\epsilon + \text{std}\cdot\text{noise}
# \qquad\text{(DDIM, eq. 12)}$$
#
# $$\text{std} = \eta\,\sigma'\sqrt{1 - \rho^2}, \qquad \rho = \frac{\alpha/\sigma}{\alpha'/\sigma'}
# = \frac{\alpha\,\sigma'}{\alpha'\,\sigma} \qquad\text{(their eq. 16)}$$
#
# `xt`, `noise` and the answer have shape (B, ...). $\eta = 1$ is DDPM. With $\eta > 0$ draw the noise if it is None, and mind
# that $\sigma' = 0$ at `CLEAN`: the second form of $\rho$ does not divide by it. $\eta = 0$ needs no $\rho$, and must not
# compute it: such a step may go up as well, where $\rho > 1$, and even leave `CLEAN`, where $\sigma = 0$.


# %%
def ddim_step(xt, estimate, here, there, eta=0.0, noise=None):
    """x at there."""
    raise NotImplementedError


# %%
check("06.2", ddim_step)

# %% [markdown]
# ## 06.3 · DDIM's walk
#
# The loop of 02.4 with the step above: a generator that yields `md.State(x, x0, level)` after every step, `level` being the one
# just reached. Every step asks the denoiser anew. With $\eta > 0$, draw by `torch.randn(x.shape, generator=generator)`.


# %%
def ddim(denoise, x, levels, eta=0.0, generator=None):
    """Walk x (B, ...) from levels[0] to levels[-1]; a State after every step."""
    raise NotImplementedError


# %%
check("06.3", ddim)

# %% [markdown]
# ## 06.4 · The walk upwards: inversion
#
# Which noise would have become this image? With $\eta = 0$ the walk is a curve, and a curve can be followed both ways: the same
# step from a clean level to a noisier one (Song et al. 2021, section 4.3). `levels` are those of the sampler, noisy first, so
# that `ddim(denoise, last.x, levels)` comes back over the same stations. Ask the denoiser about the level that a step
# *leaves*. Yield a `State` after every step, with the level just reached.
#
# (Invert without guidance: it changes the denoiser, and so the curve. And a walk back has to begin at the level where this one
# stopped; a published editing loop began one step off, and paid with its precision.)


# %%
def invert(denoise, x0, levels):
    """Walk x0 (B, ...) from levels[-1] up to levels[0]; a State after every step."""
    raise NotImplementedError


# %%
check("06.4", invert)

# %%
progress()
