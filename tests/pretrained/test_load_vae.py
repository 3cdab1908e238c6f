import json

import pytest
import torch
from safetensors.torch import save_file

from minidiff.nets.vae import VAE
from minidiff.pretrained.loading import rename
from minidiff.pretrained.vae import RULES, load_vae, options

SD1 = {  # the config.json of Stable Diffusion 1.5, which has no scaling_factor
    "_class_name": "AutoencoderKL", "_diffusers_version": "0.6.0", "act_fn": "silu", "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4, "in_channels": 3, "latent_channels": 4, "layers_per_block": 2,
    "norm_num_groups": 32, "out_channels": 3, "sample_size": 512, "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
SD3 = {**SD1, "latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609, "use_quant_conv": False,
       "use_post_quant_conv": False, "mid_block_add_attention": True, "force_upcast": True, "latents_mean": None,
       "latents_std": None, "sample_size": 1024}  # fmt: skip


def test_the_config_of_stable_diffusion_is_our_default():
    with torch.device("meta"):
        assert VAE(**options(SD1)).config == VAE().config
        sd3 = VAE(**options(SD3))
    assert (sd3.scale, sd3.shift, sd3.config["latent_channels"], sd3.config["quant_conv"]) == (1.5305, 0.0609, 16, False)
    assert options({**SD1, "shift_factor": None, "scaling_factor": None}) == options(SD1)


@pytest.mark.parametrize("key, value", [
    ("act_fn", "gelu"), ("out_channels", 1), ("latents_mean", [0.0, 1.0]), ("latents_std", [1.0, 1.0]),
    ("use_post_quant_conv", False), ("down_block_types", ["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"]),
    ("up_block_types", ["UpDecoderBlock2D"] * 3), ("block_out_channels", [128, 256]), ("norm_type", "spatial"),
])  # fmt: skip
def test_what_we_cannot_be_is_refused_by_name(key, value):
    named = "down_block_types" if key == "block_out_channels" else key
    with pytest.raises(ValueError, match=f"config.json asks for {named} = ") as error:
        options({**SD1, key: value})
    assert key == "block_out_channels" or repr(value) in str(error.value)


@pytest.mark.parametrize("theirs, ours", [
    ("encoder.conv_in.bias", "encoder.conv_in.bias"),
    ("encoder.down_blocks.1.resnets.0.norm1.weight", "encoder.stages.1.resnets.0.first.0.weight"),
    ("encoder.down_blocks.1.resnets.0.conv_shortcut.bias", "encoder.stages.1.resnets.0.shortcut.bias"),
    ("encoder.down_blocks.0.downsamplers.0.conv.weight", "encoder.stages.0.resize.conv.weight"),
    ("decoder.up_blocks.2.resnets.2.conv2.weight", "decoder.stages.2.resnets.2.second.2.weight"),
    ("decoder.up_blocks.2.upsamplers.0.conv.bias", "decoder.stages.2.resize.conv.bias"),
    ("decoder.mid_block.resnets.1.norm2.bias", "decoder.mid.2.second.0.bias"),
    ("decoder.mid_block.attentions.0.group_norm.weight", "decoder.mid.1.norm.weight"),
    ("decoder.mid_block.attentions.0.to_out.0.weight", "decoder.mid.1.attention.to_out.weight"),
    ("decoder.mid_block.attentions.0.proj_attn.weight", "decoder.mid.1.attention.to_out.weight"),
    ("encoder.mid_block.attentions.0.query.bias", "encoder.mid.1.attention.to_q.bias"),
    ("encoder.conv_norm_out.weight", "encoder.out.0.weight"),
    ("encoder.conv_out.weight", "encoder.out.2.weight"),
    ("post_quant_conv.weight", "post_quant_conv.weight"),
])  # fmt: skip
def test_names(theirs, ours):
    with torch.device("meta"):
        assert ours in VAE().state_dict()
    assert rename(theirs, RULES) == ours


def test_a_folder_that_does_not_fit_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**SD1, "block_out_channels": [32, 32, 32, 32]}))
    save_file({"quant_conv.bias": torch.zeros(8)}, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match="missing decoder.conv_in.bias"):
        load_vae(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**SD1, "_class_name": "AutoencoderTiny"}))
    with pytest.raises(ValueError, match="AutoencoderTiny"):
        load_vae(tmp_path)
