"""What an exercise is: the library's own function, questions to ask of any version, and the mistakes people make.

The known mistakes are functions too. A check asks the learner's function and the library's the same questions; where the
answers part, it looks for the known mistake that gives the learner's answers, and says its sentence. So every sentence
that names a mistake is one that a test has seen, and `python -m minidiff course verify` proves it of all of them.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple


class Case(NamedTuple):
    """One question: arguments, and the answer where it was worked out by hand (else it is the library's)."""

    name: str  # such as "two levels in one batch"
    args: tuple
    expect: Any = None


class Law(NamedTuple):
    """What must hold of any right version, whatever it draws or however it is written."""

    says: str  # the sentence for those who break it
    holds: Callable[[Callable], bool]  # asked with the learner's function


class Mistake(NamedTuple):
    """A wrong version that people write, and the sentence that helps them."""

    says: str
    version: Callable


@dataclass(frozen=True)
class Task:
    """An exercise. `check(id, fn)` asks it; `verify` proves that it passes `solution` and notices each mistake."""

    id: str  # "06.2": the second of chapter 06
    title: str
    solution: Callable  # the library's
    cases: tuple[Case, ...]
    mistakes: tuple[Mistake, ...]
    hints: tuple[str, ...]  # from a nudge to nearly the line itself
    laws: tuple[Law, ...] = ()
    ask: Callable = lambda f, *args: f(*args)  # how an answer is got out of a version: of a class or a generator, say
    tolerance: float = 1e-4  # relative to the largest value of the answer
    seconds: float = 10.0  # a version that thinks longer is stopped

    def __post_init__(self):
        for name, least in (("cases", 1), ("mistakes", 3), ("hints", 2)):
            if len(getattr(self, name)) < least:
                raise ValueError(f"task {self.id} has {len(getattr(self, name))} {name}, and should have {least} or more")

    @property
    def name(self) -> str:
        """What the function is called, in the library and in the exercise."""
        return self.solution.__name__

    @property
    def where(self) -> str:
        """The file of the library that holds the solution."""
        return self.solution.__module__.replace(".", "/") + ".py"


def tasks() -> dict[str, Task]:
    """All tasks by id, in order: those that the modules of `course.chapters` list in TASKS."""
    chapters = importlib.import_module(".chapters", __package__)
    found = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(chapters.__path__)):
        for task in importlib.import_module(f".{module}", chapters.__name__).TASKS:
            if task.id in found or not task.id.startswith(f"{module[1:3]}."):
                raise ValueError(f"task {task.id} of {module}.py: ids begin with the chapter's number and occur once")
            found[task.id] = task
    return found


def find(id: str) -> Task:
    """One task. Raises ValueError for an id there is not."""
    known = tasks()
    if id not in known:
        raise ValueError(f'there is no task "{id}": there are {", ".join(known)}')
    return known[id]
