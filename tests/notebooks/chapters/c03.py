"""Chapter 03: what it defines, and what the library's versions are asked to compare with."""

import torch

import minidiff as md

OWN = {"Blind", "Net", "arm", "endless", "energy_distance", "exact", "fit", "measure", "nearest", "new_net", "show_clouds",
       "show_fields", "show_waves", "spiral", "train"}  # fmt: skip

X, EPS = torch.linspace(-1, 1, 32).view(4, 2, 2, 2), torch.linspace(2, -2, 32).view(4, 2, 2, 2) ** 3
TABLE, FLOW = md.Schedule.linear(), md.Schedule.flow()
TIMES = torch.tensor([0, 3, 600, 999])
LEVELS = [TABLE.at(7), TABLE.at(TIMES), FLOW.at(250.5), FLOW.at(TIMES + 0.5)]
KINDS = ("eps", "x0", "v", "flow")


def net(xt, t, shift=0.0):
    """Answers that depend on the point, the time and the condition."""
    return torch.tanh(xt) * torch.cos(t.float() / 100).view(-1, 1, 1, 1) + shift


def denoise(denoiser):
    """What denoisers of every kind say at every level, with and without a bound and a condition."""
    asked = [denoiser(net, kind, **more) for kind in KINDS for more in ({}, {"clip": 0.5}, {"shift": 0.3})]
    return [tuple(f(X, level)) for f in (denoiser(net), *asked) for level in LEVELS]


def losses(diffusion_loss):
    """Losses of every kind, weighted or not, with levels and noise given and drawn."""
    given = [diffusion_loss(net, X, schedule, kind, TIMES, EPS, min_snr=gamma, shift=0.3)
             for schedule in (TABLE, FLOW) for kind in KINDS for gamma in (None, 5.0, 0.5)]  # fmt: skip
    torch.manual_seed(0)
    return [*given, diffusion_loss(net, X, TABLE), diffusion_loss(net, X, FLOW, "x0", TIMES, EPS, measured="flow")]


INPUTS = {
    "sinusoidal": [(TIMES, 8), (TIMES + 0.5, 64), (TIMES, 16, 100.0)],
    "target": [(X, EPS, level, kind) for level in LEVELS for kind in KINDS],
    "to_estimate": [(EPS, X, level, kind) for level in LEVELS for kind in KINDS],
    "denoiser": denoise,
    "min_snr_weight": [(level, kind, *gamma) for level in LEVELS for kind in KINDS for gamma in ((), (1.0,))],
    "measured_weight": [(level, kind, other) for level in LEVELS for kind in KINDS for other in KINDS],
    "diffusion_loss": losses,
}
