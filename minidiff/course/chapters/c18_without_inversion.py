"""The last task of chapter 18: an edit without a way back."""

from itertools import pairwise

import torch

from ...diffusion import CLEAN, Estimate, GaussianDenoiser, Level, Schedule, State, by_difference
from ..task import Case, Law, Mistake, Task
from ..walks import path, states

X0 = 0.5 * torch.randn(6, 40, generator=torch.Generator().manual_seed(18), dtype=torch.float64)
WALK = [Level(300, 0.6, 0.8), Level(200, 0.8, 0.6), CLEAN]  # for numbers by hand
FLOW = Schedule.flow().levels(6)


class Two:
    """A denoiser of 2B rows: the first B are pictures of one kind, the others of another."""

    def __init__(self, old, new):
        self.old, self.new = old, new

    def __call__(self, xt, level):
        pairs = [denoise(part, level) for denoise, part in zip((self.old, self.new), xt.chunk(2), strict=True)]
        return Estimate(*(torch.cat(both) for both in zip(*pairs, strict=True)))


FAR = Two(GaussianDenoiser(-1.0, 0.5), GaussianDenoiser(2.0, 0.5))


def questions(f, denoise, x0, levels):
    """What it asks: of which level, with noise how large and how like the one before, and whether both rows have the same."""
    asked = []

    def asking(xt, level):
        asked.append((xt, level))
        return denoise(xt, level)

    xs, _, reached = zip(*states(f(asking, x0, levels)), strict=True)
    told = {"number of states": len(xs), "t of the states": torch.tensor([float(level.t) for level in reached]),
            "t the denoiser is told": torch.tensor([float(level.t) for _, level in asked]),
            "rows it asks about": torch.tensor([float(len(xt)) for xt, _ in asked])}  # fmt: skip
    if any(len(xt) != 2 * len(x0) for xt, _ in asked) or len(asked) != len(xs):
        return told
    noises, same = [], []
    for (xt, level), picture in zip(asked, (x0, *xs[:-1]), strict=True):
        old, new = xt.chunk(2)
        noises.append((old - level.alpha * x0) / level.sigma)
        same.append(float(torch.allclose(new, level.alpha * picture + level.sigma * noises[-1], atol=1e-6)))
    sizes = torch.stack([noise.square().mean().sqrt() for noise in noises])
    alike = torch.stack([torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) for a, b in pairwise(noises)])
    return told | {"size of the noise": sizes.round(decimals=0), "likeness of two draws": alike.round(decimals=0) + 0.0,
                   "the picture so far, under the same noise": torch.tensor(same)}  # fmt: skip


def differing(aim=lambda x0, old, new, picture: x0 + new - old, rest=lambda here, there: there.sigma / here.sigma,
              old_of=lambda x0, picture: x0, new_of=lambda x0, picture: picture, fresh=True, apart=False, seed=None,
              swap=False):  # fmt: skip
    """by_difference, with one of its parts replaced."""

    def walk(denoise, x0, levels, generator=None):
        generator = torch.Generator().manual_seed(seed) if seed is not None else generator

        def draw():
            return torch.randn(x0.shape, generator=generator, dtype=x0.dtype)

        picture, noise = x0, draw()
        for here, there in pairwise(levels):
            noise = draw() if fresh else noise
            rows = [here.alpha * old_of(x0, picture) + here.sigma * noise,
                    here.alpha * new_of(x0, picture) + here.sigma * (draw() if apart else noise)]  # fmt: skip
            old, new = denoise(torch.cat(rows[::-1] if swap else rows), here).x0.chunk(2)
            picture = torch.lerp(aim(x0, old, new, picture), picture, float(rest(here, there)))
            yield State(picture, picture, there)

    return walk


def used(f):
    """Does it repeat under one seed, and only under one? The data are a dot and a spread: here noise is not without effect."""
    denoise = Two(GaussianDenoiser(0.0, 1.0), GaussianDenoiser(0.0, 0.1))
    ends = [states(f(denoise, X0, FLOW, generator=torch.Generator().manual_seed(seed)))[-1][0] for seed in (1, 1, 2)]
    return ends[0].equal(ends[1]) and not ends[0].equal(ends[2])


GENERATOR = "the generator was given and not used: with equal seeds the walk must repeat, and with another it must not."
STAYS = "told the same twice it must give the picture back, x0 itself: start from x0, and add the difference."
difference_task = Task(
    "18.5", "an edit without a way back", by_difference,
    ask=lambda f, view, *args: view(f, *args),
    cases=(
        # Answers (1 - g) m + g x_t / alpha, g = alpha^2 s^2 / (alpha^2 s^2 + sigma^2): 9 / 73, then 4 / 13. The change:
        # 1/4 * 3 * (1 - g) = 0.657534; then all of the way to 3 (1 - g) + g * 0.657534 = 2.279241. The pictures: 0.5 and that.
        Case("two steps by hand", (path, FAR, torch.tensor([[0.5]]), WALK),
             {"number of states": 2, "x": torch.tensor([[[1.157534]], [[2.779241]]]),
              "x0": torch.tensor([[[1.157534]], [[2.779241]]]), "t of the states": torch.tensor([200.0, 0.0]),
              "sigma of the states": torch.tensor([0.6, 0.0])}),
        Case("six steps of a flow", (path, FAR, X0, FLOW)),
        Case("what it asks", (questions, FAR, X0, FLOW)),
    ),
    mistakes=(
        Mistake("this is the new answer itself. Add to x0 the difference of the two answers: what both get wrong cancels.",
                differing(aim=lambda x0, old, new, picture: new)),
        Mistake("the difference is added to what has changed already, and so counted again at every step: add it to x0.",
                differing(aim=lambda x0, old, new, picture: picture + new - old)),
        Mistake("old minus new leads away from what is wanted: the first half of the rows is old, the second new.",
                differing(aim=lambda x0, old, new, picture: x0 + old - new)),
        Mistake("the new half of the rows came first: the old pictures, then the changed ones.", differing(swap=True)),
        Mistake("share and rest have changed places: r = sigma_there / sigma_here is what stays of the picture.",
                differing(rest=lambda here, there: 1 - there.sigma / here.sigma)),
        Mistake("the new words were asked about the old picture: the second half of the rows is the picture so far.",
                differing(new_of=lambda x0, picture: x0)),
        Mistake("the old words were asked about the changed picture: they are true of x0, and stay with it.",
                differing(old_of=lambda x0, picture: picture)),
        Mistake("each half has noise of its own, and their difference is full of it: the same noise for both.",
                differing(apart=True)),
        Mistake("the same noise at every level: draw afresh, so that what one draw gets wrong, the next does not.",
                differing(fresh=False)),
        Mistake(GENERATOR, differing(seed=7)),
    ),
    laws=(Law(GENERATOR, used),
          Law(STAYS, lambda f: torch.allclose(states(f(Two(FAR.new, FAR.new), X0, FLOW))[-1][0], X0, atol=1e-9))),
    hints=("One call for both: denoise(torch.cat([old rows, new rows]), here).x0.chunk(2) gives the two answers.",
           "The same noise for both: here.alpha * x0 + here.sigma * noise, and here.alpha * picture + here.sigma * noise.",
           "picture = torch.lerp(x0 + new - old, picture, there.sigma / here.sigma)"),
)  # fmt: skip

TASKS = [difference_task]
