"""What tests of single answers do not say of SD3's transformer: its size, its positions, its folders."""

import pytest
import torch

from minidiff import load, load_mmdit, save
from minidiff.nets import MMDiT, PatchEmbedding
from minidiff.pretrained.mmdit import options

diffusers = pytest.importorskip("diffusers", reason="diffusers is the oracle of these tests: pip install -r requirements.txt")
from pairs import MMDITS, SMALL_MMDIT, count, rand, shaken  # noqa: E402

pytestmark = pytest.mark.parity

SD3 = {"sample_size": 128, "patch_size": 2, "in_channels": 16, "num_layers": 24, "attention_head_dim": 64,
       "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536, "pooled_projection_dim": 2048,
       "out_channels": 16, "pos_embed_max_size": 192, "qk_norm": None}  # fmt: skip
MEDIUM = {"qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13)), "pos_embed_max_size": 384}
LARGE = {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "qk_norm": "rms_norm"}


@pytest.mark.parametrize("changes, parameters", [({}, 2_028_328_000), (MEDIUM, 2_243_171_520), (LARGE, 8_056_627_520)],
                         ids=["SD3 medium", "SD 3.5 medium", "SD 3.5 large"])  # fmt: skip
def test_full_size_counts_are_theirs(changes, parameters):
    with torch.device("meta"):
        theirs, ours = diffusers.SD3Transformer2DModel(**{**SD3, **changes}), MMDiT(**options({**SD3, **changes}))
    assert count(ours) == count(theirs) == parameters


def test_new_positions_are_theirs_where_places_lie_one_apart():
    theirs = diffusers.models.embeddings.PatchEmbed(48, 48, 2, 4, 64, pos_embed_max_size=24).cropped_pos_embed(20, 32)
    ours = PatchEmbedding(4, 64, patch=2, size=48)
    x = rand(1, 4, 20, 32)
    said = ours(x) - ours.project(x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(said, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MMDITS)
@pytest.mark.parametrize("saved", [{}, {"max_shard_size": "200KB"}, {"variant": "fp16"}], ids=["whole", "shards", "fp16"])
def test_folders_are_read(tmp_path, name, saved):
    """And the positions of the file, which are not those of a new network, are still there after our own save and load."""
    half = saved.get("variant") == "fp16"
    theirs = shaken(diffusers.SD3Transformer2DModel(**SMALL_MMDIT, **MMDITS[name]), torch.float16 if half else torch.float32)
    theirs.save_pretrained(tmp_path / "theirs", **saved)
    ours = load_mmdit(tmp_path / "theirs", variant=saved.get("variant"))
    save(tmp_path / "ours", ours)
    inputs = rand(2, 4, 6, 10), torch.tensor([7, 801]), rand(2, 5, 12, seed=2), rand(2, 10, seed=3)
    with torch.no_grad():
        x, t, context, pooled = inputs
        wanted = theirs.float()(x, context, pooled, t).sample
        for net in (ours, load(tmp_path / "ours")[0]):
            assert (net(*inputs) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
