"""Tasks of chapter 06: which levels a short walk visits, DDIM's step, its walk, and the same walk upwards."""

from itertools import pairwise

import torch

from ...diffusion import (
    CLEAN,
    DatasetDenoiser,
    Estimate,
    GaussianDenoiser,
    Level,
    Schedule,
    State,
    add_noise,
    ddim,
    ddim_step,
    invert,
)
from ..task import Case, Law, Mistake, Task
from ..walks import Belief, end, path, seeded, visits
from . import c02_exact_denoising as c02
from .c02_exact_denoising import CLEANER, EPS, FLOW, FRESH, GUESS, LINEAR, NOISY, PURE, X0

FOUR = Schedule(torch.tensor([0.96, 0.8, 0.6, 0.28]), torch.tensor([0.28, 0.6, 0.8, 0.96]), torch.arange(4))


def laid_out(levels):
    if not all(isinstance(level, Level) for level in levels):
        raise TypeError("this is not a list of Levels: schedule.at(t) gives the one at timestep t")
    t, alpha, sigma = (torch.tensor([float(getattr(level, name)) for level in levels]) for name in ("t", "alpha", "sigma"))
    return {"number of levels": len(t), "t": t, "alpha": alpha, "sigma": sigma}


def rows(change):
    """Right rows, changed: change(rows, T, n, spacing, offset) -> rows."""

    def levels(schedule, n, spacing=None, offset=0, last=CLEAN):
        right = [level.t for level in schedule.levels(n, spacing, offset, last=None)]
        walk = [schedule.at(t) for t in change(right, len(schedule), n, spacing or "leading", offset)]
        return walk if last is None else [*walk, last]

    return levels


def fence_posts(right, T, n, spacing, offset):
    return [round(i * (T - 1) / n) for i in range(n, 0, -1)] if spacing == "linspace" else right


def to_the_brim(right, T, n, spacing, offset):
    return [t + offset for t in reversed(range(0, T - offset, T // n))] if spacing == "leading" else right


levels_task = Task(
    "06.1", "which levels to visit", Schedule.levels,
    ask=lambda f, *args: laid_out(f(*args)),
    cases=(
        Case("two of four by hand", (FOUR, 2),
             {"number of levels": 3, "t": torch.tensor([2.0, 0.0, 0.0]), "alpha": torch.tensor([0.6, 0.96, 1.0]),
              "sigma": torch.tensor([0.8, 0.28, 0.0])}),
        Case("ten of a thousand", (LINEAR, 10, "leading")),
        Case("seven of a thousand, offset 1", (LINEAR, 7, "leading", 1)),
        Case("ten, trailing", (LINEAR, 10, "trailing")),
        Case("seven, trailing", (LINEAR, 7, "trailing")),
        Case("ten, linspace", (LINEAR, 10, "linspace")),
        Case("eight, linspace, without a last level", (LINEAR, 8, "linspace", 0, None)),
        Case("one, trailing", (LINEAR, 1, "trailing")),
        Case("all of them", (FOUR, 4)),
    ),
    mistakes=(
        Mistake("clean to noisy: a sampler begins in the noise, so the list runs down.",
                rows(lambda right, *_: right[::-1])),
        Mistake("the list ends at t = 0, which still has noise in it: after the n timesteps comes `last`, which is CLEAN.",
                lambda schedule, n, spacing=None, offset=0, last=CLEAN: schedule.levels(n, spacing, offset, None)),
        Mistake("schedule.at(0) is not clean: row 0 has its share of noise. The last level is CLEAN, a level of its own.",
                lambda schedule, n, spacing=None, offset=0, last=CLEAN:
                    schedule.levels(n, spacing, offset, last and schedule.at(0))),
        Mistake("fence posts: n timesteps from T - 1 to 0, both ends counted, have n - 1 gaps between them.",
                rows(fence_posts)),
        Mistake("one too many: range(0, T, T // n) goes on to T, which is n times only if n divides T. Count i = 0 ... n - 1.",
                rows(to_the_brim)),
        Mistake("the offset is ignored: with \"leading\" every timestep is raised by it.",
                lambda schedule, n, spacing=None, offset=0, last=CLEAN: schedule.levels(n, spacing, 0, last)),
    ),
    hints=("Begin on paper. T = 1000, n = 4: leading 750 500 250 0, trailing 999 749 499 249, linspace 999 666 333 0.",
           "leading: i * (T // n) + offset; trailing: round(T - i * T / n) - 1; linspace: round(i * (T - 1) / (n - 1)). "
           "i is 0 ... n - 1, and the noisy end comes first.",
           "walk = [schedule.at(t) for t in timesteps]; return walk if last is None else [*walk, last]"),
)  # fmt: skip


def stepped(formula):
    """formula(x0, eps, alpha, sigma, alpha', sigma', share of the noise's variance that is fresh, noise, eta) -> x."""

    def step(xt, estimate, here, there, eta=0.0, noise=None):
        (alpha, sigma), (alpha_there, sigma_there) = here.like(xt), there.like(xt)
        noise = torch.randn_like(xt) if noise is None else noise
        fresh = eta**2 * (1 - (alpha * sigma_there / (alpha_there * sigma)) ** 2) if eta else 0.0
        return formula(*estimate, alpha, sigma, alpha_there, sigma_there, fresh, noise, eta)

    return step


def single_beta(xt, estimate, here, there, eta=0.0, noise=None):
    if eta == 0:
        return ddim_step(xt, estimate, here, there)
    (_, sigma), (alpha_there, sigma_there) = here.like(xt), there.like(xt)
    t = torch.as_tensor(here.t).long()
    beta = (1 - LINEAR.abar[t] / LINEAR.abar[(t - 1).clamp(min=0)]).view(-1, *[1] * (xt.ndim - 1))
    variance = eta**2 * beta * (sigma_there / sigma) ** 2
    noise = torch.randn_like(xt) if noise is None else noise
    return alpha_there * estimate.x0 + (sigma_there**2 - variance) ** 0.5 * estimate.eps + variance**0.5 * noise


def solved_there(xt, estimate, here, there, eta=0.0, noise=None):
    (alpha, sigma), clean = there.like(xt), not isinstance(there.sigma, torch.Tensor) and there.sigma == 0
    eps = estimate.eps if clean else (xt - alpha * estimate.x0) / sigma
    return ddim_step(xt, Estimate(estimate.x0, eps), here, there, eta, noise)


def grainy(x0, eps, a, s, a2, s2, fresh, n, eta):
    variance = eta**2 * (s**2 - (a / a2 * s2) ** 2) if eta else 0.0  # without its factor (sigma' / sigma)^2
    return a2 * x0 + torch.as_tensor(s2**2 - variance).clamp(min=0) ** 0.5 * eps + variance**0.5 * n


def draws_its_own(step):
    nothing = torch.zeros(1, 20000)
    one, two = (step(nothing, Estimate(nothing, nothing), NOISY, CLEANER, 0.5) for _ in range(2))
    still = step(nothing, Estimate(nothing, nothing), NOISY, CLEANER)
    right = abs(float(one.std()) / 0.2480392 - 1) < 0.05  # 0.5 * 0.6 * sqrt(1 - 0.5625^2)
    return right and bool((one != two).any()) and bool((still == 0).all())


BY_HAND = torch.tensor([[1.4, 1.4, -0.2]]), Estimate(torch.tensor([[1.0, 1.0, -1.0]]), torch.tensor([[1.0, 1.0, 0.5]]))
THREE = torch.tensor([[0.0, 1.0, -1.0]])


def believed(here, there, *options):
    return add_noise(*GUESS, here), GUESS, here, there, *options


ddim_step_task = Task(
    "06.2", "DDIM's step", ddim_step,
    cases=(
        Case("three numbers by hand", (*BY_HAND, NOISY, CLEANER), torch.tensor([[1.4, 1.4, -0.5]])),
        Case("the same, eta = 1", (*BY_HAND, NOISY, CLEANER, 1.0, THREE), torch.tensor([[1.1375, 1.6335784, -1.1273284]])),
        Case("images, from t = 500 to 450, eta = 0.5", believed(LINEAR.at(500), LINEAR.at(450), 0.5, FRESH)),
        Case("images, from t = 900 to 100.5, eta = 1", believed(LINEAR.at(900), LINEAR.at(100.5), 1.0, FRESH)),
        Case("levels of their own for each image, eta = 0.5", believed(c02.EACH, c02.LOWER, 0.5, FRESH)),
        Case("on a flow", believed(FLOW.at(700), FLOW.at(500.5))),
        Case("from pure noise, eta = 0.9", believed(PURE, LINEAR.at(800), 0.9, FRESH)),
        Case("upwards, eta = 0", believed(LINEAR.at(100), LINEAR.at(400))),
        Case("arriving at CLEAN, eta = 1", believed(LINEAR.at(99), CLEAN, 1.0, FRESH), GUESS.x0),
        Case("leaving CLEAN, eta = 0", (GUESS.x0, Estimate(GUESS.x0, 0 * EPS), CLEAN, LINEAR.at(20))),
    ),
    mistakes=(
        Mistake("x does not get anywhere: the estimate is written down at here, where it came from. Use there's.",
                stepped(lambda x0, eps, a, s, a2, s2, fresh, n, eta: a * x0 + s * ((1 - fresh) ** 0.5 * eps + fresh**0.5 * n))),
        Mistake("the noise is added and the old noise keeps its full size: shrink eps to sqrt(sigma'^2 - std^2), to make room.",
                stepped(lambda x0, eps, a, s, a2, s2, fresh, n, eta: a2 * x0 + s2 * (eps + fresh**0.5 * n))),
        Mistake("this std is made of the beta of a single step, and the walk skips steps: make it of here and there alone.",
                single_beta),
        Mistake("eta is a factor of std. Inside of the square root it is eta^2.",
                stepped(lambda x0, eps, a, s, a2, s2, fresh, n, eta: (
                    a2 * x0 + s2 * ((1 - fresh / (eta or 1)) ** 0.5 * eps + (fresh / (eta or 1)) ** 0.5 * n)))),
        Mistake("std lacks its factor sigma' / sigma. It makes std 0 at CLEAN, where yours puts noise on the image.",
                stepped(grainy)),
        Mistake("eps was solved with there's alpha and sigma; x_t is made of here's. Besides, the estimate holds eps already.",
                solved_there),
    ),
    hints=("With eta = 0 it is the line of 01.1 again: the estimate's x0 and eps, mixed as there's level says.",
           "rho = alpha * sigma' / (alpha' * sigma); std = eta * sigma' * sqrt(1 - rho^2). Upwards rho > 1: no root if eta = 0",
           "alpha' * x0 + (sigma'**2 - std**2)**0.5 * eps + std * noise"),
    laws=(Law("with noise=None the step draws its own if eta > 0, afresh in every call, and none if eta = 0.", draws_its_own),),
)  # fmt: skip


def wrong_ddim(asks=lambda i, here, there: here, renew=True, eta_too=True, pairs=pairwise, tells=lambda here, there: there,
               step=ddim_step):  # fmt: skip
    def walk(denoise, x, levels, eta=0.0, generator=None):
        estimate = None
        for i, (here, there) in enumerate(pairs(levels)):
            estimate = denoise(x, asks(i, here, there)) if renew or estimate is None else estimate
            noise = torch.randn(x.shape, generator=generator)
            x = step(x, estimate, here, there, eta if eta_too else 0.0, noise)
            yield State(x, estimate.x0, tells(here, there))

    return walk


HEAP = DatasetDenoiser(c02.IMAGES)
EIGHT, FLOWING = LINEAR.levels(8, "trailing"), FLOW.levels(8)
ddim_task = Task(
    "06.3", "DDIM's walk", ddim,
    ask=lambda f, view, *args: view(f, *args[:3], **(args[3] if len(args) > 3 else {})),
    cases=(
        Case("two steps by hand", (path, Belief(torch.tensor([[1.0]])), torch.tensor([[1.28]]), [NOISY, CLEANER, CLEAN]),
             {"number of states": 2, "x": torch.tensor([[[1.24]], [[0.9]]]), "x0": torch.tensor([[[0.8]], [[0.9]]]),
              "t of the states": torch.tensor([200.0, 0.0]), "sigma of the states": torch.tensor([0.6, 0.0])}),
        Case("where eight steps end", (end, HEAP, EPS, EIGHT)),
        Case("eight steps, asked about", (visits, Belief(X0), EPS, EIGHT)),
        Case("from the middle, and not to the end", (path, HEAP, add_noise(X0, EPS, EIGHT[3]), EIGHT[3:-2])),
        Case("on a flow", (path, HEAP, EPS, FLOWING)),
        Case("eta = 0.5", (visits, Belief(X0), EPS, EIGHT, {"eta": 0.5, "noisiness": 0.5})),
        Case("eta = 1, with a generator", (seeded, Belief(X0), EPS, EIGHT, {"eta": 1.0})),
    ),
    mistakes=(
        Mistake("the denoiser is told the number of the turn in the loop, 0, 1, 2, ...; it needs the level that x is at.",
                wrong_ddim(asks=lambda i, here, there: LINEAR.at(i))),
        Mistake("the last step is missing: the walk ends at the last level of the list, which is CLEAN.",
                wrong_ddim(pairs=lambda levels: pairwise(levels[:-1]))),
        Mistake("the denoiser is asked once, before the loop: every step needs an estimate of its own x.",
                wrong_ddim(renew=False)),
        Mistake("eta does not reach the step: hand it on, with the noise.", wrong_ddim(eta_too=False)),
        Mistake("here and there have changed places in the step: x is written down where it was, and never moves.",
                wrong_ddim(step=lambda x, e, here, there, eta, noise: here.alpha * e.x0 + here.sigma * e.eps)),
        Mistake("the State names the level that x has left; it should name the one that x has reached.",
                wrong_ddim(tells=lambda here, there: here)),
    ),
    hints=("The loop of 02.4 with another step in it.",
           "noise = torch.randn(x.shape, generator=generator); the step is ddim_step(x, estimate, here, there, eta, noise).",
           "for here, there in pairwise(levels): estimate = denoise(x, here); x = ddim_step(...); "
           "yield md.State(x, estimate.x0, there)"),
)  # fmt: skip


def noised(denoise, x0, levels):
    for level in levels[-2::-1]:
        yield State(add_noise(x0, torch.randn_like(x0), level), x0, level)


def wrong_invert(pairs=pairwise, asks=lambda here, there: here, carry=True, tells=lambda here, there: there):
    def walk(denoise, x0, levels):
        x = x0
        for here, there in pairs(levels[::-1]):
            estimate = denoise(x, asks(here, there))
            moved = ddim_step(x, estimate, here, there)
            x = moved if carry else x
            yield State(moved, estimate.x0, tells(here, there))

    return walk


PIXELS, TWENTY = GaussianDenoiser(c02.MEAN, c02.STD), LINEAR.levels(20)
invert_task = Task(
    "06.4", "the walk upwards: inversion", invert,
    ask=lambda f, view, *args: view(f, *args),
    cases=(
        Case("two steps by hand", (path, GaussianDenoiser(0.0, 0.5), torch.tensor([[1.3]]), [NOISY, CLEANER, CLEAN]),
             {"number of states": 2, "x": torch.tensor([[[1.04]], [[1.2]]]), "x0": torch.tensor([[[1.3]], [[0.4]]]),
              "t of the states": torch.tensor([200.0, 300.0]), "sigma of the states": torch.tensor([0.6, 0.8])}),
        Case("where twenty steps end", (end, PIXELS, X0, TWENTY)),
        Case("each of the twenty steps", (path, PIXELS, X0, TWENTY)),
        Case("on a flow", (path, PIXELS, X0, FLOWING)),
        Case("levels that do not end at CLEAN", (path, PIXELS, X0, LINEAR.levels(8, "linspace", last=None))),
    ),
    mistakes=(
        Mistake("the denoiser is asked about the level that x will reach. x is still here: ask as the walk down does.",
                wrong_invert(asks=lambda here, there: there)),
        Mistake("CLEAN was left out: the image is not at t = 0, which has noise. The first step leaves CLEAN.",
                wrong_invert(pairs=lambda up: pairwise(up[1:]))),
        Mistake("the State names the level that was left: who walks down from there begins one step off.",
                wrong_invert(tells=lambda here, there: here)),
        Mistake("these levels run down, as a sampler takes them. Inversion takes them from the other end.",
                wrong_invert(pairs=lambda up: pairwise(up[::-1]))),
        Mistake("random noise was added. It makes a noisy image, but not the noise from which a sampler makes this one.",
                noised),
        Mistake("every step begins at the clean image again: what a step gives is the x of the next.",
                wrong_invert(carry=False)),
    ),
    hints=("Without chance a walk can be walked both ways. Which line of 06.3 knows the direction?",
           "levels[::-1] begins at CLEAN; ddim_step with eta = 0 does not mind that `there` is noisier than `here`.",
           "for here, there in pairwise(levels[::-1]): estimate = denoise(x, here); x = ddim_step(x, estimate, here, there); "
           "yield md.State(x, estimate.x0, there)"),
)  # fmt: skip

TASKS = [levels_task, ddim_step_task, ddim_task, invert_task]
