"""Denoisers with nothing to learn: where the data are known, the best guess of x0 is a formula.

Every network trained with a squared error strives for one function, the mean of all clean images that could have
become this x_t. For a Gaussian and for a finite set of images that mean has a closed form, so samplers can be studied,
and tested, in milliseconds and without training.
"""

import torch
from torch import Tensor

from .forward import Estimate
from .schedule import Level


class GaussianDenoiser:
    """The exact denoiser of data drawn from N(mean, std^2), each coordinate for itself.

        E[x0 | x_t] = mean + alpha * std^2 / (alpha^2 * std^2 + sigma^2) * (x_t - alpha * mean)

    mean, std: numbers, or tensors that broadcast against one image. Raises ValueError unless std > 0.
    """

    def __init__(self, mean: float | Tensor = 0.0, std: float | Tensor = 1.0):
        if not bool((torch.as_tensor(std) > 0).all()):
            raise ValueError(f"std = {std}: the spread of the data must be positive")
        self.mean, self.std = mean, std

    def __call__(self, xt: Tensor, level: Level) -> Estimate:
        alpha, sigma = level.like(xt)
        surprise = (xt - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2)  # over the variance of x_t
        return Estimate(self.mean + alpha * self.std**2 * surprise, sigma * surprise)


class DatasetDenoiser:
    """The exact denoiser of a finite dataset (N, ...): a mean of its images, weighted by how likely each became x_t.

        weight_i = softmax_i( -|x_t - alpha * x_i|^2 / (2 * sigma^2) )        (Karras et al. 2022, eq. 57)

    It can only ever give its own images back: a network that generalises must be *worse* than this at its training task.
    std > 0 blurs every image into a Gaussian of that spread; then the data are a mixture, and mean and weights are those of
    GaussianDenoiser, with alpha^2 * std^2 + sigma^2 in place of sigma^2. Raises ValueError for an empty dataset, a negative
    std, or images of another shape.
    """

    def __init__(self, data: Tensor, *, std: float = 0.0):
        if len(data) == 0:
            raise ValueError("the dataset is empty: give at least one image, as a tensor (N, ...)")
        if std < 0:
            raise ValueError(f"std = {std}: the spread of every image is 0 or more")
        self.std = std
        self.shape, self.data = data.shape[1:], data.flatten(1).double()  # (N, D), once: a walk asks at every step

    def __call__(self, xt: Tensor, level: Level) -> Estimate:
        if xt.shape[1:] != self.shape:
            raise ValueError(f"xt holds images of {tuple(xt.shape[1:])}, the dataset of {tuple(self.shape)}")
        if not isinstance(level.sigma, Tensor) and level.sigma == 0:  # CLEAN: x_t is the image; of eps nothing is known
            return Estimate(xt / level.alpha, torch.zeros_like(xt))
        x, data = xt.flatten(1).double(), self.data.to(xt.device)  # (B, D), (N, D)
        alpha, sigma = level.like(x)
        # -|x - alpha * x_i|^2 / 2 without |x|^2, which is the same for every i. In float64: its divisor may be tiny.
        closeness = alpha * (x @ data.T) - alpha**2 / 2 * data.norm(dim=1) ** 2  # (B, N)
        variance = alpha**2 * self.std**2 + sigma**2
        mean = (closeness / variance).softmax(dim=1) @ data  # (B, D)
        surprise = (x - alpha * mean) / variance
        x0 = mean + alpha * self.std**2 * surprise
        return Estimate(x0.to(xt).view_as(xt), (sigma * surprise).to(xt).view_as(xt))
