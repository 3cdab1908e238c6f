"""How far can the oracle be trusted? Scenes whose truth is known, damaged step by step, and shapes that are none.

A reading belongs to the true object whose centre is nearest, within its radius. Of an attribute, recall is the share of
true objects of which it was read and read right; precision, the share of readings in which it is right. What is no shape
must be refused: halves cut out of shapes, rings, and blobs whose radius wanders by a quarter.
"""

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..data.oracle import read_shapes
from ..data.shapes import BACKGROUNDS, COLOURS, Attributes, Shapes, draw, silhouettes

READ = ("shape", "colour", "size", "position", "background")


@dataclass(frozen=True)
class Row:
    """One kind of damage. precision and recall: of each of READ, and "object", all of them but position at once."""

    damage: str
    precision: dict[str, float]
    recall: dict[str, float]
    count: float  # share of images with as many readings as objects
    refused: dict[str, float]  # share of images of each kind of no shape in which nothing was read


def blur(images: Tensor, sigma: float) -> Tensor:
    """A Gaussian of standard deviation sigma, in pixels."""
    r = max(1, math.ceil(3 * sigma))
    kernel = torch.exp(-torch.arange(-r, r + 1).float().square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1).repeat(3, 1, 1, 1)
    wide = F.pad(images, (r, r, r, r), mode="replicate")
    return F.conv2d(F.conv2d(wide, kernel, groups=3), kernel.mT, groups=3)


def noise(images: Tensor, std: float) -> Tensor:
    """Gaussian noise, always the same, clamped as a saved picture is."""
    return (images + std * torch.randn(images.shape, generator=Generator().manual_seed(0))).clamp(-1, 1)


def jpeg(images: Tensor, quality: int) -> Tensor:
    """There and back through a JPEG file."""
    import numpy as np
    from PIL import Image

    out = []
    for pixels in ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        out.append(torch.from_numpy(np.array(Image.open(file))))
    return torch.stack(out).permute(0, 3, 1, 2) / 127.5 - 1


def half_size(images: Tensor) -> Tensor:
    """Half as many pixels each way, enlarged again."""
    return F.interpolate(F.avg_pool2d(images, 2), scale_factor=2, mode="bilinear", align_corners=False)


def damages(size: int = 64) -> dict[str, Callable[[Tensor], Tensor]]:
    """By name. Blurs are in pixels of a frame of 64, whatever the size."""
    blurs = {f"blur {s}": partial(blur, sigma=s * size / 64) for s in (0.6, 1.2, 1.8)}
    noises = {f"noise {s}": partial(noise, std=s) for s in (0.1, 0.2, 0.3)}
    jpegs = {f"JPEG {q}": partial(jpeg, quality=q) for q in (90, 75, 50)}
    return {"clean": lambda images: images, **blurs, **noises, **jpegs, "half size": half_size}


def no_shapes(n: int, size: int, seed: int = 0) -> dict[str, Tensor]:
    """Name -> images (n, 3, size, size) in [-1, 1] without a shape in them, in the colours and on the grounds of scenes."""
    scenes = Shapes(n, size, seed)
    things = [scenes.attributes(i)[0] for i in range(n)]
    at = (torch.arange(size) + 0.5) / size
    cx, cy, r = (torch.tensor([getattr(a, k) for a in things]).view(-1, 1, 1) for k in ("x", "y", "radius"))
    x, y = at - cx, at.view(-1, 1) - cy                                       # (n, 1, size), (n, size, 1)
    whole, generator = silhouettes(things, size), Generator().manual_seed(seed)
    angle, outline = torch.atan2(y, x), torch.ones(n, size, size)
    for k in range(2, 6):
        much, phase = torch.randn(n, 1, 1, generator=generator), torch.rand(n, 1, 1, generator=generator)
        outline = outline + 0.25 * much / k**0.5 * torch.cos(k * angle + 2 * math.pi * phase)
    covers = {"left halves": whole * (x < 0), "top halves": whole * (y < 0), "bottom halves": whole * (y > 0),
              "slanted halves": whole * (x > y), "rings": whole - silhouettes(things, size, grow=0.55),
              "blobs": ((outline * r - (x * x + y * y).sqrt()) * size + 0.5).clamp(0, 1)}  # fmt: skip
    return {name: _paint(cover, things) for name, cover in covers.items()}


def calibrate(n: int = 300, size: int = 64, seed: int = 0, rebuild: Callable | None = None) -> Iterator[Row]:
    """A Row for every damage. n scenes of one object and of two, of which a third overlap, and n of each kind of no shape.

    rebuild: images (B, 3, size, size) in [-1, 1] -> the same through an autoencoder, one damage more. Raises ValueError for
    n < 1 and an odd or too small size.
    """
    if n < 1 or size < 16 or size % 2:
        raise ValueError(f"{n} scenes of {size} pixels: give one or more, of an even size of 16 or more")
    scenes = Shapes(n, size, seed, objects=(1, 2))
    truth = [scenes.attributes(i) for i in range(n)]
    images = torch.cat([draw(truth[k : k + 64], size)[0] for k in range(0, n, 64)]) / 127.5 - 1
    wrong = no_shapes(n, size, seed)
    extra = {} if rebuild is None else {"autoencoder": rebuild}
    for name, damage in (damages(size) | extra).items():
        readings = read_shapes(damage(images))
        refused = {kind: sum(not r for r in read_shapes(damage(x))) / n for kind, x in wrong.items()}
        yield Row(name, *marks(readings, truth), refused)


def marks(readings: list[tuple[Attributes, ...]], truth: list[tuple[Attributes, ...]]) -> tuple[dict, dict, float]:
    """Precision and recall of each of READ and of "object", and the share of right counts."""
    right = dict.fromkeys((*READ, "object"), 0)
    for found, there in zip(readings, truth, strict=True):
        free = list(there)
        for a in sorted(found, key=lambda a: -a.confidence):
            b = min(free, key=lambda b: math.hypot(a.x - b.x, a.y - b.y), default=None)
            if b is not None and math.hypot(a.x - b.x, a.y - b.y) < b.radius:
                free.remove(b)
                same = {k: getattr(a, k) == getattr(b, k) for k in READ}
                for k, yes in (same | {"object": all(same[k] for k in READ if k != "position")}).items():
                    right[k] += yes
    read, real = max(1, sum(map(len, readings))), sum(map(len, truth))
    count = sum(len(r) == len(t) for r, t in zip(readings, truth, strict=True)) / len(truth)
    return {k: v / read for k, v in right.items()}, {k: v / real for k, v in right.items()}, count


def table(rows: list[Row]) -> str:
    """Markdown: recall of each attribute, precision of the whole object, right counts, and refusals, in %."""
    head = ["damage", *READ, "object", "precision", "count", *rows[0].refused]
    lines = [head, ["---", *["--:"] * (len(head) - 1)]]
    for row in rows:
        figures = [*row.recall.values(), row.precision["object"], row.count, *row.refused.values()]
        lines.append([row.damage, *(f"{100 * figure:.1f}" for figure in figures)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _paint(cover: Tensor, things: list[Attributes]) -> Tensor:
    edges = torch.tensor([BACKGROUNDS[a.background] for a in things])[..., None, None]    # (n, 2, 3, 1, 1)
    down = torch.linspace(0, 1, cover.shape[-1]).view(1, 1, -1, 1)
    ground = torch.lerp(edges[:, 0], edges[:, 1], down)
    colour = torch.tensor([COLOURS[a.colour] for a in things])[..., None, None]
    return torch.lerp(ground, colour, cover.unsqueeze(1)) * 2 - 1
