"""Batches that can be taken up again at any step: each a function of the seed and its number alone."""

import itertools

import pytest
import torch

from minidiff.data.images import Images, batches, from_pixels


def numbered(n: int, labels: bool = True) -> Images:
    """n pictures (1, 2, 2): the left column holds the picture's number, the right one 200."""
    pixels = torch.full((n, 1, 2, 2), 200, dtype=torch.uint8)
    pixels[..., 0] = torch.arange(n, dtype=torch.uint8)[:, None, None]
    return Images(pixels, torch.arange(n) if labels else None)


def test_images_are_pairs_in_minus_one_to_one():
    images = Images(torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1), torch.tensor([2, 0, 1]), "abc")
    assert len(images) == 3 and [float(x) for x, _ in images] == pytest.approx([-1, -0.6, 1])
    assert [y for _, y in images] == [2, 0, 1] and images.classes == ["a", "b", "c"]
    assert images[-1][1] == 1 and images[0][0].dtype == torch.float32
    assert images.select([2, 0]).labels.tolist() == [1, 2]
    x, y = next(iter(torch.utils.data.DataLoader(numbered(4, labels=False), batch_size=4)))
    assert x.shape == (4, 1, 2, 2) and y.tolist() == [-1] * 4


@pytest.mark.parametrize("pixels, labels, word", [
    (torch.zeros(2, 1, 4, 4), None, "float32"),
    (torch.zeros(2, 4, 4, dtype=torch.uint8), None, r"\(2, 4, 4\)"),
    (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), r"shape \(2,\)"),
    (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2), "int64"),
    (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 2]), r"0\.\.1"),
])
def test_images_refuse(pixels, labels, word):
    with pytest.raises(ValueError, match=word):
        Images(pixels, labels, ["a", "b"])


def test_an_epoch_shows_every_picture_once_in_a_new_order():
    walk = batches(numbered(12), 4)
    first, second = ([y for _, y in itertools.islice(walk, 3)] for _ in range(2))
    assert sorted(torch.cat(first).tolist()) == sorted(torch.cat(second).tolist()) == list(range(12))
    assert torch.cat(first).tolist() != torch.cat(second).tolist() and torch.cat(first).tolist() != list(range(12))
    x, y = next(walk)
    assert torch.equal(x[:, 0, 0, 0], from_pixels(y.to(torch.uint8)))  # each picture with its own label
    assert x.dtype == torch.float32 and y.dtype == torch.int64


def test_incomplete_batches_are_dropped():
    sizes = [len(y) for _, y in itertools.islice(batches(numbered(10), 4), 6)]
    seen = torch.cat([y for _, y in itertools.islice(batches(numbered(10), 4), 2)])
    assert sizes == [4] * 6 and len(seen.unique()) == 8


@pytest.mark.parametrize("start", [1, 2, 3, 7])
def test_a_run_resumed_at_any_step_sees_what_it_would_have_seen(start):
    options = {"batch_size": 4, "flip": True, "seed": 3}
    whole = list(itertools.islice(batches(numbered(11), **options), 9))
    resumed = list(itertools.islice(batches(numbered(11), **options, start=start), 9 - start))
    for (x, y), (x_again, y_again) in zip(whole[start:], resumed, strict=True):
        assert torch.equal(x, x_again) and torch.equal(y, y_again)


def test_seeds_differ_and_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    walks = {seed: batches(numbered(64), 64, flip=True, seed=seed) for seed in (0, 1)}
    orders = {seed: [y.tolist() for _, y in itertools.islice(walk, 3)] for seed, walk in walks.items()}
    assert orders[0] != orders[1] and orders[0][1] != orders[1][0]  # nor is epoch 1 of seed 0 epoch 0 of seed 1
    assert torch.equal(before, torch.get_rng_state())


def test_flips_mirror_about_half_of_the_pictures_each_time_others():
    mirrored = []
    for x, y in itertools.islice(batches(numbered(100), 100, flip=True), 2):
        numbers = from_pixels(y.to(torch.uint8))
        flipped = x[:, 0, 0, 1] == numbers
        other_side = torch.where(flipped, x[:, 0, 0, 0], x[:, 0, 0, 1])
        assert torch.equal(other_side, from_pixels(torch.full((100,), 200)))
        assert 30 < int(flipped.sum()) < 70
        mirrored.append(flipped.tolist())
    assert mirrored[0] != mirrored[1]


def test_batches_without_labels():
    x, y = next(batches(numbered(4, labels=False), 2))
    assert x.shape == (2, 1, 2, 2) and y is None


@pytest.mark.parametrize("options, word", [({"batch_size": 5}, "batch_size = 5.*4 images"), ({"batch_size": 0}, "batch_size"),
                                           ({"batch_size": 1, "start": -1}, "start")])
def test_batches_refuse_at_the_call(options, word):
    with pytest.raises(ValueError, match=word):
        batches(numbered(4), **options)


@pytest.mark.gpu
def test_batches_on_a_gpu_are_those_of_the_cpu():
    here, there = (next(batches(numbered(8), 4, device, flip=True)) for device in ("cpu", "cuda"))
    assert there[0].is_cuda and torch.equal(here[0], there[0].cpu()) and torch.equal(here[1], there[1].cpu())
