"""Guidance by a gradient: whatever can be said of a clean picture as a number, a walk can be steered by.

Let L say how far x0 is from what is wanted, and let exp(-scale * L) be how likely it is to be taken. Bayes' rule then adds
the gradient of -scale * L(x0(x_t)) to the score, which is -eps / sigma (Song et al. 2021, section 5; Dhariwal & Nichol 2021,
algorithm 2):

    eps' = eps + scale * sigma * g            g = dL/dx_t = (dx0/dx_t)^T dL/dx0
    x0'  = x0  - scale * sigma^2 / alpha * g  so that alpha * x0' + sigma * eps' is x_t as before

What is dx0/dx_t? The network knows, for it is its own derivative, and costs a backward pass. And Tweedie's formula knows:
sigma^2 / alpha * dx0/dx_t is the covariance of x0 given x_t, by how much x0 may still move and in which directions. Where
one does not want to ask, one guesses as if data were white noise of variance 1: dx0/dx_t = alpha / (alpha^2 + sigma^2) (PiGDM,
Song et al. 2023). To hold eps fixed instead, as is often done, gives 1 / alpha: 157 at the noisy end of the linear schedule,
where that guess is 0.006.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .forward import Denoiser, Estimate
from .schedule import Level


def guided(denoise: Denoiser, loss: Callable[[Tensor], Tensor], scale: float, through_net: bool = False) -> Denoiser:
    """The denoiser, steered towards pictures on which `loss` is low (Dhariwal & Nichol 2021, algorithm 2; see above).

    loss: x0 (B, C, H, W) -> one number, the sum over the images of what each of them lacks: so none feels the others. With
    a model of latents it is of what they show: lambda z: loss(vae.decode(z / vae.scale + vae.shift)).
    scale: how much it counts; 0 changes nothing. Through the network it counts in nats: exp(-scale * loss) is how often a
    picture is taken, so tens are much. With the network held every number is pushed by itself, and a mean over 3072 of them
    has a slope of 1/3072 in each: such a loss wants some thousand.
    through_net: ask the network how x0 depends on x_t (True: memory and time of a training step), or take it for
    alpha / (alpha^2 + sigma^2) (False).

    Raises ValueError for a loss that is not one number, not finite, or does not depend on x0, found out on x_t before the
    network is asked; with through_net where alpha = 0, for there x_t says nothing of x0.
    """
    tried = set()

    def steer(xt: Tensor, level: Level) -> Estimate:
        if xt.shape not in tried:
            _slope(loss, xt)
            tried.add(xt.shape)
        alpha, sigma = level.like(xt)
        if not through_net:
            estimate = denoise(xt, level)
            return _moved(estimate, _slope(loss, estimate.x0), scale / (alpha**2 + sigma**2), alpha, sigma)
        if not torch.as_tensor(alpha).all():
            raise ValueError("alpha is 0 at this level: x_t says nothing of x0, so there is no gradient through the network. "
                             "Guide with through_net=False, or leave this level out")
        with torch.enable_grad():
            xt = xt.detach().requires_grad_()
            estimate = denoise(xt, level)
            slope = torch.autograd.grad(_checked(loss(estimate.x0)), xt)[0]
        return _moved(Estimate(*(part.detach() for part in estimate)), slope, scale / alpha, alpha, sigma)

    return steer


def classifier_guided(denoise: Denoiser, log_prob: Callable[[Tensor, Tensor], Tensor], scale: float) -> Denoiser:
    """Classifier guidance (Dhariwal & Nichol 2021, algorithm 2): steered by a network that classifies *noisy* pictures.

        eps' = eps - scale * sigma * grad log p(y | x_t)            scale 1: Bayes' rule

    log_prob: (x_t (B, ...), t (B,)) -> (B,), the log-probability of what is wanted of each image. It must have been trained
    on all levels of noise: a classifier of clean pictures sees nothing here that it knows, and is steered by its surprise.
    Raises ValueError for another shape, and where alpha = 0.
    """

    def steer(xt: Tensor, level: Level) -> Estimate:
        alpha, sigma = level.like(xt)
        if not torch.as_tensor(alpha).all():
            raise ValueError("alpha is 0 at this level: x_t shows no class. Use a schedule without zero terminal SNR")
        with torch.enable_grad():
            x = xt.detach().requires_grad_()
            likely = log_prob(x, level.timesteps(xt))
            if likely.shape != (len(xt),):
                raise ValueError(f"log_prob answers {tuple(likely.shape)} for {len(xt)} images: one number for each")
            slope = torch.autograd.grad(-likely.sum(), x)[0]
        return _moved(denoise(xt, level), slope, scale / alpha, alpha, sigma)

    return steer


def _moved(estimate: Estimate, slope: Tensor, step: float | Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Estimate:
    """x0 down the slope and eps up, so that alpha * x0 + sigma * eps stays where it was."""
    return Estimate(estimate.x0 - step * sigma**2 * slope, estimate.eps + step * alpha * sigma * slope)


def _slope(loss: Callable[[Tensor], Tensor], x0: Tensor) -> Tensor:
    with torch.enable_grad():
        x0 = x0.detach().requires_grad_()
        return torch.autograd.grad(_checked(loss(x0)), x0)[0]


def _checked(value: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim or not value.requires_grad:
        what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ValueError(f"the loss is {what}: guidance needs one number that depends on x0; sum it over the images")
    if not value.isfinite():
        raise ValueError(f"the loss is {value.item()}: there is no way down from there")
    return value


def color_loss(rgb: Sequence[float]) -> Callable[[Tensor], Tensor]:
    """loss(images): how far (B, C, H, W) in [-1, 1] are from one colour: mean absolute difference, summed over the images.

    rgb: C numbers in [0, 1], as painters and matplotlib have them. Raises ValueError for others, and for images of other than
    C channels.
    """
    if not len(rgb) or not all(0 <= c <= 1 for c in rgb):
        raise ValueError(f"rgb is {tuple(rgb)}: give each channel a number from 0 to 1")

    def loss(images: Tensor) -> Tensor:
        if images.shape[1] != len(rgb):
            raise ValueError(f"images have {images.shape[1]} channels, and the colour {len(rgb)}")
        wanted = 2 * images.new_tensor(rgb).view(-1, 1, 1) - 1
        return (images - wanted).abs().flatten(1).mean(1).sum()

    return loss
