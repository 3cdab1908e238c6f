"""Captioned scenes drawn to order: a dataset whose every fact is known, at any size, with no download.

A scene is a tuple of `Attributes`, one per object: words for the caption, exact numbers for the ruler. Everything else
is a pure function of it: `caption(attributes)` says it, `draw(scenes, size)` paints it, far objects first. `Shapes`
draws the attributes of scene i from a generator seeded with (seed, i), so a scene never depends on how many others
there are, on their order, on the process that asks, or on the resolution: 64 x 64 is 32 x 32 through a better lens.
"""

import itertools
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .render import SILHOUETTES, coverage

SHAPES = tuple(SILHOUETTES)                                       # circle, square, triangle, star, heart, cross
COLOURS = {                                                       # RGB in [0, 1]; any two at least 0.33 apart
    "red": (0.86, 0.13, 0.16), "orange": (0.98, 0.52, 0.08), "yellow": (0.99, 0.85, 0.13), "green": (0.13, 0.62, 0.26),
    "cyan": (0.16, 0.78, 0.86), "blue": (0.13, 0.30, 0.86), "purple": (0.48, 0.16, 0.66), "pink": (0.98, 0.48, 0.74),
}
SIZES = {"small": (0.14, 0.165), "large": (0.22, 0.26)}           # radius, as a fraction of the frame's side
BACKGROUNDS = {                                                   # RGB of the top row's edge, and of the bottom's
    "white": ((0.98, 0.98, 0.98), (0.98, 0.98, 0.98)), "graded grey": ((0.82, 0.83, 0.85), (0.36, 0.37, 0.40)),
    "grey": ((0.55, 0.56, 0.58), (0.55, 0.56, 0.58)), "graded sand": ((0.97, 0.93, 0.84), (0.78, 0.68, 0.52)),
    "black": ((0.06, 0.06, 0.08), (0.06, 0.06, 0.08)), "graded navy": ((0.20, 0.26, 0.40), (0.05, 0.07, 0.16)),
}
FAR = 1.0                                                         # the background's depth; objects lie in [0.25, 0.75]
MARGIN = 0.04                                                     # clear frame left around every object


class Attributes(NamedTuple):
    """One object of a scene, and what it lies on. A NamedTuple, because a DataLoader stacks those by itself.

    x, y, radius are fractions of the frame's side, x to the right and y down; the shape just fills the box of half side
    `radius` round (x, y). depth is a distance: nearer is smaller, and `FAR` is the background.
    """

    shape: str
    colour: str
    size: str                                                     # "small" or "large"
    position: str                                                 # "centre", "left", "bottom right", ...
    x: float
    y: float
    radius: float
    depth: float
    background: str
    confidence: float = 1.0                                       # below 1 only where an oracle read it from pixels


class Scene(NamedTuple):
    """What `Shapes(...)[i]` is: a picture, and everything there is to know about it."""

    image: Tensor                                                 # float (3, size, size) in [-1, 1], on the 8-bit grid
    caption: str
    attributes: tuple[Attributes, ...]                            # in the order in which the caption names them
    depth: Tensor                                                 # float (1, size, size): distance of what is seen
    mask: Tensor                                                  # float (1, size, size): 1 on any object, else 0


class Shapes(Dataset):
    """n scenes. Scene i is a function of (seed, i, the options) alone, whatever n and size.

    objects: how many per scene, 1 or 2, or a tuple of counts to choose from. Two differ in shape or colour, are hidden
    by no more than half, and never stand so that their relation could be argued about.
    shapes, colours, backgrounds, sizes: names to draw from; None means all. A class is a colour and a shape: `classes[label]`
    is "red circle". A nearer object has smaller depth, so object a's visible pixels are `scene.depth == a.depth`.
    A DataLoader stacks scenes of one fixed count; scenes of (1, 2) objects need a collate_fn that drops `attributes`.

    Raises ValueError for n < 1, size < 8, seed < 0, counts other than 1 and 2, and names that do not exist.
    """

    def __init__(self, n: int, size: int = 32, seed: int = 0, objects: int | Sequence[int] = 1,
                 shapes: Sequence[str] | None = None, colours: Sequence[str] | None = None,
                 backgrounds: Sequence[str] | None = None, sizes: Sequence[str] | None = None):
        for name, value, least in (("n", n, 1), ("size", size, 8), ("seed", seed, 0)):
            if value < least:
                raise ValueError(f"{name} is {value}: give {least} or more")
        self.n, self.size, self.seed = n, size, seed
        self.objects = (objects,) if isinstance(objects, int) else tuple(objects)
        self.shapes = _chosen("shape", shapes, SHAPES)
        self.colours = _chosen("colour", colours, COLOURS)
        self.backgrounds = _chosen("background", backgrounds, BACKGROUNDS)
        self.sizes = _chosen("size", sizes, SIZES)
        self.classes = [f"{colour} {shape}" for shape in self.shapes for colour in self.colours]
        if not self.objects or not set(self.objects) <= {1, 2}:
            raise ValueError(f"objects is {objects!r}: give 1, 2 or (1, 2)")
        if 2 in self.objects and len(self.classes) < 2:
            raise ValueError("two objects must differ: give at least two shapes or two colours")

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Scene:
        if not -self.n <= i < self.n:
            raise IndexError(f"scene {i} of {self.n}")
        attributes = self.attributes(i % self.n)
        images, depth = draw([attributes], self.size)
        return Scene(images[0] / 127.5 - 1, caption(attributes), attributes, depth[0], (depth[0] < FAR).float())

    def attributes(self, i: int) -> tuple[Attributes, ...]:
        """What scene i holds, without drawing it."""
        random = np.random.default_rng([self.seed, i])
        overlap = random.random() < 1 / 3 and len(self.colours) > 1           # a third: two of the six relations
        while True:
            scene = self._imagine(random)
            if all(unambiguous(a, b, overlap) for a, b in itertools.combinations(scene, 2)):
                return scene

    @cached_property
    def labels(self) -> Tensor:
        """int64 (n,): the class of each scene's one object. Raises ValueError where scenes may hold two."""
        if self.objects != (1,):
            raise ValueError(f"scenes of {self.objects} objects have no one label: use objects=1, or the captions")
        index = {name: label for label, name in enumerate(self.classes)}
        return torch.tensor([index[f"{a.colour} {a.shape}"] for a, in map(self.attributes, range(self.n))])

    def tensors(self, chunk: int = 128) -> tuple[Tensor, Tensor]:
        """All scenes at once: images uint8 (n, 3, size, size), labels int64 (n,). [i].image = images[i] / 127.5 - 1."""
        labels = self.labels                                      # first, because it refuses scenes of two objects
        pieces = [range(k, min(k + chunk, self.n)) for k in range(0, self.n, chunk)]
        return torch.cat([draw([self.attributes(i) for i in p], self.size)[0] for p in pieces]), labels

    def _imagine(self, random: np.random.Generator) -> tuple[Attributes, ...]:
        """A candidate scene. Only `random()` is called: its bits are the same in every version of NumPy."""
        def pick(options):
            return options[int(random.random() * len(options))]

        def between(low, high):
            return low + (high - low) * random.random()

        background, things = pick(self.backgrounds), []
        for _ in range(pick(self.objects)):
            shape, colour, size = pick(self.shapes), pick(self.colours), pick(self.sizes)
            radius = between(*SIZES[size])
            x, y = (between(radius + MARGIN, 1 - radius - MARGIN) for _ in "xy")
            depth = 0.25 + pick(range(17)) / 32                   # a binary fraction, so float32 holds it exactly
            things.append(Attributes(shape, colour, size, position(x, y), x, y, radius, depth, background))
        return tuple(things)


def draw(scenes: Sequence[Sequence[Attributes]], size: int) -> tuple[Tensor, Tensor]:
    """Paint B scenes: images uint8 (B, 3, size, size), depth float32 (B, 1, size, size).

    The painter's algorithm: far to near, each layer over the last. Depth is that of the nearest object which covers at
    least half the pixel, so the two always agree on who hides whom. Raises ValueError for a scene without objects.
    """
    if not all(scenes):
        raise ValueError("a scene has no object: give each at least one, for it also names the background")
    images = torch.cat([_background(scene[0].background, size) for scene in scenes])
    depth = torch.full((len(scenes), 1, size, size), FAR)
    far_to_near = [sorted(scene, key=lambda a: -a.depth) for scene in scenes]
    for layer in range(max(map(len, scenes))):
        rows = [b for b, scene in enumerate(far_to_near) if len(scene) > layer]
        things = [far_to_near[b][layer] for b in rows]
        cover = silhouettes(things, size).unsqueeze(1)            # (b, 1, size, size)
        colour = torch.tensor([COLOURS[a.colour] for a in things])[:, :, None, None]
        nearness = torch.tensor([a.depth for a in things])[:, None, None, None]
        images[rows] += cover * (colour - images[rows])
        depth[rows] = torch.where(cover >= 0.5, nearness, depth[rows])
    return (images * 255).round().to(torch.uint8), depth


def silhouettes(things: Sequence[Attributes], size: int, grow: float = 1.0) -> Tensor:
    """How much of each pixel each object would cover if nothing hid it: float (N, size, size) in [0, 1]."""
    x, y, radius = (torch.tensor(v) for v in zip(*((a.x, a.y, a.radius * grow) for a in things), strict=True))
    return coverage([a.shape for a in things], x, y, radius, size)


def caption(attributes: Sequence[Attributes]) -> str:
    """Say one object or two: "a small red circle left of a large blue star on a white background"."""
    if len(attributes) not in (1, 2):
        raise ValueError(f"a scene of {len(attributes)} objects: captions are written for one or two")
    names = [f"a {a.size} {a.colour} {a.shape}" for a in attributes]
    subject = names[0] if len(names) == 1 else f"{names[0]} {relation(*attributes)} {names[1]}"
    return f"{subject} on a {attributes[0].background} background"


def position(x: float, y: float) -> str:
    """Where in the frame, in words: the middle fifth of each axis is its centre."""
    words = ["top" if y < 0.4 else "bottom" if y > 0.6 else "", "left" if x < 0.4 else "right" if x > 0.6 else ""]
    return " ".join(filter(None, words)) or "centre"


def relation(a: Attributes, b: Attributes) -> str:
    """What a is to b: "in front of" or "behind" where one hides part of the other, else the wider of the two gaps."""
    if hidden(a, b) > 0:
        return "in front of" if a.depth < b.depth else "behind"
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def hidden(a: Attributes, b: Attributes, grow: float = 1.0) -> float:
    """The share of the farther one's area that the nearer one hides, on a fixed grid: captions know no resolution."""
    reach = (a.radius + b.radius) * grow
    if abs(a.x - b.x) > reach or abs(a.y - b.y) > reach:          # their boxes are apart: no need to draw them
        return 0.0
    near, far = silhouettes(sorted((a, b), key=lambda thing: thing.depth), 32, grow) >= 0.5
    return float((near & far).sum() / far.sum())


def unambiguous(a: Attributes, b: Attributes, overlap: bool) -> bool:
    """Would everyone describe the pair in the same words? Else `Shapes` imagines another."""
    if (a.shape, a.colour) == (b.shape, b.colour) or abs(a.depth - b.depth) < 0.125:
        return False
    if overlap:                                                   # of two colours, and both still recognisable
        return a.colour != b.colour and 0.1 < hidden(a, b) < 0.5
    return abs(abs(a.x - b.x) - abs(a.y - b.y)) > 0.1 and hidden(a, b, grow=1.15) == 0


def _background(name: str, size: int) -> Tensor:
    top, bottom = (torch.tensor(rgb).view(1, 3, 1, 1) for rgb in BACKGROUNDS[name])
    down = ((torch.arange(size) + 0.5) / size).view(1, 1, size, 1)
    return (top + down * (bottom - top)).repeat(1, 1, 1, size)    # (1, 3, size, size)


def _chosen(kind: str, names: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    names = tuple(known if names is None else [names] if isinstance(names, str) else names)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(f"no such {kind}: {', '.join(unknown) or '(none given)'}. Choose from {', '.join(known)}")
    return names
