"""Our schedules and samplers against diffusers' schedulers, on the dummy model and samples of its own test-suite."""

import pytest
import torch

from minidiff.diffusion import Schedule, ddim, ddpm, denoiser, sample

diffusers = pytest.importorskip("diffusers", reason="diffusers is the oracle of these tests: pip install -r requirements.txt")
pytestmark = pytest.mark.parity

BETAS = {"linear": {"beta_start": 1e-4, "beta_end": 0.02}, "scaled_linear": {"beta_start": 0.00085, "beta_end": 0.012}}
KINDS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


def dummy_net(x, t):
    return x * (t / (t + 1)).view(-1, 1, 1, 1)


def dummy_sample():
    return (torch.arange(4 * 3 * 8 * 8).reshape(3, 8, 8, 4) / (4 * 3 * 8 * 8)).permute(3, 0, 1, 2)


def ours(sampler, schedule, n, predicts="eps", spacing="leading", clip=1.0, x=None, **options):
    x = dummy_sample() if x is None else x
    return sample(sampler, denoiser(dummy_net, predicts, clip=clip), x, schedule.levels(n, spacing), progress=False, **options)


def theirs(scheduler, n, x=None, **options):
    scheduler.set_timesteps(n)
    x = dummy_sample() if x is None else x
    for t in scheduler.timesteps:
        x = scheduler.step(dummy_net(x, t.expand(len(x))), t, x, **options).prev_sample
    return x


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_tables(name, zero_snr):
    theirs_name = {"cosine": "squaredcos_cap_v2"}.get(name, name)
    schedule = getattr(Schedule, name)()
    schedule = schedule.zero_terminal_snr() if zero_snr else schedule
    reference = diffusers.DDIMScheduler(1000, beta_schedule=theirs_name, rescale_betas_zero_snr=zero_snr, **BETAS.get(name, {}))
    torch.testing.assert_close(schedule.abar, reference.alphas_cumprod, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("n", [1, 3, 10, 47, 48, 1000])
def test_timesteps(spacing, n):
    if spacing == "linspace" and n == 1:
        pytest.skip("for one step diffusers starts at t = 0, the clean end; we start at the noisy one")
    reference = diffusers.DDIMScheduler(timestep_spacing=spacing)
    reference.set_timesteps(n)
    assert [level.t for level in Schedule.linear().levels(n, spacing)[:-1]] == reference.timesteps.tolist()


@pytest.mark.parametrize("n, shift", [(1, 1.0), (10, 1.0), (28, 3.0), (1000, 3.0)])
def test_flow_levels_are_sd3s(n, shift):
    reference = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    reference.set_timesteps(n)
    levels = Schedule.flow(shift=shift).levels(n)
    torch.testing.assert_close(torch.tensor([level.sigma for level in levels]), reference.sigmas, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.tensor([level.t for level in levels[:-1]]), reference.timesteps, rtol=1e-5, atol=1e-3)


def test_flow_walk_is_sd3s(generator):
    x = torch.randn(4, 3, 8, 8, generator=generator)
    wanted = theirs(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), 28, x)
    torch.testing.assert_close(ours(ddim, Schedule.flow(shift=3.0), 28, "flow", None, None, x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("predicts", KINDS)
@pytest.mark.parametrize("name", BETAS)
@pytest.mark.parametrize("n, spacing", [(10, "leading"), (25, "trailing")])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_ddim_ends_where_theirs_does(predicts, name, n, spacing, clip, generator):
    # Not "linspace": there their step goes to t - T // n, which is not the next of their own timesteps.
    x = torch.randn(4, 3, 8, 8, generator=generator)
    options = {"prediction_type": KINDS[predicts], "clip_sample": clip is not None, "timestep_spacing": spacing}
    wanted = theirs(diffusers.DDIMScheduler(1000, beta_schedule=name, **options, **BETAS[name]), n, x)
    got = ours(ddim, getattr(Schedule, name)(), n, predicts, spacing, clip, x)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("predicts", KINDS)
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_with_eta_ends_where_theirs_does(predicts, eta):
    reference = diffusers.DDIMScheduler(prediction_type=KINDS[predicts])
    wanted = theirs(reference, 50, eta=eta, generator=torch.Generator().manual_seed(7))
    got = ours(ddim, Schedule.linear(), 50, predicts, eta=eta, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("predicts", KINDS)
@pytest.mark.parametrize("n", [10, 1000])
def test_ddpm_ends_where_theirs_does(predicts, n):
    wanted = theirs(diffusers.DDPMScheduler(prediction_type=KINDS[predicts]), n, generator=torch.Generator().manual_seed(7))
    got = ours(ddpm, Schedule.linear(), n, predicts, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)
