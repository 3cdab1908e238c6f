"""Between pictures and what the network sees of them: the VAE's latents, shifted and scaled to about unit variance.

    latent = (z - vae.shift) * vae.scale,    z drawn from vae.encode(image)          (Rombach et al. 2022, appendix G)
"""

from functools import partial

import torch
from torch import Tensor

from ..nets import VAE
from ..nets.tiling import sliced, tiled
from ..nets.vae import Gaussian


@torch.no_grad()
def to_latents(vae: VAE, image: Tensor, generator: torch.Generator | None = None, sample: bool = True,
               tile: int | None = None) -> Tensor:  # fmt: skip
    """(B, 3, H, W) in [-1, 1] -> latents (B, C, H/stride, W/stride), in float32 at least; sample=False takes the mean.

    tile: latents on a side of the pieces that are encoded one after the other. ValueError for values outside [-1, 1].
    """
    if image.numel() and not image.abs().max() <= 1.05:  # so that NaN is refused, too
        raise ValueError(f"the image holds {image.min():g} to {image.max():g}, and pixels are floats in [-1, 1] here: "
                         "x / 127.5 - 1 takes them there from 0 ... 255")
    moments = vae.moments
    if tile:
        moments = partial(tiled, moments, tile=tile * vae.stride, overlap=tile // 4 * vae.stride, scale=1 / vae.stride)
    weight = next(vae.parameters())
    mean_logvar = sliced(moments, image.to(weight))  # one picture at a time: the same answer, and the memory of one
    posterior = Gaussian(*mean_logvar.to(torch.promote_types(weight.dtype, torch.float32)).chunk(2, dim=1))
    return ((posterior.sample(generator) if sample else posterior.mean) - vae.shift) * vae.scale


@torch.no_grad()
def to_images(vae: VAE, latents: Tensor, tile: int | None = None) -> Tensor:
    """Latents (B, C, h, w) -> images (B, 3, h * stride, w * stride) in [-1, 1], in the dtype of the latents."""
    decode = partial(tiled, vae.decode, tile=tile, overlap=tile // 4, scale=vae.stride) if tile else vae.decode
    z = latents / vae.scale + vae.shift
    return sliced(decode, z.to(next(vae.parameters()))).to(latents.dtype).clamp(-1, 1)
