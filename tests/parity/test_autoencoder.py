"""Our VAE against diffusers' AutoencoderKL: the same random weights, letter by letter the same answers."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from minidiff.nets.vae import VAE
from minidiff.pretrained.loading import fill
from minidiff.pretrained.vae import RULES, load_vae, options

diffusers = pytest.importorskip("diffusers", reason="diffusers is the oracle of these tests: pip install -r requirements.txt")
pytestmark = pytest.mark.parity

STAGES = {n: {"down_block_types": ["DownEncoderBlock2D"] * n, "up_block_types": ["UpDecoderBlock2D"] * n} for n in (2, 4)}
CONFIGS = {
    "sd": {"block_out_channels": [16, 32, 32, 32], "layers_per_block": 2, "norm_num_groups": 8, **STAGES[4]},
    "sd3": {"block_out_channels": [16, 32, 32, 32], "layers_per_block": 2, "norm_num_groups": 8, **STAGES[4],
            "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False,
            "scaling_factor": 1.5305, "shift_factor": 0.0609},
    "small": {"in_channels": 1, "out_channels": 1, "block_out_channels": [8, 24], "layers_per_block": 1, "norm_num_groups": 4,
              "latent_channels": 3, "mid_block_add_attention": False, **STAGES[2]},
}  # fmt: skip
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def reference(name, dtype=torch.float32):
    """diffusers' network with noise in every parameter, so that none hides what another does."""
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKL(**CONFIGS[name])
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return theirs.to(dtype).eval()


def both(name, dtype):
    theirs = reference(name, dtype)
    ours = VAE(**options(dict(theirs.config))).to(dtype).eval()
    fill(ours, theirs.state_dict(), RULES, "diffusers")
    return ours, theirs


def same(ours, theirs):
    """Within 1e-5 of the largest number in float32, 1e-10 in float64."""
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= TOLERANCE[ours.dtype] * theirs.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_piece_answers_as_theirs(name, dtype, generator):
    ours, theirs = both(name, dtype)
    x = torch.rand(2, theirs.config.in_channels, 32, 48, generator=generator, dtype=dtype) * 2 - 1
    same(ours.encoder(x), theirs.encoder(x))
    mine, wanted = ours.encode(x), theirs.encode(x).latent_dist
    same(mine.mean, wanted.mean)
    same(mine.logvar, wanted.logvar)
    same(mine.std, wanted.std)
    same(mine.kl(), wanted.kl())
    z = wanted.sample(torch.Generator().manual_seed(1))
    same(mine.sample(torch.Generator().manual_seed(1)), z)
    same(ours.decoder(z), theirs.decoder(z))
    same(ours.decode(z), theirs.decode(z).sample)
    same(ours(x, torch.Generator().manual_seed(1))[0], theirs.decode(z).sample)
    assert (ours.scale, ours.shift) == (theirs.config.scaling_factor, theirs.config.shift_factor or 0.0)


@torch.no_grad()
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_their_folder_loads_and_answers_as_they_do(name, old, tmp_path, generator):
    theirs = reference(name)
    theirs.save_pretrained(tmp_path)
    if old:  # what the files of Stable Diffusion 1 call the attention, to this day
        path = tmp_path / "diffusion_pytorch_model.safetensors"
        save_file({re.sub("|".join(OLD), lambda m: OLD[m[0]], k): v for k, v in load_file(path).items()}, path)
        assert any("proj_attn" in key for key in load_file(path))
    ours = load_vae(tmp_path)
    assert not ours.training
    x = torch.rand(1, 3, 16, 16, generator=generator) * 2 - 1
    same(ours.encode(x).mean, theirs.encode(x).latent_dist.mean)
    z = torch.randn(1, theirs.config.latent_channels, 4, 4, generator=generator)
    same(ours.decode(z), theirs.decode(z).sample)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".fp16.safetensors"))
    assert {p.dtype for p in load_vae(tmp_path, torch.bfloat16, variant="fp16").parameters()} == {torch.bfloat16}


def test_defaults_of_an_empty_config_are_theirs():
    with torch.device("meta"):
        theirs, ours = diffusers.AutoencoderKL(), VAE(**options({}))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert ours.scale == theirs.config.scaling_factor
