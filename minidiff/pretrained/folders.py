"""Folders in the format of diffusers and transformers, on this disk or on the hub: which files there are, and what is in them.

Weights are read from safetensors only. A pickle (.bin, .pt, .ckpt) is a program that runs when it is opened; anybody may
have put anything into it.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..training.checkpoint import read_json

STEMS = ("diffusion_pytorch_model", "model")  # what diffusers and transformers call the file of weights
UNREAD = ("safety_checker/*", "text_encoder_3/*", "tokenizer_3/*", "text_encoders/*")  # the last three: 9 GB and more of T5
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
HINT = "name a folder in the format of diffusers: model_index.json, and a folder per part with config.json and safetensors"


class File:
    """A safetensors file, read one tensor at a time.

    As long as it is open, all that was read of it counts as memory, beside the tensors that were made of it. So it is opened
    anew after every 256 MB.
    """

    def __init__(self, path: Path):
        self.path, self.read, self.opened = path, 0, safe_open(path, "pt")

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name, as it is in the file."""
        if self.read > 2**28:
            self.read, self.opened = 0, safe_open(self.path, "pt")
        tensor = self.opened.get_tensor(name)
        self.read += tensor.nbytes
        return tensor


class Stored:
    """A tensor that is still in its file: its `shape`, and `to`, which reads it."""

    def __init__(self, file: File, name: str):
        self.file, self.name, self.shape = file, name, torch.Size(file.opened.get_slice(name).get_shape())

    def to(self, device: str, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor, on `device` and in `dtype`, its own if None."""
        return self.file.tensor(self.name).to(device, dtype)


def find(name: str | Path, variant: str | None = None) -> Path:
    """The folder of that name, or of that id on the hub ("organisation/model"), downloaded if it is not here yet.

    Only JSON, vocabularies and safetensors are downloaded, of `variant` if one is given. Raises FileNotFoundError for a
    name that is neither, or that the hub does not give us.
    """
    if Path(name).is_dir():
        return Path(name)
    if isinstance(name, Path) or str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
        raise FileNotFoundError(f'"{name}" is neither a folder nor the id of a model, "organisation/model"')
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    weights = [f"*/*.{variant}.safetensors", f"*/*.{variant}-*.safetensors"] if variant else ["*/*.safetensors"]
    others = [] if variant else ["*/*.fp16.*", "*/*.fp16-*", "*/*non_ema*"]
    try:
        return Path(snapshot_download(str(name), allow_patterns=["model_index.json", "*/*.json", "*/*.txt", *weights],
                                      ignore_patterns=[*UNREAD, *others]))  # fmt: skip
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        why = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        raise FileNotFoundError(f'"{name}" is no folder here, and the hub did not give it ({why})') from error


def read_folder_json(path: Path) -> dict:
    """A JSON file of such a folder. FileNotFoundError if there is none, ValueError if it is no JSON."""
    return read_json(path, HINT)


def read_config(folder: Path, classes: tuple[str, ...]) -> dict:
    """folder/config.json. FileNotFoundError if there is none, ValueError if it describes none of `classes`."""
    config = read_folder_json(folder / "config.json")
    name = config.get("_class_name") or (config.get("architectures") or [config.get("class")])[0]
    if name not in classes:
        raise ValueError(f'{folder}/config.json describes "{name}": here minidiff reads {" or ".join(classes)}')
    return config


def read_weights(folder: Path, variant: str | None = None) -> dict[str, Stored]:
    """All tensors of a folder, in its one safetensors file or in the several that an index lists.

    They stay on the disk until they are asked for. Raises FileNotFoundError where a file is missing, ValueError for a pickle,
    for a file that is cut short, or for an index that promises what its files do not hold.
    """
    dot = f".{variant}" if variant else ""
    for stem in STEMS:
        if (folder / f"{stem}{dot}.safetensors").is_file():
            return _stored(folder / f"{stem}{dot}.safetensors")
        index = folder / f"{stem}.safetensors.index{dot}.json"
        if index.is_file():
            return _read_shards(index)
    raise _nothing_to_read(folder, variant)


def _stored(path: Path) -> dict[str, Stored]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: {HINT}")
    try:
        file = File(path)
        return {name: Stored(file, name) for name in list(file.opened.keys())}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file ({error})") from error


def _read_shards(index: Path) -> dict[str, Stored]:
    place = read_json(index, HINT).get("weight_map") or {}
    tensors = {}
    for file in sorted(set(place.values())):
        if Path(file).name != file:
            raise ValueError(f"{index} points outside its folder, to {file}")
        tensors |= _stored(index.parent / file)
    if tensors.keys() != place.keys():
        odd = sorted(tensors.keys() ^ place.keys())
        raise ValueError(f"{index} and its files do not hold the same tensors: {', '.join(odd[:3])}, {len(odd)} in all")
    return tensors


def _nothing_to_read(folder: Path, variant: str | None) -> Exception:
    files = sorted(path.name for path in folder.iterdir())
    others = {name.split(".")[-2] for name in files if name.endswith(".safetensors") and name.count(".") == 2}
    if others - {variant}:
        fix = " or ".join(f'variant="{other.split("-")[0]}"' for other in sorted(others - {variant}))
        return FileNotFoundError(f"{folder} has no weights of variant {variant}: there are others, take {fix}")
    pickles = [name for name in files if name.endswith(PICKLES)]
    if pickles:
        return ValueError(f"{folder} holds its weights as a pickle only ({pickles[0]}), which is a program that runs when "
                          "it is opened: get the model as .safetensors, or convert it where you trust it")
    return FileNotFoundError(f"{folder} has no {STEMS[0]}.safetensors or {STEMS[1]}.safetensors: {HINT}")
