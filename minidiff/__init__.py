"""minidiff: every part of Stable Diffusion, built by hand.

    import minidiff as md

    schedule = md.Schedule.linear()
    denoise = md.GaussianDenoiser(mean=0.5, std=0.1)
    for state in md.ddim(denoise, torch.randn(16, 1, 8, 8), schedule.levels(50)): ...

The rooms, from the bottom up: diffusion (the maths), nets, data, training, pipelines, evaluation; and plot for pictures.
"""

import importlib

from .diffusion import (
    CLEAN,
    DatasetDenoiser,
    Estimate,
    GaussianDenoiser,
    Level,
    Schedule,
    State,
    add_noise,
    between,
    by_difference,
    classifier_free,
    classifier_guided,
    clipped,
    color_loss,
    composed,
    ddim,
    ddim_step,
    ddpm,
    ddpm_step,
    denoiser,
    diffusion_loss,
    dpmpp_2m,
    dpmpp_2m_sde,
    euler,
    euler_ancestral,
    guided,
    heun,
    inpainting,
    invert,
    lms,
    perturbed_guidance,
    plms,
    predict_eps,
    predict_x0,
    repaint,
    rescaled,
    sample,
    velocity,
)  # fmt: skip
from .nets import CLIP, VAE, CLIPImage, CLIPText, DiT, MMDiT, UNet, clip_loss, contrastive_loss

__version__ = "0.1.0"

# Opened on first use, so that `import minidiff` costs no more than torch: their names here, and the room each lives in.
_LAZY = {
    **dict.fromkeys(("data", "evaluation", "pipelines", "plot", "pretrained", "training")),
    **dict.fromkeys(("EMA", "TrainConfig", "Trainer", "load", "save"), "training"),
    **dict.fromkeys(("Tokenizer", "load_clip", "load_clip_text", "load_mmdit", "load_open_clip", "load_unet", "load_vae"),
                    "pretrained"),
    **dict.fromkeys(("ClassToImage", "StableDiffusion", "StableDiffusion3"), "pipelines"),
}

__all__ = [
    "CLEAN", "CLIP", "VAE", "CLIPImage", "CLIPText", "DatasetDenoiser", "DiT", "Estimate", "GaussianDenoiser", "Level",
    "MMDiT", "Schedule", "State", "UNet", "add_noise", "between", "by_difference", "classifier_free", "classifier_guided",
    "clip_loss", "clipped", "color_loss", "composed", "contrastive_loss", "ddim", "ddim_step", "ddpm", "ddpm_step", "denoiser",
    "diffusion_loss", "dpmpp_2m", "dpmpp_2m_sde", "euler", "euler_ancestral", "guided", "heun", "inpainting", "invert",
    "lms", "perturbed_guidance", "plms", "predict_eps", "predict_x0", "repaint", "rescaled", "sample", "velocity",
    *_LAZY,
]  # fmt: skip


def __getattr__(name):
    if name not in _LAZY:
        raise AttributeError(f"minidiff has no {name}")
    room = importlib.import_module(f".{_LAZY[name] or name}", __name__)
    return getattr(room, name) if _LAZY[name] else room


def __dir__():
    return sorted(__all__)
