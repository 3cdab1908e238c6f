import math

import pytest
import torch

from minidiff.nets import ClassEmbedding, TimeEmbedding, drop_labels, sinusoidal


def test_sinusoidal_is_its_formula():
    waves = sinusoidal(torch.tensor([0, 3, 999]), 8)
    for row, t in enumerate((0, 3, 999)):
        for i in range(4):
            angle = t * 10_000 ** (-i / 4)
            assert waves[row, i].item() == pytest.approx(math.cos(angle), abs=1e-4)
            assert waves[row, 4 + i].item() == pytest.approx(math.sin(angle), abs=1e-4)


def test_sinusoidal_takes_fractions_and_stays_precise():
    assert not sinusoidal(torch.tensor([500.0]), 32).equal(sinusoidal(torch.tensor([500.5]), 32))
    assert sinusoidal(torch.tensor([999]), 8).dtype == torch.float32
    with pytest.raises(ValueError, match="even"):
        sinusoidal(torch.tensor([1]), 7)


@pytest.mark.parity
def test_sinusoidal_is_stable_diffusions():
    embeddings = pytest.importorskip("diffusers.models.embeddings", reason="diffusers is the oracle here")
    t = torch.tensor([0, 17, 999])
    wanted = embeddings.get_timestep_embedding(t, 64, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(sinusoidal(t, 64), wanted, rtol=1e-5, atol=1e-4)


def test_learned_frequencies_begin_as_the_fixed_ones_and_learn():
    torch.manual_seed(0)
    learned, t = TimeEmbedding(16, 32, learned=True), torch.tensor([1.0, 700.5])
    fixed = TimeEmbedding(16, 32)
    fixed.linear_1, fixed.linear_2 = learned.linear_1, learned.linear_2
    torch.testing.assert_close(learned(t), fixed(t), rtol=1e-3, atol=1e-3)
    learned(t).sum().backward()
    assert learned.frequencies.log_frequency.grad.abs().max() > 0


def test_class_embedding_has_one_class_more_than_classes():
    table = ClassEmbedding(10, 4)
    assert table.null_class == 10
    assert table(torch.tensor([0, 9, 10])).shape == (3, 4)
    for label in (-1, 11):
        with pytest.raises(ValueError, match="classes 0 to 9"):
            table(torch.tensor([3, label]))


def test_labels_are_dropped_as_often_as_asked(generator):
    y = torch.full((10_000,), 3)
    dropped = drop_labels(y, 10, 0.1, generator)
    assert set(dropped.unique().tolist()) == {3, 10}
    assert (dropped == 10).float().mean().item() == pytest.approx(0.1, abs=0.015)
    assert drop_labels(y, 10, 0.0).equal(y)
