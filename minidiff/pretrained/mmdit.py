"""The transformer of SD3 and SD 3.5 from its folder: diffusers' SD3Transformer2DModel."""

from pathlib import Path

import torch
from torch import Tensor

from ..nets import MMDiT
from .configs import honoured
from .folders import Stored, read_config, read_weights
from .loading import Rules, Unfilled, fill

CLASSES = ("SD3Transformer2DModel",)

RULES: Rules = [
    (r"^pos_embed\.proj\.", "embed.project."),
    (r"^time_text_embed\.timestep_embedder\.", "time."),
    (r"^time_text_embed\.text_embedder\.linear_1\.", "pooled.0."),
    (r"^time_text_embed\.text_embedder\.linear_2\.", "pooled.2."),
    (r"^context_embedder\.", "context."),
    (r"^norm_out\.", "final.modulation."),
    (r"^proj_out\.", "final.linear."),
    (r"^transformer_blocks\.", "blocks."),
    (r"\.norm1\.", ".image_modulation."),
    (r"\.norm1_context\.", ".text_modulation."),
    (r"\.ff\.net\.0\.proj\.", ".image_mlp.0."),
    (r"\.ff\.net\.2\.", ".image_mlp.2."),
    (r"\.ff_context\.net\.0\.proj\.", ".text_mlp.0."),
    (r"\.ff_context\.net\.2\.", ".text_mlp.2."),
    (r"\.attn2\.", ".image_attention."),
    (r"\.attn\.add_([qkv])_proj\.", r".attention.text.to_\1."),
    (r"\.attn\.to_add_out\.", ".attention.text.to_out."),
    (r"\.attn\.norm_added_([qk])\.", r".attention.text.norm_\1."),
    (r"\.attn\.", ".attention.image."),
    (r"\.to_out\.0\.", ".to_out."),
]

DEFAULTS = {  # what diffusers takes for a key that config.json leaves out
    "patch_size": 2, "in_channels": 16, "num_layers": 18, "attention_head_dim": 64, "num_attention_heads": 18,
    "joint_attention_dim": 4096, "caption_projection_dim": 1152, "pooled_projection_dim": 2048, "out_channels": 16,
    "pos_embed_max_size": 96, "dual_attention_layers": (), "qk_norm": None,
}  # fmt: skip
FIXED = {"qk_norm": (None, "rms_norm")}
FREE = {"sample_size"}  # the size it was trained at decided where the positions lie, and those are in the file


def options(config: dict) -> dict:
    """config.json -> the arguments of MMDiT. Raises ValueError for a key or value that MMDiT cannot honour."""
    c = honoured(config, DEFAULTS, FIXED, FREE)
    dim = c["num_attention_heads"] * c["attention_head_dim"]
    if c["caption_projection_dim"] != dim:
        raise ValueError(f"config.json asks for caption_projection_dim = {c['caption_projection_dim']}: here text tokens are "
                         f"as wide as those of the image, num_attention_heads * attention_head_dim = {dim}")
    return {"in_channels": c["in_channels"], "out_channels": c["out_channels"] or c["in_channels"],
            "size": c["pos_embed_max_size"] * c["patch_size"], "patch": c["patch_size"], "dim": dim, "depth": c["num_layers"],
            "heads": c["num_attention_heads"], "context_dim": c["joint_attention_dim"],
            "pooled_dim": c["pooled_projection_dim"], "qk_norm": c["qk_norm"] is not None,
            "dual": tuple(c["dual_attention_layers"])}  # fmt: skip


def adapt(tensors: dict[str, Tensor | Stored], depth: int) -> None:
    """Change in place what differs in more than its name. Raises ValueError for positions that are no column plus row.

    Positions: the file has a vector for every place, and its numbers count and not our formula, for no config says how far
    apart places were in training. One row and one column of them say it all, one megabyte out of SD3's 226.
    Modulations without a gate: diffusers has the scale first, and we the shift, as everywhere.
    """
    if "pos_embed.pos_embed" in tensors:
        tensors["embed.positions"] = lines(tensors.pop("pos_embed.pos_embed").to("cpu"))
    for layer in ("norm_out", f"transformer_blocks.{depth - 1}.norm1_context"):
        for name in (f"{layer}.linear.weight", f"{layer}.linear.bias"):
            if name in tensors:
                scale, shift = tensors[name].to("cpu").chunk(2)
                tensors[name] = torch.cat([shift, scale])


def lines(places: Tensor) -> Tensor:
    """A vector for every place, (1, n * n, dim), as one for every column and one for every row, (2, n, dim / 2)."""
    n = round(places.shape[1] ** 0.5)
    if n * n == places.shape[1]:
        columns, rows = places.view(n, n, -1).chunk(2, dim=2)
        if max((columns - columns[:1]).abs().max(), (rows - rows[:, :1]).abs().max()) < 1e-3:  # float16 rounds by half of it
            return torch.stack([columns[0], rows[:, 0]])
    raise ValueError("pos_embed.pos_embed says more of a place than its column and its row: these are not SD3's positions")


def load_mmdit(folder: str | Path, dtype: torch.dtype | None = torch.float32, device: str = "cpu",
               variant: str | None = None) -> MMDiT:  # fmt: skip
    """The MMDiT of a folder that holds the config.json and safetensors of an SD3Transformer2DModel, in eval mode.

    FileNotFoundError or ValueError, as in `load_network`, also for what a config asks and this MMDiT is not.
    """
    arguments = options(read_config(Path(folder), CLASSES))
    with torch.device("meta"), Unfilled():  # as in load_network
        net = MMDiT(**arguments)
    tensors = read_weights(Path(folder), variant)
    adapt(tensors, arguments["depth"])
    fill(net, tensors, RULES, folder, dtype, device)
    return net.eval()
