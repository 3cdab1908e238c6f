"""Silhouettes as signed distances, and the one rule that turns a distance into an anti-aliased pixel.

A silhouette is a function (x, y) -> distance to its outline, negative inside, in a frame where the shape fills the box
[-1, 1] x [-1, 1] (x right, y DOWN, as in images). A pixel is covered by clamp(1/2 - distance in pixels, 0, 1): crisp at
any resolution, smooth at the edge. Only + - * / sqrt, min and max are used: IEEE 754 fixes each to the last bit, so a
scene drawn alone and the same scene drawn in a batch of a thousand are the same bytes.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def circle(x: Tensor, y: Tensor) -> Tensor:
    """Distance to the centre, less the radius."""
    return (x * x + y * y).sqrt() - 1


def square(x: Tensor, y: Tensor, half: float = 0.86) -> Tensor:
    """Outside, the distance to the nearest side or corner; inside, to the nearest side."""
    dx, dy = x.abs() - half, y.abs() - half                       # half < 1: beside a circle it should not look bigger
    outside = (dx.clamp(min=0).square() + dy.clamp(min=0).square()).sqrt()
    return outside + torch.maximum(dx, dy).clamp(max=0)


def heart(x: Tensor, y: Tensor, scale: float = 1.62) -> Tensor:
    """Two half discs on the upper sides of a square standing on its corner (Inigo Quilez's exact distance)."""
    x, y = (x / scale).abs(), 0.552 - y / scale                   # the corner at (0, 0), y up, 1.104 high
    arcs = ((x - 0.25).square() + (y - 0.75).square()).sqrt() - math.sqrt(2) / 4
    slant = 0.5 * (x + y).clamp(min=0)
    to_notch = x.square() + (y - 1).square()
    to_side = (x - slant).square() + (y - slant).square()
    sides = torch.minimum(to_notch, to_side).sqrt() * torch.sign(x - y)
    return torch.where(x + y > 1, arcs, sides) * scale


def polygon(x: Tensor, y: Tensor, corners: Sequence[tuple[float, float]]) -> Tensor:
    """Distance to the nearest edge; the sign flips each time a ray to the right crosses one (the even-odd rule)."""
    nearest, inside = torch.full_like(x + y, torch.inf), torch.zeros_like(x + y, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
        ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
        along = ((px * ex + py * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        nearest = torch.minimum(nearest, (px - along * ex).square() + (py - along * ey).square())
        straddles = (y < ay) != (y < by)
        inside = inside ^ (straddles & ((px * ey < ex * py) == (ey > 0)))
    return torch.where(inside, -nearest.sqrt(), nearest.sqrt())


def _star(points: int = 5, inner: float = 0.46, outer: float = 1.05) -> list[tuple[float, float]]:
    drop = outer * (1 - math.cos(math.pi / points)) / 2           # a star's box is not centred on its hub
    spokes = [(math.pi * k / points, outer * (inner if k % 2 else 1)) for k in range(2 * points)]
    return [(r * math.sin(a), drop - r * math.cos(a)) for a, r in spokes]


def _cross(arm: float = 0.34, reach: float = 0.97) -> list[tuple[float, float]]:
    quarter = [(arm, -reach), (arm, -arm), (reach, -arm)]
    return [turned for k in range(4) for turned in [_quarter_turns(c, k) for c in quarter]]


def _quarter_turns(point: tuple[float, float], k: int) -> tuple[float, float]:
    x, y = point
    return [(x, y), (-y, x), (-x, -y), (y, -x)][k]


TRIANGLE = [(0.0, -0.87), (1.0, 0.87), (-1.0, 0.87)]              # equilateral to within half a percent
STAR = _star()
CROSS = _cross()

SILHOUETTES = {
    "circle": circle,
    "square": square,
    "triangle": lambda x, y: polygon(x, y, TRIANGLE),
    "star": lambda x, y: polygon(x, y, STAR),
    "heart": heart,
    "cross": lambda x, y: polygon(x, y, CROSS),
}


def coverage(shapes: Sequence[str], x: Tensor, y: Tensor, radius: Tensor, size: int) -> Tensor:
    """How much of each pixel each shape covers: float (N, size, size) in [0, 1].

    shapes: N names of SILHOUETTES.   x, y, radius: float (N,), as fractions of the frame's side.
    """
    centres = (torch.arange(size, dtype=x.dtype) + 0.5) / size
    out = torch.zeros(len(shapes), size, size, dtype=x.dtype)
    for name in sorted(set(shapes)):
        rows = torch.tensor([i for i, shape in enumerate(shapes) if shape == name])
        cx, cy, r = (v[rows].view(-1, 1, 1) for v in (x, y, radius))
        distance = SILHOUETTES[name]((centres - cx) / r, (centres.view(-1, 1) - cy) / r)     # (n, size, size)
        out[rows] = (0.5 - distance * r * size).clamp(0, 1)
    return out
