"""Our samplers and the levels of a Recipe against diffusers' schedulers, station by station, on two networks."""

import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings, strategies as st

from minidiff.diffusion import Level, Schedule, ddim, ddpm, denoiser, euler, euler_ancestral, heun
from minidiff.diffusion.multistep import dpmpp_2m, dpmpp_2m_sde, lms, plms
from minidiff.diffusion.samplers import draws
from minidiff.pretrained.schedulers import read_scheduler

diffusers = pytest.importorskip("diffusers", reason="diffusers is the oracle of these tests: pip install -r requirements.txt")
pytestmark = pytest.mark.parity

SAMPLERS = {"DDPM": ddpm, "DDIM": ddim, "PNDM": plms, "LMSDiscrete": lms, "EulerDiscrete": euler,
            "EulerAncestralDiscrete": euler_ancestral, "HeunDiscrete": heun, "DPMSolverMultistep": dpmpp_2m,
            "DPMSolverMultistep SDE": dpmpp_2m_sde}  # fmt: skip
DPM = ("DPMSolverMultistep", "DPMSolverMultistep SDE")
BY_RATIO = ("LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete")  # they carry x/alpha
SD = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
      "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "clip_sample": False,
      "trained_betas": None}  # fmt: skip
MIX = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def net(x, t):
    """A network with no symmetry to hide behind: it mixes channels and neighbours, bends, and knows the time."""
    mixed = torch.einsum("oc,bchw->bohw", MIX.to(x), x)
    return torch.tanh(mixed + torch.cos(t.to(x) / 300).view(-1, 1, 1, 1)) + 0.3 * x.roll(1, -1)


def dummy_net(x, t):
    """The network of diffusers' own tests."""
    return x * (t / (t + 1)).to(x).view(-1, 1, 1, 1)


def configured(name, **config):
    algorithm = {"algorithm_type": "sde-dpmsolver++"} if name.endswith("SDE") else {}
    return config | {"_class_name": name.split()[0] + "Scheduler"} | algorithm


def theirs(name, config, n, noise, network=net, schedule=None, sigmas=None):
    """x after every step, in our scale. schedule, sigmas: tables to take in float64, for theirs are float32."""
    config = configured(name, **config)
    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    if schedule is not None:
        scheduler.alphas_cumprod = (1 / (1 + schedule.ratio**2)).clamp(min=2**-24 if name in (*BY_RATIO, *DPM) else 0)
    scheduler.set_timesteps(n)
    if sigmas is not None:
        scheduler.sigmas = sigmas
    draws_noise = "generator" in inspect.signature(scheduler.step).parameters
    random = {"generator": torch.Generator().manual_seed(3)} if draws_noise else {}
    x, walk = noise * scheduler.init_noise_sigma, []
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t.expand(len(x))), t, x, **random).prev_sample
        walk.append(x / (1 + scheduler.sigmas[scheduler.step_index] ** 2) ** 0.5 if name in BY_RATIO else x)
    if name == "HeunDiscrete":  # of every pair of calls the first leads to a station where only the slope is wanted
        return [*walk[1:-1:2], walk[-1]]
    return walk[1:] if name == "PNDM" and n > 1 else walk  # the same, for the first pair


def ours(recipe, n, noise, sampler=None, network=net, levels=None):
    levels = levels or recipe.levels(n, sampler)
    x, sampler = recipe.start(noise, levels[0], sampler), sampler or recipe.sampler
    random = {"generator": torch.Generator().manual_seed(3)} if draws(sampler) else {}
    return [state.x for state in sampler(denoiser(network, recipe.predicts, clip=recipe.clip), x, levels, **random)]


def difference(got, wanted):
    """The largest of any station, relative to the largest value there. A last step that leads nowhere we leave out."""
    if len(got) == len(wanted) - 1:
        got = [*got, got[-1]]
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(got, wanted, strict=True))


@pytest.fixture
def noise(generator):
    return torch.randn(2, 3, 4, 4, generator=generator)


# ---- every configuration ----------------------------------------------------------------------------------------------

BETAS = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}
KARRAS = ("LMSDiscrete", "EulerDiscrete", "HeunDiscrete", *DPM)
ZERO_SNR = ("DDPM", "DDIM", "EulerDiscrete", "EulerAncestralDiscrete", *DPM)
NO_X0 = ("PNDM", "EulerAncestralDiscrete")  # their classes take eps and v only


@st.composite
def walks(draw, name):
    """A config that this class of theirs can walk, and a number of steps at which it has no fault (see Recipe.levels)."""
    spacing = draw(st.sampled_from(["leading", "trailing", "linspace"]))
    n = draw(st.integers(3 if name in ("DDIM", "PNDM") else 2 if spacing == "linspace" else 1, 30))
    T = draw(st.sampled_from([100, 999, 1000, 1100]))
    if name in ("DDIM", "PNDM"):  # they step by T // n, which is to the next of their own timesteps only for some T
        T = n if spacing == "linspace" else n * draw(st.integers(2, 40))
    assume(len(np.arange(T, 0, -T / n)) == n)  # or "trailing" adds a step from t = -1
    betas = draw(st.sampled_from(sorted(BETAS)))
    config = {"num_train_timesteps": T, "beta_schedule": betas, "beta_start": BETAS[betas][0], "beta_end": BETAS[betas][1],
              "prediction_type": draw(st.sampled_from(["epsilon", "v_prediction"] + ["sample"] * (name not in NO_X0))),
              "timestep_spacing": spacing, "steps_offset": draw(st.integers(0, 1)) if spacing == "leading" else 0,
              "set_alpha_to_one": draw(st.booleans()), "clip_sample": False, "skip_prk_steps": True}  # fmt: skip
    if name in KARRAS and draw(st.booleans()):
        config["use_karras_sigmas"] = True
    elif name in ZERO_SNR and config["prediction_type"] == "v_prediction" and draw(st.booleans()):
        config["rescale_betas_zero_snr"] = True
    network = net if config["prediction_type"] == "sample" else draw(st.sampled_from([net, dummy_net]))
    return config, n, network  # at t = 0 the dummy's answer is 0, as an x0 an exact one


@pytest.mark.parametrize("name", SAMPLERS)
@settings(max_examples=30)
@given(data=st.data())
def test_the_walk_of_every_class(name, data):
    """Every sampler x spacing x prediction x schedule that theirs has: the same x at every station.

    On our tables: theirs are float32, where 1 - abar of the last levels has three digits, and the s and t read off it no more.
    """
    config, n, network = data.draw(walks(name))
    recipe = read_scheduler(configured(name, **config))
    noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(n))
    assert SAMPLERS[name] in (recipe.sampler, getattr(recipe.sampler, "func", None))
    if name in DPM and config.get("use_karras_sigmas"):  # at a tie rounding is a matter of the last digit
        assume(all(abs(level.t % 1 - 0.5) > 1e-3 for level in recipe.schedule.levels(n, "karras")))
    wanted = theirs(name, config, n, noise, network, recipe.schedule)
    # In float32 digits go where these carry x/alpha, 4096 times the noise; and where x0 is x less nearly all of x.
    lossy = network is dummy_net or (name in BY_RATIO and config.get("rescale_betas_zero_snr"))
    assert difference(ours(recipe, n, noise, network=network), wanted) <= (1e-3 if lossy else 5e-5)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("config", [
    {**SD, "_class_name": "PNDMScheduler"},
    {**SD, "_class_name": "DDIMScheduler", "timestep_spacing": "trailing"},
    {"_class_name": "DDPMScheduler", "clip_sample": False, "skip_prk_steps": True, "beta_start": 1e-4, "beta_end": 0.02},
    {**SD, "_class_name": "EulerDiscreteScheduler", "beta_schedule": "linear", "final_sigmas_type": "sigma_min"},
    {**SD, "_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"},
], ids=["pndm", "ddim", "ddpm", "euler", "dpm karras"])  # fmt: skip
def test_another_sampler_for_the_same_config(name, config, noise):
    """As in X.from_config(pipe.scheduler.config): what the file leaves out has the default of the new class. Their tables."""
    if config["_class_name"] in ("EulerDiscreteScheduler", "DPMSolverMultistepScheduler") and name in ("DDIM", "PNDM"):
        config = config | {"set_alpha_to_one": True, "timestep_spacing": "leading"}
    recipe = read_scheduler(config)
    wanted = theirs(name, config | {"algorithm_type": "dpmsolver++"}, 20, noise)
    assert difference(ours(recipe, 20, noise, SAMPLERS[name]), wanted) <= 2e-5


@pytest.mark.parametrize("name", ["DDPM", "DDIM", "PNDM", "LMSDiscrete", "HeunDiscrete"])  # the others cast to float32
@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("betas", ["scaled_linear", "squaredcos_cap_v2"])
def test_the_steps_in_float64(name, predicts, betas, noise):
    """On our tables, for theirs are float32. Trailing: on the cosine schedule sigma/alpha then starts at 20 000."""
    config = {**SD, "prediction_type": predicts, "beta_schedule": betas, "timestep_spacing": "trailing"}
    config["set_alpha_to_one"] = True
    recipe = read_scheduler(configured(name, **config))
    s = [level.sigma / level.alpha for level in recipe.levels(20)]
    levels = [Level(level.t, 1 / math.hypot(1, r), r / math.hypot(1, r)) for level, r in zip(recipe.levels(20), s, strict=True)]
    s = torch.tensor(s, dtype=torch.float64)
    s = torch.cat([s[:1], s[1:-1].repeat_interleave(2), s[-1:]]) if name == "HeunDiscrete" else s
    wanted = theirs(name, config, 20, noise.double(), schedule=recipe.schedule, sigmas=s if name in BY_RATIO else None)
    assert difference(ours(recipe, 20, noise.double(), levels=levels), wanted) <= 1e-10


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("n", [2, 14, 15, 16])
@pytest.mark.parametrize("name", DPM)
def test_dpmpp_2m_to_sigma_min(name, spacing, n, noise):
    """Below 15 steps the last is of first order, even where it does not lead to CLEAN."""
    config = {**SD, "final_sigmas_type": "sigma_min", "timestep_spacing": spacing}
    assert difference(ours(read_scheduler(configured(name, **config)), n, noise), theirs(name, config, n, noise)) <= 1e-5


@pytest.mark.parametrize("name", ["DDPM", "DDIM"])
@pytest.mark.parametrize("predicts", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("bound", [1.0, 0.5])
def test_clipped_walks(name, predicts, bound, noise):
    """These two clip unless they are told not to, as Google's DDPM wants it."""
    config = {"prediction_type": predicts, "clip_sample_range": bound}
    recipe = read_scheduler(configured(name, **config))
    assert recipe.clip == bound and recipe.sampler is SAMPLERS[name]
    # At low noise the eps of an x0 is what is left of a difference, and their 1 - abar has lost digits too.
    tolerance = 1e-4 if predicts == "sample" else 1e-5
    assert difference(ours(recipe, 20, noise), theirs(name, config, 20, noise)) <= tolerance


def test_trained_betas(noise):
    config = {**SD, "num_train_timesteps": 100, "trained_betas": torch.linspace(0.001, 0.08, 100).sin().tolist()}
    recipe = read_scheduler(configured("EulerDiscrete", **config))
    assert difference(ours(recipe, 10, noise), theirs("EulerDiscrete", config, 10, noise)) <= 1e-5


# ---- rectified flow ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [ddim, euler])
@pytest.mark.parametrize("n, shift, spacing", [(1, 1.0, None), (20, 1.0, None), (28, 3.0, None), (12, 1.0, "karras")])
def test_flow(sampler, n, shift, spacing, noise):
    """Their FlowMatchHeun is no twin of our heun: its mean is of two velocities, ours of two eps. With a shift their Karras
    walk ends at a level that was shifted twice, ours at the first row of the table."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift, use_karras_sigmas=spacing == "karras")
    scheduler.set_timesteps(n)
    x, wanted = noise, []
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t.expand(len(x))), t, x).prev_sample
        wanted.append(x)
    got = [state.x for state in sampler(denoiser(net, "flow"), noise, Schedule.flow(shift=shift).levels(n, spacing))]
    assert difference(got, wanted) <= 1e-5
