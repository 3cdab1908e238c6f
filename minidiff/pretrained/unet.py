"""U-Nets of diffusers: Stable Diffusion 1 and 2 with their inpainting and depth variants, and pixel DDPMs."""

from pathlib import Path

import torch

from ..nets import UNet
from .configs import honoured
from .loading import Rules, load_network

CLASSES = ("UNet2DConditionModel", "UNet2DModel", "UNet")

RESNET: Rules = [
    (r"resnet\.norm1\.", "resnet.first.0."),
    (r"resnet\.conv1\.", "resnet.first.2."),
    (r"resnet\.time_emb_proj\.", "resnet.emb."),
    (r"resnet\.norm2\.", "resnet.second.0."),
    (r"resnet\.conv2\.", "resnet.second.2."),
    (r"resnet\.conv_shortcut\.", "resnet.shortcut."),
]
ATTENTION: Rules = [  # of pixel models, whose first files had other names
    (r"\.group_norm\.", ".norm."),
    (r"\.query\.", ".to_q."),
    (r"\.key\.", ".to_k."),
    (r"\.value\.", ".to_v."),
    (r"\.(to_out\.0|proj_attn)\.", ".to_out."),
    (r"\.attention\.to_", ".attention.attention.to_"),
]
RULES: Rules = [
    (r"^time_embedding\.", "time."),
    (r"^class_embedding\.", "label.table."),
    (r"^conv_norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
    (r"^mid_block\.(resnet|attention)s\.0\.", r"mid.layer.\1."),
    (r"^mid_block\.resnets\.1\.", "mid.resnet."),
    (r"^(down|up)_blocks\.", r"\1."),
    (r"\.(down|up)samplers\.0\.", r".\1."),
    (r"\.(resnet|attention)s\.(\d+)\.", r".layers.\2.\1."),
    (r"\.transformer_blocks\.", ".blocks."),
    (r"(?<=blocks\.\d)\.norm(\d)\.", r".norm_\1."),
    (r"\.attn1\.", ".self_attention."),
    (r"\.attn2\.", ".cross_attention."),
    (r"\.ff\.net\.0\.proj\.", ".feed_forward.widen."),
    (r"\.ff\.net\.2\.", ".feed_forward.narrow."),
    *RESNET,
    *ATTENTION,
]

FIXED = {  # what this UNet is; a config that says otherwise describes another network
    "act_fn": ("silu",), "mid_block_scale_factor": (1,), "resnet_time_scale_shift": ("default",),
    "attention_type": ("default",), "time_embedding_type": ("positional",), "downsample_padding": (0, 1),
    "downsample_type": ("conv",), "upsample_type": ("conv",), "conv_in_kernel": (3,), "conv_out_kernel": (3,),
    "resnet_out_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D"),
}  # fmt: skip
FREE = {  # what needs no honouring: the size is the caller's, precision is PyTorch's, dropout ends with training
    "sample_size", "upcast_attention", "dropout", "num_train_timesteps", "addition_embed_type_num_heads",
}  # fmt: skip
DEFAULTS = {
    "UNet2DConditionModel": {
        "in_channels": 4, "out_channels": 4, "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 1280,
        "down_block_types": 3 * ("CrossAttnDownBlock2D",) + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + 3 * ("CrossAttnUpBlock2D",), "transformer_layers_per_block": 1,
        "use_linear_projection": False,
    },
    "UNet2DModel": {
        "in_channels": 3, "out_channels": 3, "block_out_channels": (224, 448, 672, 896), "add_attention": True,
        "down_block_types": ("DownBlock2D",) + 3 * ("AttnDownBlock2D",),
        "up_block_types": 3 * ("AttnUpBlock2D",) + ("UpBlock2D",),
    },
}  # fmt: skip
BOTH = {"layers_per_block": 2, "norm_num_groups": 32, "norm_eps": 1e-5, "attention_head_dim": 8, "freq_shift": 0,
        "flip_sin_to_cos": True, "downsample_padding": 1, "num_class_embeds": None}  # fmt: skip


def load_unet(folder: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu", variant: str | None = None) -> UNet:
    """The U-Net of a folder that holds the config.json and safetensors of a UNet2DConditionModel or UNet2DModel, or our own.

    FileNotFoundError or ValueError, as in `load_network`, also for what a config asks and this UNet is not.
    """
    return load_network(folder, lambda config: UNet(**options(config)), RULES, CLASSES, dtype, device, variant)


def options(config: dict) -> dict:
    """config.json -> the arguments of UNet. Raises ValueError for a key or value that UNet cannot honour."""
    reads_text = config["_class_name"] == "UNet2DConditionModel"
    c = honoured(config, BOTH | DEFAULTS[config["_class_name"]], FIXED, FREE)
    channels, kind = tuple(c["block_out_channels"]), "CrossAttn" if reads_text else "Attn"
    attention = tuple(name == f"{kind}DownBlock2D" for name in c["down_block_types"])
    for way, answer in (("Down", attention), ("Up", attention[::-1])):
        expected = [f"{kind if attends else ''}{way}Block2D" for attends in answer]
        if list(c[f"{way.lower()}_block_types"]) != expected:
            raise ValueError(f"{way.lower()}_block_types is {c[f'{way.lower()}_block_types']}: this UNet would have {expected}")
    if not isinstance(c["layers_per_block"], int) or not isinstance(c.get("transformer_layers_per_block", 1), int):
        raise ValueError("layers_per_block and transformer_layers_per_block: this UNet has one number for all stages")
    size = c["attention_head_dim"]
    if reads_text:  # diffusers kept a slip for ever: here attention_head_dim is the number of heads
        heads = tuple(size) if isinstance(size, list | tuple) else size
    else:
        heads = tuple(width // (size or width) for width in channels)
    arguments = {"in_channels": c["in_channels"], "out_channels": c["out_channels"], "channels": channels,
                 "attention": attention, "layers": c["layers_per_block"], "num_classes": c["num_class_embeds"],
                 "null_class": False, "heads": heads, "groups": c["norm_num_groups"], "eps": c["norm_eps"],
                 "freq_shift": c["freq_shift"], "sin_first": not c["flip_sin_to_cos"],
                 "asymmetric": c["downsample_padding"] == 0}  # fmt: skip
    if reads_text:
        return arguments | {"context_dim": c["cross_attention_dim"], "depth": c["transformer_layers_per_block"],
                            "linear": c["use_linear_projection"]}  # fmt: skip
    return arguments | {"attention_bias": True, "mid_attention": c["add_attention"]}
