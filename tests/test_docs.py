"""The documents keep their word: every link leads somewhere, every test they name exists, every exercise too."""

import importlib
import re
from pathlib import Path

import pytest
import torch

import minidiff as md
from minidiff.course import find, tasks
from minidiff.evaluation import benchmark

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def rows(page):
    """The cells of a page's tables, headers and rulers left out."""
    lines = [line for line in (ROOT / "docs" / page).read_text().splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    rulers = {i for i, cells in enumerate(table) if set("".join(cells)) <= set("-:")}
    return [cells for i, cells in enumerate(table) if i not in rulers and i + 1 not in rulers]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_named_tests_exist(page):
    text = page.read_text()
    for link in LINK.findall(text):
        assert (page.parent / link).exists(), f"{page.name} points to {link}"
    for file, test in TEST.findall(text):
        assert f"def {test}(" in (ROOT / file).read_text(), f"{page.name} names {file}::{test}"


def test_every_convention_is_pinned_by_a_test():
    table = rows("conventions.md")
    assert len(table) > 20
    for cells in table:
        assert TEST.fullmatch(cells[-1]), f'"{cells[0]}" is pinned by nothing'


def test_the_map_leads_from_concept_to_file_chapter_exercise_and_test():
    mapped = set()
    for concept, file, chapter, exercise, _, test in rows("map.md"):
        path, name = re.fullmatch(r"\[[\w.]+\]\(\.\./(minidiff/[\w/]+)\.py\) `(\w+)`", file).groups()
        module = importlib.import_module(path.replace("/", "."))
        owners = [module, *(value for value in vars(module).values() if isinstance(value, type))]
        assert any(hasattr(owner, name) for owner in owners), f"{concept}: {path}.py has no {name}"
        assert LINK.search(chapter), f"{concept} is taught nowhere"
        assert TEST.fullmatch(test), f"{concept} is proven nowhere"
        if exercise:
            task = find(exercise)
            assert (task.name, task.where) == (name, f"{path}.py"), f"{concept}: {exercise} asks for another"
            assert re.search(r"\[(\d\d)\]", chapter).group(1) == exercise[:2]
            mapped.add(exercise)
    assert mapped == set(tasks()), "every exercise is on the map"


def test_the_tables_are_read_as_meant():
    assert rows("conventions.md")[0][0] == "values of an image"
    assert all(len(cells) == 6 for cells in rows("map.md"))


def test_your_own_sampler_works_as_the_page_says(capsys):
    """The page's code is run as it stands, in order; `pipe` is a Stable Diffusion small enough for a test."""
    torch.manual_seed(0)
    unet = md.UNet(4, 4, (16, 32), (True, False), layers=1, context_dim=24).eval()
    vae, text = md.VAE(channels=(16, 32), layers=1, groups=None), md.CLIPText(dim=24, layers=1, heads=2)
    recipe = md.pretrained.read_scheduler({"_class_name": "DDIMScheduler", "clip_sample": False})
    pipe = md.StableDiffusion(unet, vae, text, md.Tokenizer.clip(), recipe, size=16)
    pipe.progress = False
    room = {"pipe": pipe}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "samplers.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "samplers.md", "exec"), room)
    calls, order, error = capsys.readouterr().out.split()
    said = re.search(r"# (\d+) calls, order ([\d.]+), error ([\d.]+)", blocks[1]).groups()
    assert [calls, f"{float(order):.2f}", f"{float(error):.4f}"] == list(said)
    assert room["x"].shape == (8, 1) and room["image"].shape == (1, 3, 16, 16)
    assert "corrected" not in benchmark.SAMPLERS  # nobody was told of it
