"""The training objective: noise an image to a random level, ask the network, compare. That is all there is to learn."""

from collections.abc import Callable

import torch
from torch import Tensor

from .forward import TARGETS, add_noise, target
from .schedule import Level, Schedule


def diffusion_loss(
    net: Callable,
    x0: Tensor,  # (B, ...) clean images in [-1, 1]
    schedule: Schedule,
    predicts: str = "eps",  # what the network is to answer: "eps", "x0", "v" or "flow"
    t: Tensor | None = None,  # (B,) timesteps; drawn by schedule.draw if None
    noise: Tensor | None = None,  # like x0; drawn if None
    *,
    min_snr: float | None = None,  # gamma of min-SNR weighting, 5 in the paper; None weighs every level alike
    measured: str | None = None,  # predict one thing, count the error as another's: "x0" measured as "flow", for example
    **cond,  # handed to the network, such as y = class labels
) -> Tensor:
    """E |net(x_t, t) - target|^2 over images, levels and noise (Ho et al. 2020, eq. 14): a scalar.

    Raises ValueError where shapes differ, t lies outside the schedule, a kind of prediction is unknown, or both min_snr and
    measured are given.
    """
    if min_snr is not None and measured is not None:
        raise ValueError("min_snr and measured both say how much a level counts: give one of them")
    level = schedule.at(schedule.draw(len(x0)) if t is None else t)
    noise = torch.randn_like(x0) if noise is None else noise
    xt = add_noise(x0, noise, level)
    output = net(xt, level.timesteps(xt), **cond)
    wanted = target(x0, noise, level, predicts)
    if output.shape != wanted.shape:
        raise ValueError(f"the network answers {tuple(output.shape)} to an image batch of {tuple(wanted.shape)}")
    error = ((output.float() - wanted.float()) ** 2).flatten(1).mean(1)  # (B,)
    if min_snr is not None:
        error = min_snr_weight(level, predicts, min_snr).to(error) * error
    if measured is not None:
        error = measured_weight(level, predicts, measured).to(error) * error
    return error.mean()


def measured_weight(level: Level, predicts: str, measured: str, most: float = 100.0) -> Tensor:
    """What turns a squared error of `predicts` into one of `measured`, at most `most`: (B,) or ().

    A network draws best what lies near pictures, such as x0 itself; what it should care about may be another thing. To
    predict x0 and count its error as that of the flow is the choice of Li & He 2025. An error delta in x0 is one of
    (alpha/sigma) delta in eps, and so on; near sigma = 0 that grows without bound, hence `most`.
    Raises ValueError for an unknown kind.
    """
    alpha, sigma = torch.as_tensor(level.alpha), torch.as_tensor(level.sigma)
    k = {"eps": alpha, "x0": sigma, "v": alpha**2 + sigma**2, "flow": alpha + sigma}  # error of each per x0's, times sigma
    for kind in (predicts, measured):
        if kind not in k:
            raise ValueError(f'unknown prediction "{kind}": a network predicts one of {", ".join(TARGETS)}')
    return (k[measured] / k[predicts]).square().clamp(max=most)


def min_snr_weight(level: Level, predicts: str, gamma: float = 5.0) -> Tensor:
    """Min-SNR-gamma weights of the squared error, (B,) or () (Hang et al. 2023, section 3.4).

    An error in x0 counts min(SNR, gamma) at every level, so that the nearly clean levels, whose SNR is huge, do not drown
    the others. An error in what the network predicts is k times that error in x0, k = SNR for eps, 1 for x0, and so on;
    hence weight = min(SNR, gamma) / k. It is written as min(1, gamma / SNR) * (SNR / k), which is finite at alpha = 0.
    """
    alpha, sigma = torch.as_tensor(level.alpha), torch.as_tensor(level.sigma)
    capped = (gamma * (sigma / alpha) ** 2).clamp(max=1)  # min(1, gamma / SNR)
    match predicts:
        case "eps":
            return capped
        case "x0":
            return ((alpha / sigma) ** 2).clamp(max=gamma)
        case "v":
            return capped * (alpha / (alpha**2 + sigma**2)) ** 2
        case "flow":
            return capped * (alpha / (alpha + sigma)) ** 2
    raise ValueError(f'unknown prediction "{predicts}": a network predicts one of {", ".join(TARGETS)}')
