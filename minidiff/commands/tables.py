"""What `eval` has measured of a model of words, as tables in Markdown that a terminal shows well, too."""

from collections.abc import Sequence

from ..evaluation.alignment import Row, held_out_gaps, mean_share
from ..evaluation.distances import Distance
from ..evaluation.diversity import Diversity
from ..evaluation.lies import Lie


def aligned(rows: Sequence[Row]) -> str:
    """Obeyed per task: what the oracle found, and what held-out pairs lose."""
    gaps, lines = held_out_gaps(rows), [("task", "obeyed", "95 %", "of", "against seen pairs, points")]
    for row in rows:
        low, high = row.interval
        lost = "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * x for x in gaps[row.task])) if row.task in gaps else ""
        name, lost = (f"{row.task}, held-out pairs", lost) if row.held_out else (row.task, "")
        lines.append((name, f"{row.share:.1%}", f"{low:.1%} to {high:.1%}", str(row.n), lost))
    return markdown(lines)


def swept(sweep: dict[float, list[Row]], variety: dict[float, Diversity], real: Diversity) -> str:
    """A column for each guidance scale: tasks and their mean, then diversity, with that of real scenes in the last column."""
    first, varied = next(iter(sweep.values())), [*variety.values(), real]
    lines = [("at guidance", *(f"{scale:g}" for scale in sweep), "real scenes")]
    for k, row in enumerate(first):
        name = row.task + ", held-out pairs" * row.held_out
        lines.append((name, *(f"{rows[k].share:.0%}" for rows in sweep.values()), ""))
    lines.append(("mean, without held-out pairs", *(f"{mean_share(rows):.1%}" for rows in sweep.values()), ""))
    for name, figures in (("open facts", [d.facts for d in varied]), ("distance", [d.distance for d in varied])):
        lines.append((f"diversity: {name}", *("-" if x is None else f"{x:.3f}" for x in figures)))
    return markdown([*lines, ("one object could be read", *(f"{d.read / d.n:.0%}" for d in varied))]) + NOTE


NOTE = """

Open facts: the entropy of what a prompt such as "a star" leaves open, colour, size, background and place; 0: always the same,
1: everything equally often. Of the images in which one object could be read. Distance: 1 - cosine of two images of one
prompt, in mini-CLIP features."""


def judged(curves: dict[str, list[Distance]]) -> str:
    """Both distances at every n, and the floor: what real scenes score."""
    lines = [("distance in mini-CLIP features", "n", "parts", "Fréchet", "±", "kernel", "±")]
    for who, curve in curves.items():
        lines += [(f"{who} to other real scenes", str(d.n), str(d.parts), f"{d.fd:.3f}", f"{d.fd_std:.3f}", f"{d.kd:.4f}",
                   f"{d.kd_std:.4f}") for d in curve]  # fmt: skip
    return markdown(lines)


def lied(found: Sequence[Lie]) -> str:
    """A column for each level of noise: by how much the error rises on real scenes, told something else than the truth."""
    told = {"nothing": "nothing", "colours": "the two colours exchanged", "places": "the two places exchanged"}
    lines = [("the error in x0 rises, if told", *(f"sigma {lie.sigma:.2f}" for lie in found))]
    return markdown([*lines, *((said, *(f"{getattr(lie, name):+.1%}" for lie in found)) for name, said in told.items())])


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table, the first column to the left, the others to the right. The first line is its head."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    ruler = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    first, *rest = ([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in (first, ruler, *rest))
