"""Tasks of chapter 14: attention to words, and the blocks around it."""

import torch
from torch import nn
from torch.nn.functional import avg_pool2d, gelu, silu

from ...data import Shapes, from_pixels
from ...nets import BasicTransformerBlock, CrossAttention, FeedForward, SpatialTransformer
from ..layers import COMPLETE, Asked, asking, awake, forwards, line, noise, starts_as_identity
from ..task import Case, Law, Mistake, Task

GENERATOR = torch.Generator().manual_seed(14)
X, WORDS, WIDE = (torch.randn(2, n, d, generator=GENERATOR) for n, d in ((10, 16), (7, 12), (5, 128)))  # (B, N or L, channels)
BOTH = ("while it is trained", "after training")


def attend(size=lambda q, dim: q.shape[3] ** 0.5, axis=3, split=lambda y, heads: y.unflatten(2, (heads, -1)).transpose(1, 2),
           merge=lambda y: y.transpose(1, 2).flatten(2)):  # fmt: skip
    """CrossAttention, with one of its parts replaced."""

    def forward(self, x, context):
        q, k, v = (split(y, self.heads) for y in (self.to_q(x), self.to_k(context), self.to_v(context)))
        weights = (q @ k.transpose(2, 3) / size(q, x.shape[2])).softmax(axis)
        return self.to_out(merge(weights @ v))

    return forwards(CrossAttention, forward)


class OneHead(CrossAttention):
    def __init__(self, dim, context_dim, heads=None, bias=False):
        super().__init__(dim, context_dim, heads or 1, bias)


ZERO_OUT = "a new attention should answer zeros, so that x + 0 goes on: set weight and bias of its last layer to zero."
attention_task = Task(
    "14.1", "ask the words", CrossAttention,
    cases=(
        # q = (-1, 1/3); keys and values are (-1, 1/3) and (-1/3, 1). Scores 10/9 and 2/3, over sqrt(2): weights 0.577927 and
        # 0.422073. Their mixture is (-0.718618, 0.614716), of which the last layer makes (0.513713, 0.375176) + (-1, 1).
        Case("one position, two words, all weights from -1 to 1, by hand",
             (line, {"dim": 2, "context_dim": 2}, torch.tensor([[[1.0, 0.0]]]), torch.eye(2)[None]),
             Asked(COMPLETE, torch.tensor([[[-0.486287, 1.375176]]]))),
        Case("one head", (noise, {"dim": 16, "context_dim": 12, "heads": 1}, X, WORDS)),
        Case("four heads", (noise, {"dim": 16, "context_dim": 12, "heads": 4}, X, WORDS)),
        Case("as many heads as fit, of 64 channels", (noise, {"dim": 128, "context_dim": 12}, WIDE, WORDS)),
        Case("one word, and biases", (noise, {"dim": 16, "context_dim": 12, "heads": 2, "bias": True}, X, WORDS[:, :1])),
        Case("very sure of itself", (noise, {"dim": 16, "context_dim": 12, "heads": 2}, 100 * X, WORDS)),
    ),
    ask=asking(CrossAttention),
    mistakes=(
        Mistake("the scores were not divided by the root of the head's size: the more channels, the blinder the softmax gets.",
                attend(lambda q, dim: 1.0)),
        Mistake("the root is that of all channels: it is one head's channels, dim / heads, that a score adds up.",
                attend(lambda q, dim: dim**0.5)),
        Mistake("the softmax runs over the positions: for each position the weights of all words should add up to 1.",
                attend(axis=2)),
        Mistake("heads were cut off by reshape alone, which deals whole positions out to them: split the channels first, "
                "(B, N, heads, d), and then swap two axes.",
                attend(split=lambda y, heads: y.reshape(len(y), heads, y.shape[1], -1),
                       merge=lambda y: y.reshape(len(y), y.shape[2], -1))),
        Mistake("heads were put together by reshape alone: first swap back, (B, heads, N, d) to (B, N, heads, d).",
                attend(merge=lambda y: y.reshape(len(y), y.shape[2], -1))),
        Mistake("heads=None means heads of 64 channels, as many as fit and at least one.", OneHead),
        Mistake(ZERO_OUT, awake(CrossAttention, "to_out")),
    ),
    laws=(Law(ZERO_OUT, lambda f: not f(dim=16, context_dim=12).forward(X, WORDS).any()),),
    hints=("Each position asks a question q, each word has a key k and a value v: the better q and k fit, the more v counts.",
           "Split (B, N, dim) into (B, heads, N, d): unflatten the last axis, swap axes 1 and 2. Scores are (B, heads, N, L).",
           "weights = (q @ k.transpose(2, 3) / d**0.5).softmax(3); self.to_out((weights @ v).transpose(1, 2).flatten(2))"),
)  # fmt: skip


def gated(mix=lambda value, gate: value * gelu(gate), halves=lambda h: h.chunk(2, dim=2), inner=True, outer=False):
    """FeedForward, with one of its parts replaced. inner, outer: is there dropout before the last layer, and behind it?"""

    def forward(self, x):
        h = mix(*halves(self.widen(x)))
        y = self.narrow(self.dropout(h) if inner else h)
        return self.dropout(y) if outer else y

    return forwards(FeedForward, forward)


feed_forward_task = Task(
    "14.2", "a gate for every channel", FeedForward,
    cases=(
        # widened, 1 becomes 2 * (-1, -5/7, ..., 5/7, 1): values -2, -10/7, -6/7, -2/7, gates 2/7, 6/7, 10/7, 2
        Case("one number, all weights from -1 to 1, by hand", (line, {"dim": 1}, torch.ones(1, 1, 1)),
             Asked(COMPLETE, dict.fromkeys(BOTH, torch.tensor([[[-1.257076]]])))),
        Case("ten positions", (noise, {"dim": 16}, X)),
        Case("everything is dropped", (noise, {"dim": 16, "dropout": 1.0}, X)),
    ),
    ask=asking(FeedForward, lambda module, x: {when: module.train(when == BOTH[0]).forward(x) for when in BOTH}),
    mistakes=(
        Mistake("value and gate have changed places: the first half is the value, and the second goes through GELU.",
                gated(halves=lambda h: h.chunk(2, dim=2)[::-1])),
        Mistake("the gate goes through SiLU here: that is SwiGLU. GEGLU takes GELU.",
                gated(lambda value, gate: value * silu(gate))),
        Mistake("the gate was multiplied in as it is: it goes through GELU first.", gated(lambda value, gate: value * gate)),
        Mistake("the halves were taken by turns, even and odd channels: the value is the first half, the gate the second.",
                gated(halves=lambda h: (h[..., ::2], h[..., 1::2]))),
        Mistake("dropout is not used.", gated(inner=False)),
        Mistake("dropout comes behind the last layer here: it belongs before it, on the gated values.",
                gated(inner=False, outer=True)),
    ),
    hints=("One linear layer makes both halves at once, 8 * dim channels; `chunk` cuts them apart.",
           "nn.Dropout knows whether it is trained or used. It stands between the product and the last layer.",
           "value, gate = self.widen(x).chunk(2, dim=2); self.narrow(self.dropout(value * gelu(gate)))"),
)  # fmt: skip


def block(step=lambda x, norm, layer, start: x + layer(norm(x)), order=(0, 1, 2), norms=(1, 2, 3)):
    """BasicTransformerBlock, with another figure than x + layer(norm(x)), another order, or other norms."""

    def forward(self, x, context):
        layers = (self.self_attention, lambda h: self.cross_attention(h, context), self.feed_forward)
        start = x
        for i in order:
            x = step(x, self.get_submodule(f"norm_{norms[i]}"), layers[i], start)
        return x

    return forwards(BasicTransformerBlock, forward)


block_task = Task(
    "14.3", "look around, read, think", BasicTransformerBlock,
    cases=(
        # Two numbers, the second larger, leave each norm as (0, 2). One position looks at itself: v = (-2/3, 2), of which comes
        # (-1, 25/9), so x = (0, 52/9). The word gives v = (-1, 1), of which comes (-1/3, 5/3). The last layer adds
        # (5.238564, -5.354891).
        Case("one position and one word, all weights from -1 to 1, by hand",
             (line, {"dim": 2, "context_dim": 1}, torch.tensor([[[1.0, 3.0]]]), torch.ones(1, 1, 1)),
             Asked(COMPLETE, torch.tensor([[[4.905230, 2.089554]]]))),
        Case("ten positions, seven words", (noise, {"dim": 16, "context_dim": 12}, X, WORDS)),
        Case("four heads", (noise, {"dim": 16, "context_dim": 12, "heads": 4}, X, WORDS)),
        Case("with everything dropped", (noise, {"dim": 16, "context_dim": 12, "dropout": 1.0}, X, WORDS)),
    ),
    ask=asking(BasicTransformerBlock),
    mistakes=(
        Mistake("the norm comes after each sum here: it belongs inside, before each layer, so that x runs through untouched.",
                block(lambda x, norm, layer, start: norm(x + layer(x)))),
        Mistake("each layer's answer was added to the normed x: add it to x itself.",
                block(lambda x, norm, layer, start: norm(x) + layer(norm(x)))),
        Mistake("the words came first: self-attention, then cross-attention, then the feed-forward layer.",
                block(order=(1, 0, 2))),
        Mistake("the ways around are missing: what a layer answers is added to x.",
                block(lambda x, norm, layer, start: layer(norm(x)))),
        Mistake("all three were asked about the same x: each should see what the one before has added.",
                block(lambda x, norm, layer, start: x + layer(norm(start)))),
        Mistake("one norm serves all three: each layer is to use its own.", block(norms=(1, 1, 1))),
    ),
    hints=("Three times the same figure: x = x + layer(norm(x)).",
           "A LayerNorm for each of the three. Only the second looks at the context.",
           "x = x + self.self_attention(self.norm_1(x)); then self.cross_attention(self.norm_2(x), context); then the third"),
)  # fmt: skip

IMAGES = avg_pool2d(from_pixels(Shapes(4, size=32, seed=3).tensors()[0]), 2)  # (4, 3, 16, 16)
MAPS = torch.randn(2, 16, 5, 4, generator=GENERATOR)  # higher than wide, so that the two cannot be taken for each other
FOUR_TEXTS = torch.randn(4, 7, 12, generator=GENERATOR)


def transformer(rows=lambda h: h.flatten(2).transpose(1, 2), back=lambda y, x: y.transpose(1, 2).reshape(x.shape),
                around=lambda x, h: x, normed=True):  # fmt: skip
    """SpatialTransformer, with one of its parts replaced. rows: (B, C, H, W) -> (B, HW, C), back: the way back."""

    def forward(self, x, context):
        h = self.norm(x) if normed else x
        y = self.proj_in(rows(h)) if self.linear else rows(self.proj_in(h))
        for layer in self.blocks:
            y = layer(y, context)
        return around(x, h) + (back(self.proj_out(y), x) if self.linear else self.proj_out(back(y, x)))

    return forwards(SpatialTransformer, forward)


class OneBlock(SpatialTransformer):
    def __init__(self, *args, depth=1, **options):
        super().__init__(*args, **options)
        self.blocks = nn.ModuleList([self.blocks[0]] * depth)


CROSSED = {"channels": 16, "context_dim": 12}
ZERO_LAST = "a new transformer should hand its map on unchanged: set weight and bias of its last projection to zero."
transformer_task = Task(
    "14.4", "a picture among the words", SpatialTransformer,
    cases=(
        # The norm of one number leaves its bias, -1, and the projection makes 0 of it. Self-attention adds -2, the word 2
        # adds 1, the feed-forward layer -1: together -2. The last projection makes 2 - 1 = 1 of it, to be added to 3 and 5.
        Case("images of one pixel, all weights -1, by hand", (line, {"channels": 1, "context_dim": 1},
             torch.tensor([3.0, 5.0]).view(2, 1, 1, 1), torch.full((2, 1, 1), 2.0)),
             Asked(COMPLETE, torch.tensor([4.0, 6.0]).view(2, 1, 1, 1))),
        Case("images", (noise, {"channels": 3, "context_dim": 12}, IMAGES, FOUR_TEXTS)),
        Case("two blocks, four heads, four groups", (noise, {**CROSSED, "heads": 4, "depth": 2, "groups": 4}, MAPS, WORDS)),
        Case("projected by matrices, everything dropped", (noise, {**CROSSED, "linear": True, "dropout": 1.0}, MAPS, WORDS)),
        Case("a map that is nearly flat", (noise, CROSSED, 1e-3 * MAPS, WORDS)),
    ),
    ask=asking(SpatialTransformer),
    mistakes=(
        Mistake("reshape cannot turn (C, HW) into (HW, C): it keeps the numbers in their order and mixes pixels with channels. "
                "Swap the two axes, and swap them back after.",
                transformer(lambda h: h.reshape(len(h), -1, h.shape[1]), lambda y, x: y.reshape(x.shape))),
        Mistake("on the way back tokens became a map by reshape alone: swap the axes first, (HW, C) to (C, HW).",
                transformer(back=lambda y, x: y.reshape(x.shape))),
        Mistake("the way around is missing: what the transformer makes is added to x.", transformer(around=lambda x, h: 0)),
        Mistake("the way around carries the normed map: it should carry x itself.", transformer(around=lambda x, h: h)),
        Mistake("the norm is not used: the first projection should see the normed map.", transformer(normed=False)),
        Mistake("one block is used again and again: depth asks for so many blocks, each with weights of its own.", OneBlock),
        Mistake(ZERO_LAST, awake(SpatialTransformer, "proj_out")),
    ),
    laws=(Law(ZERO_LAST, starts_as_identity(CROSSED, MAPS, WORDS)),),
    hints=("On the way in and on the way out one line each; between them, words and positions are all just tokens.",
           "(B, C, H, W) to (B, HW, C): flatten(2), then swap the last two axes. A 1x1 convolution wants the map, a matrix "
           "wants the tokens: so with linear=True projecting and laying out change places.",
           "tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2); then all blocks; then "
           "x + self.proj_out(tokens.transpose(1, 2).reshape(x.shape))"),
)  # fmt: skip

TASKS = [attention_task, feed_forward_task, block_task, transformer_task]
