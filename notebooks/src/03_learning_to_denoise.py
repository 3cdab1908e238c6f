# %% [markdown]
# # 03 · Learning to denoise
#
# **What does a network learn when it is asked to guess the noise?**
#
# Show it $x_t = \alpha_t x_0 + \sigma_t \epsilon$ and ask for $\epsilon$. It cannot know: many pairs $(x_0, \epsilon)$ make
# the same $x_t$. So the task has no perfect answer, its loss never reaches 0, and yet from this task comes every picture a
# diffusion model has drawn. This chapter trains such networks on points in the plane, where everything can be seen, a
# training takes seconds, and the best possible answer is a formula to compare with.
#
# You need chapter 01, and the idea of an exact denoiser from chapter 02.

# %% [markdown]
# > **For the lecturer.** 75 minutes: 15 for the best possible answer, 10 for the naive attempts, 10 for the embedding, 20
# > for the bound (the longest derivation of the course; it can be homework), 20 for training, sampling and targets. All
# > trainings together take less than a minute on one CPU thread: run them live.
# >
# > Worth asking before the cell is run: *at which level is the loss highest?* (the floor) · *can one look at a noisy point
# > and say how noisy it is?* (attempt two) · *the loss fell from 0.255 to 0.245: was that worth it?* (the
# > Trainer) · *which target would you choose?* (section 9). The third has the best wrong answers.

# %%
import math

import torch
from matplotlib import rc_context
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close
from tqdm.auto import trange

import minidiff as md

device = "cuda" if torch.cuda.is_available() else "cpu"

# %% tags=["knobs"]
SEED = 0
T = 1000  # timesteps
STEPS = 1200  # of every training  # quick: 300
BATCH = 256  # points in a batch
POINTS = 2000  # in every cloud that is sampled  # quick: 500
CLOSE = 0.03  # how far above its floor the loss may end, as a share of it  # quick: 0.15
TOLD = 3  # how many times better a network is that is told t  # quick: 1.2
DROWNED = 10  # how many times worse a network is that gets t raw  # quick: 2
NEAR = 4  # how far from the data a sampled cloud may lie, in distances between data and data  # quick: 10

# %% [markdown]
# ## 1. Points instead of images
#
# Our "images" have two pixels: they are points $x_0$ of shape (B, 2). The data is a spiral, drawn afresh for every batch,
# so nothing can be learned by heart. It is made of 200 small Gaussian blobs in a row, for a reason that comes next.


# %%
def arm():
    """The centres of the blobs, (200, 2), along a little more than a turn."""
    u = torch.linspace(0.06, 1, 200).sqrt()  # the root keeps them evenly spaced as the arm moves outwards
    centres = 2.2 * u[:, None] * torch.stack([(3 * math.pi * u).cos(), (3 * math.pi * u).sin()], dim=1)
    return centres - centres.mean(0)


def spiral(n, spread=0.13):
    """n points (n, 2): a centre, and a little Gaussian noise around it."""
    centres = arm()
    return centres[torch.randint(len(centres), (n,))] + spread * torch.randn(n, 2)


def show_clouds(clouds):
    """Clouds of points (N, 2) side by side, each under its name."""
    with rc_context(md.plot.STYLE):
        figure = md.plot.Picture(figsize=(2.9 * len(clouds), 3.2), dpi=md.plot.DPI, layout="constrained")
        for axes, (name, points) in zip(figure.subplots(1, len(clouds)), clouds.items(), strict=True):
            axes.scatter(*points.cpu().T, s=3, color=md.plot.CURVES[0], alpha=0.4, linewidths=0)
            axes.set(title=name, xlim=(-3.5, 3.5), ylim=(-3.5, 3.5), xticks=[], yticks=[], aspect="equal")
    return figure


# %%
torch.manual_seed(SEED)
schedule = md.Schedule.linear(T)
x0, eps = spiral(POINTS), torch.randn(POINTS, 2)
shown = [100, 200, 300, 500]
show_clouds({"data": x0} | {f"t = {t}": md.add_noise(x0, eps, schedule.at(t)) for t in shown})

# %% [markdown]
# ## 2. The best possible answer
#
# Fix $x_t$. What is left of $\epsilon$ to guess is a random thing, with a mean $\epsilon^*(x_t) = E[\epsilon \mid x_t]$. Let
# the network answer $\epsilon_\theta(x_t)$. Write its error as two pieces and square:
#
# $$E\,|\epsilon_\theta - \epsilon|^2 = E\,|\epsilon_\theta - \epsilon^*|^2 + E\,|\epsilon^* - \epsilon|^2
# + 2\,E\big[(\epsilon_\theta - \epsilon^*)\cdot(\epsilon^* - \epsilon)\big].$$
#
# In the last term, given $x_t$, the first bracket is fixed and the second has mean 0. The term vanishes, and
#
# $$\underbrace{E\,|\epsilon_\theta - \epsilon|^2}_{\text{the loss}} =
# \underbrace{E\,|\epsilon_\theta - \epsilon^*|^2}_{\text{the excess: ours to reduce}} +
# \underbrace{E\,|\epsilon^* - \epsilon|^2}_{\text{the floor: nobody's}}.$$
#
# That answers the question of the chapter. **The network learns the mean of the noise, given what it sees**, and so, through
# $x_0 = (x_t - \sigma_t\epsilon)/\alpha_t$, the mean of all clean points that could have become this one. The floor is a
# posterior variance: how much noise and data can be confused.
#
# For a spiral of blobs that mean is a formula. A blob of spread $s$ under noise is a blob of variance
# $\alpha_t^2 s^2 + \sigma_t^2$. `md.DatasetDenoiser` says which centre the point came from, on average, if we tell it this
# wider noise. Inside a blob the rest is the Gaussian rule of chapter 02.


# %%
def exact(xt, level, spread=0.13):
    """The exact denoiser of the spiral: (xt, level) -> Estimate."""
    alpha, sigma = level.like(xt)
    wide = md.Level(level.t, level.alpha, (level.alpha**2 * spread**2 + level.sigma**2) ** 0.5)
    centre = md.DatasetDenoiser(arm())(xt, wide).x0
    x0 = centre + alpha * spread**2 / (alpha**2 * spread**2 + sigma**2) * (xt - alpha * centre)
    return md.Estimate(x0, md.predict_eps(xt, x0, level))


# %% [markdown]
# Forty held-out points for each of the thousand levels are the yardstick of the whole chapter. **Expected: a floor of about
# 0.24.** A network that always answers 0 would have a loss of 1.


# %%
def measure(denoise, held_out):
    """Mean squares on the held-out points, each in 25 ranges of 40 timesteps: the loss, the excess, the excess in x0."""
    xt, eps, level, best = held_out
    with torch.no_grad():
        guess = denoise(xt, level)
    errors = guess.eps - eps, guess.eps - best.eps, guess.x0 - best.x0
    return [(error**2).view(-1, 25, 40, 2).mean((0, 2, 3)).cpu() for error in errors]


x0, eps = spiral(40 * T).to(device), torch.randn(40 * T, 2, device=device)
level = schedule.at(torch.arange(T).repeat(40))
xt = md.add_noise(x0, eps, level)
held_out = (xt, eps, level, exact(xt, level))
floors = measure(exact, held_out)[0]
floor, middles = floors.mean().item(), torch.arange(25) * 40 + 20
print(f"the floor: {floor:.3f}, and by level from {floors.max():.2f} down to {floors.min():.1g}")
assert 0.235 < floor < 0.25 and floors.argmax() < 5
md.plot.show_curves({r"$E\,|\epsilon^* - \epsilon|^2$": (middles, floors)}, xlabel="t", ylabel="loss",
                    title="the floor: the least loss possible, by level")  # fmt: skip

# %% [markdown]
# At the noisy end $x_t$ *is* the noise, and guessing is easy. At the clean end the point lies in its blob, its noise is tiny,
# and nothing tells the one from the other: the loss is high exactly where $x_0$ is known best. A loss in $\epsilon$ and an
# error in $x_0$ are different things; section 9 returns to this.
#
# ## 3. Two naive attempts
#
# The loop has six lines, and they are the whole of diffusion training: sample data, sample $t$, add noise, predict, compare,
# step. (Here `t` may be given, to train at one level only.)


# %%
def train(net, steps, batch, schedule, t=None):
    """The plain loop, with Adam; returns the loss of every step."""
    device, losses = next(net.parameters()).device, []
    optimizer = torch.optim.Adam(net.parameters(), lr=4e-3)
    for _ in trange(steps, leave=False):
        x0, eps = spiral(batch).to(device), torch.randn(batch, 2, device=device)
        level = schedule.at(schedule.draw(batch) if t is None else torch.full((batch,), t))
        xt = md.add_noise(x0, eps, level)
        loss = ((net(xt, level.timesteps(xt)) - eps) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


class Blind(nn.Module):
    """A network that is given t, as every network here is, and ignores it."""

    def __init__(self, width=128):
        super().__init__()
        hidden = [layer for _ in range(2) for layer in (nn.Linear(width, width), nn.SiLU())]
        self.body = nn.Sequential(nn.Linear(2, width), nn.SiLU(), *hidden, nn.Linear(width, 2))

    def forward(self, xt, t):
        return self.body(xt)


# %% [markdown]
# **Attempt one: a network for every level.** Clean and simple, and there are a thousand levels. We afford ten, and give the
# ten together the steps that a single network will get.
#
# **Attempt two: one network for all levels, which is not told the level.** Perhaps it sees for itself how noisy a point is?

# %%
torch.manual_seed(SEED)
ten = [Blind().to(device) for _ in range(10)]
for i, net in enumerate(ten):
    train(net, STEPS // 10, BATCH, schedule, 100 * i + 50)

blind = Blind().to(device)
train(blind, STEPS, BATCH, schedule)


def nearest(xt, t):
    """Every point is answered by the one of the ten whose level is nearest."""
    answers = torch.stack([net(xt, t) for net in ten])
    return answers[t // 100, torch.arange(len(t), device=t.device)]


# %%
loss, kept = {}, {}  # the excess of every training is kept for later
for name, net in {"not told t": blind, "ten networks": nearest}.items():
    loss[name], kept[name], _ = measure(md.denoiser(net), held_out)
    print(f"{name}: loss {loss[name].mean():.4f} = floor {floor:.4f} + excess {kept[name].mean():.4f}")
    assert_close(loss[name].mean().item(), floor + kept[name].mean().item(), rtol=0.02, atol=0)  # section 2, measured
assert loss["not told t"][0] > 1 and kept["not told t"].mean() > TOLD * kept["ten networks"].mean()
curves = loss | {"the floor": floors}
md.plot.show_curves({name: (middles, curve) for name, curve in curves.items()}, xlabel="t", ylabel="loss",
                    title="two naive attempts")  # fmt: skip

# %% [markdown]
# The blind network has all the data, and a question without an answer: the same $x_t$ comes from many levels, and it gives
# the mean over them. It is wrong everywhere; at the clean end it does worse than answering 0 would.
#
# The ten do much better, at ten times the weights. Their trouble is between their levels: asked about a neighbour, each
# answers with the noise it is used to, and at the clean end, where the level changes fast, that costs most. A thousand
# networks would have no neighbours, and one training step each. Neighbouring levels ask almost the same question; these
# networks cannot share the answer. So: one network, and it is told.

# %% [markdown]
# ## 4. Telling the time
#
# The network must be told $t$. A raw number from 0 to 999 beside coordinates between −2 and 2 drowns them (section 10 has the
# damage). The usual form is a row of waves, slow and fast, like the hands of a clock:
#
# $$\big[\cos(\omega_1 t), \dots, \cos(\omega_{d/2}\, t),\; \sin(\omega_1 t), \dots, \sin(\omega_{d/2}\, t)\big],
# \qquad \omega_k = 10\,000^{-(k-1)/(d/2)} \quad\text{(Vaswani et al. 2017, section 3.5)}$$


# %%
def sinusoidal(t, dim, max_period=10_000.0):
    """t (B,) -> (B, dim): cos and sin of t at dim/2 frequencies from 1 down to 1/max_period."""
    frequency = torch.exp(-math.log(max_period) * torch.arange(dim // 2, device=t.device) / (dim // 2))
    angle = t.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def show_waves(waves):
    """An embedding (T, dim) as an image, a column for each timestep."""
    with rc_context(md.plot.STYLE):
        figure = md.plot.Picture(figsize=(11, 3.6), dpi=md.plot.DPI, layout="constrained")
        axes = figure.subplots()
        figure.colorbar(axes.imshow(waves.T, aspect="auto", cmap="RdBu", interpolation="nearest"))
        axes.set(xlabel="t", ylabel="cosines, then sines", title="the embedding of every timestep, a column each")
        axes.grid(False)
    return figure


# %%
waves = sinusoidal(torch.arange(T), 64)
assert_close(waves, md.nets.sinusoidal(torch.arange(T), 64))
show_waves(waves)

# %% [markdown]
# Why sines? Every value lies in [−1, 1]. Every $t$ has a column of its own. And neighbours look alike, in a way that does not
# depend on where they are: since $\cos a\cos b + \sin a\sin b = \cos(a-b)$,
#
# $$\text{emb}(t)\cdot\text{emb}(s) = \sum_k \cos\big(\omega_k\,(t-s)\big),$$
#
# a function of the distance $t - s$ alone. It is $d/2 = 32$ at distance 0. **Expected: two thirds of that ten steps away, less
# than half 150 steps away, and the same curve from 200, from 500 and from 800.**

# %%
alike = {f"from t = {s}": (torch.arange(-150, 151), waves[s - 150 : s + 151] @ waves[s] / 32) for s in (200, 500, 800)}
curves = [curve for _, curve in alike.values()]
assert_close(curves[0], curves[1], atol=1e-3, rtol=0)
assert_close(curves[0], curves[2], atol=1e-3, rtol=0)
print(f"likeness at distance 1: {curves[0][151]:.2f}, 10: {curves[0][160]:.2f}, 150: {curves[0][300]:.2f}")
assert abs(curves[0][160] - 2 / 3) < 0.03 and curves[0][300] < 0.5
md.plot.show_curves(alike, xlabel="distance in t", ylabel="likeness", title="how alike two timesteps look")

# %% [markdown]
# The network lifts the point to 128 features, adds what a linear layer makes of the embedding, and goes on as the blind one
# did. The U-Net of the next chapter does the same in every block. `embed` is an argument, so that bugs can be tried.


# %%
class Net(nn.Module):
    """(xt, t) -> an answer like xt: a small MLP to which the embedded t is added."""

    def __init__(self, embed, dim, width=128):
        super().__init__()
        hidden = [layer for _ in range(2) for layer in (nn.Linear(width, width), nn.SiLU())]
        self.embed, self.lift, self.time = embed, nn.Linear(2, width), nn.Linear(dim, width)
        self.body = nn.Sequential(nn.SiLU(), *hidden, nn.Linear(width, 2))

    def forward(self, xt, t):
        return self.body(self.lift(xt) + self.time(self.embed(t)))


def new_net(seed=0):
    """The network of this chapter, the same at every call."""
    torch.manual_seed(seed)
    return Net(lambda t: sinusoidal(t, 64), 64)


# %% [markdown]
# ## 5. Where the loss comes from
#
# We compared noise with noise because it seemed natural. DDPM arrives there from the likelihood. Here is the way, in this
# library's letters: $x_{t-1}$ is the next cleaner level, with $\alpha', \sigma'$; without a prime, they belong to $x_t$.
#
# **A bound.** The model is a chain down from noise, $p_\theta(x_{0:T}) = p(x_T)\prod_t p_\theta(x_{t-1}\mid x_t)$. The
# likelihood of $x_0$ is an integral over all chains, which nobody can compute. But the chains that lead up from $x_0$ are
# known, $q(x_{1:T}\mid x_0)$, and the logarithm of a mean is at least the mean of the logarithm:
#
# $$-\log p_\theta(x_0) = -\log E_q\!\left[\frac{p_\theta(x_{0:T})}{q(x_{1:T}\mid x_0)}\right]
# \le E_q\!\left[-\log\frac{p_\theta(x_{0:T})}{q(x_{1:T}\mid x_0)}\right].$$
#
# Bayes turns each upward step round, $q(x_t\mid x_{t-1}) = q(x_{t-1}\mid x_t, x_0)\, q(x_t\mid x_0) / q(x_{t-1}\mid x_0)$;
# the fractions cancel along the chain, and the bound falls apart into a comparison for every step (DDPM, eq. 5):
#
# $$E_q\Big[\underbrace{D_{KL}\big(q(x_T|x_0)\,\|\,p(x_T)\big)}_{\text{nothing to learn}} + \sum_t
# D_{KL}\big(\underbrace{q(x_{t-1}|x_t,x_0)}_{\text{the step, knowing }x_0}\,\|\,
# \underbrace{p_\theta(x_{t-1}|x_t)}_{\text{the step, guessing}}\big)
# \;\underbrace{-\log p_\theta(x_0|x_1)}_{\text{the last step}}\Big].$$
#
# **Each comparison is a square.** Both steps are Gaussians, and we give both the same variance. For those,
#
# $$D_{KL}\big(\mathcal N(m, s^2)\,\|\,\mathcal N(\hat m, s^2)\big)
# = E_{x\sim\mathcal N(m,s^2)}\,\frac{|x-\hat m|^2 - |x-m|^2}{2s^2} = \frac{|m-\hat m|^2}{2s^2} \qquad\text{(DDPM, eq. 8)}$$
#
# **Substitute.** `md.ddpm_step` has the mean as $m = \alpha' x_0 + \sigma'\rho\,\epsilon$ and the variance as
# $s^2 = \sigma'^2(1-\rho^2)$, where $\rho = \frac{\alpha/\sigma}{\alpha'/\sigma'}$ (derived in chapter 02). A guess
# $\hat\epsilon$ comes with $\hat x_0 = (x_t - \sigma\hat\epsilon)/\alpha$, so $x_0 - \hat x_0 =
# -\frac{\sigma}{\alpha}(\epsilon-\hat\epsilon)$ and
#
# $$m - \hat m = \Big(\sigma'\rho - \frac{\alpha'\sigma}{\alpha}\Big)(\epsilon-\hat\epsilon)
# = -\frac{\sigma'}{\rho}\,(1-\rho^2)\,(\epsilon-\hat\epsilon).$$
#
# Square, divide by $2s^2$, and with $\rho^2 = \mathrm{SNR}_t/\mathrm{SNR}_{t-1}$ the whole bound is
#
# $$\sum_t w_t\, E\,|\epsilon - \epsilon_\theta(x_t, t)|^2, \qquad
# w_t = \frac{1-\rho^2}{2\rho^2} = \frac12\Big(\frac{\mathrm{SNR}_{t-1}}{\mathrm{SNR}_t} - 1\Big) \qquad\text{(DDPM, eq. 12)}$$
#
# **Drop the weights.** DDPM then sets $w_t = 1$ (its eq. 14), because the pictures came out better. The cell checks the
# algebra with the library's own step, and our $w_t$ against the paper's form, $\beta_t / (2(1-\beta_t)(1-\bar\alpha_{t-1}))$.

# %%
snr = schedule.abar.double() / (1 - schedule.abar.double())
weight = (snr[:-1] / snr[1:] - 1) / 2
beta = 1 - schedule.abar[1:].double() / schedule.abar[:-1].double()
assert_close(weight, beta / (2 * (1 - beta) * (1 - schedule.abar[:-1].double())))

here, there = schedule.at(500), schedule.at(499)
x, e, guess = torch.randn(3, 2, 2).double()  # a point, its noise, and a wrong guess of the noise
noisy = md.add_noise(x, e, here)
means = [md.ddpm_step(noisy, md.Estimate(md.predict_x0(noisy, n, here), n), here, there, noise=0 * n) for n in (e, guess)]
std = there.sigma * (1 - snr[500] / snr[499]).sqrt()
divergence = kl_divergence(Normal(means[0], std), Normal(means[1], std))
assert_close(divergence, weight[499] * (e - guess) ** 2, rtol=1e-3, atol=0)
print(f"the bound weighs t = 1 with {weight[0]:.2g}, t = 10 with {weight[9]:.2g}, t = 500 with {weight[499]:.2g}")
assert weight[0] / weight[499] > 30
md.plot.show_curves({r"$w_t$, for an error in $\epsilon$": (range(1, T), weight), "DDPM's choice": ((1, T), (1, 1))},
                    xlabel="t", yscale="log", title="the weights of the bound, and of the simple loss")  # fmt: skip

# %% [markdown]
# Only ratios matter. For most of the chain the bound's weights are nearly flat; they spike at the very first levels, where a
# few steps of invisible detail decide a likelihood. Dropping the weights takes that spike away: attention moves from
# detail no one sees to the levels where shapes are decided.
#
# ## 6. `diffusion_loss`
#
# Noise is one choice of target. Any mixture of $x_0$ and $\epsilon$ would do, as chapter 01 showed with $v$:


# %%
def target(x0, eps, level, predicts):
    """What a network of this kind is trained to answer."""
    return {"eps": eps, "x0": x0, "v": md.velocity(x0, eps, level), "flow": eps - x0}[predicts]


def to_estimate(output, xt, level, predicts):
    """The way back: two linear equations, xt and the answer, for the two unknowns x0 and eps."""
    alpha, sigma = level.like(xt)
    if predicts == "eps":
        return md.Estimate(md.predict_x0(xt, output, level), output)
    if predicts == "x0":
        return md.Estimate(output, md.predict_eps(xt, output, level))
    if predicts == "v":
        norm = alpha**2 + sigma**2  # 1 on a VP schedule
        return md.Estimate((alpha * xt - sigma * output) / norm, (sigma * xt + alpha * output) / norm)
    norm = alpha + sigma  # "flow", where it is 1 on a flow schedule
    return md.Estimate((xt - sigma * output) / norm, (xt + alpha * output) / norm)


def denoiser(net, predicts="eps", clip=None, **cond):
    """A network as a denoiser: (xt, level) -> Estimate."""

    def denoise(xt, level):
        return to_estimate(net(xt, level.timesteps(xt), **cond), xt, level, predicts)

    return denoise if clip is None else md.clipped(denoise, clip)


# %% [markdown]
# Read the error off `to_estimate`. An answer that is wrong by $\delta$ makes an $\hat x_0$ that is wrong by
#
# | target | $\epsilon$ | $x_0$ | $v$ (VP) | flow |
# |---|---|---|---|---|
# | error in $\hat x_0$ | $(\sigma/\alpha)\,\delta$ | $\delta$ | $\sigma\,\delta$ | $\sigma/(\alpha+\sigma)\,\delta$ |
#
# So the four losses are one loss with different weights on $|x_0 - \hat x_0|^2$: the inverse squares of these factors. For
# $\epsilon$ the weight is the SNR, which goes from ten thousand down to nearly nothing. Min-SNR caps it (Hang et al. 2023,
# section 3.4): every error in $x_0$ is to count $\min(\mathrm{SNR}, \gamma)$, so the loss is multiplied by that and
# divided by the weight $k$ it had. (The library writes the same so that it is also finite at $\alpha = 0$.)
#
# The table also lets a network predict one thing and be `measured` by another. A picture is easier to draw than noise, and
# an error in the flow may be what we mind: then the error in $x_0$ is multiplied by $(\alpha+\sigma)/\sigma$, up to a bound
# (Li & He 2025).


# %%
def min_snr_weight(level, predicts, gamma=5.0):
    """min(SNR, gamma) / k, for an error that counts k times that in x0."""
    alpha, sigma = torch.as_tensor(level.alpha), torch.as_tensor(level.sigma)
    snr = (alpha / sigma) ** 2
    k = {"eps": snr, "x0": 1, "v": ((alpha**2 + sigma**2) / sigma) ** 2, "flow": ((alpha + sigma) / sigma) ** 2}[predicts]
    return snr.clamp(max=gamma) / k


def measured_weight(level, predicts, measured, most=100.0):
    """What turns a squared error of `predicts` into one of `measured`."""
    alpha, sigma = torch.as_tensor(level.alpha), torch.as_tensor(level.sigma)
    k = {"eps": alpha, "x0": sigma, "v": alpha**2 + sigma**2, "flow": alpha + sigma}  # each over sigma
    return (k[measured] / k[predicts]).square().clamp(max=most)


def diffusion_loss(net, x0, schedule, predicts="eps", t=None, noise=None, *, min_snr=None, measured=None, **cond):
    """E |net(x_t, t) - target|^2 (DDPM, eq. 14): a scalar."""
    level = schedule.at(schedule.draw(len(x0)) if t is None else t)
    noise = torch.randn_like(x0) if noise is None else noise
    xt = md.add_noise(x0, noise, level)
    output = net(xt, level.timesteps(xt), **cond)
    error = ((output - target(x0, noise, level, predicts)) ** 2).flatten(1).mean(1)  # (B,)
    if min_snr is not None:
        error = min_snr_weight(level, predicts, min_snr).to(error) * error
    if measured is not None:
        error = measured_weight(level, predicts, measured).to(error) * error
    return error.mean()


# %%
net = new_net()
t, x, e = torch.tensor([0, 300, 999]), torch.randn(3, 2), torch.randn(3, 2)
for predicts in ("eps", "x0", "v", "flow"):
    for weighing in ({}, {"min_snr": 5.0}, {"measured": "flow"}):
        asked = (net, x, schedule, predicts, t, e)
        assert_close(diffusion_loss(*asked, **weighing), md.diffusion_loss(*asked, **weighing))
    assert_close(denoiser(net, predicts)(x, schedule.at(t)), md.denoiser(net, predicts)(x, schedule.at(t)))

# %% [markdown]
# ## 7. Training
#
# The plain loop first, with the network that is told $t$, for as many steps as the blind one had.

# %%
net = new_net().to(device)
losses = train(net, STEPS, BATCH, schedule)
md.plot.show_losses(losses, title=f"the floor is at {floor:.3f}")


# %% [markdown]
# Judging by the picture, little happens after a tenth of the run. But the loss is floor plus excess, and the floor hides the
# excess. **Expected: told $t$, the network ends with an excess at least three times smaller than that of the blind network.**

# %%
_, kept["plain loop"], _ = measure(denoiser(net), held_out)
print({name: round(excess.mean().item(), 4) for name, excess in kept.items()})
assert kept["not told t"].mean() > TOLD * kept["plain loop"].mean()

# %% [markdown]
# `md.Trainer` is the same loop with what experience added: the learning rate rises, then falls to 0; a gradient that
# is too long is shortened; and a second copy of the weights, `trainer.ema.net`, is a moving average of the first (chapter 10).
# **Expected: the loss ends within 3 % of the floor.**


# %%
def endless(n, device):
    """What the Trainer eats: (x, y) without end; points have no labels."""
    while True:
        yield spiral(n).to(device), None


def fit(net, loss, steps, batch):
    """A network trained by md.Trainer on loss(net, x0): the averaged one."""
    trainer = md.Trainer(net, lambda net, x0, y: loss(net, x0), md.TrainConfig(steps=steps, lr=1e-2, ema=0.99))
    trainer.fit(endless(batch, next(net.parameters()).device))
    return trainer.ema.net


# %%
nets = {"eps": fit(new_net().to(device), lambda net, x0: diffusion_loss(net, x0, schedule), STEPS, BATCH)}
loss, kept["Trainer"], _ = measure(denoiser(nets["eps"]), held_out)
above = loss.mean().item() / floor - 1
print(f"loss {loss.mean():.4f}, floor {floor:.4f}: {above:.1%} above it")
assert above < CLOSE
md.plot.show_curves({name: (middles, excess) for name, excess in kept.items()}, xlabel="t", ylabel="excess over the floor",
                    yscale="log", title="what is left to learn, by level")  # fmt: skip

# %% [markdown]
# What remains is at the clean end, where the exact answer turns sharply from blob to blob. Now look at the function itself.
# From noisy points, an arrow to where the point is believed to have come from, $\hat x_0$: black the exact denoiser, orange
# the network.


# %%
def show_fields(exact, learned, noisy):
    """Arrows xt -> x0 of two denoisers, from the points of {level: xt}; in the title the error, relative to the arrows."""
    with rc_context(md.plot.STYLE):
        figure = md.plot.Picture(figsize=(3.4 * len(noisy), 3.8), dpi=md.plot.DPI, layout="constrained")
        for axes, (level, xt) in zip(figure.subplots(1, len(noisy)), noisy.items(), strict=True):
            with torch.no_grad():
                fields = [(denoise(xt, level).x0 - xt).cpu() for denoise in (exact, learned)]
            wrong = (fields[1] - fields[0]).norm() / fields[0].norm()
            axes.scatter(*arm().T, s=12, color="#d9d9d9")
            for field, colour, width in zip(fields, ("black", md.plot.CURVES[5]), (0.011, 0.005), strict=True):
                axes.quiver(*xt[:60].cpu().T, *field[:60].T, color=colour, angles="xy", scale_units="xy", scale=1, width=width)
            axes.set(title=f"t = {level.t}: {wrong:.0%} apart", xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
            axes.set(xticks=[], yticks=[])
    return figure


# %%
noisy = {schedule.at(t): md.add_noise(spiral(4000), torch.randn(4000, 2), schedule.at(t)).to(device) for t in shown}
show_fields(exact, denoiser(nets["eps"]), noisy)

# %% [markdown]
# A network that has never seen a formula has found it. With little noise, the arrows go to the nearest stretch of the arm;
# with more, to a mean over several; with much, all go to one place, the mean of the data. As numbers: which share of the
# exact answer's mean square does the error make up? **Expected: at most 20 % at $t = 100$, and at most 3 % at the other
# three.**

# %%
for level, point in noisy.items():
    with torch.no_grad():
        a, b = exact(point, level).eps, denoiser(nets["eps"])(point, level).eps
    share = (((a - b) ** 2).mean() / (a**2).mean()).item()
    print(f"t = {level.t:3}: the error is {share:.2%} of the answer")
    assert share < (0.2 if level.t == 100 else 0.03) * CLOSE / 0.03

# %% [markdown]
# ## 8. Sampling
#
# Start from noise, and let a sampler ask the network on the way down: 50 steps of DDIM, 250 of DDPM. Next to it the exact
# denoiser, which shows what the sampler itself costs, and the blind network.
#
# How far apart are two clouds $X$ and $Y$? The **energy distance** (Székely & Rizzo 2013) is
# $2E|X-Y| - E|X-X'| - E|Y-Y'|$, and is 0 only for equal distributions. Two clouds of real data are not at 0 either, because
# they are finite. That is the floor to compare with.


# %%
def energy_distance(x, y):
    """2 E|x - y| - E|x - x'| - E|y - y'| between two clouds (N, D) and (M, D)."""
    return (2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean()).item()


# %%
torch.manual_seed(SEED)
data, again, noise = spiral(POINTS).to(device), spiral(POINTS).to(device), torch.randn(POINTS, 2, device=device)
walks = {"exact, DDIM": (md.ddim, exact, 50), "learned, DDIM": (md.ddim, denoiser(nets["eps"]), 50),
         "learned, DDPM": (md.ddpm, denoiser(nets["eps"]), 250), "blind, DDIM": (md.ddim, md.denoiser(blind), 50)}  # fmt: skip
clouds = {name: md.sample(sampler, denoise, noise, schedule.levels(n)) for name, (sampler, denoise, n) in walks.items()}
away = {name: energy_distance(data, cloud) for name, cloud in {"data again": again, **clouds}.items()}
print({name: round(distance, 5) for name, distance in away.items()})
show_clouds({"data": data, **clouds})

# %% [markdown]
# **Expected: the learned clouds are within 4 floors of the data, and the blind one three times further than the learned one.**
# Some learned points lie between the arms: where the exact answer turns sharply, the network's turns gently. The blind cloud
# is a thin curve that misses the inner arm: to the very end its walker is given the mean of what fits all levels, as if there
# were more noise to remove than there is.

# %%
assert max(away["learned, DDIM"], away["learned, DDPM"]) < NEAR * away["data again"]
assert away["blind, DDIM"] > TOLD * away["learned, DDIM"]

# %% [markdown]
# ## 9. Which target is easiest?
#
# Four networks, the same weights to start with, the same points, the same steps; only `predicts` differs. The judge is the
# same for all: how far is $\hat x_0$ from the exact one? **Expected, from the table of section 6: $\epsilon$ is far worse
# than the others at the noisy end, $x_0$ is the worst at the clean end, and $v$ is within a factor 2 of the best at both.**

# %%
for predicts in ("x0", "v", "flow"):
    nets[predicts] = fit(new_net().to(device), lambda net, x0, p=predicts: diffusion_loss(net, x0, schedule, p), STEPS, BATCH)
off = {predicts: measure(denoiser(net, predicts), held_out)[2].sqrt() for predicts, net in nets.items()}
for name, part in (("clean end", slice(0, 1)), ("middle", slice(11, 14)), ("noisy end", slice(24, 25))):
    print(f"{name:9}", {predicts: round(error[part].mean().item(), 4) for predicts, error in off.items()})
md.plot.show_curves({predicts: (middles, error) for predicts, error in off.items()}, xlabel="t", yscale="log",
                    ylabel=r"error in $\hat x_0$ (RMS)", title="four targets, one budget")  # fmt: skip

# %%
clean, noisiest = ({predicts: error[i].item() for predicts, error in off.items()} for i in (0, -1))
assert noisiest["eps"] > 3 * max(noisiest[p] for p in ("x0", "v", "flow"))
assert 157 < (schedule.sigma / schedule.alpha)[-1] < 158
assert clean["x0"] > 1.5 * max(clean[p] for p in ("eps", "v", "flow"))
assert clean["v"] < 2 * min(clean.values()) and noisiest["v"] < 2 * min(noisiest.values())

# %% [markdown]
# Everyone should see this figure once. Near $t = 0$ the point is almost given away, and a network that answers $x_0$ has to
# copy its input almost unchanged, which networks do badly; near $t = T$ a network that answers $\epsilon$ has to copy it, and
# whatever it gets wrong is multiplied by $\sigma/\alpha$, here up to 157. $v$ asks for the half that is not on the table:
# noise at the clean end, data at the noisy end. Flow asks for both halves everywhere, and never multiplies an error.
#
# The sampler forgives $\epsilon$ a great deal: at the noisy end a step takes only a little of $\hat x_0$, and then asks again.
#
# ## 10. Bugs you will meet
#
# **No $t$, or a raw one.** The blind network of section 3 was the first. The second gets integers up to 999, which go into
# the first layer beside coordinates of size 1, and drown them. Dividing by $T$ cures that, and in this plane it comes close
# to the sinusoids. Those are the choice of DDPM, and of Stable Diffusion.
#
# **One $t$ for the whole batch.** `draw(1)` in place of `draw(batch)`. Right on average, so it trains; but each step sees one
# level only, and the gradient jumps from level to level.
#
# **`loss.backward(loss)`.** From a published tutorial. What is given to `backward` multiplies the gradient, so this is
# the gradient of $\frac12\,\text{loss}^2$. Adam divides a gradient by its own size, which hides the slip; plain SGD does not.
# First, that it is so:

# %%
net, x0 = new_net(), spiral(BATCH)
gradients = []
for wrong in (False, True):
    torch.manual_seed(SEED)
    loss = diffusion_loss(net, x0, schedule)
    net.zero_grad()
    loss.backward(loss if wrong else None)
    gradients.append(net.lift.weight.grad.clone())
assert_close(gradients[1], loss.item() * gradients[0])
print(f"loss.backward(loss) multiplies the gradient by {loss.item():.2f}, the loss of this batch")

# %% [markdown]
# Then the damage, after the same budget. **Expected: the raw $t$ makes the excess more than ten times as large, one
# $t$ a batch increases it by a half at least, and $t/T$ and `backward(loss)` stay within a factor of 3.**

# %%
torch.manual_seed(SEED)
fields = {d: Net(lambda t, d=d: t[:, None].float() / d, 1) for d in (1, T)}
bugs = {"raw t": (fields[1], lambda net, x0: diffusion_loss(net, x0, schedule)),
        "t / T": (fields[T], lambda net, x0: diffusion_loss(net, x0, schedule)),
        "one t a batch": (new_net(), lambda net, x0: diffusion_loss(net, x0, schedule, t=schedule.draw(1).expand(len(x0)))),
        "backward(loss)": (new_net(), lambda net, x0: diffusion_loss(net, x0, schedule) ** 2 / 2)}  # fmt: skip
damage = {"right": kept["Trainer"]}
for name, (net, loss) in bugs.items():
    damage[name] = measure(denoiser(fit(net.to(device), loss, STEPS, BATCH)), held_out)[1]
times = {name: (excess.mean() / damage["right"].mean()).item() for name, excess in damage.items()}
print({name: round(value, 2) for name, value in times.items()})
md.plot.show_curves({name: (middles, excess) for name, excess in damage.items()}, xlabel="t",
                    ylabel="excess over the floor", yscale="log", title="bugs, by level")  # fmt: skip

# %%
assert times["raw t"] > DROWNED and times["one t a batch"] > 1.5 and max(times["t / T"], times["backward(loss)"]) < 3

# %% [markdown]
# ## 11. What we left out
#
# | left out | where to read it |
# |---|---|
# | the last term of the bound, a decoder for pixels of 256 values | DDPM, section 3.3, eq. 13 |
# | a variance that is learned too | Nichol & Dhariwal 2021, section 3.1 |
# | the same bound for continuous time, where the schedule drops out of it | Kingma et al. 2021 |
# | $\epsilon^*$ is $-\sigma_t$ times the slope of $\log q(x_t)$, the *score* | Vincent 2011; Song & Ermon 2019 |
# | on images, noise shows how strong it is, and a blind network fares better | Sun et al. 2025 |
# | $t$ drawn more often where there is more to learn | `Schedule.draw`; Esser et al. 2024, eq. 19 |
# | training with the Min-SNR weight, which we wrote and did not use | Hang et al. 2023, section 3.4 |
#
# What you wrote is `minidiff/diffusion/loss.py`, most of `forward.py`, and the first function of `nets/embeddings.py`.
#
# **Next:** an image is a point with 3072 coordinates, and an MLP would not know which of them are neighbours. A U-Net does.

# %%
print(f"torch {torch.__version__}, minidiff {md.__version__}, {device}")
