"""The course's exercises: `check("01.1", add_noise)` tells whether a function is right, and what is wrong if it is not."""

from .check import Report, check, examine, hint, progress
from .task import Case, Law, Mistake, Task, find, tasks
from .verify import verify

__all__ = ["Case", "Law", "Mistake", "Report", "Task", "check", "examine", "find", "hint", "progress", "tasks", "verify"]
