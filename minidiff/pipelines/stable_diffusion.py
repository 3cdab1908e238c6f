"""Stable Diffusion 1 and 2, whole: a prompt in, a picture out, and a picture in.

    pipe = StableDiffusion.from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5")    # or a folder on this disk
    image = pipe("a photograph of a puppy", generator=torch.Generator().manual_seed(42))     # (1, 3, 512, 512) in [-1, 1]

Nothing here is new. The text encoder turns the prompt into tokens, the VAE turns pictures into latents and back, and
between them a U-Net that reads the tokens is guided, as any denoiser, down a list of levels.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..diffusion import Denoiser, Sampler, State, add_noise, classifier_free, clipped, ddim, ddpm, inpainting, invert
from ..diffusion.samplers import randn_like
from ..nets import VAE, CLIPText, UNet, remembering
from ..pretrained import Recipe, Tokenizer
from .inputs import checked_strength, depth_map, listed, matched, small_mask
from .latents import to_images, to_latents
from .parts import load_parts


class StableDiffusion:
    """pipe(prompt) -> images (B, 3, H, W) in [-1, 1], one for each prompt. What is wrong is a ValueError before the first step.

    Its parts are public: unet, vae, text_encoder, tokenizer; schedule and predicts, what the U-Net was trained on; recipe,
    which knows the checkpoint's own sampler and its levels. size: height and width where none are asked for.
    Set pipe.tile = 64 to have the VAE take large pictures in pieces of 64x64 latents, pipe.progress = False for no bars.
    """

    def __init__(self, unet: UNet, vae: VAE, text_encoder: CLIPText, tokenizer: Tokenizer, recipe: Recipe, size: int = 512):
        self.unet, self.vae, self.text_encoder, self.tokenizer, self.recipe = unet, vae, text_encoder, tokenizer, recipe
        self.schedule, self.predicts, self.size = recipe.schedule, recipe.predicts, size
        self.tile: int | None = None
        self.progress = True

    @classmethod
    def from_pretrained(cls, name: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu",
                        variant: str | None = None) -> "StableDiffusion":  # fmt: skip
        """A folder in the format of diffusers, or the id of one on the hub. variant: "fp16" reads the files of that name.

        dtype: of the networks; latents stay in float32 between their calls. FileNotFoundError or ValueError for a part that
        is missing, damaged, a pickle, or of a class we do not have, and then nothing is returned.
        """
        return cls(**load_parts(name, dtype, device, variant))

    # ---- from words to a picture ------------------------------------------------------------------------------------

    def __call__(self, prompt: str | list[str], **options) -> Tensor:
        """Images (B, 3, height, width) in [-1, 1]; options as in `walk`."""
        *_, last = self.walk(prompt, **options)
        return self.decode(last.x)

    @torch.no_grad()
    def walk(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] = "",  # what to steer away from
        steps: int = 50,
        guidance_scale: float = 7.5,  # 1: plain conditional; higher: closer to the prompt and less varied
        height: int | None = None,
        width: int | None = None,
        latents: Tensor | None = None,  # (B, C, height/8, width/8), standard normal: the noise to begin with
        generator: torch.Generator | None = None,  # of that noise, if it is not given
        sampler: Sampler | None = None,  # None: the checkpoint's own
    ) -> Iterator[State]:
        """The sampler's states, latents (B, C, height/8, width/8) from noise to clean; `decode` shows what is in them."""
        prompts, channels = listed(prompt), self.vae.config["latent_channels"]
        if self.unet.config["in_channels"] != channels:
            raise ValueError(f"this U-Net takes {self.unet.config['in_channels']} channels, not the {channels} of a latent: "
                             "it was made for pipe.inpaint (9) or pipe.depth2img (5)")
        height, width, stride = height or self.size, width or self.size, self.vae.stride
        if height % stride or width % stride:
            raise ValueError(f"{height}x{width} pixels: height and width must divide by {stride}, the VAE's stride")
        shape = (len(prompts), channels, height // stride, width // stride)
        if latents is not None and tuple(latents.shape) != shape:
            raise ValueError(f"latents of shape {tuple(latents.shape)}: {len(prompts)} of {height}x{width} take {shape}")
        levels = self.recipe.levels(steps, sampler)
        denoise = self.denoiser(prompts, negative_prompt, guidance_scale, sampler)
        noise = randn_like(self._empty(shape), generator) if latents is None else latents.to(self._empty(()))
        yield from self._run(denoise, self.recipe.start(noise, levels[0], sampler), levels, sampler, generator)

    def encode_text(self, texts: str | list[str]) -> Tensor:
        """Texts -> (B, 77, D), what the U-Net reads. ValueError for a text that does not fit into 77 tokens."""
        device = next(self.text_encoder.parameters()).device
        return self.text_encoder(self.tokenizer(listed(texts)).to(device)).tokens

    @torch.no_grad()
    def denoiser(self, prompts: list[str], negative_prompt: str | list[str] = "", guidance_scale: float = 7.5,
                 sampler: Sampler | None = None, beside: Tensor | None = None) -> Denoiser:  # fmt: skip
        """What a sampler walks: this U-Net asked for these prompts. beside: channels (B, C, h, w) that it sees at every step.

        The keys and values of the prompts are computed at the first step only; they do not depend on what is drawn.
        """
        unprompted = matched("negative_prompt", listed(negative_prompt), len(prompts))
        net, dtype = remembering(self.unet), next(self.unet.parameters()).dtype

        def ask(x: Tensor, t: Tensor, context: Tensor, beside: Tensor | None = None) -> Tensor:
            inputs = x if beside is None else torch.cat([x, beside], dim=1)
            return net(inputs.to(dtype), t, context=context).to(x.dtype)

        more = {} if beside is None else {"beside": beside}
        cond, uncond = {"context": self.encode_text(prompts), **more}, {"context": self.encode_text(unprompted), **more}
        denoise = classifier_free(ask, cond, uncond, guidance_scale, self.predicts)
        return clipped(denoise, self.recipe.clip) if self.recipe.clip and sampler in (None, self.recipe.sampler) else denoise

    def _run(self, denoise, x, levels, sampler, generator) -> Iterator[State]:
        sampler = sampler or self.recipe.sampler
        options = {"generator": generator} if sampler in (ddim, ddpm) else {}  # the others draw nothing
        yield from tqdm(sampler(denoise, x, levels, **options), total=len(levels) - 1, disable=not self.progress, leave=False)

    def _empty(self, shape: tuple) -> Tensor:
        weight = next(self.unet.parameters())
        return torch.empty(shape, device=weight.device, dtype=torch.promote_types(weight.dtype, torch.float32))

    # ---- between pictures and latents -------------------------------------------------------------------------------

    def encode(self, image: Tensor, generator: torch.Generator | None = None, sample: bool = True) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> latents (B, C, H/8, W/8) of about unit variance, drawn from the VAE's Gaussian.

        sample=False takes its mean. ValueError for another shape, for values outside [-1, 1], for odd sizes.
        """
        return to_latents(self.vae, image, generator, sample, self.tile).to(self._empty(()))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> images (B, 3, 8h, 8w) in [-1, 1]."""
        return to_images(self.vae, latents, self.tile)

    # ---- from a picture and words to a picture ----------------------------------------------------------------------

    @torch.no_grad()
    def img2img(self, prompt: str | list[str], image: Tensor, strength: float = 0.8, generator: torch.Generator | None = None,
                **options) -> Tensor:  # fmt: skip
        """The picture, redrawn after the prompt: noised to the level at `strength` of the walk, and denoised from there.

        image: (1 or B, 3, H, W) in [-1, 1]. strength: 0 gives the picture back, 1 forgets nearly all of it (SDEdit: Meng et
        al. 2022, section 3). options: negative_prompt, steps, guidance_scale, sampler, as in `walk`.
        """
        prompts, strength = listed(prompt), checked_strength(strength)
        z = matched("image", self.encode(image, generator), len(prompts))
        return self.decode(self._redraw(prompts, z, strength, generator, **options))

    @torch.no_grad()
    def depth2img(self, prompt: str | list[str], image: Tensor, depth: Tensor, strength: float = 0.8,
                  generator: torch.Generator | None = None, **options) -> Tensor:  # fmt: skip
        """img2img by a U-Net that sees, beside the latents, how far away everything is (5 channels, Stable Diffusion 2).

        depth: (1 or B, 1, H, W), in any unit, larger is nearer: it is scaled to [-1, 1] for each picture.
        """
        self._wants(self.vae.config["latent_channels"] + 1, "depth2img")
        prompts, strength = listed(prompt), checked_strength(strength)
        beside = matched("depth", depth_map(depth, image, self.vae.stride).to(self._empty(())), len(prompts))
        z = matched("image", self.encode(image, generator), len(prompts))
        return self.decode(self._redraw(prompts, z, strength, generator, beside=beside, **options))

    @torch.no_grad()
    def inpaint(self, prompt: str | list[str], image: Tensor, mask: Tensor, strength: float = 1.0,
                generator: torch.Generator | None = None, **options) -> Tensor:  # fmt: skip
        """The picture with new content where the mask is 1: (1 or B, 1, H, W), 0 keeps what is there, 1/2 and more repaints.

        A U-Net of 9 channels sees the mask and the rest of the picture beside the latents. One of 4 knows of neither: at
        every step what is known takes the place of what it guessed, `inpainting`.
        """
        prompts, channels = listed(prompt), self.vae.config["latent_channels"]
        strength, blind = checked_strength(strength), self.unet.config["in_channels"] == channels
        if not blind:
            self._wants(2 * channels + 1, "inpaint")
        here = matched("mask", small_mask(mask, image, self.vae.stride).to(self._empty(())), len(prompts))
        shape = (len(prompts), channels, *here.shape[2:])
        z = matched("image", self.encode(image, generator), len(prompts)) if blind or strength < 1 else here.new_zeros(shape)
        noise = randn_like(z, generator)
        told = {"noise": noise, "pure": strength == 1, **options}
        if blind:
            x = self._redraw(prompts, z, strength, generator, known=(z, here), **told)
            return self.decode(torch.lerp(z, x, here))
        rest = matched("image", self.encode(image * (mask.to(image) < 0.5), generator), len(prompts))
        beside = torch.cat([here, rest], dim=1)
        return self.decode(self._redraw(prompts, z, strength, generator, beside=beside, **told))

    def _redraw(self, prompts, z, strength, generator, *, negative_prompt="", steps=50, guidance_scale=7.5, sampler=None,
                noise=None, pure=False, known=None, beside=None) -> Tensor:  # fmt: skip
        """Latents z, noised to the level that lies `strength` of the way up and walked down again; pure: from noise alone."""
        levels = self.recipe.levels(steps, sampler)
        levels = levels[max(0, len(levels) - 1 - int(steps * strength)) :]
        if int(steps * strength) == 0:
            return z
        denoise = self.denoiser(prompts, negative_prompt, guidance_scale, sampler, beside)
        noise = randn_like(z, generator) if noise is None else noise
        if known:
            denoise = inpainting(denoise, *known, noise)
        x = self.recipe.start(noise, levels[0], sampler) if pure else add_noise(z, noise, levels[0])
        *_, last = self._run(denoise, x, levels, sampler, generator)
        return last.x

    def _wants(self, channels: int, name: str) -> None:
        has = self.unet.config["in_channels"]
        if has != channels:
            raise ValueError(f"pipe.{name} needs a U-Net that takes {channels} channels, and this one takes {has}: load a "
                             f"checkpoint that was made for {name}")

    # ---- from a picture back to its noise ---------------------------------------------------------------------------

    def invert(self, image: Tensor, prompt: str | list[str], steps: int = 50, guidance_scale: float = 1.0) -> Tensor:
        """The noise, (B, C, h, w), from which this picture, (1 or B, 3, H, W), would have come. Back to it, nearly, leads

            pipe(prompt, latents=noise, steps=steps, guidance_scale=1, sampler=ddim)

        It climbs the very levels the sampler descends. Without guidance by default: inversion goes back along the path on
        which the picture is likely under its prompt, and a guided path is that of an exaggerated picture, which this one is
        not; each step up would undo a step that was never taken, and the errors add up.
        """
        *_, last = self._climb(image, prompt, steps, guidance_scale)
        return last.x

    @torch.no_grad()
    def edit(self, image: Tensor, source_prompt: str | list[str], target_prompt: str | list[str], steps: int = 50,
             start: int = 10, negative_prompt: str | list[str] = "", guidance_scale: float = 7.5) -> Tensor:  # fmt: skip
        """The picture that source_prompt describes, inverted, then drawn again after target_prompt: (B, 3, H, W).

        start: how many of the first steps are left out. 0 begins at the noise and changes most; near `steps`, little changes.
        """
        if not 0 <= start < steps:
            raise ValueError(f"start = {start} of {steps} steps: leave out 0 to {steps - 1}")
        levels, targets = self.recipe.levels(steps, ddim), listed(target_prompt)
        states = list(self._climb(image, source_prompt, steps, 1.0))  # states[-1] is at levels[0], states[-2] at levels[1], ...
        x = matched("image", states[max(-1 - start, -len(states))].x, len(targets))
        denoise = self.denoiser(targets, negative_prompt, guidance_scale, ddim)
        *_, last = self._run(denoise, x, levels[min(start, len(states) - 1) :], ddim, None)
        return self.decode(last.x)

    def _climb(self, image, prompt, steps, guidance_scale) -> Iterator[State]:
        prompts, levels = listed(prompt), self.recipe.levels(steps, ddim)
        z = matched("image", self.encode(image, sample=False), len(prompts))
        walk = invert(self.denoiser(prompts, "", guidance_scale, ddim), z, levels)
        yield from tqdm(walk, total=len(levels) - 1, disable=not self.progress, leave=False)
