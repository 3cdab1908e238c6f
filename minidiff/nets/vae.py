"""The autoencoder of Stable Diffusion: pictures to latents of an eighth of their height and width, and back.

Diffusing 64x64 latents instead of 512x512 pixels is what made text-to-image affordable: the VAE takes care of what the eye
hardly sees, and the U-Net has only to learn what the picture is of (Rombach et al. 2022, section 3.1 and appendix G).
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from .attention import SpatialAttention, group_norm
from .blocks import GSC, DownSample, ResNetBlock, UpSample


class Gaussian:
    """What an encoder answers: not a latent but a normal distribution of them, independent in every number of (B, C, h, w).

    mean, logvar: (B, C, h, w). logvar is held to [-30, 20], or one wild number would make the loss infinite; float16 ends at
    exp(11), so take kl() of float32. Raises ValueError if the two differ in shape.
    """

    def __init__(self, mean: Tensor, logvar: Tensor):
        if mean.shape != logvar.shape:
            raise ValueError(f"mean has shape {tuple(mean.shape)}, logvar {tuple(logvar.shape)}: each number needs one of both")
        self.mean, self.logvar = mean, logvar.clamp(-30, 20)

    @property
    def std(self) -> Tensor:
        """The standard deviation, exp(logvar / 2): (B, C, h, w)."""
        return (self.logvar / 2).exp()

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """mean + std * eps, (B, C, h, w): the noise comes from outside, so the gradient passes (Kingma & Welling 2014, eq. 10).

        eps is drawn on the generator's own device: a CPU seed gives the same latent on every machine.
        """
        device = generator.device if generator else self.mean.device
        eps = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype, device=device)
        return self.mean + self.std * eps.to(self.mean.device)

    def kl(self) -> Tensor:
        """How far from the standard normal, (B,) in nats: 1/2 sum(mean^2 + std^2 - 1 - log std^2) over each latent.

        Kingma & Welling 2014, appendix B.
        """
        return 0.5 * (self.mean**2 + self.logvar.exp() - 1 - self.logvar).flatten(1).sum(1)


class VAE(nn.Module):
    """vae.encode(x) -> Gaussian, vae.decode(z) -> image: (B, 3, H, W) in [-1, 1] <-> (B, latent_channels, H/stride, W/stride).

    The raw maps of the paper. `vae.scale` and `vae.shift` are numbers it only carries: a pipeline diffuses
    (z - shift) * scale, which has about unit variance, and decodes z / scale + shift. Defaults are Stable Diffusion 1 and 2;
    to train a small one: VAE(channels=(32, 64), groups=None). Wrong shapes raise ValueError before any work is done.
    """

    def __init__(
        self,
        in_channels: int = 3,
        latent_channels: int = 4,  # 16 in SD3
        channels: tuple = (128, 256, 512, 512),  # width of each stage; each is half the height and width of the one before
        layers: int = 2,  # ResNetBlocks per stage of the encoder; one more in the decoder
        groups: int | None = 32,  # of every GroupNorm; None for the house's rule, at least 8 channels each
        attention: bool = True,  # between the two ResNetBlocks at the bottom
        quant_conv: bool = True,  # 1x1 convolutions around the latent, from the time when it was quantized; none in SD3
        scale: float = 0.18215,  # 1 / standard deviation of the latents
        shift: float = 0.0,  # their mean, where a pipeline takes it off
    ):
        super().__init__()
        self.config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        if groups and any(width % groups for width in channels):
            raise ValueError(f"channels {tuple(channels)} do not divide into {groups} groups: choose groups to divide them, "
                             "or groups=None to have them chosen")
        self.scale, self.shift, self.stride = scale, shift, 2 ** (len(channels) - 1)
        norm = partial(group_norm, groups=groups, eps=1e-6)
        self.encoder = Encoder(in_channels, 2 * latent_channels, channels, layers, norm, attention)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1) if quant_conv else nn.Identity()
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1) if quant_conv else nn.Identity()
        self.decoder = Decoder(latent_channels, in_channels, channels[::-1], layers + 1, norm, attention)

    def encode(self, x: Tensor) -> Gaussian:
        """Where in latent space an image may lie: (B, 3, H, W) in [-1, 1] -> Gaussian of (B, C, H/stride, W/stride).

        Raises ValueError for other channels, and for sides that do not divide by the stride.
        """
        return Gaussian(*self.moments(x).chunk(2, dim=1))

    def moments(self, x: Tensor) -> Tensor:
        """mean and logvar of encode(x) in one tensor, (B, 2C, H/stride, W/stride): what `tiled` can put together."""
        wanted = self.config["in_channels"]
        if x.ndim != 4 or x.shape[1] != wanted:
            raise ValueError(f"images of shape {tuple(x.shape)}: this VAE takes (B, {wanted}, H, W) in [-1, 1]")
        height, width = (-(-side // self.stride) * self.stride for side in x.shape[2:])
        if x.shape[2:] != (height, width):
            raise ValueError(f"images of {x.shape[2]}x{x.shape[3]} pixels do not divide by this VAE's stride of {self.stride}: "
                             f"resize or pad them, to {height}x{width} for instance")
        return self.quant_conv(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        """The image a latent stands for: (B, C, h, w) -> (B, 3, h * stride, w * stride), about [-1, 1] and not clipped.

        Raises ValueError for other channels.
        """
        wanted = self.config["latent_channels"]
        if z.ndim != 4 or z.shape[1] != wanted:
            raise ValueError(f"latents of shape {tuple(z.shape)}: this VAE decodes (B, {wanted}, h, w)")
        return self.decoder(self.post_quant_conv(z))

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Gaussian]:
        """What training asks: x there and back by one sampled latent, (B, 3, H, W), and the Gaussian it was drawn from."""
        posterior = self.encode(x)
        return self.decode(posterior.sample(generator)), posterior


class Encoder(nn.Sequential):
    """Down by 2 between stages, then a look at the whole picture: (B, in, H, W) -> (B, out, H/stride, W/stride)."""

    def __init__(self, in_channels: int, out_channels: int, channels: tuple, layers: int, norm: Callable, attention: bool):
        down = [DownSample(width, asymmetric=True) for width in channels[:-1]]
        super().__init__(OrderedDict(
            conv_in=nn.Conv2d(in_channels, channels[0], 3, padding=1),
            stages=_stages(channels, layers, norm, down),
            mid=_mid(channels[-1], norm, attention),
            out=GSC(channels[-1], out_channels, norm),
        ))  # fmt: skip


class Decoder(nn.Sequential):
    """The encoder backwards, channels from the bottom up: (B, in, h, w) -> (B, out, h * stride, w * stride)."""

    def __init__(self, in_channels: int, out_channels: int, channels: tuple, layers: int, norm: Callable, attention: bool):
        up = [UpSample(width) for width in channels[:-1]]
        super().__init__(OrderedDict(
            conv_in=nn.Conv2d(in_channels, channels[0], 3, padding=1),
            mid=_mid(channels[0], norm, attention),
            stages=_stages(channels, layers, norm, up),
            out=GSC(channels[-1], out_channels, norm),
        ))  # fmt: skip


def _stages(channels: tuple, layers: int, norm: Callable, resize: list[nn.Module]) -> nn.Sequential:
    """Per stage `layers` ResNetBlocks, then a change of size except in the last: channels[0] -> channels[-1]."""
    stages = nn.Sequential()
    for (before, width), change in zip(pairwise([channels[0], *channels]), [*resize, nn.Identity()], strict=True):
        blocks = (ResNetBlock(width if i else before, width, norm=norm) for i in range(layers))
        stages.append(nn.Sequential(OrderedDict(resnets=nn.Sequential(*blocks), resize=change)))
    return stages


def _mid(width: int, norm: Callable, attention: bool) -> nn.Sequential:
    look = SpatialAttention(width, heads=1, bias=True, norm=norm) if attention else nn.Identity()
    return nn.Sequential(ResNetBlock(width, width, norm=norm), look, ResNetBlock(width, width, norm=norm))
