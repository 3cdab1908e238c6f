"""Draw images from words, or from a trained model of classes.

  python -m minidiff sample "a small red circle left of a blue star on a white background"
  python -m minidiff sample "three hearts" "a star under a cross" --model runs/sd --each 8 --out x.png
  python -m minidiff sample runs/fashion --classes Sneaker Bag --each 8
  python -m minidiff sample runs/fashion --guidance 2 --steps 100 --sampler ddpm --gif
"""

from pathlib import Path

import torch
from tqdm.auto import tqdm

from .. import plot
from ..diffusion import SAMPLERS
from ..pipelines import ClassToImage, StableDiffusion
from .common import device_argument, pick_device

NAME, HELP = "sample", "draw images from words, or from a trained model"


def arguments(parser):
    parser.add_argument("what", nargs="+", metavar="PROMPT", help="a text or several, a row for each; or a folder of train")
    parser.add_argument("--model", default="shapes", help="prompts: a folder of train --stage, or of any Stable Diffusion")
    parser.add_argument("--negative", default="", help="prompts: what to steer away from")
    parser.add_argument("--classes", nargs="+", default=None, help="folder: names or numbers; the first ten, if left out")
    parser.add_argument("--each", type=int, default=None, help="images per prompt, 4 if left out, or per class, 8")
    parser.add_argument("--steps", type=int, default=None, help="network calls; if left out the model's own, or 50")
    parser.add_argument("--guidance", type=float, default=None,
                        help="1: as trained; higher: clearer and less varied; if left out the model's own, or 1")  # fmt: skip
    parser.add_argument("--pag", type=float, default=None, help="prompts: scale of perturbed-attention guidance, 0: none")
    parser.add_argument("--sampler", choices=tuple(SAMPLERS), default=None, help="the model's own, or ddim")
    parser.add_argument("--spacing", choices=("leading", "trailing", "linspace"), default="trailing", help="folder: of steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=None, help="PNG to write; samples.png here or in the run's folder, if left out")
    parser.add_argument("--gif", action="store_true", help="also write the walk from noise to images")
    device_argument(parser)


def run(args):
    if args.each is not None and args.each < 1:
        raise ValueError(f"--each {args.each}: draw at least one image per prompt or class")
    folder = args.what[0] if len(args.what) == 1 and is_folder(args.what[0]) else None
    if folder and (Path(folder) / "model_index.json").is_file():
        raise ValueError(f'{folder} draws from words: minidiff sample "a red circle" --model {folder}')
    states, columns, rows, out = (draw_classes if folder else draw_prompts)(args)
    plot.show_images(states[-1].clamp(-1, 1).cpu(), columns=columns, row_labels=rows, file=out)
    print(out)
    if args.gif:
        print(plot.animate([state.cpu() for state in states], out.with_suffix(".gif"), columns=columns))


def is_folder(text: str) -> bool:
    """Is this the name of a folder, there or not, rather than a prompt?"""
    return " " not in text and ("/" in text or (text != "" and Path(text).is_dir()))


def draw_prompts(args) -> tuple[list, int, list[str], Path]:
    """Pictures of a walk from a StableDiffusion, how many stand in a row, what the rows are called, and the file for them."""
    if args.classes:
        raise ValueError("--classes is for the folder of a model of classes: name that instead of a prompt")
    pipe, each = StableDiffusion.from_pretrained(args.model, device=pick_device(args.device)), args.each or 4
    walk = pipe.walk([text for text in args.what for _ in range(each)], args.negative, args.steps, args.guidance,
                     generator=torch.Generator().manual_seed(args.seed), sampler=SAMPLERS.get(args.sampler),
                     pag_scale=args.pag)  # fmt: skip
    states = list(walk)
    kept = states if args.gif else states[-1:]
    return [pipe.decode(state.x) for state in kept], each, args.what, Path(args.out or "samples.png")


def draw_classes(args) -> tuple[list, int, list[str] | None, Path]:
    """The same from a ClassToImage."""
    pipe, each, steps = ClassToImage.load(args.what[0], pick_device(args.device)), args.each or 8, args.steps
    chosen = [find_class(name, pipe.classes) for name in args.classes] if args.classes else list(range(len(pipe.classes)))[:10]
    labels = torch.tensor(chosen or [0]).repeat_interleave(each)
    steps = 50 if steps is None else steps
    walk = pipe.walk(labels, steps, 1.0 if args.guidance is None else args.guidance, SAMPLERS[args.sampler or "ddim"],
                     args.spacing, torch.Generator().manual_seed(args.seed))  # fmt: skip
    states = [state.x for state in tqdm(walk, total=steps, unit="step")]
    return states, each, [pipe.classes[c] for c in chosen] or None, Path(args.out or Path(args.what[0]) / "samples.png")


def find_class(name: str, classes: list[str]) -> int:
    """The number of a class, by name or number. Raises ValueError with the names there are."""
    if name in classes:
        return classes.index(name)
    if name.isdigit() and int(name) < len(classes):
        return int(name)
    raise ValueError(f'there is no class "{name}" here: ' + (", ".join(classes) or "this model was trained without classes"))
