"""Stage one of a latent diffusion model: an autoencoder whose latents are worth diffusing (Rombach et al. 2022, section 3.1).

    loss = sum |x - decode(z)| + beta KL(q(z | x) | N(0, 1)) + judge * "this looks decoded",      z drawn from q(z | x)

beta is the error per number of a picture that the decoder is forgiven, in [-1, 1]: 0.01 is about one grey level.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..nets import VAE, Discriminator, Gaussian, hinge
from ..nets.discriminator import fooled


class Judged(nn.Module):
    """A VAE and the critic of its copies in one network, so that one optimizer, one average and one file serve both.

    Each learns from its own term of the loss alone: neither term's gradient reaches the other's weights.
    """

    def __init__(self, vae: VAE, critic: Discriminator):
        super().__init__()
        self.vae, self.critic = vae, critic


def sure_of_itself(vae: VAE, by: float = 4.0) -> VAE:
    """The VAE, its log variances lowered: latents that begin as noise teach the decoder to ignore them."""
    with torch.no_grad():
        vae.quant_conv.bias[vae.config["latent_channels"] :] -= by
    return vae


def autoencoder_loss(beta: float = 0.01, judge: float = 0.0) -> Callable:
    """A loss for Trainer: of a VAE, or, where judge > 0, of a Judged. Per number of a picture, so that sizes compare."""

    def loss(net: VAE | Judged, x: Tensor, y: Tensor | None = None) -> Tensor:
        vae = net.vae if judge else net
        posterior = Gaussian(*vae.moments(x).float().chunk(2, dim=1))  # an exponential wants more than bfloat16
        made = vae.decode(posterior.sample())
        error = (made.float() - x).abs().flatten(1).sum(1)  # (B,)
        plain = (error + beta * posterior.kl()).mean() / x[0].numel()
        if not judge:
            return plain
        return plain + judge * fooled(net.critic, made) + hinge(net.critic(x), net.critic(made.detach()))

    return loss


@torch.no_grad()
def encode(vae: nn.Module, pixels: Tensor, hidden: Tensor | None = None, device: str = "cpu",
           batch: int = 64) -> dict[str, Tensor]:  # fmt: skip
    """Pictures uint8 (N, 3, H, W) -> {"mean", "std"} of their latents, the VAE's own: float16 (N, C, h, w), on the CPU.

    hidden: masks (N, 1, H, W), 1 where a picture is covered by the grey of 0.
    """
    found = {"mean": [], "std": []}
    for k in tqdm(range(0, len(pixels), batch), desc="encoding", unit="batch", leave=False):
        x = pixels[k : k + batch].to(device).float() / 127.5 - 1
        posterior = vae.encode(x if hidden is None else x * (hidden[k : k + batch].to(device) < 0.5))
        for name, pieces in found.items():
            pieces.append(getattr(posterior, name).half().cpu())
    return {name: torch.cat(pieces) for name, pieces in found.items()}


def measure(vae: VAE, latents: dict[str, Tensor]) -> VAE:
    """The VAE, carrying the shift and scale at which draws of these latents have mean 0 and variance 1.

    A draw is mean + std * eps: its variance, over all numbers of all latents, is that of the means plus the mean of std^2.
    """
    mean, std = (latents[name].double() for name in ("mean", "std"))
    vae.shift = vae.config["shift"] = mean.mean().item()
    vae.scale = vae.config["scale"] = (mean.var(correction=0) + std.square().mean()).rsqrt().item()
    return vae
