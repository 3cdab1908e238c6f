"""CLIP whole: a transformer that looks, beside the one that reads, and the loss that makes the two agree.

A picture is cut into patches, each becomes a token (Dosovitskiy et al. 2021, section 3.1), and one more token in front of them
gathers what they say. Its vector is trained to lie near that of the picture's caption and far from those of all the
other captions in the batch (Radford et al. 2021, figure 3). Nobody names a class: the captions are the labels.
"""

from functools import partial
from math import log

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from .clip import CLIPText, TransformerLayer

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # RGB of the pictures CLIP saw, 0 ... 1


class CLIPImage(nn.Module):
    """net(images) -> (B, projection), for images (B, 3, size, size) in [-1, 1], as everywhere; it shifts them to CLIP's means.

    The defaults are CLIP ViT-L/14's; ViT-B/32 has patch 32, dim 768, 12 layers, 12 heads, projection 512. ValueError for a
    size that patches do not fill, heads that do not divide dim, and images of another size.
    """

    def __init__(
        self,
        size: int = 224,  # height and width of a picture
        patch: int = 14,  # and of a patch, in pixels
        dim: int = 1024,
        layers: int = 24,
        heads: int = 16,
        mlp: int | None = None,  # hidden width of the layers' networks; None: 4 * dim
        activation: str = "quick_gelu",
        projection: int | None = 768,  # width of the space shared with texts; None: (B, dim), not projected
    ):
        super().__init__()
        self.config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        if not 1 <= patch <= size or size % patch:
            raise ValueError(f"pictures of size {size} do not divide into patches of {patch}: choose a patch that divides it")
        self.patches = nn.Conv2d(3, dim, patch, stride=patch, bias=False)
        self.start = nn.Parameter(torch.empty(dim))  # the token in front: the same for every picture
        self.positions = nn.Parameter(torch.empty(1 + (size // patch) ** 2, dim))
        self.norm_in = nn.LayerNorm(dim)
        layer = partial(TransformerLayer, dim, heads, mlp or 4 * dim, activation, causal=False)
        self.layers = nn.Sequential(*(layer() for _ in range(layers)))
        self.norm = nn.LayerNorm(dim)
        self.projection = nn.Linear(dim, projection, bias=False) if projection else None
        nn.init.normal_(self.start, std=dim**-0.5)
        nn.init.normal_(self.positions, std=dim**-0.5)

    def forward(self, images: Tensor) -> Tensor:
        size = self.config["size"]
        if images.shape[1:] != (3, size, size) or not images.is_floating_point():
            raise ValueError(f"images are {images.dtype} {tuple(images.shape)}: this network takes floats in [-1, 1], "
                             f"(B, 3, {size}, {size}); resize them")
        mean, std = (images.new_tensor(rgb).view(3, 1, 1) for rgb in (MEAN, STD))
        patches = self.patches(((images + 1) / 2 - mean) / std).flatten(2).transpose(1, 2)  # (B, N, dim)
        x = torch.cat([self.start.expand(len(images), 1, -1), patches], dim=1) + self.positions  # (B, 1 + N, dim)
        summary = self.norm(self.layers(self.norm_in(x))[:, 0])
        return self.projection(summary) if self.projection else summary


class CLIP(nn.Module):
    """net(images, ids) -> logits (B images, N texts): how well each text fits each picture.

    exp(logit_scale) times the cosine between them, at most 100 times (Radford et al. 2021, section 2.5). `text` and `image`
    are the two networks or their configs. ValueError where their vectors differ in width.
    """

    def __init__(self, text: CLIPText | dict, image: CLIPImage | dict):
        super().__init__()
        self.text = CLIPText(**text) if isinstance(text, dict) else text
        self.image = CLIPImage(**image) if isinstance(image, dict) else image
        self.config = {"text": self.text.config, "image": self.image.config}
        widths = [config["projection"] or config["dim"] for config in self.config.values()]
        if widths[0] != widths[1]:
            raise ValueError(f"texts become vectors of {widths[0]} numbers, pictures of {widths[1]}: give both towers the "
                             "same projection")
        self.logit_scale = nn.Parameter(torch.tensor(log(1 / 0.07)))

    @property
    def size(self) -> int:
        """Height and width of the pictures it looks at."""
        return self.image.config["size"]

    @property
    def width(self) -> int:
        """How many numbers a picture, or a text, becomes."""
        return self.image.config["projection"] or self.image.config["dim"]

    def encode_image(self, images: Tensor) -> Tensor:
        """Images (B, 3, size, size) in [-1, 1] -> vectors (B, D) of length 1."""
        return normalize(self.image(images), dim=1)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Token ids (N, L) -> vectors (N, D) of length 1."""
        return normalize(self.text(ids).pooled, dim=1)

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        return self.logit_scale.exp().clamp(max=100) * self.encode_image(images) @ self.encode_text(ids).T


def contrastive_loss(logits: Tensor, ids: Tensor | None = None) -> Tensor:
    """Which text belongs to picture i, which picture to text i? The mean of both cross-entropies, a scalar (figure 3).

    logits: (B, B), rows pictures, columns texts, pairs on the diagonal; log B is the loss of a guess. ids: (B, L), the texts'
    tokens. If given, pairs (i, j) of equal texts are left out of both questions: text j is as true of picture i as its own,
    and a network that sees no difference is right. ValueError for another shape.
    """
    batch = len(logits)
    if logits.shape != (batch, batch) or ids is not None and len(ids) != batch:
        raise ValueError(f"logits of shape {tuple(logits.shape)}{'' if ids is None else f', {len(ids)} texts'}: "
                         "give one text per picture, (B, B)")
    if ids is not None:
        twins = (ids[:, None] == ids).all(2).fill_diagonal_(False)
        logits = logits.masked_fill(twins, -torch.inf)
    own = torch.arange(batch, device=logits.device)
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


@torch.no_grad()
def zero_shot(clip: CLIP, images: Tensor, ids: Tensor) -> Tensor:
    """For each image the text that fits best, (B,) int64 out of ids (N, L): a classifier whose classes are sentences.

    No example of any class was ever labelled: hence its name (Radford et al. 2021, section 3.1).
    """
    return clip(images, ids).argmax(1)
