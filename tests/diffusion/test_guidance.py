"""Guidance by the network's own answers: sums of answers, contrast taken back, only where it helps."""

import pytest
import torch
from torch.testing import assert_close

from minidiff.diffusion import (
    CLEAN,
    Estimate,
    GaussianDenoiser,
    Schedule,
    add_noise,
    between,
    classifier_free,
    composed,
    ddim,
    denoiser,
    inpainting,
    perturbed_guidance,
    repaint,
    rescaled,
    sample,
    to_estimate,
)

LEVEL = Schedule.linear().at(600)
CONDS = [{"y": torch.tensor([1.0, 2.0])}, {"y": torch.tensor([5.0, -1.0])}]
UNCOND = {"y": torch.zeros(2)}


def net(xt, t, y):
    y = y.view(-1, 1, 1, 1)
    return xt * (0.5 + y / 9) + y**2


class Counting:
    """A network that counts the pictures it is asked about, call by call."""

    def __init__(self):
        self.rows = []

    def __call__(self, xt, t, y):
        self.rows.append(len(xt))
        assert len(xt) == len(t) == len(y)
        return net(xt, t, y)


@pytest.fixture
def xt(generator):
    return torch.randn(2, 1, 4, 4, generator=generator)


@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "flow"])
def test_composed_is_its_formula(xt, predicts):
    got = composed(net, CONDS, [3.0, -2.0], UNCOND, predicts)(xt, LEVEL)
    a, b, u = (net(xt, None, **c) for c in (*CONDS, UNCOND))
    for ours, expected in zip(got, to_estimate(u + 3 * (a - u) - 2 * (b - u), xt, LEVEL, predicts), strict=True):
        assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_one_condition_is_classifier_free(xt):
    assert_close(composed(net, CONDS[:1], [7.5], UNCOND)(xt, LEVEL), classifier_free(net, CONDS[0], UNCOND, 7.5)(xt, LEVEL))


@pytest.mark.parametrize(("scales", "rows"), [([3, 2], 6), ([0.25, 0.75], 4), ([0, 4], 4), ([0, 1], 2), ([0, 0], 2)])
def test_what_does_not_count_is_not_asked(xt, scales, rows):
    counting = Counting()
    composed(counting, CONDS, scales, UNCOND)(xt, LEVEL)
    assert counting.rows == [rows]


@pytest.mark.parametrize(("scale", "pag", "rows"), [(3.0, 1.5, 6), (1.0, 1.5, 4), (3.0, 0.0, 4)])
def test_perturbed_guidance_is_its_formula(xt, scale, pag, rows):
    asked = []

    def looking(x, t, y, blind):
        asked.append(len(x))
        return torch.where(blind.view(-1, 1, 1, 1), x.sin() - 2, net(x, t, y))

    got = perturbed_guidance(looking, CONDS[0], UNCOND, scale, pag, "x0")(xt, LEVEL)
    cond, uncond, blind = net(xt, None, **CONDS[0]), net(xt, None, **UNCOND), xt.sin() - 2
    wanted = uncond + scale * (cond - uncond) + pag * (cond - blind)
    for ours, expected in zip(got, to_estimate(wanted, xt, LEVEL, "x0"), strict=True):
        assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert asked == [rows]


def test_rescaled_gives_the_plain_contrast(xt):
    strong, plain = (classifier_free(net, CONDS[0], UNCOND, scale) for scale in (7.5, 1.0))
    x0 = strong(xt, LEVEL).x0
    wanted = plain(xt, LEVEL).x0.flatten(1).std(1)
    assert ((x0.flatten(1).std(1) - wanted).abs() > 0.1).all()
    for share in (0, 0.7, 1):
        got = rescaled(strong, plain, share)(xt, LEVEL)
        assert_close(got.x0.flatten(1).std(1), share * wanted + (1 - share) * x0.flatten(1).std(1))
        assert_close(add_noise(*got, LEVEL), xt)
    with pytest.raises(ValueError, match="share = 1.5"):
        rescaled(strong, plain, 1.5)


def test_between_asks_the_strong_one_in_its_interval_only():
    asked = []
    strong, plain = (lambda x, level, name=name: asked.append(name) or Estimate(x, x) for name in ("strong", "plain"))
    denoise = between(strong, plain, 0.3, 0.9)
    for sigma in (0.95, 0.9, 0.5, 0.3, 0.29):
        level = min(Schedule.linear().levels(1000), key=lambda level: abs(level.sigma - sigma))
        denoise(torch.zeros(1), type(level)(level.t, level.alpha, sigma))
    denoise(torch.zeros(1), CLEAN)
    assert asked == ["plain", "strong", "strong", "strong", "plain", "plain"]
    with pytest.raises(ValueError, match="sigma = 0.9 to 0.3"):
        between(strong, plain, 0.9, 0.3)


def test_bad_conditions_are_refused_before_the_network_is_asked():
    with pytest.raises(ValueError, match="2 conditions and 1 scales"):
        composed(net, CONDS, [1.0], UNCOND)
    with pytest.raises(ValueError, match="same questions"):
        composed(net, [{"context": torch.zeros(2)}], [1.0], UNCOND)


# ---- RePaint's repetition -------------------------------------------------------------------------------------------


def gaussian_pair(correlation):
    """The exact denoiser of two pixels, each N(0, 1), that are correlated: data whose halves belong together."""
    cov = torch.tensor([[1, correlation], [correlation, 1]], dtype=torch.float64)

    def denoise(xt, level):
        gain = level.alpha * cov @ torch.linalg.inv(level.alpha**2 * cov + level.sigma**2 * torch.eye(2, dtype=torch.float64))
        x0 = xt.flatten(1) @ gain.T
        eps = (xt.flatten(1) - level.alpha * x0) / level.sigma
        return Estimate(x0.view_as(xt), eps.view_as(xt))

    return denoise


def test_once_is_ddim(generator):
    levels, x = Schedule.linear().levels(7), torch.randn(3, 1, 1, 2, generator=generator).double()
    assert_close(sample(repaint, gaussian_pair(0.9), x, levels, progress=False, times=1),
                 sample(ddim, gaussian_pair(0.9), x, levels, progress=False))  # fmt: skip
    with pytest.raises(ValueError, match="times = 0"):
        next(repaint(gaussian_pair(0.9), x, levels, times=0))


def test_to_repeat_a_step_makes_the_new_belong_to_the_known(generator):
    """One pixel is known to be 1.5; the other is 0.9 * 1.5 on average. Blending alone forgets to look, repeating looks."""
    n, levels = 4000, Schedule.linear().levels(25)
    mask = torch.tensor([0.0, 1.0]).double().expand(n, 1, 1, 2)
    known, noise = torch.full((n, 1, 1, 2), 1.5).double(), torch.randn(n, 1, 1, 2, generator=generator).double()
    denoise = inpainting(gaussian_pair(0.9), known, mask, noise)
    means = {}
    for times in (1, 8):
        x = sample(repaint, denoise, noise, levels, progress=False, times=times, generator=generator)
        assert_close(x[..., 0], known[..., 0])
        means[times] = x[..., 1].mean().item()
    assert abs(means[8] - 1.35) < 0.1 < 0.5 < abs(means[1] - 1.35), means


@pytest.mark.parametrize("schedule", [Schedule.linear(), Schedule.flow()], ids=["vp", "flow"])
def test_noised_up_again_it_has_the_variance_of_its_level(schedule, generator):
    """All data is zero, so every x_t is noise: of std sigma at every level, however often the walk goes back."""
    levels, nothing = schedule.levels(10), GaussianDenoiser(0.0, 1e-9)
    x = levels[0].sigma * torch.randn(20_000, 1, 1, 2, generator=generator, dtype=torch.float64)
    for state in repaint(nothing, x, levels, 3, generator):
        assert abs(state.x.std().item() - state.level.sigma) < 0.02


def test_denoiser_is_untouched_by_an_all_black_and_all_replaced_by_an_all_white_mask(xt, generator):
    plain, noise = denoiser(net, y=CONDS[0]["y"]), torch.randn(xt.shape, generator=generator)
    known = torch.ones_like(xt)
    everything, nothing = (inpainting(plain, known, torch.full((2, 1, 4, 4), m), noise)(xt, LEVEL) for m in (1.0, 0.0))
    assert_close(everything, plain(xt, LEVEL))
    assert_close(nothing, Estimate(known, noise))
