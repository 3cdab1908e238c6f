"""Perturbed attention: the same network, whose positions no longer look at one another (Ahn et al. 2024).

Self-attention is where a network sees that a picture holds together: one outline, one colour, so many things and no more.
Make its maps the identity, M v = v, and what is left paints every corner well and the whole badly. That is a bad example to
lead away from, which costs no training, and repairs what the words of a prompt say nothing about.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .attention import SelfAttention


def perturbed(ask: Callable, net: nn.Module, layers: Sequence[str] = ("mid",)) -> Callable:
    """`ask`, which calls `net`, as a function (x, t, *, blind, **cond): rows that are blind look at nothing but themselves.

    blind: bool (B,). In the SelfAttentions of `net` whose names begin as one of `layers` ("mid", "up.0.layers.0"; "" for all)
    those rows have the identity for a map, softmax(q k^T / sqrt(d)) v becomes v (section 4); the others stay as they are.
    Raises ValueError for a name under which there is none.
    """
    found = {name: module for name, module in net.named_modules() if isinstance(module, SelfAttention)}
    for layer in layers:
        if not any(name.startswith(layer) for name in found):
            raise ValueError(f'no self-attention of this {type(net).__name__} is in "{layer}": '
                             + (f"it has {', '.join(found)}" if found else "it has none at all"))  # fmt: skip
    chosen = [module for name, module in found.items() if name.startswith(tuple(layers))]

    def question(x: Tensor, t: Tensor, *, blind: Tensor, **cond) -> Tensor:
        def look(module: SelfAttention, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            return torch.where(blind[:, None, None], module.to_out(module.to_v(*inputs)), output)

        hooks = [module.register_forward_hook(look) for module in chosen]
        try:
            return ask(x, t, **cond)
        finally:
            for hook in hooks:
                hook.remove()

    return question
