"""The oracle's colour as a loss: by hand, by finite differences, and by what it does to a picture."""

import math

import pytest
import torch
from torch.testing import assert_close

from minidiff.data import COLOURS, Shapes, objectness, palette_loss, read_shapes
from minidiff.data.palette import SPREAD
from minidiff.diffusion import DatasetDenoiser, Level, guided


def plain(*rgbs, size=8):
    """Pictures (n, 3, size, size) in float64, each of one colour, on a white border of one pixel."""
    images = torch.full((len(rgbs), 3, size, size), 0.98, dtype=torch.float64)
    images[:, :, 1:-1, 1:-1] = torch.tensor(rgbs, dtype=torch.float64)[:, :, None, None]
    return 2 * images - 1


@pytest.fixture
def images(generator):
    """Real scenes, a little noisy, so that no pixel is exactly of any colour."""
    scenes = Shapes(3, 8, seed=4, objects=2)
    grain = 0.05 * torch.randn(3, 3, 8, 8, generator=generator, dtype=torch.float64)
    return torch.stack([scene.image.double() for scene in scenes]) + grain


def test_by_hand():
    """Half way between red and orange hardly a third colour has a say: -log 1/2. At red it is little, at blue 23.4 nats."""
    red, orange, blue = (torch.tensor(COLOURS[name]) for name in ("red", "orange", "blue"))
    assert_close(palette_loss("red")(plain(((red + orange) / 2).tolist())).item(), math.log(2), atol=0.01, rtol=0)
    assert palette_loss("red")(plain(red.tolist())).item() < 0.03
    far = (red - blue).square().sum().item() / (2 * SPREAD**2)                # 0.73^2 + 0.17^2 + 0.7^2 = 1.0518, over 0.045
    assert_close(far, 23.37, atol=0.01, rtol=0)
    assert_close(palette_loss("red")(plain(blue.tolist())).item(), far, atol=0.03, rtol=0)


@pytest.mark.parametrize("background", [None, "white", "graded navy"])
def test_is_its_formula(images, background):
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float64)
    w, rgb, total = objectness(images, background), (images + 1) / 2, 0.0
    for i in range(3):
        above = sum(w[i, y, x] * -torch.softmax(-(rgb[i, :, y, x] - palette).square().sum(1) / (2 * 0.15**2), 0)[3].log()
                    for y in range(8) for x in range(8))  # fmt: skip
        total += above / w[i].sum()
    assert_close(palette_loss("green", background)(images), total)


def test_gradient_is_that_of_finite_differences_with_the_objects_held(images, monkeypatch):
    loss, held = palette_loss("purple"), objectness(images)
    x = images.clone().requires_grad_()
    slope = torch.autograd.grad(loss(x), x)[0]
    monkeypatch.setattr("minidiff.data.palette.objectness", lambda *_: held)
    for i in range(0, images.numel(), 7):
        step = torch.zeros_like(images).view(-1)
        step[i] = 1e-6
        step = step.view_as(images)
        assert_close(slope.view(-1)[i], (loss(images + step) - loss(images - step)) / 2e-6, rtol=1e-5, atol=1e-6)
    assert slope.abs().amax((1, 2, 3)).min() > 1e-2


def test_images_do_not_feel_each_other(images):
    loss = palette_loss("blue")
    assert_close(loss(images), sum(loss(image[None]) for image in images))


def test_background_is_no_object_whatever_its_colour():
    scenes = [Shapes(1, 32, seed=1, backgrounds=[name])[0] for name in ("white", "graded sand", "graded navy")]
    for scene in scenes:
        a, w = scene.attributes[0], objectness(scene.image[None])[0]
        assert w[scene.mask[0] == 0].mean() < 0.05 and w[scene.mask[0] == 1].mean() > 0.6
        assert_close(w, objectness(scene.image[None], a.background)[0], atol=0.1, rtol=0)
        losses = {colour: palette_loss(colour)(scene.image[None]).item() for colour in COLOURS}
        assert min(losses, key=losses.get) == a.colour                        # as the oracle would call it


def test_a_picture_without_objects_is_no_division_by_zero():
    x = torch.full((2, 3, 8, 8), 0.96).requires_grad_()
    value = palette_loss("red")(x)
    slope = torch.autograd.grad(value, x)[0]
    assert 0 <= value < 0.1 and slope.isfinite().all()


def test_descending_it_changes_the_colour_and_keeps_the_object():
    scenes = Shapes(12, 32, seed=9, shapes=["circle", "square"], backgrounds=["grey"])
    x = scenes.tensors()[0] / 127.5 - 1
    loss = palette_loss("red")
    for _ in range(120):
        x = x.detach().requires_grad_()
        x = x - 0.3 * torch.autograd.grad(loss(x), x)[0]
    readings = read_shapes(x.detach())
    wanted = [scenes.attributes(i)[0].shape for i in range(12)]
    assert sum([(a.shape, a.colour) for a in r] == [(shape, "red")] for r, shape in zip(readings, wanted, strict=True)) >= 11


def test_it_steers_a_walk_towards_the_red_pictures_of_a_dataset():
    colours = [name for name in COLOURS for _ in range(4)]
    data = torch.cat([Shapes(4, 16, seed=2, colours=[name], backgrounds=["white"], sizes=["large"]).tensors()[0]
                      for name in COLOURS]) / 127.5 - 1  # fmt: skip
    xt = 0.3 * data.mean(0, keepdim=True)                                     # nothing is decided yet
    level, all_of_them = Level(700, 0.3, 0.95), DatasetDenoiser(data)
    plain, moved = all_of_them(xt, level), guided(all_of_them, palette_loss("red", "white"), 0.3, through_net=True)(xt, level)
    nearer = [((moved.x0 - plain.x0) * (data[i] - plain.x0)).sum() for i in range(len(data))]
    means = {name: sum(n for n, c in zip(nearer, colours, strict=True) if c == name) for name in COLOURS}
    assert max(means, key=means.get) == "red"


@pytest.mark.parametrize(("colour", "background", "match"), [
    ("crimson", None, "no colour \"crimson\" in the palette: choose from red, orange, yellow"),
    ((1.0, 0, 0), None, "no colour"),
    ("red", "beach", "no background \"beach\": choose from white, graded grey"),
])  # fmt: skip
def test_names_that_do_not_exist_are_refused(colour, background, match):
    with pytest.raises(ValueError, match=match):
        palette_loss(colour, background)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 1, 8, 8), (2, 3, 8, 9)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="a palette is of"):
        palette_loss("red")(torch.zeros(shape))
