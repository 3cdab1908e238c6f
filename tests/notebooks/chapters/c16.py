"""Chapter 16: what it defines, and what the library's versions are asked to compare with."""

import torch

import minidiff as md

OWN = {"joined", "clouds", "miniature", "text_to_image"}  # defined for this chapter alone

X = torch.linspace(-1, 1, 96, dtype=torch.float64).view(2, 3, 4, 4)
LEVELS = [md.Schedule.scaled_linear().at(t) for t in (1, 500, torch.tensor([3, 981]))] + [md.Schedule.flow().at(250.5)]


def net(xt, t, y):
    """No network, and yet a function of all three."""
    return xt.sin() * y.view(-1, 1, 1, 1) + 1e-3 * t.to(xt).view(-1, 1, 1, 1)


def guided(classifier_free):
    """Estimates under guidance: below, at, between and beyond the two answers, for each kind of prediction."""
    cond, uncond = {"y": torch.tensor([1.0, -2.0]).double()}, {"y": torch.tensor([0.5, 3.0]).double()}
    denoisers = [classifier_free(net, cond, uncond, scale) for scale in (-1.0, 0, 0.5, 1, 7.5)]
    denoisers += [classifier_free(net, cond, uncond, 3.0, predicts) for predicts in ("x0", "v")]
    return [tuple(denoise(X, level)) for denoise in denoisers for level in LEVELS]


INPUTS = {"classifier_free": guided}
