"""Samplers side by side: how often they ask the network, at which order and how far they miss, what they cost beside it.

The data are a mixture of Gaussians on a line. Its exact denoiser is known, and so is where a walk should end: the curve that
leads from noise to data never crosses another, so whoever starts as the quantile p of the noisy data ends as the quantile p
of the clean. A sampler that draws fresh noise has no such end, but what it draws has quantiles, which should be the data's.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median

import torch
from torch import Generator, Tensor

from ..diffusion import CLEAN, SAMPLERS, DatasetDenoiser, Denoiser, Level, Sampler, Schedule, denoiser, samplers

SCHEDULE = Schedule.scaled_linear()  # Stable Diffusion's
STEPS = (5, 7, 10, 15, 20, 30, 50)  # of the walks whose errors are drawn


class Mixture:
    """Data on a line: a Gaussian of spread std > 0 around each of the centres, all as likely; repeat one for more weight."""

    def __init__(self, centres: Sequence[float], std: float):
        self.centres, self.std = torch.tensor(centres, dtype=torch.float64), std
        self.denoise = DatasetDenoiser(self.centres[:, None], std=std)

    def cdf(self, x: Tensor, level: Level) -> Tensor:
        """The share of x_t below x: (B,) -> (B,). x_t is a mixture too, of N(alpha * centre, alpha^2 * std^2 + sigma^2)."""
        spread = math.hypot(level.alpha * self.std, level.sigma)
        return torch.special.ndtr((x[:, None] - level.alpha * self.centres) / spread).mean(dim=1)

    def quantiles(self, p: Tensor, level: Level) -> Tensor:
        """The x below which the share p of x_t lies, (B,) -> (B,), by bisection: the inverse of `cdf`."""
        reach = self.centres.abs().max() + 10 * (1 + self.std)
        low, high = -reach.expand(len(p)), reach.expand(len(p))
        for _ in range(60):
            middle = (low + high) / 2
            below = self.cdf(middle, level) < p
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


MIXTURE = Mixture([-1, -1, -1, 0, 1, 1], std=0.25)  # 1/2, 1/6 and 1/3 of the data


@cache
def truth(n: int, level: Level) -> Tensor:
    """n quantiles of the mixture at a level, (n,), evenly spread: where n walks begin, and where each of them should end."""
    return MIXTURE.quantiles((torch.arange(n, dtype=torch.float64) + 0.5) / n, level)


@dataclass(frozen=True)
class Row:
    """What was measured of one sampler. Microseconds are per step, of ours and of diffusers' for the same algorithm."""

    sampler: str
    calls_per_step: float  # in a walk of 50
    order: float | None  # None where steps draw noise
    walks: list[tuple[int, int, float]]  # (steps, network calls, error) for each of STEPS
    at_20_calls: float  # the error of the longest walk of at most 20 calls
    overhead: float
    theirs: float | None = None


def rows(theirs: Callable | None = None, spacing: str = "karras") -> Iterator[Row]:
    """Measure every sampler, a Row at a time.

    theirs: (name, net, x, steps, generator) -> a walk to be run and timed, see `overhead`. spacing: of the levels on which
    errors are measured; `Schedule.levels` knows which there are, and raises ValueError for others.
    """
    for name, sampler in SAMPLERS.items():
        longest = max(n for n in range(1, 21) if calls(sampler, n) <= 20)
        errors = {n: error(sampler, n, spacing) for n in {*STEPS, longest}}
        walks = [(n, calls(sampler, n), errors[n]) for n in STEPS]
        ours, *other = overhead(name, [ready, theirs] if theirs else [ready])
        yield Row(name, calls(sampler, 50) / 50, order(sampler), walks, errors[longest], ours, *other)


def calls(sampler: Sampler, n: int) -> int:
    """How often a walk of n steps asks the network: counted."""
    asked = []

    def counting(x: Tensor, level: Level):
        asked.append(level)
        return MIXTURE.denoise(x, level)

    _end(sampler, counting, torch.ones(1, 1), SCHEDULE.levels(n, "trailing"))
    return len(asked)


def order(sampler: Sampler, steps: tuple[int, int] = (128, 512)) -> float | None:
    """p of error ~ 1/steps^p on a smooth stretch of levels, t from 900 to 100; None if the sampler draws noise."""
    if is_random(sampler):
        return None
    misses = []
    for n in steps:
        levels = [SCHEDULE.at(t) for t in torch.linspace(900, 100, n + 1, dtype=torch.float64).tolist()]
        x = _end(sampler, MIXTURE.denoise, truth(400, levels[0])[:, None], levels)[:, 0]
        misses.append(_rms(x - truth(400, levels[-1])))
    return math.log(misses[0] / misses[1]) / math.log(steps[1] / steps[0])


def error(sampler: Sampler, n: int, spacing: str = "karras", samples: int | None = None) -> float:
    """How far n steps, from the noisiest level to CLEAN, miss: the root mean square over quantiles of the data, float64.

    Without noise that is the error of every path. With noise it is the 2-Wasserstein distance between data and draws, to
    the floor that finite samples have, see `floor`. samples: 400 quantiles, and 50,000 where noise is drawn.
    """
    samples = samples or (50_000 if is_random(sampler) else 400)
    levels = SCHEDULE.levels(n, spacing)
    x = _end(sampler, MIXTURE.denoise, truth(samples, levels[0])[:, None], levels)[:, 0]
    return _rms(x.sort().values - truth(samples, levels[-1]))


def floor(samples: int = 50_000) -> float:
    """The error of draws from the data themselves: the median of five sets."""
    g = Generator().manual_seed(0)
    drawn = [torch.rand(samples, generator=g, dtype=torch.float64).sort().values for _ in range(5)]
    return median(_rms(MIXTURE.quantiles(p, CLEAN) - truth(samples, CLEAN)) for p in drawn)


def is_random(sampler: Sampler) -> bool:
    """Do two seeds lead to two ends? To take a generator says little: ddim draws from it only if eta is not 0."""
    a, b = (_end(sampler, MIXTURE.denoise, torch.ones(1, 1), SCHEDULE.levels(3), seed) for seed in (0, 1))
    return not torch.equal(a, b)


def overhead(name: str, sides: Sequence[Callable], steps: int = 50, repeats: int = 20) -> list[float]:
    """Microseconds per step of a walk whose network costs nothing, (1, 4, 64, 64), for each side: `ready`, or one like it.

    Of the processor's time, so that others at work on the machine do not count; the sides take turns, and the median of the
    repeats stands. What a side lays out before its walk, tables or levels, is not timed.
    """
    g = Generator().manual_seed(0)
    x, eps = torch.randn(2, 1, 4, 64, 64, generator=g)
    seconds = [[] for _ in sides]
    for _ in range(repeats):
        for side, measured in zip(sides, seconds, strict=True):
            walk = side(name, lambda xt, t: eps, x, steps, g)
            begin = time.process_time()
            walk()
            measured.append(time.process_time() - begin)
    return [1e6 * median(measured) / steps for measured in seconds]


def ready(name: str, net: Callable, x: Tensor, n: int, generator: Generator) -> Callable[[], Tensor]:
    """Our walk of n steps from x at the first of levels(n, "trailing") to CLEAN, to be run. net: (x, t) -> eps."""
    levels, sampler = SCHEDULE.levels(n, "trailing"), SAMPLERS[name]
    options = {"generator": generator} if samplers.draws(sampler) else {}
    return lambda: samplers.sample(sampler, denoiser(net), x, levels, progress=False, **options)


def _end(sampler: Sampler, denoise: Denoiser, x: Tensor, levels: list[Level], seed: int = 0) -> Tensor:
    options = {"generator": Generator().manual_seed(seed)} if samplers.draws(sampler) else {}
    return samplers.sample(sampler, denoise, x, levels, progress=False, **options)


def _rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()
