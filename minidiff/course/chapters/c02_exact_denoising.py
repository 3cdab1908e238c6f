"""Tasks of chapter 02: denoisers in closed form, DDPM's step, and the walk that is made of such steps."""

from itertools import pairwise
from types import SimpleNamespace

import torch

from ...data import Shapes, from_pixels
from ...diffusion import CLEAN, DatasetDenoiser, Estimate, GaussianDenoiser, Level, Schedule, State, add_noise, ddpm, ddpm_step
from ..task import Case, Law, Mistake, Task
from ..walks import Belief, seeded, visits

LINEAR, FLOW = Schedule.linear(), Schedule.flow()
GENERATOR = torch.Generator().manual_seed(2)
IMAGES = from_pixels(Shapes(16, size=32, seed=3).tensors()[0])  # (16, 3, 32, 32)
X0 = IMAGES[:4]
EPS, FRESH = torch.randn(2, *X0.shape, generator=GENERATOR)
EACH, LOWER = LINEAR.at(torch.tensor([900, 700, 500, 60])), LINEAR.at(torch.tensor([700, 690, 250, 20]))
PURE = Level(999, 0.0, 1.0)  # as after zero_terminal_snr
NOISY, CLEANER = Level(300, 0.6, 0.8), Level(200, 0.8, 0.6)  # for numbers by hand
MEAN, STD = IMAGES.mean(0), IMAGES.std(0) + 0.1


def noisy(level):
    return add_noise(X0, EPS, level)


def gaussian(formula):
    """A class as a function: formula(xt, alpha, sigma, mean, std) -> (x0, eps), or x0 alone, from which eps is solved."""

    def build(mean=0.0, std=1.0):
        def denoise(xt, level):
            alpha, sigma = level.like(xt)
            answer = formula(xt, alpha, sigma, mean, std)
            return Estimate(*answer) if isinstance(answer, tuple) else Estimate(answer, (xt - alpha * answer) / sigma)

        return denoise

    return build


gaussian_task = Task(
    "02.1", "the best guess, if the data are Gaussian", GaussianDenoiser,
    ask=lambda f, built, xt, level: f(*built)(xt, level),
    cases=(
        Case("three numbers by hand", ((1.0, 2.0), torch.tensor([3.0, 0.5, -2.0]), Level(500, 0.5, 0.5)),
             Estimate(torch.tensor([5.0, 1.0, -3.0]), torch.tensor([1.0, 0.0, -1.0]))),
        Case("mean 0 and std 1, the defaults", ((), noisy(LINEAR.at(300)), LINEAR.at(300))),
        Case("a mean image and a spread for each pixel", ((MEAN, STD), noisy(LINEAR.at(400)), LINEAR.at(400))),
        Case("a level for each image", ((0.2, 0.5), noisy(EACH), EACH)),
        Case("on a flow", ((0.2, 0.5), noisy(FLOW.at(250.5)), FLOW.at(250.5))),
        Case("pure noise, which says nothing: x0 is the mean", ((MEAN, STD), EPS, PURE)),
    ),
    mistakes=(
        Mistake("x_t / alpha believes every deviation, the noise's too. The best guess corrects the mean by a part of it.",
                gaussian(lambda x, a, s, m, d: x / a)),
        Mistake("the surprise is x_t minus what was expected of x_t, which is alpha * mean: the mean shrinks with the image.",
                gaussian(lambda x, a, s, m, d: m + a * d**2 / (a**2 * d**2 + s**2) * (x - m))),
        Mistake("std and sigma are standard deviations, and Bayes' rule weighs variances: square them.",
                gaussian(lambda x, a, s, m, d: m + a * d / (a**2 * d + s) * (x - a * m))),
        Mistake("the factor in front of the surprise is alpha * std^2 / (...): its alpha is missing.",
                gaussian(lambda x, a, s, m, d: m + d**2 / (a**2 * d**2 + s**2) * (x - a * m))),
        Mistake("this is the correction alone: the guess starts from the mean, and adds it.",
                gaussian(lambda x, a, s, m, d: a * d**2 / (a**2 * d**2 + s**2) * (x - a * m))),
        Mistake("x0 is right; eps is what remains of x_t, but in units of sigma: (x_t - alpha * x0) / sigma.",
                gaussian(lambda x, a, s, m, d: (x0 := m + a * d**2 / (a**2 * d**2 + s**2) * (x - a * m), x - a * x0))),
    ),
    hints=("Start from what you knew, mean. What would x_t be without any surprise, and how large is the surprise?",
           "x_t has the variance alpha^2 * std^2 + sigma^2: the image's and the noise's. `level.like(xt)` gives alpha, sigma.",
           "x0 = mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (xt - alpha * mean); "
           "return md.Estimate(x0, (xt - alpha * x0) / sigma)"),
)  # fmt: skip


def voted(weigh):
    """weigh(x (B, 1, D), points alpha * x_i (B, N, D), sigma, data (N, D)) -> weights (B, N)."""

    def build(data):
        def denoise(xt, level):
            x, heap = xt.flatten(1).double(), data.flatten(1).double()
            alpha, sigma = level.like(x)
            x0 = weigh(x[:, None], torch.as_tensor(alpha)[..., None] * heap, sigma, heap) @ heap
            return Estimate(x0.to(xt).view_as(xt), ((x - alpha * x0) / sigma).to(xt).view_as(xt))

        return denoise

    return build


def fit(x, points, sigma):
    return -(x - points).square().sum(-1) / (2 * sigma**2)


PLANE = torch.tensor([[0.0, 0.0], [1.0, 0.5], [-1.0, 0.8], [0.3, -1.2], [-0.6, -0.4]])
NEAR = torch.tensor([[0.2, 0.1], [0.6, -0.6], [-0.9, 0.3]])
FAR = torch.tensor([[0.5, 1.5], [1.5, -1.5], [-1.8, -0.9]])  # 40 sigma and more from every point, at t = 0

dataset_task = Task(
    "02.2", "the best guess, if the data are a heap of images", DatasetDenoiser,
    ask=lambda f, data, xt, level: f(data)(xt, level), tolerance=1e-3,  # so that float32 will do
    cases=(
        Case("two points by hand, where the vote is 3 to 1",
             (torch.tensor([[-1.0], [1.0]]), torch.tensor([[0.0], [0.27465307], [-0.27465307]]), Level(500, 0.5, 0.5)),
             Estimate(torch.tensor([[0.0], [0.5], [-0.5]]), torch.tensor([[0.0], [0.04930614], [-0.04930614]]))),
        Case("five points in the plane", (PLANE, NEAR, LINEAR.at(300))),
        Case("five points, next to no noise, and none of them near", (PLANE, FAR, LINEAR.at(0))),
        Case("images at t = 600", (IMAGES, noisy(LINEAR.at(600)), LINEAR.at(600))),
        Case("a level for each image", (IMAGES, noisy(EACH), EACH)),
        Case("pure noise: the mean of all", (IMAGES, EPS, PURE)),
    ),
    mistakes=(
        Mistake("0 / 0: exp of a large negative number is 0, for every image. Stay with logarithms: softmax takes exponents.",
                voted(lambda x, p, s, d: fit(x, p, s).exp() / fit(x, p, s).exp().sum(1, keepdim=True))),
        Mistake("the softmax runs over the wrong axis: the images of the dataset vote about each x_t, so every row sums to 1.",
                voted(lambda x, p, s, d: fit(x, p, s).softmax(0))),
        Mistake("x_t is compared with the images at full size; in x_t they are alpha times as large.",
                voted(lambda x, p, s, d: fit(x, d, s).softmax(1))),
        Mistake("a Gaussian's exponent is divided by 2 * sigma^2: the 2 is missing.",
                voted(lambda x, p, s, d: (2 * fit(x, p, s)).softmax(1))),
        Mistake("the square distance is a sum over pixels, not their mean: every pixel is evidence of its own.",
                voted(lambda x, p, s, d: (fit(x, p, s) / d.shape[1]).softmax(1))),
        Mistake("only x_t * alpha * x_i of the square was kept; |alpha * x_i|^2 differs from image to image, and belongs in.",
                voted(lambda x, p, s, d: ((x * p).sum(-1) / s**2).softmax(1))),
    ),
    hints=("Each image votes, with a weight that says how well it explains x_t. The answer is the weighted mean of the images.",
           "Flatten: xt.flatten(1) is (B, D), data.flatten(1) (N, D). Exponents (B, N), softmax over N, times data: (B, D).",
           "exponent = -((x[:, None] - alpha * d)**2).sum(-1) / (2 * sigma**2); x0 = exponent.softmax(1) @ d, in xt's shape. "
           "(For levels of shape (B,), give that alpha one more axis.)"),
)  # fmt: skip


def posterior(formula):
    """formula(p), where p knows the mean, std and noise of eq. 7, and all that they are made of."""

    def step(xt, estimate, here, there, noise=None):
        (alpha, sigma), (alpha_there, sigma_there) = here.like(xt), there.like(xt)
        a = alpha / alpha_there
        b = (sigma**2 - a**2 * sigma_there**2) ** 0.5
        image, kept = alpha_there * b**2 / sigma**2 * estimate.x0, sigma_there**2 / sigma**2 * xt
        noise = torch.randn_like(xt) if noise is None else noise
        return formula(SimpleNamespace(
            a=a, b=b, alpha=alpha, image=image, kept=kept, mean=image + a * kept, std=sigma_there / sigma * b, noise=noise,
            ddim=alpha_there * estimate.x0 + sigma_there * (xt - alpha * estimate.x0) / sigma,
            trusting=alpha_there * estimate.x0 + a * sigma_there**2 / sigma * estimate.eps))  # fmt: skip

    return step


def draws_its_own(step):
    nothing = torch.zeros(1, 20000)
    one, two = (step(nothing, Estimate(nothing, nothing), NOISY, CLEANER) for _ in range(2))
    return bool((one != two).any()) and abs(float(one.std()) / 0.4960784 - 1) < 0.05  # 0.6 * sqrt(1 - 0.5625^2)


GUESS = Estimate(X0.roll(1, 0), EPS.roll(1, 0))  # what a denoiser believed
CLIPPED = Estimate((X0 + 0.6 * EPS).clamp(-1, 1), EPS)  # an x0 that was clipped beside an eps that was not
BY_HAND = Estimate(torch.tensor([[1.0, 1.0, -1.0]]), torch.tensor([[1.0, 1.0, 0.5]]))
XT_BY_HAND, NOISE_BY_HAND = torch.tensor([[1.4, 1.4, -0.2]]), torch.tensor([[0.0, 1.0, -1.0]])


def believed(here, there):
    return add_noise(*GUESS, here), GUESS, here, there, FRESH


ddpm_step_task = Task(
    "02.3", "DDPM's step", ddpm_step,
    cases=(
        Case("three numbers by hand", (XT_BY_HAND, BY_HAND, NOISY, CLEANER, NOISE_BY_HAND),
             torch.tensor([[1.1375, 1.6335784, -1.1273284]])),
        Case("images, from t = 500 to 499", believed(LINEAR.at(500), LINEAR.at(499))),
        Case("images, from t = 900 to 700.5", believed(LINEAR.at(900), LINEAR.at(700.5))),
        Case("levels of their own for each image", believed(EACH, LOWER)),
        Case("from pure noise", believed(PURE, LINEAR.at(800))),
        Case("an x0 that was clipped", (noisy(LINEAR.at(600)), CLIPPED, LINEAR.at(600), LINEAR.at(500), FRESH)),
        Case("arriving at CLEAN, where no noise is left", believed(LINEAR.at(99), CLEAN), GUESS.x0),
    ),
    mistakes=(
        Mistake("the mean is right; the variance is beta, that of a step up. The posterior's is smaller: beta tilde, in eq. 7.",
                posterior(lambda p: p.mean + p.b * p.noise)),
        Mistake("noise is added on arrival at CLEAN. There sigma is 0, and so is beta tilde: the last step gives the image.",
                posterior(lambda p: p.mean + (p.std + (p.std == 0) * p.b) * p.noise)),
        Mistake("the noise was multiplied by the variance: it is the standard deviation, its square root, that scales noise.",
                posterior(lambda p: p.mean + p.std**2 * p.noise)),
        Mistake("new noise came on top of all the old, more than the level there has: the old has to make room.",
                posterior(lambda p: p.ddim + p.std * p.noise)),
        Mistake("this trusts the estimate's eps. Eq. 7 knows x_t and x0 only, so that a clipped x0 moves the whole mean.",
                posterior(lambda p: p.trusting + p.std * p.noise)),
        Mistake("the paper's alpha without a bar belongs to one step: it is the ratio of here's and there's, not here's alone.",
                posterior(lambda p: p.image + p.alpha * p.kept + p.std * p.noise)),
    ),
    hints=("From there to here the chain kept a = alpha / alpha', and added noise of variance b^2 = sigma^2 - a^2 * sigma'^2.",
           "mean = alpha' * b^2 / sigma^2 * x0 + a * sigma'^2 / sigma^2 * xt; variance = sigma'^2 / sigma^2 * b^2, 0 at CLEAN.",
           "Or shorter: rho = alpha * sigma' / (alpha' * sigma); eps = (xt - alpha * x0) / sigma; "
           "alpha' * x0 + sigma' * (rho * eps + (1 - rho**2)**0.5 * noise)"),
    laws=(Law("with noise=None the step draws its own: standard normal, in xt's shape, afresh in every call.", draws_its_own),),
)  # fmt: skip


def wrong_ddpm(asks=lambda here, there: here, draw=torch.randn, own=True, carry=True, pairs=pairwise):
    def walk(denoise, x, levels, generator=None):
        once = None if own else draw(x.shape, generator=generator)
        for here, there in pairs(levels):
            estimate = denoise(x, asks(here, there))
            moved = ddpm_step(x, estimate, here, there, draw(x.shape, generator=generator) if own else once)
            x = moved if carry else x
            yield State(moved, estimate.x0, there)

    return walk


TWELVE = LINEAR.levels(12, "trailing")
ddpm_task = Task(
    "02.4", "the walk: ancestral sampling", ddpm,
    ask=lambda f, view, *args: view(f, *args),
    cases=(
        Case("steps by hand", (visits, Belief(torch.tensor([[1.0, -1.0, 0.5]])), torch.zeros(1, 3), [NOISY, CLEANER, CLEAN]),
             {"number of states": 2, "t the denoiser is told": torch.tensor([300.0, 200.0]),
              "t of the states": torch.tensor([200.0, 0.0]), "x0": torch.tensor([[[0.8, -0.8, 0.4]], [[0.9, -0.9, 0.45]]]),
              "x handed on": torch.ones(2), "last x": torch.tensor([[0.9, -0.9, 0.45]])}),
        Case("twelve steps with images", (visits, Belief(X0), EPS, TWELVE, 1.0)),
        Case("from the middle, and not to the end", (visits, Belief(X0), EPS, TWELVE[3:-2], 1.0)),
        Case("with a generator", (seeded, Belief(X0), EPS, TWELVE)),
    ),
    mistakes=(
        Mistake("the last step is missing: the walk ends at the last level of the list, which is CLEAN.",
                wrong_ddpm(pairs=lambda levels: pairwise(levels[:-1]))),
        Mistake("the denoiser is asked about the level that x will reach; x is still here, with here's noise in it.",
                wrong_ddpm(asks=lambda here, there: there)),
        Mistake("every step begins at the first x again: what a step gives is the x of the next.", wrong_ddpm(carry=False)),
        Mistake("the noise was drawn once and used in every step; each step needs a draw of its own.", wrong_ddpm(own=False)),
        Mistake("torch.rand is uniform, between 0 and 1. Noise is Gaussian: torch.randn.", wrong_ddpm(draw=torch.rand)),
        Mistake("the generator is not used: hand it to torch.randn, or the same seed will not give the same image.",
                wrong_ddpm(draw=lambda shape, generator: torch.randn(shape))),
    ),
    hints=("Each turn asks the denoiser, takes a step (02.3), and yields. itertools.pairwise gives here and there.",
           "noise = torch.randn(x.shape, generator=generator). The level in a State is the one just reached.",
           "for here, there in pairwise(levels): estimate = denoise(x, here); x = ddpm_step(x, estimate, here, there, noise); "
           "yield md.State(x, estimate.x0, there)"),
)  # fmt: skip

TASKS = [gaussian_task, dataset_task, ddpm_step_task, ddpm_task]
