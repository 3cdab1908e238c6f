"""How a learner's class of layers is asked: built, filled with given weights whatever its layers are called, and used."""

import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn


class Asked(NamedTuple):
    """What a class of layers answers: `layers` is COMPLETE, or says what is missing and what is too many."""

    layers: str
    answer: Any


COMPLETE = "complete"


def kind(layer):
    """What a layer is and how large, such as "Linear 16x8 + 16"; "" if it learns nothing itself."""
    sizes = ["x".join(map(str, weights.shape)) for weights in layer.parameters(recurse=False)]
    name = next(base.__name__ for base in type(layer).__mro__ if base.__module__.startswith("torch.nn"))
    return f"{name} {' + '.join(sizes)}" if sizes else ""


def line(shape, rng, is_weight):
    """Weights from -1 to 1, evenly: for cases worked out by hand."""
    return torch.linspace(-1, 1, shape.numel()).view(shape)


def noise(shape, rng, is_weight):
    """Random weights that keep the size of what they multiply."""
    draw = torch.randn(shape, generator=rng)
    return draw / shape[1:].numel() ** 0.5 if len(shape) > 1 else is_weight + 0.3 * draw


@torch.no_grad()
def filled(module, fill):
    """The module with given weights, whatever its layers are called: the k-th of a kind gets the k-th weights of that kind."""
    seen = Counter()
    for layer in filter(kind, module.modules()):
        rng = torch.Generator().manual_seed(zlib.crc32(f"{kind(layer)} {seen[kind(layer)]}".encode()))
        for name, weights in layer.named_parameters(recurse=False):
            weights.copy_(fill(weights.shape, rng, name == "weight"))
        seen[kind(layer)] += 1
    return module


def asking(library: Callable, use=lambda module, *inputs: module.forward(*inputs)) -> Callable:
    """How a version of `library` is asked: it is built with `options`, filled, used.

    By its forward, and not by a call, so that an error is told with the line of the learner's that raised it.
    """

    def ask(f, fill, options, *inputs):
        module = f(**options)
        if not isinstance(module, nn.Module):
            raise TypeError(f"this is to be a class derived from nn.Module, and gives {type(module).__name__}")
        mine, theirs = (Counter(map(kind, filter(kind, net.modules()))) for net in (module, library(**options)))
        told = [f"{what} {count} x {name}" for what, some in (("missing", theirs - mine), ("too many", mine - theirs))
                for name, count in some.items()]  # fmt: skip
        with torch.no_grad():
            return Asked("; ".join(told) or COMPLETE, use(filled(module, fill), *inputs))

    return ask


def forwards(library, forward):
    """The library's class with another forward."""
    return type(library.__name__, (library,), {"forward": forward})


def awake(library, last):
    """The library's class, the weights of whose last layer are not set to zero."""

    def version(*args, **options):
        module = library(*args, **options)
        module.get_submodule(last).reset_parameters()
        return module

    return version


def starts_as_identity(options, x, *more):
    """The law of a layer that is to add nothing before it has learned anything."""
    return lambda f: torch.allclose(f(**options).forward(x, *more), x, atol=1e-6)
