"""CLIP's text encoder from its folder: transformers' CLIPTextModel, with or without projection, or a CLIPModel's text half."""

from pathlib import Path

import torch

from ..nets.clip import ACTIVATIONS, CLIPText
from .loading import load_network

CLASSES = ("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPModel")

RULES = [
    (r"position_ids$", None),  # 0, 1, 2, ...: files of before 2024 hold it, and it is no weight
    (r"^(vision_model|visual_projection|logit_scale)", None),  # the half of a CLIPModel that looks at pictures
    (r"^text_model\.", ""),  # newest files of a CLIPTextModel do without
    (r"^embeddings\.token_embedding", "tokens"),
    (r"^embeddings\.position_embedding\.weight", "positions"),
    (r"^encoder\.", ""),
    (r"self_attn\.(q|k|v|out)_proj", r"attention.to_\1"),
    (r"mlp\.fc1", "mlp_in"),
    (r"mlp\.fc2", "mlp_out"),
    (r"\.layer_norm(\d)", r".norm_\1"),
    (r"^final_layer_norm", "norm"),
    (r"^text_projection", "projection"),
]

DEFAULTS = {  # what a config.json leaves out means this to transformers
    "vocab_size": 49408, "max_position_embeddings": 77, "hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8,
    "intermediate_size": 2048, "hidden_act": "quick_gelu", "projection_dim": 512, "eos_token_id": 49407, "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
}  # fmt: skip


def options(config: dict) -> dict:
    """config.json of a CLIPTextModel, a CLIPTextModelWithProjection or a CLIPModel -> keyword arguments of CLIPText.

    Raises ValueError naming key and value for what this encoder cannot be.
    """
    c = DEFAULTS | (config.get("text_config") or {}) | config  # the projection of a whole CLIPModel is named outside
    can = {"hidden_act": c["hidden_act"] in ACTIVATIONS, "layer_norm_eps": c["layer_norm_eps"] == 1e-5,
           "attention_dropout": c["attention_dropout"] == 0, "eos_token_id": isinstance(c["eos_token_id"], int)}  # fmt: skip
    for key, yes in can.items():
        if not yes:
            raise ValueError(f"config.json has {key} = {c[key]!r}, which this text encoder cannot have")
    return {
        "vocab": c["vocab_size"],
        "length": c["max_position_embeddings"],
        "dim": c["hidden_size"],
        "layers": c["num_hidden_layers"],
        "heads": c["num_attention_heads"],
        "mlp": c["intermediate_size"],
        "activation": c["hidden_act"],
        "projection": None if c.get("architectures") == ["CLIPTextModel"] else c["projection_dim"],
        "eos": None if c["eos_token_id"] == 2 else c["eos_token_id"],  # 2 was a mistake of many files: they mean the highest id
    }


def load_clip_text(
    folder: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu", variant: str | None = None
) -> CLIPText:
    """The text encoder in a folder of config.json and safetensors, on `device`, ready to use and not to train (eval mode).

    Raises FileNotFoundError for a missing file; ValueError for a config this encoder cannot be, and for weights that are
    missing, unexpected or of another shape.
    """
    return load_network(folder, lambda config: CLIPText(**options(config)), RULES, CLASSES, dtype, device, variant)
