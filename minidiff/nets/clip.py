"""CLIP's transformer: the text encoder of Stable Diffusion, 77 tokens in, 77 vectors out.

Each token becomes a vector, then every layer lets it look at the tokens before it (attention) and think about what it saw
(a small network of its own). The vector at the end-of-text token has seen the whole prompt; CLIP was trained to make that
one agree with a picture (Radford et al. 2021, section 2.4). Stable Diffusion hands all 77 to its U-Net instead.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), any shape: a cheap stand-in for gelu (Hendrycks & Gimpel 2016, section 2), off by up to 0.021."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu}  # OpenAI's CLIP (SD 1), OpenCLIP (SD 2)


class Text(NamedTuple):
    """What a prompt becomes: `tokens` (B, L, dim), one vector per token, and `pooled` (B, dim or projection), one for all."""

    tokens: Tensor
    pooled: Tensor


class TokenAttention(nn.Module):
    """Self-attention with biases, (B, L, dim) -> (B, L, dim); causal: a token sees itself and those before it.

    softmax(q k^T / sqrt(dim / heads)) v in every head (Vaswani et al. 2017, eq. 1). ValueError if heads do not divide dim.
    """

    def __init__(self, dim: int, heads: int, causal: bool = True):
        super().__init__()
        if dim % heads:
            raise ValueError(f"{dim} channels do not divide into {heads} heads: choose a number of heads that divides {dim}")
        self.heads, self.causal = heads, causal
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (to(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for to in (self.to_q, self.to_k, self.to_v))
        y = scaled_dot_product_attention(q, k, v, is_causal=self.causal)  # (B, heads, L, dim / heads)
        return self.to_out(y.transpose(1, 2).flatten(2))


class TransformerLayer(nn.Module):
    """Look around, then think, each added to what is there: (B, L, dim) -> (B, L, dim).

    x + attention(norm_1(x)), then x + mlp(norm_2(x)): the norms stand before the work (Radford et al. 2019, section 2.3),
    so that x itself runs from first layer to last untouched.
    """

    def __init__(self, dim: int, heads: int, mlp: int, activation: str = "quick_gelu", causal: bool = True):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f'activation "{activation}" is unknown: choose one of {", ".join(ACTIVATIONS)}')
        self.norm_1, self.attention = nn.LayerNorm(dim), TokenAttention(dim, heads, causal)
        self.norm_2, self.mlp_in, self.mlp_out = nn.LayerNorm(dim), nn.Linear(dim, mlp), nn.Linear(mlp, dim)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_1(x))
        return x + self.mlp_out(self.activation(self.mlp_in(self.norm_2(x))))


class CLIPText(nn.Module):
    """net(ids, skip=0, final_norm=True) -> Text(tokens, pooled), for ids (B, L) int64 with L <= length.

    The defaults are the text encoder of Stable Diffusion 1, CLIP ViT-L/14's; Stable Diffusion 2 has 23 layers of OpenCLIP
    ViT-H/14's: dim 1024, heads 16, activation "gelu". ValueError for heads that do not divide dim.
    """

    def __init__(
        self,
        vocab: int = 49408,
        length: int = 77,  # tokens it has positions for
        dim: int = 768,
        layers: int = 12,
        heads: int = 12,
        mlp: int | None = None,  # hidden width of the layers' networks; None: 4 * dim
        activation: str = "quick_gelu",
        projection: int | None = None,  # width of `pooled` in the space shared with pictures; None: not projected
        eos: int | None = 49407,  # the token whose first position is pooled; None: the highest id of the row
    ):
        super().__init__()
        self.config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        layer = partial(TransformerLayer, dim, heads, mlp or 4 * dim, activation)
        self.tokens = nn.Embedding(vocab, dim)
        self.positions = nn.Parameter(torch.empty(length, dim))
        self.layers = nn.ModuleList(layer() for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.projection = nn.Linear(dim, projection, bias=False) if projection else None
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)

    def forward(self, ids: Tensor, skip: int = 0, final_norm: bool = True) -> Text:
        """Tokens of the last layer but `skip` (1: the penultimate, elsewhere "clip skip 2"), with or without the final norm.

        `pooled` always comes from the last layer, with the norm. ValueError for ids outside the vocabulary, a sequence
        longer than `length`, a skip that leaves no layer.
        """
        self._check(ids, skip)
        states = [self.tokens(ids) + self.positions[: ids.shape[1]]]  # (B, L, dim) each, one more per layer
        for layer in self.layers:
            states.append(layer(states[-1]))
        tokens, last = states[-1 - skip], self.norm(states[-1])
        end = (ids if self.config["eos"] is None else (ids == self.config["eos"]).int()).argmax(1)  # (B,), the first such
        pooled = last[torch.arange(len(ids), device=ids.device), end]
        return Text(self.norm(tokens) if final_norm else tokens, self.projection(pooled) if self.projection else pooled)

    def _check(self, ids: Tensor, skip: int) -> None:
        vocab, length = self.config["vocab"], self.config["length"]
        if ids.ndim != 2 or not 1 <= ids.shape[1] <= length:
            raise ValueError(f"ids of shape {tuple(ids.shape)}: this encoder takes (B, L) with L from 1 to {length}; "
                             "a Tokenizer pads and, if asked, truncates to that")
        if ids.numel() and not 0 <= ids.min() <= ids.max() < vocab:
            raise ValueError(f"ids run from {int(ids.min())} to {int(ids.max())}, but this encoder knows 0 to {vocab - 1}: "
                             "take the tokenizer of the same folder")
        if not 0 <= skip < len(self.layers):
            raise ValueError(f"skip = {skip} of {len(self.layers)} layers: choose 0 (the last layer) to {len(self.layers) - 1}")
