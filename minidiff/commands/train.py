"""Train a class-conditional diffusion model on a folder of images, a dataset of the hub, or Shapes. Or, in stages, a whole
text-to-image model on captioned Shapes.

  python -m minidiff train --data shapes --out runs/shapes
  python -m minidiff train --data zalando-datasets/fashion_mnist --size 32 --minutes 15 --out runs/fashion
  python -m minidiff train --data shapes --net dit --out runs/dit
  python -m minidiff train --data my/pictures --begin runs/shapes --accumulate 2 --lr 5e-4 --out runs/mine
  python -m minidiff train --stage all --minutes 60 --out runs/sd

Writes the averaged weights (model.safetensors, config.json), loss.png, losses.csv, and a grid of samples every so often.
With --minutes the number of steps is found by timing the first ones, printed, and kept in config.json: --steps with that
number repeats the run exactly. --begin goes on from the weights of another run, on other images: its network and its
process are that run's, and only the names of the classes are learned anew.

--stage vae, clip and unet each write their part below --out, and together a folder for StableDiffusion.from_pretrained. A
stage that was stopped goes on by --resume, with the numbers it was begun with.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import torch

from .. import plot
from ..data import Images, batches
from ..diffusion import diffusion_loss
from ..nets import DiT, UNet, drop_labels
from ..pipelines import ClassToImage
from ..pipelines.class_to_image import make_schedule
from ..training import TrainConfig, Trainer
from ..training.checkpoint import write_file
from ..training.trainer import OPTIMIZERS
from . import stages
from .common import check_compiler, device_argument, fast_in_bf16, keep_memory, open_data, pick_device, steps_in

NAME, HELP = "train", "train a model on images"
PATCH = {"unet": 2, "dit": 4}  # pixels per side
BEGUN = {"net", "channels", "attention", "layers", "dim", "depth", "patch", "schedule", "zero_snr", "predicts"}  # of --begin
OPTIONS = ("optimizer", "lr", "warmup", "decay", "accumulate", "ema", "seed", "every", "compile")  # of TrainConfig


class Given(argparse.Action):
    """Keeps a value, as usual, and in `args.given` that it was said: a stage has defaults of its own."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, self.const if self.nargs == 0 else values)
        namespace.given = namespace.given | {self.dest}


def arguments(parser):
    def numbers(text):
        return tuple(int(part) for part in text.split(","))

    parser.set_defaults(given=frozenset())
    parser.register("action", None, Given)
    data = parser.add_argument_group("data")
    data.add_argument("--data", default="shapes", help="shapes, a folder, or owner/name on the Hugging Face hub")
    data.add_argument("--split", default="train")
    data.add_argument("--size", type=int, default=32, help="side in pixels; smaller images are padded, larger ones cropped")
    data.add_argument("--limit", type=int, default=None, help="use so many images only")
    data.add_argument("--flip", action="store_true", help="mirror images at random")
    net = parser.add_argument_group("network")
    net.add_argument("--net", choices=tuple(PATCH), default="unet", help="a U-Net, or a plain transformer over patches")
    net.add_argument("--channels", type=numbers, default=(32, 64, 128), help="unet: width of each stage")
    net.add_argument("--attention", type=numbers, default=(0, 1, 1), help="unet: 1 for each stage that attends")
    net.add_argument("--layers", type=int, default=1, help="unet: residual blocks per stage")
    net.add_argument("--dim", type=int, default=192, help="dit: width of a token")
    net.add_argument("--depth", type=int, default=6, help="dit: transformer blocks")
    net.add_argument("--patch", type=int, default=None,
                     help="pixels per side folded into one place: 2 in a unet and 4 in a dit, if not said; half is 4x dearer")
    net.add_argument("--condition", choices=("add", "concat", "none"), default="add", help="how the class enters")
    process = parser.add_argument_group("diffusion")
    process.add_argument("--schedule", choices=("linear", "scaled_linear", "cosine", "flow"), default="flow")
    process.add_argument("--zero-snr", action="store_true", help="bend the schedule to end in pure noise")
    process.add_argument("--predicts", choices=("eps", "x0", "v", "flow"), default="x0", help="what the network answers")
    weighing = process.add_mutually_exclusive_group()
    weighing.add_argument("--measured", choices=("eps", "x0", "v", "flow"), default=None,
                          help="as what its errors count: by default as flow where it predicts x0, else as what it predicts")
    weighing.add_argument("--min-snr", type=float, default=None, help="gamma of min-SNR weighting, such as 5")
    process.add_argument("--label-dropout", type=float, default=0.1, help="share of labels hidden, for guidance")
    run = parser.add_argument_group("training")
    budget = run.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=int, default=2000)
    budget.add_argument("--minutes", type=float, default=None, help="as many steps as fit")
    run.add_argument("--batch", type=int, default=32)
    for name, kind, help in (
        ("lr", float, "learning rate"), ("warmup", int, "steps of its rise"), ("decay", str, "cosine or constant"),
        ("accumulate", int, "batches per step"), ("ema", float, "decay of the averaged weights"), ("seed", int, "of all"),
        ("every", int, "steps between previews and checkpoints"),
    ):  # fmt: skip
        run.add_argument(f"--{name}", type=kind, default=getattr(TrainConfig, name), help=help)
    run.add_argument("--optimizer", choices=tuple(OPTIMIZERS), default=TrainConfig.optimizer)
    run.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto: bf16 where it is fast")
    run.add_argument("--compile", nargs=0, const=True, default=False,
                     help="let torch write code for the network first: a minute or two, then a step takes a fifth less")
    run.add_argument("--out", default="runs/train", help="folder to write")
    run.add_argument("--begin", default=None, metavar="FOLDER", help="a run of train: fine-tune its network on these images")
    run.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    device_argument(run)
    stages.arguments(parser)


def run(args):
    keep_memory()
    if args.stage:
        stages.run(args)
        return
    if odd := sorted(args.given & {"set", "text", "variant"}):
        raise ValueError(f"--{odd[0]} is for the stages of a text-to-image model: say which by --stage")
    device, out = pick_device(args.device), Path(args.out)
    before = open_begun(args) if args.begin else None
    if args.compile:
        check_compiler(device)
    images = open_data(args.data, args.size, args.split, args.limit, before and before.net.config["in_channels"])
    print(f"{args.data}: {images}")
    bf16 = {"auto": fast_in_bf16(device), "fp32": False, "bf16": True}[args.precision]
    options = {name: getattr(args, name) for name in OPTIONS}
    config = TrainConfig(steps=args.steps, bf16=bf16, **options)
    pipe = build(args, images, before)
    feed = {"batch_size": args.batch, "device": device, "flip": args.flip, "seed": args.seed}
    measured = args.measured or ("flow" if args.predicts == "x0" and args.min_snr is None else None)
    weighing = {"min_snr": args.min_snr, "measured": measured}
    trainer = make_trainer(pipe, config, device, args.label_dropout, **weighing)
    if args.minutes:
        config = TrainConfig(steps=steps_in(args.minutes, trainer, batches(images, **feed)), bf16=bf16, **options)
        print(f"{args.minutes:g} minutes are {config.steps} steps here: --steps {config.steps} repeats this run")
        pipe = build(args, images, before)
        trainer = make_trainer(pipe, config, device, args.label_dropout, **weighing)
    if args.resume:
        trainer.load_state(out)
        print(f"going on from step {trainer.step}")

    def keep(trainer):
        finish(trainer, pipe, out, args, final=False)

    trainer.fit(batches(images, start=trainer.step * args.accumulate, **feed), after=keep)
    finish(trainer, pipe, out, args)
    print(f"{out}/  model.safetensors, config.json, loss.png, losses.csv, samples.png")


def open_begun(args) -> ClassToImage:
    """The model of --begin, whose size is that of the images where none was said. ValueError for options that are its own."""
    before = ClassToImage.load(args.begin)
    if odd := sorted(args.given & BEGUN):
        raise ValueError(f"--{odd[0].replace('_', '-')} is that of {args.begin}, with which this run begins: leave it out")
    if args.condition == "concat":
        raise ValueError(f"--condition concat: how classes enter is that of {args.begin}; none leaves them out")
    args.size = args.size if "size" in args.given else before.size
    return before


def build(args, images: Images, before: ClassToImage | None = None) -> ClassToImage:
    """An untrained model for these images; its weights depend on args.seed alone. before: the model it goes on from."""
    if images.labels is None and args.condition != "none":
        raise ValueError("these images have no labels: sort them into a folder per class, or pass --condition none")
    classes = [] if args.condition == "none" else images.classes or [str(i) for i in range(int(images.labels.max()) + 1)]
    channels, patch = images.pixels.shape[1], args.patch or PATCH[args.net]
    torch.manual_seed(args.seed)
    if before:
        net = further(before.net, channels, classes)
    elif args.net == "dit":
        if args.condition == "concat":
            raise ValueError("--condition concat lays the class beside the image of a unet: a dit takes add or none")
        net = DiT(channels, channels, args.size, patch, args.dim, args.depth, num_classes=len(classes) or None)
    else:
        net = UNet(
            channels, channels, args.channels, tuple(bool(a) for a in args.attention), args.layers, patch=patch, shortcut=True,
            num_classes=len(classes) or None, class_channels=4 if args.condition == "concat" else 0,
        )  # fmt: skip
    if args.size % net.stride:
        raise ValueError(f"--size {args.size} does not divide by this network's stride of {net.stride}: "
                         f"take --size {-(-args.size // net.stride) * net.stride}")
    if before:
        return ClassToImage(net, before.schedule_config, before.predicts, args.size, classes)
    schedule = {"name": args.schedule, "zero_terminal_snr": args.zero_snr}
    return ClassToImage(net, schedule, args.predicts, args.size, classes)


def further(net: UNet | DiT, channels: int, classes: list[str]) -> UNet | DiT:
    """A network with the weights of `net` but for the table of classes, which is new: other images have others."""
    if channels != net.config["in_channels"]:
        raise ValueError(f"these images have {channels} channels, and the network of --begin draws {net.config['in_channels']}")
    new = type(net)(**net.config | {"num_classes": len(classes) or None})
    kept = {name: w for name, w in net.state_dict().items() if not name.startswith("label.")}
    own = {name: w for name, w in new.state_dict().items() if name.startswith("label.")}
    new.load_state_dict(kept | own)
    return new


def make_trainer(pipe: ClassToImage, config: TrainConfig, device: str, label_dropout=0.1, **weighing) -> Trainer:
    """A Trainer that minimises the diffusion loss of `pipe` on `device`; weighing: its `min_snr` or `measured`."""
    schedule = make_schedule(**pipe.schedule_config)
    net = pipe.net.to(device, memory_format=torch.channels_last)  # the layout convolutions are fastest in

    def loss(net, x, y):
        cond = {"y": drop_labels(y, net.null_class, label_dropout)} if pipe.classes else {}
        x = x.contiguous(memory_format=torch.channels_last)
        return diffusion_loss(net, x, schedule, pipe.predicts, **weighing, **cond)

    return Trainer(net, loss, config)


def finish(trainer: Trainer, pipe: ClassToImage, out: Path, args=None, final: bool = True, columns: int = 10) -> None:
    """Write the averaged weights, the loss curve, and a grid with a column per class; on the way also what resuming needs."""
    averaged = ClassToImage(trainer.ema.net, pipe.schedule_config, pipe.predicts, pipe.size, pipe.classes)
    about = {"data": args.data, "split": args.split, "batch": args.batch, "flip": args.flip} if args else {}
    averaged.save(out, training={**asdict(trainer.config), **about})
    trainer.save_state(out)
    write_file(out / "losses.csv", ("step,loss\n" + "".join(f"{i},{x:.6f}\n" for i, x in enumerate(trainer.losses))).encode())
    plot.show_losses(trainer.losses, title="training loss", file=out / "loss.png")
    shown = min(columns, len(pipe.classes)) or columns
    labels = torch.arange(shown).repeat(4 if final else 1)
    pictures = averaged(labels, steps=25, generator=torch.Generator().manual_seed(0))
    names = pipe.classes[:shown] if pipe.classes else None
    plot.show_images(pictures.cpu(), columns=shown, column_labels=names,
                     file=out / ("samples.png" if final else f"step_{trainer.step:06d}.png"))  # fmt: skip
