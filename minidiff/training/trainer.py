"""The training loop: batches in, gradient steps, an averaged network out; nothing in it knows about diffusion.

What is being learned is a function loss(net, x, y) -> scalar, so the same loop trains a U-Net on noise, a VAE or a CLIP.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .checkpoint import read_tensors, write_tensors
from .ema import EMA
from .muon import Muon


def adamw(net: nn.Module, lr: float, bf16: bool = False) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), fused: one pass over memory, a third of the time; with or without bf16 the same."""
    return torch.optim.AdamW(net.parameters(), lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)


OPTIMIZERS = {"muon": Muon, "adamw": adamw}


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Raises ValueError for numbers that make no sense."""

    steps: int = 1000  # optimizer steps
    optimizer: str = "muon"  # or "adamw": simpler, and slower to learn
    lr: float = 2e-3
    warmup: int = 50  # steps over which the learning rate rises from 0
    decay: str = "cosine"  # then falls to 0 as a cosine; or "constant"
    accumulate: int = 1  # batches whose gradients are added up into one step
    ema: float = 0.999  # decay of the averaged weights
    clip: float = 1.0  # largest norm of a gradient
    bf16: bool = False  # run the network in bfloat16 where that is safe (autocast), and find Muon's directions in it
    seed: int = 0  # of everything random
    every: int = 500  # steps between checkpoints and previews; 0 for none on the way
    compile: bool = False  # let torch write code for this network (Ansel et al. 2024): a minute or two, then shorter steps

    def __post_init__(self):
        for name in ("steps", "lr", "accumulate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)}: it must be positive")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f'optimizer = "{self.optimizer}": there are {", ".join(OPTIMIZERS)}')
        if self.decay not in ("cosine", "constant"):
            raise ValueError(f'decay = "{self.decay}": the learning rate decays as "cosine" or stays "constant"')

    def lr_at(self, step: int) -> float:
        """Learning rate of step 0 ... steps-1."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return self.lr * rise * ((1 + cos(pi * step / self.steps)) / 2 if self.decay == "cosine" else 1.0)


class Trainer:
    """Trains `net` on loss(net, x, y) and keeps an EMA of it.

        trainer = Trainer(net, lambda net, x, y: diffusion_loss(net, x, schedule, y=y), TrainConfig(steps=1000))
        trainer.fit(batches(images, 64))
        sample from trainer.ema.net

    Every step seeds torch's random numbers by (seed, step) alone: on a CPU a run repeats bit for bit, and so does one that
    was cut and resumed, whatever else drew numbers between two steps.
    """

    def __init__(self, net: nn.Module, loss: Callable[[nn.Module, Tensor, Tensor | None], Tensor], config: TrainConfig):
        self.net, self.loss, self.config = net, loss, config
        self.run = torch.compile(net, dynamic=False) if config.compile else net  # what steps go through; the weights are net's
        self.optimizer = OPTIMIZERS[config.optimizer](net, config.lr, bf16=config.bf16)
        self.ema = EMA(net, config.ema)
        self.losses: list[float] = []  # one a step, so its length is the number of steps done

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return len(self.losses)

    def fit(self, batches: Iterator, progress: bool = True, after: Callable[["Trainer"], None] | None = None) -> list[float]:
        """Run to config.steps under a progress bar (loss, images/s, time left); returns the losses, one a step.

        batches: yields (x, y); a resumed run must be given what comes after the first step * accumulate of them.
        after: called with the trainer every `config.every` steps, to save and to draw.
        Raises ValueError as soon as a loss is not finite.
        """
        c, began, images = self.config, time.perf_counter(), 0
        with tqdm(total=c.steps, initial=self.step, unit="step", disable=not progress) as bar:
            while self.step < c.steps:
                images += self.one_step(batches)
                recent, rate = self.losses[-50:], images / (time.perf_counter() - began)
                bar.set_postfix_str(f"loss {sum(recent) / len(recent):.4f}, {rate:.0f} images/s", refresh=False)
                bar.update()
                if after and c.every and self.step % c.every == 0 and self.step < c.steps:
                    after(self)
        return self.losses

    def one_step(self, batches: Iterator) -> int:
        """One optimizer step; returns how many images it took."""
        c, total, images = self.config, 0.0, 0
        torch.manual_seed(c.seed * 1_000_003 + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = c.lr_at(self.step)
        for _ in range(c.accumulate):
            x, y = next(batches)
            with torch.autocast(x.device.type, torch.bfloat16) if c.bf16 else nullcontext():
                loss = self.loss(self.run, x, y) / c.accumulate
            loss.backward()
            total, images = total + loss.item(), images + len(x)
        if not abs(total) < float("inf"):
            raise ValueError(f"the loss became {total} at step {self.step}: lower the learning rate ({c.lr}) or check the data")
        nn.utils.clip_grad_norm_(self.net.parameters(), c.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.net)
        self.losses.append(total)
        return images

    # ---- to stop today and go on tomorrow -----------------------------------------------------------------------------

    def save_state(self, folder: str | Path) -> None:
        """Write all that a resumed run needs to folder/trainer.safetensors; one file, so it is all there or not at all."""
        tensors = {"losses": torch.tensor(self.losses, dtype=torch.float64), "ema_updates": torch.tensor(self.ema.updates)}
        tensors |= {f"net.{name}": value for name, value in self.net.state_dict().items()}
        tensors |= {f"ema.{name}": value for name, value in self.ema.net.state_dict().items()}
        for name, p in self.net.named_parameters():
            tensors |= {f"optimizer.{name}.{key}": value for key, value in self.optimizer.state.get(p, {}).items()}
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_tensors(Path(folder) / "trainer.safetensors", tensors)

    def load_state(self, folder: str | Path) -> None:
        """Go on where save_state left off. FileNotFoundError if there is nothing, ValueError if it is of another network."""
        tensors = read_tensors(Path(folder) / "trainer.safetensors")
        prefixes = ("net.", "ema.", "optimizer.")
        part = {p: {k.removeprefix(p): v for k, v in tensors.items() if k.startswith(p)} for p in prefixes}
        parameters, states = dict(self.net.named_parameters()), {}
        known = {key.rpartition(".")[0] for key in part["optimizer."]} <= parameters.keys()  # momenta go by name, not by order
        if part["net."].keys() != self.net.state_dict().keys() or not known:
            raise ValueError(f"{folder} holds the state of another network: resume with the options, and the version of "
                             "minidiff, that it was started with")
        self.net.load_state_dict(part["net."])
        self.ema.net.load_state_dict(part["ema."])
        order = {id(p): i for i, p in enumerate(p for group in self.optimizer.param_groups for p in group["params"])}
        for key, value in part["optimizer."].items():
            name, _, what = key.rpartition(".")
            p = parameters[name]
            if value.ndim:  # a fused optimizer walks memory: moments must lie as their parameter does, channels last
                value = torch.empty_like(p).copy_(value)
            states.setdefault(order[id(p)], {})[what] = value
        self.optimizer.load_state_dict({"state": states, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.ema.updates, self.losses = int(tensors["ema_updates"]), tensors["losses"].tolist()
