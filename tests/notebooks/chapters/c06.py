"""Chapter 06: what it defines, and what the library's versions are asked to compare with."""

import torch

import minidiff as md

OWN = {"nearest", "score", "timed", "slerp"}  # defined for this chapter alone

X0, EPS, NOISE = torch.randn(3, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
LINEAR = md.Schedule.linear()
DOWN = [(LINEAR.at(900), LINEAR.at(300)), (LINEAR.at(20), md.CLEAN), (md.Level(999, 0.0, 1.0), LINEAR.at(500)),
        (LINEAR.at(torch.tensor([900, 500, 40, 7])), LINEAR.at(torch.tensor([600, 499, 0, 6])))]  # fmt: skip
UP = [(LINEAR.at(300), LINEAR.at(900)), (md.CLEAN, LINEAR.at(0))]


def step(here, there, *more):
    return (md.add_noise(X0, EPS, here), md.Estimate(X0, EPS), here, there, *more)


def walks(ddim):
    """The last state of several walks: x, x0 and the level."""
    ends = []
    for schedule, eta in ((LINEAR, 0.0), (LINEAR, 0.4), (LINEAR, 1.0), (md.Schedule.flow(), 0.0)):
        generator = torch.Generator().manual_seed(3)
        *_, last = ddim(md.GaussianDenoiser(0.2, 0.5), NOISE, schedule.levels(7), eta=eta, generator=generator)
        ends += [last.x, last.x0, torch.tensor([last.level.alpha, last.level.sigma])]
    return ends


def layouts(levels):
    """t, alpha and sigma of every level that is visited."""
    asked = [(n, spacing) for n in (1, 2, 7, 10, 40, 50, 999, 1000) for spacing in ("leading", "trailing", "linspace")]
    found = [levels(md.Schedule.cosine(), n, spacing) for n, spacing in asked]
    found += [levels(LINEAR, 50), levels(LINEAR, 50, "leading", 1), levels(LINEAR, 10, "trailing", last=None)]
    return [torch.tensor([(level.t, level.alpha, level.sigma) for level in walk]) for walk in found]


INPUTS = {
    "ddim_step": [step(*pair, eta, NOISE) for pair in DOWN for eta in (0.0, 0.3, 1.0)] + [step(*pair) for pair in UP],
    "ddim": walks,
    "levels": layouts,
}
