"""Tasks of chapter 13: a Gaussian of latents, the way into latent space and out of it, and pictures in overlapping tiles."""

import math
from itertools import product

import torch
from torch import nn
from torch.nn.functional import pad

from ...data import Shapes, from_pixels
from ...nets.tiling import tiled
from ...nets.vae import Gaussian
from ...pipelines.latents import to_images, to_latents
from ..task import Case, Law, Mistake, Task

IMAGES = from_pixels(Shapes(4, size=32, seed=13).tensors()[0])  # (4, 3, 32, 32)
RANDOM = torch.Generator().manual_seed(13)


def gaussian(std=lambda mean, logvar: (logvar / 2).exp(), clamp=True,
             kl=lambda mean, logvar: 0.5 * (mean**2 + logvar.exp() - 1 - logvar).flatten(1).sum(1),
             draw=lambda mean, logvar, std, generator: mean + std * torch.randn(mean.shape, generator=generator)):  # fmt: skip
    """Gaussian, with one of its parts replaced."""

    class Version:
        def __init__(self, mean, logvar):
            self.mean, self.logvar = mean, logvar.clamp(-30, 20) if clamp else logvar
            self.std = std(self.mean, self.logvar)

        def sample(self, generator=None):
            return draw(self.mean, self.logvar, self.std, generator)

        def kl(self):
            return kl(self.mean, self.logvar)

    return Version


def parts(f, mean, logvar):
    made = f(mean, logvar)
    return {"mean": made.mean, "std": made.std() if callable(made.std) else made.std, "kl()": made.kl()}


DOUBLE, HALVE, DECODE = nn.Upsample(scale_factor=2), nn.AvgPool2d(2), nn.Upsample(scale_factor=8)
STDS = torch.tensor([0.25, 2.0]).view(2, 1, 1, 1)  # of two images; neither is its own square, nor its own logarithm


def draws(f, generator=None):
    return f(torch.full((2, 4, 64, 64), 3.0), (2 * STDS.log()).expand(2, 4, 64, 64).clone()).sample(generator)


def lets_gradients_pass(f):
    mean, logvar = (torch.zeros(2, 4, 8, 8, requires_grad=True) for _ in range(2))
    f(mean, logvar).sample().square().sum().backward()
    return all(x.grad is not None and bool(x.grad.any()) for x in (mean, logvar))


def repeats(f):
    one, again, another = (draws(f, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    return one.equal(again) and not one.equal(another)


MIDDLE = "samples do not lie around the mean: eps is normal with mean 0 (torch.randn); torch.rand is uniform, all above 0."
SPREAD = "samples do not spread as far as std, each number for itself: it is mean + std * eps, with an eps for every number."
PASS = "no gradient reaches mean and logvar: draw eps from outside and compute mean + std * eps, which can be differentiated."
SEED = "the generator was given and not used: equal seeds should draw equal samples, other seeds others."
gaussian_task = Task(
    "13.1", "an encoder is never quite sure", Gaussian,
    ask=parts,
    cases=(
        # std 1 and 2; KL = ((1 + 1 - 1 - 0) + (0 + 4 - 1 - log 4)) / 2
        Case("two numbers by hand", (torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 1.3862944]]]])),
             {"mean": torch.tensor([[[[1.0, 0.0]]]]), "std": torch.tensor([[[[1.0, 2.0]]]]), "kl()": torch.tensor([1.306853])}),
        Case("four latents", (torch.randn(4, 3, 8, 8, generator=RANDOM), torch.randn(4, 3, 8, 8, generator=RANDOM))),
        Case("absurdly sure of it", (torch.ones(2, 1, 1, 3), torch.full((2, 1, 1, 3), -100.0))),
        Case("absurdly unsure", (torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 100.0))),
    ),
    mistakes=(
        Mistake("exp(logvar) is the variance: std is its square root.", gaussian(std=lambda mean, logvar: logvar.exp())),
        Mistake("the KL has the wrong sign: it is a distance, 0 for the standard normal and positive for all others.",
                gaussian(kl=lambda mean, logvar: 0.5 * (1 + logvar - mean**2 - logvar.exp()).flatten(1).sum(1))),
        Mistake("the KL of the standard normal from itself is 0, and not here: a constant is missing in the bracket.",
                gaussian(kl=lambda mean, logvar: 0.5 * (mean**2 + logvar.exp() - logvar).flatten(1).sum(1))),
        Mistake("the KL of a latent is the sum over its numbers; this is their mean, hundreds of times as small.",
                gaussian(kl=lambda mean, logvar: 0.5 * (mean**2 + logvar.exp() - 1 - logvar).flatten(1).mean(1))),
        Mistake("logvar is not held to [-30, 20], and a wild one makes std infinite: clamp it.", gaussian(clamp=False)),
        Mistake(MIDDLE, gaussian(draw=lambda mean, logvar, std, g: mean + std * torch.rand(mean.shape, generator=g))),
        Mistake(SPREAD, gaussian(draw=lambda mean, logvar, std, g: mean + std**2 * torch.randn(mean.shape, generator=g))),
        Mistake(PASS, gaussian(draw=lambda mean, logvar, std, g: torch.normal(mean.detach(), std.detach(), generator=g))),
        Mistake(SEED, gaussian(draw=lambda mean, logvar, std, g: mean + std * torch.randn(mean.shape))),
    ),
    laws=(Law(MIDDLE, lambda f: (draws(f).mean((1, 2, 3)) - 3).abs().max() < 0.1 or draws(f)[0].std() < 1e-6),
          Law(SPREAD, lambda f: (draws(f).std((1, 2, 3)) / STDS.flatten() - 1).abs().max() < 0.1),
          Law(PASS, lets_gradients_pass), Law(SEED, repeats)),
    hints=("Three formulas and a clamp. Keep the clamped logvar in __init__, and make everything else of it.",
           "std is (logvar / 2).exp(). For kl, sum over all axes but the first: .flatten(1).sum(1) does it for any shape.",
           "0.5 * (mean**2 + logvar.exp() - 1 - logvar).flatten(1).sum(1); "
           "mean + std * torch.randn(mean.shape, generator=generator)"),
)  # fmt: skip


class Toy(nn.Module):
    """A VAE that can be foretold: a latent is the mean of a square of 2x2 pixels, and decoding makes it a square again."""

    def __init__(self, scale, shift, std=0.1):
        super().__init__()
        self.scale, self.shift, self.stride = scale, shift, 2
        self.config = {"in_channels": 3, "latent_channels": 3}
        self.down, self.up = nn.Conv2d(3, 6, 2, stride=2), nn.ConvTranspose2d(3, 3, 2, stride=2)
        with torch.no_grad():
            for weights in self.parameters():
                weights.zero_()
            self.down.weight[:3] = torch.eye(3)[:, :, None, None] / 4
            self.down.bias[3:] = 2 * math.log(std)
            self.up.weight += torch.eye(3)[:, :, None, None]
        self.moments, self.decode = self.down, self.up

    def encode(self, x):
        return Gaussian(*self.moments(x).chunk(2, dim=1))


def encoding(formula, mean=None, sees=lambda x: x, checks=True):
    """to_latents by formula(z, scale, shift). mean: take it always (True), never (False), or as `sample` says (None)."""

    def version(vae, image, generator=None, sample=True, tile=None):
        if checks and image.abs().max() > 1.05:
            raise ValueError("not in [-1, 1]")
        moments = vae.moments(sees(image).to(next(vae.parameters()))).float()
        posterior = Gaussian(*moments.chunk(2, dim=1))
        z = posterior.mean if (not sample if mean is None else mean) else posterior.sample(generator)
        return formula(z, vae.scale, vae.shift)

    return version


def into(z, scale, shift):
    return (z - shift) * scale


def latent_spread(f):
    """The spread of latents that should have one of scale * std = 0.5 * 0.4, under two seeds."""
    vae, grey = Toy(0.5, 0.25, std=0.4), torch.zeros(4, 3, 64, 64)
    one, again, another = (f(vae, grey, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    return 0.18 < one.std() < 0.22 and one.equal(again) and not one.equal(another)


def refuses(f):
    try:
        return f(Toy(0.5, 0.25), 127.5 * (IMAGES + 1)) is None  # as bytes are; it should not get so far
    except ValueError:
        return True


STABLE = Toy(0.18215, 0.0)  # the numbers of Stable Diffusion 1 and 2
THREE, HALF = Toy(1.5305, 0.0609), Toy(1.5305, 0.0609).to(torch.bfloat16)  # of Stable Diffusion 3
SQUARE = torch.tensor([1.0, 0.5, 0.5, 0.0, -1.0, 0.0, 0.5, 0.0, 0.25, 0.25, 0.25, 0.25]).view(1, 3, 2, 2)
DRAWN = "by default a latent is drawn from the Gaussian, by the given generator: sample=True is no mean, and no other draw."
REFUSED = "values outside [-1, 1] should raise a ValueError: bytes, 0 to 255, go through a VAE without a sound."
to_latents_task = Task(
    "13.2", "a picture, as the U-Net wants it", to_latents,
    cases=(
        # block means 0.5, -0.125, 0.25; less the shift 0.25, times the scale 0.5
        Case("one latent by hand", (Toy(0.5, 0.25), SQUARE, None, False), torch.tensor([[[[0.125]], [[-0.1875]], [[0.0]]]])),
        Case("four pictures, the numbers of Stable Diffusion 1", (STABLE, IMAGES, None, False)),
        Case("four pictures, the numbers of Stable Diffusion 3", (THREE, IMAGES, None, False)),
        Case("a network in bfloat16; latents in float32", (HALF, IMAGES, None, False)),
    ),
    mistakes=(
        Mistake("these are the VAE's own latents: shift and scale them.", encoding(lambda z, scale, shift: z)),
        Mistake("divided by the scale: that is the way back.", encoding(lambda z, scale, shift: (z - shift) / scale)),
        Mistake("scaled first and shifted then: the shift is the mean of the latents as the VAE gives them, so it goes first.",
                encoding(lambda z, scale, shift: z * scale - shift)),
        Mistake("the shift is missing. Stable Diffusion 1 has none, so there nobody notices; 3 has one.",
                encoding(lambda z, scale, shift: z * scale)),
        Mistake("the scale is the VAE's own, vae.scale: 0.18215 is that of Stable Diffusion 1 and 2 alone.",
                encoding(lambda z, scale, shift: (z - shift) * 0.18215)),
        Mistake("the VAE was shown pixels from 0 to 1: it was trained on [-1, 1], and the image is in [-1, 1] already.",
                encoding(into, sees=lambda x: (x + 1) / 2)),
        Mistake("sample=False asks for the mean: this is drawn.", encoding(into, mean=False)),
        Mistake(DRAWN, encoding(into, mean=True)),
        Mistake(REFUSED, encoding(into, checks=False)),
    ),
    laws=(Law(DRAWN, latent_spread), Law(REFUSED, refuses)),
    hints=("The VAE answers a Gaussian. Which of its numbers become the latent, and what two numbers of the VAE come on top?",
           "weight = next(vae.parameters()) knows dtype and device: image.to(weight) goes in. vae.moments(...) is mean and "
           "logvar in one tensor, to be taken to float32 and cut by .chunk(2, dim=1).",
           "z = posterior.sample(generator) if sample else posterior.mean; return (z - vae.shift) * vae.scale"),
)  # fmt: skip


def decoding(formula, bound=lambda x: x.clamp(-1, 1)):
    return lambda vae, latents, tile=None: bound(
        vae.decode(formula(latents, vae.scale, vae.shift).to(next(vae.parameters()))).to(latents.dtype))  # fmt: skip


def back(z, scale, shift):
    return z / scale + shift


SEEN = to_latents(THREE, IMAGES, sample=False)
LOUD = 1.4 * IMAGES[:, :, ::2, ::2]  # latents that decode beyond [-1, 1]
to_images_task = Task(
    "13.3", "and back: a picture to look at", to_images,
    cases=(
        # 0.125 / 0.5 + 0.25, -0.75 / 0.5 + 0.25, 0.5 / 0.5 + 0.25 = 1.25, which is too bright
        Case("one latent by hand", (Toy(0.5, 0.25), torch.tensor([0.125, -0.75, 0.5]).view(1, 3, 1, 1)),
             torch.tensor([0.5, -1.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)),
        Case("four pictures, the numbers of Stable Diffusion 1", (STABLE, to_latents(STABLE, IMAGES, sample=False))),
        Case("four pictures, the numbers of Stable Diffusion 3", (THREE, SEEN)),
        Case("too bright, too dark", (Toy(1.0, 0.0), LOUD)),
        Case("a network in bfloat16, latents in float32", (HALF, SEEN)),
    ),
    mistakes=(
        Mistake("the decoder has its own latents: take scale and shift back first.", decoding(lambda z, scale, shift: z)),
        Mistake("multiplied by the scale, as on the way in.", decoding(lambda z, scale, shift: z * scale + shift)),
        Mistake("undo things in reverse: the scale came last, so it goes first, and the shift follows, outside the division.",
                decoding(lambda z, scale, shift: (z + shift) / scale)),
        Mistake("the shift is missing: it was taken off, so it is added.", decoding(lambda z, scale, shift: z / scale)),
        Mistake("a decoder is not bounded, and a picture is: hold it to [-1, 1].", decoding(back, bound=lambda x: x)),
        Mistake("pictures are in [-1, 1] here, not in [0, 1].", decoding(back, bound=lambda x: (x / 2 + 0.5).clamp(0, 1))),
    ),
    hints=("latent = (z - shift) * scale. Solve it for z.",
           "Give the decoder z in the dtype of its weights, next(vae.parameters()); take its answer to that of the latents.",
           "vae.decode(latents / vae.scale + vae.shift).clamp(-1, 1)"),
)  # fmt: skip


def covering(size, tile, overlap):
    return sorted({*range(0, size - tile, tile - overlap), max(0, size - tile)})


def up_and_down(n, fade, first=1.0):
    up = torch.arange(first, n + first)
    return torch.minimum(up, up.flip(0)).clamp(max=fade + 1)


def tiling(starts=covering, weigh=up_and_down, least=0.0, place=lambda at, scale: round(at * scale), share=True):
    """tiled, with one of its parts replaced. least: bound for the sum of weights; share: is it divided by?"""

    def version(fn, x, tile=64, overlap=16, scale=8):
        height, width = (round(side * scale) for side in x.shape[-2:])
        out, total, fade = 0, torch.zeros(height, width), round(overlap * scale)
        for top, left in product(*(starts(side, tile, overlap) for side in x.shape[-2:])):
            made = fn(x[..., top : top + tile, left : left + tile])
            h, w = made.shape[-2:]
            down, right = min(place(top, scale), height - h), min(place(left, scale), width - w)
            around = (right, width - w - right, down, height - h - down)
            weight = pad(weigh(h, fade)[:, None] * weigh(w, fade), around)
            out, total = out + pad(made, around) * weight, total + weight
        return out / total.clamp(min=least) if share else out

    return version


def widest(f):
    sides = []
    f(lambda x: (sides.extend(x.shape[-2:]), DOUBLE(x))[1], IMAGES, 16, 4, 2)
    return max(sides) <= 16


def seamless(f):
    """Tiles that disagree, on a slope: neighbours differ by 1/72 where they are blended, by 1/16 where averaged."""
    slope = torch.linspace(0, 1, 64).expand(1, 1, 64, 64)
    across, down = (f(lambda x: x.mean((2, 3), keepdim=True).expand_as(x), x, 16, 8, 1) for x in (slope, slope.mT))
    return across.diff(dim=3).abs().max() < 0.04 and down.diff(dim=2).abs().max() < 0.04


SEAM = "there are seams where tiles meet: the weight of a tile should grow from its edge over the width of the overlap."
PIECES = "the network was given more than a tile at once, which is what does not fit into memory."
tiled_task = Task(
    "13.4", "a picture too large for the network", tiled,
    cases=(
        Case("five pixels in a row, doubled, by hand", (DOUBLE, torch.arange(1.0, 6).view(1, 1, 1, 5), 3, 1, 2),
             torch.tensor([1.0, 1, 2, 2, 3, 3, 4, 4, 5, 5]).expand(1, 1, 2, 10)),
        Case("four pictures, doubled", (DOUBLE, IMAGES, 16, 4, 2)),
        Case("four pictures, halved", (HALVE, IMAGES, 16, 4, 1 / 2)),
        Case("sides that tiles do not divide", (DOUBLE, IMAGES[:, :, :, :22], 12, 4, 2)),
        Case("one tile is enough, and the network looks at all of it", (nn.GroupNorm(1, 3, affine=False), IMAGES, 32, 8, 1)),
        Case("as a VAE decodes", (DECODE, torch.randn(1, 4, 80, 64, generator=RANDOM))),
    ),
    mistakes=(
        Mistake("where tiles overlap it is too large: divide by the sum of the weights there.", tiling(share=False)),
        Mistake("the right and lower edge are empty: where the last tile does not reach, one more has to end at the edge.",
                tiling(lambda size, tile, overlap: range(0, max(1, size - tile + 1), tile - overlap), least=1e-9)),
        Mistake("weights are 0 at the edge of a tile, and at the edge of the picture no other tile helps: begin above 0.",
                tiling(weigh=lambda n, fade: up_and_down(n, fade, first=0))),
        Mistake("a tile's place in the answer is scaled, as all of it.", tiling(place=lambda at, scale: at, least=1e-9)),
        Mistake(PIECES, torch.no_grad()(lambda fn, x, tile=64, overlap=16, scale=8: fn(x))),
        Mistake(SEAM, tiling(weigh=lambda n, fade: torch.ones(n))),
    ),
    laws=(Law(PIECES, widest), Law(SEAM, seamless)),
    hints=("Two tensors of the answer's size: the sum of tile * weight, and the sum of weight. Divide in the end.",
           "Along a side tiles start at range(0, size - tile, tile - overlap), and one more at max(0, size - tile), which ends "
           "at the edge. A start s of x is s * scale in the answer.",
           "n = side of a tile's answer; up = torch.arange(1.0, n + 1); torch.minimum(up, up.flip(0)).clamp(max=overlap * "
           "scale + 1) is the weight along a side; that of a tile is rows[:, None] * columns"),
)  # fmt: skip

TASKS = [gaussian_task, to_latents_task, to_images_task, tiled_task]
