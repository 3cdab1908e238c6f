"""Stable Diffusion 1 and 2, whole: a prompt in, a picture out, and a picture in (Rombach et al. 2022).

    pipe = StableDiffusion.from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5")    # or a folder on this disk
    image = pipe("a photograph of a puppy", generator=torch.Generator().manual_seed(42))     # (1, 3, 512, 512) in [-1, 1]

Nothing here is new. The text encoder turns the prompt into tokens, the VAE turns pictures into latents and back, and
between them a U-Net that reads the tokens is guided, as any denoiser, down a list of levels. All of that is `TextToImage`;
what stands here is which parts there are, and the two U-Nets that see more than latents and words.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..diffusion.samplers import randn_like
from ..nets import VAE, CLIPText, UNet, remembering
from ..pretrained import Recipe, Tokenizer
from .inputs import checked_strength, depth_map, listed, matched, pasted, small_mask
from .own import save_own
from .parts import load_parts
from .text_to_image import TextToImage


class StableDiffusion(TextToImage):
    """pipe(prompt) -> images (B, 3, H, W) in [-1, 1], one for each prompt. What is wrong is a ValueError before the first step.

    Its parts are public: unet, vae, text_encoder, tokenizer; schedule and predicts, what the U-Net was trained on; recipe,
    which knows the checkpoint's own sampler and its levels. size: height and width where none are asked for.
    Set pipe.tile = 64 to have the VAE take large pictures in pieces of 64x64 latents, pipe.progress = False for no bars.
    """

    def __init__(self, unet: UNet, vae: VAE, text_encoder: CLIPText, tokenizer: Tokenizer, recipe: Recipe, size: int = 512):
        super().__init__(vae, recipe, size)
        self.unet, self.text_encoder, self.tokenizer = unet, text_encoder, tokenizer

    @classmethod
    def from_pretrained(cls, name: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu",
                        variant: str | None = None) -> "StableDiffusion":  # fmt: skip
        """"shapes", which comes with minidiff; a folder that `save` wrote, or one in the format of diffusers; or the id of one
        on the hub. variant: "fp16" reads the files of that name.

        dtype: of the networks; latents stay in float32 between their calls. FileNotFoundError or ValueError for a part that
        is missing, damaged, a pickle, or of a class we do not have, and then nothing is returned.
        """
        parts = load_parts("StableDiffusion", name, dtype, device, variant)
        settings = parts.pop("settings", {})
        pipe = cls(**parts)
        vars(pipe).update(settings)  # size, and the steps and guidance_scale of a walk that is told of none
        return pipe

    def save(self, folder: str | Path, dtype: torch.dtype | None = None, elsewhere: dict[str, Path] | None = None,
             **about) -> Path:  # fmt: skip
        """Write a folder that from_pretrained opens: every part in our own format, weights in `dtype` (None: as they are).

        elsewhere: part -> folder, for parts that need not be written because they are there. about: kept beside the U-Net.
        """
        return save_own(self, folder, dtype, elsewhere or {}, about)

    def encode_text(self, texts: str | list[str]) -> Tensor:
        """Texts -> (B, 77, D), what the U-Net reads. ValueError for a text that does not fit into 77 tokens."""
        device = next(self.text_encoder.parameters()).device
        return self.text_encoder(self.tokenizer(listed(texts)).to(device)).tokens

    # ---- what TextToImage asks of a model ---------------------------------------------------------------------------

    @property
    def net(self) -> UNet:
        """The U-Net."""
        return self.unet

    @property
    def stride(self) -> int:
        """The VAE's stride, and the U-Net's patches of latents: what height and width of a picture divide by."""
        return self.vae.stride * self.unet.config.get("patch", 1)

    def cond(self, texts: list[str]) -> dict[str, Tensor]:
        """{"context": tokens (B, 77, D)}"""
        return {"context": self.encode_text(texts)}

    def ask(self) -> Callable:
        """A function (x, t, context, beside=None) that asks the U-Net about x, with the channels of `beside` below its own.

        The keys and values of the prompts are computed at the first step only; they do not depend on what is drawn.
        """
        net = remembering(self.unet)

        def answer(x: Tensor, t: Tensor, context: Tensor, beside: Tensor | None = None) -> Tensor:
            return net(x if beside is None else torch.cat([x, beside], dim=1), t, context=context)

        return answer

    # ---- U-Nets that see more than latents and words ----------------------------------------------------------------

    @torch.no_grad()
    def depth2img(self, prompt: str | list[str], image: Tensor, depth: Tensor, strength: float = 0.8,
                  generator: torch.Generator | None = None, **options) -> Tensor:  # fmt: skip
        """img2img by a U-Net that sees, beside the latents, how far away everything is (5 channels, Stable Diffusion 2).

        depth: (1 or B, 1, H, W), in any unit, larger is nearer: it is scaled to [-1, 1] for each picture.
        """
        self._wants(self.vae.config["latent_channels"] + 1, "depth2img")
        prompts, strength = listed(prompt), checked_strength(strength)
        beside = matched("depth", depth_map(depth, image, self.vae.stride).to(self._empty(())), len(prompts))
        z = self._known(image, len(prompts), generator)
        return self.decode(self._redraw(prompts, z, strength, generator, beside=beside, **options))

    @torch.no_grad()
    def inpaint(self, prompt: str | list[str], image: Tensor, mask: Tensor, strength: float = 1.0,
                generator: torch.Generator | None = None, paste: bool = True, **options) -> Tensor:  # fmt: skip
        """The picture with new content where the mask is 1: (1 or B, 1, H, W), 0 keeps what is there, 1/2 and more repaints.

        A U-Net of 9 channels sees the mask and the rest of the picture beside the latents. One of 4 knows of neither: at
        every step what is known takes the place of what it guessed, `inpainting`.
        paste: put the pixels back that were to be kept, at the price of a seam; see `TextToImage.inpaint`.
        """
        channels = self.vae.config["latent_channels"]
        if self.unet.config["in_channels"] == channels:
            return super().inpaint(prompt, image, mask, strength, generator, paste, **options)
        prompts, strength = listed(prompt), checked_strength(strength)
        self._wants(2 * channels + 1, "inpaint")
        here = matched("mask", small_mask(mask, image, self.vae.stride).to(self._empty(())), len(prompts))
        shape = (len(prompts), channels, *here.shape[2:])
        z = self._known(image, len(prompts), generator) if strength < 1 else here.new_zeros(shape)
        noise = randn_like(z, generator)
        rest = self._known(image * (mask.to(image) < 0.5), len(prompts), generator)
        drawn = self.decode(self._redraw(prompts, z, strength, generator, noise=noise, pure=strength == 1,
                                         beside=torch.cat([here, rest], dim=1), **options))  # fmt: skip
        return pasted(drawn, image, mask) if paste else drawn

    def _wants(self, channels: int, name: str) -> None:
        has = self.unet.config["in_channels"]
        if has != channels:
            raise ValueError(f"pipe.{name} needs a U-Net that takes {channels} channels, and this one takes {has}: load a "
                             f"checkpoint that was made for {name}")
