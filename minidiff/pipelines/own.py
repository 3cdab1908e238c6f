"""Pipelines that were trained here: their folders, and their way of walking.

    model_index.json    {"class", SETTINGS, "parts": where each part lies, seen from this folder}
    unet/, vae/, text_encoder/      what `training.save` writes, {"class", "config"} and safetensors
    tokenizer/, scheduler/

A part may lie in another folder: the U-Nets for inpainting and depth share all else with the one they began as.
"""

import json
import os
from pathlib import Path

import torch
from torch import Tensor

from ..diffusion import SAMPLERS, Level, Sampler
from ..pretrained import Recipe, Tokenizer, load_clip_text, load_unet, load_vae, read_scheduler
from ..pretrained.folders import find, read_folder_json
from ..training import save
from ..training.checkpoint import write_file
from .class_to_image import make_schedule

WEIGHTS = Path(__file__).parents[1] / "weights"  # what comes with minidiff
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
SETTINGS = ("size", "steps", "guidance_scale", "pag_scale", "pag_layers", "pag_from")
TRAIN = "`python -m minidiff train --stage all --out runs/sd` makes one, for from_pretrained(\"runs/sd\")"


class OwnRecipe(Recipe):
    """A Recipe for a network that was trained here: the levels are those of its schedule, whichever sampler walks.

    config: {"schedule": of `make_schedule`, "predicts", "sampler": one of SAMPLERS, "spacing": of `Schedule.levels`}.
    ValueError for a sampler or schedule there is not.
    """

    def __init__(self, schedule: dict, predicts: str, sampler: str = "ddim", spacing: str | None = "trailing"):
        if sampler not in SAMPLERS:
            raise ValueError(f'there is no sampler "{sampler}": take one of {", ".join(SAMPLERS)}')
        config = {"class": "OwnRecipe", "schedule": schedule, "predicts": predicts, "sampler": sampler, "spacing": spacing}
        super().__init__(make_schedule(**schedule), predicts, SAMPLERS[sampler], None, config)

    def levels(self, n: int, sampler: Sampler | None = None) -> list[Level]:
        """The n + 1 levels of a walk. Raises ValueError for n outside 1 ... T."""
        return self.schedule.levels(n, self.config["spacing"])

    def start(self, noise: Tensor, level: Level, sampler: Sampler | None = None) -> Tensor:
        """x (B, ...) at `level`, the first of a walk from noise alone."""
        return level.sigma * noise


def locate(name: str | Path, variant: str | None = None) -> Path:
    """The folder of a pipeline: one on this disk, one that comes with minidiff ("shapes"), or one of the hub, downloaded.

    Raises FileNotFoundError for a name that is none of these.
    """
    if Path(name).is_dir():
        return Path(name)
    if isinstance(name, str) and (WEIGHTS / name / "model_index.json").is_file():
        return WEIGHTS / name
    if str(name).split("/")[0] == "shapes":
        raise FileNotFoundError(f'the weights of "{name}" are not in {WEIGHTS}: {TRAIN}')
    return find(name, variant)


def load_own(folder: Path, index: dict, ours: str, dtype: torch.dtype, device: str, variant: str | None) -> tuple[dict, dict]:
    """The parts of a folder that a pipeline of class `ours` has saved, and its settings. ValueError for another class."""
    if index["class"] != ours:
        raise ValueError(f'{folder}/model_index.json describes a "{index["class"]}", and this is {ours}.from_pretrained')
    where = {part: folder / index.get("parts", {}).get(part, part) for part in PARTS}
    if lost := [part for part, place in where.items() if not place.is_dir()]:
        raise FileNotFoundError(f"{folder} has no {lost[0]} at {where[lost[0]]}: {TRAIN}")
    told = {"dtype": dtype, "device": device, "variant": variant}
    return {
        "tokenizer": Tokenizer.load(where["tokenizer"]),
        "recipe": _read_recipe(where["scheduler"] / "scheduler_config.json"),
        "text_encoder": load_clip_text(where["text_encoder"], **told),
        "vae": load_vae(where["vae"], **told),
        "unet": load_unet(where["unet"], **told),
    }, {name: index[name] for name in SETTINGS if name in index}


def save_own(pipe, folder: str | Path, dtype: torch.dtype | None, elsewhere: dict[str, Path], about: dict) -> Path:
    """Write a StableDiffusion's folder; parts that lie `elsewhere` are named, not written. model_index.json comes last."""
    folder = Path(folder)
    for part in PARTS:
        if part in elsewhere:
            continue
        if part == "tokenizer":
            pipe.tokenizer.save(folder / part)
        elif part == "scheduler":
            (folder / part).mkdir(parents=True, exist_ok=True)
            write_file(folder / part / "scheduler_config.json", _json(pipe.recipe.config))
        else:
            save(folder / part, getattr(pipe, part), dtype, **(about if part == "unet" else {}))
    places = {part: Path(os.path.relpath(elsewhere.get(part, folder / part), folder)).as_posix() for part in PARTS}
    settings = {name: getattr(pipe, name) for name in SETTINGS}
    write_file(folder / "model_index.json", _json({"class": type(pipe).__name__, **settings, "parts": places}))
    return folder


def _read_recipe(file: Path) -> Recipe:
    config = read_folder_json(file)
    if config.get("class") != "OwnRecipe":
        return read_scheduler(config)
    try:
        return OwnRecipe(**{key: value for key, value in config.items() if key != "class"})
    except TypeError as error:
        raise ValueError(f"{file} was written for another version of OwnRecipe: {error}") from error


def _json(content: dict) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
