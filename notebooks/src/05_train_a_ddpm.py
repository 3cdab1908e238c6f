# %% [markdown]
# # 05 · Train a DDPM on images
#
# **How do thousands of images become a network that draws new ones?**
#
# In chapter 03 a small network learned to denoise points in the plane, and a walk from noise to data drew new ones. An image
# is a point too. A grey one of 32 × 32 pixels has 1024 coordinates where a point had 2, and nothing in the theory minds:
# the noise, the loss and the sampler never ask how long a vector is. So this chapter should be one line long.
#
# It is not, for two reasons. A network that treats an image as a list of numbers has to find out for itself that
# neighbouring pixels belong together. And a network large enough to draw needs to be trained with some care: a learning rate
# that rises and falls, a bound on the gradients, an average of the weights. You will write that care by hand, see what
# each part buys, train, and then ask the two questions that every set of generated pictures deserves: *are they
# copies?* and *how good are they, in a number?*

# %% [markdown]
# > **For the lecturer.** 75 minutes: 10 for the naive attempt, 10 for the U-Net, 20 for the loop, 15 for the run and its
# > key picture, 20 for copying and the Fréchet distance; the bugs are homework. The whole takes eight minutes on two CPU
# > cores, half of it in one cell: start it before the talk about the loop.
# >
# > Worth asking before the cell is run: *what will a network draw that does not know which pixels are neighbours?*
# > (naive attempt) · *what is the loss of a network that has learned nothing?* (the U-Net) · *how much of an average over 600
# > steps is the untrained network?* (EMA) · *what does the best network in the world answer to pure noise?* (where it is hard).

# %%
import copy
import math
import os
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.testing import assert_close
from tqdm.auto import tqdm

import minidiff as md

device = "cuda" if torch.cuda.is_available() else "cpu"

# %% [markdown]
# The knobs. Without a folder of data the images are drawn to order; with `MINIDIFF_DATA` naming a folder that holds
# `fashion_mnist/` (parquet, as the Hugging Face hub has it), they are photographs of clothes.

# %% tags=["knobs"]
DATA = os.environ.get("MINIDIFF_DATA", "")  # quick: ""
SEED = 0
SIZE = 32  # pixels to a side; 28 are padded to 32, which halves more often  # quick: 16
IMAGES = 20_000  # to train on  # quick: 320
TEST = 4000  # never trained on  # quick: 160
CHANNELS = (48, 96, 160)  # of the U-Net  # quick: (8, 16, 16)
POCKET = (32, 64)  # of a small one, for the trials  # quick: (16, 32)
BATCH = 64  # quick: 16
SHORT = 180  # steps of a trial  # quick: 12
STEPS = 600  # steps of the run; a multiple of 8  # quick: 16
WALK = 25  # levels that most samples walk  # quick: 4
DRAWN = 256  # samples that a number is computed from  # quick: 24
EPOCHS = 2  # of the judge  # quick: 1
FULL = True  # are the runs long enough for the numbers in the text?  # quick: False

# %% [markdown]
# ## 1. From points to images
#
# Images come as bytes, 0 to 255, in a tensor (N, C, H, W): image, channel, row, column. `from_pixels` maps them to [−1, 1],
# and the choice is not cosmetic, as section 3 will show.

# %%
if DATA:
    which, folder = "Fashion-MNIST", Path(DATA) / "fashion_mnist"
    train_set = md.data.load_images(folder, size=SIZE, limit=IMAGES)
    test_set = md.data.load_images(folder, size=SIZE, split="test", limit=TEST)
else:
    which, drawn = "Shapes", [md.data.Shapes(n, size=SIZE, seed=s) for n, s in ((IMAGES, SEED), (TEST, SEED + 1))]
    train_set, test_set = (md.data.Images(*scenes.tensors(), scenes.classes) for scenes in drawn)
x_test = md.data.from_pixels(test_set.pixels).to(device)
channels = x_test.shape[1]
print(f"This run is on {which}: {train_set} to train on, {len(test_set)} kept apart.")
print(f"mean {x_test.mean():.2f}, variance {x_test.var():.2f}")
md.plot.show_images(md.data.from_pixels(train_set.pixels[:16]), columns=8, title=f"{which}: what we have")

# %% [markdown]
# What this chapter expects depends on the data, so here are its numbers for both, before anything is run. Each is explained
# where it is used.

# %%
expected = {
    "Fashion-MNIST": {"first": 0.88, "top": 0.27, "held out": 0.125, "fd": 20.0, "novelty": 1.1},
    "Shapes": {"first": 0.72, "top": 0.43, "held out": 0.048, "fd": 97.0, "novelty": 1.05},
}[which]

# %% [markdown]
# ## 2. The naive attempt
#
# Flatten the images, and hand them to a network like that of chapter 03: some linear layers, and the
# timestep beside the image. The loop is the plainest there is: draw images, draw levels, draw noise, ask, compare, step
# (DDPM, algorithm 1). `diffusion_loss`, from chapter 03, is the middle four of these.


# %%
class PixelMLP(nn.Module):
    """net(xt, t) for images of so many values, each seen as a list of numbers. (B, C, H, W), (B,) -> (B, C, H, W)"""

    def __init__(self, values, width=1024):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(values + 64, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, values)
        )  # fmt: skip

    def forward(self, xt, t):
        return self.body(torch.cat([xt.flatten(1), md.nets.sinusoidal(t, 64)], dim=1)).view_as(xt)


def train_plainly(net, feed, loss, steps, lr):
    """Draw, ask, compare, step. The losses, one a step."""
    optimizer, losses = torch.optim.Adam(net.parameters(), lr), []
    for step in tqdm(range(steps), leave=False):
        torch.manual_seed(step)
        value = loss(net, *next(feed))
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    return losses


def pictures(net, noise, levels, predicts="v", clip=None):
    """Where a deterministic walk (DDIM) from this noise ends. The same noise gives the same picture."""
    return md.sample(md.ddim, md.denoiser(net, predicts, clip), noise, levels, progress=False)


# %% [markdown]
# The walk here is DDIM's because it draws nothing on its way: two networks that start from the same noise can be compared
# picture by picture. Chapter 06 explains it; at the end we also walk as DDPM does. The networks predict $v$, for which
# section 5 gives the reason.

# %%
schedule = md.Schedule.cosine()
levels = schedule.levels(WALK, "trailing")  # from t = 999, pure noise
noise = torch.randn(DRAWN, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(SEED)).to(device)


def feed():
    return md.data.batches(train_set, BATCH, device, seed=SEED)


def v_loss(net, x, y=None):
    return md.diffusion_loss(net, x, schedule, "v")


torch.manual_seed(SEED)
naive = PixelMLP(noise[0].numel()).to(device)
train_plainly(naive, feed(), v_loss, SHORT, lr=1e-3)
drawn = {"linear layers": pictures(naive, noise, levels)}
md.plot.show_images(torch.cat([x_test[:8], drawn["linear layers"][:8]]), row_labels=["real", "linear layers"])

# %% [markdown]
# A suspicion of the right masses, under grain: every pixel was guessed nearly by itself. Put a number on it, the mean
# difference between a pixel and the one below, in units of that of real images. **Expected: more than 2.**


# %%
def grain(x):
    """Mean difference between vertical neighbours: (B, C, H, W) -> number."""
    return (x[:, :, 1:] - x[:, :, :-1]).abs().mean().item()


coarse = grain(drawn["linear layers"].clamp(-1, 1)) / grain(x_test)
print(f"grain of the linear layers: {coarse:.1f} times that of real images")
assert coarse > 2

# %% [markdown]
# ## 3. A network that knows what a neighbour is
#
# The network of DDPM is a **U-Net** (Ronneberger et al. 2015). Chapter 04 takes it apart; four sentences are enough
# to use one.
#
# - **Convolutions**: one small window of weights slides over the whole image, so what is learned about an edge in one
#   place is known everywhere, and neighbours are neighbours by construction.
# - **Down**: the maps shrink and deepen, so that a window of 3 × 3 at the bottom covers most of the picture. A sleeve has
#   to know where the other sleeve is.
# - **Up, with skips**: the answer is needed in pixels, so the maps grow again; and since shrinking forgets where things
#   were, each map of the way down is laid beside its counterpart on the way up.
# - **Time embedding**: at $t = 900$ the task is to invent a picture, at $t = 20$ to remove a film of dust. One network does
#   both, and has to be told which: sinusoids of $t$ enter every block.
#
# Ours is small, for a CPU: `patch=2` folds every 2 × 2 pixels into channels at the door, and `shortcut=True` adds a multiple
# of $x_t$, which depends on $t$ only, to the answer.

# %%
torch.manual_seed(SEED)
net = md.UNet(channels, channels, CHANNELS, (False, True, True), layers=1, patch=2, shortcut=True)
net = net.to(device, memory_format=torch.channels_last)  # the layout in which convolutions are fastest
sizes = []
kinds = (md.nets.ResNetBlock, md.nets.DownSample, md.nets.UpSample)
blocks = [module for module in net.modules() if isinstance(module, kinds)]
hooks = [block.register_forward_hook(lambda block, given, out: sizes.append(out.shape[1:])) for block in blocks]
with torch.no_grad():
    answer = net(noise[:2], torch.tensor([0, 999], device=device))
for hook in hooks:
    hook.remove()
print(f"{sum(p.numel() for p in net.parameters()):,} parameters")
print(" → ".join("×".join(map(str, size)) for size in [noise.shape[1:], *sizes, answer.shape[1:]]))

# %% [markdown]
# Its last layer starts at zero, so an untrained U-Net answers 0 to everything. Then its loss is the mean square of the target,
# which can be worked out before any training:
#
# $$\mathbb E\,|v|^2 = \mathbb E\,|\alpha\,\epsilon - \sigma\,x_0|^2
# = \overline{\alpha^2} + \overline{\sigma^2}\;\overline{x_0^2}
# \approx \tfrac12 + \tfrac12\,\overline{x_0^2}.$$
#
# **Expected: 0.88 on Fashion-MNIST, 0.72 on Shapes.** A run that starts elsewhere has a bug in its data or in its
# target, and you know it after one step. Measure it at a few levels for all, with the same noise every time:


# %%
@torch.no_grad()
def error_at(net, x0, schedule, ts):
    """Mean squared error of a v-network at each timestep of ts, always with the same noise: (len(ts),)."""
    generator, found = torch.Generator().manual_seed(0), []
    for t in ts:
        eps = torch.randn(x0.shape, generator=generator).to(x0)
        found.append(md.diffusion_loss(net, x0, schedule, "v", t=torch.full((len(x0),), t), noise=eps))
    return torch.stack(found).cpu()


ts = list(range(62, 1000, 125))  # the middles of eight equal parts
first, formula = error_at(net, x_test[:64], schedule, ts).mean().item(), 0.5 + 0.5 * x_test[:64].square().mean().item()
print(f"before training: {first:.3f}, by the formula {formula:.3f} for these images")
assert_close(answer, torch.zeros_like(answer), rtol=0, atol=0)
assert abs(first - formula) < 0.02 and abs(0.5 + 0.5 * x_test.square().mean().item() - expected["first"]) < 0.03

# %% [markdown]
# Now the same plain loop, with a pocket edition of this network (`patch=4`) in place of the linear layers. And, since we
# have it in our hands, a second one for the other naive idea: images in [0, 1], as most files of the world have them.



# %%
def pocket_net():
    torch.manual_seed(SEED)
    small = md.UNet(channels, channels, POCKET, (False, True), layers=1, patch=4, shortcut=True)
    return small.to(device, memory_format=torch.channels_last)


plain, zero_one = pocket_net(), pocket_net()
train_plainly(plain, feed(), v_loss, SHORT, lr=2e-3)
train_plainly(zero_one, feed(), lambda net, x, y: v_loss(net, (x + 1) / 2), SHORT, lr=2e-3)
drawn |= {"pocket U-Net": pictures(plain, noise, levels), "on [0, 1] data": pictures(zero_one, noise, levels)}
rows = [x_test[:8], *(x[:8] for x in drawn.values())]
md.plot.show_images(torch.cat(rows), row_labels=["real", *drawn], title=f"after {SHORT} steps each")

# %% [markdown]
# **Expected: less than a third of the weights, and of the grain less than 0.7. On [0, 1] data, pictures that are too bright
# by $\tfrac12(1 - \overline{x_0})$,** which is 0.78 on Fashion-MNIST and 0.47 on Shapes, give or take a third: everything
# downstream takes 0 for mid-grey, so black has turned to fog. Scaling back would help the eye only. Half the contrast is a
# quarter of the variance, so at *every* level the signal-to-noise ratio was a quarter of what the schedule promises.

# %%
weights = {"linear": sum(p.numel() for p in naive.parameters()), "U-Net": sum(p.numel() for p in plain.parameters())}
fine = grain(drawn["pocket U-Net"].clamp(-1, 1)) / grain(x_test)
fog = (drawn["on [0, 1] data"].mean() - x_test.mean()).item()
print(f"parameters: {weights}; grain {fine:.2f}; on [0, 1] data too bright by {fog:.2f}")
if FULL:
    assert weights["U-Net"] < weights["linear"] / 3 and fine < 0.7 * coarse
    assert abs(fog / (0.5 - 0.5 * x_test.mean().item()) - 1) < 1 / 3

# %% [markdown]
# A fraction of the weights, the same number of steps, and the pictures have parts. From here on it is a matter of training
# well.
#
# ## 4. A loop with care
#
# **The learning rate** $\ell$ decides how far a step goes. Adam divides each gradient by its recent size, and in the first
# steps it knows that size from a handful of batches only: so start small and rise over a *warmup*. Near the end, a
# large step only kicks the weights about the place they have found: so fall to zero, along half a cosine (Loshchilov &
# Hutter 2017).
#
# $$\ell_k = \ell\;\cdot\;\min\!\Big(1, \frac{k+1}{\text{warmup}}\Big)\;\cdot\;\frac{1 + \cos(\pi k / \text{steps})}{2}$$


# %%
def lr_at(step, steps, lr=2e-3, warmup=50):
    """Learning rate of step 0 ... steps-1."""
    return lr * min(1.0, (step + 1) / warmup) * (1 + math.cos(math.pi * step / steps)) / 2


ours = [lr_at(k, 600) for k in range(600)]
theirs = [md.TrainConfig(steps=600).lr_at(k) for k in range(600)]
assert_close(ours, theirs)
assert abs(ours[299] - 1e-3) < 1e-5  # half of 0.002 in the middle of the run
md.plot.show_curves({"warmup, then half a cosine": (range(600), ours)}, xlabel="step", ylabel="learning rate")

# %% [markdown]
# **Clipping.** Once in a while a batch is odd and its gradient $g$ ten times too long, and one step undoes a hundred. If the
# norm over *all* parameters together exceeds a bound, shorten $g$ to the bound and keep its direction (Pascanu et al.
# 2013):
#
# $$g \leftarrow g \cdot \min\!\Big(1, \frac{\text{clip}}{|g|}\Big)$$


# %%
def clip_gradients(net, clip=1.0):
    """Hold the norm of all gradients together to `clip`; returns what it was."""
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
    for g in gradients:
        g.mul_((clip / (norm + 1e-6)).clamp(max=1.0))
    return norm.item()


mine, theirs = (nn.Linear(3, 2) for _ in "ab")
theirs.load_state_dict(mine.state_dict())
for layer in (mine, theirs):
    layer(10 * torch.ones(4, 3)).square().sum().backward()
assert_close(torch.tensor(clip_gradients(mine)), nn.utils.clip_grad_norm_(theirs.parameters(), 1.0))
assert_close([p.grad for p in mine.parameters()], [p.grad for p in theirs.parameters()])

# %% [markdown]
# **Averaging.** While the learning rate is high, the weights $w_k$ wander about a good place without settling in it. Their
# average settles (Polyak & Juditsky 1992). A running one needs no memory of the past, a second copy $a$ of the network is
# enough:
#
# $$a_{k+1} = d\,a_k + (1-d)\,w_k \quad\Longrightarrow\quad a_n = d^n w_0 + (1-d)\sum_{k<n} d^{\,n-1-k}\, w_k .$$
#
# It is an *exponential moving average*, **EMA**, and it looks back about $1/(1-d)$ steps. Now the trap. DDPM takes $d = 0.9999$
# for a run of 800 000 steps. Ours has 600, and even with $d = 0.999$ the share of the untrained $w_0$ is
# $0.999^{600}$. **Expected: 0.55.** More than half of the "average" would be the untrained network.
#
# The cure is to begin with a short memory and let it grow: in update $k$, $d_k = \min\!\big(d, \tfrac{1+k}{10+k}\big)$. Then
# the share of the start telescopes to
#
# $$\prod_{k=0}^{n-1}\frac{1+k}{10+k} = \frac{n!\;9!}{(n+9)!} = \binom{n+9}{9}^{-1}.$$
#
# **Expected after 600: 3e-20.**


# %%
class EMA:
    """An exponential moving average of a network's weights; `ema.net` is the network to sample from."""

    def __init__(self, net: nn.Module, decay: float = 0.999):
        self.net = copy.deepcopy(net).requires_grad_(False).eval()
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, net):
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for average, weight in zip(self.net.parameters(), net.parameters(), strict=True):
            average.lerp_(weight, 1 - decay)
        for average, buffer in zip(self.net.buffers(), net.buffers(), strict=True):
            average.copy_(buffer)  # statistics of a BatchNorm, for example: they are averages already


# %%
tiny = nn.Linear(1, 1, bias=False)
nn.init.ones_(tiny.weight)  # the start is 1 ...
ours, theirs, share = EMA(tiny), md.EMA(tiny), 1.0
nn.init.zeros_(tiny.weight)  # ... and everything after it 0: what is left in the average is the start's share
for _ in range(600):
    ours.update(tiny)
    theirs.update(tiny)
    share *= 0.999
assert_close(ours.net.weight, theirs.net.weight, rtol=0, atol=0)
print(f"share of the start after 600 updates: {share:.2f} without the ramp, {ours.net.weight.item():.1e} with it")
assert abs(share - 0.55) < 0.01
assert_close(ours.net.weight.item(), 1 / math.comb(609, 9), rtol=1e-2, atol=0)

# %% [markdown]
# **Seeds.** Every step seeds the generator from (seed, step) alone, so that a run repeats whatever else draws numbers between
# its steps, and a run that was cut can go on exactly where it was.
#
# Together:


# %%
def train(net, feed, loss, steps, lr=2e-3, warmup=50, clip=1.0, seed=0):
    """The averaged network, the losses, and the norms of the gradients before they were clipped."""
    optimizer = torch.optim.AdamW(net.parameters(), lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    ema, losses, norms = EMA(net), [], []
    for step in tqdm(range(steps), leave=False):
        torch.manual_seed(seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, steps, lr, warmup)
        value = loss(net, *next(feed))
        value.backward()
        norms.append(clip_gradients(net, clip))
        optimizer.step()
        optimizer.zero_grad()
        ema.update(net)
        losses.append(value.item())
    return ema.net, losses, norms


# %% [markdown]
# `md.Trainer` is this loop, with accumulated batches, bfloat16 and resuming added. Six steps of both, on the CPU, where nothing
# but rounding can differ: the losses must be equal, and so must the averages.

# %%
ours, theirs = pocket_net().cpu(), pocket_net().cpu()
cpu_feed = [md.data.batches(train_set, 8, seed=SEED) for _ in "ab"]
averaged, losses, _ = train(ours, cpu_feed[0], v_loss, 6, warmup=2)
trainer = md.Trainer(theirs, v_loss, md.TrainConfig(steps=6, warmup=2, optimizer="adamw"))
assert_close(losses, trainer.fit(cpu_feed[1], progress=False), rtol=1e-5, atol=1e-6)
assert_close(list(averaged.parameters()), list(trainer.ema.net.parameters()), rtol=1e-3, atol=1e-4)

# %% [markdown]
# Does the care pay? Two trials with the pocket U-Net and the same batches. First at a bold learning rate, eight times ours,
# where something goes wrong sooner or later. **Expected: the plain loop is thrown back, to a loss above that of the untrained
# network, and ends with an error at least a tenth higher.**

# %%
bold = {"plain loop": pocket_net(), "with care": pocket_net()}
course = {"plain loop": train_plainly(bold["plain loop"], feed(), v_loss, SHORT // 3, lr=0.016)}
_, course["with care"], _ = train(bold["with care"], feed(), v_loss, SHORT // 3, lr=0.016, warmup=SHORT // 12)
held = {name: error_at(some, x_test[:256], schedule, ts).mean().item() for name, some in bold.items()}
print("held out:", {name: round(value, 3) for name, value in held.items()})
print("largest loss:", {name: round(max(losses), 2) for name, losses in course.items()})
if FULL:
    assert held["plain loop"] > 1.1 * held["with care"] and max(course["plain loop"]) > 1.2 * first
md.plot.show_curves({name: (range(len(y)), y) for name, y in course.items()}, xlabel="step", ylabel="loss", yscale="log")

# %% [markdown]
# And at our rate, where nothing goes wrong? **Expected: no gain yet, a difference of less than a quarter either way.** Care
# is paid for in steps: a rate that rises and falls covers half the distance, and an average is behind what it averages. It
# comes back when the run is long enough to wander, as section 6 will measure.

# %%
careful = pocket_net()
averaged, _, norms = train(careful, feed(), v_loss, SHORT, warmup=SHORT // 12)
held = {name: error_at(some, x_test[:256], schedule, ts).mean().item()
        for name, some in {"plain loop": plain, "with care": careful, "with care, averaged": averaged}.items()}  # fmt: skip
print("held out:", {name: round(value, 3) for name, value in held.items()})
print(f"norm of the gradient: median {sorted(norms)[len(norms) // 2]:.2f}, largest {max(norms):.2f}")
if FULL:
    assert all(abs(value / held["plain loop"] - 1) < 0.25 for value in held.values())

# %% [markdown]
# ## 5. What should it predict?
#
# DDPM's networks predict the noise. On the cosine schedule, which is kinder to small images than the linear one (chapter 01),
# that has a price: at its last level $\sigma/\alpha$ is twenty thousand, and $\hat x_0 = (x_t - \sigma\hat\epsilon)/\alpha$
# multiplies the network's error by it. Predicting $v = \alpha\,\epsilon - \sigma\,x_0$ needs no division. Here is the pocket
# U-Net trained on either. **Expected: without clipping, the eps-network's pictures leave [−1, 1] with a standard
# deviation above 2; the v-network's stay near that of the data.**

# %%
eps_net, _, _ = train(
    pocket_net(), feed(), lambda net, x, y: md.diffusion_loss(net, x, schedule, "eps"), SHORT, warmup=SHORT // 12
)
targets = {
    "v": pictures(averaged, noise[:64], levels),
    "eps": pictures(eps_net, noise[:64], levels, "eps"),
    "eps, clipped": pictures(eps_net, noise[:64], levels, "eps", clip=1.0),
}
print("standard deviation:", {name: round(x.std().item(), 2) for name, x in targets.items()}, f"data {x_test.std():.2f}")
if FULL:
    assert targets["eps"].std() > 2 and abs(targets["v"].std() / x_test.std() - 1) < 0.25
md.plot.show_images(torch.cat([x[:8] for x in targets.values()]), row_labels=list(targets))

# %% [markdown]
# DDPM holds $\hat x_0$ to [−1, 1] at every step, which brings the pictures back into range; with a long training they become
# good ones. After so short a one they lag, because at the noisy levels, where a picture is decided, the loss in the noise
# hardly tells a good answer from a bad one. We take $v$ (Salimans & Ho 2022). All else is as it would be with the noise.
#
# ## 6. The run
#
# Now the larger network, by `md.Trainer`. We let it keep its own optimizer, **Muon** (Jordan et al. 2024; `training/muon.py`):
# it takes a gradient for what it is, a matrix, and gives each of its directions the same length, where Adam lets a few
# strong ones rule. All the rest is your loop. On the way, at every eighth, we measure raw and averaged weights on
# held-out images, and keep copies at 1/8, 1/4 and 1/2.

# %%
trainer = md.Trainer(net, v_loss, md.TrainConfig(steps=STEPS, seed=SEED, every=STEPS // 8))
watched, kept = {}, {}


def look(trainer):
    nets = {"raw": trainer.net, "averaged": trainer.ema.net}
    watched[trainer.step] = {name: error_at(some, x_test[:64], schedule, ts).mean().item() for name, some in nets.items()}
    if trainer.step * 8 // STEPS in (1, 2, 4, 8):
        kept[trainer.step] = copy.deepcopy(nets)


losses = trainer.fit(feed(), after=look)
look(trainer)  # `after` is for the way; the end is ours
md.plot.show_losses(losses, title=f"{which}: loss of a batch")

# %% [markdown]
# The curve falls fast, then hardly. Do not stop there: a loss is a mean over levels and images, some of it irreducible, and
# pictures get better long after the eye sees it fall. Watch instead what the averaged and the raw weights do to the same
# held-out images and noise. **Expected: the average is ahead while the learning rate is high, and at the end, when the rate has
# fallen to zero and the raw weights have settled too, the two are equal within 3 %.**

# %%
end = watched[STEPS]
print({step: {name: round(value, 3) for name, value in pair.items()} for step, pair in watched.items()})
if FULL:
    assert watched[STEPS // 2]["averaged"] < watched[STEPS // 2]["raw"]
    assert abs(end["averaged"] / end["raw"] - 1) < 0.03
    assert abs(end["averaged"] / expected["held out"] - 1) < 0.3 and end["averaged"] < held["with care, averaged"]
curves = {name: (list(watched), [pair[name] for pair in watched.values()]) for name in ("raw", "averaged")}
md.plot.show_curves(curves, xlabel="step", ylabel="error on held-out images", yscale="log")

# %% [markdown]
# And now the picture of this chapter: **the same noise, denoised by the network at 1/8, 1/4, 1/2 and all of its training.**
# First the masses and their brightness, then the kind of thing, then its edges. For comparison, the row in the middle has the
# raw weights of the half-way mark.

# %%
raw, averaged = ({step: pair[name] for step, pair in kept.items()} for name in ("raw", "averaged"))
on_the_way = {step: pictures(some, noise, levels) for step, some in averaged.items()}
raw_half = pictures(raw[STEPS // 2], noise, levels)
rows, names = [x[:8] for x in on_the_way.values()], [f"step {step}" for step in on_the_way]
rows.insert(2, raw_half[:8])
names.insert(2, f"step {STEPS // 2}, raw")
md.plot.show_images(torch.cat(rows), row_labels=names)

# %% [markdown]
# ## 7. Where is it hard?
#
# The loss is a mean over levels. Take it apart. An error $\delta$ in $v$ is an error $\sigma\delta$ in $\hat x_0 = \alpha x_t
# - \sigma v$, and $\alpha\delta$ in $\hat\epsilon = \sigma x_t + \alpha v$, so one measurement gives three curves.
#
# One end is known beforehand. At $t = 999$ the network sees nothing but noise, and the best answer anyone can give
# is the mean of all images; what is left is the variance of the images about it. **Expected at the top: 0.27 on
# Fashion-MNIST, 0.43 on Shapes.** No network will ever be below that, and it is no fault.

# %%
model = trainer.ema.net
fine = [0, 5, 15, 30, *range(60, 1000, 60), 999]
error = error_at(model, x_test[:256], schedule, fine)
alpha, sigma = schedule.alpha[fine], schedule.sigma[fine]
about_mean = (x_test - x_test.mean(0)).square().mean().item()
print(f"variance about the mean image {about_mean:.3f}; the network's error at t = 999: {error[-1]:.3f}")
assert abs(about_mean / expected["top"] - 1) < 0.1
if FULL:
    assert abs(error[-1] / about_mean - 1) < 0.15
    assert error.min() < min(error[0], error[-1])
curves = {"in v, as trained": (fine, error), "in the image": (fine, sigma**2 * error), "in the noise": (fine, alpha**2 * error)}
md.plot.show_curves(curves, xlabel="t", ylabel="mean squared error", title="where it is hard", yscale="log")

# %% [markdown]
# The image is hard to guess where there is much noise, the noise where there is little: a film of dust of one part in a
# hundred cannot be told from the texture of cloth. In $v$ both ends count, and the least error lies between them.
#
# ## 8. The pictures
#
# The sampler of DDPM takes all 1000 levels and draws fresh noise at each (algorithm 2). On a CPU that is a minute for a few
# pictures, so this is `ddpm` on 100 of the levels; chapter 06 asks what the other 900 are for.

# %%
hundred = schedule.levels(4 * WALK, "trailing")
torch.manual_seed(SEED)
final = md.sample(md.ddpm, md.denoiser(model, "v"), noise[:64], hundred)
md.plot.show_images(final[:40], columns=10, title=f"drawn by a network that has seen {STEPS * BATCH:,} images")

# %% [markdown]
# ## 9. Is it copying?
#
# The perfect denoiser of a finite dataset, chapter 02 showed, gives back its own images and nothing else. Our network is
# trained towards that very function, and what keeps it from arriving is that it is too small, and too smooth, to hold every
# image. Whether it worked is a question to be measured. For each sample, find the nearest training image, in pixels. A
# distance means little alone; held-out *real* images are the yardstick, since they are surely no copies. **Expected: copies
# at 0, and samples at about the distance of held-out images** (a ratio of about 1.1 on Fashion-MNIST, 1.05 on Shapes).

# %%
seen = md.data.from_pixels(train_set.pixels).to(device)


def nearest(x):
    """For each image the distance to the nearest training image, root mean square per pixel, and that image."""
    distance, index = torch.cdist(x.flatten(1), seen.flatten(1)).min(dim=1)
    return distance / x[0].numel() ** 0.5, seen[index]


copier = md.DatasetDenoiser(seen[:1000])
copies = md.sample(md.ddim, copier, noise[:16], levels, progress=False)
sets = {"copies": copies, "held out": x_test[:256], "samples": final}
away = {name: nearest(x)[0].median().item() for name, x in sets.items()}
print("median distance to the nearest training image:", {name: round(value, 3) for name, value in away.items()})
assert away["copies"] < 0.02 < away["held out"]
assert away["samples"] > 0.6 * away["held out"]
if FULL:
    assert abs(away["samples"] / away["held out"] - expected["novelty"]) < 0.3
rows = [final[:8], nearest(final[:8])[1], copies[:8], nearest(copies[:8])[1]]
md.plot.show_images(torch.cat(rows), row_labels=["sample", "nearest", "chapter 02", "nearest"])

# %% [markdown]
# No copies: of the same kind, and differing in the details. (Pixels are a lenient judge: a copy that is shifted by one would
# pass. With more passes over fewer images it becomes a real danger; Carlini et al. 2023 found training pictures in Stable
# Diffusion's answers.)
#
# ## 10. How good, in a number?
#
# Samples have no right answer to be compared with one by one. What can be compared is the *set*: do the samples vary as real
# images vary? Reduce each image to the features $f$ that a classifier, trained on real images, finds telling. Describe each
# set by the mean $\mu$ and covariance $C$ of its features. The **Fréchet distance** asks how far mass has to be moved to turn
# the one Gaussian into the other: over all ways to pair a random $a$ of the one with a $b$ of the other,
#
# $$d^2 = \min\;\mathbb E\,|a-b|^2 = |\mu_a-\mu_b|^2 + \operatorname{tr} C_a + \operatorname{tr} C_b
# - 2\max_K \operatorname{tr} K, \qquad K = \operatorname{Cov}(a, b).$$
#
# Which $K$ are possible? Their joint covariance must be positive semi-definite, which means $K = C_a^{1/2} M\, C_b^{1/2}$ for
# some $M$ that stretches nothing, $\|M\| \le 1$. Then $\operatorname{tr} K = \operatorname{tr}(M\,C_b^{1/2} C_a^{1/2})$ is at
# most the sum of the singular values of $C_b^{1/2}C_a^{1/2}$, and some $M$ attains it. The squares of singular values are
# eigenvalues:
#
# $$\max_K \operatorname{tr} K = \operatorname{tr}\big(C_a^{1/2} C_b\, C_a^{1/2}\big)^{1/2},$$
#
# and that is the formula of Dowson & Landau (1982), used for images by Heusel et al. (2017, eq. 6). In one dimension it is
# $(\mu_a-\mu_b)^2 + (s_a-s_b)^2$: the distance of two means and of two standard deviations.


# %%
def frechet_distance(features_a, features_b):
    """FD of features (N, D) and (M, D): the squared distance of the Gaussians fitted to them (Heusel et al. 2017, eq. 6)."""
    a, b = features_a.double(), features_b.double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T  # C_a^(1/2)
    overlap = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * overlap
    return max(distance.item(), 0.0)


# %% [markdown]
# By hand: $\mathcal N(0, I)$ against $\mathcal N((3, 4), 4I)$ in the plane. The means are 5 apart, each of two standard
# deviations differs by 1. **Expected: $25 + 2 = 27$.**

# %%
torch.manual_seed(SEED)
a, b = torch.randn(100_000, 2), 2 * torch.randn(100_000, 2) + torch.tensor([3.0, 4.0])
print(f"{frechet_distance(a, b):.2f}")
assert abs(frechet_distance(a, b) - 27) < 0.3
assert_close(frechet_distance(a, b), md.evaluation.frechet_distance(a, b))

# %% [markdown]
# FID, the number in papers, is this with the features of a network called Inception, trained on a million photographs. We
# train our own judge, on this data; its figures compare runs judged by it, and nothing else. Two things must be known before
# it says anything. Is it any good at its trade? And what does it say of *real* images, as many as we have samples? A
# covariance of few images is a poor one, and the distance reads it as damage:

# %%
judge = md.evaluation.train_judge(train_set, epochs=EPOCHS, seed=SEED, device=device)


@torch.no_grad()
def features(x):
    return torch.cat([judge.features(part) for part in x.clamp(-1, 1).split(500)]).cpu()


with torch.no_grad():
    right = (judge(x_test[:500]).argmax(1).cpu() == test_set.labels[:500]).float().mean().item()
reference, real = features(x_test), features(seen[:4000])
counts = [n for n in (16, 32, 64, 128, 256, 512, 1024, 2048, 4000) if n <= len(real)]
floor = {n: frechet_distance(real[:n], reference) for n in counts}
print(f"the judge is right on {right:.2f} of held-out images; FD of {counts[-1]} real images: {floor[counts[-1]]:.2f}")
if FULL:
    assert right > 0.8 and floor[counts[-1]] < 0.5 < floor[256] < floor[64]
md.plot.show_curves(
    {"real training images": (counts, list(floor.values()))},
    xlabel="number of images", ylabel="FD against the test set", yscale="log", title="real images, and not at 0",
)  # fmt: skip

# %% [markdown]
# So always state how many images, and the floor beside. Ours, all with the same number and the same walk. **Expected: about
# 20 on Fashion-MNIST, about 100 on Shapes, whose judge is sharper; falling from checkpoint to checkpoint, with the linear
# layers far behind.**

# %%
sets = {"linear layers": drawn["linear layers"], f"step {STEPS // 2}, raw": raw_half}
sets |= {f"step {step}": x for step, x in on_the_way.items()}
fd = {"real": frechet_distance(real[:DRAWN], reference)}
fd |= {name: frechet_distance(features(x), reference) for name, x in sets.items()}
for name, value in fd.items():
    print(f"{name:16} FD {value:8.2f}   ({DRAWN} images)")
if FULL:
    first, _, _, last = (fd[f"step {step}"] for step in on_the_way)
    assert fd["real"] < last < first < fd["linear layers"]
    assert 0.5 < last / expected["fd"] < 2
    assert which == "Shapes" or fd[f"step {STEPS // 2}"] < fd[f"step {STEPS // 2}, raw"]

# %% [markdown]
# On Shapes there is a judge without any network: `read_shapes` finds every object in a picture by geometry. What share of
# the samples does it read as exactly one shape, as all real ones are? **Expected on Shapes: all of the real ones, a fifth
# of ours:** the oracle is strict, and the run was short.

# %%
if which == "Shapes":
    sets = {"real": x_test[:DRAWN], "ours": on_the_way[STEPS], "linear": drawn["linear layers"]}
    alone = {name: sum(len(found) == 1 for found in md.data.read_shapes(x)) / len(x) for name, x in sets.items()}
    print("read as exactly one shape:", {name: round(value, 2) for name, value in alone.items()})
    assert alone["real"] > 0.9
    if FULL:
        assert 0.1 < alone["ours"] < 0.5 and alone["linear"] < 0.05
else:
    print(f"{which} is photographs: the oracle reads drawn shapes only")

# %% [markdown]
# ## 11. Keep it
#
# A network alone is no model. Whoever opens the file must know the schedule, what is predicted and the size, or will get noise.
# `ClassToImage` (a class is optional) keeps them in `config.json` beside the weights, as safetensors, which hold numbers
# and can run no code.

# %%
with tempfile.TemporaryDirectory() as folder:
    md.ClassToImage(model, {"name": "cosine"}, "v", SIZE, []).save(folder, steps=STEPS, data=which)
    print({file.name: f"{file.stat().st_size:,} bytes" for file in sorted(Path(folder).iterdir())})
    pipe = md.ClassToImage.load(folder, device)
    loaded, about = md.load(folder, device)  # the network alone, and what was written beside it
print({name: about[name] for name in ("class", "predicts", "schedule", "size")})
assert_close(list(loaded.parameters()), list(model.parameters()), rtol=0, atol=0)
again = pipe(torch.zeros(4, dtype=torch.int64), steps=WALK, generator=torch.Generator().manual_seed(SEED))
assert again.shape == (4, channels, SIZE, SIZE) and again.abs().max() <= 1
twin = pictures(loaded.to(memory_format=torch.channels_last), noise[:4], levels)
assert_close(twin, pictures(model, noise[:4], levels), rtol=1e-3, atol=1e-3)

# %% [markdown]
# ## 12. Four bugs you will meet
#
# Beside [0, 1] data, which opened this chapter, and the raw weights, which had a row of the key picture.
#
# **Uniform noise.** `torch.rand_like` where the walk begins. All its numbers are positive and close together, and the network
# has never seen that at $t = 999$: it takes the mean for a message. **Expected: pictures that all resemble each other:
# their spread from one to the next is below three quarters of the true one.**

# %%
torch.manual_seed(SEED)
uniform = pictures(model, torch.rand_like(noise[:64]), levels)
spread = {"randn": on_the_way[STEPS][:64].std(0).mean().item(), "rand": uniform.std(0).mean().item()}
print("spread from picture to picture:", {name: round(value, 3) for name, value in spread.items()})
if FULL:
    assert spread["rand"] < 0.75 * spread["randn"]
md.plot.show_images(torch.cat([uniform[:8], on_the_way[STEPS][:8]]), row_labels=["rand", "randn"])

# %% [markdown]
# **`randint(0, 999)`.** The upper end is exclusive, so the level at which every walk begins is never trained. How bad is it?
# The run would have met $t = 999$ about `STEPS * BATCH / 1000` times, and now meets it never. But the embedding of $t$ is
# smooth, so a network that knows 998 should know 999. **Expected: answers to the same image at the two differ by less than
# 0.05 of their size.** It is a real bug that this network forgives. With a table of learned embeddings, or ten levels in
# place of a thousand, nothing would.

# %%
with torch.no_grad():
    at = {t: model(noise, torch.full((len(noise),), t, device=device)) for t in (998, 999)}
apart = ((at[999] - at[998]).norm() / at[999].norm().clamp(min=1e-6)).item()
print(f"t = 999 is drawn {STEPS * BATCH / 1000:.0f} times in this run; answers at 998 and 999 differ by {apart:.2%}")
assert torch.randint(0, 999, (100_000,)).max() == 998 and schedule.draw(100_000).max() == 999
if FULL:
    assert apart < 0.05

# %% [markdown]
# **`eval()` forgotten.** Everyone warns of it. For our U-Net it changes nothing, bit for bit: its GroupNorms use the image at
# hand, and it has no dropout. The judge has BatchNorms, which in training mode measure each picture by its neighbours in the
# batch. Show it a batch of one class, and what these have in common is subtracted. **Expected: the U-Net equal to the last
# bit; the judge loses more than a tenth of its accuracy.**

# %%
t = torch.full((8,), 500, device=device)
assert_close(copy.deepcopy(model).train()(noise[:8], t), copy.deepcopy(model).eval()(noise[:8], t), rtol=0, atol=0)
forgot = copy.deepcopy(judge).train()
with torch.no_grad():
    per_class = [(x_test[test_set.labels.to(device) == y][:50], y) for y in range(len(test_set.classes))]
    scores = {name: sum((some(x).argmax(1) == y).float().mean().item() for x, y in per_class if len(x) > 1) / len(per_class)
              for name, some in {"eval": judge, "train": forgot}.items()}  # fmt: skip
print("accuracy on batches of one class:", {name: round(value, 3) for name, value in scores.items()})
if FULL:
    assert scores["train"] < scores["eval"] - 0.1

# %% [markdown]
# **Another target than the one it was trained for.** The file says `v`, the code says `"eps"`. Shapes agree, nothing is
# raised, and the walk ends in rubbish. **Expected: on Fashion-MNIST an FD at least 3 times that of the right reading.**
# This is why the target is kept in the file.

# %%
misread = frechet_distance(features(pictures(model, noise[:64], levels, "eps", clip=1.0)), reference)
rightly = frechet_distance(features(on_the_way[STEPS][:64]), reference)
print(f"read as eps: FD {misread:.1f}; read as v: FD {rightly:.1f}   ({len(noise[:64])} images)")
if FULL:
    assert misread > (3 if which == "Fashion-MNIST" else 1) * rightly

# %% [markdown]
# ## 13. What we left out
#
# | left out | where to read it |
# |---|---|
# | why this loss bounds a likelihood | Ho et al. 2020, section 3; Kingma et al. 2021 |
# | weighting the levels unequally | `min_snr_weight`; Hang et al. 2023 |
# | longer runs, larger networks, and what to change with size | Karras et al. 2024 |
# | choosing the length of the average afterwards | the same, section 3 |
# | precision and recall: are samples good, or varied? | Kynkäänniemi et al. 2019 |
# | the kernel distance, which has no bias in the number of images | `kernel_distance`; Bińkowski et al. 2018 |
# | what a Fréchet distance hides | chapter 21 |
# | why every direction should count alike | `minidiff/training/muon.py`; Jordan et al. 2024; Liu et al. 2025 |
# | bfloat16, resuming, accumulation | `minidiff/training/trainer.py`; chapters 10 and 22 |
#
# What you wrote is `minidiff/training/ema.py`, the heart of `training/trainer.py`, and half of `evaluation/metrics.py`.
#
# **Next:** the walk took 25 levels, and 100, and was trained on 1000. How many does it need, and which noise may it leave out?

# %%
print(f"torch {torch.__version__}, minidiff {md.__version__}, {device}")
