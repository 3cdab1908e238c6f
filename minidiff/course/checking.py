"""check(id, fn): is this function right, and if not, what is the likely mistake? With hint and progress beside it."""

import base64
import copy
import html
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import plot
from .compare import difference, plain
from .guard import Outcome, explain, run
from .task import Task, find, tasks

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
        text = html.escape(repr(self)).replace("\n", "<br>")
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
        wanted = answer(task, task.solution, case.args).value if case.expect is None else case.expect
        got = answer(task, fn, case.args)
        if got.error is None:
            compared = run(lambda got=got, wanted=wanted: difference(got.value, wanted, task.tolerance), task.seconds)
            unreadable = compared.error is not None
            told = f"the answer cannot be read: {compared.error}" if unreadable else compared.value
        else:
            unreadable, told = True, f"{task.name} {explain(got.error, task.seconds)}"
        if told:
            usual = diagnose(task, fn) if got.error is None else None
            says = f"{usual}\n({case.name}: {told})" if usual else f"{case.name}: {told}"
            return report(False, says, wanted, None if unreadable else got.value)
    for law in task.laws:
        held = run(lambda law=law: bool(law.holds(fn)), task.seconds)
        if held.error is not None or not held.value:
            aside = f"\n({task.name} {explain(held.error, task.seconds)})" if held.error is not None else ""
            return report(False, law.says + aside)
    return report(True, f"right. The library's own is in {task.where}", wanted, got.value)


def answer(task: Task, fn: Callable, args: tuple) -> Outcome:
    """What `fn` answers to copies of `args`, under a fixed seed. Changing an argument in place counts as an error."""
    given = copy.deepcopy(args)

    def work():
        torch.manual_seed(0)
        value = task.ask(fn, *given)
        for i, (before, after) in enumerate(zip(args, given, strict=True)):
            if isinstance(before, torch.Tensor) and not torch.equal(before, after):
                raise RuntimeError(f"argument {i} was changed in place (by +=, say, or by x[...] = ...): make a new tensor")
        return value

    with torch.random.fork_rng(devices=[]):  # a check leaves the reader's random numbers as they were
        return run(work, task.seconds)


def diagnose(task: Task, fn: Callable) -> str | None:
    """The sentence of the known mistake that answers every case as `fn` does, if there is one."""
    answers = [answer(task, fn, case.args) for case in task.cases]
    if any(a.error is not None for a in answers):
        return None
    for mistake in task.mistakes:
        theirs = [answer(task, mistake.version, case.args) for case in task.cases]
        if all(_same(a, b, task) for a, b in zip(answers, theirs, strict=True)):
            return mistake.says
    return None


def _same(a: Outcome, b: Outcome, task: Task) -> bool:
    return b.error is None and run(lambda: difference(a.value, b.value, task.tolerance), task.seconds) == Outcome(None, None)


def draw(wanted: Any, got: Any) -> plot.Picture | None:
    """The target above, yours below, where the answers are pictures; two curves where they are curves; else nothing."""
    pair = [plain(value) for value in (wanted, got)]
    pair = [value[0] if isinstance(value, tuple) and value else value for value in pair]  # the first part of several
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
