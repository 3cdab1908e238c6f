"""CLIP from its folder: transformers' CLIPModel, whole or its text half, and the text encoder alone, CLIPTextModel."""

from pathlib import Path

import torch

from ..nets.clip import ACTIVATIONS, CLIPText
from ..nets.clip_image import CLIP, MEAN, STD
from .folders import read_folder_json
from .loading import load_network

CLASSES = ("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPModel", "CLIPText", "CLIP")

WHOLE = [  # names of a whole CLIPModel
    (r"position_ids$", None),  # 0, 1, 2, ...: files of before 2024 hold it, and it is no weight
    (r"^text_projection", "text.projection"),
    (r"^visual_projection", "image.projection"),
    (r"^text_model\.", "text."),
    (r"^vision_model\.", "image."),
    (r"embeddings\.token_embedding", "tokens"),
    (r"embeddings\.position_embedding\.weight", "positions"),
    (r"embeddings\.class_embedding", "start"),
    (r"embeddings\.patch_embedding", "patches"),
    (r"encoder\.", ""),
    (r"self_attn\.(q|k|v|out)_proj", r"attention.to_\1"),
    (r"mlp\.fc1", "mlp_in"),
    (r"mlp\.fc2", "mlp_out"),
    (r"\.layer_norm(\d)", r".norm_\1"),
    (r"pre_layrnorm", "norm_in"),  # so it is spelt, in every file
    (r"(final_layer_norm|post_layernorm)", "norm"),
]

RULES = [  # of a text encoder alone
    (r"^(vision_model|visual_projection|logit_scale)", None),  # the half of a CLIPModel that looks at pictures
    *WHOLE,
    (r"^text\.", ""),  # newest files of a CLIPTextModel do without from the beginning
]

TEXT = {  # what a config.json leaves out means this to transformers
    "vocab_size": 49408, "max_position_embeddings": 77, "hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8,
    "intermediate_size": 2048, "hidden_act": "quick_gelu", "projection_dim": 512, "eos_token_id": 49407, "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
}  # fmt: skip

IMAGE = {
    "image_size": 224, "patch_size": 32, "num_channels": 3, "hidden_size": 768, "num_hidden_layers": 12,
    "num_attention_heads": 12, "intermediate_size": 3072, "hidden_act": "quick_gelu", "projection_dim": 512,
    "layer_norm_eps": 1e-5, "attention_dropout": 0.0,
}  # fmt: skip


def options(config: dict) -> dict:
    """config.json of a CLIPTextModel, a CLIPTextModelWithProjection or a CLIPModel -> keyword arguments of CLIPText.

    Raises ValueError naming key and value for what this encoder cannot be.
    """
    c = _half(config, "text", TEXT)
    _refuse("text", c, eos_token_id=isinstance(c["eos_token_id"], int))
    return {
        "vocab": c["vocab_size"],
        "length": c["max_position_embeddings"],
        **_common(c),
        "projection": None if c.get("architectures") == ["CLIPTextModel"] else c["projection_dim"],
        "eos": None if c["eos_token_id"] == 2 else c["eos_token_id"],  # 2 was a mistake of many files: they mean the highest id
    }


def image_options(config: dict) -> dict:
    """config.json of a CLIPModel -> keyword arguments of CLIPImage. ValueError as above."""
    c = _half(config, "vision", IMAGE)
    _refuse("image", c, num_channels=c["num_channels"] == 3, image_size=isinstance(c["image_size"], int),
            patch_size=isinstance(c["patch_size"], int))  # fmt: skip
    return {"size": c["image_size"], "patch": c["patch_size"], **_common(c), "projection": c["projection_dim"]}


def load_clip_text(
    folder: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu", variant: str | None = None
) -> CLIPText:
    """The text encoder in a folder of config.json and safetensors, on `device`, ready to use and not to train (eval mode).

    Raises FileNotFoundError for a missing file; ValueError for a config this encoder cannot be, and for weights that are
    missing, unexpected or of another shape.
    """
    net = load_network(folder, lambda config: CLIPText(**options(config)), RULES, CLASSES, dtype, device, variant)
    return net.text if isinstance(net, CLIP) else net


def load_clip(folder: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu", variant: str | None = None) -> CLIP:
    """Both towers of a CLIPModel's folder, in eval mode. Pictures go in in [-1, 1], of the size in `clip.image.config`.

    Raises FileNotFoundError and ValueError as load_clip_text, and ValueError where preprocessor_config.json shifts pictures
    by other means than CLIP's.
    """
    about = Path(folder) / "preprocessor_config.json"
    seen = read_folder_json(about) if about.is_file() else {}
    for key, ours in {"image_mean": MEAN, "image_std": STD}.items():
        if any(abs(a - b) > 1e-6 for a, b in zip(seen.get(key, ours), ours, strict=True)):
            raise ValueError(f"{about} has {key} = {seen[key]}, which this image encoder cannot have: CLIP's is {list(ours)}")
    return load_network(folder, _both, WHOLE, ("CLIPModel", "CLIP"), dtype, device, variant)


def _both(config: dict) -> CLIP:
    return CLIP(options(config), image_options(config))


def _half(config: dict, name: str, defaults: dict) -> dict:
    """What a config says of one tower. A whole CLIPModel names the projection outside, and the oldest say things twice."""
    return defaults | (config.get(f"{name}_config") or {}) | (config.get(f"{name}_config_dict") or {}) | config


def _common(c: dict) -> dict:
    return {"dim": c["hidden_size"], "layers": c["num_hidden_layers"], "heads": c["num_attention_heads"],
            "mlp": c["intermediate_size"], "activation": c["hidden_act"]}  # fmt: skip


def _refuse(tower: str, c: dict, **can: bool) -> None:
    can |= {"hidden_act": c["hidden_act"] in ACTIVATIONS, "layer_norm_eps": c["layer_norm_eps"] == 1e-5,
            "attention_dropout": c["attention_dropout"] == 0}  # fmt: skip
    for key, yes in can.items():
        if not yes:
            raise ValueError(f"config.json has {key} = {c[key]!r}, which this {tower} encoder cannot have")
