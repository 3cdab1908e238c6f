"""Whole models: from a label or a prompt to a picture."""

from .class_to_image import ClassToImage, make_schedule
from .stable_diffusion import StableDiffusion

__all__ = ["ClassToImage", "StableDiffusion", "make_schedule"]
