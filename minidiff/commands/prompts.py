"""`eval` of a model of words: what is asked of it, in which order, and what is left of the answers."""

import json
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.captions import TASKS, UNSEEN, Prompt
from ..diffusion import SAMPLERS
from ..evaluation.alignment import Row, Walk, alignment, best_scale, draw, held_out_gaps, questions
from ..evaluation.distances import TRAIN, Distance, distances, features, load_ruler, looking, real_scenes
from ..evaluation.diversity import PROMPTS, Diversity, diversity, real_images
from ..evaluation.lies import Lie, lies
from ..pipelines import StableDiffusion
from ..pipelines.own import WEIGHTS, locate
from ..training.cache import fingerprint
from ..training.checkpoint import write_file
from . import figures, tables
from .common import pick_device

SCALES = (0.0, 1.0, 2.0, 3.0, 4.0, 7.5, 10.0)  # a model of an hour is drawn at 2, "shapes" at 3


class Asked(NamedTuple):
    """All prompts and a few of every task, and real scenes, batches of images, with what is said of them."""

    full: list[Prompt]
    few: list[Prompt]
    scenes: list[Tensor]
    said: list[str]


class Found(NamedTuple):
    """All that was measured. scale: the best of the sweep; curves: of `distances`, of the model and of real scenes."""

    scale: float
    rows: list[Row]
    sweep: dict[float, list[Row]]
    variety: dict[float, Diversity]
    real: Diversity
    curves: dict[str, list[Distance]]
    lies: list[Lie]


def reads(name: str) -> bool:
    """Is this a model of words: a folder with a model_index.json, or the name of one that comes with minidiff?"""
    return (Path(name) / "model_index.json").is_file() or (not Path(name).is_dir() and name.split("/")[0] == "shapes")


def run(args) -> None:
    """Measure, print, write and draw. What is wrong is a ValueError or FileNotFoundError, before anything is measured."""
    began, device, folder = time.perf_counter(), pick_device(args.device), locate(args.folder)
    pipe = StableDiffusion.from_pretrained(args.folder, device=device)
    pipe.progress = False
    pipe.pag_scale = pipe.pag_scale if args.pag is None else args.pag
    usual = {"steps": pipe.steps, "sampler": pipe.recipe.config.get("sampler", "dpmpp_2m"), "batch": 64}
    vars(args).update({name: value for name, value in usual.items() if getattr(args, name) is None})
    check(args)
    clip = None if args.ruler == "none" else load_ruler(args.ruler or find_ruler(folder), pipe.size, device)
    asked = ask(pipe, args)
    next(pipe.walk("", steps=args.steps, sampler=SAMPLERS[args.sampler]))  # one step: what cannot be walked is refused here
    out = Path(args.out) if args.out else Path("runs/eval", folder.name) if WEIGHTS in folder.parents else folder / "eval"
    out.mkdir(parents=True, exist_ok=True)
    found = measure(pipe, args, asked, clip and looking(clip))

    about = {"model": args.folder, "seed": args.seed, "n": args.n, "sweep_n": args.sweep, "each": args.each,
             "scenes": args.scenes, "steps": args.steps, "sampler": args.sampler, "scale": found.scale,
             "pag_scale": pipe.pag_scale,
             "size": pipe.size, "device": device, "minutes": round((time.perf_counter() - began) / 60, 1),
             "unet": fingerprint(pipe.unet), "ruler": clip and fingerprint(clip),
             "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }  # fmt: skip
    write(out, found, about)
    print(f"\n{out}: {', '.join(sorted(file.name for file in out.iterdir()))}; {about['minutes']} minutes")


def check(args) -> None:
    """ValueError for numbers that nothing can be measured with, and for tasks there are not."""
    least = {"n": 1, "sweep": 1, "batch": 1, "steps": 1, "each": 2, "scenes": 2, "seed": 0}
    if few := [f"--{name} {getattr(args, name)}" for name, low in least.items() if getattr(args, name) < low]:
        raise ValueError(f"{', '.join(few)}: give 1 or more, 2 of --each and --scenes, and a seed of 0 or more")
    if odd := [f"{scale:g}" for scale in args.guidance or () if not 0 <= scale < float("inf")]:
        raise ValueError(f"--guidance {' '.join(odd)}: scales are 0 or more")
    if odd := [task for task in args.tasks if task not in TASKS]:
        raise ValueError(f'--tasks: no task "{odd[0]}", but {", ".join(TASKS)}; put quotes round two words')


def find_ruler(folder: Path) -> Path:
    """The CLIP to measure with if none is named: beside the model, or that of shapes. FileNotFoundError where there is none."""
    for place in (folder / "clip", folder.parent / "clip", WEIGHTS / "shapes" / "clip"):
        if (place / "config.json").is_file():
            return place
    raise FileNotFoundError(f"no CLIP to measure distances with lies beside {folder}: {TRAIN}; name it by --ruler, "
                            "or give --ruler none to do without")


def ask(pipe, args) -> Asked:
    """What the model will be asked. ValueError for words that it never learned."""
    full, few = (questions(n, args.seed, args.tasks) for n in (args.n, args.sweep))
    scenes, said = real_scenes(args.scenes, pipe.size, UNSEEN + 2 * args.seed)
    pipe.tokenizer(sorted({*PROMPTS, *said, *(prompt.text for prompt in full + few)}))
    return Asked(full, few, scenes, said)


def measure(pipe, args, asked: Asked, look: Callable | None) -> Found:
    """Everything: at each scale with a few prompts, then at the best with all. look: of `looking`; None: no distances."""
    scales = sorted(set(args.guidance or SCALES))
    few = asked.few if len(scales) > 1 else asked.full
    walk = Walk(None, args.steps, SAMPLERS[args.sampler], args.seed, args.batch)
    sweep, variety, curves = {}, {}, {}
    for scale in scales:
        here = walk._replace(scale=scale)
        sweep[scale] = alignment(pipe, few, here)
        variety[scale] = diversity(draw(pipe, [text for text in PROMPTS for _ in range(args.each)], here), args.each, look)
    walk = walk._replace(scale=best_scale(sweep))
    rows = sweep[walk.scale] if few is asked.full else alignment(pipe, asked.full, walk)
    if look:
        others = features(real_scenes(args.scenes, pipe.size, UNSEEN + 2 * args.seed + 1)[0], look)
        sides = {"model": draw(pipe, asked.said, walk), "real scenes": asked.scenes}
        curves = {name: distances(features(side, look), others) for name, side in sides.items()}
    real = diversity(real_images(args.each, pipe.size, UNSEEN + args.seed), args.each, look)
    return Found(walk.scale, rows, sweep, variety, real, curves, lies(pipe, seed=args.seed))


def write(out: Path, found: Found, about: dict) -> None:
    """Print the tables, and write them, all figures as JSON, and the pictures."""
    title = "{model}: {sampler}, {steps} steps, guidance {scale:g}, pag {pag_scale:g}, seed {seed}".format(**about)
    if len(found.sweep) > 1:
        title += f"; of {', '.join(f'{scale:g}' for scale in found.sweep)} this guidance is obeyed best"
    said = [title, tables.aligned(found.rows), tables.swept(found.sweep, found.variety, found.real)]
    said += [tables.judged(found.curves)] if found.curves else []
    said += [tables.lied(found.lies)]
    print("\n\n".join(said))
    write_file(out / "table.md", ("\n\n".join(said) + "\n").encode())
    write_file(out / "eval.json", (json.dumps(about | as_json(found), indent=1) + "\n").encode())
    figures.show_alignment(found.sweep, found.scale, found.rows, out / "alignment.png")
    figures.show_tradeoff(found.sweep, found.variety, found.real, out / "tradeoff.png")
    if found.curves:
        figures.show_bias(found.curves, out / "bias.png")


def as_json(found: Found) -> dict:
    """Every figure under its name."""
    def told(rows: Sequence[Row]) -> list[dict]:
        return [row._asdict() | {"share": row.share, "interval": row.interval} for row in rows]

    return {
        "alignment": told(found.rows),
        "held_out_minus_seen": held_out_gaps(found.rows),
        "sweep": [{"scale": scale, "alignment": told(rows), "diversity": found.variety[scale]._asdict()}
                  for scale, rows in found.sweep.items()],
        "diversity_of_real_scenes": found.real._asdict(),
        "distances_in_mini_clip_features": {who: [d._asdict() for d in curve] for who, curve in found.curves.items()},
        "error_rises_if_told": [lie._asdict() for lie in found.lies],
    }  # fmt: skip
