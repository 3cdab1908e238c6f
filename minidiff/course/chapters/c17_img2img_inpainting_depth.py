"""Tasks of chapter 17: where a walk is joined, a mask for latents, RePaint, and a network with a wider door."""

import copy
from itertools import pairwise

import torch
from torch import nn
from torch.nn.functional import avg_pool2d, max_pool2d

from ...diffusion import CLEAN, Level, Schedule, State, add_noise, ddim_step, repaint
from ...nets import UNet
from ...pipelines.inputs import redraw_levels, small_mask
from ...training.latent import widened
from ..task import Case, Law, Mistake, Task
from ..walks import Belief, path, seeded, states
from .c02_exact_denoising import CLEANER, EPS, FRESH, NOISY, X0
from .c16_stable_diffusion import MASK, PICTURE, SOFT


def listed(f, *args):
    levels = f(*args)
    if not all(isinstance(level, Level) for level in levels):
        raise TypeError("this is not a list of Levels: cut a piece out of the list that was given")
    told = {name: torch.tensor([float(getattr(level, name)) for level in levels]) for name in ("t", "sigma")}
    return {"number of levels": len(levels)} | told


FOUR = [Level(3, 0.28, 0.96), Level(2, 0.6, 0.8), Level(1, 0.8, 0.6), Level(0, 0.96, 0.28), CLEAN]
TEN, FIFTY = Schedule.flow(shift=3.0).levels(10), Schedule.scaled_linear().levels(50)
levels_task = Task(
    "17.1", "where a walk is joined", redraw_levels,
    ask=listed,
    cases=(
        Case("three quarters of four steps, by hand", (FOUR, 4, 0.75),
             {"number of levels": 4, "t": torch.tensor([2.0, 1.0, 0.0, 0.0]), "sigma": torch.tensor([0.8, 0.6, 0.28, 0.0])}),
        Case("strength 0: the clean level, and no step", (FOUR, 4, 0.0),
             {"number of levels": 1, "t": torch.tensor([0.0]), "sigma": torch.tensor([0.0])}),
        Case("strength 1: the whole walk", (TEN, 10, 1.0)),
        Case("less than one step", (TEN, 10, 0.04)),
        Case("0.58 of 50 steps", (FIFTY, 50, 0.58)),
        Case("a walk with fewer levels than steps", (TEN, 20, 0.8)),
    ),
    mistakes=(
        Mistake("strength is counted from the other end: 1 should leave the whole walk, and 0 no step of it.",
                lambda levels, steps, strength: levels[int(steps * strength) :]),
        Mistake("as many levels as steps: a step leads from one level to the next, so there is one level more.",
                lambda levels, steps, strength: levels[max(0, len(levels) - int(steps * strength)) :]),
        Mistake("the beginning of the walk was taken: a picture is noised part of the way, and walks to the clean end.",
                lambda levels, steps, strength: levels[: int(steps * strength) + 1]),
        Mistake("the number of steps is rounded to the nearest: what is less than a step is cut off, int(steps * strength).",
                lambda levels, steps, strength: levels[max(0, len(levels) - 1 - round(steps * strength)) :]),
        Mistake("strength was taken for an amount of noise, sigma: it is a share of the steps.",
                lambda levels, steps, strength: [level for level in levels if level.sigma <= strength]),
        Mistake("where there are fewer levels than steps, the place is below 0, which Python counts from the end: max(0, ...).",
                lambda levels, steps, strength: levels[len(levels) - 1 - int(steps * strength) :]),
    ),
    hints=("Which is the last level, and how many levels before it does the walk begin?",
           "The last has the number len(levels) - 1; int(steps * strength) steps before it. And never before the first.",
           "levels[max(0, len(levels) - 1 - int(steps * strength)) :]"),
)  # fmt: skip


def refused(call):
    try:
        call()
    except ValueError:
        return True
    return False


def smaller(pick=lambda mask, stride: mask[:, :, ::stride, ::stride], last=lambda small: (small >= 0.5).float(), size=True,
            range_=True):  # fmt: skip
    """small_mask, with one of its parts replaced or left out."""

    def version(mask, image, stride):
        if size and mask.shape[2:] != image.shape[2:]:
            raise ValueError("another size")
        if range_ and not 0 <= mask.min() <= mask.max() <= 1:
            raise ValueError("out of range")
        return last(pick(mask, stride))

    return version


SIZE = "a mask of another size than the image is accepted: raise a ValueError that names both sizes."
RANGE = "a mask of 0 to 255 is accepted: raise a ValueError for what lies outside of [0, 1]."
BY_HAND = torch.tensor([[[[1.0, 0.0, 0.5, 0.0], [0.0, 0.0, 1.0, 1.0], [0.4, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]]]])
mask_task = Task(
    "17.2", "a mask for latents", small_mask,
    cases=(
        Case("four squares by hand", (BY_HAND, torch.zeros(1, 3, 4, 4), 2), torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])),
        Case("four masks", (MASK, PICTURE, 4)),
        Case("soft edges, wider than high", (SOFT[:, :, :32], PICTURE[:, :, :32], 8)),
    ),
    mistakes=(
        Mistake("every square was averaged: it is its upper left pixel that decides.",
                smaller(lambda mask, stride: avg_pool2d(mask, stride))),
        Mistake("a square counts as soon as any of its pixels does: it is its upper left pixel that decides.",
                smaller(lambda mask, stride: max_pool2d(mask, stride))),
        Mistake("the lower right pixel of each square was asked: it is the upper left.",
                smaller(lambda mask, stride: mask[:, :, stride - 1 :: stride, stride - 1 :: stride])),
        Mistake("one half exactly should be repainted: >= 0.5.", smaller(last=lambda small: (small > 0.5).float())),
        Mistake("the answer holds greys: a latent is repainted, 1, or it is not, 0.", smaller(last=lambda small: small)),
        Mistake("1 and 0 have changed places: 1 is to be repainted.", smaller(last=lambda small: (small < 0.5).float())),
        Mistake("the answer is of bools: it is multiplied with latents, so give floats.",
                smaller(last=lambda small: small >= 0.5)),
        Mistake(SIZE, smaller(size=False)),
        Mistake(RANGE, smaller(range_=False)),
    ),
    laws=(Law(SIZE, lambda f: refused(lambda: f(MASK[:1, :, :32], PICTURE[:1], 4))),
          Law(RANGE, lambda f: refused(lambda: f(255 * MASK[:1], PICTURE[:1], 4)))),
    hints=("A slice with a step takes every stride-th row, and every stride-th column.",
           "mask[:, :, ::stride, ::stride], and then >= 0.5. Before that, two reasons for a ValueError.",
           "(mask[:, :, ::stride, ::stride] >= 0.5).float()"),
)  # fmt: skip


def retold(f, denoise, x, levels, times):
    """What holds of RePaint in whatever order it draws: what is asked and told, and how large and how fresh the noise is."""
    asked = []

    def asking(xt, level):
        asked.append((xt, level))
        return denoise(xt, level)

    xs, x0s, reached = zip(*states(f(asking, x, levels, times)), strict=True)
    told = {"number of states": len(xs), "t of the states": torch.tensor([float(level.t) for level in reached]),
            "t the denoiser is told": torch.tensor([float(level.t) for _, level in asked]), "x0": torch.stack(x0s)}  # fmt: skip
    sizes, alike, undone, down = [], [], [], []
    for k, (here, there) in enumerate(pairwise(levels)):
        mine = [xt for xt, _ in asked[k * times : (k + 1) * times]]
        ends = [ddim_step(xt, denoise(xt, here), here, there) for xt in mine]
        rho = here.alpha / there.alpha
        size = (here.sigma**2 - (rho * there.sigma) ** 2) ** 0.5
        fresh = [(b - rho * a) / size for a, b in zip(ends[:-1], mine[1:], strict=True)]
        sizes += [z.square().mean().sqrt() for z in fresh]
        alike += [cosine(a, b) for a, b in pairwise(fresh)]
        undone += [cosine(z, a) for z, a in zip(fresh, ends[:-1], strict=True)]
        down.append(float(k < len(xs) and bool(ends) and torch.allclose(xs[k], ends[-1], atol=1e-4)))
    noise = {"size of the fresh noise": sizes, "likeness of two draws": alike, "likeness to the step before": undone}
    rounded = {name: (torch.tensor([float(v) for v in values]).round(decimals=1) + 0.0) for name, values in noise.items()}
    return told | {"the state is where the last step led": torch.tensor(down)} | rounded


def cosine(a, b):
    return (a * b).mean() / (a.square().mean() * b.square().mean()).sqrt()


def upwards(up=lambda x, estimate, fresh, rho, here, there: (
            rho * x + (here.sigma**2 - (rho * there.sigma) ** 2) ** 0.5 * fresh),
            rest=0, every=False, once=False, seed=None, same=False, checked=True):  # fmt: skip
    """repaint, with one of its parts replaced. rest: how many of the times go back up, from `times` - 1."""

    def walk(denoise, x, levels, times=5, generator=None):
        if checked and times < 1:
            raise ValueError("once or more")
        generator = generator if seed is None else None
        for here, there in pairwise(levels):
            fixed = torch.randn(x.shape, generator=generator)
            first = denoise(x, here) if once else None
            for again in reversed(range(times)):
                estimate = first if once else denoise(x, here)
                x = ddim_step(x, estimate, here, there)
                if every:
                    yield State(x, estimate.x0, there)
                if again + rest > 0:
                    fresh = fixed if same else torch.randn(x.shape, generator=generator)
                    x = up(x, estimate, fresh, here.alpha / there.alpha, here, there)
            if not every:
                yield State(x, estimate.x0, there)

    return walk


REFUSE = "times = 0 takes no step at all: raise a ValueError."
GENERATOR = "the generator was given and not used: with equal seeds the walk must repeat, and with another it must not."
HAND, COARSE = [NOISY, CLEANER, CLEAN], Schedule.linear().levels(4)
repaint_task = Task(
    "17.3", "every step, several times", repaint,
    ask=lambda f, view, *args: view(f, *args),
    cases=(
        # to CLEAN: what is believed at CLEANER, 0.9 of the target. Times 1 goes back up never.
        Case("once is DDIM, by hand",
             (lambda f, *args: path(f, *args, times=1), Belief(torch.tensor([[1.0]])), torch.tensor([[1.28]]), HAND),
             {"number of states": 2, "x": torch.tensor([[[1.24]], [[0.9]]]), "x0": torch.tensor([[[0.8]], [[0.9]]]),
              "t of the states": torch.tensor([200.0, 0.0]), "sigma of the states": torch.tensor([0.6, 0.0])}),
        Case("two levels, three times each", (retold, Belief(X0), add_noise(X0, EPS, NOISY), HAND, 3)),
        Case("four levels, twice each", (retold, Belief(X0), EPS, COARSE, 2)),
        Case("on a flow, from alpha = 0", (retold, Belief(X0), EPS, Schedule.flow().levels(3), 3)),
    ),
    mistakes=(
        Mistake("the last of the times goes back up, too: the walk would not come down. Noise it between the steps only.",
                upwards(rest=1)),
        Mistake("the fresh noise is too small: there's variance shrinks by rho^2 on the way up, so more of it is missing.",
                upwards(lambda x, estimate, fresh, rho, here, there: (
                    rho * x + (here.sigma**2 - there.sigma**2) ** 0.5 * fresh))),
        Mistake("deviations were subtracted: it is variances that add up, so take the root of their difference.",
                upwards(lambda x, estimate, fresh, rho, here, there: rho * x + (here.sigma - rho * there.sigma) * fresh)),
        Mistake("x was noised and not scaled: on the way up the picture's factor falls from there's alpha to here's, by rho.",
                upwards(lambda x, estimate, fresh, rho, here, there: (
                    x + (here.sigma**2 - (rho * there.sigma) ** 2) ** 0.5 * fresh))),
        Mistake("it goes back up from x0 with all noise new: go from x at there, and add what is missing.",
                upwards(lambda x, estimate, fresh, rho, here, there: here.alpha * estimate.x0 + here.sigma * fresh)),
        Mistake("the same noise is added every time: draw it anew.", upwards(same=True)),
        Mistake("the denoiser is asked once for each pair of levels: it must look again after every way back up.",
                upwards(once=True)),
        Mistake("a State comes after every single step: one for each pair of levels, when it is done.", upwards(every=True)),
        Mistake(GENERATOR, upwards(seed="its own")),
        Mistake(REFUSE, upwards(checked=False)),
    ),
    laws=(
        Law(GENERATOR, lambda f: list(seeded(f, Belief(X0), EPS, HAND, times=2).values()) == [True, False]),
        Law(REFUSE, lambda f: refused(lambda: list(f(Belief(X0), EPS, HAND, 0)))),
    ),
    hints=("Two loops: over pairwise(levels), and in it over the times. In which rounds is there noise to add?",
           "In all but the last: x = rho * x + root * torch.randn(x.shape, generator=generator). The outer loop yields.",
           "rho = here.alpha / there.alpha; root = (here.sigma**2 - (rho * there.sigma) ** 2) ** 0.5"),
    seconds=20.0,
)  # fmt: skip


def network(channels):
    torch.manual_seed(1)
    net = UNet(channels, 3, (8, 16), (False, False), layers=1)
    for weights in net.parameters():
        nn.init.normal_(weights, std=0.2)
    return net.eval()


@torch.no_grad()
def through(f, before, channels):
    """What the wide network takes and answers, and what the given one is afterwards."""
    net, t = network(before), torch.tensor([900.0, 10.0])
    x, more = X0[:2, :before, :16, :16], 5 * FRESH.repeat(1, 3, 1, 1)[:2, : channels - before, :16, :16]
    kept = {name: weights.clone() for name, weights in net.state_dict().items()}
    wide, left = f(net, channels), net.state_dict()
    same = wide is not net and left.keys() == kept.keys() and all(torch.equal(left[name], kept[name]) for name in kept)
    try:
        said = wide(torch.cat([x, more], 1), t)
    except ValueError as error:
        said = f"an error: {error}"
    return {"its config": wide.config["in_channels"], "its answer": said, "the given network": "left" if same else "changed"}


def wider(door=lambda old, new: torch.cat([old, torch.zeros_like(new)], 1), rest=True, made=True, checked=True):
    """widened, with one of its parts replaced: door(old weights, as many new ones, drawn) -> weights."""

    def version(unet, channels):
        more = channels - unet.config["in_channels"]
        if checked and more < 0:
            raise ValueError("narrower")
        wide = UNet(**{**unet.config, "in_channels": channels}) if made else copy.deepcopy(unet)
        weights, old = unet.state_dict(), unet.conv_in.weight.detach()
        new = 0.1 * torch.randn(len(old), max(more, 0), 3, 3)
        if not made:
            wide.conv_in = nn.Conv2d(channels, len(old), 3, padding=1)
        weights["conv_in.weight"] = door(old, new)[:, :channels]
        wide.load_state_dict(weights if rest else {**wide.state_dict(), "conv_in.weight": weights["conv_in.weight"]})
        return wide.eval()

    return version


def in_place(unet, channels):
    wide = wider()(unet, channels)
    unet.conv_in.weight, unet.config["in_channels"] = wide.conv_in.weight, channels
    return unet


FEWER = "fewer channels than there are: some of what was learned would be cut off. Raise a ValueError."
widened_task = Task(
    "17.4", "a network with a wider door", widened,
    ask=through,
    cases=(Case("three channels become seven", (3, 7)), Case("one becomes two", (1, 2)), Case("three stay three", (3, 3))),
    mistakes=(
        Mistake("the new channels have random weights, so what they hold matters from the start: they begin at zero.",
                wider(lambda old, new: torch.cat([old, new], 1))),
        Mistake("the new channels come first: the network's own, the noisy latents, keep their places.",
                wider(lambda old, new: torch.cat([torch.zeros_like(new), old], 1))),
        Mistake("the old channels begin at zero as well: what was learned of them is lost.",
                wider(lambda old, new: torch.zeros_like(torch.cat([old, new], 1)))),
        Mistake("the new channels repeat the weights of the old ones: they begin at zero.",
                wider(lambda old, new: torch.cat([old] * 3, 1))),
        Mistake("only the first convolution has what was learned: all other weights go over as they are.", wider(rest=False)),
        Mistake("config still names the old number of channels: make the network anew, md.UNet(**config).", wider(made=False)),
        Mistake("the given network was changed: make a new one, and leave it as it is.", in_place),
        Mistake(FEWER, wider(checked=False)),
    ),
    laws=(Law(FEWER, lambda f: refused(lambda: f(network(3), 2))),),
    hints=("A new network of the same config but for one entry; and its weights are the old ones, but for one tensor.",
           "weights = unet.state_dict(); weights['conv_in.weight'] gets new columns of zeros, by torch.cat along dim 1.",
           "wide = md.UNet(**{**unet.config, 'in_channels': channels}); wide.load_state_dict(weights)"),
    seconds=20.0,
)  # fmt: skip

TASKS = [levels_task, mask_task, repaint_task, widened_task]
