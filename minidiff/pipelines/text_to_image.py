"""What every latent text-to-image model does, whichever network it asks: Stable Diffusion 1, 2 and 3 differ in little else.

A prompt becomes keyword arguments of a network, the VAE turns pictures into latents and back, and between the two a guided
denoiser walks a list of levels. A picture from words, one redrawn, repainted, inverted or edited are five such walks.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..diffusion import (
    Denoiser,
    Sampler,
    State,
    add_noise,
    between,
    by_difference,
    classifier_free,
    clipped,
    ddim,
    inpainting,
    invert,
    perturbed_guidance,
)
from ..diffusion.samplers import draws, randn_like
from ..nets import VAE, CrossAttention, borrowed_attention, perturbed
from ..pretrained import Recipe
from .inputs import checked_strength, listed, matched, pasted, redraw_levels, settling, small_mask
from .latents import to_images, to_latents


class TextToImage:
    """pipe(prompt) -> images (B, 3, H, W) in [-1, 1]. A model adds its network and how prompts become what it is asked with:

        net            the network: `config`, and parameters that say on which device and in which dtype all is computed
        ask()          -> a function (x, t, **cond) for one walk; the network itself unless a walk has something to remember
        cond(texts)    -> {"context": tokens, ...}, a row for each text

    Set pipe.tile = 64 to have the VAE take large pictures in pieces of 64x64 latents, pipe.progress = False for no bars.
    """

    steps, guidance_scale = 50, 7.5  # of a walk that is told of none
    pag_scale = 0.0  # and how far it is led away from the network that does not look around, see `nets.perturbed`: 0 not at all
    pag_layers: tuple[str, ...] = ("mid",)  # where it does not
    pag_from = 0.0  # the least sigma at which it is led away: near the clean end outlines are what suffers

    def __init__(self, vae: VAE, recipe: Recipe, size: int):
        self.vae, self.recipe, self.size = vae, recipe, size
        self.schedule, self.predicts = recipe.schedule, recipe.predicts
        self.tile: int | None = None
        self.progress = True

    net: nn.Module

    def cond(self, texts: list[str]) -> dict[str, Tensor]:
        """What the network is asked with for these texts: keyword arguments, a row for each text."""
        raise NotImplementedError

    def ask(self) -> Callable:
        """A function (x, t, **cond) -> what the network answers, for one walk."""
        return self.net

    @property
    def stride(self) -> int:
        """What height and width of a picture divide by."""
        return self.vae.stride

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
        steps: int | None = None,  # None: pipe.steps, which is 50, and 28 in Stable Diffusion 3
        guidance_scale: float | None = None,  # None: pipe.guidance_scale; 1: plain conditional; higher: closer, less varied
        height: int | None = None,
        width: int | None = None,
        latents: Tensor | None = None,  # (B, C, height/8, width/8), standard normal: the noise to begin with
        generator: torch.Generator | None = None,  # of that noise, if it is not given
        sampler: Sampler | None = None,  # None: the checkpoint's own
        pag_scale: float | None = None,  # of perturbed-attention guidance, `perturbed_guidance`; None: pipe.pag_scale; 0: none
    ) -> Iterator[State]:
        """The sampler's states, latents (B, C, height/8, width/8) from noise to clean; `decode` shows what is in them."""
        prompts, channels, takes = listed(prompt), self.vae.config["latent_channels"], self.net.config["in_channels"]
        if takes != channels:
            raise ValueError(f"this {type(self.net).__name__} takes {takes} channels, not the {channels} of a latent: "
                             "it was made for pipe.inpaint (9) or pipe.depth2img (5)")
        height, width, stride = height or self.size, width or self.size, self.vae.stride
        self._fits(height, width)
        shape = (len(prompts), channels, height // stride, width // stride)
        if latents is not None and tuple(latents.shape) != shape:
            raise ValueError(f"latents of shape {tuple(latents.shape)}: {len(prompts)} of {height}x{width} take {shape}")
        levels = self.recipe.levels(self.steps if steps is None else steps, sampler)
        away = self.pag_scale if pag_scale is None else pag_scale
        denoise = self.denoiser(prompts, negative_prompt, guidance_scale, sampler, pag_scale=away)
        noise = randn_like(self._empty(shape), generator) if latents is None else latents.to(self._empty(()))
        yield from self._run(denoise, self.recipe.start(noise, levels[0], sampler), levels, sampler, generator)

    @torch.no_grad()
    def denoiser(self, prompts: list[str], negative_prompt: str | list[str] = "", guidance_scale: float | None = None,
                 sampler: Sampler | None = None, beside: Tensor | None = None, pag_scale: float = 0.0) -> Denoiser:  # fmt: skip
        """What a sampler walks: the network asked for these prompts. beside: channels (B, C, h, w) it sees at every step.

        pag_scale: of perturbed-attention guidance, where sigma >= pipe.pag_from; whoever inverts or edits wants none.
        ValueError for pag_layers that there are not.
        """
        unprompted = matched("negative_prompt", listed(negative_prompt), len(prompts))
        net, dtype = self.ask(), next(self.net.parameters()).dtype
        more = {} if beside is None else {"beside": beside.to(dtype)}

        def answer(x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
            return net(x.to(dtype), t, **cond).to(x.dtype)

        scale = self.guidance_scale if guidance_scale is None else guidance_scale
        told = self.cond(prompts) | more, self.cond(unprompted) | more, scale
        denoise = classifier_free(answer, *told, self.predicts)
        if pag_scale:
            seeing = perturbed(answer, self.net, self.pag_layers)
            denoise = between(perturbed_guidance(seeing, *told, pag_scale, self.predicts), denoise, self.pag_from, 1.0)
        return clipped(denoise, self.recipe.clip) if self.recipe.clip and sampler in (None, self.recipe.sampler) else denoise

    def _run(self, denoise, x, levels, sampler, generator) -> Iterator[State]:
        sampler = sampler or self.recipe.sampler
        options = {"generator": generator} if draws(sampler) else {}
        yield from tqdm(sampler(denoise, x, levels, **options), total=len(levels) - 1, disable=not self.progress, leave=False)

    def _fits(self, height: int, width: int) -> None:
        if height % self.stride or width % self.stride:
            raise ValueError(f"{height}x{width} pixels: height and width must divide by {self.stride}")

    def _empty(self, shape: tuple) -> Tensor:
        weight = next(self.net.parameters())
        return torch.empty(shape, device=weight.device, dtype=torch.promote_types(weight.dtype, torch.float32))

    # ---- between pictures and latents -------------------------------------------------------------------------------

    def encode(self, image: Tensor, generator: torch.Generator | None = None, sample: bool = True) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> latents (B, C, H/8, W/8) of about unit variance, drawn from the VAE's Gaussian.

        sample=False takes its mean. ValueError for another shape, for values outside [-1, 1], for odd sizes.
        """
        self._fits(*image.shape[-2:])
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
        al. 2022, section 3). options: negative_prompt, steps, guidance_scale, pag_scale, sampler, as in `walk`.
        """
        prompts, strength = listed(prompt), checked_strength(strength)
        z = self._known(image, len(prompts), generator)
        return self.decode(self._redraw(prompts, z, strength, generator, **options))

    @torch.no_grad()
    def inpaint(self, prompt: str | list[str], image: Tensor, mask: Tensor, strength: float = 1.0,
                generator: torch.Generator | None = None, paste: bool = True, **options) -> Tensor:  # fmt: skip
        """The picture with new content where the mask is 1: (1 or B, 1, H, W), 0 keeps what is there, 1/2 and more repaints.

        The network knows of neither: at every step what is known takes the place of what it guessed, `inpainting`.
        paste: put the pixels back that were to be kept. The decoder sees all latents at once, so it moves those too, and what
        the VAE loses is lost everywhere; the price is a seam where the mask ends. False: as the decoder leaves it.
        """
        prompts, strength = listed(prompt), checked_strength(strength)
        here = matched("mask", small_mask(mask, image, self.vae.stride).to(self._empty(())), len(prompts))
        z = self._known(image, len(prompts), generator)
        x = self._redraw(prompts, z, strength, generator, mask=here, pure=strength == 1, **options)
        drawn = self.decode(torch.lerp(z, x, here))
        return pasted(drawn, image, mask) if paste else drawn

    def _known(self, image: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
        matched("image", image, n)  # refused, if it must be, before the VAE has worked for it
        return matched("image", self.encode(image, generator), n)

    def _redraw(self, prompts, z, strength, generator, *, negative_prompt="", steps=None, guidance_scale=None, pag_scale=None,
                sampler=None, noise=None, pure=False, mask=None, beside=None) -> Tensor:  # fmt: skip
        """Latents z, noised to the level that lies `strength` of the way up and walked down again; pure: from noise alone."""
        steps = self.steps if steps is None else steps
        levels = redraw_levels(self.recipe.levels(steps, sampler), steps, strength)
        if len(levels) == 1:
            return z
        away = self.pag_scale if pag_scale is None else pag_scale
        denoise = self.denoiser(prompts, negative_prompt, guidance_scale, sampler, beside, away)
        noise = randn_like(z, generator) if noise is None else noise
        if mask is not None:
            denoise = inpainting(denoise, z, mask, noise)
        x = self.recipe.start(noise, levels[0], sampler) if pure else add_noise(z, noise, levels[0])
        *_, last = self._run(denoise, x, levels, sampler, generator)
        return last.x

    # ---- from a picture back to its noise ---------------------------------------------------------------------------

    def invert(self, image: Tensor, prompt: str | list[str], steps: int = 50, guidance_scale: float = 1.0,
               refine: int = 0) -> Tensor:  # fmt: skip
        """The noise, (B, C, h, w), from which this picture, (1 or B, 3, H, W), would have come. Back to it, nearly, leads

            pipe(prompt, latents=noise, steps=steps, guidance_scale=1, sampler=ddim)

        It climbs the very levels the sampler descends. Without guidance by default: inversion goes back along the path on
        which the picture is likely under its prompt, and a guided path is that of an exaggerated picture, which this one is
        not; each step up would undo a step that was never taken, and the errors add up. refine: see `diffusion.invert`.
        """
        *_, last = self._climb(image, prompt, steps, guidance_scale, refine)
        return last.x

    @torch.no_grad()
    def edit(self, image: Tensor, source_prompt: str | list[str], target_prompt: str | list[str], steps: int = 50,
             start: int = 10, negative_prompt: str | list[str] = "", guidance_scale: float | None = None, refine: int = 0,
             borrow: float = 0.0) -> Tensor:  # fmt: skip
        """The picture that source_prompt describes, inverted, then drawn again after target_prompt: (B, 3, H, W).

        start: how many of the first steps are left out. 0 begins at the noise and changes most; near `steps`, little changes.
        refine: of the inversion, see `diffusion.invert`. borrow: share of the steps down, from the noisy end, in which the new
        picture looks where the old one looks, which is drawn beside it (`nets.borrowed_attention`, Hertz et al. 2022): what
        stands where is decided there. With source_prompt as the negative one, guidance leads away from the old picture alone.
        ValueError for a start or a share that is none, prompts that do not match, and borrow where the network has no
        CrossAttention.
        """
        if not 0 <= start < steps:
            raise ValueError(f"start = {start} of {steps} steps: leave out 0 to {steps - 1}")
        levels, targets, n, sources = self._asked(steps, source_prompt, target_prompt, borrow)  # refused before the inversion
        away = matched("negative_prompt", listed(negative_prompt), n)
        states = list(self._climb(image, source_prompt, steps, 1.0, refine))  # [-1] is at levels[0], [-2] at levels[1], ...
        x, down = matched("image", states[max(-1 - start, -len(states))].x, n), levels[min(start, len(states) - 1) :]
        if not borrow:
            *_, last = self._run(self.denoiser(targets, away, guidance_scale, ddim), x, down, ddim, None)
            return self.decode(last.x)
        # The old picture's own prompt is its negative one: guidance adds nothing to it, and it comes back as it was.
        denoise = self.denoiser(sources + targets, sources + away, guidance_scale, ddim)
        with self._borrowing(borrow, n, down):
            *_, last = self._run(denoise, torch.cat([x, x]), down, ddim, None)
        return self.decode(last.x[n:])

    @torch.no_grad()
    def edit_by_difference(self, image: Tensor, source_prompt: str | list[str], target_prompt: str | list[str],
                           steps: int = 50, start: int = 5, guidance_scale: float = 2.0, borrow: float = 0.0,
                           generator: torch.Generator | None = None) -> Tensor:  # fmt: skip
        """The picture that source_prompt describes, changed by what target_prompt says otherwise: (B, 3, H, W) in [-1, 1].

        image: (1 or B, 3, H, W) in [-1, 1]. (Hertz, Aberman & Cohen-Or 2023; Kulikov et al. 2025.)

        No inversion: at every level both prompts are asked about the noised picture, and it moves by the difference of their
        answers (`diffusion.by_difference`), from step `start` on. The last sixth of the steps are plain ones, and wipe off
        what such moves leave at edges. guidance_scale: away from the source_prompt. borrow: as in `edit`; 1 is for a new
        colour in the old outline, 0 for a new outline, little for a new background. ValueError for a start or a share that is
        none, for prompts that do not match, and for borrow where the network has no CrossAttention.
        """
        settle = settling(steps)
        if not 0 <= start < steps - settle:
            raise ValueError(f"start = {start} of {steps} steps, of which the last {settle} are plain: leave out fewer")
        levels, targets, n, sources = self._asked(steps, source_prompt, target_prompt, borrow)
        z, down = matched("image", self.encode(image, sample=False), n), levels[start:]
        denoise = self.denoiser(sources + targets, sources + sources, guidance_scale, ddim)
        with self._borrowing(borrow, n, down):
            *_, last = self._run(denoise, z, down[: len(down) - settle], by_difference, generator)
            noise, here = randn_like(z, generator), down[-1 - settle]
            x = torch.cat([add_noise(z, noise, here), add_noise(last.x, noise, here)])
            *_, last = self._run(denoise, x, down[-1 - settle :], ddim, None)
        return self.decode(last.x[n:])

    def _asked(self, steps, source_prompt, target_prompt, borrow) -> tuple[list, list[str], int, list[str]]:
        """Levels, targets and how many, a source for each. ValueError for what does not fit."""
        if not 0 <= borrow <= 1:
            raise ValueError(f"borrow = {borrow}: a share of the steps, from 0 to 1")
        if borrow and not any(isinstance(module, CrossAttention) for module in self.net.modules()):
            raise ValueError(f"borrow = {borrow}: this {type(self.net).__name__} has no CrossAttention to borrow from")
        targets = listed(target_prompt)
        return (self.recipe.levels(steps, ddim), targets, len(targets),
                matched("source_prompt", listed(source_prompt), len(targets)))  # fmt: skip

    def _borrowing(self, share: float, n: int, levels) -> AbstractContextManager:
        """Of 2n rows the second n look where the first n look, in that share of the walk."""
        tau = levels[round(share * (len(levels) - 1))].t
        return borrowed_attention(self.net, 2 * [*range(n)], tau) if share else nullcontext()

    def _climb(self, image, prompt, steps, guidance_scale, refine) -> Iterator[State]:
        prompts, levels = listed(prompt), self.recipe.levels(steps, ddim)
        z = matched("image", self.encode(image, sample=False), len(prompts))
        walk = invert(self.denoiser(prompts, "", guidance_scale, ddim), z, levels, refine=refine)
        yield from tqdm(walk, total=len(levels) - 1, disable=not self.progress, leave=False)
