"""The oracle's idea of a colour as a loss: what a walk must descend for the objects of a picture to be called by a name.

The oracle gives every object the palette's nearest colour. A nearest one has no slope, so here a colour is called by a chance:
every colour of the palette is a Gaussian in RGB, and Bayes' rule says which of them a pixel came from.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .blobs import fit_background
from .shapes import BACKGROUNDS, COLOURS, _background

SPREAD = 0.15             # in RGB: about half of what the nearest two colours are apart


def palette_loss(colour: str, background: str | None = None) -> Callable[[Tensor], Tensor]:
    """loss(images): how far the objects of images (B, 3, H, H) in [-1, 1] are from being called `colour`, one of COLOURS.

        sum over images of    sum_p w_p * -log p(colour | x_p) / sum_p w_p                     nats, of a pixel of an object
        p(k | x_p) = softmax_k(-|x_p - c_k|^2 / (2 SPREAD^2))           x_p and c_k in RGB, [0, 1]
        w_p        = 1 - exp(-|x_p - b_p|^2 / (2 SPREAD^2))             how little the pixel looks like the background, b

    background: one of BACKGROUNDS; None: the plane that fits the border of each image, as the oracle reads it. Which pixels
    are objects, w and b, is held: no gradient passes there, or a walk could please by fading the objects away as well. Where
    there is less than one pixel of objects, sum w counts as 1.

    Raises ValueError for a name that is not of the palette, and for images of another shape.
    """
    if colour not in COLOURS:
        raise ValueError(f'no colour "{colour}" in the palette: choose from {", ".join(COLOURS)}')
    if background is not None and background not in BACKGROUNDS:
        raise ValueError(f'no background "{background}": choose from {", ".join(BACKGROUNDS)}')
    wanted = list(COLOURS).index(colour)

    def loss(images: Tensor) -> Tensor:
        rgb = (images + 1) / 2
        weight = objectness(images, background).flatten(1)                    # (B, H H)
        palette = rgb.new_tensor(list(COLOURS.values()))[:, :, None, None]    # (8, 3, 1, 1)
        closeness = -_squared(rgb.unsqueeze(1) - palette) / (2 * SPREAD**2)   # (B, 8, H, H)
        called = closeness.log_softmax(1)[:, wanted].flatten(1)               # (B, H H)
        return -((weight * called).sum(1) / weight.sum(1).clamp(min=1)).sum()

    return loss


@torch.no_grad()
def objectness(images: Tensor, background: str | None = None) -> Tensor:
    """The w of `palette_loss`: (B, 3, H, H) in [-1, 1] -> (B, H, H), 0 on the background and 1 far from it.

    Raises ValueError for another shape.
    """
    if images.dim() != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise ValueError(f"images are {tuple(images.shape)}: a palette is of (B, 3, H, H)")
    rgb = (images + 1) / 2
    behind = fit_background(rgb.cpu().float()) if background is None else _background(background, images.shape[-1])
    return 1 - (-_squared(rgb - behind.to(rgb)) / (2 * SPREAD**2)).exp()


def _squared(difference: Tensor) -> Tensor:
    """The squared length of each pixel's difference in colour: (..., 3, H, H) -> (..., H, H)."""
    return difference.square().sum(-3)
