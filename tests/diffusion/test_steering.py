"""Guidance by gradients: every one of them against finite differences, in float64."""

import pytest
import torch
from torch.testing import assert_close

from minidiff.diffusion import (
    CLEAN,
    DatasetDenoiser,
    GaussianDenoiser,
    Level,
    Schedule,
    add_noise,
    classifier_guided,
    color_loss,
    ddim,
    denoiser,
    guided,
    sample,
)

SCHEDULES = {"vp": Schedule.linear(), "flow": Schedule.flow(shift=3.0)}
SHAPE = (2, 3, 4, 4)


@pytest.fixture
def xt(generator):
    return torch.randn(SHAPE, generator=generator, dtype=torch.float64)


@pytest.fixture
def net(generator):
    """A small network that mixes all pixels, and knows its timestep."""
    first, second = (torch.randn(48, 48, generator=generator, dtype=torch.float64) / 7 for _ in range(2))

    def answer(xt, t):
        hidden = torch.tanh(xt.flatten(1) @ first + t.view(-1, 1) / 1000)
        return (hidden @ second).view_as(xt)

    return answer


def smooth(x0):
    """A loss without corners: finite differences cannot cross any."""
    return (x0 - 0.3).pow(2).mean() * 2 + (x0[:, 0] * x0[:, 1]).sin().sum()


def smooth_alone(x0):
    """The same for every image by itself."""
    return (x0 - 0.3).pow(2).sum() * 0.1


def slope_of(function, x, h=1e-5):
    """d function / dx by central differences, entry by entry."""
    slope = torch.zeros_like(x)
    for i in range(x.numel()):
        step = torch.zeros_like(x).view(-1)
        step[i] = h
        slope.view(-1)[i] = (function(x + step.view_as(x)) - function(x - step.view_as(x))) / (2 * h)
    return slope


@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "flow"])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("through_net", [False, True])
def test_guided_is_its_formula_with_finite_differences(xt, net, predicts, schedule, through_net):
    level, scale = schedule.at(600), 0.7
    level = Level(level.t, float(level.alpha), float(level.sigma))
    plain = denoiser(net, predicts)
    x0, eps = plain(xt, level)
    if through_net:
        slope = slope_of(lambda x: smooth(plain(x, level).x0), xt)
    else:
        slope = slope_of(smooth, x0) * level.alpha / (level.alpha**2 + level.sigma**2)
    got = guided(plain, smooth, scale, through_net)(xt, level)
    assert_close(got.eps, eps + scale * level.sigma * slope, rtol=1e-5, atol=1e-8)
    assert_close(got.x0, x0 - scale * level.sigma**2 / level.alpha * slope, rtol=1e-5, atol=1e-8)
    assert (got.eps - eps).abs().max() > 1e-3                     # it was no comparison of nothing with nothing
    assert_close(add_noise(got.x0, got.eps, level), xt)


def test_a_level_for_each_image(xt, net):
    levels = SCHEDULES["vp"].at(torch.tensor([100, 800]))
    for through_net in (False, True):
        both = guided(denoiser(net), smooth_alone, 1.0, through_net)(xt, levels)
        for i, t in enumerate((100, 800)):
            alone = guided(denoiser(net), smooth_alone, 1.0, through_net)(xt[i : i + 1], SCHEDULES["vp"].at(t))
            assert_close(both.x0[i : i + 1], alone.x0, rtol=1e-5, atol=1e-6)


def test_through_the_network_it_moves_along_the_covariance(generator):
    """Tweedie's second formula: sigma^2 / alpha * dx0/dx_t is the covariance of x0 given x_t, here of a heap of points."""
    data = torch.randn(12, 3, 1, 1, generator=generator, dtype=torch.float64)
    level = Level(500, 0.6, 0.8)
    xt = add_noise(data[:1], torch.randn(1, 3, 1, 1, generator=generator, dtype=torch.float64), level)
    plain = DatasetDenoiser(data)
    a = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    moved = plain(xt, level).x0 - guided(plain, lambda x0: (x0.flatten(1) @ a).sum(), 1.0, True)(xt, level).x0
    chance = torch.softmax(-((xt - level.alpha * data).flatten(1) ** 2).sum(1) / (2 * level.sigma**2), 0)
    points = data.flatten(1)
    mean = chance @ points
    covariance = (points - mean).T @ (chance[:, None] * (points - mean))
    assert_close(moved.flatten(), covariance @ a, rtol=1e-6, atol=1e-9)


def test_for_white_data_the_guess_is_exact(xt):
    level = Level(500, 0.6, 0.8)
    cheap, dear = (guided(GaussianDenoiser(0.0, 1.0), smooth, 2.0, through)(xt, level) for through in (False, True))
    assert_close(cheap, dear)


def test_images_do_not_feel_each_other(xt, net):
    level = Level(500, 0.6, 0.8)
    for through_net in (False, True):
        denoise = guided(denoiser(net), color_loss((0.9, 0.2, 0.1)), 50.0, through_net)
        together, alone = denoise(xt, level), [denoise(x[None], level) for x in xt]
        assert_close(together.x0, torch.cat([a.x0 for a in alone]))


def test_it_lowers_the_loss_of_what_is_drawn(generator):
    levels, x = SCHEDULES["vp"].levels(40), torch.randn(4, 3, 8, 8, generator=generator)
    plain, loss = GaussianDenoiser(0.0, 0.5), color_loss((0.9, 0.9, 0.9))
    before = loss(sample(ddim, plain, x, levels, progress=False))
    for through_net in (False, True):
        ends = [loss(sample(ddim, guided(plain, loss, scale, through_net), x, levels, progress=False)) for scale in (100, 400)]
        assert before > ends[0] > ends[1]
        assert ends[1] < before / 2
    assert_close(sample(ddim, guided(plain, loss, 0.0), x, levels, progress=False),
                 sample(ddim, plain, x, levels, progress=False))  # fmt: skip


def test_a_finished_image_is_not_moved(xt):
    got = guided(lambda x, level: GaussianDenoiser(0.0, 1.0)(x, level), smooth, 5.0)(xt, CLEAN)
    assert_close(got.x0, xt)


@pytest.mark.parametrize(("loss", "match"), [
    (lambda x0: x0.flatten(1).mean(1), "shape \\(2,\\)"),
    (lambda x0: x0.mean() * torch.nan, "the loss is nan"),
    (lambda x0: x0.mean() / 0, "the loss is (-)?inf"),
    (lambda x0: 3.0, "the loss is a float"),
    (lambda x0: x0.detach().mean(), "depends on x0"),
    (color_loss((0.5,)), "images have 3 channels, and the colour 1"),
])  # fmt: skip
@pytest.mark.parametrize("through_net", [False, True])
def test_a_bad_loss_is_refused_before_the_network_is_asked(xt, loss, match, through_net):
    def never(xt, level):
        raise AssertionError("the network was asked")

    with pytest.raises(ValueError, match=match):
        guided(never, loss, 1.0, through_net)(xt, Level(500, 0.6, 0.8))


def test_a_loss_that_breaks_later_is_refused_then(xt):
    broken = guided(lambda xt, level: GaussianDenoiser(0.0, 1.0)(xt * 0, level), lambda x0: x0.pow(2).sum().log(), 1.0)
    with pytest.raises(ValueError, match="the loss is -inf"):
        broken(xt, Level(500, 0.6, 0.8))


def test_where_alpha_is_zero(xt, net):
    level = Level(999, 0.0, 1.0)
    got = guided(denoiser(net, "v"), smooth, 2.0)(xt, level)
    assert_close(got.eps, denoiser(net, "v")(xt, level).eps)
    for denoise in (guided(denoiser(net, "v"), smooth, 2.0, True), classifier_guided(denoiser(net, "v"), lambda x, t: x, 1.0)):
        with pytest.raises(ValueError, match="alpha is 0"):
            denoise(xt, level)


# ---- a classifier of noisy pictures ---------------------------------------------------------------------------------


def test_classifier_guided_is_its_formula_with_finite_differences(xt, net):
    level, plain = Level(500, 0.6, 0.8), denoiser(net)

    def log_prob(x, t):
        assert t.tolist() == [500, 500]
        return -(x - 0.2).pow(4).flatten(1).sum(1)

    slope = slope_of(lambda x: log_prob(x, torch.tensor([500, 500])).sum(), xt)
    x0, eps = plain(xt, level)
    got = classifier_guided(plain, log_prob, 0.1)(xt, level)
    assert_close(got.eps, eps - 0.1 * 0.8 * slope, rtol=1e-5, atol=1e-7)
    assert_close(add_noise(got.x0, got.eps, level), xt)
    with pytest.raises(ValueError, match="one number for each"):
        classifier_guided(plain, lambda x, t: x.sum(), 1.0)(xt, level)


def test_bayes_rule_turns_two_heaps_into_one(generator):
    """Data: -1 or 1, alike likely. With the exact probability of "it is 1" given x_t, the walk must end there."""
    heap = DatasetDenoiser(torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1))
    schedule = SCHEDULES["vp"]

    def log_prob(x, t):  # log p(1 | x_t) of two Gaussians of std sigma round -alpha and alpha
        level = schedule.at(t)
        alpha, sigma = level.like(x)
        return torch.nn.functional.logsigmoid(2 * alpha * x / sigma**2).flatten()

    x, levels = torch.randn(200, 1, 1, 1, generator=generator), schedule.levels(50)
    plain = sample(ddim, heap, x, levels, progress=False)
    steered = sample(ddim, classifier_guided(heap, log_prob, 1.0), x, levels, progress=False)
    assert 0.3 < (plain > 0).float().mean() < 0.7
    assert (steered > 0.99).float().mean() > 0.97


# ---- a colour -------------------------------------------------------------------------------------------------------


def test_color_loss_is_the_mean_difference_of_each_image():
    images = torch.zeros(2, 3, 5, 5)
    images[1] = torch.tensor([0.8, -0.6, 1.0]).view(3, 1, 1)
    loss = color_loss((0.9, 0.2, 1.0))
    assert_close(loss(images), torch.tensor((0.8 + 0.6 + 1.0) / 3))
    assert_close(loss(images[1:]), torch.tensor(0.0))


@pytest.mark.parametrize("rgb", [(0.9, 0.2, 1.1), (-0.1, 0, 0), ()])
def test_bad_colours_are_refused(rgb):
    with pytest.raises(ValueError, match="from 0 to 1"):
        color_loss(rgb)
