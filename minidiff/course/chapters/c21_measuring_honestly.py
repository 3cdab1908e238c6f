"""Tasks of chapter 21: intervals of a share and of a difference, variety, and a distance that knows of how many."""

from collections import Counter
from math import log, sqrt
from statistics import fmean, pstdev, stdev

import torch

from ...evaluation import frechet_distance, kernel_distance
from ...evaluation.alignment import Row, gap, wilson
from ...evaluation.distances import LEAST, Distance, distances
from ...evaluation.diversity import entropy
from ..task import Case, Law, Mistake, Task


def interval(centre=lambda k, n, z: (k + z * z / 2) / (n + z * z), least=0.0, most=1.0,
             reach=lambda k, n, z: z / (n + z * z) * sqrt(k * (n - k) / n + z * z / 4)):  # fmt: skip
    """wilson, with one of its parts replaced."""

    def version(k, n, z=1.96):
        middle, half = centre(k, n, z), reach(k, n, z)
        return max(least, middle - half), min(most, middle + half)

    return version


def textbook(k, n, z):
    return z * sqrt(k * (n - k) / n) / n


EDGE = "at the ends rounding, or the formula, leaves [0, 1]: hold both numbers there, a share is never above 1."
wilson_task = Task(
    "21.1", "what ten of ten is worth", wilson,
    cases=(
        Case("1 of 2 with z = 1, by hand", (1, 2, 1.0), (0.5 - 0.75**0.5 / 3, 0.5 + 0.75**0.5 / 3)),  # centre 1.5/3, reach
        Case("4 of 4 with z = 2, by hand", (4, 4, 2.0), (0.5, 1.0)),  # (1/3)sqrt(2/4 + 1/4); centre 6/8, reach (2/8) sqrt(1)
        Case("none of 12 with z = 2, by hand", (0, 12, 2.0), (0.0, 0.25)),  # centre 2/16, reach (2/16) sqrt(1)
        Case("57 of 60", (57, 60)),
        Case("500 of 500", (500, 500)),
    ),
    mistakes=(
        Mistake("this is the interval of the textbooks: at 10 of 10 it is a point. Leave p unknown under the root, and solve.",
                interval(lambda k, n, z: k / n, reach=textbook)),
        Mistake("the reach is Wilson's, but the middle is k / n: the middle of the two roots lies nearer to one half.",
                interval(lambda k, n, z: k / n)),
        Mistake("the middle is Wilson's, but the reach is the textbook's, and at n of n that is 0.", interval(reach=textbook)),
        Mistake("the middle has n + z in it where the quadratic has n + z squared.",
                interval(lambda k, n, z: (k + z / 2) / (n + z))),
        Mistake("under the root z squared is divided by 4: the discriminant is halved before the root is taken.",
                interval(reach=lambda k, n, z: z / (n + z * z) * sqrt(k * (n - k) / n + z * z))),
        Mistake("z is fixed at 1.96, and it was given.",
                lambda k, n, z=1.96: interval()(k, n, 1.96)),
        Mistake("the two ends are in the wrong order: low first.", lambda k, n, z=1.96: interval()(k, n, z)[::-1]),
        Mistake("these are pictures: divide by n, for a share.",
                lambda k, n, z=1.96: tuple(n * end for end in interval()(k, n, z))),
        Mistake(EDGE, lambda k, n, z=1.96: tuple(end + 1e-6 * (k == n) - 1e-6 * (k == 0) for end in interval()(k, n, z))),
    ),
    laws=(
        Law(EDGE, lambda f: all(0 <= f(k, n)[0] <= k / n <= f(k, n)[1] <= 1 for n in (1, 3, 7, 500) for k in (0, n // 2, n))),
        Law("right and wrong may change places: the interval of n - k is that of k, seen from the other end.",
            lambda f: all(abs(f(k, 9)[0] + f(9 - k, 9)[1] - 1) < 1e-6 for k in range(10))),
    ),
    hints=("Square both sides: a quadratic in p. The shares between its roots are the interval.",
           "(n + z²) p² - (2k + z²) p + k²/n <= 0; its roots: z / (n + z²) * sqrt(k (n - k) / n + z² / 4) from their middle.",
           "centre = (k + z * z / 2) / (n + z * z); return max(0.0, centre - reach), min(1.0, centre + reach)"),
    tolerance=1e-6,
)  # fmt: skip


def apart(sides=lambda a, b: (a.share - a.interval[0], b.interval[1] - b.share, a.interval[1] - a.share,
                              b.share - b.interval[0]),
          join=lambda one, two: sqrt(one**2 + two**2), sign=1):  # fmt: skip
    """gap, with another idea of which reaches count, or of how two of them are put together."""

    def version(row, other):
        difference = sign * (row.share - other.share)
        down, other_up, up, other_down = sides(row, other)
        return difference, difference - join(down, other_up), difference + join(up, other_down)

    return version


def same_ends(a, b):
    return a.share - a.interval[0], b.share - b.interval[0], a.interval[1] - a.share, b.interval[1] - b.share


def halves(a, b):
    one, two = ((row.interval[1] - row.interval[0]) / 2 for row in (a, b))
    return one, two, one, two


def textbook_sides(a, b):
    one, two = (1.96 * sqrt(row.share * (1 - row.share) / row.n) for row in (a, b))
    return one, two, one, two


class Shown:
    """A row whose interval was worked out elsewhere."""

    def __init__(self, share, low, high, n=10):
        self.share, self.interval, self.n = share, (low, high), n

    def __deepcopy__(self, memo):
        return self


gap_task = Task(
    "21.2", "is the one better than the other?", gap,
    cases=(
        Case("0.5 (0.2 to 0.9) against 0.4 (0 to 0.8), by hand", (Shown(0.5, 0.2, 0.9), Shown(0.4, 0.1, 0.8)),
             (0.1, 0.1 - 0.5, 0.1 + 0.5)),  # reaches 0.3 and 0.4 below, 0.4 and 0.3 above: 3, 4, 5
        Case("the worse against the better", (Row("counting", False, 12, 40), Row("counting", False, 33, 50))),
        Case("90 of 100 against 78 of 100", (Row("colours", True, 90, 100), Row("colours", False, 78, 100))),
        Case("all of ten against all of ten", (Row("colours", True, 10, 10), Row("colours", False, 10, 10))),
    ),
    mistakes=(
        Mistake("the reaches were added up, as if both errors were at their ends at once: they stand at right angles.",
                apart(join=lambda one, two: one + two)),
        Mistake("the difference is low when the first is low and the other *high*: take the reaches on these sides.",
                apart(same_ends)),
        Mistake("the intervals are not even about their shares: half their widths will not do for both directions.",
                apart(halves)),
        Mistake("these are the textbook's reaches, from the shares: at all of ten they are 0. Use the intervals.",
                apart(textbook_sides)),
        Mistake("this is the difference the other way round: row.share - other.share.",
                lambda row, other: apart()(other, row)),
        Mistake("the difference is taken without its sign, so the worse one comes out better.",
                lambda row, other: (lambda d, low, high: (abs(d), abs(d) - d + low, abs(d) - d + high))(*apart()(row, other))),
        Mistake("the sum of the squares is still to be rooted.", apart(join=lambda one, two: one**2 + two**2)),
        Mistake("the difference comes first, then its interval.", lambda row, other: apart()(row, other)[1:]),
    ),
    laws=(Law("seen from the other side, the interval should be the same with its sign changed.",
              lambda f: (lambda a, b: abs(f(a, b)[1] + f(b, a)[2]) < 1e-6)(Row("", False, 9, 20), Row("", False, 29, 30))),),
    hints=("Two independent errors add as squares. Which reach of each is it that makes the difference small?",
           "down: from row.share to its low, and from other.share to its high. up: the other two.",
           "down = sqrt((row.share - low) ** 2 + (other_high - other.share) ** 2); return difference, difference - down, ..."),
    tolerance=1e-6,
)  # fmt: skip


def varied(logarithm=log, more=lambda m, n: (m - 1) / (2 * n), scale=lambda options, m: log(options), most=1.0,
           weigh=lambda p: p):  # fmt: skip
    """entropy, with one of its parts replaced."""

    def version(values, options):
        counts, n = Counter(values).values(), len(values)
        nats = -sum(weigh(k / n) * logarithm(k / n) for k in counts) + more(len(counts), n)
        return min(nats / scale(options, len(counts)), most)

    return version


def log2(x):
    return log(x) / log(2)


def simpson(values, options):
    return 1 - sum((k / len(values)) ** 2 for k in Counter(values).values())


COLOURS = ["red"] * 5 + ["blue"] * 2 + ["green"]
entropy_task = Task(
    "21.3", "how varied are eight stars?", entropy,
    cases=(
        Case("two and two, of four options, by hand", (["red", "red", "blue", "blue"], 4), (log(2) + 1 / 8) / log(4)),
        Case("always the same", (["large"] * 7, 2), 0.0),
        Case("each of two options once, by hand: held at 1", (["small", "large"], 2), 1.0),
        Case("eight colours of nine", (COLOURS, 9)),
        Case("numbers", ([3, 1, 3, 3, 2, 9, 9, 3, 1, 1], 12)),
    ),
    mistakes=(
        Mistake("the correction for few draws is missing, (m - 1) / 2n.", varied(more=lambda m, n: 0)),
        Mistake("the logarithm above is to base 2 and the one below is not: the correction is in nats, so both are natural.",
                varied(logarithm=log2)),
        Mistake("the entropy is in nats: divide by log(options), so that 1 is the most there could be.",
                varied(scale=lambda options, m: 1.0)),
        Mistake("it is divided by the logarithm of how many values came, and not of how many could have come.",
                varied(scale=lambda options, m: log(max(m, 2)))),
        Mistake("it exceeds 1 where the correction is generous: hold it there.", varied(most=float("inf"))),
        Mistake("the correction counts the values that differ, less one.", varied(more=lambda m, n: m / (2 * n))),
        Mistake("the correction is divided by twice the number of draws.", varied(more=lambda m, n: (m - 1) / n)),
        Mistake("the logarithms are to be weighted, each by its share: a rare value counts rarely.",
                varied(weigh=lambda p: 1.0)),
        Mistake("this is the chance that two draws differ, which is another measure: sum p log p.", simpson),
    ),
    laws=(Law("only how often each value came should matter: not its name, nor the order.",
              lambda f: abs(f(list("aabc"), 5) - f([7, (1, 2), 7, None], 5)) < 1e-9),),
    hints=("`collections.Counter(values).values()` says how often each value came.",
           "-sum(k / n * log(k / n) for k in counts) is the entropy in nats, uncorrected.",
           "min((nats + (len(counts) - 1) / (2 * n)) / log(options), 1.0)"),
    tolerance=1e-6,
)  # fmt: skip


def at_each(sizes=lambda most: [n for k in range(12) if (n := LEAST * 2**k) < most] + [most],
            parts=lambda a, b, n, most: [(a[k : k + n], b[k : k + n]) for k in range(0, most - n + 1, n)], spread=pstdev,
            fd=frechet_distance, kd=kernel_distance):  # fmt: skip
    """distances, with one of its parts replaced."""

    def version(a, b):
        most, curve = min(len(a), len(b)), []
        for n in sizes(most):
            pairs = parts(a, b, n, most)
            f, k = [fd(*pair) for pair in pairs], [kd(*pair) for pair in pairs]
            curve.append(Distance(n, len(pairs), fmean(f), fmean(k), spread(f), spread(k)))
        return curve

    return version


def parted(step, fill=True, against=lambda b, k, n: b[k : k + n]):
    return lambda a, b, n, most: [(a[k : k + n], against(b, k, n)) for k in range(0, most - (n if fill else 2) + 1, step(n))]


_G = torch.Generator().manual_seed(0)
ONE, TWO = torch.randn(300, 3, generator=_G), 0.5 + 1.5 * torch.randn(300, 3, generator=_G)
STRIPES = torch.tensor([[-1.0], [1.0]]).repeat(64, 1)  # every 64 of them have mean 0 and the same variance


def by_hand(h, parts):
    """h of -1 and h of 1 against h of 1 and h of 3. k is 8 or 0 among the first, 8, 64 or 1000 among the others."""
    kd = 8 * (h - 1) / (2 * h - 1) + (504 * (h - 1) + 64 * h) / (2 * h - 1) - 2 * (0 - 8 + 8 + 64) / 4
    return 2 * h, parts, 4.0, kd, 0.0, 0.0


distances_task = Task(
    "21.4", "a distance, and of how many", distances,
    cases=(
        Case("64 pairs of -1 and 1, and these moved by 2, by hand", (STRIPES, STRIPES + 2), [by_hand(32, 2), by_hand(64, 1)]),
        Case("two clouds of 300", (ONE, TWO)),
        Case("300 and 200", (ONE, TWO[:200])),
        Case("fewer than the least", (ONE[:40], TWO[:40])),
    ),
    ask=lambda f, a, b: [tuple(row) for row in f(a, b)],
    mistakes=(
        Mistake("only the first part of each size was measured, and the others are there to be averaged.",
                at_each(parts=lambda a, b, n, most: [(a[:n], b[:n])])),
        Mistake("the parts overlap: they are to share no row, or their spread says too little.",
                at_each(parts=parted(lambda n: max(1, n // 2)))),
        Mistake("what was left over at the end became a part of its own, smaller than the others: compare at equal n.",
                at_each(parts=parted(lambda n: n, fill=False))),
        Mistake("each part of a was compared with all of b, which has another size: FD has a bias that goes with n.",
                at_each(parts=parted(lambda n: n, against=lambda b, k, n: b))),
        Mistake("the last size, all there are, is missing.",
                at_each(lambda most: [n for k in range(12) if (n := LEAST * 2**k) < most] or [most])),
        Mistake("the sizes double: 64, 128, 256.", at_each(lambda most: [*range(LEAST, most, LEAST), most])),
        Mistake("the spread is that of these parts as they are, pstdev: with stdev a single part has none.",
                at_each(spread=lambda some: stdev(some) if len(some) > 1 else 0.0)),
        Mistake("FD and KD have changed places.", at_each(fd=kernel_distance, kd=frechet_distance)),
        Mistake("the Fréchet distance here is the squared one, as `frechet_distance` gives it.",
                at_each(fd=lambda a, b: frechet_distance(a, b) ** 0.5)),
    ),
    hints=("Two loops: over the sizes, and over the parts of each. `range(0, most - n + 1, n)` are where full parts begin.",
           "sizes: 64 * 2**k while below min(len(a), len(b)), then that number itself. pairs: (a[k : k + n], b[k : k + n]).",
           "Distance(n, len(pairs), fmean(fd), fmean(kd), pstdev(fd), pstdev(kd)), with fmean and pstdev from statistics"),
    tolerance=1e-4,
)  # fmt: skip

TASKS = [wilson_task, gap_task, entropy_task, distances_task]
