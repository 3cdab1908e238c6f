"""Euler, Heun, LMS, PLMS and DPM-Solver++ 2M: each is its equation, letter by letter, and converges as theory says."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given, strategies as st

from minidiff.diffusion import (
    CLEAN,
    Estimate,
    GaussianDenoiser,
    Level,
    Schedule,
    add_noise,
    ddim,
    dpmpp_2m,
    euler,
    heun,
    lms,
    plms,
    sample,
)
from minidiff.diffusion.multistep import ADAMS_BASHFORTH, adams_bashforth

LINEAR, FLOW = Schedule.linear(), Schedule.flow()
ZERO_SNR = Schedule.scaled_linear().zero_terminal_snr()
GAUSSIAN = GaussianDenoiser(mean=0.0, std=0.5)
ODE_SAMPLERS = {"ddim": ddim, "euler": euler, "heun": heun, "lms": lms, "lms 1": partial(lms, order=1), "plms": plms,
                "plms v": partial(plms, blends="v"), "plms flow": partial(plms, blends="flow"),
                "dpmpp_2m": dpmpp_2m}  # fmt: skip
walk = partial(sample, progress=False)


def exact(x, levels, std=0.5):
    """Where the ODE really leads for Gaussian data: every x_t keeps its quantile."""
    start, end = (math.hypot(level.alpha * std, level.sigma) for level in (levels[0], levels[-1]))
    return x * end / start


class Spy:
    """An exact denoiser, and a diary of what it was asked and what it answered."""

    def __init__(self):
        self.calls = []

    def __call__(self, xt, level):
        estimate = GaussianDenoiser(mean=0.3, std=0.5)(xt, level)
        self.calls.append((xt, level, estimate))
        return estimate


def by_slope(x, eps, here, there):
    """x_there/alpha_there = x/alpha + (s_there - s) * eps, letter by letter."""
    return there.alpha * (x / here.alpha + (there.sigma / there.alpha - here.sigma / here.alpha) * eps)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", [FLOW, Schedule.cosine()], ids=["flow", "cosine"])
@pytest.mark.parametrize("name, order", [
    ("euler", 1), ("heun", 2), ("dpmpp_2m", 2), ("plms", 2), ("lms 1", 1), ("plms v", 1),
])  # fmt: skip
def test_order_of_convergence(name, order, schedule, generator):
    assert measured_order(ODE_SAMPLERS[name], schedule, generator) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("schedule", [LINEAR, FLOW, Schedule.cosine()], ids=["linear", "flow", "cosine"])
def test_lms_gains_an_order_with_every_answer(schedule, generator):
    second, fourth = (measured_order(partial(lms, order=n), schedule, generator) for n in (2, 4))
    assert second == pytest.approx(2, abs=0.12)
    assert fourth > 2.1  # not 4 in the limit: its first step is Euler's


def measured_order(sampler, schedule, generator):
    x, steps = torch.randn(50, 1, generator=generator, dtype=torch.float64), (64, 256)
    errors = []
    for n in steps:
        levels = [schedule.at(t) for t in torch.linspace(900, 100, n + 1, dtype=torch.float64).tolist()]
        errors.append((walk(sampler, GAUSSIAN, x, levels) - exact(x, levels)).abs().max().item())
    return math.log(errors[0] / errors[1]) / math.log(steps[1] / steps[0])


@pytest.mark.parametrize("name, error", [("euler", 0.12), ("heun", 0.07), ("lms", 0.003), ("plms", 0.04), ("plms flow", 0.04),
                                         ("dpmpp_2m", 0.07), ("plms v", 0.1)])  # fmt: skip
@pytest.mark.parametrize("schedule", [FLOW, ZERO_SNR], ids=["flow", "zero snr"])
def test_walks_from_alpha_0_arrive(name, error, schedule, generator):
    x = torch.randn(200, 1, generator=generator).clamp(-2, 2)
    levels = schedule.levels(50, None if schedule is FLOW else "trailing")
    assert levels[0].alpha == 0
    assert (walk(ODE_SAMPLERS[name], GAUSSIAN, x, levels) - exact(x, levels)).abs().max() < error


@pytest.mark.parametrize("sampler", [heun, lms, plms, dpmpp_2m])
def test_from_alpha_0_the_first_step_is_ddims_and_is_forgotten(sampler, generator):
    """What was said where s is infinite lies on no polynomial, so the walk goes on as if it began a level later."""
    x, levels = torch.randn(4, 1, generator=generator, dtype=torch.float64), FLOW.levels(20)
    states, plain = list(sampler(GAUSSIAN, x, levels)), list(ddim(GAUSSIAN, x, levels))
    close(states[0].x, plain[0].x)
    close(states[-1].x, walk(sampler, GAUSSIAN, plain[0].x, levels[1:]))


@given(
    st.sampled_from(sorted(ODE_SAMPLERS.keys() - {"plms v"})), st.sampled_from(["linear", "cosine", "flow", "zero snr"]),
    st.sampled_from(["leading", "trailing", "linspace"]), st.integers(1, 25), st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_who_is_told_the_truth_arrives_at_it(sampler, schedule, spacing, n, clean, seed):
    g = torch.Generator().manual_seed(seed)
    truth = Estimate(*(torch.randn(2, 3, generator=g, dtype=torch.float64) for _ in range(2)))
    schedule = {"linear": LINEAR, "cosine": Schedule.cosine(), "flow": FLOW, "zero snr": ZERO_SNR}[schedule]
    levels = schedule.levels(n, spacing, last=CLEAN if clean else Level(0, 1.0, 1e-4))
    for state in ODE_SAMPLERS[sampler](lambda xt, level: truth, add_noise(*truth, levels[0]), levels):
        torch.testing.assert_close(state.x, add_noise(*truth, state.level), rtol=1e-9, atol=1e-9)
    assert state.level == levels[-1]


def test_blending_v_misses_even_a_truth_that_it_is_told(generator):
    """What diffusers' PNDM does with a v-network: v of an older level is no v of this one."""
    truth = Estimate(*torch.randn(2, 4, 1, generator=generator, dtype=torch.float64))
    levels = LINEAR.levels(10)
    ends = [walk(plms, lambda xt, level: truth, add_noise(*truth, levels[0]), levels, blends=kind) for kind in ("eps", "v")]
    misses = [(end - truth.x0).abs().max() for end in ends]
    assert misses[0] < 1e-9 and misses[1] > 0.1


def test_eulers_step_is_the_tangent(generator):
    x, spy = torch.randn(3, 1, generator=generator, dtype=torch.float64), Spy()
    levels = LINEAR.levels(6)
    for state, (xt, here, estimate), there in zip(euler(spy, x, levels), spy.calls, levels[1:], strict=False):
        close(state.x, by_slope(xt, estimate.eps, here, there))
    assert len(spy.calls) == 6


def test_heuns_slope_is_the_mean_of_two(generator):
    x, spy, levels = torch.randn(3, 1, generator=generator, dtype=torch.float64), Spy(), LINEAR.levels(4)
    states = list(heun(spy, x, levels))
    asked = [level for _, level, _ in spy.calls]
    assert asked == [levels[0], levels[1], levels[1], levels[2], levels[2], levels[3], levels[3]]  # and never CLEAN
    (xt, here, first), (ahead, there, second) = spy.calls[:2]
    close(ahead, by_slope(xt, first.eps, here, there))
    close(states[0].x, by_slope(xt, (first.eps + second.eps) / 2, here, there))
    close(states[0].x0, first.x0)


def test_adams_bashforth_is_the_integral_of_the_polynomial():
    nodes, end, powers = [7.0, 8.5, 12.0, 13.0], 5.0, range(4)
    for n in (1, 2, 3, 4):
        weights = adams_bashforth(nodes[:n], end)
        assert sum(weights) == pytest.approx(1)
        for p in powers[:n]:
            mean = (end ** (p + 1) - nodes[0] ** (p + 1)) / (p + 1) / (end - nodes[0])
            assert sum(w * s**p for w, s in zip(weights, nodes, strict=False)) == pytest.approx(mean, rel=1e-12)
        assert adams_bashforth([7.0, 8.0, 9.0, 10.0][:n], 6.0) == pytest.approx(ADAMS_BASHFORTH[n - 1], rel=1e-12)


def test_lms_is_its_integral(generator):
    """Two answers: the straight line through them, integrated from s to s_there."""
    x, spy, levels = torch.randn(3, 1, generator=generator, dtype=torch.float64), Spy(), LINEAR.levels(5)
    states = list(lms(spy, x, levels, order=2))
    for k in range(1, 5):
        (_, before, past), (xt, here, now) = spy.calls[k - 1 : k + 1]
        s_before, s, s_there = (level.sigma / level.alpha for level in (before, here, levels[k + 1]))
        slope = (now.eps - past.eps) / (s - s_before)
        integral = (s_there - s) * now.eps + slope * (s_there - s) ** 2 / 2
        close(states[k].x, levels[k + 1].alpha * (xt / here.alpha + integral))
    assert len(spy.calls) == 5


def test_plms_is_its_weights(generator):
    x, spy, levels = torch.randn(3, 1, generator=generator, dtype=torch.float64), Spy(), LINEAR.levels(8)
    states = list(plms(spy, x, levels))
    (xt, here, first), (ahead, there, second) = spy.calls[:2]
    assert [level for _, level, _ in spy.calls] == [levels[0], levels[1], *levels[1:-1]]
    close(ahead, by_slope(xt, first.eps, here, there))
    close(states[0].x, by_slope(xt, (first.eps + second.eps) / 2, here, there))
    del spy.calls[1]  # looked ahead, not remembered
    e = [estimate.eps for _, _, estimate in spy.calls]
    blends = {1: (3 * e[1] - e[0]) / 2, 2: (23 * e[2] - 16 * e[1] + 5 * e[0]) / 12}
    blends |= {k: (55 * e[k] - 59 * e[k - 1] + 37 * e[k - 2] - 9 * e[k - 3]) / 24 for k in (3, 4, 5, 6, 7)}
    for k, eps in blends.items():
        close(states[k].x, by_slope(spy.calls[k][0], eps, levels[k], levels[k + 1]))
    one = Spy()
    close(walk(plms, one, x, levels[-2:]), one.calls[0][2].x0)  # a walk of one step does not ask where it ends
    assert len(one.calls) == 1


@pytest.mark.parametrize("steps", [6, 14, 15, 20])
@pytest.mark.parametrize("last", [CLEAN, Level(0, 0.9999, 0.0141)], ids=["clean", "not clean"])
def test_dpmpp_2m_is_algorithm_2(steps, last, generator):
    x, spy = torch.randn(3, 1, generator=generator, dtype=torch.float64), Spy()
    levels = LINEAR.levels(steps, "trailing", last=last)
    states = list(dpmpp_2m(spy, x, levels))
    lam = [math.log(level.alpha / level.sigma) if level.sigma else math.inf for level in levels]
    for k, (here, there) in enumerate(pairwise(levels)):
        xt, _, now = spy.calls[k]
        D = now.x0
        if 0 < k < steps - 1 or (k == steps - 1 and last is not CLEAN and steps >= 15):
            h, r = lam[k + 1] - lam[k], (lam[k] - lam[k - 1]) / (lam[k + 1] - lam[k])
            D = (1 + 1 / (2 * r)) * now.x0 - 1 / (2 * r) * spy.calls[k - 1][2].x0
        h = lam[k + 1] - lam[k]
        close(states[k].x, there.sigma / here.sigma * xt - there.alpha * (math.exp(-h) - 1) * D)
    assert len(spy.calls) == steps
