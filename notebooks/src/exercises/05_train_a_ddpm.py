# %% [markdown]
# # Exercises 05 · Train a DDPM on images
#
# What surrounds a network in [the chapter](../05_train_a_ddpm.ipynb): images as numbers, two parts of a training loop with
# care, and two distances between sets of pictures. Put your lines where `raise NotImplementedError` stands and run the cell
# below. `hint("05.1")` helps, a little more each time it is called.

# %%
import copy
import math

import torch

from minidiff.course import check, hint, progress

# %% [markdown]
# ## 05.1 · From bytes to [−1, 1]
#
# `pixels` is uint8, 0 to 255, of any shape. Return float32 of the same shape: 0 becomes −1, 255 becomes 1, and what lies
# between lies evenly between.


# %%
def from_pixels(pixels):
    """uint8 0..255 -> float32 in [-1, 1]."""
    raise NotImplementedError


# %%
check("05.1", from_pixels)

# %% [markdown]
# ## 05.2 · Rise, then fall
#
# $$\ell_k = \ell\;\cdot\;\min\!\Big(1, \frac{k+1}{\text{warmup}}\Big)\;\cdot\;\frac{1 + \cos(\pi k / \text{steps})}{2}
# \qquad\text{(the cosine: Loshchilov \& Hutter 2017, eq. 5)}$$
#
# `config` is a `TrainConfig`: it has `lr`, `warmup`, `steps` and `decay`. With `warmup` 0 there is no rise; with `decay`
# `"constant"` instead of `"cosine"` there is no fall. `step` is $k$, from 0 to steps − 1. Return a number.


# %%
def lr_at(config, step):
    """The learning rate of a step."""
    raise NotImplementedError


# %%
check("05.2", lr_at)

# %% [markdown]
# ## 05.3 · Average the weights
#
# $$a \leftarrow d_k\,a + (1-d_k)\,w, \qquad d_k = \min\!\Big(\text{decay}, \frac{1+k}{10+k}\Big)
# \quad\text{after } k \text{ updates}$$
#
# `ema.net` is a second network, which begins as a copy of the first, is never trained, and is the one to sample from.
# `update(net)` moves its parameters by the line above, and copies the buffers, such as the statistics of a BatchNorm, as they
# are.


# %%
class EMA:
    """An exponential moving average of a network's weights: ema.net."""

    def __init__(self, net, decay=0.999):
        raise NotImplementedError

    def update(self, net):
        """Take one step towards the weights of net."""
        raise NotImplementedError


# %%
check("05.3", EMA)

# %% [markdown]
# ## 05.4 · The Fréchet distance
#
# $$|\mu_a - \mu_b|^2 + \operatorname{tr}\!\big(C_a + C_b - 2\,(C_a C_b)^{1/2}\big) \qquad\text{(Heusel et al. 2017, eq. 6)}$$
#
# The features have shapes (N, D) and (M, D). $\mu$ is their mean and $C$ their covariance, without bias (`torch.cov` wants a
# row for each feature). Compute in float64, and return a number. Covariances of few images are singular, and D may be 1.


# %%
def frechet_distance(features_a, features_b):
    """The squared distance of the Gaussians fitted to two sets of features."""
    raise NotImplementedError


# %%
check("05.4", frechet_distance)

# %% [markdown]
# ## 05.5 · The kernel distance
#
# $$\operatorname*{mean}_{i \ne j}\, k(a_i, a_j) + \operatorname*{mean}_{i \ne j}\, k(b_i, b_j) -
# 2 \operatorname*{mean}_{i,\,j}\, k(a_i, b_j), \qquad k(x, y) = \Big(\frac{x \cdot y}{D} + 1\Big)^3$$
#
# (Bińkowski et al. 2018, section 3 and eq. 4.) The same features, (N, D) and (M, D), and a number again. This distance
# assumes no Gaussians and has no bias: between two sets of real images it is 0 on average, whatever N and M.


# %%
def kernel_distance(features_a, features_b):
    """The squared maximum mean discrepancy of two sets of features, without bias."""
    raise NotImplementedError


# %%
check("05.5", kernel_distance)

# %%
progress()
