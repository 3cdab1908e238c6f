"""Measured, in one table: what is compared, beside what, is the subject.

  python -m minidiff bench samplers --plot errors.png
  python -m minidiff bench oracle --vae runs/sd/vae --plot oracle.png
  python -m minidiff bench editing --model shapes --plot edits.png
  python -m minidiff bench training --json pace.json
"""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import asdict

import torch
from tqdm.auto import tqdm

from ..evaluation import benchmark, calibration
from ..pretrained import load_vae
from . import editing, pace
from .common import write_json
from .parity import TESTS

NAME, HELP = "bench", "measure samplers, edits, steps of training, or the oracle that marks drawings"
NOTES = """
10 to 50 steps: the error of such walks, {spacing} levels of Stable Diffusion's schedule to CLEAN, on a mixture of three
Gaussians: root mean square over quantiles. 20 calls: of the longest walk that asks the network so often. Where the order
is -, steps draw noise, and the error is that of the quantiles of 50,000 draws; draws from the data would show {floor:.4f}.
µs: the sampler's own time per step, latents of (1, 4, 64, 64), the median of 20 walks of 50 steps, by turns with diffusers."""


def arguments(parser):
    subjects = parser.add_subparsers(dest="subject", required=True, metavar="subject")
    samplers = subjects.add_parser("samplers", help="calls, order, error and overhead of every sampler",
                                   description=benchmark.__doc__, formatter_class=parser.formatter_class)  # fmt: skip
    samplers.add_argument("--spacing", choices=("karras", "leading", "trailing", "linspace"), default="karras",
                          help="of the levels on which errors are measured")  # fmt: skip
    samplers.add_argument("--plot", metavar="FILE.png", help="draw errors against network calls")
    oracle = subjects.add_parser("oracle", help="precision and recall of read_shapes on damaged scenes",
                                 description=calibration.__doc__, formatter_class=parser.formatter_class)  # fmt: skip
    oracle.add_argument("--n", type=int, default=300, help="scenes, and images of each kind of no shape")
    oracle.add_argument("--size", type=int, default=64, help="pixels a side")
    oracle.add_argument("--seed", type=int, default=0, help="of the scenes, and of what is no shape")
    oracle.add_argument("--vae", metavar="FOLDER", help="an autoencoder's: what it gives back is one damage more")
    oracle.add_argument("--plot", metavar="FILE.png", help="draw precision, recall and refusals against damage")
    edits = subjects.add_parser("editing", help="edits that do what they are told and nothing else; inversion's way back",
                                description=editing.__doc__, formatter_class=parser.formatter_class)  # fmt: skip
    editing.arguments(edits)
    training = subjects.add_parser("training", help="what a step costs here, and whether compiling pays",
                                   description=pace.__doc__, formatter_class=parser.formatter_class)  # fmt: skip
    pace.arguments(training)
    for subject in (samplers, oracle, edits, training):
        subject.add_argument("--json", metavar="FILE", help="write every figure that was measured")


def run(args):
    rooms = {"samplers": bench_samplers, "oracle": bench_oracle, "editing": editing.run, "training": pace.run}
    rooms[args.subject](args)


def bench_oracle(args):
    """Print, write and draw what `calibrate` finds."""
    rebuild = None if args.vae is None else _rebuilder(args.vae)
    rows = list(tqdm(calibration.calibrate(args.n, args.size, args.seed, rebuild), unit="damage"))
    print(calibration.table(rows))
    print(f"\n{args.n} scenes of one and two objects, {args.size} x {args.size}, seed {args.seed}. In %: recall of every")
    print("attribute, and of all but position at once, precision of the same, images with the right count; then what is no")
    print("shape and was refused.")
    if args.json:
        write_json(args.json, {"n": args.n, "size": args.size, "seed": args.seed, "rows": [asdict(row) for row in rows]})
    if args.plot:
        from ..plot import show_curves

        names = [row.damage.replace(" ", "\n") for row in rows]
        lines = {f"recall of {name}": [row.recall[name] for row in rows] for name in ("shape", "colour", "position")}
        lines["precision"] = [row.precision["object"] for row in rows]
        lines["right counts"] = [row.count for row in rows]
        lines["blobs refused"] = [row.refused["blobs"] for row in rows]
        show_curves({name: (names, line) for name, line in lines.items()}, "", "share", "The oracle on damaged scenes",
                    file=args.plot)  # fmt: skip


def bench_samplers(args):
    """Print, write and draw what `benchmark.rows` finds."""
    theirs, missing = _theirs()
    rows = list(tqdm(benchmark.rows(theirs, args.spacing), total=len(benchmark.SAMPLERS), unit="sampler"))
    floor = benchmark.floor()
    print(table(rows))
    print(NOTES.format(spacing=args.spacing, floor=floor))
    if missing:
        print(missing)
    if args.json:
        found = {"spacing": args.spacing, "floor": floor, "rows": [asdict(row) for row in rows]}
        write_json(args.json, found)
    if args.plot:
        from ..plot import show_orders

        show_orders(curves(rows), "network calls", "error", f"Samplers on a mixture, {args.spacing} levels", args.plot)


def table(rows: list[benchmark.Row]) -> str:
    """The rows as a table that a terminal and Markdown both show well."""
    lines = [["sampler", "calls a step", "order", "10 steps", "20 steps", "50 steps", "20 calls", "µs", "diffusers", "ratio"]]
    for row in rows:
        errors = [f"{error:.4f}" for n in (10, 20, 50) for steps, _, error in row.walks if steps == n]
        order = "-" if row.order is None else f"{row.order:.2f}"
        theirs = ["-", "-"] if row.theirs is None else [f"{row.theirs:.0f}", f"{row.theirs / row.overhead:.1f}"]
        lines.append([row.sampler, f"{row.calls_per_step:.2f}", order, *errors, f"{row.at_20_calls:.4f}",
                      f"{row.overhead:.0f}", *theirs])  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join(
        f"| {line[0]:{widths[0]}} | " + " | ".join(f"{cell:>{w}}" for cell, w in zip(line[1:], widths[1:], strict=True)) + " |"
        for line in lines
    )


def curves(rows: list[benchmark.Row]) -> dict[str, tuple]:
    """name -> (calls, errors). Samplers that agree to seven digits are one, and share a line."""
    names = {}
    for row in rows:
        points = tuple((calls, float(f"{error:.6e}")) for _, calls, error in row.walks)
        names.setdefault(points, []).append(row.sampler)
    return {" = ".join(same): tuple(zip(*points, strict=True)) for points, same in names.items()}


def _rebuilder(folder: str) -> Callable:
    vae = load_vae(folder)

    @torch.no_grad()
    def rebuild(images):
        return torch.cat([vae.decode(vae.encode(part).mean) for part in images.split(32)])

    return rebuild


def _theirs() -> tuple[Callable | None, str]:
    """A walk of diffusers' to be timed beside ours, or why there is none."""
    if importlib.util.find_spec("diffusers") is None or not TESTS.is_dir():
        return None, "diffusers: not timed. That takes a checkout of the repository and pip install -r requirements.txt."
    sys.path.insert(0, str(TESTS))
    import overhead  # from tests/parity

    return overhead.ready, ""
