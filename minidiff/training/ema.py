"""EMA: a second copy of the network that follows the first as a moving average, and draws the better pictures."""

import copy

import torch
from torch import nn


class EMA:
    """An exponential moving average of a network's weights; `ema.net` is the network to sample from.

        average <- d * average + (1 - d) * weights,      d = min(decay, (1 + k) / (10 + k)) after k updates

    The ramp makes the average span the last tenth of the run until that is longer than 1 / (1 - decay) steps, so a short
    run is not averaged with its own random beginning. Raises ValueError for a decay outside [0, 1).
    """

    def __init__(self, net: nn.Module, decay: float = 0.999):
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay = {decay}: it must lie in [0, 1); 0.999 averages about 1000 steps")
        self.net = copy.deepcopy(net).requires_grad_(False).eval()
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Take one step towards the weights of `net`; buffers, such as BatchNorm statistics, are copied."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for average, weight in zip(self.net.parameters(), net.parameters(), strict=True):
            average.lerp_(weight, 1 - decay)
        for average, buffer in zip(self.net.buffers(), net.buffers(), strict=True):
            average.copy_(buffer)
