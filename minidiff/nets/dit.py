"""DiT: no U, no convolutions; a picture cut into patches, read as a row of tokens by a plain transformer.

Peebles & Xie 2023. Every token keeps its width from the first block to the last, and nothing shrinks on the way. What
time it is enters through the LayerNorms: each block asks the embedding how to shift and scale them (adaptive LayerNorm,
section 3.2). The pieces here are also what SD3's MMDiT is built of.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention, silu

from .attention import SelfAttention, zero
from .embeddings import ClassEmbedding, TimeEmbedding, sinusoidal


class PatchEmbedding(nn.Module):
    """A picture as tokens that know where they are: (B, C, H, W) -> (B, N, dim), N = (H / patch) * (W / patch), row by row.

    size: the largest H and W. `positions` (2, size / patch, dim / 2), float32 and not trained, holds sines and cosines of
    0, 1, 2, ...: a token's first half says its column, the second its row. A smaller picture takes them from the middle
    (Esser et al. 2024, section 5.3.2), so that what the centre of a picture is called does not depend on its shape.
    Raises ValueError for sizes that do not fit.
    """

    def __init__(self, channels: int, dim: int, patch: int, size: int):
        super().__init__()
        if patch < 1 or size % patch:
            raise ValueError(f"pictures of size {size} do not divide into patches of {patch}: choose a patch that divides it")
        if dim % 4:
            raise ValueError(f"a position is a sine and a cosine each of row and column: dim must divide by 4, and is {dim}")
        self.project = nn.Conv2d(channels, dim, patch, stride=patch)
        line = sinusoidal(torch.arange(size // patch), dim // 2, sin_first=True)
        self.register_buffer("positions", line.repeat(2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.project(x)  # (B, dim, h, w)
        (h, w), n = tokens.shape[2:], self.positions.shape[1]
        left, top = (n - w) // 2, (n - h) // 2
        column = self.positions[0, left : left + w].expand(h, w, -1)
        row = self.positions[1, top : top + h, None].expand(h, w, -1)
        return tokens.flatten(2).transpose(1, 2) + torch.cat([column, row], dim=2).flatten(0, 1)


class Modulation(nn.Module):
    """What an embedding has to say to a block: (B, dim) -> n vectors (B, 1, dim), shifts, scales and gates.

    All are zero at first. A block whose gates are zero is the identity, however deep the stack: adaLN-zero.
    """

    def __init__(self, dim: int, n: int):
        super().__init__()
        self.n, self.linear = n, zero(nn.Linear(dim, n * dim))

    def forward(self, emb: Tensor) -> tuple[Tensor, ...]:
        return self.linear(silu(emb))[:, None].chunk(self.n, dim=2)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm whose weight and bias are told and not learned: (B, N, dim), (B, 1, dim) twice -> (B, N, dim)."""
    return layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class GatedAttention(SelfAttention):
    """Self-attention in front of a gate: with biases, and with qk_norm an RMSNorm of q and k in each head.

    q k^T grows with the weights, and in half precision its softmax collapses late in training; normed it cannot (Esser et
    al. 2024, section 5.3.2).
    """

    def __init__(self, dim: int, heads: int | None = None, qk_norm: bool = False):
        super().__init__(dim, heads, bias=True)
        self.to_out.reset_parameters()  # the gate behind it starts at zero: two zeros in a row would never move
        self.norm_q, self.norm_k = (nn.RMSNorm(dim // self.heads, eps=1e-6) if qk_norm else nn.Identity() for _ in "qk")

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out(scaled_dot_product_attention(*self.qkv(x)).transpose(1, 2).flatten(2))

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x (B, N, dim): (B, heads, N, dim / heads) each."""
        q, k, v = (self._split(to(x)) for to in (self.to_q, self.to_k, self.to_v))
        return self.norm_q(q), self.norm_k(k), v

    def weights(self, x: Tensor, context: Tensor) -> Tensor:
        """Who looks at whom, (B, heads, N, N); context is x again, see `attention_maps`."""
        return looks(*self.qkv(x)[:2])


def looks(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)): (B, heads, N, d), (B, heads, L, d) -> (B, heads, N, L), rows that add up to 1."""
    return (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).softmax(3)


def mlp(dim: int) -> nn.Sequential:
    """What each token makes of what it saw, alone: (B, N, dim) -> (B, N, dim), four times as wide inside."""
    return nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU("tanh"), nn.Linear(4 * dim, dim))


class DiTBlock(nn.Module):
    """Look around, then think, both as the embedding says: (B, N, dim), (B, dim) -> (B, N, dim). Figure 3, "adaLN-Zero"."""

    def __init__(self, dim: int, heads: int | None = None, qk_norm: bool = False):
        super().__init__()
        self.modulation = Modulation(dim, 6)
        self.attention = GatedAttention(dim, heads, qk_norm)
        self.mlp = mlp(dim)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(emb)
        x = x + gate_1 * self.attention(modulate(x, shift_1, scale_1))
        return x + gate_2 * self.mlp(modulate(x, shift_2, scale_2))


class FinalLayer(nn.Module):
    """Tokens as a picture again: (B, N, dim), (B, dim), its size (H, W) -> (B, out, H, W). Starts by answering 0."""

    def __init__(self, dim: int, out_channels: int, patch: int):
        super().__init__()
        self.modulation, self.patch = Modulation(dim, 2), patch
        self.linear = zero(nn.Linear(dim, patch * patch * out_channels))

    def forward(self, tokens: Tensor, emb: Tensor, size: tuple[int, int]) -> Tensor:
        patches = self.linear(modulate(tokens, *self.modulation(emb)))  # (B, N, patch * patch * out)
        p, h = self.patch, size[0] // self.patch
        x = patches.unflatten(2, (p, p, -1)).unflatten(1, (h, -1))  # (B, h, w, p, p, out)
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)  # (B, out, h * p, w * p)


class DiT(nn.Module):
    """net(xt, t, y=None, context=None, pooled=None) -> a map like xt.

    (B, C, H, W), (B,), labels (B,), tokens (B, L, context_dim), a vector (B, pooled_dim) -> (B, out, H, W). H and W divide by
    `patch` and are at most `size`. Without y, a network with classes answers for the null class. Text is told in two ways:
    tokens stand in one row with those of the image, all under the same weights ("DiT" in Esser et al. 2024, section 5.2.3);
    a vector is added to the embedding of t. Wrong shapes, labels and batch sizes raise ValueError before any work is done.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        size: int = 32,  # largest height and width of xt
        patch: int = 2,  # pixels per side of a token: a quarter of the tokens with each doubling
        dim: int = 384,  # width of a token; with depth 12, DiT-S of the paper
        depth: int = 12,  # blocks
        heads: int | None = None,  # of attention; None: of about 64 channels each
        num_classes: int | None = None,
        context_dim: int | None = None,
        pooled_dim: int | None = None,
    ):
        super().__init__()
        self.config = {"in_channels": in_channels, "out_channels": out_channels, "size": size, "patch": patch, "dim": dim,
                       "depth": depth, "heads": heads, "num_classes": num_classes, "context_dim": context_dim,
                       "pooled_dim": pooled_dim}  # fmt: skip
        self.stride = patch
        self.embed = PatchEmbedding(in_channels, dim, patch, size)
        self.time = TimeEmbedding(256, dim)
        self.label = ClassEmbedding(num_classes, dim) if num_classes else None
        self.pooled = pooled_embedding(pooled_dim, dim) if pooled_dim else None
        self.context = nn.Linear(context_dim, dim) if context_dim else None
        self.blocks = nn.ModuleList(DiTBlock(dim, heads) for _ in range(depth))
        self.final = FinalLayer(dim, out_channels, patch)

    @property
    def null_class(self) -> int | None:
        """The label that stands for "any class", if there are classes."""
        return self.config["num_classes"] or None

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, context: Tensor | None = None,
                pooled: Tensor | None = None) -> Tensor:  # fmt: skip
        check(self.config, x, t, context, pooled, y)
        emb = self.time(t)  # (B, dim)
        if self.label:
            emb = emb + self.label(y if y is not None else torch.full((len(x),), self.null_class, device=x.device))
        if self.pooled:
            emb = emb + self.pooled(pooled)
        tokens = self.embed(x)  # (B, N, dim)
        n = tokens.shape[1]
        if self.context:
            tokens = torch.cat([tokens, self.context(context)], dim=1)  # (B, N + L, dim)
        for block in self.blocks:
            tokens = block(tokens, emb)
        return self.final(tokens[:, :n], emb, x.shape[2:])


def pooled_embedding(pooled_dim: int, dim: int) -> nn.Sequential:
    """A vector that sums up a prompt, (B, pooled_dim), as something to add to the embedding of t, (B, dim)."""
    return nn.Sequential(nn.Linear(pooled_dim, dim), nn.SiLU(), nn.Linear(dim, dim))


def check(config: dict, x: Tensor, t: Tensor, context: Tensor | None, pooled: Tensor | None, y: Tensor | None = None) -> None:
    """Raises ValueError for what a DiT or MMDiT of this config cannot be asked."""
    channels, patch, size = config["in_channels"], config["patch"], config["size"]
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"images of shape {tuple(x.shape)}: this network takes (B, {channels}, H, W)")
    (height, width), rows = x.shape[2:], x.shape[0]
    if height % patch or width % patch:
        raise ValueError(f"inputs of {height}x{width} do not divide into this network's patches of {patch}x{patch}: "
                         "pad or resize them")
    if max(height, width) > size:
        raise ValueError(f"inputs of {height}x{width}: this network has positions for {size}x{size} at most")
    for name, value in (("t", t), ("y", y), ("context", context), ("pooled", pooled)):
        if value is not None and tuple(value.shape[:1]) != (rows,):
            raise ValueError(f"{name} of shape {tuple(value.shape)} for a batch of {rows} images: give one row per image")
    for name, value, shape in (("context", context, "(B, L, {})"), ("pooled", pooled, "(B, {})")):
        dim = config[f"{name}_dim"]
        if value is None and dim is not None:
            raise ValueError(f"this network was built with {name}_dim = {dim}: give it {name}={shape.format(dim)}")
        if value is not None and dim is None:
            raise ValueError(f"this network was built without {name}_dim and takes no {name}")
        if value is not None and (len(value.shape) != shape.count(",") + 1 or value.shape[-1] != dim):
            raise ValueError(f"{name} of shape {tuple(value.shape)}: this network takes {shape.format(dim)}")
    if y is not None and not config["num_classes"]:
        raise ValueError("this network was built without num_classes and takes no labels y")
