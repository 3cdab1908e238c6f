"""Tasks of chapter 11: a colour as a number, a denoiser that goes down it, and the oracle's colours as a loss."""

from contextlib import nullcontext

import torch

from ...data import COLOURS, objectness, palette_loss
from ...data.palette import SPREAD
from ...diffusion import DatasetDenoiser, Estimate, GaussianDenoiser, Level, Schedule, color_loss, guided
from ..task import Case, Law, Mistake, Task

RNG = torch.Generator().manual_seed(0)
XT, TWO = torch.randn(2, 3, 4, 4, generator=RNG), torch.rand(2, 3, 8, 8, generator=RNG) * 2 - 1


def far_from(rgb, wanted=lambda rgb: 2 * rgb - 1, apart=torch.abs, over_image=lambda d: d.flatten(1).mean(1),
             together=torch.sum):  # fmt: skip
    """color_loss, with one of its parts replaced."""
    return lambda images: together(over_image(apart(images - wanted(images.new_tensor(rgb).view(-1, 1, 1)))))


def version(**parts):
    return lambda rgb: far_from(rgb, **parts)


def refuses(make, *wrong):
    for args in wrong:
        try:
            make(*args)
        except ValueError:
            continue
        return False
    return True


GREY = torch.zeros(2, 3, 2, 2)
RANGE = "a colour that is not in [0, 1], such as (255, 0, 0), should raise a ValueError: the walk would chase it for ever."
colour_task = Task(
    "11.1", "how far from a colour?", color_loss,
    cases=(
        Case("mid-grey from (0.9, 0.2, 1), two images: each is (0.8 + 0.6 + 1) / 3 off", ((0.9, 0.2, 1.0), GREY), 1.6),
        Case("one number, the second image is of the colour", ((0.9,), torch.tensor([0.3, 0.8]).view(2, 1, 1, 1)), 0.5),
        Case("two random images", ((0.1, 0.5, 0.9), TWO)),
    ),
    ask=lambda f, rgb, images: f(rgb)(images),
    mistakes=(
        Mistake("the colour is in [0, 1] and the images in [-1, 1]: take the colour to 2 * rgb - 1 first.",
                version(wanted=lambda rgb: rgb)),
        Mistake("the colour went the wrong way: from [0, 1] to [-1, 1] leads 2 * rgb - 1.",
                version(wanted=lambda rgb: 1 - 2 * rgb)),
        Mistake("this is the mean over the batch, so an image is pushed less the more others there are: sum over the images.",
                version(together=torch.mean)),
        Mistake("each image should count by its mean, not its sum: else a large picture is pushed no harder but lacks more.",
                version(over_image=lambda d: d.flatten(1).sum(1))),
        Mistake("the differences are squared: the absolute ones are asked for.", version(apart=torch.square)),
        Mistake("differences cancel: above and below the colour are both far from it, so take their absolute value.",
                version(apart=lambda d: d)),
        Mistake(RANGE, version()),
    ),
    laws=(Law(RANGE, lambda f: refuses(f, ((1.1, 0, 0),), ((0, -0.1, 0),))),),
    hints=("A function that returns a function: `def loss(images)` inside, and `return loss`.",
           "The colour is viewed as (C, 1, 1), so that it broadcasts; and 2 * rgb - 1 is in the range of the images.",
           "(images - wanted).abs().flatten(1).mean(1).sum()"),
)  # fmt: skip


def slope_of(loss, x, grow=True):
    with torch.enable_grad() if grow else nullcontext():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(loss(x), x)[0]


def steered(
    over=lambda alpha, sigma: 1 / (alpha**2 + sigma**2), at=lambda xt, x0: x0, sign=1.0, x0_moves=1.0, eps_moves=1.0, power=2,
    through=lambda asked: asked, scaled=True, kept=False, grow=True,
):  # fmt: skip
    """guided, with one of its parts replaced. over: dx0/dx_t, over alpha."""

    def make(denoise, loss, scale, through_net=False):
        def steer(xt, level):
            alpha, sigma = level.like(xt)
            if through(through_net):
                with torch.enable_grad() if grow else nullcontext():
                    x = xt.detach().requires_grad_()
                    estimate = denoise(x, level)
                    step = torch.autograd.grad(loss(estimate.x0), x, retain_graph=kept)[0] / alpha
                estimate = estimate if kept else Estimate(*(part.detach() for part in estimate))
            else:
                estimate = denoise(xt, level)
                step = slope_of(loss, at(xt, estimate.x0), grow) * over(alpha, sigma)
            step = sign * (scale if scaled else 1.0) * step
            return Estimate(estimate.x0 - x0_moves * step * sigma**power, estimate.eps + eps_moves * step * alpha * sigma)

        return steer

    return make


def smooth(x0):
    return (x0 - 0.3).pow(2).sum() / 2  # its slope is x0 - 0.3


def wavy(xt, level):
    x0 = (2 * xt.roll(1, -1)).tanh()
    alpha, sigma = level.like(xt)
    return Estimate(x0, (xt - alpha * x0) / sigma)


def quiet(f, through_net):
    # does it work where a sampler has gradients switched off, and leave no graph behind?
    with torch.no_grad():
        f(wavy, smooth, 0.5, through_net)(XT, HERE)
    return True


def begins(f):
    noise = Level(999, 0.0, 1.0)
    return all(map(torch.allclose, f(wavy, smooth, 0.5)(XT, noise), guided(wavy, smooth, 0.5)(XT, noise)))


def leaves_nothing(f, through_net):
    return not any(part.requires_grad for part in f(wavy, smooth, 0.5, through_net)(XT, HERE))


HERE, EACH = Level(500, 0.6, 0.8), Schedule.linear().at(torch.tensor([100, 800]))
FLOW = Schedule.flow(shift=3.0).at(400)
WHITE = GaussianDenoiser(0.0, 1.0)  # x0 = alpha xt, eps = sigma xt where alpha^2 + sigma^2 = 1
ONE = torch.ones(1, 1, 1, 1)
HEAP = DatasetDenoiser(torch.randn(6, 3, 4, 4, generator=RNG))
# x0 = 0.6, eps = 0.8, slope 0.3; down by 2 * 0.64 * 0.3 = 0.384, and up by 2 * 0.6 * 0.8 * 0.3 = 0.288
BY_HAND = Estimate(0.216 * ONE, 1.088 * ONE)
WHERE = "the loss is asked about x_t, which is mostly noise: ask it about the estimate's x0."
UPHILL = "this climbs: x0 goes down the slope, x0 - ..., and eps up."
STALE = "x0 has moved and eps has not, so alpha * x0 + sigma * eps is x_t no more: the next step starts from another picture."
ONLY_EPS = "eps has moved and x0 has not: both are what the step is made of, and they must agree about x_t."
HELD = "dx0/dx_t was taken for 1 / alpha, as if eps were fixed: 157 in pure noise. Take alpha / (alpha^2 + sigma^2)."
ZERO = "a flow begins at alpha = 0, and this divides by it: sigma^2 / alpha times alpha is sigma^2, so multiply out."
POWER = "x0 moves by sigma^2 / alpha, and here by sigma / alpha."
SCALE = "scale has no effect: multiply the slope by it."
NO_GRAD = "a sampler walks with gradients switched off: switch them on for the slope, `with torch.enable_grad():`."
GRAPH = "the answer still carries its graph, so forty steps would keep forty networks' activations: detach what comes out."
shared = (
    Mistake(UPHILL, steered(sign=-1.0)),
    Mistake(STALE, steered(eps_moves=0.0)),
    Mistake(ONLY_EPS, steered(x0_moves=0.0)),
    Mistake(SCALE, steered(scaled=False)),
    Mistake(POWER, steered(power=1)),
    Mistake(NO_GRAD, steered(grow=False)),
)
answers = lambda f, denoise, loss, scale, through, xt, level: f(denoise, loss, scale, through)(xt, level)  # noqa: E731
cheap_task = Task(
    "11.2", "a denoiser that goes downhill", guided,
    cases=(
        Case("one number by hand", (WHITE, smooth, 2.0, False, ONE, HERE), BY_HAND),
        Case("scale 0", (wavy, smooth, 0.0, False, XT, HERE)),
        Case("towards a colour", (wavy, color_loss((0.9, 0.5, 0.1)), 20.0, False, XT, HERE)),
        Case("a flow, where alpha^2 + sigma^2 is not 1", (wavy, smooth, 0.7, False, XT, FLOW)),
        Case("a level for each image", (wavy, smooth, 0.7, False, XT, EACH)),
    ),
    ask=answers,
    mistakes=(
        *shared,
        Mistake(WHERE, steered(at=lambda xt, x0: xt)),
        Mistake(HELD, steered(over=lambda alpha, sigma: 1 / alpha**2)),
        Mistake("dx0/dx_t was taken for alpha, right only where alpha^2 + sigma^2 = 1: divide by that sum.",
                steered(over=lambda alpha, sigma: 1.0)),
        Mistake(ZERO, steered(over=lambda alpha, sigma: alpha / (alpha**2 + sigma**2) / alpha)),
    ),
    laws=(Law(NO_GRAD, lambda f: quiet(f, False)), Law(ZERO, begins)),
    hints=("A function that returns a function: `def steer(xt, level)` inside. Ask `denoise`; what is the slope at its x0?",
           "With torch.enable_grad(): x0 = estimate.x0.detach().requires_grad_(); torch.autograd.grad(loss(x0), x0)[0].",
           "step = scale * slope / (alpha**2 + sigma**2); x0 - step * sigma**2, and eps + step * alpha * sigma"),
)  # fmt: skip
through_task = Task(
    "11.3", "through the network", guided,
    cases=(
        Case("one number by hand", (WHITE, smooth, 2.0, True, ONE, HERE), BY_HAND),
        Case("a denoiser that looks at the neighbour", (wavy, smooth, 0.7, True, XT, HERE)),
        Case("six pictures, exactly", (HEAP, color_loss((0.9, 0.5, 0.1)), 5.0, True, XT, HERE)),
        Case("a level for each image", (wavy, smooth, 0.7, True, XT, EACH)),
        Case("and past the network", (wavy, smooth, 0.7, False, XT, HERE)),
    ),
    ask=answers,
    mistakes=(
        *shared,
        Mistake("through_net has no effect: x0 is always taken for alpha / (alpha^2 + sigma^2) times x_t.",
                steered(through=lambda asked: False)),
        Mistake("the network is always asked: with through_net=False the slope at x0 is enough.",
                steered(through=lambda asked: True)),
        Mistake("through_net is read the wrong way round.", steered(through=lambda asked: not asked)),
        Mistake(GRAPH, steered(kept=True)),
    ),
    laws=(Law(NO_GRAD, lambda f: quiet(f, True)), Law(GRAPH, lambda f: leaves_nothing(f, True))),
    hints=("x_t is what the slope is taken in now: it must require gradients before the network is asked.",
           "with torch.enable_grad(): xt = xt.detach().requires_grad_(); then ask, then autograd.grad(loss(x0), xt).",
           "The rest is as before with g itself, without a guess of dx0/dx_t; and detach both parts of the estimate."),
)  # fmt: skip


def called(rgb=lambda x: (x + 1) / 2, weigh=objectness, spread=2 * SPREAD**2, over=lambda w: w.sum(1).clamp(min=1),
           chance=lambda closeness, k: -closeness.log_softmax(1)[:, k], together=torch.sum, known=True, checked=True,
           ground=True):  # fmt: skip
    """palette_loss, with one of its parts replaced."""

    def make(colour, background=None):
        if checked and colour not in COLOURS:
            raise ValueError("no such colour")

        def loss(images):
            weight = weigh(images, background if ground else None).flatten(1)
            distance = (rgb(images).unsqueeze(1) - torch.tensor(list(COLOURS.values()))[:, :, None, None]).square().sum(2)
            each = chance(-distance / spread, list(COLOURS).index(colour)).flatten(1)
            return together((weight * each).sum(1) / over(weight))

        return loss

    return make


def soft(images, background=None):
    # the weight, with a gradient: how far each pixel is from white
    distance = ((images + 1) / 2 - 0.98).square().sum(1)
    return 1 - (-distance / (2 * SPREAD**2)).exp()


def painted(*rgbs):
    # pictures (n, 3, 8, 8) of one colour each, on a white border
    images = torch.full((len(rgbs), 3, 8, 8), 0.98)
    images[:, :, 1:-1, 1:-1] = torch.tensor(rgbs)[:, :, None, None]
    return 2 * images - 1


def fades(f):
    # does a pixel that is nearly white feel a pull towards red, as if its weight were a number?
    images = painted(COLOURS["blue"])
    images[0, :, 3, 3] = torch.tensor([0.9, 0.8, 0.9])
    loss, held = palette_loss("red", "white"), f("red", "white")
    return torch.allclose(slope_of(loss, images), slope_of(held, images), rtol=1e-3, atol=1e-4)


HALF = tuple((a + b) / 2 for a, b in zip(COLOURS["red"], COLOURS["orange"], strict=True))
NAMES = "a colour that is not in the palette should raise a ValueError that names those that are."
HOLD = "a gradient passes through the weights, so the walk is paid for making the objects vanish: hold them, under no_grad."
palette_task = Task(
    "11.4", "what would it be called?", palette_loss,
    cases=(
        Case("half way from red to orange: log 2, and a little for yellow", ("red", None, painted(HALF)), 0.69585),
        Case("two, and the other is blue: 1.0518 / 0.045 more", ("red", None, painted(HALF, COLOURS["blue"]))),
        Case("random colours", ("green", None, TWO)),
        Case("on navy", ("purple", "graded navy", TWO)),
        Case("hardly an object to be seen", ("cyan", "white", torch.full((1, 3, 8, 8), 0.95))),
    ),
    ask=lambda f, colour, background, images: f(colour, background)(images),
    mistakes=(
        Mistake("the palette is in [0, 1] and the images in [-1, 1]: compare it with (images + 1) / 2.",
                called(rgb=lambda x: x)),
        Mistake("the background counts like an object, so all of it is to be painted: weigh each pixel with objectness.",
                called(weigh=lambda images, background: torch.ones_like(images[:, 0]))),
        Mistake("divide by the sum of the weights, not by the number of pixels: small objects must not count for less.",
                called(over=lambda w: w.shape[1])),
        Mistake("the weights of one picture may add up to almost nothing: hold their sum above 1, or the slope has no bound.",
                called(over=lambda w: w.sum(1))),
        Mistake("the exponent of a Gaussian is squared distance over *twice* the variance.", called(spread=SPREAD**2)),
        Mistake("this is minus the chance, whose slope is nothing where the colour is far off: take its logarithm.",
                called(chance=lambda closeness, k: -closeness.softmax(1)[:, k])),
        Mistake("this is the distance alone: what counts is whether another colour of the palette is nearer, so softmax.",
                called(chance=lambda closeness, k: -closeness[:, k])),
        Mistake("the mean over the pictures: sum, so that none is pushed less for having company.",
                called(together=torch.mean)),
        Mistake("`background` has not reached objectness.", called(ground=False)),
        Mistake(HOLD, called(weigh=lambda *args: objectness(*args) + (s := soft(args[0])) - s.detach())),
        Mistake(NAMES, called(checked=False)),
    ),
    laws=(Law(HOLD, fades), Law(NAMES, lambda f: refuses(f, ("crimson",)))),
    hints=("closeness (B, 8, H, H): minus the squared distance of every pixel to each of COLOURS, over 2 * 0.15**2.",
           "log_softmax over the 8, and of it the wanted one: (B, H, H). Weigh it with md.data.objectness(images, background).",
           "-((w * called).sum(1) / w.sum(1).clamp(min=1)).sum(), each flattened to (B, H H)"),
)  # fmt: skip

TASKS = [colour_task, cheap_task, through_task, palette_task]
