"""A whole pipeline's folder: model_index.json names the parts, and each has a folder of its own."""

from pathlib import Path

import torch

from ..pretrained import Tokenizer, load_clip_text, load_unet, load_vae, read_scheduler
from ..pretrained.folders import HINT, find, read_folder_json

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline",
             "StableDiffusionInpaintPipelineLegacy", "StableDiffusionDepth2ImgPipeline")  # fmt: skip
PARTS = {  # what each may be; the file that says so for certain is in its own folder
    "unet": ("UNet2DConditionModel",), "vae": ("AutoencoderKL",), "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"), "scheduler": None,
}  # fmt: skip
UNREAD = {  # parts that draw nothing: a filter of finished pictures, and networks that pipelines of others ask for a depth
    "safety_checker", "feature_extractor", "image_encoder", "requires_safety_checker", "depth_estimator",
}  # fmt: skip


def load_parts(name: str | Path, dtype: torch.dtype, device: str, variant: str | None = None) -> dict:
    """The arguments of StableDiffusion, from a folder or the id of one on the hub.

    All that can be found wrong without reading weights is: FileNotFoundError for a folder that is missing, ValueError for a
    pipeline or part of a class we do not have.
    """
    folder = find(name, variant)
    index = read_folder_json(folder / "model_index.json")
    if index.get("_class_name") not in PIPELINES:
        raise ValueError(f'{folder}/model_index.json describes a "{index.get("_class_name")}": minidiff reads {PIPELINES[0]} '
                         "and its variants for img2img, inpainting and depth")
    for part, classes in PARTS.items():
        _, given = index.get(part) or (None, None)
        if given is None or not (folder / part).is_dir():
            raise FileNotFoundError(f"{folder} has no {part}: {HINT}")
        if classes and given not in classes:
            raise ValueError(f'{folder}/model_index.json has a "{given}" as its {part}: minidiff has {" or ".join(classes)}')
    others = index.keys() - PARTS.keys() - UNREAD
    if odd := sorted(part for part in others if not part.startswith("_") and index[part] != [None, None]):
        raise ValueError(f"{folder}/model_index.json lists {', '.join(odd)}, which this pipeline does not know how to use")
    recipe = read_scheduler(read_folder_json(folder / "scheduler" / "scheduler_config.json"))
    tokenizer = Tokenizer.load(folder / "tokenizer")
    size = read_folder_json(folder / "unet" / "config.json").get("sample_size") or 64
    told = {"dtype": dtype, "device": device, "variant": variant}
    text_encoder, vae = load_clip_text(folder / "text_encoder", **told), load_vae(folder / "vae", **told)
    unet = load_unet(folder / "unet", **told)
    _fit(unet, vae, text_encoder, tokenizer, folder)
    return {"unet": unet, "vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer, "recipe": recipe,
            "size": size * vae.stride}  # fmt: skip


def _fit(unet, vae, text_encoder, tokenizer, folder: Path) -> None:
    """Parts that each are right, and do not belong together."""
    width, wanted = text_encoder.config["dim"], unet.config["context_dim"]
    if width != wanted:
        raise ValueError(f"{folder}: its text encoder writes {width} numbers per token and its U-Net reads {wanted}")
    if unet.config["out_channels"] != vae.config["latent_channels"]:
        raise ValueError(f"{folder}: its VAE has {vae.config['latent_channels']} latent channels and its U-Net draws "
                         f"{unet.config['out_channels']}")
    if tokenizer.length > text_encoder.config["length"]:
        raise ValueError(f"{folder}: its tokenizer writes {tokenizer.length} tokens and its text encoder reads "
                         f"{text_encoder.config['length']}")
