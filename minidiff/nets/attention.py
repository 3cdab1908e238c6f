"""Attention: every position of the image looks at every other (self-attention) or at words (cross-attention)."""

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class Attention(nn.Module):
    """Queries from `x`, keys and values from `context`: softmax(q k^T / sqrt(d)) v (Vaswani et al. 2017, eq. 1).

    x (B, N, dim), context (B, L, context_dim) -> (B, N, dim). Heads of about 64 channels, which processors like: with
    heads of 8, a CPU spends most of its time outside the matrix products.
    """

    def __init__(self, dim: int, context_dim: int, head_channels: int = 64):
        super().__init__()
        self.heads = max(1, dim // head_channels)
        if dim % self.heads:
            raise ValueError(f"{dim} channels do not divide into heads of {head_channels}: choose head_channels to divide them")
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim, dim, bias=False)
        self.to_out = nn.Linear(dim, dim)
        nn.init.zeros_(self.to_out.weight)  # a new layer starts as the identity, x + 0
        nn.init.zeros_(self.to_out.bias)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (self._split(y) for y in (self.to_q(x), self.to_k(context), self.to_v(context)))
        return self.to_out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))  # (B, h, N, d) -> (B, N, dim)

    def _split(self, y: Tensor) -> Tensor:
        return y.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, N, dim) -> (B, heads, N, dim / heads)


class SelfAttention(Attention):
    """Attention of `x` on itself."""

    def __init__(self, dim: int, head_channels: int = 64):
        super().__init__(dim, dim, head_channels)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, x)


class CrossAttention(Attention):
    """Attention of `x` on a context from elsewhere, such as the words of a prompt (Rombach et al. 2022, section 3.3)."""


class SpatialAttention(nn.Module):
    """Attention over the positions of a feature map, around which the map flows unchanged: (B, C, H, W) -> (B, C, H, W).

    Self-attention always; cross-attention to `context` (B, L, context_dim) if the network was built with a context_dim.
    """

    def __init__(self, channels: int, context_dim: int | None = None, head_channels: int = 64):
        super().__init__()
        self.norm = nn.GroupNorm(groups(channels), channels)
        self.self_attention = SelfAttention(channels, head_channels)
        self.cross_norm = nn.LayerNorm(channels) if context_dim else None
        self.cross_attention = CrossAttention(channels, context_dim, head_channels) if context_dim else None

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, HW, C)
        tokens = x.flatten(2).transpose(1, 2) + self.self_attention(tokens)
        if self.cross_attention:
            tokens = tokens + self.cross_attention(self.cross_norm(tokens), context)
        return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


def groups(channels: int) -> int:
    """Groups for a GroupNorm: at most 32, as in DDPM, of at least 8 channels each.

    A group of one channel would subtract from it exactly what the time and class embedding have just added to it, the
    same number at every pixel; the network would run, train, and never learn what time it is.
    """
    return next(g for g in range(min(32, max(1, channels // 8)), 0, -1) if channels % g == 0)
