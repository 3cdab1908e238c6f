"""Tasks of chapter 00: three small ones, to warm up. What a picture is, the formula solved once, and a walk."""

from itertools import pairwise

import numpy as np
import torch

from ...diffusion import DatasetDenoiser, GaussianDenoiser, Level, Schedule, State, ddim, dpmpp_2m, predict_eps, sample
from ...plot import to_pixels
from ..task import Case, Mistake, Task
from .c01_noise_and_schedules import EACH, EPS, LINEAR, SMALL, X0


def as_tensor(f, images):
    """What the answer is, as a tensor where it is an array."""
    value = f(images)
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def painting(scale=lambda x: (x + 1) * 127.5, hold=lambda x: x.clamp(-1, 1), to_int=lambda x: x.round(),
             colour=lambda x: x.expand(-1, 3, -1, -1), order=(0, 2, 3, 1)):  # fmt: skip
    """to_pixels, with one of its parts replaced."""
    return lambda images: to_int(scale(hold(colour(images)))).to(torch.int64).to(torch.uint8).permute(order).numpy()


ROW = torch.tensor([-1.0, 0.2, 1.0, 0.3, -0.5]).view(1, 1, 1, 5)
pixels_task = Task(
    "00.1", "a picture that a screen can show", to_pixels,
    cases=(
        Case("five grey numbers by hand", (ROW,),
             torch.tensor([0, 153, 255, 166, 64], dtype=torch.uint8).view(1, 1, 5, 1).expand(1, 1, 5, 3)),
        Case("two pixels that overshoot", (torch.tensor([1.5, -2.0]).view(1, 1, 1, 2),),
             torch.tensor([255, 0], dtype=torch.uint8).view(1, 1, 2, 1).expand(1, 1, 2, 3)),
        Case("four pictures in colour", (X0,)),
        Case("noise", (EPS,)),
    ),
    ask=as_tensor,
    mistakes=(
        Mistake("numbers were taken for 0 to 1: pictures are in [-1, 1] here, so add 1 and take 255 / 2 of it.",
                painting(scale=lambda x: x.clamp(0, 1) * 255)),
        Mistake("digits were cut off, not rounded: 165.75 is 166.", painting(to_int=lambda x: x)),
        Mistake("what lies beyond [-1, 1] has to be held to it first: a byte that overshoots begins again at 0.",
                painting(hold=lambda x: x)),
        Mistake("a byte goes to 255, not to 256: the factor is 127.5.", painting(scale=lambda x: (x + 1) * 128)),
        Mistake("the channels stand in front still: a screen wants them last, (N, H, W, 3).", painting(order=(0, 1, 2, 3))),
        Mistake("height and width have changed places: permute(0, 2, 3, 1).", painting(order=(0, 3, 2, 1))),
        Mistake("grey pictures have one channel here: a screen wants three, all alike.", painting(colour=lambda x: x)),
    ),
    hints=("-1 is to become 0, and 1 is to become 255. What becomes of 0?",
           "First images.expand(-1, 3, -1, -1), which leaves three channels as they are, and clamp(-1, 1).",
           "((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()"),
)  # fmt: skip


def on_the_last_axis(xt, x0, level):
    if xt.shape[-1] != len(xt):  # anything else would raise
        return predict_eps(xt, x0, level)
    return (xt - torch.as_tensor(level.alpha) * x0) / torch.as_tensor(level.sigma)


def solving(line):
    """predict_eps by another line, of (xt, x0, alpha, sigma)."""
    return lambda xt, x0, level: line(xt, x0, *level.like(xt))


eps_task = Task(
    "00.2", "the noise, from the image", predict_eps,
    cases=(
        Case("three numbers by hand", (torch.tensor([[1.4, 1.0, -0.5]]), torch.tensor([[1.0, -1.0, 0.5]]), Level(0, 0.6, 0.8)),
             torch.tensor([[1.0, 2.0, -1.0]])),
        Case("images at t = 300", (EPS, X0, LINEAR.at(300))),
        Case("on a flow, where alpha + sigma = 1", (EPS, X0, Schedule.flow().at(300))),
        Case("a level for each image", (EPS, X0, EACH)),
        Case("a batch as long as its images are wide", (SMALL, SMALL.flip(0), EACH)),
    ),
    mistakes=(
        Mistake("this is what is left when the image is gone, sigma * eps: divide it by sigma.",
                solving(lambda xt, x0, alpha, sigma: xt - alpha * x0)),
        Mistake("the image in x_t is smaller than x0: it is alpha * x0 that has to be taken away.",
                solving(lambda xt, x0, alpha, sigma: (xt - x0) / sigma)),
        Mistake("alpha and sigma have changed places: alpha belongs to the image, sigma to the noise.",
                solving(lambda xt, x0, alpha, sigma: (xt - sigma * x0) / alpha)),
        Mistake("the sign is wrong: it is x_t less the image.",
                solving(lambda xt, x0, alpha, sigma: (alpha * x0 - xt) / sigma)),
        Mistake("sigma is a square root already: divide by it, not by its square.",
                solving(lambda xt, x0, alpha, sigma: (xt - alpha * x0) / sigma**2)),
        Mistake("sigma is not 1 - alpha: that holds on a flow only. The level knows its sigma.",
                solving(lambda xt, x0, alpha, sigma: (xt - alpha * x0) / (1 - alpha))),
        Mistake("a level of shape (B,) was lined up with the width of the images: view it as (B, 1, 1, 1), or call level.like.",
                on_the_last_axis),
    ),
    hints=("One line of algebra: x_t = alpha * x0 + sigma * eps, solved for eps.",
           "`alpha, sigma = level.like(xt)` gives both factors in a shape that broadcasts, whether the level is one or many.",
           "(xt - alpha * x0) / sigma"),
)  # fmt: skip


def halve(denoise, x, levels):
    """A sampler that asks nobody: every step halves x."""
    for _, there in pairwise(levels):
        x = x / 2
        yield State(x, -x, there)


def walking(end=lambda states: states[-1].x, walk=lambda sampler, *args, **options: list(sampler(*args, **options))):
    """sample, with another way of walking, or another thing kept of the states."""

    def version(sampler, denoise, x, levels, progress=True, **options):
        return end(walk(sampler, denoise, x, levels, **options))

    return version


def in_pieces(sampler, denoise, x, levels, **options):
    for pair in pairwise(levels):
        *_, last = sampler(denoise, x, list(pair), **options)
        x = last.x
    return [last]


KNOWN, LEVELS = DatasetDenoiser(X0), Schedule.linear().levels(6, last=None)  # no walk to the end, where x is x0
sample_task = Task(
    "00.3", "keep the last", sample,
    cases=(
        Case("three halvings by hand", (halve, GaussianDenoiser(0.0, 1.0), torch.tensor([[8.0, -16.0]]), LINEAR.levels(3), {}),
             torch.tensor([[1.0, -2.0]])),
        Case("DDIM, five steps", (ddim, KNOWN, EPS, LEVELS, {})),
        Case("DDIM with an option, eta = 1", (ddim, KNOWN, EPS, LEVELS, {"eta": 1.0})),
        Case("a sampler that remembers", (dpmpp_2m, KNOWN, EPS, LEVELS, {})),
    ),
    ask=lambda f, sampler, denoise, x, levels, options: f(sampler, denoise, x, levels, progress=False, **options),
    mistakes=(
        Mistake("this is a whole state: asked for is its x.", walking(end=lambda states: states[-1])),
        Mistake("this is x0, what the denoiser believed at the last step: asked for is x, where the walk has come to.",
                walking(end=lambda states: states[-1].x0)),
        Mistake("this is where the first step has led: go on to the last.", walking(end=lambda states: states[0].x)),
        Mistake("these are all the pictures of the walk: keep the last only.",
                walking(end=lambda states: torch.stack([state.x for state in states]))),
        Mistake("options have not reached the sampler: sampler(denoise, x, levels, **options).",
                walking(walk=lambda sampler, *args, **options: list(sampler(*args)))),
        Mistake("the walk ends one step early: it is the sampler that pairs the levels, give it all of them.",
                walking(walk=lambda sampler, denoise, x, levels, **options: list(sampler(denoise, x, levels[:-1], **options)))),
        Mistake("the sampler was begun anew at every step, and so one that remembers has nothing to remember: begin it once.",
                walking(walk=in_pieces)),
        Mistake("this walks with ddim, whatever sampler is given.",
                walking(walk=lambda sampler, *args, **options: list(ddim(*args, **options)))),
    ),
    hints=("A sampler is a generator: a `for` loop over it runs the walk.",
           "for state in sampler(denoise, x, levels, **options): what is the last one worth?",
           "`for state in sampler(denoise, x, levels, **options): x = state.x`, and then `return x`"),
)  # fmt: skip

TASKS = [pixels_task, eps_task, sample_task]
