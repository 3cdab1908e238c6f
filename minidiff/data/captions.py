"""What may be asked of a small text-to-image model: GenEval's six tasks, on scenes whose every fact is known.

`Captioned` draws scenes of the six kinds and says what is on them: what a model is trained on. `prompts` says it of scenes
that nobody draws, so that whatever is asked can be done; `obeyed` holds what was read from the answer against what was
wanted. Six pairs of colour and shape, `HELD_OUT`, are in no training scene: whoever draws them on demand has learned what
a colour is and what a shape is, not forty-eight pictures.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .grammar import HIDING, Chances, Want, stands, tell
from .shapes import COLOURS, FAR, MARGIN, SHAPES, SIZES, Attributes, Scene, Shapes, draw, position, unambiguous

TASKS = ("one object", "two objects", "counting", "colours", "position", "attribute binding")
COLOURED = ("colours", "attribute binding")                       # the tasks whose prompts name colours
HELD_OUT = (("orange", "circle"), ("yellow", "square"), ("pink", "triangle"), ("purple", "star"), ("green", "heart"),
            ("cyan", "cross"))                                    # one for each shape, never the same colour twice
UNSEEN = 1_000_000                                                # added to a seed: no training is given such a one by accident
EVERYTHING = Chances(1, 1, 1, 1)                                  # what every other training caption mentions
TAUGHT = {                                                        # and the others, unless they are to be brief
    "one object": Chances(colour=0.5, size=0.4, relation=0, background=0.4),
    "two objects": Chances(colour=0.5, size=0.3, relation=0, background=0.4),
    "counting": Chances(colour=0.5, size=0.2, relation=0, background=0.4),
    "colours": Chances(colour=1, size=0.4, relation=0, background=0.4),
    "position": Chances(colour=0.6, size=0.3, relation=1, background=0.4),
    "attribute binding": Chances(colour=1, size=0.3, relation=0.4, background=0.4),
}
ASKED = {                                                         # what a prompt asks for: the task, and little else
    "one object": Chances(colour=0, size=0.5, relation=0, background=0.5),
    "two objects": Chances(colour=0, size=0, relation=0, background=0.25),
    "counting": Chances(colour=0, size=0, relation=0, background=0.25),
    "colours": Chances(colour=1, size=0, relation=0, background=0.25),
    "position": Chances(colour=0, size=0, relation=1, background=0.25),
    "attribute binding": Chances(colour=1, size=0, relation=0, background=0.25),
}
ONE, TWO = Shapes(1, objects=1), Shapes(1, objects=2)             # for their way to imagine one or two objects


class Prompt(NamedTuple):
    """A text and what it asks for. A relation is that of the first want to the second."""

    text: str
    task: str
    wants: tuple[Want, ...]
    relation: str | None
    background: str | None
    held_out: bool                                                # does it name a pair of HELD_OUT?


def prompts(task: str, n: int, seed: int = 0, held_out: bool = False) -> list[Prompt]:
    """n prompts of one of TASKS. Prompt k is a function of (task, seed, k, held_out) alone; texts may repeat.

    one object          "a large star"                            half of them with a size
    two objects         "a picture of a heart and a cross"        two shapes
    counting            "three circles"                           two to four of one shape
    colours             "a star in blue"
    position            "a heart under a star"                    two shapes; left, right, above or below
    attribute binding   "a red circle and a blue star"            two shapes, two colours
    A quarter name a background too, half of those for one object. held_out=True: each names at least one pair of HELD_OUT;
    False: none does.

    Raises ValueError for an unknown task, n < 1, seed < 0, and held_out=True where a task names no colours.
    """
    _check(task, n, seed)
    if held_out and task not in COLOURED:
        raise ValueError(f'prompts for "{task}" name no colour, so none is held out: ask for {" or ".join(COLOURED)}')
    return [_ask(task, np.random.default_rng([seed, k, 1 + TASKS.index(task)]), held_out) for k in range(n)]


def _ask(task: str, random: np.random.Generator, held_out: bool) -> Prompt:
    while True:
        scene = imagine(task, random, held_out)
        prompt = _prompt(task, scene, random, ASKED[task])
        shapes, colours = {a.shape for a in scene}, {a.colour for a in scene}
        if {"one object": True, "colours": True, "counting": len(scene) > 1,
            "two objects": len(scene) == len(shapes) == 2,
            "position": len(shapes) == 2 and prompt.relation not in (None, *HIDING),
            "attribute binding": len(shapes) == len(colours) == 2}[task]:
            return prompt


def _prompt(task: str, scene: Sequence[Attributes], random: np.random.Generator, chances: Chances) -> Prompt:
    text, wants, relation, background = tell(scene, random, chances)
    return Prompt(text, task, wants, relation, background, any((want.colour, want.shape) in HELD_OUT for want in wants))


def obeyed(prompt: Prompt, reading: Sequence[Attributes], alone: bool = False) -> bool:
    """Is what `prompt` asks for in `reading`, which is what `read_shapes` gives for one image?

    As GenEval decides (Ghosh et al. 2023): every want is met by as many objects, none of which meets another want; what
    else is there does not matter. Except for "counting": exactly so many, and nothing else, where GenEval allows objects
    of other kinds, for on our backgrounds there are none to be met by chance. alone=True asks this of every task.
    The relation, if one is asked for, holds between two such objects (`stands`); the background is the one named.

    Raises ValueError where the prompt asks who hides whom: an image does not tell. `prompts` never does.
    """
    wanted = [want for want in prompt.wants for _ in range(want.count)]
    if (alone or prompt.task == "counting") and len(reading) != len(wanted):
        return False
    if prompt.background is not None and any(a.background != prompt.background for a in reading):
        return False
    return any(all(_meets(a, want) for a, want in zip(chosen, wanted, strict=True))
               and (prompt.relation is None or stands(chosen[0], prompt.relation, chosen[1]))
               for chosen in itertools.permutations(reading, len(wanted)))


def _meets(a: Attributes, want: Want) -> bool:
    return want.shape in (None, a.shape) and want.colour in (None, a.colour) and want.size in (None, a.size)


def imagine(task: str, random: np.random.Generator, held_out: bool = False) -> tuple[Attributes, ...]:
    """A scene to teach or to ask one of TASKS with: 1 to 4 objects, in the order in which they are named.

    "counting" has one to four of one shape, in three scenes of four also of one colour; "two objects", in one scene of
    four, two or three of one kind and one of another. Only in "position", in one scene of four, does an object hide part of
    another; elsewhere all stand clear. Two of two kinds stand as those of `Shapes` do, so that nobody disputes who is where.
    held_out=True: at least one object is of a pair of HELD_OUT; False: none is. Draws only `random.random()`.
    """
    crowd = task == "counting" or (task == "two objects" and random.random() < 1 / 4)
    overlap = task == "position" and random.random() < 1 / 4
    source = ONE if task in ("one object", "colours") else TWO
    while True:
        scene = _crowd(task, random) if crowd else source._imagine(random)
        if any((a.colour, a.shape) in HELD_OUT for a in scene) != held_out:
            continue
        if crowd:
            return _scatter(scene, random)
        if len(scene) == 1 or (_may(*scene, overlap) and unambiguous(*scene, overlap)):
            return scene


def _may(a: Attributes, b: Attributes, overlap: bool) -> bool:
    """Is it worth drawing the two to see whether they overlap, or stand clear? Of those that would, 3 % are lost here."""
    apart = math.hypot(a.x - b.x, a.y - b.y) / (a.radius + b.radius)
    return apart < 0.9 if overlap else apart > 0.8


def _crowd(task: str, random: np.random.Generator) -> list[Attributes]:
    """One to four objects that are not in their places yet, at most one of them large: where there are three, none."""
    a, b = TWO._imagine(random)
    if task == "counting":
        things = [a] * _pick((1, 2, 3, 4), random)
        if random.random() < 1 / 4:
            things = [a._replace(colour=_pick(tuple(COLOURS), random)) for a in things]
    else:
        others = [shape for shape in SHAPES if shape != a.shape]
        things = [a] * _pick((2, 3), random) + [b._replace(shape=_pick(others, random))]
    small = [a._replace(size="small") for a in things]
    things = [*things[:1], *small[1:]] if len(things) < 3 else small
    return things if random.random() < 0.5 else things[::-1]


def _scatter(things: Sequence[Attributes], random: np.random.Generator) -> tuple[Attributes, ...]:
    """Each at a place and a depth of its own, the boxes round them apart by a seventh of both widths."""
    placed, misses = [], 0
    while len(placed) < len(things):
        a = things[len(placed)]
        low, high = SIZES[a.size]
        radius = low + (high - low) * random.random()
        x, y = (radius + MARGIN + (1 - 2 * (radius + MARGIN)) * random.random() for _ in "xy")
        depth = 0.25 + int(random.random() * 17) / 32             # as `Shapes` draws it
        if all(max(abs(x - b.x), abs(y - b.y)) > 1.15 * (radius + b.radius) and depth != b.depth for b in placed):
            placed.append(a._replace(position=position(x, y), x=x, y=y, radius=radius, depth=depth))
            continue
        misses += 1
        if misses % 20 == 0:
            placed.clear()                                        # those that stand leave no room: begin again
    return tuple(placed)


def _pick(options: Sequence, random: np.random.Generator):
    return options[int(random.random() * len(options))]


class Captioned(Dataset):
    """n captioned scenes of 1 to 4 objects. Scene i is a function of (seed, i, tasks, held_out) alone, whatever n and size.

    [i] is a `Scene`. One caption of two says all there is to say, so that each of its words has something to answer for
    (Betker et al. 2023, "Improving image generation with better captions"); the other says what its task teaches, and of the
    rest what chance will have it say.
    brief: share of all captions, at most 0.5, that are of the others and say as little as a prompt does (`ASKED`). Where they
    do not say who is where, they name the upper left first, as one reads: else nothing tells a model which of two blots is
    to become the star of "a star and a square", and it makes stars of both.
    tasks: those to draw from, all alike likely; a task named twice comes twice as often. held_out: see `imagine`.
    A DataLoader needs a collate_fn that drops `attributes`, for scenes differ in the number of objects.

    Raises ValueError for n < 1, size < 8, seed < 0, brief outside [0, 0.5], and unknown tasks or none.
    """

    def __init__(self, n: int, size: int = 64, seed: int = 0, held_out: bool = False, tasks: Sequence[str] = TASKS,
                 brief: float = 0.0):  # fmt: skip
        if size < 8 or not tasks:
            raise ValueError(f"size is {size}, tasks are {tasks}: give a size of 8 or more, and at least one task")
        if not 0 <= brief <= 0.5:
            raise ValueError(f"brief is {brief}: the half of the captions that say everything are not, so give 0 to 0.5")
        for task in tasks:
            _check(task, n, seed)
        self.n, self.size, self.seed, self.held_out, self.tasks = n, size, seed, held_out, tuple(tasks)
        self.brief = brief
        self._plans: dict[int, tuple[tuple[Attributes, ...], Prompt]] = {}  # to imagine takes longer than to remember

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Scene:
        attributes, prompt = self.plan(i)
        images, depth = draw([attributes], self.size)
        return Scene(images[0] / 127.5 - 1, prompt.text, attributes, depth[0], (depth[0] < FAR).float())

    def plan(self, i: int) -> tuple[tuple[Attributes, ...], Prompt]:
        """What scene i holds, and its caption as a `Prompt`, without drawing it. Raises IndexError beyond the last."""
        if not -self.n <= i < self.n:
            raise IndexError(f"scene {i} of {self.n}")
        i %= self.n
        if i not in self._plans:
            random = np.random.default_rng([self.seed, i])
            task = _pick(self.tasks, random)
            attributes = imagine(task, random, self.held_out)
            told, u = attributes, random.random()
            chances = EVERYTHING if u < 0.5 else ASKED[task] if u >= 1 - self.brief else TAUGHT[task]
            if chances is ASKED[task] and not chances.relation:
                told = sorted(attributes, key=lambda a: a.x + a.y)
            self._plans[i] = attributes, _prompt(task, told, random, chances)
        return self._plans[i]

    def tensors(self, chunk: int = 128) -> tuple[Tensor, list[str]]:
        """All scenes at once: images uint8 (n, 3, size, size), and their captions. [i].image = images[i] / 127.5 - 1."""
        scenes, said = zip(*map(self.plan, range(self.n)), strict=True)
        images = [draw(scenes[k : k + chunk], self.size)[0] for k in range(0, self.n, chunk)]
        return torch.cat(images), [prompt.text for prompt in said]


def _check(task: str, n: int, seed: int) -> None:
    if task not in TASKS:
        raise ValueError(f'no task "{task}": choose from {", ".join(TASKS)}')
    if n < 1 or seed < 0:
        raise ValueError(f"n is {n}, seed is {seed}: give an n of 1 or more, and a seed of 0 or more")
