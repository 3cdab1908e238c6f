"""Folders of CLIP and of its text encoder, old and new, against a table of names written out by hand."""

import json

import pytest
import torch
from safetensors.torch import save_file

from minidiff.nets import CLIP, CLIPImage, CLIPText
from minidiff.nets.clip_image import MEAN, STD
from minidiff.pretrained.clip import image_options, load_clip, load_clip_text, options

NAMES = {  # ours -> theirs, of a network with one layer
    "tokens.weight": "embeddings.token_embedding.weight",
    "positions": "embeddings.position_embedding.weight",
    **{f"layers.0.{ours}.{what}": f"encoder.layers.0.{theirs}.{what}" for what in ("weight", "bias") for ours, theirs in {
        "norm_1": "layer_norm1", "norm_2": "layer_norm2", "mlp_in": "mlp.fc1", "mlp_out": "mlp.fc2",
        "attention.to_q": "self_attn.q_proj", "attention.to_k": "self_attn.k_proj",
        "attention.to_v": "self_attn.v_proj", "attention.to_out": "self_attn.out_proj"}.items()},
    "norm.weight": "final_layer_norm.weight",
    "norm.bias": "final_layer_norm.bias",
}  # fmt: skip
CONFIG = {
    "architectures": ["CLIPTextModel"], "vocab_size": 20, "max_position_embeddings": 7, "hidden_size": 8, "projection_dim": 6,
    "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12, "hidden_act": "gelu", "eos_token_id": 19,
    "layer_norm_eps": 1e-5, "attention_dropout": 0.0,
}  # fmt: skip
IDS = torch.tensor([[3, 5, 19, 2]])


def folder_of(path, net, config, prefix, **more):
    tensors = {prefix + NAMES[name]: tensor for name, tensor in net.state_dict().items() if name in NAMES}
    save_file(tensors | more, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture
def net():
    net = CLIPText(vocab=20, length=7, dim=8, layers=1, heads=2, mlp=12, activation="gelu", projection=6, eos=19)
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(generator=torch.Generator().manual_seed(p.numel()))
    return net.eval()


def same(loaded, net):
    """Weights, to the bit. Answers are not: weights that lie elsewhere in memory are summed in another order."""
    theirs = net.state_dict()
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, theirs[name]), name


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_a_text_model_of_today_and_of_2022(tmp_path, net, prefix):
    old = {"text_model.embeddings.position_ids": torch.arange(7)[None]} if prefix else {}
    loaded = load_clip_text(folder_of(tmp_path, net, CONFIG, prefix, **old))
    assert loaded.projection is None and not loaded.training
    same(loaded, net)
    torch.testing.assert_close(loaded(IDS).tokens, net(IDS).tokens)


def test_with_projection(tmp_path, net):
    config = CONFIG | {"architectures": ["CLIPTextModelWithProjection"]}
    more = {"text_projection.weight": net.projection.weight.detach()}
    loaded = load_clip_text(folder_of(tmp_path, net, config, "text_model.", **more), dtype=torch.float64)
    assert loaded(IDS).pooled.dtype == torch.float64
    torch.testing.assert_close(loaded(IDS).pooled, net.double()(IDS).pooled)


def test_the_text_half_of_a_whole_clip(tmp_path, net):
    inner = {key: value for key, value in CONFIG.items() if key != "projection_dim"} | {"projection_dim": 512}
    config = {"architectures": ["CLIPModel"], "text_config": inner, "projection_dim": 6}
    more = {"text_projection.weight": net.projection.weight.detach(), "visual_projection.weight": torch.zeros(6, 3),
            "logit_scale": torch.tensor(2.6), "vision_model.encoder.layers.0.mlp.fc1.bias": torch.zeros(3)}  # fmt: skip
    loaded = load_clip_text(folder_of(tmp_path, net, config, "text_model.", **more))
    same(loaded, net)
    torch.testing.assert_close(loaded(IDS).pooled, net(IDS).pooled)


def test_weights_that_do_not_fit_are_refused(tmp_path, net):
    with pytest.raises(ValueError, match="missing layers.1.*"):
        load_clip_text(folder_of(tmp_path, net, CONFIG | {"num_hidden_layers": 2}, ""))
    with pytest.raises(ValueError, match="unexpected text_projection.weight"):
        load_clip_text(folder_of(tmp_path, net, CONFIG, "", **{"text_projection.weight": torch.zeros(6, 8)}))
    with pytest.raises(ValueError, match="CLIPVisionModel"):
        load_clip_text(folder_of(tmp_path, net, CONFIG | {"architectures": ["CLIPVisionModel"]}, ""))


@pytest.mark.parametrize("key, value", [
    ("hidden_act", "relu"), ("layer_norm_eps", 1e-6), ("attention_dropout", 0.1), ("eos_token_id", [2, 3]),
])  # fmt: skip
def test_configs_we_cannot_honour_are_refused(key, value):
    with pytest.raises(ValueError) as error:
        options(CONFIG | {key: value})
    assert f"{key} = {value!r}" in str(error.value)


def test_options_of_stable_diffusion_1():
    config = {"architectures": ["CLIPTextModel"], "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072,
              "projection_dim": 768, "eos_token_id": 2, "bos_token_id": 0, "dropout": 0.0, "torch_dtype": "x"}  # fmt: skip
    with torch.device("meta"):
        assert CLIPText(**options(config)).config == CLIPText().config | {"mlp": 3072, "eos": None}


# Both towers

PICTURES = {  # ours -> theirs, of an image tower with one layer
    "start": "embeddings.class_embedding",
    "patches.weight": "embeddings.patch_embedding.weight",
    "positions": "embeddings.position_embedding.weight",
    **{name: theirs for name, theirs in NAMES.items() if name.startswith("layers")},
    **{f"norm_in.{what}": f"pre_layrnorm.{what}" for what in ("weight", "bias")},
    **{f"norm.{what}": f"post_layernorm.{what}" for what in ("weight", "bias")},
}
BOTH = {
    "architectures": ["CLIPModel"], "projection_dim": 6,
    "text_config": CONFIG | {"architectures": None, "projection_dim": 512},
    "vision_config": {"image_size": 8, "patch_size": 4, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
                      "intermediate_size": 20, "hidden_act": "gelu"},
}  # fmt: skip
IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def clip(net):
    clip = CLIP(net, CLIPImage(size=8, patch=4, dim=12, layers=1, heads=2, mlp=20, activation="gelu", projection=6))
    with torch.no_grad():
        for p in clip.image.parameters():
            p.normal_(generator=torch.Generator().manual_seed(p.numel()))
        clip.logit_scale.fill_(1.5)
    return clip.eval()


def whole(path, clip, config, **more):
    tensors = {f"text_model.{NAMES[name]}": tensor for name, tensor in clip.text.state_dict().items() if name in NAMES}
    tensors |= {f"vision_model.{PICTURES[name]}": t for name, t in clip.image.state_dict().items() if name in PICTURES}
    tensors |= {"text_projection.weight": clip.text.projection.weight.detach(), "logit_scale": clip.logit_scale.detach(),
                "visual_projection.weight": clip.image.projection.weight.detach()}  # fmt: skip
    save_file(tensors | more, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("old", [False, True])
def test_a_whole_clip_of_today_and_of_2022(tmp_path, clip, old):
    more = {f"{half}_model.embeddings.position_ids": torch.arange(5)[None] for half in ("text", "vision")} if old else {}
    wrong = BOTH["text_config"] | {"hidden_size": 16}  # where it is said twice, transformers takes the other
    said_twice = {"text_config": wrong, "text_config_dict": {"hidden_size": 8}, "vision_config_dict": None} if old else {}
    loaded = load_clip(whole(tmp_path, clip, BOTH | said_twice, **more))
    assert not loaded.training and loaded.config == clip.config
    same(loaded, clip)
    torch.testing.assert_close(loaded(IMAGES, IDS), clip(IMAGES, IDS))


def test_pictures_shifted_by_other_means_are_refused(tmp_path, clip):
    about = whole(tmp_path, clip, BOTH) / "preprocessor_config.json"
    about.write_text(json.dumps({"image_mean": list(MEAN), "image_std": [*STD[:2], STD[2] + 1e-9], "do_resize": True}))
    load_clip(tmp_path)
    about.write_text(json.dumps({"image_mean": list(MEAN), "image_std": [0.5, 0.5, 0.5]}))
    with pytest.raises(ValueError, match=r"image_std = \[0.5, 0.5, 0.5\]"):
        load_clip(tmp_path)


def test_half_a_clip_is_no_clip(tmp_path, net):
    with pytest.raises(ValueError, match='describes "CLIPTextModel": here minidiff reads CLIPModel'):
        load_clip(folder_of(tmp_path, net, CONFIG, ""))


@pytest.mark.parametrize("key, value", [
    ("num_channels", 1), ("hidden_act", "relu"), ("image_size", [8, 8]), ("patch_size", None), ("layer_norm_eps", 1e-6),
])  # fmt: skip
def test_image_configs_we_cannot_honour_are_refused(key, value):
    with pytest.raises(ValueError) as error:
        image_options(BOTH | {"vision_config": BOTH["vision_config"] | {key: value}})
    assert f"{key} = {value!r}, which this image encoder" in str(error.value)
