"""edit and bench editing, as a stranger meets them: a toy model, pictures in and out, and what is said of mistakes."""

import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from toys import model

import minidiff as md
from minidiff.__main__ import main
from minidiff.data import load_picture
from minidiff.evaluation.editing import edits, originals

WORDS = ["--from", "a red circle", "--to", "a blue star"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "sd"
    model(folder, shaken=True)
    return folder


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (30, 22), (200, 30, 40)).save("red.png")
    Image.new("P", (30, 22)).save("black.png")
    Image.new("1", (30, 22), 1).save("white.png")


def edit(folder, *options):
    return main(["edit", *options, "--model", str(folder), "--steps", "4"])


def opened(folder):
    pipe = md.StableDiffusion.from_pretrained(folder)
    pipe.progress = False
    return pipe


def told(capsys):
    return capsys.readouterr().err


def test_a_file_is_inverted_and_drawn_again(made, capsys):
    assert edit(made, "red.png", *WORDS, "--start", "1", "--refine", "2", "--guidance", "3", "--compare", "both.png") == 0
    assert capsys.readouterr().out.split() == ["edited.png", "both.png"]
    image = load_picture("red.png", 16, 2)
    expected = opened(made).edit(image, "a red circle", "a blue star", 4, 1, guidance_scale=3.0, refine=2)
    assert_close(load_picture("edited.png"), expected, rtol=0, atol=0.005)
    assert Image.open("edited.png").size == (20, 16) and Image.open("both.png").size[0] > 200


def test_a_drawing_knows_its_words(made):
    assert edit(made, "--scene", "2", "--to", "a blue star", "--seed", "5", "--out", "new/x.png") == 0
    scene = edits("colour", 3, 5)[2]
    expected = opened(made).edit(originals([scene], 16), scene.source, "a blue star", 4, 3)
    assert_close(load_picture("new/x.png"), expected, rtol=0, atol=0.005)
    assert edit(made, "--scene", "2", "--to", "a blue star", "--seed", "5", "--borrow", "0.5", "--start", "0") == 0
    expected = opened(made).edit(originals([scene], 16), scene.source, "a blue star", 4, 0, borrow=0.5)
    assert_close(load_picture("edited.png"), expected, rtol=0, atol=0.005)


def test_redrawn_and_repainted(made):
    image, pipe = load_picture("red.png", 16, 2), opened(made)
    draw = {"steps": 4, "negative_prompt": "a heart", "generator": torch.Generator().manual_seed(3)}
    assert edit(made, "red.png", "--to", "a star", "--strength", "0.5", "--seed", "3", "--negative", "a heart") == 0
    assert_close(load_picture("edited.png"), pipe.img2img("a star", image, 0.5, **draw), rtol=0, atol=0.005)
    assert edit(made, "red.png", "--to", "a star", "--mask", "white.png", "--seed", "3", "--negative", "a heart") == 0
    draw["generator"].manual_seed(3)
    expected = pipe.inpaint("a star", image, torch.ones(1, 1, 16, 20), **draw)
    assert_close(load_picture("edited.png"), expected, rtol=0, atol=0.005)
    assert edit(made, "red.png", "--to", "a star", "--mask", "black.png") == 0
    assert edit(made, "red.png", "--to", "a star", "--mask", "white.png", "--strength", "0.75", "--out", "most.png") == 0
    most = pipe.inpaint("a star", image, torch.ones(1, 1, 16, 20), 0.75, steps=4, generator=torch.Generator().manual_seed(0))
    assert_close(load_picture("most.png"), most, rtol=0, atol=0.005)
    assert (most - expected).abs().max() > 0.05                   # these comparisons are of pictures that differ
    assert_close(load_picture("edited.png"), image, rtol=0, atol=0.005)  # nothing to repaint, so nothing has changed


FILES = {  # mode -> of the picture, of its mask
    "RGB": "1", "RGBA": "L", "L": "LA", "LA": "RGBA", "P": "P", "I;16": "I;16",
}  # fmt: skip


@pytest.mark.parametrize("size", [(30, 22), (21, 40), (16, 16)], ids=["wide", "tall", "square"])
@pytest.mark.parametrize("mode", FILES)
def test_pictures_and_masks_of_every_mode_and_shape(made, mode, size):
    rows = torch.randint(256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)
    save(Image.fromarray(rows.numpy()), mode, "picture.png")
    half = Image.new("RGB", size)
    half.paste((255, 255, 255), (0, 0, size[0] // 2, size[1]))
    save(half, FILES[mode], "half.png")
    assert edit(made, "picture.png", "--to", "a star", "--mask", "half.png") == 0
    image, mask = load_picture("picture.png", 16, 2), load_picture("half.png", 16, 2, channels=1)
    drawn, kept = load_picture("edited.png"), (mask < 0).expand_as(image)
    assert 0.3 < kept.float().mean() < 0.7
    assert_close(drawn[kept], image[kept], rtol=0, atol=0.005)
    assert (drawn - image)[~kept].abs().mean() > 0.05


def save(picture, mode, file):
    if mode == "I;16":
        wide = torch.frombuffer(bytearray(picture.convert("L").tobytes()), dtype=torch.uint8).int() * 257
        picture = Image.frombytes("I;16", picture.size, wide.numpy().astype("<u2").tobytes())
    else:
        picture = picture.convert(mode)
    picture.save(file)


def test_real_photographs_and_their_masks(made):
    folder = Path(os.environ.get("MINIDIFF_DATA", "nowhere")) / "inpainting_examples"
    if not folder.is_dir():
        pytest.skip("MINIDIFF_DATA names no folder with inpainting_examples/ in it")
    pipe = opened(made)
    for file in sorted(folder.glob("*_mask.png")):
        photo = str(file).replace("_mask", "")
        mask, whole = (load_picture(file, 512, 2, channels=1) + 1) / 2, load_picture(photo, 512, 2)
        copy = pipe.inpaint("a star", whole, mask, strength=0.0, steps=4)  # the VAE at full size, without a walk
        kept = (mask < 0.5).expand_as(copy)
        assert copy[kept].equal(whole[kept]) and 0.05 < kept.float().mean() < 1
        assert edit(made, photo, "--to", "a star", "--mask", str(file)) == 0
        small, kept = load_picture(photo, 16, 2), (load_picture(file, 16, 2, channels=1) < 0).expand(1, 3, -1, -1)
        assert_close(load_picture("edited.png")[kept], small[kept], rtol=0, atol=0.005)


@pytest.mark.parametrize(("options", "sentence"), [
    (["--to", "a star"], "give a picture to edit, or --scene K"),
    (["red.png", "--scene", "1", "--to", "a star"], "one of them"),
    (["red.png", "--to", "a star"], "say what the picture shows with --from"),
    (["red.png", *WORDS, "--strength", "0.5"], "--from is for inversion"),
    (["red.png", "--to", "a star", "--mask", "white.png", "--start", "2"], "--start is for inversion"),
    (["red.png", "--to", "a star", "--strength", "1.3"], "strength = 1.3"),
    (["none.png", *WORDS], "there is no picture none.png"),
    (["red.png", "--to", "a star", "--mask", "none.png"], "there is no picture none.png"),
    (["red.png", *WORDS, "--start", "4"], "start = 4 of 4 steps"),
    (["--scene", "-1", "--to", "a star"], "counted from 0"),
    (["red.png", "--from", "a dragon", "--to", "a star"], "dragon"),
])  # fmt: skip
def test_mistakes_are_told_in_a_sentence_and_nothing_is_written(made, capsys, tmp_path, options, sentence):
    assert edit(made, *options) == 2
    assert sentence in told(capsys) and not (tmp_path / "edited.png").exists()


def test_an_edit_without_inversion(made, capsys):
    assert edit(made, "red.png", *WORDS, "--by", "difference", "--start", "1", "--guidance", "3", "--borrow", "1") == 0
    picture, g = load_picture("red.png", 16, 2), torch.Generator().manual_seed(0)
    expected = opened(made).edit_by_difference(picture, "a red circle", "a blue star", 4, 1, 3.0, 1.0, g)
    assert_close(load_picture("edited.png"), expected, rtol=0, atol=0.005)
    assert not torch.allclose(expected, picture, atol=0.1)
    assert edit(made, "red.png", *WORDS, "--by", "difference", "--refine", "1") == 2
    assert "no inversion to --refine" in told(capsys)
    assert edit(made, "red.png", "--to", "a star", "--strength", "0.5", "--by", "difference") == 2
    assert "--by is for inversion" in told(capsys)


def test_a_mask_of_another_shape_is_refused(made, capsys):
    Image.new("1", (22, 30), 1).save("tall.png")
    assert edit(made, "red.png", "--to", "a star", "--mask", "tall.png") == 2
    assert "mask is" in told(capsys)


def test_bench_editing_refuses_a_start_beyond_the_steps_before_it_measures(made, capsys):
    assert main(["bench", "editing", "--model", str(made), "--borrow", "0", "30"]) == 2
    assert "--borrow 30.0: a share of the steps" in told(capsys)
    assert main(["bench", "editing", "--model", str(made), "--steps", "3", "--starts", "0", "3"]) == 2
    assert "--starts 3 of 3 steps" in told(capsys)
    assert main(["bench", "editing", "--model", str(made), "--steps", "3", "--starts", "2", "--by", "difference"]) == 2
    assert "--starts 2 of 3 steps: leave out 0 to 1" in told(capsys)


def test_bench_editing_prints_writes_and_draws(made, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("minidiff.commands.editing.ROUND_TRIPS", ((3, 0), (3, 1)))
    monkeypatch.setattr("minidiff.commands.editing.GUIDED", (2.0,))
    few = ["--n", "2", "--sweep", "1", "--steps", "3", "--starts", "0", "1", "--scales", "2", "--refine", "0", "1",
           "--borrow", "0", "0.5"]  # fmt: skip
    assert main(["bench", "editing", "--model", str(made), *few, "--json", "found/e.json", "--plot", "e.png"]) == 0
    said, found = capsys.readouterr().out, json.loads((tmp_path / "found/e.json").read_text())
    assert [(t["steps"], t["refine"], t["scale"]) for t in found["round_trips"]] == [(3, 0, 1), (3, 1, 1), (3, 0, 2)]
    assert [(r["kind"], r["start"], r["refine"], r["borrow"], r["n"]) for r in found["sweep"]] == [
        (kind, start, refine, borrow, 1) for refines in ((0, 1), (None,)) for start in (0, 1) for borrow in (0, 0.5)
        for refine in refines for kind in ("colour", "shape", "background")]  # fmt: skip
    assert [r["n"] for r in found["best"]] == [2, 2, 2] and said.count("| colour") == 13
    assert said.count("| difference") == 12 + sum(r["refine"] is None for r in found["best"])
    assert Image.open("e.png").size[1] > 500
