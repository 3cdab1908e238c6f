"""What a caller hands a pipeline, made ready for it: lists of prompts, batches that match, masks and depths for latents."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..diffusion import Level


def listed(prompt: str | list[str]) -> list[str]:
    """One prompt or several -> a list of them. Raises ValueError for none, and for what is no text."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts or not all(isinstance(text, str) for text in prompts):
        raise ValueError(f"a prompt is a text or a list of texts, not {prompt!r}")
    return prompts


def matched(name: str, given: Tensor | list, n: int):
    """`given`, repeated if there is one of it and n are needed: (1, ...) -> (n, ...). ValueError for any other number."""
    if len(given) not in (1, n):
        raise ValueError(f"{len(given)} of {name} for {n} prompts: give one, or one for each")
    if len(given) == n:
        return given
    return given * n if isinstance(given, list) else given.expand(n, *given.shape[1:])


def checked_strength(strength: float) -> float:
    """A strength, 0 to 1. Raises ValueError for any other number."""
    if not 0 <= strength <= 1:
        raise ValueError(f"strength = {strength}: take 0 (the picture as it is) to 1 (hardly any of it)")
    return strength


def redraw_levels(levels: list[Level], steps: int, strength: float) -> list[Level]:
    """The end of a walk of `steps`: its last int(steps * strength) steps, one level more than that (SDEdit: Meng et al. 2022).

    A picture is noised to the first of them. Strength 0 leaves one level, the clean end, and no step to take.
    """
    return levels[max(0, len(levels) - 1 - int(steps * strength)) :]


def settling(steps: int) -> int:
    """How many of so many steps `edit_by_difference` leaves to a plain walk: a sixth, and one at least."""
    return max(1, steps // 6)


def small_mask(mask: Tensor, image: Tensor, stride: int) -> Tensor:
    """A mask (B, 1, H, W) of the image's size -> (B, 1, H/stride, W/stride) of 0 and 1: 1 where it was 1/2 or more.

    Every latent asks one pixel of its square, the upper left, as in the original. Raises ValueError for another size, and for
    values outside [0, 1].
    """
    _like_image("mask", mask, image)
    if not 0 <= mask.min() <= mask.max() <= 1:
        raise ValueError(f"a mask holds 0 (keep) to 1 (repaint), and this one {mask.min():g} to {mask.max():g}")
    return (mask[:, :, ::stride, ::stride] >= 0.5).float()


def pasted(drawn: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """`drawn` (B, 3, H, W) where the mask is 1/2 or more, and elsewhere, to the last bit, the image; both (1 or B, ., H, W)."""
    return torch.where(mask.to(drawn.device) >= 0.5, drawn, image.to(drawn))


def depth_map(depth: Tensor, image: Tensor, stride: int) -> Tensor:
    """A depth (B, 1, H, W) of the image's size, in any unit -> (B, 1, H/stride, W/stride), from -1, farthest, to 1, nearest.

    Raises ValueError for another size, and for a depth that is the same everywhere, which no stretching brings to [-1, 1].
    """
    _like_image("depth", depth, image)
    size = (depth.shape[2] // stride, depth.shape[3] // stride)
    small = interpolate(depth.float(), size, mode="bicubic", align_corners=False)
    least, most = small.amin((1, 2, 3), keepdim=True), small.amax((1, 2, 3), keepdim=True)
    if not (most > least).all():
        raise ValueError("a depth that is the same everywhere says nothing, and cannot be scaled to [-1, 1]: use img2img")
    return 2 * (small - least) / (most - least) - 1


def _like_image(name: str, given: Tensor, image: Tensor) -> None:
    if given.ndim != 4 or given.shape[1] != 1 or given.shape[2:] != image.shape[2:] or not torch.is_floating_point(given):
        raise ValueError(f"{name} is {given.dtype} of shape {tuple(given.shape)}, for an image of {tuple(image.shape)}: "
                         "give floats (B, 1, H, W) of the image's height and width")
