"""The exercise notebooks: every task of the chapter is in it, as a stub of the right shape that its check refuses kindly."""

import ast
import inspect
import re

import pytest
from test_notebooks import build

from minidiff.course import check, find, tasks

SOURCES = build.sources(folder="exercises")
each_source = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
ASKED = re.compile(r"^check\(\"(\d\d\.\d)\", (\w+)\)$", re.MULTILINE)


def stubs(notebook):
    """id -> (name, the function or class a learner starts from)."""
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    kept = [n for n in ast.parse(code).body if isinstance(n, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef)]
    space = {}
    exec(compile(ast.Module(kept, []), "exercises", "exec"), space)
    return {id: (name, space[name]) for id, name in ASKED.findall(code)}


def parameters(f):
    """Without those that are taken by keyword only: the small print, which an exercise may leave out."""
    return [(p.name, p.default) for p in inspect.signature(f).parameters.values() if p.kind != p.KEYWORD_ONLY]


@each_source
def test_notebook_holds_the_cells_of_its_source(source):
    assert build.differences(source, build.built(source)) == []


@each_source
def test_every_task_of_the_chapter_is_there_with_its_signature(source):
    found = stubs(build.read(source))
    assert list(found) == [id for id in tasks() if id.startswith(source.stem[:2])]
    for id, (name, stub) in found.items():
        ours, library = parameters(stub), parameters(find(id).solution)
        skip = bool(library) and library[0][0] == "self"  # a method's first argument goes by any name in an exercise
        assert name == find(id).name and ours[skip:] == library[skip:], id


@each_source
def test_a_stub_is_told_what_to_do(source):
    for id, (_, stub) in stubs(build.read(source)).items():
        assert "not written yet" in check(id, stub).says


def test_every_chapter_with_tasks_has_an_exercise_notebook():
    assert {id[:2] for id in tasks()} == {source.stem[:2] for source in SOURCES}
    for source in SOURCES:
        assert source.name in [chapter.name for chapter in build.sources()], "named as its chapter"
