"""The pieces a U-Net is stacked from: layers, and stages of layers at one size, going down, at the bottom, going up.

On the way down every layer is called as layer(x, emb, context), whether it uses all three or not.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, silu

from .attention import SpatialTransformer, group_norm, zero

Build = Callable[[], nn.Module]


class GSC(nn.Sequential):
    """GroupNorm, SiLU, 3x3 convolution: (B, in, H, W) -> (B, out, H, W). Nearly every convolution of a U-Net comes so.

    GroupNorm and not BatchNorm: a batch mixes images of different noise levels, whose statistics have nothing in common.
    norm: channels -> module, to have another GroupNorm than the house's.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: Callable = group_norm):
        super().__init__(norm(in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1))


class ResNetBlock(nn.Module):
    """Two GSCs with the embedding added between them, and a way around: (B, in, H, W), (B, E) -> (B, out, H, W).

    The embedding is what tells each layer the noise level and the class: one shared network instead of one per level.
    A VAE knows no noise level: emb_channels=None, and no emb.
    """

    def __init__(self, in_channels: int, out_channels: int, emb_channels: int | None = None, norm: Callable = group_norm):
        super().__init__()
        self.first = GSC(in_channels, out_channels, norm)
        self.emb = nn.Linear(emb_channels, out_channels) if emb_channels else None
        self.second = GSC(out_channels, out_channels, norm)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        zero(self.second[-1])  # starts as the identity

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        h = self.first(x)
        if self.emb:
            h = h + self.emb(silu(emb))[:, :, None, None]
        return self.shortcut(x) + self.second(h)


class DownSample(nn.Module):
    """Halve height and width by a strided 3x3 convolution: (B, C, H, W) -> (B, C, H/2, W/2).

    asymmetric: the border of zeros at right and bottom only, where the VAE and Google's DDPM have it.
    """

    def __init__(self, channels: int, asymmetric: bool = False):
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor, emb: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        return self.conv(pad(x, (0, 1, 0, 1)) if self.asymmetric else x)  # left, right, top, bottom


class UpSample(nn.Module):
    """Double height and width, nearest neighbour then a 3x3 convolution: (B, C, H, W) -> (B, C, 2H, 2W), or to `size`.

    A transposed convolution would leave a checkerboard. size: where halving met an odd number, 15 -> 8, the way back to 15.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        return self.conv(interpolate(x, size or (2 * x.shape[2], 2 * x.shape[3]), mode="nearest"))


class Layer(nn.Module):
    """A ResNetBlock, then attention if the stage has any."""

    def __init__(self, attention: nn.Module | None, *resnet, **options):
        super().__init__()
        self.resnet = ResNetBlock(*resnet, **options)
        self.attention = attention

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None = None) -> Tensor:
        x = self.resnet(x, emb)
        return self.attention(x, context) if self.attention else x


class DownBlock(nn.Module):
    """A stage on the way down: (B, in, H, W), (B, E) -> (B, out, H/2, W/2), and the list of all the maps it made, which
    the way up will want.

    attend: builds the attention after each ResNetBlock, if there is to be any. down: False in the last stage.
    """

    def __init__(self, in_channels: int, out_channels: int, emb_channels: int, layers: int = 2, down: bool = True,
                 attend: Build | None = None, norm: Callable = group_norm, asymmetric: bool = False):  # fmt: skip
        super().__init__()
        self.layers = nn.ModuleList()
        for _ in range(layers):
            self.layers.append(Layer(attend and attend(), in_channels, out_channels, emb_channels, norm))
            in_channels = out_channels
        self.down = DownSample(out_channels, asymmetric) if down else None

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        made = []
        for layer in (*self.layers, *filter(None, [self.down])):
            x = layer(x, emb, context)
            made.append(x)
        return x, made


class CrossAttnDownBlock(DownBlock):
    """A DownBlock that reads the context: a SpatialTransformer (options: `transformer`) after each ResNetBlock."""

    def __init__(self, in_channels: int, out_channels: int, emb_channels: int, context_dim: int, transformer: dict, **options):
        attend = partial(SpatialTransformer, out_channels, context_dim, **transformer)
        super().__init__(in_channels, out_channels, emb_channels, attend=attend, **options)


class MidBlock(nn.Module):
    """The bottom, where the map is smallest: ResNetBlock, attention, ResNetBlock. (B, C, H, W), (B, E) -> (B, C, H, W)"""

    def __init__(self, channels: int, emb_channels: int | None, attend: Build | None = None, norm: Callable = group_norm):
        super().__init__()
        self.layer = Layer(attend and attend(), channels, channels, emb_channels, norm)
        self.resnet = ResNetBlock(channels, channels, emb_channels, norm)

    def forward(self, x: Tensor, emb: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        return self.resnet(self.layer(x, emb, context), emb)


class CrossAttnMidBlock(MidBlock):
    """A MidBlock whose attention is a SpatialTransformer, built with the options `transformer`."""

    def __init__(self, channels: int, emb_channels: int, context_dim: int, transformer: dict, **options):
        super().__init__(channels, emb_channels, partial(SpatialTransformer, channels, context_dim, **transformer), **options)


class UpBlock(nn.Module):
    """A stage on the way up: (B, in, H, W), (B, E) -> (B, out, 2H, 2W), or as large as the map that `skips` then ends with.

    Before each ResNetBlock the last map that is left in `skips` is taken out of that list and laid beside x.
    skip_channels: the widths of the maps it will find there, one for each layer. up: False in the last stage.
    """

    def __init__(self, in_channels: int, skip_channels: list[int], out_channels: int, emb_channels: int, up: bool = True,
                 attend: Build | None = None, norm: Callable = group_norm):  # fmt: skip
        super().__init__()
        self.layers = nn.ModuleList()
        for skip in skip_channels:
            self.layers.append(Layer(attend and attend(), in_channels + skip, out_channels, emb_channels, norm))
            in_channels = out_channels
        self.up = UpSample(out_channels) if up else None

    def forward(self, x: Tensor, skips: list[Tensor], emb: Tensor, context: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(torch.cat([x, skips.pop()], dim=1), emb, context)
        return self.up(x, skips[-1].shape[2:] if skips else None) if self.up else x


class CrossAttnUpBlock(UpBlock):
    """An UpBlock that reads the context: a SpatialTransformer (options: `transformer`) after each ResNetBlock."""

    def __init__(self, in_channels: int, skip_channels: list[int], out_channels: int, emb_channels: int, context_dim: int,
                 transformer: dict, **options):  # fmt: skip
        attend = partial(SpatialTransformer, out_channels, context_dim, **transformer)
        super().__init__(in_channels, skip_channels, out_channels, emb_channels, attend=attend, **options)
