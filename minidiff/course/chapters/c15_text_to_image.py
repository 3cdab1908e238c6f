"""Tasks of chapter 15: a scale that is measured, words long enough to be told apart, lessons dealt, and a lie."""

import copy
from itertools import islice
from types import SimpleNamespace

import torch
from torch import nn

from ...data import Shapes
from ...evaluation.lies import places_exchanged
from ...nets import CLIPText
from ...training.autoencoder import measure
from ...training.latent import Lessons, deal, long_words
from ..task import Case, Law, Mistake, Task


def carried(f, latents):
    """What a VAE carries after it was measured, and what its config says, from which it will be loaded again."""
    vae = SimpleNamespace(scale=0.18215, shift=0.0, config={"scale": 0.18215, "shift": 0.0, "layers": 1})
    got = f(vae, latents)
    return None if got is None else {"shift": got.shift, "scale": got.scale, "config": got.config}


def measuring(variance=lambda mean, std: mean.var(correction=0) + std.square().mean(), scale=torch.rsqrt, shift=torch.mean,
              told=True, precise=torch.Tensor.double, back=lambda x: x.item()):  # fmt: skip
    """measure, with one of its parts replaced."""

    def version(vae, latents):
        mean, std = precise(latents["mean"]), precise(latents["std"])
        vae.shift, vae.scale = back(shift(mean)), back(scale(variance(mean, std)))
        if told:
            vae.config |= {"shift": vae.shift, "scale": vae.scale}
        return vae

    return version


RANDOM = torch.Generator().manual_seed(15)
DRAWN = {"mean": (2 * torch.randn(5, 4, 3, 3, generator=RANDOM) + 0.7).half(),
         "std": (0.4 + torch.rand(5, 4, 3, 3, generator=RANDOM)).half()}  # fmt: skip
HAND = {"mean": torch.tensor([0.0, 2.0]).view(2, 1, 1, 1), "std": torch.tensor([1.0, 7.0**0.5]).view(2, 1, 1, 1)}
LARGE = {"mean": torch.tensor([-300.0, 300.0] * 4).view(2, 4, 1, 1).half(), "std": torch.ones(2, 4, 1, 1).half()}
measure_task = Task(
    "15.1", "a scale that is measured", measure,
    cases=(
        # Means 0 and 2: shift 1, variance 1. Squared deviations 1 and 7: 4 in the mean. So the variance of draws is 5.
        Case("two latents of one number, by hand", (HAND,),
             {"shift": 1.0, "scale": 0.447214, "config": {"scale": 0.447214, "shift": 1.0, "layers": 1}}),
        Case("five latents in half precision", (DRAWN,)),
        Case("latents of some 300, in half precision, whose squares are beyond it", (LARGE,)),
    ),
    ask=carried,
    mistakes=(
        Mistake("the deviations were left out: a draw is mean + std * eps, so its variance is more than that of the means.",
                measuring(lambda mean, std: mean.var(correction=0))),
        Mistake("deviations were averaged and then squared: variances are what adds up, so square first.",
                measuring(lambda mean, std: mean.var(correction=0) + std.mean().square())),
        Mistake("deviations were added to a variance: square them.",
                measuring(lambda mean, std: mean.var(correction=0) + std.mean())),
        Mistake("the scale is the deviation itself: latents are multiplied by it, so it is 1 over the deviation.",
                measuring(scale=torch.sqrt)),
        Mistake("divided by the variance: a factor acts on sizes, so take the root.", measuring(scale=torch.reciprocal)),
        Mistake("the variance was taken round 0: the shift is taken off first.",
                measuring(lambda mean, std: mean.square().mean() + std.square().mean())),
        Mistake("the shift has the wrong sign: a pipeline takes (z - shift) * scale.", measuring(shift=lambda m: -m.mean())),
        Mistake("the config was not told: the VAE would come back from its file with the scale it had before.",
                measuring(told=False)),
        Mistake("computed in half precision, which ends at 65504: the square of 300 is infinite there. Take .double() first.",
                measuring(precise=lambda x: x)),
    ),
    hints=("A draw is mean + std * eps with eps of variance 1. What is the variance of such draws, over all numbers of all?",
           "The variance of the means, plus the mean of the squared deviations. Both in float64; both results as .item().",
           "scale = (mean.var(correction=0) + std.square().mean()).rsqrt().item(); the same into vae.config; return vae"),
)  # fmt: skip


def lengths(f, text, *std):
    """The deviations of words and positions after f, and what must not happen: other weights drawn anew, a mean, a copy."""
    before = copy.deepcopy(text.state_dict())
    got = f(text, *std)
    if got is None:
        return None
    others = [name for name, value in got.state_dict().items()
              if not value.equal(before[name]) and name not in ("tokens.weight", "positions")]  # fmt: skip
    words, positions = got.tokens.weight, got.positions
    related = torch.corrcoef(torch.stack([words.flatten(), before["tokens.weight"].flatten()]))[0, 1]
    return {"words": words.std(), "positions": positions.std(), "mean": words.mean(), "memory of the old words": related,
            "others": "untouched" if not others else "drawn anew", "learns": bool(words.requires_grad)}  # fmt: skip


def lengthening(words=lambda old, std: nn.init.normal_(old, std=std),
                positions=lambda old, std: nn.init.normal_(old, std=std / 2), others=False, fixed=None):  # fmt: skip
    """long_words, with one of its parts replaced."""

    @torch.no_grad()
    def version(text, std=1.0):
        std = fixed or std
        text.tokens.weight.copy_(words(text.tokens.weight.detach().clone(), std))
        text.positions.copy_(positions(text.positions.detach().clone(), std))
        for p in text.layers.parameters() if others else ():
            p.normal_(std=std)
        return text

    return version


with torch.random.fork_rng(devices=[]):
    TEXT = CLIPText(300, 40, 64, 1, 2, eos=299)
ANEW = {"mean": 0.0, "memory of the old words": 0.0, "others": "untouched", "learns": True}
long_task = Task(
    "15.2", "words long enough to be told apart", long_words,
    cases=(
        Case("as it is called by default", (TEXT,), {"words": 1.0, "positions": 0.5, **ANEW}),
        Case("words of deviation 4", (TEXT, 4.0), {"words": 4.0, "positions": 2.0, **ANEW}),
    ),
    ask=lengths,
    tolerance=0.08,
    mistakes=(
        Mistake("positions are as long as words: they get half of it.",
                lengthening(positions=lambda old, std: nn.init.normal_(old, std=std))),
        Mistake("positions are as they were, 0.01, so that after this no network can tell which word comes first.",
                lengthening(positions=lambda old, std: old)),
        Mistake("the words are as they were, or were multiplied by std, which from 0.02 makes 0.02 * std: draw them anew.",
                lengthening(words=lambda old, std: old * std)),
        Mistake("drawn from 0 to std alike (torch.rand): normal numbers have mean 0 and reach both ways.",
                lengthening(words=lambda old, std: torch.rand_like(old) * std)),
        Mistake("std was taken for a variance: a factor of sqrt(std) too short or too long.",
                lengthening(words=lambda old, std: nn.init.normal_(old, std=std**0.5))),
        Mistake("std has no effect: it was 1 whatever was asked for.", lengthening(fixed=1.0)),
        Mistake("the layers were drawn anew as well: only words and positions are too short, and long layers drown both.",
                lengthening(others=True)),
    ),
    hints=("Two of the encoder's parameters are drawn anew, in place: `text.tokens.weight` and `text.positions`.",
           "nn.init.normal_(parameter, std=...) draws in place, and torch does not mind that it is a parameter.",
           "nn.init.normal_(text.tokens.weight, std=std); nn.init.normal_(text.positions, std=std / 2); return text"),
)  # fmt: skip


def dealt(f, options, count, *args, **more):
    """The first `count` batches that f deals: latents and sentences."""
    return [(z, given["context"]) for z, given in islice(f(Lessons(**options), *args, **more), count)]


def dealing(easy=lambda lessons, i: (lessons.easy[i], lessons.plain[i]), is_easy=lambda k, start, ahead: k < ahead,
            coin=lambda n, p: torch.rand(n) < p, nothing=lambda lessons: lessons.nothing,
            draw=lambda mean, std: mean if std is None else mean + std * torch.randn_like(mean),
            precise=torch.Tensor.float):  # fmt: skip
    """Lessons.batches, with one of its parts replaced."""

    def batches(self, batch, seed=0, start=0, ahead=0):
        for k, chosen in enumerate(deal(len(self.mean), batch, seed, start), start):
            if is_easy(k, start, ahead):
                chosen, context = easy(self, chosen % len(self.easy))
            else:
                context = self.texts[chosen]
            context = torch.where(coin(batch, self.dropout)[:, None], nothing(self), context)
            std = None if self.std is None else precise(self.std[chosen])
            yield draw(precise(self.mean[chosen]), std), {"context": context}

    return batches


NUMBERS, EASY = torch.arange(12).view(12, 1), torch.tensor([3, 5, 7, 10])
SAID = {"texts": NUMBERS + 100, "nothing": torch.tensor([[-1]]), "easy": EASY, "plain": 200 + EASY[:, None]}
EXACT = {"mean": NUMBERS.view(12, 1, 1, 1).half(), "std": None, "dropout": 0.0, **SAID}
WIDE = {"mean": torch.full((4000, 1, 2, 2), 5.0).half(), "std": torch.full((4000, 1, 2, 2), 0.5).half(), "dropout": 0.2,
        "texts": torch.zeros(4000, 1, dtype=torch.int64), "nothing": torch.tensor([[-1]])}  # fmt: skip


def drops_each(f):
    shares = torch.stack([(context == -1).float().mean() for _, context in dealt(f, WIDE, 6, 500)])
    return bool((shares > 0.1).all() and (shares < 0.3).all())


def draws(f):
    (first, _), (second, _) = (dealt(f, WIDE, 1, 4000)[0], dealt(lambda *a: (torch.rand(3), f(*a))[1], WIDE, 1, 4000)[0])
    return abs(first.mean() - 5) < 0.02 and abs(first.std() - 0.5) < 0.02 and not first.equal(second)


EACH = "not a share `dropout` of the sentences is dropped, each by a coin of its own: draw one number for each."
DRAW = "a latent is drawn anew each time: the mean plus its own std times fresh standard normal noise."
lessons_task = Task(
    "15.3", "lessons, the plain ones first", Lessons.batches,
    cases=(
        Case("two batches of four, nothing dropped", (EXACT, 2, 4, 5)),
        Case("five batches, the first two of easy scenes", (EXACT, 5, 4, 5, 0, 2)),
        Case("the same, resumed at the second", (EXACT, 4, 4, 5, 1, 2)),
        Case("all sentences dropped", (EXACT | {"dropout": 1.0}, 2, 4)),
    ),
    ask=dealt,
    mistakes=(
        Mistake("the sentence of an easy scene is not its own: `plain[i]` is said of scene `easy[i]`, so index plain first.",
                dealing(lambda lessons, i: (lessons.easy[i], lessons.plain[lessons.easy[i] % len(lessons.plain)]))),
        Mistake("easy scenes came with their usual sentences: while k < ahead, they are told plainly.",
                dealing(lambda lessons, i: (lessons.easy[i], lessons.texts[lessons.easy[i]]))),
        Mistake("plain sentences were laid beside other scenes: choose the latents by `easy`, too.",
                dealing(lambda lessons, i: (i, lessons.plain[i]))),
        Mistake("after a resume the easy ones begin again: the batch number counts from 0, whatever `start` is.",
                dealing(is_easy=lambda k, start, ahead: k - start < ahead)),
        Mistake("one easy batch too many: `ahead` of them are batches 0 to ahead - 1.",
                dealing(is_easy=lambda k, start, ahead: k <= ahead)),
        Mistake("dropout is the share that is dropped, and here it is kept.", dealing(coin=lambda n, p: torch.rand(n) >= p)),
        Mistake("dropped sentences became zeros: no text is the row `self.nothing`, which is a sentence like any other.",
                dealing(nothing=lambda lessons: torch.zeros_like(lessons.nothing))),
        Mistake("latents are kept in half precision to save room, and trained on in full: call .float() on what was chosen.",
                dealing(precise=lambda x: x)),
        Mistake(EACH, dealing(coin=lambda n, p: (torch.rand(1) < p).expand(n))),
        Mistake(DRAW, dealing(draw=lambda mean, std: mean)),
    ),
    laws=(Law(EACH, drops_each), Law(DRAW, draws)),
    hints=("for k, chosen in enumerate(deal(len(self.mean), batch, seed, start), start): chosen are the scenes of batch k.",
           "While k < ahead: chosen % len(self.easy) are places in `easy`, and in `plain` beside it.",
           "context = torch.where((torch.rand(batch) < self.dropout)[:, None], self.nothing, context)"),
)  # fmt: skip


def exchanging(*names):
    """places_exchanged, of other attributes."""
    return lambda a, b: (a._replace(**{n: getattr(b, n) for n in names}), b._replace(**{n: getattr(a, n) for n in names}))


def exchanged(f, index):
    return tuple(f(*PAIRS[index]))


PAIRS = [source for source in map(Shapes(60, seed=15, objects=2).attributes, range(60))
         if source[0].shape != source[1].shape and source[0].colour != source[1].colour and source[0].size != source[1].size
         and source[0].position != source[1].position and source[0].background == source[1].background][:3]  # fmt: skip
PLACE = ("x", "y", "position")
places_task = Task(
    "15.4", "a lie about places", places_exchanged,
    cases=tuple(Case(f"a {a.size} {a.colour} {a.shape} and a {b.size} {b.colour} {b.shape}", (i,))
                for i, (a, b) in enumerate(PAIRS)),
    ask=exchanged,
    mistakes=(
        Mistake("nothing was exchanged: `_replace` gives new attributes, and leaves the old ones as they are.",
                lambda a, b: (a._replace(x=a.x), b)),
        Mistake("the two were given in the other order, and stand where they stood: exchange where they are.",
                lambda a, b: (b, a)),
        Mistake("both stand in the same place now: the second wants the first one's old place.",
                lambda a, b: (a._replace(x=b.x, y=b.y, position=b.position), b)),
        Mistake("`position`, the place in words, was left behind.", exchanging("x", "y")),
        Mistake("y was left where it was: a place is x and y.", exchanging("x", "position")),
        Mistake("the sizes were exchanged with the places: a small thing stays small wherever it goes.",
                exchanging(*PLACE, "size", "radius")),
        Mistake("the colours were exchanged: that is the other lie.", exchanging("colour")),
        Mistake("depth went along: who is nearer is no question of where in the picture.", exchanging(*PLACE, "depth")),
    ),
    hints=("Attributes are named tuples: a._replace(x=b.x) is a, with the x of b.",
           "Where something is, is said three times: x, y, and in words, position.",
           "return a._replace(x=b.x, y=b.y, position=b.position), b._replace(x=a.x, y=a.y, position=a.position)"),
)  # fmt: skip

TASKS = [measure_task, long_task, lessons_task, places_task]
