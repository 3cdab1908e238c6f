# %% [markdown]
# # 02 · Exact denoising
#
# **If we knew the data, could we walk back from noise to an image?**
#
# Chapter 01 went down the hill: $x_t = \alpha_t x_0 + \sigma_t\epsilon$. Walking back needs someone to ask, at every level,
# *which image is under this noise?* Later a network will be asked. Here nobody has to learn anything: for data that we know
# completely, the best possible answer is a formula, and it fits in ten lines.
#
# So everything else about sampling can be studied alone: why one jump fails, why a walk succeeds, what DDPM and DDIM do
# at each step, and what a *perfect* denoiser would give us. The last answer is a surprise.
#
# You need chapter 01, Bayes' rule, and the formula of a Gaussian. Nothing is trained, nothing is downloaded.

# %% [markdown]
# > **For the lecturer.** 65 minutes: 10 for the best guess, 15 for its two closed forms, 5 for the jump, 15 for the steps, 10
# > for the films, 10 for the experiments; the bugs are homework. All of it runs in seconds on a CPU, so run it live.
# >
# > Worth asking before the cell is run: *what single picture would you answer, if all you saw was noise?* (the jump) · *the
# > same noise twice: the same picture twice?* (the films) · *what does a perfect denoiser draw?* (memory) · *two walks part at
# > t = 400: do they end in the same picture?* (the fork).

# %%
import math
from itertools import pairwise

import matplotlib
import torch
from IPython.display import display
from torch.testing import assert_close

import minidiff as md

# %% tags=["knobs"]
SEED = 0
SIZE = 32  # pixels to a side
IMAGES = 500  # the whole world of images
UNSEEN = 100  # and as many that are not in it
WALKS = 64  # images sampled at once  # quick: 32
STEPS = 50  # of a walk over images
DRAWS = 50_000  # numbers sampled from a Gaussian  # quick: 20_000
DOTS = 500  # points of the spiral

# %%
torch.manual_seed(SEED)
schedule = md.Schedule.linear()
pixels, _ = md.data.Shapes(IMAGES + UNSEEN, size=SIZE, seed=3).tensors()
known, unseen = md.data.from_pixels(pixels).split([IMAGES, UNSEEN])  # (N, 3, SIZE, SIZE) in [-1, 1]
D = known[0].numel()
print(f"{IMAGES} images of D = {D} numbers; root mean square {known.square().mean().sqrt():.2f}")


def rms(x):
    """Root mean square: the size of a difference, in the units of a pixel."""
    return x.square().mean().sqrt().item()


# %% [markdown]
# ## 1. The best guess
#
# Many clean images could have become this $x_t$. Some are more likely than others; call their average
# $m = \mathbb E[x_0 \mid x_t]$, the *posterior mean*. For any answer $D$ that may look at $x_t$ only,
#
# $$\begin{aligned}
# \mathbb E\big[\|x_0 - D\|^2 \,\big|\, x_t\big] &= \mathbb E\big[\|(x_0 - m) + (m - D)\|^2 \,\big|\, x_t\big] \\
# &= \mathbb E\big[\|x_0 - m\|^2 \,\big|\, x_t\big] + 2\,\underbrace{\mathbb E[x_0 - m \mid x_t]}_{0} \cdot (m - D)
#    + \|m - D\|^2 .
# \end{aligned}$$
#
# The first term is out of our hands, the last is zero at $D = m$. **The posterior mean makes the least squared error**, and
# every network trained with a squared error strives for it. The best guess of the noise comes with it, since the line is
# linear: $\hat\epsilon = (x_t - \alpha \hat x_0)/\sigma$. An `Estimate` holds both.
#
# It is also a direction. Let $p(x_t) = \int p(x_0)\, q(x_t|x_0)\, dx_0$ be the density of noisy images. Differentiate its
# logarithm, with $\nabla \log q(x_t|x_0) = -(x_t - \alpha x_0)/\sigma^2$:
#
# $$\nabla \log p(x_t) = \mathbb E\big[\nabla \log q(x_t \mid x_0) \,\big|\, x_t\big] = -\frac{x_t - \alpha\,\hat x_0}{\sigma^2}
# = -\frac{\hat\epsilon}{\sigma} \qquad\text{(Tweedie's formula; Efron 2011)}$$
#
# So $-\hat\epsilon$ points to where noisy images are more likely. The literature calls $\nabla \log p$ the *score*.
#
# ## 2. If the data are Gaussian
#
# Let every coordinate of $x_0$ be a draw of $\mathcal N(\mu, s^2)$. Bayes' rule multiplies what we knew by what we saw:
#
# $$-2\log p(x_0 \mid x_t) = \frac{(x_0 - \mu)^2}{s^2} + \frac{(x_t - \alpha x_0)^2}{\sigma^2} + \dots
# = x_0^2 \Big(\frac1{s^2} + \frac{\alpha^2}{\sigma^2}\Big)
# - 2 x_0 \Big(\frac{\mu}{s^2} + \frac{\alpha x_t}{\sigma^2}\Big) + \dots$$
#
# A quadratic, so a Gaussian: its variance is one over the first bracket, its mean the second bracket over the first.
#
# $$\operatorname{Var}[x_0|x_t] = \frac{s^2\sigma^2}{\alpha^2 s^2 + \sigma^2}, \qquad
# \mathbb E[x_0|x_t] = \frac{\sigma^2\mu + \alpha s^2 x_t}{\alpha^2 s^2 + \sigma^2}
# = \mu + \frac{\alpha s^2}{\alpha^2 s^2 + \sigma^2}\,(x_t - \alpha\mu).$$
#
# The last form reads well: start from what you knew, $\mu$, and correct it by a part of the surprise $x_t - \alpha\mu$.


# %%
class GaussianDenoiser:
    """The exact denoiser of data drawn from N(mean, std^2), each coordinate for itself."""

    def __init__(self, mean=0.0, std=1.0):
        self.mean, self.std = mean, std

    def __call__(self, xt, level):
        alpha, sigma = level.like(xt)
        surprise = (xt - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2)  # over the variance of x_t
        return md.Estimate(self.mean + alpha * self.std**2 * surprise, sigma * surprise)


# %% [markdown]
# The tempting guess is to divide: $x_t/\alpha$ is right on average over the noise. It believes every deviation. The posterior
# mean believes a part of each. **Expected at $t = 300$: squared errors of $(\sigma/\alpha)^2 = 1.54$ and 0.215.**

# %%
level = schedule.at(300)
x0 = 0.5 * torch.randn(DRAWS)
xt = md.add_noise(x0, torch.randn(DRAWS), level)
guess = GaussianDenoiser(0.0, 0.5)(xt, level).x0
assert_close(guess, md.GaussianDenoiser(0.0, 0.5)(xt, level).x0)
errors = [(some - x0).square().mean().item() for some in (xt / level.alpha, guess)]
print(f"squared error: dividing {errors[0]:.3f}, posterior mean {errors[1]:.3f}")
assert abs(errors[0] - 1.54) < 0.05 and abs(errors[1] - 0.215) < 0.008
edges = torch.linspace(-2, 2, 21)
middle = (edges[1:] + edges[:-1]) / 2
seen = torch.stack([x0[(xt > low) & (xt < high)].mean() for low, high in pairwise(edges)])
lines = {r"$x_t / \alpha$": (middle, middle / level.alpha), "formula": (middle, GaussianDenoiser(0.0, 0.5)(middle, level).x0),
         r"mean $x_0$ of a slice": (middle, seen)}  # fmt: skip
figure = md.plot.show_curves(lines, xlabel="$x_t$", ylabel="$x_0$", title="the best guess is the mean of a vertical slice")
figure.axes[0].scatter(xt[:3000], x0[:3000], s=3, color="#bbbbbb", zorder=0)
figure.axes[0].set(xlim=(-2, 2), ylim=(-2, 2))
assert (seen - lines["formula"][1]).abs().max() < 0.15
display(figure)

# %% [markdown]
# ## 3. If the data are a heap of images
#
# Now let $x_0$ be one of $N$ known images $x_1 \dots x_N$, each with probability $1/N$. Bayes' rule again, and the $1/N$ and
# the Gaussian's constant, equal for all, cancel:
#
# $$w_i = p(x_i \mid x_t) = \frac{q(x_t|x_i)\,\frac1N}{\sum_j q(x_t|x_j)\,\frac1N}
# = \operatorname{softmax}_i\!\left(-\frac{\|x_t - \alpha x_i\|^2}{2\sigma^2}\right), \qquad
# \mathbb E[x_0|x_t] = \sum_i w_i\, x_i \qquad\text{(Karras et al. 2022, eq. 57)}$$
#
# A vote, in which each image counts by how well it explains $x_t$. Written out, the square is
# $\|x_t\|^2 - 2\alpha\, x_t\!\cdot\!x_i + \alpha^2\|x_i\|^2$, and the first term is the same for every $i$: a softmax does
# not see it. What remains is one matrix product. It is divided by a small $\sigma^2$, so it is computed in float64.


# %%
def weights(xt, data, level):
    """How likely each image of data (N, ...) became each of xt (B, ...): (B, N), float64, every row sums to 1."""
    x, data = xt.flatten(1).double(), data.flatten(1).double()
    alpha, sigma = level.like(x)
    return ((alpha * x @ data.T - alpha**2 / 2 * data.norm(dim=1) ** 2) / sigma**2).softmax(dim=1)


class DatasetDenoiser:
    """The exact denoiser of a finite dataset (N, ...)."""

    def __init__(self, data):
        self.data = data.flatten(1).double()  # once, or every step would copy the whole dataset

    def __call__(self, xt, level):
        x0 = (weights(xt, self.data, level) @ self.data).view(xt.shape)
        alpha, sigma = level.like(x0)
        return md.Estimate(x0.to(xt), ((xt.double() - alpha * x0) / sigma).to(xt))


# %% [markdown]
# A vote of how many? The *entropy* $H = -\sum w_i \log w_i$ says: $e^H$ is $N$ where all votes are equal, and 1 where one
# image has them all. Below, one image of the heap under more and more noise:

# %%
denoise = DatasetDenoiser(known)
ts = [200, 400, 600, 650, 700, 800, 999]
noisy = torch.cat([md.add_noise(known[6:7], torch.randn(1, 3, SIZE, SIZE), schedule.at(t)) for t in ts])
levels = schedule.at(torch.tensor(ts))  # a level for each
best = denoise(noisy, levels)
assert_close(best, md.DatasetDenoiser(known)(noisy, levels))
votes = torch.special.entr(weights(noisy, known, levels)).sum(1).exp()
print("images in the vote:", [round(v, 1) for v in votes.tolist()])
assert votes[0] < 1.01 and votes[-1] > 450
md.plot.show_images(
    torch.cat([noisy, best.x0]), row_labels=["$x_t$", r"$\mathbb{E}[x_0|x_t]$"], column_labels=[f"t = {t}" for t in ts],
    title="under light noise an image, under heavy noise an average",
)  # fmt: skip

# %% [markdown]
# ## 4. A naive attempt: jump
#
# We have the best denoiser there is. Draw pure noise, ask it once, done?

# %%
noise = torch.randn(WALKS, 3, SIZE, SIZE)
jump = denoise(noise, schedule.at(999)).x0
mean = known.mean(0)
print(f"from the mean image: jumps {rms(jump - mean):.2f}, images {rms(known - mean):.2f}")
assert rms(jump - mean) < 0.2 and rms(known - mean) > 0.6
md.plot.show_images(
    torch.cat([noise[:6], jump[:6], mean.expand(6, -1, -1, -1), known[:6]]), columns=6,
    row_labels=["noise", "one jump", "mean of all", "images"],
)  # fmt: skip

# %% [markdown]
# Grey fog, nearly the same each time: noise says nothing about $x_0$, and the best guess about an unknown image is the mean of
# all images. (It reads a trace of brightness into the noise, because the linear schedule leaves one: chapter 01, section 7.)
# The answer is right, the question was wrong. **A best guess is not a likely image**, as the average of two faces is no face.
#
# ## 5. A walk: go a little way, ask again
#
# The guess is poor, but its *direction* is right. Take a small step, to a level with a little less noise, and ask again:
# now $x_t$ knows slightly more. A **step** goes from a level `here` $(\alpha, \sigma)$ to one `there`
# $(\alpha', \sigma')$. Where would $x'$ be, if $x_0$ were known?
#
# **DDPM's answer** is to run the chain of chapter 01 backwards. From there to here, the chain kept a share $a$ and added
# noise of variance $b^2$; matching $x_t = \alpha x_0 + \sigma\epsilon$ fixes both:
#
# $$x_t = a\,x' + b\,\epsilon, \qquad a = \frac{\alpha}{\alpha'}, \qquad b^2 = \sigma^2 - a^2\sigma'^2 .$$
#
# For neighbours, $a^2 = 1-\beta_t$ and $b^2 = \beta_t$. Bayes' rule once more, a product of two Gaussians in $x'$:
#
# $$-2\log q(x' \mid x_t, x_0) = \frac{(x_t - a x')^2}{b^2} + \frac{(x' - \alpha' x_0)^2}{\sigma'^2} + \dots$$
#
# Complete the square as in section 2. The precision is
# $\frac{a^2}{b^2} + \frac1{\sigma'^2} = \frac{a^2\sigma'^2 + b^2}{b^2\sigma'^2} = \frac{\sigma^2}{b^2\sigma'^2}$, and therefore
#
# $$\tilde\beta = \frac{\sigma'^2}{\sigma^2}\, b^2, \qquad
# \tilde\mu = \tilde\beta\Big(\frac{a\,x_t}{b^2} + \frac{\alpha' x_0}{\sigma'^2}\Big)
# = \frac{\alpha'\, b^2}{\sigma^2}\, x_0 + \frac{a\,\sigma'^2}{\sigma^2}\, x_t . \qquad\text{(DDPM, eqs. 6 and 7)}$$
#
# Put $x_t = \alpha x_0 + \sigma\epsilon$ into it, and let $\rho = a\sigma'/\sigma$:
#
# $$\tilde\mu = \frac{\alpha' b^2 + a\,\sigma'^2 \alpha}{\sigma^2}\,x_0 + \frac{a\,\sigma'^2}{\sigma}\,\epsilon
# = \alpha'\,\underbrace{\frac{b^2 + a^2\sigma'^2}{\sigma^2}}_{1}\,x_0 + \sigma'\rho\,\epsilon, \qquad
# \tilde\beta = \sigma'^2\,\frac{\sigma^2 - a^2\sigma'^2}{\sigma^2} = \sigma'^2(1-\rho^2).$$
#
# All that is left of two long fractions is the formula that we know, with noise that is part old and part new:
#
# $$x' = \alpha'\,x_0 + \sigma'\big(\rho\,\epsilon + \sqrt{1-\rho^2}\;\text{noise}\big),
# \qquad \rho = \frac{\alpha/\sigma}{\alpha'/\sigma'} .$$
#
# We do not know $x_0$, so we use $\hat x_0$. That is the only approximation in DDPM's sampler, and the shorter the step the
# better it is.


# %%
def ddpm_step(xt, estimate, here, there, noise=None):
    """A draw of q(x_there | x_t, x0) (DDPM, eqs. 6 and 7)."""
    (alpha, sigma), (alpha_there, sigma_there) = here.like(xt), there.like(xt)
    rho = alpha * sigma_there / (alpha_there * sigma)  # the share of the noise there that x_t remembers
    noise = torch.randn_like(xt) if noise is None else noise
    eps = (xt - alpha * estimate.x0) / sigma
    return alpha_there * estimate.x0 + sigma_there * (rho * eps + (1 - rho**2) ** 0.5 * noise)


# %% [markdown]
# **DDIM's answer:** why draw fresh noise, if the estimate has some? Keep all of it.
#
# $$x' = \alpha'\,\hat x_0 + \sigma'\,\hat\epsilon$$
#
# Nothing random is left. In between lies a family: $\eta$ is the share of DDPM's fresh noise, and the old noise makes room.
#
# $$x' = \alpha'\,\hat x_0 + \sqrt{\sigma'^2 - \text{std}^2}\;\hat\epsilon + \text{std}\cdot\text{noise}, \qquad
# \text{std} = \eta\,\sigma'\sqrt{1-\rho^2} \qquad\text{(DDIM, eqs. 12 and 16)}$$


# %%
def ddim_step(xt, estimate, here, there, eta=0.0, noise=None):
    """alpha' * x0 + sqrt(sigma'^2 - std^2) * eps + std * noise (DDIM, eq. 12)."""
    (alpha, sigma), (alpha_there, sigma_there) = here.like(xt), there.like(xt)
    if eta == 0:
        return alpha_there * estimate.x0 + sigma_there * estimate.eps
    rho = alpha * sigma_there / (alpha_there * sigma)
    std = eta * sigma_there * (1 - rho**2) ** 0.5
    noise = torch.randn_like(xt) if noise is None else noise
    return alpha_there * estimate.x0 + (sigma_there**2 - std**2) ** 0.5 * estimate.eps + std * noise


# %% [markdown]
# Is it the library's, and is it the paper's? Between neighbours, eq. 7 in the letters of the paper, with our $t$ for its $t$:

# %%
here, there = schedule.at(500), schedule.at(499)
estimate, fresh = denoise(noise, here), torch.randn_like(noise)
mine = ddpm_step(noise, estimate, here, there, fresh)
assert_close(mine, md.ddpm_step(noise, estimate, here, there, fresh))
assert_close(mine, ddim_step(noise, estimate, here, there, 1.0, fresh))  # eta = 1 is DDPM
for eta in (0.0, 0.5, 1.0):
    step = ddim_step(noise, estimate, here, there, eta, fresh)
    assert_close(step, md.ddim_step(noise, estimate, here, there, eta, fresh))

abar, abar_prev = here.alpha**2, there.alpha**2
beta = 1 - abar / abar_prev
mu = abar_prev**0.5 * beta / (1 - abar) * estimate.x0 + (1 - beta) ** 0.5 * (1 - abar_prev) / (1 - abar) * noise
assert_close(mine, mu + ((1 - abar_prev) / (1 - abar) * beta) ** 0.5 * fresh, rtol=1e-4, atol=1e-5)
print(f"beta {beta:.5f}, a draw has standard deviation {((1 - abar_prev) / (1 - abar) * beta) ** 0.5:.4f}")

# %% [markdown]
# A **sampler** takes such steps from level to level, and yields a `State` after each. The list of levels ends with `CLEAN`
# $(\alpha = 1, \sigma = 0)$, where the step itself returns $\hat x_0$ and no noise: no special case is needed.


# %%
@torch.no_grad()
def ddpm(denoise, x, levels, generator=None):
    """Ancestral sampling (DDPM, algorithm 2)."""
    for here, there in pairwise(levels):
        estimate = denoise(x, here)
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = ddpm_step(x, estimate, here, there, noise)
        yield md.State(x, estimate.x0, there)


@torch.no_grad()
def ddim(denoise, x, levels, eta=0.0, generator=None):
    """DDIM (eq. 12)."""
    for here, there in pairwise(levels):
        estimate = denoise(x, here)
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype) if eta else None
        x = ddim_step(x, estimate, here, there, eta, noise)
        yield md.State(x, estimate.x0, there)


# %%
levels = schedule.levels(STEPS, "linspace")  # t = 999 ... 0, and CLEAN
for mine, theirs, options in ((ddpm, md.ddpm, {}), (ddim, md.ddim, {}), (ddim, md.ddim, {"eta": 0.5})):
    walks = [list(f(denoise, noise[:2], levels, generator=torch.Generator().manual_seed(1), **options)) for f in (mine, theirs)]
    for a, b in zip(*walks, strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-4)
print(f"{len(levels)} levels, {len(walks[0])} states; the last is at {walks[0][-1].level}")

# %% [markdown]
# Now walk, three times from the same noise: once by DDIM, twice by DDPM.

# %%
one = noise[:1]
films = [list(sampler(denoise, one, levels)) for sampler in (ddim, ddpm, ddpm)]
together = [md.State(*map(torch.cat, ([a.x, b.x, c.x], [a.x0, b.x0, c.x0])), a.level) for a, b, c in zip(*films, strict=True)]
assert_close(list(ddim(denoise, one, levels))[-1].x, films[0][-1].x)  # the same noise, the same image
assert rms(films[1][-1].x - films[2][-1].x) > 0.1  # the same noise, another image
md.plot.show_trajectory(together, count=9, images=3, title="one noise, three walks: DDIM, DDPM, DDPM")

# %% [markdown]
# From fog to an image, without a network. The second row of each pair is the denoiser's guess: an average of everything at
# first, an average of few, then one. DDIM always makes the same picture of the same noise; DDPM's picture depends on the
# noise that it meets on the way.
#
# ## 6. Seen from above
#
# In two dimensions the whole crowd can be seen at once. The data are points on a spiral. Each dot below starts as Gaussian
# noise, and keeps the colour of the direction in which it started.


# %%
def plane(titles, side):
    """A figure with one square panel for each title, `side` inches wide, for points in the plane."""
    with matplotlib.rc_context(md.plot.STYLE):
        figure = md.plot.Picture(figsize=(side * len(titles), side + 0.5), dpi=md.plot.DPI, layout="constrained")
        panels = figure.subplots(1, len(titles))
        for axes, title in zip(panels, titles, strict=True):
            axes.set(title=title, xlim=(-2.9, 2.9), ylim=(-2.9, 2.9), aspect="equal")
            axes.set_axis_off()
    return figure, panels


turn = math.pi * (0.5 + 3 * torch.rand(DOTS).sqrt())  # the root spreads the points evenly along the arm
spiral = torch.stack([turn.cos(), turn.sin()], dim=1) * turn[:, None] / 6
dots = torch.randn(DOTS, 2)
fine = schedule.levels(200, "linspace")
flow = list(ddim(DatasetDenoiser(spiral), dots, fine))
shown = [flow[0], flow[160], flow[180], flow[192], flow[-1]]
figure, panels = plane([f"t = {s.level.t}" if s.level.sigma else "clean" for s in shown], side=2.6)
for axes, state in zip(panels, shown, strict=True):
    axes.scatter(*state.x.T, s=5, c=torch.atan2(dots[:, 1], dots[:, 0]), cmap="twilight")
display(figure)

# %% [markdown]
# DDIM combs the cloud into the spiral: neighbours stay neighbours, unless an arm must pass between them. Now single walkers,
# by DDIM and by DDPM, from the same four starts (black):

# %%
paths = {}
for name, sampler in (("DDIM", ddim), ("DDPM", ddpm)):
    walk = sampler(DatasetDenoiser(spiral), dots, fine)
    paths[name] = torch.stack([dots, *[state.x for state in walk]])  # (levels, DOTS, 2)
figure, panels = plane(list(paths), side=5)
for axes, path in zip(panels, paths.values(), strict=True):
    axes.scatter(*spiral.T, s=4, color="#bbbbbb")
    for k in range(4):
        axes.plot(*path[:, k].T, linewidth=1.2, color=md.plot.CURVES[k])
        axes.scatter(*path[-1, k], s=60, color=md.plot.CURVES[k], edgecolor="black", zorder=3)
    axes.scatter(*path[0, :4].T, s=30, color="black", zorder=3)
display(figure)

# %% [markdown]
# DDIM glides, DDPM staggers: its new noise is a random walk, and the length of a random walk grows with the root of the
# number of steps. **Expected: a DDIM path is 0.8 long, with 50 steps as with 200; a DDPM path is 52 long, and half of that
# with a quarter of the steps.**

# %%
length = {name: path.diff(dim=0).norm(dim=-1).sum(0).mean().item() for name, path in paths.items()}
for name, sampler in (("DDIM, 50 steps", ddim), ("DDPM, 50 steps", ddpm)):
    walk = sampler(DatasetDenoiser(spiral), dots, schedule.levels(50, "linspace"))
    length[name] = torch.stack([dots, *[s.x for s in walk]]).diff(dim=0).norm(dim=-1).sum(0).mean().item()
print({name: round(value, 2) for name, value in length.items()})
assert abs(length["DDIM"] - 0.8) < 0.08 and abs(length["DDIM, 50 steps"] - length["DDIM"]) < 0.05
assert abs(length["DDPM"] - 52) < 5 and abs(length["DDPM"] / length["DDPM, 50 steps"] - 2) < 0.2

# %% [markdown]
# ## 7. How many steps?
#
# For Gaussian data of standard deviation $s$ the price of large steps can be computed. Let $v = (\alpha s, \sigma)$: its length
# is the standard deviation of $x_t$. Put `GaussianDenoiser` into the DDIM step (with $\mu = 0$):
#
# $$x' = \frac{\alpha'\alpha s^2 + \sigma'\sigma}{\alpha^2 s^2 + \sigma^2}\,x_t = \frac{v' \cdot v}{|v|^2}\,x_t
# = \frac{|v'|}{|v|}\cos\theta\; x_t,$$
#
# with $\theta$ the angle between $v$ and $v'$. The right factor would be $|v'|/|v|$. So each step loses a factor
# $\cos\theta$, and a walk that starts with standard deviation 1 ends with $\frac{s}{|v_0|}\prod\cos\theta_i$. Long steps
# make a timid image. **Expected for $s = 0.5$: 0.362, 0.430, 0.472, 0.486, 0.498 with 10, 20, 50, 100, 1000 steps.** DDPM
# shrinks more, for it takes a mean $\hat x_0$ where a draw of $x_0$ would be due.

# %%
counts, s = [10, 20, 50, 100, 1000], 0.5
spread = {"cosines": [], "DDIM": [], "DDPM": []}
start = torch.randn(DRAWS, 1)
for n in counts:
    walk = schedule.levels(n, "linspace")
    v = torch.tensor([[level.alpha * s, level.sigma] for level in walk], dtype=torch.float64)
    spread["cosines"].append(s / v[0].norm().item() * torch.cosine_similarity(v[1:], v[:-1]).prod().item())
    for name, sampler in (("DDIM", ddim), ("DDPM", ddpm)):
        spread[name].append(md.sample(sampler, GaussianDenoiser(0.0, s), start, walk, progress=False).std().item())
for name, values in spread.items():
    print(f"{name:8}", *[f"{value:.3f}" for value in values])
assert_close(spread["cosines"], [0.362, 0.430, 0.472, 0.486, 0.498], atol=0.001, rtol=0)
assert_close(spread["DDIM"], spread["cosines"], atol=0.01, rtol=0)  # as near as so many draws can tell
assert all(spread["DDPM"][i] < spread["DDIM"][i] - 0.01 for i in range(4))  # of 1000 steps so many draws cannot tell
assert all(1.8 < (s - spread["cosines"][i]) / (s - spread["cosines"][i + 1]) < 2.2 for i in (0, 2))  # 10 to 20, 50 to 100
lost = {name: (counts[:4], [s - value for value in values[:4]]) for name, values in spread.items() if name != "cosines"}
figure = md.plot.show_curves(lost, "steps", "standard deviation lost", title="what large steps cost", yscale="log")
ticks = [0.01, 0.02, 0.05, 0.1, 0.2]
figure.axes[0].set(xscale="log", xticks=counts[:4], xticklabels=counts[:4], yticks=ticks, yticklabels=ticks)
figure.axes[0].minorticks_off()
display(figure)

# %% [markdown]
# Twice the steps, half the loss: a method *of first order*. Better ones wait in chapter 07.
#
# ## 8. What a perfect denoiser draws
#
# Back to images. We sampled with the best denoiser that can exist for these data. Here is what it drew, over the nearest image
# of the heap. **Expected: distance 0**, for every sample and for both samplers. And since each of the $N$ images is equally
# likely, $n$ walks should find about $N\big(1 - (1-\frac1N)^n\big)$ different ones.

# %%
due = IMAGES * (1 - (1 - 1 / IMAGES) ** WALKS)
for name, sampler in (("DDPM", ddpm), ("DDIM", ddim)):
    drawn = md.sample(sampler, denoise, noise, levels, progress=False)
    nearest = torch.cdist(drawn.flatten(1).double(), known.flatten(1).double()).argmin(1)
    gap, found = (drawn - known[nearest]).abs().max(), len(nearest.unique())
    print(f"{name}: farthest pixel {gap:.1g}; {found} different images in {WALKS} walks, due {due:.0f}")
    assert gap < 1e-4 and abs(found - due) < 6
md.plot.show_images(torch.cat([drawn[:8], known[nearest[:8]]]), row_labels=["drawn", "nearest known"])

# %% [markdown]
# Every one is a copy. It has to be: at low noise the vote is unanimous. **The perfect denoiser of a finite set only
# memorises.** Give it images that it does *not* know, noise them, and ask:

# %%
level = schedule.at(300)
blurred = md.add_noise(unseen, torch.randn_like(unseen), level)
md.plot.show_images(
    torch.cat([unseen[:8], blurred[:8], denoise(blurred, level).x0[:8]]),
    row_labels=["unseen", "at t = 300", r"$\mathbb{E}[x_0|x_t]$"], columns=8,
)  # fmt: skip

# %%
print("   t   error on known   on unseen")
wrong = {}
for t in (100, 300, 500, 700, 900):
    level = schedule.at(t)
    wrong[t] = [rms(denoise(md.add_noise(x, torch.randn_like(x), level), level).x0 - x) for x in (known[:UNSEEN], unseen)]
    print(f"{t:4}           {wrong[t][0]:.3f}       {wrong[t][1]:.3f}")
nearest = rms(torch.cdist(unseen.flatten(1).double(), known.flatten(1).double()).amin(1)) / D**0.5
print(f"from an unseen image to the nearest known one: {nearest:.3f}")
assert wrong[100][0] < 0.001 and abs(wrong[100][1] - 0.206) < 0.02 and abs(wrong[100][1] - nearest) < 0.02
assert all(abs(wrong[t][0] - wrong[t][1]) < 0.1 for t in (700, 900))

# %% [markdown]
# At $t = 100$, where a child would see the picture, it is wrong by 0.206 on images it does not know, which is about as far as
# the nearest image that it does. At $t = 700$ and above it hardly matters whether an image is known.
#
# This is the strangest fact about diffusion models. The training loss has one best answer, and that answer can only copy. A
# network that draws *new* images does so because it **misses** that answer: it cannot hold the heap, and the smoother
# function that it learns instead generalises. Images that a network saw many times, it does copy (Carlini et al. 2023).
#
# ## 9. When is the picture decided?
#
# Follow $e^H$, the number of images that are still in the vote, along the walks above. Call a picture decided when one image
# has more than 99 % of the weight. **Expected: the median walk is decided at about $t = 440$, where more than eight tenths of
# the variance are still noise.**

# %%
curves, decided = {}, {}
for name, sampler in (("DDIM", ddim), ("DDPM", ddpm)):
    states = list(sampler(denoise, noise, levels))[:-1]
    ws = torch.stack([weights(state.x, known, state.level) for state in states])  # (states, WALKS, IMAGES)
    times = torch.tensor([state.level.t for state in states])
    curves[f"{name}, median walk"] = (times, torch.special.entr(ws).sum(-1).exp().median(dim=1).values)
    sure = ws.amax(-1) > 0.99
    decided[name] = times[sure.int().argmax(0)].float()  # the first time; argmax finds the first 1
    when = decided[name].quantile(torch.tensor([0.0, 0.5, 1.0])).tolist()
    print(f"{name}: t = {when[1]:.0f} in the median; {when[2]:.0f} is the earliest, {when[0]:.0f} the latest")
    assert 370 < when[1] < 510 and when[0] > 150 and when[2] < 700
print(f"at t = 440, {schedule.at(440).sigma ** 2:.0%} of the variance is noise")
figure = md.plot.show_curves(curves, xlabel="t", ylabel="images in the vote", title="from all to one", yscale="log")
figure.axes[0].axvspan(*decided["DDIM"].quantile(torch.tensor([0.1, 0.9])).tolist(), color="#eeeeee", zorder=0)
figure.axes[0].invert_xaxis()
display(figure)

# %% [markdown]
# (Grey: where 80 % of the walks are decided.) Test it with a fork: let one DDPM walk arrive at some level, split it into six
# that meet different noise from there on, and compare where they end. In code a walk from the middle is `levels[k:]`.

# %%
torch.manual_seed(SEED)
trunk = [md.State(one, one, levels[0]), *ddpm(denoise, one, levels)]
forks = [0, 15, 20, 25, 30, 35]  # steps taken together
ends = [md.sample(ddpm, denoise, trunk[k].x.expand(6, -1, -1, -1), levels[k:], progress=False) for k in forks]
different = [len(end.flatten(1).mul(100).round().unique(dim=0)) for end in ends]
print("different images among six:", dict(zip([levels[k].t for k in forks], different, strict=True)))
assert different[0] >= 5 and different[-1] <= 2
md.plot.show_images(torch.cat(ends), columns=6, row_labels=[f"fork at t = {levels[k].t}" for k in forks])

# %% [markdown]
# Background first, then the object, at last its exact place: the walk decides coarse things early and fine things late. After
# that it only cleans up.
#
# ## 10. Four bugs you will meet
#
# **Weights without logarithms.** $\exp(-\|x_t - \alpha x_i\|^2/2\sigma^2)$ looks harmless. But even for the right image the
# exponent is $-\|\epsilon\|^2/2 \approx -D/2 = -1536$, and float64 ends at $e^{-745}$. **Expected: NaN, at every level.** A
# softmax subtracts the largest exponent first.

# %%
for t in (10, 500, 999):
    level = schedule.at(t)
    xt = md.add_noise(known[:1], noise[:1], level).double()
    exponent = -(xt - level.alpha * known).square().sum((1, 2, 3)) / (2 * level.sigma**2)
    naive = exponent.exp() / exponent.exp().sum()
    print(f"t = {t}: largest exponent {exponent.max():.0f}, weights {naive[:2].tolist()}")
    assert naive.isnan().all() and abs(exponent.max() + D / 2) < 150

# %% [markdown]
# **`here` and `there` swapped.** `ddim_step(x, estimate, there, here)` writes the estimate down at the level where it came
# from: $\alpha\hat x_0 + \sigma\hat\epsilon = x_t$. No error, no movement. **Expected: after all the steps, $x$ is the noise it
# began with.**

# %%
x = noise
for here, there in pairwise(levels):
    x = ddim_step(x, denoise(x, here), there, here)
print(f"after {STEPS} steps x has moved by {(x - noise).abs().max():.1g}")
assert (x - noise).abs().max() < 1e-3

# %% [markdown]
# **Noise after the last step.** Published samplers that add $\sqrt{\beta_t}$ of noise at every step forget that the last one
# goes to $\sigma' = 0$. What they add there is the $\sigma$ of the last level. If that is $t = 0$ it is 0.01, one grey value
# of 255, and nobody sees it. With few steps and another spacing everybody does. **Expected: 0.01, 0.076, 0.170.**

# %%
grain = []
for n, spacing in ((STEPS, "linspace"), (50, "trailing"), (20, "trailing")):
    x = noise[:8]
    for here, there in pairwise(schedule.levels(n, spacing)):
        estimate, beta = denoise(x, here), 1 - (here.alpha / there.alpha) ** 2
        x = ddpm_step(x, estimate, here, there, torch.zeros_like(x)) + beta**0.5 * torch.randn_like(x)
    grain.append(rms(x - estimate.x0))
    print(f"{n} steps, {spacing}: last t = {here.t}, noise of {grain[-1]:.3f} on the image, {127.5 * grain[-1]:.0f} of 255")
assert_close(grain, [0.01, 0.076, 0.170], rtol=0.05, atol=0)

# %% [markdown]
# **A clipped $\hat x_0$ beside an old $\hat\epsilon$.** A network's noise is a little wrong, its $\hat x_0$ is wrong
# $\sigma/\alpha$ times as much, and one clips it to $[-1, 1]$. Then $\alpha\hat x_0 + \sigma\hat\epsilon$ is no longer $x_t$:
# clipping took image out of $\hat x_0$, and the old $\hat\epsilon$ does not carry it. Solved again,
# $\hat\epsilon = (x_t - \alpha\hat x_0)/\sigma$ does. DDPM's step solves again by construction (eq. 7 knows only $x_0$ and
# $x_t$), DDIM's does not. Below, a denoiser whose $\hat\epsilon$ is off by 5 % of noise. **Expected root mean square of the
# images: above 0.5 unclipped; with the old $\hat\epsilon$ below 0.3; solved again, above 0.4.** Watch the backgrounds.


# %%
def off(xt, level):
    """The exact denoiser with an error in eps of 5 %, a different one at each level."""
    error = torch.randn(xt.shape, generator=torch.Generator().manual_seed(int(level.t)))
    eps = denoise(xt, level).eps + 0.05 * error
    return md.Estimate(md.predict_x0(xt, eps, level), eps)


def old(xt, level):
    """off, with x0 clipped and eps as it was."""
    estimate = off(xt, level)
    return estimate._replace(x0=estimate.x0.clamp(-1, 1))


def solved(xt, level):
    """off, with x0 clipped and eps solved from it."""
    x0 = off(xt, level).x0.clamp(-1, 1)
    return md.Estimate(x0, md.predict_eps(xt, x0, level))


walk = schedule.levels(STEPS, "trailing")
ends = [md.sample(ddim, some, noise[:16], walk, progress=False) for some in (off, old, solved)]
print("root mean square:", [round(rms(end), 2) for end in ends])
assert rms(ends[0]) > 0.5 and rms(ends[1]) < 0.3 and rms(ends[2]) > 0.4
md.plot.show_images(torch.cat([end[:7] for end in ends]), row_labels=["not clipped", "clipped, old ε", "clipped, solved"])

# %% [markdown]
# ## 11. What we left out
#
# | left out | where to read it |
# |---|---|
# | DDIM with ever smaller steps is an ordinary differential equation | Song et al. 2021 (SDE), eq. 13 |
# | steps of higher order | chapter 07; Karras et al. 2022, algorithm 1 |
# | the other variance that DDPM allows, $\beta_t$ for $\tilde\beta_t$ | Ho et al. 2020, section 3.2 |
# | walking up: the same `ddim_step`, with `there` noisier than `here` | chapter 18 |
# | when walks commit, as a phase transition in $N$ and $D$ | Biroli et al. 2024 |
# | why networks do not memorise | Kadkhodaie et al. 2024; Kamb & Ganguli 2024 |
#
# What you wrote is `minidiff/diffusion/exact.py`, `steps.py` and `samplers.py`. The library refuses walks in the wrong
# direction, and draws its noise on the device of the generator; the arithmetic is yours.
#
# **Next:** we do not know the data, we have examples. A network learns the vote, in two dimensions first.

# %%
print(f"torch {torch.__version__}, minidiff {md.__version__}, cpu")
