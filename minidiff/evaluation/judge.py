"""A judge of pictures, trained here on real ones: is this a sneaker, and do these look like the real set?

A generator must not be marked by its own loss. The judge is a small classifier that has seen real training pictures and
no generated one; its opinion of the class gives an accuracy, its features give the distances of `metrics.py`.

A figure means little without its floor: what real training pictures score, as many as there are samples, since FD grows
as n shrinks. `judge_samples` always reports both. `floors` prints a ladder of known damage to read other figures by.
"""

import inspect
import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.images import Images, batches, from_pixels
from ..training.checkpoint import load_weights, read_json, save
from .metrics import frechet_distance, kernel_distance


class Judge(nn.Module):
    """A convolutional classifier of pictures (B, channels, size, size) in [-1, 1].

    judge(x) gives logits (B, num_classes); judge.features(x) what they are read from, (B, 128), each >= 0,
    with a variance of 1 on average over the training pictures (of a trained judge).
    Raises ValueError for a size below 8 or no multiple of 4, and for pictures of another shape than it was built for:
    a judge of 32x32 would give an opinion of 64x64, and it would be worthless.
    """

    def __init__(self, channels: int = 1, size: int = 32, num_classes: int = 10, width: int = 32):
        super().__init__()
        if size < 8 or size % 4:
            raise ValueError(f"size = {size}: the judge halves its input twice, give a multiple of 4, at least 8")
        self.config = {"channels": channels, "size": size, "num_classes": num_classes, "width": width}
        self.shape = (channels, size, size)
        self.body = nn.Sequential(                                                     # (B, C, H, W)
            *_stage(channels, width, nn.MaxPool2d(2)),                                 # (B, 32, H/2, W/2)
            *_stage(width, 2 * width, nn.MaxPool2d(2)),                                # (B, 64, H/4, W/4)
            *_stage(2 * width, 4 * width, nn.AdaptiveMaxPool2d(4)),                    # (B, 128, 4, 4), whatever H and W
            nn.Flatten(),                                                              # (B, 2048)
            nn.Linear(16 * 4 * width, 128),                                            # (B, 128)
            nn.ReLU(),
        )
        self.head = nn.Linear(128, num_classes)

    def features(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.shape or not x.is_floating_point():
            raise ValueError(f"x is {x.dtype} {tuple(x.shape)}: this judge takes floats in [-1, 1], {self.shape} each")
        return self.body(x.contiguous(memory_format=torch.channels_last))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def _stage(in_channels: int, out_channels: int, pool: nn.Module) -> tuple[nn.Module, ...]:
    """Pooled before the normalisation, which then costs a quarter: on one core this saves a third of a training step."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False), pool, nn.BatchNorm2d(out_channels), nn.ReLU()


def train_judge(
    images: Images,          # real pictures with labels; those of the test split stay out of it
    epochs: int = 6,
    batch_size: int = 128,
    lr: float = 3e-3,        # the peak of the one-cycle schedule (Smith & Topin 2017)
    flip: bool = True,       # mirrored pictures as more data: right for clothes, wrong for digits and letters
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Judge:
    """A Judge of `images`, trained and in eval mode. Raises ValueError for pictures without labels or not square."""
    from tqdm.auto import tqdm

    channels, height, width = images.pixels.shape[1:]
    if images.labels is None or height != width:
        raise ValueError(f"{images}: a judge learns from square pictures with labels; load_images(..., size=) gives squares")
    num_classes = len(images.classes) or int(images.labels.max()) + 1
    with torch.random.fork_rng(devices=[]):  # layers draw their first weights from the global generator: give it back
        torch.manual_seed(seed)
        judge = Judge(channels, height, num_classes).to(device, memory_format=torch.channels_last)
    walk = batches(images, batch_size, device, flip=flip, seed=seed)
    steps = epochs * (len(images) // batch_size)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps)
    for x, y in tqdm(itertools.islice(walk, steps), total=steps, desc="training the judge", unit="step"):
        optimizer.zero_grad()
        F.cross_entropy(judge(x), y).backward()
        optimizer.step()
        schedule.step()
    return _in_units_of_spread(judge.eval(), images)


@torch.no_grad()
def _in_units_of_spread(judge: Judge, images: Images) -> Judge:
    """The same judge, its features scaled to a variance of 1 on average over the 128 of them.

    FD goes with the square of the features' scale, and training leaves that to chance; in this unit the figures of two
    judges are of one order. ReLU passes a positive factor on, so the head can take it back: no opinion changes.
    """
    features, _ = _opinions(judge, from_pixels(images.pixels[:: max(1, len(images) // 5000)]))
    scale = (features.shape[1] / features.var(dim=0).sum()).sqrt()
    judge.body[-2].weight.mul_(scale)
    judge.body[-2].bias.mul_(scale)
    judge.head.weight.div_(scale)
    return judge


def load_judge(folder: str | Path, device: str | torch.device = "cpu") -> Judge:
    """The judge kept in `folder`, in eval mode. Raises FileNotFoundError where there is none, ValueError if damaged."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no judge: train one with load_or_train_judge(train, folder)")
    judge = Judge(**read_json(folder / "config.json")["config"])
    load_weights(judge, folder / "model.safetensors")
    return judge.to(device, memory_format=torch.channels_last).eval()


def load_or_train_judge(train: Images, folder: str | Path, device: str | torch.device = "cpu", **options) -> Judge:
    """The judge kept in `folder`; where there is none, one trained on `train` now and kept there as safetensors and JSON.

    options: those of `train_judge`. Raises ValueError where the judge in `folder` was trained on other pictures or with
    other options: figures of two judges must not be compared, so none is used or replaced behind your back.
    """
    folder = Path(folder)
    recipe = inspect.signature(train_judge).bind(train, **options)
    recipe.apply_defaults()
    told = {k: v for k, v in recipe.arguments.items() if k not in ("images", "device")} | _fingerprint(train)
    if (folder / "config.json").is_file():  # written last, so the weights are there too
        kept = read_json(folder / "config.json").get("trained", {})
        if differ := sorted(k for k in told if kept.get(k) != told[k]):
            raise ValueError(f"the judge in {folder} was trained with other {', '.join(differ)}: give another folder")
        return load_judge(folder, device)
    judge = train_judge(train, device=device, **options)
    save(folder, judge, trained=told)
    return judge


def _fingerprint(images: Images) -> dict:
    """Tells datasets apart whatever the order of their rows, which differs between copies of one dataset."""
    per_class = None if images.labels is None else images.labels.bincount().tolist()
    total = int(images.pixels.sum(dtype=torch.int64))
    return {"shape": list(images.pixels.shape), "images_per_class": per_class, "sum_of_pixels": total}


@dataclass(frozen=True)
class Score:
    """n pictures against the real test set: Fréchet and kernel distance, and the share judged to be of their class."""

    n: int
    fd: float
    kd: float
    accuracy: float | None  # None for pictures without labels

    def __str__(self) -> str:
        accuracy = "     -" if self.accuracy is None else f"{self.accuracy:6.3f}"
        return f"{self.n:6d} {self.fd:8.2f} {self.kd:9.4f} {accuracy}"


@dataclass(frozen=True)
class JudgeReport:
    """What a set of samples scores, and beside it the floor: as many real training pictures, judged alike."""

    samples: Score
    floor: Score
    test_accuracy: float | None  # of the judge on the real test set: no generator can be expected above it

    def __str__(self) -> str:
        test = "" if self.test_accuracy is None else f"\nthe judge is right on {self.test_accuracy:.3f} of the real test set"
        return _table({"samples": self.samples, "floor: real train": self.floor}) + test


def judge_samples(
    judge: Judge,
    samples: Tensor,         # (n, C, H, W), floats; clamped to [-1, 1], as they would be when saved
    labels: Tensor | None,   # int64 (n,): the classes asked for. None when nothing was asked
    test: Images,            # the real test split
    train: Images,           # the real train split, from which the floor is drawn
    seed: int = 0,           # of that draw
) -> JudgeReport:
    """FD, KD and class accuracy of samples against the real test set, and the same of n real training pictures.

    FD falls as n grows, for real pictures too: compare it with the floor beside it and with figures at the same n. The
    floor's accuracy is of pictures the judge was trained on; `test_accuracy` is what it reaches on new ones.

    Raises ValueError for fewer than 2 samples or more than real training pictures, NaN, pictures of another shape than
    the judge's, and labels of another number or out of range.
    """
    if not 2 <= len(samples) <= len(train):
        raise ValueError(f"{len(samples)} samples: give 2..{len(train)}, at most as many as there are real training images")
    if not bool(samples.isfinite().all()):
        raise ValueError("samples hold NaN or infinity: nothing can be said about them")
    reference, guesses = _opinions(judge, from_pixels(test.pixels))
    real = _draw(train, len(samples), seed)
    return JudgeReport(
        samples=_score(judge, samples, labels, reference),
        floor=_score(judge, from_pixels(real.pixels), real.labels, reference),
        test_accuracy=_accuracy(guesses, test.labels, judge),
    )


def floors(judge: Judge, train: Images, test: Images, seed: int = 0) -> dict[str, Score]:
    """Print, and return, what known damage costs: real pictures with Gaussian noise of std 10, 25, 50 of 255; uniform noise.

    500 and 1000 real training pictures show how FD depends on n alone. The damaged rows have 1000 (or all there are).
    """
    reference, _ = _opinions(judge, from_pixels(test.pixels))
    generator = torch.Generator().manual_seed(seed)
    rows = {}
    for n in (500, 1000):
        real = _draw(train, min(n, len(train)), seed)
        x = from_pixels(real.pixels).cpu()
        rows[f"real train, {len(x)}"] = _score(judge, x, real.labels, reference)
    for std in (10, 25, 50):
        noise = torch.randn(x.shape, generator=generator) * std / 127.5
        rows[f"with noise of std {std}/255"] = _score(judge, x + noise, real.labels, reference)
    rows["uniform noise"] = _score(judge, torch.rand(x.shape, generator=generator) * 2 - 1, real.labels, reference)
    print(_table(rows))
    return rows


def _score(judge: Judge, x: Tensor, labels: Tensor | None, reference: Tensor) -> Score:
    features, guesses = _opinions(judge, x.clamp(-1, 1))
    accuracy = _accuracy(guesses, labels, judge)
    return Score(len(x), frechet_distance(features, reference), kernel_distance(features, reference), accuracy)


def _accuracy(guesses: Tensor, labels: Tensor | None, judge: Judge) -> float | None:
    if labels is None:
        return None
    if labels.shape != guesses.shape:
        raise ValueError(f"labels are {tuple(labels.shape)} for {len(guesses)} images: give one class each")
    low, high, num_classes = int(labels.min()), int(labels.max()), judge.config["num_classes"]
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels run from {low} to {high}: this judge knows the classes 0..{num_classes - 1}")
    return (guesses == labels.to(guesses.device)).double().mean().item()


@torch.no_grad()
def _opinions(judge: Judge, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, 128) and classes (N,) of pictures on any device, 500 at a time."""
    judge.eval()  # in training mode it would learn the mean brightness of what it judges
    device = judge.head.weight.device
    features = torch.cat([judge.features(part.to(device)) for part in x.split(500)])
    return features, judge.head(features).argmax(dim=1)


def _draw(images: Images, n: int, seed: int) -> Images:
    return images.select(torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:n])


def _table(rows: dict[str, Score]) -> str:
    width = max(map(len, rows))
    head = f"{'':{width}}      n       FD        KD    acc"
    return "\n".join([head, *(f"{name:{width}} {row}" for name, row in rows.items())])
