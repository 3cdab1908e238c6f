"""Chapter 14: what it defines, and what the library's versions are asked to compare with."""

import torch

OWN = {
    "Attention", "TextToImage", "Words", "attend", "draw", "fit", "obeyed", "pair", "shaken", "split_wrongly", "tokens",
    "watch", "word_maps",
}  # fmt: skip

_RANDOM = torch.Generator().manual_seed(0)
X, CONTEXT = torch.randn(2, 9, 48, generator=_RANDOM).double(), torch.randn(2, 5, 20, generator=_RANDOM).double()
MAPS = torch.randn(2, 48, 3, 4, generator=_RANDOM).double()


def answers(net, *question):
    """A new network's answer; its parameters' names and sizes; and, with a random number in each, its answer again."""
    with torch.no_grad():
        new = net(*question)
        generator = torch.Generator().manual_seed(1)
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / (p[0].numel() if p.ndim > 1 else 16) ** 0.5)
        assert net(*question).std() > 0.1
        return {**{f"size of {name}": torch.tensor(p.shape) for name, p in net.named_parameters()}, "new": new,
                "random": net(*question)}  # fmt: skip


def seeded(build, *question):
    """What `build` builds from seed 0, asked and asked again."""
    torch.manual_seed(0)
    return answers(build().double(), *question)  # in float64, where two orders of summing agree


INPUTS = {
    "SelfAttention": lambda c: [seeded(lambda o=o: c(48, **o), X) for o in ({}, {"heads": 4}, {"heads": 6, "bias": True})],
    "CrossAttention": lambda c: [seeded(lambda o=o: c(48, 20, **o), X, CONTEXT) for o in ({}, {"heads": 4}, {"bias": True})],
    "FeedForward": lambda c: [
        seeded(lambda: c(48), X),
        seeded(lambda: c(48, 0.0).eval(), X),
        seeded(lambda: c(48, 0.5).eval(), X),
    ],
    "BasicTransformerBlock": lambda c: [seeded(lambda h=h: c(48, 20, h).eval(), X, CONTEXT) for h in (None, 4)],
    "SpatialTransformer": lambda c: [
        seeded(lambda o=o: c(48, 20, **o).eval(), MAPS, CONTEXT)
        for o in ({}, {"heads": 4, "depth": 2}, {"linear": True, "groups": 8}, {"dropout": 0.5})
    ],
}
