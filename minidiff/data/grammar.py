"""One grammar for all that is said about a scene: sentences by random paraphrase, of which it knows what they claim.

`tell` chooses what to mention, and gives the sentence with the facts it states; a caption is a sentence about a scene that
is drawn, a prompt one about a scene that is not (captions.py). Every word is in `WORDS`; there is no punctuation.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .shapes import BACKGROUNDS, COLOURS, SHAPES, Attributes, relation

# Ways to say a thing. The first is that of `shapes.caption`, and comes more than half the time.
NUMBERS = (("a", "one"), ("two",), ("three",), ("four",))
SAY_SIZE = {"small": ("small", "little"), "large": ("large", "big")}
SAY_KIND = ("{size} {colour} {shape}", "{size} {shape} in {colour}")
SAY_RELATION = {
    "left of": ("left of", "to the left of", "on the left of"), "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"), "below": ("below", "under", "beneath"), "in front of": ("in front of",), "behind": ("behind",),
}
SAY_TOGETHER = ("and", "together with")
SAY_BACKGROUND = ("{things} on a {name} background", "{things} against a {name} background",
                  "a {name} background with {things}")
SAY_PICTURE = ("{things}", "a picture of {things}", "an image of {things}", "a drawing of {things}")
HIDING = ("in front of", "behind")                                # the relations that an image's pixels do not tell


class Chances(NamedTuple):
    """How likely a sentence mentions what: 0 never, 1 wherever it can."""

    colour: float
    size: float
    relation: float
    background: float


class Want(NamedTuple):
    """So many objects of one kind. None: any will do."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    count: int = 1


class Sentence(NamedTuple):
    """A text and what it claims. A relation is that of the first want to the second."""

    text: str
    wants: tuple[Want, ...]
    relation: str | None
    background: str | None


def describe(attributes: Sequence[Attributes], random: np.random.Generator) -> str:
    """One true sentence about a scene of 1 to 4 objects: "two red hearts and a star against a black background".

    Every object is named, alike ones together; colours, sizes, the relation and the background may be left out. Either of
    two objects may come first, and their relation turns with them. `caption(attributes)` is one of the sentences.
    Draws only `random.random()`. Raises ValueError for other numbers of objects.
    """
    if not 1 <= len(attributes) <= 4:
        raise ValueError(f"a scene of {len(attributes)} objects: sentences are written for one to four")
    order = 1 if random.random() < 0.5 else -1
    return tell(attributes[::order], random, Chances(0.8, 0.5, 0.5, 0.5)).text


def tell(scene: Sequence[Attributes], random: np.random.Generator, chances: Chances) -> Sentence:
    """A true sentence about a scene, its objects in the order given, alike ones together at the place of the first.

    The colour of a shape is said of all objects of that shape or of none: after "a red circle and a circle" nobody knows
    whether the second is red. The chance is raised to the number of colours that would have to be listed. A size is said
    where all objects of the kind share it. A relation is said of two objects that differ in shape or colour and between
    which it holds (`stands`); if they are of one shape, so are then their colours, to tell them apart.
    """
    said = _related(*scene) if len(scene) == 2 and random.random() < chances.relation else None
    colours = {a.shape: {b.colour for b in scene if b.shape == a.shape} for a in scene}
    coloured = {shape for shape, some in colours.items()
                if (said and len(some) == 2) or random.random() < chances.colour ** len(some)}
    kinds: dict[tuple, list[Attributes]] = {}
    for a in scene:
        kinds.setdefault((a.shape, a.colour if a.shape in coloured else None), []).append(a)
    wants = []
    for (shape, colour), alike in kinds.items():
        sized = random.random() < chances.size and len({a.size for a in alike}) == 1
        wants.append(Want(shape, colour, alike[0].size if sized else None, len(alike)))
    background = scene[0].background if random.random() < chances.background else None
    return Sentence(_phrase(wants, said, background, random), tuple(wants), said, background)


def _related(a: Attributes, b: Attributes) -> str | None:
    if (a.shape, a.colour) == (b.shape, b.colour):
        return None
    word = relation(a, b)
    true = not math.isnan(a.depth + b.depth) if word in HIDING else stands(a, word, b)
    return word if true else None


def stands(a: Attributes, word: str, b: Attributes) -> bool:
    """Is "a word b" true? Two sides may be at once: above and left of, on the diagonal.

    GenEval's rule for the four sides (Ghosh et al. 2023, relative_position in its evaluate_images.py): from centre to
    centre, a has to lie further to that side than a tenth of both widths and half of the distance together.
    Raises ValueError for "in front of" and "behind" without depths: what is read from an image has none.
    """
    if word in HIDING:
        if math.isnan(a.depth + b.depth):
            raise ValueError(f'"{word}" is asked of objects without depths: an image does not tell them, ask for a side')
        return relation(a, b) == word
    ahead = {"left of": b.x - a.x, "right of": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}[word]
    return ahead > 0.2 * (a.radius + b.radius) + 0.5 * math.hypot(a.x - b.x, a.y - b.y)


def _phrase(wants: Sequence[Want], said: str | None, background: str | None, random: np.random.Generator) -> str:
    def vary(options):
        return options[0] if random.random() < 0.5 else options[int(random.random() * len(options))]

    names = []
    for want in wants:
        kind = vary(SAY_KIND) if want.colour else "{size} {shape}"
        size = vary(SAY_SIZE[want.size]) if want.size else ""
        shape = want.shape if want.count == 1 else _plural(want.shape)
        names.append(f"{vary(NUMBERS[want.count - 1])} {kind.format(size=size, colour=want.colour, shape=shape)}")
    between = vary(SAY_RELATION[said]) if said else vary(SAY_TOGETHER) if len(wants) == 2 else "and"
    text = f" {between} ".join(names)
    if background:
        text = vary(SAY_BACKGROUND).format(things=text, name=background)
    words = vary(SAY_PICTURE).format(things=text).split()
    return " ".join("an" if word == "a" and after == "orange" else word for word, after in itertools.pairwise([*words, ""]))


def _plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def _words() -> tuple[str, ...]:
    ways = [*NUMBERS, *SAY_SIZE.values(), SAY_KIND, *SAY_RELATION.values(), SAY_TOGETHER, SAY_BACKGROUND, SAY_PICTURE]
    phrases = ["an", *COLOURS, *SHAPES, *map(_plural, SHAPES), *BACKGROUNDS, *itertools.chain(*ways)]
    return tuple(sorted({word for phrase in phrases for word in phrase.split() if "{" not in word}))


WORDS = _words()                                                  # all that can be said, sorted
