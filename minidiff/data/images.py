"""Pictures from anywhere, as one block of bytes in memory and batches in [-1, 1].

`load_images` reads a hub dataset, a folder of parquet, a folder of pictures or a dataset saved on disk, and decodes every
picture once. At teaching scale all of it fits in memory (60,000 Fashion-MNIST pictures padded to 32x32 take 61 MB), and
a training step then costs the same whether the pictures were PNG, JPEG or drawn by us.

`batches` deals them out for ever. Batch k is a function of (seed, k) alone: a run resumed at step k sees exactly the
pictures, in the order and with the flips, that it would have seen had it never stopped.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .picture import GREY_MODES, to_tensor

SPLIT_FOLDERS = {"train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval"}
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


class Images(Dataset):
    """N pictures in memory: `pixels` uint8 (N, C, H, W), `labels` int64 (N,) or None, `classes` their names (or []).

    images[i] is (image, label): float32 (C, H, W) in [-1, 1], and an int; -1 where there are no labels, which a
    DataLoader can stack and an Embedding refuses. Raises ValueError for other dtypes or shapes and labels out of range.
    """

    def __init__(self, pixels: Tensor, labels: Tensor | None = None, classes: Sequence[str] = ()):
        if pixels.dtype != torch.uint8 or pixels.dim() != 4:
            raise ValueError(f"pixels are {pixels.dtype} {tuple(pixels.shape)}: give uint8 0..255 of shape (N, C, H, W)")
        if labels is not None:
            _check_labels(labels, len(pixels), classes)
        self.pixels, self.labels, self.classes = pixels, labels, list(classes)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return from_pixels(self.pixels[i]), -1 if self.labels is None else int(self.labels[i])

    def __repr__(self) -> str:
        labels = "no labels" if self.labels is None else f"{len(self.classes) or int(self.labels.max()) + 1} classes"
        return f"Images({len(self)} of {tuple(self.pixels.shape[1:])}, {labels})"

    def select(self, indices: Tensor | Sequence[int] | slice) -> "Images":
        """The pictures at `indices`, in that order, as Images."""
        return Images(self.pixels[indices], None if self.labels is None else self.labels[indices], self.classes)


def from_pixels(pixels: Tensor) -> Tensor:
    """uint8 0..255 of any shape → float32 in [-1, 1], exactly -1 and 1 at the ends."""
    return pixels.float() / 127.5 - 1


def batches(
    images: Images,
    batch_size: int,
    device: str | torch.device = "cpu",
    flip: bool = False,  # mirror each picture left to right with probability 1/2
    seed: int = 0,
    start: int = 0,  # the first batch to give: the step at which a run resumes
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """An endless walk of (x, y) on `device`: x float32 (B, C, H, W) in [-1, 1], y int64 (B,), or None without labels.

    Each epoch is a fresh permutation; the last, incomplete batch of an epoch is dropped. No state is carried from one
    batch to the next, so `batches(..., start=k)` continues bit for bit where a walk from 0 gives its batch k.

    Raises ValueError, at the call, unless 1 <= batch_size <= len(images) and start >= 0.
    """
    if not 1 <= batch_size <= len(images):
        raise ValueError(f"batch_size = {batch_size}, and there are {len(images)} images: give 1..{len(images)}")
    if start < 0:
        raise ValueError(f"start = {start}: steps are counted from 0")
    return _deal(images, batch_size, torch.device(device), flip, seed, start)


def _deal(images: Images, batch_size: int, device: torch.device, flip: bool, seed: int, start: int) -> Iterator:
    per_epoch, shuffled, order = len(images) // batch_size, None, None
    step = start
    while True:
        epoch, k = divmod(step, per_epoch)
        if epoch != shuffled:
            order = torch.randperm(len(images), generator=_generator(seed, "epoch", epoch))
            shuffled = epoch
        mine = order[k * batch_size : (k + 1) * batch_size].to(images.pixels.device)
        x = from_pixels(_move(images.pixels[mine], device))  # bytes travel, a quarter of the floats
        if flip:
            mirrored = torch.rand(batch_size, generator=_generator(seed, "flip", step)) < 0.5
            x = torch.where(_move(mirrored, device)[:, None, None, None], x.flip(-1), x)
        yield x, None if images.labels is None else _move(images.labels[mine], device)
        step += 1


def _move(x: Tensor, device: torch.device) -> Tensor:
    """To `device`, without making the CPU wait for a GPU: only pinned memory can be copied in the background."""
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def _generator(seed: int, what: str, index: int) -> torch.Generator:
    """A generator of its own for each (seed, what, index). Hashed: `seed + index` would give run 1 the shuffles of run 0."""
    digest = hashlib.blake2b(f"{seed} {what} {index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def load_images(
    name_or_path: str | Path,
    size: int | None = None,  # side of the square pictures given; None keeps the size, which must then be one for all
    split: str = "train",
    channels: int | None = None,  # 1 or 3; None keeps grey pictures at 1
    limit: int | None = None,  # at most so many, spread evenly over the split (folders are often sorted by class)
    fit: str = "auto",  # "auto" | "pad" | "crop"
) -> Images:
    """Read a dataset of pictures into memory, decoded, as `Images`: N*C*H*W bytes.

    name_or_path is one of
        "zalando-datasets/fashion_mnist"    a dataset of the Hugging Face hub, by owner/name
        a folder of parquet files           one split per file name: train-….parquet, test-….parquet
        a folder of pictures                flat, or one sub-folder per class, perhaps below train/ and test/
        a folder of `save_to_disk`          a Dataset or a DatasetDict of the library `datasets`
    The columns of pictures and labels are found by their feature types (Image, ClassLabel), whatever they are called.

    fit "pad" centres on black (28 → 32 keeps every pixel), after shrinking what is too large; "crop" makes the short
    side `size` and cuts the centre; "auto" pads pictures that fit within `size` and crops the others. Transparent parts
    become white.

    Raises FileNotFoundError for an unknown dataset, a folder without pictures and a hub out of reach; ValueError for an
    unknown split, no column of pictures, pictures that cannot be read or differ in size, and labels out of range.
    """
    if channels not in (None, 1, 3) or fit not in ("auto", "pad", "crop"):
        raise ValueError(f"channels = {channels}, fit = {fit!r}: channels is 1, 3 or None, fit 'auto', 'pad' or 'crop'")
    if (size is not None and size < 1) or (limit is not None and limit < 1):
        raise ValueError(f"size = {size}, limit = {limit}: each is a positive number or None")
    splits = _open(name_or_path)
    if split not in splits:
        raise ValueError(f'{name_or_path} has no split "{split}": it has {", ".join(map(str, splits))}')
    rows = splits[split]
    if len(rows) == 0:
        raise ValueError(f"split {split!r} of {name_or_path} has no rows")
    if limit is not None and limit < len(rows):
        rows = rows.select([i * len(rows) // limit for i in range(limit)])
    image_column, label_column = _columns(rows.features, name_or_path)
    pixels = _decode(rows.select_columns([image_column]), image_column, name_or_path, size, channels, fit)
    if label_column is None:
        return Images(pixels)
    labels = torch.tensor([-1 if label is None else label for label in rows[label_column]])
    return Images(pixels, labels, rows.features[label_column].names)


def _open(name_or_path: str | Path) -> dict:
    """The splits {name: datasets.Dataset} of whatever the name stands for."""
    import datasets

    folder = Path(name_or_path).expanduser()
    if folder.is_file():
        raise FileNotFoundError(f"{name_or_path} is a file: give the folder that holds it")
    if not folder.is_dir():
        return _open_hub(str(name_or_path))
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        saved = datasets.load_from_disk(str(folder))
        return saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
    if any(folder.rglob("*.parquet")):
        return datasets.load_dataset(str(folder))
    depths = {len(p.relative_to(folder).parts) for p in folder.rglob("*") if p.suffix.lower() in PICTURES}
    if not depths:
        raise FileNotFoundError(f"{name_or_path} holds no parquet files and no pictures ({' '.join(sorted(PICTURES))})")
    if any(p.is_dir() and p.name.lower() in SPLIT_FOLDERS for p in folder.iterdir()):
        # Without class folders below train/ and test/, the builder would take these two names for classes.
        return datasets.load_dataset("imagefolder", data_dir=str(folder), drop_labels=depths == {2} or None)
    # One split, said so: left to guess, the builder makes a split "test" of a picture called test_01.png.
    return datasets.load_dataset("imagefolder", data_dir=str(folder), data_files={"train": "**"})


def _open_hub(name: str) -> dict:
    import datasets

    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        hint = "" if name == "fashion_mnist" else ", for example"
        raise FileNotFoundError(f'no folder "{name}"; on the hub a name has an owner{hint}: "zalando-datasets/fashion_mnist"')
    try:
        return datasets.load_dataset(name)
    except ConnectionError as error:
        why = "the hub cannot be reached: check the network, or give a local folder"
        raise FileNotFoundError(f'no folder "{name}", and {why}') from error
    except (OSError, ValueError, RuntimeError) as error:  # unknown names, datasets that need code, several configurations
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(f'no folder "{name}", and no such dataset on the hub: {why}') from error


def _columns(features: dict, name: str | Path) -> tuple[str, str | None]:
    import datasets

    image = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    label = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if not image:
        raise ValueError(f"{name} has no column of type datasets.Image: its columns are {list(features)}")
    return image[0], label[0] if label else None


def _decode(rows, column: str, name: str | Path, size: int | None, channels: int | None, fit: str) -> Tensor:
    """Every picture of `rows`, uint8 (N, C, H, W)."""
    from tqdm.auto import tqdm

    pixels, all_grey = None, True
    for i in tqdm(range(len(rows)), desc=f"decoding {Path(name).name}", unit="img", leave=False):
        picture = _read(rows, i, column, name)
        all_grey = all_grey and picture.mode in GREY_MODES
        image = _fit(to_tensor(picture, channels or (1 if all_grey else 3)), size, fit)
        if pixels is None:
            pixels = torch.empty(len(rows), *image.shape, dtype=torch.uint8)
        if image.shape[0] != pixels.shape[1]:
            raise ValueError(f"{name}: picture {i} is in colour, those before it are grey: pass channels=3, or channels=1")
        if image.shape != pixels.shape[1:]:
            raise ValueError(f"{name}: picture {i} is {_by(image)}, the first {_by(pixels)}: pass size= to make them one size")
        pixels[i] = image
    return pixels


def _read(rows, i: int, column: str, name: str | Path):
    try:
        picture = rows[i][column]
    except (OSError, SyntaxError) as error:  # PIL reports broken files by either
        raise ValueError(f"{name}: picture {i} cannot be read: {str(error).splitlines()[0]}") from error
    if picture is None:
        raise ValueError(f"{name}: row {i} holds no picture: remove it from the dataset")
    return picture


def _fit(image: Tensor, size: int | None, fit: str) -> Tensor:
    """(C, H, W) → (C, size, size), by the rule of `load_images`."""
    from torchvision.transforms.v2 import functional

    if size is None or image.shape[1:] == (size, size):
        return image
    too_large = max(image.shape[1:]) > size
    if fit == "crop" or (fit == "auto" and too_large):
        image = functional.resize(image, [size], antialias=True)
    elif too_large:
        image = functional.resize(image, None, max_size=size, antialias=True)
    return functional.center_crop(image, [size, size])  # where the picture is smaller, this pads with black, centred


def _by(images: Tensor) -> str:
    return f"{images.shape[-1]}x{images.shape[-2]}"


def _check_labels(labels: Tensor, n: int, classes: Sequence[str]) -> None:
    if labels.dtype != torch.int64 or labels.shape != (n,):
        raise ValueError(f"labels are {labels.dtype} {tuple(labels.shape)}: give int64 of shape ({n},), or None")
    low, high = (int(labels.min()), int(labels.max())) if n else (0, 0)
    if low < 0 or (classes and high >= len(classes)):
        allowed = f"0..{len(classes) - 1}" if classes else "0 or more"
        raise ValueError(f"labels run from {low} to {high}, must be {allowed}: drop those rows, or the labels: Images(pixels)")
