"""Chapter 18: what it defines, and what the library's versions are asked to compare with."""

import torch

import minidiff as md

OWN = {
    "between_gaussians", "differ", "disputed", "fresh", "marks", "overall", "redraw", "redraw_within", "side_by_side",
    "statistics", "there_and_back", "wrong_end",
}  # fmt: skip

X0 = 0.5 * torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
GAUSSIAN = md.GaussianDenoiser(0.1, 0.5)
WALKS = [md.Schedule.flow(shift=3.0).levels(7, "trailing"), md.Schedule.linear().levels(7, "linspace", last=None),
         md.Schedule.linear().zero_terminal_snr().levels(5, "trailing")]  # fmt: skip


def walked(invert):
    """Every x and x0 on the way up, plain and refined, on three schedules, and the levels that were reached."""
    found = []
    for levels in WALKS:
        for refine in (0, 1, 4):
            for state in invert(GAUSSIAN, X0, levels, refine=refine):
                found += [state.x, state.x0, torch.tensor([state.level.alpha, state.level.sigma])]
    return found


def differed(by_difference):
    """Every picture on the way from one Gaussian to another, and the noise it was asked under, on the schedules above."""
    found, ends = [], (md.GaussianDenoiser(0.1, 0.5), md.GaussianDenoiser(0.9, 0.2))

    def denoise(xt, level):
        found.append(xt)
        answers = [ask(part, level) for ask, part in zip(ends, xt.chunk(2), strict=True)]
        return md.Estimate(*(torch.cat(both) for both in zip(*answers, strict=True)))

    for levels in WALKS:
        for state in by_difference(denoise, X0, levels, torch.Generator().manual_seed(0)):
            found += [state.x, state.x0, torch.tensor([state.level.alpha, state.level.sigma])]
    return found


INPUTS = {"invert": walked, "by_difference": differed}
