"""Running what a learner wrote: whatever it does, it gives a value or a sentence, and it ends."""

import ctypes
import threading
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple


class Outcome(NamedTuple):
    """What came out: a value, or the exception that came instead."""

    value: Any = None
    error: BaseException | None = None


def run(f: Callable[[], Any], seconds: float) -> Outcome:
    """f(), for at most so long. Nothing that f raises gets out, not even SystemExit; a TimeoutError stands for "too long".

    f runs in a thread of its own, which is the one way to leave an endless loop on every system and in every notebook.
    """
    box = [Outcome(error=TimeoutError())]

    def work():
        try:
            box[0] = Outcome(f())
        except BaseException as error:  # noqa: BLE001  anything at all may be wrong with a function that is being learned
            box[0] = Outcome(error=error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():  # ask the loop to stop, so that it does not eat a core until the kernel is closed
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
        return Outcome(error=TimeoutError())
    return box[0]


def explain(error: BaseException, seconds: float) -> str:
    """The sentence for an exception that came out of a learner's function."""
    if isinstance(error, NotImplementedError):
        return "is not written yet: put your lines where `raise NotImplementedError` stands"
    if isinstance(error, TimeoutError) and not error.args:
        return f"did not come back within {seconds:g} s: is there a loop that never ends?"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)
              if "minidiff/course" not in frame.filename and "torch/nn/modules" not in frame.filename]  # fmt: skip
    place = f" at `{frames[0].line}`" if frames and frames[0].line else ""
    return f"raised {type(error).__name__}{place}: {error}"

