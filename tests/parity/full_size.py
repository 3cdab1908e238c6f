"""Stable Diffusion 1.5 at full size, random weights in fp16 on the disk: seconds and memory to load it, ours and diffusers'.

Each is loaded in a process of its own, three times, diffusers first, so that nobody pays for a cold disk alone; then ours takes
one guided step of 512x512. Needs Linux, and 2.2 GB of disk for the time of the run.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from tiny_sd import SCHEDULER, vocabulary
from transformers import CLIPTextConfig, CLIPTextModel

UNET = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512,
       "down_block_types": 4 * ("DownEncoderBlock2D",), "up_block_types": 4 * ("UpDecoderBlock2D",)}  # fmt: skip
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "projection_dim": 768, "eos_token_id": 2}  # fmt: skip

LOAD = """
import re, sys, time, torch
{imports}
def peak():  # of memory, in MB; getrusage would count what this process was forked from, too
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) / 2**10
folder, dtype = sys.argv[1], getattr(torch, sys.argv[2])
began = time.perf_counter()
pipe = {load}
every_page = [p.flatten()[::512] for net in (pipe.unet, pipe.vae, pipe.text_encoder) for p in net.parameters()]
total = sum(p.double().sum().item() for p in every_page)  # now the last of it has come from the disk
print(time.perf_counter() - began, peak(), total)
"""
PROGRAMS = {
    "diffusers": LOAD.format(
        imports="import transformers; from diffusers import AutoencoderKL, UNet2DConditionModel, StableDiffusionPipeline",
        load="StableDiffusionPipeline.from_pretrained(folder, torch_dtype=dtype)"),
    "minidiff": LOAD.format(imports="import minidiff as md; md.StableDiffusion, md.load_unet",
                            load="md.StableDiffusion.from_pretrained(folder, dtype)"),
}  # fmt: skip
STEP = """
import sys, time, torch, minidiff as md
pipe = md.StableDiffusion.from_pretrained(sys.argv[1], torch.float32)
pipe.progress = False
began = time.perf_counter()
image = pipe("a photograph of a puppy", steps=1, sampler=md.ddim, generator=torch.Generator().manual_seed(0))
assert image.shape == (1, 3, 512, 512) and image.isfinite().all()
print(time.perf_counter() - began)
"""


def write(folder: Path) -> None:
    """The folder, as diffusers' save_pretrained lays it out."""
    g = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        parts = {"unet": UNet2DConditionModel(**UNET), "vae": AutoencoderKL(**VAE),
                 "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT))}  # fmt: skip
    for part, net in parts.items():
        (folder / part).mkdir(parents=True)
        tensors = {name: (torch.randn(p.shape, generator=g) * 0.02).half() for name, p in net.state_dict().items()}
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        save_file(tensors, folder / part / f"{stem}.safetensors", metadata={"format": "pt"})
        net.config.architectures = ["CLIPTextModel"] if part == "text_encoder" else None
        (net.config.save_pretrained if part == "text_encoder" else net.save_config)(folder / part)
    PNDMScheduler(**SCHEDULER, skip_prk_steps=True, set_alpha_to_one=False).save_pretrained(folder / "scheduler")
    vocabulary(folder / "tokenizer")
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "<|endoftext|>"}))  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps({
        "_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "scheduler": ["diffusers", "PNDMScheduler"],
        "safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}))  # fmt: skip


def run(program: str, *args) -> list[float]:
    """What a program prints, in a process of its own."""
    out = subprocess.run([sys.executable, "-c", program, *map(str, args)], capture_output=True, text=True, check=True).stdout
    return [float(word) for word in out.split()]


def main() -> bool:
    """Print the table; True if ours takes no more time and memory, and both read the same numbers."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        print(f"\n{'Stable Diffusion 1.5, full size, fp16 file':44}{'seconds':>10}{'peak MB':>10}")
        good = True
        for dtype in ("float16", "float32"):
            least, sums = {}, {}
            for _ in range(3):
                for name, program in PROGRAMS.items():
                    seconds, megabytes, sums[name] = run(program, folder, dtype)
                    least[name] = [min(pair) for pair in zip(least.get(name, (9e9, 9e9)), (seconds, megabytes), strict=True)]
            for name, (seconds, megabytes) in least.items():
                print(f"loaded in {dtype} by {name:24}{seconds:10.1f}{megabytes:10.0f}", flush=True)
            ratios = [ours / theirs for ours, theirs in zip(least["minidiff"], least["diffusers"], strict=True)]
            print(f"{'ratio':44}{ratios[0]:10.2f}{ratios[1]:10.2f}")
            good &= max(ratios) <= 1 and abs(sums["minidiff"] - sums["diffusers"]) < 1e-6 * abs(sums["diffusers"]) + 1e-3
        print(f"{'one guided step of 512x512 and the VAE':44}{run(STEP, folder)[0]:10.1f}")
        return good
