"""Scheduler configs: diffusers' scheduler_config.json -> a schedule, a sampler, and the levels that sampler walks.

There, a scheduler is one object that knows everything. Here it falls apart into what the network was trained on (schedule,
predicts), a sampler, and a list of levels, and in that list lie all the small differences between their classes: where
a walk starts, how it is spaced, where it ends. What we cannot honour is an error that names key and value, never a picture
that is slightly different.
"""

import math
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from ..diffusion import CLEAN, Level, Sampler, Schedule, ddim, ddpm, euler, euler_ancestral, heun
from ..diffusion.multistep import dpmpp_2m, dpmpp_2m_sde, lms, plms
from ..diffusion.schedule import karras

PREDICTS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}

# Which keys a class reads, and what it takes for one that the file leaves out. A key of another class lies asleep in it.
COMMON = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "trained_betas": None,
          "prediction_type": "epsilon", "timestep_spacing": "leading", "steps_offset": 0}  # fmt: skip
CLIPS = {"clip_sample": True, "clip_sample_range": 1.0, "thresholding": False, "rescale_betas_zero_snr": False}
RATIO = {"timestep_spacing": "linspace", "use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
CLASSES = {
    "DDPMScheduler": (ddpm, COMMON | CLIPS | {"variance_type": "fixed_small"}),
    "DDIMScheduler": (ddim, COMMON | CLIPS | {"set_alpha_to_one": True}),
    "PNDMScheduler": (plms, COMMON | {"set_alpha_to_one": False, "skip_prk_steps": False}),
    "LMSDiscreteScheduler": (lms, COMMON | RATIO),
    "HeunDiscreteScheduler": (heun, COMMON | RATIO | {"beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}),
    "EulerDiscreteScheduler": (euler, COMMON | RATIO | {
        "final_sigmas_type": "zero", "rescale_betas_zero_snr": False,
        "interpolation_type": "linear", "timestep_type": "discrete",
    }),
    "EulerAncestralDiscreteScheduler": (euler_ancestral, COMMON | {
        "timestep_spacing": "linspace", "rescale_betas_zero_snr": False,
    }),
    "DPMSolverMultistepScheduler": (dpmpp_2m, COMMON | RATIO | {
        "final_sigmas_type": "zero", "rescale_betas_zero_snr": False, "thresholding": False, "variance_type": None,
        "solver_order": 2, "algorithm_type": "dpmsolver++", "solver_type": "midpoint", "lambda_min_clipped": -math.inf,
        "lower_order_final": True, "euler_at_final": False,
        "use_lu_lambdas": False, "use_flow_sigmas": False, "use_dynamic_shifting": False,
    }),
}  # fmt: skip
CLASS_OF = {sampler: name for name, (sampler, _) in CLASSES.items()} | {dpmpp_2m_sde: "DPMSolverMultistepScheduler"}
BY_RATIO = (lms, euler, euler_ancestral, heun)  # their classes carry x/alpha, and read sigma/alpha between two timesteps
FLOW = "FlowMatchEulerDiscreteScheduler"  # SD3's: it has no beta and no spacing, and whichever sampler walks, its levels stay
FLOW_DEFAULTS = {"num_train_timesteps": 1000, "shift": 1.0} | dict.fromkeys((  # what is False here has to be
    "use_dynamic_shifting", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas", "shift_terminal",
    "stochastic_sampling"), False)  # fmt: skip

# What we can honour where it is not everything: of the levels, whichever class is to walk them; and of a class's own steps.
WALKS = {
    "timestep_spacing": ("leading", "trailing", "linspace"), "final_sigmas_type": ("zero", "sigma_min"),
    "use_exponential_sigmas": (False,), "use_beta_sigmas": (False,), "use_lu_lambdas": (False,),
    "use_flow_sigmas": (False,), "use_dynamic_shifting": (False,), "interpolation_type": ("linear",),
    "timestep_type": ("discrete",), "lambda_min_clipped": (-math.inf,),
}  # fmt: skip
STEPS = {
    "prediction_type": tuple(PREDICTS), "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "thresholding": (False,), "variance_type": ("fixed_small", "fixed_small_log"), "skip_prk_steps": (True,),
    "solver_order": (2,), "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
    "solver_type": ("midpoint", "logrho", "bh1", "bh2"),
}  # fmt: skip

# Keys that change nothing: details of settings refused above, of classes not read here, and of the files of 2022.
ASLEEP = {"dynamic_thresholding_ratio", "sample_max_value", "sigma_min", "sigma_max", "flow_shift", "time_shift_type",
          "predict_x0", "disable_corrector", "solver_p", "shift_terminal", "tensor_format", "timestep_values",
          "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"}  # fmt: skip
KNOWN = ASLEEP.union(FLOW_DEFAULTS, *(defaults for _, defaults in CLASSES.values()))


@dataclass(frozen=True)
class Recipe:
    """How to walk with a network of others: what it was trained on, and the sampler its makers chose.

    clip: bound for |x0| in the denoiser of that sampler, None for none. config: the file, for `levels`.
    """

    schedule: Schedule
    predicts: str
    sampler: Sampler
    clip: float | None
    config: dict = field(repr=False)

    def levels(self, n: int, sampler: Sampler | None = None) -> list[Level]:
        """The n + 1 levels that diffusers walks when its class of this sampler is made from this config.

        sampler: None is the recipe's own; one that is not of this library walks the own one's levels. A step of theirs
        that leads from t = 0 to t = 0 is left out. Their faults are not repeated: linspace with n = 1 starts at the clean
        end, trailing with some n (61, 103, ...) adds a step from t = -1, DDIM and PNDM step to t - T // n even where the
        next timestep is another, DPM++ cuts the t of a Karras walk on the cosine schedule instead of rounding it, and PNDM, LMS
        and Heun forget rescale_betas_zero_snr: the schedule is always ours.
        Raises ValueError for n outside 1 ... T, and for a walk in the config that we do not know.
        """
        sampler, config = self._of(sampler)
        spacing, offset, T = config["timestep_spacing"], config["steps_offset"], len(self.schedule)
        if config.get("use_karras_sigmas") and sampler is dpmpp_2m:  # over the whole table, and told in whole numbers
            return [replace(level, t=round(level.t)) for level in self.schedule.levels(n, "karras")]
        walk = self.schedule.levels(n, spacing, offset, last=None)
        if sampler is dpmpp_2m and spacing != "trailing":  # this class lays out one more, and drops the one that is at t = 0
            walk = self.schedule.levels(n + 1, spacing, offset, last=None)[:-1]
        if sampler in (*BY_RATIO, dpmpp_2m):
            fractional = spacing == "linspace" and sampler is not dpmpp_2m
            times = torch.linspace(T - 1, 0, n, dtype=torch.float64).tolist() if fractional else [level.t for level in walk]
            walk = [self._by_ratio(t) for t in times]
        if config.get("use_karras_sigmas"):  # between the ends of that walk
            first, last = (level.sigma / level.alpha for level in (walk[0], walk[-1]))
            walk = [self.schedule.at_ratio(s) for s in karras(first, last, n)]
        if config.get("set_alpha_to_one", config.get("final_sigmas_type", "zero") == "zero"):
            return [*walk, CLEAN]
        return [*walk, self.schedule.at(0)] if walk[-1].t else walk

    def start(self, noise: Tensor, level: Level, sampler: Sampler | None = None) -> Tensor:
        """x (B, ...) at `level`, the first of a walk from noise alone, in the scale that diffusers gives it.

        It is the noise itself, and sigma * noise for Euler, ancestral or not, Heun and LMS unless they are spaced "leading".
        """
        sampler, config = self._of(sampler)
        return level.sigma * noise if sampler in BY_RATIO and config["timestep_spacing"] != "leading" else noise

    def _of(self, sampler: Sampler | None) -> tuple[Sampler, dict]:
        """The sampler whose class walks, and what this class makes of the config."""
        sampler = self.sampler if sampler is None else sampler
        name = CLASS_OF.get(getattr(sampler, "func", sampler), self.config["_class_name"])
        sampler, defaults = CLASSES[name]
        config = _filled(self.config, defaults)
        _refuse(config, WALKS, name)
        if config.get("use_karras_sigmas"):
            _refuse(config, {"final_sigmas_type": ("zero",)}, name)
            _refuse(self.config, {"sigma_min": (None,), "sigma_max": (None,)}, name)
            if self.schedule.alpha[-1] == 0:
                raise ValueError(f"scheduler config: use_karras_sigmas = True of {name} cannot be honoured here together with "
                                 "rescale_betas_zero_snr: at zero SNR sigma/alpha is infinite, and nothing is even from there")
        return sampler, config

    def _by_ratio(self, t: float) -> Level:
        """The level of these classes at t: between two timesteps, sigma/alpha runs straight; alpha = 0 counts as 2^-12."""
        s = self.schedule.sigma.double() / self.schedule.alpha.double().where(self.schedule.alpha > 0, 2**-12)
        below = s[math.floor(t)].item()
        s = below + (t % 1) * (s[math.ceil(t)].item() - below)
        return Level(t, 1 / math.hypot(1, s), s / math.hypot(1, s))


class FlowRecipe(Recipe):
    """A Recipe for a rectified flow, whose levels are those of its schedule whichever sampler walks."""

    def levels(self, n: int, sampler: Sampler | None = None) -> list[Level]:
        """The n + 1 levels that FlowMatchEulerDiscreteScheduler walks. Raises ValueError for n outside 1 ... T."""
        return self.schedule.levels(n)

    def start(self, noise: Tensor, level: Level, sampler: Sampler | None = None) -> Tensor:
        """x (B, ...) at `level`, the first of a walk from noise alone: sigma is 1 there, so it is the noise."""
        return noise


def read_scheduler(config: dict) -> Recipe:
    """scheduler_config.json of diffusers, as a dict -> Recipe.

    Reads DDPM, DDIM, PNDM (without its Runge-Kutta steps), LMS, Euler, ancestral or not, Heun, DPM-Solver++ 2M, ODE or SDE,
    and Euler of a flow, SD3's. A key the file leaves out has the default of its class. Raises ValueError naming key and
    value for an unknown class or key, and for a setting that would make another picture than ours.
    """
    name = config.get("_class_name")
    if name not in (names := [*CLASSES, FLOW]):
        raise ValueError(f"scheduler config: _class_name = {name!r} is not read here: take one of {', '.join(names)}")
    for key, value in config.items():
        if not key.startswith("_") and key not in KNOWN and value not in (None, False):
            raise ValueError(f"scheduler config: {key} = {value!r} is unknown here; remove it if it does not matter")
    if name == FLOW:
        c = _filled(config, FLOW_DEFAULTS)
        _refuse(c, {key: (False,) for key, off in FLOW_DEFAULTS.items() if off is False}, name)
        return FlowRecipe(Schedule.flow(c["num_train_timesteps"], c["shift"]), "flow", euler, None, dict(config))
    sampler, defaults = CLASSES[name]
    c = _filled(config, defaults)
    _refuse(c, STEPS | ({"clip_sample": (False,)} if sampler is heun else {}), name)
    if c.get("final_sigmas_type") == "sigma_min":  # at zero the last step is of first order whatever these say
        _refuse(c, {"lower_order_final": (True,), "euler_at_final": (False,)}, name)
    predicts = PREDICTS[c["prediction_type"]]
    if sampler is plms and predicts == "v":
        sampler = partial(plms, blends="v")
    if c.get("algorithm_type") == "sde-dpmsolver++":
        sampler = dpmpp_2m_sde
    clip = c["clip_sample_range"] if c.get("clip_sample") else None
    recipe = Recipe(_schedule(c), predicts, sampler, clip, dict(config))
    recipe._of(None)  # raises now for a walk that cannot be honoured
    return recipe


def _schedule(c: dict) -> Schedule:
    T, betas = c["num_train_timesteps"], c["trained_betas"]
    if betas is not None:
        if len(betas) != T:
            raise ValueError(f"scheduler config: {len(betas)} trained_betas do not fit num_train_timesteps = {T}")
        schedule = Schedule.from_betas(betas)
    elif c["beta_schedule"] == "squaredcos_cap_v2":
        schedule = Schedule.cosine(T)
    else:
        named = {"linear": Schedule.linear, "scaled_linear": Schedule.scaled_linear}[c["beta_schedule"]]
        schedule = named(T, c["beta_start"], c["beta_end"])
    return schedule.zero_terminal_snr() if c.get("rescale_betas_zero_snr") else schedule


def _filled(config: dict, defaults: dict) -> dict:
    """What a class with these defaults reads of a config, null being the same as nothing."""
    return defaults | {key: value for key, value in config.items() if key in defaults and value is not None}


def _refuse(config: dict, only: dict, name: str) -> None:
    for key, values in only.items():
        if config.get(key) not in (None, *values):
            raise ValueError(f"scheduler config: {key} = {config[key]!r} of {name} cannot be honoured here, only "
                             + " or ".join(map(repr, values)))
