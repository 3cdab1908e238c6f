"""Pipelines in our own format: what is saved is what opens."""

import json
from pathlib import Path

import pytest
import torch

import minidiff as md
from minidiff.nets import Pixels
from minidiff.pipelines import own
from minidiff.pipelines.own import OwnRecipe
from minidiff.pretrained import read_scheduler, words_tokenizer
from minidiff.training import save

SD1 = {"_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
       "skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1}  # fmt: skip
PROMPTS = ["a red circle", "a blue star"]


def tiny(in_channels=4, vae=None, recipe=None):
    torch.manual_seed(0)
    tokenizer = words_tokenizer(["a", "red", "blue", "circle", "star"], length=8)
    vae = vae or md.VAE(channels=(8, 16), layers=1, groups=None, scale=0.7, shift=0.1)
    channels = vae.config["latent_channels"]
    unet = md.UNet(in_channels, channels, (8, 16), (True, False), layers=1, context_dim=12, shortcut=True)
    text = md.CLIPText(len(tokenizer.vocab), 8, 12, layers=1, heads=2, eos=tokenizer.end)
    for net in (unet, vae, text):
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    recipe = recipe or OwnRecipe({"name": "flow"}, "x0", spacing="trailing")
    pipe = md.StableDiffusion(unet.eval(), vae.eval(), text.eval(), tokenizer, recipe, size=16)
    pipe.progress, pipe.steps, pipe.guidance_scale = False, 3, 2.0
    return pipe


def opened(folder, **options):
    pipe = md.StableDiffusion.from_pretrained(folder, **options)
    pipe.progress = False
    return pipe


def draw(pipe, **options):
    return pipe(PROMPTS, generator=torch.Generator().manual_seed(1), **options)


def latents(pipe, **options):
    *_, last = pipe.walk(PROMPTS, generator=torch.Generator().manual_seed(1), **options)
    return last.x


def spoil(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("recipe", [
    OwnRecipe({"name": "flow", "shift": 2.0}, "x0"), OwnRecipe({"name": "cosine", "zero_terminal_snr": True}, "v", "dpmpp_2m"),
    OwnRecipe({"name": "flow"}, "flow", "euler", None), read_scheduler(SD1),
])  # fmt: skip
def test_what_is_saved_is_what_opens(tmp_path, recipe):
    pipe = tiny(recipe=recipe)
    assert pipe.save(tmp_path / "model", seed=7) == tmp_path / "model"
    again = opened(tmp_path / "model")
    assert (again.size, again.steps, again.guidance_scale) == (16, 3, 2.0)
    assert (again.predicts, again.recipe.sampler) == (pipe.predicts, recipe.sampler)
    assert again.recipe.levels(5) == recipe.levels(5) and again.vae.scale == 0.7
    assert draw(again).equal(draw(pipe)) and draw(again).shape == (2, 3, 16, 16)
    assert json.loads((tmp_path / "model" / "unet" / "config.json").read_text())["seed"] == 7
    assert not list(tmp_path.rglob("*.part"))


def test_a_model_is_led_away_from_its_blind_self_where_it_says_so(tmp_path):
    pipe = tiny()
    for weights in pipe.unet.parameters():
        torch.nn.init.normal_(weights, std=0.3)  # or what it sees matters little
    plain = latents(pipe)
    pipe.pag_scale, pipe.pag_layers, pipe.pag_from = 2.0, ("up.1.layers",), 0.5
    pipe.save(tmp_path)
    again, asked = opened(tmp_path), []
    assert (again.pag_scale, list(again.pag_layers), again.pag_from) == (2.0, ["up.1.layers"], 0.5)
    again.unet.register_forward_pre_hook(lambda net, inputs: asked.append((len(inputs[0]), inputs[1][0].item() / 1000)))
    drawn = latents(again)
    assert [(rows, round(sigma, 2)) for rows, sigma in asked] == [(6, 1.0), (6, 0.67), (4, 0.33)]  # two prompts, three steps
    once, none = (latents(again, pag_scale=scale) for scale in (1, 0))
    assert none.equal(plain) and (drawn - plain).abs().mean() > 1.2 * (once - plain).abs().mean() > 1e-3
    image = torch.zeros(2, 3, 16, 16)
    asked.clear()
    again.img2img(PROMPTS, image, strength=1.0)
    again.edit(image, PROMPTS, PROMPTS[::-1], steps=3, start=0)  # leads away from another text, and nothing else
    assert [rows for rows, _ in asked] == [6, 6, 4, *[2] * 3, *[4] * 3]
    again.pag_layers = ["up.9"]
    with pytest.raises(ValueError, match=r'in "up.9": it has'):
        draw(again)


def test_half_precision_takes_half_the_disk_and_draws_nearly_the_same(tmp_path):
    pipe = tiny()
    pipe.save(tmp_path / "whole")
    pipe.save(tmp_path / "half", torch.float16)
    sizes = [sum(file.stat().st_size for file in (tmp_path / name).rglob("*.safetensors")) for name in ("whole", "half")]
    assert 0.48 < sizes[1] / sizes[0] < 0.62  # names and shapes take room, too
    again = opened(tmp_path / "half")
    assert {p.dtype for net in (again.unet, again.vae, again.text_encoder) for p in net.parameters()} == {torch.float32}
    assert 0 < (draw(again) - draw(pipe)).abs().mean() < 0.02
    assert next(opened(tmp_path / "half", dtype=torch.bfloat16).unet.parameters()).dtype == torch.bfloat16


def test_the_parts_open_by_themselves(tmp_path):
    pipe = tiny()
    pipe.save(tmp_path)
    for load, part in ((md.load_unet, "unet"), (md.load_vae, "vae"), (md.load_clip_text, "text_encoder")):
        net, wanted = load(tmp_path / part), getattr(pipe, part)
        assert type(net) is type(wanted) and not net.training
        assert all(a.equal(b) for a, b in zip(net.state_dict().values(), wanted.state_dict().values(), strict=True))
    with pytest.raises(ValueError, match='describes "VAE": here minidiff reads UNet2DConditionModel'):
        md.load_unet(tmp_path / "vae")
    with pytest.raises(ValueError, match="keeps no variants"):
        md.load_unet(tmp_path / "unet", variant="fp16")


def test_a_whole_clip_lends_its_text_half(tmp_path):
    pipe = tiny()
    clip = md.CLIP({**pipe.text_encoder.config, "projection": 6}, {"size": 16, "patch": 8, "dim": 8, "layers": 1, "heads": 2,
                                                                    "projection": 6})  # fmt: skip
    save(tmp_path / "clip", clip)
    pipe.text_encoder = md.load_clip_text(tmp_path / "clip")
    pipe.save(tmp_path / "model", elsewhere={"text_encoder": tmp_path / "clip"})
    assert not (tmp_path / "model" / "text_encoder").exists()
    assert draw(opened(tmp_path / "model")).equal(draw(pipe))
    ids = pipe.tokenizer(PROMPTS)
    assert md.load_clip(tmp_path / "clip").encode_text(ids).equal(clip.encode_text(ids))


def test_variants_share_what_they_have_in_common(tmp_path, monkeypatch):
    base, inpaint, depth = tiny(), tiny(9), tiny(5)
    base.save(tmp_path / "shapes", torch.float16)
    shared = {part: tmp_path / "shapes" / part for part in ("vae", "text_encoder", "tokenizer", "scheduler")}
    for name, pipe in (("inpaint", inpaint), ("depth", depth)):
        pipe.save(tmp_path / "shapes" / name, torch.float16, elsewhere=shared)
        assert sorted(path.name for path in (tmp_path / "shapes" / name).iterdir()) == ["model_index.json", "unet"]
    monkeypatch.setattr(own, "WEIGHTS", tmp_path)
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    mask = torch.zeros(1, 1, 16, 16)
    mask[:, :, 4:12] = 1
    assert opened("shapes").inpaint("a star", image, mask).shape == image.shape  # the blended way
    assert opened("shapes/inpaint").inpaint("a star", image, mask).shape == image.shape
    assert opened("shapes/depth").depth2img("a star", image, mask).shape == image.shape
    with pytest.raises(ValueError, match="made for pipe.inpaint"):
        opened("shapes/inpaint")("a star")


def test_a_model_of_pixels_is_a_pipeline_like_any(tmp_path):
    pipe = tiny(3, vae=Pixels())
    pipe.save(tmp_path)
    again, image = opened(tmp_path), torch.rand(1, 3, 16, 16) * 2 - 1
    assert draw(again).equal(draw(pipe)) and draw(again).shape == (2, 3, 16, 16)
    torch.testing.assert_close(again.img2img("a star", image, strength=0.0), image)
    noise = again.invert(image, "a star", steps=40)
    assert noise.shape == image.shape and again.stride == 1


def test_a_unet_of_patches_takes_larger_pieces():
    pipe = tiny()
    pipe.unet = md.UNet(4, 4, (8, 16), (True, False), layers=1, context_dim=12, shortcut=True, patch=2).eval()
    assert pipe.stride == 4 and pipe("a star", height=20, width=16).shape == (1, 3, 20, 16)
    odd = torch.zeros(1, 3, 18, 16)
    for walk in (lambda: pipe("a star", height=18), lambda: pipe.img2img("a star", odd), lambda: pipe.invert(odd, "a star")):
        with pytest.raises(ValueError, match="18x16 pixels: height and width must divide by 4"):
            walk()


def test_prompts_are_of_known_words_few_or_none(tmp_path):
    tiny().save(tmp_path)
    pipe = opened(tmp_path)
    with pytest.raises(ValueError, match='"dragon".*blue circle red star'):
        pipe("a red dragon")
    with pytest.raises(ValueError, match="300 tokens and 6 fit"):
        pipe("a red star " * 100)
    assert pipe("").shape == pipe("a star", negative_prompt="").shape == (1, 3, 16, 16)


def test_folders_that_are_not_whole_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(own, "WEIGHTS", tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path)
    for name in ("shapes", "shapes/depth"):
        with pytest.raises(FileNotFoundError, match="train --stage all"):
            opened(name)
    tiny().save("shapes")
    assert opened("shapes").size == 16  # a folder here goes before what comes with minidiff
    index = Path("shapes") / "model_index.json"
    spoil(index, parts=json.loads(index.read_text())["parts"] | {"vae": "../gone"})
    with pytest.raises(FileNotFoundError, match="no vae at"):
        opened("shapes")
    spoil(index, **{"class": "StableDiffusion3"})
    with pytest.raises(ValueError, match="StableDiffusion3"):
        opened("shapes")
    tiny().save("other")
    spoil(Path("other") / "scheduler" / "scheduler_config.json", sampler="magic")
    with pytest.raises(ValueError, match='no sampler "magic": take one of ddpm, ddim, .*, dpmpp_2m_sde$'):
        opened("other")


@pytest.mark.parametrize("schedule", [{"name": "scaled_linear"}, {"name": "flow"}])
def test_a_walk_begins_with_as_much_noise_as_its_first_level_has(schedule):
    recipe, noise = OwnRecipe(schedule, "x0", spacing="leading"), torch.ones(1, 4, 2, 2)
    first = recipe.levels(5)[0]
    assert first.sigma < 1  # or it would be no question
    torch.testing.assert_close(recipe.start(noise, first), first.sigma * noise)
