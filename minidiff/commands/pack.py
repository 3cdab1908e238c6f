"""Make of a trained text-to-image model one small folder to give away: half precision, and nothing that only training needs.

  python -m minidiff pack runs/sd/joint --out shapes
  python -m minidiff sample "a red circle" --model shapes

With it go the U-Nets for inpainting and depth and the CLIP that were trained beside it, and a card, README.md: by which
commands each part was trained, how long, and on what. The weights that come with minidiff were packed like this.
"""

import json
import shlex
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch

from ..pipelines.own import PARTS
from ..training.checkpoint import load, read_json, save, write_file
from .stages import SETTINGS, TIME
from .works import unfinished

NAME, HELP = "pack", "make of a trained text-to-image model one small folder to give away"
VARIANTS = ("inpaint", "depth")


def arguments(parser):
    parser.add_argument("folder", help="the folder with the model_index.json that train --stage wrote")
    parser.add_argument("--out", required=True, help="the folder to write, which must not be there yet")


def run(args):
    folder, out = Path(args.folder), Path(args.out)
    index = read_json(folder / "model_index.json")
    if out.exists():
        raise ValueError(f"{out} is there already: name another --out, so that nothing old stays among the new")
    places = {part: Path(index["parts"][part]).name for part in PARTS}  # a part from elsewhere, ../clip, comes inside: clip
    sources = {places[part]: folder / index["parts"][part] for part in PARTS}
    if (beside := folder.parent / "clip").is_dir():
        sources.setdefault("clip", beside)
    variants = [name for name in VARIANTS if (folder / name / "unet" / "config.json").is_file()]
    sources |= {f"{name}/unet": folder / name / "unet" for name in variants}
    check(sources.values())
    trained = [copy(source, out / name) for name, source in sources.items()]
    write_index(out, index, places)
    for name in variants:
        write_index(out / name, index, {part: "unet" if part == "unet" else f"../{places[part]}" for part in PARTS})
    write_file(out / "README.md", card(out, [line for lines in trained for line in lines]).encode())
    print(f"{out}: {megabytes(out):.1f} MB")


def check(sources: Iterable[Path]) -> None:
    """ValueError for a part whose training was cut, or went on from one that is not here, before anything is written."""
    for source in sources:
        if (source / TIME).is_file():
            if left := unfinished(source):
                raise ValueError(f"{source} stopped {left} steps before its end: finish it with --resume")
            trainings(source)


def copy(source: Path, target: Path) -> list[str]:
    """Copy a part, a network in half precision; returns its lines of the card, if it was trained on its own."""
    if not (source / "model.safetensors").is_file():
        shutil.copytree(source, target)
        return []
    net, about = load(source)
    told = {name: value for name, value in about.items() if name not in ("class", "config")}
    save(target, net, torch.float16, **told)
    name = f"{target.parent.name}/unet" if target.parent.name in VARIANTS else target.name
    return lines(name, source, sum(p.numel() for p in net.parameters())) if "training" in told else []


def lines(name: str, source: Path, weights: int) -> list[str]:
    """Of the card: how this part was trained, and before it those from which it went on, the first one first."""
    rows, done = [], trainings(source)
    for k, folder in enumerate(done, 1):
        spent, how = read_json(folder / TIME), command(folder, read_json(folder / "config.json")["training"])
        part = name if len(done) == 1 else f"{name}, {k} of {len(done)}"
        rows.append(f"| {part} | {weights:,} | {spent['minutes']:.0f} on {spent['machine']} | `{how}` |")
    return rows


def trainings(source: Path) -> list[Path]:
    """The folder of this part, and before it those from which it went on (begin=). ValueError for one that is not there."""
    found = [source]
    while begin := read_json(found[0] / "config.json")["training"]["settings"].get("begin"):
        before = Path(begin) / "unet"
        if not (before / TIME).is_file():
            raise ValueError(f"{found[0]} went on from {before}, and the card is to say how that was trained: "
                             f"there is no {before / TIME}")
        found.insert(0, before)
    return found


def command(source: Path, training: dict) -> str:
    """What trains this part again: the stage, and every number that is not the default of SETTINGS."""
    source = source.resolve()  # joint/../vae is no part of joint
    around = source.parent.name
    stage = source.name if source.name in ("vae", "clip") else "pixels" if "size" in training["settings"] else "unet"
    options = [f"--text {name}" for name in ("joint", "tuned") if name in source.parts[-3:-1]]
    options += [f"--variant {around}"] if around in VARIANTS else []
    usual = SETTINGS["variant" if around in VARIANTS else stage]
    others = {name: value for name, value in training["settings"].items() if json.dumps(value) != json.dumps(usual.get(name))}
    said = [f"{name}={','.join(map(str, value)) if isinstance(value, list) else value}" for name, value in others.items()]
    options += [f"--set {shlex.join(said)}"] if said else []
    return " ".join(["python -m minidiff train --stage", stage, *options, f"--seed {training['seed']}"])


def write_index(folder: Path, index: dict, places: dict[str, str]) -> None:
    """The model_index.json of a folder whose parts lie at `places`."""
    write_file(folder / "model_index.json", (json.dumps(index | {"parts": places}, indent=2) + "\n").encode())


def card(out: Path, trained: list[str]) -> str:
    """The README.md of a packed model."""
    about = f"A text-to-image model trained by minidiff on captioned drawings, in half precision: {megabytes(out):.1f} MB."
    table = ["| part | weights | minutes | trained by |", "|---|---:|---|---|", *trained]
    return "\n".join([f"# {out.name}", "", about, "", *table, ""])


def megabytes(folder: Path) -> float:
    """How much the files in this folder take."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
