"""`train --stage`: a whole text-to-image model from captioned scenes, in three trainings or, on small pictures, in one.

Every number of a stage stands in SETTINGS, and `--set unet.channels=96,192 vae.beta=0.02` changes it. All of them are kept in
the config.json of the part they made.
"""

import ast
import json
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import torch

from .. import plot
from ..data.captions import TASKS
from ..training import TrainConfig, Trainer
from ..training.checkpoint import read_json, write_file
from .common import check_compiler, fast_in_bf16, machine, pick_device, steps_in
from .works import WORKS, Job, Work, unfinished

ORDER = ("vae", "clip", "unet")  # of --stage all
SHARES = {"vae": 0.12, "clip": 0.12, "unet": 0.76}  # of its minutes
DRAWING = 0.05  # of a stage's minutes: to save, to measure, to draw, and for steps that get slower as a machine gets warm
TIME = "time.json"  # how long it took, and where; beside config.json, which is the same wherever a run is repeated

TRAINING = ("lr", "warmup", "decay", "accumulate", "ema", "optimizer", "every", "compile")
RUN = {"steps": 4000, "batch": 64, "scenes": 40_000} | {name: getattr(TrainConfig, name) for name in TRAINING}
TEXT = {"length": 36, "text_dim": 128, "text_layers": 2, "text_heads": 2}  # of a text encoder that learns with the U-Net
DIFFUSION = {
    "schedule": "flow", "shift": 3.0, "predicts": "x0", "measured": "flow", "min_snr": None, "dropout": 0.1, "easy": 0.25,
    "brief": 0.4,  # share of captions that say as little as a prompt does: such as "a star and a square"
    "sampled": False,  # each step learns the means of the VAE's Gaussians; True: draws from them, which are new at every step
    "tasks": TASKS,  # that the scenes are drawn for, all alike likely; one that is named twice comes twice as often
    "begin": "",  # the folder of a model: go on from its weights, as training of its own, with all of these numbers anew
    # How to draw with it, if nothing else is said. Fresh noise at every step forgives a network that has learned for an hour.
    "sampler": "dpmpp_2m_sde", "spacing": "trailing", "walk": 30, "guidance": 3.0,
    "pag": 0.0, "pag_layers": ("mid",), "pag_from": 0.5,  # perturbed-attention guidance: how far, from what, at which sigma
}  # fmt: skip
SETTINGS = {
    "vae": RUN | {"size": 64, "channels": (16, 32, 64), "layers": 1, "attention": False, "latent_channels": 4,
                  "beta": 0.01, "judge": 0.0, "batch": 16},
    "clip": RUN | {"size": 64, "length": 36, "dim": 128, "layers": 4, "heads": 4, "projection": 128,
                   "patch": 8, "image_dim": 128, "image_layers": 4, "image_heads": 4, "batch": 128, "lr": 2e-3},
    "unet": RUN | DIFFUSION | TEXT | {"channels": (96,), "attention": (True,), "layers": 1, "patch": 2, "shortcut": True,
                                      "heads": 4, "depth": 1, "lr": 6e-3, "guidance": 2.0, "pag": 1.0,
                                      "pag_layers": ("up.0.layers.0",)},
    "variant": RUN | {"steps": 1000, "lr": 4e-3, "measured": "flow", "min_snr": None, "dropout": 0.1, "easy": 0.0,
                      "brief": 0.4, "sampled": False, "tasks": TASKS},
    "pixels": RUN | DIFFUSION | TEXT | {"size": 32, "channels": (64, 128, 128), "attention": (False, True, True), "layers": 1,
                                        "patch": 2, "shortcut": True, "heads": None, "depth": 1},
}  # fmt: skip
SAME = ("steps", "batch", *TRAINING)  # that are options of train, too
TAKES = {*SAME, "stage", "set", "text", "variant", "minutes", "seed", "precision", "out", "device"}


def arguments(parser) -> None:
    """The options of `train` that are for stages."""
    group = parser.add_argument_group("stages of a text-to-image model")
    group.add_argument("--stage", choices=(*ORDER, "all", "pixels"), default=None,
                       help="train this part of one, on captioned shapes; all: the three in turn; pixels: in one")  # fmt: skip
    group.add_argument("--set", nargs="+", default=[], metavar="STAGE.NAME=VALUE",
                       help="numbers of a stage, such as unet.channels=96,192; without STAGE, of the one that runs")
    group.add_argument("--text", choices=("clip", "tuned", "joint"), default="clip",
                       help="text encoder of the unet: clip's as it is, or trained further with it, or from scratch with it")
    group.add_argument("--variant", choices=("base", "inpaint", "depth"), default="base",
                       help="a unet that sees more: goes on from the finished base")
    group.add_argument("--fresh-cache", action="store_true", help="encode scenes and captions anew")


def run(args) -> None:
    """Train the stage, or the three in turn."""
    if odd := sorted(args.given - TAKES):
        raise ValueError(f"--stage has sizes of its own: give --set {odd[0]}=... in place of --{odd[0]}, "
                         "if this stage has that")
    stages = [part for part in ORDER if (part, args.text) != ("clip", "joint")] if args.stage == "all" else [args.stage]
    if args.stage != "unet" and (args.text, args.variant) != ("clip", "base") and "unet" not in stages:
        raise ValueError(f"--text and --variant are of --stage unet, not of {args.stage}")
    if args.stage == "all" and args.variant != "base":
        raise ValueError("--stage all trains a base: then --stage unet --variant inpaint goes on from it")
    named = {stage: chosen(stage, args, several=len(stages) > 1) for stage in stages}  # what is wrong is found before the first
    if any(settings.compile for settings in named.values()):
        check_compiler(pick_device(args.device))
    spare = 0.0  # minutes that a stage leaves to the next
    for number, stage in enumerate(stages, 1):
        fresh = args.fresh_cache or (args.stage == "all" and not args.resume)
        job = Job(stage, Path(args.out), named[stage], pick_device(args.device), args.seed, args.text, args.variant, fresh)
        if len(stages) > 1:
            print(f"stage {number} of {len(stages)}: {stage}")
        minutes = args.minutes and args.minutes * SHARES.get(stage, 1) / sum(SHARES.get(part, 1) for part in stages) + spare
        began = time.perf_counter()
        learn(job, minutes, args.precision, args.resume)
        spare = max(0.0, (minutes or 0) - (time.perf_counter() - began) / 60)


def chosen(stage: str, args, several: bool) -> SimpleNamespace:
    """The settings of a stage: SETTINGS, and over them the options of train that it shares, and over these --set.

    ValueError for a name that the stage has not, with those it has, for a value of another kind, and for a sigma that is none.
    """
    settings = dict(SETTINGS["variant" if args.variant != "base" else stage])
    settings |= {name: getattr(args, name) for name in SAME if name in args.given}
    for text in args.set:
        where, equals, value = text.partition("=")
        of, _, name = where.rpartition(".")
        if of not in (*SETTINGS, "") or not equals or (several and not of):
            raise ValueError(f'--set {text}: write {"STAGE.NAME=VALUE" if several else "NAME=VALUE"}, such as unet.layers=2')
        if of and of != stage:
            continue
        if name not in settings:
            raise ValueError(f"--set {text}: {stage} has no {name}, but {', '.join(settings)}")
        settings[name] = _value(text, value, settings[name])
    if not 0 <= settings.get("pag_from", 0) <= 1:
        raise ValueError(f"--set pag_from={settings['pag_from']:g}: a sigma, from 0 to 1")
    return SimpleNamespace(**settings)


def _value(text: str, value: str, default):
    try:
        read = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        read = value
    if isinstance(default, tuple) and isinstance(default[0], str) and isinstance(read, str):
        read = tuple(read.split(","))
    if isinstance(default, tuple) and not isinstance(read, Sequence):
        read = (read,)
    if isinstance(default, float) and type(read) is int:
        read = float(read)
    if default is not None and type(read) is not type(default):
        raise ValueError(f"--set {text}: {value} is no {type(default).__name__}, as {default!r} is")
    return read


def learn(job: Job, minutes: float | None = None, precision: str = "auto", resume: bool = False) -> None:
    """Train one part and write it, from the beginning or from where it was stopped; a finished one is left alone.

    minutes: from now, with all that is prepared; the number of steps that fit takes the place of settings.steps.
    """
    began = time.perf_counter()
    stopped, spent = resume and (job.folder / "config.json").is_file(), 0.0
    if stopped:
        if not unfinished(job.folder):
            print(f"{job.folder} is finished")
            return
        training = read_json(job.folder / "config.json")["training"]
        if odd := vars(job.settings).keys() ^ training["settings"].keys():
            raise ValueError(f"{job.folder} was begun by another version of minidiff, whose settings differ in "
                             f"{', '.join(sorted(odd))}: finish it with that one, or begin anew")
        job = job._replace(settings=SimpleNamespace(**training["settings"]), seed=training["seed"])
        spent = read_json(job.folder / TIME)["minutes"]
    s = job.settings
    bf16 = {"auto": fast_in_bf16(job.device), "fp32": False, "bf16": True}[precision]
    bf16 = bf16 and job.stage != "clip"  # cosines, times up to 100, want more digits
    work = WORKS[job.stage](job)

    def trainer() -> Trainer:
        torch.manual_seed(job.seed)
        options = {field.name: getattr(s, field.name) for field in fields(TrainConfig) if hasattr(s, field.name)}
        net = work.build().to(job.device, memory_format=torch.channels_last)
        return Trainer(net.train(), work.loss, TrainConfig(**options, seed=job.seed, bf16=bf16))

    if minutes and not stopped:
        left = minutes * (1 - DRAWING) - (time.perf_counter() - began) / 60
        s.steps = steps_in(left, trainer(), work.feed(0))
        print(f"{minutes:g} minutes are {s.steps} steps here: --set {job.stage}.steps={s.steps} repeats this run")
    t = trainer()
    if stopped:
        t.load_state(job.folder)
        print(f"{job.stage} goes on from step {t.step} of {s.steps}")

    def write(t: Trainer) -> None:
        keep(t, job, work, spent + (time.perf_counter() - began) / 60)

    t.fit(work.feed(t.step * s.accumulate), after=write)
    write(t)
    work.show(t.ema.net)
    (job.folder / "trainer.safetensors").unlink()  # four times the weights, and of no use any more
    parameters = sum(p.numel() for p in t.net.parameters())
    print(f"{job.folder}: {parameters:,} weights, {s.steps} steps, {(time.perf_counter() - began) / 60:.1f} minutes")


def keep(trainer: Trainer, job: Job, work: Work, minutes: float) -> None:
    """Write the averaged weights, the losses, and what a resumed run needs."""
    trainer.save_state(job.folder)
    time_taken = {"minutes": round(minutes, 2), "machine": machine(job.device)}
    write_file(job.folder / TIME, (json.dumps(time_taken) + "\n").encode())
    work.keep(trainer.ema.net, {"settings": vars(job.settings), "step": trainer.step, "seed": job.seed})
    rows = "".join(f"{i},{x:.6f}\n" for i, x in enumerate(trainer.losses))
    write_file(job.folder / "losses.csv", f"step,loss\n{rows}".encode())
    plot.show_losses(trainer.losses, title=f"training loss: {job.stage}", file=job.folder / "loss.png")
