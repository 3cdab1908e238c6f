"""Attention: every position of the image looks at every other (self-attention) or at words (cross-attention).

From the inside out: Attention; BasicTransformerBlock, three questions in a row; SpatialTransformer, which lets a feature
map through it. SpatialAttention is what pixel models have in its place, and the VAE.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention


class Memory:
    """A context asked about at every step of a walk: its keys and values are computed at the first, and kept.

    tokens: (B, L, D). Give it to a network in place of them. It holds for as long as the weights stay what they are.
    """

    def __init__(self, tokens: Tensor):
        self.tokens, self.shape = tokens, tokens.shape
        self.kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}


def remembering(net: Callable) -> Callable:
    """`net`, called as before, net(x, t, context=tokens, ...), with a Memory for as long as the very same tokens are given."""
    memory = None

    def ask(*inputs: Tensor, context: Tensor, **cond) -> Tensor:
        nonlocal memory
        if memory is None or memory.tokens is not context:
            memory = Memory(context)
        return net(*inputs, context=memory, **cond)

    return ask


class Attention(nn.Module):
    """Queries from `x`, keys and values from `context`: softmax(q k^T / sqrt(d)) v (Vaswani et al. 2017, eq. 1).

    x (B, N, dim), context (B, L, context_dim) -> (B, N, dim). heads: None for heads of about 64 channels, which processors
    like: with heads of 8, a CPU spends most of its time outside the matrix products.
    """

    def __init__(self, dim: int, context_dim: int, heads: int | None = None, bias: bool = False):
        super().__init__()
        self.heads = heads or max(1, dim // 64)
        if dim % self.heads:
            raise ValueError(f"{dim} channels do not divide into {self.heads} heads: choose heads to divide them")
        self.to_q = nn.Linear(dim, dim, bias)
        self.to_k = nn.Linear(context_dim, dim, bias)
        self.to_v = nn.Linear(context_dim, dim, bias)
        self.to_out = zero(nn.Linear(dim, dim))  # a new layer starts as the identity, x + 0

    def forward(self, x: Tensor, context: Tensor | Memory) -> Tensor:
        out = scaled_dot_product_attention(self._split(self.to_q(x)), *self.keys_values(context))  # (B, heads, N, d)
        return self.to_out(out.transpose(1, 2).flatten(2))  # (B, N, dim)

    def keys_values(self, context: Tensor | Memory) -> tuple[Tensor, Tensor]:
        """k and v, (B, heads, L, dim / heads) each."""
        if isinstance(context, Memory):
            if self not in context.kept:
                context.kept[self] = self.keys_values(context.tokens)
            return context.kept[self]
        return self._split(self.to_k(context)), self._split(self.to_v(context))

    def weights(self, x: Tensor, context: Tensor | Memory) -> Tensor:
        """Who looks at whom: softmax(q k^T / sqrt(d)), (B, heads, N, L), each row adding up to 1."""
        q, (k, _) = self._split(self.to_q(x)), self.keys_values(context)
        return (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).softmax(3)

    def _split(self, y: Tensor) -> Tensor:
        return y.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, N, dim) -> (B, heads, N, dim / heads)


class SelfAttention(Attention):
    """Attention of `x` on itself."""

    def __init__(self, dim: int, heads: int | None = None, bias: bool = False):
        super().__init__(dim, dim, heads, bias)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, x)


class CrossAttention(Attention):
    """Attention of `x` on a context from elsewhere, such as the words of a prompt (Rombach et al. 2022, section 3.3)."""


class FeedForward(nn.Module):
    """What each position makes of what it saw, alone: (B, N, dim) -> (B, N, dim), four times as wide inside.

    GEGLU (Shazeer 2020, eq. 6): one half of the hidden channels says how much of the other half passes.
    """

    def __init__(self, dim: int, dropout: float = 0.0):
        super().__init__()
        self.widen = nn.Linear(dim, 2 * 4 * dim)
        self.dropout = nn.Dropout(dropout)
        self.narrow = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.widen(x).chunk(2, dim=2)
        return self.narrow(self.dropout(value * gelu(gate)))


class BasicTransformerBlock(nn.Module):
    """Where else in the picture, which words, and what of it: (B, N, dim), (B, L, context_dim) -> (B, N, dim)."""

    def __init__(self, dim: int, context_dim: int, heads: int | None = None, dropout: float = 0.0):
        super().__init__()
        self.norm_1, self.self_attention = nn.LayerNorm(dim), SelfAttention(dim, heads)
        self.norm_2, self.cross_attention = nn.LayerNorm(dim), CrossAttention(dim, context_dim, heads)
        self.norm_3, self.feed_forward = nn.LayerNorm(dim), FeedForward(dim, dropout)

    def forward(self, x: Tensor, context: Tensor | Memory) -> Tensor:
        x = x + self.self_attention(self.norm_1(x))
        x = x + self.cross_attention(self.norm_2(x), context)
        return x + self.feed_forward(self.norm_3(x))


class SpatialAttention(nn.Module):
    """Self-attention over the positions of a feature map, around which the map flows unchanged: (B, C, H, W) -> the same."""

    def __init__(self, channels: int, heads: int | None = None, bias: bool = False, norm: Callable | None = None):
        super().__init__()
        self.norm = (norm or group_norm)(channels)
        self.attention = SelfAttention(channels, heads, bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return x + _map(self.attention(_rows(self.norm(x))), x)


class SpatialTransformer(nn.Module):
    """A feature map read as a row of tokens, position by position, by `depth` transformer blocks, and laid out again:
    (B, C, H, W), (B, L, context_dim) -> (B, C, H, W)  (Rombach et al. 2022, appendix E.2.1).

    linear: project by a matrix, as Stable Diffusion 2; by a 1x1 convolution, the same thing in another shape, as 1.
    """

    def __init__(self, channels: int, context_dim: int, heads: int | None = None, depth: int = 1, linear: bool = False,
                 dropout: float = 0.0, groups: int | None = None):  # fmt: skip
        super().__init__()
        self.norm = group_norm(channels, groups, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.blocks = nn.ModuleList(BasicTransformerBlock(channels, context_dim, heads, dropout) for _ in range(depth))
        self.proj_out = zero(nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1))
        self.linear = linear

    def forward(self, x: Tensor, context: Tensor | Memory) -> Tensor:
        h = self.norm(x)
        tokens = self.proj_in(_rows(h)) if self.linear else _rows(self.proj_in(h))  # (B, HW, C)
        for block in self.blocks:
            tokens = block(tokens, context)
        h = _map(self.proj_out(tokens), x) if self.linear else self.proj_out(_map(tokens, x))
        return x + h


@contextmanager
def attention_maps(net: nn.Module, kind: type = CrossAttention) -> Iterator[dict[str, list[Tensor]]]:
    """Inside the block, every attention of this kind in `net` leaves its weights at each call: name -> [(B, heads, N, L), ...].

        with attention_maps(net) as maps: net(x, t, context=tokens)         # N = H * W positions, L words
    """
    maps: dict[str, list[Tensor]] = {}

    def keep(name):
        def hook(module, inputs):
            maps.setdefault(name, []).append(module.weights(*(inputs if len(inputs) == 2 else 2 * inputs)).detach())
        return hook

    hooks = [module.register_forward_pre_hook(keep(name)) for name, module in net.named_modules() if isinstance(module, kind)]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def group_norm(channels: int, groups: int | None = None, eps: float = 1e-5) -> nn.GroupNorm:
    """GroupNorm (Wu & He 2018) of `groups` groups; if None, of at most 32, as in DDPM, of at least 8 channels each.

    A group of one channel would subtract from it exactly what the time and class embedding have just added to it, the
    same number at every pixel; the network would run, train, and never learn what time it is.
    """
    fitting = (g for g in range(min(32, max(1, channels // 8)), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups or next(fitting), channels, eps)


def zero(module: nn.Module) -> nn.Module:
    """The module with all its parameters set to zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def _rows(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, HW, C)


def _map(tokens: Tensor, like: Tensor) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, like.shape[2:])  # (B, HW, C) -> (B, C, H, W)
