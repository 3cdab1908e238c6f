"""Untrained models small enough to walk in milliseconds, in folders as train and pack leave them."""

import torch

import minidiff as md
from minidiff.data.grammar import WORDS
from minidiff.pipelines import own
from minidiff.pretrained import words_tokenizer
from minidiff.training import save

SMALL = {"dim": 8, "layers": 1, "heads": 2, "projection": 8}


def model(folder, words=WORDS, in_channels=4, shaken=False):
    """shaken: with random numbers in every parameter, or a new network answers nothing, whatever it is asked."""
    torch.manual_seed(0)
    tokenizer = words_tokenizer(words, length=32)
    unet = md.UNet(in_channels, 4, (8, 16), (True, False), layers=1, context_dim=8, shortcut=True)
    text = md.CLIPText(len(tokenizer.vocab), 32, 8, layers=1, heads=2, eos=tokenizer.end)
    vae = md.VAE(channels=(8, 16), layers=1, groups=None)
    for parameter in [p for net in (unet, text, vae) for p in net.parameters()] if shaken else ():
        torch.nn.init.normal_(parameter, std=0.3)
    pipe = md.StableDiffusion(unet, vae, text, tokenizer, own.OwnRecipe({"name": "flow"}, "x0"), size=16)
    pipe.save(folder)


def clip(folder, size=16):
    torch.manual_seed(1)
    save(folder, md.CLIP({"vocab": 20, "length": 8, **SMALL}, {"size": size, "patch": 8, **SMALL}))
