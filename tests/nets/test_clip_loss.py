"""CLIP's answer as a loss: the angle, the cuts, and that a picture can be led by it."""

import math

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

from minidiff.diffusion import GaussianDenoiser, Schedule, ddim, guided, sample
from minidiff.nets import CLIP, clip_loss, cuts

TEXT = {"vocab": 30, "length": 7, "dim": 16, "layers": 1, "heads": 2, "projection": 10, "eos": 29}
IMAGE = {"size": 12, "patch": 4, "dim": 24, "layers": 1, "heads": 3, "projection": 10}


@pytest.fixture
def clip(generator):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = CLIP(TEXT, IMAGE).double().eval()
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.2 * torch.randn_like(p))                 # a new network hardly looks at anything
        return net


@pytest.fixture
def images(generator):
    return torch.rand(3, 3, 12, 12, generator=generator, dtype=torch.float64) * 2 - 1


@pytest.fixture
def text(generator):
    return torch.randn(10, generator=generator, dtype=torch.float64)


def seeded():
    return torch.Generator().manual_seed(7)


def test_it_is_half_the_squared_angle(clip, images, text):
    angle = (clip.encode_image(images) @ normalize(text, dim=0)).arccos()
    assert_close(clip_loss(clip, text, n_cuts=0)(images), (angle**2 / 2).sum())
    each = torch.stack([text, -text, text.flip(0)])
    angles = (clip.encode_image(images) * normalize(each, dim=1)).sum(1).arccos()
    assert_close(clip_loss(clip, each, n_cuts=0)(images), (angles**2 / 2).sum())


def test_over_cuts_it_is_their_mean(clip, images, text):
    seen = clip.encode_image(cuts(images, 5, 12, 0.4, generator=seeded()))
    angle = (seen @ normalize(text, dim=0)).arccos().view(3, 5)
    assert_close(clip_loss(clip, text, 5, 0.4, generator=seeded())(images), (angle**2 / 2).mean(1).sum())


def test_its_gradient_is_that_of_finite_differences(clip, images, text):
    def loss(x):
        return clip_loss(clip, text, 4, generator=seeded())(x)

    x = images[:1].requires_grad_()
    slope = torch.autograd.grad(loss(x), x)[0].flatten()
    for i in range(0, x.numel(), 29):
        step = torch.zeros_like(x).view(-1)
        step[i] = 1e-5
        along = (loss(x + step.view_as(x)) - loss(x - step.view_as(x))) / 2e-5
        assert abs(along - slope[i]) < 1e-7
    assert slope.abs().max() > 1e-4


def test_a_walk_is_led_by_it(clip, text, generator):
    x, levels = torch.randn(2, 3, 12, 12, generator=generator, dtype=torch.float64), Schedule.linear().levels(20)
    plain, look = GaussianDenoiser(0.0, 0.4), clip_loss(clip, text, n_cuts=0)
    steered = guided(plain, clip_loss(clip, text, 4, generator=generator), 300.0)
    ends = [look(sample(ddim, denoise, x, levels, progress=False)) for denoise in (plain, steered)]
    assert ends[1] < 0.8 * ends[0]


def test_any_size_is_resized(clip, text):
    grey = [clip_loss(clip, text, n_cuts)(torch.full((1, 3, size, 2 * size), 0.25, dtype=torch.float64))
            for size in (8, 12, 40) for n_cuts in (0, 3)]  # fmt: skip
    assert_close(torch.stack(grey), grey[0].expand(6))            # of one grey, every cut and every size looks alike


# ---- the cuts -------------------------------------------------------------------------------------------------------


def places(n, smallest, flip):
    """Cuts of a picture that says where it is: x in the first channel, y in the second, from -1 to 1."""
    at = (torch.arange(64) + 0.5) / 32 - 1
    picture = torch.stack([at.expand(64, 64), at.view(-1, 1).expand(64, 64), torch.zeros(64, 64)])[None]
    return cuts(picture, n, 16, smallest, flip, seeded())


def test_cuts_are_of_all_sizes_between_and_stay_inside():
    seen = places(400, 0.5, False)
    side = (seen[:, 0, 8, -1] - seen[:, 0, 8, 0]) / 2 * 16 / 15  # width of the frame in units of the picture's
    turned = (seen[:, 1, 8, -1] - seen[:, 1, 8, 0]).abs() / 2
    assert 0.48 < side.min() < 0.55 and 0.93 < side.max() < 1.01
    assert 0.02 < turned.max() <= math.sin(5 * math.pi / 180) + 0.01
    middle = seen[:, :2, 7:9, 7:9].mean((2, 3))
    assert (middle.abs() < 0.52).all() and middle.abs().max() > 0.4 and abs(middle.mean()) < 0.05


def test_half_of_them_are_mirrored_unless_told():
    for flip, share in ((True, 0.5), (False, 0)):
        mirrored = (places(400, 0.5, flip)[:, 0, 8, -1] < places(400, 0.5, flip)[:, 0, 8, 0]).float().mean()
        assert abs(mirrored - share) < 0.08


@pytest.mark.parametrize("flip", [True, False])
def test_squares_stay_squares(flip):
    seen = places(400, 0.5, flip)[:, :2, 4:12, 4:12]
    right, down = seen[..., 0, -1] - seen[..., 0, 0], seen[..., -1, 0] - seen[..., 0, 0]
    assert_close(right.norm(dim=1), down.norm(dim=1), rtol=1e-3, atol=1e-3)
    assert (right * down).sum(1).abs().max() < 1e-3


def test_those_of_an_image_stand_together(images):
    seen = cuts(torch.stack([torch.full((3, 8, 8), v) for v in (-1.0, 0.0, 1.0)]), 4, 6)
    assert seen.shape == (12, 3, 6, 6)
    assert_close(seen.mean((1, 2, 3)), torch.tensor([-1.0] * 4 + [0.0] * 4 + [1.0] * 4))


def test_what_cannot_be_is_refused_before_anything_is_asked(clip, images, text):
    with pytest.raises(ValueError, match=r"text features are \(7,\).*10 numbers"):
        clip_loss(clip, text[:7])
    with pytest.raises(ValueError, match="-1 cuts"):
        clip_loss(clip, text, -1)
    with pytest.raises(ValueError, match="of 1.5 of a side"):
        clip_loss(clip, text, 4, 1.5)
    with pytest.raises(ValueError, match="2 texts for 3 images"):
        clip_loss(clip, text.expand(2, 10), 4)(images)
