"""How a number (the timestep) and a name (the class) become vectors that a network can add to its features."""

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import silu


def sinusoidal(t: Tensor, dim: int, max_period: float = 10_000.0, *, freq_shift: int = 0, sin_first: bool = False) -> Tensor:
    """t (B,), whole or fractional -> (B, dim): cos and sin of t at dim/2 frequencies from 1 down to 1/max_period.

    Vaswani et al. 2017, section 3.5, cosines first as Stable Diffusion has them; sines first as in DDPM with sin_first.
    The last frequency stops one short of 1/max_period, or reaches it with DDPM's freq_shift of 1. Always float32: t = 999
    and t = 1000 are the same number in bfloat16. Raises ValueError for an odd dim.
    """
    if dim % 2:
        raise ValueError(f"an embedding pairs a sine with a cosine: dim must be even, not {dim}")
    frequency = torch.exp(-math.log(max_period) * torch.arange(dim // 2, device=t.device) / (dim // 2 - freq_shift))
    angle = t.float()[:, None] * frequency  # (B, dim/2)
    return torch.cat([angle.sin(), angle.cos()] if sin_first else [angle.cos(), angle.sin()], dim=1)


class LearnedFrequencies(nn.Module):
    """sinusoidal, with frequencies that are trained: (B,) -> (B, dim). Starts from the same ones."""

    def __init__(self, dim: int, max_period: float = 10_000.0):
        super().__init__()
        self.log_frequency = nn.Parameter(-math.log(max_period) * torch.arange(dim // 2) / (dim // 2))

    def forward(self, t: Tensor) -> Tensor:
        angle = t.float()[:, None] * self.log_frequency.exp()
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class TimeEmbedding(nn.Module):
    """Timesteps (B,) -> (B, out): sinusoids, then two linear layers that learn what to make of them (DDPM, appendix B).

    learned: train the frequencies too. waves: options of `sinusoidal`.
    """

    def __init__(self, dim: int, out: int, learned: bool = False, **waves):
        super().__init__()
        self.frequencies = LearnedFrequencies(dim) if learned else partial(sinusoidal, dim=dim, **waves)
        self.linear_1 = nn.Linear(dim, out)
        self.linear_2 = nn.Linear(out, out)

    def forward(self, t: Tensor) -> Tensor:
        return self.linear_2(silu(self.linear_1(self.frequencies(t).to(self.linear_1.weight.dtype))))


class ClassEmbedding(nn.Module):
    """Labels (B,) -> (B, dim), a learned vector per class; and one more, the null class, for "whatever you like".

    A network that saw the null class now and then in training can be asked both ways, and classifier-free guidance needs
    both answers (Ho & Salimans 2022, algorithm 1). null=False: for networks of others, which have none; null_class is None.
    Raises ValueError for a label without a row.
    """

    def __init__(self, num_classes: int, dim: int, *, null: bool = True):
        super().__init__()
        self.num_classes, self.null_class = num_classes, num_classes if null else None
        self.table = nn.Embedding(num_classes + null, dim)

    def forward(self, y: Tensor) -> Tensor:
        if y.numel() and not 0 <= y.min() <= y.max() < len(self.table.weight):
            null = "" if self.null_class is None else f" (and {self.null_class}, the null class)"
            raise ValueError(f"labels run from {int(y.min())} to {int(y.max())}, but this network knows classes 0 to "
                             f"{self.num_classes - 1}{null}")
        return self.table(y)


def drop_labels(y: Tensor, null_class: int, probability: float, generator: torch.Generator | None = None) -> Tensor:
    """Labels (B,) with each one replaced by the null class at the given probability, 0.1 to 0.2 in the literature."""
    dropped = torch.rand(y.shape, generator=generator).to(y.device) < probability
    return torch.where(dropped, null_class, y)
