"""The rules of the house, read from the source: who may import whom, how long a file may be, what is never written."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import minidiff

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "minidiff").rglob("*.py"))
ROOMS = {  # a room may import from the rooms named here
    "diffusion": set(),
    "nets": set(),
    "data": set(),
    "plot": {"diffusion"},
    "training": {"diffusion", "nets"},
    "pretrained": {"diffusion", "nets", "training"},
    "pipelines": {"diffusion", "nets", "training", "pretrained"},
    "evaluation": {"diffusion", "nets", "data", "training", "pretrained", "pipelines"},
    "course": {"diffusion", "nets", "data", "training", "pretrained", "pipelines", "evaluation", "plot"},
    "commands": {"course", "diffusion", "nets", "data", "training", "pretrained", "pipelines", "evaluation", "plot"},
}
each_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))


def imported(path):
    """Dotted names of all that a file imports, relative ones spelt out."""
    package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


@each_source
def test_imports_go_downward(path):
    room = path.relative_to(ROOT / "minidiff").parts[0].removesuffix(".py")
    for name in imported(path):
        parts = name.split(".")
        assert parts[0] not in ("diffusers", "transformers"), f"{name} is an oracle of the tests, not a part of minidiff"
        if parts[0] == "minidiff" and room not in ("__init__", "__main__") and parts[1] != room:
            assert parts[1] in ROOMS[room], f"{room} may not import from {parts[1]}"


@each_source
def test_files_are_short_and_free_of_what_we_refuse(path):
    text = path.read_text()
    assert text.count("\n") <= 300
    refused = {"import *": "a star import", "strict=False": "a silent load", "torch.load(": "a load that runs code",
               ".cuda()": "a hidden device", "except:": "a bare except"}  # fmt: skip
    assert [why for what, why in refused.items() if what in text] == []
    assert ast.get_docstring(ast.parse(text)), "a file says at its top what it is"


@each_source
def test_public_functions_say_what_they_do(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            boring = path.parent.name == "commands" and node.name in ("arguments", "run")
            boring |= path.parent.name == "chapters"  # wrong versions: their sentence stands beside them
            assert boring or ast.get_docstring(node), f"{node.name} has no docstring"


def test_maths_functions_take_few_arguments():
    for path in (ROOT / "minidiff" / "diffusion").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert len(node.args.args) <= 6, f"{path.name}: {node.name}"


def test_public_names_exist():
    for name in minidiff.__all__:
        assert getattr(minidiff, name) is not None
    with pytest.raises(AttributeError, match="no_such_thing"):
        minidiff.no_such_thing  # noqa: B018


def test_importing_minidiff_opens_nothing_heavy():
    heavy = ("matplotlib", "datasets", "torchvision", "PIL", "open_clip", "pandas", "scipy")
    code = f"import sys, torch; before = set(sys.modules); import minidiff; print(set({heavy}) & (set(sys.modules) - before))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert out.strip() == "set()"


def test_readmes_example_runs(tmp_path, monkeypatch):
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)
    assert block.count("\n") <= 12
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    assert list(tmp_path.glob("*.png"))


def test_readme_names_the_two_commands_and_files_that_exist():
    text = (ROOT / "README.md").read_text()
    assert "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt && .venv/bin/python -m minidiff demo" in text
    assert ".venv/bin/python -m pytest" in text
    for link in re.findall(r"\]\(([^)#:]+)\)", text) + re.findall(r'src="([^":]+)"', text):
        assert (ROOT / link).exists(), f"README.md points to {link}"


def test_requirements_hold_what_the_package_declares():
    project = (ROOT / "pyproject.toml").read_text()
    declared = re.search(r"^dependencies = \[(.*?)^\]", project, re.DOTALL | re.MULTILINE).group(1)
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    assert set(re.findall(r'"([^"]+)"', declared)) <= set(lines)
    assert [line for line in lines if line][-1] == "-e ."
