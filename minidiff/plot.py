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
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image
from torch import Tensor

from .diffusion.samplers import State
from .diffusion.schedule import Schedule

DPI, GAP = 100, 8  # pixels of the figure per inch, and between images
CELL = (112, 256)  # an image is enlarged by a whole number to at least this many pixels, or shrunk to at most that
WIDE = 800  # about the width of an animation that has many images to a row: noise is what a GIF packs worst
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 13, "axes.titlesize": 14, "figure.titlesize": 15, "legend.frameon": False,
    "figure.facecolor": "white", "savefig.facecolor": "white", "savefig.bbox": None, "savefig.dpi": "figure",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#d9d9d9",
    "lines.linewidth": 2.4,
}  # fmt: skip
CURVES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"]  # Okabe & Ito: for the colour-blind too
DASHES = ["-", "--", "-.", ":"]  # so that colour is never the only difference: projectors wash it out


class Picture(Figure):
    """A Figure that shows itself where a cell ends with it. pyplot never hears of it: there is nothing to close."""

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            self.savefig(png, format="png", metadata={"Software": None})  # matplotlib would write its version
        return png.getvalue()

    def to(self, file: str | Path | None) -> "Picture":
        if file is not None:
            _parent(file).write_bytes(self._repr_png_())
        return self


def show_images(
    images: Tensor,  # (N, C, H, W) floats in [-1, 1], C = 1 or 3; values beyond are clamped, NaN is painted magenta
    titles: Sequence | None = None,  # one above each image
    columns: int | None = None,  # images in a row: 8, unless `rows` or labels say otherwise
    rows: int | None = None,
    title: str | None = None,
    file: str | Path | None = None,
    row_labels: Sequence | None = None,  # at the left margin, one per row
    column_labels: Sequence | None = None,  # at the top margin, one per column
) -> Figure:
    """A grid of images, filled row by row, small ones enlarged with their pixels crisp.

    Raises ValueError for other shapes or dtypes, and for labels that do not fit the grid.
    """
    pixels = _to_cells(images)
    n, h, w, _ = pixels.shape
    titles, row_labels, column_labels = ([str(text) for text in some or ()] for some in (titles, row_labels, column_labels))
    if columns is None:
        rows = rows or len(row_labels)
        columns = -(-n // rows) if rows else len(column_labels) or min(n, 8)
    rows = -(-n // columns)
    for name, given, fit in (("titles", titles, n), ("row", row_labels, rows), ("column", column_labels, columns)):
        if given and len(given) != fit:
            raise ValueError(f"{len(given)} labels ({name}) where {fit} fit: {n} images make {rows} rows of {columns}")

    # Text is measured first, and the sheet of images laid out around it, in whole pixels: nothing overlaps or blurs.
    titles, column_labels = ([_wrapped(text, max(w, 120) // 9) for text in some] for some in (titles, column_labels))
    cell = max([w, *map(_width, titles), *map(_width, column_labels)])
    over = max([20 * (text.count("\n") + 1) for text in titles], default=0)
    left = max([_width(text) + GAP for text in row_labels], default=0)
    title = _wrapped(title or "", (left + GAP + columns * (cell + GAP)) // 12)
    above = max([20 * text.count("\n") + 26 for text in column_labels], default=0)
    top = GAP + (26 * title.count("\n") + 30) * bool(title) + above
    sheet, corners = _sheet(pixels, columns, left, top, cell, over)
    with matplotlib.rc_context(STYLE):
        height, width, _ = sheet.shape
        figure = Picture(figsize=(width / DPI, height / DPI), dpi=DPI)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(sheet, interpolation="nearest", extent=(0, width, height, 0))
        axes.set_axis_off()
        for i, text in enumerate(titles):
            _stack(axes, corners[i][0] + w / 2, corners[i][1] - 8, text, fontsize=12)
        for i, text in enumerate(row_labels):
            axes.text(left, corners[i * columns][1] + h / 2, text, ha="right", va="center")
        for i, text in enumerate(column_labels):
            _stack(axes, corners[i][0] + w / 2, top - 9, text)
        axes.text(width / 2, GAP / 2, title, ha="center", va="top", fontsize=15)
    return figure.to(file)


def show_levels(schedules: Schedule | Mapping[str, Schedule], file: str | Path | None = None) -> Figure:
    """alpha, sigma and log SNR = log(alpha^2 / sigma^2) along one schedule, or several by name.

    The horizontal axis is the row of the table: on a VP schedule that is t; on a flow it is what `shift` bends.
    """
    named = schedules if isinstance(schedules, Mapping) else {"": schedules}
    titles = (r"$\alpha$: what is left of the image", r"$\sigma$: how much noise", r"$\log$ SNR")
    with matplotlib.rc_context(STYLE):
        figure = Picture(figsize=(13, 4.4), dpi=DPI, layout="constrained")
        panels = figure.subplots(1, 3)
        for i, (name, schedule) in enumerate(named.items()):
            alpha, sigma = schedule.alpha.double(), schedule.sigma.double()
            log_snr = 2 * (alpha.log() - sigma.log())
            log_snr = log_snr.masked_fill(log_snr.isinf(), torch.nan)  # pure noise, at minus infinity, is not drawn
            for axes, curve, title in zip(panels, (alpha, sigma, log_snr), titles, strict=True):
                axes.plot(curve.numpy(), color=CURVES[i % 6], linestyle=DASHES[i % 4], label=name)
                axes.set(title=title, xlabel="timestep")
        if any(named):
            figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(named))
    return figure.to(file)


def show_trajectory(
    states: Iterable[State], count: int = 8, images: int = 1, title: str | None = None, file: str | Path | None = None
) -> Figure:
    """A film strip of a walk: for each of the first `images`, x_t above and the denoiser's x0 below, in `count` columns
    spread evenly from the first state to the last. Above each column, the t that was reached."""
    states = list(states)
    if not states:
        raise ValueError("the walk has no states: give list(ddim(denoise, x, levels))")
    chosen = [states[round(i)] for i in np.linspace(0, len(states) - 1, min(count, len(states)))]
    images = min(images, len(chosen[0].x))
    strip = [getattr(s, row)[k].detach().cpu() for k in range(images) for row in ("x", "x0") for s in chosen]
    reached = ["clean" if float(s.level.sigma) == 0 else f"t = {float(s.level.t):.0f}" for s in chosen]
    names = ["$x_t$", "predicted $x_0$"] * images
    return show_images(torch.stack(strip), title=title, file=file, row_labels=names, column_labels=reached)


def show_curves(
    curves: Mapping[str, tuple],  # name -> (x, y), anything that matplotlib draws
    xlabel: str = "",
    ylabel: str = "",
    title: str | None = None,
    yscale: str = "linear",
    file: str | Path | None = None,
) -> Figure:
    """Named curves in one panel, in the colours and dashes of the other figures."""
    with matplotlib.rc_context(STYLE):
        figure = Picture(figsize=(7.5, 4.2), dpi=DPI, layout="constrained")
        axes = figure.subplots()
        for i, (name, (x, y)) in enumerate(curves.items()):
            axes.plot(x, y, color=CURVES[i % 6], linestyle=DASHES[i % 4], label=name)
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title or "", yscale=yscale)
        axes.legend()
    return figure.to(file)


def show_orders(
    curves: Mapping[str, tuple],  # name -> (x, y), both positive, x the cost and y the error
    xlabel: str = "",
    ylabel: str = "",
    title: str | None = None,
    file: str | Path | None = None,
) -> Figure:
    """Errors against cost, both axes logarithmic, so that an order is a slope; dashed guides show orders 1 and 2."""
    with matplotlib.rc_context(STYLE):
        figure = Picture(figsize=(9.5, 5), dpi=DPI, layout="constrained")
        axes = figure.subplots()
        for i, (name, (x, y)) in enumerate(curves.items()):
            axes.plot(x, y, color=CURVES[i % 6], linestyle=DASHES[i % 4], marker="o", markersize=5, label=name)
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title or "", xscale="log", yscale="log")
        ends, bottom = np.array(axes.get_xlim()), axes.get_ylim()[0]
        top = max(max(y) for _, y in curves.values())
        for order in (1, 2):
            guide = top * (ends / ends[0]) ** -order
            axes.plot(ends, guide, color="#808080", linestyle=DASHES[order], linewidth=1, label=f"order {order}")
        axes.set(xlim=ends, ylim=(bottom, None))
        axes.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_locator=NullLocator())
        figure.legend(loc="outside right center")
    return figure.to(file)


def show_losses(
    losses: Sequence[float], smooth: int | None = None, title: str | None = None, file: str | Path | None = None
) -> Figure:
    """Losses of a run, step by step, on a linear and on a logarithmic axis: raw faint, and bold the mean of the last
    `smooth` steps (default: a fiftieth of the run). NaN leaves a gap in the one and is left out of the other."""
    raw = np.asarray([float(loss) for loss in losses])
    if len(raw) == 0:
        raise ValueError("there are no losses to draw")
    smooth = smooth or max(1, len(raw) // 50)
    steps = np.arange(1, len(raw) + 1)
    with matplotlib.rc_context(STYLE):
        figure = Picture(figsize=(12, 4.4), dpi=DPI, layout="constrained")
        for axes, scale in zip(figure.subplots(1, 2), ("linear", "log"), strict=True):
            axes.plot(steps, raw, color=CURVES[4], linewidth=0.8, alpha=0.55, label="every step")
            axes.plot(steps, _running_mean(raw, smooth), color=CURVES[0], label=f"mean of the last {smooth}")
            axes.set(xlabel="step", title=f"loss, {scale} scale", yscale=scale)
        figure.axes[0].legend()
        figure.suptitle(title or "")
    return figure.to(file)


def animate(
    frames: Iterable[State | Tensor],  # States, or batches (N, C, H, W) in [-1, 1]
    file: str | Path,
    fps: float = 12,
    columns: int | None = None,  # images in a row; about as many as rows
    predicted: bool = False,  # x_t | the denoiser's x0, side by side, where the frames are States
) -> Path:
    """An endless animated GIF of a walk, a grid of images per frame, small ones enlarged; it rests on the last frame.

    Raises ValueError without frames, or if `predicted` is asked of frames that are not States.
    """
    pictures = []
    for frame in frames:
        if predicted and not isinstance(frame, State):
            raise ValueError("predicted=True draws State.x0: give the states of a sampler, not bare images")
        shown = [frame.x, frame.x0][: 1 + predicted] if isinstance(frame, State) else [frame]
        across = columns or round(len(shown[0]) ** 0.5)
        sheets = [_sheet(_to_cells(x, least=min(CELL[0], WIDE // across)), across)[0] for x in shown]
        pictures.append(Image.fromarray(np.concatenate(sheets, axis=1)).quantize(256, dither=Image.Dither.NONE))
    if not pictures:
        raise ValueError("there are no frames to animate: give list(ddim(denoise, x, levels))")
    each = max(20, round(100 / fps) * 10)  # milliseconds; a GIF counts in tens, and viewers slow down what is below 20
    pause = [each] * (len(pictures) - 1) + [max(each, 1500)]
    pictures[0].save(_parent(file), "GIF", save_all=True, append_images=pictures[1:], duration=pause, loop=0)
    return Path(file)


def to_pixels(images: Tensor) -> np.ndarray:
    """(N, C, H, W) floats in [-1, 1] -> uint8 (N, H, W, 3). Beyond the range is clamped. NaN becomes magenta, so that a
    run gone wrong does not pass for a dark picture. Raises ValueError for other shapes or dtypes."""
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.numel() == 0 or not images.is_floating_point():
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}: give floats in [-1, 1], (N, 1 or 3, H, W)")
    x = images.detach().cpu().float().expand(-1, 3, -1, -1)
    magenta = torch.tensor([1.0, -1.0, 1.0]).view(3, 1, 1)
    x = torch.where(x.isnan().any(dim=1, keepdim=True), magenta, x).clamp(-1, 1)
    return ((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def _to_cells(images: Tensor, least: int = CELL[0], most: int = CELL[1]) -> np.ndarray:
    pixels = to_pixels(images)
    height, width = pixels.shape[1:3]
    if width > most:
        size = most, round(height * most / width)
        return np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)) for image in pixels])
    zoom = -(-least // width)
    return pixels.repeat(zoom, axis=1).repeat(zoom, axis=2)


def _sheet(pixels: np.ndarray, columns: int, left=0, top=GAP, cell=0, over=0) -> tuple[np.ndarray, list]:
    """Images (N, h, w, 3) on white, row by row, and the corner (x, y) of each. `left` and `top` are margins, `over` is
    room above each image, `cell` the least width that each one is given."""
    n, h, w, _ = pixels.shape
    cell = max(cell, w)
    sheet = np.full((top + -(-n // columns) * (over + h + GAP), left + GAP + columns * (cell + GAP), 3), 255, np.uint8)
    corners = [(left + GAP + i % columns * (cell + GAP) + (cell - w) // 2, top + over + i // columns * (over + h + GAP))
               for i in range(n)]  # fmt: skip
    for image, (x, y) in zip(pixels, corners, strict=True):
        sheet[y - 1 : y + h + 1, x - 1 : x + w + 1] = 200  # a hair of grey, or a white picture would have no edge
        sheet[y : y + h, x : x + w] = image
    return sheet, corners


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of the last `window` finite values at each place; of fewer at the start, NaN where there are none."""
    finite, ones = np.isfinite(values), np.ones(window)
    total, count = (np.convolve(some, ones)[: len(values)] for some in (np.where(finite, values, 0), finite))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _wrapped(text: str, columns: int) -> str:
    """The lines of a text, those longer than so many characters broken between words."""
    lines = [textwrap.wrap(line, columns, break_long_words=False) for line in text.split("\n")]
    return "\n".join(line for some in lines for line in some)


def _stack(axes, x: float, y: float, text: str, **style) -> None:
    """Lines one above the other, the last one at y: written one by one, for a text of many lines is spaced unevenly."""
    for k, line in enumerate(reversed(text.split("\n"))):
        axes.text(x, y - 20 * k, line, ha="center", va="baseline", **style)


def _width(text: str) -> int:
    """Pixels that the longest line of a text takes."""
    with matplotlib.rc_context(STYLE):
        paths = [TextPath((0, 0), line, size=STYLE["font.size"]) for line in text.split("\n") if line]
    return round(max([path.get_extents().width for path in paths], default=0) * DPI / 72) + 4


def _parent(file: str | Path) -> Path:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    return Path(file)
