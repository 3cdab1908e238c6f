"""The oracle reads what the renderer wrote, forgives what a sampler does to it, and refuses what is no shape."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from minidiff.data.blobs import connected, fit_background
from minidiff.data.oracle import matches, read_shapes
from minidiff.data.shapes import BACKGROUNDS, COLOURS, Attributes, Shapes, draw, hidden, silhouettes
from minidiff.evaluation.calibration import no_shapes


def right(scenes, images):
    """The share of images in which exactly the objects that are there were read."""
    truth = [sorted((a.shape, a.colour) for a in scenes.attributes(i)) for i in range(len(scenes))]
    read = [sorted((a.shape, a.colour) for a in reading) for reading in read_shapes(images)]
    return sum(t == r for t, r in zip(truth, read, strict=True)) / len(truth)


def noise(images, sigma):
    return images + sigma * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))


def paint(cover, scenes, rgb=None):
    """Images (n, 3, H, W) with `cover` (n, H, W) laid in each scene's colour on its background."""
    things = [scenes.attributes(i)[0] for i in range(len(scenes))]
    edges = torch.tensor([BACKGROUNDS[a.background] for a in things])[..., None, None]               # (n, 2, 3, 1, 1)
    down = torch.linspace(0, 1, cover.shape[-1]).view(1, 1, -1, 1)
    background = edges[:, 0] + down * (edges[:, 1] - edges[:, 0])
    colour = torch.tensor([rgb or COLOURS[a.colour] for a in things])[..., None, None]
    return (background + cover.unsqueeze(1) * (colour - background)) * 2 - 1


@pytest.fixture(scope="module")
def scenes():
    return Shapes(300, seed=11)


@pytest.fixture(scope="module")
def images(scenes):
    return scenes.tensors()[0] / 127.5 - 1


def test_clean_scenes_are_read_without_error(scenes, images):
    assert right(scenes, images) >= 0.995
    larger = Shapes(60, 64, seed=12)
    assert right(larger, larger.tensors()[0] / 127.5 - 1) == 1


def test_numbers_and_words_are_those_of_the_scene(scenes, images):
    for i, reading in enumerate(read_shapes(images)):
        truth, found = scenes.attributes(i)[0], reading[0]
        assert max(abs(truth.x - found.x), abs(truth.y - found.y)) < 0.01 and abs(truth.radius - found.radius) < 0.01
        assert (truth.size, truth.background) == (found.size, found.background)
        assert 0.9 < found.confidence <= 1 and math.isnan(found.depth)
        if min(abs(v - edge) for v in (truth.x, truth.y) for edge in (0.4, 0.6)) > 0.01:
            assert truth.position == found.position


def test_noise_blur_and_tint_are_forgiven(scenes, images):
    generator = torch.Generator().manual_seed(1)
    assert right(scenes, noise(images, 0.1)) >= 0.99
    assert right(scenes, noise(images, 0.2)) >= 0.95
    kernel = torch.tensor([1.0, 2, 1]).view(1, 1, 3, 1) / 4
    blurred = F.pad(images, (1,) * 4, mode="replicate")
    for turn in (kernel, kernel.transpose(2, 3)):
        blurred = F.conv2d(blurred, turn.repeat(3, 1, 1, 1), groups=3)
    assert right(scenes, blurred) >= 0.99
    assert right(scenes, images + 0.1 * torch.randn(300, 3, 1, 1, generator=generator)) >= 0.98


def test_under_heavy_noise_it_refuses_rather_than_guesses(scenes, images):
    truth = [[(a.shape, a.colour) for a in scenes.attributes(i)] for i in range(300)]
    read = [[(a.shape, a.colour) for a in reading] for reading in read_shapes(noise(images, 0.3))]
    assert sum(map(bool, read)) > 100
    assert sum(r not in ([], t) for t, r in zip(truth, read, strict=True)) <= 2


def test_two_objects_are_counted_and_told_apart():
    pairs = Shapes(60, seed=13, objects=2)
    assert right(pairs, torch.stack([scene.image for scene in pairs])) >= 0.98
    assert all(r == tuple(sorted(r, key=lambda a: a.x)) for r in read_shapes(pairs[3].image[None]))


def test_a_partly_hidden_object_is_measured_whole():
    near = Attributes("circle", "red", "large", "centre", 0.62, 0.5, 0.24, 0.25, "white")
    far = near._replace(shape="square", colour="blue", x=0.33, depth=0.5)
    left, right_one = read_shapes(draw([[near, far]], 64)[0][0] / 127.5 - 1)
    assert (left.shape, left.colour, right_one.shape, right_one.colour) == ("square", "blue", "circle", "red")
    assert abs(left.x - 0.33) < 0.015 and abs(left.radius - 0.24) < 0.015


@pytest.mark.parametrize("size", [32, 64])
def test_blank_images_and_noise_hold_nothing(size):
    generator = torch.Generator().manual_seed(2)
    some = Shapes(16, size, seed=3)
    coarse = torch.randn(16, 3, 4, 4, generator=generator)
    for images in (paint(torch.zeros(16, size, size), some), torch.rand(16, 3, size, size, generator=generator) * 2 - 1,
                   torch.randn(16, 3, size, size, generator=generator).clamp(-1, 1),
                   F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(-1, 1)):
        assert read_shapes(images) == [()] * 16


def test_halves_rings_and_other_colours_are_refused():
    some = Shapes(80, seed=4)
    things = [some.attributes(i)[0] for i in range(80)]
    whole, y, x = silhouettes(things, 32), *torch.meshgrid(*[(torch.arange(32) + 0.5) / 32] * 2, indexing="ij")
    cx, cy = (torch.tensor(v).view(-1, 1, 1) for v in zip(*((a.x, a.y) for a in things), strict=True))
    assert sum(map(len, read_shapes(paint(whole, some)))) == 80
    ring = whole - silhouettes(things, 32, grow=0.55)
    for cut in (whole * (x < cx), whole * (y > cy), whole * (x - cx > y - cy), ring):
        assert read_shapes(paint(cut, some)) == [()] * 80
    assert read_shapes(paint(whole, some, rgb=(0.45, 0.28, 0.12))) == [()] * 80            # brown


def test_blobs_are_mostly_refused():
    some, generator = Shapes(200, seed=5), torch.Generator().manual_seed(6)
    y, x = torch.meshgrid(*[(torch.arange(32) + 0.5) / 32 - 0.5] * 2, indexing="ij")
    angle, outline = torch.atan2(y, x), torch.ones(200, 32, 32)
    for k in range(2, 6):                                         # a circle whose radius wanders by 40 %
        size, phase = torch.randn(200, 1, 1, generator=generator), torch.rand(200, 1, 1, generator=generator)
        outline = outline + 0.4 * size / k**0.5 * torch.cos(k * angle + 2 * math.pi * phase)
    cover = ((0.22 * outline - (x * x + y * y).sqrt()) * 32 + 0.5).clamp(0, 1)
    assert sum(map(len, read_shapes(paint(cover, some)))) <= 10


def test_at_64_pixels_pairs_that_overlap_are_read_without_error():
    pairs = Shapes(48, 64, seed=14, objects=2)
    assert sum(hidden(*pairs.attributes(i)) > 0 for i in range(48)) > 10
    images = torch.stack([scene.image for scene in pairs])
    assert right(pairs, images) == 1
    assert right(pairs, noise(images, 0.1)) >= 0.97


def test_pieces_of_one_object_are_put_together():
    far = Attributes("cross", "cyan", "large", "centre", 0.5, 0.5, 0.24, 0.5, "white")
    near = far._replace(shape="circle", colour="red", size="small", depth=0.25, radius=0.14)        # leaves four ends
    read = sorted((a.shape, a.colour, a.size) for a in read_shapes(draw([[far, near]], 64)[0][0] / 127.5 - 1))
    assert read == [("circle", "red", "small"), ("cross", "cyan", "large")]


def test_at_64_pixels_what_is_no_shape_is_refused():
    for kind, images in no_shapes(48, 64, seed=15).items():
        assert sum(map(bool, read_shapes(images))) <= (2 if kind == "blobs" else 0), kind


def test_matches(scenes, images):
    a = scenes.attributes(0)[0]
    assert matches(images[0], a.shape, a.colour) is True
    assert matches(images[0], "cross" if a.shape != "cross" else "star", a.colour) is False
    assert matches(images, a.shape, a.colour).sum() == (scenes.labels == scenes.labels[0]).sum()
    with pytest.raises(ValueError, match="teal"):
        matches(images[0], "star", "teal")


def test_min_confidence_zero_shows_what_was_tried(scenes):
    half = paint(silhouettes([scenes.attributes(0)[0]], 32) * (torch.arange(32) < scenes.attributes(0)[0].x * 32),
                 Shapes(1, seed=11))
    assert read_shapes(half) == [()]
    assert [a.confidence < 0.5 for a in read_shapes(half, min_confidence=0)[0]] == [True]


def test_connected_regions_are_those_of_scipy():
    labels = (torch.rand(6, 20, 20, generator=torch.Generator().manual_seed(7)) * 3).long()
    ours = connected(labels)
    assert ((ours > 0) == (labels > 0)).all()
    for b in range(6):
        for value in (1, 2):
            theirs, count = ndimage.label(labels[b].numpy() == value)
            regions = {(int(o), int(t)) for o, t in zip(ours[b].flatten(), theirs.flatten(), strict=True) if t}
            assert len(regions) == count == len({o for o, _ in regions})


def test_a_spiral_is_one_region():
    spiral, y, x, dy, dx = torch.zeros(1, 33, 33, dtype=torch.long), 0, 0, 0, 1
    spiral[0, 0, 0] = 1
    for _ in range(1000):
        y2, x2, y3, x3 = y + dy, x + dx, y + 2 * dy, x + 2 * dx
        free = 0 <= y2 < 33 and 0 <= x2 < 33 and not (0 <= y3 < 33 and 0 <= x3 < 33 and spiral[0, y3, x3])
        if free:
            y, x = y2, x2
            spiral[0, y, x] = 1
        else:
            dy, dx = dx, -dy
    assert spiral.sum() > 400 and connected(spiral).unique().tolist() == [0, int(spiral.flatten().nonzero().max()) + 1]


def test_the_background_is_fitted_under_an_object_at_the_border():
    image = torch.linspace(0, 1, 32).view(1, 1, 32, 1).expand(1, 3, 32, 32).clone()
    truth = image.clone()
    image[:, :, 10:20, :6] = torch.tensor([0.9, 0.1, 0.1]).view(1, 3, 1, 1)
    assert (fit_background(image) - truth).abs().max() < 0.02


@pytest.mark.parametrize(("image", "message"), [(torch.zeros(1, 32, 32), "give"), (torch.zeros(3, 32, 16), "give"),
                                                (torch.zeros(3, 4, 4), "8 or more"), (torch.zeros(32, 32), "give"),
                                                (torch.full((3, 32, 32), math.nan), "nan")])
def test_bad_images_are_named(image, message):
    with pytest.raises(ValueError, match=message):
        read_shapes(image)
