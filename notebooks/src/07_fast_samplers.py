# %% [markdown]
# # 07 · Fast samplers: from Euler to DPM++
#
# **How few calls of the network does a picture need?**
#
# DDIM does nothing wrong, and still chapter 06 needed forty calls for a good picture. Each call is a pass through the whole
# network, nearly all of the time that a user waits. Since 2022 the same networks draw in ten or twenty calls, without any
# more training. The samplers that made the difference fit on a page each, and all of them are one line of DDIM with a
# better answer put into it.
#
# You need DDIM (chapter 06) and derivatives. At the end you will have written `heun`, `lms`, `plms` and `dpmpp_2m`, have
# measured the order of each, and know which one to take.

# %% [markdown]
# > **For the lecturer.** 90 minutes: 15 for the known world and the tangents, 10 for order, 10 for Heun, 20 for memory, 20 for
# > the better variable, 15 for noise, spacing and the plot. Nothing is trained, and all of it runs in a minute or two on one
# > core, so run it live.
# >
# > Worth asking before the cell is run: *where does a tangent hurt most?* (section 2) · *Heun is ten times as exact: is it
# > worth twice the price?* (section 4) · *what do two old slopes know about the next step?* (section 5) · *all points start at
# > the same place: can a sampler recover?* (section 7). The last divides every room.

# %%
import math
from functools import partial
from itertools import pairwise

import matplotlib
import torch
from torch.testing import assert_close

import minidiff as md

# %% [markdown]
# The knobs. A quick mode for tests replaces a value by the one in its comment.

# %% tags=["knobs"]
SEED = 0
T = 1000  # timesteps of every schedule
CROWD = 20_000  # points, where noise is drawn on the way  # quick: 4000
COUNTS = [32, 64, 128, 256, 512]  # steps, where an order is measured  # quick: [32, 64, 128]
FINEST = 500  # steps of Heun that count as exact, for pictures  # quick: 60
NOISES = 64  # starting noises of the pictures  # quick: 8
FULL = True  # hold the numbers to those of the text  # quick: False

# %% [markdown]
# ## 1. A world whose answer is known
#
# To measure an error we need the truth. Take data of one number: three bumps, at −1, 0.2 and 1, the middle one twice as
# likely. `DatasetDenoiser` with `std` is the exact denoiser of such a mixture, so every error below is the sampler's.
#
# And the truth? Chapter 06 saw that without randomness no two paths cross. So a point keeps its **rank**: who starts above
# 30 % of all points ends above 30 % of them. At any level the mixture is known, it is a sum of Gaussians around
# $\alpha m_i$ with variance $\alpha^2\,\mathrm{std}^2 + \sigma^2$, and so is the point of a given rank. We find it by
# halving an interval.

# %%
torch.manual_seed(SEED)
schedule = md.Schedule.scaled_linear(T)  # Stable Diffusion's
mixture = md.DatasetDenoiser(torch.tensor([[-1.0], [0.2], [0.2], [1.0]]), std=0.2)  # given twice, counts twice


def at_rank(rank, level, mixture):
    """The points (N, 1) of these ranks (N, 1), in (0, 1), among all x_t of a one-dimensional mixture at this level."""
    spread = math.hypot(level.alpha * mixture.std, level.sigma)
    low, high = torch.full_like(rank, -10), torch.full_like(rank, 10)
    for _ in range(60):
        middle = (low + high) / 2
        below = torch.special.ndtr((middle - level.alpha * mixture.data.T) / spread).mean(1, keepdim=True) < rank
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return middle


def measure(sampler, mixture, levels, points=400, start=None):
    """Network calls of a walk from points of even rank, and how far its sorted ends are from those ranks' places, as an RMS.

    start: the level whose points they are, if it is not levels[0].
    """
    ranks, asked = (torch.arange(points, dtype=torch.float64)[:, None] + 0.5) / points, []

    def counted(x, level):
        asked.append(level)
        return mixture(x, level)

    x = md.sample(sampler, counted, at_rank(ranks, start or levels[0], mixture), levels, progress=False)
    return len(asked), (x.sort(0).values - at_rank(ranks, levels[-1], mixture)).square().mean().sqrt().item()


# %% [markdown]
# The naive attempt: DDIM with fewer and fewer steps. On the horizontal axis is a point's rank, on the vertical one the
# place where it ends. A steep stretch is a gap between two bumps, where nothing should end. **Expected: an error of about
# 0.22 with 5 steps and of 0.065 with 20, a third for four times the work.**

# %%
ranks = torch.linspace(0.005, 0.995, 199, dtype=torch.float64)[:, None]
ends, wrong = {"the truth": (ranks, at_rank(ranks, md.CLEAN, mixture))}, {}
for n in (5, 10, 20):
    levels = schedule.levels(n, "trailing")
    ends[f"{n} steps"] = (ranks, md.sample(md.ddim, mixture, at_rank(ranks, levels[0], mixture), levels, progress=False))
    wrong[n] = measure(md.ddim, mixture, levels)[1]
print("error of DDIM:", {n: round(error, 3) for n, error in wrong.items()})
assert 0.2 < wrong[5] < 0.24 and 0.06 < wrong[20] < 0.07
md.plot.show_curves(ends, "rank", "where it ends", "DDIM with few steps fills the gaps")

# %% [markdown]
# ## 2. A curve, walked by tangents
#
# Where does the error come from? Chapter 06 divided DDIM's step by $\alpha$ and found Euler's method. Once more, as a
# picture this time. Count noise per image, $s = \sigma/\alpha$, and write $\bar x = x/\alpha$. Divide
# $x = \alpha\hat x_0 + \sigma\hat\epsilon$ by $\alpha$; and let the steps of DDIM, which keep $\hat x_0$ and $\hat\epsilon$
# and change $s$, become so small that they are a derivative:
#
# $$\bar x = \hat x_0 + s\,\hat\epsilon, \qquad \frac{d\bar x}{ds} = \hat\epsilon(\bar x, s)
# \qquad\text{(Song et al. 2021, eq. 14; Karras et al. 2022, section 3)}$$
#
# and a step of length $s' - s$ along the tangent is
#
# $$\bar x' = \bar x + (s'-s)\,\hat\epsilon = \hat x_0 + s'\hat\epsilon
# \quad\Longrightarrow\quad x' = \alpha'\hat x_0 + \sigma'\hat\epsilon .$$
#
# The last line is DDIM. Nothing is lost, and it does not divide by $\alpha$, which may be 0.


# %%
@torch.no_grad()
def euler(denoise, x, levels):
    """Euler's method in s, without a division: DDIM (Karras et al. 2022, algorithm 1 without its lines 6-8)."""
    for here, there in pairwise(levels):
        estimate = denoise(x, here)
        x = there.alpha * estimate.x0 + there.sigma * estimate.eps
        yield md.State(x, estimate.x0, there)


x = torch.randn(100, 1, dtype=torch.float64)
levels = schedule.levels(10, "trailing")
assert_close(md.sample(euler, mixture, x, levels), md.sample(md.ddim, mixture, x, levels), rtol=0, atol=0)
assert_close(md.sample(euler, mixture, x, levels), md.sample(md.euler, mixture, x, levels), rtol=0, atol=0)
bar = x / levels[0].alpha
for here, there in pairwise(levels):  # the same in the coordinates of the textbook
    bar = bar + (there.sigma / there.alpha - here.sigma / here.alpha) * mixture(here.alpha * bar, here).eps
assert_close(bar, md.sample(euler, mixture, x, levels))

# %% [markdown]
# Below, noise falls from right to left. Grey are the exact curves, in colour the sampler's straight steps.


# %%
def draw_walk(axes, sampler, mixture, levels, colour):
    """The exact curves of x/alpha over s = sigma/alpha, in grey, and on top the steps of a sampler from their beginnings."""
    ranks = torch.tensor([0.03, 0.1, 0.17, 0.23, 0.27, 0.4, 0.6, 0.73, 0.77, 0.83, 0.9, 0.97], dtype=torch.float64)[:, None]
    ss = [level.sigma / level.alpha for level in levels]
    fine = torch.linspace(ss[0], ss[-1], 150).tolist()
    exact = [at_rank(ranks, md.Level(0, 1.0, s), mixture) for s in fine]  # alpha = 1 where x is divided by alpha
    axes.plot(fine, torch.cat(exact, 1).T, color="#bbbbbb", linewidth=3)
    x = at_rank(ranks, levels[0], mixture)
    walk = [x / levels[0].alpha, *(state.x / state.level.alpha for state in sampler(mixture, x, levels))]
    axes.plot(ss, torch.cat(walk, 1).T, "o-", color=colour, linewidth=1.3, markersize=4)
    axes.set(xlabel="s = σ/α", ylim=(-1.7, 1.7))


def short(schedule, n):
    """n steps from s = 1.5 to CLEAN, shorter and shorter: even in the square root of s."""
    return [*(schedule.at_ratio(1.5 * (k / n) ** 2) for k in range(n, 0, -1)), md.CLEAN]


with matplotlib.rc_context(md.plot.STYLE):
    figure = md.plot.Picture(figsize=(13, 4.8), dpi=100, layout="constrained")
    for axes, n in zip(figure.subplots(1, 2, sharey=True), (4, 16), strict=True):
        draw_walk(axes, euler, mixture, short(schedule, n), md.plot.CURVES[0])
        axes.set_title(f"Euler, {n} steps from s = 1.5")
    figure.axes[0].set_ylabel("x / α")
figure.to(None)

# %% [markdown]
# Each step leaves along the tangent, and the curve turns away from under it. Where two curves part, at a gap between bumps,
# a small deviation is passed on and grows. And a point that once sits on the wrong curve follows that one, correctly.
#
# ## 3. Order
#
# How much does a step miss? Taylor says, with $\hat\epsilon' = d\hat\epsilon/ds$ along the curve and $h = s' - s$,
#
# $$\bar x(s + h) = \bar x(s) + h\,\hat\epsilon + \tfrac12 h^2\,\hat\epsilon' + \dots$$
#
# Euler stops after the second term: each step is wrong by $h^2$, a walk has $1/h$ of them, so a walk is wrong by $h$. In
# general, a step that is right up to $h^p$ makes a method **of order $p$**, and twice the steps divide its error by $2^p$.
# In a log-log plot that is a line of slope $-p$. So an order can be measured. We do so between $t = 900$ and $t = 100$ of
# DDPM's schedule, where every step is small when there are many.


# %%
def errors(sampler, mixture, schedule, counts):
    """Errors of walks with so many steps between t = 900 and t = 100, and the order: minus the slope of their last half."""
    walks = [[schedule.at(t) for t in torch.linspace(900, 100, n + 1, dtype=torch.float64).tolist()] for n in counts]
    found = torch.tensor([measure(sampler, mixture, levels)[1] for levels in walks], dtype=torch.float64)
    tail = len(counts) // 2
    slope = (found[-1] / found[tail]).log() / math.log(counts[-1] / counts[tail])
    return found.tolist(), -slope.item()


linear = md.Schedule.linear(T)
found, order = errors(euler, mixture, linear, COUNTS)
print(f"Euler: order {order:.2f}; steps times error:", [round(n * error, 3) for n, error in zip(COUNTS, found, strict=True)])
assert abs(order - 1) < 0.05

# %% [markdown]
# ## 4. Heun: look where the step ends
#
# The exact step is an integral, $\bar x' = \bar x + \int_s^{s'}\hat\epsilon\,ds$. Euler takes the slope at its beginning
# for the whole of it. The trapezoid takes the mean of both ends:
#
# $$\bar x' = \bar x + h\,\frac{\hat\epsilon(\bar x, s) + \hat\epsilon(\bar x', s')}{2}
# \qquad\text{(Karras et al. 2022, algorithm 1)}$$
#
# As $\hat\epsilon(s') \approx \hat\epsilon + h\hat\epsilon'$, the mean is $\hat\epsilon + \tfrac12 h\,\hat\epsilon'$:
# Taylor's next term is there, and the order is 2. We do not know $\bar x'$ yet, so Euler's guess stands in for it. The
# guess is wrong by $h^2$, and times $h$ that is too small to matter.
#
# In code: DDIM's step, with the mean slope for an answer. In two places there is no mean. At `CLEAN` there is no noise to
# ask about, and from $\alpha = 0$ the step is infinitely long in $s$.


# %%
@torch.no_grad()
def heun(denoise, x, levels):
    """Heun's method (Karras et al. 2022, algorithm 1); two network calls a step, one at the last."""
    for here, there in pairwise(levels):
        estimate = denoise(x, here)
        ahead = md.ddim_step(x, estimate, here, there)
        if here.alpha and there.sigma:
            slope = (estimate.eps + denoise(ahead, there).eps) / 2
            ahead = md.ddim_step(x, md.diffusion.to_estimate(slope, x, here, "eps"), here, there)
        x = ahead
        yield md.State(x, estimate.x0, there)


levels = schedule.levels(10, "trailing")
assert_close(md.sample(heun, mixture, x, levels), md.sample(md.heun, mixture, x, levels), rtol=0, atol=1e-9)
found_heun, order_heun = errors(heun, mixture, linear, COUNTS)
print(f"Heun: order {order_heun:.2f}; at {COUNTS[0]} steps {found[0] / found_heun[0]:.0f} times as exact as Euler")
assert abs(order_heun - 2) < 0.15

# %% [markdown]
# It asks twice as often, so the fair race is by calls. Four steps of Heun to `CLEAN` cost seven calls. **Expected: on this
# stretch Heun's error with 7 calls is below half of Euler's with 8.**

# %%
with matplotlib.rc_context(md.plot.STYLE):
    figure = md.plot.Picture(figsize=(13, 4.8), dpi=100, layout="constrained")
    raced = {}
    for i, (axes, sampler, n) in enumerate(zip(figure.subplots(1, 2, sharey=True), (euler, heun), (8, 4), strict=True)):
        draw_walk(axes, sampler, mixture, short(schedule, n), md.plot.CURVES[i])
        calls, raced[i] = measure(sampler, mixture, short(schedule, n))
        axes.set_title(f"{('Euler', 'Heun')[i]}, {n} steps, {calls} calls: error {raced[i]:.3f}")
    figure.axes[0].set_ylabel("x / α")
assert raced[1] < raced[0] / 2
figure.to(None)

# %% [markdown]
# ## 5. Memory instead of calls
#
# The walk has asked for slopes before, and a slope changes little from step to step. Old answers tell how it changes, for
# free. Put a line through this slope and the last one, $\hat\epsilon$ at $s$ and $\hat\epsilon_1$ at $s_1$, and integrate
# it over the step ahead. The mean of a line is its value in the middle:
#
# $$\frac1h\int_s^{s+h}\Big(\hat\epsilon + \frac{u - s}{s - s_1}(\hat\epsilon - \hat\epsilon_1)\Big)\,du
# = \hat\epsilon + \frac{h}{2(s - s_1)}\,(\hat\epsilon - \hat\epsilon_1).$$
#
# With even steps this is $\tfrac32\hat\epsilon - \tfrac12\hat\epsilon_1$: the rule of **Adams and Bashforth**, of 1883.
# With three answers it is a parabola, with four a cubic. Lagrange wrote the polynomial through any nodes as a sum,
# $P(u) = \sum_j \hat\epsilon_j L_j(u)$, where $L_j$ is 1 at node $j$ and 0 at the others. So the weight of an answer is the
# mean of its $L_j$ over the step. For a cubic, that mean is exactly the mean of two values, at the middle $\mp$
# length$/\sqrt{12}$ (Gauss).


# %%
def adams_bashforth(nodes, end):
    """Weights of the values at these nodes, newest first, in the mean from nodes[0] to end of the polynomial through them."""
    middle, reach = (nodes[0] + end) / 2, (nodes[0] - end) / math.sqrt(12)

    def lagrange(j, s):
        return math.prod((s - nodes[k]) / (nodes[j] - nodes[k]) for k in range(len(nodes)) if k != j)

    return [(lagrange(j, middle - reach) + lagrange(j, middle + reach)) / 2 for j in range(len(nodes))]


@torch.no_grad()
def lms(denoise, x, levels, order=4):
    """Linear multistep: DDIM's step with the mean, over it, of the polynomial through the last slopes; one call a step."""
    past = []  # (s, eps), the newest first; made here, so that every walk has its own
    for here, there in pairwise(levels):
        estimate = denoise(x, here)
        if here.alpha == 0:  # s is infinite: no polynomial goes through this answer
            x = md.ddim_step(x, estimate, here, there)
        else:
            past = [(here.sigma / here.alpha, estimate.eps), *past][:order]
            weights = adams_bashforth([s for s, _ in past], there.sigma / there.alpha)
            eps = sum(w * eps for w, (_, eps) in zip(weights, past, strict=True))
            x = md.ddim_step(x, md.diffusion.to_estimate(eps, x, here, "eps"), here, there)
        yield md.State(x, estimate.x0, there)


# %%
even, uneven = [3.0, 4.0, 5.0, 6.0], [3.0, 4.5, 5.0, 9.0]
for k, classic in enumerate(md.diffusion.multistep.ADAMS_BASHFORTH, 1):
    print(f"{k} answers, even steps:", [f"{w:+.3f}" for w in adams_bashforth(even[:k], 2.0)])
    assert_close(adams_bashforth(even[:k], 2.0), list(map(float, classic)))
    assert adams_bashforth(uneven[:k], 2.2) == md.diffusion.multistep.adams_bashforth(uneven[:k], 2.2)
cubic = [s**3 - 2 * s for s in uneven]  # whatever is a cubic, they integrate exactly
mean = sum(w * value for w, value in zip(adams_bashforth(uneven, 2.2), cubic, strict=True))
assert abs(sum(map(abs, adams_bashforth(even, 2.0))) - 6.67) < 0.01
assert_close(mean, ((2.2**4 - 3.0**4) / 4 - (2.2**2 - 3.0**2)) / (2.2 - 3.0))
for k in (1, 2, 3, 4):
    pair = [md.sample(walk, mixture, x, levels, order=k) for walk in (lms, md.lms)]
    assert_close(*pair, rtol=0, atol=1e-9)

# %% [markdown]
# The weights are large and of both signs, so errors in the answers are passed on enlarged: the four of order 4 have
# absolute sum 6.67. More than four is not worth it.
#
# **PLMS**, the first default of Stable Diffusion, does the same and takes the weights of *even* steps for whatever levels
# it is given (Liu et al. 2022, eqs. 9 and 12). When it remembers nothing, its first step is Heun's. What do wrong weights
# cost? Neighbouring steps differ in length by a factor $1 + O(h)$, so the weights are off by $O(h)$. They multiply
# *differences* of neighbouring slopes, themselves $O(h)$. The mean slope is off by $h^2$: **order 2, not 4, once the steps
# are small**.


# %%
@torch.no_grad()
def plms(denoise, x, levels):
    """Pseudo linear multistep (Liu et al. 2022, eqs. 9, 12): Adams & Bashforth's weights for even steps; one call a step."""
    weights = ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
    past = []
    for here, there in pairwise(levels):
        estimate = denoise(x, here)
        if here.alpha == 0:
            x = md.ddim_step(x, estimate, here, there)
        else:
            past = [estimate.eps, *past][:4]
            if len(past) == 1 and there is not levels[-1]:  # Heun's step
                eps = (estimate.eps + denoise(md.ddim_step(x, estimate, here, there), there).eps) / 2
            else:
                eps = sum(w * old for w, old in zip(weights[len(past) - 1], past, strict=True))
            x = md.ddim_step(x, md.diffusion.to_estimate(eps, x, here, "eps"), here, there)
        yield md.State(x, estimate.x0, there)


assert_close(md.sample(plms, mixture, x, levels), md.sample(md.plms, mixture, x, levels), rtol=0, atol=1e-9)

# %% [markdown]
# Now measure all of them. **Expected: 1 and 2 for Euler and Heun; 2, 3 and 4 for `lms` with so many answers, within a
# quarter; for PLMS between 2 and 3, and falling.**

# %%
methods = {"Euler": euler, "Heun": heun, "LMS 2": partial(lms, order=2), "LMS 3": partial(lms, order=3), "LMS 4": lms,
           "PLMS": plms}  # fmt: skip
lines, orders = {}, {}
for name, sampler in methods.items():
    found, orders[name] = errors(sampler, mixture, linear, COUNTS)
    lines[f"{name}: {orders[name]:.2f}"] = (COUNTS, found)
print("order:", {name: round(order, 2) for name, order in orders.items()})
if FULL:
    for name, order in {"Euler": 1, "Heun": 2, "LMS 2": 2, "LMS 3": 3, "LMS 4": 4, "PLMS": 2.1}.items():
        assert abs(orders[name] - order) < 0.25, name
figure = md.plot.show_curves(lines, "steps", "error", "order = minus the slope", yscale="log")
figure.axes[0].set(xscale="log", xticks=COUNTS, xticklabels=COUNTS)
figure.axes[0].minorticks_off()
figure.to(None)

# %% [markdown]
# PLMS starts beside LMS 4 and bends into the slope of Heun. At the left end, where a user is, it is as good as any: high
# order is a promise about *many* steps.
#
# Two claims can still be tested. If uneven steps are to blame, then on steps that are even in $s$ PLMS must have **order
# 4**. And LMS began with Euler's step, which is wrong by $h^2$ once and for ever. We did not see that, because at $t = 900$
# of this schedule $s$ is 58 and the slopes do not change yet. Start where they do, and **LMS 4 falls to order 2**.

# %%
last = {}
for name, sampler in {"PLMS": plms, "LMS 4": lms}.items():
    walks = [[schedule.at_ratio(s) for s in torch.linspace(2.0, 0.35, n + 1, dtype=torch.float64).tolist()] for n in COUNTS]
    found = [measure(sampler, mixture, levels)[1] for levels in walks]
    last[name] = math.log2(found[-2] / found[-1])
print("order from the last two counts, steps even in s from 2:", {name: round(order, 2) for name, order in last.items()})
if FULL:
    assert last["PLMS"] > 3.6 and last["LMS 4"] < 2.3

# %% [markdown]
# So Heun's first step is worth its call.
#
# ## 6. A better variable
#
# A polynomial can only follow what is smooth. We laid it through $\hat\epsilon$ over $s$. Is that the smoothest pair? The
# other candidate is $\hat x_0$ over $\lambda = \log(\alpha/\sigma) = -\log s$. Here are both, along the same exact paths.

# %%
ranks = torch.tensor([0.05, 0.2, 0.24, 0.26, 0.4, 0.6, 0.74, 0.76, 0.9], dtype=torch.float64)[:, None]
lams = torch.linspace(-2.68, 3.54, 200).tolist()  # the whole of this schedule
on_curve = []
for lam in lams:
    level = schedule.at_ratio(math.exp(-lam))
    on_curve.append(mixture(at_rank(ranks, level, mixture), level))
with matplotlib.rc_context(md.plot.STYLE):
    figure = md.plot.Picture(figsize=(13, 4.4), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([math.exp(-lam) for lam in lams], torch.cat([e.eps for e in on_curve], 1).T, color=md.plot.CURVES[0])
    right.plot(lams, torch.cat([e.x0 for e in on_curve], 1).T, color=md.plot.CURVES[1])
    left.set(title="$\\hatε$ over s: all bends in a corner", xlabel="s, noise per image", xlim=(15, -0.3))
    right.set(title="$\\hat x_0$ over λ: bends spread out", xlabel="λ = log(α/σ)")
figure.to(None)

# %% [markdown]
# On the right nothing happens at first, then the guess moves, then it rests at the answer. So write the equation for
# $\hat x_0$ and $\lambda$. This time divide by $\sigma$: $x/\sigma = \hat x_0/s + \hat\epsilon$, and $1/s = e^\lambda$. By
# the same reasoning as in section 2, with the roles of image and noise exchanged,
#
# $$\frac{d(x/\sigma)}{d\lambda} = e^\lambda\,\hat x_0
# \quad\Longrightarrow\quad
# \frac{x'}{\sigma'} = \frac{x}{\sigma} + \int_\lambda^{\lambda'} e^{u}\,\hat x_0(u)\,du
# \qquad\text{(Lu et al. 2022b, section 4)}$$
#
# The exponential is known, so it is integrated exactly, and only $\hat x_0$ is approximated (an *exponential integrator*).
# Take it as constant, $D$:
#
# $$x' = \frac{\sigma'}{\sigma}\,x + \sigma'\big(e^{\lambda'} - e^{\lambda}\big) D
#      = \frac{\sigma'}{\sigma}\,x - \alpha'\big(e^{-h} - 1\big) D, \qquad h = \lambda' - \lambda .$$
#
# With $D = \hat x_0$ this is DDIM, for the third time: put in $x = \alpha\hat x_0 + \sigma\hat\epsilon$, and
# $\alpha'\hat x_0 + \sigma'\hat\epsilon$ comes out. Now the memory: a line through this $\hat x_0$ and the last, taken in
# the middle of the step, as in section 5:
#
# $$D = \hat x_0 + \frac{1}{2r}\,(\hat x_0 - \hat x_0^{\text{past}}), \qquad r = \frac{h_{\text{past}}}{h}
# \qquad\text{(DPM-Solver++ 2M: Lu et al. 2022b, algorithm 2)}$$
#
# That is all of DPM++ 2M: **DDIM with an extrapolated picture**. On the way to `CLEAN`, $h$ is infinite and there is
# nothing to extrapolate, so the last step takes $\hat x_0$ itself. In walks of fewer than 15 steps diffusers does so at the
# last step in any case, and so do we.


# %%
@torch.no_grad()
def dpmpp_2m(denoise, x, levels, *, eta=0.0, generator=None):
    """DPM-Solver++ 2M (Lu et al. 2022b, algorithm 2); one call a step. eta, the noise of a step, is for section 7."""

    def log_ratio(level):
        return math.log(level.alpha / level.sigma) if level.alpha else -math.inf

    past = None  # (lam, x0) of the last step
    for here, there in pairwise(levels):
        estimate = denoise(x, here)
        lam, x0 = log_ratio(here), estimate.x0
        final = there is levels[-1] and (there.sigma == 0 or len(levels) - 1 < 15)
        if past and not final:
            h, h_past = log_ratio(there) - lam, lam - past[0]
            x0 = x0 + h / (2 * h_past) * (x0 - past[1])
        past = lam, estimate.x0
        at = x.device if generator is None else generator.device
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=at).to(x) if eta and there.sigma else None
        x = md.ddim_step(x, md.diffusion.to_estimate(x0, x, here, "x0"), here, there, eta, noise)
        yield md.State(x, estimate.x0, there)


# %%
for n in (5, 10, 20):
    levels = schedule.levels(n, "trailing")
    assert_close(md.sample(dpmpp_2m, mixture, x, levels), md.sample(md.dpmpp_2m, mixture, x, levels), rtol=0, atol=1e-9)
here, there, D = schedule.at(700), schedule.at(500), torch.randn_like(x)
h = math.log(there.alpha / there.sigma) - math.log(here.alpha / here.sigma)
ours = md.ddim_step(x, md.diffusion.to_estimate(D, x, here, "x0"), here, there)
assert_close(ours, there.sigma / here.sigma * x - there.alpha * math.expm1(-h) * D)  # the paper's second line

# %% [markdown]
# **Expected: order 2.** And the picture of section 2 once more: seven or eight calls for each, on the same list.

# %%
_, order = errors(dpmpp_2m, mixture, linear, COUNTS)
print(f"DPM++ 2M: order {order:.2f}")
assert abs(order - 2) < 0.15
race = {"Euler": (euler, 8), "Heun": (heun, 4), "LMS": (lms, 8), "DPM++ 2M": (dpmpp_2m, 8)}
with matplotlib.rc_context(md.plot.STYLE):
    figure = md.plot.Picture(figsize=(15, 4.6), dpi=100, layout="constrained")
    for i, (axes, (name, (sampler, n))) in enumerate(zip(figure.subplots(1, 4, sharey=True), race.items(), strict=True)):
        draw_walk(axes, sampler, mixture, short(schedule, n), md.plot.CURVES[i])
        calls, raced[name] = measure(sampler, mixture, short(schedule, n))
        axes.set_title(f"{name}, {calls} calls: {raced[name]:.3f}")
    figure.axes[0].set_ylabel("x / α")
assert raced["LMS"] < raced["Heun"] < raced["DPM++ 2M"] < raced["Euler"]
figure.to(None)

# %% [markdown]
# Memory beats Heun. But DPM++ 2M is only third, on a list that we chose for its looks. Is the better variable a mistake?
# Section 8 looks at the list.
#
# ## 7. Noise again
#
# Two names of every menu are left, and they are one-liners. *Euler ancestral* steps too far down and adds noise to come
# back up: that is DDIM with $\eta = 1$, which chapter 06 showed to be DDPM's step. *DPM++ 2M SDE* does it with the
# extrapolated picture.


# %%
def euler_ancestral(denoise, x, levels, generator=None):
    """k-diffusion's ancestral sampling: DDIM at eta = 1."""
    return md.ddim(denoise, x, levels, 1.0, generator)


def dpmpp_2m_sde(denoise, x, levels, generator=None):
    """DPM++ 2M for the SDE (Lu et al. 2022b): the same picture, and fresh noise as in DDPM."""
    return dpmpp_2m(denoise, x, levels, eta=1.0, generator=generator)


levels = schedule.levels(20, "karras")
dice = lambda: torch.Generator().manual_seed(SEED)  # noqa: E731
for mine, theirs in ((euler_ancestral, md.euler_ancestral), (dpmpp_2m_sde, md.dpmpp_2m_sde), (euler_ancestral, md.ddpm)):
    pair = [md.sample(walk, mixture, x, levels, generator=dice()) for walk in (mine, theirs)]
    assert_close(*pair, rtol=0, atol=1e-9)
s, s_there = (level.sigma / level.alpha for level in levels[4:6])
s_up = s_there * (1 - (s_there / s) ** 2) ** 0.5  # as k-diffusion has it: down to s_down, then up by noise of size s_up
bar, noise, estimate = x / levels[4].alpha, torch.randn_like(x), mixture(x, levels[4])
bar = bar + ((s_there**2 - s_up**2) ** 0.5 - s) * estimate.eps + s_up * noise
assert_close(levels[5].alpha * bar, md.ddim_step(x, estimate, *levels[4:6], 1.0, noise))

# %% [markdown]
# What does noise cost, and what does it buy? A hard test: 50 steps, and **all points start at the same place**, $x = 1$.
# The ODE keeps ranks, and all ranks are one: **it ends in one point.** A step with noise forgets where it came from.
# **Expected: from the bad start the stochastic samplers come to within 0.15 of the truth, and the others miss by 1.** The
# price is in the last column: from a *good* start Euler is twice as exact with the same calls.

# %%
torch.manual_seed(SEED)
levels, ranks = schedule.levels(50, "karras"), (torch.arange(CROWD, dtype=torch.float64)[:, None] + 0.5) / CROWD
truth, ends, table = at_rank(ranks, md.CLEAN, mixture), {}, {}
few = {"Euler": euler, "Euler ancestral": euler_ancestral, "DPM++ 2M": dpmpp_2m, "DPM++ 2M SDE": dpmpp_2m_sde}
for name, sampler in few.items():
    end = md.sample(sampler, mixture, torch.ones_like(ranks), levels, progress=False).sort(0).values
    table[name] = ((end - truth).square().mean().sqrt().item(), measure(sampler, mixture, levels, CROWD)[1])
    ends[name] = (ranks[::40], end[::40])
    print(f"{name:16} error from one point {table[name][0]:.3f}, from a good start {table[name][1]:.4f}")
assert min(table["Euler"][0], table["DPM++ 2M"][0]) > 0.5
for name in ("Euler ancestral", "DPM++ 2M SDE"):
    assert table[name][0] < 0.15
assert table["Euler ancestral"][1] > 1.5 * table["Euler"][1]
md.plot.show_curves({"the truth": (ranks[::40], truth[::40]), **ends}, "rank", "where it ends", "50 steps, all from x = 1")

# %% [markdown]
# A network's small errors are such wrong places. This is one reason why chapter 06 found that noise may help over many
# steps, and hurts over few.
#
# ## 8. Which levels?
#
# An order says nothing of *where* the steps are. In `minidiff` that is no business of the sampler: spacing is a property of
# the list of levels, and every sampler takes every list. Look at the schedule first, at its third panel.

# %%
md.plot.show_levels(schedule)

# %% [markdown]
# At the clean end, on the left, $\log\mathrm{SNR}$ plunges. Steps that are even in $t$ are tiny in $\lambda$ for most of
# the walk, and the last ones are giants. Karras et al. proposed to choose the noise itself, even in $s^{1/\rho}$, with
# $\rho = 7$:
#
# $$s_i = \Big(s_{\max}^{1/\rho} + \frac{i}{n-1}\big(s_{\min}^{1/\rho} - s_{\max}^{1/\rho}\big)\Big)^{\rho}
# \qquad\text{(Karras et al. 2022, eq. 5)}$$
#
# For $\rho \to \infty$ this would be even in $\lambda$; $\rho = 1$ is even in $s$.


# %%
def karras(first, last, n, rho=7.0):
    """n numbers from first down to last, even in the rho-th root (Karras et al. 2022, eq. 5)."""
    return [(first ** (1 / rho) + i / (n - 1) * (last ** (1 / rho) - first ** (1 / rho))) ** rho for i in range(n)]


most, least = schedule.ratio[-1].item(), schedule.ratio[0].item()
assert_close(karras(most, least, 10), md.diffusion.schedule.karras(most, least, 10))
assert [schedule.at_ratio(s).t for s in md.diffusion.schedule.karras(most, least, 10)] == [
    level.t for level in schedule.levels(10, "karras")[:-1]
]
spacings = ("leading", "linspace", "trailing", "karras")
leaps = {}
with matplotlib.rc_context(md.plot.STYLE):
    figure = md.plot.Picture(figsize=(12, 3.2), dpi=100, layout="constrained")
    axes = figure.subplots()
    for row, spacing in enumerate(reversed(spacings)):
        lams = torch.tensor([math.log(level.alpha / level.sigma) for level in schedule.levels(10, spacing)[:-1]])
        leaps[spacing] = (lams.diff()[-1] / lams.diff()[-2]).item()  # 1/r of the last step that has a memory
        axes.plot(lams, [row] * 10, "o", markersize=9, color=md.plot.CURVES[row])
    axes.set(yticks=range(4), yticklabels=reversed(spacings), xlabel="λ = log(α/σ), clean on the right; CLEAN is at infinity")
    axes.set(ylim=(-0.6, 3.6), title="10 steps")
print("last step over the one before it, in λ:", {name: round(leap, 1) for name, leap in leaps.items()})
assert leaps["linspace"] > 2.5 and leaps["leading"] > 2.5 and leaps["trailing"] < 2 and leaps["karras"] < 1.2
figure.to(None)

# %% [markdown]
# Now every sampler on every list. Here all start from pure noise, as a user does, wherever the list begins. (This schedule
# never reaches it, so 0.010 is as good as it gets.) **Expected at ten calls: for each sampler with a memory Karras' list is
# best. And leading and linspace ruin DPM++ 2M: its error is more than twice that of trailing,** because it extrapolates
# through the giant leap.

# %%
menu = {"Euler": euler, "Heun": heun, "LMS": lms, "PLMS": plms, "DPM++ 2M": dpmpp_2m}
noise, table = md.Level(0, 0.0, 1.0), {}
for calls in (5, 10, 20):
    print(f"about {calls} calls" + "".join(f"{spacing:>10}" for spacing in spacings))
    for name, sampler in menu.items():
        n = {"Heun": (calls + 1) // 2, "PLMS": calls - 1}.get(name, calls)
        for spacing in spacings:
            table[name, spacing, calls] = measure(sampler, mixture, schedule.levels(n, spacing), start=noise)[1]
        print(f"{name:15}" + "".join(f"{table[name, spacing, calls]:10.3f}" for spacing in spacings))

# %%
for name in ("LMS", "PLMS", "DPM++ 2M"):
    assert table[name, "karras", 10] == min(table[name, spacing, 10] for spacing in spacings)
assert min(table["DPM++ 2M", spacing, 10] for spacing in ("leading", "linspace")) > 2 * table["DPM++ 2M", "trailing", 10]

# %% [markdown]
# That answers the question of section 6: the better variable wants a list that is smooth *in that variable*. Trailing
# avoids the giant by leaping to `CLEAN` from where linspace still has a row to visit. Look at five calls, too. Karras'
# first steps are long in $s$, and with so few of them that hurts all samplers whose variable $s$ is.
#
# ## 9. The whole plot
#
# Error against network calls, every sampler on Karras' list, each from a good start.

# %%
torch.manual_seed(SEED)
chancy = {"Euler ancestral": euler_ancestral, "DPM++ 2M SDE": dpmpp_2m_sde}
budget, lines, table = (6, 8, 10, 14, 20, 30, 50, 100), {}, {}
print("calls           " + "".join(f"{calls:9}" for calls in budget))
for name, sampler in {**menu, **chancy}.items():
    for calls in budget:
        n = {"Heun": (calls + 1) // 2, "PLMS": calls - 1}.get(name, calls)
        asked, table[name, calls] = measure(sampler, mixture, schedule.levels(n, "karras"), CROWD if name in chancy else 400)
        assert abs(asked - calls) <= 1
    lines[name] = (budget, [table[name, calls] for calls in budget])
    print(f"{name:16}" + "".join(f"{error:9.4f}" for error in lines[name][1]))
ranks = (torch.arange(CROWD, dtype=torch.float64)[:, None] + 0.5) / CROWD
drawn = at_rank(torch.rand_like(ranks), md.CLEAN, mixture).sort(0).values
floor = (drawn - at_rank(ranks, md.CLEAN, mixture)).square().mean().sqrt().item()
print(f"{CROWD} honest draws of the data score {floor:.4f}: below that, the two with noise are at the mercy of dice")
with matplotlib.rc_context(md.plot.STYLE):
    figure = md.plot.Picture(figsize=(11, 6), dpi=100, layout="constrained")
    axes = figure.subplots()
    for i, (name, (x_axis, y_axis)) in enumerate(lines.items()):
        style = {"color": md.plot.CURVES[i % 6], "linestyle": md.plot.DASHES[i % 4], "marker": "os^Dv<>"[i]}
        axes.plot(x_axis, y_axis, label=name, **style)
    axes.set(xscale="log", yscale="log", xlabel="network calls", ylabel="error", xticks=budget, xticklabels=budget)
    axes.set(ylim=(2e-5, 1.3), title="error against network calls, Karras' levels")
    axes.minorticks_off()
    figure.legend(loc="outside right upper")
figure.to(None)

# %% [markdown]
# Read it off, from the left.
#
# - **About 10 calls:** PLMS and DPM++ 2M. Both need ten calls for what costs Euler more than thirty.
# - **About 20:** PLMS, LMS and DPM++ 2M are within a factor of two of each other, and seven times or more as exact as
#   Euler.
# - **50 and more:** LMS, whose high order now pays. It is wrong by 0.0003, and no eye needs that.
# - **Heun** is no better than Euler up to 14 calls. Its steps are twice as long, and the first ones too long for a mean of
#   two slopes. From 30 on it is good.
# - **Noise** costs a factor of two at 20 calls, and is worth it where the network is wrong.
#
# PLMS does well with wrong weights because they belong to a polynomial in the *number of the step*. On Karras' list that
# number is a smoother variable than $s$, and a smoother variable was the lesson of section 6.
#
# The curves of PLMS and DPM++ 2M end in a floor. It is the last leap, from $s = 0.03$ to `CLEAN`: it is as long in walks of
# 100 as of 10, and it is Euler's, for Heun too. **Expected: measured before that leap, the error of DPM++ 2M at 100 calls
# is below a third.**

# %%
before = measure(dpmpp_2m, mixture, schedule.levels(100, "karras", last=None))[1]
print(f"DPM++ 2M, 100 calls: {table['DPM++ 2M', 100]:.5f} at CLEAN, {before:.5f} at the level before it")
assert before < table["DPM++ 2M", 100] / 3
assert max(table["PLMS", 10], table["DPM++ 2M", 10]) < table["Euler", 30]
assert 7 * max(table[name, 20] for name in ("PLMS", "LMS", "DPM++ 2M")) < table["Euler", 20]
assert table["Euler ancestral", 20] > 1.5 * table["Euler", 20]
assert table["LMS", 50] < 0.001 and table["Heun", 10] > table["Euler", 10] and table["Heun", 30] < table["Euler", 30] / 2

# %% [markdown]
# ## 10. On pictures
#
# Does one number say anything about 3072? The exact denoiser of 64 scenes, each blurred by a little noise, draws like a
# perfect network. What counts as exact is a very fine walk of Heun. A picture has *arrived* if it is within 0.1 per pixel
# of the one that the same noise leads to. **Expected: with 20 calls DPM++ 2M, PLMS and LMS bring more pictures home than
# Euler does.** With noise on the way the goal is another one, so few of those two arrive, and they still draw good
# pictures.

# %%
pixels, _ = md.data.Shapes(64, size=32, seed=3, sizes=["large"]).tensors()
perfect = md.DatasetDenoiser(md.data.from_pixels(pixels), std=0.05)
start = torch.randn(NOISES, 3, 32, 32, generator=torch.Generator().manual_seed(5))
goal = md.sample(heun, perfect, start, schedule.levels(FINEST, "karras"))
drawn, arrived = {}, {}
for name, sampler in {**menu, **chancy}.items():
    for calls in (5, 10, 20):
        n = {"Heun": (calls + 1) // 2, "PLMS": calls - 1}.get(name, calls)
        drawn[name, calls] = md.sample(sampler, perfect, start, schedule.levels(n, "karras"), progress=False)
        off = (drawn[name, calls] - goal).square().mean((1, 2, 3)).sqrt()
        arrived[name, calls] = (off < 0.1).float().mean().item()
print("arrived with    " + "".join(f"{calls:4} calls" for calls in (5, 10, 20)))
for name in {**menu, **chancy}:
    print(f"{name:16}" + "".join(f"{arrived[name, calls]:10.0%}" for calls in (5, 10, 20)))
off = (drawn["Euler", 10] - goal).square().mean((1, 2, 3))
hard = off.argsort(descending=True)[:2].tolist()  # where Euler is furthest off with ten calls
rows = [torch.stack([*(drawn[name, calls][i] for i in hard for calls in (5, 10, 20))]) for name in {**menu, **chancy}]
rows.append(torch.stack([goal[i] for i in hard for _ in range(3)]))
labels = [f"{'AB'[k]}, {calls} calls" for k in (0, 1) for calls in (5, 10, 20)]
md.plot.show_images(torch.cat(rows), row_labels=[*menu, *chancy, "exact"], column_labels=labels)

# %%
if FULL:
    assert min(arrived[name, 20] for name in ("LMS", "PLMS", "DPM++ 2M")) > arrived["Euler", 20] and arrived["Heun", 5] == 0

# %% [markdown]
# A and B are the two noises that Euler finds hardest; most are easier. Where a path runs close to the border between two
# pictures, a tangent tips it over. Heun with five calls is the upper left corner of the plot: between levels so far apart,
# the mean of two slopes is the slope of neither.
#
# ## 11. One code for every model
#
# A network of Stable Diffusion 2 predicts $v$ on a schedule that ends in pure noise, one of Stable Diffusion 3 predicts
# $\epsilon - x_0$ on a straight line. The samplers never learn of it: `denoiser` translates at the network's door, and a
# level is a pair $(\alpha, \sigma)$. Three pretended networks, each answering in its own language, and trailing levels.

# %%
worlds = {
    "VP, eps": (schedule, "eps"), "zero SNR, v": (schedule.zero_terminal_snr(), "v"), "flow": (md.Schedule.flow(T), "flow"),
}  # fmt: skip


def pretend(mixture, schedule, predicts):
    """A network net(xt, t) that knows the mixture and answers as one trained on this schedule for this target."""

    def net(xt, t):
        level = schedule.at(t[0].item())
        return md.diffusion.target(*mixture(xt, level), level, predicts)

    return net


class Posing:
    """A denoiser made of such a network that `measure` can ask for the truth, too."""

    def __init__(self, net, predicts, mixture):
        self.denoise, self.data, self.std = md.denoiser(net, predicts), mixture.data, mixture.std

    def __call__(self, xt, level):
        return self.denoise(xt, level)


# %%
with matplotlib.rc_context(md.plot.STYLE):
    figure = md.plot.Picture(figsize=(14, 4.6), dpi=100, layout="constrained")
    for axes, (world, (levels_of, predicts)) in zip(figure.subplots(1, 3, sharey=True), worlds.items(), strict=True):
        network = Posing(pretend(mixture, levels_of, predicts), predicts, mixture)
        orders = {name: errors(menu[name], network, levels_of, (32, 64, 128))[1] for name in ("Euler", "Heun", "DPM++ 2M")}
        print(f"{world:12} order:", {name: round(order, 2) for name, order in orders.items()})
        assert all(abs(order - due) < 0.2 for order, due in zip(orders.values(), (1, 2, 2), strict=True))
        for i, (name, sampler) in enumerate(menu.items()):
            runs = [measure(sampler, network, levels_of.levels(n, "trailing")) for n in (5, 10, 20, 50)]
            axes.plot(*zip(*runs, strict=True), color=md.plot.CURVES[i], linestyle=md.plot.DASHES[i % 4], label=name)
        axes.set(title=world, xlabel="network calls", xscale="log", yscale="log", xticks=(5, 10, 20, 50, 100))
        axes.set_xticklabels((5, 10, 20, 50, 100))
        axes.minorticks_off()
    figure.axes[0].set_ylabel("error, trailing levels")
    figure.axes[0].legend()
figure.to(None)

# %% [markdown]
# The orders are those of section 5 in all three worlds. On the flow a high order pays, because the last leap of its
# trailing list is short: with 20 steps from $s = 0.05$, and from four times that on the VP schedules.
#
# From pure noise, $\alpha = 0$, every sampler takes one plain step of DDIM, since $s$ is infinite there, and gathers its
# memory afterwards. Karras' list is no cure for such a schedule: its last row before pure noise has $s$ in the thousands,
# and half of the steps are spent above $s = 4$, where nothing happens. **Expected: for PLMS with about ten calls, more than
# twice the error of trailing.**

# %%
bent, runs = worlds["zero SNR, v"][0], {}
for spacing in ("trailing", "karras"):
    runs[spacing] = measure(plms, mixture, bent.levels(9, spacing))[1]
print(f"zero SNR begins at s = {bent.ratio[-2]:.0f}; PLMS, 10 calls:", {name: round(error, 3) for name, error in runs.items()})
assert runs["karras"] > 2 * runs["trailing"]
leaps = [levels_of.levels(20, "trailing")[-2] for levels_of, _ in worlds.values()]
print("the last leap of 20 begins at s =", [round(level.sigma / level.alpha, 2) for level in leaps])
assert_close([level.sigma / level.alpha for level in leaps], [0.223, 0.231, 0.053], rtol=0.02, atol=0)
assert sum(level.sigma > 4 * level.alpha for level in bent.levels(9, "karras")) >= 5 and bent.ratio[-2] > 1000

# %% [markdown]
# ## 12. Four bugs you will meet
#
# **A memory shared by two walks.** Many libraries keep the old answers in the scheduler object. Draw twice without
# resetting it, or draw two batches in turns, and the first step extrapolates from the *end of another picture*. Python has
# its own way to do this: a list as default argument. **Expected: the first walk is right, the second off by more than 1,
# the third worse.**


# %%
@torch.no_grad()
def lms_that_remembers(denoise, x, levels, past=[]):  # noqa: B006  the bug
    """lms, but the list is made once, when Python reads the function."""
    for here, there in pairwise(levels):
        estimate = denoise(x, here)
        past[:] = [(here.sigma / here.alpha, estimate.eps), *past][:4]
        weights = md.diffusion.multistep.adams_bashforth([s for s, _ in past], there.sigma / there.alpha)
        eps = sum(w * eps for w, (_, eps) in zip(weights, past, strict=True))
        x = md.ddim_step(x, md.diffusion.to_estimate(eps, x, here, "eps"), here, there)
        yield md.State(x, estimate.x0, there)


walks = [measure(lms_that_remembers, mixture, schedule.levels(20, "karras"))[1] for _ in range(3)]
print("three walks in a row:", [round(error, 3) for error in walks])
assert walks[0] < 0.02 and 1 < walks[1] < walks[2]

# %% [markdown]
# **Oldest first.** The right weights on the wrong slopes: $\tfrac32\hat\epsilon_1 - \tfrac12\hat\epsilon$. It converges,
# and the pictures are good with enough steps; only the order tells. **Expected: order 1, and four times Euler's error.**
# (The mean should move half a step ahead, and moves one and a half back.)


# %%
@torch.no_grad()
def oldest_first(denoise, x, levels):
    """Two-step Adams-Bashforth with its weights exchanged."""
    past = None
    for here, there in pairwise(levels):
        estimate = denoise(x, here)
        eps = estimate.eps if past is None else 1.5 * past - 0.5 * estimate.eps
        past = estimate.eps
        x = md.ddim_step(x, md.diffusion.to_estimate(eps, x, here, "eps"), here, there)
        yield md.State(x, estimate.x0, there)


found, order = errors(oldest_first, mixture, linear, (32, 64, 128))
right = {name: errors(methods[name], mixture, linear, (32, 64, 128)) for name in ("Euler", "LMS 2")}
print(f"order {order:.2f} instead of {right['LMS 2'][1]:.2f}; {found[-1] / right['Euler'][0][-1]:.1f} times Euler's error")
assert abs(order - 1) < 0.1 and 3.5 < found[-1] / right["Euler"][0][-1] < 4.5

# %% [markdown]
# **The start in the wrong coordinates.** Code that walks in $\bar x = x/\alpha$ must start there, with noise of size about
# $s_{\max}$. In diffusers this factor is `init_noise_sigma`; it depends on the scheduler, and for some on the number of
# steps, and one published notebook reads it before it sets them. Forget it, and the walk starts closer to the middle than
# any $\bar x$ is at that level, by a factor $\alpha$. **Expected: all points end near the mean, with a spread of 0.03 where
# 0.74 is due.**

# %%
levels, ranks = schedule.levels(20, "karras"), torch.linspace(0.002, 0.998, 400, dtype=torch.float64)[:, None]
right = md.sample(dpmpp_2m, mixture, torch.special.ndtri(ranks), levels, progress=False)
small = md.sample(dpmpp_2m, mixture, torch.special.ndtri(ranks) * levels[0].alpha, levels, progress=False)
print(f"spread of the ends {small.std():.3f}, and {right.std():.3f} from the right start; alpha is {levels[0].alpha:.3f}")
assert small.std() < 0.05 and abs(right.std() - 0.74) < 0.03
x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(5))
pair = [md.sample(dpmpp_2m, perfect, noise, levels, progress=False) for noise in (x, x * levels[0].alpha)]
md.plot.show_images(torch.cat(pair), columns=8, row_labels=["right", "too close"])

# %% [markdown]
# On pictures: the mean of all scenes is grey, the grey one nearest to it wins, and every noise draws the same.
#
# **Steps that are not calls.** "Heun in 20 steps beats Euler in 20" compares 39 calls with 20. Any sampler looks better
# with twice the work. Count calls, as `measure` does.
#
# ## 13. What we left out
#
# | left out | where to read it |
# |---|---|
# | proofs of the orders | Hairer, Nørsett & Wanner, *Solving ordinary differential equations I*, chapters II and III |
# | the parabola in $\lambda$: DPM++ 3M | k-diffusion's `sample_dpmpp_3m_sde` |
# | two calls a step in $\lambda$: DPM-Solver-2, DPM++ 2S | Lu et al. 2022a; 2022b, algorithm 1 |
# | a predictor and a corrector in one: UniPC | Zhao et al. 2023 |
# | exponential integrators with polynomials in $\hat\epsilon$: DEIS | Zhang & Chen 2023 |
# | a little noise at some levels only ("churn") | Karras et al. 2022, algorithm 2 |
# | steps chosen by the error they make | k-diffusion's `sample_dpm_adaptive` |
# | levels found by optimisation | Sabour et al. 2024 (Align Your Steps) |
# | a network taught to leap | Salimans & Ho 2022; Song et al. 2023 (consistency models) |
#
# *Lu et al. 2022a* is DPM-Solver, *2022b* DPM-Solver++. What you wrote is `minidiff/diffusion/multistep.py`, nearly line by
# line, `heun` of `samplers.py` and `karras` of `schedule.py`; the library's versions check their arguments. Chapter 16
# gives them to Stable Diffusion. [Exercises](exercises/07_fast_samplers.ipynb): these, from memory.
#
# **Next:** the picture comes quickly. How do you ask for a certain one?

# %%
print(f"torch {torch.__version__}, minidiff {md.__version__}")
