"""Pipelines: a trained network, its schedule and what else a user needs, behind one call."""

from .class_to_image import ClassToImage

__all__ = ["ClassToImage"]
