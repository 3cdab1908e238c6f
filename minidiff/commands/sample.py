"""Draw images from a trained model.

  python -m minidiff sample runs/fashion --classes Sneaker Bag --each 8
  python -m minidiff sample runs/fashion --guidance 2 --steps 100 --sampler ddpm --gif
"""

from pathlib import Path

import torch
from tqdm.auto import tqdm

from .. import plot
from ..diffusion import ddim, ddpm
from ..pipelines import ClassToImage
from .common import device_argument, pick_device

NAME, HELP = "sample", "draw images from a trained model"


def arguments(parser):
    parser.add_argument("folder", help="the folder that train or demo wrote")
    parser.add_argument("--classes", nargs="+", default=None, help="names or numbers; the first ten, if left out")
    parser.add_argument("--each", type=int, default=8, help="images per class")
    parser.add_argument("--steps", type=int, default=50, help="network calls per image")
    parser.add_argument("--guidance", type=float, default=1.0, help="1: as trained; 1.5 to 3: clearer and less varied")
    parser.add_argument("--sampler", choices=("ddim", "ddpm"), default="ddim")
    parser.add_argument("--spacing", choices=("leading", "trailing", "linspace"), default="trailing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=None, help="PNG to write; samples.png in the run's folder, if left out")
    parser.add_argument("--gif", action="store_true", help="also write the walk from noise to images")
    device_argument(parser)


def run(args):
    pipe = ClassToImage.load(args.folder, pick_device(args.device))
    if args.each < 1:
        raise ValueError(f"--each {args.each}: draw at least one image per class")
    chosen = [find_class(name, pipe.classes) for name in args.classes] if args.classes else list(range(len(pipe.classes)))[:10]
    labels = torch.tensor(chosen or [0]).repeat_interleave(args.each)
    walk = pipe.walk(labels, args.steps, args.guidance, {"ddim": ddim, "ddpm": ddpm}[args.sampler], args.spacing,
                     torch.Generator().manual_seed(args.seed))  # fmt: skip
    states = list(tqdm(walk, total=args.steps, unit="step"))
    out = Path(args.out or Path(args.folder) / "samples.png")
    rows = [pipe.classes[c] for c in chosen] or None
    plot.show_images(states[-1].x.clamp(-1, 1).cpu(), columns=args.each, row_labels=rows, file=out)
    print(out)
    if args.gif:
        print(plot.animate(states, out.with_suffix(".gif"), columns=args.each))


def find_class(name: str, classes: list[str]) -> int:
    """The number of a class, by name or number. Raises ValueError with the names there are."""
    if name in classes:
        return classes.index(name)
    if name.isdigit() and int(name) < len(classes):
        return int(name)
    raise ValueError(f'there is no class "{name}" here: ' + (", ".join(classes) or "this model was trained without classes"))
