"""The forward relation x_t = alpha * x0 + sigma * eps, and the same line solved for each of its unknowns.

A network may be trained to predict any one of four things, each a mixture of x0 and eps:

    "eps"   eps                         Ho et al. 2020, eq. 14
    "x0"    x0                          Ho et al. 2020, section 3.2
    "v"     alpha * eps - sigma * x0    Salimans & Ho 2022, section 4
    "flow"  eps - x0                    Liu et al. 2022; Esser et al. 2024, eq. 13, turned to point at the noise

Given x_t, one of them yields all the others. `denoiser` makes that translation once, at the network's door, so no
sampler, guidance or inversion further down ever asks what the network was trained on.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from .schedule import Level

TARGETS = ("eps", "x0", "v", "flow")


class Estimate(NamedTuple):
    """What a denoiser believes about x_t: the clean image and the noise. Both, so that nobody divides by alpha = 0 later."""

    x0: Tensor
    eps: Tensor


Denoiser = Callable[[Tensor, Level], Estimate]


def add_noise(x0: Tensor, eps: Tensor, level: Level) -> Tensor:
    """x_t = alpha * x0 + sigma * eps, any shape (B, ...): a draw of q(x_t | x0) in one step (DDPM, eq. 4)."""
    _same_shape("x0", x0, "eps", eps)
    alpha, sigma = level.like(x0)
    return alpha * x0 + sigma * eps


def predict_x0(xt: Tensor, eps: Tensor, level: Level) -> Tensor:
    """x0 = (x_t - sigma * eps) / alpha (DDPM, eq. 15). Raises ValueError at alpha = 0, where x_t says nothing of x0."""
    _same_shape("xt", xt, "eps", eps)
    alpha, sigma = level.like(xt)
    if _any_zero(alpha):
        raise ValueError("alpha is 0 at this level: eps cannot say what x0 is. Train with predicts='v' (or 'x0', 'flow'), "
                         "or use a schedule without zero terminal SNR")
    return (xt - sigma * eps) / alpha


def predict_eps(xt: Tensor, x0: Tensor, level: Level) -> Tensor:
    """eps = (x_t - alpha * x0) / sigma. Raises ValueError at sigma = 0: a clean image says nothing of the noise."""
    _same_shape("xt", xt, "x0", x0)
    alpha, sigma = level.like(xt)
    if _any_zero(sigma):
        raise ValueError("sigma is 0 at this level: there is no noise in xt to solve for")
    return (xt - alpha * x0) / sigma


def velocity(x0: Tensor, eps: Tensor, level: Level) -> Tensor:
    """v = alpha * eps - sigma * x0 (Salimans & Ho 2022, section 4): the direction in which x_t turns, per angle of noise."""
    _same_shape("x0", x0, "eps", eps)
    alpha, sigma = level.like(x0)
    return alpha * eps - sigma * x0


def target(x0: Tensor, eps: Tensor, level: Level, predicts: str) -> Tensor:
    """What a network of this kind is trained to answer, in the shape of x0. Raises ValueError for an unknown kind."""
    match predicts:
        case "eps":
            return eps
        case "x0":
            return x0
        case "v":
            return velocity(x0, eps, level)
        case "flow":
            return eps - x0
    raise _unknown(predicts)


def to_estimate(output: Tensor, xt: Tensor, level: Level, predicts: str) -> Estimate:
    """The network's answer, whatever its kind, as an Estimate: two linear equations in the two unknowns x0 and eps.

    The v and flow lines hold on every schedule, VP or not. Raises ValueError for an unknown kind or for shapes that
    differ.
    """
    _same_shape("xt", xt, "the network's output", output)
    alpha, sigma = level.like(xt)
    match predicts:
        case "eps":
            return Estimate(predict_x0(xt, output, level), output)
        case "x0":
            if _any_zero(sigma):  # x_t = x0 tells nothing about eps, and the best guess of it is its mean
                return Estimate(output, 0 * output)
            return Estimate(output, predict_eps(xt, output, level))
        case "v":
            norm = alpha**2 + sigma**2  # 1 on a VP schedule
            return Estimate((alpha * xt - sigma * output) / norm, (sigma * xt + alpha * output) / norm)
        case "flow":
            norm = alpha + sigma  # 1 on a flow
            return Estimate((xt - sigma * output) / norm, (xt + alpha * output) / norm)
    raise _unknown(predicts)


def denoiser(net: Callable, predicts: str = "eps", clip: float | None = None, **cond) -> Denoiser:
    """A network as a Denoiser: (xt, level) -> Estimate. The network is called as net(xt, t, **cond), t of shape (B,).

    clip: bound for |x0|, see `clipped`. Raises ValueError for an unknown kind of prediction.
    """
    if predicts not in TARGETS:
        raise _unknown(predicts)

    def denoise(xt: Tensor, level: Level) -> Estimate:
        return to_estimate(net(xt, level.timesteps(xt), **cond), xt, level, predicts)

    return denoise if clip is None else clipped(denoise, clip)


def clipped(denoise: Denoiser, bound: float = 1.0) -> Denoiser:
    """The same denoiser with x0 held to [-bound, bound], where images live; eps stays as it was, as in diffusers.

    At the noisy end an eps-network's x0 is its error times sigma/alpha: 20 000 times, on the cosine schedule. After
    clipping, alpha * x0 + sigma * eps is x_t no more. `ddpm_step` reads x0 alone and does not mind; `ddim_step` reads both,
    and at few steps its pictures lose contrast.
    """

    def denoise_clipped(xt: Tensor, level: Level) -> Estimate:
        x0, eps = denoise(xt, level)
        return Estimate(x0.clamp(-bound, bound), eps)

    return denoise_clipped


def _any_zero(value: float | Tensor) -> bool:
    return bool((value == 0).any()) if isinstance(value, Tensor) else value == 0


def _same_shape(a_name: str, a: Tensor, b_name: str, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"{a_name} is {tuple(a.shape)} and {b_name} is {tuple(b.shape)}: they must have the same shape")


def _unknown(predicts: str) -> ValueError:
    return ValueError(f'unknown prediction "{predicts}": a network predicts one of {", ".join(TARGETS)}')
