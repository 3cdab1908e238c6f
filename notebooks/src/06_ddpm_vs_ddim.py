# %% [markdown]
# # 06 · DDPM or DDIM: eta, and how many steps
#
# **Do we really need a thousand steps?**
#
# Chapter 05 trained on a thousand levels and drew with a hundred of them, or with 25. DDPM itself takes all thousand: a
# thousand calls of the network for one batch of pictures. What are the other 900 for? In this chapter one network, not
# trained any further, draws in forty steps very nearly what it draws in a thousand. What changes is one square root.
# Chapter 02 wrote it down with a sentence of explanation; here it is derived.
#
# You need the steps of chapter 02 and the fact that variances of independent things add. At the end you will have written
# `ddim_step` and `ddim` from an argument, not from a formula, laid out levels in three ways, and measured what each choice
# costs.

# %% [markdown]
# > **For the lecturer.** 75 minutes: 10 for the naive attempt, 20 for the derivation, 10 for the levels, 15 for the
# > error and the picture behind it, 15 for the network, 5 for the bugs. Sections 1 to 6 need no network and run in half a
# > minute; start the training cell of section 7 during the break.
# >
# > Worth asking before the cell is run: *the sampler skips 24 of 25 steps: what is wrong in the picture?* (section 1) ·
# > *what did training ever see of the chain?* (section 2) · *same noise, twice as many steps: the same picture?* (section 6) ·
# > *what lies halfway between two noises?* (section 8). The last has the best wrong answers.

# %%
import math
import time
from itertools import pairwise

import matplotlib
import torch
from torch.testing import assert_close

import minidiff as md

device = "cuda" if torch.cuda.is_available() else "cpu"

# %% [markdown]
# The knobs. A quick mode for tests replaces a value by the one in its comment.

# %% tags=["knobs"]
SEED = 0
T = 1000  # timesteps of every schedule
NOISES = 100  # starting noises, where no network is needed  # quick: 30
FINEST = 1000  # steps of the walk that counts as exact  # quick: 100
CHANNELS = (48, 96, 160)  # of the U-Net  # quick: (8, 16, 16)
TRAIN_STEPS = 800  # about three minutes on two cores  # quick: 4
PICTURES = 4000  # to train on  # quick: 256
SAMPLES = 64  # drawn by every sampler that is compared  # quick: 8
LONG = 1000  # steps of DDPM  # quick: 25
SHORT = 40  # steps of DDIM  # quick: 5
STEPS = [5, 10, 20, 40, 100]  # where quality is measured  # quick: [2, 4]
TRAINED = True  # is the network good enough for claims about it to be checked?  # quick: False

# %% [markdown]
# First the exact world. A denoiser that knows its 64 pictures makes no error of its own, so every error that we see is the
# sampler's.

# %%
torch.manual_seed(SEED)
schedule = md.Schedule.linear(T)
pixels, _ = md.data.Shapes(64, size=16, seed=3, sizes=["large"]).tensors()
data = md.data.from_pixels(pixels)
exact = md.DatasetDenoiser(data)
start = torch.randn(NOISES, 3, 16, 16)


def nearest(x, data):
    """For each of x (B, ...): which of data (N, ...) is nearest, and how far it is, as an RMS per pixel. (B,) each."""
    distance = torch.cdist(x.flatten(1), data.flatten(1)) / x[0].numel() ** 0.5
    return distance.argmin(1), distance.amin(1)


# %% [markdown]
# ## 1. The naive attempt: take every 25th step
#
# DDPM's algorithm 2 goes from $t$ to $t-1$ with the beta of that one step:
#
# $$x_{t-1} = \frac{1}{\sqrt{1-\beta_t}}\left(x_t - \frac{\beta_t}{\sigma_t}\,\hat\epsilon\right) + \sqrt{\beta_t}\,\epsilon'.$$
#
# A thousand of these are slow. So call it at $t = 975, 950, 925, \dots$ and skip the rest. Nothing raises an error.

# %%
beta = torch.linspace(1e-4, 0.02, T)
x, seen = start, []
for t in range(975, 0, -25):
    here = schedule.at(t)
    x = (x - beta[t] / here.sigma * exact(x, here).eps) / (1 - beta[t]) ** 0.5 + beta[t] ** 0.5 * torch.randn_like(x)
    seen.append(x)
skipped = (1 - beta[0]) ** -0.5 * (x - beta[0] / schedule.sigma[0] * exact(x, schedule.at(0)).eps)  # the last step, no noise

honest = [state.x for state in md.ddpm(exact, start, schedule.levels(40))]  # levels at 975, 950, ... 0, then CLEAN
columns = [0, 8, 16, 24, 30, 35, 38]
rows = [walk[k][:1] for walk in (seen, honest) for k in columns]
md.plot.show_images(
    torch.cat(rows), row_labels=["one-step beta", "ratio of two abar"],
    column_labels=[f"t = {950 - 25 * k}" for k in columns],
)  # fmt: skip

# %% [markdown]
# The upper row believes that it is at $t = 0$ in its last column, and it is still full of noise. It took 40 steps, and
# each of them removed one thousandth of the way. In between, the label fell 25 times as fast as the noise.
#
# The lower row asks how much noise lies between the two levels that it *does* visit. For a leap from `here` ($t$) to
# `there` ($s < t$), the product in $\bar\alpha$ says it:
#
# $$1 - \beta_{s \to t} = \prod_{s < r \le t} (1 - \beta_r) = \frac{\bar\alpha_t}{\bar\alpha_s}.$$
#
# That is the only place where a step size enters. `md.ddpm_step(xt, estimate, here, there)` never used $t-1$: it reads the
# two levels. **Expected: the first leap is 20 times its one-step beta.**

# %%
leap = 1 - schedule.abar[975] / schedule.abar[950]
print(f"beta of one step {beta[975]:.4f}, of the leap from 975 to 950 {leap:.3f}: {leap / beta[975]:.0f} times as much")
noise_left = [nearest(walk[-2 if walk is honest else -1], data)[1].mean().item() for walk in (seen, honest)]
print(f"noise left at t = 0: {noise_left[0]:.2f} and {noise_left[1]:.2f}; the schedule says {schedule.sigma[0]:.2f}")
kinds = [len(nearest(x, data)[0].unique()) for x in (skipped, honest[-1])]
print(f"different pictures among {NOISES} after the last step: {kinds[0]} and {kinds[1]}, of the {len(data)} there are")
assert 19 < leap / beta[975] < 21 and noise_left[0] > 0.5 and noise_left[1] < 0.02
assert kinds[0] < kinds[1] / 2

# %% [markdown]
# The exact denoiser even hides the damage: its last step snaps to the nearest picture it knows. But nearest to noise are
# always the same few, dull ones of little contrast. A hundred noises become 11 different pictures, where the honest walk
# finds 50. A network would leave the noise.
#
# So DDPM may leap, if the leap is done honestly. Is it then any good? Chapter 02 had data whose answer is known by heart:
# one number, drawn from $\mathcal N(0, 0.5^2)$. **Expected: 40 honest DDPM steps draw a spread of 0.43 where 0.50 is
# due.**

# %%
gaussian = md.GaussianDenoiser(mean=0.0, std=0.5)
x = torch.randn(20_000, 1)
spread = {n: md.sample(md.ddpm, gaussian, x, schedule.levels(n), progress=False).std().item() for n in (10, 40, 200)}
print("steps and spread:", {n: round(value, 3) for n, value in spread.items()})
assert abs(spread[40] - 0.434) < 0.01 and spread[10] < 0.37 and 0.47 < spread[200] < 0.5

# %% [markdown]
# ## 2. What the training never asked
#
# To do better, look at what the network was trained on: a picture, a level, one draw of
# $q(x_t \mid x_0) = \mathcal N(\alpha_t x_0, \sigma_t^2)$. Never two levels of one chain. The loss knows the
# *marginals* and nothing of how $x_t$ and $x_s$ hang together. So **every process with these marginals has the same
# loss**, and a network trained for one serves all. (Song et al. 2021, theorem 1: the losses of all of them differ in the
# weights of the levels and a constant.)
#
# Which processes are there? Suppose that we know $x_0$ and $x_t = \alpha_t x_0 + \sigma_t\epsilon$, and we want an
# $x_s$ with the right marginal, $x_s = \alpha_s x_0 + \sigma_s \cdot(\text{noise of variance 1})$. That noise may
# be the old one, or fresh, or a mixture, as long as the squares sum to 1:
#
# $$x_s = \alpha_s\, x_0 + \sigma_s\left(c\,\epsilon + \sqrt{1-c^2}\;\epsilon'\right), \qquad 0 \le c \le 1.$$
#
# Call the size of the fresh part $\mathrm{std} = \sigma_s\sqrt{1-c^2}$, and this is the paper's family:
#
# $$q(x_s \mid x_t, x_0) = \mathcal N\!\left(\alpha_s x_0 + \sqrt{\sigma_s^2 - \mathrm{std}^2}\;
# \frac{x_t - \alpha_t x_0}{\sigma_t},\ \mathrm{std}^2 I\right) \qquad\text{(Song et al. 2021, eq. 7)}$$
#
# One free number, $c$: how much of the old noise is kept. **Which $c$ is DDPM?** Chapter 02 completed a square to find
# out. It also takes two lines. In DDPM's chain, $x_t$ is $x_s$ scaled by $\alpha_t/\alpha_s$ plus noise that knows nothing
# of $x_s$. So the noise parts have covariance $\frac{\alpha_t}{\alpha_s}\sigma_s^2$. In our formula they have
# $c\,\sigma_s\sigma_t$. Equate:
#
# $$c = \frac{\alpha_t/\sigma_t}{\alpha_s/\sigma_s} =: \rho .$$
#
# $\rho$ is the ratio of the two signal-to-noise amplitudes. The chain forgets: of the noise at $s$, the share $\rho$
# survives in $x_t$, so on the way back DDPM draws the rest afresh. DDIM does not have to. With $\eta$ from 0 to 1,
#
# $$\mathrm{std} = \eta\,\sigma_s\sqrt{1-\rho^2} = \eta\,\frac{\sigma_s}{\sigma_t}\sqrt{1 - \frac{\bar\alpha_t}{\bar\alpha_s}}
# \qquad\text{(Song et al. 2021, eq. 16)}$$
#
# The second form is the paper's. To see that they agree, multiply out
# $\sigma_t^2(1-\rho^2) = \sigma_t^2 - \alpha_t^2\sigma_s^2/\alpha_s^2$ with $\sigma^2 = 1 - \alpha^2$: what is
# left is $1 - \alpha_t^2/\alpha_s^2$. So $\eta = 1$ is DDPM, and at $\eta = 0$ **nothing is drawn at all**.
#
# Put the network's $\hat x_0, \hat\epsilon$ for the unknown $x_0, \epsilon$, and the step is written:
#
# $$x_s = \alpha_s\,\hat x_0 + \sqrt{\sigma_s^2 - \mathrm{std}^2}\;\hat\epsilon + \mathrm{std}\;\epsilon'
# \qquad\text{(Song et al. 2021, eq. 12)}$$


# %%
def ddim_step(xt, estimate, here, there, eta=0.0, noise=None):
    """alpha * x0 + sqrt(sigma^2 - std^2) * eps + std * noise, with alpha, sigma of there (Song et al. 2021, eqs. 12, 16)."""
    alpha, sigma = there.like(xt)
    if eta == 0:  # a branch of its own, because it also walks upwards, where 1 - rho^2 is negative
        return alpha * estimate.x0 + sigma * estimate.eps
    alpha_here, sigma_here = here.like(xt)
    rho = alpha_here * sigma / (sigma_here * alpha)  # multiplied out, so that sigma = 0 of CLEAN does no harm
    fresh = eta**2 * (1 - rho**2)  # the share of the variance that is drawn
    noise = torch.randn_like(xt) if noise is None else noise
    return alpha * estimate.x0 + sigma * ((1 - fresh) ** 0.5 * estimate.eps + fresh**0.5 * noise)


# %% [markdown]
# Ours against the library's, for several $\eta$, levels and the way up; and the promise that $\eta = 1$ is DDPM.

# %%
x0, eps, noise = torch.randn(3, 50, 4)
for here, there in ((schedule.at(900), schedule.at(300)), (schedule.at(5), md.CLEAN), (schedule.at(5), schedule.at(600))):
    xt = md.add_noise(x0, eps, here)
    for eta in (0.0, 0.3, 1.0) if there.sigma < here.sigma else (0.0,):
        arguments = (xt, md.Estimate(x0, eps), here, there, eta, noise)
        assert_close(ddim_step(*arguments), md.ddim_step(*arguments), rtol=0, atol=1e-6)
    if there.sigma < here.sigma:
        assert_close(ddim_step(*arguments), md.ddpm_step(xt, md.Estimate(x0, eps), here, there, noise), rtol=0, atol=1e-5)

# %% [markdown]
# And the derivation itself, tried out: one picture, here the single number 0.8, at $t = 600$, and the step to
# $s = 300$. For every $\eta$ the points must have the same spread on both axes. Only their correlation may differ.
# **Expected: $\sqrt{1-\eta^2(1-\rho^2)}$**, which is 1 at $\eta = 0$ and $\rho$ at $\eta = 1$.

# %%
here, there = schedule.at(600), schedule.at(300)
rho = (here.alpha / here.sigma) / (there.alpha / there.sigma)
x0, eps = torch.full((4000, 1), 0.8), torch.randn(4000, 1)
xt = md.add_noise(x0, eps, here)
with matplotlib.rc_context(md.plot.STYLE):
    figure = md.plot.Picture(figsize=(12, 4.2), dpi=100, layout="constrained")
    for axes, eta in zip(figure.subplots(1, 3, sharey=True), (0, 0.5, 1), strict=True):
        xs = ddim_step(xt, md.Estimate(x0, eps), here, there, eta)
        measured = torch.corrcoef(torch.cat([xt, xs], 1).T)[0, 1].item()
        assert abs(measured - math.sqrt(1 - eta**2 * (1 - rho**2))) < 0.03
        assert_close(torch.stack([xs.mean(), xs.std()]), torch.tensor([0.8 * there.alpha, there.sigma]), atol=0.03, rtol=0)
        axes.plot(xt[:800], xs[:800], ".", markersize=3, color=md.plot.CURVES[0])
        axes.set(title=f"η = {eta}: correlation {measured:.2f}", xlabel="$x_t$, t = 600")
    figure.axes[0].set_ylabel("$x_s$, s = 300")
figure.to(None)  # a cell that ends with a figure shows it

# %% [markdown]
# ## 3. The sampler
#
# A sampler walks over pairs of levels and takes a step for each. That is all that `minidiff/diffusion/samplers.py` does.


# %%
@torch.no_grad()
def ddim(denoise, x, levels, eta=0.0, generator=None):
    """Walk x (B, ...) from levels[0] to levels[-1]; yields a State after every step (Song et al. 2021, eq. 12)."""
    for here, there in pairwise(levels):
        estimate = denoise(x, here)
        at = x.device if generator is None else generator.device  # a seed of the CPU gives one picture on all machines
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=at).to(x) if eta and there.sigma else None
        x = ddim_step(x, estimate, here, there, eta, noise)
        yield md.State(x, estimate.x0, there)


# %%
for eta in (0.0, 0.7, 1.0):
    ends = [[*walk(exact, start, schedule.levels(10), eta=eta, generator=torch.Generator().manual_seed(4))][-1].x
            for walk in (ddim, md.ddim)]  # fmt: skip
    assert_close(*ends, rtol=0, atol=1e-6)

# %% [markdown]
# What does $\eta$ do to a walk? Take data of only two points, −1 and 1, and draw the paths of 24 noises.

# %%
two = md.DatasetDenoiser(torch.tensor([[-1.0], [1.0]]))
x = torch.linspace(-2, 2, 24)[:, None]
bends = {}
with matplotlib.rc_context(md.plot.STYLE):
    figure = md.plot.Picture(figsize=(13, 4.2), dpi=100, layout="constrained")
    for axes, eta in zip(figure.subplots(1, 3, sharey=True), (0.0, 0.5, 1.0), strict=True):
        path = torch.cat([x, *(s.x for s in ddim(two, x, schedule.levels(100), eta=eta))], 1)  # (24, 101)
        axes.plot(path.T, linewidth=1, color=md.plot.CURVES[0], alpha=0.7)
        assert eta > 0 or (path.diff(dim=0) > -1e-6).all()  # without randomness no two paths cross
        bends[eta] = path.diff(n=2).abs().mean().item()  # how sharply the path turns, on average
        axes.set(title=f"η = {eta:g}", xlabel="step")
    figure.axes[0].set_ylabel("$x_t$")
print("mean bend per step:", {eta: round(value, 4) for eta, value in bends.items()})
assert bends[1.0] > 20 * bends[0.0]
figure.to(None)

# %% [markdown]
# On the left are smooth curves that never cross: noise above 0 goes to 1, noise below to −1. On the right the noise at the
# start decides little, and the dice that are thrown on the way decide the rest. A smooth curve may be followed in large
# steps.
#
# ## 4. Which levels?
#
# $n$ steps of a thousand: which ones? There are three habits (Lin et al. 2023, table 2), and a walk always ends with
# `CLEAN`, the level with $\alpha = 1, \sigma = 0$, because row $t = 0$ of a table still holds a little noise.


# %%
def levels(schedule, n, spacing=None, offset=0, last=md.CLEAN):
    """n timesteps of a VP schedule, noisy to clean, then `last`: the n+1 levels of a walk of n steps."""
    T = len(schedule)
    rows = {
        "leading": [i * (T // n) + offset for i in reversed(range(n))],  # 900, 800, ... 0: never the noisiest
        "trailing": [round(T - i * T / n) - 1 for i in range(n)],  # 999, 899, ... 99
        "linspace": torch.linspace(T - 1, 0, n, dtype=torch.float64).round().int().tolist(),  # 999, 888, ... 0
    }[spacing or "leading"]
    walk = [schedule.at(t) for t in rows]
    return walk if last is None else [*walk, last]


# %%
with matplotlib.rc_context(md.plot.STYLE):
    figure = md.plot.Picture(figsize=(12, 3), dpi=100, layout="constrained")
    axes = figure.subplots()
    for row, spacing in enumerate(("linspace", "trailing", "leading")):
        mine = levels(schedule, 10, spacing)
        assert mine == schedule.levels(10, spacing) and mine[-1] == md.CLEAN
        ts = [level.t for level in mine[:-1]]
        print(f"{spacing:9}", *(f"{t:4}" for t in ts), " CLEAN")
        axes.plot(ts, [row] * 10, "o", markersize=9, color=md.plot.CURVES[row])
        axes.plot([-40], [row], "s", markersize=9, color="black")
    axes.set(yticks=range(3), yticklabels=["linspace", "trailing", "leading"], xlabel="t (a black square is CLEAN)")
    axes.set(ylim=(-0.6, 2.6), xlim=(1030, -70))  # in the order of the walk: noise on the left
figure.to(None)

# %% [markdown]
# *Leading* is what the first samplers did, and Stable Diffusion 1 was published with it (`offset=1`). It starts at
# $t = 900$, with pure noise where the network expects a trace of a picture. *Trailing* starts at the end of the table,
# and its last step is a full leap to `CLEAN`, instead of a stop just before it. *Linspace* visits both ends. We take
# trailing from now on.
#
# ## 5. How fast does the error fall?
#
# Divide the DDIM step by $\alpha_s$, and use $x_t = \alpha_t \hat x_0 + \sigma_t \hat\epsilon$:
#
# $$\frac{x_s}{\alpha_s} = \frac{x_t}{\alpha_t} + \left(\frac{\sigma_s}{\alpha_s} - \frac{\sigma_t}{\alpha_t}\right)\hat\epsilon
# \qquad\text{(Song et al. 2021, eq. 13)}$$
#
# New position = old position + step × slope. That is **Euler's method** for the differential equation
# $d\bar x = \hat\epsilon\, d\bar\sigma$ with $\bar x = x/\alpha$ and $\bar\sigma = \sigma/\alpha$ (their eq. 14).
# Its error is well known: a step of length $h$ is wrong by about $h^2$, a walk takes $1/h$ of them, so the walk is wrong
# by about $h$. **Twice the steps, half the error.**
#
# Chapter 02 saw that happen; this is why. For Gaussian data the equation has a solution in closed form: a point keeps its
# rank. If $x_T$ is 1.3 standard deviations from the mean, so is its $x_0$. **Expected: a slope of −1 within 0.05, in the
# log-log plot, from 20 steps on.** For comparison, how far the *spread* of 50,000 points is from the truth, at every
# $\eta$.

# %%
x = torch.randn(50_000, 1, dtype=torch.float64)
x = x / x.std()
counts, curves = [5, 10, 20, 50, 100, 200], {}
off = []
for n in counts:
    walk = levels(schedule, n, "trailing")
    truth = x * 0.5 / math.hypot(0.5 * walk[0].alpha, walk[0].sigma)
    off.append((md.sample(ddim, gaussian, x, walk, progress=False) - truth).square().mean().sqrt().item())
curves["η = 0, each point"] = (counts, off)
for eta in (0.5, 1.0):
    ends = [md.sample(ddim, gaussian, x, levels(schedule, n, "trailing"), progress=False, eta=eta) for n in counts]
    curves[f"η = {eta:g}, spread"] = (counts, [0.5 - end.std().item() for end in ends])
slope = math.log(off[-1] / off[2]) / math.log(counts[-1] / counts[2])
print(f"slope {slope:.3f}; steps times error:", [round(n * error, 2) for n, error in zip(counts, off, strict=True)])
assert abs(slope + 1) < 0.05
assert min(curves["η = 1, spread"][1]) > 0 and abs(curves["η = 1, spread"][1][4] - off[3]) < 0.005
curves["1 / steps"] = (counts, [1 / n for n in counts])
figure = md.plot.show_curves(curves, "steps", "error", "the exact Gaussian, true spread 0.5", yscale="log")
figure.axes[0].set(xscale="log", xticks=counts, xticklabels=counts)
figure.axes[0].minorticks_off()
figure.to(None)

# %% [markdown]
# Read the heights, too: with $\eta = 1$ the spread is too small by more. DDPM in 100 steps is where DDIM was in 50.
# Every fresh drop of noise must be removed again by the steps that are left, and they have to be small for that.
#
# ## 6. Same noise, more steps: the same picture?
#
# An equation has one solution for each start. If DDIM follows it, the picture must not depend on the number of steps, once
# there are enough. Take the picture that a very fine walk finds, and count how many of our noises reach the same one in
# $n$ steps. **Expected: three in four at 10 steps and nearly all at 100 for $\eta = 0$; for $\eta = 1$ about one in
# 64, which is chance.**

# %%
goal, _ = nearest(md.sample(ddim, exact, start, levels(schedule, FINEST, "trailing"), progress=False), data)
counts, agree = [2, 5, 10, 20, 50, 100], {}
for eta in (0.0, 0.5, 1.0):
    ends = [md.sample(ddim, exact, start, levels(schedule, n, "trailing"), progress=False, eta=eta) for n in counts]
    agree[f"η = {eta:g}"] = (counts, [(nearest(end, data)[0] == goal).float().mean().item() for end in ends])
    print(f"eta {eta:g}:", dict(zip(counts, (round(share, 2) for share in agree[f"η = {eta:g}"][1]), strict=True)))
assert agree["η = 0"][1][2] > 0.6 and agree["η = 0"][1][-1] > 0.9 and max(agree["η = 1"][1]) < 0.15
figure = md.plot.show_curves(agree, "steps", "share", f"noises that become the picture of {FINEST} steps")
figure.axes[0].set(xscale="log", xticks=counts, xticklabels=counts, ylim=(-0.03, 1.03))
figure.axes[0].minorticks_off()
figure.to(None)

# %% [markdown]
# A curve can also be walked backwards. Going up is the same step with `there` noisier than `here`, and `md.invert` does
# nothing else. Take Gaussian points out to three standard deviations, walk each up to noise, then down again. **Expected,
# the largest error after 20, 50 and 200 steps: 0.38, 0.17, 0.044**, which is 1 / steps once more. Chapter 18 edits
# photographs with this.

# %%
x0 = torch.linspace(-1.5, 1.5, 31, dtype=torch.float64)[:, None]
trips = []
for n in (20, 50, 200):
    *_, noisy = md.invert(gaussian, x0, levels(schedule, n, "trailing"))
    trips.append((md.sample(ddim, gaussian, noisy.x, levels(schedule, n, "trailing"), progress=False) - x0).abs().max().item())
print("largest error of the round trip:", [round(error, 3) for error in trips])
assert_close(trips, [0.384, 0.167, 0.044], rtol=0.03, atol=0)

# %% [markdown]
# ## 7. A trained network
#
# An exact denoiser is never wrong, and a network always is, a little. So we train one, as in chapter 05: pictures of one
# shape on white, no classes, velocity on the cosine schedule.

# %%
torch.manual_seed(SEED)
kind = {"size": 32, "shapes": ["circle", "square", "triangle", "star"], "colours": ["red", "yellow", "green", "blue"],
        "backgrounds": ["white"], "sizes": ["large"]}  # fmt: skip
scenes = md.data.Shapes(PICTURES, seed=SEED, **kind)
images = md.data.Images(*scenes.tensors(), scenes.classes)
schedule = md.Schedule.cosine(T)
net = md.UNet(3, 3, CHANNELS, (False, True, True), layers=1, patch=2, shortcut=True)
trainer = md.Trainer(
    net.to(device, memory_format=torch.channels_last),
    lambda net, x, y: md.diffusion_loss(net, x.contiguous(memory_format=torch.channels_last), schedule, "v"),
    md.TrainConfig(steps=TRAIN_STEPS, seed=SEED, every=0),
)
losses = trainer.fit(md.data.batches(images, 32, device, seed=SEED))
denoise = md.denoiser(trainer.ema.net, predicts="v")
print(f"loss {sum(losses[:4]) / 4:.3f} at first, {sum(losses[-50:]) / len(losses[-50:]):.3f} at last")

# %% [markdown]
# How good is a picture? Two measures, neither of which is the loss. **Clean**: the share of samples in which
# `md.data.read_shapes`, a program without a network in it, reads exactly one shape. And the **Fréchet distance** between
# the features of the samples and those of 1000 new real pictures, in the eyes of a small judge, trained here on real ones
# (chapter 21 asks how far it is to be trusted). The distance grows as the number of samples shrinks, even for real
# pictures, so its floor is what as many *real* ones score.

# %%
judge = md.evaluation.train_judge(images, epochs=3, flip=False, batch_size=min(128, PICTURES // 2), device=device)
real = md.data.from_pixels(md.data.Shapes(max(PICTURES // 4, 64), seed=SEED + 1, **kind).tensors()[0])


@torch.no_grad()
def score(x, judge, real):
    """Of samples x (B, 3, H, W): the share that is read as one shape, and the Fréchet distance to real pictures."""
    x, device = x.clamp(-1, 1), judge.head.weight.device
    clean = sum(len(found) == 1 for found in md.data.read_shapes(x)) / len(x)
    features = [torch.cat([judge.features(part.to(device)) for part in some.split(250)]) for some in (x, real)]
    return clean, md.evaluation.frechet_distance(*features)


floor = [score(md.data.from_pixels(md.data.Shapes(SAMPLES, seed=seed, **kind).tensors()[0]), judge, real) for seed in (7, 8, 9)]
floor_clean, floor_distance = (sum(values) / len(floor) for values in zip(*floor, strict=True))
print(f"{SAMPLES} real pictures: {floor_clean:.0%} clean, distance {floor_distance:.2f}")

# %% [markdown]
# Now the question of this chapter. The same network, the same starting noise, three ways to walk.
#
# **Expected: 1000 steps take 25 times as long as 40. A thousand of DDPM draw 19 clean pictures in 20; forty of DDIM, 18.**
# In distance to real pictures DDIM stands half as far again. And DDPM itself, leaping in 40, by its right formula?

# %%
start = torch.randn(SAMPLES, 3, 32, 32, generator=torch.Generator().manual_seed(5)).to(device)


def timed(walk, *arguments, **options):
    """The end of a walk, on the CPU, and the seconds it took."""
    began = time.perf_counter()
    return md.sample(walk, *arguments, **options).cpu(), time.perf_counter() - began


runs = {"DDPM": (md.ddpm, LONG), "DDPM, leaping": (md.ddpm, SHORT), "DDIM": (ddim, SHORT)}
drawn, table = {}, {}
md.sample(ddim, denoise, start, levels(schedule, 2, "trailing"), progress=False)  # the first calls of a network are slower
for name, (walk, n) in runs.items():
    dice = torch.Generator().manual_seed(6)
    drawn[name], seconds = timed(walk, denoise, start, levels(schedule, n, "trailing"), generator=dice)
    table[name] = (n, seconds, *score(drawn[name], judge, real))
print("sampler         steps  network calls  seconds  ratio    clean  distance")
for name, (n, seconds, clean, distance) in table.items():
    ratio = table["DDPM"][1] / seconds
    print(f"{name:14} {n:6} {n:14} {seconds:8.1f} {ratio:6.1f}   {clean:6.0%} {distance:9.2f}")
print(f"{'real pictures':46} {floor_clean:6.0%} {floor_distance:9.2f}")

# %%
if TRAINED:
    (_, long_seconds, long_clean, long_distance), leaping, (_, seconds, clean, distance) = table.values()
    assert 15 < long_seconds / seconds < 40
    assert long_clean > 0.88 and clean > long_clean - 0.15 and floor_clean > 0.95
    assert distance < 2 * long_distance and leaping[3] < 1.5 * long_distance
rows = [f"{name}, {n}" for name, (_, n) in runs.items()]
md.plot.show_images(torch.cat([x[:8] for x in drawn.values()]), columns=8, row_labels=rows)

# %% [markdown]
# In each column all three started from the same noise. The leaping DDPM is no worse than the thousand steps, though in
# section 1 it lost so much of the spread: there the denoiser was exact. A network is a little wrong at every step. On a
# deterministic walk these errors add up; fresh noise washes some of them out.
#
# How few steps are too few, and which $\eta$ is best? **Expected: at 10 steps $\eta = 1$ is worst; at 100 the three are
# close.** Randomness costs at few steps: every step adds fresh noise, and few are left to remove it. At many steps it may
# even help: fresh noise covers small errors of the network, and DDIM carries them to the end.

# %%
quality, pictures = {}, {}
for eta in (0.0, 0.5, 1.0):
    for n in STEPS:
        dice = torch.Generator().manual_seed(6)
        x = md.sample(ddim, denoise, start, levels(schedule, n, "trailing"), eta=eta, generator=dice).cpu()
        pictures[eta, n], quality[eta, n] = x, score(x, judge, real)
with matplotlib.rc_context(md.plot.STYLE):
    figure = md.plot.Picture(figsize=(13, 4.4), dpi=100, layout="constrained")
    for k, axes in enumerate(figure.subplots(1, 2)):
        for i, eta in enumerate((0.0, 0.5, 1.0)):
            line = {"color": md.plot.CURVES[i], "linestyle": md.plot.DASHES[i], "marker": "o", "label": f"η = {eta:g}"}
            axes.plot(STEPS, [quality[eta, n][k] for n in STEPS], **line)
        axes.axhline((floor_clean, floor_distance)[k], color="grey", linewidth=1, label="real pictures")
        axes.set(xscale="log", xlabel="steps", xticks=STEPS, xticklabels=STEPS, title=("share clean", "Fréchet distance")[k])
        axes.minorticks_off()
    figure.axes[1].set(yscale="log")
    figure.axes[0].legend()
if TRAINED:
    assert quality[1.0, 10][1] > max(quality[0.0, 10][1], quality[0.5, 10][1]) and quality[0.0, 40][1] < quality[0.0, 5][1]
    last = [quality[eta, 100][1] for eta in (0.0, 0.5, 1.0)]
    assert max(last) < 1.5 * min(last)
figure.to(None)

# %% [markdown]
# Section 6 again, with a network. Across each row the number of steps grows; the noise at the start stays.

# %%
rows = torch.cat([pictures[eta, n][i : i + 1] for eta in (0.0, 1.0) for i in (0, 1) for n in STEPS])
labels = ["DDIM, noise A", "DDIM, noise B", "η = 1, noise A", "η = 1, noise B"]
md.plot.show_images(rows, row_labels=labels, column_labels=[f"{n} steps" for n in STEPS])

# %% [markdown]
# DDIM settles on one picture: its colour and place at once, its kind by twenty steps or so, then only its edges. With
# $\eta = 1$ every number of steps throws other dice and draws another picture. **Expected: from the last column but one
# to the last, a picture changes less than half as much under DDIM.** In practice: try ideas at 10 steps, keep the seeds
# you like, draw those again at 50.

# %%
change = {eta: (pictures[eta, STEPS[-1]] - pictures[eta, STEPS[-2]]).square().mean().sqrt().item() for eta in (0.0, 1.0)}
print(f"RMS change from {STEPS[-2]} to {STEPS[-1]} steps: DDIM {change[0.0]:.3f}, eta = 1 {change[1.0]:.3f}")
if TRAINED:
    assert change[0.0] < 0.5 * change[1.0]

# %% [markdown]
# ## 8. What lies between two noises?
#
# If the map from noise to picture is smooth, then a path of noises is a path of pictures. Which path? Chapter 01 knows why
# the straight one, $(1-w)\,a + w\,b$, is wrong: squares must sum to 1, and $(1-w)^2 + w^2$ sags to ½. In 3072
# dimensions all noise has nearly the same length, $\sqrt{3072}$, and the halfway point of two of them has 0.71 of it,
# where the network has never been. So go around the sphere, by the angle $\theta$ between them:
#
# $$\operatorname{slerp}(a, b, w) = \frac{\sin((1-w)\,\theta)}{\sin\theta}\,a + \frac{\sin(w\,\theta)}{\sin\theta}\,b .$$


# %%
def slerp(a, b, w):
    """From a to b along the arc, w from 0 to 1; each tensor is taken as one long vector."""
    angle = torch.acos((a * b).sum() / (a.norm() * b.norm()))
    return (torch.sin((1 - w) * angle) * a + torch.sin(w * angle) * b) / torch.sin(angle)


# %% [markdown]
# **Expected: half-way, lerp has 0.71 of the length, slerp all of it.** The third row walks the good path with fresh dice,
# $\eta = 1$: neighbours have little in common.

# %%
ws = torch.linspace(0, 1, 9, device=device)
arc = torch.stack([slerp(start[0], start[1], w) for w in ws])
line = torch.stack([torch.lerp(start[0], start[1], w) for w in ws])
middle = [(path[4].norm() / start[0].norm()).item() for path in (line, arc)]
print(f"length half-way: lerp {middle[0]:.2f}, slerp {middle[1]:.2f}")
assert abs(middle[0] - 0.71) < 0.03 and abs(middle[1] - 1) < 0.03
ways = {"slerp": (arc, 0.0), "lerp": (line, 0.0), "slerp, η = 1": (arc, 1.0)}
between = {
    name: md.sample(ddim, denoise, x, levels(schedule, SHORT, "trailing"), progress=False, eta=eta).cpu()
    for name, (x, eta) in ways.items()
}
change = {name: x.diff(dim=0).square().mean().sqrt().item() for name, x in between.items()}
print("RMS change from one to the next:", {name: round(value, 3) for name, value in change.items()})
md.plot.show_images(torch.cat(list(between.values())), row_labels=list(between), column_labels=[f"w = {w:.3g}" for w in ws])

# %%
if TRAINED:
    assert change["slerp"] < 0.8 * change["slerp, η = 1"]

# %% [markdown]
# Smooth does not mean slow. The pictures are discrete, a star or a disc, so somewhere along the arc the shape has to
# change, and it does so within a column or two.
#
# ## 9. Five bugs you will meet
#
# The sixth was section 1: $t-1$ is not `there`. Most are from published code, and none raises an error. Back to the exact
# world, where a picture is right or wrong. Three of them first, then the figure.
#
# **The last step that never arrives.** The levels stop at the last row of the table instead of `CLEAN`; or `prev_t` is
# clamped to the row that we are on, so that the last step does nothing. What stays is the noise of that row: little for
# *leading*, a lot for *trailing*.
#
# **The loop index for the timestep.** `alphas[i]` for `alphas[t]`: the walk starts at $i = 0$, the clean end of the
# table, so $x_T$ is taken for a picture. At the first of 40 steps $\alpha$ is too large by **a factor of 124**.
#
# **Noise at the last step.** DDPM allows $\mathrm{std}^2 = \beta_t$ for the noise (its section 3.2). Unlike eq. 16 it is
# not 0 on the way to `CLEAN`, so the last step must go without. With 1000 steps forgetting it adds 0.01; with 20 it adds
# 0.17.

# %%
schedule, start = md.Schedule.linear(T), torch.randn(NOISES, 3, 16, 16, generator=torch.Generator().manual_seed(5))
right = levels(schedule, 20, "trailing")
damage = {"right": md.sample(ddim, exact, start, right, progress=False)}
damage["no CLEAN"] = md.sample(ddim, exact, start, right[:-1], progress=False)

x = start
for i, t in enumerate(range(975, -1, -25)):
    eps = exact(x, schedule.at(t)).eps
    x0 = (x - schedule.sigma[i] * eps) / schedule.alpha[i]  # should be [t]
    x = schedule.alpha[i + 1] * x0 + schedule.sigma[i + 1] * eps
damage["alphas[i]"] = x
factor = (schedule.alpha[0] / schedule.alpha[975]).item()

leap = 1 - schedule.abar[right[-2].t] / 1.0  # abar of CLEAN is 1
damage["noise at the end"] = damage["right"] + leap**0.5 * torch.randn_like(start)

wrong = {name: nearest(x, data)[1].mean().item() for name, x in damage.items()}
print(
    f"alphas[i] is {factor:.0f} times alphas[t]; noise of the last step {leap**0.5:.2f}, of 1000 steps {schedule.sigma[0]:.2f}"
)
print("RMS distance to a real picture:", {name: round(v, 3) for name, v in wrong.items()})
assert 120 < factor < 128 and wrong["right"] < 0.01 and wrong["alphas[i]"] > 1
assert all(0.15 < wrong[name] < 0.2 for name in ("no CLEAN", "noise at the end"))
md.plot.show_images(
    torch.cat([x[:7] for x in damage.values()]), columns=7, row_labels=[f"{name}: {wrong[name]:.2f}" for name in damage]
)

# %% [markdown]
# **The right mean, and the noise of one step.** Half of section 1 repaired: `x0` and `eps` are weighed for the leap, and
# the noise is still the table's $\tilde\beta_t$, of the step to $t-1$. Every draw by itself looks possible. Only the
# spread of many tells. **Expected: 0.11 for 0.43, in 40 steps.**

# %%
x, right = torch.randn(20_000, 1), levels(schedule, 40)
for here, there in pairwise(right):
    x = md.ddpm_step(x, gaussian(x, here), here, there, torch.zeros_like(x))  # the mean alone
    if there.sigma:
        x = x + ((1 - schedule.abar[here.t - 1]) / (1 - schedule.abar[here.t]) * beta[here.t]) ** 0.5 * torch.randn_like(x)
print(f"spread {x.std():.3f}, and {spread[40]:.3f} with the noise of the leap")
assert abs(x.std().item() - 0.111) < 0.01

# %% [markdown]
# **Leading, with a schedule that ends in pure noise.** Chapter 01 bent Stable Diffusion's schedule until its last $\alpha$
# was 0. That cures nothing as long as the sampler starts at $t = 900$. There $\alpha$ is 0.05, and $x_t$ should hold 5 %
# of a picture. We hand over noise with a mean of 0, and the denoiser reads it as a darker picture than there is. Scenes of
# white and of grey grounds, mean brightness 0.55, in ten steps. **Expected: 0.22 for leading, 0.56 for trailing.**

# %%
bent = md.Schedule.scaled_linear(T).zero_terminal_snr()
bright = md.data.from_pixels(md.data.Shapes(60, size=32, seed=3, backgrounds=["white", "graded grey"]).tensors()[0])
start = torch.randn(NOISES, 3, 32, 32, generator=torch.Generator().manual_seed(5))
spacings = ("leading", "trailing")
ends = [md.sample(ddim, md.DatasetDenoiser(bright), start, levels(bent, 10, spacing), progress=False) for spacing in spacings]
means = {spacing: end.mean().item() for spacing, end in zip(spacings, ends, strict=True)}
print(f"brightness of the data {bright.mean():.2f}; drawn:", {name: round(value, 2) for name, value in means.items()})
assert means["leading"] < bright.mean() - 0.2 and abs(means["trailing"] - bright.mean()) < 0.1
md.plot.show_images(torch.cat([end[:8] for end in ends]), columns=8, row_labels=spacings)

# %% [markdown]
# ## 10. What we left out
#
# | left out | where to read it |
# |---|---|
# | why the losses agree, term by term | Song et al. 2021, theorem 1 and its appendix |
# | learning how much noise a DDPM step should draw, which makes leaps cheaper | Nichol & Dhariwal 2021, section 3.1 |
# | levels chosen by noise instead of by $t$ | Karras et al. 2022, eq. 5 |
# | why many small random steps can repair a network's errors | Karras et al. 2022, section 4 |
# | Euler is of order 1; two and more calls per step, or memory, give order 2 | the next chapter |
# | a network that learns to take the leap itself | Salimans & Ho 2022 (progressive distillation) |
#
# What you wrote is `ddim_step` of `minidiff/diffusion/steps.py`, `ddim` of `samplers.py`, and `Schedule.levels`. The
# library's versions check their arguments; the arithmetic is yours: Song et al. eqs. 7, 12, 13 and 16, and Lin et al.
# table 2.
#
# **Next:** Euler is the oldest method there is. What do better ones buy?

# %%
print(f"torch {torch.__version__}, minidiff {md.__version__}, {device}")
