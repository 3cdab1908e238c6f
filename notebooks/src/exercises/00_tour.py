# %% [markdown]
# # Exercises 00 · The tour
#
# Three small ones, to see how it works. Every exercise is a function of the library that you write anew; its name and its
# arguments are given, and so is the formula. Put your lines where `raise NotImplementedError` stands, run the cell, and then
# the one below it: `check` says whether it is right and, if not, which mistake it looks like. `hint("00.1")` helps, a little
# more each time it is called. Nothing is graded but by you.

# %%
from minidiff.course import check, hint, progress

# %% [markdown]
# ## 00.1 · A picture that a screen can show
#
# Pictures are tensors (N, C, H, W) in [−1, 1] everywhere in this course, with one channel (grey) or three. A screen wants
# bytes, whole numbers from 0 to 255, with the three colours of a pixel side by side:
#
# $$b = \mathrm{round}\big(127.5\,(x + 1)\big), \qquad x \text{ held to } [-1, 1].$$
#
# Return a NumPy array of dtype uint8, (N, H, W, 3). A grey picture gets its one channel three times.


# %%
def to_pixels(images):
    """(N, C, H, W) floats -> uint8 (N, H, W, 3)."""
    raise NotImplementedError


# %%
check("00.1", to_pixels)

# %% [markdown]
# ## 00.2 · The noise, from the image
#
# $$x_t = \alpha_t x_0 + \sigma_t \epsilon$$
#
# Someone tells you what the clean image in $x_t$ is. Which noise was added? `level.like(xt)` gives $\alpha_t$ and $\sigma_t$,
# ready to multiply a batch `xt` (B, ...).


# %%
def predict_eps(xt, x0, level):
    """eps, in the shape of xt."""
    raise NotImplementedError


# %%
check("00.2", predict_eps)

# %% [markdown]
# ## 00.3 · Keep the last
#
# A sampler is a generator: `sampler(denoise, x, levels, **options)` yields a `State(x, x0, level)` after every step. Walk it
# to its end and return the `x` of the last state. With `progress`, the library shows a bar; you need not.


# %%
def sample(sampler, denoise, x, levels, progress=True, **options):
    """The end of the walk, in the shape of x."""
    raise NotImplementedError


# %%
check("00.3", sample)

# %%
progress()
