# %% [markdown]
# # Exercises 13 · VAE and latents
#
# The small functions between pictures and latents, in the order of [the chapter](../13_vae_and_latents.ipynb): few lines, and
# every pipeline in the world has got one of them wrong at some time. `check` says what is wrong, `hint("13.1")` helps.

# %%
import torch

import minidiff as md
from minidiff.course import check, hint, progress

# %% [markdown]
# ## 13.1 · An encoder is never quite sure
#
# What the encoder answers is not a latent but a normal distribution of latents, with a mean and a variance for every number:
#
# $$\text{std} = e^{\text{logvar}/2}, \qquad z = \text{mean} + \text{std}\cdot\epsilon, \quad \epsilon \sim \mathcal N(0, 1)
# \qquad\text{(Kingma \& Welling 2014, eq. 10)}$$
#
# $$\mathrm{KL} = \tfrac12 \sum \left(\text{mean}^2 + \text{std}^2 - 1 - \text{logvar}\right) \qquad\text{(appendix B)}$$
#
# `mean` and `logvar` have shape (B, C, h, w). Hold logvar to [−30, 20] before anything else is made of it. `sample` draws by
# `torch.randn(shape, generator=generator)` and lets gradients through to mean and logvar; `kl` sums over each latent, and is
# of shape (B,). `self.mean` and `std` can be read from outside.


# %%
class Gaussian:
    """A normal distribution of latents, independent in every number."""

    def __init__(self, mean, logvar):
        raise NotImplementedError

    @property
    def std(self):
        """The standard deviation, (B, C, h, w)."""
        raise NotImplementedError

    def sample(self, generator=None):
        """A latent, (B, C, h, w)."""
        raise NotImplementedError

    def kl(self):
        """The distance from the standard normal, (B,)."""
        raise NotImplementedError


# %%
check("13.1", Gaussian)

# %% [markdown]
# ## 13.2 · A picture, as the U-Net wants it
#
# $$\text{latent} = (z - \text{shift}) \cdot \text{scale} \qquad\text{(Rombach et al. 2022, appendix G; the shift is SD3's)}$$
#
# z comes from the VAE: `vae.encode(image)` is a `Gaussian`, and `vae.moments(image)` is its mean and logvar in one tensor,
# (B, 2C, h, w). With `sample=True` z is drawn from it, by the generator; otherwise z is its mean. `vae.scale` and `vae.shift`
# are numbers.
#
# - The network may have its weights in bfloat16 and takes images in their dtype; the latents come back in float32. (So mean
#   and logvar have to be float32 before anything is done with them.)
# - An image with values outside [−1, 1] is a ValueError: bytes from 0 to 255 would go through without a sound.
# - `tile` is there for pictures that do not fit into memory. You may leave it aside until 13.4.


# %%
def to_latents(vae, image, generator=None, sample=True, tile=None):
    """(B, 3, H, W) in [-1, 1] -> latents (B, C, h, w)."""
    raise NotImplementedError


# %%
check("13.2", to_latents)

# %% [markdown]
# ## 13.3 · And back: a picture to look at
#
# Solve the line above for z, and decode: `vae.decode(z)` wants z in the dtype of the VAE's weights. The picture has the dtype
# of the latents and is held to [−1, 1], of which the decoder knows nothing.


# %%
def to_images(vae, latents, tile=None):
    """Latents (B, C, h, w) -> images (B, 3, H, W) in [-1, 1]."""
    raise NotImplementedError


# %%
check("13.3", to_images)

# %% [markdown]
# ## 13.4 · A picture too large for the network
#
# Cut x (B, C, H, W) into squares of `tile` pixels, or less where x is smaller, that cover it, neighbours with at least
# `overlap` in common; ask `fn` about each; and lay its answers over each other, as a weighted mean:
#
# $$\text{out} = \frac{\sum_i w_i\, \mathrm{fn}(x_i)}{\sum_i w_i},
# \qquad w_i = \text{up over the overlap, then flat, then down}$$
#
# `fn`'s answer is `scale` times as large as what it is given: 8 for a decoder, 1/8 for an encoder, and so is `out`. Sides need
# not be a multiple of anything but the 1/scale of an encoder, which `tile` and `overlap` are multiples of, too.


# %%
def tiled(fn, x, tile=64, overlap=16, scale=8):
    """fn(x) by overlapping tiles: (B, C, H, W) -> (B, C', H * scale, W * scale)."""
    raise NotImplementedError


# %%
check("13.4", tiled)

# %%
progress()
