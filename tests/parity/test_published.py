"""The sums that diffusers' own tests publish for whole loops, met by our samplers.

Their tests/schedulers/test_scheduler_*.py, test_full_loop_*: ten steps (DDPM: a thousand) of a dummy network, from a picture
that takes the place of noise, to the sum and the mean of |x|. Every number here stands in those files and comes out of the
installed diffusers too. Left out: PNDM's, which begin with Runge-Kutta steps; sums that are 0 to the digits they are given
with (v-prediction of Euler, Heun and LMS; Heun on Karras levels); LMS from the middle of a walk, where theirs weighs its one
answer as if it had four. For DPM++ 2M as an SDE they publish none.
"""

import pytest
import torch

from minidiff.diffusion import CLEAN, Level, add_noise, denoiser, euler, euler_ancestral, heun, lms, to_estimate
from minidiff.diffusion.samplers import draws
from minidiff.pretrained.schedulers import CLASS_OF, read_scheduler

pytestmark = pytest.mark.parity

RAMP = torch.arange(4 * 3 * 8 * 8) / (4 * 3 * 8 * 8)
PICTURE, NOISE = (values.reshape(3, 8, 8, 4).permute(3, 0, 1, 2) for values in (RAMP, RAMP.flip(0)))
V = {"prediction_type": "v_prediction"}


def dummy_net(x, t):
    return x * (t / (t + 1)).view(-1, 1, 1, 1)


def seeded(sampler):
    return {"generator": torch.manual_seed(0)} if draws(sampler) else {}


@pytest.mark.parametrize("name, settings, start, total, mean", [
    ("DDPM", {}, 0, 258.9606, 0.3372),  # test_full_loop_no_noise
    ("DDPM", V, 0, 202.0296, 0.2631),  # test_full_loop_with_v_prediction
    ("DDPM", {}, 998, 387.9466, 0.5051),  # test_full_loop_with_noise: only the last steps, from a noised picture
    ("DDIM", {}, 0, 172.0067, 0.223967),
    ("DDIM", V, 0, 52.5302, 0.0684),
    ("DDIM", {"beta_start": 0.01, "set_alpha_to_one": True}, 0, 149.8295, 0.1951),  # test_full_loop_with_set_alpha_to_one
    ("DDIM", {"beta_start": 0.01, "set_alpha_to_one": False}, 0, 149.0784, 0.1941),
    ("DDIM", {}, 8, 354.5418, 0.4616),
    ("DPMSolverMultistep", {}, 0, None, 0.3301),
    ("DPMSolverMultistep", {}, 5, 318.4111, 0.4146),
    ("DPMSolverMultistep", V, 0, None, 0.2251),
    ("DPMSolverMultistep", V | {"use_karras_sigmas": True}, 0, None, 0.2096),  # test_full_loop_with_karras_and_v_prediction
])  # fmt: skip
def test_published_sums(name, settings, start, total, mean):
    recipe = read_scheduler({"_class_name": name + "Scheduler", **settings})
    levels, end = recipe.levels(1000 if name == "DDPM" else 10)[start:], -1
    if name == "DPMSolverMultistep":  # theirs ends at t = 0 by a step of second order. Ours takes one there if it goes on
        levels, end = levels if "use_karras_sigmas" in settings else [*levels[:-1], recipe.schedule.at(0), CLEAN], -2
    x = add_noise(PICTURE, NOISE, levels[0]) if start else PICTURE
    walk = list(recipe.sampler(denoiser(dummy_net, recipe.predicts, clip=recipe.clip), x, levels, **seeded(recipe.sampler)))
    assert walk[end].x.abs().mean().item() == pytest.approx(mean, abs=1e-3)
    if total:  # at t = 1, their 1 - abar has four digits: 3e-2 of 388 is what that does
        assert walk[end].x.abs().sum().item() == pytest.approx(total, abs=3e-2 if start == 998 else 1e-2)


@pytest.mark.parametrize("sampler, settings, start, total, mean", [
    (euler, {}, 0, 10.0807, 0.0131),
    (euler, {"use_karras_sigmas": True}, 0, 124.52299499511719, 0.16213932633399963),  # test_full_loop_device_karras_sigmas
    (euler, {}, 8, 57062.9297, 74.3007),
    (euler_ancestral, {}, 0, 152.3192, 0.1983),
    (euler_ancestral, V, 0, 108.4439, 0.1412),
    (euler_ancestral, {}, 8, 56163.0508, 73.1290),
    (heun, {}, 0, 0.1233, 0.0002),
    (heun, {}, 8, 75074.8906, 97.7538),
    (lms, {}, 0, 1006.388, 1.31),
    (lms, {"use_karras_sigmas": True}, 0, 3812.9927, 4.9648),
])  # fmt: skip
def test_published_sums_of_the_classes_that_carry_x_over_alpha(sampler, settings, start, total, mean):
    """Their loop hands the step the x that was scaled for the network. In x/alpha, where every level has alpha = 1, that is one
    multiplication between two steps, in place; but what Heun asks ahead of a step is scaled for the network alone."""
    config = {"_class_name": CLASS_OF[sampler], "num_train_timesteps": 1100, "beta_start": 1e-4, "beta_end": 0.02, **settings}
    recipe = read_scheduler(config)
    levels = {Level(level.t, 1.0, level.sigma / level.alpha): level.alpha for level in recipe.levels(10)}
    first, here = list(levels)[0], list(levels)[start]
    carried = levels[here] * (first.sigma * PICTURE + (here.sigma * NOISE if start else 0))

    def denoise(x, level):
        answer = dummy_net(x if x is carried else levels[level] * x, level.timesteps(x))
        scale = (1 + level.sigma**2) ** 0.5 if recipe.predicts == "v" else 1
        return to_estimate(scale * answer, x, level, recipe.predicts)

    for state in sampler(denoise, carried, list(levels)[start:], **seeded(sampler)):
        carried = state.x.mul_(levels[state.level])
    assert carried.abs().sum().item() == pytest.approx(total, abs=1e-2, rel=2e-5)
    assert carried.abs().mean().item() == pytest.approx(mean, abs=1e-3, rel=2e-5)
