"""The U-Net: the network that looks at a noisy image and says what it is made of.

On the way down the maps shrink and deepen, on the way up they grow again, and every map of the way down is kept and
laid beside its counterpart on the way up. The bottom sees the whole picture, the skips keep the pixels in place.

One class for all of them: DDPM on pixels, Stable Diffusion 1 and 2 on latents, and the small ones of this course.
"""

from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle, silu

from .attention import Memory, SpatialAttention, group_norm, zero
from .blocks import GSC, CrossAttnDownBlock, CrossAttnMidBlock, CrossAttnUpBlock, DownBlock, MidBlock, UpBlock
from .embeddings import ClassEmbedding, TimeEmbedding


@dataclass(frozen=True)
class Layout:
    """The small print of a UNet: what tells one family from another. The defaults are ours, made for short runs."""

    class_channels: int = 0  # 0: the class is added to the time embedding; n: laid beside the image as n channels
    null_class: bool = True  # one class more, for "any class"
    patch: int = 1  # pixels per side folded into channels at the door: 2 makes everything inside 4 times cheaper
    shortcut: bool = False  # add gain(t) * x + shift(t) to the answer: short runs learn much faster; needs in >= out
    heads: int | tuple | None = None  # of attention, for all stages or for each; None: of about 64 channels each
    depth: int = 1  # transformer blocks in a SpatialTransformer
    linear: bool = False  # its projections by matrices (Stable Diffusion 2) or 1x1 convolutions (1)
    dropout: float = 0.0  # in its feed-forward layers, while training
    attention_bias: bool = False  # biases for q, k, v where there is no context (DDPM)
    mid_attention: bool = True  # attention at the bottom
    groups: int | None = None  # of every GroupNorm; None: of at least 8 channels each; 32 in DDPM and Stable Diffusion
    eps: float = 1e-5  # of every GroupNorm
    freq_shift: int = 0  # of the time embedding, 1 in DDPM; see `sinusoidal`
    sin_first: bool = False  # in the time embedding, as in DDPM
    asymmetric: bool = False  # zeros at the right and bottom border only, when halving (DDPM)

    def heads_at(self, stage: int) -> int | None:
        """How many heads attend in this stage."""
        return self.heads[stage] if isinstance(self.heads, list | tuple) else self.heads


class UNet(nn.Module):
    """net(xt, t, y=None, context=None) -> a map like xt: (B, C, H, W), (B,), (B,), (B, L, D) -> (B, out, H, W).

    H and W must divide by `patch`; where they divide by `stride`, no halving has to round. Without y, a network with classes
    answers for the null class. layout: the fields of `Layout`. DDPM (Ho et al. 2020, appendix B); with context, Stable
    Diffusion (Rombach et al. 2022, appendix E). Wrong shapes, labels and batch sizes raise ValueError before any work is done.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        channels: tuple = (64, 128, 256),  # width of each stage; each is half the height and width of the one before
        attention: tuple = (False, False, True),  # does the stage attend? to the context as well, if there is one
        layers: int = 2,  # ResNetBlocks per stage on the way down; one more on the way up
        context_dim: int | None = None,  # channels of the context tokens, if there is cross-attention to them
        num_classes: int | None = None,  # classes, if it can be asked for one
        **layout,
    ):
        super().__init__()
        self.layout = small = Layout(**layout)
        self.config = {"in_channels": in_channels, "out_channels": out_channels, "channels": channels, "attention": attention,
                       "layers": layers, "context_dim": context_dim, "num_classes": num_classes, **asdict(small)}  # fmt: skip
        self._check_config(**self.config)
        width, emb_channels = channels[0], 4 * channels[0]
        self.patch, self.stride = small.patch, small.patch * 2 ** (len(channels) - 1)
        self.time = TimeEmbedding(width, emb_channels, freq_shift=small.freq_shift, sin_first=small.sin_first)
        label_channels = small.class_channels or emb_channels
        self.label = ClassEmbedding(num_classes, label_channels, null=small.null_class) if num_classes else None
        self.conv_in = nn.Conv2d((in_channels + small.class_channels) * small.patch**2, width, 3, padding=1)
        norm, last = partial(group_norm, groups=small.groups, eps=small.eps), len(channels) - 1

        def block(plain, crossed, stage, attends, *widths, **options):  # the kind of block that this stage asks for
            heads = small.heads_at(stage)
            if attends and context_dim:
                transformer = {"heads": heads, "depth": small.depth, "linear": small.linear, "dropout": small.dropout}
                return crossed(*widths, context_dim, {**transformer, "groups": small.groups}, norm=norm, **options)
            attend = partial(SpatialAttention, channels[stage], heads, small.attention_bias, norm) if attends else None
            return plain(*widths, attend=attend, norm=norm, **options)

        skips, self.down, self.up = [width], nn.ModuleList(), nn.ModuleList()
        for i, out in enumerate(channels):
            self.down.append(block(DownBlock, CrossAttnDownBlock, i, attention[i], width, out, emb_channels,
                                   layers=layers, down=i < last, asymmetric=small.asymmetric))  # fmt: skip
            skips += [out] * (layers + (i < last))
            width = out
        self.mid = block(MidBlock, CrossAttnMidBlock, last, small.mid_attention, width, emb_channels)
        for i, out in reversed(list(enumerate(channels))):
            beside = [skips.pop() for _ in range(layers + 1)]
            self.up.append(block(UpBlock, CrossAttnUpBlock, i, attention[i], width, beside, out, emb_channels, up=i > 0))
            width = out
        self.out = GSC(width, out_channels * small.patch**2, norm)
        zero(self.out[-1])  # the first guess is 0, the mean of every target
        # Where there is no edge in sight, the best answer is a straight line in x whose slope only t decides; at low noise
        # it is steep. GroupNorms make the deep path slow to learn that.
        self.around = zero(nn.Linear(emb_channels, 2 * out_channels)) if small.shortcut else None

    @property
    def null_class(self) -> int | None:
        """The label that stands for "any class", if there is one."""
        return self.label.null_class

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, context: Tensor | Memory | None = None) -> Tensor:
        y = self._check(x, t, y, context)
        emb = self.time(t)  # (B, E)
        if y is not None and not self.layout.class_channels:
            emb = emb + self.label(y)
        inputs = torch.cat([x, self._class_maps(y, x)], dim=1) if self.layout.class_channels else x
        h = self.conv_in(pixel_unshuffle(inputs, self.patch))  # (B, C, H/patch, W/patch)
        skips = [h]
        for block in self.down:
            h, made = block(h, emb, context)
            skips += made
        h = self.mid(h, emb, context)
        for block in self.up:
            h = block(h, skips, emb, context)
        out = pixel_shuffle(self.out(h), self.patch)  # (B, out, H, W)
        if self.around:
            gain, shift = self.around(silu(emb))[:, :, None, None].chunk(2, dim=1)  # (B, out, 1, 1) each
            out = out + gain * x[:, : out.shape[1]] + shift  # what lies beside the image comes after it
        return out

    def _class_maps(self, y: Tensor, x: Tensor) -> Tensor:
        return self.label(y)[:, :, None, None].expand(-1, -1, *x.shape[2:])  # (B,) -> (B, class_channels, H, W)

    @staticmethod
    def _check_config(in_channels, out_channels, channels, attention, num_classes, class_channels, shortcut, heads, **_):
        for name, each in (("attention", attention), ("heads", heads)):
            if isinstance(each, list | tuple) and len(each) != len(channels):
                raise ValueError(f"{name} has {len(each)} entries for {len(channels)} stages: give one per stage")
        if shortcut and in_channels < out_channels:
            raise ValueError(f"a shortcut adds input to answer, but there are {in_channels} channels in, {out_channels} out")
        if class_channels and not num_classes:
            raise ValueError(f"class_channels = {class_channels} lays a class beside the image: say how many in num_classes")

    def _check(self, x: Tensor, t: Tensor, y: Tensor | None, context: Tensor | Memory | None) -> Tensor | None:
        c = self.config
        if x.ndim != 4 or x.shape[1] != c["in_channels"]:
            raise ValueError(f"images of shape {tuple(x.shape)}: this network takes (B, {c['in_channels']}, H, W)")
        if x.shape[2] % self.patch or x.shape[3] % self.patch:
            raise ValueError(f"images of {x.shape[2]}x{x.shape[3]} pixels do not divide into this network's patches of "
                             f"{self.patch}x{self.patch}: pad or resize them")
        for name, value in (("t", t), ("y", y), ("context", context)):
            if value is not None and value.shape[0] != x.shape[0]:
                raise ValueError(f"{name} has {value.shape[0]} rows for a batch of {x.shape[0]} images: they must match")
        if (context is None) != (c["context_dim"] is None):
            raise ValueError("this network was built " + ("without a context_dim and takes no context" if context is not None
                             else "with cross-attention: give it context=tokens (B, L, D)"))
        if context is not None and (len(context.shape) != 3 or context.shape[2] != c["context_dim"]):
            raise ValueError(f"context of shape {tuple(context.shape)}: this network takes (B, L, {c['context_dim']})")
        if self.label is None and y is not None:
            raise ValueError("this network was built without num_classes and takes no labels y")
        if self.label is not None and y is None:
            if self.null_class is None:
                raise ValueError("this network has no null class: give it labels, y=(B,)")
            y = torch.full((x.shape[0],), self.null_class, device=x.device)
        return y
