"""Edits and their marks, against edits that are known to be right, wrong, or right with damage."""

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from minidiff.data import read_shapes
from minidiff.data.captions import HELD_OUT
from minidiff.data.shapes import draw
from minidiff.evaluation.editing import KINDS, How, done, edited, edits, mark, originals, round_trip, spoilt, untouched

kinds = pytest.mark.parametrize("kind", KINDS)


def ideal(some, size=64):
    """The scenes as they should be after their edits."""
    return draw([[edit.after] for edit in some], size)[0] / 127.5 - 1


@kinds
def test_an_edit_changes_one_thing_and_says_so(kind):
    some = edits(kind, 60)
    for edit in some:
        changed = {name for name in edit.before._fields if getattr(edit.before, name) != getattr(edit.after, name)}
        assert changed - {"depth"} == {kind}
        assert edit.source.replace(getattr(edit.before, kind), getattr(edit.after, kind)) == edit.target != edit.source
        assert not {(a.colour, a.shape) for a in (edit.before, edit.after)} & set(HELD_OUT)
    assert {getattr(edit.after, kind) for edit in some} == set(KINDS[kind])
    assert str(edits(kind, 5)) == str(some[:5]) != str(edits(kind, 5, seed=1))


@kinds
def test_done_means_what_was_asked_for_and_in_its_place(kind):
    some = edits(kind, 20)
    after, before = (read_shapes(images) for images in (ideal(some), originals(some, 64)))
    assert all(map(done, some, after)) and not any(map(done, some, before))
    edit, (a,) = some[0], after[0]
    assert not done(edit, ()) and not done(edit, (a, a))
    assert done(edit, (a._replace(x=a.x + 0.09),)) and not done(edit, (a._replace(y=a.y - 0.12),))
    for other, names in KINDS.items():
        assert not done(edit, (a._replace(**{other: next(n for n in names if n != getattr(a, other))}),))


@kinds
def test_the_right_edit_spoils_nothing(kind):
    some = edits(kind, 30)
    mask, here = untouched(some, 64), originals(some, 64)
    assert mask.shape == (30, 1, 64, 64) and (mask.flatten(1).mean(1) > (0.01 if kind == "background" else 0.5)).all()
    assert_close(spoilt(ideal(some), here, mask), torch.zeros(30))
    assert ((ideal(some) - here).abs().amax(1, keepdim=True) * (1 - mask)).flatten(1).amax(1).min() > 0.2


def test_spoilt_is_the_mean_of_what_should_have_stayed():
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    image = torch.zeros(1, 3, 4, 4)
    image[..., 0] = 0.8                                           # half of what should stay, by 0.8
    image[..., 3] = 1                                             # what may change
    assert_close(spoilt(image, torch.zeros(1, 3, 4, 4), mask), torch.tensor([0.4]))


@kinds
def test_a_row_counts_what_was_done_and_spoilt(kind):
    some = edits(kind, 10)
    images = ideal(some)
    images[:3] = originals(some[:3], 64)                          # three edits that did nothing
    how = How(10, 4.0, 0.3, 3)
    row = mark(some, images, how)
    assert row[:-1] == (kind, how, 7, 10) and row.share == 0.7 and row.interval[0] < 0.7 < row.interval[1]
    assert row.spoilt == pytest.approx(0, abs=1e-6)
    assert mark(some, images * 0.9, how).spoilt > 0.03


def test_edited_asks_for_every_edit_in_its_words():
    asked = []

    def edit(image, source, target, steps, start, **options):
        asked.append((source, target, steps, start, options))
        return image * 0.5

    some = edits("shape", 5)
    images = edited(SimpleNamespace(edit=edit, size=32), some, How(3, 2.0, 0.0, 1), 20, batch=3)
    assert_close(images, originals(some, 32) / 2)
    told = {"guidance_scale": 2.0, "refine": 1, "borrow": 0.0}
    assert asked == [([e.source for e in part], [e.target for e in part], 20, 3, {"negative_prompt": [""] * len(part)} | told)
                     for part in (some[:3], some[3:])]
    edited(SimpleNamespace(edit=edit, size=32), some, How(3, 2.0, 0.3, 1), 20)
    sources = [e.source for e in some]                            # who borrows is led away from where it was
    assert asked[2][0] == sources and asked[2][4] == {"negative_prompt": sources, **told, "borrow": 0.3}


def test_edited_without_inversion_is_a_function_of_the_seed():
    asked = []

    def edit_by_difference(image, source, target, steps, start, generator, **options):
        asked.append((len(image), source, target, steps, start, options))
        return image * torch.rand((), generator=generator)

    some = edits("shape", 5)
    pipe = SimpleNamespace(edit_by_difference=edit_by_difference, size=32)
    one, again, other = (edited(pipe, some, How(3, 2.0, 0.5), 20, seed, batch=3) for seed in (0, 0, 1))
    assert_close(one, again)
    assert not one.allclose(other) and not (one[0] / one[4]).allclose(originals(some, 32)[0] / originals(some, 32)[4])
    told = {"guidance_scale": 2.0, "borrow": 0.5}
    assert asked[:2] == [(len(part), [e.source for e in part], [e.target for e in part], 20, 3, told)
                         for part in (some[:3], some[3:])]  # fmt: skip


def test_a_round_trip_is_measured_against_the_copy():
    class Pipe:
        size = 16

        def invert(self, image, texts, steps, scale, refine):
            assert (steps, scale, refine) == (20, 2.0, 1) and texts[0] == edits("colour", 4)[0].source
            return image + 0.25                                   # so much is lost on the way up

        def __call__(self, texts, latents, steps, guidance_scale, sampler):
            assert (steps, guidance_scale, sampler.__name__) == (20, 2.0, "ddim")
            return latents * 0.5

        def encode(self, image, sample):
            assert not sample
            return image

        def decode(self, z):
            return z * 0.5

    trip = round_trip(Pipe(), edits("colour", 4), 20, 1, 2.0)
    assert trip[:3] == (20, 1, 2.0) and trip.error == pytest.approx(0.125)


def test_what_there_is_not_is_refused():
    with pytest.raises(ValueError, match='"size": give one or more of colour, shape, background'):
        edits("size", 3)
    with pytest.raises(ValueError, match="0 edits"):
        edits("shape", 0)
