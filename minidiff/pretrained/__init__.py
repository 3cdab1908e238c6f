"""Networks that others trained, in our names: folders, rules, the tokenizer, scheduler configs."""

from .clip import load_clip, load_clip_text
from .mmdit import load_mmdit
from .open_clip import OpenCLIP, load_open_clip
from .schedulers import Recipe, read_scheduler
from .tokenizer import Tokenizer
from .unet import load_unet
from .vae import load_vae
from .words import words_tokenizer

__all__ = [
    "OpenCLIP", "Recipe", "Tokenizer", "load_clip", "load_clip_text", "load_mmdit", "load_open_clip", "load_unet",
    "load_vae", "read_scheduler", "words_tokenizer",
]
