"""Chapter 04: what it defines, and what the library's versions are asked to compare with."""

from functools import partial

import torch
from torch import nn

import minidiff as md

OWN = {
    "Layer", "Stack", "awaken", "by_doublings", "by_stage", "count", "draw", "error_at", "field", "fit", "multiply_adds",
    "ours_beside", "patchwork", "same", "show_maps", "show_shares", "show_u", "without_skips",
}  # fmt: skip  # Layer is the library's as well, in nets/blocks.py: it is compared as a part of the blocks

_RANDOM = torch.Generator().manual_seed(0)
X, EMB = (torch.randn(*shape, generator=_RANDOM, dtype=torch.float64) for shape in ((2, 16, 6, 8), (2, 24)))
T = torch.tensor([0.0, 640.5])
OPTIONS = {"channels": (8, 16), "attention": (False, True), "layers": 1}
attend = partial(md.nets.SpatialAttention, 32)
norm = partial(nn.GroupNorm, 2)


def shaken(net):
    """The network in float64, with the same random numbers in its parameters, by name, whoever built it."""
    for i, (_, parameter) in enumerate(sorted(net.named_parameters())):
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)) / 4
    return net.double()


def answers(*cases):
    """Of networks built with (arguments, options) and asked (question): their answers, and their parameters' names."""

    def ask(kind):
        found = []
        for args, options, question in cases:
            net = shaken(kind(*args, **options))
            found += [net(*question), torch.tensor([sum(map(ord, name)) for name, _ in sorted(net.named_parameters())])]
        return found

    return ask


def fresh(kind):
    """A new block is the identity, and answers as the library's."""
    return [answers(((16, 16, 24), {}, (X, EMB)), ((16, 32, 24), {}, (X, EMB)), ((16, 16), {"norm": norm}, (X,)))(kind),
            kind(16, 16, 24).double()(X, EMB)]  # fmt: skip


def down(kind):
    found = []
    for options in ({}, {"layers": 1, "down": False}, {"attend": attend}, {"norm": norm, "asymmetric": True}):
        x, made = shaken(kind(16, 32, 24, **options))(X, EMB)
        found += [x, made]
    return found


def up(kind):
    """Answers, and how many maps are left; with and without a map from before, whose size decides."""
    found = []
    for options in ({}, {"up": False}, {"attend": attend}, {"norm": norm}):
        for before in ([], [torch.zeros(2, 3, 11, 16, dtype=X.dtype)]):
            skips = [*before, X[:, :8], X]
            found += [shaken(kind(16, [16, 8], 32, 24, **options))(X, skips, EMB), torch.tensor(len(skips))]
    return found


def whole(kind):
    nets = [kind(**OPTIONS), kind(1, 1, **OPTIONS), kind(3, 6, (8, 16, 8), layers=2)]
    images = X.reshape(2, 3, 16, 16)[..., :9, :12]
    return [shaken(net)(images[:, : net.conv_in.in_channels], T) for net in nets] + [kind().double()(images, T)]


INPUTS = {
    "sinusoidal": lambda f: [f(T, 8), f(T, 64), f(T, 16, 100.0), f(T, 16, freq_shift=1), f(T, 16, sin_first=True)],
    "TimeEmbedding": answers(((8, 24), {}, (T,)), ((8, 24), {"freq_shift": 1, "sin_first": True}, (T,))),
    "GSC": answers(((16, 8), {}, (X,)), ((16, 16, norm), {}, (X,))),
    "ResNetBlock": fresh,
    "DownSample": answers(((16,), {}, (X,)), ((16,), {}, (X, EMB, None)), ((16, True), {}, (X,))),
    "UpSample": answers(((16,), {}, (X,)), ((16,), {}, (X, (11, 15)))),
    "SelfAttention": answers(((8,), {}, (X[:, :, 0],)), ((8, 4, True), {}, (X[:, :, 0],))),
    "SpatialAttention": answers(((16,), {}, (X,)), ((16, 4), {}, (X,)), ((16, 2, True, norm), {}, (X,))),
    "DownBlock": down,
    "MidBlock": answers(((16, 24), {}, (X, EMB)), ((16, 24, partial(md.nets.SpatialAttention, 16), norm), {}, (X, EMB))),
    "UpBlock": up,
    "UNet": whole,
}
