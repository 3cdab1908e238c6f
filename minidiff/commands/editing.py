"""Edits of drawings, marked by the oracle: colour, shape, background; and what inversion loses on its way there and back.

The picture of a scene is inverted under its own sentence and drawn again under one that differs in a single word; or it is
changed without inversion, by the difference of what the two sentences say of it. Done: the oracle reads one object as wanted,
in its place. Spoilt: how much that should have stayed has changed, as a mean absolute difference of pixels in [-1, 1].
"""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
from tqdm.auto import tqdm

from .. import plot
from ..evaluation.editing import KINDS, Edited, How, RoundTrip, edited, edits, mark, originals, round_trip
from ..pipelines import StableDiffusion
from ..pipelines.inputs import settling
from . import tables
from .common import device_argument, pick_device, write_json

ROUND_TRIPS = ((10, 0), (20, 0), (50, 0), (100, 0), (50, 1), (50, 3), (50, 5))  # (steps, refine)
GUIDED = (2.0, 4.0)  # both ways, to see what it destroys


class Tried(NamedTuple):
    """All combinations of these are tried."""

    starts: Sequence[int]
    scales: Sequence[float]
    borrow: Sequence[float]
    refine: Sequence[int | None] = (None,)  # there is no inversion to refine


WAYS = {"inversion": Tried((0, 10, 20), (1.5, 3.0), (0.0, 0.3), (0, 3)), "difference": Tried((5,), (1.5, 2.0, 3.0), (0.0, 1.0))}
SHOWN = 6  # edits of each kind in the picture


def arguments(parser):
    parser.add_argument("--model", default="shapes", help="a folder of train --stage, or of any of ours")
    parser.add_argument("--n", type=int, default=200, help="scenes of every kind of edit, with what does best in the sweep")
    parser.add_argument("--sweep", type=int, default=12, help="other scenes of every kind, to choose by")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--by", nargs="+", choices=tuple(WAYS), default=list(WAYS), help="with inversion, without, or both")
    for name, kind, told in (
        ("starts", int, "steps that are left out"), ("scales", float, "of guidance on the way down"),
        ("borrow", float, "share of the steps that look where the old picture looks; above 0, led away from its words"),
        ("refine", int, "fixed-point rounds a step of the inversion"),
    ):  # fmt: skip
        usual = ", ".join(f"{' '.join(map(str, getattr(way, name)))} for {by}" for by, way in WAYS.items())
        parser.add_argument(f"--{name}", type=kind, nargs="+", default=None, help=f"{told}; if left out, {usual}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", metavar="FILE.png", help="draw some edits of every kind, before and after")
    device_argument(parser)


def run(args):
    """Measure, print, write and draw. ValueError for a start or a share that is none, before anything is measured."""
    options = tried(args)
    pipe = StableDiffusion.from_pretrained(args.model, device=pick_device(args.device))
    pipe.progress = False
    few = {kind: edits(kind, args.sweep, args.seed + 1) for kind in KINDS}
    many = {kind: edits(kind, args.n, args.seed) for kind in KINDS}
    trips = [round_trip(pipe, few["colour"], *trip) for trip in tqdm(ROUND_TRIPS, "round trips", leave=False)]
    trips += [round_trip(pipe, few["colour"], args.steps, 0, scale) for scale in tqdm(GUIDED, "guided", leave=False)]
    print(returned(trips))
    swept = [mark(some, edited(pipe, some, how, args.steps, args.seed), how)
             for how in tqdm(options, "sweep", leave=False) for some in few.values()]  # fmt: skip
    images, rows = {}, []
    for kind, some in tqdm(many.items(), "the best", leave=False):
        best = min((row for row in swept if row.kind == kind), key=lambda row: (-row.done, row.spoilt)).how
        images[kind] = edited(pipe, some, best, args.steps, args.seed)
        rows.append(mark(some, images[kind], best))
    print("\n" + marked(swept))
    print(f"\nThe best for each kind, on {args.n} other scenes, {args.steps} steps, seed {args.seed}:\n\n{marked(rows)}")
    if args.json:
        write_json(args.json, {"model": args.model, "steps": args.steps, "seed": args.seed,
                               "round_trips": [trip._asdict() for trip in trips],
                               "sweep": [told(row) for row in swept], "best": [told(row) for row in rows]})  # fmt: skip
    if args.plot:
        show(many, images, pipe.size, args.plot)


def tried(args) -> list[How]:
    """What the sweep tries. ValueError for a start or a share that is none, before anything is measured."""
    options = []
    for by in args.by:
        takes = set(Tried._fields) - ({"refine"} if by == "difference" else set())
        given = {name: getattr(args, name) for name in takes if getattr(args, name) is not None}
        options += [How(*numbers) for numbers in product(*WAYS[by]._replace(**given))]
    for start, _, borrow, refine in options:
        most = args.steps - 1 - (settling(args.steps) if refine is None else 0)
        if not 0 <= start <= most:
            raise ValueError(f"--starts {start} of {args.steps} steps: leave out 0 to {most}")
        if not 0 <= borrow <= 1:
            raise ValueError(f"--borrow {borrow}: a share of the steps, from 0 to 1")
    return options


def told(row: Edited) -> dict:
    """The row as JSON has it."""
    return {"kind": row.kind, **row.how._asdict(), "done": row.done, "n": row.n, "spoilt": row.spoilt, "interval": row.interval}


def returned(trips: list[RoundTrip]) -> str:
    """Round trips as a table."""
    lines = [("there and back", "refined", "guidance on both ways", "network calls", "mean error")]
    for t in trips:
        lines.append((f"{t.steps} steps", str(t.refine), f"{t.scale:g}", str(t.steps * (2 + t.refine)), f"{t.error:.5f}"))
    return tables.markdown(lines)


def marked(rows: list[Edited]) -> str:
    """Edits as a table."""
    lines = [("edit", "by", "steps left out", "guidance", "borrowed", "refined", "done", "95 %", "of", "spoilt")]
    for row in rows:
        (low, high), how = row.interval, row.how
        by, refined = ("difference", "-") if how.refine is None else ("inversion", str(how.refine))
        lines.append((row.kind, by, str(how.start), f"{how.scale:g}", f"{how.borrow:g}", refined, f"{row.share:.1%}",
                      f"{low:.1%} to {high:.1%}", str(row.n), f"{row.spoilt:.4f}"))  # fmt: skip
    return tables.markdown(lines)


def show(some: dict, images: dict[str, torch.Tensor], size: int, file: str) -> None:
    """Two rows for each kind: before and after, and what was asked for in so many words."""
    rows, titles = [], []
    for kind, asked in some.items():
        shown = asked[:SHOWN]
        rows += [originals(shown, size), images[kind][:SHOWN]]
        titles += [""] * len(shown) + [f"{getattr(edit.before, kind)} → {getattr(edit.after, kind)}" for edit in shown]
    plot.show_images(torch.cat(rows).clamp(-1, 1), titles=titles, columns=len(shown), file=file)
