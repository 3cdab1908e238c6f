"""From pixels to candidate objects: what lies on the background, of which colour, and what may hide part of it.

(1) The background is the plane in (x, y) that fits the image's border. (2) Every pixel is a mix of the background and one
palette colour: the colour that explains it with the least residual is its label, the mix its coverage; so an anti-aliased
edge between red and white is half red, never pink. (3) Neighbours of one label form a blob. Blobs of one colour which
others join are also tried as one: a star laid over a cross may leave four pieces of it.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .shapes import COLOURS

SMALLEST = 0.007          # of the frame's area: half of the smallest object, with room for blur
MOST = 6                  # blobs read per image: the largest ones; more can only be noise
NO_SCENE = 0.4            # with less of its border on one plane an image is noise, and nothing in it is tried


class Blobs(NamedTuple):
    """N candidate objects of a whole batch."""

    image: Tensor         # (N,) which image of the batch
    colour: Tensor        # (N,) index into COLOURS
    own: Tensor           # (N, H, W) bool: the pixels that bear its label
    cover: Tensor         # (N, H, W) in [0, 1]: how much of the pixel is this object
    seen: Tensor          # (N, H, W) 0 where another object may hide this one
    grain: Tensor         # (N,) what noise alone makes of its colour where nothing is, averaged over neighbours
    residual: Tensor      # (N,) RMS distance in RGB from the palette's colour
    backdrop: Tensor      # (N,) how much of its image's border is the plain or graded background it should be


def find_blobs(images: Tensor, background: Tensor) -> Blobs:
    """What may be an object in images (B, 3, H, W) in [0, 1] on their `fit_background`; an image may well hold none."""
    size = images.shape[-1]
    cover, residual = _unmix(images, background)                              # (B, 8, H, W) each
    label = mean(residual).argmin(1)                                          # (B, H, W): neighbours share a colour
    backdrop = _backdrop(images, background)
    solid = (cover.gather(1, label.unsqueeze(1)).squeeze(1) > 0.5) & (backdrop > NO_SCENE).view(-1, 1, 1)
    image, own = _candidates(solid, label)
    colour = (label[image] * own).flatten(1).amax(1)
    others = solid[image] & (label[image] != colour.view(-1, 1, 1))
    others = grow(-grow(-others.float(), 1), 1)                               # not the hairs of a third colour between two
    whole = own & (cover[image, colour] > 0.9)                                # the rest of a border with others is a mix
    seen = 1 - grow(others, 1 + size // 48) * (1 - whole.float())
    alpha = torch.where(own | (grow(own.float(), reach(size)) * seen > 0), cover[image, colour], 0.0)
    plateau = F.avg_pool2d(alpha.unsqueeze(1), 2, 1).amax((2, 3)).clamp(min=0.5)
    alpha = (alpha / plateau.unsqueeze(2)).clamp(max=1)                       # a colour a little off still covers fully
    misfit = (residual[image, colour] * own).sum((1, 2)) / own.sum((1, 2)).clamp(min=1)
    grain = torch.where(solid, torch.nan, mean(cover).transpose(0, 1)).flatten(2).nanmedian(2).values.T.nan_to_num()
    return Blobs(image, colour, own, alpha, seen, grain[image, colour], misfit.sqrt(), backdrop[image])


def _candidates(solid: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Which image, (N,), and which of its pixels, (N, H, W): every blob, and all blobs of one colour that others join."""
    blob = connected(torch.where(solid, label + 1, 0))
    heap = connected(grow(solid.float(), reach(solid.shape[-1])).int())       # of whatever colours
    kind = torch.where(solid, heap * len(COLOURS) + label, 0)                 # a heap's objects of one colour
    image, number = _largest(blob)
    own = blob[image] == number.view(-1, 1, 1)
    owner, number = _largest(kind)
    union = kind[owner] == number.view(-1, 1, 1)
    first = (blob[owner] * union).flatten(1).amax(1).view(-1, 1, 1)
    split = (union & (blob[owner] != first)).flatten(1).any(1)
    return torch.cat([image, owner[split]]), torch.cat([own, union[split]])


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


def _largest(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Which images hold a region worth reading, and its number: the MOST largest of each image."""
    pixels, numbers = numbers[0].numel(), numbers.flatten(1)
    area = torch.zeros(len(numbers), int(numbers.max()) + MOST + 1).scatter_add_(1, numbers, torch.ones(numbers.shape))
    area[:, 0] = 0
    top = area.topk(MOST, dim=1)
    image, rank = torch.nonzero(top.values >= max(3, SMALLEST * pixels), as_tuple=True)
    return image, top.indices[image, rank]


def reach(size: int) -> int:
    """How far, in pixels, neighbours have a say: 1 up to 63 pixels a side, 2 at 64. The same part of every picture."""
    return max(1, size // 32)


def mean(x: Tensor) -> Tensor:
    """Of each pixel and its neighbours within `reach`. x: (N, C, H, W); zeros beyond the frame."""
    n = reach(x.shape[-1])
    return F.avg_pool2d(x, 2 * n + 1, 1, n)


def grow(mask: Tensor, n: int) -> Tensor:
    """The largest of each pixel and its neighbours within n pixels. mask: (N, H, W)."""
    return F.max_pool2d(mask.unsqueeze(1), 2 * n + 1, 1, n).squeeze(1)
