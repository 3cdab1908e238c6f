# %% [markdown]
# # Exercises 18 · DDIM inversion and editing
#
# Five pieces of [the chapter](../18_inversion_and_editing.ipynb): a way back that loses nothing, an edit whose levels fit, what
# an edit spoils, a picture that looks where another one looks, and an edit without a way back. `check` says what is wrong,
# `hint("18.1")` helps.

# %%
from contextlib import contextmanager
from itertools import pairwise

import torch

import minidiff as md
from minidiff.course import check, hint, progress
from minidiff.diffusion.forward import to_estimate

# %% [markdown]
# ## 18.1 · A way back without a loss
#
# Chapter 06's inversion, with one thing more. A step up from $x$ at `here` to `there` asks about its beginning, where the step
# down asked about its end. So take the step, look at where it ended, and take it again from $x$ with what was seen there,
# `refine` times (Pan et al. 2023):
#
# $$x' \leftarrow \text{the step from } x \text{ with } \hat\epsilon(x') - \hat x_0(x') \text{ for the network's answer.}$$
#
# Of an answer, $\hat\epsilon - \hat x_0$ is kept, which is what a network says that predicts `"flow"`: `to_estimate(output, x,
# here, "flow")` makes an `Estimate` of it, on any schedule. Yield `md.State(x, x0, level)` after every step, with the x0 of the
# first answer. `levels` are noisy first; `refine` 0 is the plain walk, and every step asks `refine + 1` times.


# %%
def invert(denoise, x0, levels, *, refine=0):
    """Walk x0 (B, ...) from levels[-1] up to levels[0]; a State after every step."""
    raise NotImplementedError


# %%
check("18.1", invert)

# %% [markdown]
# ## 18.2 · An edit
#
# Encode the picture, invert it under the sentence that describes it, and draw it again under another one, without the first
# `start` steps. Write it as a method of a pipeline, whose parts you may use: `encode(image, sample=False)`, `decode(z)`,
# `recipe.levels(steps, md.ddim)`, and `denoiser(prompts, negative_prompt, guidance_scale, md.ddim)`, where `prompts` is a list.
# `md.invert` and `md.sample(md.ddim, denoise, x, levels, progress=False)` do the walking.
#
# `image` has shape (B, C, H, W), a prompt is a text or a list of B of them. Go up without guidance. And mind the one mistake
# that everybody makes: the walk down begins at `levels[start]`, with the x that was at `levels[start]`. (`borrow`, the
# attention of exercise 18.4, is not asked for here: it is always 0.)


# %%
def edit(self, image, source_prompt, target_prompt, steps=50, start=10, negative_prompt="", guidance_scale=None, refine=0,
         borrow=0.0):  # fmt: skip
    """The picture that source_prompt describes, drawn again after target_prompt: (B, C, H, W)."""
    raise NotImplementedError


# %%
check("18.2", edit)

# %% [markdown]
# ## 18.3 · What an edit spoils
#
# $$\text{spoilt} = \frac{1}{C\,|m|} \sum_{c,\,p\,:\,m_p = 1} \big|\text{image}_{cp} - \text{original}_{cp}\big|$$
#
# `images` and `originals` are (n, C, H, W), `mask` is (n, 1, H, W) and 1 where nothing should have changed. One number for each
# picture, (n,).


# %%
def spoilt(images, originals, mask):
    """Mean absolute difference where mask is 1: (n,)."""
    raise NotImplementedError


# %%
check("18.3", spoilt)

# %% [markdown]
# ## 18.4 · Look where another one looks
#
# Inside the block `with borrowed_attention(net, source, tau):`, row $i$ of a batch has, in every attention of `kinds`, the map
# of row `source[i]` and its own values (Hertz et al. 2022, section 3.2), as long as `net` is told a $t > \tau$:
#
# $$\text{out}_i = W_o\, M_{\text{source}[i]}\; v_i \ \text{ for } t > \tau, \qquad W_o\, M_i\, v_i \ \text{ after that.}$$
#
# `module.weights(x, context)` gives $M$, (B, heads, N, L), `module.keys_values(context)[1]` gives $v$, (B, heads, L, d), and
# `module.to_out` takes (B, N, heads · d), as `seen.transpose(1, 2).flatten(2)` makes it. A `SelfAttention` is called with `x`
# alone. `net` is called as `net(x, t, ...)` with t of shape (B,), and every row has a time of its own. With guidance the batch
# is a multiple of `len(source)`: each part borrows within itself. After the block, nothing is left of it.


# %%
@contextmanager
def borrowed_attention(net, source, tau=0.0, kinds=(md.nets.SelfAttention, md.nets.CrossAttention)):
    """Row i looks where row source[i] looks, as long as t > tau."""
    raise NotImplementedError


# %%
check("18.4", borrowed_attention)

# %% [markdown]
# ## 18.5 · An edit without a way back
#
# Between one level and the next, a picture $x$, which begins as $x_0$, moves by the difference of two answers (Hertz, Aberman
# and Cohen-Or 2023; Kulikov et al. 2025):
#
# $$x \leftarrow (1 - r)\,\Big(x_0 + \hat x_0(\alpha x + \sigma\epsilon;\ \text{new}) - \hat x_0(\alpha x_0 +
# \sigma\epsilon;\ \text{old})\Big) + r\,x, \qquad r = \sigma_\text{there} / \sigma_\text{here}.$$
#
# $\alpha$, $\sigma$ are those of `here`, and $\epsilon$ is drawn afresh for every step, once for both, with `generator`. One
# call asks both: `denoise(xt, here)` takes 2B rows, of which the first B are old and the second B new, and gives an `Estimate`
# of as many. After every step yield `md.State(x, x, there)`: the picture so far is both.


# %%
def by_difference(denoise, x0, levels, generator=None):
    """Change x0 (B, ...) from what it is to what is wanted; a State after every step."""
    raise NotImplementedError


# %%
check("18.5", by_difference)

# %%
progress()
