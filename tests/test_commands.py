"""The command line, as a stranger meets it."""

import dataclasses
import hashlib
import json
import platform
import subprocess
import sys
from functools import partial

import pytest
import torch
from PIL import Image

from minidiff.__main__ import main
from minidiff.commands import common
from minidiff.data import Shapes
from minidiff.training import load

TINY = ["--channels", "8,16", "--attention", "0,1", "--batch", "4", "--size", "16"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of images, a sub-folder per class, in a train and a test split."""
    folder = tmp_path_factory.mktemp("pictures")
    for split, seed in (("train", 0), ("test", 1)):
        for colour in ("red", "blue"):
            (folder / split / colour).mkdir(parents=True)
            for i, scene in enumerate(Shapes(12, 16, seed, shapes=["circle"], colours=[colour])):
                pixels = ((scene.image + 1) * 127.5).byte().permute(1, 2, 0).numpy()
                Image.fromarray(pixels).save(folder / split / colour / f"{i}.png")
    return folder


def train(out, *options, steps=3):
    return main(["train", "--data", "shapes", "--limit", "64", "--steps", str(steps), "--out", str(out), *TINY, *options])


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_two_runs_with_one_seed_leave_identical_files(tmp_path):
    for name in ("a", "b"):
        assert train(tmp_path / name, "--every", "2") == 0
    a, b = digests(tmp_path / "a"), digests(tmp_path / "b")
    assert {"model.safetensors", "config.json", "loss.png", "losses.csv", "samples.png", "step_000002.png"} <= set(a)
    assert a == b
    assert train(tmp_path / "c", "--seed", "1") == 0
    assert digests(tmp_path / "c")["model.safetensors"] != a["model.safetensors"]


def test_training_goes_on_from_another_run_on_other_images(pictures, tmp_path, capsys):
    assert train(tmp_path / "a") == 0
    begun = ["train", "--begin", str(tmp_path / "a"), "--batch", "4", "--lr", "1e-9"]
    assert main([*begun, "--data", str(pictures), "--steps", "1", "--accumulate", "2", "--out", str(tmp_path / "b")]) == 0
    (old, about), (new, told) = (load(tmp_path / name) for name in "ab")
    assert len(about["classes"]) == 48 and told["classes"] == ["blue", "red"] and new.null_class == 2
    assert all(told[name] == about[name] for name in ("schedule", "predicts", "size"))
    there, here = old.state_dict(), new.state_dict()
    assert here["label.table.weight"].shape[0] == 3
    for name in here:
        if name != "label.table.weight":
            torch.testing.assert_close(here[name], there[name], rtol=1e-5, atol=1e-6)

    for options, sentence in ((["--channels", "8,16"], "--channels is that of"), (["--predicts", "v"], "--predicts is that of"),
                              (["--condition", "concat"], "how classes enter is that of")):  # fmt: skip
        assert main([*begun, *options, "--out", str(tmp_path / "c")]) == 2
        assert sentence in capsys.readouterr().err
    assert main([*begun[:2], str(tmp_path / "nowhere"), "--out", str(tmp_path / "c")]) == 2 and not (tmp_path / "c").exists()


def test_a_grey_model_is_not_begun_from_in_colour(tmp_path, capsys):
    folder = tmp_path / "grey" / "x"
    folder.mkdir(parents=True)
    for i in range(4):
        Image.new("L", (16, 16), 40 * i).save(folder / f"{i}.png")
    grey = ["--data", str(tmp_path / "grey"), "--condition", "none"]
    assert main(["train", *grey, "--steps", "1", "--out", str(tmp_path / "a"), *TINY]) == 0
    assert main(["train", "--begin", str(tmp_path / "a"), "--limit", "8", "--batch", "4", "--out", str(tmp_path / "b")]) == 2
    assert "3 channels, and the network of --begin draws 1" in capsys.readouterr().err


def test_a_resumed_run_ends_where_the_whole_one_does(tmp_path, monkeypatch):
    assert train(tmp_path / "whole", "--every", "2", steps=4) == 0

    from minidiff.commands import train as command
    keep = command.finish

    def pull_the_plug(trainer, *args, **options):
        keep(trainer, *args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "finish", pull_the_plug)
    assert train(tmp_path / "cut", "--every", "2", steps=4) == 130
    monkeypatch.undo()
    assert train(tmp_path / "cut", "--every", "2", "--resume", steps=4) == 0
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")


@pytest.mark.parametrize("options", [
    ["--condition", "concat"], ["--condition", "none"], ["--schedule", "cosine", "--predicts", "v", "--zero-snr"],
    ["--schedule", "linear", "--predicts", "eps", "--min-snr", "5"], ["--accumulate", "2", "--decay", "constant", "--flip"],
    ["--net", "dit", "--dim", "16", "--depth", "1"], ["--net", "dit", "--dim", "16", "--depth", "1", "--condition", "none"],
])  # fmt: skip
def test_every_way_to_train_leaves_a_model_that_samples(tmp_path, options):
    assert train(tmp_path, *options) == 0
    classes = [] if "none" in options else ["--classes", "red circle", "7"]
    assert main(["sample", str(tmp_path), "--each", "2", "--steps", "3", "--gif", "--guidance", "1.5", *classes]) == 0
    assert Image.open(tmp_path / "samples.png").size[0] > 16
    assert Image.open(tmp_path / "samples.gif").n_frames == 3


def test_minutes_become_steps_that_are_kept(tmp_path, capsys):
    options = ["train", "--data", "shapes", "--limit", "64", *TINY, "--out"]
    assert main([*options, str(tmp_path / "timed"), "--minutes", "0.01"]) == 0
    steps = json.loads((tmp_path / "timed" / "config.json").read_text())["training"]["steps"]
    assert f"--steps {steps} repeats this run" in capsys.readouterr().out
    assert main([*options, str(tmp_path / "counted"), "--steps", str(steps)]) == 0
    assert digests(tmp_path / "timed") == digests(tmp_path / "counted")



def test_a_slow_beginning_does_not_shorten_an_hour(monkeypatch):
    class Slow:  # two seconds for each of the first eight steps, as beside a neighbour, then one
        clock, done = 0.0, 0

        def one_step(self, feed):
            self.done += 1
            self.clock += 2.0 if self.done <= 8 else 1.0

    hour, moment = Slow(), Slow()
    monkeypatch.setattr(common.time, "perf_counter", lambda: hour.clock + moment.clock)
    assert common.steps_in(60, hour, None) == 3600 - (8 * 2 + 20)  # a hundredth, 36 s, went by; most of its steps took one
    assert common.steps_in(0.5, moment, None) == 7  # 8 steps were seen, the least; then there are 14 s for steps of 2


FAULTS = """
import resource, sys, torch
from minidiff.commands.common import keep_memory
if sys.argv[1] == "kept":
    keep_memory()
for k in range(25):
    if k == 5:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own ways")
def test_memory_that_is_kept_is_not_asked_for_again():
    """Pages handed out anew, for 40 MB that are taken and given back twenty times, after the first five."""
    kept, plain = (int(subprocess.check_output([sys.executable, "-c", FAULTS, way])) for way in ("kept", "plain"))
    assert kept < plain / 10


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--stage", "all", "--set", "unet.compile=True"], ["--compile"]])
def test_without_a_compiler_nothing_is_begun(tmp_path, monkeypatch, capsys, options):
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch.compiler.reset()
    with config.patch({"cpp.cxx": (None, str(tmp_path / "no-such-compiler"))}):
        assert main(["train", "--device", "cpu", "--out", str(tmp_path / "run"), *options]) == 2
    assert "needs a C++ compiler" in capsys.readouterr().err and not (tmp_path / "run").exists()
    torch.compiler.reset()


def test_eval_compares_with_real_images(tmp_path, pictures, capsys):
    run = ["train", "--data", str(pictures), "--steps", "2", "--out", str(tmp_path / "run"), *TINY]
    assert main(run) == 0
    assert load(tmp_path / "run")[1]["classes"] == ["blue", "red"]
    assert main(["eval", str(tmp_path / "run"), "--data", str(pictures), "--n", "6", "--steps", "2",
                 "--judge", str(tmp_path / "judge")]) == 0  # fmt: skip
    out = capsys.readouterr().out
    assert "samples" in out and "floor: real train" in out and "guidance 1, seed 0" in out


def test_demo_leaves_its_pictures(tmp_path, capsys):
    assert main(["demo", "--steps", "2", "--out", str(tmp_path)]) == 0
    assert {"loss.png", "film.png", "film.gif", "grid.png", "model.safetensors"} <= set(digests(tmp_path))
    assert "% of 192 fresh drawings" in capsys.readouterr().out


@pytest.mark.parametrize("error, command", [
    ("no/such/folder", ["train", "--data", "no/such/folder"]),
    ("has no", ["train", "--device", "cuda:0"] if not torch.cuda.is_available() else ["train", "--device", "mps"]),
    ("take --size 24", ["train", "--data", "shapes", "--limit", "64", *TINY, "--size", "22"]),
    ("patches of 4", ["train", "--data", "shapes", "--limit", "64", "--net", "dit", "--size", "22"]),
    ("a dit takes add or none", ["train", "--data", "shapes", "--limit", "64", "--net", "dit", "--condition", "concat"]),
    ("batch_size", ["train", "--data", "shapes", "--limit", "64", *TINY, "--batch", "65"]),
    ("lr = 0", ["train", "--data", "shapes", "--limit", "64", *TINY, "--lr", "0"]),
    ("minidiff train", ["sample", "no/such/run"]),
    ("no class \"purple cow\"", ["sample", "RUN", "--classes", "purple cow"]),
    ("steps", ["sample", "RUN", "--steps", "0"]),
])  # fmt: skip
def test_mistakes_are_told_in_one_line(tmp_path, capsys, error, command):
    if "RUN" in command:
        train(tmp_path / "run")
        command = [str(tmp_path / "run") if part == "RUN" else part for part in command]
    capsys.readouterr()
    assert main(command + (["--out", str(tmp_path / "out")] if command[0] == "train" else [])) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert error in message and message.startswith(f"minidiff {command[0]}: ")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_images_is_named(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["train", "--data", str(tmp_path / "empty")]) == 2
    assert "empty" in capsys.readouterr().err


def test_config_is_plain_json(tmp_path):
    train(tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())
    assert about["training"]["steps"] == 3 and about["predicts"] == "x0" and len(about["classes"]) == 48


def test_course_verify_prints_the_three_percentages(capsys):
    assert main(["course", "verify", "--only", "01"]) == 0
    assert "5 tasks: solutions 100%, stubs 0%, mutants 100% of 26" in capsys.readouterr().out
    assert main(["course", "verify", "--only", "xx"]) == 2
    assert 'no task begins with "xx"' in capsys.readouterr().err


def test_course_verify_says_what_is_wrong(capsys, monkeypatch):
    from minidiff.course import proof as room

    task = room.tasks()["01.1"]
    broken = dataclasses.replace(task, solution=lambda x0, eps, level: x0)
    monkeypatch.setattr(room, "tasks", lambda: {"01.1": broken})
    assert main(["course", "verify"]) == 2
    told = capsys.readouterr()
    assert "the solution is refused" in told.out and "solutions 0%" in told.out and "see the lines above" in told.err


def test_course_lists_what_is_left(capsys):
    assert main(["course"]) == 0
    assert "chapter 01" in capsys.readouterr().out


def test_bench_samplers_prints_draws_and_writes_every_row(tmp_path, capsys, monkeypatch):
    from minidiff.evaluation import benchmark

    few = {name: benchmark.SAMPLERS[name] for name in ("ddim", "plms", "dpmpp_2m_sde")}
    monkeypatch.setattr(benchmark, "SAMPLERS", few)
    monkeypatch.setattr(benchmark, "STEPS", (10, 20, 50))
    monkeypatch.setattr(benchmark, "error", partial(benchmark.error, samples=200))
    monkeypatch.setattr(benchmark, "floor", partial(benchmark.floor, samples=200))
    monkeypatch.setattr("minidiff.commands.bench.TESTS", tmp_path / "nowhere")
    files = ["--plot", str(tmp_path / "new" / "e.png"), "--json", str(tmp_path / "new" / "e.json")]
    assert main(["bench", "samplers", "--spacing", "trailing", *files]) == 0
    told = capsys.readouterr()
    rows = [line.strip("| ").replace(" ", "").split("|") for line in told.out.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["sampler", "-" * 12, *few]
    assert [row[2] for row in rows[2:]] == ["1.00", "2.00", "-"]
    errors = [benchmark.error(few["plms"], n, "trailing") for n in (10, 20, 50, 19)]  # 20 calls are 19 steps
    assert rows[3][3:7] == [f"{error:.4f}" for error in errors]
    assert all(row[-2:] == ["-", "-"] for row in rows[2:]) and "takes a checkout" in told.out
    kept = json.loads((tmp_path / "new" / "e.json").read_text())
    assert [row["sampler"] for row in kept["rows"]] == list(few) and kept["spacing"] == "trailing"
    assert f"{kept['rows'][0]['walks'][0][2]:.4f}" == rows[2][3]
    assert Image.open(tmp_path / "new" / "e.png").size == (950, 500)
    with pytest.raises(SystemExit):
        main(["bench"])


def test_bench_oracle_prints_and_writes_a_row_for_every_damage(tmp_path, capsys):
    file = tmp_path / "oracle.json"
    assert main(["bench", "oracle", "--n", "1", "--size", "32", "--json", str(file)]) == 0
    told = capsys.readouterr().out
    rows = json.loads(file.read_text())["rows"]
    assert [row["damage"] for row in rows][::5] == ["clean", "noise 0.2", "half size"] and len(rows) == 11
    assert rows[0]["recall"]["object"] == rows[0]["count"] == 1 and set(rows[0]["refused"].values()) == {1}
    assert all(f"| {row['damage']} |" in told for row in rows)
    assert main(["bench", "oracle", "--n", "1", "--size", "32", "--seed", "1", "--json", str(file)]) == 0
    assert json.loads(file.read_text())["rows"] != rows and "seed 1. In %" in capsys.readouterr().out  # another scene
    assert main(["bench", "oracle", "--n", "0"]) == 2
    assert "0 scenes of 64 pixels" in capsys.readouterr().err
