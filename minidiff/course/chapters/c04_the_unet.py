"""Tasks of chapter 04: the pieces a U-Net is stacked from."""

from functools import partial

import torch
from torch import nn
from torch.nn.functional import avg_pool2d, conv2d, interpolate, pad, silu

from ...data import Shapes, from_pixels
from ...nets import DownSample, ResNetBlock, SpatialAttention, UpBlock, UpSample
from ..compare import difference
from ..layers import COMPLETE, Asked, asking, awake, forwards, line, noise, starts_as_identity
from ..task import Case, Law, Mistake, Task

GENERATOR = torch.Generator().manual_seed(4)
IMAGES = from_pixels(Shapes(4, size=32, seed=3).tensors()[0])  # (4, 3, 32, 32)
SMALL = interpolate(IMAGES, (16, 16), mode="bilinear")
MAPS = torch.randn(2, 16, 8, 6, generator=GENERATOR)  # higher than wide, so that the two cannot be taken for each other


def downs(usual=(1, 1, 1, 1), asymmetric=(0, 1, 0, 1), before=lambda x: x, stride=2):
    """DownSample, with one of its parts replaced. usual, asymmetric: the zeros at left, right, top and bottom."""

    def forward(self, x, emb=None, context=None):
        zeros = asymmetric if self.asymmetric else usual
        return conv2d(pad(before(x), zeros), self.conv.weight, self.conv.bias, stride)

    return forwards(DownSample, forward)


down_task = Task(
    "04.1", "half the size", DownSample,
    cases=(
        Case("ones, and a kernel from -1 to 1, by hand", (line, {"channels": 1}, torch.ones(1, 1, 4, 4)),
             Asked(COMPLETE, torch.tensor([[[[1.0, 1.25], [-0.25, -1.0]]]]))),
        Case("images", (noise, {"channels": 3}, IMAGES)),
        Case("images, zeros at right and bottom only", (noise, {"channels": 3, "asymmetric": True}, IMAGES)),
        Case("feature maps", (noise, {"channels": 16}, MAPS)),
    ),
    ask=asking(DownSample),
    mistakes=(
        Mistake("no zeros were laid around the map: a 3x3 kernel needs a border, or the answer is too small.",
                downs((0, 0, 0, 0), (0, 0, 0, 0))),
        # with padding=1 all around, an even size, and steps of two, the zeros at right and bottom are never reached
        Mistake("with asymmetric the kernel meets zeros at the left and top: they belong to the right and bottom, and nowhere "
                "else.", downs(asymmetric=(1, 0, 1, 0))),
        Mistake("with asymmetric the convolution brings its own border as well: take padding=0 there.",
                downs(asymmetric=(1, 2, 1, 2))),
        Mistake("every second pixel was thrown away before the convolution could look at it: let it take steps of two itself.",
                downs(before=lambda x: x[:, :, ::2, ::2], stride=1)),
        Mistake("the map was halved by pooling: the convolution itself is to take steps of two.",
                downs(before=lambda x: avg_pool2d(x, 2), stride=1)),
    ),
    hints=("A convolution that moves by two pixels instead of one has half as many answers in each direction.",
           "nn.Conv2d takes stride and padding. For the asymmetric kind give it no padding, and pad the map yourself.",
           "nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1), self.conv(pad(x, (0, 1, 0, 1)))"),
)  # fmt: skip


def ups(grow=interpolate, first=False):
    """UpSample, with another way to grow, (x, size) -> x, or the convolution first."""

    def forward(self, x, size=None):
        size = size or (2 * x.shape[2], 2 * x.shape[3])
        return grow(self.conv(x), size) if first else self.conv(grow(x, size))

    return forwards(UpSample, forward)


class Transposed(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1)

    def forward(self, x, size=None):
        return cropped(self.conv(x), size or (None, None))


def cropped(x, size):
    return x[:, :, : size[0], : size[1]]


up_task = Task(
    "04.2", "twice the size", UpSample,
    cases=(
        Case("a single 1, and a kernel from -1 to 1, by hand", (line, {"channels": 1}, torch.ones(1, 1, 1, 1)),
             Asked(COMPLETE, torch.tensor([[[[1.0, 0.0], [-2.0, -3.0]]]]))),
        Case("images", (noise, {"channels": 3}, SMALL)),
        Case("feature maps of 8x6, back to 15x11", (noise, {"channels": 16}, MAPS, (15, 11))),
    ),
    ask=asking(UpSample),
    mistakes=(
        Mistake("the map was grown smoothly: here every pixel is copied to four, nearest neighbour.",
                ups(partial(interpolate, mode="bilinear"))),
        Mistake("the whole map was laid four times side by side: it is each pixel that is to be repeated, where it is.",
                ups(lambda x, size: cropped(x.repeat(1, 1, 2, 2), size))),
        Mistake("the convolution came first, and its answer was blown up: grow first, or the blocks of four stay visible.",
                ups(first=True)),
        Mistake("the convolution is not used: it is what smooths the blocks of four equal pixels.",
                forwards(UpSample, lambda self, x, size=None: interpolate(x, size or (2 * x.shape[2], 2 * x.shape[3])))),
        Mistake("the size that was asked for is not looked at: an odd number that was halved is not found again by doubling.",
                ups(lambda x, size: interpolate(x, scale_factor=2.0))),
        Mistake("a transposed convolution leaves a checkerboard: copy the pixels, then convolve.", Transposed),
    ),
    hints=("Two steps: more pixels, which say nothing new; then a convolution, which makes something of them.",
           '`torch.nn.functional.interpolate(x, size, mode="nearest")` copies pixels.',
           'self.conv(interpolate(x, size or (2 * H, 2 * W), mode="nearest")), a convolution with padding=1'),
)  # fmt: skip


def resnet(told=lambda layer, emb: layer(silu(emb)), early=True, around=lambda self, x, h: self.shortcut(x)):
    """ResNetBlock, with one of its parts replaced."""

    def forward(self, x, emb=None):
        shift = told(self.emb, emb)[:, :, None, None] if self.emb else 0
        h = self.first(x) + (shift if early else 0)
        return around(self, x, h) + self.second(h) + (0 if early else shift)

    return forwards(ResNetBlock, forward)


EMB = torch.randn(4, 8, generator=GENERATOR)
PIXELS = torch.tensor([3.0, 5.0]).view(2, 1, 1, 1)  # two images of one
RESNET_ZERO = "a new block should hand its map on unchanged: set weight and bias of the last convolution to zero in __init__."
resnet_task = Task(
    "04.3", "two convolutions, told the time, and a way around", ResNetBlock,
    cases=(
        # Of one pixel a norm leaves 0, or of two channels (-1, 1); of a 3x3 kernel only the middle counts. So the first GSC
        # gives (-0.857619, 0.857619); behind the norm of the second are (0, 2), and silu(2) = 1.761594 goes into its
        # convolution, which gives (-1.452981, 2.358944). The shortcut of 3 is (-4, 4), of 5 (-6, 6).
        Case("images of one pixel, all weights from -1 to 1, by hand",
             (line, {"in_channels": 1, "out_channels": 2, "emb_channels": 1}, PIXELS, torch.tensor([[2.0], [1.0]])),
             Asked(COMPLETE, torch.tensor([[-5.452981, 6.358944], [-7.452981, 8.358944]]).view(2, 2, 1, 1))),
        Case("images, as many channels in as out",
             (noise, {"in_channels": 3, "out_channels": 3, "emb_channels": 8}, SMALL, EMB)),
        Case("feature maps, more channels out than in",
             (noise, {"in_channels": 16, "out_channels": 24, "emb_channels": 8}, MAPS, EMB[:2])),
        Case("no embedding, as in a VAE", (noise, {"in_channels": 16, "out_channels": 24}, MAPS)),
        Case("with another norm", (noise, {"in_channels": 16, "out_channels": 16, "norm": partial(nn.GroupNorm, 1)}, MAPS)),
    ),
    ask=asking(ResNetBlock),
    mistakes=(
        Mistake("the embedding is not used, so the block never learns what time it is.",
                resnet(told=lambda layer, emb: torch.zeros(1, 1))),
        Mistake("the embedding was added after the second GSC: added between the two, the second can react to it.",
                resnet(early=False)),
        Mistake("the embedding goes through SiLU before its linear layer, and here it does not.",
                resnet(told=lambda layer, emb: layer(emb))),
        Mistake("the SiLU came after the embedding's linear layer: it belongs before it.",
                resnet(told=lambda layer, emb: silu(layer(emb)))),
        Mistake("the way around is missing: the answer is the shortcut of x plus what the second GSC makes.",
                resnet(around=lambda self, x, h: 0)),
        Mistake("the way around starts behind the first GSC: it should start at x.", resnet(around=lambda self, x, h: h)),
        Mistake(RESNET_ZERO, awake(ResNetBlock, "second.2")),
    ),
    laws=(Law(RESNET_ZERO, starts_as_identity({"in_channels": 16, "out_channels": 16, "emb_channels": 8}, MAPS, EMB[:2])),),
    hints=("Two ways lead from x to the answer, a long one and a short one, and the answer is their sum.",
           "emb is (B, E), the map (B, out, H, W): after the linear layer, [:, :, None, None] gives it two axes more. "
           "The shortcut is nn.Identity() where in and out are equal, else a convolution of 1x1.",
           "h = self.first(x); h = h + self.emb(silu(emb))[:, :, None, None]; self.shortcut(x) + self.second(h)"),
)  # fmt: skip


def spatial(rows=lambda x: x.flatten(2).transpose(1, 2), back=lambda y, x: y.transpose(1, 2).reshape(x.shape),
            normed=True, around=lambda x, h: x):  # fmt: skip
    """SpatialAttention, with one of its parts replaced. rows: (B, C, H, W) -> (B, HW, C), back: the way back."""

    def forward(self, x, context=None):
        h = self.norm(x) if normed else x
        return around(x, h) + back(self.attention(rows(h)), x)

    return forwards(SpatialAttention, forward)


def batch_last(y, x):
    return y.permute(1, 2, 0).reshape(x.shape)  # (HW, B, C) -> (B, C, H, W)


attention_task = Task(
    "04.4", "every pixel looks at every other", SpatialAttention,
    cases=(
        # (-1, 1) normed, times -1, minus 1: (0, -2). q, k, v are its negative, (0, 2). The first pixel looks at both alike,
        # the second by 1 / (1 + e^-4) at itself: 1 and 1.964028. The last layer makes -2 and -2.964028 of them.
        Case("two pixels, all weights -1, by hand", (line, {"channels": 1}, torch.tensor([[[[-1.0, 1.0]]]])),
             Asked(COMPLETE, torch.tensor([[[[-3.0, -1.964028]]]]))),
        Case("images", (noise, {"channels": 3}, SMALL)),
        Case("feature maps, four heads", (noise, {"channels": 16, "heads": 4}, MAPS)),
        Case("with biases, and another norm",
             (noise, {"channels": 16, "bias": True, "norm": partial(nn.GroupNorm, 4)}, MAPS)),
    ),
    ask=asking(SpatialAttention),
    mistakes=(
        Mistake("reshape cannot turn (C, HW) into (HW, C): it keeps the numbers in their order and mixes pixels with channels. "
                "Swap the two axes, and swap them back after.",
                spatial(lambda x: x.reshape(len(x), -1, x.shape[1]), lambda y, x: y.reshape(x.shape))),
        Mistake("on the way back tokens became a map by reshape alone: swap the axes first, (HW, C) to (C, HW).",
                spatial(back=lambda y, x: y.reshape(x.shape))),
        Mistake("the images of the batch look at each other here: attention expects (B, HW, C), the batch first.",
                spatial(lambda x: x.flatten(2).permute(2, 0, 1), batch_last)),
        Mistake("the way around is missing: what attention finds is added to x.", spatial(around=lambda x, h: 0)),
        Mistake("attention's finding was added to the normed map: the way around carries x itself.",
                spatial(around=lambda x, h: h)),
        Mistake("the norm is not used: attention should see the normed map.", spatial(normed=False)),
    ),
    hints=("To attention a map is a row of tokens, one for each pixel, with C channels each.",
           "x.flatten(2) is (B, C, HW). Which axes change places? And what brings (B, HW, C) back to (B, C, H, W)?",
           "rows = self.norm(x).flatten(2).transpose(1, 2); x + self.attention(rows).transpose(1, 2).reshape(x.shape)"),
)  # fmt: skip


def climbs(take=lambda skips, i: skips.pop(), join=lambda x, skip: [x, skip], grow=True, sized=True):
    """UpBlock, with one of its parts replaced."""

    def forward(self, x, skips, emb, context=None):
        for i, layer in enumerate(self.layers):
            x = layer(torch.cat(join(x, take(skips, i)), 1), emb, context)
        return self.up(x, skips[-1].shape[2:] if skips and sized else None) if self.up and grow else x

    return forwards(UpBlock, forward)


class AllAlike(UpBlock):
    def __init__(self, in_channels, skip_channels, *args, **options):
        super().__init__(in_channels, [skip_channels[0]] * len(skip_channels), *args, **options)


class OneAttention(UpBlock):
    def __init__(self, *args, attend=None, **options):
        shared = attend and attend()
        super().__init__(*args, attend=attend and (lambda: shared), **options)


def climb(block, x, skips, emb):
    skips = list(skips)
    return {"map": block.forward(x, skips, emb), "maps left in skips": len(skips)}


def upward(options, count):
    """A question with this many maps in the list, all of one shape, so that nothing but the answer tells one from another."""
    shape = (2, options["in_channels"], 8, 6)
    return (noise, options, torch.randn(shape, generator=GENERATOR),
            [torch.randn(shape, generator=GENERATOR) for _ in range(count)], EMB[:2])  # fmt: skip


ASK_UP = asking(UpBlock, climb)


def as_ours(options, *maps):
    """The law of giving the library's answer, asked apart: the mistakes above would raise here, and so have no sentence."""
    question = (noise, options, torch.ones(2, 8, 4, 4), [torch.ones(2, *shape) for shape in maps], EMB[:2])
    return lambda f: difference(ASK_UP(f, *question), ASK_UP(UpBlock, *question), 1e-4) is None


# its norm is of a kind of its own: whoever makes all the blocks first, and then all attentions, shall get the same weights
ATTEND = partial(SpatialAttention, 16, norm=partial(nn.InstanceNorm2d, affine=True))
NARROW = {"in_channels": 8, "skip_channels": [8, 4], "out_channels": 6, "emb_channels": 8}
WIDTHS = "the maps in skips may differ in width: layer i takes what comes out of the layer before, and skip_channels[i] more."
SIZE = "if a map is left in skips, the stage should end at its size: 4x4 may have to become 7x7 and not 8x8."
up_block_task = Task(
    "04.5", "the way up", UpBlock,
    cases=(
        # Of one pixel in one channel a ResNetBlock with these weights makes skip - x - 2: (2, 1) - (3, 5) - 2 = (-3, -6), and
        # then (6, 4) - (-3, -6) - 2 = (7, 8).
        Case("images of one pixel, all weights from -1 to 1, by hand",
             (line, {"in_channels": 1, "skip_channels": [1, 1], "out_channels": 1, "emb_channels": 1, "up": False}, PIXELS,
              list(torch.tensor([[7.0, 3.0], [6.0, 4.0], [2.0, 1.0]]).view(3, 2, 1, 1, 1)), torch.ones(2, 1)),
             Asked(COMPLETE, {"map": torch.tensor([7.0, 8.0]).view(2, 1, 1, 1), "maps left in skips": 1})),
        Case("three maps", upward({"in_channels": 16, "skip_channels": [16] * 3, "out_channels": 16, "emb_channels": 8}, 3)),
        Case("with attention", upward({"in_channels": 16, "skip_channels": [16] * 2, "out_channels": 16, "emb_channels": 8,
                                       "attend": ATTEND}, 2)),
    ),
    ask=ASK_UP,
    mistakes=(
        Mistake("the maps are taken from the front of the list: the last one that was made is the first to be used.",
                climbs(lambda skips, i: skips.pop(0))),
        Mistake("the maps were looked at and left in the list, where the next stage will find them again: take them out.",
                climbs(lambda skips, i: skips[-1 - i])),
        Mistake("every layer got the same map: the list should be one shorter after each.", climbs(lambda skips, i: skips[-1])),
        Mistake("the skip was laid before x: the order in torch.cat is x, then the skip.",
                climbs(join=lambda x, skip: [skip, x])),
        Mistake("the map was not doubled at the end: with up=True an UpSample follows the layers.", climbs(grow=False)),
        Mistake("one attention serves all layers here: `attend` builds one, so call it once for each layer.", OneAttention),
        Mistake(WIDTHS, AllAlike),
        Mistake(SIZE, climbs(sized=False)),
    ),
    laws=(Law(WIDTHS, as_ours(NARROW, (4, 4, 4), (8, 4, 4))), Law(SIZE, as_ours(NARROW, (6, 7, 7), (4, 4, 4), (8, 4, 4)))),
    hints=("On the way down maps were put on a pile. On the way up each layer takes one from it: which one lies on top?",
           "A list is such a pile: skips.pop() takes its last map out. The channels of two maps add up in torch.cat(…, dim=1), "
           "so the ResNetBlock takes in_channels + skip_channels[i], and the next one out_channels + skip_channels[i + 1].",
           "x = layer(torch.cat([x, skips.pop()], dim=1), emb) for each layer, and then its attention; at the end "
           "self.up(x, skips[-1].shape[2:] if skips else None)"),
)  # fmt: skip

TASKS = [down_task, up_task, resnet_task, attention_task, up_block_task]
