"""The forward relation and its inverses, as algebra in float64."""

import pytest
import torch
from hypothesis import given, strategies as st

from minidiff.diffusion import (
    CLEAN,
    Level,
    Schedule,
    add_noise,
    clipped,
    denoiser,
    predict_eps,
    predict_x0,
    target,
    to_estimate,
    velocity,
)  # fmt: skip

KINDS = ("eps", "x0", "v", "flow")
levels = st.floats(0.01, 1.5).map(lambda angle: Level(0, torch.tensor(angle).cos().item(), torch.tensor(angle).sin().item()))
flows = st.floats(0.01, 0.99).map(lambda sigma: Level(0, 1 - sigma, sigma))


def images(seed, shape=(2, 3, 4, 4)):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64), torch.randn(shape, generator=g, dtype=torch.float64)


@given(st.integers(0, 999), st.one_of(levels, flows), st.sampled_from(KINDS))
def test_whatever_the_network_predicts_the_estimate_is_the_truth(seed, level, kind):
    x0, eps = images(seed)
    xt = add_noise(x0, eps, level)
    estimate = to_estimate(target(x0, eps, level, kind), xt, level, kind)
    torch.testing.assert_close(estimate.x0, x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(estimate.eps, eps, rtol=1e-9, atol=1e-9)


@given(st.integers(0, 999), st.one_of(levels, flows))
def test_add_noise_is_undone_by_predict(seed, level):
    x0, eps = images(seed)
    xt = add_noise(x0, eps, level)
    torch.testing.assert_close(xt, level.alpha * x0 + level.sigma * eps)
    torch.testing.assert_close(predict_x0(xt, eps, level), x0)
    torch.testing.assert_close(predict_eps(xt, x0, level), eps)


def test_velocity_is_the_derivative_along_the_arc():
    x0, eps = images(0)
    angle, h = torch.tensor(0.7, dtype=torch.float64), 1e-6
    at = [Level(0, (angle + d).cos().item(), (angle + d).sin().item()) for d in (-h, 0, h)]
    slope = (add_noise(x0, eps, at[2]) - add_noise(x0, eps, at[0])) / (2 * h)
    torch.testing.assert_close(velocity(x0, eps, at[1]), slope, rtol=1e-7, atol=1e-7)


def test_a_level_for_each_image():
    x0, eps = images(0)
    xt = add_noise(x0, eps, Schedule.linear().at(torch.tensor([10, 900])))
    for i, t in enumerate((10, 900)):
        torch.testing.assert_close(xt[i], add_noise(x0[i], eps[i], Schedule.linear().at(t)), rtol=1e-6, atol=1e-6)


def test_pure_noise_and_clean_ends():
    x0, eps = images(0)
    pure = Level(999, 0.0, 1.0)
    for kind in ("x0", "v", "flow"):  # all but eps can say what x0 is, even where nothing of it is left
        torch.testing.assert_close(to_estimate(target(x0, eps, pure, kind), eps, pure, kind).x0, x0)
    with pytest.raises(ValueError, match="alpha is 0"):
        to_estimate(eps, eps, pure, "eps")
    with pytest.raises(ValueError, match="sigma is 0"):
        predict_eps(x0, x0, CLEAN)
    assert to_estimate(x0, x0, CLEAN, "x0").eps.abs().max() == 0  # nothing is known of eps: its mean


def test_denoiser_hands_the_network_a_t_per_image_and_the_condition():
    seen = {}

    def net(xt, t, y):
        seen.update(t=t, y=y)
        return 3 * torch.ones_like(xt)

    xt = torch.zeros(4, 1, 2, 2)
    level = Schedule.linear().at(500)
    estimate = denoiser(net, "x0", y="seven")(xt, level)
    assert seen["t"].tolist() == [500] * 4 and seen["y"] == "seven"
    held = clipped(denoiser(net, "x0", y=0), 1.0)(xt, level)
    assert held.x0.max() == 1 and estimate.x0.max() == 3
    torch.testing.assert_close(held.eps, estimate.eps)


def test_bad_input_is_named():
    x0, eps = images(0)
    with pytest.raises(ValueError, match="same shape"):
        add_noise(x0, eps[:1], Schedule.linear().at(5))
    with pytest.raises(ValueError, match="same shape"):
        to_estimate(eps[:, :1], eps, Schedule.linear().at(5), "eps")
    for call in (lambda: denoiser(None, "score"), lambda: target(x0, eps, CLEAN, "n"), lambda: to_estimate(x0, x0, CLEAN, "z")):
        with pytest.raises(ValueError, match="eps, x0, v, flow"):
            call()
