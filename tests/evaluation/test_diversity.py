"""Variety of images whose variety is known."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from minidiff.data.shapes import SHAPES, Attributes, Shapes, draw
from minidiff.evaluation.diversity import OPEN, PROMPTS, diversity, entropy, mean_distance, real_images


def look(images):
    return normalize(images.flatten(1), dim=1)


def pictures(*scenes, size=32):
    return draw(list(scenes), size)[0] / 127.5 - 1


def star(colour="red", x=0.5, y=0.5, size="small"):
    return [Attributes("star", colour, size, "", x, y, {"small": 0.15, "large": 0.28}[size], 0.5, "white")]


def test_who_always_draws_the_same_has_none():
    d = diversity([pictures(*[star()] * 8)], 4, look)
    assert d.facts == 0 and d.distance == pytest.approx(0, abs=1e-6) and (d.read, d.n) == (8, 8)
    assert d.entropies == dict.fromkeys(OPEN, 0)


def test_prompts_vary_each_for_itself():
    """Four red stars, then four blue ones: two prompts that each know one answer."""
    d = diversity([pictures(*[star()] * 4, *[star("blue")] * 4)], 4, look)
    assert d.facts == 0 and d.distance == pytest.approx(0, abs=1e-6)
    assert diversity([pictures(*[star()] * 4, *[star("blue")] * 4)], 8, look).entropies["colour"] > 0.3


def test_only_images_with_one_object_count():
    both = [*star(x=0.25, y=0.25), *star("blue", 0.75, 0.75)]
    blank = star(x=9.0)
    d = diversity([pictures(star("red"), star("blue")), pictures(both, blank), pictures(star(), both, both, blank)], 4)
    assert (d.read, d.n, d.distance) == (3, 8, None)
    assert d.entropies["colour"] == entropy(["red", "blue"], 8) and d.entropies["background"] == 0
    assert d.facts == pytest.approx(np.mean(list(d.entropies.values())))
    nothing = diversity([pictures(blank, blank)], 2)
    assert nothing.facts is None and nothing.entropies == {} and nothing.read == 0


def test_an_image_does_not_vary_alone():
    with pytest.raises(ValueError, match="each = 1"):
        diversity([pictures(star())], 1)


def test_real_scenes_are_nearly_as_varied_as_can_be():
    d = diversity(real_images(24, 32, 3), 24, look)
    assert d.n == 24 * len(SHAPES) == 24 * len(PROMPTS) and d.read > 0.98 * d.n
    assert 0.9 < d.facts <= 1 and all(0.85 < x <= 1 for x in d.entropies.values()) and d.distance > 0.2
    a, b = (torch.cat(list(real_images(2, 16, seed))) for seed in (3, 3))
    assert a.equal(b) and not a.equal(torch.cat(list(real_images(2, 16, 4))))


def test_facts_are_what_scenes_are_made_of():
    things = [Shapes(400, 32, 5).attributes(i)[0] for i in range(400)]
    assert {fact: len({getattr(a, fact) for a in things}) for fact in OPEN} == OPEN


def test_entropy():
    assert entropy(["a"] * 9, 4) == 0
    assert entropy(["a", "b"] * 5000, 2) == pytest.approx(1, abs=1e-3)
    assert entropy(["a", "b"] * 5000, 4) == pytest.approx(0.5, abs=1e-3)
    assert entropy(["a", "a", "b"], 16) == pytest.approx(
        ((2 / 3) * math.log(3 / 2) + (1 / 3) * math.log(3) + 1 / 6) / math.log(16))  # fmt: skip


def test_entropy_of_few_is_nearly_that_of_many():
    random = np.random.default_rng(0)
    p = [0.4, 0.3, 0.1, 0.1, 0.05, 0.05]
    truth = -sum(x * math.log(x) for x in p) / math.log(8)
    few = np.mean([entropy(random.choice(6, 20, p=p).tolist(), 8) for _ in range(2000)])
    assert abs(few - truth) < 0.025  # without Miller's term it is 0.07 less


def test_distance_is_the_mean_over_pairs(generator):
    f = normalize(torch.randn(7, 5, generator=generator), dim=1)
    pairs = [1 - float(f[i] @ f[j]) for i in range(7) for j in range(7) if i != j]
    assert mean_distance(f) == pytest.approx(np.mean(pairs), rel=1e-5)
    assert mean_distance(torch.eye(6)) == pytest.approx(1)
