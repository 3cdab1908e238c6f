"""Editing without a way back: what would other words change about this picture?

Ask one network twice about one noised picture, under the words that are true of it and under those that are wanted. What the
network gets wrong is wrong in both answers, and their difference holds what the words differ in and little else. That is
delta denoising (Hertz, Aberman & Cohen-Or 2023, "Delta Denoising Score"). They ask at random levels and follow the difference
as a gradient; here it is walked from noisy to clean, with fresh noise at every level, as FlowEdit does (Kulikov et al. 2025).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .forward import Denoiser
from .samplers import State, downward, randn_like
from .schedule import Level


@torch.no_grad()
def by_difference(
    denoise: Denoiser, x0: Tensor, levels: list[Level], generator: torch.Generator | None = None
) -> Iterator[State]:
    """Change x0 (B, ...) from what it is to what is wanted, and yield the picture so far after every step, as x and as x0.

        x0_old, x0_new = denoise(alpha * [x0, picture] + sigma * noise)
        picture <- (1 - r) * (x0 + x0_new - x0_old) + r * picture,                    r = sigma_there / sigma_here

    denoise is asked about 2B rows at once: B pictures as they were, under the words that are true of them, then the same B as
    they are by now, under those that are wanted. Told the same words twice it gives x0 back. r is the share of the noise that
    a step leaves: what is decided at high levels, where things are and how large, is so decided first. When little noise is
    left the network believes what it sees, and the change stands still, finished or not: guidance makes up for that.
    (FlowEdit adds the change itself to the noised x0, not alpha times it. That goes all the way, and moves what should stay.)
    Raises ValueError unless the levels go from noisy to clean.
    """
    picture = x0
    for here, there in downward(levels):
        noise = here.sigma * randn_like(x0, generator)
        old, new = denoise(torch.cat([here.alpha * x0 + noise, here.alpha * picture + noise]), here).x0.chunk(2)
        picture = torch.lerp(x0 + new - old, picture, float(there.sigma / here.sigma))
        yield State(picture, picture, there)
