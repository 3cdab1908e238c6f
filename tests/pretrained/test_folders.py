"""Folders of others: what loads, and what is refused with one clear error and no partial model."""

import json
import shutil
import struct

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

import minidiff as md
from minidiff.nets import UNet
from minidiff.pretrained.configs import honoured
from minidiff.pretrained.folders import find, read_weights
from minidiff.pretrained.loading import fill, rename

pytest.importorskip("diffusers", reason="diffusers writes the folders of these tests: pip install -r requirements.txt")
from tiny_sd import pipeline  # noqa: E402


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd") / "model"
    return pipeline(folder), folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(made[1], tmp_path / "copy")


def weights(folder, part="unet"):
    return next((folder / part).glob("*.safetensors"))


def test_what_comes_out_of_a_folder(made):
    theirs, folder = made
    pipe = md.StableDiffusion.from_pretrained(folder)
    assert pipe.size == 16
    assert pipe.predicts == "eps"
    assert not pipe.unet.training
    assert not any(p.is_meta for net in (pipe.unet, pipe.vae, pipe.text_encoder) for p in net.parameters())
    assert pipe.encode_text(["a puppy", "two"]).shape == (2, 77, 24)
    torch.testing.assert_close(pipe.schedule.abar, theirs.scheduler.alphas_cumprod)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_precision_draws_nearly_the_same(made, dtype):
    def draw(dtype):
        pipe = md.StableDiffusion.from_pretrained(made[1], dtype=dtype)
        pipe.progress = False
        assert {p.dtype for net in (pipe.unet, pipe.vae, pipe.text_encoder) for p in net.parameters()} == {dtype}
        return pipe("a puppy", steps=3, latents=torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)))

    wanted, got = draw(torch.float32), draw(dtype)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (got - wanted).abs().mean() < {torch.float16: 0.01, torch.bfloat16: 0.1, torch.float64: 1e-4}[dtype]


def test_variants_and_shards(folder):
    wanted = load_file(weights(folder))
    save_file({k: v.half() for k, v in wanted.items()}, weights(folder).with_suffix(".fp16.safetensors"))
    md.load_unet(folder / "unet", variant="fp16")
    weights(folder).with_name("diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match='take variant="fp16"'):
        md.load_unet(folder / "unet")
    weights(folder).unlink()
    names = sorted(wanted)
    place = {name: f"diffusion_pytorch_model-0000{1 + (i > 40)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(place.values()):
        save_file({name: wanted[name] for name in names if place[name] == file}, folder / "unet" / file)
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": place}))
    net = md.load_unet(folder / "unet")
    torch.testing.assert_close(net.conv_in.weight, wanted["conv_in.weight"])
    index.write_text(json.dumps({"weight_map": {**place, "conv_in.bias": "../vae/diffusion_pytorch_model.safetensors"}}))
    with pytest.raises(ValueError, match="points outside its folder"):
        md.load_unet(folder / "unet")
    index.write_text(json.dumps({"weight_map": {**place, "one.more": "diffusion_pytorch_model-00001-of-00002.safetensors"}}))
    with pytest.raises(ValueError, match="do not hold the same tensors: one.more"):
        md.load_unet(folder / "unet")
    (folder / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="00002-of-00002"):
        md.load_unet(folder / "unet")


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.pt", "model.ckpt"])
def test_pickles_are_refused(folder, name):
    file = weights(folder)
    file.rename(folder / "unet" / name)
    with pytest.raises(ValueError, match=f"pickle only.*{name}.*a program that runs when it is opened"):
        md.StableDiffusion.from_pretrained(folder)


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def cut_the_header(file):
    file.write_bytes(file.read_bytes()[:20])


def claim_a_huge_header(file):
    file.write_bytes(struct.pack("<Q", 2**60) + file.read_bytes()[8:])


def change(what):
    def edit(file):
        tensors = load_file(file)
        what(tensors)
        save_file(tensors, file)

    return edit


@pytest.mark.parametrize("spoil, told", [
    (cut, "damaged or not a safetensors file"), (cut_the_header, "damaged"), (claim_a_huge_header, "damaged"),
    (lambda file: file.write_bytes(b""), "damaged"),
    (change(lambda t: t.update({"conv_in.weight": t["conv_in.weight"].reshape(4, 16, 3, 3)})), "is .4, 16, 3, 3., not .16, 4"),
    (change(lambda t: t.pop("conv_in.bias")), "missing conv_in.bias"),
    (change(lambda t: t.update({"conv_in.extra": torch.zeros(1)})), "unexpected conv_in.extra"),
])  # fmt: skip
def test_damaged_weights_are_named(folder, spoil, told):
    spoil(weights(folder))
    with pytest.raises(ValueError, match=told):
        md.StableDiffusion.from_pretrained(folder)


def edit_json(file, **changes):
    about = json.loads(file.read_text())
    about.update(changes)
    file.write_text(json.dumps({k: v for k, v in about.items() if v is not ...}))


@pytest.mark.parametrize("changes, error, told", [
    ({"_class_name": "FluxPipeline"}, ValueError, 'describes a "FluxPipeline"'),
    ({"unet": ["diffusers", "UNet3DConditionModel"]}, ValueError, '"UNet3DConditionModel" as its unet'),
    ({"vae": ["diffusers", "VQModel"]}, ValueError, '"VQModel" as its vae'),
    ({"text_encoder": ...}, FileNotFoundError, "has no text_encoder"),
    ({"text_encoder": [None, None]}, FileNotFoundError, "has no text_encoder"),
    ({"controlnet": ["diffusers", "ControlNetModel"]}, ValueError, "lists controlnet"),
])  # fmt: skip
def test_an_index_of_what_we_do_not_have(folder, changes, error, told):
    edit_json(folder / "model_index.json", **changes)
    with pytest.raises(error, match=told):
        md.StableDiffusion.from_pretrained(folder)


def test_missing_and_broken_parts(folder, tmp_path):
    (folder / "model_index.json").rename(tmp_path / "kept.json")
    with pytest.raises(FileNotFoundError, match="model_index.json does not exist"):
        md.StableDiffusion.from_pretrained(folder)
    (folder / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        md.StableDiffusion.from_pretrained(folder)
    shutil.copy(tmp_path / "kept.json", folder / "model_index.json")
    weights(folder, "vae").unlink()
    with pytest.raises(FileNotFoundError, match=r"vae has no diffusion_pytorch_model.safetensors"):
        md.StableDiffusion.from_pretrained(folder)
    shutil.rmtree(folder / "vae")
    with pytest.raises(FileNotFoundError, match="has no vae"):
        md.StableDiffusion.from_pretrained(folder)


@pytest.mark.parametrize("changes, told", [
    ({"_class_name": "UNet3DConditionModel"}, 'describes "UNet3DConditionModel"'),
    ({"act_fn": "relu"}, "act_fn = 'relu'"), ({"class_embed_type": "timestep"}, "class_embed_type = 'timestep'"),
    ({"an_option_of_next_year": 3}, "an_option_of_next_year = 3"), ({"layers_per_block": [1, 2]}, "one number for all stages"),
    ({"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}, "up_block_types is"),
])  # fmt: skip
def test_a_config_that_describes_another_network(folder, changes, told):
    edit_json(folder / "unet" / "config.json", **changes)
    with pytest.raises(ValueError, match=told):
        md.load_unet(folder / "unet")


def test_parts_that_do_not_belong_together(folder):
    edit_json(folder / "tokenizer" / "tokenizer_config.json", model_max_length=99)
    with pytest.raises(ValueError, match="99 tokens and its text encoder reads 77"):
        md.StableDiffusion.from_pretrained(folder)


def test_a_name_that_is_no_folder(monkeypatch):
    for name in ("nowhere", "./nowhere/at-all", "/a/b/c"):
        with pytest.raises(FileNotFoundError, match="neither a folder nor the id of a model"):
            find(name)
    with pytest.raises(FileNotFoundError, match="the hub did not give it"):  # the tests are offline
        find("nobody/nothing")


REPOSITORY = [  # as on the hub: everything twice, and pickles beside
    "README.md", "model_index.json", "v1-5-pruned.safetensors", "v1-5-pruned.ckpt", "scheduler/scheduler_config.json",
    "tokenizer/vocab.json", "tokenizer/merges.txt", "text_encoder/config.json", "text_encoder/model.safetensors",
    "text_encoder/pytorch_model.bin", "text_encoder/model.fp16.safetensors", "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors",
    "safety_checker/model.safetensors", "safety_checker/config.json",
]  # fmt: skip


@pytest.mark.parametrize("variant, weights", [
    (None, {"text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors"}),
    ("fp16", {"text_encoder/model.fp16.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"}),
])  # fmt: skip
def test_what_is_fetched_from_the_hub(made, monkeypatch, variant, weights):
    fetched = set()

    def snapshot_download(name, allow_patterns, ignore_patterns):
        assert name == "someone/sd"
        fetched.update(filter_repo_objects(REPOSITORY, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
        return str(made[1])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert find("someone/sd", variant) == made[1]
    small = {"model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt"}
    assert fetched == small | {"text_encoder/config.json", "unet/config.json"} | weights


def test_fill_touches_nothing_unless_all_fits():
    net = UNet(1, 1, channels=(8, 16), attention=(False, False))
    before = {name: p.clone() for name, p in net.state_dict().items()}
    tensors = {name: torch.ones_like(p) for name, p in before.items()}
    with pytest.raises(ValueError, match="missing conv_in.bias"):
        fill(net, {name: t for name, t in tensors.items() if name != "conv_in.bias"}, [], "here")
    with pytest.raises(ValueError, match="conv_in.bias and x.conv_in.bias both claim"):
        fill(net, {**tensors, "x.conv_in.bias": tensors["conv_in.bias"]}, [("^x.", "")], "here")
    for name, parameter in net.state_dict().items():
        assert torch.equal(parameter, before[name])
    fill(net, tensors, [("^unused", None)], "here")
    assert tensors == {}
    assert all((p == 1).all() for p in net.parameters())
    assert all(p.requires_grad for p in net.parameters())


def test_rules_apply_in_order_and_none_leaves_out():
    rules = [("position_ids$", None), ("^a", "b"), (r"b(\d)", r"c.\1")]
    assert rename("a7", rules) == "c.7"
    assert rename("a.position_ids", rules) is None


def test_options_that_are_off_are_no_news():
    assert honoured({"a": 1, "new": None, "newer": False, "_note": 5}, {"a": 0, "b": 2}, {})["a"] == 1
    with pytest.raises(ValueError, match="newest = True"):
        honoured({"newest": True}, {}, {})


def test_weights_of_a_folder_without_any(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no diffusion_pytorch_model.safetensors or model.safetensors"):
        read_weights(tmp_path)
