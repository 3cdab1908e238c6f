"""From a class label to a picture: the smallest whole model, a U-Net or DiT on pixels and the schedule it was trained on."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..diffusion import Schedule, State, classifier_free, clipped, ddim, denoiser
from ..diffusion.samplers import draws, randn_like
from ..nets import DiT, UNet
from ..training import load, save


class ClassToImage:
    """pipe(labels) -> images (B, C, size, size) in [-1, 1]. `ClassToImage.load(folder)` opens what `train` wrote.

    Without classes, labels only say how many images to draw.
    """

    def __init__(self, net: UNet | DiT, schedule: dict, predicts: str, size: int, classes: list[str]):
        self.net, self.predicts, self.size, self.classes = net, predicts, size, classes
        self.schedule_config = schedule
        self.schedule = make_schedule(**schedule)

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> "ClassToImage":
        """Open a run's folder: config.json and model.safetensors. FileNotFoundError or ValueError if it is not one."""
        net, about = load(folder, device)
        try:
            return cls(net, **{name: about[name] for name in ("schedule", "predicts", "size", "classes")})
        except KeyError as error:
            raise ValueError(f"{folder}/config.json has no {error}: it was not written by `minidiff train`") from error

    def save(self, folder: str | Path, **about) -> Path:
        """Write the folder that `load` opens; about: more JSON data to keep beside it, such as how it was trained."""
        return save(folder, self.net, schedule=self.schedule_config, predicts=self.predicts, size=self.size,
                    classes=self.classes, **about)

    def __call__(self, labels: Tensor, **options) -> Tensor:
        """Images (B, C, size, size) in [-1, 1] for labels (B,); options as in `walk`."""
        *_, last = self.walk(labels, **options)
        return last.x.clamp(-1, 1)

    @torch.no_grad()
    def walk(
        self,
        labels: Tensor,  # (B,) integers, 0 ... len(classes) - 1
        steps: int = 50,
        guidance_scale: float = 1.0,  # 1: plain conditional; 1.5 to 3: clearer, less varied
        sampler=ddim,  # or any other
        spacing: str = "trailing",  # of the steps; starts at the noisiest level, whatever the schedule
        generator: torch.Generator | None = None,  # of the noise the walk begins with
    ) -> Iterator[State]:
        """The sampler's states on the way from noise to images, to be looked at. Raises ValueError for a bad label."""
        device = next(self.net.parameters()).device
        labels = labels.to(device)
        x = randn_like(torch.empty(len(labels), self.net.config["in_channels"], self.size, self.size, device=device), generator)
        levels = self.schedule.levels(steps, spacing)
        x = x.to(memory_format=torch.channels_last)
        options = {"generator": generator} if draws(sampler) else {}
        yield from sampler(self.denoiser(labels, guidance_scale), levels[0].sigma * x, levels, **options)

    def denoiser(self, labels: Tensor, guidance_scale: float = 1.0):
        """What a sampler walks: this network asked for these labels."""
        guided = self._guided(labels, guidance_scale)
        return clipped(guided) if self.predicts == "eps" else guided  # only from eps does x0 come out far too large

    def _guided(self, labels: Tensor, guidance_scale: float):
        if not self.classes:
            return denoiser(self.net, self.predicts)
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.classes):
            raise ValueError(f"label {int(labels.max() if labels.max() >= len(self.classes) else labels.min())} is none of the "
                             f"{len(self.classes)} classes: take 0 to {len(self.classes) - 1}")
        anything = torch.full_like(labels, self.net.null_class)
        return classifier_free(self.net, {"y": labels}, {"y": anything}, guidance_scale, self.predicts)


def make_schedule(name: str, zero_terminal_snr: bool = False, **options) -> Schedule:
    """A schedule from its JSON description: {"name": "linear" | "scaled_linear" | "cosine" | "flow", ...}.

    Raises ValueError for an unknown name.
    """
    if name not in ("linear", "scaled_linear", "cosine", "flow"):
        raise ValueError(f'unknown schedule "{name}": take linear, scaled_linear, cosine or flow')
    schedule = getattr(Schedule, name)(**options)
    return schedule.zero_terminal_snr() if zero_terminal_snr else schedule
