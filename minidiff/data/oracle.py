"""Read the objects back out of an image's pixels: the judge of every generated scene, without a network in it.

Five steps, each a closed formula. (1) The background is the plane in (x, y) that fits the image's border. (2) Every
pixel is a mix of the background and one palette colour: the colour that explains it with the least residual is its
label, the mix its coverage; so an anti-aliased edge between red and white is half red, never pink. (3) Neighbours of
one label form a blob. (4) For each silhouette, the blob's area gives the radius and its centroid the centre; what
another object hides is filled in with the current guess, and both are measured again. (5) The silhouette whose outline
then lies nearest is the shape. Confidence says how near outline, colour, size and background are to the renderer's.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .render import coverage
from .shapes import BACKGROUNDS, COLOURS, SHAPES, SIZES, Attributes, position

SMALLEST = 0.007          # of the frame's area: half of the smallest object, with room for blur
MOST = 6                  # blobs read per image: the largest ones; more can only be noise
NO_SCENE = 0.4            # with less of its border on one plane an image is noise, and nothing in it is tried
GOOD, BAD = 0.03, 0.09    # misfit of an outline, in radii: what blur does, and what makes it another shape
BETWEEN_SIZES = (SIZES["small"][1] + SIZES["large"][0]) / 2


class _Blobs(NamedTuple):
    """N candidate objects of a whole batch."""

    image: Tensor         # (N,) which image of the batch
    colour: Tensor        # (N,) index into COLOURS
    cover: Tensor         # (N, H, W) in [0, 1]: how much of the pixel is this object
    seen: Tensor          # (N, H, W) 0 where another object may hide this one
    residual: Tensor      # (N,) RMS distance in RGB from the palette's colour
    backdrop: Tensor      # (N,) how much of its image's border is the plain or graded background it should be


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
    blobs = _find_blobs(images, background)
    x, y, radius, misfit = (v.tolist() for v in _fit_silhouettes(blobs))
    names = [_background_name(plane) for plane in background]
    readings: list[list[Attributes]] = [[] for _ in images]
    for k, owner in enumerate(blobs.image.tolist()):
        best = min(range(len(SHAPES)), key=misfit[k].__getitem__)
        cx, cy, r = x[k][best], y[k][best], radius[k][best]
        confidence = _confidence(misfit[k][best], float(blobs.residual[k]), r, float(blobs.backdrop[k]))
        if confidence >= min_confidence:
            colour, size = list(COLOURS)[blobs.colour[k]], "small" if r < BETWEEN_SIZES else "large"
            readings[owner].append(Attributes(SHAPES[best], colour, size, position(cx, cy), cx, cy, r, math.nan,
                                              names[owner], confidence))
    return [tuple(sorted(reading, key=lambda a: a.x)) for reading in readings]


def fit_background(images: Tensor, tolerance: float = 0.15) -> Tensor:
    """The plane a + b x + c y per channel that fits the border, (B, 3, H, W). A second fit drops what stood out."""
    size = images.shape[-1]
    axis = torch.linspace(-1, 1, size)
    grid = torch.stack([torch.ones(size, size), axis.expand(size, size), axis.view(-1, 1).expand(size, size)], -1)
    border = torch.ones(size, size, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    basis, pixels = grid[border], images[..., border].transpose(1, 2)         # (P, 3), (B, P, 3)
    weight = torch.ones(pixels.shape[:2])
    for _ in range(2):
        gram = torch.einsum("bp,pi,pj->bij", weight, basis, basis) + 1e-3 * torch.eye(3)
        coefficients = torch.linalg.solve(gram, torch.einsum("bp,pi,bpc->bic", weight, basis, pixels))
        weight = ((pixels - basis @ coefficients).norm(dim=-1) < tolerance).float()
    return torch.einsum("hwi,bic->bchw", grid, coefficients).clamp(0, 1)


def _find_blobs(images: Tensor, background: Tensor) -> _Blobs:
    cover, residual = _unmix(images, background)                              # (B, 8, H, W) each
    smooth = F.avg_pool2d(residual, 3, 1, 1)                                  # a pixel's neighbours share its colour
    label = smooth.argmin(1, keepdim=True)                                    # (B, 1, H, W)
    backdrop = _backdrop(images, background)
    solid = (cover.gather(1, label).squeeze(1) > 0.5) & (backdrop > NO_SCENE).view(-1, 1, 1)
    blob = connected(torch.where(solid, label.squeeze(1) + 1, 0))
    image, root = _largest(blob)
    own = blob[image] == root.view(-1, 1, 1)                                  # (N, H, W)
    colour = label.flatten(1)[image, root - 1]
    others = torch.zeros(len(images), *own.shape[1:]).index_add_(0, image, own.float())[image] - own.float()
    near, hiding = _grow(own.float()), _grow(others)
    seen = 1 - hiding * (1 - own.float())
    alpha = torch.where(own | (near * seen > 0), cover[image, colour], 0.0)
    plateau = F.avg_pool2d(alpha.unsqueeze(1), 2, 1).amax((2, 3)).clamp(min=0.5)
    alpha = (alpha / plateau.unsqueeze(2)).clamp(max=1)                       # a colour a little off still covers fully
    misfit = (residual[image, colour] * own).sum((1, 2)) / own.sum((1, 2)).clamp(min=1)
    return _Blobs(image, colour, alpha, seen, misfit.sqrt(), backdrop[image])


def _backdrop(images: Tensor, background: Tensor, tolerance: float = 0.15) -> Tensor:
    """The share of the border that lies on the fitted plane: (B,). Averaged over neighbours, so grain is forgiven."""
    smooth = F.avg_pool2d(images - background, 3, 1, 1, count_include_pad=False).norm(dim=1) < tolerance
    border = torch.cat([smooth[:, 0], smooth[:, -1], smooth[:, :, 0], smooth[:, :, -1]], 1)
    return border.float().mean(1)


def _unmix(images: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
    """For each palette colour c: the a in [0, 1] that brings background + a (c - background) nearest to the pixel, and
    the squared distance that is left. A colour within 0.1 of the background cannot be told from it: it covers nothing.
    """
    palette = torch.tensor(list(COLOURS.values())).view(1, -1, 3, 1, 1)       # (1, 8, 3, 1, 1)
    towards = palette - background.unsqueeze(1)                               # (B, 8, 3, H, W)
    there = (images - background).unsqueeze(1)
    cover = ((there * towards).sum(2) / towards.square().sum(2).clamp(min=1e-2)).clamp(0, 1)
    return cover, (there - cover.unsqueeze(2) * towards).square().sum(2)


def connected(labels: Tensor) -> Tensor:
    """Number the 4-connected regions of equal label. labels: int (B, H, W), 0 = nothing. A region's number is 1 + its
    largest flat pixel index; 0 stays 0.

    Each round every pixel takes its neighbours' largest number, then the number of the pixel that number names: the
    second half doubles the reach, so even a spiral is done in a few rounds.
    """
    count, height, width = labels.shape
    numbers = torch.where(labels > 0, torch.arange(1, height * width + 1).view(1, height, width), 0)
    beside = labels[:, :, 1:] == labels[:, :, :-1]
    below = labels[:, 1:] == labels[:, :-1]
    while True:
        new = numbers.clone()
        new[:, :, 1:] = torch.maximum(new[:, :, 1:], numbers[:, :, :-1] * beside)
        new[:, :, :-1] = torch.maximum(new[:, :, :-1], numbers[:, :, 1:] * beside)
        new[:, 1:] = torch.maximum(new[:, 1:], numbers[:, :-1] * below)
        new[:, :-1] = torch.maximum(new[:, :-1], numbers[:, 1:] * below)
        hop = F.pad(new.view(count, -1), (1, 0))                              # number 0 names no pixel
        new = hop.gather(1, new.view(count, -1)).view_as(new)
        if torch.equal(new, numbers):
            return numbers
        numbers = new


def _largest(blob: Tensor) -> tuple[Tensor, Tensor]:
    """Which images hold a blob worth reading, and its number: the MOST largest of each image."""
    numbers, pixels = blob.flatten(1), blob[0].numel()
    area = torch.zeros(len(blob), pixels + 1).scatter_add_(1, numbers, torch.ones(numbers.shape))
    area[:, 0] = 0
    top = area.topk(MOST, dim=1)
    image, rank = torch.nonzero(top.values >= max(3, SMALLEST * pixels), as_tuple=True)
    return image, top.indices[image, rank]


def _fit_silhouettes(blobs: _Blobs, rounds: int = 10) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, y, radius of every silhouette laid over every blob, and its misfit there: (N, 6) each.

    The misfit is the area between the two outlines over 2 pi radius squared: how far the outline is off, on average,
    in radii. Differences are first averaged over 3 x 3 pixels: those of blur and noise cancel, a wrong edge stays.
    """
    seen = blobs.seen.unsqueeze(1)
    cover = blobs.cover.unsqueeze(1).expand(-1, len(SHAPES), -1, -1)          # (N, 6, H, W)
    places, guess = _lay(cover)
    misfit = _misfit(cover, guess, seen, places[2])
    retry = torch.nonzero(((blobs.seen < 1).flatten(1).any(1)) & (misfit.amin(1) > GOOD)).squeeze(1)
    for _ in range(rounds if len(retry) else 0):                              # only what something may hide needs them
        filled = torch.lerp(guess[retry], cover[retry], seen[retry])
        places[:, retry], guess[retry] = _lay(filled)
    misfit[retry] = _misfit(cover[retry], guess[retry], seen[retry], places[2, retry])
    return *places, misfit


def _misfit(cover: Tensor, guess: Tensor, seen: Tensor, radius: Tensor) -> Tensor:
    wrong = F.avg_pool2d((cover - guess) * seen, 3, 1, 1).abs().sum((2, 3))
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


def _confidence(misfit: float, residual: float, radius: float, backdrop: float) -> float:
    """1 for what the renderer draws, 0.5 where a person would start to doubt, 0 for something else altogether."""
    outline = (BAD - misfit) / (BAD - GOOD)
    colour = (0.35 - residual) / 0.2                              # the nearest two palette colours are 0.33 apart
    small, large = (radius / SIZES["small"][0] - 0.7) / 0.2, (1.5 - radius / SIZES["large"][1]) / 0.3
    return math.prod(min(max(part, 0.0), 1.0) for part in (outline, colour, small, large, backdrop / 0.8))


def _background_name(plane: Tensor) -> str:
    """The nearest of BACKGROUNDS by its top and bottom edge. plane: (3, H, W)."""
    edges = torch.stack([plane[:, 0].mean(1), plane[:, -1].mean(1)])          # (2, 3)
    return min(BACKGROUNDS, key=lambda name: float((edges - torch.tensor(BACKGROUNDS[name])).norm()))


def _grow(mask: Tensor) -> Tensor:
    return F.max_pool2d(mask.unsqueeze(1), 3, 1, 1).squeeze(1)


def _check(image: Tensor) -> None:
    if image.dim() not in (3, 4) or image.shape[-3] != 3 or image.shape[-1] != image.shape[-2] or image.shape[-1] < 8:
        raise ValueError(f"image is {tuple(image.shape)}: give (3, H, H) or (B, 3, H, H) with H of 8 or more")
    if not torch.isfinite(image).all():
        raise ValueError("image holds nan or inf: the sample diverged before it could be read")
