"""Large pictures through a network in pieces that fit into memory, by two ideas.

    image = sliced(vae.decode, z)                                                      # one of the batch at a time
    image = tiled(vae.decode, z)                                                       # overlapping squares
    mean, logvar = tiled(vae.moments, image, tile=512, overlap=128, scale=1 / 8).chunk(2, dim=1)

Both run without gradients: autograd would keep the activations of every piece, which are what does not fit.
"""

from collections.abc import Callable
from itertools import product
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor


@torch.no_grad()
def sliced(fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """fn(x), one image of the batch at a time: (B, ...) -> (B, ...). The same answer, if fn keeps the images apart."""
    return torch.cat([fn(image) for image in x.split(1)])


@torch.no_grad()
def tiled(fn: Callable[[Tensor], Tensor], x: Tensor, tile: int = 64, overlap: int = 16, scale: float = 8) -> Tensor:
    """fn(x) by overlapping tiles, blended linearly into each other: (B, C, H, W) -> (B, C', H * scale, W * scale).

    tile, overlap: pixels of x; neighbours share at least `overlap`. scale: side of fn's answer over side of its input, 8 to
    decode, 1/8 to encode. A VAE is only approximated: its GroupNorms and its attention see a tile, not the picture. An x that
    fits into one tile is fn(x). Raises ValueError for an overlap outside [0, tile), for sides that do not divide by 1/scale,
    and for an fn whose answer has another size.
    """
    unit = max(1, round(1 / scale))  # pixels of x ...
    inner = max(1, round(scale))  # ... that become so many of the answer
    height, width = x.shape[-2:]
    if not 0 <= overlap < tile:
        raise ValueError(f"tiles of {tile} cannot overlap by {overlap}: choose 0 <= overlap < tile, a quarter of it perhaps")
    for name, size in {"tile": tile, "overlap": overlap, "height": height, "width": width}.items():
        if size % unit:
            raise ValueError(f"{name} = {size} does not divide by {unit}, as a scale of 1/{unit} needs: "
                             f"take {ceil(size / unit) * unit}")
    rows, columns = (_windows(size, tile, overlap, unit, inner) for size in (height, width))
    out = None
    for row, column in product(rows, columns):
        made = fn(x[..., row.read, column.read])
        if made.shape[-2:] != (len(row.weight), len(column.weight)):
            raise ValueError(f"a tile of {min(tile, height)}x{min(tile, width)} became {made.shape[-2]}x{made.shape[-1]}, "
                             f"which is not a scale of {scale:g}: give the scale that this network has")
        if out is None:
            out = made.new_zeros(*made.shape[:-2], height // unit * inner, width // unit * inner)
        out[..., row.write, column.write] += made * row.weight.to(made)[:, None] * column.weight.to(made)
    return out


class Window(NamedTuple):
    """One tile along one side of the picture: what it reads of x, what it writes of the answer, and with what weight."""

    read: slice
    write: slice
    weight: Tensor


def _windows(size: int, tile: int, overlap: int, unit: int, inner: int) -> list[Window]:
    """As few tiles as cover `size` with at least `overlap` in common, evenly spread. Their weights add up to 1 everywhere."""
    size, tile, overlap = size // unit, min(size, tile) // unit, overlap // unit
    n = ceil((size - overlap) / (tile - overlap)) if size > tile else 1
    starts = [i * (size - tile) // max(1, n - 1) for i in range(n)]
    up = torch.arange(1.0, tile * inner + 1, dtype=torch.float64)
    weight = torch.minimum(up, up.flip(0)).clamp(max=overlap * inner + 1)  # 1 2 3 ... 3 2 1: up over the overlap, flat, down
    total = torch.zeros(size * inner, dtype=torch.float64)
    writes = [slice(start * inner, (start + tile) * inner) for start in starts]
    for write in writes:
        total[write] += weight
    reads = [slice(start * unit, (start + tile) * unit) for start in starts]
    return [Window(read, write, weight / total[write]) for read, write in zip(reads, writes, strict=True)]
