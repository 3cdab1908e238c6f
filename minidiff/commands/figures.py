"""What `eval` draws: obedience against guidance, what guidance buys and what it costs, and distances against n."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from ..data.captions import COLOURED
from ..evaluation.alignment import Row, mean_share
from ..evaluation.distances import Distance
from ..evaluation.diversity import Diversity
from ..plot import CURVES, DPI, STYLE, Picture

GUIDANCE = "guidance scale"


def show_alignment(sweep: dict[float, list[Row]], scale: float, rows: Sequence[Row], file: str | Path | None = None) -> Figure:
    """A panel for each task: the share obeyed at every scale, held-out pairs dashed, 95 % intervals as bands.

    rows: what was measured at `scale` with more prompts: dots, with their intervals as bars.
    """
    scales, tasks = list(sweep), list(dict.fromkeys(row.task for row in rows))
    across = min(3, len(tasks))
    down = -(-len(tasks) // across)
    with matplotlib.rc_context(STYLE):
        figure = Picture(figsize=(3.9 * across + 0.4, 3.1 * down + 0.7), dpi=DPI, layout="constrained")
        panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flatten()
        for axes in panels[len(tasks) :]:
            axes.set_axis_off()
        for axes, task in zip(panels[: len(tasks)], tasks, strict=True):
            for held_out, colour, dashes in ((False, CURVES[0], "-"), (True, CURVES[1], "--")):
                line = [row for some in sweep.values() for row in some if (row.task, row.held_out) == (task, held_out)]
                dots = [row for row in rows if (row.task, row.held_out) == (task, held_out)]
                if line:
                    low, high = zip(*(row.interval for row in line), strict=True)
                    axes.fill_between(scales, _percent(low), _percent(high), color=colour, alpha=0.15, linewidth=0)
                    name = "held-out pairs" if held_out else "pairs that training showed" if task in COLOURED else None
                    axes.plot(scales, _percent(row.share for row in line), color=colour, linestyle=dashes, label=name)
                for row in dots:
                    at = scale + (0.12 if held_out else 0)
                    reach = [[100 * abs(row.share - end)] for end in row.interval]
                    axes.errorbar([at], [100 * row.share], reach, color=colour, marker="o", markersize=6, elinewidth=1.6,
                                  capsize=3)  # fmt: skip
            axes.set(title=task, ylim=(-3, 103), xlim=(scales[0] - 0.4, scales[-1] + 0.4), xticks=scales)
            axes.xaxis.set_major_formatter("{x:g}")
        for axes in panels[len(tasks) - across : len(tasks)]:
            axes.set_xlabel(GUIDANCE)
            axes.tick_params(labelbottom=True)
        for axes in panels[::across]:
            axes.set_ylabel("obeyed, %")
        lines, names = next((both for axes in panels if len((both := axes.get_legend_handles_labels())[0]) > 1), ([], []))
        if lines:
            figure.legend(lines, names, loc="outside lower center", ncols=2)
    return figure.to(file)


def show_tradeoff(sweep: dict[float, list[Row]], variety: dict[float, Diversity], real: Diversity,
                  file: str | Path | None = None) -> Figure:  # fmt: skip
    """What guidance buys and what it costs: obedience and both diversities against the scale, then against one another."""
    scales = list(sweep)
    buys = _percent(mean_share(rows) for rows in sweep.values())
    costs = {"diversity of open facts": [_share(d.facts, real.facts) for d in variety.values()],
             "distance of images": [_share(d.distance, real.distance) for d in variety.values()]}  # fmt: skip
    costs = {name: line for name, line in costs.items() if any(x == x for x in line)}  # nan, where nothing was measured
    heard = [i for i, scale in enumerate(scales) if scale] or [*range(len(scales))]  # at 0 the prompt is not: far from all else
    with matplotlib.rc_context(STYLE):
        figure = Picture(figsize=(5.6 + 4.2 * len(costs), 4.8), dpi=DPI, layout="constrained")
        left, *others = figure.subplots(1, 1 + len(costs), width_ratios=[1.3] + [1] * len(costs), squeeze=False)[0]
        left.plot(scales, buys, color=CURVES[0], marker="o", label="obeyed, mean of tasks")
        looks = [(CURVES[1], "--"), (CURVES[2], "-.")][: len(costs)]
        for right, (name, line), (colour, dashes) in zip(others, costs.items(), looks, strict=True):
            left.plot(scales, line, color=colour, linestyle=dashes, marker="o", label=name)
            right.plot([line[i] for i in heard], [buys[i] for i in heard], color=colour, linestyle=dashes, marker="o")
            for i in heard:
                if line[i] == line[i]:
                    right.annotate(f"{scales[i]:g}", (line[i], buys[i]), (7, 5), textcoords="offset points", fontsize=11)
            right.set(xlabel=f"{name}, % of real scenes'", ylabel="obeyed, %", title="one against the other; numbers: scales")
            right.margins(0.15)
        left.set(xlabel=GUIDANCE, ylabel="%, diversity: of that of real scenes", xticks=scales, ylim=(-5, 105),
                 title="what guidance buys, and what it costs")
        left.xaxis.set_major_formatter("{x:g}")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure.to(file)


def show_bias(curves: dict[str, list[Distance]], file: str | Path | None = None) -> Figure:
    """Both distances against the number of images: one falls though nothing changed, the other does not."""
    with matplotlib.rc_context(STYLE):
        figure = Picture(figsize=(12.5, 4.6), dpi=DPI, layout="constrained")
        for axes, key, title in zip(figure.subplots(1, 2), ("fd", "kd"), ("Fréchet distance", "kernel distance"), strict=True):
            for (who, curve), (colour, dashes) in zip(curves.items(), ((CURVES[0], "-"), (CURVES[1], "--")), strict=True):
                n = [d.n for d in curve]
                middle, spread = ([getattr(d, name) for d in curve] for name in (key, f"{key}_std"))
                low, high = ([m + sign * s for m, s in zip(middle, spread, strict=True)] for sign in (-1, 1))
                axes.fill_between(n, low, high, color=colour, alpha=0.15, linewidth=0)
                axes.plot(n, middle, color=colour, linestyle=dashes, marker="o", label=f"{who}, to other real scenes")
            axes.set(title=title, xlabel="images on either side", xscale="log")
            axes.set_xticks(n, [str(x) for x in n])
            axes.minorticks_off()
            axes.axhline(0, color="#808080", linewidth=1)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        figure.suptitle("Distance in mini-CLIP features")
    return figure.to(file)


def _percent(shares) -> list[float]:
    return [100 * share for share in shares]


def _share(x: float | None, of: float | None) -> float:
    return float("nan") if x is None or not of else 100 * x / of
