"""What each stage of `train --stage` is made of: a network, a loss, batches, and what it leaves in the folder of a run.

    out/vae/                                             a VAE, with the scale and shift of its latents
    out/clip/  out/tokenizer/                            both towers of CLIP, and the words they know
    out/unet/  out/scheduler/  out/model_index.json      the U-Net, which makes of all of it a StableDiffusion
    out/joint/ or out/tuned/                             the same, whose text encoder has learned with the U-Net
    .../inpaint/  .../depth/                             U-Nets of 9 and 5 channels, which began as that one
    out/cache/                                           latents and text features, so that they are computed once
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import plot
from ..data import Images, batches
from ..data.captions import Captioned
from ..data.grammar import WORDS
from ..evaluation import zero_shot_answers, zero_shot_table
from ..nets import CLIP, VAE, CLIPImage, CLIPText, Discriminator, Pixels, UNet, contrastive_loss, perturbed
from ..pipelines import StableDiffusion
from ..pipelines.own import SETTINGS, OwnRecipe
from ..pretrained import Tokenizer, load_clip_text, load_vae, words_tokenizer
from ..training import save
from ..training.autoencoder import Judged, autoencoder_loss, encode, measure, sure_of_itself
from ..training.cache import fingerprint
from ..training.checkpoint import read_json
from ..training.latent import Lessons, Reader, latent_loss, long_words, widened
from .lessons import Cache, scenes

SHOWN = {"vae": 64, "clip": 256, "unet": 8}  # new scenes at the end of a stage, to see what it can do
BORROWED = {"vae": "vae", "text_encoder": "clip", "tokenizer": "tokenizer"}  # what stage three leaves where it is


class Job(NamedTuple):
    """One stage that is to be trained: its numbers by name, where, and on what."""

    stage: str  # "vae", "clip", "unet" or "pixels"
    out: Path
    settings: SimpleNamespace  # of `stages.SETTINGS`
    device: str = "cpu"
    seed: int = 0
    text: str = "clip"  # which text encoder: "clip", frozen; "tuned", begun as that; "joint", begun with the U-Net
    variant: str = "base"  # or "inpaint", "depth"
    fresh: bool = False  # caches are made anew

    @property
    def learns_to_read(self) -> bool:
        """Does the text encoder learn with the U-Net?"""
        return self.variant == "base" and (self.stage == "pixels" or self.text != "clip")

    @property
    def pipeline(self) -> Path:
        """The folder whose model_index.json this stage writes, or helps to."""
        told = self.out if self.stage != "unet" or self.text == "clip" else self.out / self.text
        return told if self.variant == "base" else told / self.variant

    @property
    def folder(self) -> Path:
        """Where the weights of this stage go, and while they are not done the state of their training."""
        return self.out / self.stage if self.stage in ("vae", "clip") else self.pipeline / "unet"


class Work(NamedTuple):
    """What `learn` needs to know of a stage."""

    build: Callable[[], nn.Module]
    loss: Callable
    feed: Callable[[int], Iterator]  # batches, from the k-th on
    keep: Callable[[nn.Module, dict], None]  # writes the part; the dict goes into its config.json
    show: Callable[[nn.Module], None]  # a picture of what it can do


def vae(job: Job) -> Work:
    """Stage one: pictures to latents and back."""
    s = job.settings
    pixels = scenes(s.scenes, s.size, job.seed)[0].to(job.device)

    def build() -> nn.Module:
        net = VAE(latent_channels=s.latent_channels, channels=s.channels, layers=s.layers, groups=None, attention=s.attention)
        return Judged(sure_of_itself(net), Discriminator()) if s.judge else sure_of_itself(net)

    def keep(net: nn.Module, training: dict) -> None:
        net = net.vae if s.judge else net
        some = pixels[: 2048 if training["step"] == s.steps else 256]  # on the way a rough idea of the scale will do
        save(job.folder, measure(net, encode(net, some, None, job.device)), training=training)

    def show(net: nn.Module) -> None:
        x = scenes(SHOWN["vae"], s.size, job.seed + 1)[0].to(job.device) / 127.5 - 1
        net = net.vae if s.judge else net
        with torch.no_grad():
            copies = net.decode(net.encode(x).mean).clamp(-1, 1)
        plot.show_images(torch.cat([x[:8], copies[:8]]).cpu(), row_labels=["picture", "copy"], file=job.folder / "copies.png")
        print(f"copies of new scenes are {127.5 * (copies - x).abs().mean():.2f} grey levels off, on average; "
              f"latents: shift {net.shift:.3f}, scale {net.scale:.3f}")  # fmt: skip

    def feed(start: int) -> Iterator:
        return batches(Images(pixels), s.batch, job.device, seed=job.seed, start=start)

    return Work(build, autoencoder_loss(s.beta, s.judge), feed, keep, show)


def clip(job: Job) -> Work:
    """Stage two: which text belongs to which picture."""
    s = job.settings
    pixels, captions, _ = scenes(s.scenes, s.size, job.seed)
    tokenizer = words_tokenizer(WORDS, s.length)
    ids = tokenizer(captions).to(job.device)
    numbered = Images(pixels.to(job.device), torch.arange(len(pixels)))

    def build() -> nn.Module:
        text = reader(tokenizer, s.dim, s.layers, s.heads, s.projection)
        return CLIP(text, CLIPImage(s.size, s.patch, s.image_dim, s.image_layers, s.image_heads, projection=s.projection))

    def loss(net: CLIP, x: Tensor, y: Tensor) -> Tensor:
        return contrastive_loss(net(x, ids[y]).float(), ids[y])

    def keep(net: CLIP, training: dict) -> None:
        tokenizer.save(job.out / "tokenizer")
        save(job.folder, net, training=training)

    def show(net: CLIP) -> None:
        fresh, said, _ = scenes(SHOWN["clip"], s.size, job.seed + 1)
        said = tokenizer(said).to(job.device)
        with torch.no_grad():
            found = net(fresh.to(job.device) / 127.5 - 1, said).argmax(1)
        right = (said[found] == said).all(1).float().mean()  # another picture may have the same caption
        print(f"of {len(said)} captions of new scenes, the right one is found for {right:.0%} of the pictures; of two "
              f"or more sentences of which one is true:\n{zero_shot_table(zero_shot_answers(net, tokenizer, len(said)))}")

    def feed(start: int) -> Iterator:
        return batches(numbered, s.batch, job.device, seed=job.seed, start=start)

    return Work(build, loss, feed, keep, show)


def unet(job: Job) -> Work:
    """Stage three: latents that belong to a text. Or both at once, on pixels; or a variant of a model that is there."""
    s, model = job.settings, begun(job)
    lessons = _lessons(job, model)
    base = job._replace(variant="base").pipeline
    if job.variant != "base":
        places = read_json(base / "model_index.json")["parts"]
    else:
        places = {} if job.stage == "pixels" else {"vae": "vae"} if job.learns_to_read else BORROWED
    elsewhere = {part: (base if job.variant != "base" else job.out) / place for part, place in places.items() if part != "unet"}

    def build() -> nn.Module:
        channels = model.vae.config["latent_channels"]
        if job.variant != "base":
            return widened(StableDiffusion.from_pretrained(base).unet, channels + lessons.beside.shape[1])
        net = new_unet(s, channels, model.text_encoder.config["dim"])
        perturbed(net, net, s.pag_layers if s.pag else ())  # refuses layers that there are not, before anything is learned
        if job.learns_to_read:
            tuned = job.text == "tuned"
            net = Reader(net, load_clip_text(job.out / "clip") if tuned else reader(model.tokenizer, *text_sizes(s)))
        return further(net, s.begin, model.vae) if s.begin else net

    def whole(net: nn.Module) -> StableDiffusion:
        drawn, text = (net.unet, net.text) if job.learns_to_read else (net, model.text_encoder)
        pipe = StableDiffusion(drawn.eval(), model.vae, text.eval(), model.tokenizer, model.recipe, model.size)
        vars(pipe).update({name: getattr(model, name) for name in SETTINGS}, progress=False)  # how it is walked by itself
        return pipe

    def keep(net: nn.Module, training: dict) -> None:
        whole(net).save(job.pipeline, elsewhere=elsewhere, training=training)

    def show(net: nn.Module) -> None:
        _show(whole(net), job)

    def feed(start: int) -> Iterator:
        return lessons.batches(s.batch, job.seed, start, ahead=round(s.easy * s.steps * s.accumulate))

    weighing = {"min_snr": s.min_snr, "measured": None if s.min_snr else s.measured}
    return Work(build, latent_loss(model.schedule, model.predicts, **weighing), feed, keep, show)


WORKS = {"vae": vae, "clip": clip, "unet": unet, "pixels": unet}


def finished(folder: Path, stage: str, out: Path) -> Path:
    """The folder of a part that an earlier stage has trained to its end. FileNotFoundError, ValueError: which command does."""
    command = f"python -m minidiff train --stage {stage} --out {out}"
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is not there yet: run `{command}` first")
    if left := unfinished(folder):
        raise ValueError(f"{folder} stopped {left} steps before its end: run `{command} --resume` first")
    return folder


def unfinished(folder: Path) -> int:
    """How many steps the training of this part was stopped before its end."""
    training = read_json(folder / "config.json")["training"]
    return training["settings"]["steps"] - training["step"]


def begun(job: Job) -> StableDiffusion:
    """The model so far: of a variant the whole one that it begins as, else all but the U-Net."""
    s = job.settings
    if job.variant != "base":
        base = job._replace(variant="base")
        finished(base.folder, "unet" if job.text == "clip" else f"unet --text {job.text}", job.out)
        return StableDiffusion.from_pretrained(base.pipeline, device=job.device)
    if job.stage == "pixels":
        autoencoder, size = Pixels(), s.size
    else:
        autoencoder = load_vae(finished(job.out / "vae", "vae", job.out))
        size = read_json(job.out / "vae" / "config.json")["training"]["settings"]["size"]
    if job.stage == "unet" and job.text != "joint":
        text = load_clip_text(finished(job.out / "clip", "clip", job.out))
        tokenizer = Tokenizer.load(job.out / "tokenizer")
    else:
        tokenizer = words_tokenizer(WORDS, s.length)
        text = reader(tokenizer, *text_sizes(s))
    schedule = {"name": s.schedule} | ({"shift": s.shift} if s.schedule == "flow" else {})
    recipe = OwnRecipe(schedule, s.predicts, s.sampler, s.spacing)
    model = StableDiffusion(None, autoencoder.to(job.device), text.to(job.device), tokenizer, recipe, size)
    model.steps, model.guidance_scale = s.walk, s.guidance
    model.pag_scale, model.pag_layers, model.pag_from = s.pag, tuple(s.pag_layers), s.pag_from
    return model


def reader(tokenizer: Tokenizer, dim: int, layers: int, heads: int, projection: int | None = None) -> CLIPText:
    """An untrained text encoder for what this tokenizer writes."""
    return long_words(CLIPText(len(tokenizer.vocab), tokenizer.length, dim, layers, heads, projection=projection,
                               eos=tokenizer.end))  # fmt: skip


def new_unet(s: SimpleNamespace, channels: int, context_dim: int) -> UNet:
    """An untrained U-Net of the sizes in `s`."""
    return UNet(channels, channels, s.channels, s.attention, s.layers, context_dim,
                patch=s.patch, shortcut=s.shortcut, heads=s.heads, depth=s.depth)  # fmt: skip


def text_sizes(s: SimpleNamespace) -> tuple[int, int, int]:
    """Width, layers and heads of a text encoder that learns with the U-Net."""
    return s.text_dim, s.text_layers, s.text_heads


def further(net: UNet | Reader, begin: str, vae: nn.Module) -> nn.Module:
    """`net` with the weights of the model in the folder `begin`. ValueError for one of other sizes, or of another VAE."""
    pipe = StableDiffusion.from_pretrained(begin)
    if fingerprint(pipe.vae) != fingerprint(vae):
        raise ValueError(f"begin={begin} has learned the latents of another VAE: take its folder as --out, or its vae/")
    reads = isinstance(net, Reader)
    pairs = [(net.unet, pipe.unet), (net.text, pipe.text_encoder)] if reads else [(net, pipe.unet)]
    for part, there in pairs:
        if json.dumps(part.config) != json.dumps(there.config):
            raise ValueError(f"begin={begin} has a {type(part).__name__} of other sizes: {there.config}, not {part.config}")
    return Reader(pipe.unet, pipe.text_encoder) if reads else pipe.unet


def _lessons(job: Job, model: StableDiffusion) -> Lessons:
    cache = Cache(job.out / "cache", job.settings.scenes, model.size, job.seed, job.device, job.fresh, job.settings.brief,
                  job.settings.tasks)  # fmt: skip
    beside = beside_std = None
    if job.stage == "pixels":
        mean, std = (cache.pixels / 127.5 - 1).half(), None
    else:
        mean, std = cache.latents(model.vae)
        std = std if job.settings.sampled else None

    def read(name: str, said: list[str]) -> Tensor:
        return model.tokenizer(said) if job.learns_to_read else cache.texts(name, model.tokenizer, model.text_encoder, said)

    texts = read(job.text, [*cache.captions, ""])
    easy, plain = cache.easy() if job.settings.easy else (None, None)
    if job.variant == "inpaint":
        beside, beside_std = cache.hidden(model.vae)
    elif job.variant == "depth":
        beside = cache.depths(model.vae.stride)
    tensors = {"mean": mean, "std": std, "texts": texts[:-1], "nothing": texts[-1:], "beside": beside, "beside_std": beside_std,
               "easy": easy, "plain": read(f"plain_{job.text}", plain) if plain else None}  # fmt: skip
    there = {name: part.to(job.device) for name, part in tensors.items() if part is not None}
    return Lessons(**{"std": None, **there}, dropout=job.settings.dropout)


def _show(pipe: StableDiffusion, job: Job) -> None:
    """A row of new scenes, and a row drawn after their captions; in between what else a variant is given."""
    made = [Captioned(SHOWN["unet"], pipe.size, job.seed + 1)[i] for i in range(SHOWN["unet"])]
    x = torch.stack([scene.image for scene in made]).to(job.device)
    texts, g = [scene.caption for scene in made], torch.Generator().manual_seed(0)
    rows = {"scene": x}
    if job.variant == "inpaint":
        mask = torch.stack([scene.mask for scene in made]).to(job.device)
        rows |= {"to paint": torch.where(mask > 0, 0, x), "painted": pipe.inpaint(texts, x, mask, generator=g)}
    elif job.variant == "depth":
        depth = -torch.stack([scene.depth for scene in made]).to(job.device)
        rows["by depth"] = pipe.depth2img(texts, x, depth, strength=1.0, generator=g)
    else:
        rows["drawn"] = pipe(texts, generator=g)
    file = job.pipeline / "samples.png"
    plot.show_images(torch.cat([*rows.values()]).cpu(), row_labels=list(rows), file=file)
    print(f"{file}: " + "; ".join(texts))
