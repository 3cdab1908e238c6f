"""Stable Diffusion 3, whole: a transformer that reads words and picture in one row, on a rectified flow (Esser et al. 2024).

    pipe = StableDiffusion3.from_pretrained("stabilityai/stable-diffusion-3-medium-diffusers", torch.bfloat16, "cuda")
    image = pipe("a photograph of a puppy", generator=torch.Generator().manual_seed(42))     # (1, 3, 1024, 1024) in [-1, 1]

Four things differ from Stable Diffusion 1 and 2, and none of them is how a walk goes (`TextToImage`): an MMDiT in place of the
U-Net, two text encoders whose answers are joined, 16 latent channels, and levels of a flow.

A third text encoder, T5 with 4.7 billion parameters, is not here and never loaded. It would write more tokens, and zeros stand
in their place. The MMDiT has learned to read those: in training each of the three encoders fell silent in nearly half of the
cases, so that memory can be saved in just this way (section 5.3.3: pictures lose little, and letters in them a lot).
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..nets import VAE, CLIPText, MMDiT
from ..nets.clip import Text
from ..pretrained import Recipe, Tokenizer
from .inputs import listed
from .parts import load_parts
from .text_to_image import TextToImage


class StableDiffusion3(TextToImage):
    """pipe(prompt) -> images (B, 3, H, W) in [-1, 1], one for each prompt. What is wrong is a ValueError before the first step.

    Its parts are public: mmdit, vae, text_encoder (CLIP ViT-L/14), text_encoder_2 (OpenCLIP bigG/14), tokenizer, tokenizer_2;
    schedule and predicts, what the MMDiT was trained on; recipe, which knows the sampler and its levels. size: height and
    width where none are asked for. pipe.tile and pipe.progress as in StableDiffusion.
    pipe.t5_tokens: how many zeros stand for T5. The picture attends to them too, so their number changes it: 256 as diffusers
    has it, 77 in figure 2 of the paper.
    """

    steps, guidance_scale = 28, 7.0
    t5_tokens = 256

    def __init__(self, mmdit: MMDiT, vae: VAE, text_encoder: CLIPText, text_encoder_2: CLIPText, tokenizer: Tokenizer,
                 tokenizer_2: Tokenizer, recipe: Recipe, size: int = 1024):  # fmt: skip
        super().__init__(vae, recipe, size)
        self.mmdit, self.text_encoder, self.text_encoder_2 = mmdit, text_encoder, text_encoder_2
        self.tokenizer, self.tokenizer_2 = tokenizer, tokenizer_2

    @classmethod
    def from_pretrained(cls, name: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu",
                        variant: str | None = None) -> "StableDiffusion3":  # fmt: skip
        """A folder in the format of diffusers, or the id of one on the hub; the third text encoder in it is not opened.

        dtype, variant and errors as in StableDiffusion.from_pretrained.
        """
        return cls(**load_parts("StableDiffusion3", name, dtype, device, variant))

    def encode_text(self, texts: str | list[str]) -> Text:
        """Texts -> Text(tokens (B, 77 + t5_tokens, D), pooled (B, P)); D = 4096, P = 2048 (Esser et al. 2024, figure 2a).

        tokens: what each encoder's last layer but one says, side by side, with zeros up to the width of T5; then zeros in its
        place. pooled: what each says of the whole text, side by side. ValueError for a text that does not fit into 77 tokens.
        """
        texts, encoders = listed(texts), ((self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2))
        device = next(self.text_encoder.parameters()).device
        said = [encoder(tokenizer(texts).to(device), skip=1, final_norm=False) for tokenizer, encoder in encoders]
        tokens, pooled = (torch.cat(both, dim=-1) for both in zip(*said, strict=True))
        return Text(pad(tokens, (0, self.mmdit.config["context_dim"] - tokens.shape[2], 0, self.t5_tokens)), pooled)

    # ---- what TextToImage asks of a model ---------------------------------------------------------------------------

    @property
    def net(self) -> MMDiT:
        """The MMDiT."""
        return self.mmdit

    def cond(self, texts: list[str]) -> dict[str, Tensor]:
        """{"context": tokens (B, 77 + t5_tokens, D), "pooled": (B, P)}"""
        return dict(zip(("context", "pooled"), self.encode_text(texts), strict=True))

    @property
    def stride(self) -> int:
        """What height and width of a picture divide by: a token is a patch of latents."""
        return self.vae.stride * self.mmdit.stride
