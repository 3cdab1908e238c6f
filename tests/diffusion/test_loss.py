import pytest
import torch
from hypothesis import given, strategies as st

from minidiff.diffusion import (
    GaussianDenoiser,
    Level,
    Schedule,
    add_noise,
    classifier_free,
    diffusion_loss,
    measured_weight,
    min_snr_weight,
    target,
    to_estimate,
)  # fmt: skip

KINDS = ("eps", "x0", "v", "flow")
SCHEDULES = {"vp": Schedule.linear(), "zero_snr": Schedule.linear().zero_terminal_snr(), "flow": Schedule.flow()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_that_knows_the_answer_has_no_loss(kind, generator):
    x0, noise = torch.randn(2, 16, 1, 4, 4, generator=generator)
    t = torch.randint(0, 999, (16,), generator=generator)
    for schedule in SCHEDULES.values():
        knows = lambda xt, t, kind=kind, schedule=schedule: target(x0, noise, schedule.at(t), kind)  # noqa: E731
        assert diffusion_loss(knows, x0, schedule, kind, t, noise).item() < 1e-10
        off = diffusion_loss(lambda xt, t: knows(xt, t) + 0.5, x0, schedule, kind, t, noise)  # noqa: B023
        assert off.item() == pytest.approx(0.25, rel=1e-4)


def test_the_best_loss_is_that_of_the_exact_denoiser():
    """Squared error is least for the posterior mean: shift it either way and the loss rises."""
    torch.manual_seed(0)
    exact, x0 = GaussianDenoiser(0.0, 0.5), 0.5 * torch.randn(20_000, 1)
    t, noise = torch.full((20_000,), 400), torch.randn(20_000, 1)

    def loss(factor):
        scaled = lambda xt, t: factor * exact(xt, SCHEDULES["vp"].at(400)).eps  # noqa: E731
        return diffusion_loss(scaled, x0, SCHEDULES["vp"], "eps", t, noise)

    assert loss(1.0) < loss(0.97) and loss(1.0) < loss(1.03)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("kind", KINDS)
def test_min_snr_counts_errors_of_x0_alike_whatever_is_predicted(kind, schedule, generator):
    """Its definition: weight * (error of the prediction)^2 = min(SNR, gamma) * (error of x0)^2."""
    x0, noise, error = torch.randn(3, 6, 8, generator=generator, dtype=torch.float64)
    level = schedule.at(torch.tensor([1, 10, 100, 400, 700, 980]))
    xt = add_noise(x0, noise, level)
    output = target(x0, noise, level, kind) + error
    x0_error = ((to_estimate(output, xt, level, kind).x0 - x0) ** 2).mean(1)
    snr = (level.alpha / level.sigma).double() ** 2
    weighted = min_snr_weight(level, kind, gamma=5.0) * (error**2).mean(1)
    torch.testing.assert_close(weighted, snr.clamp(max=5.0) * x0_error, rtol=1e-4, atol=1e-6)


@given(st.sampled_from(KINDS))
def test_min_snr_is_finite_at_both_ends(kind):
    assert min_snr_weight(Level(0, 1.0, 0.0), kind).item() == {"eps": 0.0, "x0": 5.0}.get(kind, 0.0)
    weight = min_snr_weight(Level(999, 0.0, 1.0), kind)
    assert weight.item() == (1.0 if kind == "eps" else 0.0)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_an_error_can_be_measured_as_that_of_another_kind(kind, other, schedule, generator):
    """Its definition: weight * (error of the prediction)^2 = (error of what is measured)^2, of one and the same estimate."""
    x0, noise, error = torch.randn(3, 4, 8, generator=generator, dtype=torch.float64)
    level = schedule.at(torch.tensor([200, 400, 600, 800]))
    xt = add_noise(x0, noise, level)
    estimate = to_estimate(target(x0, noise, level, kind) + error, xt, level, kind)
    off = target(estimate.x0, estimate.eps, level, other) - target(x0, noise, level, other)
    weighted = measured_weight(level, kind, other, most=1e9) * (error**2).mean(1)
    torch.testing.assert_close(weighted, (off**2).mean(1), rtol=1e-4, atol=1e-6)


def test_measured_enters_the_loss_and_is_bounded(generator):
    x0, noise = torch.randn(2, 3, 1, 2, 2, generator=generator)
    flow, zero, t = Schedule.flow(), lambda xt, t: 0 * xt, torch.tensor([1.0, 500.0, 1000.0])
    each = [diffusion_loss(zero, x0[i : i + 1], flow, "x0", t[i : i + 1], noise[i : i + 1]) for i in range(3)]
    whole = diffusion_loss(zero, x0, flow, "x0", t, noise, measured="flow")
    assert whole.item() == pytest.approx((100 * each[0] + 4 * each[1] + each[2]).item() / 3, rel=1e-4)
    with pytest.raises(ValueError, match="give one of them"):
        diffusion_loss(zero, x0, flow, "x0", t, noise, measured="flow", min_snr=5.0)
    with pytest.raises(ValueError, match='unknown prediction "score"'):
        diffusion_loss(zero, x0, flow, "x0", t, noise, measured="score")


def test_min_snr_enters_the_loss(generator):
    x0, noise = torch.randn(2, 4, 1, 2, 2, generator=generator)
    t = torch.tensor([2, 2, 2, 2])
    zero = lambda xt, t: 0 * xt  # noqa: E731
    plain, weighted = (diffusion_loss(zero, x0, SCHEDULES["vp"], "eps", t, noise, min_snr=g) for g in (None, 5.0))
    snr = (SCHEDULES["vp"].at(2).alpha / SCHEDULES["vp"].at(2).sigma) ** 2
    assert (weighted / plain).item() == pytest.approx(5 / snr, rel=1e-4)


def test_conditions_reach_the_network_and_levels_are_drawn():
    seen = []

    def net(xt, t, y):
        seen.append((t, y))
        return xt

    torch.manual_seed(0)
    diffusion_loss(net, torch.zeros(64, 1, 2, 2), SCHEDULES["vp"], y="label")
    (t, y), = seen
    assert y == "label" and t.shape == (64,) and len(t.unique()) > 32


def test_bad_input_is_named():
    x0 = torch.zeros(4, 1, 2, 2)
    with pytest.raises(ValueError, match="outside the schedule"):
        diffusion_loss(lambda xt, t: xt, x0, SCHEDULES["vp"], t=torch.tensor([0, 1, 2, 1000]))
    with pytest.raises(ValueError, match="x holds 4"):
        diffusion_loss(lambda xt, t: xt, x0, SCHEDULES["vp"], t=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="network answers"):
        diffusion_loss(lambda xt, t: xt[:, :, :1], x0, SCHEDULES["vp"])
    with pytest.raises(ValueError, match="eps, x0, v, flow"):
        diffusion_loss(lambda xt, t: xt, x0, SCHEDULES["vp"], "score")
    with pytest.raises(ValueError, match="eps, x0, v, flow"):
        min_snr_weight(SCHEDULES["vp"].at(5), "score")


@pytest.mark.parametrize("kind", KINDS)
def test_classifier_free_guidance_is_linear_in_scale(kind, generator):
    xt, level = torch.randn(3, 1, 4, 4, generator=generator), SCHEDULES["vp"].at(600)
    net = lambda xt, t, y: xt * 0.5 + y.view(-1, 1, 1, 1)  # noqa: E731
    cond, uncond = {"y": torch.tensor([1.0, 2.0, 3.0])}, {"y": torch.zeros(3)}
    plain, anything = (to_estimate(net(xt, None, **c), xt, level, kind) for c in (cond, uncond))
    for scale in (0.0, 0.5, 1.0, 7.5):
        guided = classifier_free(net, cond, uncond, scale, kind)(xt, level)
        for got, c, u in zip(guided, plain, anything, strict=True):
            torch.testing.assert_close(got, u + scale * (c - u), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="same questions"):
        classifier_free(net, cond, {}, 2.0)
