"""MMDiT: SD3's network. Text and image each have weights of their own, and one attention looks at both.

Esser et al. 2024, section 4 and figure 2. A U-Net asks the words at every layer and the words never change; here they are
read as the image is made, and change with it. Each half of a block is a DiTBlock, except that they attend together.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from .dit import FinalLayer, GatedAttention, Modulation, PatchEmbedding, check, looks, mlp, modulate, pooled_embedding
from .embeddings import TimeEmbedding


class JointAttention(nn.Module):
    """Two attentions that are one: each kind of token has its own q, k, v, and all look at all.

    image (B, N, dim), text (B, L, dim) -> the same. last: nobody will ask the text again, so it gets no answer, None.
    """

    def __init__(self, dim: int, heads: int | None = None, qk_norm: bool = False, last: bool = False):
        super().__init__()
        self.image, self.text = (GatedAttention(dim, heads, qk_norm) for _ in range(2))
        if last:
            self.text.to_out = None

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor | None]:
        out = scaled_dot_product_attention(*self.qkv(image, text)).transpose(1, 2).flatten(2)  # (B, N + L, dim)
        seen, read = out.split([image.shape[1], text.shape[1]], dim=1)
        return self.image.to_out(seen), self.text.to_out and self.text.to_out(read)

    def qkv(self, image: Tensor, text: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values of both in a row, the image's first: (B, heads, N + L, dim / heads) each."""
        return tuple(torch.cat(pair, dim=2) for pair in zip(self.image.qkv(image), self.text.qkv(text), strict=True))

    def weights(self, image: Tensor, text: Tensor) -> Tensor:
        """Who looks at whom, (B, heads, N + L, N + L): [:, :, :N, N:] is how much each patch looks at each word."""
        return looks(*self.qkv(image, text)[:2])


class JointBlock(nn.Module):
    """image (B, N, dim), text (B, L, dim), emb (B, dim) -> image, text. Figure 2b.

    dual: the image looks at itself once more, beside the joint attention (SD 3.5 medium). last: text comes back as None.
    """

    def __init__(self, dim: int, heads: int | None = None, qk_norm: bool = False, dual: bool = False, last: bool = False):
        super().__init__()
        self.image_modulation, self.text_modulation = Modulation(dim, 9 if dual else 6), Modulation(dim, 2 if last else 6)
        self.attention = JointAttention(dim, heads, qk_norm, last)
        self.image_attention = GatedAttention(dim, heads, qk_norm) if dual else None
        self.image_mlp, self.text_mlp = mlp(dim), None if last else mlp(dim)

    def forward(self, image: Tensor, text: Tensor, emb: Tensor) -> tuple[Tensor, Tensor | None]:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2, *dual = self.image_modulation(emb)
        text_shift, text_scale, *others = self.text_modulation(emb)
        seen, read = self.attention(modulate(image, shift_1, scale_1), modulate(text, text_shift, text_scale))
        before, image = image, image + gate_1 * seen
        if dual:
            shift, scale, gate = dual
            image = image + gate * self.image_attention(modulate(before, shift, scale))
        image = image + gate_2 * self.image_mlp(modulate(image, shift_2, scale_2))
        if read is None:
            return image, None
        gate_1, shift_2, scale_2, gate_2 = others
        text = text + gate_1 * read
        return image, text + gate_2 * self.text_mlp(modulate(text, shift_2, scale_2))


@dataclass(frozen=True)
class Variant:
    """What tells SD 3.5 from SD3, whose these defaults are."""

    qk_norm: bool = False  # RMSNorm of q and k in every attention (SD 3.5)
    dual: tuple = ()  # numbers of the blocks that have a second attention of the image on itself (0 to 12 in SD 3.5 medium)


class MMDiT(nn.Module):
    """net(xt, t, context=tokens, pooled=vector) -> like xt: (B, C, H, W), (B,), (B, L, context_dim), (B, pooled_dim).

    H and W divide by `patch` and are at most `size`. variant: the fields of `Variant`. The defaults are SD3-medium on its
    16-channel latents. Wrong shapes and batch sizes raise ValueError before any work is done.
    """

    def __init__(
        self,
        in_channels: int = 16,
        out_channels: int = 16,
        size: int = 384,  # largest height and width of xt
        patch: int = 2,  # pixels per side of a token
        dim: int = 1536,  # width of a token, of either kind
        depth: int = 24,  # blocks
        heads: int | None = 24,  # of attention; None: of about 64 channels each
        context_dim: int = 4096,  # channels of the context tokens
        pooled_dim: int | None = 2048,  # channels of the vector that sums up the prompt, if it is told one
        **variant,
    ):
        super().__init__()
        self.variant = variant = Variant(**variant)
        self.config = {"in_channels": in_channels, "out_channels": out_channels, "size": size, "patch": patch, "dim": dim,
                       "depth": depth, "heads": heads, "context_dim": context_dim, "pooled_dim": pooled_dim,
                       **asdict(variant)}  # fmt: skip
        if not set(variant.dual) <= set(range(depth)):
            raise ValueError(f"dual = {tuple(variant.dual)}: the blocks of this network are 0 to {depth - 1}")
        self.stride = patch
        self.embed = PatchEmbedding(in_channels, dim, patch, size)
        self.time = TimeEmbedding(256, dim)
        self.pooled = pooled_embedding(pooled_dim, dim) if pooled_dim else None
        self.context = nn.Linear(context_dim, dim)
        self.blocks = nn.ModuleList(
            JointBlock(dim, heads, variant.qk_norm, dual=i in variant.dual, last=i == depth - 1) for i in range(depth)
        )
        self.final = FinalLayer(dim, out_channels, patch)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None, pooled: Tensor | None = None) -> Tensor:
        check(self.config, x, t, context, pooled)
        emb = self.time(t)  # (B, dim)
        if self.pooled:
            emb = emb + self.pooled(pooled)
        image, text = self.embed(x), self.context(context)  # (B, N, dim), (B, L, dim)
        for block in self.blocks:
            image, text = block(image, text, emb)
        return self.final(image, emb, x.shape[2:])
