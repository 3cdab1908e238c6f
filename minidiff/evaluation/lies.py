"""Has a model bound its words? Tell it a lie about a real scene and see whether it minds. Nothing needs to be drawn.

A scene is noised, and the network guesses it, told the truth or one of three other things:

    truth      "a small red circle left of a large blue star on a white background"
    colours    "a small blue circle left of a large red star on a white background"
    places     "a small red circle right of a large blue star on a white background"
    nothing    ""

    rise = |x0(x_t, lie) - x0|^2 / |x0(x_t, truth) - x0|^2 - 1

Whoever knows the words, but not which belongs to which thing, loses by silence and nothing by the lies: they are made of
the same words, or nearly. Whoever has bound them believes the lie, and that can cost more than silence.
"""

from typing import NamedTuple

import numpy as np
import torch

from ..data.captions import HELD_OUT, UNSEEN, imagine
from ..data.grammar import HIDING
from ..data.shapes import Attributes, caption, draw, relation
from ..diffusion import add_noise

LEVELS = (0.95, 0.9, 0.8, 0.6, 0.4)  # of all timesteps: early a scene is laid out, in the middle coloured


class Lie(NamedTuple):
    """At noise sigma: by which part the squared error of x0 rises. 0: not at all; 1: to twice of it."""

    sigma: float
    nothing: float
    colours: float
    places: float


@torch.no_grad()
def lies(pipe, n: int = 96, seed: int = 0) -> list[Lie]:
    """What each lie costs a TextToImage such as StableDiffusion, at LEVELS, on n scenes of two objects; least noisy last.

    The scenes are of the kind that training shows, but with a seed of their own; scenes and noise depend on (n, seed) alone.
    ValueError for a model that never learned the words.
    """
    random, scenes = np.random.default_rng([seed, UNSEEN]), []
    while len(scenes) < n:
        scene = imagine("position", random)
        scenes += [scene] if _is_fair(scene) else []
    x0 = pipe.encode(draw(scenes, pipe.size)[0] / 127.5 - 1, sample=False)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed)).to(x0)
    told = {"truth": [caption(scene) for scene in scenes], "nothing": [""] * n,
            "colours": [caption(colours_exchanged(*scene)) for scene in scenes],
            "places": [caption(places_exchanged(*scene)) for scene in scenes]}  # fmt: skip
    denoisers = {what: pipe.denoiser(texts, guidance_scale=1.0) for what, texts in told.items()}
    rows = []
    for share in LEVELS:
        level = pipe.schedule.at(round(share * len(pipe.schedule)))
        xt = add_noise(x0, noise, level)
        error = {what: (denoise(xt, level).x0 - x0).square().mean().item() for what, denoise in denoisers.items()}
        rows.append(Lie(level.sigma, *(error[what] / error["truth"] - 1 for what in Lie._fields[1:])))
    return rows


def colours_exchanged(a: Attributes, b: Attributes) -> tuple[Attributes, Attributes]:
    """The scene that the first lie is true of."""
    return a._replace(colour=b.colour), b._replace(colour=a.colour)


def places_exchanged(a: Attributes, b: Attributes) -> tuple[Attributes, Attributes]:
    """The scene that the second lie is true of."""
    return a._replace(x=b.x, y=b.y, position=b.position), b._replace(x=a.x, y=a.y, position=a.position)


def _is_fair(scene: tuple[Attributes, Attributes]) -> bool:
    """Do both lies differ from the truth, and in words that training might have put together?"""
    a, b = scene
    differ = a.shape != b.shape and a.colour != b.colour
    side_by_side = not {relation(a, b), relation(*places_exchanged(a, b))} & set(HIDING)
    return differ and side_by_side and not any((c.colour, c.shape) in HELD_OUT for c in colours_exchanged(a, b))
