import math
import re
from functools import partial

import pytest
import torch

from minidiff.diffusion import CLEAN, Level, Schedule, ddim, ddpm, denoiser, euler, euler_ancestral, heun, sample
from minidiff.diffusion.multistep import dpmpp_2m, dpmpp_2m_sde, lms, plms
from minidiff.pretrained.schedulers import CLASS_OF, CLASSES, read_scheduler

# As they lie in the folders of these models.
SD_15 = {"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear",
         "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True,
         "steps_offset": 1, "trained_betas": None, "clip_sample": False}  # fmt: skip
SD_21 = {**SD_15, "_class_name": "DDIMScheduler", "_diffusers_version": "0.8.0", "prediction_type": "v_prediction"}
GOOGLE = {"_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "beta_end": 0.02, "beta_schedule": "linear",
          "beta_start": 0.0001, "clip_sample": True, "num_train_timesteps": 1000, "trained_betas": None,
          "variance_type": "fixed_small", "timestep_values": None, "tensor_format": "pt"}  # fmt: skip
ZERO_SNR = {**SD_21, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
TURBO = {**SD_15, "_class_name": "EulerDiscreteScheduler", "interpolation_type": "linear", "prediction_type": "epsilon",
         "sample_max_value": 1.0, "sigma_max": None, "sigma_min": None, "timestep_spacing": "trailing",
         "timestep_type": "discrete", "use_karras_sigmas": False, "final_sigmas_type": "zero",
         "rescale_betas_zero_snr": False}  # fmt: skip
SD_3 = {"_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": "0.29.0.dev0", "num_train_timesteps": 1000,
        "shift": 3.0}  # fmt: skip
SD_35 = {**SD_3, "base_image_seq_len": 256, "base_shift": 0.5, "invert_sigmas": False, "max_image_seq_len": 4096,
         "max_shift": 1.15, "shift_terminal": None, "stochastic_sampling": False, "time_shift_type": "exponential",
         "use_beta_sigmas": False, "use_dynamic_shifting": False, "use_exponential_sigmas": False,
         "use_karras_sigmas": False}  # fmt: skip


def times(config, n, sampler=None):
    return [level.t for level in read_scheduler(config).levels(n, sampler)]


def test_stable_diffusion_1():
    recipe = read_scheduler(SD_15)
    assert (recipe.predicts, recipe.sampler, recipe.clip) == ("eps", plms, None)
    torch.testing.assert_close(recipe.schedule.abar, Schedule.scaled_linear().abar)
    assert recipe.levels(4)[:-1] == [recipe.schedule.at(t) for t in (751, 501, 251, 1)]
    assert recipe.levels(4)[-1] == recipe.schedule.at(0)  # set_alpha_to_one is false: not quite clean


def test_every_sampler_walks_as_its_class_would():
    assert times(SD_15, 4, ddim) == [751, 501, 251, 1, 0]
    assert times(SD_15, 4, ddpm) == [751, 501, 251, 1, 0]
    assert times(SD_15, 4, euler) == [999, 666, 333, 0, 0]
    assert times(SD_15, 3, heun) == times(SD_15, 3, lms) == [999, 499.5, 0, 0]
    assert times(SD_15, 4, dpmpp_2m) == [999, 749, 500, 250, 0]
    assert times({**SD_15, "timestep_spacing": "leading"}, 4, dpmpp_2m) == [801, 601, 401, 201, 0]
    assert times({**SD_15, "timestep_spacing": "trailing"}, 4, dpmpp_2m) == [999, 749, 499, 249, 0]
    assert times(TURBO, 1) == [999, 0]
    recipe = read_scheduler(SD_15)
    ends = {sampler: recipe.levels(4, sampler)[-1] for sampler, _ in CLASSES.values()}
    assert [sampler for sampler, end in ends.items() if end is not CLEAN] == [ddim, plms]
    last = read_scheduler({**TURBO, "final_sigmas_type": "sigma_min"}).levels(4)[-1]
    assert last == recipe.schedule.at(0)
    assert recipe.levels(4, partial(lms, order=2)) == recipe.levels(4, lms)
    assert recipe.levels(4, lambda denoise, x, levels: iter(())) == recipe.levels(4)  # a sampler of yours: the config's own


def test_between_timesteps_sigma_over_alpha_runs_straight():
    recipe = read_scheduler(SD_15)
    below, above, level = recipe.schedule.at(499), recipe.schedule.at(500), recipe.levels(3, euler)[1]
    assert level.t == 499.5 and level.alpha**2 + level.sigma**2 == pytest.approx(1)
    assert level.sigma / level.alpha == pytest.approx((below.sigma / below.alpha + above.sigma / above.alpha) / 2, rel=1e-9)


def test_stable_diffusion_2():
    recipe = read_scheduler(SD_21)
    assert (recipe.predicts, recipe.sampler, recipe.clip) == ("v", ddim, None)
    pndm = read_scheduler({**SD_21, "_class_name": "PNDMScheduler"})
    assert pndm.sampler.func is plms and pndm.sampler.keywords == {"blends": "v"}
    assert pndm.levels(5) == read_scheduler(SD_15).levels(5)


@pytest.mark.parametrize("config", [SD_3, SD_35])
def test_stable_diffusion_3(config):
    recipe = read_scheduler(config)
    assert (recipe.predicts, recipe.sampler, recipe.clip) == ("flow", euler, None)
    assert (recipe.schedule.kind, recipe.schedule.shift, len(recipe.schedule)) == ("flow", 3.0, 1000)
    for sampler in (None, *(sampler for sampler, _ in CLASSES.values()), lambda denoise, x, levels: iter(())):
        levels = recipe.levels(28, sampler)  # whoever walks, they are its own
        assert levels == Schedule.flow(shift=3.0).levels(28)
        assert recipe.start(torch.ones(1), levels[0], sampler).item() == 1
    bare = read_scheduler({"_class_name": SD_3["_class_name"]}).schedule
    assert (bare.shift, len(bare)) == (1.0, 1000)
    assert len(read_scheduler({**SD_3, "num_train_timesteps": 50}).schedule) == 50


def test_googles_ddpm():
    recipe = read_scheduler(GOOGLE)
    assert (recipe.predicts, recipe.sampler, recipe.clip) == ("eps", ddpm, 1.0)
    torch.testing.assert_close(recipe.schedule.abar, Schedule.linear().abar)
    assert times(GOOGLE, 5) == [800, 600, 400, 200, 0, 0] and recipe.levels(5)[-1] is CLEAN
    assert read_scheduler({**GOOGLE, "clip_sample_range": 2.5}).clip == 2.5
    bare = read_scheduler({"_class_name": "DDIMScheduler"})  # what is left out has the default of its class
    assert bare.clip == 1.0 and bare.levels(5)[-1] is CLEAN


def test_zero_terminal_snr_starts_at_pure_noise():
    recipe = read_scheduler(ZERO_SNR)
    assert recipe.levels(10)[0] == Level(999, 0.0, 1.0)
    first = recipe.levels(10, dpmpp_2m)[0]  # where sigma/alpha has to be a number, alpha counts as 2^-12
    assert first.alpha == pytest.approx(2**-12, rel=1e-6) and first.sigma == pytest.approx(1)
    x = torch.randn(2, 1, generator=torch.Generator().manual_seed(0))
    for sampler, _ in CLASSES.values():
        end = sample(sampler, denoiser(lambda xt, t: 0.1 * xt, "v"), x, recipe.levels(10, sampler), progress=False)
        assert end.isfinite().all()


def test_a_walk_starts_in_the_scale_of_its_class():
    recipe, noise = read_scheduler(SD_15), torch.ones(1)
    level = recipe.levels(5, euler)[0]
    assert recipe.start(noise, level, euler).item() == pytest.approx(level.sigma) and level.sigma < 0.999
    assert read_scheduler({**SD_15, "timestep_spacing": "leading"}).start(noise, level, euler) is noise
    assert recipe.start(noise, level, dpmpp_2m) is noise and recipe.start(noise, level) is noise


def test_a_step_that_leads_nowhere_is_left_out():
    config = {**SD_15, "steps_offset": 0}
    assert times(config, 4) == [750, 500, 250, 0] and times(config, 4, ddpm) == [750, 500, 250, 0, 0]
    assert len(times(TURBO, 61)) == 62 and times(TURBO, 61)[-2:] == [15, 0]  # not on to t = -1


def test_schedules_by_name():
    assert torch.equal(read_scheduler({**SD_15, "beta_schedule": "squaredcos_cap_v2"}).schedule.alpha, Schedule.cosine().alpha)
    betas = [0.1, 0.2, 0.3, 0.4]
    trained = read_scheduler({**SD_15, "trained_betas": betas, "num_train_timesteps": 4}).schedule
    torch.testing.assert_close(trained.abar, (1 - torch.tensor(betas)).cumprod(0))
    assert len(read_scheduler({**GOOGLE, "num_train_timesteps": 50}).schedule) == 50
    own = read_scheduler({"_class_name": "HeunDiscreteScheduler"}).schedule  # its defaults are its own
    torch.testing.assert_close(own.abar, Schedule.linear(1000, 0.00085, 0.012).abar)


DPM = {**SD_15, "_class_name": "DPMSolverMultistepScheduler"}
KARRAS = {**TURBO, "use_karras_sigmas": True}


@pytest.mark.parametrize("config, key, value", [
    (SD_15, "_class_name", "UniPCMultistepScheduler"), (SD_15, "_class_name", None),
    (SD_15, "prediction_type", "flow_prediction"), (SD_15, "beta_schedule", "sigmoid"), (SD_15, "skip_prk_steps", False),
    (SD_15, "timestep_spacing", "log"), (SD_15, "brand_new_setting", 3), (SD_21, "thresholding", True),
    (GOOGLE, "variance_type", "learned_range"), (GOOGLE, "variance_type", "fixed_large"),
    (TURBO, "use_exponential_sigmas", True), (TURBO, "interpolation_type", "log_linear"),
    (TURBO, "timestep_type", "continuous"),
    (TURBO, "final_sigmas_type", "one"), ({**SD_15, "_class_name": "HeunDiscreteScheduler"}, "clip_sample", True),
    (DPM, "solver_order", 3), (DPM, "algorithm_type", "sde-dpmsolver"), (DPM, "solver_type", "heun"),
    (DPM, "lambda_min_clipped", -5.1), (DPM, "use_flow_sigmas", True), (DPM, "variance_type", "learned"),
    ({**DPM, "final_sigmas_type": "sigma_min"}, "euler_at_final", True),
    ({**DPM, "final_sigmas_type": "sigma_min"}, "lower_order_final", False),
    (SD_35, "use_dynamic_shifting", True), (SD_3, "use_karras_sigmas", True), (SD_3, "use_exponential_sigmas", True),
    (SD_3, "use_beta_sigmas", True), (SD_3, "invert_sigmas", True), (SD_3, "shift_terminal", 0.1),
    (SD_3, "stochastic_sampling", True), (SD_3, "brand_new_setting", 3),
    (KARRAS, "sigma_max", 80.0), (KARRAS, "sigma_min", 0.1), (KARRAS, "final_sigmas_type", "sigma_min"),
    ({**KARRAS, "_class_name": "DPMSolverMultistepScheduler"}, "final_sigmas_type", "sigma_min"),
    ({**TURBO, "rescale_betas_zero_snr": True}, "use_karras_sigmas", True),
])  # fmt: skip
def test_what_cannot_be_honoured_is_named(config, key, value):
    read_scheduler(config)
    with pytest.raises(ValueError, match=re.escape(f"{key} = {value!r}")):
        read_scheduler({**config, key: value})


def test_keys_that_change_nothing_are_let_through():
    foreign = {"thresholding": True, "solver_order": 3, "brand_new_setting": False, "another": None, "_name_or_path": "x"}
    assert read_scheduler({**SD_15, **foreign}).levels(5) == read_scheduler(SD_15).levels(5)
    assert read_scheduler({**SD_3, **foreign, "beta_start": 0.1, "flow_shift": 7}).levels(5) == read_scheduler(SD_3).levels(5)
    read_scheduler({**DPM, "solver_type": "bh2", "lambda_min_clipped": -math.inf, "euler_at_final": True})
    assert read_scheduler({**SD_15, "prediction_type": None}).predicts == "eps"


def test_bad_numbers_are_named():
    with pytest.raises(ValueError, match="4 trained_betas"):
        read_scheduler({**SD_15, "trained_betas": [0.1] * 4})
    with pytest.raises(ValueError, match="shift must be positive, not -3"):
        read_scheduler({**SD_3, "shift": -3})
    with pytest.raises(ValueError, match="1001 steps"):
        read_scheduler(SD_3).levels(1001)
    recipe = read_scheduler(SD_15)
    for sampler in (None, euler, dpmpp_2m):
        for n in (0, 1001):
            with pytest.raises(ValueError, match=f"{n} steps"):
                recipe.levels(n, sampler)
    beta = read_scheduler({**SD_15, "use_beta_sigmas": True})  # PNDM sleeps over it, Euler does not
    assert len(beta.levels(5)) == 6
    with pytest.raises(ValueError, match="use_beta_sigmas = True of EulerDiscreteScheduler"):
        beta.levels(5, euler)
    bent = read_scheduler({**ZERO_SNR, "use_karras_sigmas": True})  # the same with DDIM
    with pytest.raises(ValueError, match="use_karras_sigmas = True of LMSDiscreteScheduler"):
        bent.levels(5, lms)


def test_karras_walks_lie_between_the_ends_of_their_class():
    recipe = read_scheduler(KARRAS)  # trailing: 999, 749, 499, 249
    first, *_, last, end = recipe.levels(4)
    assert end is CLEAN and (first.t, last.t) == (pytest.approx(999), pytest.approx(249))
    ends = [(level.sigma / level.alpha) ** (1 / 7) for level in recipe.levels(4)[:-1]]
    assert [a - b for a, b in zip(ends, ends[1:], strict=False)] == pytest.approx([(ends[0] - ends[-1]) / 3] * 3)
    assert len({tuple(recipe.levels(4, sampler)) for sampler in (euler, heun, lms)}) == 1
    whole = recipe.levels(4, dpmpp_2m)  # DPM++: the whole table, in whole numbers
    assert [level.t for level in whole] == [999, 687, 146, 0, 0] == [level.t for level in recipe.levels(4, dpmpp_2m_sde)]
    assert whole[1].sigma == recipe.schedule.levels(4, "karras")[1].sigma
    for sampler in (euler_ancestral, ddim, ddpm, plms):  # these classes sleep over the key
        assert recipe.levels(4, sampler) == read_scheduler(TURBO).levels(4, sampler)


def test_the_stochastic_ones_are_read():
    assert read_scheduler({**DPM, "algorithm_type": "sde-dpmsolver++"}).sampler is dpmpp_2m_sde
    recipe = read_scheduler({**SD_15, "_class_name": "EulerAncestralDiscreteScheduler"})
    assert recipe.sampler is euler_ancestral and recipe.levels(4) == recipe.levels(4, euler)
    for sampler in (euler, euler_ancestral):
        assert recipe.start(torch.ones(1), recipe.levels(4)[0], sampler).item() < 0.999


def test_every_sampler_has_its_class():
    samplers = {ddpm, ddim, euler, euler_ancestral, heun, lms, plms, dpmpp_2m, dpmpp_2m_sde}
    assert set(CLASS_OF) == samplers and set(CLASS_OF.values()) == set(CLASSES)
