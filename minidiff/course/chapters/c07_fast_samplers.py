"""Tasks of chapter 07: two slopes a step, a memory of old answers and its weights, DPM-Solver++ and Karras' spacing."""

import math
from itertools import pairwise

import torch

from ...diffusion import CLEAN, DatasetDenoiser, GaussianDenoiser, Level, Schedule, State, dpmpp_2m, heun, lms
from ...diffusion.multistep import ADAMS_BASHFORTH, adams_bashforth, log_ratio
from ...diffusion.schedule import karras
from ...diffusion.steps import ddim_step
from ..task import Case, Mistake, Task
from ..walks import Belief, end, path, twice
from .c02_exact_denoising import CLEANER, EPS, IMAGES, MEAN, NOISY, STD

STABLE, FLOW = Schedule.scaled_linear(), Schedule.flow()
HEAP, ONE = DatasetDenoiser(IMAGES), Belief(torch.tensor([[1.0]]))
SMALL, SOFT = EPS[:2, :, ::2, ::2], GaussianDenoiser(MEAN[:, ::2, ::2], STD[:, ::2, ::2])  # (2, 3, 16, 16): these are quick
EIGHT, TWELVE = STABLE.levels(8, "trailing"), STABLE.levels(12, "karras")
PURE = STABLE.zero_terminal_snr().levels(6, "trailing")  # begins with alpha = 0


def rewritten(x, eps, here, there):
    return there.alpha * (x - here.sigma * eps) / here.alpha + there.sigma * eps


def two_slopes(corrects=lambda here, there: here.alpha and there.sigma, asks=lambda here, there: there,
               move=lambda x, one, two, here, there: rewritten(x, (one.eps + two.eps) / 2, here, there),
               tells=lambda one, two: one.x0):  # fmt: skip
    """heun, with one of its parts replaced. one, two: what the denoiser says at the beginning of a step, and ahead."""

    def walk(denoise, x, levels):
        for here, there in pairwise(levels):
            one = two = denoise(x, here)
            ahead = ddim_step(x, one, here, there)
            if corrects(here, there):
                two = denoise(ahead, asks(here, there))
                ahead = move(x, one, two, here, there)
            x = ahead
            yield State(x, tells(one, two), there)

    return walk


heun_task = Task(
    "07.1", "two slopes a step", heun,
    ask=lambda f, view, *args: view(f, *args),
    cases=(
        # eps 1 here and 13/15 ahead, at x = 1.24: the mean 14/15 makes x0 = 8/9 and x = 0.8 * 8/9 + 0.6 * 14/15
        Case("two steps by hand", (path, ONE, torch.tensor([[1.28]]), [NOISY, CLEANER, CLEAN]),
             {"number of states": 2, "x": torch.tensor([[[1.2711111]], [[0.9]]]), "x0": torch.tensor([[[0.8]], [[0.9]]]),
              "t of the states": torch.tensor([200.0, 0.0]), "sigma of the states": torch.tensor([0.6, 0.0])}),
        Case("where eight steps end", (end, HEAP, EPS, EIGHT)),
        Case("each of the eight steps", (path, SOFT, SMALL, EIGHT)),
        Case("from the middle, and not to the end", (path, SOFT, SMALL, EIGHT[3:-2])),
        Case("from alpha = 0", (path, SOFT, SMALL, PURE)),
        Case("on a flow, which begins there too", (path, SOFT, SMALL, FLOW.levels(8))),
    ),
    mistakes=(
        Mistake("this walks as DDIM does. The second estimate, written down at there, is only the point it was asked about; "
                "averaging x or both halves of the estimates leaves x where it was. The mean is one of eps, and x0 follows it.",
                two_slopes(lambda here, there: False)),
        Mistake("the second question is about ahead, and ahead is at there: tell the denoiser so. (This costs the order.)",
                two_slopes(asks=lambda here, there: here)),
        Mistake("the mean eps is mixed with the x0 of the first answer, and they do not make x. Solve x0 from x and the mean.",
                two_slopes(move=lambda x, one, two, here, there: there.alpha * one.x0 + there.sigma * (one.eps + two.eps) / 2)),
        Mistake("the second slope alone is no better than the first alone: take the mean of both.",
                two_slopes(move=lambda x, one, two, here, there: rewritten(x, two.eps, here, there))),
        Mistake("the last step to CLEAN is corrected too: at sigma = 0 there is no noise to ask about. Euler alone there.",
                two_slopes(lambda here, there: here.alpha)),
        Mistake("the step from alpha = 0 is corrected too, 0 / 0: eps says nothing of x0 there. Euler alone there.",
                two_slopes(lambda here, there: there.sigma)),
        Mistake("State's x0 should be the first answer of the step, given about x; this is what was said ahead.",
                two_slopes(tells=lambda one, two: two.x0)),
    ),
    hints=("DDIM's walk with a second question: what would the denoiser say where the step ends?",
           "ahead = there.alpha * x0 + there.sigma * eps, then denoise(ahead, there).eps. With the mean of the two eps "
           "solve the line of 01.1 for x0 at here, and write it down at there. Not from alpha = 0, and not to sigma = 0.",
           "x0 = (x - here.sigma * mean) / here.alpha; x = there.alpha * x0 + there.sigma * mean"),
)  # fmt: skip


def lagrange(nodes, s):
    return [math.prod((s - b) / (a - b) for k, b in enumerate(nodes) if k != j) for j, a in enumerate(nodes)]


def averaged(nodes, start, end):  # by Simpson's rule
    a, b, c = (lagrange(nodes, s) for s in (start, (start + end) / 2, end))
    return [(x + 4 * y + z) / 6 for x, y, z in zip(a, b, c, strict=True)]


RATIOS = [level.sigma / level.alpha for level in TWELVE]
weights_task = Task(
    "07.2", "weights for old answers", adams_bashforth,
    ask=lambda f, *args: torch.tensor([float(weight) for weight in f(*args)]),  # a list, a tuple or a tensor
    cases=(
        # the middle of 2 ... 1 is 1.5: (1.5 - 4) / (2 - 4), and (1.5 - 2) / (4 - 2)
        Case("two by hand", ([2.0, 4.0], 1.0), torch.tensor([1.25, -0.25])),
        Case("one, with nothing to weigh", ([0.7], 0.2), torch.tensor([1.0])),
        Case("three, even", ([3.0, 4.0, 5.0], 2.0), torch.tensor([23 / 12, -16 / 12, 5 / 12])),
        Case("four, even", ([0.4, 0.5, 0.6, 0.7], 0.3), torch.tensor([55 / 24, -59 / 24, 37 / 24, -9 / 24])),
        Case("three of Stable Diffusion's", (RATIOS[5:2:-1], RATIOS[6])),
        Case("four of Stable Diffusion's, the last before CLEAN", (RATIOS[11:7:-1], 0.0)),
    ),
    mistakes=(
        Mistake("these weights are for even steps, and the nodes are not even: the weights are made of them.",
                lambda nodes, end: ADAMS_BASHFORTH[len(nodes) - 1]),
        Mistake("this is the integral; its mean is that over the length of the step, end - nodes[0]. Weights add up to 1.",
                lambda nodes, end: [(end - nodes[0]) * weight for weight in adams_bashforth(nodes, end)]),
        Mistake("the polynomial was read in the middle of the step, which is the mean of a line only. A parabola's is another.",
                lambda nodes, end: lagrange(nodes, (nodes[0] + end) / 2)),
        Mistake("the polynomial was read at the end of the step: its mean over the step is asked for.", lagrange),
        Mistake("the mean runs over the whole memory: it should run over the step ahead, from nodes[0] to end.",
                lambda nodes, end: averaged(nodes, nodes[-1], end)),
        Mistake("the weights come oldest first: nodes are given newest first, and the weights stand in their order.",
                lambda nodes, end: adams_bashforth(nodes, end)[::-1]),
    ),
    hints=("L_j is the polynomial that is 1 at node j and 0 at all others. Its mean over the step is the weight of value j.",
           "The mean of a cubic over a step is (L(start) + 4 * L(middle) + L(end)) / 6: Simpson's rule is exact so far.",
           "L_j(s) = math.prod((s - nodes[k]) / (nodes[j] - nodes[k]) for k in range(len(nodes)) if k != j), "
           "read at nodes[0], at the middle, at end"),
)  # fmt: skip


def remembering(keeps=lambda eps, mean: eps, most=lambda order: order, oldest_first=False, weigh=adams_bashforth,
                clock=lambda level: level.sigma / level.alpha, move=lambda x, estimate, mean, here, there: (
                rewritten(x, mean, here, there))):  # fmt: skip
    """lms, with one of its parts replaced."""

    def walk(denoise, x, levels, order=4):
        past = []
        for here, there in pairwise(levels):
            estimate = denoise(x, here)
            if here.alpha == 0:
                x = ddim_step(x, estimate, here, there)
            else:
                known = [(clock(here), estimate.eps), *past][: most(order)]
                known = known[::-1] if oldest_first else known
                weights = weigh([s for s, _ in known], clock(there))
                mean = sum(w * eps for w, (_, eps) in zip(weights, known, strict=True))
                x = move(x, estimate, mean, here, there)
                past = [(clock(here), keeps(estimate.eps, mean)), *past][: most(order)]
            yield State(x, estimate.x0, there)

    return walk


lms_task = Task(
    "07.3", "find the slip: a memory, and still first order", lms,
    ask=lambda f, view, *args: view(f, *args[:3], **(args[3] if len(args) > 3 else {})),
    cases=(
        # eps is 1 at s = 4/3 and 13/15 at s = 3/4, so 82/105 in the middle of the rest; x = (1.24 - 0.6 * 82/105) / 0.8
        Case("two steps by hand, walked twice", (twice, ONE, torch.tensor([[1.28]]), [NOISY, CLEANER, CLEAN]),
             {"a second walk": "the same", "number of states": 2, "x": torch.tensor([[[1.24]], [[27 / 28]]]),
              "x0": torch.tensor([[[0.8]], [[0.9]]]), "t of the states": torch.tensor([200.0, 0.0]),
              "sigma of the states": torch.tensor([0.6, 0.0])}),
        Case("where twelve steps end", (end, HEAP, EPS, TWELVE)),
        Case("each of the twelve steps", (path, SOFT, SMALL, TWELVE)),
        Case("order 2", (path, SOFT, SMALL, TWELVE, {"order": 2})),
        Case("order 1, which is Euler's", (path, SOFT, SMALL, TWELVE, {"order": 1})),
        Case("from the middle, and not to the end", (path, SOFT, SMALL, TWELVE[3:-2], {"order": 3})),
        Case("on a flow, which begins with alpha = 0", (path, SOFT, SMALL, FLOW.levels(8))),
    ),
    mistakes=(
        Mistake("the slip is still there. `eps` has two meanings in this loop: which of the two does the last line keep?",
                remembering(keeps=lambda eps, mean: mean)),
        Mistake("these are the weights of even steps, and levels are uneven in s: make them of the nodes, as in 07.2.",
                remembering(weigh=lambda nodes, end: ADAMS_BASHFORTH[len(nodes) - 1])),
        Mistake("one answer too many: `order` counts them all, the newest too.", remembering(most=lambda order: order + 1)),
        Mistake("the nodes are oldest first, and the mean is over another stretch: 07.2 begins at the newest, nodes[0].",
                remembering(oldest_first=True)),
        Mistake("this walks as DDIM does, whatever the order: old answers count for nothing. Keep an answer with the s of the "
                "level it was given at: with that of the level reached, the newest node is the end, and its weight 1.",
                lambda denoise, x, levels, order=4: lms(denoise, x, levels, 1)),
        Mistake("the mean eps is mixed with the x0 of the newest answer; they do not make x. Solve x0 from x and the mean.",
                remembering(move=lambda x, estimate, mean, here, there: there.alpha * estimate.x0 + there.sigma * mean)),
        Mistake("the nodes are timesteps: the curve's slope is eps over s = sigma/alpha, so distances are counted in s.",
                remembering(clock=lambda level: level.t)),
    ),
    hints=("Everything on the way to x is right. Follow a single answer of the denoiser through three turns of the loop.",
           "If the second turn keeps its mean, the third lays its line through an answer and a mean: half of the slope.",
           "Two names: mean = sum(...), x made of mean, and past = [(s, eps), *past][:order - 1] with the denoiser's own eps"),
)  # fmt: skip


def believing(ahead=lambda x0, old, h, h_past: x0 + h / (2 * h_past) * (x0 - old), clock=log_ratio, keeps=lambda x0, D: x0,
              plain=lambda levels, there: there.sigma == 0 or len(levels) - 1 < 15,
              move=lambda x, D, estimate, here, there: (
              there.alpha * D + there.sigma * (x - here.alpha * D) / here.sigma), tells=lambda x0, D: x0):  # fmt: skip
    """dpmpp_2m, with one of its parts replaced. plain: whether the last step takes x0 as it is."""

    def walk(denoise, x, levels):
        past = None
        for here, there in pairwise(levels):
            estimate = denoise(x, here)
            x0 = D = estimate.x0
            if past and not (there is levels[-1] and plain(levels, there)):
                D = ahead(x0, past[1], clock(there) - clock(here), clock(here) - clock(past[0]))
            past = (here, keeps(x0, D)) if here.alpha else None
            x = move(x, D, estimate, here, there)
            yield State(x, tells(x0, D), there)

    return walk


# h is log 3, then 2 log 3: 1/(2r) = 1 in the second step
THIRDS = [Level(750, 0.25, 0.75), Level(500, 0.5, 0.5), Level(100, 0.9, 0.1), CLEAN]
LONG = STABLE.levels(25)[:-6]  # 19 steps
dpmpp_task = Task(
    "07.4", "DPM-Solver++, of second order", dpmpp_2m,
    ask=lambda f, view, *args: view(f, *args),
    cases=(
        # x0 is 0.625, then 0.75, so D = 0.75 + 0.125; its eps is (1.375 - 0.5 * D) / 0.5 = 1.875, x = 0.9 * D + 0.1875
        Case("three steps by hand, walked twice", (twice, ONE, torch.tensor([[1.75]]), THIRDS),
             {"a second walk": "the same", "number of states": 3, "x": torch.tensor([[[1.375]], [[0.975]], [[0.95]]]),
              "x0": torch.tensor([[[0.625]], [[0.75]], [[0.95]]]), "t of the states": torch.tensor([500.0, 100.0, 0.0]),
              "sigma of the states": torch.tensor([0.5, 0.1, 0.0])}),
        Case("where twelve steps end", (end, HEAP, EPS, TWELVE)),
        Case("each of the twelve steps", (path, SOFT, SMALL, TWELVE)),
        Case("six steps, and not to the end", (path, SOFT, SMALL, TWELVE[2:-4])),
        Case("nineteen steps, and not to the end", (path, SOFT, SMALL, LONG)),
        Case("from alpha = 0", (path, SOFT, SMALL, PURE)),
        Case("on a flow, sixteen steps", (path, SOFT, SMALL, FLOW.levels(16))),
    ),
    mistakes=(
        Mistake("r is upside down: it is the step behind over the step ahead. A long step ahead goes far along the line.",
                believing(lambda x0, old, h, h_past: x0 + h_past / (2 * h) * (x0 - old))),
        Mistake("extrapolated the wrong way, into the past: x0 came from old, and D lies beyond x0.",
                believing(lambda x0, old, h, h_past: x0 - h / (2 * h_past) * (x0 - old))),
        Mistake("that is the line at the end of the step: D is where it stands in the middle, half as far.",
                believing(lambda x0, old, h, h_past: x0 + h / h_past * (x0 - old))),
        Mistake("the steps are counted in t: their length is in log(alpha/sigma).", believing(clock=lambda level: level.t)),
        Mistake("D was remembered: the line goes through what the denoiser said, so keep x0. (This costs the order.)",
                believing(keeps=lambda x0, D: D)),
        Mistake("D is mixed with the denoiser's eps: the two no longer make x. Solve eps from x and D.",
                believing(move=lambda x, D, estimate, here, there: there.alpha * D + there.sigma * estimate.eps)),
        Mistake("lambda is half of the log SNR: log(alpha/sigma). In D the factor 2 cancels, in exp(-h) it does not.",
                believing(move=lambda x, D, estimate, here, there: (there.sigma / here.sigma * x + there.alpha * D * (
                    1 - (here.alpha * there.sigma / (there.alpha * here.sigma)) ** 2)))),
        Mistake("a walk of fewer than 15 steps takes x0 as it is in its last step, even if that does not lead to CLEAN.",
                believing(plain=lambda levels, there: there.sigma == 0)),
        Mistake("the last step took x0 as it is. So it does to CLEAN and in walks of fewer than 15 steps; else D is right.",
                believing(plain=lambda levels, there: True)),
    ),
    hints=("DDIM's walk with another x0: the denoiser's, moved along the line through this answer and the one before.",
           "lam = math.log(level.alpha / level.sigma), but not of alpha = 0 nor of CLEAN; h = lam_there - lam, "
           "h_past = lam - lam_past, and half a step ahead D = x0 + h / (2 * h_past) * (x0 - x0_past).",
           "eps = (x - here.alpha * D) / here.sigma; x = there.alpha * D + there.sigma * eps; then past = lam, x0 and not D"),
)  # fmt: skip


def spread(forth, back, first, last, n):
    return [back(forth(first) + i / max(n - 1, 1) * (forth(last) - forth(first))) for i in range(n)]


karras_task = Task(
    "07.5", "dense where it matters", karras,
    ask=lambda f, *args: torch.tensor([float(s) for s in f(*args)]),  # a list, an array or a tensor
    cases=(
        Case("three by hand, rho = 2", (4.0, 1.0, 3, 2.0), torch.tensor([4.0, 2.25, 1.0])),  # roots 2, 1.5, 1
        Case("eighteen of the paper's", (80.0, 0.002, 18)),
        Case("ten of Stable Diffusion's", (STABLE.ratio[-1].item(), STABLE.ratio[0].item(), 10)),
        Case("eight, rho = 3", (1.0, 0.001, 8, 3.0)),
        Case("a single one", (14.6, 0.03, 1), torch.tensor([14.6])),
    ),
    mistakes=(
        Mistake("these are even in s: even should be their rho-th roots, s^(1/rho).", lambda first, last, n, rho=7.0: (
                spread(lambda s: s, lambda s: s, first, last, n))),
        Mistake("rho is the wrong way round: first the root, 1/rho, then the power. Yours are dense where there is much noise.",
                lambda first, last, n, rho=7.0: spread(lambda s: s**rho, lambda s: s ** (1 / rho), first, last, n)),
        Mistake("these run up: a sampler begins in the noise, so the list runs from first down to last.",
                lambda first, last, n, rho=7.0: karras(first, last, n, rho)[::-1] if n > 1 else [last]),
        Mistake("last is never reached: n numbers have n - 1 gaps between them.",
                lambda first, last, n, rho=7.0: karras(first, last, n + 1, rho)[:-1]),
        Mistake("these are still roots: raise them to the power of rho at the end.",
                lambda first, last, n, rho=7.0: spread(lambda s: s ** (1 / rho), lambda s: s, first, last, n)),
        Mistake("even in the logarithm, which is the limit for large rho: take the rho-th root instead.",
                lambda first, last, n, rho=7.0: spread(math.log, math.exp, first, last, n)),
        Mistake("a zero at the end is one too many: the list ends at last, and CLEAN is added to the levels later.",
                lambda first, last, n, rho=7.0: [*karras(first, last, n, rho), 0.0]),
    ),
    hints=("Three moves: bend both ends, divide evenly between them, bend back.",
           "The root of s is s ** (1 / rho). Between the roots: first + i / (n - 1) * (last - first), i = 0 ... n - 1.",
           "np.linspace(first ** (1 / rho), last ** (1 / rho), n) ** rho"),
    tolerance=1e-5,
)  # fmt: skip

TASKS = [heun_task, weights_task, lms_task, dpmpp_task, karras_task]
