"""Guidance: a denoiser made of a denoiser. The sampler never learns it is there."""

from collections.abc import Callable

import torch
from torch import Tensor

from .forward import Denoiser, Estimate, to_estimate
from .schedule import Level


def classifier_free(net: Callable, cond: dict, uncond: dict, scale: float, predicts: str = "eps") -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6, their w = scale - 1): overshoot from "any image" towards "this".

        output = uncond + scale * (cond - uncond)          scale 1: plain conditional, 0: unconditional, > 1: exaggerated

    cond, uncond: the network's keyword arguments, tensors with a row per image, such as {"y": labels} and
    {"y": torch.full_like(labels, net.null_class)}. Both questions go to the network as one batch of 2B; at scale 1 only
    the conditional one is asked. Raises ValueError if the two do not name the same arguments.
    """
    if cond.keys() != uncond.keys():
        raise ValueError(f"cond names {sorted(cond)} and uncond names {sorted(uncond)}: they must answer the same questions")

    both = {name: torch.cat([cond[name], uncond[name]]) for name in cond} if scale != 1 else None

    def denoise(xt: Tensor, level: Level) -> Estimate:
        t = level.timesteps(xt)
        if both is None:
            return to_estimate(net(xt, t, **cond), xt, level, predicts)
        with_cond, without = net(torch.cat([xt, xt]), torch.cat([t, t]), **both).chunk(2)
        return to_estimate(torch.lerp(without, with_cond, scale), xt, level, predicts)

    return denoise


def inpainting(denoise: Denoiser, known: Tensor, mask: Tensor, noise: Tensor) -> Denoiser:
    """A denoiser that knows the answer where mask is 0: there it says x0 = known and eps = noise, whatever the network thinks.

    known, noise: (B, C, H, W); mask: (B, 1, H, W), 1 where there is something to invent. Any step then takes the known part
    to alpha * known + sigma * noise, the original noised to the level it reaches: RePaint's blend (Lugmayr et al. 2022,
    eq. 8) without a word to the sampler. Raises ValueError for shapes that differ.
    """
    if known.shape != noise.shape or mask.shape != (len(known), 1, *known.shape[2:]):
        raise ValueError(f"known {tuple(known.shape)}, noise {tuple(noise.shape)} and mask {tuple(mask.shape)} do not match: "
                         "the mask has one channel and the size of the others")

    def denoise_unknown(xt: Tensor, level: Level) -> Estimate:
        x0, eps = denoise(xt, level)
        return Estimate(torch.lerp(known, x0, mask), torch.lerp(noise, eps, mask))

    return denoise_unknown
