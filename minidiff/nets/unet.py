"""The U-Net: the network that looks at a noisy image and says what it is made of.

On the way down the maps shrink and deepen, on the way up they grow again, and every map of the way down is kept and
laid beside its counterpart on the way up. The bottom sees the whole picture, the skips keep the pixels in place.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle, silu

from .attention import SpatialAttention
from .blocks import GSC, DownSample, Join, Layer, UpSample, zero
from .embeddings import ClassEmbedding, TimeEmbedding


class UNet(nn.Module):
    """net(xt, t, y=None, context=None) -> a map like xt: (B, C, H, W), (B,), (B,), (B, L, D) -> (B, out, H, W).

    H and W must divide by `stride`. Without y, a network with classes answers for the null class. DDPM (Ho et al. 2020,
    appendix B) with heads of 64; wrong shapes, labels and batch sizes raise ValueError before any work is done.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        channels: tuple = (64, 128, 256),  # width of each stage; each is half the height and width of the one before
        attention: tuple = (False, False, True),  # does the stage attend?
        layers: int = 2,  # ResNetBlocks per stage on the way down; one more on the way up
        context_dim: int | None = None,  # channels of the context tokens, if there is cross-attention to them
        num_classes: int | None = None,  # classes, if it can be asked for one
        class_channels: int = 0,  # 0: the class is added to the time embedding; n: laid beside the image as n channels
        patch: int = 1,  # pixels per side folded into channels at the door: 2 makes everything inside 4 times cheaper
        shortcut: bool = False,  # add gain(t) * x + shift(t) to the answer: short runs learn much faster; needs in = out
    ):
        super().__init__()
        self.config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        if len(attention) != len(channels):
            raise ValueError(f"attention has {len(attention)} entries for {len(channels)} stages: give one per stage")
        if shortcut and in_channels != out_channels:
            raise ValueError(f"a shortcut adds input to answer, but there are {in_channels} channels in, {out_channels} out")
        if class_channels and not num_classes:
            raise ValueError(f"class_channels = {class_channels} lays a class beside the image: say how many in num_classes")
        width, emb_channels = channels[0], 4 * channels[0]
        self.patch, self.stride = patch, patch * 2 ** (len(channels) - 1)
        self.time = TimeEmbedding(width, emb_channels)
        self.label = ClassEmbedding(num_classes, class_channels or emb_channels) if num_classes else None
        self.conv_in = nn.Conv2d((in_channels + class_channels) * patch**2, width, 3, padding=1)

        def attend(stage):
            return SpatialAttention(channels[stage], context_dim) if attention[stage] else None

        skips, self.down, self.up = [width], nn.ModuleList(), nn.ModuleList()
        for stage, out in enumerate(channels):
            for _ in range(layers):
                self.down.append(Layer(width, out, emb_channels, attend(stage)))
                skips.append(width := out)
            if stage < len(channels) - 1:
                self.down.append(DownSample(out))
                skips.append(out)
        bottom = SpatialAttention(width, context_dim)
        self.mid = nn.ModuleList([Layer(width, width, emb_channels, bottom), Layer(width, width, emb_channels, None)])
        for stage, out in reversed(list(enumerate(channels))):
            for _ in range(layers + 1):
                self.up.append(Join(width + skips.pop(), out, emb_channels, attend(stage)))
                width = out
            if stage > 0:
                self.up.append(UpSample(out))
        self.out = GSC(width, out_channels * patch**2)
        zero(self.out[-1])  # the first guess is 0, the mean of every target
        # Where there is no edge in sight, the best answer is a straight line in x whose slope only t decides; at low noise
        # it is steep. GroupNorms make the deep path slow to learn that.
        self.around = zero(nn.Linear(emb_channels, 2 * out_channels)) if shortcut else None

    @property
    def null_class(self) -> int:
        """The label that stands for "any class"."""
        return self.label.null_class

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        y = self._check(x, t, y, context)
        emb = self.time(t)  # (B, E)
        if y is not None and not self.config["class_channels"]:
            emb = emb + self.label(y)
        inputs = torch.cat([x, self._class_maps(y, x)], dim=1) if self.config["class_channels"] else x
        h = self.conv_in(pixel_unshuffle(inputs, self.patch))  # (B, C, H/patch, W/patch)
        skips = [h]
        for block in self.down:
            h = block(h, emb, context)
            skips.append(h)
        for block in self.mid:
            h = block(h, emb, context)
        for block in self.up:
            h = block(h, skips.pop(), emb, context) if isinstance(block, Join) else block(h, emb, context)
        out = pixel_shuffle(self.out(h), self.patch)  # (B, out, H, W)
        if self.around:
            gain, shift = self.around(silu(emb))[:, :, None, None].chunk(2, dim=1)  # (B, out, 1, 1) each
            out = out + gain * x + shift
        return out

    def _class_maps(self, y: Tensor, x: Tensor) -> Tensor:
        return self.label(y)[:, :, None, None].expand(-1, -1, *x.shape[2:])  # (B,) -> (B, class_channels, H, W)

    def _check(self, x: Tensor, t: Tensor, y: Tensor | None, context: Tensor | None) -> Tensor | None:
        c = self.config
        if x.ndim != 4 or x.shape[1] != c["in_channels"]:
            raise ValueError(f"images of shape {tuple(x.shape)}: this network takes (B, {c['in_channels']}, H, W)")
        if x.shape[2] % self.stride or x.shape[3] % self.stride:
            fits = -(-max(x.shape[2:]) // self.stride) * self.stride
            raise ValueError(f"images of {x.shape[2]}x{x.shape[3]} pixels do not divide by this network's stride of "
                             f"{self.stride}: pad or resize them, load_images(..., size={fits})")
        for name, value in (("t", t), ("y", y), ("context", context)):
            if value is not None and value.shape[0] != x.shape[0]:
                raise ValueError(f"{name} has {value.shape[0]} rows for a batch of {x.shape[0]} images: they must match")
        if (context is None) != (c["context_dim"] is None):
            raise ValueError("this network was built " + ("without a context_dim and takes no context" if context is not None
                             else "with cross-attention: give it context=tokens (B, L, D)"))
        if self.label is None and y is not None:
            raise ValueError("this network was built without num_classes and takes no labels y")
        if self.label is not None and y is None:
            y = torch.full((x.shape[0],), self.null_class, device=x.device)
        return y
