"""Both distances against slow, independent ways of writing them."""

import numpy as np
import pytest
import scipy.linalg
import torch

from minidiff.evaluation.metrics import frechet_distance, kernel_distance

BOTH = pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])


def cloud(n: int, d: int, generator: torch.Generator, shift: float = 0.0) -> torch.Tensor:
    """Correlated, skewed features, as a network's are."""
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return (torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix).relu() + shift


@pytest.mark.parametrize("n, m, d", [(50, 40, 6), (12, 15, 20), (30, 30, 1)])  # also fewer rows than columns
def test_frechet_is_heusels_formula(n, m, d, generator):
    a, b = cloud(n, d, generator), cloud(m, d, generator, shift=0.5)
    cov_a, cov_b = (np.atleast_2d(np.cov(x.numpy(), rowvar=False)) for x in (a, b))
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = np.sum((a.mean(0) - b.mean(0)).numpy() ** 2) + np.trace(cov_a + cov_b - 2 * root)
    # SciPy's own root of a singular matrix is good to about half the digits, ours to all of them
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9 if min(n, m) > d else 1e-3)


def test_frechet_of_gaussians_by_hand():
    a = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -2.0], [0.0, 2.0]])  # covariance diag(2, 8) / 3
    b = 3 * a + torch.tensor([3.0, 4.0])  # means 5 apart, deviations three times as large
    assert frechet_distance(a, b) == pytest.approx(25 + (2 + 8) / 3 * (3 - 1) ** 2)


def test_frechet_falls_with_n_between_equal_distributions(generator):
    reference = torch.randn(4000, 16, generator=generator)
    small, large = (frechet_distance(torch.randn(n, 16, generator=generator), reference) for n in (50, 1000))
    assert small > 5 * large > 0


def test_kernel_is_the_mean_over_pairs(generator):
    a, b = cloud(7, 3, generator), cloud(5, 3, generator, shift=0.3)

    def k(x, y):
        return (float(x @ y) / 3 + 1) ** 3

    within = [np.mean([k(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j]) for s in (a, b)]
    between = np.mean([k(x, y) for x in a for y in b])
    assert kernel_distance(a, b) == pytest.approx(sum(within) - 2 * between, rel=1e-12)


def test_kernel_of_many_rows_is_that_of_all_pairs_at_once(generator):
    a, b = cloud(1500, 3, generator), cloud(2100, 3, generator, shift=0.3)
    aa, bb, ab = ((x @ y.T / 3 + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    expected = sum((k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in (aa, bb)) - 2 * ab.mean()
    assert kernel_distance(a, b) == pytest.approx(float(expected), rel=1e-9)


def test_kernel_has_no_bias(generator):
    draws = [kernel_distance(*torch.randn(2, 20, 4, generator=generator)) for _ in range(400)]
    mean, error = np.mean(draws), np.std(draws) / 20
    assert abs(mean) < 4 * error and min(draws) < 0 < max(draws)


@BOTH
def test_they_are_symmetric_grow_with_the_shift_and_vanish_at_none(distance, generator):
    a, b = cloud(300, 4, generator), cloud(300, 4, generator)
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-9)
    near, far = distance(a, a + 0.5), distance(a, a + 2)
    assert 0 < near < far
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert isinstance(distance(a, b), float)


@BOTH
def test_float32_features_are_summed_in_float64(distance, generator):
    a, b = (torch.randn(500, 8, generator=generator) + 300 for _ in range(2))  # in float32 the mean swamps the spread
    assert distance(a, b) == pytest.approx(distance(a.double(), b.double()), rel=1e-12)


@BOTH
@pytest.mark.parametrize("a, b, word", [
    (torch.zeros(1, 4), torch.zeros(5, 4), "features_a has 1 rows"),
    (torch.zeros(5, 4), torch.zeros(0, 4), "features_b has 0 rows"),
    (torch.zeros(5, 4), torch.zeros(5, 3), r"\(5, 4\) and \(5, 3\)"),
    (torch.zeros(5, 4, 1), torch.zeros(5, 4, 1), "one D"),
    (torch.zeros(5, 4), torch.full((5, 4), torch.nan), "features_b holds NaN"),
    (torch.full((5, 4), torch.inf), torch.zeros(5, 4), "features_a holds NaN or infinity"),
])
def test_they_refuse(distance, a, b, word):
    with pytest.raises(ValueError, match=word):
        distance(a, b)
