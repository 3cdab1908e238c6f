"""Chapter 01: what it defines, and what the library's versions are asked to compare with."""

import torch

import minidiff as md

OWN = {"brightness_kept"}  # defined for this chapter alone; everything else it defines exists in the library

X, EPS = torch.linspace(-1, 1, 96).view(2, 3, 4, 4), torch.linspace(2, -2, 96).view(2, 3, 4, 4) ** 3
TABLE = md.Schedule.linear()
LEVELS = [TABLE.at(0), TABLE.at(999), TABLE.at(torch.tensor([3, 600])), md.Schedule.flow().at(250.5)]
ON_LEVELS = [(X, EPS, level) for level in LEVELS]
INPUTS = {
    "add_noise": ON_LEVELS, "predict_x0": ON_LEVELS, "predict_eps": ON_LEVELS, "velocity": ON_LEVELS,
    "from_betas": [(torch.linspace(1e-4, 0.02, 50),), (torch.tensor([0.5, 0.1, 0.9]),)],
    "linear": [(), (50,), (100, 0.001, 0.004)], "scaled_linear": [(), (50,), (100, 0.001, 0.004)],
    "cosine": [(), (50,)], "flow": [(), (50,), (100, 3.0)],
    "zero_terminal_snr": [(TABLE,), (md.Schedule.scaled_linear(),), (md.Schedule.cosine(50),)],
}  # fmt: skip
