"""Every sampler in half and single precision beside itself in float64: same network, same noise, same levels.

The network answers exactly, rounded to the dtype of x; so what is measured is the arithmetic of the samplers.
"""

import pytest
import torch

from minidiff.diffusion import (
    GaussianDenoiser,
    Schedule,
    ddim,
    ddpm,
    denoiser,
    dpmpp_2m,
    dpmpp_2m_sde,
    euler,
    euler_ancestral,
    heun,
    lms,
    plms,
    sample,
    target,
)

# The largest error of a walk of 20 steps, relative to the largest |x| of its end: about one rounding per step.
BOUNDS = {torch.bfloat16: 0.05, torch.float16: 6e-3, torch.float32: 1e-6}
SAMPLERS = [ddpm, ddim, euler, euler_ancestral, heun, lms, plms, dpmpp_2m, dpmpp_2m_sde]
WALKS = {
    "vp eps": (Schedule.scaled_linear(), "leading", "eps"),
    "vp v": (Schedule.scaled_linear(), "leading", "v"),
    "vp karras eps": (Schedule.linear(), "karras", "eps"),
    "zero snr v": (Schedule.scaled_linear().zero_terminal_snr(), "trailing", "v"),
    "flow": (Schedule.flow(shift=3.0), None, "flow"),
}
COSINE = (Schedule.cosine(), "trailing", "eps")  # begins at s = 20 000 and steps to s = 12
NOISE = torch.randn(20, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()  # few digits: any dtype holds them


def end(sampler, dtype, walk, monkeypatch):
    (schedule, spacing, predicts), noise = walk, iter(NOISE)
    for module in ("samplers", "multistep"):  # torch.randn draws other numbers in other dtypes
        monkeypatch.setattr(f"minidiff.diffusion.{module}.randn_like", lambda x, generator: next(noise).to(x))
    exact = GaussianDenoiser(mean=0.2, std=0.7)

    def net(x, t):
        level = schedule.at(t[0].item())
        return target(*exact(x.double(), level), level, predicts).to(x)

    return sample(sampler, denoiser(net, predicts), next(noise).to(dtype), schedule.levels(20, spacing), progress=False)


def error(sampler, dtype, walk, monkeypatch):
    x, wanted = (end(sampler, each, walk, monkeypatch) for each in (dtype, torch.float64))
    assert x.dtype == dtype and x.isfinite().all()
    return ((x - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize("walk", WALKS.values(), ids=WALKS)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_every_sampler_stays_near_float64(sampler, walk, dtype, monkeypatch):
    assert error(sampler, dtype, walk, monkeypatch) < BOUNDS[dtype]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_from_an_alpha_of_nearly_0(sampler, monkeypatch):
    """Nothing overflows, but of eps at s = 20 000 every lost digit weighs 20 000 times. Heun and PLMS, which take a difference
    of two eps over that step, lose all that half precision has, and four digits of float32: begin them at zero SNR instead."""
    bf16, fp16, fp32 = (error(sampler, dtype, COSINE, monkeypatch) for dtype in BOUNDS)
    if sampler in (heun, plms):
        assert min(bf16, fp16) > 0.1 and 1e-4 < fp32 < 0.02
    else:
        assert bf16 < 0.05 and fp16 < 0.01 and fp32 < 1e-4
