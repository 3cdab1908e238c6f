"""Data: captioned scenes drawn to order, and pictures from a folder or a hub, all in [-1, 1]."""

from .captions import HELD_OUT, TASKS, Captioned, Prompt, obeyed, prompts
from .grammar import WORDS, Want, describe
from .images import Images, batches, from_pixels, load_images
from .oracle import matches, read_shapes
from .palette import objectness, palette_loss
from .picture import load_picture, save_picture
from .shapes import COLOURS, SHAPES, Scene, Shapes

__all__ = [
    "COLOURS", "HELD_OUT", "SHAPES", "TASKS", "WORDS", "Captioned", "Images", "Prompt", "Scene", "Shapes", "Want", "batches",
    "describe", "from_pixels", "load_images", "load_picture", "matches", "obeyed", "objectness", "palette_loss", "prompts",
    "read_shapes", "save_picture",
]
