"""What a step of the hour's U-Net costs on this machine, how much of it is the optimizer's, and whether compiling pays.

Steps of `train --stage unet --text joint` as they are by default, or by --set, with the captions of scenes that are not drawn
and noise in place of their latents: a step takes as long whatever it learns. The ways take turns, since a machine has moods.
What torch has compiled once it finds in its cache the next time, and then the first step is short.
"""

import time
from collections.abc import Iterator
from statistics import median
from typing import NamedTuple

import torch
from tqdm.auto import tqdm

from ..data.captions import Captioned
from ..data.grammar import WORDS
from ..diffusion import Schedule
from ..pretrained import words_tokenizer
from ..training import TrainConfig, Trainer
from ..training.latent import Lessons, Reader, latent_loss
from . import stages, tables
from .common import check_compiler, device_argument, fast_in_bf16, keep_memory, machine, pick_device, write_json
from .works import new_unet, reader, text_sizes

WAYS = ("plain", "compiled")
MOODS = 0.05  # share of a step by which a machine differs from itself
SIDE = stages.SETTINGS["vae"]["size"] // 2 ** (len(stages.SETTINGS["vae"]["channels"]) - 1)  # of latents
CHANNELS = stages.SETTINGS["vae"]["latent_channels"]
SCENES = 512  # to take batches from


class Pace(NamedTuple):
    """What was measured of one way of training, in seconds."""

    way: str
    first: float  # the first step, in which whatever is compiled gets compiled
    steps: list[float]
    optimizer: list[float]  # its part of each of them

    @property
    def step(self) -> float:
        """A step: the median."""
        return median(self.steps)


def arguments(parser):
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="of training, which take turns")
    parser.add_argument("--turns", type=int, default=3, help="of each way")
    parser.add_argument("--steps", type=int, default=20, help="in a turn")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE",
                        help="numbers of the stage, as for train; what costs no time is not looked at")  # fmt: skip
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto: bf16 where it is fast")
    device_argument(parser)
    parser.set_defaults(variant="base", given=frozenset())  # what else `stages.chosen` looks at


def run(args):
    """Measure, print and write. ValueError where there is nothing to measure, or no compiler for what is to be compiled."""
    if args.turns < 1 or args.steps < 1:
        raise ValueError(f"--turns {args.turns} of --steps {args.steps}: give 1 or more of each")
    keep_memory()
    s, device = stages.chosen("unet", args, several=False), pick_device(args.device)
    if "compiled" in args.ways:
        check_compiler(device)
    bf16 = {"auto": fast_in_bf16(device), "fp32": False, "bf16": True}[args.precision]
    found = measured(args.ways, s, device, bf16, args.turns, args.steps)
    print(table(found, s.batch))
    kind = "bfloat16" if bf16 else "float32"
    print(f"\n{machine(device)}, {kind}; medians of {args.turns} turns of {args.steps} steps.{verdict(found)}")
    if args.json:
        rows = [pace._asdict() | {"step": pace.step} for pace in found]
        write_json(args.json, {"machine": machine(device), "bf16": bf16, "settings": vars(s), "rows": rows})


def measured(ways: list[str], s, device: str, bf16: bool, turns: int, steps: int) -> list[Pace]:
    """Train a network each of the `ways`, by turns."""
    found, running = [], []
    for way in tqdm(ways, "first steps", leave=False):
        trainer, feed = begun(s, device, bf16, compiled=way == "compiled")
        clock = _Clock(trainer, device)
        found.append(Pace(way, clock.step(feed)[0], [], []))
        clock.step(feed)  # a second one, to warm up
        running.append((clock, feed))
    for _ in tqdm(range(turns), "turns", leave=False):
        for pace, (clock, feed) in zip(found, running, strict=True):
            for _ in range(steps):
                whole, optimizer = clock.step(feed)
                pace.steps.append(whole)
                pace.optimizer.append(optimizer)
    return found


def begun(s, device: str, bf16: bool, compiled: bool) -> tuple[Trainer, Iterator]:
    """The training that stage `unet` begins when its reader learns with it, and batches for it."""
    torch.manual_seed(0)
    tokenizer = words_tokenizer(WORDS, s.length)
    net = Reader(new_unet(s, CHANNELS, s.text_dim), reader(tokenizer, *text_sizes(s)))
    net = net.to(device, memory_format=torch.channels_last).train()
    config = TrainConfig(lr=s.lr, ema=s.ema, optimizer=s.optimizer, accumulate=s.accumulate, bf16=bf16, compile=compiled)
    loss = latent_loss(Schedule.flow(shift=s.shift), s.predicts, measured=s.measured)
    scenes = Captioned(max(SCENES, s.batch), brief=s.brief, tasks=s.tasks)
    texts = tokenizer([*(scenes.plan(i)[1].text for i in range(len(scenes))), ""]).to(device)
    latents = torch.randn(len(scenes), CHANNELS, SIDE, SIDE, device=device)
    return Trainer(net, loss, config), Lessons(latents, None, texts[:-1], texts[-1:], dropout=s.dropout).batches(s.batch)


class _Clock:
    """Takes a trainer's steps and tells how long each took, and its optimizer of that."""

    def __init__(self, trainer: Trainer, device: str):
        self.trainer, self.device, self.optimizer = trainer, device, 0.0
        trainer.optimizer.register_step_pre_hook(lambda *_: self._count(-1))
        trainer.optimizer.register_step_post_hook(lambda *_: self._count(+1))

    def step(self, feed: Iterator) -> tuple[float, float]:
        began, self.optimizer = self._now(), 0.0
        self.trainer.one_step(feed)
        return self._now() - began, self.optimizer

    def _count(self, sign: int) -> None:
        self.optimizer += sign * self._now()

    def _now(self) -> float:
        if self.device != "cpu":
            torch.accelerator.synchronize()  # work that was only ordered so far is not done
        return time.perf_counter()


def table(found: list[Pace], batch: int) -> str:
    """The ways as a table."""
    lines = [("training", "first step", "a step", "of that the optimizer", "images a second", "steps in an hour")]
    for pace in found:
        lines.append((pace.way, f"{pace.first:.1f} s", f"{pace.step:.3f} s", f"{median(pace.optimizer):.3f} s",
                      f"{batch / pace.step:.0f}", f"{(3600 - pace.first) / pace.step:.0f}"))  # fmt: skip
    return tables.markdown(lines)


def verdict(found: list[Pace]) -> str:
    """Does it pay to compile, and from how many steps on? Nothing, unless both ways were measured."""
    of = {pace.way: pace for pace in found}
    if of.keys() != set(WAYS):
        return ""
    saved = of["plain"].step - of["compiled"].step
    if saved < MOODS * of["plain"].step:
        return " Compiling does not pay here."
    return f" Compiling pays after {(of['compiled'].first - of['plain'].first) / saved:.0f} steps."
