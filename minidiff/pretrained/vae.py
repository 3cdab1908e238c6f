"""The VAE of Stable Diffusion and SD3 from its folder: diffusers' AutoencoderKL, in its newest names and in those of 2022."""

from pathlib import Path

import torch

from ..nets.vae import VAE
from .configs import honoured
from .loading import Rules, load_network

CLASSES = ("AutoencoderKL", "VAE", "Pixels")

RULES: Rules = [
    (r"(down|up)_blocks", "stages"),
    (r"(down|up)samplers\.0", "resize"),
    (r"mid_block\.resnets\.0", "mid.0"),
    (r"mid_block\.attentions\.0", "mid.1"),
    (r"mid_block\.resnets\.1", "mid.2"),
    (r"norm1", "first.0"),
    (r"conv1", "first.2"),
    (r"norm2", "second.0"),
    (r"conv2", "second.2"),
    (r"conv_shortcut", "shortcut"),
    (r"conv_norm_out", "out.0"),
    (r"conv_out", "out.2"),
    (r"group_norm", "norm"),
    (r"\.(to_q|query)\.", ".attention.to_q."),  # the second is what files of 2022 call it
    (r"\.(to_k|key)\.", ".attention.to_k."),
    (r"\.(to_v|value)\.", ".attention.to_v."),
    (r"\.(to_out\.0|proj_attn)\.", ".attention.to_out."),
]

DEFAULTS = {  # what diffusers takes for a key that config.json leaves out or has as null
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": (64,), "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",), "norm_num_groups": 32,
    "mid_block_add_attention": True, "use_quant_conv": True, "use_post_quant_conv": True,
    "scaling_factor": 0.18215, "shift_factor": 0.0,
}  # fmt: skip
FIXED = {"act_fn": ("silu",)}
FREE = {"sample_size",  # the size it was trained at binds nobody: every size that divides by the stride will do
        "force_upcast"}  # advice to compute in float32: here the caller's dtype decides


def options(config: dict) -> dict:
    """config.json of an AutoencoderKL -> the arguments of VAE. Raises ValueError for a key or value that VAE cannot honour."""
    c = honoured({key: value for key, value in config.items() if value is not None}, DEFAULTS, FIXED, FREE)
    stages = len(c["block_out_channels"])
    only = {"down_block_types": ["DownEncoderBlock2D"] * stages, "up_block_types": ["UpDecoderBlock2D"] * stages,
            "out_channels": c["in_channels"], "use_post_quant_conv": c["use_quant_conv"]}  # fmt: skip
    for key, value in only.items():
        asked = list(c[key]) if isinstance(value, list) else c[key]
        if asked != value:
            raise ValueError(f"config.json asks for {key} = {asked!r}: beside its other values this VAE would have {value!r}")
    return {"in_channels": c["in_channels"], "latent_channels": c["latent_channels"], "layers": c["layers_per_block"],
            "channels": tuple(c["block_out_channels"]), "groups": c["norm_num_groups"],
            "attention": c["mid_block_add_attention"], "quant_conv": c["use_quant_conv"],
            "scale": c["scaling_factor"], "shift": c["shift_factor"]}  # fmt: skip


def load_vae(folder: str | Path, dtype: torch.dtype | None = torch.float32, device: str = "cpu",
             variant: str | None = None) -> VAE:  # fmt: skip
    """The VAE of a folder that holds the config.json and safetensors of an AutoencoderKL, or our own, in eval mode.

    FileNotFoundError or ValueError, as in `load_network`, also for what a config asks and this VAE is not.
    """
    return load_network(folder, lambda config: VAE(**options(config)), RULES, CLASSES, dtype, device, variant)
