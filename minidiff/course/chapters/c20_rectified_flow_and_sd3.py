"""Tasks of chapter 20: the straight road, and the pieces of a network that is no U-Net."""

from functools import partial

import torch
from torch import nn
from torch.nn.functional import layer_norm, silu

from ...data import Shapes, from_pixels
from ...diffusion import Schedule
from ...nets import DiTBlock, FinalLayer, JointAttention, PatchEmbedding, sinusoidal
from ...nets.attention import zero
from ..layers import COMPLETE, Asked, asking, awake, forwards, line, noise, starts_as_identity
from ..task import Case, Law, Mistake, Task

GENERATOR = torch.Generator().manual_seed(20)
IMAGES = from_pixels(Shapes(4, size=32, seed=3).tensors()[0])  # (4, 3, 32, 32)


def flows(push=lambda s, k: k * s / (1 + (k - 1) * s), first=1, alpha=lambda s: 1 - s, told=lambda T, s: T * s):
    """Schedule.flow, with one of its parts replaced. first: T times the sigma of row 0, before it is pushed."""

    def flow(T=1000, shift=1.0):
        sigma = push(torch.arange(first, T + first).double() / T, shift)
        return alpha(sigma).float(), sigma.float(), told(T, sigma).float()

    return flow


flow_task = Task(
    "20.1", "the straight road", Schedule.flow,
    cases=(
        Case("four levels, shift 3, by hand", (4, 3.0),
             (torch.tensor([0.5, 0.25, 0.1, 0.0]), torch.tensor([0.5, 0.75, 0.9, 1.0]), torch.tensor([2.0, 3.0, 3.6, 4.0]))),
        Case("no shift", ()),
        Case("as in SD3, shift 3", (1000, 3.0)),
        Case("towards the clean end, shift 0.5", (50, 0.5)),
    ),
    ask=lambda f, *args: (made.alpha, made.sigma, made.t) if isinstance(made := f(*args), Schedule) else made,
    mistakes=(
        Mistake("the table starts one row early: row 0 has a little noise, the last nothing else.", flows(first=0)),
        Mistake("the shift pushes the wrong way: sigma / (1 - sigma) is multiplied by it, which makes more noise, not less.",
                flows(lambda s, k: s / (k - (k - 1) * s))),
        Mistake("sigma itself was multiplied by the shift, and held at 1: it is sigma / (1 - sigma) that is multiplied.",
                flows(lambda s, k: (k * s).clamp(max=1))),
        Mistake("shift was given, and not used.", flows(lambda s, k: s)),
        Mistake("the shift was applied twice.", flows(lambda s, k: k**2 * s / (1 + (k**2 - 1) * s))),
        Mistake("alpha is that of a VP schedule: on a flow it is the sum of the two that is 1, not the sum of their squares.",
                flows(alpha=lambda s: (1 - s**2).sqrt())),
        Mistake("alpha and sigma have changed places: alpha is what is left of the image, and falls from row to row.",
                lambda T=1000, shift=1.0: [flows()(T, shift)[i] for i in (1, 0, 2)]),
        Mistake("t counts the rows, and knows nothing of the shift: the network is to be told how much noise there is.",
                flows(told=lambda T, s: torch.arange(1, T + 1))),
        Mistake("t runs from 0 to 1 here: a network that was trained to be told 0 to T would take every level for a clean one.",
                flows(told=lambda T, s: s)),
    ),
    hints=("Without a shift, sigma goes up in T equal steps, and the last one reaches 1. Only then comes the shift.",
           "r = sigma / (1 - sigma) becomes shift * r. Solved for the new sigma, there is no division by zero at sigma = 1.",
           "s = torch.arange(1, T + 1) / T; sigma = shift * s / (1 + (shift - 1) * s); alpha = 1 - sigma; t = T * sigma"),
)  # fmt: skip


def embeds(places=lambda n, of: torch.arange(n) + (of - n) // 2, wave=lambda n, dim: sinusoidal(n, dim, sin_first=True),
           halves=lambda column, row: (column, row), lay=lambda grid: grid.flatten(2).transpose(1, 2)):  # fmt: skip
    """PatchEmbedding, with one of its parts replaced. places: (patches to this side, to the largest) -> their numbers."""

    def forward(self, x):
        tokens, n = self.project(x), self.positions.shape[1]  # (B, dim, h, w)
        row, column = (wave(places(side, n), tokens.shape[1] // 2).T for side in tokens.shape[2:])
        grid = column[:, None].expand(-1, row.shape[1], -1), row[:, :, None].expand(-1, -1, column.shape[1])
        return lay(tokens + torch.cat(halves(*grid)))

    return forwards(PatchEmbedding, forward)


def counted(column, row):
    return sinusoidal(torch.arange(row[0].numel()), 2 * len(row), sin_first=True).T.unflatten(1, row.shape[1:]).chunk(2)


OF_16 = {"channels": 3, "dim": 16, "patch": 2, "size": 16}  # eight patches to a side
patch_task = Task(
    "20.2", "a picture as a row of words", PatchEmbedding,
    cases=(
        # Weights and biases are -1, -1/3, 1/3, 1: so 0, 1 and -1 become these, twice these, and zeros. Then sine and cosine of
        # the column, 0, 1, 2, are added, and those of the row, 1, the middle one of three.
        Case("three patches of one pixel, all weights from -1 to 1, by hand",
             (line, {"channels": 1, "dim": 4, "patch": 1, "size": 3}, torch.tensor([[[[0.0, 1.0, -1.0]]]])),
             Asked(COMPLETE, torch.tensor([[[-1.0, 0.666667, 1.174804, 1.540302], [-1.158529, -0.126365, 1.508138, 2.540302],
                                            [0.909297, -0.416147, 0.841471, 0.540302]]]))),
        Case("images as large as they may be", (noise, {"channels": 3, "dim": 32, "patch": 4, "size": 32}, IMAGES)),
        Case("from the middle: wider than high", (noise, OF_16, IMAGES[:, :, :8, :12])),
        Case("from the middle: higher than wide, and odd", (noise, OF_16, IMAGES[:, :, :14, :6])),
    ),
    ask=asking(PatchEmbedding),
    mistakes=(
        Mistake("the tokens do not know where they are: add the positions.",
                embeds(halves=lambda column, row: (0 * column, 0 * row))),
        Mistake("row and column have changed places: a token's first half says its column, the second half its row.",
                embeds(halves=lambda column, row: (row, column))),
        Mistake("a smaller picture was given the positions of the upper left corner: it takes them from the middle.",
                embeds(lambda n, of: torch.arange(n))),
        Mistake("the positions were stretched until a smaller picture filled the whole grid: they are cut out of the middle.",
                embeds(lambda n, of: torch.linspace(0, of - 1, n))),
        Mistake("the cosines come first, as for the timestep: here, sines come first in each half.", embeds(wave=sinusoidal)),
        Mistake("the tokens were counted through, 0, 1, 2, ..., which tells no one what is above what: count rows and columns.",
                embeds(halves=counted)),
        Mistake("reshape cannot turn (dim, N) into (N, dim): flatten the grid, then swap the two axes.",
                embeds(lay=lambda grid: grid.reshape(len(grid), -1, grid.shape[1]))),
        Mistake("the tokens stand column by column: read the picture as a page, row by row.",
                embeds(lay=lambda grid: grid.mT.flatten(2).mT)),
    ),
    hints=("A convolution whose stride is as long as its kernel looks at each patch once: (B, dim, h, w).",
           "sinusoidal(torch.arange(size // patch), dim // 2, sin_first=True) serves both sides; take h from (n - h) // 2 on.",
           "torch.cat([column.expand(h, w, -1), row[:, None].expand(h, w, -1)], dim=2).flatten(0, 1), and tokens as rows"),
)  # fmt: skip


def told(x, shift, scale, eps=1e-6, at_rest=1):
    return layer_norm(x, x.shape[-1:], eps=eps) * (at_rest + scale) + shift


def finals(tell=told, act=silu, spread=lambda y, h, w, p: y.view(len(y), h, w, p, p, -1), order=(0, 5, 1, 3, 2, 4)):
    """FinalLayer, with one of its parts replaced. spread: (B, N, p * p * out) -> (B, h, w, p, p, out)."""

    def forward(self, tokens, emb, size):
        shift, scale = self.modulation.linear(act(emb))[:, None].chunk(2, dim=2)
        patches, p = self.linear(tell(tokens, shift, scale)), self.patch
        return spread(patches, size[0] // p, size[1] // p, p).permute(order).reshape(len(tokens), -1, *size)

    return forwards(FinalLayer, forward)


def unchanged(shape, rng, is_weight):
    """Weights of a matrix that changes nothing, and zeros for any that is not square."""
    return torch.eye(shape[0]) if len(shape) == 2 and shape[0] == shape[1] else torch.zeros(shape)


WITHOUT_ONE = "the scale stands alone: at first it is zero, and would wipe the tokens out. Multiply by 1 + scale."
SWAPPED = "shift and scale have changed places: of what the embedding tells, the shift comes first."
NO_SILU = "the embedding goes through SiLU before it is asked for anything."
ZERO_PICTURE = "a new network should answer zero: set weight and bias of the layer that makes the pixels to zero."
TOKENS, EMB = torch.randn(2, 24, 16, generator=GENERATOR), torch.randn(2, 16, generator=GENERATOR)
PATCHES = IMAGES.unflatten(2, (8, 4)).unflatten(4, (8, 4)).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (4, 64, 48)
SMALL = {"dim": 16, "out_channels": 3, "patch": 2}
final_task = Task(
    "20.3", "a row of words as a picture", FinalLayer,
    cases=(
        # Of an embedding of 0 come the biases, shift (-1, -1/3) and scale (1/3, 1). The norm leaves (-1, 1) and (1, -1), which
        # become (-7/3, 5/3) and (1/3, -7/3): of each the last layer makes the four pixels of a patch, row by row.
        Case("two patches side by side, all weights from -1 to 1, by hand",
             (line, {"dim": 2, "out_channels": 1, "patch": 2}, torch.tensor([[[1.0, 3.0], [3.0, 1.0]]]), torch.zeros(1, 2),
              (2, 4)), Asked(COMPLETE, torch.tensor([[[[0.142857, 0.428571, 0.333333, -0.142857],
                                                       [0.714286, 1.0, -0.619048, -1.095238]]]]))),
        Case("the patches of images, each with a contrast of its own",
             (unchanged, {"dim": 48, "out_channels": 3, "patch": 4}, PATCHES, torch.zeros(4, 48), (32, 32))),
        Case("wider than high", (noise, SMALL, TOKENS, EMB, (8, 12))),
        Case("higher than wide", (noise, SMALL, TOKENS, EMB, (12, 8))),
    ),
    ask=asking(FinalLayer),
    mistakes=(
        Mistake(WITHOUT_ONE, finals(partial(told, at_rest=0))),
        Mistake(SWAPPED, finals(lambda x, shift, scale: told(x, scale, shift))),
        Mistake(NO_SILU, finals(act=lambda emb: emb)),
        Mistake("inside a patch the channels come last, not first: its numbers are (row, column, channel).",
                finals(spread=lambda y, h, w, p: y.view(len(y), h, w, -1, p, p), order=(0, 3, 1, 4, 2, 5))),
        Mistake("inside every patch, rows and columns have changed places.", finals(order=(0, 5, 1, 4, 2, 3))),
        Mistake("the patches stand in the wrong places: the row of tokens is the picture read row by row, h rows of w.",
                finals(spread=lambda y, h, w, p: y.view(len(y), w, h, p, p, -1).transpose(1, 2))),
        Mistake("the pixels were reshaped into a picture without being put in order: (B, h, w, p, p, out) has to become "
                "(B, out, h, p, w, p) first.", finals(order=(0, 5, 1, 2, 3, 4))),
        Mistake(ZERO_PICTURE, awake(FinalLayer, "linear")),
    ),
    laws=(Law(ZERO_PICTURE, lambda f: not f(**SMALL).forward(TOKENS, EMB, (8, 12)).any()),),
    hints=("Norm, scale and shift; a linear layer that makes p * p * out numbers of a token; then only putting in order.",
           "Two unflattens: N into (h, w), the last axis into (p, p, out). A picture's rows are h and p, in this order.",
           "x.permute(0, 5, 1, 3, 2, 4).reshape(B, out, H, W), where x is (B, h, w, p, p, out)"),
)  # fmt: skip


def blocks(tell=told, act=silu, gates=(2, 5), gated=lambda x, gate, y: x + gate * y,
           layers=lambda self: (self.attention, self.mlp)):  # fmt: skip
    """DiTBlock, with one of its parts replaced. gates: which of the six."""

    def forward(self, x, emb):
        six = self.modulation.linear(act(emb))[:, None].chunk(6, dim=2)
        for layer, first, gate in zip(layers(self), (0, 3), gates, strict=True):
            x = gated(x, six[gate], layer(tell(x, *six[first : first + 2])))
        return x

    return forwards(DiTBlock, forward)


def shut(**options):
    block = DiTBlock(**options)
    zero(block.attention.to_out)
    return block


IDENTITY = "a new block should hand its tokens on unchanged: set weight and bias of the layer that makes the six to zero."
SHUT = "a gate at zero behind a layer at zero: neither will ever learn. Leave the last layers of attention and mlp as drawn."
block_task = Task(
    "20.4", "told by the norm", DiTBlock,
    cases=(
        # Of an embedding of 0 come the biases, -1, -0.6, -0.2, 0.2, 0.6, 1. The norm of one number is 0, so attention sees -1,
        # makes v = 1 - 1 of it, and -1 of that: 1 + 0.2 = 1.2. The mlp sees 0.2; its four channels are 1.2 times -1, -1/3, 1/3,
        # 1, and as GELU(a) - GELU(-a) = a, it answers 1.2 + 0.4 / 3 - 1, a third.
        Case("one token of one number, all weights from -1 to 1, by hand",
             (line, {"dim": 1}, torch.ones(1, 1, 1), torch.zeros(1, 1)), Asked(COMPLETE, torch.tensor([[[1.533333]]]))),
        Case("24 tokens", (noise, {"dim": 16}, TOKENS, EMB)),
        Case("four heads, queries and keys normed", (noise, {"dim": 16, "heads": 4, "qk_norm": True}, TOKENS, EMB)),
        Case("tokens that are nearly flat", (noise, {"dim": 16}, 1e-3 * TOKENS, EMB)),
    ),
    ask=asking(DiTBlock),
    mistakes=(
        Mistake(WITHOUT_ONE, blocks(partial(told, at_rest=0))),
        Mistake(SWAPPED, blocks(lambda x, shift, scale: told(x, scale, shift))),
        Mistake(NO_SILU, blocks(act=lambda emb: emb)),
        Mistake("the gates have changed places: the third is for attention, the sixth for the mlp.", blocks(gates=(5, 2))),
        Mistake("the way around goes through the gate as well: x itself passes freely, only what is added to it is gated.",
                blocks(gated=lambda x, gate, y: gate * (x + y))),
        Mistake("the gates are not used.", blocks(gated=lambda x, gate, y: x + y)),
        Mistake("the norm's eps is PyTorch's own, 1e-5: here it is 1e-6, which tokens that are nearly flat can tell.",
                blocks(partial(told, eps=1e-5))),
        Mistake('the GELU is the exact one: DiT and SD3 take the one made of a tanh, nn.GELU("tanh").',
                blocks(layers=lambda self: (self.attention, nn.Sequential(self.mlp[0], nn.GELU(), self.mlp[2])))),
        Mistake(IDENTITY, awake(DiTBlock, "modulation.linear")),
        Mistake(SHUT, shut),
    ),
    laws=(Law(IDENTITY, starts_as_identity({"dim": 16}, TOKENS, EMB)),
          Law(SHUT, lambda f: sum(not weights.any() for weights in f(dim=16).parameters() if weights.ndim == 2) == 1)),
    hints=("Twice x = x + gate * layer(modulated x), each time with three of the six.",
           "self.linear(silu(emb))[:, None].chunk(6, dim=2) has the shape (B, 1, dim) six times, which meets (B, N, dim).",
           "x = x + gate_1 * self.attention(layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale_1) + shift_1); then the mlp"),
    tolerance=2e-5,  # the two GELUs are nowhere more than 5e-4 apart
)  # fmt: skip


def joint(size=lambda q, dim: q.shape[3] ** 0.5, axis=3, sees=lambda asks, tells: asks | True, first="image"):
    """JointAttention, with one of its parts replaced. sees: (is it text that asks?, is it text that tells?) -> may it look?"""

    def forward(self, image, text):
        (q, k, v), n, both = self.qkv(image, text), image.shape[1], image.shape[1] + text.shape[1]
        is_text = torch.arange(both) >= n
        scores = (q @ k.transpose(2, 3) / size(q, image.shape[2])).where(sees(is_text[:, None], is_text), -torch.inf)
        out = (scores.softmax(axis) @ v).transpose(1, 2).flatten(2)
        image, text = (out[:, :n], out[:, n:]) if first == "image" else (out[:, both - n :], out[:, : both - n])
        return self.image.to_out(image), self.text.to_out and self.text.to_out(text)

    return forwards(JointAttention, forward)


class OneSet(JointAttention):
    def __init__(self, dim, heads=None, qk_norm=False, last=False):
        super().__init__(dim, heads, qk_norm)
        self.text, self.last = self.image, last

    def forward(self, image, text):
        image, text = super().forward(image, text)
        return image, None if self.last else text


JOINT, WORDS, WIDE = {"dim": 16, "heads": 2}, TOKENS[:, :7].flip(2), TOKENS.view(2, 6, 64).repeat(1, 1, 2)
joint_task = Task(
    "20.5", "all look at all", JointAttention,
    cases=(
        # 1 becomes -2, as q, as k, as v; -1 becomes 0. The image's scores are 4 and 0, their softmax 0.982014 and 0.017986: it
        # finds -1.964028. The text's scores are 0 and 0: it finds -1. The last layers answer -1 minus that.
        Case("one patch, one word, all weights and biases -1, by hand",
             (line, {"dim": 1}, torch.ones(1, 1, 1), -torch.ones(1, 1, 1)),
             Asked(COMPLETE, (torch.tensor([[[0.964028]]]), torch.tensor([[[0.0]]])))),
        Case("24 patches, seven words", (noise, JOINT, TOKENS, WORDS)),
        Case("as many words as patches", (noise, JOINT, TOKENS, TOKENS.flip(2))),
        Case("heads of 64 channels, as many as fit", (noise, {"dim": 128}, WIDE, WIDE[:, :4].flip(2))),
        Case("queries and keys normed", (noise, {**JOINT, "qk_norm": True}, TOKENS, WORDS)),
        Case("for the last time", (noise, {**JOINT, "last": True}, TOKENS, WORDS)),
    ),
    ask=asking(JointAttention),
    mistakes=(
        Mistake("each kind of token looks at its own kind only: lay keys and values of both in one row, for all to look at.",
                joint(sees=lambda asks, tells: asks == tells)),
        Mistake("the words look at words only: here they look at the picture as well, and change with it.",
                joint(sees=lambda asks, tells: ~asks | tells)),
        Mistake("the picture looks at words only, as in cross-attention: here it looks at itself in the same softmax.",
                joint(sees=lambda asks, tells: asks | tells)),
        Mistake("one set of layers serves both: picture and words each have q, k, v and a last layer of their own.", OneSet),
        Mistake("what was found was cut in the wrong place: as the row was laid, so it is cut.", joint(first="text")),
        Mistake("the root is that of all channels: a score adds up one head's, dim / heads.", joint(lambda q, dim: dim**0.5)),
        Mistake("the softmax runs over those who ask: each of them has a weight of 1 to share out.", joint(axis=2)),
        Mistake("qk_norm was given, and not used.", lambda dim, heads=None, qk_norm=False, last=False:
                JointAttention(dim, heads, last=last)),
        Mistake("last was given, and not used: then the words need no last layer, and come back as None.",
                lambda dim, heads=None, qk_norm=False, last=False: JointAttention(dim, heads, qk_norm)),
    ),
    hints=("One attention over one long row. Only the layers before it and behind it are of two kinds.",
           "Heads first: (B, heads, N, d) of the picture and (B, heads, L, d) of the words make one row by torch.cat, dim=2.",
           "scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2); split([N, L], dim=1); to each its last layer"),
)  # fmt: skip

TASKS = [flow_task, patch_task, final_task, block_task, joint_task]
