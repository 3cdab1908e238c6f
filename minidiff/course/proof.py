"""The checks, checked: each passes the library's solution, refuses an empty stub, and tells every known mistake apart."""

from collections.abc import Callable
from typing import NamedTuple

from tqdm.auto import tqdm

from .checking import examine
from .task import Task, tasks


class Verdict(NamedTuple):
    """What was right about one task's check, and in `failures` what was not, in words."""

    id: str
    solution: bool  # the library's own version passes
    stub: bool  # an unwritten one passes, which it should not
    caught: int  # known mistakes refused, each with its own sentence
    mistakes: int
    failures: tuple[str, ...]


def verify(only: Callable[[str], bool] = lambda id: True, progress: bool = True) -> list[Verdict]:
    """A verdict on every task, or those whose id `only` accepts."""
    chosen = [task for id, task in tasks().items() if only(id)]
    return [verdict(task) for task in tqdm(chosen, unit="task", disable=not progress)]


def verdict(task: Task) -> Verdict:
    """Put one task to the test: its solution, a stub, and each of its mistakes."""
    failures = []
    solution = examine(task, task.solution)
    if not solution:
        failures.append(f"the solution is refused: {solution.says}")
    stub = examine(task, unwritten)
    if stub or "not written yet" not in stub.says:
        failures.append(f"the stub is told: {stub.says}")
    reports = [(mistake, examine(task, mistake.version)) for mistake in task.mistakes]
    caught = [mistake for mistake, report in reports if not report and report.says.startswith(mistake.says)]
    failures += [f'"{mistake.says}" got: {report.says}' for mistake, report in reports if mistake not in caught]
    if len({mistake.says for mistake in task.mistakes}) < len(task.mistakes):
        failures.append("two mistakes share a sentence")
    return Verdict(task.id, bool(solution), bool(stub), len(caught), len(task.mistakes), tuple(failures))


def unwritten(*args, **options):
    """The stub of every exercise."""
    raise NotImplementedError
