"""Tasks of chapter 05: images as numbers, a training loop with care, and how far two sets of pictures are apart."""

import copy
import math

import torch
from torch import nn

from ...data import Shapes, from_pixels
from ...evaluation import frechet_distance, kernel_distance
from ...training import EMA, TrainConfig
from ..task import Case, Law, Mistake, Task

GENERATOR = torch.Generator().manual_seed(5)
PIXELS = Shapes(4, size=32, seed=5).tensors()[0]  # uint8 (4, 3, 32, 32)
DARK = PIXELS[:, :1] // 4 + 10  # grey values 10 to 73: neither black nor white is in it


def between_its_own_ends(pixels):
    x = pixels.float()
    return (x - x.min()) / (x.max() - x.min()) * 2 - 1


from_pixels_task = Task(
    "05.1", "from bytes to [−1, 1]", from_pixels,
    cases=(
        Case("four bytes by hand", (torch.tensor([0, 51, 204, 255], dtype=torch.uint8),), torch.tensor([-1.0, -0.6, 0.6, 1.0])),
        Case("images", (PIXELS,)),
        Case("dark images", (DARK,)),
        Case("one image, without a batch", (PIXELS[0],)),
    ),
    mistakes=(
        Mistake("this is [0, 1]: noise has its middle at 0, and so should images.", lambda pixels: pixels.float() / 255),
        Mistake("this is [0, 2]: the width is right, the middle is not at 0 yet.", lambda pixels: pixels.float() / 127.5),
        Mistake("white falls short of 1: the bytes run from 0 to 255, so half of their range is 127.5, not 128.",
                lambda pixels: pixels.float() / 128 - 1),
        Mistake("the sum was done in bytes, which begin again at 0 after 255: make floats of them first.",
                lambda pixels: (pixels * 2).float() / 255 - 1),
        Mistake("every batch was stretched to its own darkest and brightest pixel: a dark image has to stay dark.",
                between_its_own_ends),
    ),
    hints=("A straight line through two points: 0 goes to -1, 255 goes to 1.",
           "Bytes cannot hold -0.6: `pixels.float()` first. Then the width of the range, then its middle.",
           "pixels.float() / 127.5 - 1"),
    tolerance=1e-5,
)  # fmt: skip


def warmup(config, step):
    return min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0


def half_cosine(config, step):
    return (1 + math.cos(math.pi * step / config.steps)) / 2 if config.decay == "cosine" else 1.0


def rate(rise=warmup, fall=half_cosine):
    return lambda config, step: config.lr * rise(config, step) * fall(config, step)


def in_cosine_runs(fall):
    return lambda config, step: fall(config, step) if config.decay == "cosine" else 1.0


def after_warmup(config, step):
    share = max(0, step - config.warmup) / max(1, config.steps - config.warmup)
    return (1 + math.cos(math.pi * share)) / 2


def curve(f, config):
    """The learning rate of every step, (steps,), which is drawn as a curve; None if a step has none."""
    rates = [f(config, step) for step in range(config.steps)]
    return None if any(value is None for value in rates) else torch.tensor([float(value) for value in rates])


lr_task = Task(
    "05.2", "rise, then fall", TrainConfig.lr_at,
    cases=(
        Case("a run of four steps by hand", (TrainConfig(steps=4, lr=1.0, warmup=2),),
             torch.tensor([0.5, 0.853553, 0.5, 0.146447])),  # 1/2 * 1; 1 * (1 + cos 45°) / 2; then 90° and 135°
        Case("600 steps", (TrainConfig(steps=600, lr=1.0),)),
        Case("without warmup", (TrainConfig(steps=40, lr=1.0, warmup=0),)),
        Case('decay = "constant"', (TrainConfig(steps=40, lr=1.0, warmup=10, decay="constant"),)),
        Case("a warmup longer than the run", (TrainConfig(steps=20, lr=2.0, warmup=50),)),
    ),
    ask=curve,
    mistakes=(
        Mistake("the first step has a learning rate of 0 and does nothing: the rise begins with 1 / warmup.",
                rate(rise=lambda c, step: min(1.0, step / c.warmup) if c.warmup else 1.0)),
        Mistake("the rise goes on after the warmup: it has to end at 1.",
                rate(rise=lambda c, step: (step + 1) / c.warmup if c.warmup else 1.0)),
        Mistake("the cosine waits for the end of the warmup: here it begins with the run, and the two are multiplied.",
                rate(fall=in_cosine_runs(after_warmup))),
        Mistake("twice too high: 1 + cos starts at 2.",
                rate(fall=in_cosine_runs(lambda c, step: 1 + math.cos(math.pi * step / c.steps)))),
        Mistake("this is a quarter of a turn, which falls fastest at the end: the cosine should run from 1 to -1.",
                rate(fall=in_cosine_runs(lambda c, step: math.cos(math.pi / 2 * step / c.steps)))),
        Mistake('decay = "constant" should not fall at all.',
                rate(fall=lambda c, step: (1 + math.cos(math.pi * step / c.steps)) / 2)),
    ),
    hints=("Three factors: config.lr, one that rises to 1, one that falls from 1 to 0.",
           "The rise is (step + 1) / warmup, held at 1; ask first whether there is a warmup at all.",
           "lr * min(1, (step + 1) / warmup) * (1 + math.cos(math.pi * step / steps)) / 2, the last only for \"cosine\""),
)  # fmt: skip


class Walker(nn.Module):
    """A network of one weight, and one buffer, that are put where we like."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("statistic", torch.zeros(1))

    @torch.no_grad()
    def put(self, value):
        self.weight.fill_(value)
        self.statistic.fill_(value)


def follow(f, weights, decay):
    """Where the average is, and its buffer, while the network walks along `weights`."""
    net = Walker()
    net.put(weights[0])
    ema = f(net, decay)
    found = []
    for weight in weights[1:]:
        net.put(weight)
        ema.update(net)
        found.append((ema.net.weight.item(), ema.net.statistic.item()))
    return tuple(torch.tensor(found).T)


def ramp(decay, k):
    return min(decay, (1 + k) / (10 + k))


def average(rate=ramp, counts=True, duplicate=copy.deepcopy, buffers=True, ready=True):
    """EMA, with one of its parts replaced."""

    class Version:
        def __init__(self, net, decay=0.999):
            self.net, self.decay, self.updates = duplicate(net), decay, 0
            if ready:
                self.net.requires_grad_(False).eval()

        @torch.no_grad()
        def update(self, net):
            d = rate(self.decay, self.updates)
            self.updates += counts
            for mine, theirs in zip(self.net.parameters(), net.parameters(), strict=True):
                mine.copy_(d * mine + (1 - d) * theirs)
            for mine, theirs in zip(self.net.buffers(), net.buffers(), strict=True):
                mine.copy_(theirs if buffers else mine)

    return Version


READY = "the averaged network is used, not trained: it should be in eval mode, and its weights need no gradients."
WALK = torch.randn(80, generator=GENERATOR).cumsum(0)
ema_task = Task(
    "05.3", "average the weights", EMA,
    cases=(
        Case("three updates by hand, from 1 to 0, decay 0.2", (torch.tensor([1.0, 0.0, 0.0, 0.0]), 0.2),
             (torch.tensor([0.1, 0.1 * 2 / 11, 0.1 * 2 / 11 * 0.2]), torch.zeros(3))),
        Case("a network that wanders", (WALK, 0.999)),
        Case("a shorter memory", (WALK, 0.6)),
        Case("no memory: decay 0", (WALK, 0.0)),
    ),
    ask=follow,
    mistakes=(
        Mistake("decay and 1 - decay have changed places: the average should move a little, and stay for the most part.",
                average(lambda decay, k: 1 - ramp(decay, k))),
        Mistake("the ramp is missing: a short run would be averaged with its own random beginning.",
                average(lambda decay, k: decay)),
        Mistake("the updates are never counted, so the ramp stays at its first value.", average(counts=False)),
        Mistake("the ramp is one update ahead: k is the number of updates done before, so 0 in the first.",
                average(lambda decay, k: ramp(decay, k + 1))),
        Mistake("the average *is* the network and walks with it: it has to be a copy.", average(duplicate=lambda net: net)),
        Mistake("the buffers stayed behind: they are no weights, and are taken over as they are.", average(buffers=False)),
        Mistake(READY, average(ready=False)),
    ),
    laws=(Law(READY, lambda f: not (net := f(Walker().train(), 0.9).net).training and not net.weight.requires_grad),),
    hints=("`copy.deepcopy(net)` at the start; then every update moves each parameter of the copy a little towards its model.",
           "d = min(self.decay, (1 + k) / (10 + k)), k updates done before. `zip(self.net.parameters(), net.parameters())`.",
           "under torch.no_grad(): average.lerp_(weight, 1 - d) for the parameters, average.copy_(buffer) for the buffers()"),
)  # fmt: skip


def cloud(n, mean, mix):
    return mean + torch.randn(n, len(mix), generator=GENERATOR) @ mix


MIX_A, MIX_B = (torch.randn(5, 5, generator=GENERATOR) for _ in "ab")
A, B = cloud(300, torch.zeros(5), MIX_A), cloud(200, torch.arange(5.0) / 2, MIX_B)
LINE_A, LINE_B = torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [7.0]])  # means 1 and 5, variances 2 and 8


def root(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def overlap(a, b):
    """tr (C_a C_b)^(1/2)"""
    return torch.linalg.eigvalsh(root(a) @ b @ root(a)).clamp(min=0).sqrt().sum()


def distance(covariance=lambda x: torch.cov(x.T).reshape(x.shape[1], -1), shared=overlap, apart=lambda d: d.square().sum()):
    def version(features_a, features_b):
        a, b = features_a.double(), features_b.double()
        cov_a, cov_b = covariance(a), covariance(b)
        return (apart(a.mean(0) - b.mean(0)) + cov_a.trace() + cov_b.trace() - 2 * shared(cov_a, cov_b)).item()

    return version


frechet_task = Task(
    "05.4", "the Fréchet distance", frechet_distance,
    cases=(
        Case("two and two points on a line, by hand", (LINE_A, LINE_B), 18.0),  # (1 - 5)**2 + (2**0.5 - 8**0.5)**2
        Case("two clouds, features that hang together", (A, B)),
        Case("the same cloud twice", (A, A), 0.0),
        Case("the same cloud, moved", (B, B + 1.0), 5.0),
        Case("fewer images than features", (A[:4], B[:4])),
    ),
    mistakes=(
        Mistake("the last term is missing, what the two spreads share: even equal clouds would be far apart.",
                distance(shared=lambda a, b: 0)),
        Mistake("the distance of the means has to be squared.", distance(apart=lambda d: d.norm())),
        Mistake("the root was taken of each entry: a matrix has a root of its own, whose square is that matrix.",
                distance(shared=lambda a, b: (a @ b).clamp(min=0).sqrt().trace())),
        Mistake("the root of a product is not the product of the roots, unless the matrices commute.",
                distance(shared=lambda a, b: (root(a) @ root(b)).trace())),
        Mistake("every feature was taken for itself: the covariance has entries beside its diagonal, and they count.",
                distance(covariance=lambda x: x.var(0).diag())),
        Mistake("these are standard deviations; the formula is written in variances.",
                distance(covariance=lambda x: x.std(0).diag())),
        Mistake("the covariance was divided by the number of images; without bias it is divided by one less.",
                distance(covariance=lambda x: torch.cov(x.T, correction=0).reshape(x.shape[1], -1))),
    ),
    hints=("Means first, then two covariances, torch.cov(x.T). The last term is the only difficulty.",
           "The trace of a root is the sum of the roots of the eigenvalues, and C_a C_b has those of the symmetric S C_b S, "
           "where S is the root of C_a. In float64; eigenvalues a little below 0 are 0.",
           "values, vectors = torch.linalg.eigh(cov_a); S = vectors * values.clamp(min=0).sqrt() @ vectors.T; overlap = "
           "torch.linalg.eigvalsh(S @ cov_b @ S).clamp(min=0).sqrt().sum()"),
    tolerance=1e-3,  # eigenvalues that should be 0 come out as 1e-16 in one way of writing it, and their roots as 1e-8
)  # fmt: skip


def discrepancy(kernel=lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3, itself=False, between=2, end=lambda value: value):
    def mean_of_pairs(x):
        table = kernel(x, x)
        return table.mean() if itself else (table.sum() - table.trace()) / (len(x) * (len(x) - 1))

    def version(features_a, features_b):
        a, b = features_a.double(), features_b.double()
        return end(mean_of_pairs(a) + mean_of_pairs(b) - between * kernel(a, b).mean()).item()

    return version


kernel_task = Task(
    "05.5", "the kernel distance", kernel_distance,
    cases=(
        Case("two and two points on a line, by hand", (torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])), 9.5),
        Case("two clouds", (A / 3, B / 3)),  # 1 + 27 - 2 * (1 + 1 + 8 + 27) / 4 above
        Case("the same cloud twice, where it comes out below 0", (A[:20], A[:20])),
    ),
    mistakes=(
        Mistake("images were compared with themselves, which adds a bias: leave the pairs i = j out of the first two means.",
                discrepancy(itself=True)),
        Mistake("what lies between the two sets counts twice, once for each of them.", discrepancy(between=1)),
        Mistake("the products of features are not divided by their number D, so the distance depends on D.",
                discrepancy(lambda x, y: (x @ y.T + 1) ** 3)),
        Mistake("the kernel lacks its + 1: without it only third moments are compared, and neither means nor spreads.",
                discrepancy(lambda x, y: (x @ y.T / x.shape[1]) ** 3)),
        Mistake("the kernel is a third power: a square does not see how lopsided a set is.",
                discrepancy(lambda x, y: (x @ y.T / x.shape[1] + 1) ** 2)),
        Mistake("it was held at 0: an estimate without bias of a number near 0 has to come out below it now and then.",
                discrepancy(end=lambda value: value.clamp(min=0))),
    ),
    hints=("Three tables of the kernel: (N, N), (M, M) and (N, M). One matrix product each.",
           "For the mean over i != j, take the trace out of the sum, and divide by N (N - 1).",
           "k = (a @ b.T / D + 1) ** 3; (kaa.sum() - kaa.trace()) / (N * (N - 1)), the same of b, minus 2 * kab.mean()"),
)  # fmt: skip

TASKS = [from_pixels_task, lr_task, ema_task, frechet_task, kernel_task]
