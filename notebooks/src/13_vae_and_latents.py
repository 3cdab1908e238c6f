# %% [markdown]
# # 13 · The VAE: a picture in a thousand numbers
#
# **Why does Stable Diffusion not diffuse pixels, and what does it diffuse instead?**
#
# Every model so far has worked on the pixels themselves. At 32 × 32 that is a choice; at 512 × 512 it is a bill. Most
# of the numbers in a large picture say that a wall goes on being a wall, and a U-Net that diffuses pixels pays for each of
# them at every step. Stable Diffusion divides the work. One network, the **VAE**, learns once and for all to write a picture
# down in few numbers and to read it back. The diffusion model then works on what was written, the **latent** $z$, and the
# pixels are painted once, at the end.
#
# It sounds like an autoencoder, and an autoencoder is where we start. What it lacks is the subject of this chapter: a
# size that can be relied on, and a tolerance for latents that are not quite right.
#
# You need the blocks of chapter 04, the loop of chapter 05 and the schedules of chapter 01. Nothing is downloaded.

# %% [markdown]
# > **For the lecturer.** 75 minutes: 10 for the bill, 15 for the naive autoencoder, 20 for the KL, 15 for what is in a
# > latent, 15 for the scaling factor and Stable Diffusion's own; the bugs are homework. Four small networks are trained,
# > a minute or so each on two CPU cores: start these two cells before you talk.
# >
# > Worth asking before the cell is run: *what does the loss of an autoencoder say about the size of its latents?* (naive
# > attempt) · *is the mean of two latents a picture of something in between?* (what is in a latent) · *a latent is five times
# > too large: which end of the schedule suffers?* (the scaling factor). The second is worth a vote.

# %%
import copy
import math
from functools import partial

import matplotlib
import torch
from torch.nn.functional import avg_pool2d, interpolate
from torch.testing import assert_close

import minidiff as md
import minidiff.pipelines.latents as reference
from minidiff.nets.tiling import sliced, tiled

device = "cuda" if torch.cuda.is_available() else "cpu"

# %% [markdown]
# The knobs. A quick mode for tests replaces a value by the one in its comment; nothing else changes.

# %% tags=["knobs"]
SEED = 0
SIZE = 32  # pixels to a side
IMAGES = 6000  # to train on  # quick: 200
TEST = 1000  # never trained on  # quick: 100
CHANNELS = (16, 32, 64)  # of the VAE's stages: two halvings, so 32 pixels become 8  # quick: (8, 8, 16)
STEPS = 700  # optimizer steps for each of four networks  # quick: 5
BATCH = 16  # images to a step
DRAWS = 200_000  # of a Monte Carlo estimate
WALKS = 200  # walks of an exact denoiser  # quick: 40
FULL = True  # are the runs long enough for the numbers in the text?  # quick: False

# %% [markdown]
# ## 1. The bill
#
# Stable Diffusion's picture has $3 \cdot 512^2$ numbers, its latent $4 \cdot 64^2$: an eighth of the height and of the
# width, and four channels in place of three. Layers of convolution cost by the area, which is 64 times smaller; that is the
# 64 one reads about. The *numbers* are fewer by $64 \cdot \tfrac34$. **Expected: 48.**
#
# Attention is worse. It compares every place with every other (chapter 14), so it grows as the area squared.
# **Expected: 4096 times as many pairs in pixels as in latents**, and a single table of them in half precision takes 137 GB.

# %%
pixels, latents = 3 * 512**2, 4 * 64**2
pairs = {"pixels": (512**2) ** 2, "latents": (64**2) ** 2}
print(f"{pixels:,} numbers, or {latents:,}: {pixels / latents:.0f} times fewer")
for name, n in pairs.items():
    print(f"{name:8} {n:>14,} pairs, {2 * n / 1e9:8.2f} GB a table")
assert pixels == 48 * latents and pairs["pixels"] == 4096 * pairs["latents"] and 137 < 2 * pairs["pixels"] / 1e9 < 138
sides = range(64, 1025, 32)
md.plot.show_curves(
    {"on pixels": (sides, [side**4 for side in sides]), "on latents": (sides, [(side // 8) ** 4 for side in sides])},
    xlabel="pixels to a side", ylabel="pairs of places", title="what self-attention compares", yscale="log",
)  # fmt: skip

# %% [markdown]
# What would be lost? Average each block of 4 × 4 pixels, which throws 15 of 16 numbers away, and ask what share of the
# pictures' variance went with them. **Expected: 3.5 %, on our drawings.** That is the trade: the fine grain is nearly all of
# the numbers and nearly none of the picture. But it is not none, and the middle row shows that it is what the eye calls sharp.

# %%
torch.manual_seed(SEED)
train = md.data.Images(md.data.Shapes(IMAGES, size=SIZE, seed=SEED).tensors()[0])
held_out = md.data.Shapes(TEST, size=SIZE, seed=SEED + 1)
x = md.data.from_pixels(held_out.tensors()[0]).to(device)
blocks = interpolate(avg_pool2d(x, 4), scale_factor=4.0)
lost = ((x - blocks).square().mean() / (x - x.mean(0)).square().mean()).item()
print(f"in 15 of 16 numbers: {lost:.1%} of the variance")
assert 0.03 < lost < 0.04
md.plot.show_images(torch.cat([x[:8], blocks[:8], x[:8] - blocks[:8]]), row_labels=["picture", "1 of 16", "15 of 16"])

# %% [markdown]
# So a learned compressor should keep what block means lose: few numbers, and a decoder that knows what edges look like.
#
# ## 2. The naive attempt: squeeze and unsqueeze
#
# An encoder halves the picture twice, to 8 × 8 places of 4 numbers; a decoder doubles it back; the loss is how far the copy
# is from the original. `md.nets.VAE` holds the two networks, built of chapter 04's blocks. Two things about it are not
# naive, the noise in its latents and a term that watches their size, and `beta=None` leaves both out for now.


# %%
def fit(images, beta, channels, steps, batch, seed, device):
    """Train a small VAE on |x - copy| + beta * KL, both summed over an image; beta=None trains a plain autoencoder."""
    torch.manual_seed(seed)
    net = md.nets.VAE(images.pixels.shape[1], channels=channels, layers=1, groups=None)
    with torch.no_grad():  # the log variance starts low: latents that begin as noise teach the decoder to ignore them
        net.quant_conv.bias[net.config["latent_channels"] :] -= 4

    def loss(net, x, y):
        if beta is None:
            return (net.decode(net.encode(x).mean) - x).abs().mean()
        made, posterior = net(x)
        error = (made - x).abs().flatten(1).sum(1)  # (B,)
        return (error + beta * posterior.kl()).mean() / x[0].numel()  # divided, so that losses compare with the above

    config = md.TrainConfig(steps=steps, seed=seed)
    trainer = md.Trainer(net.to(device, memory_format=torch.channels_last), loss, config)
    losses = trainer.fit(md.data.batches(images, batch, device, seed=seed))
    return trainer.ema.net, losses


def grey_levels(made, x):
    """Mean error per pixel in steps of an 8-bit file: [-1, 1] is 255 of them."""
    return 127.5 * (made.clamp(-1, 1) - x).abs().mean().item()


@torch.no_grad()
def means(vae, x):
    """The latents that the encoder thinks most likely, (B, 4, 8, 8)."""
    return torch.cat([vae.encode(part).mean for part in x.split(100)])


@torch.no_grad()
def decoded(vae, z):
    """Their pictures, (B, 3, 32, 32)."""
    return torch.cat([vae.decode(part) for part in z.split(100)]).clamp(-1, 1)


# %%
nets, losses = {}, {}
nets["plain"], losses["plain"] = fit(train, None, CHANNELS, STEPS, BATCH, SEED, device)
plain = nets["plain"]
z = means(plain, x)
errors = {"block means": grey_levels(blocks, x), "autoencoder": grey_levels(decoded(plain, z), x)}
print(f"{x[0].numel()} numbers in {z[0].numel()}; grey levels off:", {name: round(e, 1) for name, e in errors.items()})
assert x[0].numel() == 12 * z[0].numel()
if FULL:
    assert errors["autoencoder"] < 0.75 * errors["block means"]
md.plot.show_images(torch.cat([x[:8], decoded(plain, z[:8])]), row_labels=["picture", "copy"])

# %% [markdown]
# As a compressor it does its work: twelve times fewer numbers, and edges where block means have stairs; in
# mean error it loses half of what they lose. Now use it as a diffusion model would.
#
# **First question: how large is a latent?** A schedule is made for data of about unit variance. The loss has no opinion.
# Multiply the encoder's last layer by ten, divide the decoder's first by ten, and every picture is copied as before,
# from latents ten times as large. **Expected: the same copies, up to rounding.**


# %%
def resized(vae, factor):
    """The same autoencoder, its latents `factor` times as large."""
    twin = copy.deepcopy(vae)
    with torch.no_grad():
        mean_rows = slice(0, vae.config["latent_channels"])  # the other half of the rows is the log variance ...
        twin.quant_conv.weight[mean_rows] *= factor
        twin.quant_conv.bias[mean_rows] *= factor
        twin.quant_conv.bias[mean_rows.stop :] += 2 * math.log(factor)  # ... to which a factor is a summand
        twin.post_quant_conv.weight /= factor
    return twin


tenfold = resized(plain, 10 / z.std().item())  # standard deviation 10
unit = resized(plain, 1 / z.std().item())  # and 1
assert_close(decoded(tenfold, means(tenfold, x[:8])), decoded(plain, z[:8]), rtol=1e-3, atol=1e-3)
spreads = {name: means(vae, x).std().item() for name, vae in (("as trained", plain), ("twin", tenfold), ("unit", unit))}
print("standard deviation of the latents:", {name: round(value, 2) for name, value in spreads.items()})
print("of each channel:", [round(value, 2) for value in z.std((0, 2, 3)).tolist()])

# %% [markdown]
# So the size is an accident of the training. Does it matter? A latent of standard deviation $s$ is **drowned** where noise
# and signal are equal, $\alpha_t\, s = \sigma_t$. On Stable Diffusion's schedule:
#
# **Expected:** a latent of $s = 1$ is above the noise for 354 of the 1000 levels, one of $s = 10$ for 934. And at the last
# level, where the sampler will start from noise alone, the tenfold latent still has 0.68 of the noise's size.

# %%
schedule = md.Schedule.scaled_linear()
above = {s: int((schedule.alpha * s > schedule.sigma).sum()) for s in (1, 5.49, 10)}
last = (10 * schedule.alpha / schedule.sigma)[-1].item()
print(f"levels above the noise: {above}; signal to noise at the end, tenfold: {last:.2f}")
assert above == {1: 354, 5.49: 816, 10: 934} and abs(last - 0.684) < 0.001
ts = [0, 200, 400, 600, 800, 999]
eps = torch.randn(1, 4, SIZE // 4, SIZE // 4, generator=torch.Generator().manual_seed(SEED)).to(device)
rows = [decoded(vae, md.add_noise(means(vae, x[6:7]), eps, schedule.at(t))) for vae in (unit, tenfold) for t in ts]
md.plot.show_images(torch.cat(rows), row_labels=["s = 1", "s = 10"], column_labels=[f"t = {t}" for t in ts])

# %% [markdown]
# One network, one picture, one noise, one schedule: at $t = 600$ the upper row is gone, and the lower one still says plainly
# what it was; a denoiser finds little to learn there. At 999 it is not quite erased.
#
# **Second question: what if a latent is not quite right?** A diffusion model's latents never are. Nobody has told the
# decoder what to do with a point that no picture was encoded to. Below, latents with noise of 30 % of their size added, and
# noise alone.

# %%
near = z[:8] + 0.3 * z.std() * torch.randn_like(z[:8])
nowhere = z.mean((0, 2, 3), keepdim=True) + z.std((0, 2, 3), keepdim=True) * torch.randn_like(z[:8])
rows = [decoded(plain, some) for some in (z[:8], near, nowhere)]
md.plot.show_images(torch.cat(rows), row_labels=["latent", "30 % noise", "noise alone"], title="a plain autoencoder")

# %% [markdown]
# Every latent that is not exactly one of the encoder's is a guess in the dark. Two wishes, then: a size of about 1, and a
# decoder that has *seen* latents which are a little wrong.
#
# ## 3. An encoder that is never quite sure
#
# Both are granted by one idea (Kingma & Welling 2014). The encoder answers not with a point but with a
# normal distribution, a mean $m$ and a standard deviation $s$ for each number of the latent, and the decoder is given a
# draw from it. To be decoded well, neighbours of $m$ must mean nearly the same.
#
# A draw has no derivative. But a draw can be *written* as a function that has one, of noise that comes from outside:
#
# $$z = m + s\,\epsilon, \qquad \epsilon \sim \mathcal N(0, 1), \qquad
# \frac{\partial z}{\partial m} = 1, \quad \frac{\partial z}{\partial s} = \epsilon .$$
#
# This is the **reparameterisation trick** (their eq. 10). It is the formula of our noisy images, with $\alpha = 1$.
#
# What keeps the encoder from answering $s = 0$, and being a plain one again? A price on knowing. Compare its
# answer $q = \mathcal N(m, s^2)$ with a $p = \mathcal N(m', s'^2)$ that is fixed beforehand, by the **Kullback–Leibler
# divergence**, the mean over $q$ of $\log q - \log p$. The logarithms are
#
# $$\log q(z) = -\tfrac12\log 2\pi - \log s - \frac{(z-m)^2}{2 s^2}, \qquad
# \log p(z) = -\tfrac12\log 2\pi - \log s' - \frac{(z-m')^2}{2 s'^2}.$$
#
# Under $q$, the mean of $(z-m)^2$ is $s^2$, and since $z - m' = (z - m) + (m - m')$, whose cross term has mean 0, the mean of
# $(z-m')^2$ is $s^2 + (m-m')^2$. So
#
# $$\mathrm{KL}(q\,\|\,p) = \mathbb E_q\big[\log q - \log p\big]
# = \log\frac{s'}{s} - \frac12 + \frac{s^2 + (m-m')^2}{2 s'^2}.$$
#
# With the standard normal for $p$, $m' = 0$ and $s' = 1$:
#
# $$\mathrm{KL} = \tfrac12\left(m^2 + s^2 - 1 - \log s^2\right) \qquad\text{(Kingma \& Welling 2014, appendix B)}$$
#
# The numbers of a latent are independent under both, so logarithms of products are sums, and the KLs of all numbers add up.
# Its unit is the *nat*, $1/\log 2 \approx 1.44$ bits. The network emits $\log s^2$, which may be any number, where $s$ would
# have to be positive.


# %%
class Gaussian:
    """What an encoder answers: a normal distribution for every number of a latent (B, C, h, w)."""

    def __init__(self, mean, logvar):
        if mean.shape != logvar.shape:
            raise ValueError(f"mean has shape {tuple(mean.shape)}, logvar {tuple(logvar.shape)}")
        self.mean, self.logvar = mean, logvar.clamp(-30, 20)  # exp of an untrained answer must not overflow

    @property
    def std(self):
        return (self.logvar / 2).exp()

    def sample(self, generator=None):
        device = generator.device if generator else self.mean.device  # a CPU seed draws the same on every machine
        eps = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype, device=device)
        return self.mean + self.std * eps.to(self.mean.device)

    def kl(self):
        """Nats from the standard normal, summed over a latent: (B,)."""
        return 0.5 * (self.mean**2 + self.logvar.exp() - 1 - self.logvar).flatten(1).sum(1)


# %% [markdown]
# A derivation is checked by what it derives. Draw from a $q$ with $m = 0.7$, $s = 0.5$, and average $\log q - \log p$.
# **Expected by the formula: $\tfrac12(0.49 + 0.25 - 1 + 1.386) = 0.563$ nats.** And against the library's class, and
# PyTorch's own formula.

# %%
m, logvar = torch.tensor([[0.7]]), torch.tensor([[2 * math.log(0.5)]])
q, p = torch.distributions.Normal(0.7, 0.5), torch.distributions.Normal(0.0, 1.0)
drawn = Gaussian(m.expand(DRAWS, 1), logvar.expand(DRAWS, 1)).sample(torch.Generator().manual_seed(SEED))
by_formula, by_chance = Gaussian(m, logvar).kl().item(), (q.log_prob(drawn) - p.log_prob(drawn)).mean().item()
print(f"KL by the formula {by_formula:.4f}, by {DRAWS:,} draws {by_chance:.4f}")
assert abs(by_formula - 0.563) < 0.001 and abs(by_chance - by_formula) < 0.01
assert_close(torch.tensor(by_formula), torch.distributions.kl_divergence(q, p))

mean, logvar = torch.randn(3, 4, 8, 8, requires_grad=True), torch.randn(3, 4, 8, 8, requires_grad=True)
ours, theirs = Gaussian(mean, logvar), md.nets.Gaussian(mean, logvar)
seeds = [torch.Generator().manual_seed(SEED) for _ in range(3)]
assert_close((ours.kl(), ours.sample(seeds[0])), (theirs.kl(), theirs.sample(seeds[1])), rtol=0, atol=0)
ours.sample(seeds[2]).sum().backward()
assert_close(mean.grad, torch.ones_like(mean))  # the gradient went through the draw

# %% [markdown]
# What the price asks for: at $m = 0$ nothing, if $s = 1$. To know a number to one part in ten, $s = 0.1$, costs
# $\log 10 - \tfrac12 + \ldots \approx 1.8$ nats; to be three standard deviations from the centre costs 4.5 on top.

# %%
s = torch.linspace(0.03, 2, 200)
price = {f"m = {m}": (s, Gaussian(torch.full((200, 1), float(m)), 2 * s.log()[:, None]).kl()) for m in (0, 1, 3)}
assert abs(Gaussian(torch.zeros(1, 1), torch.tensor([[2 * math.log(0.1)]])).kl().item() - 1.81) < 0.01
md.plot.show_curves(price, xlabel="s", ylabel="nats", title="the price of one number of a latent")

# %% [markdown]
# ## 4. How much to pay for a nat
#
# The two terms are not invented; they bound the likelihood of a picture. For any $q$, with Jensen's inequality,
#
# $$\log p(x) = \log \mathbb E_{q}\left[\frac{p(x\mid z)\,p(z)}{q(z)}\right]
# \;\ge\; \mathbb E_{q}\big[\log p(x\mid z)\big] - \mathrm{KL}(q\,\|\,p).$$
#
# Suppose the decoder thinks each pixel right up to an error with density $\tfrac{1}{2b}e^{-|x-\hat x|/b}$, whose mean size is
# $b$. Then $-\log p(x\mid z) = \tfrac1b\sum|x-\hat x| + \text{const}$, and, times $b$, the bound becomes a loss:
#
# $$\text{loss} = \sum |x - \hat x| + \beta\;\mathrm{KL}, \qquad \beta = b .$$
#
# So **$\beta$ is an error per pixel: the one that the decoder is forgiven.** (Not the $\beta_t$ of a schedule. The letter is
# that of Higgins et al. 2017.) Read Stable Diffusion's in this light. It is $10^{-6}$, on sums over picture and latent
# (Rombach et al. 2022, appendix G), beside a perceptual loss that we leave out. One grey level in one number of one pixel is
# worth $\tfrac{2}{255} / 10^{-6}$ nats. **Expected: 7843.** The KL is hardly there. It keeps latents from running away, and
# leaves size to be set otherwise.
#
# We train with that weight, with $\beta = 0.01$, which forgives one grey level, and with $\beta = 1$, which forgives half of
# them all.

# %%
betas = [1e-6, 0.01, 1.0]
print(f"one grey level is worth {2 / 255 / betas[0]:.0f} nats; forgiven: {[f'{127.5 * beta:.3g}' for beta in betas]} levels")
assert round(2 / 255 / 1e-6) == 7843
for beta in betas:
    name = f"β = {beta:g}"
    nets[name], losses[name] = fit(train, beta, CHANNELS, STEPS, BATCH, SEED, device)
window = max(1, STEPS // 20)
smooth = {name: torch.tensor(values).unfold(0, window, 1).mean(1) for name, values in losses.items()}
curves = {name: (range(window, STEPS + 1), values) for name, values in smooth.items()}
md.plot.show_curves(curves, xlabel="step", ylabel=f"loss, mean of {window} steps", yscale="log")

# %% [markdown]
# **Expected:** the larger $\beta$, the fewer nats and the worse the copies. The two smallest copy about equally well; at
# $\beta = 1$ shapes are not worth their price: they blur, or are left out. Where the KL counts, size is no accident: draws
# come out within a factor of two of the standard normal.

# %%
table = {}
for name, vae in nets.items():
    with torch.no_grad():
        posterior = vae.encode(x[:500])
        draws = posterior.sample(torch.Generator().manual_seed(SEED))
    table[name] = {"off": grey_levels(decoded(vae, posterior.mean), x[:500]), "nats": posterior.kl().mean().item(),
                   "std of z": draws.std().item(), "of it, noise": posterior.std.mean().item()}  # fmt: skip
    if name == "plain":  # it has an answer for the variance, which nothing has trained
        table[name] |= {"nats": math.nan, "std of z": posterior.mean.std().item(), "of it, noise": 0.0}
    print(f"{name:10}", "   ".join(f"{key} {value:8.3f}" for key, value in table[name].items()))
low, middle, high = (table[f"β = {beta:g}"] for beta in betas)
if FULL:
    assert low["nats"] > middle["nats"] > high["nats"] and high["off"] > 2 * low["off"]
    assert 0.7 < middle["std of z"] < 1.8
rows = [x[:8]] + [decoded(vae, means(vae, x[:8])) for vae in nets.values()]
md.plot.show_images(torch.cat(rows), row_labels=["picture", *nets])

# %% [markdown]
# What did the nats buy? Add noise to the latents, in units of their own standard deviation, and decode. **Expected at half
# the size of a latent: the plain autoencoder loses more grey levels than $\beta = 0.01$,** whose decoder has met such noise in
# training; and Stable Diffusion's weight is hardly better than none.

# %%
amounts, harm = [0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0], {}
for name, vae in nets.items():
    z = means(vae, x[:200])
    unit_noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(SEED)).to(device)
    harm[name] = [grey_levels(decoded(vae, z + amount * z.std() * unit_noise), x[:200]) for amount in amounts]
lost = {name: round(values[4] - values[0], 1) for name, values in harm.items()}
print("grey levels lost to noise of half the latent's size:", lost)
if FULL:
    assert lost["β = 0.01"] < lost["plain"] / 2
md.plot.show_curves(
    {name: (amounts, values) for name, values in harm.items()},
    xlabel="noise, in standard deviations of the latent", ylabel="grey levels off", title="who forgives a wrong latent?",
)  # fmt: skip

# %% [markdown]
# And noise alone? The promise of a VAE is that draws from $p$ decode to pictures, so try all three. **Expected: none is a
# picture.** With a small $\beta$ the latents fill only a thin part of what $p$ allows, and $p$ knows nothing of which number
# goes with which neighbour. A VAE of Stable Diffusion's kind is a compressor, not a generator. To know which latents are
# pictures is what the diffusion model is for.

# %%
chance = torch.randn(8, 4, SIZE // 4, SIZE // 4, generator=torch.Generator().manual_seed(SEED)).to(device)
named = {name: vae for name, vae in nets.items() if name != "plain"}
md.plot.show_images(torch.cat([decoded(vae, chance) for vae in named.values()]), row_labels=list(named), title="z from p")

# %% [markdown]
# ## 5. What is in a latent?
#
# From here on, `vae` is the one with $\beta = 0.01$. Its four channels, each on a grey scale of its own:

# %%
vae = nets["β = 0.01"]
z = means(vae, x)
centred = (z - z.mean((0, 2, 3), keepdim=True)) / z.std((0, 2, 3), keepdim=True)
rows = [interpolate(x[:8].mean(1, keepdim=True), scale_factor=0.25)] + [centred[:8, k : k + 1] / 2.5 for k in range(4)]
md.plot.show_images(torch.cat(rows), row_labels=["picture, 8 × 8", *(f"channel {k}" for k in range(4))])

# %% [markdown]
# A latent is a small picture. It has places, the shapes are where they were, and the channels look like colours in some other
# basis. How far does that go? Fit one linear map from the four channels to the mean colour of each 4 × 4 block, the same map
# at all places, and count the share of the colours' variance that it explains on pictures it was not fitted to.
# **Expected: more than two thirds.** (Programs that show Stable Diffusion's progress do so, with 12 numbers and no decoder.)


# %%
def as_rows(maps):
    """(B, C, h, w) -> (B * h * w, C)"""
    return maps.movedim(1, -1).flatten(0, 2)


half = len(x) // 2
ones = torch.ones(len(as_rows(z[:half])), 1, device=device)
recipe = torch.linalg.lstsq(torch.cat([as_rows(z[:half]), ones], 1), as_rows(avg_pool2d(x[:half], 4))).solution  # (5, 3)
colours = avg_pool2d(x[half:], 4)
preview = (as_rows(z[half:]) @ recipe[:4] + recipe[4]).view(half, SIZE // 4, SIZE // 4, 3).movedim(-1, 1)
explained = 1 - ((preview - colours).square().mean() / as_rows(colours).var(0, correction=0).mean()).item()
print(f"share of the colour that a linear map reads from the latent: {explained:.0%}")
if FULL:
    assert explained > 0.66
rows = [interpolate(some[:8], scale_factor=4.0) for some in (colours, preview)]
md.plot.show_images(torch.cat([x[half : half + 8], *rows]), row_labels=["picture", "block means", "linear map"])

# %% [markdown]
# Since it is a picture, it also *mixes* like one. Here is the way from one latent to another, and the way in pixels.
# **Expected: at the middle, the decoded mixture is nearer to the double exposure than to either end.** There is no
# morphing: half of a star in one place and half of a heart in another is not a new shape. For that it would take a coarser
# space, where one vector stands for the whole picture.

# %%
weights = torch.linspace(0, 1, 8).view(-1, 1, 1, 1).to(device)
pixel_way = (1 - weights) * x[6] + weights * x[1]
latent_way = decoded(vae, (1 - weights) * z[6] + weights * z[1])
pairs = [(i, i + 1) for i in range(0, min(TEST - 1, 200), 2)]
a, b = (x[[pair[k] for pair in pairs]] for k in range(2))
middle_of = decoded(vae, (means(vae, a) + means(vae, b)) / 2)
apart = {"double exposure": grey_levels(middle_of, (a + b) / 2),
         "an end": min(grey_levels(middle_of, a), grey_levels(middle_of, b))}  # fmt: skip
print("grey levels from the decoded middle to:", {name: round(value, 1) for name, value in apart.items()})
if FULL:
    assert apart["double exposure"] < 0.85 * apart["an end"]
md.plot.show_images(torch.cat([pixel_way, latent_way]), row_labels=["in pixels", "in latents"])

# %% [markdown]
# ## 6. The scaling factor
#
# Stable Diffusion's training left it with latents of standard deviation 5.49, as ours was left with what the table says.
# Rather than train again, its makers measured that number, on the first batch of the training of the U-Net, over
# all numbers of all channels (Rombach et al. 2022, appendix G), and kept its inverse in the configuration:
#
# $$\text{latent} = (z - \text{shift}) \cdot \text{scale}, \qquad z = \text{latent} / \text{scale} + \text{shift}, \qquad
# \text{scale} = \frac{1}{\operatorname{std}(z)} .$$
#
# **Expected: $1/5.49 = 0.182$**, the 0.18215 that every program around Stable Diffusion contains. Stable Diffusion 3
# takes the mean off as well, and has 16 channels: shift 0.0609, scale 1.5305. The VAE itself stays as in the paper; it
# only *carries* the two numbers. (`tile` cuts large pictures into pieces, which is section 8.)


# %%
@torch.no_grad()
def to_latents(vae, image, generator=None, sample=True, tile=None):
    """(B, 3, H, W) in [-1, 1] -> what a U-Net is trained on, (B, C, h, w); sample=False takes the mean."""
    moments = vae.moments
    if tile:
        moments = partial(tiled, moments, tile=tile * vae.stride, overlap=tile // 4 * vae.stride, scale=1 / vae.stride)
    posterior = Gaussian(*sliced(moments, image).chunk(2, dim=1))
    return ((posterior.sample(generator) if sample else posterior.mean) - vae.shift) * vae.scale


@torch.no_grad()
def to_images(vae, latents, tile=None):
    """And back: (B, C, h, w) -> (B, 3, H, W) in [-1, 1]."""
    decode = partial(tiled, vae.decode, tile=tile, overlap=tile // 4, scale=vae.stride) if tile else vae.decode
    return sliced(decode, latents / vae.scale + vae.shift).clamp(-1, 1)


# %%
vae.scale = 1.0  # a new VAE carries Stable Diffusion's number, which is nothing to this one
vae.scale = 1 / to_latents(vae, x[:64], torch.Generator().manual_seed(SEED)).std().item()
latents = to_latents(vae, x, torch.Generator().manual_seed(SEED))
print(f"scale {vae.scale:.3f}; standard deviation of the latents {latents.std():.3f}, of a channel",
      [round(value, 2) for value in latents.std((0, 2, 3)).tolist()])  # fmt: skip
assert abs(latents.std().item() - 1) < 0.1 and abs(1 / 5.49 - 0.18215) < 1e-4
seed = torch.Generator().manual_seed(SEED)
assert_close(latents[:4], reference.to_latents(vae, x, seed)[:4], rtol=1e-4, atol=1e-4)
assert_close(to_images(vae, latents[:4]), reference.to_images(vae, latents[:4]), rtol=1e-4, atol=1e-4)

# %% [markdown]
# **And without it?** The most frequent bug of home-made latent diffusion: latents go into the schedule as they
# are. Let us see it with Stable Diffusion's own size, 5.49, and with the *perfect* denoiser of these latents (chapter 02), so
# that no network can be blamed. It walks from the same noises, among latents of size 1 and of size 5.49. Every walk ends at
# one of the pictures, and a fair sampler should end at them all alike: as bright, as dark and as colourful as they come.
#
# **Expected at size 1: a fair draw. At size 5.49: pictures of less energy (the mean square of their latents), whose
# brightness varies half as much.** Fewer nights, less snow. The last level of the schedule is supposed to hold
# $\alpha_T z + \sigma_T\epsilon$ with a signal of $0.38\,\sigma_T$. The sampler starts with none at all, and the denoiser
# concludes, rightly: this must have been a latent near 0. (It is the fault of chapter 01, section 7, grown large.)

# %%
starts = torch.randn(WALKS, *latents.shape[1:], generator=torch.Generator().manual_seed(SEED)).to(device)
clean = to_latents(vae, x, sample=False)
clean = clean / clean.std()
ends, energy, brightness = {}, {}, {"all": x.mean((1, 2, 3)).std().item()}
for size in (1, 5.49):
    walk = md.sample(md.ddim, md.DatasetDenoiser(size * clean), starts, schedule.levels(25, "trailing"), progress=False)
    ends[size] = torch.cdist(walk.flatten(1) / size, clean.flatten(1)).argmin(1)  # which picture each came to
    energy[size] = clean[ends[size]].square().mean().item()
    brightness[size] = x[ends[size]].mean((1, 2, 3)).std().item()
print("energy:", {size: round(value, 2) for size, value in energy.items()}, "of 1")
print("standard deviation of the brightness:", {size: round(value, 2) for size, value in brightness.items()})
if FULL:
    assert abs(energy[1] - 1) < 0.15 and energy[5.49] < energy[1] - 0.2
    assert brightness[1] > 0.85 * brightness["all"] and brightness[5.49] < 0.75 * brightness["all"]
md.plot.show_images(
    torch.cat([x[found[:12]] for found in ends.values()]), columns=12, row_labels=["std 1", "std 5.49"],
    title="where the perfect denoiser ends",
)  # fmt: skip

# %% [markdown]
# A trained network adds damage of its own: its input is several times larger than its layers expect, and the levels it is
# asked to learn at are mostly those where nothing is drowned (816 of 1000 at size 5.49).
#
# ## 7. What the U-Net never has to learn
#
# Now noise at matching levels, in both worlds: the schedule on pixels above, the schedule on latents, decoded, below.

# %%
ts = [0, 50, 100, 200, 300, 450, 600, 999]
one, noise = x[6:7], torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(SEED)).to(device)
on_pixels = [md.add_noise(one, noise, schedule.at(t)) for t in ts]
on_latents = [to_images(vae, md.add_noise(to_latents(vae, one, sample=False), eps, schedule.at(t))) for t in ts]
md.plot.show_images(torch.cat(on_pixels + on_latents), row_labels=["pixels", "latents"], column_labels=[f"t = {t}" for t in ts])

# %% [markdown]
# Noise on pixels is grain at once. Noise on a latent, read by a decoder that knows clean pictures only, comes out as
# *wrong* picture: first colours and outlines, then places, then everything. The grain is absent, at every level. So the last
# steps of a walk, which in pixels go into smoothing surfaces, go into deciding what is there. Rombach et al. 2022 call the two
# kinds of work perceptual and semantic compression (section 1).
#
# Put a number on it: how much of the damage lies within blocks of 4 × 4 pixels, below the grid of the latent?
# **Expected: 94 % of noise on pixels, as 15 of 16 numbers lie there; of noise on latents about half.**

# %%
level = schedule.at(100)
fine = {}
for name, damaged, clean in (("pixels", md.add_noise(x[:200], torch.randn_like(x[:200]), level), level.alpha * x[:200]),
                             ("latents", to_images(vae, md.add_noise(latents[:200], torch.randn_like(latents[:200]), level)),
                              to_images(vae, latents[:200]))):  # fmt: skip
    damage = damaged - clean
    coarse = interpolate(avg_pool2d(damage, 4), scale_factor=4.0)
    fine[name] = ((damage - coarse).square().mean() / damage.square().mean()).item()
print("share of the damage below the grid:", {name: f"{value:.0%}" for name, value in fine.items()})
assert abs(fine["pixels"] - 15 / 16) < 0.01
if FULL:
    assert fine["latents"] < 0.6

# %% [markdown]
# ## 8. Stable Diffusion's own
#
# `md.nets.VAE()` without arguments is the real one: the same blocks, wider, with three halvings, and one attention over the
# 64 × 64 places at the bottom. On PyTorch's `meta` device tensors have shapes and no contents, so it can be built and asked
# in no time. **Expected: 83,653,863 parameters, and (3, 512, 512) to (4, 64, 64) and back.** In the tests of this library its
# answers are compared, weight by weight, with those of the `diffusers` package.

# %%
with torch.device("meta"):
    sd, picture = md.nets.VAE(), torch.empty(1, 3, 512, 512)
met = {}


def listen(name):
    def hook(module, given, out):
        met[name] = (sum(p.numel() for p in module.parameters()), out[0].numel(), "×".join(map(str, out.shape[1:])))

    return hook


for side, part in (("encoder", sd.encoder), ("decoder", sd.decoder)):
    stages = {f"stage {k + 1}": stage for k, stage in enumerate(part.stages)}
    for name, module in {"conv_in": part.conv_in, **stages, "mid": part.mid, "out": part.out}.items():
        module.register_forward_hook(listen(f"{side} {name}"))
with torch.no_grad():
    z = sd.encode(picture).mean
    back = sd.decode(z)
for name, (weights, numbers, shape) in met.items():
    print(f"{name:16} {weights:>12,} parameters   answers {shape:>12} = {numbers:>12,} numbers")
total = sum(p.numel() for p in sd.parameters())
print(f"{total:,} parameters; {tuple(picture.shape)} → {tuple(z.shape)} → {tuple(back.shape)}; scale {sd.scale}")
assert total == 83_653_863 and z.shape == (1, 4, 64, 64) and back.shape == picture.shape and sd.scale == 0.18215

# %% [markdown]
# The two columns run against each other. **Expected: the widest map has 67 million numbers**, four thousand times those of the
# latent, though hardly any of the weights are there.

# %%
widest = max(numbers for _, numbers, _ in met.values())
print(f"largest map: {widest:,} numbers, {4 * widest / 2**20:.0f} MB in float32")
assert widest == 256 * 512 * 512
with matplotlib.rc_context(md.plot.STYLE):
    figure = md.plot.Picture(figsize=(11, 4.6), dpi=md.plot.DPI, layout="constrained")
    for axes, column, title in zip(figure.subplots(1, 2, sharey=True), (0, 1), ("parameters", "numbers in a map"), strict=True):
        axes.barh(list(met), [row[column] / 1e6 for row in met.values()], color=md.plot.CURVES[column])
        axes.set(title=f"{title}, millions")
        axes.set_axisbelow(True)
    axes.invert_yaxis()  # first at the top; the two share their axis
figure.to(None)  # a cell that ends with a figure shows it

# %% [markdown]
# A batch of large pictures therefore fills the memory in the *decoder*, after the diffusion is done. Two remedies. **Sliced**:
# one picture of a batch after the other, which changes nothing. **Tiled**: overlapping squares of the latent, decoded by
# themselves and blended over the overlap. That is an approximation, since each GroupNorm takes its statistics, and
# attention its places, from a tile in place of the picture. Our small VAE shows it on scenes three times as large, which
# it has never seen. **Expected: the batch to rounding; the tiles off by a few grey levels, and by more at the seams
# where nothing overlaps.**

# %%
large = torch.stack([md.data.Shapes(6, size=3 * SIZE, seed=SEED + 1)[k].image for k in range(6)]).to(device)
z = means(vae, large)  # (6, 4, 24, 24)
whole = decoded(vae, z)
assert_close(sliced(vae.decode, z).clamp(-1, 1), whole, rtol=1e-3, atol=1e-3)
ways = {overlap: tiled(vae.decode, z, tile=12, overlap=overlap, scale=vae.stride).clamp(-1, 1) for overlap in (0, 6)}
off = {overlap: grey_levels(made, whole) for overlap, made in ways.items()}
seam = {overlap: grey_levels(made[..., 46:50], whole[..., 46:50]) for overlap, made in ways.items()}
print("grey levels from the whole, by overlap:", {o: round(e, 2) for o, e in off.items()},
      "; at a seam:", {o: round(e, 2) for o, e in seam.items()})  # fmt: skip
assert min(off.values()) > 0
if FULL:
    assert seam[6] < seam[0] and max(off.values()) < 15
rows = [whole[:5], *(made[:5] for made in ways.values()), *(4 * (made[:5] - whole[:5]) for made in ways.values())]
labels = ["whole", "overlap 0", "overlap 6", "0: error × 4", "6: error × 4"]
md.plot.show_images(torch.cat(rows), columns=5, row_labels=labels)

# %% [markdown]
# ## 9. Three bugs you will meet
#
# **Decoded without dividing.** The U-Net's latents go straight to the decoder. Give our VAE Stable Diffusion's size and do it:
# every latent arrives 5.49 times too small, and the pictures fade towards one dull colour. **Expected: a fifth of the
# contrast is lost, or more.**

# %%
sd_sized = resized(vae, 5.49 * vae.scale)
sd_sized.scale = 1 / 5.49
small = to_latents(sd_sized, x[:200], sample=False)
rows = {"to_images": to_images(sd_sized, small), "vae.decode": decoded(sd_sized, small)}
contrast = {name: made.std().item() for name, made in rows.items()}
print("contrast:", {name: round(value, 2) for name, value in contrast.items()})
if FULL:
    assert contrast["vae.decode"] < 0.8 * contrast["to_images"]
md.plot.show_images(torch.cat([made[:8] for made in rows.values()]), row_labels=list(rows))

# %% [markdown]
# **`exp(logvar)` for the standard deviation.** It is the variance. Where the encoder is sure, the noise nearly
# vanishes, and with it what the decoder should have met. **Expected for $s = 0.1$: a tenth of it.** Nothing is raised, and
# the copies look *better*.
#
# **A KL that is averaged.** The reconstruction is summed over 3072 numbers, the KL averaged over 256, in the belief
# that a mean is a mean. Then $\beta$ means something else: **expected: 256 times less here,** and 16,384 times less in Stable
# Diffusion. A value copied from a paper is worth nothing without the paper's sums.

# %%
sure = Gaussian(torch.zeros(1, 4, 8, 8), torch.full((1, 4, 8, 8), 2 * math.log(0.1)))
print(f"std {sure.std.mean():.3f}, exp(logvar) {sure.logvar.exp().mean():.3f}")
assert_close(sure.logvar.exp(), 0.1 * sure.std)
each = 0.5 * (sure.mean**2 + sure.logvar.exp() - 1 - sure.logvar)
print(f"KL summed {sure.kl().item():.1f} nats, averaged {each.mean().item():.2f}")
assert_close(sure.kl().item() / each.mean().item(), 256.0)

# %% [markdown]
# ## 10. What we left out
#
# | left out | where to read it |
# |---|---|
# | a patch discriminator, which punishes copies that are soft | Rombach et al. 2022, appendix G; Esser et al. 2021 |
# | a perceptual loss, which compares features in place of pixels | LPIPS, Zhang et al. 2018 |
# | latents from a finite codebook, where `quant_conv` has its name from | van den Oord et al. 2017; Esser et al. 2021 |
# | how many channels: why Stable Diffusion 3 takes 16 | Esser et al. 2024 |
# | a KL that is spent where it helps | Higgins et al. 2017, β-VAE |
# | the likelihood, taken seriously | Kingma & Welling 2014; 2019, an introduction |
# | weights from a file | `load_vae`, `minidiff/pretrained/vae.py`; chapter 16 |
# | the U-Net on these latents | chapter 15 |
#
# What you wrote is the `Gaussian` of `minidiff/nets/vae.py`, and `minidiff/pipelines/latents.py`; the library's versions also
# check their arguments. [Exercises](exercises/13_vae_and_latents.ipynb): these, and the tiles, from memory.
#
# **Next:** a latent is a picture without words. How does a U-Net listen to a sentence?

# %%
print(f"torch {torch.__version__}, minidiff {md.__version__}, {device}")
