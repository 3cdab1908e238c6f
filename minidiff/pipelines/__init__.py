"""Whole models: from a label or a prompt to a picture."""

from .class_to_image import ClassToImage, make_schedule
from .stable_diffusion import StableDiffusion
from .stable_diffusion_3 import StableDiffusion3

__all__ = ["ClassToImage", "StableDiffusion", "StableDiffusion3", "make_schedule"]
