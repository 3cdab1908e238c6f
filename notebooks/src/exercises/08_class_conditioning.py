# %% [markdown]
# # Exercises 08 · Class conditioning
#
# Four pieces of [the chapter](../08_class_conditioning.ipynb): labels that are forgotten now and then, labels that become
# vectors, an impartial look at what was drawn, and batches in which every image keeps its label. Put your lines where
# `raise NotImplementedError` stands and run the cell below. `hint("08.1")` helps, a little more each time it is called.

# %%
import torch
from torch import nn

import minidiff as md
from minidiff.course import check, hint, progress

# %% [markdown]
# ## 08.1 · Forget the label now and then
#
# $$y \leftarrow \begin{cases}\text{null class} & \text{with the given probability} \\ y & \text{otherwise}\end{cases}
# \qquad\text{(Ho \& Salimans 2022, algorithm 1)}$$
#
# `y` has shape (B,), and every label is decided for itself. Return a new tensor of the same shape and dtype, and draw from
# `generator`: `torch.rand` takes one.


# %%
def drop_labels(y, null_class, probability, generator=None):
    """Labels (B,), each replaced by the null class at the given probability."""
    raise NotImplementedError


# %%
check("08.1", drop_labels)

# %% [markdown]
# ## 08.2 · A vector for each class, and one for any
#
# A table of learned vectors, one for each class 0 … num_classes − 1, and one more at the end for the null class, whose
# number is kept in `self.null_class`. `forward` takes labels (B,) and returns their vectors (B, dim). For a label that is in no
# row of the table it raises a ValueError, before anything else happens.


# %%
class ClassEmbedding(nn.Module):
    """Labels (B,) -> (B, dim)."""

    def __init__(self, num_classes, dim):
        raise NotImplementedError

    def forward(self, y):
        """The vectors of the labels."""
        raise NotImplementedError


# %%
check("08.2", ClassEmbedding)

# %% [markdown]
# ## 08.3 · Did it draw what was asked?
#
# `md.data.read_shapes(image, min_confidence)` finds the objects in an image (3, H, H) by geometry: a tuple, from left to right,
# of objects with `.shape` and `.colour`, such as `"star"` and `"pink"`. For a batch (B, 3, H, H) it gives a list of B such
# tuples. Say whether a given object is among them: True or False for an image, a bool tensor (B,) for a batch.


# %%
def matches(image, shape, colour, min_confidence=0.5):
    """Does the image show an object of this shape and colour?"""
    raise NotImplementedError


# %%
check("08.3", matches)

# %% [markdown]
# ## 08.4 · Labels that stay with their images
#
# An endless walk through `images`, which has `images.pixels` (N, C, H, W), uint8, and `images.labels` (N,), or None. Yield
# `(x, y)`: x in [−1, 1] (`md.data.from_pixels`) of shape (B, C, H, W), and y (B,), or None where there are no labels.
#
# - In every epoch each image comes once, in a fresh order; an incomplete batch at the end is left out.
# - Batch k depends on `seed` and k alone, and `start` is the first k: a run that was cut goes on where it was.
# - With `flip`, every image is mirrored left to right with probability ½.


# %%
def batches(images, batch_size, device="cpu", flip=False, seed=0, start=0):
    """Yields (x, y) without end."""
    raise NotImplementedError


# %%
check("08.4", batches)

# %%
progress()
