"""Tasks of chapter 08: labels that are dropped, labels that become vectors, and labels that stay with their images."""

from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import nn

from ...data import Images, Shapes, batches, from_pixels, matches, read_shapes
from ...nets import ClassEmbedding, drop_labels
from ..task import Case, Law, Mistake, Task


def dropping(choose=lambda y, p, generator: torch.rand(y.shape, generator=generator) < p,
             replace=lambda y, dropped, null: torch.where(dropped, null, y)):  # fmt: skip
    """drop_labels, with one of its parts replaced."""
    return lambda y, null_class, probability, generator=None: replace(y, choose(y, probability, generator), null_class)


MANY = torch.arange(10).repeat(1000)  # ten labels, a thousand of each


def drop_a_fifth(f, generator=None):
    # which of MANY were dropped, (10000,) bool
    return f(MANY, 10, 0.2, generator) == 10


def decides_for_each(f):
    dropped = drop_a_fifth(f).view(1000, 10).float()
    return 0.17 < dropped.mean() < 0.23 and dropped.mean(0).min() > 0.1 and dropped.sum(1).std() > 0.5


def repeats(f):
    first, second, third = (drop_a_fifth(f, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    return torch.equal(first, second) and not torch.equal(first, third)


EACH = "not every label is dropped at the given probability, each for itself: was one number drawn for the whole batch?"
ALWAYS = "the same places are dropped every time: which labels go should be drawn anew at every call, from no fixed seed."
GENERATOR = "the generator was given and not used: with equal seeds equal labels must be dropped, with another seed others."
drop_task = Task(
    "08.1", "forget the label now and then", drop_labels,
    cases=(
        Case("three labels by hand, all of them dropped", (torch.tensor([3, 1, 4]), 10, 1.0), torch.tensor([10, 10, 10])),
        Case("probability 0", (torch.tensor([3, 1, 4, 10]), 10, 0.0), torch.tensor([3, 1, 4, 10])),
        Case("a thousand labels, all dropped, of five classes", (torch.arange(1000) % 5, 5, 1.0)),
    ),
    mistakes=(
        Mistake("probability is the share that is dropped, and here it is kept.",
                dropping(lambda y, p, generator: torch.rand(y.shape, generator=generator) >= p)),
        Mistake("dropped labels became class 0, which is a class like others: the null class has a number of its own.",
                dropping(replace=lambda y, dropped, null: torch.where(dropped, 0, y))),
        Mistake("dropped labels became the last real class: classes count from 0, so the null class is num_classes itself.",
                dropping(replace=lambda y, dropped, null: torch.where(dropped, null - 1, y))),
        Mistake("dropped labels became -1, which is no row of an embedding.",
                dropping(replace=lambda y, dropped, null: torch.where(dropped, -1, y))),
        Mistake("dropped labels are gone, and their images have none: replace a label, do not remove it.",
                dropping(replace=lambda y, dropped, null: y[~dropped])),
        Mistake(EACH, dropping(lambda y, p, generator: torch.rand(1, generator=generator) < p)),
        Mistake(ALWAYS, dropping(lambda y, p, generator: torch.rand(y.shape, generator=torch.Generator().manual_seed(0)) < p)),
        Mistake(GENERATOR, dropping(lambda y, p, generator: torch.rand(y.shape) < p)),
    ),
    laws=(
        Law(EACH, decides_for_each),
        Law(ALWAYS, lambda f: not torch.equal(drop_a_fifth(f), drop_a_fifth(lambda *args: (torch.rand(7), f(*args))[1]))),
        Law(GENERATOR, repeats),
    ),
    hints=("For each label one number between 0 and 1: how often is it below `probability`?",
           "`torch.rand(y.shape, generator=generator) < probability` is true where a label is to go.",
           "torch.where(dropped, null_class, y)"),
)  # fmt: skip


class Asked(NamedTuple):  # of an embedding of classes
    null_class: Any
    table: Any  # the shapes of all that it learns
    vectors: Any


def embed(f, num_classes, dim, y):
    """Build one, fill all it learns with known numbers, and ask it. A label without a row is part of the answer."""
    module = f(num_classes, dim)
    with torch.no_grad():
        for weights in module.parameters():
            weights.copy_(torch.linspace(-1, 1, weights.numel()).view(weights.shape))
    try:
        vectors = module(y)
    except IndexError as error:
        vectors = f"an IndexError: {error}"
    return Asked(module.null_class, [torch.tensor(weights.shape) for weights in module.parameters()], vectors)


def table(rows=1, null=0, padded=False, zero=False, checked=True):
    """ClassEmbedding, with so many more rows than classes, the null class so far from num_classes, and so on."""

    class Version(nn.Module):
        def __init__(self, num_classes, dim):
            super().__init__()
            self.null_class = num_classes + null
            self.table = nn.Embedding(num_classes + rows, dim, padding_idx=num_classes if padded else None)

        def forward(self, y):
            if checked and not 0 <= y.min() <= y.max() <= self.null_class - null:
                raise ValueError("no such class")
            return torch.where((y == self.null_class)[:, None], 0, self.table(y)) if zero else self.table(y)

    return Version


class Number(nn.Module):
    def __init__(self, num_classes, dim):
        super().__init__()
        self.null_class = num_classes
        self.line = nn.Linear(1, dim)

    def forward(self, y):
        return self.line(y[:, None] / self.null_class)


def refuses(f):
    for label in (-1, 11):
        try:
            f(10, 4)(torch.tensor([3, label]))
        except ValueError:
            continue
        return False
    return True


def learns_every_row(f):
    module = f(10, 4)
    module(torch.arange(11)).sum().backward()
    return all(bool((weights.grad.abs().sum(1) > 0).all()) for weights in module.parameters())


REFUSE = "a label that is no class should raise a ValueError that names it: an index error, on a GPU, names nothing."
LEARN = "a row of the table gets no gradient, so it would never be trained: the null class is learned like any other."
embedding_task = Task(
    "08.2", "a vector for each class, and one for any", ClassEmbedding,
    cases=(
        Case("two classes of two numbers by hand; the labels are null, 0, 1", (2, 2, torch.tensor([2, 0, 1])),
             Asked(2, [torch.tensor([3, 2])], torch.tensor([[0.6, 1.0], [-1.0, -0.6], [-0.2, 0.2]]))),
        Case("ten classes, all labels", (10, 16, torch.arange(11))),
        Case("no null among the labels", (10, 16, torch.tensor([7, 7, 9]))),
    ),
    ask=embed,
    mistakes=(
        Mistake("the table has no row for the null class: it is one more than there are classes.", table(rows=0)),
        Mistake("the last real class serves as the null class, so whoever asks for it gets anything: add a row.",
                table(rows=0, null=-1)),
        Mistake("the null class answers zeros: it has a learned vector of its own, as every class has.", table(zero=True)),
        Mistake("the label goes in as a number, and class 8 comes to lie between 7 and 9: take a table with a row per class.",
                Number),
        Mistake(REFUSE, table(checked=False)),
        Mistake(LEARN, table(padded=True)),
    ),
    laws=(Law(REFUSE, refuses), Law(LEARN, learns_every_row)),
    hints=("nn.Embedding(rows, dim) is a table whose rows are learned. How many rows?",
           "`self.null_class = num_classes` is the last row. And before a look at the table: are y.min() and y.max() in it?",
           "self.table = nn.Embedding(num_classes + 1, dim); raise ValueError unless 0 <= y.min() and y.max() <= null_class"),
)  # fmt: skip


def judging(found, confidence=None):
    """matches, with another idea of what counts. found: (objects of one image, shape, colour) -> bool."""

    def version(image, shape, colour, min_confidence=0.5):
        readings = read_shapes(image[None] if image.dim() == 3 else image, confidence or min_confidence)
        answers = torch.tensor([bool(found(objects, shape, colour)) for objects in readings])
        return bool(answers[0]) if image.dim() == 3 else answers

    return version


def has(objects, shape=None, colour=None):
    return any(shape in (None, a.shape) and colour in (None, a.colour) for a in objects)


SINGLE, PAIRS = (torch.stack([scene.image for scene in islice(Shapes(4, seed=5, objects=n), 4)]) for n in (1, 2))
NOISY = SINGLE + 0.3 * torch.randn(SINGLE.shape, generator=torch.Generator().manual_seed(0))  # the oracle is not sure of these
matches_task = Task(
    "08.3", "did it draw what was asked?", matches,
    cases=(
        Case("a red square, seen by eye", (SINGLE[0], "square", "red"), True),
        Case("a yellow triangle, among four images of two objects each", (PAIRS, "triangle", "yellow"),
             torch.tensor([True, False, False, False])),
        Case("an orange star among them", (PAIRS, "star", "orange"), torch.tensor([False, False, True, False])),
        Case("a green circle, where a green star and a red circle are", (PAIRS[3:], "circle", "green"), torch.tensor([False])),
        Case("hardly to be seen, and a low bar", (NOISY[2:3], "heart", "red", 0.2)),
        Case("seen well enough, and a high bar", (NOISY[0], "square", "red", 0.9)),
    ),
    mistakes=(
        Mistake("only the shape was looked at.", judging(lambda objects, shape, colour: has(objects, shape))),
        Mistake("only the colour was looked at.", judging(lambda objects, shape, colour: has(objects, None, colour))),
        Mistake("shape and colour may be those of two objects here: one object must have both.",
                judging(lambda objects, shape, colour: has(objects, shape) and has(objects, None, colour))),
        Mistake("only the first object was looked at, and there may be more.",
                judging(lambda objects, shape, colour: has(objects[:1], shape, colour))),
        Mistake("every object had to match: one that does is enough.",
                judging(lambda objects, shape, colour: objects and all(has([a], shape, colour) for a in objects))),
        Mistake("min_confidence has not reached read_shapes.", judging(has, confidence=0.5)),
    ),
    hints=("`md.data.read_shapes(images, min_confidence)` gives, for each image, its objects: they have .shape and .colour.",
           "One image, (3, H, H), gives its objects themselves and wants a bool; a batch gives a list and wants a tensor (B,).",
           "any((a.shape, a.colour) == (shape, colour) for a in objects), for each image; torch.tensor([...]) of a batch"),
    seconds=20.0,
)  # fmt: skip


def dealing(order=lambda n, rng: torch.randperm(n, generator=rng), apart=False, incomplete=False, epochs=None, resume=True,
            coin=lambda n, rng: torch.rand(n, generator=rng) < 0.5):  # fmt: skip
    """batches, with one of its parts replaced."""

    def version(images, batch_size, device="cpu", flip=False, seed=0, start=0):
        n, step = len(images), start if resume else 0
        per_epoch = -(-n // batch_size) if incomplete else n // batch_size
        while epochs is None or step < epochs * per_epoch:
            epoch, k = divmod(step, per_epoch)
            rng = torch.Generator().manual_seed(1000 * seed + epoch)
            mine = order(n, rng)[k * batch_size : (k + 1) * batch_size]
            theirs = torch.randperm(n, generator=rng)[: len(mine)] if apart else mine
            x = from_pixels(images.pixels[mine])
            if flip:
                x = torch.where(coin(len(x), torch.Generator().manual_seed(step))[:, None, None, None], x.flip(-1), x)
            yield x, None if images.labels is None else images.labels[theirs]
            step += 1

    return version


SLOPES = torch.arange(12)[:, None, None, None] * 10 + torch.arange(8).view(1, 1, 1, 8) * torch.ones(1, 1, 8, 1)
TWELVE = Images(SLOPES.byte(), torch.arange(12))  # each its own label, and brighter to the right


def walk(f, count, *args, **options):
    """(x, y) of so many batches of four, of twelve images: x (count, 4, 1, 8, 8) and y (count, 4)."""
    return tuple(torch.stack(part) for part in zip(*islice(f(TWELVE, 4, *args, **options), count), strict=True))


def mirrors(f):
    x, y = walk(f, 15, flip=True)
    plain = from_pixels(TWELVE.pixels[y])
    same, mirrored = ((x == other).flatten(2).all(2) for other in (plain, plain.flip(-1)))
    share = mirrored.float().mean(1)
    return bool((same | mirrored).all()) and 0.2 < share.mean() < 0.8 and bool(((share > 0) & (share < 1)).any())


def resumes(f):
    (x, y), (later_x, later_y) = walk(f, 8), walk(lambda *args, **more: (torch.rand(7), f(*args, **more))[1], 3, start=5)
    return torch.equal(y[5:], later_y) and torch.equal(x[5:], later_x)


TOGETHER = "labels and images were shuffled apart: an image must come with its own label."
ONCE = "an epoch should show every image once: go through a permutation instead of drawing with replacement."
ANEW = "every epoch has the same order: shuffle anew for each."
RESUME = "batch k must depend on seed and k alone: with start=5 a walk should begin as one from 0 goes on after five batches."
MIRROR = "with flip, each image is mirrored left to right or not by a coin of its own, not the batch as a whole."
ALIKE = Images(torch.full((5, 1, 8, 8), 51, dtype=torch.uint8), torch.full((5,), 3))  # in any order the same
batches_task = Task(
    "08.4", "labels that stay with their images", batches,
    cases=(
        Case("five batches of two, from five equal images", (ALIKE, 2),
             [(torch.full((2, 1, 8, 8), -0.6), torch.tensor([3, 3]))] * 5),
        Case("without labels", (Images(ALIKE.pixels), 3), [(torch.full((3, 1, 8, 8), -0.6), None)] * 5),
    ),
    ask=lambda f, *args: list(islice(f(*args), 5)),
    mistakes=(
        Mistake("the walk ends after an epoch: it should go on, with the next one.", dealing(epochs=1)),
        Mistake("the last batch of an epoch is shorter than the others: leave it out.", dealing(incomplete=True)),
        Mistake(TOGETHER, dealing(apart=True)),
        Mistake(ONCE, dealing(order=lambda n, rng: torch.randint(n, (n,), generator=rng))),
        Mistake(ANEW, dealing(order=lambda n, rng: torch.randperm(n, generator=torch.Generator().manual_seed(0)))),
        Mistake(RESUME, dealing(resume=False)),
        Mistake(MIRROR, dealing(coin=lambda n, rng: torch.rand(1, generator=rng) < 0.5)),
    ),
    laws=(
        Law(TOGETHER, lambda f: (lambda x, y: torch.equal(x, from_pixels(TWELVE.pixels[y])))(*walk(f, 6))),
        Law(ONCE, lambda f: all(epoch.sort().values.equal(torch.arange(12)) for epoch in walk(f, 6)[1].view(2, 12))),
        Law(ANEW, lambda f: len(walk(f, 15)[1].view(5, 12).unique(dim=0)) > 3),
        Law(RESUME, resumes),
        Law(MIRROR, mirrors),
    ),
    hints=("A generator function: an endless loop over batch numbers, and one `yield x, y` in it.",
           "Epoch and place of batch k are divmod(k, len(images) // batch_size). A permutation from a generator seeded by seed "
           "and epoch can be made again. One list of indices serves pixels and labels.",
           "mine = order[place * batch_size :][:batch_size]; yield from_pixels(images.pixels[mine]), images.labels[mine]"),
)  # fmt: skip

TASKS = [drop_task, embedding_task, matches_task, batches_task]
