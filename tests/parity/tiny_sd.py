"""Whole Stable Diffusions of diffusers, tiny, with random weights, as its own save_pretrained writes them to a folder."""

import gzip
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from pairs import shaken
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging

logging.disable_progress_bar()
SCHEDULER = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
             "steps_offset": 1}  # fmt: skip


def vocabulary(folder: Path) -> Path:
    """vocab.json and merges.txt of CLIP, from the file that ships inside open-clip-torch."""
    import open_clip

    packed = (Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    merges = gzip.decompress(packed).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    joined = ("".join(merge.split()) for merge in merges)
    tokens = [*letters, *(letter + "</w>" for letter in letters), *joined, "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    return folder


def pipeline(folder: Path, style: int = 1, in_channels: int = 4):
    """Their pipeline of Stable Diffusion 1 or 2, built, shaken and saved to `folder`."""
    second = style == 2
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=in_channels, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24, attention_head_dim=(2, 4) if second else 4, use_linear_projection=second)  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(16, 32), latent_channels=4, layers_per_block=1, norm_num_groups=8, sample_size=16,
        down_block_types=2 * ("DownEncoderBlock2D",), up_block_types=2 * ("UpDecoderBlock2D",))  # fmt: skip
    text = CLIPTextModel(CLIPTextConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=3 if second else 2, num_attention_heads=2,
        hidden_act="gelu" if second else "quick_gelu", projection_dim=24))  # fmt: skip
    words = vocabulary(folder.parent / "vocabulary")
    tokenizer = CLIPTokenizer(str(words / "vocab.json"), str(words / "merges.txt"), model_max_length=77,
                              **({"pad_token": "!"} if second else {}))  # fmt: skip
    scheduler = PNDMScheduler(**SCHEDULER, skip_prk_steps=True, set_alpha_to_one=False,
                              prediction_type="v_prediction" if second else "epsilon")  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae=shaken(vae, seed=1), text_encoder=shaken(text, seed=2), tokenizer=tokenizer, unet=shaken(unet, seed=3),
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False)  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder)
    return pipe


def pictures(n=1, size=16, seed=5):
    """Random smooth pictures (n, 3, size, size) in [-1, 1]."""
    noise = torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, (size, size), mode="bicubic").clamp(-1, 1)
