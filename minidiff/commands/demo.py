"""Watch a diffusion model learn and draw: from pure noise to the shape and colour asked for, in minutes on two CPU cores.

  python -m minidiff demo

Draws a dataset of coloured shapes, trains a small U-Net on it, and leaves in runs/demo/
  loss.png      the loss, step by step
  film.png      noise becoming pictures: x_t above, what the network takes for the clean image below
  film.gif      the same, moving
  grid.png      a picture of every class, a row per shape and a column per colour
and the model itself, for `python -m minidiff sample runs/demo`. How good it is, is read from the pixels of fresh samples.
"""

import time
from pathlib import Path

import torch
from tqdm.auto import tqdm

from .. import plot
from ..data import Images, Shapes, batches, read_shapes
from ..nets import UNet
from ..pipelines import ClassToImage
from ..training import TrainConfig
from .common import device_argument, fast_in_bf16, keep_memory, pick_device
from .train import finish, make_trainer

SHAPES, COLOURS = ("circle", "square", "triangle", "star"), ("red", "yellow", "green", "blue")
NAME, HELP = "demo", "train a model on coloured shapes and look at what it draws: start here"


def arguments(parser):
    parser.add_argument("--steps", type=int, default=500, help="training steps; more draws better")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="runs/demo", help="folder to write")
    device_argument(parser)


def run(args):
    keep_memory()
    began, device, out = time.perf_counter(), pick_device(args.device), Path(args.out)
    scenes = Shapes(4096, size=32, seed=args.seed, shapes=SHAPES, colours=COLOURS, backgrounds=["white"], sizes=["large"])
    images = Images(*scenes.tensors(), scenes.classes)
    torch.manual_seed(args.seed)
    net = UNet(3, 3, (32, 64, 128), (False, True, True), layers=1, num_classes=len(scenes.classes), patch=2, shortcut=True)
    pipe = ClassToImage(net, {"name": "flow"}, "x0", 32, scenes.classes)
    weights = sum(parameter.numel() for parameter in net.parameters())
    print(f"1/3  a U-Net of {weights:,} weights learns {len(scenes.classes)} classes from {len(images)} drawings, on {device}")
    config = TrainConfig(steps=args.steps, seed=args.seed, bf16=fast_in_bf16(device), every=0)
    trainer = make_trainer(pipe, config, device, measured="flow")
    trainer.fit(batches(images, 32, device, seed=args.seed))
    finish(trainer, pipe, out)

    print("2/3  it draws every class")
    artist = ClassToImage.load(out, device)
    grid = torch.arange(len(scenes.classes))  # a row per shape, a column per colour
    walk = artist.walk(grid, steps=30, guidance_scale=2.0, generator=seeded(args.seed))
    states = list(tqdm(walk, total=30, unit="step"))
    plot.show_images(states[-1].x.cpu(), row_labels=list(SHAPES), column_labels=list(COLOURS), file=out / "grid.png")
    few = [state._replace(x=state.x[[0, 6, 13]].cpu(), x0=state.x0[[0, 6, 13]].cpu()) for state in states]
    plot.show_trajectory(few, images=3, file=out / "film.png")
    plot.animate([state._replace(x=state.x.cpu()) for state in states], out / "film.gif", columns=len(COLOURS))

    print("3/3  its drawings are read back from their pixels")
    asked = grid.repeat(12)
    drawn = artist(asked, steps=30, guidance_scale=2.0, generator=seeded(args.seed + 1)).cpu()
    names = [{f"{a.colour} {a.shape}" for a in found} for found in read_shapes(drawn)]
    right = sum(name == {scenes.classes[y]} for y, name in zip(asked.tolist(), names, strict=True)) / len(asked)
    print(f"\n{right:.0%} of {len(asked)} fresh drawings show the shape and the colour that were asked for")
    print(f"{time.perf_counter() - began:.0f} s in all. Look at " + ", ".join(f"{out}/{name}" for name in
          ("loss.png", "film.png", "film.gif", "grid.png")))  # fmt: skip


def seeded(seed: int) -> torch.Generator:
    """A source of noise that repeats."""
    return torch.Generator().manual_seed(seed)
