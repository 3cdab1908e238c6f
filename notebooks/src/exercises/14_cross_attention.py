# %% [markdown]
# # Exercises 14 · Cross-attention
#
# The four classes through which words reach a picture, from the inside out, as in
# [the chapter](../14_cross_attention.ipynb). Put your lines where `raise NotImplementedError` stands and run the cell below.
# `hint("14.1")` helps, a little more each time it is called.
#
# `check` puts weights of its own into your layers, so that your answers can be compared with ours. What you call the layers is
# up to you; but take the kinds that the text names, and where two are alike in kind and size, make them in the order in which
# the text names them.

# %%
from torch import nn

import minidiff as md
from minidiff.course import check, hint, progress
from minidiff.nets.attention import group_norm

# %% [markdown]
# ## 14.1 · Ask the words
#
# $$\mathrm{softmax}\!\left(\frac{q\,k^\top}{\sqrt d}\right) v, \qquad q = x\,W_q,\quad k = c\,W_k,\quad v = c\,W_v
# \qquad\text{(Vaswani et al. 2017, eq. 1)}$$
#
# `x` is (B, N, dim), N positions of a picture; `context` $c$ is (B, L, context_dim), L words; the answer is (B, N, dim). Four
# `nn.Linear`, in this order: for q, for k, for v, each to `dim` channels and without a bias unless `bias` is true; and a last
# one, dim to dim, with a bias.
#
# - The channels are split into `heads` runs of $d$ = dim / heads neighbours. Each head attends for itself; what they find is
#   laid side by side again, and goes through the last layer.
# - `heads=None`: heads of 64 channels, as many as fit, at least one.
# - Set weight and bias of the last layer to zero (`nn.init.zeros_`): a new attention adds nothing to a picture.


# %%
class CrossAttention(nn.Module):
    """(B, N, dim), (B, L, context_dim) -> (B, N, dim)."""

    def __init__(self, dim, context_dim, heads=None, bias=False):
        raise NotImplementedError

    def forward(self, x, context):
        """What each position found in the context."""
        raise NotImplementedError


# %%
check("14.1", CrossAttention)

# %% [markdown]
# ## 14.2 · A gate for every channel
#
# $$\big(a \odot \mathrm{GELU}(g)\big)\,W_2 + b_2, \qquad [a, g] = x\,W_1 + b_1 \qquad\text{(GEGLU, Shazeer 2020, eq. 6)}$$
#
# What each position makes of what it saw: (B, N, dim) → (B, N, dim). One `nn.Linear` makes 8·dim channels, of which the first
# half is the value $a$, the second the gate $g$; another one leads from 4·dim back to dim. Dropout, at the given probability,
# falls on the gated values, and only in training.


# %%
class FeedForward(nn.Module):
    """(B, N, dim) -> (B, N, dim)."""

    def __init__(self, dim, dropout=0.0):
        raise NotImplementedError

    def forward(self, x):
        """Each position, thought over."""
        raise NotImplementedError


# %%
check("14.2", FeedForward)

# %% [markdown]
# ## 14.3 · Look around, read, think
#
# $$x \leftarrow x + \mathrm{SelfAttention}(\mathrm{norm}_1(x))$$
# $$x \leftarrow x + \mathrm{CrossAttention}(\mathrm{norm}_2(x),\, c)$$
# $$x \leftarrow x + \mathrm{FeedForward}(\mathrm{norm}_3(x))$$
#
# The norms are `nn.LayerNorm(dim)`. Take `md.nets.SelfAttention(dim, heads)`, `md.nets.CrossAttention(dim, context_dim, heads)`
# and `md.nets.FeedForward(dim, dropout)`, or your own. (Yours serves for both attentions: ask it with x as the context.)


# %%
class BasicTransformerBlock(nn.Module):
    """(B, N, dim), (B, L, context_dim) -> (B, N, dim)."""

    def __init__(self, dim, context_dim, heads=None, dropout=0.0):
        raise NotImplementedError

    def forward(self, x, context):
        """The tokens, after three layers."""
        raise NotImplementedError


# %%
check("14.3", BasicTransformerBlock)

# %% [markdown]
# ## 14.4 · A picture among the words
#
# $$\mathrm{out} = x + \mathrm{proj}_2\big(\mathrm{blocks}(\mathrm{proj}_1(\mathrm{norm}(x)),\, c)\big)
# \qquad\text{(Rombach et al. 2022, appendix E.2.1)}$$
#
# A map (B, C, H, W) is read as a row of HW tokens, line by line of the picture, goes through `depth` blocks of 14.3, and is
# laid out again.
#
# - The norm is `group_norm(channels, groups, eps=1e-6)`.
# - The projections, C channels to C, are 1×1 convolutions (`nn.Conv2d`) of the map; with `linear` they are `nn.Linear`, of the
#   tokens. With `linear`, make them in the order of the formula: the first, the blocks, the second.
# - Set weight and bias of the second projection to zero.
# - `heads` and `dropout` are for the blocks: `md.nets.BasicTransformerBlock(channels, context_dim, heads, dropout)`, or yours.


# %%
class SpatialTransformer(nn.Module):
    """(B, C, H, W), (B, L, context_dim) -> (B, C, H, W)."""

    def __init__(self, channels, context_dim, heads=None, depth=1, linear=False, dropout=0.0, groups=None):
        raise NotImplementedError

    def forward(self, x, context):
        """The map, after all its positions have read the words."""
        raise NotImplementedError


# %%
check("14.4", SpatialTransformer)

# %%
progress()
