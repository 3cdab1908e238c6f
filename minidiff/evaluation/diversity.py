"""How varied are the images of one prompt? Guidance buys obedience, and this is what it pays with.

"a star" leaves open which colour, size, background and place. What is drawn where nothing was said is measured twice:

    facts       without any network: the entropy of each open fact as the oracle reads it, 0 if it is always the same, 1 if
                all its values come equally often; the mean over facts and prompts. Only of images in which one object, of
                whatever shape, can be read: `read` of n.
    distance    1 - cosine, the mean over pairs of images of one prompt, of features of length 1. Broken images are far from
                one another too: where fewer can be read, this one is flattered.

Neither has a scale of its own, so real scenes, as many, are measured alike: `real_images`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from math import log
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..data.captions import imagine
from ..data.oracle import read_shapes
from ..data.shapes import BACKGROUNDS, COLOURS, SHAPES, SIZES, draw as draw_scenes

OPEN = {"colour": len(COLOURS), "size": len(SIZES), "background": len(BACKGROUNDS), "position": 9}  # and how many values
PROMPTS = tuple(f"a {shape}" for shape in SHAPES)


class Diversity(NamedTuple):
    """See above. None where there is nothing to say: no features were given, or no prompt has two images that can be read."""

    facts: float | None
    distance: float | None
    read: int
    n: int
    entropies: dict[str, float]  # of each of OPEN


def diversity(images: Iterable[Tensor], each: int, look: Callable[[Tensor], Tensor] | None = None) -> Diversity:
    """Of batches (B, 3, H, W) that hold `each` images of one prompt, then as many of the next, and so on.

    look: images -> their features (B, D). Raises ValueError for each < 2: one image does not vary.
    """
    if each < 2:
        raise ValueError(f"each = {each}: variety is seen in 2 images of a prompt, or more")
    readings, seen = [], []
    for batch in images:
        readings += read_shapes(batch)
        seen += [] if look is None else [look(batch)]
    alone = [[reading[0] for reading in readings[k : k + each] if len(reading) == 1] for k in range(0, len(readings), each)]
    varied = [some for some in alone if len(some) > 1]
    entropies = {fact: fmean(entropy([getattr(a, fact) for a in some], options) for some in varied)
                 for fact, options in OPEN.items()} if varied else {}  # fmt: skip
    apart = fmean(mean_distance(part) for part in torch.cat(seen).split(each)) if seen else None
    return Diversity(fmean(entropies.values()) if varied else None, apart, sum(map(len, alone)), len(readings), entropies)


def real_images(each: int, size: int, seed: int) -> Iterable[Tensor]:
    """What `diversity` takes, of real scenes: `each` of one star, and so on, as training draws them."""
    random = np.random.default_rng(seed)
    for shape in SHAPES:
        scenes = []
        while len(scenes) < each:
            scene = imagine("one object", random)
            scenes += [scene] if scene[0].shape == shape else []
        yield draw_scenes(scenes, size)[0] / 127.5 - 1


def entropy(values: Sequence, options: int) -> float:
    """Of what was drawn from so many options: 0 if always the same, 1 if all come equally often.

        (-sum_v p_v log p_v + (m - 1) / 2n) / log(options),    p_v = n_v / n

    for m different values among n. Few draws look less varied than their source; the second term (Miller 1955) makes up
    for that, to first order.
    """
    counts, n = Counter(values).values(), len(values)
    nats = -sum(k / n * log(k / n) for k in counts) + (len(counts) - 1) / (2 * n)
    return min(nats / log(options), 1.0)


def mean_distance(features: Tensor) -> float:
    """1 - cosine of two different rows of (K, D), the mean over pairs. Of rows of length 1 the sum over all is |sum f|^2."""
    f, n = normalize(features.double(), dim=1), len(features)
    return (1 - (f.sum(0).square().sum() - n) / (n * (n - 1))).item()
