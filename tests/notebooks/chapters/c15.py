"""Chapter 15: what it defines, and what the library's versions are asked to compare with."""

from types import SimpleNamespace

import torch

import minidiff as md

# batches is a method, Lessons.batches: it is compared with the library's in the chapter, batch by batch. autoencoder_loss
# is the library's without its critic, and compared there too.
OWN = {
    "alike", "batches", "by_chance", "in_full", "learn", "marks", "new_reader", "new_text", "pipeline", "plain", "rises",
    "scenes", "show_both", "show_marks", "told", "truths",
}  # fmt: skip

_RANDOM = torch.Generator().manual_seed(0)
LATENTS = {"mean": (3 * torch.randn(4, 2, 3, 3, generator=_RANDOM) + 1).half(),
           "std": torch.rand(4, 2, 3, 3, generator=_RANDOM).half()}  # fmt: skip
PAIR = md.data.Shapes(1, objects=2, seed=3).attributes(0)


def measured(measure):
    """What a VAE carries, and its config."""
    vae = measure(SimpleNamespace(config={}), LATENTS)
    return [torch.tensor(x) for x in (vae.shift, vae.scale, vae.config["shift"], vae.config["scale"])]


def drawn(long_words):
    """All weights of an encoder after its words were made long."""
    answers = []
    for options in ({}, {"std": 0.3}):
        torch.manual_seed(0)
        answers.append(dict(long_words(md.CLIPText(20, 7, 8, 1, 2), **options).state_dict()))
    return answers


def read(Reader):
    """The answer to a sentence, of random weights in every parameter."""
    torch.manual_seed(0)
    net = Reader(md.UNet(4, 4, (16,), (True,), 1, context_dim=8, patch=2), md.CLIPText(20, 7, 8, 1, 2))
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    with torch.no_grad():
        return net(torch.randn(2, 4, 8, 8), torch.tensor([3.0, 700.0]), torch.randint(0, 20, (2, 7)))


def lost(autoencoder_loss):
    """The loss of a small VAE, on one draw, for two betas."""
    torch.manual_seed(0)
    vae, x = md.VAE(channels=(8, 16), layers=1, groups=None, attention=False), torch.randn(2, 3, 8, 8)
    losses = []
    for options in ({}, {"beta": 0.5}):
        torch.manual_seed(1)
        losses.append(autoencoder_loss(**options)(vae, x, None).detach())
    return losses


def numbers(exchanged):
    """Where the two stand, and of what colour they are, as numbers."""
    return [[a.x, a.y, a.radius, a.depth, float(list(md.data.shapes.COLOURS).index(a.colour))] for a in exchanged(*PAIR)]


INPUTS = {"measure": measured, "long_words": drawn, "Reader": read, "autoencoder_loss": lost,
          "colours_exchanged": numbers, "places_exchanged": numbers}  # fmt: skip
