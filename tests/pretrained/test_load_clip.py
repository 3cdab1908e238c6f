"""Folders of CLIP's text encoder, old and new, against a table of names written out by hand."""

import json

import pytest
import torch
from safetensors.torch import save_file

from minidiff.nets.clip import CLIPText
from minidiff.pretrained.clip import load_clip_text, options

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


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_a_text_model_of_today_and_of_2022(tmp_path, net, prefix):
    old = {"text_model.embeddings.position_ids": torch.arange(7)[None]} if prefix else {}
    loaded = load_clip_text(folder_of(tmp_path, net, CONFIG, prefix, **old))
    assert loaded.projection is None and not loaded.training
    torch.testing.assert_close(loaded(IDS).tokens, net(IDS).tokens, rtol=0, atol=0)


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
    torch.testing.assert_close(loaded(IDS).pooled, net(IDS).pooled, rtol=0, atol=0)


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
