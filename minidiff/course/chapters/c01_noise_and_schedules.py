"""Tasks of chapter 01: the forward process and the tables behind it."""

import math

import torch

from ...data import Shapes, from_pixels
from ...diffusion import Level, Schedule, add_noise, predict_x0
from ..task import Case, Law, Mistake, Task

LINEAR = Schedule.linear()
GENERATOR = torch.Generator().manual_seed(1)
X0 = from_pixels(Shapes(4, size=32, seed=3).tensors()[0])  # (4, 3, 32, 32)
EPS = torch.randn(X0.shape, generator=GENERATOR)
EACH = LINEAR.at(torch.tensor([20, 200, 400, 800]))  # every image at a level of its own
SMALL = torch.randn(4, 1, 4, 4, generator=GENERATOR)  # as wide as the batch is long: broadcasting goes wrong in silence


def on_the_last_axis(x0, eps, level):
    if x0.shape[-1] != len(x0):  # anything else would raise
        return add_noise(x0, eps, level)
    return torch.as_tensor(level.alpha) * x0 + torch.as_tensor(level.sigma) * eps


add_noise_task = Task(
    "01.1", "add noise in one line", add_noise,
    cases=(
        Case("three numbers by hand", (torch.tensor([[1.0, -1.0, 0.5]]), torch.tensor([[1.0, 2.0, -1.0]]), Level(0, 0.6, 0.8)),
             torch.tensor([[1.4, 1.0, -0.5]])),
        Case("images at t = 300", (X0, EPS, LINEAR.at(300))),
        Case("on a flow, where alpha + sigma = 1", (X0, EPS, Schedule.flow().at(300))),
        Case("a level for each image", (X0, EPS, EACH)),
        Case("a batch as long as its images are wide", (SMALL, SMALL.flip(0), EACH)),
    ),
    mistakes=(
        Mistake("alpha is a factor of the image already: it is the square root of abar, and needs no other root or square.",
                lambda x0, eps, level: level.like(x0)[0] ** 2 * x0 + level.like(x0)[1] * eps),
        Mistake("alpha and sigma have changed places: alpha belongs to the image, sigma to the noise.",
                lambda x0, eps, level: level.like(x0)[1] * x0 + level.like(x0)[0] * eps),
        Mistake("the noise is added, but the image keeps its full size: it has to make room, times alpha.",
                lambda x0, eps, level: x0 + level.like(x0)[1] * eps),
        Mistake("sigma is not 1 - alpha: that holds on a flow only. The level knows its sigma.",
                lambda x0, eps, level: level.like(x0)[0] * x0 + (1 - level.like(x0)[0]) * eps),
        Mistake("the noise was multiplied by sigma squared: it is sigma * eps, sigma being a square root already.",
                lambda x0, eps, level: level.like(x0)[0] * x0 + level.like(x0)[1] ** 2 * eps),
        Mistake("a level of shape (B,) was lined up with the width of the images: view it as (B, 1, 1, 1), or call level.like.",
                on_the_last_axis),
    ),
    hints=("x_t is a mixture of two tensors, and the level holds the two factors.",
           "`alpha, sigma = level.like(x0)` gives both factors in a shape that broadcasts, whether the level is one or many.",
           "x_t = alpha * x0 + sigma * eps"),
)  # fmt: skip


def naive_sum(beta):
    abar = (1 - torch.as_tensor(beta).double().cumsum(0)).clamp(min=0)
    return abar.sqrt().float(), (1 - abar).sqrt().float()


def kept(beta):
    return 1 - torch.as_tensor(beta).double()


def from_abar(abar):
    return abar.sqrt().float(), (1 - abar).sqrt().float()


from_betas_task = Task(
    "01.2", "a schedule from its betas", Schedule.from_betas,
    cases=(
        Case("three betas by hand", (torch.tensor([0.36, 0.75, 0.0]),),
             (torch.tensor([0.8, 0.4, 0.4]), torch.tensor([0.36, 0.84, 0.84]).sqrt())),
        Case("DDPM's betas", (torch.linspace(1e-4, 0.02, 1000),)),
        Case("tiny betas", (torch.full((100,), 1e-6),)),
    ),
    mistakes=(
        Mistake("what is left is a product, not 1 minus a sum: every step keeps a share of what the steps before it kept.",
                naive_sum),
        Mistake("this is abar, the share of the variance; alpha is its square root, and sigma the root of 1 - abar.",
                lambda beta: (kept(beta).cumprod(0).float(), (1 - kept(beta).cumprod(0)).float())),
        Mistake("these are the factors of single steps: multiply them up with cumprod.",
                lambda beta: from_abar(kept(beta))),
        Mistake("the product runs over beta, and should run over 1 - beta, which is what a step keeps.",
                lambda beta: from_abar((1 - kept(beta)).cumprod(0))),
        Mistake("the first beta is missing: t = 0 already carries one step of noise, so abar starts at 1 - beta[0], not at 1.",
                lambda beta: from_abar(torch.cat([torch.ones(1).double(), kept(beta).cumprod(0)[:-1]]))),
    ),
    hints=("One step keeps the share 1 - beta of the variance. How much is left after two? After t?",
           "torch has a running product, x.cumprod(0). Take it in float64, .double(), and round once at the end, .float().",
           "abar = (1 - beta.double()).cumprod(0); alpha = abar.sqrt(); sigma = (1 - abar).sqrt()"),
    tolerance=2e-5,
)  # fmt: skip


def cosine_from(angle_of):
    def cosine(T=1000):
        u = torch.arange(T + 1, dtype=torch.float64) / T
        abar = angle_of(u)
        return from_abar((1 - (1 - abar[1:] / abar[:-1]).clamp(max=0.999)).cumprod(0))

    return cosine


def unclamped(T=1000):
    u = torch.arange(1, T + 1, dtype=torch.float64) / T
    first = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    return from_abar(torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2 / first)


def from_zero(T=1000):
    u = torch.arange(T, dtype=torch.float64) / T
    first = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    return from_abar(torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2 / first)


cosine_task = Task(
    "01.3", "the cosine schedule", Schedule.cosine,
    cases=(Case("T = 1000", ()), Case("T = 50", (50,)), Case("T = 4", (4,))),
    mistakes=(
        Mistake("the cosine is not squared: it is abar that follows cos squared, and alpha that follows the cosine.",
                cosine_from(lambda u: torch.cos((u + 0.008) / 1.008 * math.pi / 2))),
        Mistake("the offset s = 0.008 is missing: without it the first steps add next to no noise.",
                cosine_from(lambda u: torch.cos(u * math.pi / 2).clamp(min=1e-12) ** 2)),
        Mistake("half a turn too far: the angle ends at pi / 2, where the cosine is 0, not at pi.",
                cosine_from(lambda u: torch.cos((u + 0.008) / 1.008 * math.pi) ** 2)),
        Mistake("the last beta is 1 here, so the last image is wiped out in one step: hold every beta at 0.999 or less.",
                unclamped),
        Mistake("the table starts one step early: row 0 is u = 1/T, after the first noise; u = 0 is the clean image.",
                from_zero),
    ),
    hints=("Compute abar on T + 1 points, u = 0, 1/T, ..., 1: the first is the clean image and is not in the table.",
           "beta_t = 1 - abar_t / abar_{t-1}, held at 0.999; then the table is that of the task before.",
           "abar = cos((u + s) / (1 + s) * pi / 2)**2 with s = 0.008; from_betas((1 - abar[1:] / abar[:-1]).clamp(max=0.999))"),
    tolerance=2e-6,
)  # fmt: skip

XT = add_noise(X0, EPS, LINEAR.at(300))
XT_EACH = add_noise(X0, EPS, EACH)


def solved(formula):
    return lambda xt, eps, level: formula(xt, eps, *level.like(xt))


predict_x0_task = Task(
    "01.4", "the image, from the noise", predict_x0,
    cases=(
        Case("three numbers by hand", (torch.tensor([[1.4, 1.0, -0.5]]), torch.tensor([[1.0, 2.0, -1.0]]), Level(0, 0.6, 0.8)),
             torch.tensor([[1.0, -1.0, 0.5]])),
        Case("images at t = 300", (XT, EPS, LINEAR.at(300))),
        Case("a level for each image", (XT_EACH, EPS, EACH)),
        Case("on a flow", (add_noise(X0, EPS, Schedule.flow().at(300)), EPS, Schedule.flow().at(300))),
    ),
    mistakes=(
        Mistake("the noise is taken away, but the image is still small: divide by alpha.",
                solved(lambda xt, eps, a, s: xt - s * eps)),
        Mistake("the noise went in as sigma * eps, so sigma * eps has to come out, not eps.",
                solved(lambda xt, eps, a, s: (xt - eps) / a)),
        Mistake("only the image was divided by alpha: the bracket closes before the division.",
                solved(lambda xt, eps, a, s: xt / a - s * eps)),
        Mistake("a sign: the noise was added, so it is subtracted.",
                solved(lambda xt, eps, a, s: (xt + s * eps) / a)),
        Mistake("alpha is the square root of abar already: divide by it, not by its root or its square.",
                solved(lambda xt, eps, a, s: (xt - s * eps) / a**2)),
    ),
    hints=("Write x_t = alpha * x0 + sigma * eps down, and bring everything but x0 to the other side.",
           "`alpha, sigma = level.like(xt)` again, so that a level for each image works too.",
           "x0 = (x_t - sigma * eps) / alpha"),
)  # fmt: skip


def shifted(alpha):
    return alpha.float(), (1 - alpha**2).clamp(min=0).sqrt().float()


def bend(formula):
    return lambda schedule: shifted(formula(schedule.alpha.double()))


FOUR = torch.tensor([0.9, 0.7, 0.5, 0.1])
zero_snr_task = Task(
    "01.5", "end in pure noise", Schedule.zero_terminal_snr,
    cases=(
        Case("four levels by hand", (Schedule(FOUR, (1 - FOUR**2).sqrt(), torch.arange(4)),),
             (torch.tensor([0.9, 0.675, 0.45, 0.0]), torch.tensor([0.435890, 0.737818, 0.893029, 1.0]))),
        Case("Stable Diffusion's schedule", (Schedule.scaled_linear(),)),
        Case("DDPM's schedule", (LINEAR,)),
    ),
    mistakes=(
        Mistake("shifted, and not stretched: the first alpha has to stay where it was.", bend(lambda a: a - a[-1])),
        Mistake("the shift was made on abar; the algorithm shifts alpha, its square root.",
                bend(lambda a: (((a**2 - a[-1] ** 2) * a[0] ** 2 / (a[0] ** 2 - a[-1] ** 2)).clamp(min=0)).sqrt())),
        Mistake("only the last level was set to 0: that is a cliff. All levels move, the last one farthest.",
                bend(lambda a: torch.cat([a[:-1], torch.zeros(1).double()]))),
        Mistake("the first alpha became 1: it should stay where it was, so stretch by alpha[0] / (alpha[0] - alpha[-1]).",
                bend(lambda a: (a - a[-1]) / (a[0] - a[-1]))),
        Mistake("alpha is right and sigma is still the old one: alpha**2 + sigma**2 must stay 1.",
                lambda schedule: (bend(lambda a: (a - a[-1]) * a[0] / (a[0] - a[-1]))(schedule)[0], schedule.sigma)),
    ),
    hints=("Two demands: the last alpha becomes 0, the first stays. A shift does the one; what repairs the other?",
           "alpha - alpha[-1] is 0 at the end. At the start it is alpha[0] - alpha[-1], and should be alpha[0].",
           "alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1]); sigma = (1 - alpha**2).sqrt()"),
    laws=(Law("the last level still has some of the image in it: alpha[-1] must be 0.",
              lambda f: float(torch.as_tensor(_alpha(f(Schedule.scaled_linear())))[-1]) == 0.0),),
)  # fmt: skip


def _alpha(answer):
    return answer.alpha if isinstance(answer, Schedule) else answer[0]


TASKS = [add_noise_task, from_betas_task, cosine_task, predict_x0_task, zero_snr_task]
