"""Chapter 10: what it defines, and what the library's versions are asked to compare with."""

import torch
from torch import nn

import minidiff as md

OWN = {
    "PlainAverage", "error_at", "features", "freeze_all_but", "fresh", "further", "gradient", "in_turn", "learn",
    "loss", "made", "orthogonalise", "pictures", "shares", "travelled",
}  # fmt: skip


def trained(Trainer):
    """Losses, weights and averages of short runs that accumulate, with noise in the loss, by both optimizers."""
    found = []
    for optimizer, accumulate, clip in (("adamw", 3, 1.0), ("muon", 2, 0.01), ("adamw", 1, 1.0)):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 3))
        feed = iter(torch.randn(12, 4, 3).split(1))
        config = md.TrainConfig(steps=4, accumulate=accumulate, warmup=2, optimizer=optimizer, clip=clip, seed=2)
        trainer = Trainer(net, lambda net, x, y: (net(x + torch.randn_like(x)) - x).square().mean(), config)
        losses = trainer.fit((x[0], None) for x in feed)
        found += [torch.tensor(losses), *trainer.net.parameters(), *trainer.ema.net.parameters()]
    return [value.detach() for value in found]


INPUTS = {"Trainer": trained}
