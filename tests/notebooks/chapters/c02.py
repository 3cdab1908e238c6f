"""Chapter 02: what it defines, and what the library's versions are asked to compare with."""

import torch

import minidiff as md

OWN = {"off", "old", "plane", "rms", "solved", "weights"}

X, NOISE = torch.linspace(-1, 1, 96).view(2, 3, 4, 4), torch.linspace(2, -2, 96).view(2, 3, 4, 4) ** 3
DATA = torch.cat([X.flip(0) ** 2, -X, X.roll(7, -1)])
TABLE = md.Schedule.linear()
BATCH = TABLE.at(torch.tensor([3, 600]))
LEVELS = [TABLE.at(0), TABLE.at(400), TABLE.at(999), BATCH, md.Schedule.flow().at(250.5)]
ESTIMATE = md.Estimate(X.flip(-1), NOISE.flip(-1))  # not one that makes up X, so that it matters which eps is taken
DOWN = [(TABLE.at(500), TABLE.at(499)), (TABLE.at(999), TABLE.at(20)), (TABLE.at(30), md.CLEAN),
        (TABLE.at(torch.tensor([5, 700])), BATCH)]  # fmt: skip
UP = [(TABLE.at(100), TABLE.at(600)), (md.CLEAN, TABLE.at(0))]


def walks(**options):
    """A sampler's states from two spacings, each walk with the same seed."""

    def ask(sampler):
        found = []
        for spacing in ("leading", "trailing"):
            seeded = {"generator": torch.Generator().manual_seed(5), **options}
            found += [(s.x, s.x0) for s in sampler(md.DatasetDenoiser(DATA), NOISE, TABLE.levels(7, spacing), **seeded)]
        return found

    return ask


def ddim_walks(sampler):
    return [pair for eta in (0.0, 0.4, 1.0) for pair in walks(eta=eta)(sampler)]


INPUTS = {
    "GaussianDenoiser": lambda kind: [kind(*args)(X, level) for level in [*LEVELS, md.CLEAN]
                                      for args in ((), (0.3, 0.5), (X[0], 1 + X[1] ** 2))],
    "DatasetDenoiser": lambda kind: [kind(DATA)(xt, level) for level in LEVELS for xt in (X, NOISE, 100 * X)],
    "ddpm_step": [(X, ESTIMATE, *pair, NOISE) for pair in DOWN],
    "ddim_step": [(X, ESTIMATE, *pair, eta, NOISE) for pair in DOWN for eta in (0.0, 0.4, 1.0)]
                 + [(X, ESTIMATE, *pair) for pair in UP],
    "ddpm": walks(), "ddim": ddim_walks,
}  # fmt: skip
