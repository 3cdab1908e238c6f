# %% [markdown]
# # Exercises 16 · Stable Diffusion
#
# Four parts of [the chapter](../16_stable_diffusion.ipynb) that fit on a page each: how a prompt falls into pieces, the walk
# that Stable Diffusion 1 takes by default, a depth beside the latents, and a denoiser that knows parts of the answer. `check`
# says what is wrong, `hint("16.1")` helps.

# %%
from itertools import pairwise

import torch

import minidiff as md
from minidiff.course import check, hint, progress
from minidiff.pretrained.tokenizer import NAMES

# %% [markdown]
# ## 16.1 · Words into pieces
#
# Byte-pair encoding (Sennrich et al. 2016, algorithm 1). A word begins as a list of the bytes of its UTF-8, each by the
# character that stands for it in a vocabulary, `NAMES[byte]`, and the last with `</w>` glued to it: `"low"` is `["l", "o",
# "w</w>"]`. Then, again and again: of all neighbours that are in `ranks`, join the pair with the lowest rank, which was
# learned first. When no two neighbours are in `ranks`, the pieces are done.
#
# `ranks` is a dict, (piece, piece) → rank. Return a list of strings.


# %%
def byte_pairs(word, ranks):
    """The pieces of a word."""
    raise NotImplementedError


# %%
check("16.1", byte_pairs)

# %% [markdown]
# ## 16.2 · The sampler of Stable Diffusion 1
#
# One call a step, and still more than DDIM: PLMS remembers the last four $\hat\epsilon$, the newest first, and takes DDIM's
# step with their mean (Liu et al. 2022, eq. 12, and 9 for the step):
#
# $$\bar\epsilon = \tfrac{1}{24}\left(55\,\epsilon_0 - 59\,\epsilon_1 + 37\,\epsilon_2 - 9\,\epsilon_3\right),
# \qquad x' = \alpha'\,\frac{x - \sigma\bar\epsilon}{\alpha} + \sigma'\,\bar\epsilon$$
#
# - With three it is $\tfrac{1}{12}(23, -16, 5)$, with two $\tfrac12(3, -1)$.
# - With one only, the first step: walk it as DDIM would, ask the denoiser again where it ends, and step from here once more
#   with the mean of both $\hat\epsilon$. Not if this step is the last one too: then the first answer has to do. What is said
#   ahead is not remembered.
# - A flow begins at $\alpha = 0$, where nothing can be divided by $\alpha$: take DDIM's step there, and remember nothing of
#   it.
#
# Yield `md.State(x, x0, level)` after every step: the level just reached, and the x0 that the denoiser gave at the level it
# left.


# %%
def plms(denoise, x, levels):
    """Walk x (B, ...) from levels[0] to levels[-1]; a State after every step."""
    raise NotImplementedError


# %%
check("16.2", plms)

# %% [markdown]
# ## 16.3 · How far away, in latents
#
# The depth model of Stable Diffusion 2 sees a fifth channel beside the four of a latent: a depth (B, 1, H, W), made small to
# (B, 1, H/stride, W/stride) by bicubic interpolation (without antialiasing, which is torch's default), and then stretched so
# that the least of each picture becomes −1 and its largest 1. Any unit will do, therefore; but a depth that is the same
# everywhere is a ValueError. `image` (B, 3, H, W) tells the size that the depth should have.


# %%
def depth_map(depth, image, stride):
    """Depth (B, 1, H, W) in any unit -> (B, 1, H/stride, W/stride) in [-1, 1]."""
    raise NotImplementedError


# %%
check("16.3", depth_map)

# %% [markdown]
# ## 16.4 · A denoiser that knows the answer, in parts
#
# To fill a hole in a picture with a network that never heard of holes, correct its answer where the picture is known, at mask
# $m = 0$, and leave it alone where something is to be invented, at $m = 1$:
#
# $$\hat x_0 \leftarrow m\,\hat x_0 + (1-m)\,\text{known},
# \qquad \hat\epsilon \leftarrow m\,\hat\epsilon + (1-m)\,\text{noise}$$
#
# Whatever the step does with this estimate, the known part arrives at $\alpha'\,\text{known} + \sigma'\,\text{noise}$, the
# original noised to the level it reaches: RePaint's blend (Lugmayr et al. 2022, eq. 8). `known` and `noise` are (B, C, H, W),
# the mask (B, 1, H, W). Return a new denoiser, `(xt, level)` → `md.Estimate(x0, eps)`.


# %%
def inpainting(denoise, known, mask, noise):
    """The same denoiser, corrected where mask is 0."""
    raise NotImplementedError


# %%
check("16.4", inpainting)

# %%
progress()
