# %% [markdown]
# # Exercises 17 · img2img, inpainting, depth2img
#
# Four pieces of [the chapter](../17_img2img_inpainting_depth.ipynb): where a walk is joined, a mask for latents, a sampler
# that gives what is new time to look at what is known, and a network with a wider door. Put your lines where `raise
# NotImplementedError` stands and run the cell below. `hint("17.1")` helps, a little more each time.

# %%
from itertools import pairwise

import torch

import minidiff as md
from minidiff.course import check, hint, progress

# %% [markdown]
# ## 17.1 · Where a walk is joined
#
# `levels` is a whole walk, noisy to clean, of `steps` steps, and usually one level more than that. Give the end of it that
# img2img takes: its last $\lfloor \text{steps} \cdot \text{strength} \rfloor$ steps, so one level more than that. At
# strength 0 this is the last level alone. Some walks have fewer levels than steps; then the end is at most all of it. (Meng
# et al. 2022, section 3)


# %%
def redraw_levels(levels, steps, strength):
    """list of Level -> the end of the list."""
    raise NotImplementedError


# %%
check("17.1", redraw_levels)

# %% [markdown]
# ## 17.2 · A mask for latents
#
# `mask` (B, 1, H, W) holds 0 (keep) to 1 (repaint), for an `image` (·, 3, H, W). Give (B, 1, H/stride, W/stride), floats,
# only 0 and 1: each latent asks the upper left pixel of its square, and is repainted if that is ½ or more. Raise a
# ValueError for a mask of another height or width than the image's, and for values outside [0, 1].


# %%
def small_mask(mask, image, stride):
    """(B, 1, H, W) -> (B, 1, H/stride, W/stride)"""
    raise NotImplementedError


# %%
check("17.2", small_mask)

# %% [markdown]
# ## 17.3 · Every step, several times
#
# For each pair `here`, `there` of neighbours in `levels`, take DDIM's step (`md.ddim_step`) `times` times. After each but
# the last of them go back up to `here`,
#
# $$x_\text{here} = \rho\, x_\text{there} + \sqrt{\sigma_\text{here}^2 - \rho^2\sigma_\text{there}^2}\;\epsilon', \qquad
# \rho = \alpha_\text{here}/\alpha_\text{there} \qquad\text{(Lugmayr et al. 2022, algorithm 1)}$$
#
# with fresh noise from `torch.randn(x.shape, generator=generator)`. Then `yield md.State(x, estimate.x0, there)`, once a pair.
# `times` below 1 is a ValueError.


# %%
def repaint(denoise, x, levels, times=5, generator=None):
    """Yields a State for every pair of levels."""
    raise NotImplementedError


# %%
check("17.3", repaint)

# %% [markdown]
# ## 17.4 · A wider door
#
# A U-Net that takes `channels` instead of `unet.config["in_channels"]`, and at first answers as `unet` does, whatever the
# new channels hold. `md.UNet(**config)` makes one; `unet.state_dict()["conv_in.weight"]` has shape (width, in_channels, 3,
# 3) for the U-Nets asked here (no patches, no class channels). The new channels come last. The given network stays as it is.
# Fewer channels than there are is a ValueError.


# %%
def widened(unet, channels):
    """A new md.UNet."""
    raise NotImplementedError


# %%
check("17.4", widened)

# %%
progress()
