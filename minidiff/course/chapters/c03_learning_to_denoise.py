"""Tasks of chapter 03: what the network is told, what it is asked, and what its answer is worth."""

import torch

from ...data import Shapes, from_pixels
from ...diffusion import CLEAN, Estimate, Level, Schedule, add_noise, diffusion_loss, min_snr_weight, target, to_estimate
from ...nets import sinusoidal
from ..task import Case, Law, Mistake, Task

LINEAR, FLOW = Schedule.linear(), Schedule.flow()
GENERATOR = torch.Generator().manual_seed(3)
X0 = from_pixels(Shapes(4, size=32, seed=3).tensors()[0])  # (4, 3, 32, 32)
EPS = torch.randn(X0.shape, generator=GENERATOR)
T = torch.tensor([20, 200, 400, 800])  # every image at a level of its own
EACH, EACH_FLOW = LINEAR.at(T), FLOW.at(torch.tensor([20.5, 200.0, 400.0, 1000.0]))  # the flow's last is pure noise
SMALL = torch.randn(4, 1, 4, 4, generator=GENERATOR)  # as wide as the batch is long: broadcasting goes wrong in silence


def falling(dim, max_period):
    return max_period ** (-torch.arange(dim // 2) / (dim // 2))


def embedding(frequency=falling, join=lambda angle: torch.cat([angle.cos(), angle.sin()], dim=1)):
    return lambda t, dim, max_period=10_000.0: join(t.float()[:, None] * frequency(dim, max_period))


sinusoidal_task = Task(
    "03.1", "tell the time in waves", sinusoidal,
    cases=(
        Case("two timesteps, two frequencies by hand", (torch.tensor([0, 10]), 4, 100.0),
             torch.tensor([[1, 1, 0, 0], [-0.839072, 0.540302, -0.544021, 0.841471]])),  # angles 10 * 1 and 10 * 0.1
        Case("every timestep of a schedule", (torch.arange(1000), 64)),
        Case("timesteps between two whole ones", (torch.tensor([0.5, 333.3, 1000.0]), 128)),
        Case("one timestep, another period", (torch.tensor([7]), 32, 50.0)),
    ),
    mistakes=(
        Mistake("the sines come first here; Stable Diffusion, and this library, have the cosines first.",
                embedding(join=lambda angle: torch.cat([angle.sin(), angle.cos()], dim=1))),
        Mistake("cosines and sines alternate: they should stand in two blocks, all cosines and then all sines.",
                embedding(join=lambda angle: torch.stack([angle.cos(), angle.sin()], dim=-1).flatten(1))),
        Mistake("the frequencies fall only half as far as they should: the exponent is divided by dim, and there are dim / 2.",
                embedding(lambda dim, period: period ** (-torch.arange(dim // 2) / dim))),
        Mistake("the lowest frequency is exactly 1 / max_period, as in DDPM's own code; here k is divided by dim / 2, not by "
                "one less.", embedding(lambda dim, period: period ** (-torch.arange(dim // 2) / (dim // 2 - 1)))),
        Mistake("t was squeezed before the waves were made: the frequencies are meant for t as it is, 0 to 999.",
                embedding(lambda dim, period: falling(dim, period) / 1000)),
        Mistake("max_period was given, and not used.", embedding(lambda dim, period: falling(dim, 10_000.0))),
    ),
    hints=("Three steps: dim / 2 frequencies, the angle of every t at every frequency, then the waves.",
           "The frequencies are max_period to the power -k / (dim / 2), k = 0, 1, ...; `t[:, None]` meets them in a table.",
           "torch.cat([angle.cos(), angle.sin()], dim=1), where angle = t.float()[:, None] * frequency"),
    tolerance=2e-3,  # an angle of 999 has lost three digits in float32, in another way for every way of writing the power
)  # fmt: skip


def but(right, **kinds):
    """The right version, except for the kinds of prediction named."""
    return lambda a, b, level, predicts: (kinds[predicts](a, b, *level.like(a)) if predicts in kinds
                                          else right(a, b, level, predicts))  # fmt: skip


def on_the_last_axis(x0, eps, level, predicts):
    if predicts != "v" or x0.shape[-1] != len(x0):  # anything else would raise
        return target(x0, eps, level, predicts)
    return torch.as_tensor(level.alpha) * eps - torch.as_tensor(level.sigma) * x0


BY_HAND = torch.tensor([[1.0, -1.0, 0.5]]), torch.tensor([[1.0, 2.0, -1.0]]), Level(0, 0.6, 0.8)
target_task = Task(
    "03.2", "four things to ask for", target,
    cases=(
        Case("v of three numbers by hand", (*BY_HAND, "v"), torch.tensor([[-0.2, 2.0, -1.0]])),
        Case("flow of three numbers by hand", (*BY_HAND, "flow"), torch.tensor([[0.0, 3.0, -1.5]])),
        Case("eps", (X0, EPS, EACH, "eps")),
        Case("x0", (X0, EPS, EACH, "x0")),
        Case("v, a level for each image", (X0, EPS, EACH, "v")),
        Case("v of a batch as long as its images are wide", (SMALL, SMALL.flip(0), EACH, "v")),
        Case("flow, at one level", (X0, EPS, FLOW.at(300.5), "flow")),
        Case("v of a clean image", (X0, EPS, CLEAN, "v")),
    ),
    mistakes=(
        Mistake("v has the opposite sign: it points the way the noise grows.",
                but(target, v=lambda x0, eps, a, s: s * x0 - a * eps)),
        Mistake("alpha and sigma have changed places in v: of all places, here alpha belongs to the noise.",
                but(target, v=lambda x0, eps, a, s: s * eps - a * x0)),
        Mistake("flow has the opposite sign: in papers where time runs from noise to image that is right, here it runs the "
                "other way.", but(target, flow=lambda x0, eps, a, s: x0 - eps)),
        Mistake("the flow target is the same at every level: only v has alpha and sigma in it.",
                but(target, flow=lambda x0, eps, a, s: a * eps - s * x0)),
        Mistake("eps and x0 have changed places: the name says what the network is to answer, not what it is shown.",
                but(target, eps=lambda x0, eps, a, s: x0, x0=lambda x0, eps, a, s: eps)),
        Mistake("the level of each image was lined up with the width of the images: level.like gives it a shape that fits.",
                on_the_last_axis),
    ),
    hints=("Two of the four need no arithmetic, and one needs no level.",
           "`alpha, sigma = level.like(x0)` for v, so that a level for each image works too.",
           "eps; x0; alpha * eps - sigma * x0; eps - x0"),
)  # fmt: skip


def backwards(output, xt, level, predicts):
    x0, eps = to_estimate(output, xt, level, predicts)
    return Estimate(eps, x0)


XT = add_noise(X0, EPS, EACH)
ANSWER = EPS + 0.3 * torch.randn(X0.shape, generator=GENERATOR)  # no network is right
ZERO_SNR = LINEAR.zero_terminal_snr().at(999)
to_estimate_task = Task(
    "03.3", "read the answer", to_estimate,
    cases=(
        Case("v of three numbers by hand", (torch.tensor([[-0.2, 2.0, -1.0]]), torch.tensor([[1.4, 1.0, -0.5]]),
             BY_HAND[2], "v"), BY_HAND[:2]),
        Case("eps", (ANSWER, XT, EACH, "eps")),
        Case("x0", (X0 + 0.1 * EPS, XT, EACH, "x0")),
        Case("v", (ANSWER, XT, EACH, "v")),
        Case("flow, a level for each image, the last pure noise", (ANSWER, XT, EACH_FLOW, "flow")),
        Case("v where nothing is left of the image", (ANSWER, EPS, ZERO_SNR, "v")),
        Case("eps of a clean image", (ANSWER, X0, CLEAN, "eps")),
        Case("v on a flow, where alpha**2 + sigma**2 is not 1", (ANSWER, XT, FLOW.at(300), "v")),
        Case("flow where alpha + sigma is not 1", (ANSWER, XT, EACH, "flow")),
    ),
    mistakes=(
        Mistake("the two have changed places: an Estimate is the image first, then the noise.", backwards),
        Mistake("from eps: the noise is taken away, but the image is still small.",
                but(to_estimate, eps=lambda out, xt, a, s: Estimate(xt - s * out, out))),
        Mistake("from x0: before it is taken away from x_t, the image has to be as small as it is in x_t.",
                but(to_estimate, x0=lambda out, xt, a, s: Estimate(out, (xt - out) / s))),
        Mistake("from v: the signs have changed places; v counts against the image and for the noise.",
                but(to_estimate, v=lambda out, xt, a, s: Estimate((a * xt + s * out) / (a**2 + s**2),
                                                                  (s * xt - a * out) / (a**2 + s**2)))),
        Mistake("from flow: the answer is the whole way from image to noise, and x_t has gone only a part of it.",
                but(to_estimate, flow=lambda out, xt, a, s: Estimate(xt - out, xt))),
        Mistake("v and flow are read as if alpha**2 + sigma**2, or alpha + sigma, were 1: on another schedule they are not, so "
                "divide.", but(to_estimate, v=lambda out, xt, a, s: Estimate(a * xt - s * out, s * xt + a * out),
                               flow=lambda out, xt, a, s: Estimate(xt - s * out, xt + a * out))),
    ),
    hints=("Two equations for two unknowns: x_t = alpha * x0 + sigma * eps, and what the answer says. Eliminate one.",
           "For v, alpha * x_t - sigma * v has no eps left in it, sigma * x_t + alpha * v no x0. What stands before the rest?",
           "v: ((alpha * xt - sigma * v) / n, (sigma * xt + alpha * v) / n), n = alpha**2 + sigma**2; "
           "flow: ((xt - sigma * f) / m, (xt + alpha * f) / m), m = alpha + sigma"),
    tolerance=1e-3,
)  # fmt: skip


def counts(a, s, snr, predicts):
    """How many times an error in the answer counts, compared with one in x0."""
    return {"eps": snr, "x0": 1, "v": ((a**2 + s**2) / s) ** 2, "flow": ((a + s) / s) ** 2}[predicts]


def weigh(cap=lambda snr, gamma: snr.clamp(max=gamma), ratio=lambda a, s: (a / s) ** 2, k=counts):
    """min_snr_weight as the chapter writes it, with one of its parts replaced."""

    def version(level, predicts, gamma=5.0):
        alpha, sigma = torch.as_tensor(level.alpha), torch.as_tensor(level.sigma)
        snr = ratio(alpha, sigma)
        return cap(snr, gamma) / k(alpha, sigma, snr, predicts)

    return version


TWO = Level(torch.tensor([0, 1]), torch.tensor([0.8, 0.9**0.5]), torch.tensor([0.6, 0.1**0.5]))  # SNR 16/9 and 9
ALL = LINEAR.at(torch.arange(1000))
min_snr_task = Task(
    "03.4", "weigh the levels", min_snr_weight,
    cases=(
        Case("x0 at an SNR of 16/9 and of 9, by hand", (TWO, "x0"), torch.tensor([16 / 9, 5.0])),
        Case("eps at these two, by hand", (TWO, "eps"), torch.tensor([1.0, 5 / 9])),
        Case("v at these two, by hand", (TWO, "v"), torch.tensor([0.64, 0.5])),
        Case("eps, every level", (ALL, "eps")),
        Case("v, every level, gamma = 1", (ALL, "v", 1.0)),
        Case("flow, the last level pure noise", (EACH_FLOW, "flow")),
        Case("a single level, its numbers no tensors", (LINEAR.at(300.5), "x0", 2.0)),
    ),
    mistakes=(
        Mistake("the larger of SNR and gamma was taken: the point is to keep a huge SNR down.",
                weigh(cap=lambda snr, gamma: snr.clamp(min=gamma))),
        Mistake("this is how much an error in x0 should count: one in the answer counts k times that already, so divide by k.",
                weigh(k=lambda a, s, snr, predicts: 1)),
        Mistake("every kind is weighed as if the network predicted eps: each has a k of its own.",
                weigh(k=lambda a, s, snr, predicts: snr)),
        Mistake("the SNR is a ratio of variances: alpha / sigma has to be squared.", weigh(ratio=lambda a, s: a / s)),
        Mistake("the SNR is upside down: it is signal over noise, large where the image is nearly clean.",
                weigh(ratio=lambda a, s: (s / a) ** 2)),
        Mistake("gamma was given, and 5 was used.", weigh(cap=lambda snr, gamma: snr.clamp(max=5))),
    ),
    hints=("Two things are needed: the SNR, and by how much an error in the answer is larger or smaller than one in x0.",
           "k = 1 for x0, SNR for eps; read the error in x0 off your `to_estimate` for v and flow, and square its inverse.",
           "(alpha / sigma)**2 held at gamma by clamp(max=gamma), divided by k: SNR, 1, ((alpha**2 + sigma**2) / sigma)**2 "
           "or ((alpha + sigma) / sigma)**2"),
    tolerance=5e-4,
)  # fmt: skip


def variant(
    timesteps=lambda schedule, n: schedule.draw(n), draw=torch.randn_like, see=add_noise, wanted=target, tell=dict,
    reduce=lambda error, weight: (weight * error.flatten(1).mean(1)).mean(),
):  # fmt: skip
    """diffusion_loss, with one of its parts replaced."""

    def loss(net, x0, schedule, predicts="eps", t=None, noise=None, *, min_snr=None, measured=None, **cond):
        level = schedule.at(timesteps(schedule, len(x0)) if t is None else t)
        noise = draw(x0) if noise is None else noise
        error = (net(see(x0, noise, level), level.timesteps(x0), **tell(cond)) - wanted(x0, noise, level, predicts)) ** 2
        return reduce(error, 1 if min_snr is None else min_snr_weight(level, predicts, min_snr))

    return loss


def toy(xt, t, y=None):
    """A network without weights that looks at all it is given."""
    told = t.float() / 1000 + (0 if y is None else y)
    return 0.5 * xt - told.view(-1, *[1] * (xt.ndim - 1))


def heard(f, schedule, t=None):
    """What a network is given, (xt, t), when f draws the noise (and the timesteps, if there is no t) for 256 black images."""
    kept = []
    f(lambda xt, t: kept.append((xt, t)) or 0 * xt, torch.zeros(256, 1, 8, 8), schedule, "eps", t)
    return kept[0]


def draws_gaussian(f):
    xt, _ = heard(f, FLOW, torch.full((256,), 1000.0))  # where x_t is the noise itself
    return abs(xt.mean()) < 0.05 and abs(xt.std() - 1) < 0.05 and not torch.equal(xt[0], xt[1])


def can_be_trained(f):
    weight = torch.ones((), requires_grad=True)
    loss = f(lambda xt, t: weight * xt, SMALL, LINEAR, "eps", T, SMALL.flip(0))
    return isinstance(loss, torch.Tensor) and loss.requires_grad


ONE_T = "all images of the batch were noised to one level: every image draws a timestep of its own."
NO_LAST = "the last timestep is never drawn: the upper end of randint is not included, and a walk begins just there."
NO_GAUSS = "the noise must be Gaussian, of mean 0 and variance 1, and drawn for every pixel of every image: not uniform."
NO_GRADIENT = "the loss is only a number, and nothing can be learned from that: return the tensor, with the graph that made it."
ONE = Schedule(torch.tensor([0.6]), torch.tensor([0.8]), torch.arange(1))  # a schedule of one level
loss_task = Task(
    "03.5", "the loss", diffusion_loss,
    cases=(
        Case("two numbers by hand, a network that answers what it sees",
             (lambda xt, t: xt, torch.tensor([[1.0, -1.0]]), ONE, "eps", torch.tensor([0]), torch.tensor([[1.0, 2.0]]), {}),
             0.58),  # it sees 1.4, 1.0: (0.4**2 + 1.0**2) / 2
        *(Case(f"images, {kind}", (toy, X0, LINEAR, kind, T, EPS, {})) for kind in ("eps", "x0", "v")),
        Case("images on a flow", (toy, X0, FLOW, "flow", EACH_FLOW.t, EPS, {})),
        Case("a class for each image", (toy, X0, LINEAR, "eps", T, EPS, {"y": torch.arange(4)})),
        Case("with min-SNR weights", (toy, X0, LINEAR, "eps", torch.tensor([0, 20, 200, 800]), EPS, {"min_snr": 5.0})),
    ),
    ask=lambda f, net, x0, schedule, predicts, t, noise, options: f(net, x0, schedule, predicts, t, noise, **options),
    mistakes=(
        Mistake("the squares are summed: take their mean, or the loss grows with the images.",
                variant(reduce=lambda error, weight: (weight * error.flatten(1).sum(1)).sum())),
        Mistake("the network is shown the clean image: it has to look at x_t.", variant(see=lambda x0, noise, level: x0)),
        Mistake("the answer is always compared with the noise: what it is compared with depends on `predicts`.",
                variant(wanted=lambda x0, noise, level, predicts: noise)),
        Mistake("the condition got lost: hand **cond on to the network.", variant(tell=lambda cond: {})),
        Mistake("the weights came too late: each belongs to the error of its own image, before the mean over the images.",
                variant(reduce=lambda error, weight: error.mean() * torch.as_tensor(weight).float().mean())),
        Mistake(ONE_T, variant(timesteps=lambda schedule, n: schedule.draw(1).expand(n))),
        Mistake(NO_LAST, variant(timesteps=lambda schedule, n: torch.randint(len(schedule) - 1, (n,)))),
        Mistake(NO_GAUSS, variant(draw=torch.rand_like)),
        Mistake(NO_GRADIENT, variant(reduce=lambda error, weight: (weight * error.flatten(1).mean(1)).mean().item())),
    ),
    laws=(
        Law(ONE_T, lambda f: len(heard(f, LINEAR)[1].unique()) > 100),
        Law(NO_LAST, lambda f: heard(f, Schedule.linear(T=4))[1].max() == 3),
        Law(NO_GAUSS, draws_gaussian),
        Law(NO_GRADIENT, can_be_trained),
    ),
    hints=("Five lines: a level for each image, the noise, x_t, the network's answer, the error.",
           "`schedule.at(schedule.draw(len(x0)))` is a level for each image, `level.timesteps(xt)` what the network is told.",
           "error = ((output - target(x0, noise, level, predicts)) ** 2).flatten(1).mean(1), times min_snr_weight(level, "
           "predicts, min_snr) if that is asked for; then its mean"),
)  # fmt: skip

TASKS = [sinusoidal_task, target_task, to_estimate_task, min_snr_task, loss_task]
