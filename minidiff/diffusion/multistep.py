"""Samplers with a memory: higher order at one network call a step, because the answers of earlier steps are kept.

One estimate is right at the level where it was made and old news by the end of the step. All samplers here lay a
polynomial through the last few answers, and take DDIM's step with its mean over the step ahead:

    lms         through eps, over s = sigma/alpha, whatever the spacing of the levels
    plms        the same with the classic weights for even steps, cheap and a little wrong: levels are rarely even
    dpmpp_2m    through x0, over log(alpha/sigma), a straight line through two; dpmpp_2m_sde draws fresh noise besides

An old answer made at alpha = 0, where s is infinite, lies on no polynomial and is left out: the walk of a flow, or
from zero terminal SNR, begins with a plain step of DDIM and gathers its memory from there.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .forward import Denoiser, target, to_estimate
from .samplers import State, downward, randn_like, step_by
from .schedule import Level
from .steps import ddim_step

# Adams & Bashforth's weights for 1 to 4 answers at even distances, the newest first: the mean, over the step that
# follows, of the polynomial through them.
ADAMS_BASHFORTH = (
    (1,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@torch.no_grad()
def lms(denoise: Denoiser, x: Tensor, levels: list[Level], order: int = 4) -> Iterator[State]:
    """Linear multistep (Adams-Bashforth for uneven steps, as in k-diffusion) from x (B, ...) at levels[0]; one call a step.

        x_there/alpha_there = x/alpha + integral of P(s) ds from s to s_there,    P the polynomial through the last eps

    order: how many answers P goes through, 1 (Euler) to 4; the first steps have fewer and take what there is.
    Raises ValueError for another order, or unless the levels go from noisy to clean.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"order = {order}: lms remembers 1 to 4 answers")
    past = []  # (s, eps) of the last steps, the newest first
    for here, there in downward(levels):
        estimate = denoise(x, here)
        if here.alpha == 0:
            x = ddim_step(x, estimate, here, there)
        else:
            past = [(here.sigma / here.alpha, estimate.eps), *past][:order]
            weights = adams_bashforth([s for s, _ in past], there.sigma / there.alpha)
            x = step_by(x, blend(weights, [eps for _, eps in past]), "eps", here, there)
        yield State(x, estimate.x0, there)


def adams_bashforth(nodes: list[float], end: float) -> list[float]:
    """Weights of 1 to 4 values, given at these nodes, in the mean from nodes[0] to end of the polynomial through them.

    Lagrange wrote that polynomial as a sum of values times L_j(s) = prod_{k != j} (s - s_k) / (s_j - s_k). It is at most
    a cubic, and the mean of a cubic is that of its values at two points, Gauss': the middle -+ length/sqrt(12).
    """
    middle, reach = (nodes[0] + end) / 2, (nodes[0] - end) / math.sqrt(12)

    def lagrange(j: int, s: float) -> float:
        return math.prod((s - nodes[k]) / (nodes[j] - nodes[k]) for k in range(len(nodes)) if k != j)

    return [(lagrange(j, middle - reach) + lagrange(j, middle + reach)) / 2 for j in range(len(nodes))]


def blend(weights: Sequence[float], answers: list[Tensor]) -> Tensor:
    """The weighted sum of the answers, in place: a multistep sampler spends most of its own time here."""
    total = weights[0] * answers[0]
    for weight, answer in zip(weights[1:], answers[1:], strict=True):
        total.add_(answer, alpha=weight)
    return total


@torch.no_grad()
def plms(denoise: Denoiser, x: Tensor, levels: list[Level], *, blends: str = "eps") -> Iterator[State]:
    """Pseudo linear multistep (Liu et al. 2022, eqs. 9, 12) from x (B, ...) at levels[0]; one call a step, the first two.

    The default of Stable Diffusion 1: the step is DDIM's (their eq. 9), its eps the mean of the last four by the weights
    of even steps (eq. 12). With nothing remembered, the first step is Heun's, as in the code of latent diffusion; the
    paper begins with three Runge-Kutta steps of four calls each.

    blends: what is averaged: "eps" as in the paper; "x0" or "flow", of second order too; or "v", which diffusers takes when
    the network predicts v. That is of first order only, and misses even a truth it is told: v = alpha * eps - sigma * x0
    points another way at every level, and an old one is misread at this one.
    Raises ValueError unless the levels go from noisy to clean, or for an unknown kind to blend.
    """
    past = []  # answers of the last steps, the newest first
    for here, there in downward(levels):
        estimate = denoise(x, here)
        if here.alpha == 0 and blends == "eps":  # of eps alone no x0 can be had here
            x = ddim_step(x, estimate, here, there)
        else:
            past = [target(*estimate, here, blends), *past][:4]
            if len(past) == 1 and there is not levels[-1]:  # where the walk ends there may be no noise to ask about
                ahead = ddim_step(x, estimate, here, there)
                answer = (past[0] + target(*denoise(ahead, there), there, blends)) / 2
            else:
                answer = blend(ADAMS_BASHFORTH[len(past) - 1], past)
            x = step_by(x, answer, blends, here, there)
        yield State(x, estimate.x0, there)


@torch.no_grad()
def dpmpp_2m(
    denoise: Denoiser, x: Tensor, levels: list[Level], *, eta: float = 0.0, generator: torch.Generator | None = None
) -> Iterator[State]:
    """DPM-Solver++ 2M (Lu et al. 2022, algorithm 2) from x (B, ...) at levels[0]; one network call a step, second order.

    With lam = log(alpha/sigma), h the step in lam ahead and h_past the one behind, r = h_past / h,

        D = (1 + 1/(2r)) * x0 - 1/(2r) * x0_past        x0 where its straight line stands in the middle of the step
        x_there = sigma_there/sigma * x - alpha_there * (exp(-h) - 1) * D

    and the second line is DDIM's step for a network that answers D; eta: how random that step is, see `ddim_step`. The last
    step takes x0 as it is, if it leads to CLEAN, an infinite way in lam, or if the walk has fewer than 15 steps, too long
    for a line through two answers. Raises ValueError unless the levels go from noisy to clean, and for eta outside [0, 1].
    """
    past = None  # (lam, x0) of the last step
    for here, there in downward(levels):
        estimate = denoise(x, here)
        lam, x0 = log_ratio(here), estimate.x0
        final = there is levels[-1] and (there.sigma == 0 or len(levels) - 1 < 15)
        if past and not final:
            h, h_past = log_ratio(there) - lam, lam - past[0]  # h_past is infinite from alpha = 0: x0 as it is, again
            x0 = x0 + h / (2 * h_past) * (x0 - past[1])
        past = lam, estimate.x0
        noise = randn_like(x, generator) if eta and there.sigma else None
        x = ddim_step(x, to_estimate(x0, x, here, "x0"), here, there, eta, noise)
        yield State(x, estimate.x0, there)


def dpmpp_2m_sde(
    denoise: Denoiser, x: Tensor, levels: list[Level], generator: torch.Generator | None = None
) -> Iterator[State]:
    """DPM-Solver++ 2M for the SDE (Lu et al. 2022, SDE-DPM-Solver++): the same D, and fresh noise as in DDPM; one call a step.

        x_there = sigma_there/sigma * exp(-h) * x + alpha_there * (1 - exp(-2h)) * D + sigma_there * sqrt(1 - exp(-2h)) * noise

    exp(-h) is `ddim_step`'s rho, so this is its step at eta = 1. Raises ValueError unless the levels go from noisy to clean.
    """
    return dpmpp_2m(denoise, x, levels, eta=1.0, generator=generator)


def log_ratio(level: Level) -> float:
    """log(alpha/sigma), half the logarithm of the SNR: Lu et al.'s lambda. -inf for pure noise, inf for CLEAN."""
    if level.alpha == 0 or level.sigma == 0:
        return math.inf if level.alpha else -math.inf
    return math.log(level.alpha / level.sigma)
