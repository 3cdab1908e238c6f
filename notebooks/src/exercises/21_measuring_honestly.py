# %% [markdown]
# # Exercises 21 · Measuring, honestly
#
# Four pieces of [the chapter](../21_measuring_honestly.ipynb): the interval of a share, the interval of a difference, how
# varied a handful of answers is, and a distance that is not compared with one of another size. Put your lines where `raise
# NotImplementedError` stands and run the cell below. `hint("21.1")` helps, a little more each time it is called.

# %%
import minidiff as md
from minidiff.course import check, hint, progress
from minidiff.evaluation.distances import LEAST, Distance

# %% [markdown]
# ## 21.1 · What ten of ten is worth
#
# Of `n` pictures `k` are right. Every share $p$ for which that would be no surprise,
#
# $$\Big|\frac kn - p\Big| \le z\sqrt{\frac{p(1-p)}{n}} \qquad\text{(Wilson 1927),}$$
#
# lies between two roots of a quadratic. Return them as two numbers, (low, high), neither below 0 nor above 1, where rounding
# may have carried it.


# %%
def wilson(k, n, z=1.96):
    """The interval of a share of which k of n are right."""
    raise NotImplementedError


# %%
check("21.1", wilson)

# %% [markdown]
# ## 21.2 · Is the one better than the other?
#
# `row` and `other` have a `.share` and an `.interval`, (low, high). Return three numbers: the difference $d = p_1 - p_2$ of the
# shares, and its interval
#
# $$d - \sqrt{(p_1-\ell_1)^2 + (u_2-p_2)^2} \quad\text{to}\quad d + \sqrt{(u_1-p_1)^2 + (p_2-\ell_2)^2}
# \qquad\text{(Newcombe 1998, method 10).}$$


# %%
def gap(row, other):
    """row.share - other.share, and the interval of that."""
    raise NotImplementedError


# %%
check("21.2", gap)

# %% [markdown]
# ## 21.3 · How varied are eight stars?
#
# `values` are what was drawn, such as `["red", "blue", "red"]`, out of so many `options`. With $p_v$ the share of the value
# $v$, and $m$ different values among $n$,
#
# $$H = \Big(-\sum_v p_v \log p_v + \frac{m-1}{2n}\Big) \Big/ \log(\text{options}),$$
#
# and never more than 1. Few draws look less varied than what they were drawn from; the second term (Miller 1955) makes up for
# that. Return a number: 0 if all are the same, 1 if all options come equally often.


# %%
def entropy(values, options):
    """Of what was drawn from so many options, as a share of the most there could be."""
    raise NotImplementedError


# %%
check("21.3", entropy)

# %% [markdown]
# ## 21.4 · A distance, and of how many
#
# Features `a` and `b`, (N, D) each. Return a list of `Distance(n, parts, fd, kd, fd_std, kd_std)`, one for each size $n =
# 64, 128, 256, \dots$ below N (`LEAST` is 64), and one for N itself (for the shorter, if one of them is). For each $n$: cut
# both into disjoint parts of $n$ rows, from the front, leaving out what does not fill a part; compare the first part of `a`
# with the first of `b`, and so on. Return the means of the two distances over the parts, and their spreads, as
# `statistics.pstdev` has them. `md.evaluation.frechet_distance` and `md.evaluation.kernel_distance` measure.


# %%
def distances(a, b):
    """Between features (N, D) and (N, D), at n = 64, 128, 256, ... and N."""
    raise NotImplementedError


# %%
check("21.4", distances)

# %%
progress()
