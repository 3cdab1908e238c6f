"""What a lie costs: nothing where words are heard in any order, something where it is known which belongs to which."""

from itertools import pairwise

import pytest
import torch

import minidiff as md
from minidiff.data.captions import HELD_OUT
from minidiff.data.shapes import caption
from minidiff.evaluation import lies as room
from minidiff.evaluation.lies import LEVELS, colours_exchanged, lies, places_exchanged


class Pipe:
    """Knows every scene; errs by 0.1 where it is told what `heard` takes for the truth, else by 0.2."""

    size, schedule = 16, md.Schedule.flow()

    def __init__(self, heard):
        self.heard, self.told = heard, []

    def encode(self, image, sample):
        self.x0 = image
        return image

    def denoiser(self, texts, guidance_scale):
        assert guidance_scale == 1
        self.told.append(texts)
        off = [0.1 if self.heard(text) == self.heard(truth) else 0.2 for text, truth in zip(texts, self.told[0], strict=True)]

        def denoise(xt, level):
            assert not torch.equal(xt, self.x0)
            return md.Estimate(self.x0 + torch.tensor(off).view(-1, 1, 1, 1), xt)

        return denoise


SIDES = {"left", "right", "above", "below", "of"}


@pytest.mark.parametrize(("heard", "colours", "places"), [
    (str, 3, 3),                                                    # every word in its place
    (lambda text: set(text.split()) - SIDES, 0, 0),                 # a bag of words, deaf to sides
    (lambda text: set(text.split()), 0, 3),                         # a bag of words, which has sides in it
])  # fmt: skip
def test_who_minds_which_lie(heard, colours, places):
    found = lies(Pipe(heard), n=24)
    assert [lie.sigma for lie in found] == pytest.approx(LEVELS)
    for lie in found:
        assert lie[1:] == pytest.approx((3, colours, places), rel=1e-3, abs=1e-3)


def test_lies_are_about_two_things_that_differ():
    pipe = Pipe(str)
    lies(pipe, n=60, seed=1)
    truth, nothing, colours, places = pipe.told
    assert nothing == [""] * 60 and not set(truth) & set(colours) and not set(truth) & set(places)
    for said in (*truth, *colours, *places):
        words = said.split()
        assert words[1] in md.data.shapes.SIZES and not {"behind", "front"} & set(words)
        assert not any(pair in HELD_OUT for pair in pairwise(words)), said
    assert all(sorted(a.split()) == sorted(b.split()) for a, b in zip(truth, colours, strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "LEVELS", (0.5,))
        assert len({tuple(p.told[0]) for p in (Pipe(str), Pipe(str), Pipe(str)) if lies(p, n=4, seed=2)}) == 1


def test_what_is_exchanged():
    a, b = next(scene for scene in map(md.data.Shapes(40, objects=2, seed=0).attributes, range(40)) if room._is_fair(scene))
    assert caption((a, b)) != caption(colours_exchanged(a, b)) != caption(places_exchanged(a, b))
    assert colours_exchanged(*colours_exchanged(a, b)) == places_exchanged(*places_exchanged(a, b)) == (a, b)
    c, d = places_exchanged(a, b)
    assert (c.x, c.y, c.position, d.x, d.y, d.position) == (b.x, b.y, b.position, a.x, a.y, a.position) and c.shape == a.shape
