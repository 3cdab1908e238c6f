# %% [markdown]
# # Exercises 15 · A whole text-to-image model
#
# Four pieces of [the chapter](../15_text_to_image.ipynb), one from each of its trainings and one from its judge: the scale of
# the latents, the length of the words, the order of the lessons, and a lie. Put your lines where `raise NotImplementedError`
# stands and run the cell below. `hint("15.1")` helps, a little more each time it is called.

# %%
import torch
from torch import nn

from minidiff.course import check, hint, progress
from minidiff.training.latent import deal

# %% [markdown]
# ## 15.1 · A scale that is measured
#
# A VAE answers with Gaussians. `latents` holds the means and standard deviations of many of them, each (N, C, h, w) in float16,
# and a draw is $\mu + s\,\epsilon$. Find the two numbers with which draws have mean 0 and variance 1, over all numbers of all
# latents together, as $(z - \mathrm{shift}) \cdot \mathrm{scale}$:
#
# $$\mathrm{shift} = \overline{\mu}, \qquad \mathrm{scale} = \big(\mathrm{var}(\mu) + \overline{s^2}\big)^{-1/2}
# \qquad\text{(Rombach et al. 2022, appendix G)}$$
#
# Both go to `vae.shift` and `vae.scale` as plain numbers, and to `vae.config`, a dict, under "shift" and "scale": that is what
# the VAE is loaded from. Return the VAE.


# %%
def measure(vae, latents):
    """The VAE, carrying the shift and scale of latents {"mean", "std"}."""
    raise NotImplementedError


# %%
check("15.1", measure)

# %% [markdown]
# ## 15.2 · Words long enough to be told apart
#
# `text` is an untrained `CLIPText`. Its word vectors are `text.tokens.weight`, (vocabulary, D), and its positions
# `text.positions`, (L, D). Draw both anew from a normal distribution of mean 0: words with deviation `std`, positions with
# half of that. All else stays as it is. Return the encoder.


# %%
def long_words(text, std=1.0):
    """The encoder, its words and positions drawn anew."""
    raise NotImplementedError


# %%
check("15.2", long_words)

# %% [markdown]
# ## 15.3 · Lessons, the plain ones first
#
# A method of `Lessons`, whose parts you need are
#
# - `self.mean`, `self.std`: (N, C, h, w), float16, of the latents' Gaussians; `std` may be None: then a latent *is* its mean
# - `self.texts` (N, L), ids of a sentence for each; `self.nothing` (1, L), those of the empty sentence
# - `self.dropout`: the share of sentences that is replaced by it, each for itself
# - `self.easy` (M,), the numbers of the scenes to begin with; `self.plain` (M, L): row i is said of scene `easy[i]`
#
# Yield `(z, {"context": ids})` without end, z (B, C, h, w) in float32. `deal(N, batch, seed, start)` gives the numbers of the
# scenes, from batch `start` on. In the batches 0 to `ahead` − 1 take each of these numbers modulo M, as a place in `easy`.


# %%
def batches(self, batch, seed=0, start=0, ahead=0):
    """Endless (z, {"context": ids}), the first `ahead` of easy scenes alone."""
    raise NotImplementedError


# %%
check("15.3", batches)

# %% [markdown]
# ## 15.4 · A lie about places
#
# `a` and `b` are `Attributes`: named tuples with shape, colour, size, position (in words), x, y, radius, depth, background.
# Give the scene in which each stands where the other stood, and is otherwise what it was. `a._replace(x=0.5)` is a copy of `a`
# with another x.


# %%
def places_exchanged(a, b):
    """The scene that the lie is true of: two Attributes, in the same order."""
    raise NotImplementedError


# %%
check("15.4", places_exchanged)

# %%
progress()
