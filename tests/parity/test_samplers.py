"""Our samplers and the levels of a Recipe against diffusers' schedulers, station by station, on one nonlinear network."""

import math

import pytest
import torch

from minidiff.diffusion import Level, ddim, ddpm, denoiser, dpmpp_2m, euler, heun, lms, plms
from minidiff.pretrained.schedulers import read_scheduler

diffusers = pytest.importorskip("diffusers", reason="diffusers is the oracle of these tests: pip install -r requirements.txt")
pytestmark = pytest.mark.parity

SAMPLERS = {"DDIM": ddim, "PNDM": plms, "LMSDiscrete": lms, "EulerDiscrete": euler, "HeunDiscrete": heun,
            "DPMSolverMultistep": dpmpp_2m}  # fmt: skip
BY_RATIO = ("LMSDiscrete", "EulerDiscrete", "HeunDiscrete")  # they carry x/alpha
SD = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
      "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "clip_sample": False,
      "trained_betas": None}  # fmt: skip
MIX = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def net(x, t):
    """A network with no symmetry to hide behind: it mixes channels and neighbours, bends, and knows the time."""
    mixed = torch.einsum("oc,bchw->bohw", MIX.to(x), x)
    return torch.tanh(mixed + torch.cos(t.to(x) / 300).view(-1, 1, 1, 1)) + 0.3 * x.roll(1, -1)


def theirs(name, config, n, noise, tables=None, **options):
    """x after every step, in our scale. tables: for attributes of the scheduler that are wanted in float64."""
    scheduler = getattr(diffusers, name + "Scheduler").from_config(config)
    scheduler.set_timesteps(n)
    vars(scheduler).update(tables or {})
    x, walk = noise * scheduler.init_noise_sigma, []
    for t in scheduler.timesteps:
        x = scheduler.step(net(scheduler.scale_model_input(x, t), t.expand(len(x))), t, x, **options).prev_sample
        walk.append(x / (1 + scheduler.sigmas[scheduler.step_index] ** 2) ** 0.5 if name in BY_RATIO else x)
    if name == "HeunDiscrete":  # of every pair of calls the first leads to a station where only the slope is wanted
        return [*walk[1:-1:2], walk[-1]]
    return walk[1:] if name == "PNDM" and n > 1 else walk  # the same, for the first pair


def ours(recipe, n, noise, sampler=None, **options):
    levels = recipe.levels(n, sampler)
    x = recipe.start(noise, levels[0], sampler)
    denoise = denoiser(net, recipe.predicts, clip=recipe.clip)
    return [state.x for state in (sampler or recipe.sampler)(denoise, x, levels, **options)]


def assert_same_walk(got, wanted, tolerance=1e-5, shorter=False):
    """Equal at every station, within tolerance * the largest value there. shorter: we leave out a last step to nowhere."""
    if shorter:
        assert torch.allclose(wanted[-1], wanted[-2], rtol=1e-6), "their last step leads somewhere"
        wanted = wanted[:-1]
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.fixture
def noise(generator):
    return torch.randn(2, 3, 4, 4, generator=generator)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing, n", [
    ("leading", 1), ("leading", 2), ("leading", 10), ("leading", 47), ("trailing", 1), ("trailing", 2), ("trailing", 10),
    ("trailing", 25), ("linspace", 3), ("linspace", 10), ("linspace", 25),  # for n = 1 theirs starts at the clean end
])  # fmt: skip
def test_the_walk_of_every_class(name, predicts, spacing, n, noise):
    config = {**SD, "_class_name": name + "Scheduler", "prediction_type": predicts, "timestep_spacing": spacing}
    shorter = spacing == "linspace" and name in ("DDIM", "PNDM")
    if shorter:  # only with as many steps as timesteps do these two step to the next of their own timesteps
        config |= {"num_train_timesteps": n}
    assert_same_walk(ours(read_scheduler(config), n, noise), theirs(name, config, n, noise), shorter=shorter)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("config", [
    {**SD, "_class_name": "PNDMScheduler"},
    {**SD, "_class_name": "DDIMScheduler", "timestep_spacing": "trailing"},
    {"_class_name": "DDPMScheduler", "clip_sample": False, "skip_prk_steps": True, "beta_start": 1e-4, "beta_end": 0.02},
    {**SD, "_class_name": "EulerDiscreteScheduler", "beta_schedule": "linear", "final_sigmas_type": "sigma_min"},
], ids=["pndm", "ddim", "ddpm", "euler"])  # fmt: skip
def test_another_sampler_for_the_same_config(name, config, noise):
    """As in X.from_config(pipe.scheduler.config): what the file leaves out has the default of the new class."""
    if config["_class_name"] == "EulerDiscreteScheduler" and name in ("DDIM", "PNDM"):
        config = config | {"set_alpha_to_one": True}
    recipe = read_scheduler(config)
    shorter = len(recipe.levels(20, SAMPLERS[name])) == 20
    assert_same_walk(ours(recipe, 20, noise, SAMPLERS[name]), theirs(name, config, 20, noise), shorter=shorter)


@pytest.mark.parametrize("name", ["DDIM", "PNDM", "LMSDiscrete", "HeunDiscrete"])  # the others cast everything to float32
@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("betas", ["scaled_linear", "squaredcos_cap_v2"])
def test_the_steps_in_float64(name, predicts, betas, noise):
    """On our tables, for theirs are float32. Trailing: on the cosine schedule sigma/alpha then starts at 20 000."""
    config = {**SD, "_class_name": name + "Scheduler", "prediction_type": predicts, "beta_schedule": betas,
              "timestep_spacing": "trailing", "set_alpha_to_one": True}  # fmt: skip
    recipe = read_scheduler(config)
    s = [level.sigma / level.alpha for level in recipe.levels(20)]
    levels = [Level(level.t, 1 / math.hypot(1, r), r / math.hypot(1, r)) for level, r in zip(recipe.levels(20), s, strict=True)]
    x = recipe.start(noise.double(), levels[0])
    got = [state.x for state in recipe.sampler(denoiser(net, recipe.predicts), x, levels)]
    s = torch.tensor(s, dtype=torch.float64)
    if name in BY_RATIO:
        tables = {"sigmas": torch.cat([s[:1], s[1:-1].repeat_interleave(2), s[-1:]]) if name == "HeunDiscrete" else s}
    else:
        tables = {"alphas_cumprod": 1 / (1 + (recipe.schedule.sigma.double() / recipe.schedule.alpha.double()) ** 2)}
    assert_same_walk(got, theirs(name, config, 20, noise.double(), tables), 1e-10)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("n", [2, 14, 15, 16])
def test_dpmpp_2m_to_sigma_min(spacing, n, noise):
    """Below 15 steps the last is of first order, even where it does not lead to CLEAN."""
    config = {**SD, "_class_name": "DPMSolverMultistepScheduler", "final_sigmas_type": "sigma_min", "timestep_spacing": spacing}
    assert_same_walk(ours(read_scheduler(config), n, noise), theirs("DPMSolverMultistep", config, n, noise))


@pytest.mark.parametrize("name, tolerance", [("DDIM", 1e-5), ("DPMSolverMultistep", 1e-5), ("EulerDiscrete", 5e-5)])
def test_zero_terminal_snr(name, tolerance, noise):
    """Euler there carries x/alpha, 4096 times the noise, in float32."""
    config = {**SD, "_class_name": name + "Scheduler", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
              "timestep_spacing": "trailing"}  # fmt: skip
    assert_same_walk(ours(read_scheduler(config), 20, noise), theirs(name, config, 20, noise), tolerance)


@pytest.mark.parametrize("name", ["DDPM", "DDIM"])
@pytest.mark.parametrize("predicts", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("bound", [1.0, 0.5])
def test_clipped_walks(name, predicts, bound, noise):
    """These two clip unless they are told not to, as Google's DDPM wants it."""
    config = {"_class_name": name + "Scheduler", "prediction_type": predicts, "clip_sample_range": bound}
    options = [{"generator": torch.Generator().manual_seed(3)} if name == "DDPM" else {} for _ in range(2)]
    recipe = read_scheduler(config)
    assert recipe.clip == bound and recipe.sampler is {"DDPM": ddpm, "DDIM": ddim}[name]
    # At low noise the eps of an x0 is what is left of a difference, and their 1 - abar has lost digits too.
    tolerance = 1e-4 if predicts == "sample" else 1e-5
    assert_same_walk(ours(recipe, 20, noise, **options[0]), theirs(name, config, 20, noise, **options[1]), tolerance)


def test_trained_betas(noise):
    config = {**SD, "_class_name": "EulerDiscreteScheduler", "num_train_timesteps": 100,
              "trained_betas": torch.linspace(0.001, 0.08, 100).sin().tolist()}  # fmt: skip
    assert_same_walk(ours(read_scheduler(config), 10, noise), theirs("EulerDiscrete", config, 10, noise))
