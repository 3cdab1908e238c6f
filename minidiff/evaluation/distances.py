"""Fréchet and kernel distance in the features of a CLIP that was trained here, and how they go with the number of images.

A mini-CLIP has looked at scenes beside sentences about them: what it keeps of a picture is what can be said of it. Its
vectors, of length 1, are stretched to length sqrt(D): their numbers are then of size 1, FD is 4 D at the most, and the
kernel of KD, (x.y / D + 1)^3, is (cosine + 1)^3. Figures of two CLIPs do not compare, and none is an FID.

Three sets of n images: A, real scenes; M, what the model drew for the captions of A; R, other real scenes. M is compared with
R, and so is A: whoever draws exactly what A shows scores what A scores. That is the floor.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean, pstdev
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.captions import Captioned
from ..nets import CLIP
from ..pretrained import load_clip
from .metrics import frechet_distance, kernel_distance

LEAST = 64  # images of which a distance is taken
TRAIN = "`python -m minidiff train --stage clip --out runs/sd` makes one, in runs/sd/clip"


class Distance(NamedTuple):
    """FD and KD of n images and n others: the mean over `parts` disjoint sets of so many, and how these spread."""

    n: int
    parts: int
    fd: float
    kd: float
    fd_std: float
    kd_std: float


def load_ruler(folder: str | Path, size: int, device: str = "cpu") -> CLIP:
    """The CLIP in a folder of train --stage clip, which must look at pictures of this size.

    FileNotFoundError where there is none, ValueError for another kind of network and for another size.
    """
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no CLIP to measure with: {TRAIN}")
    clip = load_clip(folder, device=device)
    if (sees := clip.image.config["size"]) != size:
        raise ValueError(f"the CLIP in {folder} looks at pictures of {sees}x{sees} and this model draws {size}x{size}: "
                         f"`python -m minidiff train --stage clip --set size={size} --out runs/clip{size}` makes one that fits")
    return clip


def looking(clip: CLIP) -> Callable[[Tensor], Tensor]:
    """Images (B, 3, size, size) in [-1, 1], on any device -> what clip sees, (B, D), each of length 1, on the CPU."""
    @torch.no_grad()
    def look(images: Tensor) -> Tensor:
        return clip.encode_image(images.to(clip.logit_scale.device, torch.float32)).cpu()
    return look


def features(images: Iterable[Tensor], look: Callable[[Tensor], Tensor]) -> Tensor:
    """What the distances compare, (N, D), of batches of images: see above."""
    unit = torch.cat([look(batch) for batch in images])
    return unit * unit.shape[1] ** 0.5


def real_scenes(n: int, size: int, seed: int) -> tuple[list[Tensor], list[str]]:
    """n captioned scenes: batches of images in [-1, 1], and what is said of them."""
    pixels, captions = Captioned(n, size, seed).tensors()
    return [part / 127.5 - 1 for part in pixels.split(64)], captions


def distances(a: Tensor, b: Tensor) -> list[Distance]:
    """Between features (N, D) and (N, D), at n = 64, 128, 256, ... and N. Small n: the mean over all disjoint parts.

    FD falls with n though nothing changed, KD does not: it is unbiased, and only gets surer. ValueError as `metrics`.
    """
    curve, most = [], min(len(a), len(b))
    sizes = [n for k in range(12) if (n := LEAST * 2**k) < most] + [most]
    for n in sizes:
        pairs = [(a[k : k + n], b[k : k + n]) for k in range(0, most - n + 1, n)]
        fd, kd = [frechet_distance(*pair) for pair in pairs], [kernel_distance(*pair) for pair in pairs]
        curve.append(Distance(n, len(pairs), fmean(fd), fmean(kd), pstdev(fd), pstdev(kd)))
    return curve
