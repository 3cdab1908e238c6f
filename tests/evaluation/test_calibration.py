"""Calibration counts as it says: a perfect reader has ones, and one that misses, invents or errs is told from it."""

import pytest
import torch

from minidiff.data.shapes import Shapes
from minidiff.evaluation import calibration
from minidiff.evaluation.calibration import blur, calibrate, damages, half_size, jpeg, marks, no_shapes, noise, table

TRUTH = [Shapes(4, seed=1, objects=2).attributes(i) for i in range(4)]


def test_a_perfect_reader_has_ones_and_others_lose_what_they_lose():
    precision, recall, count = marks(TRUTH, TRUTH)
    assert set(precision.values()) == set(recall.values()) == {1.0} and count == 1
    precision, recall, count = marks([TRUTH[0], *[t[:1] for t in TRUTH[1:]]], TRUTH)          # three objects are missed
    assert (precision["shape"], recall["shape"], recall["object"], count) == (1, 5 / 8, 5 / 8, 1 / 4)
    twice = [(*t, t[0]) for t in TRUTH]                                                       # four are invented
    precision, recall, count = marks(twice, TRUTH)
    assert (precision["object"], recall["object"], count) == (8 / 12, 1, 0)
    wrong = [tuple(a._replace(colour="none", position="nowhere") for a in t) for t in TRUTH]
    precision, recall, count = marks(wrong, TRUTH)
    assert (recall["colour"], recall["position"], recall["object"], recall["shape"], count) == (0, 0, 0, 1, 1)
    away = [tuple(a._replace(x=a.x + 1) for a in t) for t in TRUTH]
    assert marks(away, TRUTH)[1]["shape"] == 0


def test_damages_do_what_they_say():
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    flat = torch.full((1, 3, 32, 32), 0.3)
    for name, damage in damages(32).items():
        assert damage(images).shape == images.shape
        assert torch.equal(damage(images), images) == (name == "clean")
        assert (damage(flat) - flat).abs().mean() < 0.3
    assert torch.allclose(blur(flat, 1.5), flat, atol=1e-6) and torch.allclose(half_size(flat), flat, atol=1e-6)
    point = torch.zeros(1, 3, 33, 33)
    point[..., 16, 16] = 1
    spread = (blur(point, 1.5)[0, 0].sum(0) * (torch.arange(33) - 16).square()).sum()
    assert abs(spread - 1.5**2) < 0.05
    assert abs(noise(0 * images, 0.1).std() - 0.1) < 0.005
    assert (jpeg(images, 95) - images).abs().mean() < (jpeg(images, 30) - images).abs().mean()


def test_calibration_finds_the_oracle_right_where_it_should_be(monkeypatch):
    monkeypatch.setattr(calibration, "damages", lambda size: {"clean": lambda x: x, "noise 1.5": lambda x: noise(x, 1.5)})
    clean, loud, rebuilt = calibrate(12, 64, rebuild=lambda x: x)
    assert set(clean.recall.values()) == {1.0} and clean.count == 1 and min(clean.refused.values()) >= 11 / 12
    assert loud.recall["object"] < 0.2 and rebuilt.recall == clean.recall and rebuilt.damage == "autoencoder"
    lines = table([clean, loud]).split("\n")
    assert len(lines) == 4 and "| clean | 100.0 |" in lines[2] and len({line.count("|") for line in lines}) == 1


def test_no_shapes_are_painted_and_bad_arguments_named():
    for name, images in no_shapes(3, 32).items():
        assert images.shape == (3, 3, 32, 32) and images.abs().max() <= 1 and images.std() > 0.05, name
    with pytest.raises(ValueError, match="even size"):
        next(calibrate(2, 33))
