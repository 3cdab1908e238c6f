"""Prompt-to-prompt: draw a second picture that looks where the first one looks (Hertz et al. 2022).

Attention has two halves, M v. The maps M = softmax(q k^T / sqrt(d)) (their eq. 1) say who looks at whom: which part of the
picture belongs together, and where in it a word is at work. The values v say what is seen there. Swap a word of the prompt
and keep the maps, and what was red becomes blue in the same place; let the new picture have maps of its own, and it may
stand anywhere.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .attention import CrossAttention, SelfAttention


@contextmanager
def borrowed_attention(net: nn.Module, source: Sequence[int], tau: float = 0.0,
                       kinds: tuple[type, ...] = (SelfAttention, CrossAttention)) -> Iterator[None]:  # fmt: skip
    """Inside the block, row i of a batch looks where row source[i] looks, as long as `net` is told a t > tau.

        with borrowed_attention(pipe.unet, [0, 0], tau=700.0):      # the second picture takes the maps of the first
            pipe([before, after], latents=noise.expand(2, -1, -1, -1))

    Algorithm 1 with the word swap of section 3.2: M* = M[source[i]] for t > tau, M[i] after that, then M* v[i]. A row that is
    its own source stays bit for bit what it is. Word by word the two prompts should match, for map k of the one is used for
    word k of the other. A batch of several times len(source), as guidance asks, is taken in parts, each like the first.
    net is called as net(x, t, ...), t of shape (B,); kinds: the attentions that borrow.
    Raises ValueError for rows that are not there, and inside the block for batches that are no multiple of len(source).
    """
    if not source or not all(0 <= row < len(source) for row in source):
        raise ValueError(f"source = {list(source)}: for each of n rows give one of 0 to n - 1, its own if it borrows nothing")
    own, borrowed = torch.empty(2, 0, dtype=torch.long)

    def begin(net, inputs):  # once for each question
        nonlocal own, borrowed
        (x, t), n = inputs[:2], len(source)
        if len(x) % n:
            raise ValueError(f"a batch of {len(x)} rows is no multiple of the {n} that source tells of")
        own = torch.arange(len(x), device=x.device)
        rows = own.view(-1, n)[:, list(source)].flatten()
        borrowed = torch.where(t > tau, rows, own)

    def look(module, inputs, output: Tensor) -> Tensor:
        x, context = inputs if len(inputs) == 2 else 2 * inputs
        seen = module.weights(x, context)[borrowed] @ module.keys_values(context)[1]  # (B, heads, N, d)
        return torch.where((borrowed != own)[:, None, None], module.to_out(seen.transpose(1, 2).flatten(2)), output)

    hooks = [net.register_forward_pre_hook(begin)]
    hooks += [module.register_forward_hook(look) for module in net.modules() if isinstance(module, kinds)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
