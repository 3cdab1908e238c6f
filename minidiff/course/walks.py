"""Questions to ask of a sampler whoever wrote it: they hold in whatever order it draws its noise."""

from itertools import islice, pairwise

import torch

from ..diffusion import Estimate, Level


class Belief:
    """A denoiser whose x0 depends on the level and not on x, so that it can be foretold for any draw of the noise."""

    def __init__(self, target):
        self.target = target

    def __call__(self, xt, level):
        x0 = (1 + level.alpha) / 2 * self.target
        return Estimate(x0, (xt - level.alpha * x0) / max(level.sigma, 1e-3))


def states(walk):
    """The states of a walk, at most 1000, as triples; a sentence where they are something else."""
    if not hasattr(walk, "__iter__"):
        raise TypeError(f"a sampler is a generator, and this gives {type(walk).__name__}: is a `yield` missing?")
    found = list(islice(walk, 1000))
    if not found or any(isinstance(state, torch.Tensor) or not isinstance(state[-1], Level) for state in found):
        raise TypeError("after every step the walk should yield State(x, x0, level)")
    return found


def visits(f, denoise, x, levels, noisiness=None, **options):
    """What holds of a random walk in whatever order it draws. noisiness: the eta that its noise should show, 1 in DDPM."""
    asked = []

    def asking(xt, level):
        if not isinstance(level, Level):
            raise TypeError(f"the denoiser is asked about a Level, and was given {type(level).__name__}")
        asked.append((xt, level.t))
        return denoise(xt, level)

    xs, x0s, reached = zip(*states(f(asking, x, levels, **options)), strict=True)
    told = {"number of states": len(xs), "t the denoiser is told": torch.tensor([float(t) for _, t in asked]),
            "t of the states": torch.tensor([float(level.t) for level in reached]), "x0": torch.stack(x0s),
            "x handed on": torch.tensor([float(a.equal((x, *xs)[i])) for i, (a, _) in enumerate(asked[: len(xs) + 1])]),
            "last x": xs[-1] if reached[-1].sigma == 0 else 0}  # fmt: skip
    return told if noisiness is None else told | grain(denoise, (x, *xs), levels, noisiness)


def grain(denoise, xs, levels, eta):
    """The fresh noise of each step, 1 if as large as it should be, and how alike two in a row are; to one decimal."""
    fresh = []
    for i in range(min(len(levels), len(xs)) - 1):
        (here, there), (x, x_there) = levels[i : i + 2], xs[i : i + 2]
        if there.sigma:
            share = eta**2 * (1 - (here.alpha * there.sigma / (there.alpha * here.sigma)) ** 2)
            x0, eps = denoise(x, here)
            rest = x_there - there.alpha * x0 - there.sigma * (1 - share) ** 0.5 * eps
            fresh.append(rest / (there.sigma * share**0.5))
    alike = [(a * b).mean() / (a.square().mean() * b.square().mean()).sqrt() for a, b in pairwise(fresh)]
    told = {"size of the fresh noise": [z.square().mean().sqrt() for z in fresh], "likeness of two draws": alike}
    return {name: torch.stack(values).round(decimals=1) + 0.0 for name, values in told.items()}  # + 0.0: no -0


def seeded(f, denoise, x, levels, **options):
    """Does a walk repeat under one seed, and only under one?"""
    walks = [f(denoise, x, levels, generator=torch.Generator().manual_seed(seed), **options) for seed in (1, 1, 2)]
    one, again, another = (states(walk)[0][0] for walk in walks)
    return {"the same seed, the same walk": one.equal(again), "another seed, the same walk": one.equal(another)}


def path(f, denoise, x, levels, **options):
    """A walk without chance, state by state."""
    xs, x0s, reached = zip(*states(f(denoise, x, levels, **options)), strict=True)
    return {"number of states": len(xs), "x": torch.stack(xs), "x0": torch.stack(x0s),
            "t of the states": torch.tensor([float(level.t) for level in reached]),
            "sigma of the states": torch.tensor([float(level.sigma) for level in reached])}  # fmt: skip


def end(f, denoise, x, levels):
    """Where a walk without chance ends."""
    return states(f(denoise, x, levels))[-1][0]


def twice(f, *args, **options):
    """A walk without chance, and whether the next one is the same: nothing that one remembers may outlive it."""
    first = path(f, *args, **options)
    try:
        same = path(f, *args, **options)["x"].equal(first["x"])
    except Exception:  # noqa: BLE001  as from two answers at one node: the first walk came through, so it is the memory
        same = False
    outlived = "another one: what the first remembered outlives it, in a default argument (`past=[]`) or outside the function"
    return {"a second walk": "the same" if same else outlived} | first
