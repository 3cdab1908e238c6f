"""The notebooks, as a reader gets them: built from their sources, runnable offline, and in agreement with the library."""

import ast
import importlib.util
import inspect
import json
from functools import partial
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from torch.testing import assert_close

import minidiff as md
import minidiff.evaluation.alignment
import minidiff.evaluation.lies
import minidiff.training.autoencoder
import minidiff.training.latent

ROOT = Path(__file__).parents[2]


def load(path):
    """The module in a file that belongs to no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = load(ROOT / "notebooks" / "build.py")
SOURCES = build.sources()
PICTURES = 5  # a chapter shows at least so many
QUICK, PEAK = 60, 4000  # seconds, MB: what a reader's laptop has to spare
each_chapter = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)

NO_NETWORK = """
import socket
def _guard(connect):
    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"a notebook reached for {address[0]}")
        return connect(self, address)
    return guarded
socket.socket.connect, socket.socket.connect_ex = _guard(socket.socket.connect), _guard(socket.socket.connect_ex)
"""

def chapter(source):
    """tests/notebooks/chapters/cNN.py: OWN, the names that a chapter defines for itself alone, and INPUTS, for every other
    name it defines, what to compare it and the library's on: argument tuples, or one function of the definition."""
    return load(Path(__file__).parent / "chapters" / f"c{source.stem[:2]}.py")


def built(source):
    return nbformat.read(build.built(source), as_version=4)


def definitions(notebook):
    """The functions and classes that a notebook's cells define at top level, without running the rest of it."""
    kept = [node for cell in notebook.cells if cell.cell_type == "code" for node in ast.parse(cell.source).body
            if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef)]  # fmt: skip
    space = {}
    exec(compile(ast.Module(kept, []), "notebook", "exec"), space)
    return {node.name: space[node.name] for node in kept if hasattr(node, "name")}


ROOMS = (md, md.Schedule, md.diffusion, md.diffusion.schedule, md.diffusion.multistep, md.nets, md.training, md.data,
         md.evaluation, md.evaluation.alignment, md.evaluation.lies, md.training.autoencoder,
         md.training.latent)  # fmt: skip  # where the library's version may be


def compare(name, mine, inputs):
    """A notebook's definition against the library's: the same parameters and defaults, and the same answers.

    What the library takes by keyword only is small print, which a notebook may leave out.
    """
    theirs = getattr(next(room for room in ROOMS if hasattr(room, name)), name)
    ours, library = (list(inspect.signature(f).parameters.values()) for f in (mine, theirs))
    library = [p for p in library if p.kind != p.KEYWORD_ONLY or p.name in inspect.signature(mine).parameters]
    skip = bool(library) and library[0].name == "self"  # a method's first argument goes by any name in a notebook
    assert [(p.name, p.default) for p in ours[skip:]] == [(p.name, p.default) for p in library[skip:]], name
    assert inputs, f"nothing to compare {name} on"
    for ask in [inputs] if callable(inputs) else [partial(call, args) for args in inputs]:
        assert_close(ask(mine), ask(theirs), rtol=1e-5, atol=1e-7)


def call(args, f):
    value = f(*args)
    return (value.alpha, value.sigma) if isinstance(value, md.Schedule) else value


def test_there_are_notebooks():
    assert SOURCES


@each_chapter
def test_notebook_holds_the_cells_of_its_source(source):
    assert build.differences(source, build.built(source)) == []


@each_chapter
def test_quick_mode_runs_offline(source):
    notebook = build.read(source)
    build.quicken(notebook)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(NO_NETWORK))
    seconds, peak = build.execute(notebook, timeout=QUICK)
    assert seconds < QUICK and peak < PEAK


@each_chapter
def test_definitions_are_the_librarys(source):
    found, about = definitions(built(source)), chapter(source)
    assert set(found) == about.OWN | set(about.INPUTS)
    for name, inputs in about.INPUTS.items():
        compare(name, found[name], inputs)


@each_chapter
def test_outputs_are_complete_and_say_nothing_of_the_machine(source):
    notebook = built(source)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "every cell ran, once, from the top"
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= PICTURES
    assert {"device", "seconds", "torch", "minidiff"} <= set(notebook.metadata.minidiff)
    for output in outputs:
        output.get("data", {}).pop("image/png", None)
    text = json.dumps(notebook)
    for trace in (str(ROOT), str(Path.home()) + "/", "/tmp/", "/home/", "site-packages", "ipykernel_", "widget", "iopub"):
        assert trace not in text, trace


# ---- the tests above can fail -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, wrong", [
    ("add_noise", lambda x0, eps, level: level.like(x0)[0] ** 2 * x0 + level.like(x0)[1] * eps),
    ("add_noise", lambda x0, noise, level: md.add_noise(x0, noise, level)),
    ("linear", lambda T=1000, beta_start=1e-4, beta_end=0.02: md.Schedule.linear(T)),
    ("linear", lambda T=1000, beta_start=1e-4, beta_end=0.2: md.Schedule.linear(T, beta_start, beta_end)),
    ("zero_terminal_snr", lambda schedule: (schedule.alpha, schedule.sigma)),
], ids=["a square too many", "a parameter renamed", "arguments ignored", "another default", "nothing done"])  # fmt: skip
def test_a_wrong_definition_is_noticed(name, wrong):
    with pytest.raises(AssertionError):
        compare(name, wrong, chapter(*build.sources(["01"])).INPUTS[name])


def test_a_changed_source_is_noticed(tmp_path):
    source = tmp_path / "01_x.py"
    source.write_text("# %% [markdown]\n# one\n\n# %%\nx = 1\n")
    nbformat.write(build.read(source), tmp_path / "01_x.ipynb")
    assert build.differences(source, tmp_path / "01_x.ipynb") == []
    source.write_text(source.read_text().replace("x = 1", "x = 2"))
    assert len(build.differences(source, tmp_path / "01_x.ipynb")) == 1
    assert build.differences(source, tmp_path / "02_y.ipynb") == ["02_y.ipynb is missing"]


def test_quick_knobs_replace_the_values_and_only_in_their_cell(tmp_path):
    source = tmp_path / "01_x.py"
    source.write_text('# %% tags=["knobs"]\nN = 100  # how many  # quick: 7\nT = 1000\n\n# %%\nN = 5  # quick: 6\n')
    notebook = build.read(source)
    build.quicken(notebook)
    assert [cell.source for cell in notebook.cells] == ["N = 7\nT = 1000", "N = 5  # quick: 6"]
    with pytest.raises(ValueError, match="0 cells"):
        build.quicken(nbformat.v4.new_notebook())


def test_cleaning_takes_the_machine_out():
    notebook = nbformat.v4.new_notebook(metadata={"widgets": {}, "language_info": {"name": "python", "version": "3"}})
    outputs = [nbformat.v4.new_output("stream", name="stderr", text="10%\r20%"),
               nbformat.v4.new_output("display_data", data={build.WIDGET: {}}),
               nbformat.v4.new_output("stream", name="stderr", text=f"{ROOT}/minidiff/a.py: /x/ipykernel_12/34.py:1: no"),
               nbformat.v4.new_output("display_data", data={"image/png": "aGk="})]  # fmt: skip
    notebook.cells = [nbformat.v4.new_code_cell("1", metadata={"execution": {"iopub": "now"}}, outputs=outputs)]
    build.clean(notebook)
    first, second = notebook.cells[0].outputs
    assert (first.text, second.data) == ("minidiff/minidiff/a.py: <cell>:1: no", {"image/png": "aGk="})
    assert not notebook.cells[0].metadata and set(notebook.metadata) == {"language_info"}


def test_the_network_guard_guards():
    notebook = build.read(SOURCES[0])
    reach = "socket.create_connection(('192.0.2.1', 80), timeout=1)"  # an address reserved for documentation
    notebook.cells = [nbformat.v4.new_code_cell(NO_NETWORK), nbformat.v4.new_code_cell(reach)]
    with pytest.raises(CellExecutionError, match="a notebook reached for 192.0.2.1"):
        build.execute(notebook, timeout=QUICK)
