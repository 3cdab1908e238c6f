"""The mathematics of diffusion: levels, the forward relation, steps, samplers. No network, no file, no device lives here."""

from .difference import by_difference
from .exact import DatasetDenoiser, GaussianDenoiser
from .forward import Denoiser, Estimate, add_noise, clipped, denoiser, predict_eps, predict_x0, target, to_estimate, velocity
from .guidance import between, classifier_free, composed, inpainting, perturbed_guidance, rescaled
from .inversion import invert
from .loss import diffusion_loss, measured_weight, min_snr_weight
from .multistep import dpmpp_2m, dpmpp_2m_sde, lms, plms
from .samplers import Sampler, State, ddim, ddpm, euler, euler_ancestral, heun, repaint, sample
from .schedule import CLEAN, Level, Schedule
from .steering import classifier_guided, color_loss, guided
from .steps import ddim_step, ddpm_step

SAMPLERS = {sampler.__name__: sampler for sampler in (
    ddpm, ddim, euler, euler_ancestral, heun, lms, plms, dpmpp_2m, dpmpp_2m_sde,
)}  # fmt: skip  # by name, for a command line or a file; any other function of their kind does as well

__all__ = [
    "CLEAN", "SAMPLERS", "DatasetDenoiser", "Denoiser", "Estimate", "GaussianDenoiser", "Level", "Sampler", "Schedule", "State",
    "add_noise", "between", "by_difference", "classifier_free", "classifier_guided", "clipped", "color_loss", "composed",
    "ddim", "ddim_step", "ddpm", "ddpm_step", "denoiser", "diffusion_loss", "dpmpp_2m", "dpmpp_2m_sde", "euler",
    "euler_ancestral", "guided", "heun", "inpainting", "invert", "lms", "measured_weight", "min_snr_weight",
    "perturbed_guidance", "plms", "predict_eps", "predict_x0", "repaint", "rescaled", "sample", "target", "to_estimate",
    "velocity",
]  # fmt: skip
