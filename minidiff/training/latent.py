"""Stage three of a latent diffusion model: a U-Net learns what latents look like that belong to a text.

Pictures were encoded once, and the VAE answers with Gaussians, of which a step takes the means or draws from them anew. A
tenth of the texts is dropped: so the network also knows the answer to no text, which guidance needs (Ho & Salimans 2022).
What is easy comes first, if so wished (Bengio et al. 2009).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..diffusion import Schedule, diffusion_loss
from ..nets import CLIPText, UNet


def deal(count: int, batch: int, seed: int = 0, start: int = 0) -> Iterator[Tensor]:
    """Endless batches of indices below `count`, (batch,): a fresh permutation each epoch. Batch k depends on (seed, k) alone.

    start: the first batch to give. ValueError, at the first batch, unless 1 <= batch <= count.
    """
    if not 1 <= batch <= count:
        raise ValueError(f"a batch of {batch} from {count} scenes: take 1 to {count}")
    rounds, k = count // batch, start
    while True:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + k // rounds))
        for i in range(k % rounds, rounds):
            yield order[i * batch : (i + 1) * batch]
        k = (k // rounds + 1) * rounds


@dataclass
class Lessons:
    """N latents, each with its text and what the U-Net may see beside it; on the device where training is to run.

    mean, std: (N, C, h, w), of the VAE's Gaussians, of about unit variance; std None: exactly the mean.
    texts: (N, L, D) features of a frozen text encoder, or (N, L) ids for one that learns; nothing: the row of no text.
    beside: (N, K, h, w) further channels, noisy by beside_std where that is given.
    """

    mean: Tensor
    std: Tensor | None
    texts: Tensor
    nothing: Tensor
    beside: Tensor | None = None
    beside_std: Tensor | None = None
    dropout: float = 0.1  # share of texts dropped
    easy: Tensor | None = None  # (M,), the numbers of those to begin with, if there are any
    plain: Tensor | None = None  # (M, L, D) or (M, L), what is then said of them

    def batches(self, batch: int, seed: int = 0, start: int = 0, ahead: int = 0) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Endless (latents (B, C, h, w), {"context": ..., "beside": ...}), the first `ahead` of easy ones alone; what is drawn
        comes from torch's own generator. ValueError, at the first batch, for easy ones that there are not.
        """
        if ahead and (self.easy is None or self.plain is None):
            raise ValueError(f"{ahead} batches of easy scenes, but none are marked: give easy, their numbers, and plain texts")
        for k, chosen in enumerate(deal(len(self.mean), batch, seed, start), start):
            chosen = chosen.to(self.mean.device)
            if k < ahead:
                chosen = chosen % len(self.easy)
                chosen, context = self.easy[chosen], self.plain[chosen]
            else:
                context = self.texts[chosen]
            dropped = torch.rand(batch, device=context.device) < self.dropout
            context = torch.where(dropped.view(-1, *[1] * (context.ndim - 1)), self.nothing, context)
            given = {"context": context.float() if context.is_floating_point() else context}
            if self.beside is not None:
                given["beside"] = _drawn(self.beside, self.beside_std, chosen)
            yield _drawn(self.mean, self.std, chosen), given


def _drawn(mean: Tensor, std: Tensor | None, chosen: Tensor) -> Tensor:
    z = mean[chosen].float()
    return z if std is None else z + std[chosen].float() * torch.randn_like(z)


class Reader(nn.Module):
    """A U-Net and the text encoder that learns with it, as in Rombach et al. 2022, section 3.3: net(x, t, context=ids)."""

    def __init__(self, unet: UNet, text: CLIPText):
        super().__init__()
        self.unet, self.text = unet, text

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return self.unet(x, t, context=self.text(context).tokens)


def long_words(text: CLIPText, std: float = 1.0) -> CLIPText:
    """The untrained encoder, the numbers of its word vectors drawn anew with deviation `std`, of its positions with half.

    At CLIP's 0.02 and 0.01 what the layers add is ten times as long, so that at first all words of a sentence look alike,
    and a short training is over before they part.
    """
    nn.init.normal_(text.tokens.weight, std=std)
    nn.init.normal_(text.positions, std=std / 2)
    return text


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention by plain matrix products, in the precision of what surrounds it: for training on few positions on a CPU, where
    torch's fused one is ten times as slow backwards, and its plain one goes by float32 and back unless told otherwise.
    """
    switches = torch.backends.cuda  # where this one lives, though CPUs heed it
    before = switches.fp16_bf16_reduction_math_sdp_allowed()
    switches.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        switches.allow_fp16_bf16_reduction_math_sdp(before)


def latent_loss(schedule: Schedule, predicts: str, **weighing) -> Callable:
    """A loss for Trainer, on batches of Lessons; weighing: `min_snr` or `measured` of diffusion_loss."""

    def loss(net: nn.Module, z: Tensor, given: dict[str, Tensor]) -> Tensor:
        beside = given.get("beside")
        ask = net if beside is None else lambda x, t, context: net(torch.cat([x, beside], dim=1), t, context=context)
        with plain_attention() if z.device.type == "cpu" else nullcontext():
            return diffusion_loss(ask, z, schedule, predicts, **weighing, context=given["context"])

    return loss


def widened(unet: UNet, channels: int) -> UNet:
    """A U-Net that takes `channels` and answers as this one does, whatever the new ones hold: they enter with weight zero.

    So Stable Diffusion's own inpainting model was begun, says its card. ValueError for fewer channels than there are.
    """
    config = unet.config
    more = (channels - config["in_channels"]) * config["patch"] ** 2
    if more < 0:
        raise ValueError(f"a U-Net of {config['in_channels']} channels cannot be widened to {channels}")
    weights = unet.state_dict()
    here = config["in_channels"] * config["patch"] ** 2
    door = weights["conv_in.weight"]  # (width, channels * patch^2, 3, 3): those of one channel together, maps of a class last
    weights["conv_in.weight"] = torch.cat([door[:, :here], door.new_zeros(len(door), more, 3, 3), door[:, here:]], dim=1)
    wide = UNet(**{**config, "in_channels": channels})
    wide.load_state_dict(weights)
    return wide.to(door).train(unet.training)
