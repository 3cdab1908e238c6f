"""The pieces a U-Net is stacked from. Every block is called as block(x, emb, context), whether it uses all three or not."""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, silu

from .attention import SpatialAttention, groups


class GSC(nn.Sequential):
    """GroupNorm, SiLU, 3x3 convolution: (B, in, H, W) -> (B, out, H, W). Nearly every convolution of a U-Net comes so.

    GroupNorm and not BatchNorm: a batch mixes images of different noise levels, whose statistics have nothing in common.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(
            nn.GroupNorm(groups(in_channels), in_channels),
            nn.SiLU(),
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
        )


class ResNetBlock(nn.Module):
    """Two GSCs with the embedding added between them, and a way around: (B, in, H, W), (B, E) -> (B, out, H, W).

    The embedding is what tells each layer the noise level and the class: one shared network instead of one per level.
    """

    def __init__(self, in_channels: int, out_channels: int, emb_channels: int):
        super().__init__()
        self.first = GSC(in_channels, out_channels)
        self.emb = nn.Linear(emb_channels, out_channels)
        self.second = GSC(out_channels, out_channels)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        zero(self.second[-1])  # starts as the identity

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.first(x) + self.emb(silu(emb))[:, :, None, None]
        return self.shortcut(x) + self.second(h)


class Layer(nn.Module):
    """A ResNetBlock, then attention where the stage asks for it."""

    def __init__(self, in_channels: int, out_channels: int, emb_channels: int, attention: SpatialAttention | None):
        super().__init__()
        self.resnet = ResNetBlock(in_channels, out_channels, emb_channels)
        self.attention = attention

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None = None) -> Tensor:
        x = self.resnet(x, emb)
        return self.attention(x, context) if self.attention else x


class DownSample(nn.Module):
    """Halve height and width by a strided 3x3 convolution: (B, C, H, W) -> (B, C, H/2, W/2)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None = None) -> Tensor:
        return self.conv(x)


class UpSample(nn.Module):
    """Double height and width, nearest neighbour then a 3x3 convolution: (B, C, H, W) -> (B, C, 2H, 2W).

    A transposed convolution would leave a checkerboard.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None = None) -> Tensor:
        return self.conv(interpolate(x, scale_factor=2.0, mode="nearest"))


class Join(Layer):
    """A Layer on the way up: first lays the map kept on the way down beside its own, (B, in + skip, H, W) -> (B, out, H, W)."""

    def forward(self, x: Tensor, skip: Tensor, emb: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(torch.cat([x, skip], dim=1), emb, context)


def zero(module: nn.Module) -> nn.Module:
    """The module with all its parameters set to zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
