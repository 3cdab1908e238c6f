# %% [markdown]
# # Exercises 12 · CLIP from scratch
#
# CLIP from the outside in, as in [the chapter](../12_clip.ipynb): what it answers, what it is trained by, what it is good for;
# then the network that reads and the one that looks. Put your lines where `raise NotImplementedError` stands and run the cell
# below. `hint("12.1")` helps, a little more each time it is called.

# %%
import torch
from torch import nn

from minidiff.course import check, hint, progress
from minidiff.nets.clip import Text, TransformerLayer
from minidiff.nets.clip_image import MEAN, STD

# %% [markdown]
# ## 12.1 · The angle between a picture and a text
#
# $$\ell_{ij} = s \cdot \frac{u_i}{\lVert u_i \rVert} \cdot \frac{w_j}{\lVert w_j \rVert}, \qquad s = \min(e^{\tau},\ 100)
# \qquad\text{(Radford et al. 2021, figure 3 and section 2.5)}$$
#
# `image` and `text` are two networks, ready made. `image(images)` is (B, D), the vectors $u_i$; `text(ids)` is a pair
# `(tokens, pooled)`, and its `.pooled`, (N, D), are the vectors $w_j$.
#
# - $\tau$ is learned, one `nn.Parameter`, and starts where $e^\tau = 1/0.07$.
# - `encode_image` and `encode_text` give vectors of length 1; `forward` gives the logits $\ell$, (B, N): a row for each
#   picture, a column for each text.


# %%
class CLIP(nn.Module):
    """net(images, ids) -> logits (B, N): how well each text fits each picture."""

    def __init__(self, text, image):
        raise NotImplementedError

    def encode_image(self, images):
        """(B, 3, H, W) -> (B, D), of length 1."""
        raise NotImplementedError

    def encode_text(self, ids):
        """(N, L) -> (N, D), of length 1."""
        raise NotImplementedError

    def forward(self, images, ids):
        """The logits."""
        raise NotImplementedError


# %%
check("12.1", CLIP)

# %% [markdown]
# ## 12.2 · To each its own
#
# $$\mathcal L = -\frac{1}{2B} \sum_i \left( \log\frac{e^{\ell_{ii}}}{\sum_j e^{\ell_{ij}}} +
# \log\frac{e^{\ell_{ii}}}{\sum_j e^{\ell_{ji}}} \right) \qquad\text{(Radford et al. 2021, figure 3)}$$
#
# `logits` is (B, B), pairs on the diagonal. Which text belongs to picture i? Which picture to text i? Each question is a cross
# entropy, and the loss is the mean of both.
#
# If `ids` (B, L) is given, the tokens of the texts, texts may be equal, token by token. Then text j is as true of picture i as
# its own, and to demand a difference is unjust: leave (i, j) and (j, i) out of the sums under the fraction lines. (i, i) stays.


# %%
def contrastive_loss(logits, ids=None):
    """The mean loss of both questions, a scalar."""
    raise NotImplementedError


# %%
check("12.2", contrastive_loss)

# %% [markdown]
# ## 12.3 · A classifier made of sentences
#
# Write a sentence for each class, `ids` (N, L), and a CLIP names the class of a picture, though nobody ever showed it one with
# its class (section 3.1). `clip` is one as in 12.1. Return for each picture the number of the text that fits best, (B,) int64.


# %%
@torch.no_grad()
def zero_shot(clip, images, ids):
    """(B,), numbers from 0 to N - 1."""
    raise NotImplementedError


# %%
check("12.3", zero_shot)

# %% [markdown]
# ## 12.4 · A sentence in one vector
#
# This is the `forward` of the network that reads. `net` has all it needs:
#
# - `net.tokens(ids)`, (B, L, dim), gives each token of `ids` (B, L) its vector. To these, add the first L of
#   `net.positions`, (length, dim). Then come `net.layers`, one after the other. They are causal: a token sees itself and those
#   before it.
# - `pooled` is one vector for the whole sentence: that of its **first end token**, out of the last layer, through `net.norm`,
#   and through `net.projection` unless that is None. The end token is `net.config["eos"]`; if that is None, it is the one
#   with the highest id in the row.
# - `tokens` is for other networks, which attend to all of them. It comes out of the last layer but `skip` (0: the last, 1:
#   the one before it, as in Stable Diffusion 2), and through `net.norm` if `final_norm` is true.
#
# Return `Text(tokens, pooled)`, (B, L, dim) and (B, dim) or (B, projection).


# %%
def forward(net, ids, skip=0, final_norm=True):
    """Text(tokens, pooled)."""
    raise NotImplementedError


# %%
check("12.4", forward)

# %% [markdown]
# ## 12.5 · A picture in one vector
#
# $$x = [\,\mathrm{start},\ \mathrm{patch}_1 W,\ \dots,\ \mathrm{patch}_N W\,] + \mathrm{positions}
# \qquad\text{(Dosovitskiy et al. 2021, eq. 1)}$$
#
# (B, 3, size, size), in [−1, 1] as everywhere, becomes (B, projection): one transformer over N = (size / patch)² patches, and
# over one more token, in front of them, which is the same for every picture and sees them all.
#
# - First bring the colours to those that CLIP was trained on: it took values from 0 to 1, subtracted `MEAN` and divided by
#   `STD`, each three numbers, for red, green and blue.
# - $W$ is an `nn.Conv2d` without a bias, 3 channels to dim, its kernel and its stride as long as a patch. Patches are read row
#   by row. Two `nn.Parameter`, in this order: `start`, of shape (dim,), and `positions`, (1 + N, dim).
# - An `nn.LayerNorm(dim)`, then `layers` times `TransformerLayer(dim, heads, mlp, activation, causal=False)`. `mlp=None` means
#   4·dim.
# - Of what comes out, take the token in front; a second `nn.LayerNorm(dim)`, and an `nn.Linear` without a bias, dim to
#   projection. `projection=None`: without the last.
#
# `check` puts weights of its own into your layers, so that your answers can be compared with ours. What you call the layers is
# up to you; but take the kinds that the text names, and make them in its order.


# %%
class CLIPImage(nn.Module):
    """(B, 3, size, size) -> (B, projection)."""

    def __init__(self, size=224, patch=14, dim=1024, layers=24, heads=16, mlp=None, activation="quick_gelu", projection=768):
        raise NotImplementedError

    def forward(self, images):
        """What the token in front has gathered."""
        raise NotImplementedError


# %%
check("12.5", CLIPImage)

# %%
progress()
