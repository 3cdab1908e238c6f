"""Read the objects back out of an image's pixels: the judge of every generated scene, without a network in it.

`blobs.py` finds what may be an object. Here every silhouette is laid over every candidate: the blob's area gives the radius
and its centroid the centre. What another object hides is first filled in with the current guess, then the guess is moved
until what is in sight fits best, by Gauss and Newton's least squares. The silhouette whose outline then lies nearest is
the shape. Confidence says how near outline, colour, size and background are to the renderer's.

An outline may be off by 5 % of the radius at 32 x 32 pixels and 4 % at 64 x 64 until confidence is one half: that is a quarter
of a pixel or a third, which no picture of that size tells from blur. A rounder blob than that is a circle.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .blobs import Blobs, find_blobs, fit_background, mean
from .render import coverage
from .shapes import BACKGROUNDS, COLOURS, SHAPES, SIZES, Attributes, position

BETWEEN_SIZES = (SIZES["small"][1] + SIZES["large"][0]) / 2
FITS = 0.015              # misfit, in radii: a blob that others touch and that fits so well is not hidden
OCCAM = 0.05              # misfit that a silhouette must save to be taken for one which is all hidden but a sliver


class _Found(NamedTuple):
    """The silhouette that fits each of N blobs best."""

    shape: Tensor         # (N,) index into SHAPES
    places: Tensor        # (3, N): x, y, radius
    misfit: Tensor        # (N,) how far its outline is off, on average, in radii
    visible: Tensor       # (N,) how much of the silhouette's area bears the blob's label


def read_shapes(image: Tensor, min_confidence: float = 0.5):
    """The objects in a square image (3, H, H) in [-1, 1]: a tuple of Attributes, left to right; () if there is none.

    A batch (B, 3, H, H) gives a list of B tuples, and costs much less per image. `confidence` is in [0, 1]; whatever
    falls below min_confidence is left out (0 keeps everything tried). depth is nan: one image does not tell it. Objects
    of one colour that touch are one blob, and are rejected as such.
    Raises ValueError for another shape of tensor, sides below 8 and values that are not finite.
    """
    _check(image)
    batch = (image.detach().to("cpu", torch.float32).reshape(-1, *image.shape[-3:]).clamp(-1, 1) + 1) / 2
    readings = [reading for chunk in batch.split(64) for reading in _read(chunk, min_confidence)]
    return readings[0] if image.dim() == 3 else readings


def matches(image: Tensor, shape: str, colour: str, min_confidence: float = 0.5):
    """Does the image (3, H, H) show such an object? bool; for a batch (B, 3, H, H) a bool tensor (B,)."""
    if shape not in SHAPES or colour not in COLOURS:
        raise ValueError(f"no {colour!r} {shape!r}: colours are {', '.join(COLOURS)}; shapes are {', '.join(SHAPES)}")
    readings = read_shapes(image[None] if image.dim() == 3 else image, min_confidence)
    found = torch.tensor([any((a.shape, a.colour) == (shape, colour) for a in reading) for reading in readings])
    return bool(found[0]) if image.dim() == 3 else found


def _read(images: Tensor, min_confidence: float) -> list[tuple[Attributes, ...]]:
    background = fit_background(images)
    blobs = find_blobs(images, background)
    found = _fit_silhouettes(blobs)
    names = [_background_name(plane) for plane in background]
    confidences = _confidence(blobs, found).tolist()
    readings: list[list[Attributes]] = [[] for _ in images]
    taken = torch.zeros_like(images[:, 0], dtype=torch.bool)
    for k in blobs.own.sum((1, 2)).argsort(descending=True, stable=True).tolist():       # a whole before its pieces
        owner, confidence = int(blobs.image[k]), confidences[k]
        if confidence >= min_confidence and not (taken[owner] & blobs.own[k]).any():
            taken[owner] |= blobs.own[k]
            x, y, radius = found.places[:, k].tolist()
            colour, size = list(COLOURS)[blobs.colour[k]], "small" if radius < BETWEEN_SIZES else "large"
            readings[owner].append(Attributes(SHAPES[found.shape[k]], colour, size, position(x, y), x, y, radius, math.nan,
                                              names[owner], confidence))
    return [tuple(sorted(reading, key=lambda a: a.x)) for reading in readings]


def _fit_silhouettes(blobs: Blobs, rounds: int = 6) -> _Found:
    cover = blobs.cover.unsqueeze(1).expand(-1, len(SHAPES), -1, -1)          # (N, 6, H, W)
    seen = blobs.seen.unsqueeze(1)
    places, guess = _lay(cover)
    misfit = _misfit(cover, guess, seen, places[2])
    hid = torch.nonzero((blobs.seen < 1).flatten(1).any(1) & (misfit.amin(1) > FITS)).squeeze(1)
    if len(hid):
        some, sight, p, g = cover[hid], seen[hid], places[:, hid], guess[hid]
        for _ in range(rounds):
            p, g = _lay(torch.lerp(g, some, sight))
        for _ in range(rounds):
            p, g = _newton(p, g, some, sight)
        places[:, hid], guess[hid], misfit[hid] = p, g, _misfit(some, g, sight, p[2])
    visible = (guess * blobs.own.unsqueeze(1)).sum((2, 3)) / guess.sum((2, 3)).clamp(min=1e-6)
    shape = (misfit + OCCAM * (1 - visible)).argmin(1)
    each = torch.arange(len(shape))
    places, misfit = places[:, each, shape], misfit[each, shape]
    noise = blobs.grain * blobs.own.sum((1, 2)) / (2 * math.pi * (places[2] * cover.shape[-1]) ** 2)
    return _Found(shape, places, misfit - torch.minimum(noise, misfit / 2), visible[each, shape])


def _newton(places: Tensor, guess: Tensor, cover: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """One Gauss-Newton step of (x, y, radius) towards the least squares of what is seen.

    guess(p) = S((p - c) / r), so its derivative in c is -grad, and in r it is -grad . (p - c) / r.
    """
    size = cover.shape[-1]
    at = (torch.arange(size) + 0.5) / size
    smooth = mean(guess)
    down, right = torch.gradient(smooth, spacing=1 / size, dim=(2, 3))
    x, y, radius = (v[..., None, None] for v in places)
    outward = (right * (at - x) + down * (at.view(-1, 1) - y)) / radius
    slopes = torch.stack([-right, -down, -outward], -1).flatten(2, 3)         # (N, 6, H W, 3)
    weight = seen.expand_as(cover).flatten(2).unsqueeze(-1)
    left = (mean(cover * seen + guess * (1 - seen)) - smooth).flatten(2).unsqueeze(-1)
    gram = slopes.mT @ (weight * slopes)
    damped = gram + 0.02 * torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1)) + 1e-3 * torch.eye(3)
    step = torch.linalg.solve(damped, slopes.mT @ (weight * left)).squeeze(-1).clamp(-2 / 32, 2 / 32)
    places = places + step.movedim(-1, 0)
    places = torch.stack([places[0].clamp(0, 1), places[1].clamp(0, 1), places[2].clamp(1 / size, 0.6)])
    return places, coverage(SHAPES * len(cover), *places.flatten(1), size).view(cover.shape)


def _misfit(cover: Tensor, guess: Tensor, seen: Tensor, radius: Tensor) -> Tensor:
    """The area between two outlines over 2 pi radius squared: how far they are apart, on average, in radii. (N, 6).

    Differences are first averaged over neighbours: those of blur and noise cancel, a wrong edge stays.
    """
    wrong = mean((cover - guess) * seen).abs().sum((2, 3))
    in_sight = (guess * seen).sum((2, 3)) / guess.sum((2, 3)).clamp(min=1e-6)
    return wrong / (2 * math.pi * (radius * cover.shape[-1]) ** 2 * in_sight.clamp(min=0.2))


def _lay(cover: Tensor) -> tuple[Tensor, Tensor]:
    """Each silhouette where `_place` puts it: places (3, N, 6) and what it covers there (N, 6, H, W)."""
    places = torch.stack(_place(cover))
    names = SHAPES * len(cover)
    return places, coverage(names, *places.flatten(1), cover.shape[-1]).view(cover.shape)


def _place(cover: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centre and radius at which each silhouette has the blob's area and centroid. cover: (N, 6, H, W)."""
    area_of, drop_of = _moments()
    size = cover.shape[-1]
    centres = (torch.arange(size) + 0.5) / size
    mass = cover.sum((2, 3)).clamp(min=1e-6)
    radius = (mass / size**2 / area_of).sqrt().clamp(min=1 / size, max=1)
    x = (cover.sum(2) * centres).sum(-1) / mass
    y = (cover.sum(3) * centres).sum(-1) / mass
    return x, y - drop_of * radius, radius


@lru_cache(maxsize=1)
def _moments() -> tuple[Tensor, Tensor]:
    """Area of each silhouette at radius 1, and how far below its box's centre its centroid lies: (6,) each."""
    half = torch.full((len(SHAPES),), 0.5)
    cover = coverage(SHAPES, half, half, half * 0.9, 256)                     # radius 0.45 of the frame
    centres = (torch.arange(256) + 0.5) / 256
    mass = cover.sum((1, 2))
    return mass / 256**2 / 0.45**2, ((cover.sum(2) * centres).sum(1) / mass - 0.5) / 0.45


def _confidence(blobs: Blobs, found: _Found) -> Tensor:
    """1 for what the renderer draws, 0.5 where a person would start to doubt, 0 for something else altogether: (N,).

    Twice the pixels tell twice as much: what 32 x 32 must forgive, 64 x 64 need not. Half a large triangle is a triangle
    of radius 0.13 at most, a small one is of 0.14 at least.
    """
    sharp = min(max(blobs.own.shape[-1] / 32 - 1, 0.0), 1.0)                  # 0 at 32 pixels, 1 from 64 on
    good = 0.027 - 0.008 * sharp                                              # misfit, in radii, of what blur does
    least, most = SIZES["small"][0] * (0.8 + 0.15 * sharp), SIZES["large"][1] * (1.35 - 0.23 * sharp)
    radius = found.places[2]
    parts = (
        (3 * good - found.misfit) / (2 * good),
        (0.35 - blobs.residual) / 0.2,                                        # the nearest two palette colours: 0.33 apart
        0.5 + (radius - least) / (0.028 - 0.022 * sharp),
        0.5 + (most - radius) / (0.078 - 0.058 * sharp),
        (found.visible - 0.25) / 0.2,                                         # a sliver fits anything
        blobs.backdrop / 0.8,
    )
    return torch.stack(parts).clamp(0, 1).prod(0)


def _background_name(plane: Tensor) -> str:
    """The nearest of BACKGROUNDS by its top and bottom edge. plane: (3, H, W)."""
    edges = torch.stack([plane[:, 0].mean(1), plane[:, -1].mean(1)])          # (2, 3)
    return min(BACKGROUNDS, key=lambda name: float((edges - torch.tensor(BACKGROUNDS[name])).norm()))


def _check(image: Tensor) -> None:
    if image.dim() not in (3, 4) or image.shape[-3] != 3 or image.shape[-1] != image.shape[-2] or image.shape[-1] < 8:
        raise ValueError(f"image is {tuple(image.shape)}: give (3, H, H) or (B, 3, H, H) with H of 8 or more")
    if not torch.isfinite(image).all():
        raise ValueError("image holds nan or inf: the sample diverged before it could be read")
