"""train --stage, as a stranger meets it: toys of every part, in seconds, and what is said of every mistake."""

import hashlib
import json
import shutil

import pytest
import torch
from PIL import Image

import minidiff as md
from minidiff.__main__ import main
from minidiff.commands import stages
from minidiff.commands.lessons import Cache
from minidiff.commands.stages import SETTINGS
from minidiff.commands.works import reader
from minidiff.data.captions import Captioned
from minidiff.data.grammar import WORDS
from minidiff.data.shapes import caption
from minidiff.pretrained import words_tokenizer
from minidiff.training.checkpoint import read_tensors
from minidiff.training.latent import Lessons, deal

TINY = {
    "vae": "size=16 scenes=16 channels=8,8,8 batch=4 steps=2",
    "clip": "size=16 scenes=16 dim=8 layers=1 heads=2 projection=8 image_dim=8 image_layers=1 image_heads=2 batch=4 steps=2",
    "unet": "scenes=16 channels=8,16 attention=0,1 patch=1 batch=4 steps=3 walk=2 text_dim=8 text_layers=1 text_heads=2",
    "variant": "scenes=16 batch=4 steps=2",
    "pixels": "size=16 scenes=16 channels=8,16 attention=0,1 batch=4 steps=2 walk=2 text_dim=8 text_layers=1 text_heads=2",
}


@pytest.fixture(autouse=True, scope="module")
def small():
    """A look at one new scene in place of many, and no curves, which take longer to draw than a toy to train."""
    from minidiff import plot
    from minidiff.commands import works

    patch = pytest.MonkeyPatch()
    patch.setattr(works, "SHOWN", {"vae": 8, "clip": 16, "unet": 1})
    patch.setattr(plot, "show_losses", lambda losses, title, file: file.write_text(f"{title}: {len(losses)}"))
    yield
    patch.undo()


def train(stage, out, *options, tiny=None):
    names = ("vae", "clip", "unet") if stage == "all" else (tiny or stage,)
    numbers = [f"{'unet' if name == 'variant' else name}.{one}" for name in names for one in TINY[name].split()]
    return main(["train", "--stage", stage, "--out", str(out), "--set", *numbers, *options])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "sd"
    assert train("all", out) == 0
    return out


@pytest.fixture
def run(made, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(made, tmp_path / "copy")


def digests(folder):
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file() and path.name != stages.TIME}  # fmt: skip


def opened(folder):
    pipe = md.StableDiffusion.from_pretrained(folder)
    pipe.progress = False
    return pipe


def training(folder):
    return json.loads((folder / "config.json").read_text())["training"]


def test_one_command_makes_a_whole_model(made):
    parts = ("vae", "clip", "tokenizer", "unet", "scheduler", "cache", "model_index.json", "samples.png")
    assert sorted(path.name for path in made.iterdir()) == sorted(parts)
    assert {"losses.csv", "loss.png", "copies.png"} <= {path.name for path in (made / "vae").iterdir()}
    assert not list(made.rglob("trainer.safetensors")) and not list(made.rglob("*.part"))
    pipe = opened(made)
    assert pipe("a small red circle left of a blue star on a white background").shape == (1, 3, 16, 16)
    assert (pipe.size, pipe.steps, pipe.vae.stride) == (16, 2, 4)
    assert training(made / "unet")["step"] == training(made / "unet")["settings"]["steps"] == 3
    told = training(made / "unet")["settings"]
    assert (pipe.guidance_scale, pipe.unet.config["heads"]) == (told["guidance"], told["heads"]) == (2.0, 4)
    pag = pipe.pag_scale, list(pipe.pag_layers), pipe.pag_from
    assert pag == (told["pag"], told["pag_layers"], told["pag_from"]) == (1.0, ["up.0.layers.0"], 0.5)
    clip = md.load_clip(made / "clip")
    assert clip(torch.zeros(2, 3, 16, 16), pipe.tokenizer(["a star", "a heart"])).shape == (2, 2)


def test_latents_are_of_unit_variance(made):
    pipe, cache = opened(made), Cache(made / "cache", 16, 16, 0, brief=0.4)
    mean, std = cache.latents(pipe.vae)
    draws = mean.float() + std.float() * torch.randn(mean.shape)
    assert abs(draws.mean()) < 0.1 and abs(draws.std() - 1) < 0.1
    assert pipe.vae.scale != 0.18215
    texts = cache.texts("clip", pipe.tokenizer, pipe.text_encoder, [*cache.captions, ""])
    with torch.no_grad():
        said = pipe.encode_text([cache.captions[3], ""])
    torch.testing.assert_close(texts[[3, -1]].float(), said, rtol=1e-2, atol=1e-2)


def test_the_same_seed_makes_the_same_model(made, tmp_path):
    assert train("all", tmp_path / "again") == 0
    a, b = digests(made), digests(tmp_path / "again")
    assert {name for name in a if a[name] != b.get(name)} == set() and a.keys() == b.keys()


def test_the_longest_sentence_fits_both_encoders():
    star = "one small star in"
    longest = f"an image of {star} red and {star} blue and {star} cyan and {star} pink on a graded grey background"
    for stage in ("unet", "pixels", "clip"):
        length = SETTINGS[stage]["length"]
        assert words_tokenizer(WORDS, length)(longest).shape == (1, length)


def test_words_part_early():
    """Two sentences that differ in one word, as an untrained encoder has them: that word's vectors lie far apart."""
    tokenizer = words_tokenizer(WORDS, 16)
    torch.manual_seed(0)
    tokens = reader(tokenizer, 64, 2, 2)(tokenizer(["a red circle", "a blue circle"])).tokens
    alike = torch.cosine_similarity(*tokens, dim=1)  # of start, a, the colour, circle
    assert alike[:2].min() > 0.999 and alike[2] < 0.5 and alike[3] > 0.5


def test_a_joint_text_encoder_begins_with_long_words(run):
    assert train("unet", run, "--text", "joint", "--lr", "1e-6") == 0
    assert 0.9 < opened(run / "joint").text_encoder.tokens.weight.std() < 1.1


@pytest.mark.parametrize("text", ["clip", "joint"])
def test_a_training_that_goes_on_from_another(run, capsys, text):
    begin = run if text == "clip" else run / "joint"
    assert train("unet", run, "--text", text, "--lr", "1e-2") == 0
    before = opened(begin).unet.state_dict() | opened(begin).text_encoder.state_dict()
    shutil.copytree(run, run / "begun", ignore=shutil.ignore_patterns("cache"))
    begun = f"unet.begin={run / 'begun' / begin.relative_to(run)}"
    numbers = [f"unet.{one}" for one in TINY["unet"].split()]
    assert main(["train", "--stage", "unet", "--out", str(run), "--text", text, "--lr", "1e-7", "--set", *numbers, begun]) == 0
    after = opened(begin).unet.state_dict() | opened(begin).text_encoder.state_dict()
    assert all((after[name] - before[name]).abs().max() < 1e-5 for name in before)
    assert main(["train", "--stage", "unet", "--out", str(run), "--text", text, "--set", *numbers, begun, "unet.depth=2"]) == 2
    assert "has a UNet of other sizes" in capsys.readouterr().err
    assert train("vae", run, "--seed", "5") == 0
    assert main(["train", "--stage", "unet", "--out", str(run), "--text", text, "--fresh-cache", "--set", *numbers, begun]) == 2
    assert "latents of another VAE" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["joint", "tuned"])
def test_text_encoders_that_learn_with_the_unet(run, text):
    frozen = digests(run / "clip")
    assert train("unet", run, "--text", text) == 0
    pipe = opened(run / text)
    assert pipe("a star").shape == (1, 3, 16, 16)
    assert digests(run / "clip") == frozen
    clips = md.load_clip_text(run / "clip")
    same = [a.equal(b) for a, b in zip(pipe.text_encoder.state_dict().values(), clips.state_dict().values(), strict=False)]
    assert not all(same) and (pipe.text_encoder.config["projection"] is None) == (text == "joint")
    assert train("unet", run, "--text", text, "--variant", "depth", tiny="variant") == 0
    assert opened(run / text / "depth").text_encoder.state_dict()["tokens.weight"].equal(
        pipe.text_encoder.state_dict()["tokens.weight"])  # fmt: skip


@pytest.mark.parametrize("variant, channels", [("inpaint", 9), ("depth", 5)])
def test_variants_go_on_from_the_base(run, variant, channels):
    assert train("unet", run, "--variant", variant, tiny="variant") == 0
    pipe, scene = opened(run / variant), md.data.Shapes(1, 16)[0]
    assert pipe.unet.config["in_channels"] == channels
    image, mask = scene.image[None], scene.mask[None]
    drawn = pipe.inpaint("a star", image, mask) if variant == "inpaint" else pipe.depth2img("a star", image, -scene.depth[None])
    assert drawn.shape == image.shape
    assert sorted(path.name for path in (run / variant).iterdir()) == ["model_index.json", "samples.png", "unet"]
    base, door = opened(run).unet.state_dict()["conv_in.weight"], pipe.unet.state_dict()["conv_in.weight"]
    assert (door[:, :4] - base).abs().max() < 0.1 * base.abs().max() and door[:, 4:].abs().max() > 0


def test_what_a_variant_learns_from(made, tmp_path):
    pipe, cache = opened(made), Cache(tmp_path, 30, 16, 0)
    scenes = md.data.captions.Captioned(30, 16, 0)
    near = cache.depths(4)
    assert near.shape == (30, 1, 4, 4) and near.amin() == -1 and near.amax() == 1
    wanted = md.pipelines.inputs.depth_map(-scenes[7].depth[None], scenes[7].image[None], 4)
    torch.testing.assert_close(near[7:8].float(), wanted, rtol=1e-3, atol=1e-3)
    beside, std = cache.hidden(pipe.vae)
    assert beside.shape == (30, 5, 4, 4) and set(beside[:, 0].unique().tolist()) == {0.0, 1.0} and std[:, 0].abs().max() == 0
    masks = list(cache._masks())
    assert 0.1 < torch.stack(masks).mean() < 0.6
    covers = [bool((mask >= scenes[i].mask).all()) for i, mask in enumerate(masks)]
    assert 5 < sum(covers) < 30  # all objects hidden: at least where the mask is theirs
    i = covers.index(True)
    image = scenes[i].image[None] * (masks[i] < 0.5)
    torch.testing.assert_close(beside[i : i + 1, 1:].float(), pipe.encode(image, sample=False), rtol=1e-2, atol=2e-2)


def test_the_easy_scenes_show_two_things_and_their_captions_say_it_all(tmp_path):
    cache, told = Cache(tmp_path, 60, 16, seed=0), Captioned(60, 16, seed=0)
    easy, plain = cache.easy()
    said = dict(zip(easy.tolist(), plain, strict=True))
    for i in range(60):
        things = told.plan(i)[0]
        assert (i in said) == (len(things) == 2 and things[0].shape != things[1].shape and things[0].colour != things[1].colour)
        if i in said:
            a, b = said[i].split()[1:4], [things[0].size, things[0].colour, things[0].shape]
            assert a == b and said[i].endswith(f"{things[1].shape} on a {things[0].background} background")
    with pytest.raises(ValueError, match="none of 1 scenes shows two objects of two shapes and two colours: give more scenes"):
        Cache(tmp_path, 1, 16, seed=next(s for s in range(9) if len(Captioned(1, 16, s).plan(0)[0]) == 1)).easy()


def test_a_share_of_the_steps_is_easy(run, monkeypatch):
    asked, batches = [], Lessons.batches

    def heard(*args, **options):
        asked.append(options["ahead"])
        return batches(*args, **options)

    monkeypatch.setattr(Lessons, "batches", heard)
    for easy, ahead in ((0.5, 2), (0.0, 0)):
        numbers = [f"unet.{one}" for one in f"{TINY['unet']} steps=4 easy={easy}".split()]
        assert main(["train", "--stage", "unet", "--out", str(run), "--set", *numbers]) == 0
        assert asked.pop() == ahead


@pytest.mark.parametrize(("text", "brief"), [("clip", 0.0), ("joint", 0.0), ("joint", 0.5)])
def test_each_scene_is_told_its_own_words(run, monkeypatch, text, brief):
    seen, batches = [], Lessons.batches
    monkeypatch.setattr(Lessons, "batches", lambda its, *args, **how: seen.append(its) or batches(its, *args, **how))
    numbers = [f"unet.{one}" for one in f"{TINY['unet']} brief={brief}".split()]
    assert main(["train", "--stage", "unet", "--out", str(run), "--text", text, "--fresh-cache", "--set", *numbers]) == 0
    lessons, pipe = seen[-1], opened(run if text == "clip" else run / text)
    told = Captioned(len(lessons.mean), 16, 0, brief=brief)
    read = pipe.tokenizer if text == "joint" else pipe.encode_text
    words = {"texts": [told.plan(i)[1].text for i in range(len(told))], "nothing": [""],
             "plain": [caption(told.plan(i)[0]) for i in lessons.easy.tolist()]}  # fmt: skip
    for name, said in words.items():
        torch.testing.assert_close(getattr(lessons, name).float(), read(said).detach().float(), rtol=1e-2, atol=1e-2)


def test_tasks_are_drawn_as_often_as_they_are_named(run, capsys, monkeypatch):
    seen, batches = [], Lessons.batches
    monkeypatch.setattr(Lessons, "batches", lambda its, *args, **how: seen.append(its) or batches(its, *args, **how))
    numbers = [f"unet.{one}" for one in f"{TINY['unet']} easy=0".split()] + ["unet.tasks=counting,counting,two objects"]
    command = ["train", "--stage", "unet", "--out", str(run), "--text", "joint", "--set", *numbers]
    assert main(command) != 0 and "cache" in capsys.readouterr().err  # of scenes that were drawn for all six
    assert main([*command, "--fresh-cache"]) == 0
    told = Captioned(len(seen[-1].mean), 16, 0, tasks=("counting", "counting", "two objects"), brief=0.4)
    words = opened(run / "joint").tokenizer([told.plan(i)[1].text for i in range(len(told))])
    assert torch.equal(seen[-1].texts, words)
    assert training(run / "joint" / "unet")["settings"]["tasks"] == ["counting", "counting", "two objects"]
    assert main(["pack", str(run / "joint"), "--out", str(run / "packed")]) == 0
    assert "'tasks=counting,counting,two objects' " in (run / "packed" / "README.md").read_text()  # a shell reads it


@pytest.mark.parametrize("sampled", [False, True])
def test_latents_are_the_means_unless_draws_are_asked_for(run, monkeypatch, sampled):
    seen, batches = [], Lessons.batches
    monkeypatch.setattr(Lessons, "batches", lambda its, *args, **how: seen.append(its) or batches(its, *args, **how))
    numbers = [f"unet.{one}" for one in f"{TINY['unet']} easy=0".split()] + [f"unet.sampled={sampled}"] * sampled
    assert main(["train", "--stage", "unet", "--out", str(run), "--set", *numbers]) == 0
    cache = Cache(run / "cache", 16, 16, 0, brief=0.4)
    mean, std = cache.latents(opened(run).vae)
    torch.manual_seed(0)
    one, again = (next(batches(seen[-1], 16, seed=1))[0] for _ in range(2))
    chosen = next(deal(16, 16, seed=1))
    assert torch.equal(one, again) != sampled
    away = (one - mean[chosen].float()).abs() / std[chosen].float()
    assert away.mean() == pytest.approx(0.8 * sampled, abs=0.1)  # E|eps| of a normal distribution: sqrt(2 / pi)


def test_one_stage_on_pixels(tmp_path):
    assert train("pixels", tmp_path) == 0
    pipe = opened(tmp_path)
    assert type(pipe.vae).__name__ == "Pixels" and pipe("two hearts").shape == (1, 3, 16, 16)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("stage", ["vae", "unet"])
def test_a_stage_that_was_stopped_ends_where_the_whole_one_does(run, tmp_path, monkeypatch, capsys, stage):
    whole = shutil.copytree(run, tmp_path / "whole")
    assert train(stage, whole, "--every", "1", "--seed", "3", "--fresh-cache") == 0
    keep = stages.keep

    def pull_the_plug(*args):
        keep(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "keep", pull_the_plug)
    assert train(stage, run, "--every", "1", "--seed", "3", "--fresh-cache") == 130
    monkeypatch.undo()
    assert training(run / stage)["step"] == 1
    (run / stage / stages.TIME).write_text('{"minutes": 50, "machine": "another"}')  # it took long, before it was stopped
    if stage == "vae":
        capsys.readouterr()
        assert train("unet", run) == 2  # not on half a VAE
        assert "run `python -m minidiff train --stage vae" in capsys.readouterr().err
    config = run / stage / "config.json"
    content = config.read_text()
    config.write_text(content.replace('"warmup"', '"warm_up"'))
    assert main(["train", "--stage", stage, "--out", str(run), "--resume"]) == 2
    assert "by another version of minidiff, whose settings differ in warm_up, warmup" in capsys.readouterr().err
    config.write_text(content)
    assert main(["train", "--stage", stage, "--out", str(run), "--resume"]) == 0  # with the numbers it was begun with
    assert digests(run / stage) == digests(whole / stage)
    assert json.loads((run / stage / stages.TIME).read_text())["minutes"] >= 50
    assert main(["train", "--stage", stage, "--out", str(run), "--resume"]) == 0
    assert "is finished" in capsys.readouterr().out


def test_minutes_are_shared_and_become_steps_that_are_kept(tmp_path, capsys):
    assert train("all", tmp_path / "timed", "--minutes", "0.01") == 0
    told = capsys.readouterr().out
    assert "0.0012 minutes" in told and "0.0076 minutes" in told and "stage 3 of 3: unet" in told
    steps = training(tmp_path / "timed" / "vae")["settings"]["steps"]
    assert f"--set vae.steps={steps} repeats this run" in told
    assert train("vae", tmp_path / "counted", "--set", *[f"vae.{one}" for one in TINY["vae"].split()[:-1]],
                 f"vae.steps={steps}") == 0  # fmt: skip
    assert digests(tmp_path / "counted" / "vae") == digests(tmp_path / "timed" / "vae")


def test_what_a_stage_leaves_of_its_minutes_goes_to_the_next(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(stages, "learn", lambda job, minutes, *_: given.append(minutes))  # in no time at all
    assert main(["train", "--stage", "all", "--minutes", "60", "--out", str(tmp_path)]) == 0
    assert given == pytest.approx([7.2, 14.4, 60], abs=0.01)


def test_a_critic_may_judge(tmp_path):
    assert train("vae", tmp_path, "--set", *TINY["vae"].split(), "judge=0.1") == 0
    assert set(read_tensors(tmp_path / "vae" / "model.safetensors")) == set(md.load_vae(tmp_path / "vae").state_dict())


def test_sample_draws_from_words(made, tmp_path, capsys):
    out = tmp_path / "x.png"
    assert main(["sample", "two stars", "", "--model", str(made), "--each", "3", "--out", str(out), "--gif"]) == 0
    assert Image.open(out).size[0] > 3 * 16 and Image.open(tmp_path / "x.gif").n_frames == 2


def test_a_packed_model_draws_alone_and_says_how_it_was_made(run, tmp_path, capsys):
    assert train("unet", run, "--text", "joint") == 0
    assert train("unet", run, "--text", "joint", "--variant", "depth", tiny="variant") == 0
    whole = opened(run / "joint")
    for name in ("unet", "text_encoder"):  # numbers that half precision holds, so that the pictures must be equal
        part = getattr(whole, name)
        part.load_state_dict({key: value.half().float() for key, value in part.state_dict().items()})
    whole.vae.load_state_dict({key: value.half().float() for key, value in whole.vae.state_dict().items()})
    packed = tmp_path / "packed"
    assert main(["pack", str(run / "joint"), "--out", str(packed)]) == 0
    shutil.rmtree(run)
    alone, seed = opened(packed), torch.Generator
    assert alone("a star", generator=seed().manual_seed(0)).equal(whole("a star", generator=seed().manual_seed(0)))
    assert all(w.dtype == torch.float16 for w in read_tensors(packed / "unet" / "model.safetensors").values())
    assert not list(packed.rglob("trainer*")) and not list(packed.rglob("*.png"))
    depth = opened(packed / "depth").depth2img("a star", torch.zeros(1, 3, 16, 16), torch.rand(1, 1, 16, 16))
    assert depth.shape == (1, 3, 16, 16) and (packed / "clip" / "config.json").is_file()
    card = (packed / "README.md").read_text()
    assert "`python -m minidiff train --stage unet --text joint --set steps=3 batch=4 scenes=16 walk=2" in card
    assert "--stage unet --text joint --variant depth --set steps=2" in card and "| depth/unet |" in card
    assert "`python -m minidiff train --stage vae --set steps=2 batch=4 scenes=16 size=16 channels=8,8,8 --seed 0`" in card
    capsys.readouterr()
    assert main(["pack", str(packed), "--out", str(packed)]) == 2 and "is there already" in capsys.readouterr().err


def test_the_card_tells_what_a_training_went_on_from(run, tmp_path, capsys):
    assert train("unet", run, "--text", "joint") == 0
    first = run / "first"
    shutil.copytree(run, first, ignore=shutil.ignore_patterns("cache"))
    numbers = [f"unet.{one}" for one in TINY["unet"].split()]
    begun = ["train", "--stage", "unet", "--out", str(run), "--text", "joint", "--seed", "3", "--fresh-cache"]
    assert main([*begun, "--set", *numbers, f"unet.begin={first / 'joint'}", "unet.easy=0"]) == 0
    assert main(["pack", str(run / "joint"), "--out", str(tmp_path / "packed")]) == 0
    rows = [line for line in (tmp_path / "packed" / "README.md").read_text().splitlines() if line.startswith("| unet")]
    assert [row.split(" | ")[0] for row in rows] == ["| unet, 1 of 2", "| unet, 2 of 2"]
    assert "--seed 0" in rows[0] and "begin" not in rows[0] and "--text joint" in rows[0]
    assert f"begin={first / 'joint'}" in rows[1] and "easy=0.0" in rows[1] and "--seed 3" in rows[1]
    shutil.rmtree(first)
    capsys.readouterr()
    assert main(["pack", str(run / "joint"), "--out", str(tmp_path / "again")]) == 2
    assert "the card is to say how that was trained" in capsys.readouterr().err and not (tmp_path / "again").exists()


def test_a_frozen_clip_is_packed_once_and_half_a_training_not_at_all(run, tmp_path, capsys):
    assert main(["pack", str(run), "--out", str(tmp_path / "packed")]) == 0
    shutil.copytree(run, tmp_path / "half")
    shutil.rmtree(run)
    assert opened(tmp_path / "packed")("a star").shape == (1, 3, 16, 16)
    card = (tmp_path / "packed" / "README.md").read_text()
    assert card.count("--stage clip") == 1 and not (tmp_path / "packed" / "text_encoder").exists()
    config = tmp_path / "half" / "vae" / "config.json"
    config.write_text(config.read_text().replace('"step": 2', '"step": 1'))
    capsys.readouterr()
    assert main(["pack", str(tmp_path / "half"), "--out", str(tmp_path / "not")]) == 2
    assert "stopped 1 steps before its end" in capsys.readouterr().err and not (tmp_path / "not").exists()


@pytest.mark.parametrize("error, command", [
    ("train --stage vae --out NEW` first", ["train", "--stage", "unet", "--out", "NEW"]),
    ("train --stage clip --out NOCLIP` first", ["train", "--stage", "unet", "--out", "NOCLIP"]),
    ("train --stage unet --out NEW` first", ["train", "--stage", "unet", "--variant", "depth", "--out", "NEW"]),
    ("--stage unet --text joint --out RUN` first",
     ["train", "--stage", "unet", "--variant", "depth", "--text", "joint", "--out", "RUN"]),
    ("--fresh-cache makes it anew", ["train", "--stage", "unet", "--set", "scenes=20", "--out", "RUN"]),
    ("has no wings, but steps", ["train", "--stage", "vae", "--set", "vae.wings=2"]),
    ('is in "up.7": it has down.0', ["train", "--stage", "unet", "--set", "scenes=16", "pag_layers=up.7", "--out", "RUN"]),
    ("pag_from=2: a sigma, from 0 to 1", ["train", "--stage", "unet", "--set", "pag_from=2"]),
    ('no task "flying"', ["train", "--stage", "unet", "--out", "RUN", "--set", "unet.tasks=counting,flying"]),
    ("fast is no float, as 0.002 is", ["train", "--stage", "vae", "--set", "lr=fast"]),
    ("write STAGE.NAME=VALUE", ["train", "--stage", "all", "--set", "scenes=3"]),
    ("write NAME=VALUE", ["train", "--stage", "vae", "--set", "scenes"]),
    ("give --set channels=", ["train", "--stage", "vae", "--channels", "8,8"]),
    ("--text and --variant are of --stage unet", ["train", "--stage", "vae", "--text", "joint"]),
    ("--stage all trains a base", ["train", "--stage", "all", "--variant", "depth"]),
    ("say which by --stage", ["train", "--text", "joint"]),
    ('"dragon"', ["sample", "a red dragon", "--model", "RUN"]),
    ("tokens and 34 fit", ["sample", "a red star " * 100, "--model", "RUN"]),
    ("draws from words", ["sample", "RUN"]),
    ("--classes is for the folder", ["sample", "a star", "--classes", "7", "--model", "RUN"]),
    ("draw at least one", ["sample", "a star", "--each", "0", "--model", "RUN"]),
    ("no/such", ["sample", "a star", "--model", "no/such"]),
])  # fmt: skip
def test_mistakes_are_told_in_one_line(made, tmp_path, capsys, error, command):
    places = {"RUN": made, "NEW": tmp_path / "new", "NOCLIP": tmp_path / "noclip"}
    if "NOCLIP" in command:
        shutil.copytree(made / "vae", tmp_path / "noclip" / "vae")
    if command[0] == "train" and "--out" not in command:
        command = [*command, "--out", str(tmp_path / "new")]
    before = digests(made)
    assert main([str(places.get(part, part)) for part in command]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    for name, place in places.items():
        error = error.replace(name, str(place)) if f"--out {name}`" in error else error
    assert error in message and message.startswith(f"minidiff {command[0]}: ")
    assert digests(made) == before and not (tmp_path / "new").exists()


def test_a_full_disk_while_caching(run, capsys, monkeypatch):
    shutil.rmtree(run / "cache")
    from minidiff.training import cache

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "write_file", full)
    assert train("unet", run) == 2
    assert "make room" in capsys.readouterr().err.splitlines()[-1]
    assert not list((run / "cache").iterdir()) and opened(run)("a star").shape == (1, 3, 16, 16)


def test_a_full_disk_at_a_checkpoint_is_told_and_the_run_goes_on_after_it(made, run, tmp_path, capsys, monkeypatch):
    from minidiff.training import checkpoint

    def full(_):
        raise OSError(28, "No space left on device")

    shutil.rmtree(run / "unet")
    with monkeypatch.context() as broken:
        broken.setattr(checkpoint.os, "fsync", full)
        assert train("unet", run) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("minidiff train: the disk is full") and "trainer.safetensors" in told and "--resume" in told
    assert not any(run.rglob("*.part"))
    assert train("unet", run, "--resume") == 0
    assert digests(run / "unet") == digests(made / "unet")
