"""A whole pipeline's folder: model_index.json names the parts, and each has a folder of its own."""

from pathlib import Path

import torch

from ..pretrained import Tokenizer, load_clip_text, load_mmdit, load_unet, load_vae, read_scheduler
from ..pretrained.folders import HINT, read_folder_json
from .own import load_own, locate

PIPELINES = {  # their classes of whole pipelines -> ours
    **dict.fromkeys(("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline",
                     "StableDiffusionInpaintPipelineLegacy", "StableDiffusionDepth2ImgPipeline"), "StableDiffusion"),
    **dict.fromkeys(("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"),
                    "StableDiffusion3"),
}  # fmt: skip
VAES, TOKENIZERS, PROJECTING = ("AutoencoderKL",), ("CLIPTokenizer", "CLIPTokenizerFast"), ("CLIPTextModelWithProjection",)
PARTS = {  # of ours, what each may be; the file that says so for certain is in its own folder
    "StableDiffusion": {"unet": ("UNet2DConditionModel",), "vae": VAES, "text_encoder": ("CLIPTextModel",),
                        "tokenizer": TOKENIZERS, "scheduler": None},
    "StableDiffusion3": {"transformer": ("SD3Transformer2DModel",), "vae": VAES, "text_encoder": PROJECTING,
                         "text_encoder_2": PROJECTING, "tokenizer": TOKENIZERS, "tokenizer_2": TOKENIZERS,
                         "scheduler": ("FlowMatchEulerDiscreteScheduler",)},
}  # fmt: skip
UNREAD = {  # parts that draw nothing: a filter of finished pictures, and networks that pipelines of others ask for a depth
    "StableDiffusion": {"safety_checker", "feature_extractor", "image_encoder", "requires_safety_checker", "depth_estimator"},
    "StableDiffusion3": {"text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor"},  # zeros stand in for the first
}


def load_parts(ours: str, name: str | Path, dtype: torch.dtype, device: str, variant: str | None = None) -> dict:
    """The arguments of our class of that name, StableDiffusion or StableDiffusion3, from a folder or the id of one on the hub.

    Of one that was trained here, also "settings", what it says of its walks. All that can be found wrong without reading
    weights is: FileNotFoundError for a folder that is missing, ValueError for a pipeline or part of a class we do not have.
    """
    folder = locate(name, variant)
    index = read_folder_json(folder / "model_index.json")
    if "class" in index:
        parts, settings = load_own(folder, index, ours, dtype, device, variant)
        _check_fit(parts["unet"], parts["vae"], [parts["text_encoder"]], [parts["tokenizer"]], folder)
        return parts | {"settings": settings}
    _check_index(folder, index, ours)
    tokenizers = {part: Tokenizer.load(folder / part) for part in PARTS[ours] if part.startswith("tokenizer")}
    recipe = read_scheduler(read_folder_json(folder / "scheduler" / "scheduler_config.json"))
    told = {"dtype": dtype, "device": device, "variant": variant}
    encoders = {part: load_clip_text(folder / part, **told) for part in PARTS[ours] if part.startswith("text_encoder")}
    vae = load_vae(folder / "vae", **told)
    part, argument, load, usual = {"StableDiffusion": ("unet", "unet", load_unet, 64),
                                   "StableDiffusion3": ("transformer", "mmdit", load_mmdit, 128)}[ours]  # fmt: skip
    size = read_folder_json(folder / part / "config.json").get("sample_size") or usual
    net = load(folder / part, **told)
    _check_fit(net, vae, [*encoders.values()], [*tokenizers.values()], folder)
    return {argument: net, "vae": vae, **encoders, **tokenizers, "recipe": recipe, "size": size * vae.stride}


def _check_index(folder: Path, index: dict, ours: str) -> None:
    theirs = index.get("_class_name")
    if PIPELINES.get(theirs) != ours:
        fix = (f"load it by {PIPELINES[theirs]}.from_pretrained" if theirs in PIPELINES else
               f"minidiff reads {' and '.join(f'{usual}Pipeline' for usual in PARTS)} and their variants for img2img, "
               "inpainting and depth")  # fmt: skip
        raise ValueError(f'{folder}/model_index.json describes a "{theirs}": {fix}')
    for part, classes in PARTS[ours].items():
        _, given = index.get(part) or (None, None)
        if given is None or not (folder / part).is_dir():
            raise FileNotFoundError(f"{folder} has no {part}: {HINT}")
        if classes and given not in classes:
            raise ValueError(f'{folder}/model_index.json has a "{given}" as its {part}: minidiff has {" or ".join(classes)}')
    others = index.keys() - PARTS[ours].keys() - UNREAD[ours]
    if odd := sorted(part for part in others if not part.startswith("_") and index[part] != [None, None]):
        raise ValueError(f"{folder}/model_index.json lists {', '.join(odd)}, which this pipeline does not know how to use")


def _check_fit(net, vae, encoders: list, tokenizers: list, folder: Path) -> None:
    """Parts that each are right, and do not belong together."""
    name, reads, channels = type(net).__name__, net.config["context_dim"], vae.config["latent_channels"]
    width = sum(encoder.config["dim"] for encoder in encoders)
    if width > reads if len(encoders) > 1 else width != reads:  # two are filled up with zeros
        raise ValueError(f"{folder}: its text encoders write {width} numbers per token and its {name} reads {reads}")
    pooled = sum(encoder.config["projection"] or 0 for encoder in encoders)
    if pooled != net.config.get("pooled_dim", pooled):
        raise ValueError(f"{folder}: its text encoders write {pooled} numbers per text and its {name} reads "
                         f"{net.config['pooled_dim']}")
    if net.config["out_channels"] != channels:
        raise ValueError(f"{folder}: its VAE has {channels} latent channels and its {name} draws {net.config['out_channels']}")
    for tokenizer, encoder in zip(tokenizers, encoders, strict=True):
        if tokenizer.length > encoder.config["length"]:
            raise ValueError(f"{folder}: its tokenizer writes {tokenizer.length} tokens and its text encoder reads "
                             f"{encoder.config['length']}")
