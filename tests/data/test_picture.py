"""One picture from a file: every mode, every shape, and the way back."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from minidiff.data import load_picture, save_picture

COLOURS = {"RGB": (255, 0, 51), "RGBA": (255, 0, 51, 255), "L": 102, "LA": (102, 255), "1": 1, "I;16": 40_000,
           "CMYK": (0, 255, 204, 0)}  # fmt: skip


def write(file, mode, size=(40, 30), colour=None):
    picture = Image.new("RGB" if mode == "P" else mode, size, colour or COLOURS.get(mode, COLOURS["RGB"]))
    (picture.convert("P") if mode == "P" else picture).save(file)
    return file


@pytest.mark.parametrize(("mode", "rgb"), [
    ("RGB", (1, -1, -0.6)), ("RGBA", (1, -1, -0.6)), ("P", (1, -1, -0.6)), ("L", (-0.2,) * 3), ("LA", (-0.2,) * 3),
    ("1", (1,) * 3), ("I;16", (156 / 127.5 - 1,) * 3),
])  # fmt: skip
def test_every_mode_becomes_rgb(tmp_path, mode, rgb):
    image = load_picture(write(tmp_path / "x.png", mode))
    assert image.shape == (1, 3, 30, 40) and image.dtype == torch.float32
    assert_close(image[0, :, 3, 3], torch.tensor(rgb).float(), rtol=0, atol=0.02)


def test_cmyk_is_read_too(tmp_path):
    assert load_picture(write(tmp_path / "x.jpg", "CMYK"))[0, 0].min() > 0.9


def test_what_is_transparent_is_white(tmp_path):
    assert_close(load_picture(write(tmp_path / "x.png", "RGBA", colour=(255, 0, 0, 0))), torch.ones(1, 3, 30, 40))


def test_one_channel_for_a_mask(tmp_path):
    image = load_picture(write(tmp_path / "x.png", "1"), channels=1)
    assert image.shape == (1, 1, 30, 40) and image.min() == 1


@pytest.mark.parametrize(("size", "stride", "shape"), [
    (None, 1, (30, 40)), (None, 8, (24, 40)), (60, 1, (60, 80)), (15, 1, (15, 20)), (64, 64, (64, 64)), (512, 64, (512, 640)),
])  # fmt: skip
def test_the_shorter_side_is_resized_and_both_divide(tmp_path, size, stride, shape):
    file = write(tmp_path / "x.png", "RGB")
    assert load_picture(file, size, stride).shape == (1, 3, *shape)
    upright = write(tmp_path / "y.png", "RGB", (30, 40))
    assert load_picture(upright, size, stride).shape == (1, 3, *shape[::-1])


def test_what_is_cut_off_is_cut_off_evenly(tmp_path):
    picture = Image.new("L", (12, 8))
    picture.putdata([x for _ in range(8) for x in range(12)])
    picture.save(tmp_path / "x.png")
    assert ((load_picture(tmp_path / "x.png", stride=8)[0, 0, 0] + 1) * 127.5).round().tolist() == list(range(2, 10))


def test_a_picture_is_turned_as_it_was_held(tmp_path):
    picture = Image.new("RGB", (40, 30))
    exif = picture.getexif()
    exif[0x0112] = 6                                              # the camera was turned by a quarter
    picture.save(tmp_path / "x.jpg", exif=exif)
    assert load_picture(tmp_path / "x.jpg").shape == (1, 3, 40, 30)


def test_saved_and_loaded_it_is_the_same(tmp_path, generator):
    image = torch.randint(256, (1, 3, 9, 7), generator=generator) / 127.5 - 1
    assert_close(load_picture(save_picture(tmp_path / "new" / "x.png", image)), image)
    assert_close(load_picture(save_picture(tmp_path / "y.png", 2 * image[0])), (2 * image).clamp(-1, 1), rtol=0, atol=0.004)


def test_what_is_no_picture_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no picture .*x.png"):
        load_picture(tmp_path / "x.png")
    (tmp_path / "x.png").write_text("words")
    with pytest.raises(ValueError, match="x.png cannot be read as a picture"):
        load_picture(tmp_path / "x.png")
    whole = write(tmp_path / "y.png", "RGB").read_bytes()
    (tmp_path / "y.png").write_bytes(whole[:60])
    with pytest.raises(ValueError, match="y.png cannot be read"):
        load_picture(tmp_path / "y.png")
    with pytest.raises(ValueError, match="40x30, smaller than 64"):
        load_picture(write(tmp_path / "z.png", "RGB"), stride=64)


def test_real_photographs_and_their_masks():
    folder = Path(os.environ.get("MINIDIFF_DATA", "nowhere")) / "inpainting_examples"
    if not folder.is_dir():
        pytest.skip("MINIDIFF_DATA names no folder with inpainting_examples/ in it")
    for file in sorted(folder.glob("*_mask.png")):
        mask, photo = load_picture(file, 512, 64, channels=1), load_picture(str(file).replace("_mask", ""), 512, 64)
        assert mask.shape[2:] == photo.shape[2:] and min(photo.shape[2:]) == 512
        assert photo.std() > 0.1 and {-1.0, 1.0} <= set(mask.unique().tolist())
