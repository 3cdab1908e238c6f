"""How good is a trained model? A model of classes is compared with real images, one of words is asked for scenes.

  python -m minidiff eval runs/fashion --data zalando-datasets/fashion_mnist
  python -m minidiff eval shapes
  python -m minidiff eval runs/sd --guidance 1 2 4 --n 200 --tasks counting position

Of classes: prints the Fréchet and kernel distances to the real test split in the features of a small classifier that is
trained here on the real train split (once; it is kept in --judge), and the share of samples it takes for what was asked for.
Beside them the floor: as many real training images, judged alike.

Of words: draws --sweep images for every task at every guidance scale, and --n at the best; an oracle without a network in it
reads what is on them. Also measured: how varied the images of one prompt are, the distances to real scenes in the
features of a CLIP that was trained here, and how much worse the network guesses a real scene if it is lied to about it.
A table, all figures as JSON and three pictures go to --out.
"""

from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..data.captions import TASKS
from ..diffusion import SAMPLERS
from ..evaluation.judge import floors, judge_samples, load_or_train_judge
from ..pipelines import ClassToImage
from . import prompts
from .common import device_argument, open_data, pick_device

NAME, HELP = "eval", "measure a trained model: does it draw what it is told, and how near is that to real images?"


def arguments(parser):
    parser.add_argument("folder", help="the folder that train wrote, or the name of a model that comes with minidiff: shapes")
    parser.add_argument("--n", type=int, default=500, help="samples, or prompts of each task; compare distances at equal n")
    parser.add_argument("--batch", type=int, default=None, help="drawn at a time; 100 for classes, 64 for words, if left out")
    parser.add_argument("--steps", type=int, default=None, help="50 for classes, for words the model's own, if left out")
    parser.add_argument("--guidance", type=float, nargs="+", default=None,
                        help=f"scales to try; if left out 1, or for words {' '.join(f'{x:g}' for x in prompts.SCALES)}")
    parser.add_argument("--sampler", choices=tuple(SAMPLERS), default=None, help="ddim, for words the model's own, if left out")
    parser.add_argument("--seed", type=int, default=0)
    device_argument(parser)
    classes = parser.add_argument_group("models of classes")
    classes.add_argument("--data", default=None, help="the dataset it was trained on; it needs a train and a test split")
    classes.add_argument("--spacing", choices=("leading", "trailing", "linspace"), default="trailing")
    classes.add_argument("--judge", default="runs/judge", help="folder of the judge; trained and kept there if it has none")
    classes.add_argument("--floors", action="store_true", help="also show what known damage to real images costs")
    words = parser.add_argument_group("models of words")
    words.add_argument("--tasks", nargs="+", default=list(TASKS), metavar="TASK", help="of " + ", ".join(TASKS))
    words.add_argument("--pag", type=float, default=None, help="scale of perturbed-attention guidance, if not the model's own")
    words.add_argument("--sweep", type=int, default=60, help="prompts of each task at every scale but the best")
    words.add_argument("--each", type=int, default=16, help="images of each prompt of which variety is measured")
    words.add_argument("--scenes", type=int, default=512, help="images of which distances are taken")
    words.add_argument("--ruler", default=None, metavar="FOLDER",
                       help="CLIP in whose features: of train --stage clip, or none; the model's own or that of shapes")
    words.add_argument("--out", default=None, help="eval/ in the model's folder, or runs/eval/shapes, if left out")


def run(args):
    if prompts.reads(args.folder):
        prompts.run(args)
    elif args.data is None:
        raise ValueError(f"{args.folder} is no model of words: give --data, the images that it was trained on")
    else:
        eval_classes(args)


def eval_classes(args) -> None:
    """Print the distances and the accuracy of a ClassToImage, for every scale."""
    device = pick_device(args.device)
    pipe = ClassToImage.load(args.folder, device)
    train, test = (open_data(args.data, pipe.size, split) for split in ("train", "test"))
    small = {"batch_size": len(train)} if len(train) < 128 else {}
    judge = load_or_train_judge(train, Path(args.judge), device=device, **small)
    if args.floors:
        floors(judge, train, test)
    labels = torch.arange(args.n) % max(1, len(pipe.classes))
    sampler, steps, batch = args.sampler or "ddim", 50 if args.steps is None else args.steps, args.batch or 100
    for scale in args.guidance or [1.0]:
        generator = torch.Generator().manual_seed(args.seed)
        options = {"steps": steps, "guidance_scale": scale, "sampler": SAMPLERS[sampler], "spacing": args.spacing}
        samples = [pipe(part, generator=generator, **options) for part in tqdm(labels.split(batch), leave=False)]
        print(f"\n{sampler}, {steps} steps, {args.spacing}, guidance {scale:g}, seed {args.seed}")
        print(judge_samples(judge, torch.cat(samples), labels if pipe.classes else None, test, train))
