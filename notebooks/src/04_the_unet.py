# %% [markdown]
# # 04 · The U-Net, built block by block
#
# **What shape must the network have that looks at a noisy image and says what it is made of?**
#
# It has to answer in pixels, one number for every number it is given. It has to see the whole picture at once, because where
# noise is heavy no single place says much. And it has to know how much noise there is, because "remove a film of dust" and
# "invent a picture" are two tasks. This chapter starts with a network that meets the first demand and fails at the second, and
# builds up to the one that meets all three: the U-Net of DDPM, which is, with words added, that of Stable Diffusion.
#
# Every block is written here, from the inside out, under the name that it has in the library, and compared with it number for
# number. You need chapter 01, and from chapter 03 the loss and the idea of $v$. Nothing is downloaded.

# %% [markdown]
# > **For the lecturer.** 90 minutes: 10 for the naive attempt, 10 for time, 25 for the small blocks, 10 for attention, 15
# > for stages, skips and the whole, 15 for the race, 5 for the size of the real one. Four trainings take about six minutes
# > in all on two CPU cores; everything else runs in seconds, so run it live.
# >
# > Worth asking before the cell is run: *what will it draw that sees 17 pixels of 32?* (naive attempt) · *whose statistics
# > does a BatchNorm use?* (section 3) · *what does a group of one channel forget?* (section 4) · *twice as wide: how much more
# > does a convolution cost, how much more attention?* (section 6) · *where do the most parameters sit, where does the most time
# > go?* (section 10). Few guess the third.

# %%
import math
from functools import partial

import torch
from matplotlib import rc_context
from matplotlib.patches import Rectangle
from torch import nn
from torch.nn.functional import cosine_similarity, interpolate, pad, silu
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import minidiff as md
from minidiff.nets.attention import group_norm, zero

device = "cuda" if torch.cuda.is_available() else "cpu"

# %% [markdown]
# The knobs. A quick mode for tests replaces a value by the one in its comment; nothing else changes.

# %% tags=["knobs"]
SEED = 0
SIZE = 32  # pixels to a side  # quick: 16
IMAGES = 4000  # to train on  # quick: 64
CHANNELS = (16, 32, 48)  # of the U-Net's three stages  # quick: (8, 16, 16)
BATCH = 16  # images to a step  # quick: 8
STEPS = 400  # of each of three trainings  # quick: 10
LONGER = 4  # times as many, in a fourth  # quick: 1
RATE = 6e-3  # learning rate: three times the usual one, for a short run
DRAWN = 32  # samples from each network  # quick: 8
WALK = 25  # levels that a sample walks  # quick: 3
FULL = True  # are the runs long enough for the numbers in the text?  # quick: False

# %% [markdown]
# The images are simple on purpose: one large shape on a plain background of one grey. So there is a question that
# needs no judge: *is the background of a drawn picture the same in all four corners?*

# %%
kinds = {"shapes": ["circle", "square", "triangle"], "colours": ["red", "yellow", "green", "blue"]}
kinds |= {"backgrounds": ["white", "grey", "black"], "sizes": ["large"]}
train_set, test_set = (md.data.Images(*md.data.Shapes(n, SIZE, s, **kinds).tensors()) for n, s in ((IMAGES, 0), (128, 1)))
x_test = md.data.from_pixels(test_set.pixels).to(device)
noise = torch.randn(DRAWN, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(SEED)).to(device)
schedule = md.Schedule.cosine()
levels = schedule.levels(WALK, "trailing")


def count(net):
    """How many numbers a network learns."""
    return sum(p.numel() for p in net.parameters())


def patchwork(x):
    """How far apart the four corners are, as a standard deviation, in the mean over images (B, C, H, W)."""
    corners = [x[:, :, i, j].mean((2, 3)) for i in (slice(3), slice(-3, None)) for j in (slice(3), slice(-3, None))]
    return torch.stack(corners).std(0).mean().item()


# %% [markdown]
# ## 1. The naive attempt: a stack of convolutions
#
# An image goes in, an image of the same size comes out, and neighbours belong together: that is what a convolution is. So
# stack them, as many as we can afford, all at full size. To be fair to the stack it is told the time, as in chapter
# 03, in each layer; each layer adds to what was there; and it gets as many parameters as the U-Net at the end of the
# chapter, and the same training.


# %%
class Stack(nn.Module):
    """net(xt, t): convolutions at full size, nothing else. (B, 3, H, W), (B,) -> (B, 3, H, W)"""

    def __init__(self, width, depth=6):
        super().__init__()
        self.door = nn.Conv2d(3, width, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.times = nn.ModuleList(nn.Linear(64, width) for _ in range(depth))
        self.out = zero(nn.Conv2d(width, 3, 3, padding=1))  # the first guess is 0

    def forward(self, x, t):
        h, waves = self.door(x), md.nets.sinusoidal(t, 64)
        for conv, time in zip(self.convs, self.times, strict=True):
            h = h + conv(silu(h + time(waves)[:, :, None, None]))
        return self.out(h)


def fit(net, images, steps, batch, seed, rate, device):
    """Train to predict v on the cosine schedule: the averaged network, and the loss of every step."""

    def loss(net, x, y):
        return md.diffusion_loss(net, x.contiguous(memory_format=torch.channels_last), md.Schedule.cosine(), "v")

    net = net.to(device, memory_format=torch.channels_last)  # the layout in which convolutions are fastest
    trainer = md.Trainer(net, loss, md.TrainConfig(steps=steps, lr=rate, seed=seed))
    losses = trainer.fit(md.data.batches(images, batch, device, seed=seed))
    return trainer.ema.net, losses


def draw(net, noise, levels):
    """Where DDIM's walk from this noise ends: (B, C, H, W) in [-1, 1]."""
    return md.sample(md.ddim, md.denoiser(net, "v"), noise, levels, progress=False).clamp(-1, 1)


# %%
budget = count(md.UNet(3, 3, CHANNELS, layers=1))
width = next(w for w in range(4, 400) if count(Stack(w)) >= budget)
torch.manual_seed(SEED)
nets, losses = {}, {}
nets["stack"], losses["stack"] = fit(Stack(width), train_set, STEPS, BATCH, SEED, RATE, device)
drawn = {"real": x_test[:DRAWN], "stack": draw(nets["stack"], noise, levels)}
print(f"the U-Net to come: {budget:,} parameters; a stack {width} channels wide: {count(nets['stack']):,}")
assert abs(count(nets["stack"]) / budget - 1) < 0.05
md.plot.show_images(torch.cat([x[:8] for x in drawn.values()]), row_labels=list(drawn))

# %% [markdown]
# It has learned something: light and dark, patches of one colour. What it lacks is agreement. One corner does not know what
# the other decided, so the background becomes a patchwork. **Expected: corners that differ by more than 0.2**, where
# those of real images do not differ.

# %%
apart = {name: patchwork(x) for name, x in drawn.items()}
print("corners differ by", {name: round(value, 3) for name, value in apart.items()})
assert apart["real"] < 0.02
if FULL:
    assert apart["stack"] > 0.2

# %% [markdown]
# More training would not cure it, because of an argument that needs none. One 3 × 3 convolution sees one pixel to each
# side, and each further one adds a pixel. With $n$ of them, what happens in one place depends on
#
# $$(1 + 2n) \times (1 + 2n) \text{ pixels},$$
#
# its **receptive field**. We have eight. **Expected: 17 × 17 = 289 of 1024 pixels.** It can be measured: take the gradient
# of one pixel of the answer with respect to all pixels of the question, and see where it is not 0.


# %%
def awaken(net):
    """Random numbers in every weight that starts at zero, so that an untrained network answers something."""
    for p in net.parameters():
        if p.ndim > 1 and not p.any():
            nn.init.kaiming_uniform_(p, a=5**0.5)  # PyTorch's usual start
    return net


def field(net, size=32):
    """How strongly each pixel of the question moves the middle pixel of the answer: (size, size)."""
    x = torch.randn(8, 3, size, size, requires_grad=True)
    net(x, torch.full((8,), 500))[:, :, size // 2, size // 2].sum().backward()
    return x.grad.abs().mean((0, 1))


def show_maps(maps, title=None):
    """Named maps (H, W), side by side, each with its own scale."""
    with rc_context(md.plot.STYLE):
        figure = md.plot.Picture(figsize=(3.7 * len(maps), 3.6), dpi=md.plot.DPI, layout="constrained")
        for axes, (name, values) in zip(figure.subplots(1, len(maps), squeeze=False)[0], maps.items(), strict=True):
            figure.colorbar(axes.imshow(values, aspect="auto", interpolation="nearest"), ax=axes)
            axes.set(title=name, xticks=[], yticks=[])
            axes.grid(False)
        figure.suptitle(title or "")
    return figure


# %%
torch.manual_seed(SEED)
seen = {"stack": field(awaken(Stack(width))), "U-Net": field(awaken(md.UNet(3, 3, CHANNELS, layers=1)))}
for name, values in seen.items():
    print(f"{name}: {int((values > 0).sum())} of {values.numel()} pixels")
assert int((seen["stack"] > 0).sum()) == 17**2 and int((seen["U-Net"] > 0).sum()) == 32**2
show_maps({name: (values / values.max()).log10() for name, values in seen.items()}, "what one pixel sees (powers of ten)")

# %% [markdown]
# White is zero. And even inside its square the stack looks mostly at the middle: there are many paths through the
# convolutions to a near pixel and few to a far one (Luo et al. 2016). To see all of 32 × 32 from everywhere it would take 31
# layers, for 512 × 512 over 500. The cure is older than diffusion (Ronneberger et al. 2015). **Make the picture smaller, and
# a window of 3 × 3 covers more of it.**
#
# ## 2. What time is it?
#
# From the inside out, then, starting with the smallest input: a number. All blocks will hear of $t$ through one vector. Why
# a vector? Suppose a layer got $t$ itself. A linear layer can only draw a straight line through it, and what a denoiser has to
# know is not straight. For Gaussian data of standard deviation $s$ the best estimate of $x_0$ is $x_t$ times
#
# $$g_t = \frac{\alpha_t s^2}{\alpha_t^2 s^2 + \sigma_t^2} \qquad\text{(chapter 02)},$$
#
# which for small $s$ falls from 1 to nearly 0 within a fifth of the schedule. Chapter 03 laid out $t$ in waves
# (Vaswani et al. 2017, section 3.5) of frequencies $\omega_k$ from 1 down to 1/10 000:
#
# $$\big(\cos \omega_0 t, \dots, \cos \omega_{d/2-1} t,\; \sin \omega_0 t, \dots, \sin \omega_{d/2-1} t\big), \qquad
# \omega_k = 10\,000^{-k/(d/2 - \text{shift})}.$$
#
# DDPM writes the sines first and has shift 1; Stable Diffusion has the cosines first and shift 0.


# %%
def sinusoidal(t, dim, max_period=10_000.0, *, freq_shift=0, sin_first=False):
    """t (B,), whole or fractional -> (B, dim): cos and sin of t at dim/2 frequencies."""
    frequency = torch.exp(-math.log(max_period) * torch.arange(dim // 2, device=t.device) / (dim // 2 - freq_shift))
    angle = t.float()[:, None] * frequency  # (B, dim/2)
    return torch.cat([angle.sin(), angle.cos()] if sin_first else [angle.cos(), angle.sin()], dim=1)


# %%
ts = torch.arange(1000)
waves = sinusoidal(ts, 64)  # (1000, 64)
assert_close(waves, md.nets.sinusoidal(ts, 64))
alike = cosine_similarity(waves[:, None], waves[None], dim=2)
print(
    f"how alike: t = 500 and 501: {alike[500, 501]:.2f}; 500 and 510: {alike[500, 510]:.2f}; 500 and 900: {alike[500, 900]:.2f}"
)
assert alike[500, 501] > 0.95 and alike[500, 510] < 0.75 and alike[500, 900] < 0.5
show_maps({"t from left to right, 64 waves": waves.T, "how alike two timesteps are": alike})

# %% [markdown]
# Neighbours are alike, strangers are not: a small change of $t$ is a small change of the vector, and still no two are equal.
# Now the test. What is the best that one linear layer can read off, from $t$ and from the waves? **Expected: root mean
# square error 0.15 from the number, below 0.001 from the waves.**

# %%
s2 = 0.01
gain = schedule.alpha * s2 / (schedule.alpha**2 * s2 + schedule.sigma**2)
read = {"what should be read": (ts, gain)}
for name, what in (("from t", ts[:, None] / 1000), ("from the waves", waves)):
    given = torch.cat([what, torch.ones(1000, 1)], dim=1).double()
    read[name] = (ts, given @ torch.linalg.lstsq(given, gain.double()[:, None]).solution[:, 0])
wrong = {name: (value - gain).square().mean().sqrt().item() for name, (_, value) in read.items()}
print({name: round(value, 4) for name, value in wrong.items()})
assert wrong["from t"] > 0.12 and wrong["from the waves"] < 0.001
md.plot.show_curves(read, xlabel="t", ylabel="gain", title="what one linear layer can make of t")

# %% [markdown]
# A network has more than one layer and could bend the line, but it would have to learn that first. `TimeEmbedding` is
# the waves, then two linear layers which find out what each level needs (DDPM, appendix B). It is computed once per
# call, and every block listens.


# %%
class TimeEmbedding(nn.Module):
    """Timesteps (B,) -> (B, out): sinusoids, then two linear layers that learn what to make of them."""

    def __init__(self, dim, out, learned=False, **waves):
        super().__init__()
        if learned:
            raise NotImplementedError("frequencies that are trained too: md.nets.TimeEmbedding")
        self.frequencies = partial(sinusoidal, dim=dim, **waves)
        self.linear_1 = nn.Linear(dim, out)
        self.linear_2 = nn.Linear(out, out)

    def forward(self, t):
        return self.linear_2(silu(self.linear_1(self.frequencies(t).to(self.linear_1.weight.dtype))))


# %% [markdown]
# To compare a block with the library's, give both the same weights: the names inside are the same, so a state dict fits.


# %%
def same(mine, theirs, *question):
    """Give `mine` the weights of `theirs`, with nothing left at zero, and hold it to the same answers."""
    mine.load_state_dict(awaken(theirs).state_dict())
    assert_close(mine(*question), theirs(*question))
    return f"{type(mine).__name__}: {count(mine):,} parameters, equal"


t = torch.tensor([0.0, 20, 500, 999])
print(same(TimeEmbedding(16, 64), md.nets.TimeEmbedding(16, 64), t))
emb = TimeEmbedding(16, 64)(t).detach()  # (4, 64): used by the blocks below

# %% [markdown]
# ## 3. GSC: norm, bend, convolve
#
# Nearly every convolution of a U-Net comes as a sandwich: GroupNorm, SiLU, convolution. SiLU is $x \cdot \mathrm{sigmoid}(x)$,
# a smooth bend. GroupNorm (Wu & He 2018) brings features to mean 0 and variance 1, over a group $G$ of channels and all
# positions of *one* image, then scales and shifts each channel by learned $\gamma_c, \beta_c$:
#
# $$\mathrm{GN}(h)_{c,i,j} = \gamma_c\,\frac{h_{c,i,j} - \mu_G}{\sqrt{s_G^2 + \varepsilon}} + \beta_c, \qquad
# \mu_G, s_G^2 = \text{mean and variance over } c \in G, i, j .$$

# %%
h = torch.randn(4, 32, 8, 8) * 3 + 1
groups = h.unflatten(1, (4, 8))  # 4 groups of 8 channels
variance, mean = torch.var_mean(groups, dim=(2, 3, 4), keepdim=True, correction=0)
assert_close(((groups - mean) / (variance + 1e-5).sqrt()).flatten(1, 2), nn.GroupNorm(4, 32)(h))

# %% [markdown]
# Why not BatchNorm, which serves classifiers well? It takes mean and variance over *all images of the batch*. A classifier's
# batch is of one kind. Ours mixes images that are nearly clean with images that are nearly noise, and their features have
# nothing in common. The experiment: one image at $t = 20$, in a batch with 31 others. Leave it exactly as it is and
# turn up the noise of the *others*. How much does what the network makes of *our* image change? **Expected: half of
# its size with BatchNorm, nothing with GroupNorm.**

# %%
torch.manual_seed(SEED)
crowd = x_test[:32].cpu()
eps, conv = torch.randn_like(crowd), nn.Conv2d(3, 32, 3, padding=1)
norms, others = {"BatchNorm": nn.BatchNorm2d(32), "GroupNorm": nn.GroupNorm(4, 32)}, range(20, 1000, 60)


@torch.no_grad()
def ours_beside(norm, first, others):
    """The normalised features of the image `first` in a batch with `others`."""
    return norm(torch.cat([first, others]))[:1]


moved = {}
for name, norm in norms.items():
    at = {t: conv(md.add_noise(crowd, eps, schedule.at(t))).detach() for t in others}
    ours = torch.stack([ours_beside(norm, at[20][:1], at[t][1:]) for t in others])
    moved[name] = (others, (ours - ours[0]).flatten(1).norm(dim=1) / ours[0].norm())
print({name: f"{values[-1]:.0%}" for name, (_, values) in moved.items()})
assert 0.4 < moved["BatchNorm"][1][-1] < 0.7 and moved["GroupNorm"][1].max() == 0
md.plot.show_curves(
    moved, xlabel="t of the other images", ylabel="relative change", title="features of an image that did not change"
)

# %% [markdown]
# So with BatchNorm the answer about one image depends on its company in the batch. In sampling the company is another (all
# images are at one level), and the averages that BatchNorm keeps for that case are over all levels, right for none.


# %%
class GSC(nn.Sequential):
    """GroupNorm, SiLU, 3x3 convolution: (B, in, H, W) -> (B, out, H, W)."""

    def __init__(self, in_channels, out_channels, norm=group_norm):
        super().__init__(norm(in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1))


print(same(GSC(32, 48), md.nets.GSC(32, 48), h))
print(
    "house rule:",
    {channels: group_norm(channels).num_groups for channels in (8, 16, 32, 48, 320)},
    "groups for so many channels",
)

# %% [markdown]
# `group_norm` is the library's rule for the number of groups, as many as fit but with at least 8 channels in each. The reason
# comes with the next block.
#
# ## 4. ResNetBlock: a change, and a way around it
#
# Two GSCs, with the time between them, and a path past both:
#
# $$\mathrm{out} = \mathrm{shortcut}(x) + \mathrm{GSC}_2\big(\mathrm{GSC}_1(x) + W\,\mathrm{silu}(e)\big).$$
#
# $W\,\mathrm{silu}(e)$ is a vector with one number per channel, added at every pixel alike: at this level, let this feature
# count more. The shortcut is the identity, or a 1 × 1 convolution where the number of channels changes.


# %%
class ResNetBlock(nn.Module):
    """Two GSCs with the embedding added between them, and a way around: (B, in, H, W), (B, E) -> (B, out, H, W)."""

    def __init__(self, in_channels, out_channels, emb_channels=None, norm=group_norm):
        super().__init__()
        self.first = GSC(in_channels, out_channels, norm)
        self.emb = nn.Linear(emb_channels, out_channels) if emb_channels else None  # a VAE has no t
        self.second = GSC(out_channels, out_channels, norm)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        zero(self.second[-1])

    def forward(self, x, emb=None):
        h = self.first(x)
        if self.emb:
            h = h + self.emb(silu(emb))[:, :, None, None]
        return self.shortcut(x) + self.second(h)


print(same(ResNetBlock(32, 48, 64), md.nets.ResNetBlock(32, 48, 64), h, emb))
assert_close(ResNetBlock(32, 32, 64)(h, emb), h, rtol=0, atol=0)

# %% [markdown]
# The last line shows what `zero` is for: a new block is the identity, to the last bit. A U-Net of twenty untrained blocks is a
# short network, and grows deep only as far as training finds use for it.
#
# And why a way around (He et al. 2016)? Take a chain of layers without, and two inputs that are nearly twins. If the
# gradients for the two point in unrelated directions, what is learned from one image says nothing about the next
# (Balduzzi et al. 2017). **Expected: after 64 layers the twins' gradients have a cosine of at most 0.4 in a plain chain, and
# above 0.9 with a way around.**

# %%
depths, kept = (2, 4, 8, 16, 32, 64), {"GSCs in a row": [], "ResNetBlocks": []}
for depth in depths:
    for name, cosines in kept.items():
        torch.manual_seed(depth)
        plain = name == "GSCs in a row"
        chain = [GSC(16, 16) if plain else awaken(ResNetBlock(16, 16)) for _ in range(depth if plain else depth // 2)]
        x, weights, gradients = torch.randn(8, 16, 8, 8), torch.randn(8, 16, 8, 8), []
        for twin in (x, x + 0.1 * torch.randn_like(x)):
            answer = nn.Sequential(*chain)(twin.requires_grad_())
            gradients.append(torch.autograd.grad((answer * weights).sum(), twin)[0].flatten(1))
        cosines.append(cosine_similarity(*gradients).mean().item())
print({name: [round(value, 2) for value in cosines] for name, cosines in kept.items()})
assert kept["GSCs in a row"][-1] < 0.4 and min(kept["ResNetBlocks"]) > 0.9
md.plot.show_curves(
    {name: (depths, cosines) for name, cosines in kept.items()}, xlabel="convolutions, one after another", ylabel="cosine",
    title="do the gradients of twins agree?",
)  # fmt: skip

# %% [markdown]
# **The trap.** The embedding is added, and the very next layer is a GroupNorm. What if a group holds a single channel?
# The embedding adds to channel $c$ the same number $w_c$ at every pixel, so the group's mean grows by $w_c$, and
#
# $$(h_c + w_c) - (\mu_c + w_c) = h_c - \mu_c .$$
#
# It is gone, exactly. The network runs, trains, and never learns what time it is. This is one keystroke away: the
# usual default is 32 groups, and a small network has 32 channels. With two channels per group the difference of
# their numbers survives. **Expected: a response of 0 with one channel per group, above a half of the block's output with any
# more.**


# %%
def by_doublings(figure):
    """The same figure, with a horizontal axis on which each doubling is as wide as the next."""
    figure.axes[0].set_xscale("log", base=2)
    return figure


per_group, response = (1, 2, 4, 8, 16, 32), []
e = torch.randn(2, 1, 64, generator=torch.Generator().manual_seed(SEED)).expand(2, 4, 64)  # two times of day
for n in per_group:
    torch.manual_seed(SEED)
    block = awaken(ResNetBlock(32, 32, 64, partial(nn.GroupNorm, 32 // n)))
    with torch.no_grad():
        early, late = block(h, e[0]), block(h, e[1])
    response.append(((early - late).norm() / (early - h).norm()).item())
print(dict(zip(per_group, (round(value, 6) for value in response), strict=True)))
assert response[0] < 1e-5 and min(response[1:]) > 0.5
figure = md.plot.show_curves(
    {"32 channels": (per_group, response)}, xlabel="channels per group", ylabel="relative change",
    title="how much a block changes with the time",
)  # fmt: skip
by_doublings(figure)

# %% [markdown]
# ## 5. Smaller and larger
#
# Halving is a convolution that moves by two pixels. Doubling could be its mirror image, the transposed convolution, in
# which every input pixel stamps a 3 × 3 pattern onto an output of twice the size. The stamps overlap in some places and not
# in others. So we copy each pixel four times instead and then convolve, where every place is treated alike (Odena et al.
# 2016). `asymmetric` puts the border of zeros where Google's DDPM has it, for its weights; `size` is for sides that were odd.


# %%
class DownSample(nn.Module):
    """Halve height and width by a strided 3x3 convolution: (B, C, H, W) -> (B, C, H/2, W/2)."""

    def __init__(self, channels, asymmetric=False):
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x, emb=None, context=None):
        return self.conv(pad(x, (0, 1, 0, 1)) if self.asymmetric else x)  # left, right, top, bottom


class UpSample(nn.Module):
    """Double height and width, or reach `size`: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, size=None):
        return self.conv(interpolate(x, size or (2 * x.shape[2], 2 * x.shape[3]), mode="nearest"))


# %% [markdown]
# In `DownSample`, `emb` and `context` are not used: all layers of the way down are called alike, so the caller need not know
# their kind. Now give both ways of doubling a map that is the same everywhere. **Expected: UpSample answers with a constant;
# the transposed convolution varies by more than a tenth of its size.**

# %%
print(same(DownSample(32), md.nets.DownSample(32), h), "|", same(UpSample(32), md.nets.UpSample(32), h))
assert DownSample(32)(h).shape == (4, 32, 4, 4) and UpSample(32)(h).shape == (4, 32, 16, 16)
torch.manual_seed(SEED)
ways = {"transposed": nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1, output_padding=1), "UpSample": UpSample(8)}
with torch.no_grad():
    grown = {name: up(torch.ones(1, 8, 10, 10))[0, :, 2:-2, 2:-2] for name, up in ways.items()}  # without the border
uneven = {name: (x.std((1, 2)).norm() / x.norm() * x[0].numel() ** 0.5).item() for name, x in grown.items()}
print({name: round(value, 3) for name, value in uneven.items()})
assert uneven["transposed"] > 0.1 and uneven["UpSample"] < 1e-5
scale = grown["transposed"].abs().max()
md.plot.show_images(
    torch.cat([x[:6, None] / scale for x in grown.values()]), row_labels=list(grown), title="a constant, enlarged"
)

# %% [markdown]
# Training can suppress the checkerboard, but has to work for it, and it comes back in every gradient.
#
# ## 6. Attention, where the map is small
#
# Convolutions pass messages from neighbour to neighbour. Attention passes them from anywhere to anywhere. Read
# the map as a row of $N = HW$ positions with $C$ channels each. Each position asks (a query $q$), each position offers (a
# key $k$), and where they match, a value $v$ is handed over:
#
# $$\mathrm{out}_i = \sum_j w_{ij}\, v_j, \qquad w_{ij} = \operatorname{softmax}_j\!\left(\frac{q_i \cdot k_j}{\sqrt{d}}\right)
# \qquad\text{(Vaswani et al. 2017, eq. 1)}.$$
#
# $q, k, v$ are three linear maps of the position's features. The channels are split into heads of $d$, which ask
# separately. Why $\sqrt d$? A product of two vectors of $d$ independent numbers of variance 1 has variance $d$; divided, it
# has variance 1 and the softmax does not begin as a hard choice.


# %%
class SelfAttention(nn.Module):
    """Every row of x looks at every other: (B, N, dim) -> (B, N, dim)."""

    def __init__(self, dim, heads=None, bias=False):
        super().__init__()
        self.heads = heads or max(1, dim // 64)  # of about 64 channels, if nothing is said
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim, bias) for _ in "qkv")
        self.to_out = zero(nn.Linear(dim, dim))

    def forward(self, x):
        q, k, v = (f(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.to_q, self.to_k, self.to_v))
        weights = (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).softmax(dim=3)  # (B, heads, N, N)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


class SpatialAttention(nn.Module):
    """Self-attention over the positions of a map, around which the map flows unchanged: (B, C, H, W) -> the same."""

    def __init__(self, channels, heads=None, bias=False, norm=None):
        super().__init__()
        self.norm = (norm or group_norm)(channels)
        self.attention = SelfAttention(channels, heads, bias)

    def forward(self, x, context=None):
        rows = self.norm(x).flatten(2).transpose(1, 2)  # (B, HW, C)
        return x + self.attention(rows).transpose(1, 2).unflatten(2, x.shape[2:])


tokens = torch.randn(2, 9, 32)
print(same(SelfAttention(32, 4), md.nets.SelfAttention(32, 4), tokens))
print(same(SpatialAttention(32, 2), md.nets.SpatialAttention(32, 2), h))

# %% [markdown]
# (The library hands the middle line to `scaled_dot_product_attention`, which never stores the $N \times N$ weights.)
#
# The price is in the shape of `weights`. Twice the side is four times the positions and *sixteen* times the pairs. PyTorch
# can count for us: on the device `meta` a tensor has a shape and no numbers, so nothing is computed.
# **Expected per doubling: a ResNetBlock costs 4 times more, the pairs 16 times.**


# %%
def multiply_adds(net, *question):
    """Multiply-adds of one answer, in each module of `net`, by name. Both live on "meta"."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(*question)
    return {name: sum(kinds.values()) // 2 for name, kinds in counter.get_flop_counts().items()}


# %%
sides, cost = [8, 16, 32, 64, 128], {"ResNetBlock": [], "attention, all": [], "attention, pairs alone": []}
with torch.device("meta"):
    resnet, attention = ResNetBlock(64, 64, 256), SpatialAttention(64)
    for side in sides:
        x = torch.empty(1, 64, side, side)
        whole = multiply_adds(attention, x)["Global"]
        pairs = whole - 4 * side**2 * 64**2  # without the four linear maps
        costs = multiply_adds(resnet, x, torch.empty(1, 256))["Global"], whole, pairs
        for values, value in zip(cost.values(), costs, strict=True):
            values.append(value)
assert [b / a for a, b in zip(cost["attention, pairs alone"], cost["attention, pairs alone"][1:], strict=False)] == [16] * 4
assert 3.99 < cost["ResNetBlock"][2] / cost["ResNetBlock"][1] < 4.01
print("attention, in ResNetBlocks:", {side: round(a / r, 2) for side, r, a, _ in zip(sides, *cost.values(), strict=True)})
assert cost["attention, all"][0] < 0.5 * cost["ResNetBlock"][0] and cost["attention, all"][-1] > 10 * cost["ResNetBlock"][-1]
figure = md.plot.show_curves(
    {name: (sides, values) for name, values in cost.items()}, xlabel="side of the map", ylabel="multiply-adds", yscale="log",
    title="64 channels",
)  # fmt: skip
by_doublings(figure)

# %% [markdown]
# At 8 × 8 attention is the cheaper of the two, at 128 × 128 it costs many times as much. So it lives where the map is
# small, and there it is needed least? No: at the bottom each position stands for a patch of the picture, and what is exchanged
# is not pixels but what the patches hold.
#
# ## 7. Stages
#
# A stage is some layers at one size, and then a change of size. A layer is a ResNetBlock, and attention if the stage has any.
# On the way down each map is not only handed on but also **kept**, in a list.


# %%
class Layer(nn.Module):
    """A ResNetBlock, then attention if the stage has any."""

    def __init__(self, attention, *resnet):
        super().__init__()
        self.resnet, self.attention = ResNetBlock(*resnet), attention

    def forward(self, x, emb, context=None):
        x = self.resnet(x, emb)
        return self.attention(x, context) if self.attention else x


class DownBlock(nn.Module):
    """(B, in, H, W), (B, E) -> (B, out, H/2, W/2), and the list of all the maps it made. attend: builds the attention."""

    def __init__(
        self, in_channels, out_channels, emb_channels, layers=2, down=True, attend=None, norm=group_norm, asymmetric=False
    ):
        super().__init__()
        widths = [in_channels] + [out_channels] * layers
        parts = ((attend and attend(), i, out_channels, emb_channels, norm) for i in widths[:-1])
        self.layers = nn.ModuleList(Layer(*part) for part in parts)
        self.down = DownSample(out_channels, asymmetric) if down else None  # none in the last stage

    def forward(self, x, emb, context=None):
        made = []
        for layer in (*self.layers, *filter(None, [self.down])):
            x = layer(x, emb, context)
            made.append(x)
        return x, made


class MidBlock(nn.Module):
    """The bottom, where the map is smallest: ResNetBlock, attention, ResNetBlock. (B, C, H, W), (B, E) -> (B, C, H, W)"""

    def __init__(self, channels, emb_channels, attend=None, norm=group_norm):
        super().__init__()
        self.layer = Layer(attend and attend(), channels, channels, emb_channels, norm)
        self.resnet = ResNetBlock(channels, channels, emb_channels, norm)

    def forward(self, x, emb=None, context=None):
        return self.resnet(self.layer(x, emb, context), emb)


# %% [markdown]
# On the way up, each layer takes the *last* map that is left in the list and lays it beside its own, channel by
# channel. Last in, first out: what was made last on the way down has the size that is needed first on the way up. There
# is one layer more than on the way down, because the map from the change of size wants to be used too.


# %%
class UpBlock(nn.Module):
    """(B, in, H, W), (B, E) -> (B, out, 2H, 2W). skip_channels: the widths of the maps it will take from `skips`."""

    def __init__(self, in_channels, skip_channels, out_channels, emb_channels, up=True, attend=None, norm=group_norm):
        super().__init__()
        self.layers = nn.ModuleList()
        for skip in skip_channels:
            self.layers.append(Layer(attend and attend(), in_channels + skip, out_channels, emb_channels, norm))
            in_channels = out_channels
        self.up = UpSample(out_channels) if up else None

    def forward(self, x, skips, emb, context=None):
        for layer in self.layers:
            x = layer(torch.cat([x, skips.pop()], dim=1), emb, context)
        return self.up(x, skips[-1].shape[2:] if skips else None) if self.up else x


# %%
mine, theirs = (partial(kind, 48) for kind in (SpatialAttention, md.nets.SpatialAttention))
down = md.nets.DownBlock(32, 48, 64, attend=theirs)
print(same(DownBlock(32, 48, 64, attend=mine), down, h, emb))
x, made = down(h, emb)
print(same(MidBlock(48, 64, mine), md.nets.MidBlock(48, 64, theirs), x, emb))
mine, theirs = (kind(48, [48, 48, 48], 32, 64) for kind in (UpBlock, md.nets.UpBlock))
mine.load_state_dict(awaken(theirs).state_dict())
left = [torch.randn(4, 48, side, side) for side in (8, 4, 4, 4)]
skips = [list(left), list(left)]
assert_close(mine(x, skips[0], emb), theirs(x, skips[1], emb))
assert len(skips[0]) == len(skips[1]) == 1  # three of four were taken
print("down:", [tuple(m.shape[1:]) for m in made], " up:", tuple(mine(x, list(left), emb).shape[1:]))

# %% [markdown]
# ## 8. The whole
#
# The rest is bookkeeping: which stage is how wide, and which widths wait in the list. The forward pass fits a
# screen: *embed the time; down, keeping; bottom; up, taking.* Classes (chapter 08) and words (chapter 14) enter through
# arguments that stay empty here. The last convolution starts at zero, so the first answer is 0, the mean of all targets.


# %%
class UNet(nn.Module):
    """net(xt, t) -> a map like xt: (B, in, H, W), (B,) -> (B, out, H, W)."""

    def __init__(
        self, in_channels=3, out_channels=3, channels=(64, 128, 256), attention=(False, False, True), layers=2,
        context_dim=None, num_classes=None, **layout,
    ):  # fmt: skip
        super().__init__()
        if context_dim or num_classes or layout:
            raise NotImplementedError("that is for chapters 08 and 14: use md.UNet")
        width, emb_channels, last = channels[0], 4 * channels[0], len(channels) - 1
        attend = [partial(SpatialAttention, c) if a else None for c, a in zip(channels, attention, strict=True)]
        self.time = TimeEmbedding(width, emb_channels)
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        skips, self.down, self.up = [width], nn.ModuleList(), nn.ModuleList()
        for i, out in enumerate(channels):
            self.down.append(DownBlock(width, out, emb_channels, layers, i < last, attend[i]))
            skips += [out] * (layers + (i < last))
            width = out
        self.mid = MidBlock(width, emb_channels, partial(SpatialAttention, width))
        for i, out in reversed(list(enumerate(channels))):
            beside = [skips.pop() for _ in range(layers + 1)]
            self.up.append(UpBlock(width, beside, out, emb_channels, i > 0, attend[i]))
            width = out
        self.out = GSC(width, out_channels)
        zero(self.out[-1])

    def forward(self, x, t):
        emb = self.time(t)  # (B, E)
        h = self.conv_in(x)
        skips = [h]
        for block in self.down:
            h, made = block(h, emb)
            skips += made
        h = self.mid(h, emb)
        for block in self.up:
            h = block(h, skips, emb)
        return self.out(h)


# %%
torch.manual_seed(SEED)
for shape in ((32, 32), (48, 32), (30, 21)):
    x = torch.randn(4, 3, *shape)
    print(same(UNet(3, 3, CHANNELS, layers=1), md.UNet(3, 3, CHANNELS, layers=1), x, t), "at", shape)
assert_close(UNet(3, 3, CHANNELS)(x, t), torch.zeros_like(x), rtol=0, atol=0)

# %% [markdown]
# The second shape was 48 × 32, the third 30 × 21: nothing in a U-Net depends on the size. And the blocks are not ours
# alone. The repository's parity tests put the same random weights into each library block and into diffusers' block of that
# role, and compare the answers.
#
# A picture of it, drawn to scale: boxes as high as the map and as wide as its channels; down in blue, up in green. Arcs are
# the skips.


# %%
def show_u(net, size=32):
    """The maps of a U-Net in the order in which they are made, and who keeps one for whom."""
    down, up = ([part for b in side for part in (*b.layers, b.down if side is net.down else b.up) if part is not None]
                for side in (net.down, net.up))  # fmt: skip
    maps, stops = [], [net.conv_in, *down, net.mid, *up]
    hooks = [stop.register_forward_hook(lambda stop, given, out: maps.append(out.shape[1:])) for stop in stops]
    with torch.no_grad():
        net(torch.zeros(1, 3, size, size), torch.zeros(1))
    for hook in hooks:
        hook.remove()
    left, kept = 0.0, []
    with rc_context(md.plot.STYLE):
        figure = md.plot.Picture(figsize=(12, 4.6), dpi=md.plot.DPI, layout="constrained")
        axes = figure.subplots()
        for k, (stop, (c, h, _)) in enumerate(zip(stops, maps, strict=True)):
            middle, foot = left + c / 80, 1.1 * math.log2(h / size)
            if stop in up and hasattr(stop, "resnet"):
                start, top = kept.pop(), foot + h / size
                curve = {
                    "arrowstyle": "->",
                    "color": md.plot.CURVES[1],
                    "connectionstyle": f"arc3,rad={-0.9 / (middle - start)}",
                }
                axes.annotate("", (middle, top), (start, top), arrowprops=curve)
            elif k <= len(down):
                kept.append(middle)
            axes.add_patch(
                Rectangle(
                    (left, foot), c / 40, h / size, color=md.plot.CURVES[0 if k <= len(down) else 3 if stop is net.mid else 2]
                )
            )
            axes.text(middle, foot - 0.05, f"{c}\n{h}²", ha="center", va="top", fontsize=10)
            left += c / 40 + 0.5
        axes.set(xlim=(-0.2, left), ylim=(1.1 * math.log2(maps[len(down)][1] / size) - 0.5, 1.6))
        axes.set_axis_off()
    return figure


show_u(UNet(3, 3, CHANNELS, layers=1))

# %% [markdown]
# ## 9. The race
#
# Three networks, the same images, noise and levels at every step: the stack of section 1; our U-Net; and our U-Net with
# all skips replaced by zeros, so that everything has to go through the bottom. It costs no parameter, and tells what the
# skips are for. A fourth run gives the U-Net four times the steps, which is still less work than the stack has had.


# %%
def without_skips(net):
    """The same network, in which every map that was kept for the way up is forgotten."""

    def forget(block, given):
        given[1][:] = [torch.zeros_like(skip) for skip in given[1]]  # given = x, skips, emb

    for block in net.up:
        block.register_forward_pre_hook(forget)
    return net


@torch.no_grad()
def error_at(net, x0, schedule, ts):
    """Mean squared error of a v-network at each timestep of ts, always with the same noise: (len(ts),)."""
    generator, found = torch.Generator().manual_seed(0), []
    for t in ts:
        eps = torch.randn(x0.shape, generator=generator).to(x0)
        found.append(md.diffusion_loss(net, x0, schedule, "v", t=torch.full((len(x0),), t), noise=eps))
    return torch.stack(found).cpu()


# %%
for name, steps in (("no skips", STEPS), ("U-Net", STEPS), ("U-Net, 4 ×", LONGER * STEPS)):
    torch.manual_seed(SEED)
    net = UNet(3, 3, CHANNELS, layers=1)
    net = without_skips(net) if name == "no skips" else net
    nets[name], losses[name] = fit(net, train_set, steps, BATCH, SEED, RATE, device)
    drawn[name] = draw(nets[name], noise, levels)
with torch.device("meta"):
    question = torch.empty(1, 3, SIZE, SIZE), torch.empty(1)
    work = {"stack": multiply_adds(Stack(width), *question)["Global"]}
    work["U-Net"] = multiply_adds(UNet(3, 3, CHANNELS, layers=1), *question)["Global"]
print(f"multiply-adds for one image: {work}; the stack works {work['stack'] / work['U-Net']:.1f} times as much")
assert work["stack"] > (5 if FULL else 3) * work["U-Net"]

# %% [markdown]
# Equal in parameters, the stack works nearly six times as hard, since each of its weights is used at every pixel. Where does
# each of them do well? At low noise an answer can be found nearby; at high noise it needs the whole picture; and what the
# bottom cannot carry, the network without skips has to guess.
#
# **Expected: at the noisiest level the stack's error is twice that of the U-Net; below the middle, where all can be read off
# nearby, it wins. Without skips the error at the cleanest level is above 0.9, where an answer of 0 would score 1; with
# them, below 0.25. At the noisiest level, where there are no details to carry, skips hardly matter. And less work than
# the stack has cost, spent on the U-Net, brings it to about half the stack's error or less, at every level.**

# %%
at = list(range(62, 1000, 125))
errors = {name: error_at(net, x_test, schedule, at) for name, net in nets.items()}
for name, values in errors.items():
    print(f"{name:10} mean {values.mean():.3f}   by level", [round(value, 3) for value in values.tolist()])
if FULL:
    assert errors["stack"][-1] > 1.7 * errors["U-Net"][-1]
    assert (errors["stack"] < errors["U-Net"])[:3].all()
    assert errors["U-Net"][0] < 0.25 and errors["no skips"][0] > 0.9
    assert 0.8 < errors["no skips"][-1] / errors["U-Net"][-1] < 1.3
    assert (errors["U-Net, 4 ×"] < 0.6 * errors["stack"]).all()
curves = {name: (at, values) for name, values in errors.items()}
md.plot.show_curves(curves, xlabel="t", ylabel="squared error of v", yscale="log", title="who is good at what")

# %% [markdown]
# The same, for the eye. Six images under noise, and what each network believes is beneath:

# %%
level = schedule.at(312)
eps = torch.randn(6, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(SEED)).to(device)
noisy = md.add_noise(x_test[:6], eps, level)
with torch.no_grad():
    beneath = [md.denoiser(net, "v")(noisy, level).x0 for net in nets.values()]
md.plot.show_images(torch.cat([x_test[:6], noisy, *beneath]), columns=6, row_labels=["real", "t = 312", *nets])

# %% [markdown]
# Without skips the noise stays. To take it off, the noise of every pixel would have to be told through the bottom, from
# the door to the exit, and in so few steps no network learns to carry it. With skips nothing has to be carried: the maps
# of the way down hold the pixels in place, and the bottom only has to say what they mean. And the drawings:

# %%
apart = {name: patchwork(x) for name, x in drawn.items()}
print("corners differ by", {name: round(value, 3) for name, value in apart.items()})
if FULL:
    assert apart["U-Net"] < apart["stack"] / 2 and apart["U-Net, 4 ×"] < 0.1
md.plot.show_images(torch.cat([x[:8] for x in drawn.values()]), row_labels=list(drawn))

# %% [markdown]
# **Expected: the U-Net's corners agree better than the stack's by a factor of 2 or more, and after the longer run they differ
# by less than 0.1.** Chapter 05 trains one with care.
#
# ## 10. Where the parameters sit and where the time goes
#
# Count both by stage. A convolution with $C$ channels in and out has $9C^2$ parameters wherever it stands, and is used
# $HW$ times. From stage to stage $C$ grows and $HW$ falls to a quarter.


# %%
def by_stage(net, *question):
    """Parameters and multiply-adds of each stage, as shares of the whole: name -> (share, share)."""
    stages = {f"{side} {i + 1}": f"{side}.{i}" for side, n in (("down", len(net.down)),) for i in range(n)}
    stages |= {"mid": "mid"} | {f"up {len(net.up) - i}": f"up.{i}" for i in range(len(net.up))}
    work = multiply_adds(net, *question)
    return {
        stage: (count(net.get_submodule(name)) / count(net), work[f"{type(net).__name__}.{name}"] / work["Global"])
        for stage, name in stages.items()
    }


def show_shares(shares):
    """Bars for each network: shares of the parameters and of the multiply-adds, stage by stage."""
    with rc_context(md.plot.STYLE):
        figure = md.plot.Picture(figsize=(13, 4.2), dpi=md.plot.DPI, layout="constrained")
        for axes, (name, stages) in zip(figure.subplots(1, len(shares)), shares.items(), strict=True):
            for k, what in enumerate(("parameters", "multiply-adds")):
                places = [i + 0.4 * k - 0.2 for i in range(len(stages))]
                axes.bar(places, [100 * share[k] for share in stages.values()], 0.4, color=md.plot.CURVES[k], label=what)
            axes.set_xticks(range(len(stages)), stages, rotation=45)
            axes.set(title=name, ylabel="percent")
            axes.legend()
    return figure


# %% [markdown]
# And the real one. Stable Diffusion 1's U-Net is the same class with other numbers: four stages, words at the first
# three, eight heads, 32 groups, latents of four channels instead of pixels. On the meta device it costs no memory.
# **Expected: 859 520 964 parameters**, the number that every copy of Stable Diffusion 1 has.

# %%
with torch.device("meta"):
    options = {"attention": (True, True, True, False), "context_dim": 768, "heads": 8, "groups": 32}
    sd = md.UNet(4, 4, (320, 640, 1280, 1280), **options)
    tokens = torch.empty(1, 77, 768)
    shares = {f"ours, {SIZE}²": by_stage(UNet(3, 3, CHANNELS, layers=1), *question)}
    latents = torch.empty(1, 4, 64, 64), torch.empty(1), None, tokens
    shares["Stable Diffusion 1, 64²"] = by_stage(sd, *latents)
    total = multiply_adds(sd, *latents)["Global"]
print(f"{count(sd):,} parameters, {total / 1e9:.0f} billion multiply-adds for one step on 64 x 64 latents")
assert count(sd) == 859_520_964 and 390e9 < total < 410e9
show_shares(shares)

# %% [markdown]
# The way up is the heavier half: it has a layer more per stage, and each takes in twice the channels. In
# Stable Diffusion parameters sit deep, where channels are many, while the work is done in the outer stages, where pixels
# are many. **Expected: the outermost stages, first down and last up, have less than 5 % of the parameters and do more
# than a quarter of the work.**

# %%
outer = [sum(shares["Stable Diffusion 1, 64²"][stage][k] for stage in ("down 1", "up 1")) for k in (0, 1)]
print(f"outermost stages: {outer[0]:.1%} of the parameters, {outer[1]:.1%} of the work")
assert outer[0] < 0.05 and outer[1] > 0.25
assert all(
    sum(share[k] for stage, share in stages.items() if "up" in stage) > 0.5 for stages in shares.values() for k in (0, 1)
)

# %% [markdown]
# ## 11. Four bugs you will meet
#
# Beside the group of one channel, which had its own picture.
#
# **Stages in a plain list.** `self.down = [...]` instead of `nn.ModuleList`. PyTorch does not see what is in a plain list: the
# parameters do not train, do not move to the GPU, and are not saved. Nothing is raised on a CPU. **Expected: of our U-Net's
# parameters, less than a third would be left for the optimizer.**

# %%
forgetful = UNet(3, 3, CHANNELS, layers=1)
down, up = list(forgetful.down), list(forgetful.up)
del forgetful.down, forgetful.up
forgetful.down, forgetful.up = down, up
share = count(forgetful) / count(UNet(3, 3, CHANNELS, layers=1))
assert forgetful(x, t).shape == x.shape  # runs as if nothing had happened
print(f"the optimizer sees {share:.0%} of the parameters")
assert share < 1 / 3

# %% [markdown]
# **A side that does not halve.** 28 pixels, as MNIST has them, become 14, 7, 4; and on the way up 4 becomes 8 and meets a skip
# of 7. This is why `UpSample` can be given a size: that of the map it will meet. Without it, an error from deep inside, which
# most tutorials evade by padding to 32:

# %%
odd = UNet(3, 3, (8, 8, 8, 8), (False,) * 4)
assert odd(torch.zeros(1, 3, 28, 28), torch.zeros(1)).shape == (1, 3, 28, 28)
for block in odd.up[:-1]:
    block.up.register_forward_pre_hook(lambda up, given: given[:1])  # never told the size
try:
    odd(torch.zeros(1, 3, 28, 28), torch.zeros(1))
    raise AssertionError("this should not have worked")
except RuntimeError as error:
    print(error)

# %% [markdown]
# **Skips first in, first out.** `pop(0)` in place of `pop()`. In most networks the shapes disagree and Python complains. In
# a network of one stage, or one without changes of size, they agree, and each layer is handed the wrong map. The answer is
# another function, with no error. Count which map reaches which layer, once, when you write such a list.

# %%
torch.manual_seed(SEED)
block = awaken(UpBlock(16, [16, 16, 16], 16, 64, up=False))
x, left = torch.randn(4, 16, 8, 8), [torch.randn(4, 16, 8, 8) for _ in range(3)]
right, wrong = block(x, list(left), emb), block(x, left[::-1], emb)
off = ((right - wrong).norm() / right.norm()).item()
print(f"no error, and an answer that is off by {off:.0%}")
assert off > 0.2

# %% [markdown]
# **A shape that cannot be.** A published lecture explains the skips of Stable Diffusion with maps of 512, 512 and 3072
# channels. What is the widest that really occurs? Look at what the layers on the way up take in. **Expected: 2560**, twice
# 1280.

# %%
taken = [[layer.resnet.first[0].num_channels for layer in block.layers] for block in sd.up]
print(taken)
assert max(map(max, taken)) == 2560

# %% [markdown]
# ## 12. What we left out
#
# | left out | where to read it |
# |---|---|
# | the class in the same vector as the time | chapter 08 |
# | words: cross-attention, the transformer in each stage | chapter 14; Rombach et al. 2022, section 3.3 |
# | folding pixels into channels; a way around the whole network | `patch` and `shortcut` of `md.UNet`; chapter 05 |
# | scale *and* shift from the embedding | Dhariwal & Nichol 2021, section 3 |
# | keeping the size of features and weights in hand through training | Karras et al. 2024 |
# | no convolutions at all: patches as tokens | Peebles & Xie 2023; chapter 20 |
# | attention without its $N \times N$ table | Dao et al. 2022; chapter 22 |
#
# What you wrote is the plain half of `minidiff/nets/blocks.py` and `unet.py`, and the heart of `embeddings.py` and
# `attention.py`. [Exercises](exercises/04_the_unet.ipynb): five of these pieces, from memory.
#
# **Next:** the network has its shape. What does it take to train it until it draws?

# %%
print(f"torch {torch.__version__}, minidiff {md.__version__}, {device}")
