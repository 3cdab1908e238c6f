"""What a CLIP trained on scenes can tell apart: each question is a picture and sentences, the first of which is true.

In the last two questions both sentences are made of the very same words. Who reads a text as a bag of words answers them no
better than a coin, and many a large CLIP hardly does (Yuksekgonul et al. 2023, figure 2). What such a text encoder has
forgotten, no diffusion model behind it can draw.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.captions import HELD_OUT
from ..data.shapes import BACKGROUNDS, COLOURS, SHAPES, SIZES, Attributes, Shapes, relation
from ..nets import CLIP
from ..pretrained import Tokenizer

OPPOSITE = {"left of": "right of", "above": "below", "in front of": "behind"}
OPPOSITE |= {there: here for here, there in OPPOSITE.items()}
Scene = tuple[Attributes, ...]


class Answer(NamedTuple):
    """How one question went: the share answered right, that of a guess, and of how many pictures."""

    question: str
    right: float
    guess: float
    pictures: int


def _a(*words: str) -> str:
    return ("an " if words[0][0] in "aeiou" else "a ") + " ".join(words)


def _part(part: str, names: dict | tuple) -> Callable[[Scene], list[str]]:
    """Sentences about the first object, as it is and with one part of it changed to every other name."""
    def sentences(scene: Scene) -> list[str]:
        true = getattr(scene[0], part)
        things = [scene[0]._replace(**{part: name}) for name in (true, *(name for name in names if name != true))]
        return [_a(a.size, a.colour, a.shape) + f" on a {a.background} background" * (part == "background") for a in things]
    return sentences


def _relation(scene: Scene) -> list[str]:
    (a, b), word = (_a(thing.colour, thing.shape) for thing in scene), relation(*scene)
    return [f"{a} {word} {b}", f"{a} {OPPOSITE[word]} {b}"]


def _order(scene: Scene) -> list[str]:
    (a, b), word = (_a(thing.colour, thing.shape) for thing in scene), relation(*scene)
    return [f"{a} {word} {b}", f"{b} {word} {a}"]


def _binding(scene: Scene) -> list[str]:
    a, b = scene
    if a.colour == b.colour or a.shape == b.shape:
        return []  # both would be true
    return [f"{_a(a.colour, a.shape)} and {_a(b.colour, b.shape)}", f"{_a(b.colour, a.shape)} and {_a(a.colour, b.shape)}"]


QUESTIONS = {  # of pictures of so many objects, with or without pairs that training leaves out
    "colour": (1, False, _part("colour", COLOURS)),
    "shape": (1, False, _part("shape", SHAPES)),
    "size": (1, False, _part("size", SIZES)),
    "background": (1, False, _part("background", BACKGROUNDS)),
    "colour, held-out pairs": (1, True, _part("colour", COLOURS)),
    "shape, held-out pairs": (1, True, _part("shape", SHAPES)),
    "left of, or right of": (2, False, _relation),  # and the other opposites
    "a left of b, or b left of a": (2, False, _order),
    "a red circle and a blue star, or a blue circle and a red star": (2, False, _binding),
}


@torch.no_grad()
def zero_shot_answers(clip: CLIP, tokenizer: Tokenizer, n: int = 500, seed: int = 10_000) -> list[Answer]:
    """Every question about n scenes of `Shapes`, of one object and of two, at the size that clip looks at.

    n and seed say which scenes: take a seed that training did not. Questions that no scene poses are left out. Raises
    ValueError for a tokenizer that refuses the words.
    """
    device, pictures = clip.logit_scale.device, {}
    for objects in (1, 2):
        scenes = list(Shapes(n, clip.image.config["size"], seed, objects))
        seen = _in_parts(clip.encode_image, torch.stack([scene.image for scene in scenes]).to(device))
        pictures[objects] = [(s.attributes, f) for s, f in zip(scenes, seen, strict=True)]
    answers = []
    for question, (objects, held_out, sentences) in QUESTIONS.items():
        asked = [(sentences(scene), features) for scene, features in pictures[objects]
                 if any((a.colour, a.shape) in HELD_OUT for a in scene) == held_out and sentences(scene)]  # fmt: skip
        if asked:
            texts, seen = [text for row, _ in asked for text in row], torch.stack([features for _, features in asked])
            read = _in_parts(clip.encode_text, tokenizer(texts).to(device)).unflatten(0, (len(asked), -1))  # (n, K, D)
            right = share_right(torch.einsum("nd,nkd->nk", seen, read))
            answers.append(Answer(question, right, 1 / read.shape[1], len(asked)))
    return answers


def share_right(scores: Tensor) -> float:
    """The share of rows (n, K) whose first score is the highest; a row with k equal highest ones is 1 / k of an answer."""
    best = scores == scores.amax(1, keepdim=True)
    return (best[:, 0] / best.sum(1)).mean().item()


def zero_shot_table(answers: list[Answer]) -> str:
    """The answers as a table in Markdown, in per cent."""
    lines = ["| question | right | guess | pictures |", "|---|---:|---:|---:|"]
    return "\n".join(lines + [f"| {a.question} | {a.right:.1%} | {a.guess:.1%} | {a.pictures} |" for a in answers])


def _in_parts(encode: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    return torch.cat([encode(part) for part in inputs.split(256)])
