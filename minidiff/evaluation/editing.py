"""Did an edit do what it was asked, and nothing else? And does inversion come back to where it began?

A scene of one object, and the same scene with one thing changed, each with its sentence. The oracle reads whether the edited
picture shows the second scene; what the change does not touch must be as it was:

    colour, shape     everything outside the object        spoilt = mean |edited - original| there, of images in [-1, 1]
    background        the object itself
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.captions import HELD_OUT, UNSEEN, imagine
from ..data.oracle import read_shapes
from ..data.shapes import BACKGROUNDS, COLOURS, SHAPES, Attributes, caption, draw, silhouettes
from ..diffusion import ddim
from .alignment import wilson

KINDS = {"colour": COLOURS, "shape": SHAPES, "background": BACKGROUNDS}  # what may be changed, and into what
NEAR = 0.1  # an object that is farther than that share of the frame from its place has moved


class Edit(NamedTuple):
    """A scene of one object before and after, which differ in `kind`."""

    kind: str
    before: Attributes
    after: Attributes

    @property
    def source(self) -> str:
        return caption([self.before])

    @property
    def target(self) -> str:
        return caption([self.after])


class How(NamedTuple):
    """How to edit: by inversion, `pipe.edit`, or, with refine None, without it, `pipe.edit_by_difference`."""

    start: int = 5  # steps that are left out
    scale: float = 2.0  # of guidance on the way down
    borrow: float = 0.0  # share of the steps that look where the scene before looks
    refine: int | None = None  # of the inversion


class Edited(NamedTuple):
    """n edits of one kind: `done` of them show what was asked for; spoilt: as above, their mean."""

    kind: str
    how: How
    done: int
    n: int
    spoilt: float

    @property
    def share(self) -> float:
        return self.done / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Where the share lies with 95 % confidence."""
        return wilson(self.done, self.n)


class RoundTrip(NamedTuple):
    """Inverted and drawn again over `steps` steps each: mean absolute difference to what the VAE gives back, in [-1, 1]."""

    steps: int
    refine: int
    scale: float  # of guidance, on both ways
    error: float


def edits(kind: str, n: int, seed: int = 0) -> list[Edit]:
    """n edits of one of KINDS, of scenes that no training shows; edit k is a function of (kind, seed, k).

    No pair of HELD_OUT is in them, before or after. Raises ValueError for another kind and for n < 1.
    """
    if kind not in KINDS or n < 1:
        raise ValueError(f'{n} edits of "{kind}": give one or more of {", ".join(KINDS)}')
    return [_edit(kind, np.random.default_rng([UNSEEN + seed, k])) for k in range(n)]


def _edit(kind: str, random: np.random.Generator) -> Edit:
    before, = imagine("colours", random)
    others = [before._replace(**{kind: name}) for name in KINDS[kind] if name != getattr(before, kind)]
    allowed = [after for after in others if (after.colour, after.shape) not in HELD_OUT]
    return Edit(kind, before, allowed[int(random.random() * len(allowed))])


def done(edit: Edit, reading: Sequence[Attributes]) -> bool:
    """Is in `reading`, which `read_shapes` gives for one image, what the edit asks for: one object, as wanted, in its place?"""
    if len(reading) != 1:
        return False
    a, wanted = reading[0], edit.after
    right = all(getattr(a, name) == getattr(wanted, name) for name in KINDS)
    return right and max(abs(a.x - wanted.x), abs(a.y - wanted.y)) <= NEAR


def untouched(some: Sequence[Edit], size: int) -> Tensor:
    """What each edit should leave alone, (n, 1, size, size), 1 there and 0 elsewhere.

    Outside of both silhouettes, a fifth larger than they are; for a new background inside of it, a fifth smaller.
    """
    masks = []
    for edit in some:
        if edit.kind == "background":
            masks.append(silhouettes([edit.before], size, 0.8)[0] > 0.99)
        else:
            masks.append(silhouettes([edit.before, edit.after], size, 1.2).amax(0) < 0.01)
    return torch.stack(masks)[:, None].float()


def spoilt(images: Tensor, originals: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference of images (n, C, H, W) where mask (n, 1, H, W) is 1: (n,)."""
    return ((images - originals).abs() * mask).flatten(1).sum(1) / (mask.flatten(1).sum(1) * images.shape[1])


def originals(some: Sequence[Edit], size: int) -> Tensor:
    """The scenes before their edits, drawn: (n, 3, size, size) in [-1, 1]."""
    return draw([[edit.before] for edit in some], size)[0] / 127.5 - 1


def edited(pipe, some: Sequence[Edit], how: How, steps: int = 50, seed: int = 0, batch: int = 50) -> Tensor:
    """What `pipe` makes of all of them, (n, 3, H, W), as a function of the seed. With attention borrowed, and without
    inversion, guidance leads away from the sentence of the scene before; plain inversion, from the empty one."""
    generator, images = torch.Generator().manual_seed(seed), []
    for k in range(0, len(some), batch):
        part = some[k : k + batch]
        x, source, target = originals(part, pipe.size), [edit.source for edit in part], [edit.target for edit in part]
        told = {"guidance_scale": how.scale, "borrow": how.borrow}
        if how.refine is None:
            x = pipe.edit_by_difference(x, source, target, steps, how.start, generator=generator, **told)
        else:
            away = source if how.borrow else [""] * len(part)
            x = pipe.edit(x, source, target, steps, how.start, negative_prompt=away, refine=how.refine, **told)
        images.append(x.cpu())
    return torch.cat(images)


def mark(some: Sequence[Edit], images: Tensor, how: How) -> Edited:
    """The row for these images of edits of one kind."""
    right = sum(done(edit, reading) for edit, reading in zip(some, read_shapes(images), strict=True))
    error = spoilt(images, originals(some, images.shape[-1]), untouched(some, images.shape[-1])).mean().item()
    return Edited(some[0].kind, how, right, len(some), error)


def round_trip(pipe, some: Sequence[Edit], steps: int = 50, refine: int = 0, scale: float = 1.0) -> RoundTrip:
    """The scenes before their edits to their noise and back. What the VAE loses is not counted."""
    images, texts = originals(some, pipe.size), [edit.source for edit in some]
    noise = pipe.invert(images, texts, steps, scale, refine)
    back = pipe(texts, latents=noise, steps=steps, guidance_scale=scale, sampler=ddim)
    copies = pipe.decode(pipe.encode(images, sample=False))
    return RoundTrip(steps, refine, scale, (back - copies).abs().mean().item())
