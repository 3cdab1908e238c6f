"""The other column of `python -m minidiff bench samplers`: diffusers' scheduler of every algorithm, walked as its pipelines do.

Made of one config, all nine visit Schedule.scaled_linear().levels(n, "trailing"), so that both sides do the same work: x at
the first of these levels comes in, x at CLEAN goes out, and in between the network is asked.
"""

from collections.abc import Callable
from functools import partial

import diffusers
from torch import Generator, Tensor

SCHEDULERS = {
    "ddpm": partial(diffusers.DDPMScheduler, clip_sample=False),
    "ddim": partial(diffusers.DDIMScheduler, clip_sample=False),
    "euler": diffusers.EulerDiscreteScheduler,
    "euler_ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
    "lms": diffusers.LMSDiscreteScheduler,
    "plms": partial(diffusers.PNDMScheduler, skip_prk_steps=True, set_alpha_to_one=True),
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
    "dpmpp_2m_sde": partial(diffusers.DPMSolverMultistepScheduler, algorithm_type="sde-dpmsolver++"),
}
DRAWS = ("ddpm", "euler_ancestral", "dpmpp_2m_sde")
BY_RATIO = ("euler", "euler_ancestral", "heun", "lms")  # they carry x/alpha


def ready(name: str, net: Callable, x: Tensor, n: int, generator: Generator) -> Callable[[], Tensor]:
    """A walk of n steps from x (B, ...), to be run once. What is laid out before a walk, as our levels are, is laid out here.

    net: (x, t) -> eps, asked as our denoisers ask it, with t of shape (B,).
    """
    scheduler = SCHEDULERS[name](
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing"
    )
    scheduler.set_timesteps(n)
    drawn = {"generator": generator} if name in DRAWS else {}
    start = x * (1 + scheduler.sigmas[0] ** 2) ** 0.5 if name in BY_RATIO else x

    def run() -> Tensor:
        x = start
        for t in scheduler.timesteps:
            x = scheduler.step(net(scheduler.scale_model_input(x, t), t.expand(len(x))), t, x, **drawn).prev_sample
        return x

    return run
