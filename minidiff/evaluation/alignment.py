"""Does a model draw what it is told? Asked in words, read back by the oracle, counted.

GenEval's six tasks (Ghosh et al. 2023), and the two that name colours once more with the pairs of colour and shape that no
training scene holds. A share without its interval is a rumour: of 60 answers, 57 right ones may be 86 % or 98 %.

A pipe is anything that is called as pipe(texts, steps=, guidance_scale=, sampler=, generator=) and gives images
(B, 3, H, W) in [-1, 1].
"""

from collections.abc import Callable, Iterator, Sequence
from math import fsum, sqrt
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..data.captions import COLOURED, TASKS, Prompt, obeyed, prompts
from ..data.oracle import read_shapes
from ..diffusion import Sampler


class Walk(NamedTuple):
    """How images are drawn. None: as the model would by itself."""

    scale: float | None = None  # of guidance: 0 unconditional, 1 none, above 1 exaggerated
    steps: int | None = None
    sampler: Sampler | None = None
    seed: int = 0
    batch: int = 64


class Row(NamedTuple):
    """One task: `obeyed` of n images show what was asked for. held_out: with pairs that training never showed."""

    task: str
    held_out: bool
    obeyed: int
    n: int

    @property
    def share(self) -> float:
        return self.obeyed / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Where the share lies with 95 % confidence."""
        return wilson(self.obeyed, self.n)


def questions(n: int, seed: int = 0, tasks: Sequence[str] = TASKS) -> list[Prompt]:
    """n prompts of each task, and of those that name colours n more with held-out pairs. ValueError as `prompts`."""
    rows = [(task, held_out) for held_out in (False, True) for task in tasks if task in COLOURED or not held_out]
    return [prompt for task, held_out in rows for prompt in prompts(task, n, seed, held_out)]


def draw(pipe: Callable, texts: Sequence[str], walk: Walk, progress: bool = True) -> Iterator[Tensor]:
    """An image for each text, a batch (B, 3, H, W) at a time; all noise comes from one generator of walk.seed.

    At scale 0 nobody listens to the texts, so the network is asked for the empty one alone, which costs half.
    A diverged image, one that is not finite, becomes an even grey, on which nothing is to be read.
    """
    scale, texts = (1.0, [""] * len(texts)) if walk.scale == 0 else (walk.scale, list(texts))
    generator = torch.Generator().manual_seed(walk.seed)
    title = "the model's own scale" if walk.scale is None else f"scale {walk.scale:g}"
    for k in tqdm(range(0, len(texts), walk.batch), title, leave=False, disable=not progress, unit="batch"):
        images = pipe(texts[k : k + walk.batch], steps=walk.steps, guidance_scale=scale, sampler=walk.sampler,
                      generator=generator)  # fmt: skip
        yield images.where(images.isfinite().all(3, True).all(2, True).all(1, True), 0)


def alignment(pipe: Callable, asked: Sequence[Prompt], walk: Walk, progress: bool = True) -> list[Row]:
    """A Row for every task in `asked`, in the order in which they first come; held-out prompts are a row of their own."""
    readings = (reading for images in draw(pipe, [p.text for p in asked], walk, progress) for reading in read_shapes(images))
    right: dict[tuple[str, bool], list[bool]] = {}
    for prompt, reading in zip(asked, readings, strict=True):
        right.setdefault((prompt.task, prompt.held_out), []).append(obeyed(prompt, reading))
    return [Row(*key, sum(some), len(some)) for key, some in right.items()]


def wilson(k: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of a share of which k of n are right (Wilson 1927): every p at which k/n would be no surprise.

        |k/n - p| <= z sqrt(p (1 - p) / n)

    Solved for p. Unlike k/n +- z sqrt(k/n (1 - k/n) / n) it stays within [0, 1], and 500 of 500 are not sure to be all.
    """
    centre, reach = (k + z * z / 2) / (n + z * z), z / (n + z * z) * sqrt(k * (n - k) / n + z * z / 4)
    return max(0.0, centre - reach), min(1.0, centre + reach)


def gap(row: Row, other: Row) -> tuple[float, float, float]:
    """row.share - other.share, and the interval of that (Newcombe 1998, method 10: the two reaches, as if at right angles)."""
    difference, (low, high), (other_low, other_high) = row.share - other.share, row.interval, other.interval
    down = sqrt((row.share - low) ** 2 + (other_high - other.share) ** 2)
    up = sqrt((high - row.share) ** 2 + (other.share - other_low) ** 2)
    return difference, difference - down, difference + up


def held_out_gaps(rows: Sequence[Row]) -> dict[str, tuple[float, float, float]]:
    """Task -> how much better (or worse, if negative) the held-out pairs are drawn than the others, as `gap` says it."""
    seen = {row.task: row for row in rows if not row.held_out}
    return {row.task: gap(row, seen[row.task]) for row in rows if row.held_out}


def mean_share(rows: Sequence[Row]) -> float:
    """The mean over tasks, each counting the same, held-out rows left out: nothing may be chosen by them."""
    shares = [row.share for row in rows if not row.held_out]
    return fsum(shares) / len(shares)


def best_scale(sweep: dict[float, list[Row]]) -> float:
    """The guidance scale with the highest mean over tasks; of equal ones the smallest."""
    return max(sorted(sweep), key=lambda scale: mean_share(sweep[scale]))
