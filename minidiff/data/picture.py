"""One picture from a file, whatever its mode and shape, made ready for a network; and back into a file."""

from pathlib import Path

import torch
from torch import Tensor

GREY_MODES = {"1", "L", "LA", "I;16", "I;16B", "I;16L"}


def load_picture(file: str | Path, size: int | None = None, stride: int = 1, channels: int = 3) -> Tensor:
    """A picture -> float32 (1, channels, H, W) in [-1, 1]: colour, grey, palette or transparent (on white), and upright.

    size: its shorter side is resized to that, the other along with it; None keeps both. Then as little as possible is cut off
    evenly so that both divide by `stride`. Raises FileNotFoundError, and ValueError for a file that is no picture, and for one
    that is smaller than stride.
    """
    from torchvision.transforms.v2 import functional

    pixels = to_tensor(_open(file), channels)
    if size is not None:
        pixels = functional.resize(pixels, [size], antialias=True)
    height, width = (side - side % stride for side in pixels.shape[1:])
    if not height or not width:
        raise ValueError(f"{file} is {pixels.shape[2]}x{pixels.shape[1]}, smaller than {stride} pixels: give a larger picture")
    return functional.center_crop(pixels, [height, width])[None].float() / 127.5 - 1


def save_picture(file: str | Path, image: Tensor) -> Path:
    """Write an image (3, H, W) or (1, 3, H, W) in [-1, 1], what lies outside cut off; the folder is made."""
    from torchvision.transforms.v2 import functional

    pixels = ((image.detach().float().cpu().reshape(image.shape[-3:]).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    functional.to_pil_image(pixels).save(file)
    return Path(file)


def _open(file: str | Path):
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not Path(file).is_file():
        raise FileNotFoundError(f"there is no picture {file}")
    try:
        picture = Image.open(file)
        picture.load()
    except (UnidentifiedImageError, OSError, SyntaxError) as error:  # PIL reports broken files by any of these
        raise ValueError(f"{file} cannot be read as a picture: {str(error).splitlines()[0]}") from error
    return ImageOps.exif_transpose(picture)


def to_tensor(picture, channels: int) -> Tensor:
    """A PIL picture of any mode -> uint8 (channels, H, W); what is transparent is laid on white."""
    from PIL import Image
    from torchvision.transforms.v2 import functional

    if picture.mode.startswith("I;16"):  # PIL would clip 16 bits at 255 instead of keeping the upper 8
        picture = picture.point(lambda value: value / 256).convert("L")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return functional.pil_to_tensor(picture.convert("L" if channels == 1 else "RGB"))
