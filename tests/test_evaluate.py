"""eval of a model of words, as a stranger meets it: a toy, from the folder to the pictures, and what is said of mistakes."""

import json
from types import SimpleNamespace

import pytest
from PIL import Image
from toys import clip, model

import minidiff as md
from minidiff.__main__ import main
from minidiff.commands import prompts, tables
from minidiff.data.captions import TASKS
from minidiff.evaluation.alignment import Row
from minidiff.evaluation.diversity import Diversity
from minidiff.evaluation.lies import Lie
from minidiff.pipelines import own

FEW = ["--n", "2", "--sweep", "1", "--each", "2", "--scenes", "3", "--steps", "2", "--batch", "5"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "sd"
    model(folder)
    clip(folder / "clip")
    return folder


@pytest.fixture(autouse=True)
def nothing_shipped(monkeypatch, tmp_path):
    for room in (own, prompts):
        monkeypatch.setattr(room, "WEIGHTS", tmp_path / "weights")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def undrawn(monkeypatch):
    """No pictures, which take longer to draw than a toy's whole examination."""
    monkeypatch.setattr(prompts, "figures", SimpleNamespace(
        **dict.fromkeys(("show_alignment", "show_tradeoff", "show_bias"), lambda *args: None)))  # fmt: skip


def evaluate(folder, *options):
    return main(["eval", str(folder), *FEW, *options])


def test_one_command_measures_everything(made, tmp_path, capsys):
    assert evaluate(made, "--guidance", "2", "0", "--out", "found", "--seed", "3") == 0
    out, said = tmp_path / "found", capsys.readouterr().out
    assert sorted(file.name for file in out.iterdir()) == [
        "alignment.png", "bias.png", "eval.json", "table.md", "tradeoff.png"]  # fmt: skip
    assert (out / "table.md").read_text().strip() in said and "FID" not in said
    assert all(Image.open(out / name).size[0] > 800 for name in ("alignment.png", "tradeoff.png", "bias.png"))
    found = json.loads((out / "eval.json").read_text(), parse_constant=pytest.fail)  # no NaN, which is no JSON
    assert {name: found[name] for name in ("seed", "n", "sweep_n", "steps", "sampler", "size")} == {
        "seed": 3, "n": 2, "sweep_n": 1, "steps": 2, "sampler": "ddim", "size": 16}  # fmt: skip
    assert found["scale"] in (0, 2) and len(found["ruler"]) == len(found["unet"]) == 16 and "torch" in found["versions"]
    rows = [(row["task"], row["held_out"]) for row in found["alignment"]]
    assert rows == [(task, False) for task in TASKS] + [("colours", True), ("attribute binding", True)]
    assert {row["n"] for row in found["alignment"]} == {2}
    assert list(found["held_out_minus_seen"]) == ["colours", "attribute binding"]
    assert [(at["scale"], {row["n"] for row in at["alignment"]}) for at in found["sweep"]] == [(0, {1}), (2, {1})]
    assert all(at["diversity"]["n"] == 12 and at["diversity"]["distance"] > -1e-12 for at in found["sweep"])
    curves = found["distances_in_mini_clip_features"]
    assert {who: [d["n"] for d in curve] for who, curve in curves.items()} == {"model": [3], "real scenes": [3]}
    assert [(round(lie["sigma"], 2), sorted(lie)) for lie in found["error_rises_if_told"]] == [
        (sigma, ["colours", "nothing", "places", "sigma"]) for sigma in (0.95, 0.9, 0.8, 0.6, 0.4)]
    assert curves["model"] != curves["real scenes"] and found["diversity_of_real_scenes"]["n"] == 12


def test_the_same_seed_finds_the_same(made, tmp_path, undrawn):
    one = ["--guidance", "1", "--tasks", "colours", "--sampler", "ddpm", "--out"]
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert evaluate(made, *one, name, "--seed", seed) == 0
    a, b, c = (json.loads((tmp_path / name / "eval.json").read_text()) | {"minutes": 0, "seed": 0} for name in "abc")
    assert a == b != c
    assert a["sweep"][0]["alignment"] == a["alignment"] and a["sampler"] == "ddpm"  # one scale: nothing to choose


def test_it_walks_as_the_model_would_by_itself(tmp_path, undrawn):
    model(tmp_path / "mine")
    pipe = md.StableDiffusion.from_pretrained(tmp_path / "mine")
    pipe.steps, pipe.recipe = 3, own.OwnRecipe({"name": "flow"}, "x0", sampler="ddpm")
    pipe.save(tmp_path / "mine")
    few = [*FEW[: FEW.index("--steps")], "--ruler", "none", "--guidance", "1", "--tasks", "one object"]
    assert main(["eval", str(tmp_path / "mine"), *few]) == 0
    found = json.loads((tmp_path / "mine" / "eval" / "eval.json").read_text())
    assert (found["steps"], found["sampler"]) == (3, "ddpm")


def test_without_a_ruler_the_rest_is_measured(made, tmp_path):
    assert evaluate(made, "--ruler", "none", "--guidance", "1", "--tasks", "one object", "counting") == 0
    out = made / "eval"  # where it goes if nobody says
    assert sorted(file.name for file in out.iterdir()) == ["alignment.png", "eval.json", "table.md", "tradeoff.png"]
    found = json.loads((out / "eval.json").read_text())
    assert found["ruler"] is None and found["sweep"][0]["diversity"]["distance"] is None
    assert found["held_out_minus_seen"] == found["distances_in_mini_clip_features"] == {}


def test_what_comes_with_minidiff_is_measured_outside_of_it(tmp_path, undrawn):
    model(tmp_path / "weights" / "shapes")
    clip(tmp_path / "weights" / "shapes" / "clip")
    before = {path: path.read_bytes() for path in (tmp_path / "weights").rglob("*") if path.is_file()}
    assert evaluate("shapes", "--guidance", "1", "--tasks", "one object") == 0
    assert (tmp_path / "runs" / "eval" / "shapes" / "eval.json").is_file()
    assert before == {path: path.read_bytes() for path in (tmp_path / "weights").rglob("*") if path.is_file()}
    model(tmp_path / "mine")
    assert prompts.find_ruler(tmp_path / "mine") == tmp_path / "weights" / "shapes" / "clip"
    clip(tmp_path / "clip")
    assert prompts.find_ruler(tmp_path / "mine") == tmp_path / "clip"  # as of runs/sd/joint, whose parent has one


@pytest.mark.parametrize("error, options", [
    ("--n 0: give 1 or more", ["--n", "0"]),
    ("--sweep 0, --each 1: give", ["--sweep", "0", "--each", "1"]),
    ("--steps 0: give", ["--steps", "0"]),
    ("2000 steps", ["--steps", "2000"]),
    ("--guidance -1 nan: scales are 0 or more", ["--guidance", "2", "-1", "nan"]),
    ('no task "flying", but one object, two objects', ["--tasks", "counting", "flying"]),
    ("train --stage clip --out runs/sd` makes one", ["--ruler", "nowhere"]),
    ('describes "VAE"', ["--ruler", "MADE/vae"]),
    ("looks at pictures of 32x32 and this model draws 16x16", ["--ruler", "LARGE"]),
    ("this machine has no", ["--device", "abacus"]),
])  # fmt: skip
def test_mistakes_are_told_in_one_line(made, tmp_path, capsys, monkeypatch, error, options):
    clip(tmp_path / "large", 32)
    asked = []
    monkeypatch.setattr(md.UNet, "forward", lambda *args, **options: asked.append(args))
    options = [option.replace("MADE", str(made)).replace("LARGE", str(tmp_path / "large")) for option in options]
    assert evaluate(made, "--out", "found", *options) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert error in message and message.startswith("minidiff eval: ")
    assert not asked and not (tmp_path / "found").exists()


def test_models_that_cannot_be_asked(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(md.UNet, "forward", lambda *args, **options: pytest.fail("asked"))
    model(tmp_path / "few", ["a", "star"])
    model(tmp_path / "inpaint", in_channels=9)
    (tmp_path / "empty").mkdir()
    for folder, error in (("few", "this model never learned"), ("inpaint", "made for pipe.inpaint"), ("empty", "give --data"),
                          ("shapes/nothing", "train --stage all")):  # fmt: skip
        assert evaluate(folder, "--ruler", "none") == 2
        assert error in capsys.readouterr().err and not list(tmp_path.glob("*/eval"))
    assert evaluate("few") == 2
    assert "train --stage clip" in capsys.readouterr().err and not (tmp_path / "few" / "eval").exists()


def test_tables():
    rows = [Row("colours", False, 490, 500), Row("colours", True, 450, 500)]
    lines = tables.aligned(rows).splitlines()
    assert lines[2].split("|")[1:6] == [" colours                 ", "  98.0% ", " 96.4% to 98.9% ", " 500 ",
                                        "                            "]  # fmt: skip
    assert "-8.0 (-11.1 to -5.1)" in lines[3] and "held-out pairs" in lines[3]
    d = Diversity(0.5, None, 3, 4, {})
    said = tables.swept({0.0: rows, 7.5: rows}, {0.0: d, 7.5: d}, d._replace(facts=0.25))
    assert [cell.strip() for cell in said.splitlines()[0].split("|")[1:-1]] == ["at guidance", "0", "7.5", "real scenes"]
    for cells in ("| 98.0% | 98.0% |", "| 0.500 | 0.500 |       0.250 |", "|   75% |   75% |         75% |"):
        assert cells in said
    assert {len(line) for line in said.splitlines() if line.startswith("|")} == {len(said.splitlines()[0])}
    said = tables.lied([Lie(0.9, 0.5, 0.0, -0.01), Lie(0.4, 0.25, 2.0, 0.1)]).splitlines()
    assert [cell.strip() for cell in said[3].split("|")[1:-1]] == ["the two colours exchanged", "+0.0%", "+200.0%"]
