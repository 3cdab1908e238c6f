"""CLIPs of the open_clip package: the same vectors as theirs, of pictures in our range."""

import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize
from torch.testing import assert_close

from minidiff.nets import clip_loss
from minidiff.pretrained import OpenCLIP, load_open_clip

CONFIG = {"embed_dim": 12, "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
          "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}}  # fmt: skip
SEEN = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("open_clip")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": SEEN}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CLIP(**CONFIG)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def clip(folder):
    return load_open_clip(folder)


def test_a_folder_gives_their_vectors(clip, folder, generator):
    theirs = open_clip.create_model(f"local-dir:{folder}").eval()
    pixels = torch.rand(2, 3, 16, 16, generator=generator)        # 0 ... 1, as theirs are before they are shifted
    shifted = (pixels - torch.tensor(SEEN["mean"]).view(3, 1, 1)) / torch.tensor(SEEN["std"]).view(3, 1, 1)
    with torch.no_grad():
        assert_close(clip.encode_image(2 * pixels - 1), normalize(theirs.encode_image(shifted), dim=1))
        ids = open_clip.tokenize(["a red star", "a heart"])
        assert_close(clip.encode_text(["a red star", "a heart"]), normalize(theirs.encode_text(ids), dim=1))
        assert_close(clip.encode_text(ids), clip.encode_text(["a red star", "a heart"]))
    assert (clip.size, clip.width) == (16, 12)


def test_it_can_be_asked_by_clip_loss(clip, generator):
    images = torch.rand(2, 3, 20, 20, generator=generator).requires_grad_()
    loss = clip_loss(clip, clip.encode_text("a red star")[0], 3)
    loss(images).backward()
    assert images.grad.abs().max() > 0 and all(p.grad is None for p in clip.parameters())


def test_a_model_of_ones_own(generator):
    clip = OpenCLIP(open_clip.CLIP(**CONFIG))
    assert clip.encode_image(torch.zeros(1, 3, 16, 16)).shape == (1, 12)
    with pytest.raises(ValueError, match="no tokenizer"):
        clip.encode_text("a star")
    with pytest.raises(ValueError, match=r"takes \(B, 3, 16, 16\)"):
        clip.encode_image(torch.zeros(1, 3, 8, 8))
    oblong = CONFIG | {"vision_cfg": CONFIG["vision_cfg"] | {"image_size": (16, 24)}}
    with pytest.raises(ValueError, match="only square"):
        OpenCLIP(open_clip.CLIP(**oblong))


@pytest.mark.parametrize(("name", "pretrained", "match"), [
    ("ViT-Q-99", "openai", 'no model "ViT-Q-99"'),
    ("ViT-B-32", None, "one of openai, "),
    ("ViT-B-32", "opnai", "pretrained='opnai'"),
    ("ViT-B-32", "openai", "another activation.*ViT-B-32-quickgelu"),
])  # fmt: skip
def test_what_would_see_nothing_or_badly_is_refused(name, pretrained, match):
    with pytest.raises(ValueError, match=match):
        load_open_clip(name, pretrained)


def test_a_folder_without_weights_is_refused(folder, tmp_path):
    (tmp_path / "open_clip_config.json").write_text((folder / "open_clip_config.json").read_text())
    with pytest.raises((RuntimeError, FileNotFoundError), match="weights"):
        load_open_clip(tmp_path)
