"""Samplers: generators that walk a list of levels, noisy to clean, and yield a State after every step.

    x = torch.randn(8, 3, 32, 32)
    for state in ddim(denoise, x, schedule.levels(50)):       # keep the last one, or plot them all
        ...

A sampler is a page of a paper and nothing else: no model, no schedule, no device, no guidance lives here. What the
denoiser is made of, it never learns; where the levels come from, neither. It runs without gradients, or a walk of fifty
steps would keep fifty networks' worth of activations; a denoiser that needs gradients switches them on for itself.
"""

import inspect
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .forward import Denoiser, to_estimate
from .schedule import Level
from .steps import ddim_step, ddpm_step


class State(NamedTuple):
    """Where a walk stands: x at `level`, and the clean image the denoiser believed in when it took the step here."""

    x: Tensor
    x0: Tensor
    level: Level


Sampler = Callable[..., Iterator[State]]  # (denoise, x, levels, **own options)


@torch.no_grad()
def ddpm(
    denoise: Denoiser, x: Tensor, levels: list[Level], generator: torch.Generator | None = None
) -> Iterator[State]:
    """Ancestral sampling (Ho et al. 2020, algorithm 2) from x (B, ...) at levels[0]; one network call a step.

    Raises ValueError unless the levels go from noisy to clean.
    """
    for here, there in downward(levels):
        estimate = denoise(x, here)
        noise = randn_like(x, generator) if there.sigma else None
        x = ddpm_step(x, estimate, here, there, noise)
        yield State(x, estimate.x0, there)


@torch.no_grad()
def ddim(
    denoise: Denoiser, x: Tensor, levels: list[Level], eta: float = 0.0, generator: torch.Generator | None = None
) -> Iterator[State]:
    """DDIM (Song et al. 2021, eq. 12) from x (B, ...) at levels[0]; one network call a step.

    eta = 0 is deterministic: the same x always becomes the same image. On a rectified flow this is Euler's method.
    Raises ValueError unless the levels go from noisy to clean, and for eta outside [0, 1].
    """
    for here, there in downward(levels):
        estimate = denoise(x, here)
        noise = randn_like(x, generator) if eta and there.sigma else None
        x = ddim_step(x, estimate, here, there, eta, noise)
        yield State(x, estimate.x0, there)


def euler(denoise: Denoiser, x: Tensor, levels: list[Level]) -> Iterator[State]:
    """Euler's method (Karras et al. 2022, algorithm 1 without its lines 6-8) from x (B, ...) at levels[0]; one call a step.

    Divide x_t by alpha and count noise by s = sigma/alpha. The curve that leads from noise to image, which every sampler
    here but ddpm follows, is then as plain as a curve can be, and so is a step along its tangent:

        d(x/alpha)/ds = eps        x_there/alpha_there = x/alpha + (s_there - s) * eps = x0 + s_there * eps

    Multiply by alpha_there, and nothing divides by alpha any more: it is DDIM's step at eta = 0, so it is DDIM.
    Raises ValueError unless the levels go from noisy to clean.
    """
    return ddim(denoise, x, levels)


def euler_ancestral(
    denoise: Denoiser, x: Tensor, levels: list[Level], generator: torch.Generator | None = None
) -> Iterator[State]:
    """Euler with fresh noise (k-diffusion's ancestral sampling) from x (B, ...) at levels[0]; one network call a step.

    Step further than asked, to s_down, then noise the result back up to s_there:

        s_up = s_there * sqrt(1 - rho^2),    s_down = sqrt(s_there^2 - s_up^2) = rho * s_there,    rho = s_there / s

    rho is `ddim_step`'s, and multiplied by alpha_there this is its step at eta = 1, so it is that.
    Raises ValueError unless the levels go from noisy to clean.
    """
    return ddim(denoise, x, levels, 1.0, generator)


@torch.no_grad()
def heun(denoise: Denoiser, x: Tensor, levels: list[Level]) -> Iterator[State]:
    """Heun's method (Karras et al. 2022, algorithm 1) from x (B, ...) at levels[0]; two network calls a step, second order.

    Take Euler's step, ask for the slope where it ends, and take the step again with the mean of the two slopes eps.
    Euler alone where there is no such mean: from alpha = 0 the step is infinitely long in s, and at sigma = 0 there is no
    noise to ask about. Raises ValueError unless the levels go from noisy to clean.
    """
    for here, there in downward(levels):
        estimate = denoise(x, here)
        ahead = ddim_step(x, estimate, here, there)
        if here.alpha and there.sigma:
            ahead = step_by(x, (estimate.eps + denoise(ahead, there).eps) / 2, "eps", here, there)
        x = ahead
        yield State(x, estimate.x0, there)


@torch.no_grad()
def repaint(
    denoise: Denoiser, x: Tensor, levels: list[Level], times: int = 5, generator: torch.Generator | None = None
) -> Iterator[State]:
    """DDIM that takes every step `times` times, noised back up between them (Lugmayr et al. 2022, algorithm 1).

        x_here = rho * x_there + sqrt(sigma_here^2 - rho^2 * sigma_there^2) * noise,    rho = alpha_here / alpha_there

    That is the forward process from one level to a noisier one. With `inpainting` for a denoiser, what is invented has time to
    take notice of what is known beside it; `times` network calls a step. Raises ValueError unless the levels go from noisy to
    clean, and for times < 1.
    """
    if times < 1:
        raise ValueError(f"times = {times}: every step is taken once or more")
    for here, there in downward(levels):
        for again in reversed(range(times)):
            estimate = denoise(x, here)
            x = ddim_step(x, estimate, here, there)
            if again:
                rho = here.alpha / there.alpha
                x = rho * x + (here.sigma**2 - (rho * there.sigma) ** 2) ** 0.5 * randn_like(x, generator)
        yield State(x, estimate.x0, there)


def step_by(x: Tensor, answer: Tensor, predicts: str, here: Level, there: Level) -> Tensor:
    """DDIM's step as if the network, one that `predicts` this, had given this `answer` about x (B, ...).

    So a sampler of higher order is DDIM with a better answer: the mean of its slopes along the step, not the first.
    """
    return ddim_step(x, to_estimate(answer, x, here, predicts), here, there)


def sample(sampler: Sampler, denoise: Denoiser, x: Tensor, levels: list[Level], progress=True, **options) -> Tensor:
    """The end of the walk: `sampler` run to its last level under a progress bar. (B, ...) -> (B, ...)

    options go to the sampler: sample(ddim, denoise, x, levels, eta=1.0).
    """
    walk = sampler(denoise, x, levels, **options)
    for state in tqdm(walk, total=len(levels) - 1, disable=not progress, leave=False):
        x = state.x
    return x


def draws(sampler: Sampler) -> bool:
    """Does this sampler draw fresh noise, that is, does it take a `generator`?"""
    return "generator" in inspect.signature(sampler).parameters


def downward(levels: list[Level]) -> Iterator[tuple[Level, Level]]:
    """The (here, there) pairs of a walk that only ever gets cleaner. Raises ValueError for one that does not."""
    if len(levels) < 2:
        raise ValueError(f"a walk needs at least two levels and got {len(levels)}: take schedule.levels(n)")
    for here, there in pairwise(levels):
        if not there.sigma * here.alpha < here.sigma * there.alpha:  # sigma/alpha must fall, and alpha may be 0
            raise ValueError("these levels do not go from noisy to clean: a sampler takes schedule.levels(n) as it is, "
                             "and inversion is invert(denoise, x0, levels)")
    return pairwise(levels)


def randn_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise in the shape, dtype and device of x; drawn on the generator's own device, so that a CPU
    seed gives the same picture on every machine."""
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device).to(x.device)
