# %% [markdown]
# # Exercises 07 · Fast samplers
#
# A page each, and the order of every one can be measured: five functions, in the order of
# [the chapter](../07_fast_samplers.ipynb). The third is there already, and has a slip for you to find. `check` says what is
# wrong, `hint("07.1")` helps.

# %%
import math
from itertools import pairwise

import torch

import minidiff as md
from minidiff.course import check, hint, progress
from minidiff.diffusion.multistep import adams_bashforth as ready_weights

# %% [markdown]
# ## 07.1 · Two slopes a step
#
# Divide $x$ by $\alpha$ and count noise by $s = \sigma/\alpha$, and DDIM is Euler's method on a curve with the slope
# $\hat\epsilon$. Heun walks a step twice: first as DDIM does, to see the slope $\hat\epsilon'$ where that ends, and then
# again *from here* with the mean (Karras et al. 2022, algorithm 1):
#
# $$\text{ahead} = \alpha'\,\hat x_0 + \sigma'\,\hat\epsilon, \qquad
# \bar\epsilon = \tfrac12\big(\hat\epsilon(x, \text{here}) + \hat\epsilon(\text{ahead}, \text{there})\big), \qquad
# x' = \alpha'\,\frac{x - \sigma\bar\epsilon}{\alpha} + \sigma'\,\bar\epsilon$$
#
# Two kinds of steps make do with `ahead`: the one from $\alpha = 0$, where $s$ is infinite, and the one to $\sigma' = 0$, where
# there is no noise to ask about.
#
# This and the other samplers are generators: `denoise(x, level)` gives an estimate `.x0, .eps`, both (B, ...); yield
# `md.State(x, x0, level)` after every step, with the level just reached and the x0 that the denoiser gave about the $x$ it
# left.


# %%
def heun(denoise, x, levels):
    """Walk x (B, ...) from levels[0] to levels[-1]; a State after every step."""
    raise NotImplementedError


# %%
check("07.1", heun)

# %% [markdown]
# ## 07.2 · Weights for old answers
#
# Values $f_0, f_1, \dots$ were seen at `nodes` $s_0, s_1, \dots$, the newest first; one to four of them, at any distances. The
# step ahead runs from $s_0$ to $s_\text{end}$. Which mean of the values is the mean, over this step, of the polynomial through
# them? Lagrange wrote that polynomial as $\sum_j f_j L_j(s)$, so the weights are
#
# $$w_j = \frac{1}{s_\text{end} - s_0} \int_{s_0}^{s_\text{end}} L_j(s)\,ds, \qquad
# L_j(s) = \prod_{k \ne j} \frac{s - s_k}{s_j - s_k}$$
#
# At even distances these are Adams' and Bashforth's: $1$; $\tfrac12(3, -1)$; $\tfrac1{12}(23, -16, 5)$;
# $\tfrac1{24}(55, -59, 37, -9)$. `nodes` is a list of floats, `end` a float. Return a list of as many floats, in the order of
# the nodes.


# %%
def adams_bashforth(nodes, end):
    """The weight of each value in the mean from nodes[0] to end."""
    raise NotImplementedError


# %%
check("07.2", adams_bashforth)

# %% [markdown]
# ## 07.3 · Find the slip: a memory, and still first order
#
# A linear multistep sampler asks once a step, and takes DDIM's step with a mean of the last few $\hat\epsilon$, up to `order`
# of them, by the weights of 07.2. With two answers its order should be 2. The next cell holds one that was written in a hurry:
# it runs, it gives pictures, and the cell below it measures the order.


# %%
def lms_with_a_slip(denoise, x, levels, order=4):
    past = []  # (s, eps), the newest first
    for here, there in pairwise(levels):
        x0, eps = denoise(x, here)
        if here.alpha == 0:  # s is infinite: a plain step, and nothing to remember
            x = there.alpha * x0 + there.sigma * eps
        else:
            s = here.sigma / here.alpha
            nodes, answers = [s, *(old for old, _ in past)], [eps, *(old for _, old in past)]
            weights = ready_weights(nodes, there.sigma / there.alpha)
            eps = sum(weight * answer for weight, answer in zip(weights, answers, strict=True))
            x = there.alpha * (x - here.sigma * eps) / here.alpha + there.sigma * eps
            past = [(s, eps), *past][: order - 1]
        yield md.State(x, x0, there)


# %% [markdown]
# If the data are one Gaussian, everything is known: the exact walk keeps $x$ at the same number of standard deviations. So let
# every walk have twice as many steps as the one before, and look what becomes of its error: halved is order 1, a quarter is
# order 2.


# %%
def measured_order(sampler, **options):
    """log2 of how much a walk's error falls, each time that the steps are doubled."""
    errors, x = [], torch.ones(1, 1, dtype=torch.float64)
    for steps in (20, 40, 80, 160):
        levels = md.Schedule.scaled_linear().levels(steps + 1, "karras", last=None)
        first, last = (math.hypot(0.5 * level.alpha, level.sigma) for level in (levels[0], levels[-1]))
        *_, state = sampler(md.GaussianDenoiser(0.0, 0.5), x, levels, **options)
        errors.append(abs(float(state.x - x * last / first)))
    return [round(math.log2(before / after), 1) for before, after in pairwise(errors)]


print("DDIM                ", measured_order(md.ddim))
print("order 2, with a slip", measured_order(lms_with_a_slip, order=2))
print("order 2, as it should", measured_order(md.lms, order=2))

# %% [markdown]
# One slip is to blame. (With `order=4` it is worse than slow: try it.) Write the sampler as it should be, in your own way or
# with the slip put right. `adams_bashforth` is yours from above, `ready_weights` the library's. The memory belongs to one
# walk: a second walk begins with none. At $\alpha = 0$, where $s$ is infinite, take a plain step and remember nothing.


# %%
def lms(denoise, x, levels, order=4):
    """Walk x (B, ...) from levels[0] to levels[-1]; a State after every step."""
    raise NotImplementedError


# %%
check("07.3", lms)

# %% [markdown]
# ## 07.4 · DPM-Solver++, of second order
#
# Another line through two answers: through $\hat x_0$, over $\lambda = \log(\alpha/\sigma)$. Lay it through this one
# and the one before, and read it in the middle of the step ahead. The step is DDIM's, for a denoiser that answered this
# value, $D$ (Lu et al. 2022, DPM-Solver++, algorithm 2). With $h = \lambda' - \lambda$ the step ahead, $h_\text{past}$ the one
# behind and $r = h_\text{past}/h$:
#
# $$D = \Big(1 + \frac{1}{2r}\Big)\hat x_0 - \frac{1}{2r}\,\hat x_0^\text{past}, \qquad
# x' = \alpha'\,D + \sigma'\,\frac{x - \alpha D}{\sigma}
# = \frac{\sigma'}{\sigma}\,x - \alpha'\,(e^{-h} - 1)\,D$$
#
# $D$ is $\hat x_0$ as it is
#
# - in the first step, and in the one after a step from $\alpha = 0$, whose $\lambda$ is $-\infty$;
# - in the last step, if it leads to $\sigma' = 0$, where $\lambda' = \infty$, or if the whole walk has fewer than 15 steps, as
#   in diffusers: a line through two answers does not reach that far.
#
# `math.log(0)` is an error, so mind both ends. The memory belongs to one walk, again.


# %%
def dpmpp_2m(denoise, x, levels):
    """Walk x (B, ...) from levels[0] to levels[-1]; a State after every step."""
    raise NotImplementedError


# %%
check("07.4", dpmpp_2m)

# %% [markdown]
# ## 07.5 · Dense where it matters
#
# Where should the levels of a short walk lie? Karras et al. 2022 (eq. 5) bend $s = \sigma/\alpha$ by a root, divide evenly, and
# bend it back. For $i = 0 \dots n-1$,
#
# $$s_i = \Big(s_\text{first}^{1/\rho} + \frac{i}{n-1}\big(s_\text{last}^{1/\rho} - s_\text{first}^{1/\rho}\big)\Big)^{\rho}$$
#
# Return a list of n floats, from `first` (much noise) down to `last`. If n is 1 it holds `first`.


# %%
def karras(first, last, n, rho=7.0):
    """n values of sigma/alpha, even in the rho-th root."""
    raise NotImplementedError


# %%
check("07.5", karras)

# %%
progress()
