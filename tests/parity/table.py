"""The table of `python -m minidiff parity`: every part beside its original, then whole pictures."""

import tempfile
import warnings
from pathlib import Path

import torch
from pairs import PAIRS
from tiny_sd import pipeline
from tiny_sd3 import pipeline_3
from torch import nn

from minidiff import StableDiffusion, StableDiffusion3

PICTURES = {f"A picture by Stable Diffusion {style}, 10 steps": style for style in (1, 2, 3, 3.5)}


@torch.no_grad()
def picture(style: float):
    """Parameters of both, and a picture by each from one folder, one prompt and one seed, guided."""
    with tempfile.TemporaryDirectory() as folder:
        theirs = (pipeline_3 if style >= 3 else pipeline)(Path(folder) / "model", style)
        ours = (StableDiffusion3 if style >= 3 else StableDiffusion).from_pretrained(Path(folder) / "model")
    ours.progress = False
    told = {"guidance_scale": 5.0, "generator": torch.Generator().manual_seed(7)}
    wanted = theirs("a photograph of a puppy", num_inference_steps=10, output_type="pt", **told).images
    told["generator"].manual_seed(7)
    got = ours("a photograph of a puppy", steps=10, **told)
    parameters = sum(p.numel() for net in vars(ours).values() if isinstance(net, nn.Module) for p in net.parameters())
    return parameters, got, 2 * wanted - 1


def row(name: str, parameters: int, *pairs) -> bool:
    """One line of the table, for the answers of one part in each precision. True if all are within bounds."""
    far = [((ours - theirs).abs().max().item(), theirs.abs().max().item()) for ours, theirs in pairs]
    numbers = "".join(f"{most:10.1e}{most / size:10.1e}" for most, size in far)
    print(f"{name:44}{parameters:11,}{numbers}", flush=True)
    return all(most <= bound * size for (most, size), bound in zip(far, (1e-5, 1e-10), strict=False))


def main() -> bool:
    """Print the table; True if every part is within 1e-5 (float32) and 1e-10 (float64), every picture within 1e-4."""
    warnings.simplefilter("ignore", FutureWarning)  # diffusers warns of what diffusers does
    print("random weights in every parameter, largest difference: absolute, and relative to the largest number\n")
    print(f"{'part':44}{'parameters':>11}{'float32':>10}{'relative':>10}{'float64':>10}{'relative':>10}")
    good = True
    for name, answers in PAIRS.items():
        parameters, *single = answers(torch.float32)
        good &= row(name, parameters, single, answers(torch.float64)[1:])
    for name, style in PICTURES.items():
        parameters, ours, theirs = picture(style)
        row(name, parameters, (ours, theirs))
        good &= (ours - theirs).abs().max().item() <= 1e-4
    return bool(good)
