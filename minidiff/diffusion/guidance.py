"""Guidance by the network's own answers: a denoiser made of denoisers. The sampler never learns it is there.

Asked about several conditions, a network gives several answers, and a sum of answers is an answer. Guidance by the gradient
of something else, a colour or a classifier, is in `steering.py`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .forward import Denoiser, Estimate, to_estimate
from .schedule import Level


def classifier_free(net: Callable, cond: dict, uncond: dict, scale: float, predicts: str = "eps") -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6, their w = scale - 1): overshoot from "any image" towards "this".

        output = uncond + scale * (cond - uncond)          scale 1: plain conditional, 0: unconditional, > 1: exaggerated

    cond, uncond: the network's keyword arguments, tensors with a row per image, such as {"y": labels} and
    {"y": torch.full_like(labels, net.null_class)}. A negative prompt is another `uncond`. Both questions go to the network
    as one batch of 2B; at scale 1 only the conditional one is asked, at 0 only the other. Raises ValueError if the two do
    not name the same arguments.
    """
    return composed(net, [cond], [scale], uncond, predicts)


def composed(net: Callable, conds: Sequence[dict], scales: Sequence[float], uncond: dict, predicts: str = "eps") -> Denoiser:
    """Several conditions, each with its own weight (Liu et al. 2022, "Composable Diffusion", eq. 11): "this, and that".

        output = uncond + sum_i scales[i] * (conds[i] - uncond)

    A negative scale moves away: "this, and not that". conds, uncond: as in `classifier_free`. All questions go to the network
    as one batch; those that do not count, at scale 0, are not asked, nor is `uncond` where the scales add up to 1.
    Raises ValueError if there is not one scale for each condition, and if they do not name the same arguments.
    """
    if len(conds) != len(scales):
        raise ValueError(f"{len(conds)} conditions and {len(scales)} scales: give one scale for each")
    for cond in conds:
        if cond.keys() != uncond.keys():
            raise ValueError(f"cond names {sorted(cond)} and uncond names {sorted(uncond)}: they must answer the same "
                             "questions")
    weights = [*scales, 1 - sum(scales)]
    asked = [(cond, weight) for cond, weight in zip([*conds, uncond], weights, strict=True) if weight]
    together = {name: torch.cat([cond[name] for cond, _ in asked]) for name in uncond}

    def denoise(xt: Tensor, level: Level) -> Estimate:
        n, t = len(asked), level.timesteps(xt)
        answers = net(torch.cat([xt] * n), torch.cat([t] * n), **together).chunk(n)
        output = sum(weight * answer for (_, weight), answer in zip(asked, answers, strict=True))
        return to_estimate(output, xt, level, predicts)

    return denoise


def perturbed_guidance(net: Callable, cond: dict, uncond: dict, scale: float, pag_scale: float,
                       predicts: str = "eps") -> Denoiser:  # fmt: skip
    """Classifier-free guidance, and away from a network that does not look around (Ahn et al. 2024, section 4).

        output = uncond + scale * (cond - uncond) + pag_scale * (cond - blind)        blind: cond, with perturbed attention

    net: of `nets.perturbed`, a function (x, t, *, blind, **cond). All three questions go to it as one batch of 3B, at scale 1
    or pag_scale 0 two. What the two answers to `cond` have in common is cancelled, and what is left is what looking around
    is good for: that a thing has one colour and one outline, and that there is a thing at all. ValueError as `composed`.
    """
    there = next(iter(cond.values()))
    seeing, blind = ({"blind": torch.full(there.shape[:1], it, device=there.device)} for it in (False, True))
    return composed(net, [cond | seeing, cond | blind], [scale + pag_scale, -pag_scale], uncond | seeing, predicts)


def rescaled(strong: Denoiser, plain: Denoiser, share: float = 0.7) -> Denoiser:
    """A guided denoiser whose x0 has no more contrast than the plain one's (Lin et al. 2023, eqs. 15 and 16, here of x0).

        x0 = share * x0 * std(plain x0) / std(x0) + (1 - share) * x0            std over all of an image

    Guidance overshoots: at a high scale pictures are garish. eps is what x_t then says it must be; kept as it was, it would
    make of x0 and eps another picture than x_t, and DDIM's walk would drift away. plain asks the network once more.
    Raises ValueError for a share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share = {share}: from 0, all the contrast that guidance gives, to 1, none of what it adds")

    def denoise(xt: Tensor, level: Level) -> Estimate:
        x0 = strong(xt, level).x0
        over_image = tuple(range(1, x0.ndim))
        ratio = plain(xt, level).x0.std(over_image, keepdim=True) / x0.std(over_image, keepdim=True)
        return to_estimate(x0 * torch.lerp(torch.ones_like(ratio), ratio, share), xt, level, "x0")

    return denoise


def between(strong: Denoiser, plain: Denoiser, low: float, high: float) -> Denoiser:
    """Guided only at levels with low <= sigma <= high, plain elsewhere (Kynkäänniemi et al. 2024, "a limited interval").

    At the noisy end guidance costs variety, at the clean end it changes nothing but time. One level for the whole batch.
    Raises ValueError unless 0 <= low <= high <= 1.
    """
    if not 0 <= low <= high <= 1:
        raise ValueError(f"from sigma = {low} to {high}: give 0 <= low <= high <= 1")

    def denoise(xt: Tensor, level: Level) -> Estimate:
        return (strong if low <= float(level.sigma) <= high else plain)(xt, level)

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
