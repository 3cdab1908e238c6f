"""Chapter 11: what it defines, and what the library's versions are asked to compare with."""

import torch

import minidiff as md

OWN = {
    "along", "looked_at", "misguided", "nodes", "nudged", "obeys", "precisely", "red_with_objects_held",
    "repainted", "shown", "slope_of", "walked", "watched",
}  # fmt: skip

X = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
LINEAR = md.Schedule.linear()
LEVELS = (LINEAR.at(900), md.Schedule.flow(shift=3.0).at(300), LINEAR.at(torch.tensor([5, 500, 990])))


def value_and_slope(loss, x):
    """A loss of images, and its gradient at them."""
    x = x.clone().requires_grad_()
    value = loss(x)
    return [value.detach(), torch.autograd.grad(value, x)[0]]


def colours(color_loss):
    """Losses of several colours, and whether those that are none are refused."""
    refused = 0
    for wrong in ((1.5, 0, 0), ()):
        try:
            color_loss(wrong)
        except ValueError:
            refused += 1
    told = [value_and_slope(color_loss(rgb), X) for rgb in ((0.9, 0.9, 0.9), (0.1, 0.6, 1.0))]
    return [*sum(told, []), *value_and_slope(color_loss((0.3,)), X[:, :1]), torch.tensor(refused)]


def steered(guided):
    """Estimates of denoisers of points and of Gaussians, both ways, under no_grad as in a sampler."""
    known, loss = md.DatasetDenoiser(X.flip(0)), md.color_loss((0.9, 0.2, 0.4))
    with torch.no_grad():
        return [
            part for denoise in (known, md.GaussianDenoiser(0.1, 0.6)) for level in LEVELS
            for through_net, scale in ((False, 200.0), (True, 2.0))
            for part in guided(denoise, loss, scale, through_net)(X, level)
        ]  # fmt: skip


def called(palette_loss):
    """Losses of some names on fitted and on known backgrounds, and whether an unknown name is refused."""
    try:
        palette_loss("crimson")
        refused = 0
    except ValueError:
        refused = 1
    asked = (("red", None), ("cyan", "white"), ("pink", "graded navy"))
    return [*sum((value_and_slope(palette_loss(*names), X) for names in asked), []), torch.tensor(refused)]


INPUTS = {"color_loss": colours, "guided": steered, "palette_loss": called}
