"""What several commands need: a device, a dataset by name, precision, how many steps fit into the time there is."""

import argparse
import ctypes
import json
import platform
import time
from pathlib import Path
from statistics import median

import torch

from ..data import Images, Shapes, load_images
from ..training import Trainer


def device_argument(parser: argparse.ArgumentParser) -> None:
    """--device, which `pick_device` reads."""
    parser.add_argument("--device", default=None, help="cpu, cuda or mps; the best there is, if left out")


def pick_device(name: str | None) -> str:
    """The device asked for, or the best there is. Raises ValueError for one this machine has not got."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name is None:
        return next(device for device, present in there.items() if present)
    if not there.get(name.split(":")[0]):
        raise ValueError(f"this machine has no {name}: take {', '.join(d for d, present in there.items() if present)}")
    return name


def machine(device: str) -> str:
    """What a network is trained on, in words: the class of machine that a figure of time needs beside it."""
    if device.startswith("cuda"):
        return f"one {torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{torch.get_num_threads()} {platform.machine()} cores, torch {torch.__version__}"


def fast_in_bf16(device: str) -> bool:
    """Does bfloat16 pay here? On GPUs it does; CPUs without instructions for it emulate them, five times slower."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported()
    cpu = getattr(torch.cpu, "get_capabilities", dict)()
    return device == "cpu" and bool(cpu.get("avx512_bf16") or cpu.get("amx_bf16"))


def open_data(name: str, size: int | None, split: str = "train", limit: int | None = None,
              channels: int | None = None) -> Images:  # fmt: skip
    """Images by name: "shapes", drawn on the spot, or whatever load_images reads."""
    if name != "shapes":
        return load_images(name, size=size, split=split, limit=limit, channels=channels)
    scenes = Shapes(limit or 8192, size or 32, seed=0 if split == "train" else 1)
    return Images(*scenes.tensors(), scenes.classes)


def keep_memory() -> None:
    """Have the C library keep what one step gives back, for the next one: else Linux hands it out anew, page by page.

    That is a tenth to a third of a training step on a CPU (docs/results.md). Where there is no glibc, nothing happens.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_threshold = -1, -3  # as malloc.h numbers them
        libc = ctypes.CDLL(None)
        for what in (mmap_threshold, trim_threshold):
            libc.mallopt(what, 2_000_000_000)  # bytes; the most that fits its C int, nearly


def check_compiler(device: str) -> None:
    """ValueError where torch.compile does not work: a CPU needs a C++ compiler and Python's headers for it."""
    try:
        torch.compile(torch.cos)(torch.zeros(2, device=device))
    except RuntimeError as error:
        said = str(error).strip().splitlines()[0]
        raise ValueError("torch.compile needs a C++ compiler and Python's headers, on Debian g++ and python3-dev: install "
                         f"them, or train without compile; it says: {said}") from error  # fmt: skip


def steps_in(minutes: float, trainer: Trainer, feed, probe: int = 8) -> int:
    """How many steps fit after the first ones, by the median of these: `probe`, and more for a hundredth of the time."""
    times = []
    while len(times) < probe or sum(times) < 0.6 * minutes:  # a few alone may meet a machine in a mood
        before = time.perf_counter()
        trainer.one_step(feed)
        times.append(time.perf_counter() - before)
    left = 60 * minutes - sum(times)  # the first one compiles, if any does
    return max(1, int(left / median(times)))


def write_json(file: str | Path, found: dict) -> None:
    """All figures of a benchmark; the folder is made."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(json.dumps(found, indent=1) + "\n")
