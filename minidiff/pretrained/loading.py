"""Weights of others in networks of ours: a table of rules renames them, and nothing may be left over on either side.

The tables are short because both networks are the same network: only the names differ. What makes them safe is the count
at the end. Every tensor of the file and every parameter of ours is used exactly once and has one shape, or nothing is
loaded and one error says what does not fit.
"""

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..training import load
from .folders import Stored, read_config, read_weights

Rules = list[tuple[str, str | None]]


def rename(name: str, rules: Rules) -> str | None:
    """Their name -> ours: every rule (regex, replacement) is applied, in order.

    A replacement of None says that names in which the regex is found are no weights: the answer is None.
    """
    for pattern, new in rules:
        if new is not None:
            name = re.sub(pattern, new, name)
        elif re.search(pattern, name):
            return None
    return name


def fill(net: nn.Module, tensors: dict[str, Tensor | Stored], rules: Rules, source: str | Path,
         dtype: torch.dtype | None = None, device: str = "cpu") -> None:  # fmt: skip
    """Give every parameter of `net`, which may be on the meta device, its tensor, in `dtype` (the tensor's own if None).

    `tensors` is emptied on the way, so that a large model is in memory once. Raises ValueError, before the network is
    touched, if a parameter is missing, a tensor unexpected, one name claimed twice, or a shape wrong.
    """
    wanted, theirs, wrong = net.state_dict(), {}, []
    for name in tensors:
        ours = rename(name, rules)
        if ours in theirs:
            wrong.append(f"{theirs[ours]} and {name} both claim to be {ours}")
        elif ours is not None and ours not in wanted:
            wrong.append(f"unexpected {name}" + (f" ({ours})" if ours != name else ""))
        elif ours is not None:
            theirs[ours] = name
            if tensors[name].shape != wanted[ours].shape:
                wrong.append(f"{name} is {tuple(tensors[name].shape)}, not {tuple(wanted[ours].shape)}")
    wrong += [f"missing {ours}" for ours in wanted.keys() - theirs.keys()]
    if wrong:
        raise ValueError(f"{source} does not fit {type(net).__name__}: " + "; ".join(sorted(wrong)[:6])
                         + (f"; and {len(wrong) - 6} more" if len(wrong) > 6 else ""))
    net.load_state_dict({ours: tensors.pop(name).to(device, dtype) for ours, name in theirs.items()}, assign=True)


class Unfilled(TorchFunctionMode):
    """Inside, new networks draw no random weights. On the meta device there is no place for them, and yet it takes seconds."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def load_network(
    folder: str | Path, build: Callable[[dict], nn.Module], rules: Rules, classes: tuple[str, ...],
    dtype: torch.dtype | None = torch.float32, device: str = "cpu", variant: str | None = None,
) -> nn.Module:  # fmt: skip
    """The network of a folder in the format of diffusers or transformers, config.json + safetensors, ready to use.

    So is the network of one of our own folders, which `training.save` wrote: its config.json says "class", and needs no rules.
    build: config.json's dict -> our network. classes: what the config may name. variant: "fp16" takes the files of that
    variant. Raises FileNotFoundError or ValueError, and never returns a network that is only partly filled.
    """
    config = read_config(Path(folder), classes)
    if "class" in config:
        if variant:
            raise ValueError(f"{folder} was written by minidiff, which keeps no variants: leave variant={variant!r} out")
        return load(folder, device)[0].to(dtype=dtype)
    with torch.device("meta"), Unfilled():  # no memory, no random numbers: the file brings them all
        net = build(config)
    fill(net, read_weights(Path(folder), variant), rules, folder, dtype, device)
    return net.eval()
