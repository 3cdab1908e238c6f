import json

import pytest
import torch
from safetensors.torch import save_file

from minidiff.nets import MMDiT
from minidiff.pretrained import load_mmdit
from minidiff.pretrained.loading import rename
from minidiff.pretrained.mmdit import RULES, adapt, lines, options

SD3 = {  # the config.json of SD3-medium
    "_class_name": "SD3Transformer2DModel", "_diffusers_version": "0.29.0.dev0", "attention_head_dim": 64,
    "caption_projection_dim": 1536, "in_channels": 16, "joint_attention_dim": 4096, "num_attention_heads": 24, "num_layers": 24,
    "out_channels": 16, "patch_size": 2, "pooled_projection_dim": 2048, "pos_embed_max_size": 192, "sample_size": 128,
}  # fmt: skip
SD35 = {**SD3, "dual_attention_layers": list(range(13)), "pos_embed_max_size": 384, "qk_norm": "rms_norm"}
TINY = {**SD3, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2, "caption_projection_dim": 16,
        "joint_attention_dim": 6, "pooled_projection_dim": 5, "pos_embed_max_size": 3}  # fmt: skip


def test_the_config_of_sd3_is_our_default():
    with torch.device("meta"):
        assert MMDiT(**options(SD3)).config == MMDiT().config
        medium = MMDiT(**options(SD35))
    assert (medium.config["size"], medium.config["qk_norm"], medium.config["dual"]) == (768, True, tuple(range(13)))
    assert options({**SD3, "qk_norm": None, "dual_attention_layers": []}) == options(SD3)
    assert options({**SD3, "in_channels": 33, "out_channels": None})["out_channels"] == 33


@pytest.mark.parametrize("key, value", [
    ("qk_norm", "layer_norm"), ("caption_projection_dim", 1152), ("pos_embed_type", "learned"), ("num_attention_heads", 18),
])  # fmt: skip
def test_what_we_cannot_be_is_refused_by_name(key, value):
    named = "caption_projection_dim" if key == "num_attention_heads" else key
    with pytest.raises(ValueError, match=f"config.json asks for {named} = "):
        options({**SD3, key: value})


@pytest.mark.parametrize("theirs, ours", [
    ("pos_embed.proj.weight", "embed.project.weight"),
    ("time_text_embed.timestep_embedder.linear_1.bias", "time.linear_1.bias"),
    ("time_text_embed.text_embedder.linear_2.weight", "pooled.2.weight"),
    ("context_embedder.weight", "context.weight"),
    ("transformer_blocks.0.norm1.linear.weight", "blocks.0.image_modulation.linear.weight"),
    ("transformer_blocks.1.norm1_context.linear.bias", "blocks.1.text_modulation.linear.bias"),
    ("transformer_blocks.1.attn.to_q.weight", "blocks.1.attention.image.to_q.weight"),
    ("transformer_blocks.1.attn.to_out.0.weight", "blocks.1.attention.image.to_out.weight"),
    ("transformer_blocks.1.attn.add_v_proj.bias", "blocks.1.attention.text.to_v.bias"),
    ("transformer_blocks.0.attn.to_add_out.bias", "blocks.0.attention.text.to_out.bias"),
    ("transformer_blocks.0.attn.norm_q.weight", "blocks.0.attention.image.norm_q.weight"),
    ("transformer_blocks.0.attn.norm_added_k.weight", "blocks.0.attention.text.norm_k.weight"),
    ("transformer_blocks.0.attn2.to_out.0.bias", "blocks.0.image_attention.to_out.bias"),
    ("transformer_blocks.0.attn2.norm_k.weight", "blocks.0.image_attention.norm_k.weight"),
    ("transformer_blocks.0.ff.net.0.proj.weight", "blocks.0.image_mlp.0.weight"),
    ("transformer_blocks.0.ff_context.net.2.bias", "blocks.0.text_mlp.2.bias"),
    ("norm_out.linear.weight", "final.modulation.linear.weight"),
    ("proj_out.bias", "final.linear.bias"),
])  # fmt: skip
def test_names(theirs, ours):
    with torch.device("meta"):
        assert ours in MMDiT(**options({**TINY, "qk_norm": "rms_norm", "dual_attention_layers": [0]})).state_dict()
    assert rename(theirs, RULES) == ours


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_positions_come_from_the_file(generator, dtype):
    """Whatever their numbers are, as long as a place is its column and its row."""
    columns, rows = torch.randn(2, 5, 8, generator=generator).to(dtype)
    places = torch.cat([columns.expand(5, 5, -1), rows[:, None].expand(5, 5, -1)], 2).view(1, 25, 16)
    tensors = {"pos_embed.pos_embed": places}
    adapt(tensors, depth=2)
    assert list(tensors) == ["embed.positions"] and tensors["embed.positions"].equal(torch.stack([columns, rows]))
    for bad in (places.flip(2), places[:, :24], places + (torch.arange(25) == 7)[:, None]):
        with pytest.raises(ValueError, match="more of a place than its column and its row"):
            lines(bad.contiguous())


def test_shift_comes_before_scale_where_there_is_no_gate():
    halves = torch.tensor([1.0, 1, 2, 2])  # in the file: scale, shift
    names = ["norm_out.linear.bias", "transformer_blocks.1.norm1_context.linear.bias"]
    others = ["transformer_blocks.0.norm1_context.linear.bias", "transformer_blocks.11.norm1_context.linear.bias"]
    tensors = dict.fromkeys(names + others, halves)
    adapt(tensors, depth=2)
    assert all(tensors[name].equal(torch.tensor([2.0, 2, 1, 1])) for name in names)
    assert all(tensors[name].equal(halves) for name in others)


def test_a_folder_that_does_not_fit_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    save_file({"proj_out.bias": torch.zeros(64)}, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match="missing blocks.0.attention.image.to_k.bias"):
        load_mmdit(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**TINY, "_class_name": "FluxTransformer2DModel"}))
    with pytest.raises(ValueError, match="FluxTransformer2DModel"):
        load_mmdit(tmp_path)
    with pytest.raises(FileNotFoundError, match="model_index.json"):
        load_mmdit(tmp_path / "nowhere")
