# %% [markdown]
# # Exercises 20 · Rectified flow and SD3
#
# A schedule and four classes: all that is new in Stable Diffusion 3, as in [the chapter](../20_rectified_flow_and_sd3.ipynb).
# Put your lines where `raise NotImplementedError` stands and run the cell below. `hint("20.1")` helps, a little more each time
# it is called.
#
# `check` puts weights of its own into your layers, so that your answers can be compared with ours. What you call the layers is
# up to you; but take the kinds that the text names, and where two are alike in kind and size, make them in the order in which
# the text names them.

# %%
import torch
from torch import nn

import minidiff as md
from minidiff.course import check, hint, progress
from minidiff.nets.dit import GatedAttention

# %% [markdown]
# ## 20.1 · The straight road
#
# $$\sigma_i = \frac{i+1}{T}, \qquad \frac{\sigma'_i}{1-\sigma'_i} = k\,\frac{\sigma_i}{1-\sigma_i}, \qquad
# \alpha'_i = 1 - \sigma'_i \qquad\text{(Esser et al. 2024, eq. 23)}$$
#
# $i = 0, 1, \dots, T-1$ are the rows of the table, and $k$ is `shift`. Solve the middle equation for $\sigma'$ first, so that
# nothing is divided by zero in the last row. What the network is told of a row is not its number but $t = T\sigma'_i$. Return
# `alpha, sigma, t`, three float32 tensors of shape (T,).


# %%
def flow(T=1000, shift=1.0):
    """(alpha, sigma, t) of a rectified flow."""
    raise NotImplementedError


# %%
check("20.1", flow)

# %% [markdown]
# ## 20.2 · A picture as a row of words
#
# (B, C, H, W) → (B, N, dim): one token for each patch of `patch` × `patch` pixels, row by row of the picture. One `nn.Conv2d`,
# channels to dim, makes the tokens, its kernel and its stride as long as a patch. To each token is added where it stands:
#
# $$\big[\,w(\text{column}),\ w(\text{row})\,\big], \qquad w(i) = [\sin i\omega_0, \sin i\omega_1, \dots,\ \cos i\omega_0,
# \cos i\omega_1, \dots]$$
#
# - $w$ has dim / 2 numbers: `md.nets.sinusoidal(i, dim // 2, sin_first=True)`, for `i` of shape (n,). Nothing of it is trained.
# - Rows and columns are numbered 0, 1, 2, … in patches, along the largest picture there may be, `size` × `size` pixels. A
#   smaller one, H or W, is laid on its middle: of $n$ numbers, $h$ begin at $\lfloor (n - h)/2 \rfloor$ (section 5.3.2).


# %%
class PatchEmbedding(nn.Module):
    """(B, C, H, W) -> (B, N, dim)."""

    def __init__(self, channels, dim, patch, size):
        raise NotImplementedError

    def forward(self, x):
        """The patches of a picture, each with its place."""
        raise NotImplementedError


# %%
check("20.2", PatchEmbedding)

# %% [markdown]
# ## 20.3 · A row of words as a picture
#
# $$W_2\,\big(\mathrm{norm}(x) \odot (1 + \mathrm{scale}) + \mathrm{shift}\big) + b_2, \qquad
# [\mathrm{shift}, \mathrm{scale}] = W_1\,\mathrm{SiLU}(\mathrm{emb}) + b_1
# \qquad\text{(adaLN, Peebles \& Xie 2023, section 3.2)}$$
#
# `tokens` is (B, N, dim), `emb` (B, dim) says what time it is, `size` is (H, W). The answer is the picture, (B, out_channels,
# H, W).
#
# - The norm is a LayerNorm over the last axis that has no weights of its own, with eps = 1e-6:
#   `torch.nn.functional.layer_norm`, or `nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)`.
# - Two `nn.Linear`: of emb, dim to 2·dim, and of the tokens, dim to patch·patch·out_channels.
# - What the second makes of a token are the pixels of its patch, in the order (row, column, channel). Tokens stand row by row.
# - Set weight and bias of both layers to zero (`nn.init.zeros_`): a new network answers 0 everywhere.


# %%
class FinalLayer(nn.Module):
    """(B, N, dim), (B, dim), (H, W) -> (B, out_channels, H, W)."""

    def __init__(self, dim, out_channels, patch):
        raise NotImplementedError

    def forward(self, tokens, emb, size):
        """The picture that the tokens stand for."""
        raise NotImplementedError


# %%
check("20.3", FinalLayer)

# %% [markdown]
# ## 20.4 · Told by the norm
#
# $$x \leftarrow x + \mathrm{gate}_1 \odot \mathrm{Attention}(m_1(x)), \qquad
# m_i(x) = \mathrm{norm}(x) \odot (1 + \mathrm{scale}_i) + \mathrm{shift}_i$$
# $$x \leftarrow x + \mathrm{gate}_2 \odot \mathrm{MLP}(m_2(x))
# \qquad\text{(adaLN-Zero, Peebles \& Xie 2023, figure 3)}$$
#
# `x` is (B, N, dim), `emb` (B, dim). The norm is that of 20.3.
#
# - One `nn.Linear`, dim to 6·dim, makes of $\mathrm{SiLU}(\mathrm{emb})$, in this order, $\mathrm{shift}_1, \mathrm{scale}_1,
#   \mathrm{gate}_1, \mathrm{shift}_2, \mathrm{scale}_2, \mathrm{gate}_2$. Its weight and bias start at zero: a new block is the
#   identity.
# - Attention is `GatedAttention(dim, heads, qk_norm)`, which is called with one thing, the tokens. (It is `SelfAttention` with
#   biases, and with a last layer that does *not* start at zero. Why must it not?)
# - The MLP is an `nn.Linear` to 4·dim, a `nn.GELU("tanh")`, an `nn.Linear` back to dim.


# %%
class DiTBlock(nn.Module):
    """(B, N, dim), (B, dim) -> (B, N, dim)."""

    def __init__(self, dim, heads=None, qk_norm=False):
        raise NotImplementedError

    def forward(self, x, emb):
        """The tokens, after they have looked around and thought."""
        raise NotImplementedError


# %%
check("20.4", DiTBlock)

# %% [markdown]
# ## 20.5 · All look at all
#
# $$\mathrm{softmax}\!\left(\frac{q\,k^\top}{\sqrt d}\right) v, \qquad q = [x\,W_q,\ c\,W'_q],\quad k = [x\,W_k,\ c\,W'_k],\quad
# v = [x\,W_v,\ c\,W'_v] \qquad\text{(Esser et al. 2024, figure 2b)}$$
#
# `image` $x$ is (B, N, dim) and `text` $c$ (B, L, dim). Each has layers of its own, and $[\cdot\,,\cdot]$ lays the two in one
# row of N + L tokens, over which there is one attention. What it finds is cut again, N and L, goes through a last layer, one
# for each, and comes back as the pair `image, text`.
#
# - The layers: q, k, v and the last for the picture, then q, k, v and the last for the words. All are `nn.Linear`, dim to dim,
#   with a bias. Two `GatedAttention(dim, heads, qk_norm)` hold just these, and the `.qkv(x)` and the `.to_out` of each do.
# - Heads are split as in 14.1, of 64 channels where `heads` is None. With `qk_norm`, q and k of the picture and q and k of the
#   words each go through an `nn.RMSNorm(dim // heads, eps=1e-6)` of their own, head by head, before they meet.
# - With `last`, nobody will ask the words again: they have no last layer (`None` in its place), and come back as `None`.


# %%
class JointAttention(nn.Module):
    """(B, N, dim), (B, L, dim) -> (B, N, dim), (B, L, dim) or None."""

    def __init__(self, dim, heads=None, qk_norm=False, last=False):
        raise NotImplementedError

    def forward(self, image, text):
        """What the picture found, and what the words found."""
        raise NotImplementedError


# %%
check("20.5", JointAttention)

# %%
progress()
