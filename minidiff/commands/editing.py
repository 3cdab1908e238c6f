"""Edits of drawings by inversion, marked by the oracle: colour, shape, background; and what inversion loses on its way back.

The picture of a scene is inverted under its own sentence and drawn again under one that differs in a single word. Done: the
oracle reads one object as wanted, in its place. Spoilt: how much that should have stayed has changed, as a mean absolute
difference of pixels in [-1, 1].
"""

from itertools import product

import torch
from tqdm.auto import tqdm

from .. import plot
from ..evaluation.editing import KINDS, Edited, RoundTrip, edited, edits, mark, originals, round_trip
from ..pipelines import StableDiffusion
from . import tables
from .common import device_argument, pick_device, write_json

ROUND_TRIPS = ((10, 0), (20, 0), (50, 0), (100, 0), (50, 1), (50, 3), (50, 5))  # (steps, refine)
GUIDED = (2.0, 4.0)  # both ways, to see what it destroys
SHOWN = 6  # edits of each kind in the picture


def arguments(parser):
    parser.add_argument("--model", default="shapes", help="a folder of train --stage, or of any of ours")
    parser.add_argument("--n", type=int, default=200, help="scenes of every kind of edit, with the best numbers of the sweep")
    parser.add_argument("--sweep", type=int, default=12, help="scenes of every kind, with all others")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--starts", type=int, nargs="+", default=[0, 10, 20], help="steps that are left out")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.5, 3.0], help="of guidance on the way down")
    parser.add_argument("--refine", type=int, nargs="+", default=[0, 3], help="fixed-point rounds a step of the inversion")
    parser.add_argument("--borrow", type=float, nargs="+", default=[0.0, 0.3],
                        help="share of the steps that look where the old picture looks; above 0, led away from its words")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", metavar="FILE.png", help="draw some edits of every kind, before and after")
    device_argument(parser)


def run(args):
    """Measure, print, write and draw. ValueError for a start or a share that is none, before anything is measured."""
    if odd := [start for start in args.starts if not 0 <= start < args.steps]:
        raise ValueError(f"--starts {odd[0]} of {args.steps} steps: leave out 0 to {args.steps - 1}")
    if odd := [share for share in args.borrow if not 0 <= share <= 1]:
        raise ValueError(f"--borrow {odd[0]}: a share of the steps, from 0 to 1")
    pipe = StableDiffusion.from_pretrained(args.model, device=pick_device(args.device))
    pipe.progress = False
    few, many = ({kind: edits(kind, n, args.seed) for kind in KINDS} for n in (args.sweep, args.n))
    trips = [round_trip(pipe, few["colour"], *trip) for trip in tqdm(ROUND_TRIPS, "round trips", leave=False)]
    trips += [round_trip(pipe, few["colour"], args.steps, 0, scale) for scale in tqdm(GUIDED, "guided", leave=False)]
    print(returned(trips))
    options = list(product(args.starts, args.scales, args.refine, args.borrow))
    swept = {option: [mark(some, edited(pipe, some, args.steps, *option), *option) for some in few.values()]
             for option in tqdm(options, "sweep", leave=False)}  # fmt: skip
    best = max(swept, key=lambda option: sum(row.share for row in swept[option]))
    images = {kind: edited(pipe, some, args.steps, *best) for kind, some in tqdm(many.items(), "the best", leave=False)}
    rows = [mark(some, images[kind], *best) for kind, some in many.items()]
    print("\n" + marked([row for some in swept.values() for row in some]))
    print(f"\nThe best of these, on {args.n} scenes of each kind, {args.steps} steps, seed {args.seed}:\n\n{marked(rows)}")
    if args.json:
        write_json(args.json, {"model": args.model, "steps": args.steps, "seed": args.seed,
                               "round_trips": [trip._asdict() for trip in trips],
                               "sweep": [row._asdict() for some in swept.values() for row in some],
                               "best": [row._asdict() | {"interval": row.interval} for row in rows]})  # fmt: skip
    if args.plot:
        show(many, images, pipe.size, args.plot)


def returned(trips: list[RoundTrip]) -> str:
    """Round trips as a table."""
    lines = [("there and back", "refined", "guidance on both ways", "network calls", "mean error")]
    for t in trips:
        lines.append((f"{t.steps} steps", str(t.refine), f"{t.scale:g}", str(t.steps * (2 + t.refine)), f"{t.error:.5f}"))
    return tables.markdown(lines)


def marked(rows: list[Edited]) -> str:
    """Edits as a table."""
    lines = [("edit", "steps left out", "guidance", "refined", "borrowed", "done", "95 %", "of", "spoilt")]
    for row in rows:
        low, high = row.interval
        lines.append((row.kind, str(row.start), f"{row.scale:g}", str(row.refine), f"{row.borrow:g}", f"{row.share:.1%}",
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
