"""Data: captioned scenes drawn to order, and pictures from a folder or a hub, all in [-1, 1]."""

from .images import Images, batches, from_pixels, load_images
from .oracle import matches, read_shapes
from .shapes import COLOURS, SHAPES, Scene, Shapes

__all__ = [
    "COLOURS", "SHAPES", "Images", "Scene", "Shapes", "batches", "from_pixels", "load_images", "matches", "read_shapes",
]
