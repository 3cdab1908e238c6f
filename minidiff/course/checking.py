"""check(id, fn): is this function right, and if not, what is the likely mistake? With hint and progress beside it."""

import base64
import copy
import html
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import plot
from ..diffusion import CLEAN
from .compare import difference, plain
from .guard import Outcome, explain, run
from .task import Case, Task, find, tasks

_hinted: dict[str, int] = {}  # how many hints of a task were given


@dataclass(frozen=True)
class Report:
    """What a check found; truthy when passed. A notebook shows it with a picture of the target beside yours."""

    id: str
    title: str
    passed: bool
    says: str
    wanted: Any = None
    got: Any = None

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        return f"{'✓' if self.passed else '✗'} {self.id} {self.title}: {self.says}"

    def _repr_html_(self) -> str:
        colour, picture = ("#1a7f37" if self.passed else "#b35900"), draw(self.wanted, self.got)
        text = re.sub("`([^`]*)`", r"<code>\1</code>", html.escape(repr(self))).replace("\n", "<br>")
        if picture:
            png = base64.b64encode(picture._repr_png_()).decode()
            text += f'<br><img src="data:image/png;base64,{png}" alt="target and yours" style="max-width:100%">'
        return f'<div style="border-left:4px solid {colour};padding:4px 12px">{text}</div>'


def check(id: str, fn: Callable) -> Report:
    """Ask `fn` everything that task `id` asks. Never raises, whatever fn does; a report that passed is remembered.

    Its first line says what is wrong, and what mistake that usually is.
    """
    try:
        report = examine(find(id), fn)
    except ValueError as error:  # no such task
        return Report(str(id), "", False, str(error))
    if report:
        _remember(id)
    return report


def examine(task: Task, fn: Callable) -> Report:
    """The questions of `check`, to any function, with nothing remembered."""

    def report(passed, says, wanted=None, got=None):
        return Report(task.id, task.title, passed, says, wanted, got)

    if not callable(fn):
        return report(False, f'give the function itself, check("{task.id}", {task.name}), and not a {type(fn).__name__}')
    for case in task.cases:
        wanted, got = right(task, case), answer(task, fn, case.args)
        if got.error is not None:
            return report(False, f"{case.name}: {task.name} {explain(got.error, task.seconds)}")
        compared = run(lambda: difference(got.value, wanted, task.tolerance), task.seconds)  # noqa: B023  run at once
        if compared.error is not None:
            return report(False, f"{case.name}: the answer cannot be read: {compared.error}")
        if compared.value:
            says, usual = f"{case.name}: {compared.value}", diagnose(task, fn)
            return report(False, f"{usual}\n({says})" if usual else says, *to_show(task, fn))
    for law in task.laws:
        held = seeded(lambda: bool(law.holds(fn)), task.seconds)  # noqa: B023
        if held.error is not None or not held.value:
            aside = f"\n({task.name} {explain(held.error, task.seconds)})" if held.error is not None else ""
            return report(False, law.says + aside)
    return report(True, f"right. The library's own is in {task.where}", *to_show(task, fn))


def right(task: Task, case: Case) -> Any:
    """The answer to a case: worked out by hand, or the library's."""
    return answer(task, task.solution, case.args).value if case.expect is None else case.expect


def answer(task: Task, fn: Callable, args: tuple) -> Outcome:
    """What `fn` answers to copies of `args`, under a fixed seed. Changing an argument in place counts as an error."""
    given = copy.deepcopy(args, {id(CLEAN): CLEAN})  # `level is md.CLEAN` must hold in a check, too

    def work():
        value = task.ask(fn, *given)
        for i, (before, after) in enumerate(zip(args, given, strict=True)):
            if isinstance(before, torch.Tensor) and not torch.equal(before, after):
                raise RuntimeError(f"argument {i} was changed in place (by +=, say, or by x[...] = ...): make a new tensor")
        return value

    return seeded(work, task.seconds)


def seeded(work: Callable[[], Any], seconds: float) -> Outcome:
    """`run` with torch's random numbers started afresh, and the reader's own put back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return run(work, seconds)


def diagnose(task: Task, fn: Callable) -> str | None:
    """The sentence of the known mistake that answers every case as `fn` does, if there is one."""
    answers = [answer(task, fn, case.args) for case in task.cases]
    for mistake in task.mistakes:
        pairs = ((a, answer(task, mistake.version, case.args)) for a, case in zip(answers, task.cases, strict=True))
        if all(_same(a, b, task) for a, b in pairs):
            return mistake.says
    return None


def _same(a: Outcome, b: Outcome, task: Task) -> bool:
    alike = Outcome(value=None, error=None)
    return a.error is b.error is None and run(lambda: difference(a.value, b.value, task.tolerance), task.seconds) == alike


def to_show(task: Task, fn: Callable) -> tuple[Any, Any]:
    """(wanted, got) of a case that makes a picture: the first on which they differ, or the first of all; (None, None)."""
    shown = (None, None)
    for case in task.cases:
        wanted, got = right(task, case), answer(task, fn, case.args)
        drawn = run(lambda: (draw(wanted, got.value), difference(got.value, wanted, task.tolerance)), task.seconds)  # noqa: B023
        if got.error is not None or drawn.error is not None or drawn.value[0] is None:
            continue
        if drawn.value[1]:
            return wanted, got.value
        shown = (wanted, got.value) if shown == (None, None) else shown
    return shown


def draw(wanted: Any, got: Any) -> plot.Picture | None:
    """The target above, yours below, where the answers are pictures; two curves where they are curves; else nothing."""
    pair = [_first_tensor(plain(value)) for value in (wanted, got)]
    if not all(isinstance(value, torch.Tensor) for value in pair) or pair[0].shape != pair[1].shape:
        return None
    wanted, got = (value.detach().cpu().float() for value in pair)
    if wanted.ndim == 4 and wanted.shape[1] in (1, 3) and wanted.shape[-1] >= 8:
        both = torch.cat([wanted[:6], got[:6]])
        return plot.show_images(both, row_labels=["target", "yours"])
    if wanted.ndim == 1 and len(wanted) >= 8:
        steps = range(len(wanted))
        return plot.show_curves({"target": (steps, wanted), "yours": (steps, got)})
    return None


def _first_tensor(value: Any) -> Any:
    """Of several parts the first that is no single number."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else (value,)
    return next((part for part in parts if isinstance(part, torch.Tensor) and part.ndim), None)


def hint(id: str) -> None:
    """Print the next hint for task `id`; the last one points to the library's own line."""
    task = find(id)
    given = _hinted.get(id, 0)
    _hinted[id] = given + 1
    if given < len(task.hints):
        print(f"hint {given + 1} of {len(task.hints)}: {task.hints[given]}")
    else:
        print(f"that was the last hint. The library's own `{task.name}` is in {task.where}: read it, close it, write yours")


def progress() -> None:
    """Print which tasks are passed, chapter by chapter. They are kept in a file of your home; see MINIDIFF_PROGRESS."""
    passed, known = _passed(), tasks()
    for chapter in sorted({id[:2] for id in known}):
        ids = [id for id in known if id.startswith(chapter)]
        print(f"chapter {chapter}  {''.join('■' if id in passed else '□' for id in ids):6}  "
              + ", ".join(f"{id} {known[id].title}" for id in ids if id not in passed))  # fmt: skip
    print(f"{len(passed & set(known))} of {len(known)} tasks passed")


def _file() -> Path:
    return Path(os.environ.get("MINIDIFF_PROGRESS", Path.home() / ".minidiff" / "progress.json"))


def _passed() -> set[str]:
    try:
        return set(json.loads(_file().read_text()))
    except FileNotFoundError:
        return set()


def _remember(id: str) -> None:
    try:
        _file().parent.mkdir(parents=True, exist_ok=True)
        _file().write_text(json.dumps(sorted(_passed() | {id})))
    except (OSError, ValueError) as error:  # a read-only home, or a file that is no list: no reason to fail a right answer
        print(f"this could not be noted in {_file()}: {error}")
