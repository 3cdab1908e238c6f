"""A critic of patches: for each small square of a picture, does it look real or decoded?

A mean error forgives a blur that is right on average. A second network that learns to tell copies from pictures does not
(Isola et al. 2017, section 3.2.2; Esser et al. 2021 have their decoders judged by one).
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from .attention import group_norm


class Discriminator(nn.Sequential):
    """critic(images) -> (B, 1, h, w), above 0 where a patch looks real: (B, 3, H, W) in [-1, 1], h = H / 2^halvings - 2.

    4x4 convolutions, with GroupNorm where the paper has BatchNorm. An answer sees 9 * 2^halvings - 2 pixels a
    side: 34 with two halvings, and 70 with the paper's three.
    """

    def __init__(self, in_channels: int = 3, width: int = 32, halvings: int = 2):
        config = {"in_channels": in_channels, "width": width, "halvings": halvings}
        layers = [nn.Conv2d(in_channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, halvings + 1):  # the last keeps the size
            stride = 2 if i < halvings else 1
            layers += [nn.Conv2d(width, 2 * width, 4, stride, padding=1), group_norm(2 * width), nn.LeakyReLU(0.2)]
            width *= 2
        super().__init__(*layers, nn.Conv2d(width, 1, 4, padding=1))
        self.config = config


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """What the critic minimises, a scalar: real patches above 1, decoded ones below -1, more is not asked (Lim & Ye 2017)."""
    return (relu(1 - real).mean() + relu(1 + fake).mean()) / 2


def fooled(critic: nn.Module, made: Tensor) -> Tensor:
    """What a decoder minimises to be taken for real, a scalar: -critic(made). It trains who made them, not the critic."""
    fixed = {name: parameter.detach() for name, parameter in critic.named_parameters()}
    return -torch.func.functional_call(critic, fixed, (made,)).mean()
