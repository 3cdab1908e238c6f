"""Editing by difference, against what can be computed by hand for Gaussian data."""

import pytest
import torch
from torch.testing import assert_close

import minidiff as md
from minidiff.diffusion import Estimate

LEVELS = md.Schedule.flow().levels(40)


def two(one, other):
    """A denoiser of 2B rows: the first B by `one`, the others by `other`."""

    def denoise(xt, level):
        (old, eps), (new, more) = (d(part, level) for d, part in zip((one, other), xt.chunk(2), strict=True))
        return Estimate(torch.cat([old, new]), torch.cat([eps, more]))

    return denoise


def walked(denoise, x0, levels=LEVELS, seed=0):
    return md.sample(md.by_difference, denoise, x0, levels, progress=False, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def x0():
    return torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_told_the_same_twice_it_gives_the_picture_back(x0):
    same = md.GaussianDenoiser(0.3, 0.5)
    assert_close(walked(two(same, same), x0), x0, rtol=0, atol=1e-14)


@pytest.mark.parametrize("std", [0.1, 1.0])
def test_from_one_gaussian_towards_another_whatever_the_noise(x0, std):
    """Of such data E[x0 | x_t] = (1 - g) mean + g x_t / alpha: the noise drops out of the difference, and
    change <- r change + (1 - r) ((1 - g) (new mean - old mean) + g change)."""
    denoise, change = two(md.GaussianDenoiser(-1.0, std), md.GaussianDenoiser(2.0, std)), 0.0
    for here, there in zip(LEVELS, LEVELS[1:], strict=False):
        g, r = here.alpha**2 * std**2 / (here.alpha**2 * std**2 + here.sigma**2), there.sigma / here.sigma
        change = float(r * change + (1 - r) * ((1 - g) * 3 + g * change))
    for seed in (0, 1):
        assert_close(walked(denoise, x0, seed=seed) - x0, torch.full_like(x0, change), rtol=1e-5, atol=1e-5)
    assert (0.85 if std < 1 else 0.4) * 3 < change < 3  # narrow data: nearly all the way; wide ones: about half


def test_the_noise_is_fresh_and_the_same_for_both(x0):
    asked = []

    def denoise(xt, level):
        asked.append((level, xt))
        return Estimate(torch.cat([0 * x0, 0 * x0 + 1]), xt)

    states = list(md.by_difference(denoise, x0, LEVELS[:4], torch.Generator().manual_seed(0)))
    noises = []
    for (level, xt), picture in zip(asked, [x0, *(s.x for s in states)], strict=False):
        old, new = xt.chunk(2)
        noises.append((old - level.alpha * x0) / level.sigma)
        assert_close((new - level.alpha * picture) / level.sigma, noises[-1])
    assert all(abs(noise.std() - 1) < 0.2 for noise in noises) and (noises[0] - noises[1]).abs().mean() > 0.5
    assert [s.level for s in states] == LEVELS[1:4]
    assert_close(states[0].x, x0 + 1 - LEVELS[1].sigma / LEVELS[0].sigma)


def test_levels_that_climb_are_refused(x0):
    with pytest.raises(ValueError, match="do not go from noisy to clean"):
        walked(two(md.GaussianDenoiser(), md.GaussianDenoiser()), x0, LEVELS[::-1])
