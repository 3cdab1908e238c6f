"""Where a walk must end: on Gaussian data in closed form, on a mixture in one dimension by its quantiles.

In one dimension the curves of the ODE never cross, so whatever the data, every x keeps its rank:

    F_end(x_end) = F_start(x_start),    F_t the distribution of x_t = alpha * x0 + sigma * eps
"""

import math
from functools import partial

import pytest
import torch

from minidiff.diffusion import (
    DatasetDenoiser,
    GaussianDenoiser,
    Schedule,
    ddim,
    ddpm,
    dpmpp_2m,
    dpmpp_2m_sde,
    euler,
    euler_ancestral,
    heun,
    lms,
    plms,
    sample,
)

WALKS = {
    "vp": Schedule.linear().levels(200, "trailing"),
    "vp karras": Schedule.linear().levels(200, "karras"),
    "zero snr": Schedule.scaled_linear().zero_terminal_snr().levels(200, "trailing"),
    "flow": Schedule.flow().levels(200),
    "flow, shift 3": Schedule.flow(shift=3.0).levels(200),
}
each_walk = pytest.mark.parametrize("walk", WALKS.values(), ids=WALKS)
MEANS, STD = torch.tensor([-1.0, 0.5, 0.5, 1.0], dtype=torch.float64), 0.15  # 0.5 has twice the weight of the others
MIXTURE = DatasetDenoiser(MEANS[:, None], std=STD)

# Errors in x at 200 steps: root mean square over 400 quantiles of the mixture, and largest of the Gaussian.
ODE = {ddim: (0.05, 0.03), euler: (0.05, 0.03), heun: (0.015, 0.015), lms: (2e-3, 1e-4), plms: (0.01, 8e-3),
       dpmpp_2m: (0.015, 0.012)}  # fmt: skip
SDE = {"ddpm": ddpm, "euler_ancestral": euler_ancestral, "dpmpp_2m_sde": dpmpp_2m_sde, "ddim, eta 0.5": partial(ddim, eta=0.5)}


def share_below(x, level):
    """F_t(x): the share of all x_t that are smaller."""
    spread = math.hypot(level.alpha * STD, level.sigma)
    return torch.special.ndtr((x - level.alpha * MEANS) / spread).mean(dim=1, keepdim=True)


def quantile(share, level):
    """The x (N, 1) below which this share of x_t lies: F_t, which only rises, inverted by bisection."""
    low, high = torch.full_like(share, -20), torch.full_like(share, 20)
    for _ in range(60):
        middle = (low + high) / 2
        below = share_below(middle, level) < share
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return middle


@each_walk
@pytest.mark.parametrize("sampler", ODE)
def test_the_ode_keeps_every_rank(sampler, walk):
    shares = torch.linspace(0.005, 0.995, 400, dtype=torch.float64)[:, None]
    start, wanted = quantile(shares, walk[0]), quantile(shares, walk[-1])
    end = sample(sampler, MIXTURE, start, walk, progress=False)
    assert (end - wanted).square().mean().sqrt() < ODE[sampler][0]


@each_walk
@pytest.mark.parametrize("sampler", ODE)
def test_the_ode_scales_a_gaussian(sampler, walk):
    """x_t of N(0.3, 0.5^2) is N(0.3 alpha, 0.25 alpha^2 + sigma^2): how many spreads x lies from the mean never changes."""
    x = torch.linspace(-2.5, 2.5, 50, dtype=torch.float64)[:, None]
    spread = [math.hypot(0.5 * level.alpha, level.sigma) for level in (walk[0], walk[-1])]
    wanted = 0.3 * walk[-1].alpha + (x - 0.3 * walk[0].alpha) * spread[1] / spread[0]
    end = sample(sampler, GaussianDenoiser(0.3, 0.5), x, walk, progress=False)
    assert (end - wanted).abs().max() < ODE[sampler][1]


@each_walk
@pytest.mark.parametrize("sampler", SDE.values(), ids=SDE)
def test_the_sde_draws_from_the_mixture(sampler, walk, generator):
    """Mean, spread and shares of 5000 draws: the errors are those of sampling, of order 0.01, and of 200 steps."""
    start = quantile(torch.rand(5000, 1, generator=generator, dtype=torch.float64), walk[0])
    end = sample(sampler, MIXTURE, start, walk, progress=False, generator=generator)
    assert end.mean().item() == pytest.approx(MEANS.mean().item(), abs=0.035)
    assert end.var().item() == pytest.approx(MEANS.var(correction=0).item() + STD**2, abs=0.05)
    for border in (-0.25, 0.75):  # between the components
        share = share_below(torch.tensor([[border]]), walk[-1]).item()
        assert (end < border).double().mean().item() == pytest.approx(share, abs=0.025)
    assert end[end < -0.25].std().item() == pytest.approx(STD, abs=0.03)
