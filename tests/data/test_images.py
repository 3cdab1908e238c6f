"""Pictures from every kind of folder, of every size and mode, and one clear sentence when something is wrong."""

import itertools
import os
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from minidiff.data.images import Images, load_images

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """What `datasets` prepares goes where the test's own files go, and nothing asks the network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def picture(path: Path, color=RED, size=(8, 8), mode="RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)
    return path


def grey_rows(values, labels=None) -> datasets.Dataset:
    """8x8 pictures, each of one grey value; columns called neither "image" nor "label"."""
    columns = {"photo": [Image.new("L", (8, 8), value) for value in values]}
    features = {"photo": datasets.Image()}
    if labels is not None:
        columns["kind"], features["kind"] = labels, datasets.ClassLabel(names=["cat", "dog"])
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def values(images: Images) -> list[int]:
    return images.pixels[:, 0, 0, 0].tolist()


# --- where pictures come from ---------------------------------------------------------------------------------------


def test_folder_of_parquet_finds_columns_by_type_and_splits_by_file_name(tmp_path):
    folder = tmp_path / "toy"
    folder.mkdir()
    grey_rows([0, 100, 255], [1, 0, 1]).to_parquet(folder / "train-00000-of-00001.parquet")
    grey_rows([7], [0]).to_parquet(folder / "test-00000-of-00001.parquet")
    train, test = load_images(folder), load_images(str(folder), split="test")
    assert train.pixels.shape == (3, 1, 8, 8) and train.pixels.dtype == torch.uint8
    assert values(train) == [0, 100, 255] and values(test) == [7]
    assert train.labels.tolist() == [1, 0, 1] and train.labels.dtype == torch.int64
    assert train.classes == ["cat", "dog"]
    with pytest.raises(ValueError, match=r'no split "valid".*train, test$'):
        load_images(folder, split="valid")


def test_flat_folder_is_one_split_whatever_its_files_are_called(tmp_path):
    for name, color in (("a", RED), ("test_b", GREEN), ("train-c", BLUE)):
        picture(tmp_path / "flat" / f"{name}.png", color)
    (tmp_path / "flat" / "README.txt").write_text("not a picture")
    images = load_images(tmp_path / "flat")
    assert images.labels is None and images.classes == [] and images.pixels.shape == (3, 3, 8, 8)
    assert sorted(map(tuple, images.pixels[:, :, 0, 0].tolist())) == sorted([RED, GREEN, BLUE])


def test_folders_of_classes_with_and_without_splits(tmp_path):
    for split, name, color in itertools.product(("train", "test"), ("cat", "dog"), (50, 60)):
        picture(tmp_path / "split" / split / name / f"{color}.png", color + 100 * (name == "dog"), mode="L")
        picture(tmp_path / "plain" / name / f"{split}{color}.png", color + 100 * (name == "dog"), mode="L")
    for folder, n in (("split", 4), ("plain", 8)):
        images = load_images(tmp_path / folder)
        assert images.classes == ["cat", "dog"] and len(images) == n
        assert images.labels.tolist() == [int(value >= 150) for value in values(images)]
    assert len(load_images(tmp_path / "split", split="test")) == 4


def test_flat_folders_of_splits_are_not_classes(tmp_path):
    picture(tmp_path / "flat" / "train" / "a.png", 10, mode="L")
    picture(tmp_path / "flat" / "test" / "b.png", 20, mode="L")
    train = load_images(tmp_path / "flat")
    assert values(train) == [10] and train.labels is None


@pytest.mark.parametrize("several", [False, True])
def test_saved_to_disk(tmp_path, several):
    rows = grey_rows([5, 6], [0, 1])
    (datasets.DatasetDict({"train": rows}) if several else rows).save_to_disk(str(tmp_path / "saved"))
    images = load_images(tmp_path / "saved")
    assert values(images) == [5, 6] and images.labels.tolist() == [0, 1]


def test_limit_spreads_over_sorted_rows(tmp_path):
    grey_rows(range(10), [0] * 5 + [1] * 5).save_to_disk(str(tmp_path / "saved"))
    images = load_images(tmp_path / "saved", limit=4)
    assert values(images) == [0, 2, 5, 7] and images.labels.tolist() == [0, 0, 1, 1]
    assert len(load_images(tmp_path / "saved", limit=99)) == 10


# --- size and colour ------------------------------------------------------------------------------------------------


def one(tmp_path, array: np.ndarray, **options) -> torch.Tensor:
    path = tmp_path / "one"
    path.mkdir()
    Image.fromarray(array).save(path / "x.png")
    return load_images(path, **options).pixels[0]


def test_small_pictures_are_padded_with_black_in_the_centre(tmp_path):
    array = np.random.default_rng(0).integers(1, 256, (28, 28), dtype=np.uint8)
    image = one(tmp_path, array, size=32)
    assert image.shape == (1, 32, 32)
    assert torch.equal(image[0, 2:30, 2:30], torch.from_numpy(array))
    assert int(image.sum()) == int(array.sum())  # all the rest is 0


def test_large_pictures_keep_their_centre(tmp_path):
    array = np.zeros((40, 100), dtype=np.uint8)
    array[:, 28:72] = 200  # the central square, and the 2 pixels that averaging reaches beyond it
    image = one(tmp_path, array, size=20)
    assert image.shape == (1, 20, 20) and bool((image == 200).all())


def test_crop_enlarges_and_pad_shrinks(tmp_path):
    array = np.full((10, 20), 200, dtype=np.uint8)
    assert bool((one(tmp_path, array, size=32, fit="crop") == 200).all())
    image = load_images(tmp_path / "one", size=10, fit="pad").pixels[0, 0]
    assert bool((image[3:7] == 200).all()) and int(image[:2].sum()) == int(image[8:].sum()) == 0


def test_resizing_averages_instead_of_skipping_pixels(tmp_path):
    stripes = np.zeros((24, 24), dtype=np.uint8)
    stripes[:, 1::3] = 210  # every third column, just those that a picture of 8x8 would pick
    image = one(tmp_path, stripes, size=8)[0, 2:6, 2:6].float()
    assert bool(((image - 70).abs() < 30).all())


def test_grey_stays_one_channel_unless_asked(tmp_path):
    array = np.full((8, 8), 90, dtype=np.uint8)
    assert one(tmp_path, array).shape == (1, 8, 8)
    three = load_images(tmp_path / "one", channels=3).pixels[0]
    assert three.shape == (3, 8, 8) and bool((three == 90).all())


def test_sixteen_bits_keep_the_upper_eight(tmp_path):
    array = np.full((8, 8), 100 * 256 + 7, dtype=np.uint16)
    assert one(tmp_path, array).unique().tolist() == [100]


def test_transparent_is_white(tmp_path):
    array = np.zeros((8, 8, 4), dtype=np.uint8)
    array[:4] = (255, 0, 0, 255)
    image = one(tmp_path, array)
    assert image[:, 0, 0].tolist() == [255, 0, 0] and image[:, 7, 7].tolist() == [255, 255, 255]


def test_colour_after_grey_is_said(tmp_path):
    picture(tmp_path / "mix" / "a.png", 10, mode="L")
    picture(tmp_path / "mix" / "b.png", RED)
    with pytest.raises(ValueError, match="picture 1 is in colour.*channels=3"):
        load_images(tmp_path / "mix")
    assert load_images(tmp_path / "mix", channels=3).pixels[0].unique().tolist() == [10]


# --- what goes wrong ------------------------------------------------------------------------------------------------


def says(error, expected: type, *words: str) -> None:
    message = str(error.value)
    assert type(error.value) is expected and "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("name, word", [
    ("fashion_mnist", 'owner: "zalando-datasets/fashion_mnist"'), ("no/such/folder", "for example"),
    ("./nowhere", "for example"), ("owner/dataset", "cannot be reached"),
])
def test_unknown_datasets(name, word):
    with pytest.raises(FileNotFoundError) as error:
        load_images(name)
    says(error, FileNotFoundError, name, word)


def test_folders_without_pictures(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(FileNotFoundError, match="no pictures"):
        load_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="is a file"):
        load_images(tmp_path / "notes.txt")


def test_no_column_of_pictures(tmp_path):
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ValueError) as error:
        load_images(tmp_path / "saved")
    says(error, ValueError, "datasets.Image", "text")


def test_mixed_sizes_need_size(tmp_path):
    picture(tmp_path / "mix" / "a.png", size=(8, 8))
    picture(tmp_path / "mix" / "b.png", size=(8, 6))
    with pytest.raises(ValueError) as error:
        load_images(tmp_path / "mix")
    says(error, ValueError, "picture 1", "8x6", "size=")
    assert load_images(tmp_path / "mix", size=8).pixels.shape == (2, 3, 8, 8)


def test_broken_picture(tmp_path):
    whole = picture(tmp_path / "broken" / "a.png").read_bytes()
    (tmp_path / "broken" / "b.png").write_bytes(whole[:40])
    with pytest.raises(ValueError) as error:
        load_images(tmp_path / "broken")
    says(error, ValueError, "picture 1", "cannot be read")


def test_missing_labels(tmp_path):
    grey_rows([1, 2], [0, -1]).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match=r"labels run from -1 to 0, must be 0\.\.1"):
        load_images(tmp_path / "saved")


@pytest.mark.parametrize("options", [{"channels": 2}, {"fit": "stretch"}, {"size": 0}, {"limit": 0}])
def test_options_out_of_range(tmp_path, options):
    picture(tmp_path / "flat" / "a.png")
    with pytest.raises(ValueError, match=next(iter(options))):
        load_images(tmp_path / "flat", **options)


@pytest.mark.skipif("MINIDIFF_DATA" not in os.environ, reason="MINIDIFF_DATA is not set: real Fashion-MNIST is not tried")
def test_real_fashion_mnist():
    images = load_images(Path(os.environ["MINIDIFF_DATA"]) / "fashion_mnist", size=32, split="test")
    assert images.pixels.shape == (10000, 1, 32, 32) and images.labels.bincount().tolist() == [1000] * 10
    assert images.classes[9] == "Ankle boot"
    assert int(images.pixels[:, :, :2].max()) == 0 and 60 < images.pixels[:, :, 2:30, 2:30].float().mean() < 85
