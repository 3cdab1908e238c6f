"""One step from a level to another: pure functions (xt, estimate, here, there) -> x at there.

All of them are one idea. An estimate (x0, eps) says where x_t came from; write the same two things down again with
the coefficients of the level we go to:

    x_there = alpha_there * x0 + sigma_there * eps

They differ only in how much of the old noise eps they keep and how much they draw afresh. Let rho be the ratio of the
signal-to-noise amplitudes, alpha/sigma, of here and there, between 0 and 1 when we go down to a cleaner level:

    DDIM, eta = 0     keeps all of eps, so it is deterministic and runs in both directions
    DDPM              keeps rho * eps and draws sqrt(1 - rho^2) afresh, no more no less than the Markov chain forgot
"""

import torch
from torch import Tensor

from .forward import Estimate, predict_eps
from .schedule import Level


def ddim_step(xt: Tensor, estimate: Estimate, here: Level, there: Level, eta=0.0, noise: Tensor | None = None) -> Tensor:
    """One DDIM step (Song et al. 2021, eq. 12; their alpha is our alpha^2), to a cleaner level or, at eta = 0, a noisier.

        x_there = alpha_there * x0 + sqrt(sigma_there^2 - std^2) * eps + std * noise,
        std = eta * sigma_there * sqrt(1 - rho^2)                                        (their eq. 16)

    xt, noise and the answer: (B, ...). eta: 0 deterministic, 1 as noisy as DDPM. noise: drawn if None and eta > 0.
    On a rectified flow this line is Euler's step, and with `there` noisier than `here` it is DDIM inversion.
    Raises ValueError for eta outside [0, 1], or for eta > 0 on the way up, where the Markov chain has no such step.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta = {eta}: DDIM takes 0 (deterministic) to 1 (as random as DDPM)")
    alpha, sigma = there.like(xt)
    if eta == 0 or _is_clean(there):  # nothing random is computed: on the way up 1 - rho^2 is negative
        return alpha * estimate.x0 + sigma * estimate.eps
    fresh = eta**2 * (1 - _rho(xt, here, there) ** 2)  # share of the variance that is drawn afresh
    noise = torch.randn_like(xt) if noise is None else noise
    return alpha * estimate.x0 + sigma * ((1 - fresh) ** 0.5 * estimate.eps + fresh**0.5 * noise)


def ddpm_step(xt: Tensor, estimate: Estimate, here: Level, there: Level, noise: Tensor | None = None) -> Tensor:
    """One DDPM step: a draw of the posterior q(x_there | x_t, x0) (Ho et al. 2020, eqs. 6 and 7), between any two levels.

    In the paper's words the mean is c0 * x0 + ct * xt and the variance beta-tilde. Both follow from asking for the
    right amount of x0 and of noise at `there`, of which only the share rho survives from here:

        x_there = alpha_there * x0 + sigma_there * (rho * eps + sqrt(1 - rho^2) * noise),    eps = (xt - alpha * x0) / sigma

    xt, noise and the answer: (B, ...). noise: drawn if None; none is drawn on the way to CLEAN, where sigma is 0. eps is
    solved from x0, not taken from the estimate, so that a clipped x0 moves the mean as in the original.
    Raises ValueError when `there` is noisier than `here`.
    """
    alpha, sigma = there.like(xt)
    if _is_clean(there):
        return alpha * estimate.x0
    rho = _rho(xt, here, there)
    noise = torch.randn_like(xt) if noise is None else noise
    eps = predict_eps(xt, estimate.x0, here)
    return alpha * estimate.x0 + sigma * (rho * eps + (1 - rho**2) ** 0.5 * noise)


def _is_clean(level: Level) -> bool:
    return not isinstance(level.sigma, Tensor) and level.sigma == 0


def _rho(xt: Tensor, here: Level, there: Level) -> float | Tensor:
    """(alpha/sigma of here) / (alpha/sigma of there): the share of the noise at `there` that x_t still remembers."""
    (alpha, sigma), (alpha_there, sigma_there) = here.like(xt), there.like(xt)
    signal_here, signal_there = alpha * sigma_there, alpha_there * sigma  # compared before one divides by the other
    up = (signal_here > signal_there) | (signal_there == 0)
    if bool(up.any() if isinstance(up, Tensor) else up):
        raise ValueError("this step goes up, to a noisier level: only ddim_step with eta = 0 walks that way")
    return signal_here / signal_there
