"""Are two answers the same? And if not, what is the first thing that is wrong with the second, in words?"""

from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from ..diffusion import Schedule


def difference(got: Any, wanted: Any, tolerance: float, name: str = "the answer") -> str | None:
    """A sentence on how `got` departs from `wanted`: its kind first, then shape, dtype, values. None if it does not.

    Numbers agree within tolerance * max(1, largest of `wanted`). A number and a tensor of one element are the same, and so
    are a list and a tuple, a named tuple and a plain one, or a Schedule and the pair (alpha, sigma).
    """
    got, wanted = plain(got), plain(wanted)
    if got is None and wanted is not None:
        return f"{name} is None: is a `return` missing?"
    if isinstance(wanted, dict):
        if isinstance(got, tuple) and len(got) == len(wanted):  # a plain tuple is as good as one with names
            got = dict(zip(wanted, got, strict=True))
        if not isinstance(got, dict) or list(got) != list(wanted):
            return f"{name} is {_kind(got)}, and should be {_kind(wanted)}"
        parts = [(f"{name}.{key}" if name != "the answer" else f"`{key}`", got[key], wanted[key]) for key in wanted]
        return next((told for label, a, b in parts if (told := difference(a, b, tolerance, label))), None)
    if isinstance(wanted, tuple):
        got = tuple(got.values()) if isinstance(got, dict) else got
        if not isinstance(got, tuple):
            return f"{name} is {_kind(got)}, and should be {_kind(wanted)}"
        if len(got) != len(wanted):
            return f"{name} has {len(got)} parts, and should have {len(wanted)}"
        parts = enumerate(zip(got, wanted, strict=True))
        return next((told for i, (a, b) in parts if (told := difference(a, b, tolerance, f"part {i} of {name}"))), None)
    if isinstance(wanted, Tensor):
        return _of_tensors(got, wanted, tolerance, name)
    return None if type(got) is type(wanted) and got == wanted else f"{name} is {_kind(got)}, and should be {_kind(wanted)}"


def _of_tensors(got: Any, wanted: Tensor, tolerance: float, name: str) -> str | None:
    if not isinstance(got, Tensor):
        return f"{name} is {_kind(got)}, and should be {_kind(wanted)}"
    if got.shape != wanted.shape:
        return f"{name} has shape {tuple(got.shape)}, and should have {tuple(wanted.shape)}"
    if got.dtype != wanted.dtype and wanted.ndim:  # a single number may come in any precision
        return f"{name} is {got.dtype}, and should be {wanted.dtype}, as what goes in"
    a, b = (x.detach().cpu().double() for x in (got, wanted))
    if a.isnan().sum() > b.isnan().sum():
        return f"{name} has NaN in it: a division 0/0, or the root or logarithm of a negative number?"
    wrong = ~((a - b).abs() <= tolerance * max(1.0, b[b.isfinite()].abs().max().item() if b.isfinite().any() else 1.0))
    wrong &= ~((a == b) | (a.isnan() & b.isnan()))  # equal infinities are equal
    if not wrong.any():
        return None
    at = tuple(wrong.nonzero()[0].tolist())
    place, share = (f" at {list(at)}", f" ({wrong.double().mean():.0%} of the values are off)") if at else ("", "")
    return f"{name}{place} is {a[at]:.5g}, and should be {b[at]:.5g}{share}"


def plain(value: Any) -> Any:
    """Every answer in one of a few forms: tensor, tuple, dict, string, None, or itself."""
    if isinstance(value, bool | int | float):
        return torch.tensor(float(value))
    if isinstance(value, Schedule):
        return value.alpha, value.sigma
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if hasattr(value, "_asdict"):  # a named tuple
        return value._asdict()
    return tuple(value) if isinstance(value, list) else value


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}" if value.ndim else "a number"
    if isinstance(value, tuple | dict):
        names = f" ({', '.join(map(str, value))})" if isinstance(value, dict) else ""
        return f"{len(value)} values{names}"
    return f'"{value}"' if isinstance(value, str) else f"of type {type(value).__name__}"
