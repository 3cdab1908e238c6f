"""The bench measures what it says: its truth is held to closed forms, its orders to theory, its page to its figures."""

import math
import re
from functools import partial
from pathlib import Path

import pytest
import torch

from minidiff.commands.bench import curves
from minidiff.diffusion import CLEAN, Estimate, ddim, dpmpp_2m, dpmpp_2m_sde, heun, plms
from minidiff.diffusion.samplers import sample
from minidiff.evaluation import benchmark
from minidiff.evaluation.benchmark import MIXTURE, SAMPLERS, SCHEDULE, Mixture
from minidiff.plot import show_orders

PAGE = (Path(__file__).parents[2] / "docs" / "samplers.md").read_text()
STILL = {name: sampler for name, sampler in SAMPLERS.items() if not benchmark.is_random(sampler)}
SHARES = torch.tensor([1e-4, 0.1, 0.49, 0.5, 0.51, 0.9, 1 - 1e-4], dtype=torch.float64)


def test_quantiles_of_one_gaussian_are_the_formulas():
    level = SCHEDULE.at(400)
    spread = math.sqrt(level.alpha**2 * 0.4**2 + level.sigma**2)
    known = level.alpha * 0.7 + spread * torch.special.ndtri(SHARES)
    torch.testing.assert_close(Mixture([0.7], 0.4).quantiles(SHARES, level), known, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("level", [SCHEDULE.at(999), SCHEDULE.at(300), CLEAN], ids=["noise", "half", "clean"])
def test_quantiles_undo_the_cdf_and_repeating_a_centre_weighs_it(level):
    torch.testing.assert_close(MIXTURE.cdf(MIXTURE.quantiles(SHARES, level), level), SHARES, rtol=1e-9, atol=1e-12)
    g = torch.Generator().manual_seed(0)
    data = MIXTURE.centres[torch.randint(6, (200_000,), generator=g)]
    x = level.alpha * (data + 0.25 * torch.randn(200_000, generator=g)) + level.sigma * torch.randn(200_000, generator=g)
    drawn = torch.stack([(x < q).double().mean() for q in MIXTURE.quantiles(SHARES, level)])
    torch.testing.assert_close(drawn, SHARES, rtol=0, atol=0.005)


def test_quantile_goes_to_quantile():
    """Thousands of steps of DDIM, which knows nothing of quantiles, between two levels."""
    here, there = SCHEDULE.at(900), SCHEDULE.at(100)
    levels = [SCHEDULE.at(t) for t in torch.linspace(900, 100, 4001, dtype=torch.float64).tolist()]
    x = MIXTURE.quantiles(SHARES, here)[:, None]
    end = sample(ddim, MIXTURE.denoise, x, levels, progress=False)[:, 0]
    torch.testing.assert_close(end, MIXTURE.quantiles(SHARES, there), rtol=0, atol=1e-3)


def test_calls_are_counted():
    assert [benchmark.calls(sampler, 10) for sampler in (ddim, heun, plms, dpmpp_2m_sde)] == [10, 19, 11, 10]


@pytest.mark.parametrize("name, order", [("ddim", 1), ("euler", 1), ("heun", 2), ("lms", 2), ("plms", 2), ("dpmpp_2m", 2)])
def test_orders_are_those_of_theory(name, order):
    assert benchmark.order(SAMPLERS[name]) == pytest.approx(order, abs=0.15)


def test_who_draws_noise():
    assert SAMPLERS.keys() - STILL.keys() == {"ddpm", "euler_ancestral", "dpmpp_2m_sde"}
    assert benchmark.is_random(partial(dpmpp_2m, eta=0.5))
    assert benchmark.order(dpmpp_2m_sde) is None


def test_the_error_is_that_of_each_path_or_of_what_is_drawn():
    def off(denoise, x, levels):  # every path misses by 0.1
        *_, last = ddim(denoise, x, levels)
        yield last._replace(x=benchmark.truth(len(x), CLEAN)[:, None] + 0.1)

    assert benchmark.error(off, 3) == pytest.approx(0.1, rel=1e-9)

    def draw(denoise, x, levels, generator=None):  # from the data themselves
        *_, last = ddim(denoise, x, levels)
        drawn = MIXTURE.quantiles(torch.rand(len(x), generator=generator, dtype=torch.float64), CLEAN)
        yield last._replace(x=drawn[:, None])

    assert 0 < benchmark.error(draw, 1, samples=2000) < 4 * benchmark.floor(2000)
    assert benchmark.floor(10_000) < 0.5 * benchmark.floor(300)


def test_the_sides_take_turns_and_their_median_per_step_counts(monkeypatch):
    clock, asked = [0.0], []
    monkeypatch.setattr(benchmark.time, "process_time", lambda: clock[0])

    def side(seconds):
        def lay_out(name, net, x, n, generator):
            clock[0] += 100  # laying out is free
            assert x.shape == net(x, torch.zeros(1)).shape == (1, 4, 64, 64)

            def walk():
                asked.append((name, n))
                clock[0] += seconds.pop()

            return walk

        return lay_out

    assert benchmark.overhead("heun", [side([1, 9, 2]), side([4, 3, 5])], 10, repeats=3) == pytest.approx([2e5, 4e5])
    assert asked == [("heun", 10)] * 6


def test_samplers_that_agree_share_a_line():
    walks = {"a": 0.123456789, "b": 0.1234567891, "c": 0.1235}
    rows = [benchmark.Row(name, 2.0, 1.0, [(5, 9, error), (10, 19, error / 2)], error, 1.0) for name, error in walks.items()]
    assert curves(rows) == {"a = b": ((9, 19), (0.1234568, 0.06172839)), "c": ((9, 19), (0.1235, 0.06175))}


def test_an_order_is_a_slope():
    axes, = show_orders({"one": ([5, 50], [0.1, 0.01]), "two": ([5, 50], [0.1, 0.001])}).axes
    slopes = [math.log(y[-1] / y[0]) / math.log(x[-1] / x[0]) for x, y in (line.get_data() for line in axes.lines)]
    assert slopes == pytest.approx([-1, -2, -1, -2])  # the curves, then the guides
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_the_page_shows_what_is_measured():
    """Its figures of every sampler without noise, but for the times; of the others the calls."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if re.match(r"\| \w+ +\| +\d", line)]
    assert [row[0] for row in rows] == list(SAMPLERS)
    for name, calls, order, *errors in rows:
        sampler = SAMPLERS[name]
        assert float(calls) == benchmark.calls(sampler, 50) / 50
        assert float(errors[-1]) > 1, "ours is to be the faster"
        if name in STILL:
            assert float(order) == pytest.approx(benchmark.order(sampler), abs=0.01)
            for n, shown in zip((10, 20, 50), errors, strict=False):
                assert float(shown) == pytest.approx(benchmark.error(sampler, n), abs=1e-4)
        else:
            assert order == "-"


@pytest.mark.parametrize("sampler", STILL.values(), ids=STILL)
def test_precision_is_as_stated(sampler):
    head, _, figures = re.search(r"(\| float32 .*)\n(.*)\n(.*)", PAGE).groups()
    levels = SCHEDULE.levels(50, "karras")
    x = MIXTURE.quantiles(torch.linspace(0.001, 0.999, 400, dtype=torch.float64), levels[0])[:, None]
    exact = sample(sampler, MIXTURE.denoise, x, levels, progress=False)
    assert exact.abs().max() < 1.8
    for dtype, bound in zip(head.split("|")[1:-1], figures.split("|")[1:-1], strict=True):
        rough = sample(sampler, MIXTURE.denoise, x.to(getattr(torch, dtype.strip())), levels, progress=False)
        assert float(bound) / 5 < (rough - exact).abs().max() < float(bound)


def test_the_mixture_denoises_exactly():
    """Its x0 is what is left when the density of x_t pulls: x_t + sigma^2 * d log p / dx, over alpha (Tweedie)."""
    level, x = SCHEDULE.at(300), torch.linspace(-2, 2, 9, dtype=torch.float64, requires_grad=True)
    spread = math.hypot(level.alpha * MIXTURE.std, level.sigma)
    density = torch.exp(-((x[:, None] - level.alpha * MIXTURE.centres) ** 2) / (2 * spread**2)).sum(dim=1)
    pull, = torch.autograd.grad(density.log().sum(), x)
    x0, eps = MIXTURE.denoise(x.detach()[:, None], level)
    torch.testing.assert_close(x0[:, 0], (x.detach() + level.sigma**2 * pull) / level.alpha, rtol=1e-9, atol=1e-9)
    assert isinstance(MIXTURE.denoise(x.detach()[:, None], level), Estimate)
    torch.testing.assert_close(eps[:, 0], -level.sigma * pull, rtol=1e-9, atol=1e-9)
