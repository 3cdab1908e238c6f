"""Chapter 17: what it defines, and what the library's versions are asked to compare with."""

import torch

import minidiff as md

OWN = {
    "marks", "pair_denoiser", "redraw_levels", "redrawn", "repainted", "seam", "seeded", "show_marks", "small_mask", "tolerant",
    "walked",
}  # fmt: skip

KNOWN, NOISE, XT = torch.randn(3, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
SOFT = torch.linspace(0, 1, 36).view(4, 1, 3, 3)
LINEAR, FLOW, BELL = md.Schedule.linear(), md.Schedule.flow(), md.GaussianDenoiser(0.2, 0.5)


def told(inpainting):
    """What is said where something is known, nothing is, and between; at one level, at one for each image, and on a flow."""
    levels = LINEAR.at(600), LINEAR.at(torch.tensor([900, 500, 40, 7])), FLOW.at(250.5)
    masks = SOFT, torch.zeros_like(SOFT), torch.ones_like(SOFT)
    return [tuple(inpainting(BELL, KNOWN, mask, NOISE)(XT, level)) for mask in masks for level in levels]


def walks(repaint):
    """All states of walks that take each step once and more often, with part of the answer known and without."""
    found = []
    for schedule, times in ((LINEAR, 1), (LINEAR, 3), (FLOW, 4)):
        for denoise in (BELL, md.inpainting(BELL, KNOWN, SOFT, NOISE)):
            generator = torch.Generator().manual_seed(3)
            found += [part for state in repaint(denoise, NOISE, schedule.levels(6), times, generator) for part in state[:2]]
    *_, last = repaint(BELL, NOISE, LINEAR.levels(3), generator=torch.Generator().manual_seed(4))
    return [*found, last.x]


INPUTS = {"inpainting": told, "repaint": walks}
