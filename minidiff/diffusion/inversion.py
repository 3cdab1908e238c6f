"""Inversion: which noise would have become this picture?

With eta = 0, DDIM is a walk along a curve (an ODE), and a curve can be walked both ways. So inversion needs no
algorithm: it is the same step over the same levels, from clean to noisy (Song et al. 2021, section 4.3).

A step of finite length is asked about its beginning. Going down, that is its noisy end; going up, its clean one, and so the
two walks differ a little at every step. To close that gap a step up must already know the answer at its end, which it can
look up: guess where the step ends, ask there, and step again with that answer, until nothing moves any more.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from .forward import Denoiser
from .samplers import State, step_by
from .schedule import Level
from .steps import ddim_step


@torch.no_grad()
def invert(denoise: Denoiser, x0: Tensor, levels: list[Level], *, refine: int = 0) -> Iterator[State]:
    """Walk x0 (B, ...) up to noise over the levels that a sampler would walk down, and yield a State after every step.

    levels: those of the sampler, so that `ddim(denoise, last.x, levels)` comes back along the same stations, to an error
    that falls as 1/steps; in which order they are given does not matter. Every step asks the denoiser about the level it
    leaves, as going down does: asking about the level it reaches is a common slip, and shifts the whole walk by a step.
    refine: how often each step is taken again with the answer from where it ended, a fixed-point iteration (Pan et al. 2023,
    "AIDI"): at its fixed point x, DDIM's step down from x ends exactly where this one began. It costs refine + 1 network
    calls a step. Of an answer, eps - x0 is kept, which means something at both ends: eps alone, where alpha = 0, is x_t.
    Raises ValueError for fewer than two levels, for two levels that are equally noisy, and for refine < 0.
    """
    if refine < 0:
        raise ValueError(f"refine = {refine}: 0 is plain inversion, 3 to 5 close the round trip")
    up = sorted(levels, key=lambda level: level.sigma / (level.alpha + level.sigma))
    noisiness = [level.sigma / (level.alpha + level.sigma) for level in up]
    if len(up) < 2 or len(set(noisiness)) < len(up):
        raise ValueError("inversion walks at least two levels, each noisier than the last: take schedule.levels(n)")
    x = x0
    for here, there in pairwise(up):
        estimate = denoise(x, here)
        ahead = ddim_step(x, estimate, here, there)
        for _ in range(refine):
            seen = denoise(ahead, there)
            ahead = step_by(x, seen.eps - seen.x0, "flow", here, there)
        x = ahead
        yield State(x, estimate.x0, there)
