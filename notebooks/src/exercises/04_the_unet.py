# %% [markdown]
# # Exercises 04 · The U-Net
#
# Five of the pieces that [the U-Net](../04_the_unet.ipynb) is stacked from. Each is a class: build its layers in `__init__`,
# use them in `forward`. Put your lines where `raise NotImplementedError` stands and run the cell below. `hint("04.1")` helps, a
# little more each time it is called.
#
# `check` puts weights of its own into your layers, so that your answers can be compared with ours. What you call the layers is
# up to you; but take the kinds that the text names, and where two are alike in kind and size, make them in the order in which
# they are used.

# %%
from torch import nn

import minidiff as md
from minidiff.course import check, hint, progress
from minidiff.nets.attention import group_norm

# %% [markdown]
# ## 04.1 · Half the size
#
# A 3×3 convolution (`nn.Conv2d`) that takes steps of two pixels: (B, C, H, W) → (B, C, H/2, W/2). So that the kernel finds
# something at the border, one row and column of zeros is laid around the map: on all four sides; or, with `asymmetric`, at the
# right and the bottom only, as DDPM's own code and the VAE of chapter 13 have it.
#
# In a U-Net every layer is called as `layer(x, emb, context)`. Here `emb` and `context` stay unused.


# %%
class DownSample(nn.Module):
    """(B, C, H, W) -> (B, C, H/2, W/2)."""

    def __init__(self, channels, asymmetric=False):
        raise NotImplementedError

    def forward(self, x, emb=None, context=None):
        """The map at half the size."""
        raise NotImplementedError


# %%
check("04.1", DownSample)

# %% [markdown]
# ## 04.2 · Twice the size
#
# Every pixel becomes a square of four equal ones, (B, C, H, W) → (B, C, 2H, 2W), and a 3×3 convolution that keeps the size
# makes something better of them. If a `size`, (height, width), is given, the map grows to that: where halving met an odd
# number, 15 → 8, doubling alone does not lead back. `torch.nn.functional.interpolate` grows maps, in several ways.


# %%
class UpSample(nn.Module):
    """(B, C, H, W) -> (B, C, 2H, 2W)."""

    def __init__(self, channels):
        raise NotImplementedError

    def forward(self, x, size=None):
        """The map at twice the size, or at `size`."""
        raise NotImplementedError


# %%
check("04.2", UpSample)

# %% [markdown]
# ## 04.3 · Two convolutions, told the time, and a way around
#
# $$h = \mathrm{GSC}_1(x) + W\,\mathrm{silu}(e) + b, \qquad \mathrm{out} = \mathrm{shortcut}(x) + \mathrm{GSC}_2(h)
# \qquad\text{(DDPM, appendix B)}$$
#
# `md.nets.GSC(in_channels, out_channels, norm)` is GroupNorm, SiLU and a 3×3 convolution in one. `x` is (B, in, H, W), $e$ is
# `emb`, (B, E), and what a linear layer (`nn.Linear`) makes of it is the same for all pixels. The shortcut is a 1×1
# convolution where `out_channels` is another than `in_channels`, and else x itself.
#
# - `norm` is a function that builds a norm for so many channels: hand it on to both GSCs.
# - With `emb_channels=None` there is no linear layer, and `forward` is called without `emb`.
# - Set weight and bias of the very last convolution to zero (`nn.init.zeros_`): a new block hands its map on as it is.


# %%
class ResNetBlock(nn.Module):
    """(B, in, H, W), (B, E) -> (B, out, H, W)."""

    def __init__(self, in_channels, out_channels, emb_channels=None, norm=group_norm):
        raise NotImplementedError

    def forward(self, x, emb=None):
        """The map, told the time."""
        raise NotImplementedError


# %%
check("04.3", ResNetBlock)

# %% [markdown]
# ## 04.4 · Every pixel looks at every other
#
# $$\mathrm{out} = x + \mathrm{SelfAttention}(\mathrm{norm}(x))$$
#
# A convolution sees its neighbours, attention sees the whole map, which it reads as a row of HW tokens with C channels each.
# `md.nets.SelfAttention(channels, heads, bias)` does the looking, (B, N, C) → (B, N, C): how it does it is chapter 14. Yours
# is the way there and back, (B, C, H, W) → (B, HW, C) → (B, C, H, W), with rows of pixels one after the other, and the way
# around.
#
# `norm` builds a norm for so many channels; None stands for `group_norm`. `context` stays unused.


# %%
class SpatialAttention(nn.Module):
    """(B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels, heads=None, bias=False, norm=None):
        raise NotImplementedError

    def forward(self, x, context=None):
        """The map, each pixel with what it found elsewhere."""
        raise NotImplementedError


# %%
check("04.4", SpatialAttention)

# %% [markdown]
# ## 04.5 · The way up
#
# On the way down, maps were put aside in a list. A stage of the way up takes the last of them out of the list, lays it behind
# x (`torch.cat` along the channels), and sends both through a ResNetBlock; then the next map, and the next block:
#
# $$x \leftarrow \mathrm{ResNetBlock}_i\big([x,\, \mathrm{skip}_i],\, e\big) \qquad\text{(Ronneberger et al. 2015)}$$
#
# - There is one block for each entry of `skip_channels`, the widths of the maps it will find, in that order. The first x has
#   `in_channels`, and every block answers `out_channels`. `md.nets.ResNetBlock(in, out, emb_channels, norm)`, or your own.
# - `attend`, if it is given, builds an attention: `attend()`. Each block is followed by one of its own, called with
#   `(x, context)`.
# - With `up`, an UpSample ends the stage, `md.nets.UpSample(out_channels)` or yours.
#
# `skips` may hold more maps than this stage needs. Those belong to the next one, and the one that is now the last says to which
# size x is to grow.


# %%
class UpBlock(nn.Module):
    """(B, in, H, W), the list of maps, (B, E) -> (B, out, 2H, 2W), or as large as the map that is last in the list then."""

    def __init__(self, in_channels, skip_channels, out_channels, emb_channels, up=True, attend=None, norm=group_norm):
        raise NotImplementedError

    def forward(self, x, skips, emb, context=None):
        """The map, one stage higher."""
        raise NotImplementedError


# %%
check("04.5", UpBlock)

# %%
progress()
