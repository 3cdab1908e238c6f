"""Chapter 20: what it defines, and what the library's versions are asked to compare with."""

import torch

OWN = {
    "Plane", "TextToImage", "Words", "draw", "fit", "flow_euler", "logit_normal", "look", "modulate", "move_patches", "obeyed",
    "pair", "pick", "scatter", "shaken", "shifted", "small_dit", "straight_loss", "trained", "walk", "word_numbers",
}  # fmt: skip

_RANDOM = torch.Generator().manual_seed(0)
IMAGE, TEXT = torch.randn(2, 6, 64, generator=_RANDOM).double(), torch.randn(2, 5, 64, generator=_RANDOM).double()
EMB, MAPS = torch.randn(2, 64, generator=_RANDOM).double(), torch.randn(2, 3, 8, 12, generator=_RANDOM).double()


def told(answer):
    """Tensors only: where the text gets no answer, an empty one says so."""
    return tuple(torch.empty(0) if a is None else a for a in answer) if isinstance(answer, tuple) else answer


def answers(build, *question):
    """A new layer's answer; its parameters' names and sizes; and, with a random number in each, its answer again."""
    torch.manual_seed(0)
    net = build().double()  # in float64, where two orders of summing agree
    with torch.no_grad():
        new = told(net(*question))
        generator = torch.Generator().manual_seed(1)
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / (p[0].numel() if p.ndim > 1 else 16) ** 0.5)
        sizes = {name: torch.tensor(p.shape) for name, p in net.named_parameters()}
        return {"new": new, "random": told(net(*question)), **sizes}


INPUTS = {
    "PatchEmbedding": lambda c: [answers(lambda s=s, p=p: c(3, 64, p, s), MAPS) for s, p in ((12, 2), (16, 4), (32, 2))],
    "Modulation": lambda c: [answers(lambda n=n: c(64, n), EMB) for n in (2, 6, 9)],
    "DiTBlock": lambda c: [answers(lambda o=o: c(64, **o), IMAGE, EMB) for o in ({}, {"heads": 4}, {"qk_norm": True})],
    "FinalLayer": lambda c: [
        answers(lambda p=p: c(64, 5, p), IMAGE, EMB, size) for p, size in ((2, (4, 6)), (4, (12, 8)), (3, (3, 18)))
    ],
    "JointAttention": lambda c: [
        answers(lambda o=o: c(64, **o), IMAGE, TEXT) for o in ({}, {"heads": 4}, {"qk_norm": True}, {"last": True})
    ],
    "JointBlock": lambda c: [
        answers(lambda o=o: c(64, **o), IMAGE, TEXT, EMB)
        for o in ({}, {"heads": 4}, {"qk_norm": True, "dual": True}, {"last": True}, {"dual": True, "last": True})
    ],
}
