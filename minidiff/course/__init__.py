"""The course's exercises: `check("01.1", add_noise)` tells whether a function is right, and what is wrong if it is not."""

from .checking import Report, check, examine, hint, progress
from .proof import verify
from .task import Case, Law, Mistake, Task, find, tasks

__all__ = ["Case", "Law", "Mistake", "Report", "Task", "check", "examine", "find", "hint", "progress", "tasks", "verify"]
