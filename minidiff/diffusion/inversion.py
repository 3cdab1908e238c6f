"""Inversion: which noise would have become this picture?

With eta = 0, DDIM is a walk along a curve (an ODE), and a curve can be walked both ways. So inversion needs no
algorithm: it is the same step over the same levels, from clean to noisy (Song et al. 2021, section 4.3).
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from .forward import Denoiser
from .samplers import State
from .schedule import Level
from .steps import ddim_step


@torch.no_grad()
def invert(denoise: Denoiser, x0: Tensor, levels: list[Level]) -> Iterator[State]:
    """Walk x0 (B, ...) up to noise over the levels that a sampler would walk down, and yield a State after every step.

    levels: those of the sampler, so that `ddim(denoise, last.x, levels)` comes back along the same stations, to an error
    that falls as 1/steps; in which order they are given does not matter. Every step asks the denoiser about the level it
    leaves, as going down does: asking about the level it reaches is a common slip, and shifts the whole walk by a step.
    Raises ValueError for fewer than two levels, or for two levels that are equally noisy.
    """
    up = sorted(levels, key=lambda level: level.sigma / (level.alpha + level.sigma))
    noisiness = [level.sigma / (level.alpha + level.sigma) for level in up]
    if len(up) < 2 or len(set(noisiness)) < len(up):
        raise ValueError("inversion walks at least two levels, each noisier than the last: take schedule.levels(n)")
    x = x0
    for here, there in pairwise(up):
        estimate = denoise(x, here)
        x = ddim_step(x, estimate, here, there)
        yield State(x, estimate.x0, there)
