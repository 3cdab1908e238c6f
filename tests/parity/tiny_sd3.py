"""Whole Stable Diffusion 3s of diffusers, tiny, with random weights, as its own save_pretrained writes them to a folder."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from pairs import shaken
from tiny_sd import vocabulary
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer


def pipeline_3(folder: Path, style: float = 3):
    """Their pipeline of Stable Diffusion 3 or 3.5 without T5, built, shaken and saved to `folder`."""
    torch.manual_seed(1)
    second = {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)} if style == 3.5 else {}
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, num_layers=3, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=72, caption_projection_dim=32, pooled_projection_dim=44, out_channels=16, pos_embed_max_size=12,
        **second)  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(16, 32), latent_channels=16, layers_per_block=1, norm_num_groups=8, sample_size=16,
        down_block_types=2 * ("DownEncoderBlock2D",), up_block_types=2 * ("UpDecoderBlock2D",), scaling_factor=1.5305,
        shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False)  # fmt: skip
    first, other = (CLIPTextModelWithProjection(CLIPTextConfig(  # widths of their own, to be told apart, and T5's wider yet
        hidden_size=width, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, hidden_act=act,
        projection_dim=projection)) for width, act, projection in ((24, "quick_gelu", 20), (32, "gelu", 24)))  # fmt: skip
    words = vocabulary(folder.parent / "vocabulary")
    tokenizers = (CLIPTokenizer(str(words / "vocab.json"), str(words / "merges.txt"), model_max_length=77, pad_token=pad)
                  for pad in ("<|endoftext|>", "!"))  # fmt: skip
    pipe = StableDiffusion3Pipeline(
        transformer=shaken(transformer, seed=1), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=shaken(vae, seed=2),
        text_encoder=shaken(first, seed=3), text_encoder_2=shaken(other, seed=4), tokenizer=next(tokenizers),
        tokenizer_2=next(tokenizers), text_encoder_3=None, tokenizer_3=None)  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder)
    return pipe


@torch.no_grad()
def their_picture(pipe, *args, **options):
    """A picture (B, 3, H, W) in [-1, 1] by their pipeline."""
    return 2 * pipe(*args, output_type="pt", **options).images - 1
