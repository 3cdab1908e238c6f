"""Two distances between sets of pictures, given as features: how far is what we draw from what is real?

The Fréchet distance (FD) compares mean and covariance, as if both sets were Gaussian. The kernel distance (KD) assumes
nothing of the kind, sees moments up to the third, and has no bias. With features of the Inception network they would be the
FID and the KID; ours come from a small judge (`judge.py`), so the figures compare runs judged alike and nothing else, and do
not go by those names.

FD is biased: the fewer the images, the larger it is, even between two sets of real ones. Compare at equal n only.
"""

import torch
from torch import Tensor


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """FD of features (N, D) and (M, D), >= 0: the squared 2-Wasserstein distance of the Gaussians fitted to them.

        |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))                    (Heusel et al. 2017, eq. 6)

    In float64, with the unbiased covariance. Singular covariances (N <= D) are fine.
    Raises ValueError for fewer than 2 rows, another number of columns, NaN or infinity.
    """
    a, b = _checked(features_a, features_b)
    cov_a, cov_b = torch.cov(a.T).reshape(a.shape[1], -1), torch.cov(b.T).reshape(b.shape[1], -1)  # (D, D), D = 1 too
    # C_a C_b is not symmetric, but it has the eigenvalues of S C_b S with S = C_a^(1/2), which is; all of them >= 0.
    root = _sqrt(cov_a)
    overlap = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * overlap
    return max(distance.item(), 0.0)  # rounding leaves about -1e-10 between equal sets


def kernel_distance(features_a: Tensor, features_b: Tensor) -> float:
    """KD of features (N, D) and (M, D): the squared maximum mean discrepancy under k(x, y) = (x.y / D + 1)^3.

        mean_{i != j} k(a_i, a_j) + mean_{i != j} k(b_i, b_j) - 2 mean_{i, j} k(a_i, b_j)
                                                                    (Bińkowski et al. 2018, section 3 and eq. 4)

    An unbiased estimate of a number that is 0 for equal distributions, so it may come out below 0. In float64.
    Raises ValueError as `frechet_distance` does.
    """
    a, b = _checked(features_a, features_b)
    return _mean_of_pairs(a) + _mean_of_pairs(b) - 2 * _sum_of_kernel(a, b) / (len(a) * len(b))


def _mean_of_pairs(x: Tensor) -> float:
    """The mean kernel of two different rows. A row with itself would tell its length, not how it lies to others."""
    itself = (x.square().sum(dim=1) / x.shape[1] + 1).pow(3).sum().item()
    return (_sum_of_kernel(x, x) - itself) / (len(x) * (len(x) - 1))


def _sum_of_kernel(x: Tensor, y: Tensor) -> float:
    """sum_{i, j} k(x_i, y_j), 1000 rows at a time: all pairs of 10,000 images at once would take 800 MB."""
    return sum((rows / x.shape[1] @ y.T).add_(1).pow_(3).sum().item() for rows in x.split(1000))


def _sqrt(matrix: Tensor) -> Tensor:
    """The square root of a symmetric, positive semi-definite matrix (D, D)."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def _checked(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features are {tuple(a.shape)} and {tuple(b.shape)}: give (N, D) and (M, D) of one D")
    for name, features in (("features_a", a), ("features_b", b)):
        if len(features) < 2:
            raise ValueError(f"{name} has {len(features)} rows: a spread needs at least 2 images")
        if not bool(features.isfinite().all()):
            raise ValueError(f"{name} holds NaN or infinity: look at the images they were computed from")
    return a.double(), b.double()
