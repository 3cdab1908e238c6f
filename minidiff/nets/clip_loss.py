"""How far is a picture from a sentence? CLIP's answer as a loss, so that a walk can be steered by words it was not trained on.

A picture can please CLIP without showing anything: its gradient finds patterns of a few grey levels that move the answer
anywhere. What looks the same to us must therefore look the same to it, so it is shown many cuts of the picture, each
shifted, enlarged, turned and perhaps mirrored by chance, and only what pleases in nearly all of them counts.
"""

from collections.abc import Callable
from math import pi

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, interpolate, normalize

TURN = 5 * pi / 180                                                # a cut is turned by at most this


def clip_loss(
    clip: nn.Module,                            # CLIP, or an OpenCLIP: encode_image(images in [-1, 1]), size, width
    text_features: Tensor,                      # (D,) one text for all images, or (B, D) one for each
    n_cuts: int = 16,                           # of every image; 0: the whole image, as it is
    smallest: float = 0.5,                      # side of a cut, as a share of the image's: from this to 1
    flip: bool = True,                          # mirror half of the cuts; False where left and right are told apart
    generator: torch.Generator | None = None,
) -> Callable[[Tensor], Tensor]:
    """loss(images) for images (B, 3, H, W) in [-1, 1]: squared angle to the text, mean over cuts, summed over the images.

        2 * arcsin(|a - b| / 2)^2 = angle^2 / 2                   a, b: the two vectors, of length 1 (Crowson et al. 2022)

    Raises ValueError for text features of another width than clip's, one text for each of another number of images,
    n_cuts < 0 and smallest outside (0, 1].
    """
    if text_features.ndim not in (1, 2) or text_features.shape[-1] != clip.width:
        raise ValueError(f"text features are {tuple(text_features.shape)}, and this CLIP's vectors have {clip.width} numbers: "
                         "encode the texts with the same CLIP, (D,) or (B, D)")
    if n_cuts < 0 or not 0 < smallest <= 1:
        raise ValueError(f"{n_cuts} cuts of {smallest} of a side and more: give 0 cuts or more, of a share above 0 and up to 1")
    wanted = normalize(text_features.detach(), dim=-1).view(-1, 1, clip.width)

    def loss(images: Tensor) -> Tensor:
        if len(wanted) not in (1, len(images)):
            raise ValueError(f"{len(wanted)} texts for {len(images)} images: give one for all, or one for each")
        if n_cuts:
            views = cuts(images, n_cuts, clip.size, smallest, flip, generator)
        else:
            views = interpolate(images, (clip.size, clip.size), mode="bilinear", antialias=True)
        seen = clip.encode_image(views).view(len(images), -1, clip.width)
        return 2 * ((seen - wanted.to(seen)).norm(dim=2) / 2).arcsin().square().mean(1).sum()

    return loss


def cuts(images: Tensor, n: int, size: int, smallest: float = 0.5, flip: bool = True,
         generator: torch.Generator | None = None) -> Tensor:  # fmt: skip
    """n random square cuts of each image (B, C, H, W), resized: (B * n, C, size, size), those of an image together.

    A cut is one affine map from its frame, [-1, 1] x [-1, 1], into the image's: enlarged by the share of the side, turned,
    mirrored, and shifted no further than the frame allows. What lies outside looks like the nearest edge.
    """
    def draw() -> Tensor:
        return torch.rand(len(images) * n, generator=generator, device=generator.device if generator else images.device)

    side, angle = smallest + (1 - smallest) * draw(), TURN * (2 * draw() - 1)
    mirror = torch.where(draw() < 0.5, -1.0, 1.0) if flip else torch.ones_like(side)
    across, down = (side * angle.cos(), side * angle.sin())
    x, y = ((1 - side) * (2 * draw() - 1) for _ in range(2))
    affine = torch.stack([mirror * across, -down, x, mirror * down, across, y], dim=1).view(-1, 2, 3).to(images)
    grid = affine_grid(affine, [len(affine), images.shape[1], size, size], align_corners=False)
    return grid_sample(images.repeat_interleave(n, 0), grid, padding_mode="border", align_corners=False)
