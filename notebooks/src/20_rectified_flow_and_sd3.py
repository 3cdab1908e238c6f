# %% [markdown]
# # 20 · Rectified flow, the transformer, and what changed in Stable Diffusion 3
#
# **What is left of Stable Diffusion when the U-Net goes?**
#
# Version 3 is often introduced as "Stable Diffusion, but larger". It shares not one block of its network with version 1.
# The noise goes another way, the loss asks another question, the U-Net has gone, and the words no longer stand outside
# the picture. And yet sampler, guidance and training loop stay as we wrote them. This chapter goes through the
# changes one at a time, and ends with three networks on the same task and a table of all that is different.
#
# You need schedules (chapter 01), exact denoisers (02), DDIM (06) and attention (14). Nothing is downloaded.

# %% [markdown]
# > **For the lecturer.** 100 minutes: 25 for the two roads, 15 for the loss, 25 for DiT, 15 for MMDiT, 20 for the
# > comparison. The three trainings take about twenty minutes on one CPU core: start them before the lecture.
# >
# > Worth asking before the cell is run: *will the arc and the straight line end at the same picture?* (section 1) · *if
# > every pair is joined by a straight line, why is one step not enough?* (section 2) · *what does a transformer see when the
# > patches are shuffled?* (section 5) · *which network obeys first, and does it stay ahead?* (section 7).

# %%
import itertools
import os

import matplotlib
import numpy as np
import torch
from IPython.display import display
from torch import nn
from torch.nn.functional import avg_pool2d, interpolate, layer_norm, scaled_dot_product_attention, silu
from torch.testing import assert_close

import minidiff as md
from minidiff.data.shapes import Attributes, caption, draw as paint, position
from minidiff.nets.attention import zero
from minidiff.nets.dit import GatedAttention, mlp

device = "cuda" if torch.cuda.is_available() else "cpu"

# %% [markdown]
# The knobs. A quick mode for tests replaces a value by the one in its comment; nothing else changes.

# %% tags=["knobs"]
MODEL = os.environ.get("MINIDIFF_SD3", "")  # such as "stabilityai/stable-diffusion-3-medium-diffusers"  # quick: ""
SEED = 0
SCENES = 6000  # captioned pictures to train on  # quick: 200
REFLOW_STEPS = 1500  # optimizer steps on points of the plane  # quick: 20
ZERO_STEPS = 200  # optimizer steps for each of two small DiTs  # quick: 2
CHANNELS = (32, 64, 96)  # width of the U-Net's stages  # quick: (8, 16, 32)
DIM = 128  # width of a token in the transformers  # quick: 32
WIDTH = 48  # numbers per word  # quick: 16
STEPS = 1600  # optimizer steps for each of three networks  # quick: 2
BATCH = 16  # scenes to a step  # quick: 8
WALK = 25  # steps of a sampler  # quick: 2
GLANCE = 12  # the same, where a network in training is looked at  # quick: 2
MANY = 144  # drawings that the oracle marks, for each network  # quick: 8
SCALE = 3.0  # of guidance
LONG = True  # hold the trained networks to the numbers in the text  # quick: False

# %% [markdown]
# ## 1. Two roads from noise to image
#
# Both use the line that this course began with, $x_t = \alpha_t x_0 + \sigma_t \epsilon$. On a VP schedule
# $\alpha^2 + \sigma^2 = 1$, on a flow $\alpha + \sigma = 1$ (Liu et al. 2022; Lipman et al. 2023). Draw $x_0$ to the right
# and $\epsilon$ upwards: the one road is a quarter of a circle, the other its chord.

# %%
vp, flow = md.Schedule.cosine().zero_terminal_snr(), md.Schedule.flow()
even = {n: [*(flow.at(1000 - 1000 * i / n) for i in range(n)), md.CLEAN] for n in (1, 2, 4, 8, 10, 16, 32, 64, 400)}
with matplotlib.rc_context(md.plot.STYLE):
    figure = md.plot.Picture(figsize=(5.6, 5), dpi=md.plot.DPI, layout="constrained")
    axes = figure.subplots()
    for k, (name, levels) in enumerate({"VP (cosine)": vp.levels(10, "trailing"), "flow": even[10]}.items()):
        way = [(level.alpha, level.sigma) for level in levels]
        axes.plot(*zip(*way, strict=True), "os"[k] + "-", color=md.plot.CURVES[k], label=f"{name}, ten steps")
    axes.set(xlabel=r"$\alpha$: how much of $x_0$", ylabel=r"$\sigma$: how much of $\epsilon$", aspect="equal")
    axes.legend()
figure.to(None)

# %% [markdown]
# Along the chord the direction never changes. The derivative with respect to $\sigma$ is
#
# $$\frac{dx_\sigma}{d\sigma} = \epsilon - x_0,$$
#
# and a network that `predicts="flow"` is trained to answer that. A walk down follows it by **Euler's method**: a step times
# the slope.


# %%
def flow_euler(denoise, x, levels):
    """Euler's method on dx/dsigma = eps - x0, from noisy to clean. The end of the walk, (B, ...)."""
    for here, there in itertools.pairwise(levels):
        x0, eps = denoise(x, here)
        x = x + (there.sigma - here.sigma) * (eps - x0)
    return x


def walk(denoise, x, levels):
    """The same by the library's DDIM, whatever the schedule."""
    return md.sample(md.ddim, denoise, x, levels, progress=False)


# %% [markdown]
# Is that a new sampler? Put $x = (1-\sigma)\,x_0 + \sigma\epsilon$ into the step: it gives
# $(1-\sigma')\,x_0 + \sigma'\epsilon$, the sum that DDIM makes of the same two guesses. **Expected:** the same points, to
# rounding. We test it where the best guess is a formula (chapter 02): eight clusters on a circle.

# %%
angles = torch.arange(8) * torch.pi / 4
ring = torch.stack([angles.cos(), angles.sin()], dim=1)
exact = md.DatasetDenoiser(ring, std=0.05)
start = torch.randn(1000, 2, generator=torch.Generator().manual_seed(SEED))
ends = walk(exact, start, even[400])
assert_close(flow_euler(exact, start, even[16]), walk(exact, start, even[16]), rtol=1e-4, atol=1e-4)

# %% [markdown]
# **Will arc and chord end at the same picture?** The best guess depends on the ratio $s = \sigma/\alpha$ of noise to image
# only. Divide either road by $\alpha$, and both are the one curve $d(x/\alpha)/ds = \hat\epsilon$ (chapter 06). They
# are the same road at different scales. **Expected:** with many steps, the same points; with *few steps at the same ratios*,
# the same points as well.

# %%
around = walk(exact, start, vp.levels(400, "trailing"))
few = even[16][1:]  # from the first level at which the ratio is finite
size = [(level.alpha**2 + level.sigma**2) ** 0.5 for level in few]
twins = [md.Level(level.t, level.alpha / k, level.sigma / k) for level, k in zip(few, size, strict=True)]  # on the arc
apart = (walk(exact, start, few) - walk(exact, start / size[0], twins)).abs().max().item()
print(f"arc and chord, 400 steps: ends differ by {(around - ends).square().mean().sqrt():.4f} (points are 1 from the middle)")
print(f"15 steps at the same ratios: by at most {apart:.0e}")
assert (around - ends).square().mean().sqrt() < 0.01 and apart < 1e-3

# %% [markdown]
# This is worth a pause, for much is written about straight paths. To DDIM, the shape of the road means nothing; only the
# *ratios at which it stops* do (Gao et al. 2024 compare the two families term by term). What a flow changes is where a
# simple rule, "even in $\sigma$", puts the stops, which levels are trained how often, and what the network answers.
#
# ## 2. Straight for a pair is not straight for the crowd
#
# If every image is joined to its noise by a straight line, why is one long step not enough? Because lines of different
# pairs cross, and where they cross, one network has one answer: the mean of their directions. The walker follows means.

# %%
pair_of = torch.randint(2, (40, 1), generator=torch.Generator().manual_seed(1)) * 2.0 - 1  # images of one pixel, -1 or 1
noise = torch.linspace(-2, 2, 40)[torch.randperm(40, generator=torch.Generator().manual_seed(2)), None]
two = md.DatasetDenoiser(torch.tensor([[-1.0], [1.0]]), std=0.1)
lines = {"pairs: straight, and they cross": (torch.tensor([1.0, 0.0]), torch.cat([noise, pair_of], dim=1))}
for name, levels in {"what a walker follows, flow": even[400], "the same walkers, VP": vp.levels(400, "trailing")}.items():
    places = torch.cat([noise, *(state.x for state in md.ddim(two, noise, levels))], dim=1)
    lines[name] = (torch.linspace(1, 0, 401), places)
with matplotlib.rc_context(md.plot.STYLE):
    figure = md.plot.Picture(figsize=(13, 4.2), dpi=md.plot.DPI, layout="constrained")
    for axes, (name, (time, places)) in zip(figure.subplots(1, 3, sharey=True), lines.items(), strict=True):
        for row, end in zip(places, pair_of[:, 0], strict=True):
            up = end > 0 if len(time) == 2 else row[-1] > 0
            axes.plot(time, row, color=md.plot.CURVES[int(up)], linewidth=1.1)
        axes.set(title=name, xlabel="share of the way, noise on the left", xlim=(1, 0))
figure.to(None)

# %% [markdown]
# In the other two panels no line crosses another, for from one point there is one way on. They bend. How many steps does
# that cost? We compare on the ring with the exact ends. **Expected:** one step ends in the middle of the ring, wrong by 0.7 on
# every road: the best guess from pure noise is the mean of all data. For an error below 0.02 the flow takes 16 even steps,
# the cosine twice as many, and Stable Diffusion's table (with its end repaired) more than 64.

# %%
roads = {
    "flow, even in σ": lambda n: even[n],
    "cosine": lambda n: vp.levels(n, "trailing"),
    "Stable Diffusion 1": lambda n: md.Schedule.scaled_linear().zero_terminal_snr().levels(n, "trailing"),
}
counts = [1, 2, 4, 8, 16, 32, 64]
error = {name: [(walk(exact, start, road(n)) - ends).square().mean().sqrt().item() for n in counts]
         for name, road in roads.items()}  # fmt: skip
needed = {name: next((n for n, e in zip(counts, es, strict=True) if e < 0.02), "more than 64") for name, es in error.items()}
print("steps to an error below 0.02:", needed)
assert needed == {"flow, even in σ": 16, "cosine": 32, "Stable Diffusion 1": "more than 64"}
assert all(0.6 < es[0] < 0.8 for es in error.values())
md.plot.show_curves({name: (np.log2(counts), es) for name, es in error.items()}, yscale="log", ylabel="error of the ends",
                    xlabel=r"$\log_2$ of the number of steps", title="eight clusters, exact guesses")  # fmt: skip

# %% [markdown]
# The advantage over the cosine is small, and other data turn it around. For a single Gaussian of variance 1 the exact VP line
# stands still, so that each $x$ is its own end, while a flow makes it sag and return (chapter 01, section 1). **Expected:**
# there the cosine is a little ahead, or level, at every number of steps. The large gain was to leave the old table.

# %%
plain, off = md.GaussianDenoiser(), {}
for name in ("flow, even in σ", "cosine"):
    off[name] = [(walk(plain, start, roads[name](n)) - start).square().mean().sqrt().item() for n in counts[1:]]
print({name: [round(value, 3) for value in values] for name, values in off.items()})
assert all(cosine < flow_s + 1e-3 for cosine, flow_s in zip(off["cosine"], off["flow, even in σ"], strict=True))

# %% [markdown]
# ## 3. Making it straight: reflow
#
# If crossing is the trouble, remove the crossings. Send noise down the bent lines once, keep each start with *its own* end, and
# train a network on those pairs instead of random ones: **reflow** (Liu et al. 2022). These pairs do not cross.
# It is the same loss with the noise given. **Expected:** a single step, wrong by 0.7 before, is wrong by less than 0.2.


# %%
class Plane(nn.Module):
    """net(x, t) for points of the plane: (B, 2), (B,) -> (B, 2)."""

    def __init__(self, width=128):
        super().__init__()
        self.time, self.place = md.nets.TimeEmbedding(64, width), nn.Linear(2, width)
        layers = [layer for _ in range(2) for layer in (nn.SiLU(), nn.Linear(width, width))]
        self.rest = nn.Sequential(*layers, nn.SiLU(), nn.Linear(width, 2))

    def forward(self, x, t):
        return self.rest(self.place(x) + self.time(t))


def pick(n, batch, seed):
    """Endlessly, `batch` random rows out of n, with the rows' numbers as labels."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        rows = torch.randint(n, (batch,), generator=generator)
        yield rows, rows


# %%
noises = torch.randn(8192, 2, generator=torch.Generator().manual_seed(3))
finals = walk(exact, noises, even[64])


def straight_loss(net, rows, _):
    return md.diffusion_loss(net, finals[rows], flow, "flow", noise=noises[rows])


torch.manual_seed(SEED)
trainer = md.Trainer(Plane(), straight_loss, md.TrainConfig(steps=REFLOW_STEPS, optimizer="adamw"))
trainer.fit(pick(8192, 256, SEED))
straight = md.denoiser(trainer.ema.net, "flow")
clouds = {f"exact, {n} step{'s'[: n > 1]}": walk(exact, start, even[n]) for n in (1, 4)}
clouds["after reflow, 1 step"] = walk(straight, start, even[1])
off = {name: (cloud - ends).square().mean().sqrt().item() for name, cloud in clouds.items()}
print({name: round(value, 3) for name, value in off.items()})
if LONG:
    assert off["after reflow, 1 step"] < 0.2 < 0.6 < off["exact, 1 step"]


# %%
def scatter(clouds, ring, limit=2.0):
    """A panel for each cloud of points (N, 2), the centres of the clusters beside it."""
    with matplotlib.rc_context(md.plot.STYLE):
        figure = md.plot.Picture(figsize=(3.1 * len(clouds), 3.5), dpi=md.plot.DPI, layout="constrained")
        for axes, (name, cloud) in zip(figure.subplots(1, len(clouds)), clouds.items(), strict=True):
            axes.scatter(*cloud.T, s=3, color=md.plot.CURVES[0])
            axes.scatter(*ring.T, s=60, marker="x", color=md.plot.CURVES[1])
            axes.set(title=name, xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    return figure.to(None)


scatter(clouds, ring)

# %% [markdown]
# Stable Diffusion 3 was not reflowed; its few-step relatives were distilled by other means. It takes 28 steps.
#
# ## 4. Which levels teach something?
#
# Now to the loss. At $\sigma = 1$ the best answer to $\epsilon - x_0$ is $\epsilon$ minus the mean of all pictures, at
# $\sigma = 0$ it is minus the picture itself: both are plain sums. What needs a network lies between. To see how much, take
# pictures whose best guess is a formula, our scenes at 16 × 16, each a little blurred into a Gaussian. Compare the error of
# the best guess, a floor for every network, with that of a best *straight line*, pixel by pixel (`GaussianDenoiser`). The
# gap is what there is to learn. **Expected:** nothing at both ends.
# The scenes are those of chapter 14: two things side by side, 36 sentences, six of them held back.


# %%
def pair(first, second, generator):
    """Two things (colour, shape), the first left of the second, at random heights."""
    u, things = torch.rand(6, generator=generator).tolist(), []
    for k, (colour, shape) in enumerate((first, second)):
        x, y = 0.25 + 0.48 * k + 0.02 * u[k], 0.27 + 0.46 * u[2 + k]
        things.append(Attributes(shape, colour, "large", position(x, y), x, y, 0.22 + 0.01 * u[4 + k], 0.3 + 0.2 * k, "white"))
    return tuple(things)


# %%
kinds = list(itertools.product(("red", "green", "blue"), ("circle", "square", "triangle")))
asks = [(a, b) for a, b in itertools.product(kinds, kinds) if a[0] != b[0] and a[1] != b[1]]
held = range(5, len(asks), 6)
shown_asks = [ask for i, ask in enumerate(asks) if i not in held]
generator = torch.Generator().manual_seed(SEED)
scenes = [pair(*shown_asks[int(torch.randint(30, (), generator=generator))], generator) for _ in range(SCENES)]
tests = [pair(*asks[i % 36], generator) for i in range(MANY)]
pixels, test_pixels = (torch.cat([paint(s[k : k + 200], 32)[0] for k in range(0, len(s), 200)]) for s in (scenes, tests))
small = interpolate(md.data.from_pixels(pixels[:2000]), scale_factor=0.5, mode="area")
md.plot.show_images(md.data.from_pixels(pixels[:6]), titles=[caption(s) for s in scenes[:6]], columns=6)

# %%
sigmas = torch.cat([torch.linspace(0.01, 0.96, 20), torch.tensor([0.98, 1.0])])
blur, some = 0.1, small[:128]
best, line = md.DatasetDenoiser(small, std=blur), md.GaussianDenoiser(small.mean(0), (small.var(0) + blur**2).sqrt())
x0 = some + blur * torch.randn(some.shape, generator=generator)
eps = torch.randn(some.shape, generator=generator)
floor, gap = [], []
for sigma in sigmas.tolist():
    level = flow.at(1000 * sigma)
    guesses = [guess(md.add_noise(x0, eps, level), level) for guess in (best, line)]
    errors = [(e_hat - x0_hat - (eps - x0)).square().mean().item() for x0_hat, e_hat in guesses]
    floor.append(errors[0]), gap.append(errors[1] - errors[0])
print(f"to learn at the ends: {gap[0]:.3f} and {gap[-1]:.3f}; at most {max(gap):.2f}, at σ = {sigmas[int(np.argmax(gap))]:.2f}")
assert max(gap) > 5 * max(gap[0], gap[-1], 0.01) and 0.1 < sigmas[int(np.argmax(gap))] < 0.8
md.plot.show_curves({"error of the best guess": (sigmas, floor), "a straight line's error above it": (sigmas, gap)},
                    xlabel="σ", ylabel="squared error of the flow", title="nothing to learn at either end")  # fmt: skip

# %% [markdown]
# So Stable Diffusion 3 draws levels unevenly: a normal number, sent through the logistic curve. With $m = 0$ and width 1 the
# density is
#
# $$\pi(\sigma) = \frac{1}{\sqrt{2\pi}}\,\frac{1}{\sigma(1-\sigma)}\,
# \exp\!\Big(-\tfrac12 \log^2\!\tfrac{\sigma}{1-\sigma}\Big) \qquad\text{(Esser et al. 2024, eq. 19)}$$
#
# Then comes the **shift**. Look at $n$ pixels that all have one unknown colour $c$. Their mean is the best there is to know
# about it: $(1-\sigma)\,c$ plus noise of standard deviation $\sigma/\sqrt n$. After division by $1-\sigma$ the colour is known
# to $\frac{\sigma}{1-\sigma}\frac{1}{\sqrt n}$. A picture of $m$ pixels is in equal doubt at the level $\sigma'$ with
#
# $$\frac{\sigma'}{1-\sigma'}\frac{1}{\sqrt m} = \frac{\sigma}{1-\sigma}\frac{1}{\sqrt n}
# \quad\Longrightarrow\quad \sigma' = \frac{k\sigma}{1+(k-1)\sigma},\; k = \sqrt{m/n} \qquad\text{(eq. 23)}$$
#
# Twice as wide means $k = 2$. The paper compares several values by asking people, and settles on 3 for 1024 × 1024.


# %%
def shifted(sigma, k):
    """Levels of a picture k times as wide: (n,) -> (n,)."""
    return k * sigma / (1 + (k - 1) * sigma)


def logit_normal(n, k, generator):
    """n random levels of training, in (0, 1)."""
    return shifted(torch.randn(n, generator=generator).sigmoid(), k)


# %%
drawn = {}
for k in (1.0, 3.0):
    drawn[k] = logit_normal(100_000, k, torch.Generator().manual_seed(SEED))
    theirs = md.Schedule.flow(shift=k).draw(100_000, torch.Generator().manual_seed(SEED))
    assert_close(1000 * drawn[k], theirs)
assert_close(drawn[3.0].median().item(), 0.75, atol=0.01, rtol=0)  # 1/2, shifted by 3
with matplotlib.rc_context(md.plot.STYLE):
    figure = md.plot.Picture(figsize=(7.5, 4.2), dpi=md.plot.DPI, layout="constrained")
    axes = figure.subplots()
    for i, (k, values) in enumerate(drawn.items()):
        axes.hist(values, 80, density=True, alpha=0.5, color=md.plot.CURVES[i], label=f"Schedule.draw, shift {k:.0f}")
    u = torch.linspace(0.002, 0.998, 400)
    density = torch.exp(-(u.logit() ** 2) / 2) / (2 * torch.pi) ** 0.5 / (u * (1 - u))
    axes.plot(u, density, color="black", linewidth=1.5, label="eq. 19")
    axes.set(xlabel="σ", ylabel="density", title="how often a level is trained")
    axes.legend()
figure.to(None)

# %% [markdown]
# Is the rule right for pictures of more than one colour? Blow each scene up to twice its width, and ask the exact denoiser
# what it makes of the noisy ones. **Expected:** at the same $\sigma$ the large picture is guessed much better, at $\sigma'$
# just as well.

# %%
large = interpolate(small, scale_factor=2, mode="nearest")
rows = {"small at σ": [], "large at σ": [], "large at shifted σ": []}
levels = torch.tensor([0.5, 0.6, 0.7, 0.8, 0.9])
for sigma in levels:
    for name, data, s in zip(rows, (small, large, large), (sigma, sigma, shifted(sigma, 2)), strict=True):
        level, kept = flow.at(1000 * s.item()), data[:512]
        xt = md.add_noise(kept, torch.randn(kept.shape, generator=generator), level)
        rows[name].append((md.DatasetDenoiser(data)(xt, level).x0 - kept).square().mean().item())
print({name: [round(value, 4) for value in values] for name, values in rows.items()})
assert_close(rows["large at shifted σ"][2:], rows["small at σ"][2:], rtol=0.2, atol=0)
assert all(a < 0.7 * b for a, b in zip(rows["large at σ"], rows["small at σ"], strict=True))
md.plot.show_curves({name: (levels, values) for name, values in rows.items()}, xlabel="σ of the small picture", yscale="log",
                    ylabel=r"error of the best $\hat x_0$", title="twice as wide, exactly 2 as shift")  # fmt: skip

# %% [markdown]
# ## 5. DiT: the picture as a row of tokens
#
# A U-Net is built on two beliefs: near things matter first, and one should look from afar as well. Peebles & Xie (2023) tried
# to do without. Cut the picture into **patches** of p × p pixels, let a matrix make a token of each, and send the row through
# a transformer like chapter 14's blocks: no halving, no skips, one width all the way. One thing gets lost. Attention is a
# sum over tokens and does not know their order. **Expected:** shuffle the patches of a picture, and without positions the
# answer is merely shuffled in the same way.


# %%
class PatchEmbedding(nn.Module):
    """(B, C, H, W) -> (B, N, dim): a token per patch, plus sines and cosines of its column and of its row."""

    def __init__(self, channels, dim, patch, size):
        super().__init__()
        self.project = nn.Conv2d(channels, dim, patch, stride=patch)  # the patches do not overlap: a matrix for each
        line = md.nets.sinusoidal(torch.arange(size // patch), dim // 2, sin_first=True)
        self.register_buffer("positions", line.repeat(2, 1, 1))

    def forward(self, x):
        tokens = self.project(x)
        (h, w), n = tokens.shape[2:], self.positions.shape[1]
        left, top = (n - w) // 2, (n - h) // 2  # the middle of the square it has positions for
        column = self.positions[0, left : left + w].expand(h, w, -1)
        row = self.positions[1, top : top + h, None].expand(h, w, -1)
        return tokens.flatten(2).transpose(1, 2) + torch.cat([column, row], dim=2).flatten(0, 1)


def shaken(net, seed=0):
    """Random numbers in every parameter, also where a new network has zeros."""
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        spread = p[0].numel() ** -0.5 if p.ndim > 1 else 0.2
        p.data += spread * torch.randn(p.shape, generator=generator)
    return net.eval().requires_grad_(False)


def move_patches(x, order, patch):
    """The picture with its patches in another order: (B, C, H, W)."""
    cells = x.unfold(2, patch, patch).unfold(3, patch, patch)  # (B, C, h, w, p, p)
    moved = cells.flatten(2, 3)[:, :, order].unflatten(2, cells.shape[2:4])
    return moved.transpose(3, 4).flatten(4).flatten(2, 3)


# %%
torch.manual_seed(SEED)
scene, t = md.data.from_pixels(pixels[:1]), torch.tensor([500.0])
order = torch.randperm(64)
mixed, shown, differ = move_patches(scene, order, 4), [scene, move_patches(scene, order, 4)], {}
for name in ("without positions", "with positions"):
    net = shaken(md.DiT(size=32, patch=4, dim=64, depth=2))
    net.embed.positions *= name == "with positions"
    answers = move_patches(net(scene, t), order, 4), net(mixed, t)
    differ[name] = ((answers[0] - answers[1]).norm() / answers[0].norm()).item()
    means = [avg_pool2d(answer, 4) for answer in answers]  # a colour for each patch
    shown += [interpolate((m - m.mean((2, 3), keepdim=True)) / (2 * m.std()), scale_factor=4) for m in means]
print({name: f"{d:.1e}" for name, d in differ.items()}, "(relative difference)")
assert differ["without positions"] < 1e-4 < 0.1 < differ["with positions"]
columns = ["picture", "shuffled", *2 * ["answered, then shuffled", "shuffled, then answered"]]
titles = columns[:2] + [f"{name}: {how}" for name, how in zip([n for n in differ for _ in "12"], columns[2:], strict=True)]
md.plot.show_images(torch.cat(shown), titles=titles, columns=6)

# %% [markdown]
# So each token is told its place: half of the numbers say its column, half its row, in sines and cosines of many
# wavelengths, as chapter 03 tells a network the time. They are fixed. How alike two places are is the dot product of their
# vectors, and that falls off with distance in every direction. A picture that is not square takes its positions **from the
# middle** of the largest square, as Stable Diffusion 3 does, so that its centre is called what the centre was always called.

# %%
net = shaken(md.nets.PatchEmbedding(3, 64, 4, 64))
ours = PatchEmbedding(3, 64, 4, 64)
ours.load_state_dict(net.state_dict())
for shape in ((64, 64), (32, 64), (12, 20)):
    x = torch.randn(2, 3, *shape)
    assert_close(ours(x), net(x))
whole, half = (net(torch.zeros(1, 3, h, 64))[0] - net.project.bias for h in (64, 32))  # of black pictures: positions only
whole, half = whole.unflatten(0, (16, 16)), half.unflatten(0, (8, 16))
assert_close(half, whole[4:12])  # 8 of 16 rows, the ones in the middle
alike, wide = torch.einsum("hwd,d->hw", whole, whole[7, 4]) / 32, torch.full((16, 16), torch.nan)
wide[4:12] = torch.einsum("hwd,d->hw", half, whole[7, 4]) / 32
with matplotlib.rc_context(md.plot.STYLE | {"axes.grid": False}):
    figure = md.plot.Picture(figsize=(9.5, 4.2), dpi=md.plot.DPI, layout="constrained")
    for axes, picture, title in zip(figure.subplots(1, 2), (alike, wide), ("64 × 64", "32 × 64: the middle rows"), strict=True):
        shades = axes.imshow(picture, cmap="Blues", vmin=alike.min(), vmax=1)
        axes.plot(4, 7, "x", color=md.plot.CURVES[1], markersize=12, markeredgewidth=3)
        axes.set(title=title, xlabel="column of patches", ylabel="row")
    figure.colorbar(shades, ax=figure.axes, label="likeness to the cross")
figure.to(None)

# %% [markdown]
# **What time is it?** A U-Net adds the time to its features. DiT lets it *set the dials*: a LayerNorm without weights of its
# own is followed by $x \mapsto (1 + \text{scale})\,x + \text{shift}$, and each branch ends in a **gate** that multiplies it.
# All six vectors of a block are computed from the embedding of $t$ (adaptive LayerNorm; Peebles & Xie 2023, section 3.2). The
# layer that computes them starts at **zero**. So all gates are closed, each block is the identity, however many are
# stacked, and the whole network answers 0.


# %%
class Modulation(nn.Module):
    """(B, dim) -> n vectors (B, 1, dim), all zero at first."""

    def __init__(self, dim, n):
        super().__init__()
        self.n, self.linear = n, zero(nn.Linear(dim, n * dim))

    def forward(self, emb):
        return self.linear(silu(emb))[:, None].chunk(self.n, dim=2)


def modulate(x, shift, scale):
    """LayerNorm whose weight and bias are told, not learned."""
    return layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class DiTBlock(nn.Module):
    """Look around, then think, both as the embedding says: (B, N, dim), (B, dim) -> (B, N, dim)."""

    def __init__(self, dim, heads=None, qk_norm=False):
        super().__init__()
        self.modulation = Modulation(dim, 6)
        self.attention = GatedAttention(dim, heads, qk_norm)  # chapter 14's SelfAttention, with biases
        self.mlp = mlp(dim)

    def forward(self, x, emb):
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(emb)
        x = x + gate_1 * self.attention(modulate(x, shift_1, scale_1))
        return x + gate_2 * self.mlp(modulate(x, shift_2, scale_2))


class FinalLayer(nn.Module):
    """Tokens as a picture again: (B, N, dim), (B, dim), its size (H, W) -> (B, out, H, W). Starts by answering 0."""

    def __init__(self, dim, out_channels, patch):
        super().__init__()
        self.modulation, self.patch = Modulation(dim, 2), patch
        self.linear = zero(nn.Linear(dim, patch * patch * out_channels))

    def forward(self, tokens, emb, size):
        p, h = self.patch, size[0] // self.patch
        x = self.linear(modulate(tokens, *self.modulation(emb)))  # (B, N, p * p * out)
        x = x.unflatten(2, (p, p, -1)).unflatten(1, (h, -1))  # (B, h, w, p, p, out)
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


# %%
tokens, emb = torch.randn(2, 64, 128), torch.randn(2, 128)
assert_close(DiTBlock(128)(tokens, emb), tokens, rtol=0, atol=0)  # new: the identity
assert not md.DiT(dim=128, depth=8)(torch.randn(2, 3, 32, 32), torch.rand(2)).any()  # new: 0
for ours, theirs, asked in [(DiTBlock(128), md.nets.DiTBlock(128), (tokens, emb)),
                            (FinalLayer(128, 3, 4), md.nets.FinalLayer(128, 3, 4), (tokens, emb, (32, 32)))]:  # fmt: skip
    ours.load_state_dict(shaken(theirs).state_dict())
    assert theirs(*asked).std() > 0.1
    assert_close(ours(*asked), theirs(*asked), rtol=1e-4, atol=1e-5)
print("a new block is the identity, a new network answers 0; ours and the library's agree")

# %% [markdown]
# Does zero matter? Train a small DiT twice, once with these layers started at random as any other. **Expected:** the zero start
# begins below, for it need not unlearn its own noise; and then the random one *overtakes* it, for closed gates must first open.


# %%
def small_dit(random, seed=0):
    """A DiT for 16 x 16 pictures; random: its zeros replaced by PyTorch's usual start."""
    torch.manual_seed(seed)
    net = md.DiT(size=16, patch=4, dim=64, depth=8)
    if random:
        for part in (*(m.linear for m in net.modules() if isinstance(m, md.nets.Modulation)), net.final.linear):
            part.reset_parameters()
    return net


# %%
curves = {}
for name in ("adaLN-zero", "random"):
    trainer = md.Trainer(small_dit(name == "random"), lambda net, x, y: md.diffusion_loss(net, x, flow, "flow"),
                         md.TrainConfig(steps=ZERO_STEPS, optimizer="adamw", lr=1e-3))  # fmt: skip
    curves[name] = trainer.fit(((small[rows], None) for rows, _ in pick(len(small), 64, SEED)))
window = max(1, ZERO_STEPS // 10)
smooth = {name: np.convolve(values, np.ones(window) / window, mode="valid") for name, values in curves.items()}
print({name: f"first {values[0]:.2f}, last {values[-1]:.3f}" for name, values in smooth.items()})
if LONG:
    assert smooth["adaLN-zero"][0] < smooth["random"][0] and smooth["random"][-1] < smooth["adaLN-zero"][-1]
md.plot.show_curves({name: (np.arange(len(v)) + window, v) for name, v in smooth.items()}, xlabel="step", yscale="log",
                    ylabel=f"loss, mean of {window} steps", title="closed gates, or random ones")  # fmt: skip

# %% [markdown]
# So at eight blocks of 64 it is no help. Peebles & Xie measure a large one with 28 blocks of 1152, trained more than a
# thousand times longer. A trick for large networks cannot be judged on small ones, in either direction.

# %% [markdown]
# ## 6. MMDiT: the words join the row
#
# How does a sentence get into a transformer? Simplest: append its tokens to the row of patches. Then one matrix has to
# make queries of patches *and* of words, which have little in common. Stable Diffusion 3 gives each kind **its own weights**
# for everything, norms, queries, MLP, and lets them meet in one place: a single softmax over patches and words together
# (Esser et al. 2024, figure 2). "MM" is for multi-modal.


# %%
class JointAttention(nn.Module):
    """Two attentions that are one: own q, k, v for each kind of token, one softmax over all."""

    def __init__(self, dim, heads=None, qk_norm=False, last=False):
        super().__init__()
        self.image, self.text = (GatedAttention(dim, heads, qk_norm) for _ in range(2))
        if last:
            self.text.to_out = None  # nobody asks the words again

    def forward(self, image, text):
        q, k, v = (torch.cat(both, dim=2) for both in zip(self.image.qkv(image), self.text.qkv(text), strict=True))
        out = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, N + L, dim)
        seen, read = out[:, : image.shape[1]], out[:, image.shape[1] :]
        return self.image.to_out(seen), self.text.to_out and self.text.to_out(read)


class JointBlock(nn.Module):
    """A DiTBlock for the image beside a DiTBlock for the text, except that they attend together."""

    def __init__(self, dim, heads=None, qk_norm=False, dual=False, last=False):
        super().__init__()
        self.image_modulation, self.text_modulation = Modulation(dim, 9 if dual else 6), Modulation(dim, 2 if last else 6)
        self.attention = JointAttention(dim, heads, qk_norm, last)
        self.image_attention = GatedAttention(dim, heads, qk_norm) if dual else None  # SD 3.5 medium
        self.image_mlp, self.text_mlp = mlp(dim), None if last else mlp(dim)

    def forward(self, image, text, emb):
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2, *dual = self.image_modulation(emb)
        shift, scale, *others = self.text_modulation(emb)
        seen, read = self.attention(modulate(image, shift_1, scale_1), modulate(text, shift, scale))
        again = dual[2] * self.image_attention(modulate(image, *dual[:2])) if dual else 0
        image = image + gate_1 * seen + again
        image = image + gate_2 * self.image_mlp(modulate(image, shift_2, scale_2))
        if read is None:
            return image, None
        gate_1, shift_2, scale_2, gate_2 = others
        text = text + gate_1 * read
        return image, text + gate_2 * self.text_mlp(modulate(text, shift_2, scale_2))


# %%
image, text = torch.randn(2, 64, 128), torch.randn(2, 14, 128)
for options in ({}, {"last": True}, {"qk_norm": True, "dual": True}):
    theirs, ours = shaken(md.nets.JointBlock(128, **options)), JointBlock(128, **options)
    ours.load_state_dict(theirs.state_dict())
    for mine, wanted in zip(ours(image, text, emb), theirs(image, text, emb), strict=True):
        assert (mine is None) == (wanted is None)
        if mine is not None:
            assert_close(mine, wanted, rtol=1e-4, atol=1e-5)
other = torch.cat([-image[:, :1], image[:, 1:]], dim=1)
heard = (theirs(other, text, emb)[1] - theirs(image, text, emb)[1]).abs().max()
print(f"change one patch, and the words change too: by {heard:.2f}")
assert heard > 1e-3

# %% [markdown]
# | one layer | Stable Diffusion 1: `SpatialTransformer` | Stable Diffusion 3: `JointBlock` |
# |---|---|---|
# | who looks at whom | pixels at pixels, *then* pixels at words | patches and words at patches and words, in one softmax |
# | the words | the same at every layer | change with the picture, layer by layer |
# | the time | not here; added in the ResNetBlock before | shift, scale and gate of every branch |
# | sum of the prompt | none | added to the time |
# | between them | convolutions, halvings, skips | nothing; the next block |
#
# A cross-attention can only ask the words as they came from the encoder. Here a word is asked, answers, and has seen the
# picture when it is asked again: "left" may learn which thing *is* on the left. The price is that nothing about the prompt can
# be computed once and kept, as chapter 14's `Memory` did, for the words are different at every step of the walk.
#
# The last row but one deserves a line. A single vector for the whole prompt, `pooled`, is added to the time's
# embedding. It is chapter 14's bag of words. It cannot say what belongs to what, but knows the style, and it reaches every
# dial at once. The tokens say the rest.
#
# ## 7. Three networks, one loop
#
# Now the comparison: chapter 14's U-Net, a DiT that has the words in its row, and an MMDiT, each of about two million
# parameters. Data, loss, trainer, guidance, sampler are the same lines for all three. In so short a run a network draws better
# if it answers with the picture and is held to the error of the flow (chapter 03; Li & He 2025); so all three do.


# %%
class Words(nn.Module):
    """Word numbers (B, L) -> tokens (B, L, width): what the word is, plus where it stands."""

    def __init__(self, vocabulary, length, width):
        super().__init__()
        self.word, self.place = nn.Embedding(vocabulary, width), nn.Embedding(length, width)

    def forward(self, ids):
        return self.word(ids) + self.place.weight[: ids.shape[1]]


class TextToImage(nn.Module):
    """net(xt, t, words): a network and its reader of words, trained together. pooled: the mean of the tokens, too."""

    def __init__(self, net, vocabulary, length, width, pooled=True):
        super().__init__()
        self.text, self.net, self.pooled = Words(vocabulary, length, width), net, pooled

    def forward(self, xt, t, words):
        context = self.text(words)
        told = {"pooled": context.mean(1)} if self.pooled else {}
        return self.net(xt, t, context=context, **told)


def word_numbers(captions, vocabulary):
    """Captions of L words each -> word numbers (B, L)."""
    return torch.tensor([[vocabulary[word] for word in c.split()] for c in captions])


def fit(net, pixels, ids, steps, batch, seed, device, look):
    """Train on rectified flow, one caption in ten left empty: the averaged network, all losses, and eight (step, look(net))."""
    net, ids, seen = net.to(device), ids.to(device), []

    def loss(net, x, y):
        empty = (torch.rand(len(y), 1) < 0.1).to(device)
        words = ids[y].masked_fill(empty, 0)
        return md.diffusion_loss(net, x, md.Schedule.flow(shift=3.0), "x0", measured="flow", words=words)

    def note(trainer):
        seen.append((trainer.step, look(trainer.ema.net)))

    trainer = md.Trainer(net, loss, md.TrainConfig(steps=steps, lr=4e-3, seed=seed, every=max(1, steps // 8)))
    images = md.data.Images(pixels, torch.arange(len(pixels)))  # the "label" of a scene is its number
    losses = trainer.fit(md.data.batches(images, batch, device, seed=seed), after=note)
    note(trainer)
    return trainer.ema.net, losses, seen


# %% [markdown]
# The oracle judges as in chapter 14: are both things there, and is each on its side? Chance is 6 % and 3 %. It looks eight
# times in the course of each training, at one drawing for every sentence.


# %%
def draw(net, ids, start, steps, scale, shift=3.0):
    """Images that `net` makes of the noise `start` for the captions `ids`, guided away from the empty caption."""
    denoise = md.classifier_free(net, {"words": ids}, {"words": torch.zeros_like(ids)}, scale, "x0")
    levels = md.Schedule.flow(shift=shift).levels(steps, "trailing")
    return md.sample(md.ddim, denoise, start, levels).clamp(-1, 1)


def obeyed(images, wanted):
    """(B, 2): are both things there, and are they on the right sides too?"""
    verdict = []
    for things, (a, b) in zip(md.data.read_shapes(images, 0.1), wanted, strict=True):
        across = {(thing.colour, thing.shape): thing.x for thing in things}
        there = a in across and b in across
        verdict.append((there, there and across[a] < across[b]))
    return torch.tensor(verdict).float()


# %%
words = sorted(set(" ".join(caption(s) for s in scenes).split()))
vocabulary = {word: i + 1 for i, word in enumerate(words)}
table, nets, losses, seen = word_numbers([caption(s) for s in scenes], vocabulary), {}, {}, {}
wanted = [asks[i % 36] for i in range(MANY)]
ids = word_numbers([caption(s) for s in tests], vocabulary).to(device)
begin = torch.randn(MANY, 3, 32, 32, generator=torch.Generator().manual_seed(SEED + 1)).to(device)


def look(net):
    """The share of drawings, one for each sentence, in which both things stand on their sides."""
    return obeyed(draw(net, ids[:36], begin[:36], GLANCE, SCALE).cpu(), wanted[:36])[:, 1].mean().item()


shape = {"channels": CHANNELS, "attention": (False, True, True), "layers": 1, "patch": 2, "shortcut": True}
told = {"size": 32, "patch": 4, "dim": DIM, "context_dim": WIDTH, "pooled_dim": WIDTH}
makers = {
    "U-Net": lambda: md.UNet(3, 3, context_dim=WIDTH, **shape),
    "DiT": lambda: md.DiT(3, 3, depth=6, **told),
    "MMDiT": lambda: md.MMDiT(3, 3, depth=4, heads=None, **told),
}
for name, make in makers.items():
    torch.manual_seed(SEED)
    net = TextToImage(make(), len(vocabulary) + 1, table.shape[1], WIDTH, pooled=name != "U-Net")
    net.to(memory_format=torch.channels_last if name == "U-Net" else torch.contiguous_format)
    print(f"{name}: {sum(p.numel() for p in net.parameters()):,} parameters")
    nets[name], losses[name], seen[name] = fit(net, pixels, table, STEPS, BATCH, SEED, device, look)

# %% [markdown]
# Which is ahead? **Expected:** after 200 steps of 16 pictures the U-Net, its loss is two thirds of theirs. After 1600 all
# three are within a quarter of each other.

# %%
window = max(1, STEPS // 20)
smooth = {name: np.convolve(values, np.ones(window) / window, mode="valid") for name, values in losses.items()}
print({name: round(float(values[-1]), 4) for name, values in smooth.items()}, f"(mean of the last {window} steps)")
if LONG:
    early, late = ([values[k] for values in smooth.values()] for k in (STEPS // 8 - window, -1))
    assert early[0] < 0.8 * min(early[1:]) and max(late) < 0.1 and max(late) < 1.25 * min(late)
md.plot.show_curves({name: (np.arange(len(v)) + window, v) for name, v in smooth.items()}, xlabel="step", yscale="log",
                    ylabel=f"loss, mean of {window} steps", title="same loop, three networks")  # fmt: skip


# %%
drawings = {name: draw(net, ids, begin, WALK, SCALE).cpu() for name, net in nets.items()}
choice = [k * (min(MANY, 40) // 8) for k in range(8)]
md.plot.show_images(
    torch.cat([drawings[name][choice] for name in nets]), row_labels=list(nets), columns=8,
    titles=3 * [" ".join((*wanted[i][0], "left of", *wanted[i][1])) for i in choice],
)  # fmt: skip

# %% [markdown]
# The oracle marks them all, and below are its eight looks on the way. **Expected:** at the end all three networks above 95 %,
# also for the six sentences that they never read. But after 200 steps the U-Net is right in most drawings, and the
# transformers in hardly any; after 600 all obey.

# %%
marks = {"real scenes": obeyed(md.data.from_pixels(test_pixels), wanted)}
marks |= {name: obeyed(images, wanted) for name, images in drawings.items()}
new = torch.tensor([i % 36 in held for i in range(MANY)])
for name, mark in marks.items():
    scores = ", ".join(f"{m:.0%}" for m in mark.mean(0)) + " (things; things and sides)"
    print(f"{name:12} {scores}; sentences never read: " + (f"{mark[new].mean(0)[1]:.0%}" if new.any() else "none drawn"))
assert marks["real scenes"].mean() > 0.97
if LONG:
    assert all(marks[name].mean(0)[1] > 0.95 and marks[name][new].mean(0)[1] > 0.85 for name in nets)
    first, third = ([looks[k][1] for looks in seen.values()] for k in (0, 2))
    assert first[0] > 0.5 > 0.2 > max(first[1:]) and min(third) > 0.85
md.plot.show_curves({name: tuple(zip(*looks, strict=True)) for name, looks in seen.items()}, xlabel="step",
                    ylabel="share of drawings", title="both things, on their sides")  # fmt: skip

# %% [markdown]
# The oracle cannot tell the three apart, and a U-Net was never needed. What it has is a head start. A convolution knows from
# the first step that neighbours belong together and that a circle is a circle anywhere; a transformer has to find both out
# from data, and that takes it twice as long here. With more data the start counts for less, and what a network makes of more
# of everything counts for more. Peebles & Xie find that more multiplications, by more blocks or smaller patches, keep
# lowering the distance to real pictures; Esser et al. find the same up to 8 billion parameters, and that MMDiT passes both
# the plain DiT and a transformer with cross-attention. Our task is too easy to repeat that, or to deny it.
#
# **Which word does a patch look at?** In a joint attention the weights are a square: patches and words as rows, patches
# and words as columns. The upper right block is chapter 14's map, and the other three are new. Below it is a mean over heads
# and layers, for one noisy scene; each small square is a patch of 4 × 4 pixels.

# %%
some = md.data.from_pixels(test_pixels[:64]).to(device)
level, noise = flow.at(600), torch.randn(some.shape, generator=torch.Generator().manual_seed(SEED)).to(device)
with torch.no_grad(), md.nets.attention_maps(nets["MMDiT"].net, md.nets.JointAttention) as maps:
    nets["MMDiT"](md.add_noise(some, noise, level), level.timesteps(some), ids[:64])
square = torch.stack([calls[0].mean(1) for calls in maps.values()]).cpu()  # (layers, B, N + L, N + L)
assert_close(square.sum(-1), torch.ones(square.shape[:-1]), rtol=1e-4, atol=1e-4)
said = caption(tests[0]).split()
looks = square[:, 0, :64, 64:].mean(0).T.unflatten(1, (8, 8))  # (words, 8, 8) of the first scene
low, high = looks.amin((1, 2), keepdim=True), looks.amax((1, 2), keepdim=True)
asked = [2, 3, 4, 8, 9, 13]
grey = interpolate((2 * (looks - low) / (high - low) - 1)[asked, None], scale_factor=4).expand(-1, 3, -1, -1)
md.plot.show_images(torch.cat([some[:1].cpu(), grey]), titles=["scene", *(said[i] for i in asked)], columns=7,
                    title="white: the patches that read this word most")  # fmt: skip

# %% [markdown]
# And how much of its attention does each kind spend on the other? If all looked at all alike, every row would give the words
# their share of the tokens, 14 of 78. What lies above or below that has been learned.

# %%
kinds_of = {"patch → patches": (slice(64), slice(64)), "patch → words": (slice(64), slice(64, None)),
            "word → patches": (slice(64, None), slice(64)), "word → words": (slice(64, None), slice(64, None))}  # fmt: skip
share = {name: square[:, :, a, b].sum(-1).mean((1, 2)) for name, (a, b) in kinds_of.items()}
print({name: [f"{s:.0%}" for s in layers] for name, layers in share.items()}, "layer by layer")
assert_close(share["patch → patches"] + share["patch → words"], torch.ones(len(square)), rtol=1e-4, atol=1e-4)
print(f"of {square.shape[-1]} tokens, words are {14 / square.shape[-1]:.0%}")

# %% [markdown]
# ## 8. What changed from Stable Diffusion 1 to 3
#
# All counts are taken from the networks themselves, on the *meta* device, where tensors have shapes and no contents.
# **Expected:** 859,520,964 parameters for the U-Net, 2,028,328,000 for the MMDiT of SD3-medium.

# %%
with torch.device("meta"):
    parts = {
        "network": (md.UNet(4, 4, channels=(320, 640, 1280, 1280), attention=(True, True, True, False), context_dim=768,
                            heads=8, groups=32), md.MMDiT()),
        "text encoder": (md.nets.CLIPText(), md.nets.CLIPText(projection=768)),
        "second text encoder": (None, md.nets.CLIPText(dim=1280, layers=32, heads=20, activation="gelu", projection=1280)),
        "VAE": (md.nets.VAE(), md.nets.VAE(latent_channels=16, quant_conv=False, scale=1.5305, shift=0.0609)),
    }  # fmt: skip
count = {name: [sum(p.numel() for p in part.parameters()) if part else 0 for part in both] for name, both in parts.items()}
print(f"{'':20} {'version 1':>15} {'version 3':>15}")
for name, (one, three) in count.items():
    print(f"{name:20} {one:15,} {three:15,}")
assert count["network"] == [859_520_964, 2_028_328_000]
convolutions = [sum(isinstance(m, nn.Conv2d) for m in net.modules()) for net in parts["network"]]
print("convolutions in the network:", convolutions)
assert convolutions[0] > 50 and convolutions[1] == 1  # the one that cuts patches, which is a matrix

# %% [markdown]
# | | Stable Diffusion 1 | Stable Diffusion 3 (medium) |
# |---|---|---|
# | schedule | VP, scaled linear, 1000 levels; stops at 7 % image | flow, $\sigma$ from 1; reaches pure noise |
# | the network answers | $\epsilon$ | $\epsilon - x_0$ |
# | levels in training | uniform | logit-normal |
# | levels in sampling | 50, from the table | 28, even, then shifted by 3 |
# | network | U-Net: 859.5 million | MMDiT, 24 blocks of 1536: 2028 million. **No U-Net** |
# | convolutions | at every level | none that looks at a neighbour |
# | text encoders | one CLIP | two CLIPs, and T5 (4.7 billion), which may be left out |
# | where text enters | keys and values in 16 layers | tokens in the row; `pooled` in every dial |
# | VAE | 4 channels, scaled | 16 channels, shifted and scaled |
# | sampler, guidance, inversion, training loop | ours | **the same lines** |
#
# The last row is the point of the library, and of this course.

# %%
if MODEL:
    dtype = torch.float16 if device == "cuda" else torch.float32
    pipe = md.StableDiffusion3.from_pretrained(MODEL, dtype, device)
    prompt = "a large red circle left of a large blue square, flat colours, white background"
    picture = pipe(prompt, generator=torch.Generator().manual_seed(SEED)).float().cpu()
    display(md.plot.show_images(picture, titles=[prompt]))
else:
    print("MINIDIFF_SD3 names no folder: nothing was loaded")

# %% [markdown]
# With `MINIDIFF_SD3` set to a folder in diffusers' format, or to its name on the hub, the cell above draws with the real
# weights. (The originals ask you to accept a licence first.)
#
# ## 9. Five bugs you will meet
#
# None raises an error. The exact denoiser plays a perfectly trained network here, so all damage is the bug's.
#
# - **The sign.** In many papers time runs from noise to data and the flow is $x_0 - \epsilon$. Weights from there, read as
#   ours, walk away from the data: many points collapse into the middle, some are flung out. **Expected:** an error above 3.
# - **Alpha and sigma swapped**, the same quarrel about direction, in the schedule: the network is told $1 - \sigma$. And **the
#   clock**: it learned $t = 1000\,\sigma$ and is told $\sigma \in [0, 1]$; to it, all is nearly clean. **Expected:** ends
#   wrong by more than 0.15. The swap is the mildest, and the hardest to find: a ring comes out, only too small.


# %%
def trained(x, t):
    """What a perfectly trained network would answer: net(x, t), the flow at t = 1000 sigma."""
    x0, eps = exact(x, flow.at(t))
    return eps - x0


nets_with = {"right": trained, "sign": lambda x, t: -trained(x, t), "alpha, sigma swapped": lambda x, t: trained(x, 1000 - t),
             "t in [0, 1]": lambda x, t: trained(x, t / 1000)}  # fmt: skip
results = {name: walk(md.denoiser(net, "flow"), start, even[32]) for name, net in nets_with.items()}
damage = {name: (result - ends).square().mean().sqrt().item() for name, result in results.items()}
print({name: round(value, 3) for name, value in damage.items()})
assert damage["right"] < 0.02 and damage["sign"] > 3 and min(list(damage.values())[1:]) > 0.15
scatter(results, ring, limit=3.0)

# %% [markdown]
# **The shift forgotten** in sampling, or **applied twice**: once to the levels, and again by a scheduler that reads its own
# configuration. For these we take pictures, the scenes. **Expected:** twice 3 is 9. At four steps, forgetting costs a third
# more error or worse, because a picture's contents are decided high up. Nine does no harm here: such a bug is found by
# printing the levels, not by looking at pictures.

# %%
sigma = torch.linspace(0.05, 0.95, 19)
assert_close(shifted(shifted(sigma, 3), 3), shifted(sigma, 9))
pictures, noise = md.DatasetDenoiser(small[:500], std=0.05), torch.randn(32, 3, 16, 16, generator=generator)
truth = walk(pictures, noise, md.Schedule.flow(shift=3.0).levels(200, "trailing"))
steps, damage = [4, 8, 16, 32, 64], {}
for k in (1.0, 3.0, 9.0):
    results = [walk(pictures, noise, md.Schedule.flow(shift=k).levels(n, "trailing")) for n in steps]
    damage[f"shift {k:.0f}"] = [(result - truth).square().mean().sqrt().item() for result in results]
print({name: [round(value, 2) for value in values] for name, values in damage.items()})
assert damage["shift 1"][0] > 1.3 * damage["shift 3"][0] and damage["shift 9"][0] < 1.3 * damage["shift 3"][0]
md.plot.show_curves({name: (np.log2(steps), values) for name, values in damage.items()}, ylabel="error of the ends",
                    xlabel=r"$\log_2$ of the number of steps", title="the shift is for sampling, too")  # fmt: skip

# %% [markdown]
# ## 10. What we left out
#
# | left out | where to read it |
# |---|---|
# | flow matching for paths of any shape | Lipman et al. 2023; Albergo & Vanden-Eijnden 2023 |
# | why $q$ and $k$ are normed in version 3.5 | `qk_norm` in `minidiff/nets/dit.py`; Esser et al. 2024, section 5.3.2 |
# | T5, for letters and long prompts | Esser et al. 2024, section 5.3.3 |
# | a picture as 16 channels, and why more channels want a larger network | the same, section 5.2 |
# | captions written by a machine | the same, section 5.2 |
# | predicting $x_0$ and measuring it as flow | `diffusion_loss(measured=...)`; Li & He 2025 |
# | one step by other means | chapter 16's list; consistency and adversarial distillation |
#
# What you wrote is in `minidiff/nets/dit.py` and `mmdit.py`, and the flow is three lines of `minidiff/diffusion/schedule.py`.
# [Exercises](exercises/20_rectified_flow_and_sd3.ipynb): the core of it, from memory.
#
# **Next:** how do you find out that something is wrong when nothing raises an error?

# %%
print(f"torch {torch.__version__}, minidiff {md.__version__}, {device}")
