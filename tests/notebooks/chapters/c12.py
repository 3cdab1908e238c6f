"""Chapter 12: what it defines, and what the library's versions are asked to compare with."""

import torch

import minidiff as md

OWN = {
    "NoisyCLIPImage", "agree", "agreement", "ascend", "believed", "colours_of", "contrast", "contrast_full", "contrast_hard",
    "contrast_noisy", "cosines", "differ", "doubt", "exchanged", "finds", "fit", "floor", "lead", "lies", "new_clip", "noised",
    "seeded", "sentence_log_prob", "share_right", "show_tables", "shown", "steered", "swap_words", "walked", "whole",
    "with_lies",
}  # fmt: skip  # share_right is the library's, and compared in the chapter: it lives below the rooms

_RANDOM = torch.Generator().manual_seed(0)
IMAGES = torch.rand(3, 3, 12, 12, generator=_RANDOM).double() * 2 - 1
IDS = torch.tensor([[1, 5, 29, 29, 29], [5, 1, 3, 29, 29], [1, 5, 29, 29, 29], [2, 3, 4, 7, 29]])
LOGITS = 3 * torch.randn(4, 4, generator=_RANDOM)
TEXT = {"vocab": 30, "length": 7, "dim": 16, "layers": 2, "heads": 2, "projection": 10, "eos": 29}
IMAGE = {"size": 12, "patch": 4, "dim": 24, "layers": 2, "heads": 3, "projection": 10}


def shaken(net):
    """Random numbers in every parameter, in float64, where two orders of summing agree."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.double().parameters():
            p.add_(torch.randn(p.shape, generator=generator).double() * 0.1)
    return net


def answers(build, ask):
    """What a new network holds and answers, and what it answers with other numbers in it."""
    torch.manual_seed(0)
    net = build().double()
    with torch.no_grad():
        held = {name: p.clone() for name, p in net.named_parameters()}
        return {**held, "new": ask(net), "random": ask(shaken(net))}


def towers():
    return md.CLIPText(**TEXT), md.CLIPImage(**IMAGE)


def hot(net, scale):
    """The same network with another factor: at most 100 counts."""
    with torch.no_grad():
        net.logit_scale.fill_(scale)
    return net(IMAGES, IDS)


def seeded():
    return torch.Generator().manual_seed(3)


def far(clip_loss):
    """The loss of three pictures, whole and over cuts, to one text and to one each."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net = shaken(md.CLIP(*towers()))
        texts = net.encode_text(IDS[:3])
        return [clip_loss(net, texts[0])(IMAGES), clip_loss(net, 3 * texts, 0)(IMAGES),
                clip_loss(net, texts, 2, 0.8, False, seeded())(IMAGES)]  # fmt: skip


INPUTS = {
    "cuts": lambda f: [f(IMAGES, 5, 8, generator=seeded()), f(IMAGES, 2, 20, 0.2, False, seeded())],
    "clip_loss": far,
    "CLIPImage": lambda c: [
        answers(lambda o=o: c(**IMAGE | o), lambda net: net(IMAGES))
        for o in ({}, {"patch": 6, "heads": 2}, {"mlp": 20, "activation": "gelu"}, {"projection": None}, {"layers": 1})
    ],
    "CLIP": lambda c: [
        answers(lambda: c(*towers()), ask)
        for ask in (
            lambda net: net(IMAGES, IDS),
            lambda net: net.encode_image(IMAGES),
            lambda net: net.encode_text(IDS),
            lambda net: hot(net, 9.0),
            lambda net: hot(net, 1.0),
        )  # fmt: skip
    ],
    "contrastive_loss": [(LOGITS,), (LOGITS, IDS), (torch.zeros(4, 4), IDS)],
    "zero_shot": lambda f: answers(lambda: md.CLIP(*towers()), lambda net: f(net, IMAGES, IDS).double()),
}
