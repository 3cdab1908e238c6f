"""Tasks of chapter 16: words into pieces, the sampler of Stable Diffusion 1, a depth for latents, and what is known of them."""

from itertools import pairwise

import torch
from torch.nn.functional import avg_pool2d, interpolate

from ...data import Shapes
from ...diffusion import CLEAN, DatasetDenoiser, Estimate, Schedule, State, add_noise, ddim, inpainting, plms, predict_eps
from ...diffusion.multistep import ADAMS_BASHFORTH
from ...diffusion.steps import ddim_step
from ...pipelines.inputs import depth_map
from ...pretrained.tokenizer import NAMES, byte_pairs
from ..task import Case, Law, Mistake, Task
from ..walks import Belief, end, path, twice
from .c02_exact_denoising import CLEANER, EPS, FRESH, IMAGES, NOISY, X0

STABLE, FLOW = Schedule.scaled_linear(), Schedule.flow()


# The first merges of CLIP's vocabulary.
CLIP = """i n, t h, a n, r e, a r, e r, th e</w>, in g</w>, o u, o n, s t, o r, e n, o n</w>, a l, a t, e r</w>, i t, i n</w>,
t o</w>, r o, i s</w>, l e, i c, a t</w>, an d</w>, e d</w>, o f</w>, c h, o r</w>, e s</w>, i l, e l, s t</w>, a c, o m, a m,
l o, a n</w>, a y</w>, s h, r i, l i, t i, f or</w>, n e, ð Ł, r a, h a, d e, o l, v e</w>, s i, u r, a l</w>, s e, ' s</w>"""
RANKS = {tuple(pair.split()): rank for rank, pair in enumerate(CLIP.replace("\n", " ").split(", "))}


def spelled(f, words, ranks):
    found = {word: f(word, ranks) for word in words.split()}
    return {word: " ".join(pieces) if isinstance(pieces, list | tuple) else pieces for word, pieces in found.items()}


def ending(word):
    return [*(names := [NAMES[byte] for byte in word.encode()])[:-1], names[-1] + "</w>"]


def joining(choose, start=ending):
    """Join one pair a round, of all that are known: choose(places, pieces, ranks) -> place."""

    def version(word, ranks):
        pieces = start(word)
        while places := [i for i, pair in enumerate(pairwise(pieces)) if pair in ranks]:
            i = choose(places, pieces, ranks)
            pieces = [*pieces[:i], pieces[i] + pieces[i + 1], *pieces[i + 2 :]]
        return pieces

    return version


def best(places, pieces, ranks):
    return min(places, key=lambda i: ranks[pieces[i], pieces[i + 1]])


def cutting(takes):
    """Cut pieces off from the left: takes(rest, ranks) -> of how many bytes."""

    def version(word, ranks):
        rest, found = ending(word), []
        while rest:
            n = takes(rest, ranks)
            found, rest = [*found, "".join(rest[:n])], rest[n:]
        return found

    return version


def longest(rest, ranks):
    return next((n for n in range(len(rest), 1, -1) if "".join(rest[:n]) in map("".join, ranks)), 1)


SMALL = {("o", "w</w>"): 0, ("l", "o"): 1, ("e", "s"): 2, ("es", "t</w>"): 3, ("lo", "w"): 4, ("l", "ow</w>"): 5}
pairs_task = Task(
    "16.1", "words into pieces", byte_pairs,
    ask=spelled,
    cases=(
        # low: o w</w> was learned before l o, and then l ow</w> is left. lowest: l o, then e s, then es t</w>, then lo w.
        Case("three words by hand", ("low lowest o", SMALL), {"low": "low</w>", "lowest": "low est</w>", "o": "o</w>"}),
        Case("the first merges of CLIP", ("the there another orange string tooth's", RANKS)),
        Case("a letter of two bytes, and one picture of four", ("café 🌟", RANKS)),
        Case("nothing was learned", ("star", {})),
    ),
    mistakes=(
        Mistake("the pair furthest to the left was joined first: it is the one that was learned first, wherever it stands.",
                joining(lambda places, pieces, ranks: places[0])),
        Mistake("the pair that was learned last was joined first: the lowest rank wins.",
                joining(lambda places, pieces, ranks: max(places, key=lambda i: ranks[pieces[i], pieces[i + 1]]))),
        Mistake("all pairs were joined in one go: join the best one, and look again, until no known pair is left.",
                cutting(lambda rest, ranks: 2 if tuple(rest[:2]) in ranks else 1)),
        Mistake("</w> is missing: the last byte of a word carries it from the start: the end of `the` is not the e of `there`.",
                joining(best, start=lambda word: [NAMES[byte] for byte in word.encode()])),
        Mistake("</w> became a piece of its own: it belongs to the last byte, `w</w>`.",
                joining(best, start=lambda word: [*(NAMES[byte] for byte in word.encode()), "</w>"])),
        Mistake("the word was cut into characters: take the bytes of its UTF-8, NAMES[byte] for each, and none is unknown.",
                joining(best, start=lambda word: [*word[:-1], word[-1] + "</w>"])),
        Mistake("the longest known piece was cut off from the left: pieces grow from bytes, by rank.", cutting(longest)),
    ),
    hints=("A list of pieces, at first single bytes. Which neighbours are in `ranks`, and which of them has the lowest rank?",
           "pieces = [NAMES[byte] for byte in word.encode()], and </w> is added to the last. Then a loop: all pairs "
           "zip(pieces, pieces[1:]) that are in ranks; stop if there is none.",
           "i = min(places, key=lambda i: ranks[pieces[i], pieces[i + 1]]); pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]"),
)  # fmt: skip


def rewritten(x, eps, here, there):
    x0 = (x - here.sigma * eps) / here.alpha
    return there.alpha * x0 + there.sigma * eps


def multistep(heun=True, most=4, order=1, keeps_mean=False, move=lambda x, estimate, eps, here, there: (
              rewritten(x, eps, here, there)), tells=lambda estimate, x, eps, here: estimate.x0):  # fmt: skip
    """plms, with one of its parts replaced."""

    def walk(denoise, x, levels, blends="eps"):
        past = []
        for here, there in pairwise(levels):
            estimate = denoise(x, here)
            if here.alpha == 0:
                x = ddim_step(x, estimate, here, there)
                yield State(x, estimate.x0, there)
                continue
            past = [estimate.eps, *past][:most]
            eps = sum(w * old for w, old in zip(ADAMS_BASHFORTH[len(past) - 1], past[::order], strict=True))
            if heun and len(past) == 1 and there is not levels[-1]:
                eps = (eps + denoise(ddim_step(x, estimate, here, there), there).eps) / 2
                past = [eps] if keeps_mean else past
            told, x = tells(estimate, x, eps, here), move(x, estimate, eps, here, there)
            yield State(x, told, there)

    return walk


HEAP, TWELVE = DatasetDenoiser(IMAGES), STABLE.levels(12, offset=1)
plms_task = Task(
    "16.2", "the sampler of Stable Diffusion 1", plms,
    ask=lambda f, view, *args: view(f, *args),
    cases=(
        # eps 1 here and 13/15 ahead, mean 14/15, so x = 0.8 * 8/9 + 0.6 * 14/15. Then eps is 0.918519, and 3/2 of it less 1/2.
        Case("two steps by hand, walked twice",
             (twice, Belief(torch.tensor([[1.0]])), torch.tensor([[1.28]]), [NOISY, CLEANER, CLEAN]),
             {"a second walk": "the same", "number of states": 2, "x": torch.tensor([[[1.2711111]], [[0.9305556]]]),
              "x0": torch.tensor([[[0.8]], [[0.9]]]), "t of the states": torch.tensor([200.0, 0.0]),
              "sigma of the states": torch.tensor([0.6, 0.0])}),
        Case("where twelve steps end", (end, HEAP, EPS, TWELVE)),
        Case("each of the twelve steps", (path, HEAP, EPS, TWELVE)),
        Case("a single step, with nobody to ask at its end", (path, HEAP, EPS, STABLE.levels(1, "trailing"))),
        Case("from the middle, and not to the end", (path, HEAP, add_noise(X0, EPS, TWELVE[3]), TWELVE[3:-2])),
        Case("on a flow, which begins with alpha = 0", (path, HEAP, EPS, FLOW.levels(8))),
    ),
    mistakes=(
        Mistake("the first step is DDIM's: with nothing remembered, ask again where it ends, and take the mean of both eps.",
                multistep(heun=False)),
        Mistake("eps is the mean, but x0 is that of the newest eps alone: solve it from x and the mean.",
                multistep(move=lambda x, estimate, eps, here, there: there.alpha * estimate.x0 + there.sigma * eps)),
        Mistake("the weights are the wrong way round: the newest eps has the largest.", multistep(order=-1)),
        Mistake("only two answers are remembered: there should be four, as soon as four were given.", multistep(most=2)),
        Mistake("the mean of the first step was remembered: remember what was said about x here, without what lies ahead.",
                multistep(keeps_mean=True)),
        Mistake("x0 was averaged, and not eps.", lambda denoise, x, levels: plms(denoise, x, levels, blends="x0")),
        Mistake("State's x0 should be what the denoiser said at this step, not what the mean makes of it.",
                multistep(tells=lambda estimate, x, eps, here: (x - here.sigma * eps) / here.alpha)),
    ),
    hints=("DDIM's walk with another eps: a list `past`, the newest in front, cut to four.",
           "The weights are 1 | 3, -1 over 2 | 23, -16, 5 over 12 | 55, -59, 37, -9 over 24. With the mean, first x0 at here, "
           "then the line of 01.1 at there.",
           "x0 = (x - here.sigma * eps) / here.alpha; x = there.alpha * x0 + there.sigma * eps"),
)  # fmt: skip


def refuses_a_flat_one(f):
    try:
        return f(torch.full((1, 1, 64, 64), 3.0), PICTURE[:1], 8) is None  # it should not get so far
    except ValueError:
        return True


SCENES = [Shapes(4, size=64, seed=16, objects=2)[i] for i in range(4)]
MASK, DEPTH, PICTURE = (torch.stack([getattr(scene, name) for scene in SCENES]) for name in ("mask", "depth", "image"))
SOFT = avg_pool2d(MASK, 5, stride=1, padding=2)  # (4, 1, 64, 64), with edges of every grey


def scaling(between=lambda x: (x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)), first=lambda x: x,
            last=lambda x: 2 * x - 1, flat=True, mode="bicubic"):  # fmt: skip
    """depth_map, with one of its parts replaced. first, last: before and after the map is made small and brought to [0, 1]."""

    def version(depth, image, stride):
        small = interpolate(first(depth.float()), scale_factor=1 / stride, mode=mode)
        least, most = between(small)
        if flat and not (most > least).all():
            raise ValueError("flat")
        return last((small - least) / (most - least))

    return version


def stretched(x):
    least, most = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return (x - least) / (most - least).clamp(min=1e-9)


FLAT = "a depth that is the same everywhere cannot be stretched, 0 / 0: raise a ValueError that says so."
METRES = DEPTH * torch.tensor([1.0, 10.0, 0.1, 255.0]).view(4, 1, 1, 1)  # every picture in a unit of its own
depth_map_task = Task(
    "16.3", "how far away, in latents", depth_map,
    cases=(
        Case("four numbers by hand", (torch.tensor([[[[2.0, 4.0], [3.0, 6.0]]]]), torch.zeros(1, 3, 2, 2), 1),
             torch.tensor([[[[-1.0, 0.0], [-0.5, 1.0]]]])),
        Case("four depths, each in its own unit", (METRES, PICTURE, 4)),
        Case("wider than high, and below zero", (-DEPTH[:, :, :32], PICTURE[:, :, :32], 4)),
    ),
    mistakes=(
        Mistake("least and most are those of the whole batch: every picture has its own, and its own unit.",
                scaling(lambda x: (x.min(), x.max()))),
        Mistake("stretched first and made small then: bicubic resizing goes beyond what it is given. First make it small.",
                scaling(lambda x: (0 * x[:, :, :1, :1], 0 * x[:, :, :1, :1] + 1), first=stretched, flat=False)),
        Mistake("the map runs from 0 to 1: it should run from -1 to 1.", scaling(last=lambda x: x)),
        Mistake("near and far have changed places: the largest depth becomes 1.", scaling(last=lambda x: 1 - 2 * x)),
        Mistake("made small by the mean of each square: the original's way is bicubic.", scaling(mode="area")),
        Mistake(FLAT, scaling(flat=False)),
    ),
    laws=(Law(FLAT, refuses_a_flat_one),),
    hints=("Two things in their order: make it small, then stretch what is there, picture by picture.",
           "torch.nn.functional.interpolate(depth, size, mode='bicubic'); x.amin((1, 2, 3), keepdim=True), the least of each.",
           "2 * (small - least) / (most - least) - 1"),
)  # fmt: skip


def knowing(blend=lambda p: (p.mix(p.known, p.x0), p.mix(p.noise, p.eps)), before=lambda xt, level, known, mask, noise: xt):
    """inpainting, with one of its parts replaced."""

    class Parts:
        def __init__(self, denoise, known, mask, noise, xt, level):
            self.known, self.mask, self.noise, self.xt, self.level = known, mask, noise, xt, level
            self.x0, self.eps = denoise(before(xt, level, known, mask, noise), level)

        def mix(self, kept, invented):
            return (1 - self.mask) * kept + self.mask * invented

    return lambda denoise, known, mask, noise: lambda xt, level: Estimate(
        *blend(Parts(denoise, known, mask, noise, xt, level)))  # fmt: skip


def asked(denoise, xt, level):
    return denoise(xt, level)


def walked(denoise, x, levels):
    return end(ddim, lambda xt, level: Estimate(*denoise(xt, level)), x, levels)  # a plain tuple is as good


HALF = (torch.arange(32) >= 16).float().expand(4, 1, 32, 32)  # the right half is to be invented
TWO, EACH = torch.ones(1, 1, 1, 2), STABLE.at(torch.tensor([20, 200, 400, 800]))
inpainting_task = Task(
    "16.4", "a denoiser that knows the answer, in parts", inpainting,
    ask=lambda f, view, denoise, known, mask, noise, *args: view(f(denoise, known, mask, noise), *args),
    cases=(
        # the Belief, at alpha = 0.6, is x0 = 0.8 and eps = (1.28 - 0.48) / 0.8 = 1: it counts where the mask is 1
        Case("two numbers by hand",
             (asked, Belief(TWO), 0.5 * TWO, torch.tensor([[[[0.0, 1.0]]]]), -2 * TWO, 1.28 * TWO, NOISY),
             Estimate(torch.tensor([[[[0.5, 0.8]]]]), torch.tensor([[[[-2.0, 1.0]]]]))),
        Case("the left half is known", (asked, HEAP, X0, HALF, FRESH, EPS, STABLE.at(600))),
        Case("a mask with soft edges", (asked, HEAP, X0, SOFT[:, :, ::2, ::2], FRESH, EPS, STABLE.at(600.5))),
        Case("a level for each image", (asked, HEAP, X0, HALF, FRESH, add_noise(X0, EPS, EACH), EACH)),
        Case("on a flow", (asked, HEAP, X0, HALF, FRESH, EPS, FLOW.at(700))),
        Case("where eight steps end", (walked, HEAP, X0, HALF, EPS, EPS, STABLE.levels(8))),
    ),
    mistakes=(
        Mistake("the mask is the other way round: 1 is where there is something to invent, 0 where the picture is known.",
                knowing(lambda p: (p.mix(p.x0, p.known), p.mix(p.eps, p.noise)))),
        Mistake("x0 is known there, but eps is still the network's: where the mask is 0 it is the noise that was given.",
                knowing(lambda p: (p.mix(p.known, p.x0), p.eps))),
        Mistake("eps is known there, but x0 is still the network's.", knowing(lambda p: (p.x0, p.mix(p.noise, p.eps)))),
        Mistake("the noise is drawn anew: take the one that was given, or the known part flickers from step to step.",
                knowing(lambda p: (p.mix(p.known, p.x0), p.mix(torch.randn_like(p.noise), p.eps)))),
        Mistake("an estimate's x0 is clean: the known picture goes in as it is, and the step adds the noise.",
                knowing(lambda p: (p.mix(add_noise(p.known, p.noise, p.level), p.x0), p.mix(p.noise, p.eps)))),
        Mistake("eps was solved from x_t, which may be made of another picture: it is the noise that was given.",
                knowing(lambda p: (p.mix(p.known, p.x0), p.mix(predict_eps(p.xt, p.known, p.level), p.eps)))),
        Mistake("x_t was blended before the network was asked, and its answer was not: it is the answer that is blended.",
                knowing(lambda p: (p.x0, p.eps), before=lambda xt, level, known, mask, noise: (
                    (1 - mask) * add_noise(known, noise, level) + mask * xt))),
    ),
    hints=("A function in a function: the inner one asks `denoise`, then mixes what it answers with what is known.",
           "Two mixtures by the same mask: x0 with known, and eps with noise. The level is only handed on.",
           "md.Estimate(mask * x0 + (1 - mask) * known, mask * eps + (1 - mask) * noise)"),
)  # fmt: skip

TASKS = [pairs_task, plms_task, depth_map_task, inpainting_task]
