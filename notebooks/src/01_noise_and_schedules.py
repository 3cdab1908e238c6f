# %% [markdown]
# # 01 · Noise and schedules
#
# **How do you destroy an image on purpose?**
#
# A diffusion model learns to undo damage. So the damage comes first, and it has to be good damage: gradual, so that every
# small part of it can be undone; complete, so that what is left at the end can be drawn from a random generator; and
# cheap, because training will ask for it millions of times. One line does all three:
#
# $$x_t = \alpha_t\, x_0 + \sigma_t\, \epsilon, \qquad \epsilon \sim \mathcal N(0, I).$$
#
# $x_0$ is a clean image, $\epsilon$ is noise of the same shape, and the two numbers $\alpha_t, \sigma_t$ say how much of
# each is in the mixture. This chapter is about those two numbers. At its end you will have written, and checked, every
# noise schedule in the library, from DDPM's to Stable Diffusion 3's.
#
# You need tensors, and the fact that variances of independent things add. No network appears, and nothing is downloaded.

# %% [markdown]
# > **For the lecturer.** 60 minutes: 10 for the naive attempts, 15 for the chain, 15 for the schedules, 10 for solving
# > the line, 10 for the flow; the bugs at the end are homework. Everything runs in seconds on a CPU, so run it live.
# >
# > Worth asking before the cell is run: *which goes wrong first, the picture or its variance?* (naive attempts) ·
# > *why a square root?* (one careful step) · *who would miss the last 7 % of an image?* (what the end remembers) ·
# > *have we seen this mixture before?* (the straight line). The third has the best wrong answers.

# %%
import math

import torch
from torch.nn.functional import avg_pool2d
from torch.testing import assert_close

import minidiff as md

# %% [markdown]
# The knobs. A quick mode for tests replaces a value by the one in its comment; nothing else changes.

# %% tags=["knobs"]
SEED = 0
SIZE = 32  # pixels to a side
T = 1000  # timesteps
CHAINS = 256  # images that walk the whole chain, step by step  # quick: 32
IMAGES = 2000  # images whose brightness is compared  # quick: 500

# %% [markdown]
# The images are drawn to order: coloured shapes, from −1 (black) to 1 (white), as everywhere in this library. Zero is
# mid-grey: scaling an image towards 0 takes its contrast, not its brightness.

# %%
torch.manual_seed(SEED)
scenes = md.data.Shapes(IMAGES, size=SIZE, seed=3)
pixels, _ = scenes.tensors()
x0 = md.data.from_pixels(pixels)  # (IMAGES, 3, SIZE, SIZE) in [-1, 1]
few = x0[:6]
print(f"{tuple(x0.shape)}, from {x0.min():.2f} to {x0.max():.2f}, variance {x0.var():.2f}")
md.plot.show_images(few, titles=[scenes[i].caption for i in range(len(few))])

# %% [markdown]
# ## 1. Two naive attempts
#
# **Attempt one: keep adding noise.** It does bury the image. But the variance grows without end, and a network that must
# answer at every stage would see inputs of every size. (Many small additions are one large one: $x_0 + 2w\,\epsilon$.)
#
# **Attempt two: cross-fade.** Mix $(1-w)\,x_0 + w\,\epsilon$ and turn $w$ from 0 to 1. Both ends are right. In between,
# something sags.

# %%
one, eps = few[:1], torch.randn(1, 3, SIZE, SIZE)
ws = [0, 0.2, 0.4, 0.6, 0.8, 1]
added = [one + 2 * w * eps for w in ws]
faded = [(1 - w) * one + w * eps for w in ws]
md.plot.show_images(torch.cat(added + faded), row_labels=["add", "cross-fade"], column_labels=[f"w = {w}" for w in ws])

# %% [markdown]
# Pictures are clipped to [−1, 1] before they are shown, so the upper row hides how bad it is. The standard deviation
# does not. Variances of independent things add, and a factor comes out *squared*:
#
# $$\operatorname{Var}[a\,x_0 + b\,\epsilon] = a^2 \operatorname{Var}[x_0] + b^2.$$

# %%
w = torch.linspace(0, 1, 21)
noise = torch.randn_like(x0[:200])
std_added = torch.stack([(x0[:200] + 2 * v * noise).std() for v in w])
std_faded = torch.stack([((1 - v) * x0[:200] + v * noise).std() for v in w])
std_ours = torch.stack([((1 - v**2).sqrt() * x0[:200] + v * noise).std() for v in w])
assert std_added[-1] > 2 and std_faded.min() < 0.56  # one explodes, the other sags below both of its ends
assert (std_ours.diff() > -0.01).all()  # the third climbs from one end to the other
md.plot.show_curves(
    {"add": (w, std_added), "cross-fade": (w, std_faded), r"$\sqrt{1-w^2}\,x_0 + w\,\epsilon$": (w, std_ours)},
    xlabel="w", ylabel="standard deviation", title="the size of what the network would see",
)  # fmt: skip

# %% [markdown]
# The third curve is where we are going. Were the images scaled to variance 1, it would be a flat line at 1.

# %% [markdown]
# ## 2. One careful step
#
# Ask for a small step that adds noise and leaves a variance of 1 at 1. Noise of variance $\beta$ needs room: the old
# content may keep variance $1 - \beta$. Variance is the square of size, so the *factors* are square roots, which is why
# DDPM is full of them:
#
# $$x_t = \sqrt{1-\beta_t}\; x_{t-1} + \sqrt{\beta_t}\; \epsilon_t \qquad\text{(DDPM, eq. 2)}$$
#
# $\beta_t$ is the share of the variance that step $t$ replaces by noise. DDPM lets it grow linearly from 0.0001 to 0.02.

# %%
beta = torch.linspace(1e-4, 0.02, T)
x0_chain = x0[:CHAINS]
stops, xs = [0, 99, 249, 499, 999], {}
x = x0_chain
for t in range(T):
    x = (1 - beta[t]) ** 0.5 * x + beta[t] ** 0.5 * torch.randn_like(x)
    if t in stops:
        xs[t] = x
md.plot.show_images(
    torch.cat([xs[t][:3] for t in stops]).unflatten(0, (len(stops), 3)).transpose(0, 1).flatten(0, 1),
    columns=len(stops), column_labels=[f"t = {t}" for t in stops], title="a thousand small steps",
)  # fmt: skip

# %% [markdown]
# It works, and nobody can afford it: to train on one image at $t = 700$ we would draw noise 701 times.
#
# ## 3. All steps in one
#
# Write two steps out.
#
# $$\begin{aligned}
# x_1 &= \sqrt{1-\beta_1}\,x_0 + \sqrt{\beta_1}\,\epsilon_1 \\
# x_2 &= \sqrt{1-\beta_2}\,x_1 + \sqrt{\beta_2}\,\epsilon_2 \\
#     &= \sqrt{(1-\beta_1)(1-\beta_2)}\;x_0 \;+\;
#        \underbrace{\sqrt{(1-\beta_2)\,\beta_1}\;\epsilon_1 + \sqrt{\beta_2}\;\epsilon_2}_{\text{two independent Gaussians}}
# \end{aligned}$$
#
# A sum of independent Gaussians is one Gaussian, and its variance is the sum:
#
# $$(1-\beta_2)\,\beta_1 + \beta_2 = 1 - (1-\beta_1)(1-\beta_2).$$
#
# The same product appears on both sides. Call the running product $\bar\alpha_t = \prod_{s \le t}(1-\beta_s)$ (`abar` in
# code), and suppose that up to step $t-1$ the noise has variance $1-\bar\alpha_{t-1}$. One more step turns it into
#
# $$(1-\beta_t)(1-\bar\alpha_{t-1}) + \beta_t = 1 - (1-\beta_t)\,\bar\alpha_{t-1} = 1-\bar\alpha_t,$$
#
# so it holds for every $t$, and the chain collapses into a single draw:
#
# $$q(x_t \mid x_0) = \mathcal N\!\left(\sqrt{\bar\alpha_t}\,x_0,\; (1-\bar\alpha_t)\,I\right) \qquad\text{(DDPM, eq. 4)}$$
#
# With $\alpha_t = \sqrt{\bar\alpha_t}$ and $\sigma_t = \sqrt{1-\bar\alpha_t}$ this is the line at the top of the page, and
# $\alpha_t^2 + \sigma_t^2 = 1$. Schedules with that property are called *variance preserving*, VP.
#
# > Papers count $t$ from 1; we count from 0, so $t = 0$ already carries one step of noise. And some papers, DDIM among
# > them, write $\alpha$ for our $\bar\alpha$. `docs/notation.md` has the dictionary.
#
# The product runs over a thousand numbers, so it is kept in float64 and rounded once, at the end.


# %%
def from_betas(beta):
    """abar_t = product of (1 - beta_s) for s <= t; alpha = sqrt(abar), sigma = sqrt(1 - abar). (T,) each."""
    abar = (1 - beta.double()).cumprod(0)
    return abar.sqrt().float(), (1 - abar).sqrt().float()


def linear(T=1000, beta_start=1e-4, beta_end=0.02):
    """DDPM (Ho et al. 2020, section 4)."""
    return from_betas(torch.linspace(beta_start, beta_end, T, dtype=torch.float64))


# %% [markdown]
# Is it true of the images that walked the whole chain? Regress $x_t$ on $x_0$: the slope should be $\alpha_t$. What
# remains without $\alpha_t x_0$ should have standard deviation $\sigma_t$. **Expected: agreement within 0.015.**

# %%
alpha, sigma = linear(T)
print("   t    alpha  in the chain    sigma  in the chain")
for t, xt in xs.items():
    slope = (xt * x0_chain).sum() / (x0_chain**2).sum()
    spread = (xt - alpha[t] * x0_chain).std()
    print(f"{t:4}   {alpha[t]:.4f}        {slope:.4f}   {sigma[t]:.4f}        {spread:.4f}")
    assert_close(slope, alpha[t], atol=0.015, rtol=0)
    assert_close(spread, sigma[t], atol=0.015, rtol=0)

# %% [markdown]
# From here on nobody walks the chain.
#
# ## 4. `add_noise`
#
# A **level** says how noisy: a timestep `t`, which is what the network will be told, with its `alpha` and `sigma`. The
# forward process is one line around it.


# %%
def add_noise(x0, eps, level):
    """x_t = alpha * x0 + sigma * eps (DDPM, eq. 4). x0, eps and the answer: (B, ...)."""
    alpha, sigma = level.like(x0)
    return alpha * x0 + sigma * eps


# %% [markdown]
# Why `level.like(x0)`, and not `level.alpha`? In training every image has a level of its own, and `alpha` is a vector
# (B,). Broadcasting lines it up with the *last* axis, which is the width of the image:

# %%
t = torch.arange(0, T, T // SIZE)[:SIZE]  # 32 levels for a batch of 32 images, which are 32 pixels wide
wrong = alpha[t] * x0[:SIZE] + sigma[t] * torch.randn_like(x0[:SIZE])
right = add_noise(x0[:SIZE], torch.randn_like(x0[:SIZE]), md.Level(t, alpha[t], sigma[t]))
md.plot.show_images(
    torch.cat([wrong[[0, 7, 15, 23, 31]], right[[0, 7, 15, 23, 31]]]),
    row_labels=["(B,)", "(B, 1, 1, 1)"], column_labels=[f"t = {int(t[i])}" for i in (0, 7, 15, 23, 31)],
)  # fmt: skip

# %% [markdown]
# The upper row ran without an error: every image is clean at its left edge and drowned at its right, whatever its $t$.
# `like` views the vector as (B, 1, 1, 1), and refuses any other length.
#
# This is `minidiff/diffusion/forward.py`. Is ours the same?

# %%
schedule = md.Schedule.linear(T)
assert_close(alpha, schedule.alpha)
assert_close(sigma, schedule.sigma)
eps = torch.randn_like(few)
for level in (schedule.at(0), schedule.at(700), schedule.at(torch.tensor([0, 200, 400, 600, 800, 999]))):
    assert_close(add_noise(few, eps, level), md.add_noise(few, eps, level), rtol=0, atol=0)
print(schedule.at(700))

# %% [markdown]
# ## 5. Which schedule?
#
# How hard a level is to undo is decided by the ratio of image to noise. Its square is the **signal-to-noise ratio**,
# $\mathrm{SNR}_t = \alpha_t^2 / \sigma_t^2$.
#
# - **Linear** (DDPM, 2020): $\beta_t$ from 0.0001 to 0.02. It ends at $\alpha_{T-1} = 0.0064$.
# - **Scaled linear** (Stable Diffusion 1 and 2): $\sqrt{\beta_t}$ runs in a straight line, from $\sqrt{0.00085}$ to
#   $\sqrt{0.012}$. It destroys more slowly, and stops early: $\alpha_{T-1} = 0.068$.
# - **Cosine** (Nichol & Dhariwal 2021): forget $\beta$ and draw the curve you want,
#   $\cos^2\!\left(\frac{t/T + s}{1+s} \cdot \frac{\pi}{2}\right)$ with $s = 0.008$, divided by its value at 0 (their eq. 17,
#   where $t$ counts from 1). The betas follow from two neighbours, $\beta_t = 1 - \bar\alpha_t/\bar\alpha_{t-1}$. The last one
#   would be 1, an image wiped out in a single step, so it is held at 0.999.


# %%
def scaled_linear(T=1000, beta_start=0.00085, beta_end=0.012):
    """Stable Diffusion 1 and 2 (Rombach et al. 2022)."""
    return from_betas(torch.linspace(beta_start**0.5, beta_end**0.5, T, dtype=torch.float64) ** 2)


def cosine(T=1000):
    """Nichol & Dhariwal 2021, eq. 17."""
    u = torch.arange(T + 1, dtype=torch.float64) / T  # 0 is the clean image, so one more than T
    abar = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    return from_betas((1 - abar[1:] / abar[:-1]).clamp(max=0.999))


# %%
schedules = {"linear": md.Schedule.linear(T), "scaled linear": md.Schedule.scaled_linear(T), "cosine": md.Schedule.cosine(T)}
for mine, theirs in zip((linear(T), scaled_linear(T), cosine(T)), schedules.values(), strict=True):
    assert_close(mine, (theirs.alpha, theirs.sigma))
md.plot.show_levels(schedules)

# %% [markdown]
# **Expected at the last step:** $\bar\alpha$ = 4.04e-5, 4.66e-3 and 2.4e-9. And in a third of its steps the linear schedule
# leaves less than a tenth of the image; the cosine, in 65 of 1000. At 32 × 32 pixels those steps teach a network next to
# nothing, which is why the cosine was proposed.

# %%
expected = {"linear": 4.04e-5, "scaled linear": 4.66e-3, "cosine": 2.4e-9}
for name, s in schedules.items():
    assert_close(s.abar[-1].item(), expected[name], rtol=0.02, atol=0)
    blind = int((s.alpha < 0.1).sum())
    print(f"{name:14} abar {s.abar[-1]:.3g}, alpha {s.alpha[-1]:.2g} at the end; {blind} steps with alpha < 0.1")
assert int((schedules["linear"].alpha < 0.1).sum()) == 327 and int((schedules["cosine"].alpha < 0.1).sum()) == 65

# %% [markdown]
# The same image and the same noise, under three schedules:

# %%
ts = [0, 150, 300, 450, 600, 750, 900, 999]
one, eps = x0[6:7], torch.randn(1, 3, SIZE, SIZE)  # a large yellow circle on black
rows = [add_noise(one, eps, s.at(t)) for s in schedules.values() for t in ts]
md.plot.show_images(torch.cat(rows), row_labels=list(schedules), column_labels=[f"t = {t}" for t in ts])

# %% [markdown]
# ## 6. The line, solved for each unknown
#
# Any two of $x_t, x_0, \epsilon$ give the third: who predicts the noise has predicted the image.


# %%
def predict_x0(xt, eps, level):
    """x0 = (x_t - sigma * eps) / alpha (DDPM, eq. 15)."""
    alpha, sigma = level.like(xt)
    return (xt - sigma * eps) / alpha


def predict_eps(xt, x0, level):
    """eps = (x_t - alpha * x0) / sigma."""
    alpha, sigma = level.like(xt)
    return (xt - alpha * x0) / sigma


# %%
eps = torch.randn_like(few)
for s in schedules.values():
    level = s.at(400)
    xt = add_noise(few, eps, level)
    assert_close(predict_x0(xt, eps, level), few)  # there and back
    assert_close(predict_eps(xt, few, level), eps)
    assert_close(predict_x0(xt, eps, level), md.predict_x0(xt, eps, level), rtol=0, atol=0)
    assert_close(predict_eps(xt, few, level), md.predict_eps(xt, few, level), rtol=0, atol=0)

# %% [markdown]
# Solving is exact. Solving with a *guess* is another matter. If $\hat\epsilon = \epsilon + \delta$, then
#
# $$\hat x_0 = \frac{x_t - \sigma_t(\epsilon + \delta)}{\alpha_t} = x_0 - \frac{\sigma_t}{\alpha_t}\,\delta .$$
#
# The error in the image is the error in the noise, times $\sigma_t/\alpha_t$. At the end of the cosine schedule that is
# $1/\sqrt{2.4\cdot 10^{-9}}$. **Expected: twenty thousand.** Below, a guess that is wrong by 1 %:

# %%
amplify = {name: (s.sigma / s.alpha)[-1].item() for name, s in schedules.items()}
print({name: round(value) for name, value in amplify.items()})
assert 20_000 < amplify["cosine"] < 20_600 and 157 < amplify["linear"] < 158 and 14.5 < amplify["scaled linear"] < 14.7
delta = 0.01 * torch.randn_like(one)
guess = []
for s in schedules.values():
    for t in ts:
        xt = add_noise(one, eps[:1], s.at(t))
        guess.append(predict_x0(xt, eps[:1] + delta, s.at(t)))
md.plot.show_images(
    torch.cat(guess), row_labels=list(schedules), column_labels=[f"t = {t}" for t in ts],
    title=r"$\hat x_0$ from noise that is known to 1 %",
)  # fmt: skip

# %% [markdown]
# A trained network does not know the noise that well: in bfloat16, rounding alone is up to 0.4 %. So the first $\hat x_0$
# of a walk is far outside [−1, 1], and either it is clipped (`md.clipped`), or the network is asked for something that
# needs no division: the **velocity**. On a VP schedule $\alpha^2 + \sigma^2 = 1$, so the level is an angle $\varphi$:
#
# $$x_\varphi = \cos\varphi\; x_0 + \sin\varphi\; \epsilon, \qquad
# v = \frac{d x_\varphi}{d\varphi} = \cos\varphi\;\epsilon - \sin\varphi\; x_0 = \alpha\,\epsilon - \sigma\, x_0 .$$
#
# Turn the pair $(x, v)$ back by the same angle, and the image and the noise come out without any division:
#
# $$x_0 = \alpha\, x_t - \sigma\, v, \qquad \epsilon = \sigma\, x_t + \alpha\, v .$$


# %%
def velocity(x0, eps, level):
    """v = alpha * eps - sigma * x0 (Salimans & Ho 2022, section 4)."""
    alpha, sigma = level.like(x0)
    return alpha * eps - sigma * x0


# %%
worst = 0.0
for s in schedules.values():
    for t in ts:
        level = s.at(t)
        xt, v = add_noise(one, eps[:1], level), velocity(one, eps[:1], level)
        assert_close(v, md.velocity(one, eps[:1], level), rtol=0, atol=0)
        x0_hat = level.alpha * xt - level.sigma * (v + delta)  # a guess of v that is wrong by 1 %
        worst = max(worst, (x0_hat - one).std().item())
print(f"with v known to 1 %, the image is wrong by at most {worst:.4f}, at any level of any schedule")
assert worst < 0.011

# %% [markdown]
# ## 7. What the end remembers
#
# Stable Diffusion's schedule ends with 7 % of the image's amplitude. Who would miss that? Every pixel is drowned, true.
# But noise averages out over pixels and brightness does not. Over the
# $D = 3 \cdot 32 \cdot 32$ values of an image the noise's mean has standard deviation $\sigma_T/\sqrt D \approx 0.018$,
# while the image's mean, which varies by $s \approx 0.58$ from image to image, still counts $\alpha_T s \approx 0.04$:
#
# $$\operatorname{corr} = \frac{\alpha_T s}{\sqrt{\alpha_T^2 s^2 + \sigma_T^2 / D}}$$
#
# **Expected: 0.91** for scaled linear, about 0.2 for linear, 0 for cosine. Measured:


# %%
def brightness_kept(schedule):
    """The correlation between the mean of an image and the mean of what is left of it at the last level."""
    xT = add_noise(x0, torch.randn_like(x0), schedule.at(T - 1))
    return torch.corrcoef(torch.stack([x0.mean((1, 2, 3)), xT.mean((1, 2, 3))]))[0, 1].item()


kept = {name: brightness_kept(s) for name, s in schedules.items()}
print({name: round(value, 2) for name, value in kept.items()})
assert abs(kept["scaled linear"] - 0.91) < 0.03 and abs(kept["linear"] - 0.2) < 0.12 and abs(kept["cosine"]) < 0.12

# %% [markdown]
# A network finds that out in training, and relies on it. Then sampling starts from noise that was *drawn*, whose mean is
# always near 0, and the network concludes, every time: a picture of medium brightness. This is why Stable Diffusion 1 has
# trouble with a night and with a field of snow (Lin et al. 2023).
#
# The cure is to bend the schedule until its last $\alpha$ is 0. Shift all alphas down by the last one, and stretch them so
# that the first stays where it was:
#
# $$\alpha'_t = (\alpha_t - \alpha_{T-1})\,\frac{\alpha_0}{\alpha_0 - \alpha_{T-1}} \quad\text{(Lin et al. 2023, algorithm 1)}$$


# %%
def zero_terminal_snr(schedule):
    """The same schedule with alpha = 0 at its last level; still VP."""
    # Near 1, a float32 alpha has lost the digits that sigma needs; sigma still has them, and the two are one angle.
    alpha = torch.atan2(schedule.sigma.double(), schedule.alpha.double()).cos()
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    return alpha.float(), (1 - alpha**2).sqrt().float()


# %%
bent = schedules["scaled linear"].zero_terminal_snr()
assert_close(zero_terminal_snr(schedules["scaled linear"]), (bent.alpha, bent.sigma))
print(f"correlation after the cure: {brightness_kept(bent):.2f}")
assert abs(brightness_kept(bent)) < 0.12
try:
    md.predict_x0(one, eps[:1], bent.at(T - 1))
except ValueError as error:
    print("and the price:", error)
md.plot.show_levels({"scaled linear": schedules["scaled linear"], "zero terminal SNR": bent})

# %% [markdown]
# ## 8. The straight line
#
# In 2022 several groups asked again what the simplest path from image to noise is, and answered: the straight one.
#
# $$x_\sigma = (1-\sigma)\,x_0 + \sigma\,\epsilon \qquad\text{(rectified flow: Liu et al. 2022; Esser et al. 2024, eq. 13)}$$
#
# It is the cross-fade of section 1, dip and all. What we held against it was its variance. **What matters is the SNR; the
# size can be divided out.** Divide $x_\sigma$ by $\sqrt{\alpha^2+\sigma^2}$, and it *is* a VP image, at the VP level of the
# same SNR:

# %%
level = md.Schedule.flow(T).at(400)
size = (level.alpha**2 + level.sigma**2) ** 0.5
twin = md.Level(level.t, level.alpha / size, level.sigma / size)  # the same ratio, and squares that sum to 1
assert_close(add_noise(one, eps[:1], level) / size, add_noise(one, eps[:1], twin))
print(f"flow: alpha {level.alpha:.3f}, sigma {level.sigma:.3f}.  VP twin: alpha {twin.alpha:.3f}, sigma {twin.sigma:.3f}")

# %% [markdown]
# What the straight line buys is a constant direction: $dx/d\sigma = \epsilon - x_0$ at every level, so a walker who knows
# it may take long steps.
#
# One more knob comes with it. A large image survives more noise than a small one, because an eye, or a network, averages
# over neighbours: over $k \times k$ pixels the noise falls by a factor $k$ and the image stays. To do the same damage to an
# image $k$ times as wide, multiply the ratio of noise to image by $k$:
#
# $$\frac{\sigma'}{1-\sigma'} = k\,\frac{\sigma}{1-\sigma}
# \quad\Longrightarrow\quad \sigma' = \frac{k\,\sigma}{1 + (k-1)\,\sigma} \qquad\text{(Esser et al. 2024, eq. 23)}$$
#
# Stable Diffusion 3 calls $k$ the *shift*, and sets it to 3.


# %%
def flow(T=1000, shift=1.0):
    """Rectified flow: alpha = 1 - sigma, with sigma = (t+1)/T pushed towards noise by `shift`."""
    sigma = torch.arange(1, T + 1, dtype=torch.float64) / T
    sigma = shift * sigma / (1 + (shift - 1) * sigma)
    return (1 - sigma).float(), sigma.float()


# %%
flows = {"flow": md.Schedule.flow(T), "flow, shift 3": md.Schedule.flow(T, shift=3.0)}
for mine, theirs in zip((flow(T), flow(T, 3.0)), flows.values(), strict=True):
    assert_close(mine, (theirs.alpha, theirs.sigma))
md.plot.show_levels({**flows, "cosine": schedules["cosine"]})

# %% [markdown]
# Does the shift do what it says? Draw the same scenes three times as wide, noise them at the same $\sigma$ and at the
# shifted $\sigma'$, and average 3 × 3 blocks, as an eye does from three times as far away.

# %%
small, shifted = flow(T)[1][399].item(), flow(T, shift=3.0)[1][399].item()
large = torch.stack([md.data.Shapes(6, size=3 * SIZE, seed=3)[i].image for i in range(6)])
noisy = [
    add_noise(few, torch.randn_like(few), md.Level(0, 1 - small, small)),
    avg_pool2d(add_noise(large, torch.randn_like(large), md.Level(0, 1 - small, small)), 3),
    avg_pool2d(add_noise(large, torch.randn_like(large), md.Level(0, 1 - shifted, shifted)), 3) * (1 - small) / (1 - shifted),
]
labels = [f"small, σ = {small:.2f}", f"large, σ = {small:.2f}", f"large, σ = {shifted:.2f}"]
md.plot.show_images(torch.cat(noisy), columns=6, row_labels=labels)

# %% [markdown]
# The second row is easier to read. **Expected: the noise per unit of image is the same in rows 1 and 3, and a third of it
# in row 2.** (Row 3 was scaled to the contrast of row 1, to be fair to the eye.)

# %%
shrunk = avg_pool2d(large, 3)
grain = [(xt - (1 - small) * clean).std().item() for xt, clean in zip(noisy, (few, shrunk, shrunk), strict=True)]
print([round(value, 3) for value in grain])
assert_close(grain[2], grain[0], rtol=0.03, atol=0)
assert_close(3 * grain[1], grain[0], rtol=0.03, atol=0)

# %% [markdown]
# ## 9. Three bugs you will meet
#
# All three were found in published tutorials. None of them raises an error.
#
# **`rand_like` for `randn_like`.** One letter, and the noise is uniform on [0, 1]: mean ½ where 0 is due, variance 1/12 where
# 1 is due. The images go milky instead of noisy, and the sampler will start from something never seen in training.

# %%
uniform = torch.rand_like(x0)
print(f"mean {uniform.mean():.3f}, variance {uniform.var():.4f}")
assert abs(uniform.mean() - 1 / 2) < 0.002 and abs(uniform.var() - 1 / 12) < 0.001
rows = [add_noise(one, noise[:1], schedule.at(t)) for noise in (uniform, torch.randn_like(x0)) for t in ts]
md.plot.show_images(torch.cat(rows), row_labels=["rand_like", "randn_like"], column_labels=[f"t = {t}" for t in ts])

# %% [markdown]
# **Betas that are too small.** One published demonstration takes $\beta$ from 0.001 to 0.004 over 1000 steps. The pictures
# look convincing. But $\sum\beta \approx 2.5$, so $\bar\alpha_T \approx e^{-2.5} = 0.08$, and the square root of that is left
# of the image. **Expected: 28.6 %.** Squint at the last column: the disc is still there.

# %%
weak = md.Schedule.linear(T, beta_start=0.001, beta_end=0.004)
print(f"abar {weak.abar[-1]:.4f}: {weak.alpha[-1]:.1%} of the image is left at the end")
assert_close(weak.alpha[-1].item(), 0.286, rtol=0.002, atol=0)
rows = [add_noise(one, eps[:1], s.at(t)) for s in (weak, schedule) for t in ts]
md.plot.show_images(torch.cat(rows), row_labels=["β to 0.004", "β to 0.02"], column_labels=[f"t = {t}" for t in ts])

# %% [markdown]
# **A level that is never trained.** The upper end of `torch.randint(0, 999, ...)` is exclusive. The noisiest level, where
# every sample begins, is never shown to the network.

# %%
assert torch.randint(0, 999, (200_000,)).max() == 998
assert schedule.draw(200_000).max() == 999
print("largest t:", torch.randint(0, 999, (200_000,)).max().item(), "against", schedule.draw(200_000).max().item())

# %% [markdown]
# ## 10. What we left out
#
# | left out | where to read it |
# |---|---|
# | the chain as a stochastic differential equation | Song et al. 2021 (SDE), section 3.4, "VP" |
# | noise that grows for ever, our first naive attempt, is a fair choice too | the same, "VE"; Karras et al. 2022, table 1 |
# | levels between two rows of the table | `Schedule.at` |
# | which levels a sampler visits | `Schedule.levels`; Lin et al. 2023, table 2 |
# | how often to train on which level: uniform in $t$, or more in the middle | `Schedule.draw`; Esser et al. 2024, eq. 19 |
# | what the loss of each prediction implies for the others | `min_snr_weight`; Hang et al. 2023, section 3.4 |
# | the way back | the next chapter; DDPM eqs. 6–7 |
#
# What you wrote is `minidiff/diffusion/schedule.py` and `forward.py`, line by line; the library's versions also check their
# arguments. [Exercises](exercises/01_noise_and_schedules.ipynb): five of these functions, from memory.
#
# **Next:** if we knew the data, could we walk back? We could, and without a network.

# %%
print(f"torch {torch.__version__}, minidiff {md.__version__}")
