"""How good is a trained model? Asked for each class equally often, then compared with real images.

  python -m minidiff eval runs/fashion --data zalando-datasets/fashion_mnist

Prints the Fréchet and kernel distances to the real test split in the features of a small classifier that is trained here
on the real train split (once; it is kept in --judge), and the share of samples it takes for what was asked for. Beside
them the floor: as many real training images, judged alike.
"""

from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..diffusion import ddim, ddpm
from ..evaluation.judge import floors, judge_samples, load_or_train_judge
from ..pipelines import ClassToImage
from .common import device_argument, open_data, pick_device

NAME, HELP = "eval", "measure a trained model against real images"


def arguments(parser):
    parser.add_argument("folder", help="the folder that train wrote")
    parser.add_argument("--data", required=True, help="the dataset it was trained on; it needs a train and a test split")
    parser.add_argument("--n", type=int, default=500, help="samples; distances depend on it, so compare at equal n")
    parser.add_argument("--batch", type=int, default=100, help="samples drawn at a time")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0], help="one or several scales to try")
    parser.add_argument("--sampler", choices=("ddim", "ddpm"), default="ddim")
    parser.add_argument("--spacing", choices=("leading", "trailing", "linspace"), default="trailing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--judge", default="runs/judge", help="folder of the judge; trained and kept there if it has none")
    parser.add_argument("--floors", action="store_true", help="also show what known damage to real images costs")
    device_argument(parser)


def run(args):
    device = pick_device(args.device)
    pipe = ClassToImage.load(args.folder, device)
    train, test = (open_data(args.data, pipe.size, split) for split in ("train", "test"))
    small = {"batch_size": len(train)} if len(train) < 128 else {}
    judge = load_or_train_judge(train, Path(args.judge), device=device, **small)
    if args.floors:
        floors(judge, train, test)
    labels = torch.arange(args.n) % max(1, len(pipe.classes))
    sampler = {"ddim": ddim, "ddpm": ddpm}[args.sampler]
    for scale in args.guidance:
        generator = torch.Generator().manual_seed(args.seed)
        options = {"steps": args.steps, "guidance_scale": scale, "sampler": sampler, "spacing": args.spacing}
        samples = [pipe(part, generator=generator, **options) for part in tqdm(labels.split(args.batch), leave=False)]
        print(f"\n{args.sampler}, {args.steps} steps, {args.spacing}, guidance {scale:g}, seed {args.seed}")
        print(judge_samples(judge, torch.cat(samples), labels if pipe.classes else None, test, train))
