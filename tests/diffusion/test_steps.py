import pytest
import torch
from hypothesis import given, strategies as st

from minidiff.diffusion import CLEAN, Estimate, Level, Schedule, add_noise, ddim_step, ddpm_step

LINEAR, FLOW = Schedule.linear(), Schedule.flow()
downs = st.tuples(st.integers(1, 999), st.integers(0, 998)).filter(lambda ts: ts[1] < ts[0])


def setting(seed, here):
    g = torch.Generator().manual_seed(seed)
    x0, eps, noise = torch.randn(3, 2, 1, 4, 4, generator=g, dtype=torch.float64)
    return add_noise(x0, eps, here), Estimate(x0, eps), noise


@given(st.integers(0, 99), downs)
def test_ddpm_is_the_papers_posterior(seed, ts):
    """Ho et al. 2020, eqs. 6 and 7, letter by letter, for one step of a chain that skips from t to s."""
    here, there = LINEAR.at(ts[0]), LINEAR.at(ts[1])
    xt, estimate, noise = setting(seed, here)
    abar, abar_prev = here.alpha**2, there.alpha**2
    alpha, beta = abar / abar_prev, 1 - abar / abar_prev
    mean = abar_prev**0.5 * beta / (1 - abar) * estimate.x0 + alpha**0.5 * (1 - abar_prev) / (1 - abar) * xt
    variance = (1 - abar_prev) / (1 - abar) * beta
    wanted = mean + variance**0.5 * noise
    torch.testing.assert_close(ddpm_step(xt, estimate, here, there, noise), wanted, rtol=1e-4, atol=1e-4)


@given(st.integers(0, 99), downs, st.floats(0, 1))
def test_ddim_is_the_papers_equation_12(seed, ts, eta):
    here, there = LINEAR.at(ts[0]), LINEAR.at(ts[1])
    xt, estimate, noise = setting(seed, here)
    abar, abar_prev = here.alpha**2, there.alpha**2
    std = eta * ((1 - abar_prev) / (1 - abar)) ** 0.5 * (1 - abar / abar_prev) ** 0.5
    wanted = abar_prev**0.5 * estimate.x0 + (1 - abar_prev - std**2) ** 0.5 * estimate.eps + std * noise
    torch.testing.assert_close(ddim_step(xt, estimate, here, there, eta, noise), wanted, rtol=1e-4, atol=1e-4)


@given(st.integers(0, 99), downs, st.sampled_from([LINEAR, FLOW]))
def test_ddim_with_eta_1_is_ddpm(seed, ts, schedule):
    here, there = schedule.at(ts[0]), schedule.at(ts[1])
    xt, estimate, noise = setting(seed, here)
    a, b = ddim_step(xt, estimate, here, there, 1.0, noise), ddpm_step(xt, estimate, here, there, noise)
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@given(st.integers(0, 99), st.integers(0, 999), st.integers(0, 999))
def test_ddim_goes_up_and_comes_back(seed, t, s):
    here, there = LINEAR.at(t), LINEAR.at(s)
    xt, estimate, _ = setting(seed, here)
    moved = ddim_step(xt, estimate, here, there)
    assert moved.isfinite().all()
    torch.testing.assert_close(ddim_step(moved, estimate, there, here), xt, rtol=1e-12, atol=1e-12)


@given(st.integers(0, 99), st.floats(1, 1000), st.floats(0, 1000))
def test_on_a_flow_ddim_is_eulers_step(seed, t, s):
    here, there = FLOW.at(t), FLOW.at(s)
    xt, estimate, _ = setting(seed, here)
    euler = xt + (there.sigma - here.sigma) * (estimate.eps - estimate.x0)
    torch.testing.assert_close(ddim_step(xt, estimate, here, there), euler, rtol=1e-6, atol=1e-6)


def test_to_clean_is_x0_and_staying_is_the_identity():
    here = LINEAR.at(40)
    xt, estimate, noise = setting(0, here)
    for step in (ddim_step, ddpm_step):
        torch.testing.assert_close(step(xt, estimate, here, CLEAN), estimate.x0)
    torch.testing.assert_close(ddim_step(xt, estimate, here, here), xt)
    torch.testing.assert_close(ddim_step(xt, estimate, here, CLEAN, 1.0, noise), estimate.x0)


def test_from_pure_noise_nothing_divides_by_zero():
    here, there = Level(999, 0.0, 1.0), LINEAR.at(500)
    _, estimate, noise = setting(0, here)
    for step, options in ((ddpm_step, (noise,)), (ddim_step, (1.0, noise))):
        x = step(estimate.eps, estimate, here, there, *options)
        torch.testing.assert_close(x, there.alpha * estimate.x0 + there.sigma * noise)


def test_levels_of_their_own_for_each_image():
    here, there = LINEAR.at(torch.tensor([900, 300])), LINEAR.at(torch.tensor([700, 20]))
    xt, estimate, noise = setting(0, here)
    for step, options in ((ddim_step, (0.5, noise)), (ddpm_step, (noise,))):
        together = step(xt, estimate, here, there, *options)
        for i, (t, s) in enumerate([(900, 700), (300, 20)]):
            own = [o[i : i + 1] if isinstance(o, torch.Tensor) else o for o in options]
            alone = step(xt[i : i + 1], Estimate(*(e[i : i + 1] for e in estimate)), LINEAR.at(t), LINEAR.at(s), *own)
            torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-5, atol=1e-5)


def test_noise_is_drawn_where_none_is_given():
    here, there = LINEAR.at(900), LINEAR.at(500)
    xt, estimate, _ = setting(0, here)
    assert not ddpm_step(xt, estimate, here, there).equal(ddpm_step(xt, estimate, here, there))
    assert ddim_step(xt, estimate, here, there).equal(ddim_step(xt, estimate, here, there))


def test_bad_input_is_named():
    here, there = LINEAR.at(100), LINEAR.at(500)
    xt, estimate, noise = setting(0, here)
    for step, options in ((ddpm_step, (noise,)), (ddim_step, (0.5, noise))):
        with pytest.raises(ValueError, match="goes up"):
            step(xt, estimate, here, there, *options)
    for here, there in ((CLEAN, LINEAR.at(5)), (LINEAR.at(5), Level(999, 0.0, 1.0))):  # where a ratio would divide by zero
        with pytest.raises(ValueError, match="goes up"):
            ddpm_step(xt, estimate, here, there, noise)
    with pytest.raises(ValueError, match="eta"):
        ddim_step(xt, estimate, there, here, 1.5)
