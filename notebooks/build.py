"""Build the notebooks: text sources in, executed notebooks with their pictures out.

    python notebooks/build.py                 build all of them
    python notebooks/build.py 01 --quick      run chapter 01 with its quick knobs, and write nothing
    python notebooks/build.py --check         does every notebook hold the cells of its source?

A chapter is written in notebooks/src/NN_name.py (jupytext's "py:percent") and lives, executed, in notebooks/NN_name.ipynb.
Its exercises are written in notebooks/src/exercises/NN_name.py and live, for the reader to execute, in notebooks/exercises/.

Quick mode, for tests: one cell, tagged "knobs", holds a chapter's constants, one to a line, such as

    CHAINS = 256  # images that walk the whole chain  # quick: 32

and the value after "# quick:" takes the place of the first. MINIDIFF_QUICK=1 does the same as --quick.
"""

import argparse
import os
import platform
import re
import sys
import time
from pathlib import Path

import jupytext
import nbformat
import torch
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WIDGET = "application/vnd.jupyter.widget-view+json"
PEAK = """import resource, sys
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10))"""
KNOB = re.compile(r"^(\w+ = ).*# quick: *(.+)$", re.MULTILINE)


def sources(names: list[str] = (), folder: str = ".") -> list[Path]:
    """The chapters' text sources, all or those whose names begin with one of `names`; folder "exercises" for theirs.

    Raises ValueError for a name without source.
    """
    found = sorted((HERE / "src" / folder).glob("[0-9][0-9]_*.py"))
    for name in names:
        if not any(path.stem.startswith(name) for path in found):
            raise ValueError(f'no chapter begins with "{name}": there are {", ".join(path.stem for path in found)}')
    return [path for path in found if not names or path.stem.startswith(tuple(names))]


def built(source: Path) -> Path:
    """Where the notebook of a source lives."""
    return HERE / source.relative_to(HERE / "src").with_suffix(".ipynb")


def read(source: Path) -> nbformat.NotebookNode:
    """The notebook that a source describes, not executed. Cells are named after their place, so a rebuild changes no id."""
    notebook = jupytext.read(source, fmt="py:percent")
    for i, cell in enumerate(notebook.cells):
        cell.id = f"{source.stem[:2]}-{i:03d}"
        cell.metadata = {"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {}
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def quicken(notebook: nbformat.NotebookNode) -> None:
    """Set the knobs to their quick values. Raises ValueError unless exactly one cell is tagged "knobs"."""
    knobs = [cell for cell in notebook.cells if "knobs" in cell.metadata.get("tags", ())]
    if len(knobs) != 1:
        raise ValueError(f"{len(knobs)} cells are tagged as knobs, and one should be")
    knobs[0].source = KNOB.sub(r"\1\2", knobs[0].source)


def execute(notebook: nbformat.NotebookNode, timeout: int = 3600) -> tuple[float, float]:
    """Run every cell in a fresh kernel, from the notebooks' folder; the seconds it took and the peak of its memory in MB.

    Raises CellExecutionError.
    """
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))  # works before minidiff is installed
    client = NotebookClient(notebook, timeout=timeout, kernel_name="python3", record_timing=False, coalesce_streams=True,
                            resources={"metadata": {"path": str(HERE)}})  # fmt: skip
    env = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}  # Agg would hide pyplot's figures
    notebook.cells.append(nbformat.v4.new_code_cell(PEAK))
    began = time.perf_counter()
    client.execute(env={**env, "PYTHONPATH": path})
    return time.perf_counter() - began, float(notebook.cells.pop().outputs[0].text)


def clean(notebook: nbformat.NotebookNode) -> None:
    """Take out what belongs to this machine and this minute: widgets, progress bars, paths."""
    notebook.metadata.pop("widgets", None)
    language = notebook.metadata.language_info
    notebook.metadata.language_info = nbformat.from_dict({"name": language["name"]})
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [_anonymous(output) for output in cell.outputs if not _is_progress(output)]


def _is_progress(output: dict) -> bool:
    return WIDGET in output.get("data", {}) or (output.get("name") == "stderr" and "\r" in output["text"])


def _anonymous(value):
    if isinstance(value, str):
        value = re.sub(r"\S*/ipykernel_\d+/\d+\.py", "<cell>", value)
        for path, short in ((ROOT, "minidiff"), (Path(sys.prefix), "<python>"), (Path.home(), "~")):
            value = value.replace(f"{path}/", f"{short}/")
        return value
    if isinstance(value, dict):
        return type(value)({key: text if key == "image/png" else _anonymous(text) for key, text in value.items()})
    return [_anonymous(item) for item in value] if isinstance(value, list) else value


def stamp(notebook: nbformat.NotebookNode, seconds: float) -> None:
    """Say in the metadata what the outputs were made with."""
    import minidiff

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    notebook.metadata["minidiff"] = {"device": device, "seconds": round(seconds), "python": platform.python_version(),
                                     "torch": torch.__version__, "minidiff": minidiff.__version__}  # fmt: skip


def differences(source: Path, built: Path) -> list[str]:
    """Where a built notebook departs from its source, cell by cell; empty if nowhere."""
    if not built.exists():
        return [f"{built.name} is missing"]
    ours, theirs = read(source).cells, nbformat.read(built, as_version=4).cells
    told = [f"{len(ours)} cells in the source, {len(theirs)} in {built.name}"] if len(ours) != len(theirs) else []
    pairs = enumerate(zip(ours, theirs, strict=False))
    return told + [f"cell {i} differs: {a.source[:60]!r}" for i, (a, b) in pairs
                   if (a.cell_type, a.source, a.id, a.metadata) != (b.cell_type, b.source, b.id, b.metadata)]  # fmt: skip


def main() -> int:
    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="chapters, by the beginning of their names; all if none is given")
    parser.add_argument("--quick", action="store_true", default=os.environ.get("MINIDIFF_QUICK") == "1")
    parser.add_argument("--check", action="store_true", help="compare, execute nothing; exit status 1 if anything differs")
    args = parser.parse_args()
    chapters = sources(args.names)
    exercises = [source for source in sources(folder="exercises") if source.name in {chapter.name for chapter in chapters}]
    if args.check:
        told = {built(source).relative_to(ROOT): differences(source, built(source)) for source in chapters + exercises}
        for name, different in told.items():
            print(f"{name}: {'; '.join(different) or 'as its source'}")
        return int(any(told.values()))
    print(f"{'notebook':32} {'seconds':>8} {'peak MB':>8}")
    for source in chapters:
        notebook = read(source)
        if args.quick:
            quicken(notebook)
        seconds, peak = execute(notebook)
        if not args.quick:
            clean(notebook)
            stamp(notebook, seconds)
            nbformat.write(notebook, built(source))
        print(f"{source.stem:32} {seconds:8.0f} {peak:8.0f}", flush=True)
    for source in exercises if not args.quick else ():
        nbformat.write(read(source), built(source))  # the reader runs these
    return 0


if __name__ == "__main__":
    sys.exit(main())
