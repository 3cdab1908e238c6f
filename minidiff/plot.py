"""Pictures of what happens: image grids, schedules, walks, losses, animations.

Every function returns a Figure, which a notebook shows where a cell ends with it, and writes a PNG if `file` is given.
The same input gives the same bytes: the style is fixed here and no date or version is written into a file.
"""

import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from PIL import Image
from torch import Tensor

from .diffusion.samplers import State
from .diffusion.schedule import Schedule

DPI = 100
CELL = 112  # the least width of a picture in a grid, in pixels of the figure
GAP = 8
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 13, "axes.titlesize": 14, "axes.labelsize": 13, "legend.fontsize": 12,
    "figure.facecolor": "white", "savefig.facecolor": "white", "savefig.bbox": None, "savefig.dpi": "figure",
    "axes.facecolor": "white", "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#d9d9d9", "grid.linewidth": 0.8, "axes.axisbelow": True, "lines.linewidth": 2.4,
    "text.color": "black", "axes.labelcolor": "black", "xtick.color": "black", "ytick.color": "black",
}  # fmt: skip
CURVES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"]  # Okabe & Ito: safe for the colour-blind
DASHES = ["-", "--", "-.", ":"]  # colour is never the only difference: projectors wash colours out


class Picture(Figure):
    """A Figure that shows itself at the end of a cell. pyplot never hears of it: nothing to close, nothing shown twice."""

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        _write(self, png)
        return png.getvalue()


def show_images(
    images: Tensor,  # (N, C, H, W) floats in [-1, 1], C = 1 or 3; values beyond are clamped, NaN is painted magenta
    titles: Sequence | None = None,  # one above each image
    columns: int | None = None,  # images in a row; 8, or as many as there are column_labels
    rows: int | Sequence | None = None,  # how many rows, instead of columns; or their names, as row_labels
    title: str | None = None,
    file: str | Path | None = None,
    row_labels: Sequence | None = None,  # at the left margin, one per row
    column_labels: Sequence | None = None,  # at the top margin, one per column
) -> Figure:
    """A grid of images, filled row by row, small ones enlarged with their pixels crisp.

    Raises ValueError for other shapes or dtypes, and for labels that do not fit the grid.
    """
    pixels = to_pixels(images)
    n, height, width, _ = pixels.shape
    if rows is not None and not isinstance(rows, int):
        rows, row_labels = None, rows
    if columns is None:
        rows = rows or (len(row_labels) if row_labels is not None else None)
        columns = -(-n // rows) if rows else len(column_labels) if column_labels is not None else min(n, 8)
    rows = -(-n // columns)
    for name, labels, count in (("titles", titles, n), ("row_labels", row_labels, rows), ("column_labels", column_labels, columns)):
        if labels is not None and len(labels) != count:
            raise ValueError(f"{len(labels)} {name} for {count}: {n} images make {rows} rows of {columns}")

    zoom = max(1.0, -(-CELL // width)) if width < 256 else 256 / width
    w, h = round(zoom * width), round(zoom * height)
    titles = [_wrap(text, max(w, 120)) for text in titles] if titles is not None else []
    cell = max([w, *(_width(text, 12) for text in titles)])  # a title is never cut off and never touches the next
    over = max([20 * (text.count("\n") + 1) for text in titles], default=0)
    left = max([_width(str(text)) + 2 * GAP for text in row_labels], default=GAP) if row_labels is not None else GAP
    top = GAP + (34 if title else 0) + (28 if column_labels is not None else 0)
    total_w = max(left + columns * (cell + GAP), _width(title or "", 15) + 2 * GAP)
    total_h = top + rows * (over + h + GAP)

    with matplotlib.rc_context(STYLE):
        figure = Picture(figsize=(total_w / DPI, total_h / DPI), dpi=DPI)
        for i, image in enumerate(pixels):
            row, column = divmod(i, columns)
            x, y = left + column * (cell + GAP) + (cell - w) // 2, top + row * (over + h + GAP) + over
            axes = figure.add_axes((x / total_w, 1 - (y + h) / total_h, w / total_w, h / total_h))
            axes.imshow(image, interpolation="nearest" if zoom >= 1 else None, aspect="auto")
            axes.set_axis_off()
            if titles:
                axes.set_title(titles[i], fontsize=12, pad=4, linespacing=1.1)
            if row_labels is not None and column == 0:
                figure.text((left - GAP) / total_w, 1 - (y + h / 2) / total_h, str(row_labels[row]), ha="right", va="center")
            if column_labels is not None and row == 0:
                figure.text((x + w / 2) / total_w, 1 - (top - 6) / total_h, str(column_labels[column]), ha="center", va="bottom")
        if title:
            figure.text(0.5, 1 - GAP / total_h, title, ha="center", va="top", fontsize=15)
    return _finish(figure, file)


def show_levels(schedules: Schedule | Mapping[str, Schedule], file: str | Path | None = None) -> Figure:
    """alpha, sigma and log SNR = log(alpha^2 / sigma^2) along one schedule, or several by name.

    The horizontal axis is the row of the table: on a VP schedule that is t; on a flow it is what `shift` bends.
    """
    named = schedules if isinstance(schedules, Mapping) else {"": schedules}
    with matplotlib.rc_context(STYLE):
        figure = Picture(figsize=(13, 4.4), dpi=DPI, layout="constrained")
        panels = figure.subplots(1, 3)
        for i, (name, schedule) in enumerate(named.items()):
            alpha, sigma = schedule.alpha.double(), schedule.sigma.double()
            for axes, curve in zip(panels, (alpha, sigma, 2 * (alpha.log() - sigma.log())), strict=True):
                curve = curve.masked_fill(~curve.isfinite(), torch.nan)  # pure noise is at log SNR = -infinity
                axes.plot(curve.numpy(), color=CURVES[i % 6], linestyle=DASHES[i % 4], label=name)
        texts = (r"$\alpha$: what is left of the image", r"$\sigma$: how much noise", r"$\log$ SNR")
        for axes, text in zip(panels, texts, strict=True):
            axes.set(title=text, xlabel="timestep")
        if any(named):
            figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(named), frameon=False)
    return _finish(figure, file)


def show_trajectory(
    states: Iterable[State], count: int = 8, images: int = 1, title: str | None = None, file: str | Path | None = None
) -> Figure:
    """A film strip of a walk: for each of the first `images`, x_t above and the denoiser's x0 below, in `count` columns
    spread evenly from the first state to the last. Above each column, the t that was reached."""
    states = list(states)
    if not states:
        raise ValueError("the walk has no states: give list(ddim(denoise, x, levels))")
    chosen = [states[round(i)] for i in np.linspace(0, len(states) - 1, min(count, len(states)))]
    shown = min(images, len(chosen[0].x))
    rows = [torch.stack([part[k].detach().cpu() for part in parts])  # 2 rows for each image
            for k in range(shown) for parts in ([s.x for s in chosen], [s.x0 for s in chosen])]  # fmt: skip
    reached = ["clean" if float(s.level.sigma) == 0 else f"t = {float(s.level.t):.0f}" for s in chosen]
    return show_images(
        torch.cat(rows), title=title, file=file,
        row_labels=["$x_t$", "predicted $x_0$"] * shown, column_labels=reached, columns=len(chosen),
    )  # fmt: skip


def show_losses(
    losses: Sequence[float], smooth: int | None = None, title: str | None = None, file: str | Path | None = None
) -> Figure:
    """Losses of a run, step by step, on a linear and on a logarithmic axis: raw faint, the mean of the last `smooth`
    steps (default: a fiftieth of the run) bold. Steps whose loss is NaN leave a gap in one and are left out of the other."""
    raw = np.asarray([float(loss) for loss in losses])
    if len(raw) == 0:
        raise ValueError("there are no losses to draw")
    smooth = smooth or max(1, len(raw) // 50)
    steps, mean = np.arange(1, len(raw) + 1), _running_mean(raw, smooth)
    with matplotlib.rc_context(STYLE):
        figure = Picture(figsize=(12, 4.4), dpi=DPI, layout="constrained")
        for axes, scale in zip(figure.subplots(1, 2), ("linear", "log"), strict=True):
            axes.plot(steps, raw, color=CURVES[4], linewidth=0.8, alpha=0.55, label="every step")
            axes.plot(steps, mean, color=CURVES[0], label=f"mean of the last {smooth}")
            axes.set(xlabel="step", title=f"loss, {scale} scale", yscale=scale)
        figure.axes[0].legend(frameon=False)
        if title:
            figure.suptitle(title, fontsize=15)
    return _finish(figure, file)


def animate(
    frames: Iterable[State | Tensor],
    file: str | Path,
    fps: float = 12,
    columns: int | None = None,  # images in a row; about as many as rows
    predicted: bool = False,  # the denoiser's x0 beside x_t, where the frames are States
) -> Path:
    """An endless animated GIF of a walk, a grid of its images per frame, small ones enlarged; it rests on the last frame.

    frames: States, or batches (N, C, H, W) in [-1, 1]. A GIF counts in hundredths of a second and viewers slow down
    beyond 50 fps. Raises ValueError without frames, or if `predicted` is asked of frames that are not States.
    """
    pictures = []
    for frame in frames:
        if predicted and not isinstance(frame, State):
            raise ValueError("predicted=True draws State.x0: give the states of a sampler, not bare images")
        parts = [_tile(frame.x, columns)] if isinstance(frame, State) else [_tile(frame, columns)]
        if predicted:
            parts += [np.full((parts[0].shape[0], 3 * GAP, 3), 255, np.uint8), _tile(frame.x0, columns)]
        pictures.append(Image.fromarray(np.concatenate(parts, axis=1)).quantize(256, dither=Image.Dither.NONE))
    if not pictures:
        raise ValueError("there are no frames to animate: give list(ddim(denoise, x, levels))")
    file = _parent(file)
    each = max(20, round(100 / fps) * 10)  # milliseconds
    pictures[0].save(file, format="GIF", save_all=True, append_images=pictures[1:], loop=0, disposal=1,
                     duration=[each] * (len(pictures) - 1) + [max(each, 1500)])  # fmt: skip
    return file


def to_pixels(images: Tensor) -> np.ndarray:
    """(N, C, H, W) floats in [-1, 1] -> uint8 (N, H, W, 3). Beyond the range is clamped. NaN becomes magenta, so that a
    run gone wrong does not pass for a dark picture. Raises ValueError for other shapes or dtypes."""
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.numel() == 0 or not images.is_floating_point():
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}: give floats in [-1, 1], (N, 1 or 3, H, W)")
    x = images.detach().cpu().float().expand(-1, 3, -1, -1)
    bad = x.isnan().any(dim=1, keepdim=True)
    x = torch.where(bad, torch.tensor([1.0, -1.0, 1.0]).view(3, 1, 1), x).clamp(-1, 1)
    return ((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def _tile(images: Tensor, columns: int | None) -> np.ndarray:
    pixels = to_pixels(images)
    n, height, width, _ = pixels.shape
    columns = columns or round(n**0.5)
    zoom = max(1, -(-CELL // width))
    pixels = pixels.repeat(zoom, axis=1).repeat(zoom, axis=2)
    height, width = zoom * height, zoom * width
    sheet = np.full((-(-n // columns) * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), 255, np.uint8)
    for i, image in enumerate(pixels):
        y, x = (i // columns) * (height + GAP) + GAP, (i % columns) * (width + GAP) + GAP
        sheet[y : y + height, x : x + width] = image
    return sheet


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of the last `window` finite values at each place; of fewer at the start, NaN where there are none."""
    finite = np.isfinite(values)
    total, count = np.cumsum(np.where(finite, values, 0)), np.cumsum(finite)
    total[window:], count[window:] = total[window:] - total[:-window], count[window:] - count[:-window]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _width(text: str, size: float = STYLE["font.size"]) -> int:
    """Pixels that the longest line of a text takes."""
    with matplotlib.rc_context(STYLE):
        points = max(TextPath((0, 0), line, size=size).get_extents().width if line else 0 for line in text.split("\n"))
    return round(points * DPI / 72) + 4


def _wrap(text: object, pixels: int) -> str:
    return "\n".join(textwrap.fill(line, pixels // 9, break_long_words=False) for line in str(text).split("\n"))


def _finish(figure: Figure, file: str | Path | None) -> Figure:
    if file is not None:
        with _parent(file).open("wb") as out:
            _write(figure, out)
    return figure


def _write(figure: Figure, out) -> None:
    with matplotlib.rc_context(STYLE):
        figure.savefig(out, format="png", metadata={"Software": None})  # matplotlib would write its version


def _parent(file: str | Path) -> Path:
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    return file
