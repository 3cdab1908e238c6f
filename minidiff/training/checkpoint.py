"""Checkpoints: weights as safetensors, everything else as JSON. Loading one never runs code that it brings.

A file is written beside its final name, flushed to the disk and only then renamed over the old one, so a crash or a
pulled plug at any moment leaves the previous checkpoint whole.
"""

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save as to_bytes
from torch import Tensor, nn

from ..nets import CLIP, VAE, CLIPImage, CLIPText, DiT, MMDiT, Pixels, UNet

NETWORKS = {net.__name__: net for net in (UNet, DiT, MMDiT, VAE, Pixels, CLIP, CLIPText, CLIPImage)}
HINT = "name a folder that `python -m minidiff train` wrote"


def save(folder: str | Path, net: nn.Module, dtype: torch.dtype | None = None, **about) -> Path:
    """Write folder/model.safetensors and folder/config.json: {"class", "config", **about}, `about` being plain JSON data.

    The network must keep its constructor's arguments in `net.config`. dtype: of the numbers in the file, torch.float16 for
    half of one; None: as they are. Returns the folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "model.safetensors", {name: tensor.to(dtype) for name, tensor in net.state_dict().items()})
    config = {"class": type(net).__name__, "config": net.config, **about}
    write_file(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    return folder


def load(folder: str | Path, device: str = "cpu") -> tuple[nn.Module, dict]:
    """The network of a checkpoint, ready to sample from, and its config.json.

    A folder that names no class is one of the U-Nets from before there were others. Raises FileNotFoundError where there is
    no checkpoint, ValueError for a class that is not ours or weights that do not fit.
    """
    folder = Path(folder)
    about = read_json(folder / "config.json")
    name = about.get("class", "UNet" if "config" in about else None)
    if name not in NETWORKS:
        raise ValueError(f'{folder}/config.json names the network "{name}": minidiff has {", ".join(NETWORKS)}')
    try:
        net = NETWORKS[name](**about["config"])
    except TypeError as error:
        raise ValueError(f"{folder}/config.json was written for another version of {name}: {error}") from error
    load_weights(net, folder / "model.safetensors")
    return net.to(device).eval(), about


def load_weights(net: nn.Module, file: Path) -> None:
    """Fill `net` from a safetensors file; every name and shape must match. ValueError lists those that do not."""
    weights, wanted = read_tensors(file), net.state_dict()
    wrong = [f"missing {name}" for name in wanted.keys() - weights.keys()]
    wrong += [f"unexpected {name}" for name in weights.keys() - wanted.keys()]
    wrong += [f"{name} is {tuple(weights[name].shape)}, not {tuple(wanted[name].shape)}"
              for name in wanted.keys() & weights.keys() if weights[name].shape != wanted[name].shape]
    if wrong:
        raise ValueError(f"{file} does not fit this network: " + "; ".join(sorted(wrong)[:5])
                         + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""))
    net.load_state_dict(weights)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file, all or nothing."""
    write_file(path, to_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file. FileNotFoundError if there is none, ValueError if it is cut short or no safetensors."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: {HINT}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file ({error})") from error


def read_json(path: Path, hint: str = HINT) -> dict:
    """Read a JSON file. FileNotFoundError if there is none, ValueError if it is no JSON."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: {hint}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error})") from error


def write_file(path: Path, content: bytes) -> None:
    """Write a file, all or nothing: beside its name, flushed, then renamed over it."""
    beside = path.with_name(path.name + ".part")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:  # a full disk keeps no half of it either
        beside.unlink(missing_ok=True)
        error.filename = error.filename or str(path)
        raise
