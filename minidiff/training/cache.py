"""What is computed once and read ever after, in a file that knows which weights it came from."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from .checkpoint import read_tensors, write_file


def fingerprint(*nets: nn.Module, **facts) -> str:
    """16 hexadecimal digits that are others for other weights, and for other facts, which are plain JSON data."""
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8)
    for net in nets:
        for name, tensor in net.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def cached(
    file: Path,
    made_by: str,  # a fingerprint of all that `make` depends on
    make: Callable[[], dict[str, Tensor]],
    fresh: bool = False,  # make it anew, whatever is there
    size: int = 0,  # bytes it will take, if that is known
) -> dict[str, Tensor]:
    """What make() answers, from `file` where it is there already, else made and written: all of it or nothing.

    ValueError for a file that was made by something else, or is damaged, and for a disk without room: where `size` is given,
    before anything is made.
    """
    if file.is_file() and not fresh:
        tensors = read_tensors(file)
        with safe_open(file, "pt") as opened:
            if (opened.metadata() or {}).get("made_by") != made_by:
                raise ValueError(f"{file} was made by other weights or of other scenes: --fresh-cache makes it anew")
        return tensors
    file.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(file.parent).free < size:
        raise _full(file, size)
    tensors = make()
    content = to_bytes({name: tensor.contiguous() for name, tensor in tensors.items()}, {"made_by": made_by})
    try:
        write_file(file, content)
    except OSError as error:
        raise _full(file, len(content)) from error
    return tensors


def _full(file: Path, size: int) -> ValueError:
    free = shutil.disk_usage(file.parent).free
    return ValueError(f"{file} takes {size / 1e6:.0f} MB, and the disk has {free / 1e6:.0f} MB left: make room, name another "
                      "--out, or learn from fewer scenes")
