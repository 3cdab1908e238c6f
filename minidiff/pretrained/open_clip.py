"""Any CLIP of the open_clip package, behind the face of ours: pictures in [-1, 1] in, vectors of length 1 out."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize


class OpenCLIP(nn.Module):
    """A model of open_clip, built by name, from a config or with your own hands, as something `clip_loss` can ask.

    model: what open_clip.create_model gives, or open_clip.CLIP(**config). It knows by which means and deviations its pictures
    are shifted, both of values in [0, 1]; ours are in [-1, 1], so they are taken there first. tokenizer: texts -> ids, if any.
    Raises ValueError for a model that does not take square pictures in RGB.
    """

    def __init__(self, model: nn.Module, tokenizer=None):
        super().__init__()
        import open_clip

        told = open_clip.get_model_preprocess_cfg(model)
        size = told["size"] if isinstance(told["size"], int) else set(told["size"])
        if isinstance(size, set) and len(size) > 1:
            raise ValueError(f"this model takes pictures of {told['size']} pixels: only square ones are supported")
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        self.size = size if isinstance(size, int) else size.pop()
        self.register_buffer("mean", torch.tensor(told.get("mean", open_clip.OPENAI_DATASET_MEAN)).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(told.get("std", open_clip.OPENAI_DATASET_STD)).view(3, 1, 1))
        with torch.no_grad():
            self.width = self.encode_image(next(model.parameters()).new_zeros(1, 3, self.size, self.size)).shape[1]

    def encode_image(self, images: Tensor) -> Tensor:
        """Images (B, 3, size, size) in [-1, 1] -> vectors (B, D) of length 1. ValueError for another size."""
        if images.shape[1:] != (3, self.size, self.size):
            raise ValueError(f"images are {tuple(images.shape)}: this CLIP takes (B, 3, {self.size}, {self.size}); resize them")
        shifted = ((images + 1) / 2 - self.mean.to(images)) / self.std.to(images)
        return normalize(self.model.encode_image(shifted), dim=1)

    def encode_text(self, texts: str | list[str] | Tensor) -> Tensor:
        """Texts, or their token ids (N, L) -> vectors (N, D) of length 1. ValueError for texts without a tokenizer."""
        if not isinstance(texts, Tensor):
            if self.tokenizer is None:
                raise ValueError("this OpenCLIP has no tokenizer: give it one, or token ids")
            texts = self.tokenizer(texts)
        return normalize(self.model.encode_text(texts.to(self.mean.device)), dim=1)


def load_open_clip(name: str | Path, pretrained: str | None = None, device: str | torch.device = "cpu") -> OpenCLIP:
    """A trained CLIP of open_clip: load_open_clip("ViT-B-32-quickgelu", "openai"), an id "hf-hub:...", or a folder.

    A folder holds open_clip_config.json and weights, as open_clip.push_to_hf_hub writes them. pretrained: a tag of
    open_clip.list_pretrained(), or a file of weights; a hub id and a folder need none.
    Raises ValueError for a name that open_clip does not know, without weights, and for weights that were trained with another
    activation than the named model has ("openai" wants "-quickgelu": it runs without, and sees badly).
    """
    import open_clip

    name = str(name)
    if Path(name).is_dir():
        name = f"local-dir:{name}"
    elif ":" not in name:
        if name not in open_clip.list_models():
            raise ValueError(f'open_clip has no model "{name}", and there is no such folder: open_clip.list_models() names all')
        tags = open_clip.list_pretrained_tags_by_model(name)
        if pretrained not in tags and not Path(pretrained or "").is_file():
            raise ValueError(f'"{name}" with pretrained={pretrained!r} would see nothing: give a file of weights, or one of '
                             f"{', '.join(tags)}")
        has, learned = (config.get("quick_gelu", False) for config in
                        (open_clip.get_model_config(name), open_clip.get_pretrained_cfg(name, pretrained)))  # fmt: skip
        if pretrained in tags and has != learned:
            raise ValueError(f'"{pretrained}" was trained with another activation than "{name}" has: '
                             f'take "{name.removesuffix("-quickgelu") + "-quickgelu" * learned}"')
    model = open_clip.create_model(name, pretrained, device=device, require_pretrained=True)
    return OpenCLIP(model, open_clip.get_tokenizer(name))
