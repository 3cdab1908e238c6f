"""Chapter 05: what it defines, and what the library's versions are asked to compare with."""

import torch
from torch import nn

OWN = {
    "PixelMLP", "clip_gradients", "error_at", "features", "feed", "grain", "look", "lr_at", "nearest", "pictures", "pocket_net",
    "train", "train_plainly", "v_loss",
}  # fmt: skip


def follow(EMA):
    """A network with buffers that wanders for 40 steps, and the averages of it, with a short memory and with a long one."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=generator)
    averages = [EMA(net), EMA(net, 0.5)]
    for _ in range(40):
        for p in net.parameters():
            p.data += torch.randn(p.shape, generator=generator)
        net[1].running_mean += 1
        for average in averages:
            average.update(net)
    assert not any(average.net.training or any(p.requires_grad for p in average.net.parameters()) for average in averages)
    return [value for average in averages for value in average.net.state_dict().values()]


_RANDOM = torch.Generator().manual_seed(0)
A, B = torch.randn(200, 6, generator=_RANDOM), torch.randn(150, 6, generator=_RANDOM) @ torch.diag(torch.arange(1.0, 7)) + 1
INPUTS = {"EMA": follow, "frechet_distance": [(A, B), (B, A), (A[:4], B), (A.half(), B.half())]}
