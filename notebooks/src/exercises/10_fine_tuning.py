# %% [markdown]
# # Exercises 10 · Fine-tuning, EMA, accumulation
#
# Three pieces of [the chapter](../10_fine_tuning.ipynb): a step that is made of several batches, weights that fit or are
# refused, and the direction in which Muon walks. (The average of the weights was exercise 05.3, the learning rate 05.2.) Put
# your lines where `raise NotImplementedError` stands and run the cell below. `hint("10.1")` helps, a little more each
# time it is called.

# %%
import torch
from torch import nn

from minidiff.course import check, hint, progress
from minidiff.training.checkpoint import read_tensors

# %% [markdown]
# ## 10.1 · One step from several batches
#
# $$g = \frac1K \sum_{j=1}^{K} \nabla_w L(w; \text{batch}_j), \qquad K = \texttt{config.accumulate}$$
#
# One optimizer step of a `Trainer`, in this order. Seed torch by `config.seed * 1_000_003 + trainer.step`. Set the learning
# rate of every group of `trainer.optimizer` to `config.lr_at(trainer.step)`. Take K batches `(x, y)` and gather the gradient
# of `trainer.loss(trainer.net, x, y)`. Clip its norm to `config.clip`, step, empty the gradient, call
# `trainer.ema.update(trainer.net)`, and append the mean of the K losses, a number, to `trainer.losses`. Return how many images
# it took. If that mean is not finite, raise a ValueError before any weight is touched. (`config.bf16` may be left out.)


# %%
def one_step(trainer, batches):
    """One optimizer step; returns how many images it took."""
    raise NotImplementedError


# %%
check("10.1", one_step)

# %% [markdown]
# ## 10.2 · Weights that fit, or none
#
# `read_tensors(file)` gives the tensors of a safetensors file, a dict from names to tensors. Fill `net` with them. If a name
# is missing in the file, or is not one of the network's, or has another shape there, raise a ValueError that tells
# the names that do not fit (five are enough), and leave the network as it is: all or nothing.


# %%
def load_weights(net, file):
    """Fill `net` from a safetensors file; every name and shape must match."""
    raise NotImplementedError


# %%
check("10.2", load_weights)

# %% [markdown]
# ## 10.3 · Every direction alike
#
# $$X \leftarrow \frac{G}{|G| + 10^{-7}}, \qquad\text{then, so many rounds:}\quad
# X \leftarrow a X + (b A + c A^2)\, X, \quad A = X X^\top \qquad\text{(Jordan et al. 2024)}$$
#
# with $(a, b, c) = (3.4445, -4.7750, 2.0315)$ and $|G|$ the root of the sum of the squares of all entries. The matrix
# is (m, n), and so is the answer: nearly $UV^\top$ of $G = USV^\top$, with matrix products alone.


# %%
def orthogonalise(matrix, rounds=5):
    """U V^T of the matrix U S V^T, (m, n), nearly."""
    raise NotImplementedError


# %%
check("10.3", orthogonalise)

# %%
progress()
