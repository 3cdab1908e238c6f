"""bench training: what it times is the hour's own training, what it prints follows from what it measured."""

import json
from types import SimpleNamespace

import torch

import minidiff as md
from minidiff.__main__ import main
from minidiff.commands import stages
from minidiff.commands.pace import Pace, begun, measured, table, verdict

SMALL = {"channels": (16,), "text_dim": 16, "text_layers": 1, "batch": 4}
PLAIN, FAST = Pace("plain", 2.0, [1.0, 5.0, 0.9], [0.2, 0.2, 0.3]), Pace("compiled", 82.0, [0.75] * 3, [0.2] * 3)


def settings(**changed):
    return SimpleNamespace(**stages.SETTINGS["unet"] | changed)


def test_what_is_timed_is_the_network_and_the_batch_that_the_stage_trains():
    trainer, feed = begun(settings(channels=(128,)), "cpu", bf16=False, compiled=False)
    shipped = md.StableDiffusion.from_pretrained("shapes")
    for mine, there in ((trainer.net.unet, shipped.unet), (trainer.net.text, shipped.text_encoder)):
        assert {k: v.shape for k, v in mine.state_dict().items()} == {k: v.shape for k, v in there.state_dict().items()}
    z, given = next(feed)
    assert z.shape == (64, 4, 16, 16) and given["context"].shape == (64, shipped.tokenizer.length)
    assert len(given["context"].unique(dim=0)) > 40  # captions, not one sentence


def test_every_way_takes_its_turns_and_the_optimizer_is_a_part_of_each_step():
    found = measured(["plain", "plain"], settings(**SMALL), "cpu", bf16=False, turns=2, steps=3)
    for pace in found:
        assert len(pace.steps) == len(pace.optimizer) == 6 and pace.first > 0
        assert all(0 < part < whole for part, whole in zip(pace.optimizer, pace.steps, strict=True))


def test_steps_go_through_what_was_compiled(monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "compile", lambda net, **options: lambda *args, **given: seen.append(1) or net(*args, **given))
    measured(["plain", "compiled"], settings(**SMALL), "cpu", bf16=False, turns=1, steps=2)
    assert len(seen) == 4  # the first, one to warm up, and two that count; none of the plain way


def test_the_verdict_says_from_how_many_steps_on_compiling_pays():
    assert verdict([PLAIN, FAST]) == " Compiling pays after 320 steps."  # 80 s, a quarter of a second at a time
    for step in (0.97, 1.0, 1.2):  # three in a hundred may be chance
        assert verdict([PLAIN, FAST._replace(steps=[step])]) == " Compiling does not pay here."
    assert verdict([PLAIN]) == verdict([FAST]) == ""


def test_the_table_has_medians_and_what_an_hour_holds():
    cells = [line.strip("| ").split(" | ") for line in table([PLAIN, FAST], batch=64).splitlines()]
    plain, fast = ([cell.strip() for cell in row] for row in cells[2:])
    assert plain == ["plain", "2.0 s", "1.000 s", "0.200 s", "64", "3598"]
    assert fast == ["compiled", "82.0 s", "0.750 s", "0.200 s", "85", "4691"]


def test_it_prints_and_writes_what_it_measured(tmp_path, capsys):
    file = tmp_path / "new" / "pace.json"
    small = ["channels=16", "text_dim=16", "text_layers=1", "batch=4"]
    options = ["--ways", "plain", "--turns", "1", "--steps", "2", "--set", *small, "--json", str(file)]
    assert main(["bench", "training", "--precision", "fp32", *options]) == 0
    told, kept = capsys.readouterr().out, json.loads(file.read_text())
    assert [row["way"] for row in kept["rows"]] == ["plain"] and len(kept["rows"][0]["steps"]) == 2
    assert f"{kept['rows'][0]['step']:.3f} s" in told and "1 turns of 2 steps" in told and kept["settings"]["batch"] == 4


def test_what_cannot_be_measured_is_refused(capsys):
    for wrong, said in (("--turns 0", "--turns 0"), ("--set batch=0", "batch"), ("--set size=3", "unet has no size")):
        assert main(["bench", "training", "--ways", "plain", *wrong.split()]) == 2
        assert said in capsys.readouterr().err
