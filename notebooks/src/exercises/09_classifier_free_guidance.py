# %% [markdown]
# # Exercises 09 · Classifier-free guidance
#
# Four pieces of [the chapter](../09_classifier_free_guidance.ipynb): guidance by two answers of one network, by several
# prompts, with its contrast taken back, and by a classifier. Each of them makes a denoiser, a function
# `(xt, level) → Estimate(x0, eps)` that is returned and called later. Put your lines where `raise NotImplementedError`
# stands and run the cell below. `hint("09.1")` helps, a little more each time it is called.

# %%
import torch

import minidiff as md
from minidiff.course import check, hint, progress
from minidiff.diffusion.forward import to_estimate

# %% [markdown]
# ## 09.1 · With the words and without
#
# $$\text{output} = \text{net}_\varnothing + s\,\bigl(\text{net}_y - \text{net}_\varnothing\bigr)
# \qquad\text{(Ho \& Salimans 2022, eq. 6, } s = 1 + w\text{)}$$
#
# The network is called as `net(xt, t, **cond)` and `net(xt, t, **uncond)`, with t (B,) from `level.timesteps(xt)`. What it
# answers, a tensor like `xt`, is eps, x0, v or flow, as `predicts` says: `to_estimate(output, xt, level, predicts)` knows
# what to make of it. Scale 1 is plain conditional. Two calls or one with a batch of 2B, both are right.


# %%
def classifier_free(net, cond, uncond, scale, predicts="eps"):
    """A denoiser: uncond + scale * (cond - uncond)."""
    raise NotImplementedError


# %%
check("09.1", classifier_free)

# %% [markdown]
# ## 09.2 · Several prompts, each with its weight
#
# $$\text{output} = \text{net}_\varnothing + \sum_i s_i\,\bigl(\text{net}_{y_i} - \text{net}_\varnothing\bigr)
# \qquad\text{(Liu et al. 2022, eq. 11)}$$
#
# `conds` is a list of dictionaries, `scales` a list of as many numbers. A negative one means "and not".


# %%
def composed(net, conds, scales, uncond, predicts="eps"):
    """A denoiser: uncond + sum of scales[i] * (conds[i] - uncond)."""
    raise NotImplementedError


# %%
check("09.2", composed)

# %% [markdown]
# ## 09.3 · Contrast, taken back
#
# $$\hat x_0 \leftarrow \Bigl(\varphi\,\frac{\operatorname{std}(\hat x_0^{\text{plain}})}{\operatorname{std}(\hat x_0)}
# + 1 - \varphi\Bigr)\,\hat x_0 \qquad\text{(Lin et al. 2023, eqs. 15 and 16, of } x_0\text{)}$$
#
# `strong` and `plain` are denoisers, `share` is $\varphi$. The standard deviation is that over all of an image, (B, 1, 1, 1)
# of a batch (B, C, H, W). And $\hat\epsilon$ has to fit the new $\hat x_0$.


# %%
def rescaled(strong, plain, share=0.7):
    """The strong denoiser with the contrast of the plain one, as far as `share` goes."""
    raise NotImplementedError


# %%
check("09.3", rescaled)

# %% [markdown]
# ## 09.4 · Steered by a classifier
#
# $$\hat\epsilon' = \hat\epsilon - s\,\sigma_t\,g, \qquad \hat x_0' = \hat x_0 + s\,\frac{\sigma_t^2}{\alpha_t}\,g, \qquad
# g = \nabla_{x_t}\log p(y \mid x_t) \qquad\text{(Dhariwal \& Nichol 2021, algorithm 2)}$$
#
# `log_prob(xt, t)`, with t (B,), gives $\log p(y \mid x_t)$ for each image, (B,). A sampler calls the denoiser with
# gradients switched off: `with torch.enable_grad():` switches them on for the lines that need them. `level.like(xt)` gives
# alpha and sigma, ready to be multiplied with `xt`.


# %%
def classifier_guided(denoise, log_prob, scale):
    """The denoiser, steered towards what log_prob finds likely."""
    raise NotImplementedError


# %%
check("09.4", classifier_guided)

# %%
progress()
