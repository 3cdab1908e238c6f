"""Scenes made ready for stage three: encoded, read, masked, and kept on disk, for none of it changes from step to step."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..data.captions import TASKS, Captioned
from ..data.shapes import caption, draw, silhouettes
from ..nets import CLIPText
from ..pipelines.inputs import depth_map, small_mask
from ..pretrained import Tokenizer
from ..training.autoencoder import encode
from ..training.cache import cached, fingerprint


@lru_cache(maxsize=2)
def scenes(n: int, size: int, seed: int, brief: float = 0.0,
           tasks: tuple[str, ...] = TASKS) -> tuple[Tensor, list[str], Captioned]:  # fmt: skip
    """n captioned scenes to learn from: uint8 (n, 3, size, size), what they are said to be, and all that is known of them."""
    told = Captioned(n, size, seed, tasks=tasks, brief=brief)
    return *told.tensors(), told


class Cache:
    """The folder of what is computed once for scenes of this n, size and seed. ValueError for what other weights have made.

    fresh: all is computed anew, and overwrites what is there.
    """

    def __init__(self, folder: Path, n: int, size: int, seed: int, device: str = "cpu", fresh: bool = False,
                 brief: float = 0.0, tasks: Sequence[str] = TASKS):  # fmt: skip
        self.tasks = tuple(tasks)
        self.folder, self.of, self.device, self.fresh = folder, (n, size, seed), device, fresh
        self.pixels, self.captions, self.told = scenes(*self.of, brief, self.tasks)

    def latents(self, vae: nn.Module) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of the scenes' latents, of unit variance: float16 (n, C, h, w) each."""
        kept = self._get("latents", vae, lambda: encode(vae, self.pixels, None, self.device), 2 * self._room(vae))
        return _unit(vae, kept)

    def texts(self, name: str, tokenizer: Tokenizer, encoder: CLIPText, said: list[str]) -> Tensor:
        """What a frozen encoder makes of these sentences: float16 (n, L, D)."""
        ids = tokenizer(said)

        def read() -> dict[str, Tensor]:
            return {"tokens": torch.cat([encoder(part.to(self.device)).tokens.half().cpu() for part in ids.split(256)])}

        return self._get(f"texts_{name}", encoder, read, 2 * ids.numel() * encoder.config["dim"], said)["tokens"]

    def hidden(self, vae: nn.Module) -> tuple[Tensor, Tensor]:
        """Masks, and latents of the scenes with what they cover taken out: means and deviations, float16 (n, 1 + C, h, w)."""

        def make() -> dict[str, Tensor]:
            masks = torch.stack(list(self._masks()))
            small = small_mask(masks, self.pixels, vae.stride).half()
            return {"mask": small, **encode(vae, self.pixels, masks, self.device)}

        kept = self._get("inpaint", vae, make, 3 * self._room(vae))
        mean, std = _unit(vae, kept)
        return torch.cat([kept["mask"], mean], dim=1), torch.cat([torch.zeros_like(kept["mask"]), std], dim=1)

    def easy(self) -> tuple[Tensor, list[str]]:
        """Scenes to begin with: two objects that differ in shape and colour. Their numbers, and what is said of them then:
        everything, and always in the same order, so that the place of a word tells whose it is. ValueError: there are none.
        """
        scenes = {i: self.told.plan(i)[0] for i in range(len(self.pixels))}
        pairs = [i for i, a in scenes.items() if len(a) == 2 and a[0].shape != a[1].shape and a[0].colour != a[1].colour]
        if not pairs:
            raise ValueError(f"none of {len(scenes)} scenes shows two objects of two shapes and two colours: "
                             "give more scenes, or easy=0")
        return torch.tensor(pairs), [caption(scenes[i]) for i in pairs]

    def depths(self, stride: int) -> Tensor:
        """How near everything is, as `depth2img` will be told: float16 (n, 1, h, w), -1 farthest, 1 nearest."""
        drawn = (draw([self.told.plan(i)[0] for i in part], self.pixels.shape[-1])[1] for part in self._chunks())
        return torch.cat([depth_map(-depth, depth, stride).half() for depth in drawn])

    def _masks(self) -> Iterator[Tensor]:
        """One for each scene, (1, H, W): a box anywhere, a box round one object, or all objects and a little more."""
        n, size, seed = self.of
        for i in range(n):
            random, things = np.random.default_rng([seed, i, 9]), self.told.plan(i)[0]
            kind, mask = int(random.random() * 3), torch.zeros(1, size, size)
            if kind == 2:
                yield (silhouettes(things, size, grow=1.3).amax(0, keepdim=True) > 0).float()
                continue
            x, y, half = (random.random(), random.random(), 0.1 + 0.3 * random.random())
            if kind == 1:
                x, y, half = things[0].x, things[0].y, things[0].radius * (1.1 + 0.3 * random.random())
            top, bottom, left, right = (round(size * min(max(v, 0), 1)) for v in (y - half, y + half, x - half, x + half))
            mask[:, top:bottom, left:right] = 1
            yield mask

    def _chunks(self, chunk: int = 128) -> Iterator[range]:
        n = self.of[0]
        return (range(k, min(k + chunk, n)) for k in range(0, n, chunk))

    def _room(self, vae: nn.Module) -> int:
        n, size, _ = self.of
        return 2 * n * vae.config["latent_channels"] * (size // vae.stride) ** 2  # bytes in half precision

    @torch.no_grad()
    def _get(self, name: str, net: nn.Module, make, room: int, said: list[str] | None = None) -> dict[str, Tensor]:
        made_by = fingerprint(net, scenes=[*self.of, *self.tasks], said=said)
        return cached(self.folder / f"{name}.safetensors", made_by, make, self.fresh, room)


def _unit(vae: nn.Module, kept: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Latents as the VAE gives them -> as a U-Net is trained on them."""
    return ((kept["mean"].float() - vae.shift) * vae.scale).half(), (kept["std"].float() * vae.scale).half()
