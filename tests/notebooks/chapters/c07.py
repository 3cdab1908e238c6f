"""Chapter 07: what it defines, and what the library's versions are asked to compare with."""

import torch

import minidiff as md

OWN = {"at_rank", "measure", "draw_walk", "short", "errors", "pretend", "Posing", "lms_that_remembers", "oldest_first"}

X = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MIXTURE = md.DatasetDenoiser(torch.tensor([[[-1.0] * 3, [0.4] * 3], [[0.9] * 3, [-0.2] * 3]]), std=0.3)
SCHEDULES = [md.Schedule.scaled_linear(), md.Schedule.linear().zero_terminal_snr(), md.Schedule.flow()]


def ends(sampler, **options):
    """The last state of walks over every kind of schedule and spacing, short and long: x, and x0."""
    found = []
    for schedule in SCHEDULES:
        for n, spacing in ((1, "trailing"), (7, "leading"), (16, "trailing"), (9, "karras")):
            *_, last = sampler(MIXTURE, X, schedule.levels(n, spacing), **options)
            *_, open_end = sampler(MIXTURE, X, schedule.levels(n + 1, "linspace", last=None), **options)
            found += [last.x, last.x0, open_end.x]
    return found


def chancy(sampler):
    """The same walks, with dice of a seed."""
    found = []
    for schedule in SCHEDULES:
        for n in (3, 17):
            generator = torch.Generator().manual_seed(n)
            *_, last = sampler(MIXTURE, X, schedule.levels(n, "trailing"), generator=generator)
            found += [last.x, last.x0]
    return found


INPUTS = {
    "euler": ends,
    "heun": ends,
    "lms": lambda lms: sum((ends(lms, order=order) for order in (1, 2, 3, 4)), ends(lms)),
    "plms": ends,
    "dpmpp_2m": lambda dpmpp_2m: ends(dpmpp_2m) + chancy(lambda *walk, **dice: dpmpp_2m(*walk, eta=0.7, **dice)),
    "karras": lambda karras: [torch.tensor(karras(80.0, 0.002, 18)), torch.tensor(karras(14.6, 0.03, 9, 3.0))],
    "adams_bashforth": lambda weights: [torch.tensor(weights([2.0, 2.5, 4.0, 4.2][:n], 0.3)) for n in (1, 2, 3, 4)],
    "euler_ancestral": chancy,
    "dpmpp_2m_sde": chancy,
}
