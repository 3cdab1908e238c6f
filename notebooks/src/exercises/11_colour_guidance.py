# %% [markdown]
# # Exercises 11 · Colour guidance
#
# A wish becomes a number, the number becomes a slope, and the slope steers a denoiser: the pieces of
# [the chapter](../11_colour_guidance.ipynb), in its order. `check` says what is wrong, `hint("11.1")` helps.

# %%
import torch

import minidiff as md
from minidiff.course import check, hint, progress

# %% [markdown]
# ## 11.1 · How far from a colour?
#
# $$L = \sum_{\text{images}}\; \frac{1}{CHW}\sum_{c,h,w} \big|\,x_{chw} - (2\,\mathrm{rgb}_c - 1)\,\big|$$
#
# `color_loss(rgb)` returns a function `loss(images)`. `rgb` holds C numbers in $[0, 1]$; `images` have shape (B, C, H, W) and
# values in $[-1, 1]$; the loss is one number. A colour outside $[0, 1]$ raises a ValueError, at once.


# %%
def color_loss(rgb):
    """loss(images): mean absolute difference to one colour, summed over the images."""
    raise NotImplementedError


# %%
check("11.1", color_loss)

# %% [markdown]
# ## 11.2 · A denoiser that goes downhill
#
# `guided(denoise, loss, scale)` returns a denoiser `steer(xt, level)`. It asks `denoise`, takes the slope of `loss` at the
# estimate's $\hat x_0$, and guesses that $\hat x_0$ depends on $x_t$ as for white noise:
#
# $$g = \frac{\alpha}{\alpha^2+\sigma^2}\,\nabla L(\hat x_0), \qquad
# \hat x_0' = \hat x_0 - s\,\frac{\sigma^2}{\alpha}\,g, \qquad \hat\epsilon' = \hat\epsilon + s\,\sigma\,g
# \qquad\text{(Dhariwal \& Nichol 2021, algorithm 2)}$$
#
# `alpha, sigma = level.like(xt)` broadcast against the images; $s$ is `scale`. Samplers run with gradients switched off, and a
# flow begins at $\alpha = 0$: multiply out before you divide. Leave `through_net` alone for now.


# %%
def guided(denoise, loss, scale, through_net=False):
    """denoise, steered to where loss is low: (xt, level) -> md.Estimate(x0, eps)."""
    raise NotImplementedError


# %%
check("11.2", guided)

# %% [markdown]
# ## 11.3 · Through the network
#
# The same function once more, and this time with `through_net=True` it asks the denoiser itself:
#
# $$g = \nabla_{x_t}\, L\big(\hat x_0(x_t)\big)$$
#
# and moves $\hat x_0$ and $\hat\epsilon$ as before. What comes out carries no graph. With `through_net=False` it is 11.2.


# %%
def guided(denoise, loss, scale, through_net=False):  # noqa: F811  more of the same
    """denoise, steered to where loss is low: (xt, level) -> md.Estimate(x0, eps)."""
    raise NotImplementedError


# %%
check("11.3", guided)

# %% [markdown]
# ## 11.4 · What would it be called?
#
# How far are the objects of a picture from being called `colour`? With $x_p$ the RGB of pixel $p$ in $[0, 1]$, $c_k$ the
# colours of the palette `md.data.COLOURS` (a dict, name → RGB in $[0, 1]$), and $\tau = 0.15$:
#
# $$p(k \mid x_p) = \mathrm{softmax}_k\!\left(-\frac{|x_p - c_k|^2}{2\tau^2}\right), \qquad
# L = \sum_{\text{images}} \frac{\sum_p w_p\,\big(-\log p(\text{colour} \mid x_p)\big)}{\max(1, \sum_p w_p)}$$
#
# The weights $w$, (B, H, H), are `md.data.objectness(images, background)`: 0 on the background, 1 on objects. They are held: no
# gradient passes through them. `images` have shape (B, 3, H, H) and values in $[-1, 1]$. A colour that is not in the palette
# raises a ValueError.


# %%
def palette_loss(colour, background=None):
    """loss(images): how far the objects are from being called `colour`, in nats, summed over the images."""
    raise NotImplementedError


# %%
check("11.4", palette_loss)

# %%
progress()
