"""Tasks of chapter 09: guidance by two answers of a network, by several prompts, less garish, and by a classifier."""

import torch

from ...diffusion import Estimate, GaussianDenoiser, classifier_free, classifier_guided, composed, rescaled
from ...diffusion.forward import to_estimate
from ..task import Case, Law, Mistake, Task
from .c02_exact_denoising import FLOW, LINEAR, NOISY

GEN = torch.Generator().manual_seed(9)
XT = torch.randn(3, 4, 4, 4, generator=GEN)
HERE = LINEAR.at(600)


def says_y(xt, t, y):
    # a network that answers its condition, whatever it sees
    return y.view(-1, *[1] * (xt.ndim - 1)).expand_as(xt)


def mixes(xt, t, y):
    # one whose answer depends on all it is given
    y, t = (v.view(-1, *[1] * (xt.ndim - 1)) for v in (y, t / 1000))
    return xt * (0.5 + y / 9) + y**2 * (1 + t)


def asked(y):
    return {"y": torch.tensor(y)}


def answered(f, net, conds, *args):
    """The Estimate of the denoiser that f makes of a network. args: its other options, then xt and level."""
    *options, xt, level = args
    return f(net, *conds, *options)(xt, level)


def summed(output=None, x_rows=None, kind=None, finish=None):
    """composed, with another sum, output(answers, scales, without); other rows of x; another kind; another end."""

    def version(net, conds, scales, uncond, predicts="eps"):
        def denoise(xt, level):
            n, t = len(conds) + 1, level.timesteps(xt)
            rows = torch.cat([xt] * n) if x_rows is None else x_rows(xt, n)
            together = {name: torch.cat([*(cond[name] for cond in conds), uncond[name]]) for name in uncond}
            *answers, without = net(rows, torch.cat([t] * n), **together).chunk(n)
            right = without + sum(s * (a - without) for s, a in zip(scales, answers, strict=True))
            value = right if output is None else output(answers, scales, without)
            estimate = to_estimate(value, xt, level, kind or predicts)
            return estimate if finish is None else finish(estimate, answers, without, xt, level, predicts)

        return denoise

    return version


def single(**parts):
    """classifier_free, with one of its parts replaced."""
    return lambda net, cond, uncond, scale, predicts="eps": summed(**parts)(net, [cond], [scale], uncond, predicts)


def clipped_first(estimate, answers, without, xt, level, predicts):
    low, high = (to_estimate(a, xt, level, predicts).x0.clamp(-1, 1) for a in (without, answers[0]))
    return Estimate(low + 3 * (high - low), estimate.eps)


def rgb_only(answers, scales, without):
    told, scale = answers[0], scales[0]
    return torch.cat([(without + scale * (told - without))[:, :3], told[:, 3:]], 1)


ONE = torch.tensor([[3.8]])
PAIR = (asked([2.0, 0.5, -1.0]), asked([0.0, 0.0, 0.0]))
free_task = Task(
    "09.1", "with the words and without", classifier_free,
    ask=answered,
    cases=(
        Case("one number by hand: told 2, not told 1, scale 3",
             (says_y, (asked([2.0]), asked([1.0])), 3.0, "eps", ONE, NOISY),
             Estimate(torch.tensor([[1.0]]), torch.tensor([[4.0]]))),
        Case("images, scale 3", (mixes, PAIR, 3.0, "eps", XT, HERE)),
        Case("scale 0, without the words", (mixes, PAIR, 0.0, "eps", XT, HERE)),
        Case("scale 1, with them", (mixes, PAIR, 1.0, "eps", XT, HERE)),
        Case("a network that predicts x0", (mixes, PAIR, 3.0, "x0", XT, HERE)),
        Case("one that predicts flow", (mixes, PAIR, 2.5, "flow", XT, FLOW.at(700))),
    ),
    mistakes=(
        Mistake("with and without have changed places: the batch is taken apart in the order in which it was put together.",
                single(output=lambda a, s, u: a[0] + s[0] * (u - a[0]))),
        Mistake("this scale is Ho & Salimans' w, which counts from the conditional answer. Here 1 is that: begin at uncond.",
                single(output=lambda a, s, u: a[0] + s[0] * (a[0] - u))),
        Mistake("the difference alone is no answer: it has to be added to uncond.",
                single(output=lambda a, s, u: s[0] * (a[0] - u))),
        Mistake("the weights do not add up to 1: what cond gains uncond has to lose. It is uncond + scale * (cond - uncond).",
                single(output=lambda a, s, u: u + s[0] * a[0])),
        Mistake("the output was taken for eps whatever the network predicts: hand `predicts` on to to_estimate.",
                single(kind="eps")),
        Mistake("x0 was clipped before the sum, which takes away what guidance adds. Sum the network's answers first.",
                single(finish=clipped_first)),
        Mistake("only the first three channels are guided: that was for pixels, a latent has four.", single(output=rgb_only)),
        Mistake("x and condition are in different orders: torch.cat([x, x]) goes with torch.cat([cond, uncond]).",
                single(x_rows=lambda xt, n: xt.repeat_interleave(n, 0))),
    ),
    hints=("Ask the network twice, and write down the line of section 4. A denoiser is a function of (xt, level).",
           "level.timesteps(xt) is the t that the network is told; to_estimate(output, xt, level, predicts) an Estimate.",
           "output = without + scale * (told - without), where told = net(xt, t, **cond) and without = net(xt, t, **uncond)"),
)  # fmt: skip

CONDS = [asked([2.0, 0.5, -1.0]), asked([1.0, 3.0, 0.2])]
composed_task = Task(
    "09.2", "several prompts, each with its weight", composed,
    ask=answered,
    cases=(
        Case("two conditions by hand: told 2 and 5, not told 1, scales 3 and -1",
             (says_y, ([asked([2.0]), asked([5.0])], [3.0, -1.0], asked([1.0])), "x0", torch.tensor([[0.8]]), NOISY),
             Estimate(torch.tensor([[0.0]]), torch.tensor([[1.0]]))),
        Case("images, two conditions", (mixes, (CONDS, [3.0, 2.0], PAIR[1]), "eps", XT, HERE)),
        Case("this, and not that", (mixes, (CONDS, [4.0, -3.0], PAIR[1]), "eps", XT, HERE)),
        Case("one condition", (mixes, (CONDS[:1], [7.5], PAIR[1]), "eps", XT, HERE)),
        Case("a network that predicts flow", (mixes, (CONDS, [0.5, 1.5], PAIR[1]), "flow", XT, FLOW.at(400))),
    ),
    mistakes=(
        Mistake("the weights were divided by their sum: they are scales, and mean as much as they say.",
                summed(lambda a, s, u: u + sum(w * (v - u) for w, v in zip(s, a, strict=True)) / sum(s))),
        Mistake("uncond is added once for each condition: it stands in front of the sum, once.",
                summed(lambda a, s, u: sum(u + w * (v - u) for w, v in zip(s, a, strict=True)))),
        Mistake("only the first condition counts.", summed(lambda a, s, u: u + s[0] * (a[0] - u))),
        Mistake("the answers themselves were weighed, and added to all of uncond: weigh their differences to uncond.",
                summed(lambda a, s, u: u + sum(w * v for w, v in zip(s, a, strict=True)))),
        Mistake("a negative scale became a positive one, or 0: it means to move away, and stays as it is.",
                summed(lambda a, s, u: u + sum(max(w, 0) * (v - u) for w, v in zip(s, a, strict=True)))),
        Mistake("conditions and scales are paired in different orders.",
                summed(lambda a, s, u: u + sum(w * (v - u) for w, v in zip(s[::-1], a, strict=True)))),
        Mistake("every condition was measured from the one before it: all differences are to uncond.",
                summed(lambda a, s, u: u + sum(w * (v - b) for w, v, b in zip(s, a, [u, *a][:-1], strict=True)))),
    ),
    hints=("09.1 with a sum: every condition has its own difference to the same uncond.",
           "n questions in one batch: torch.cat([xt] * n), torch.cat([t] * n), and for each name the conditions one below "
           "the other; the answers come back with .chunk(n).",
           "output = without + sum(scale * (answer - without) for scale, answer in zip(scales, answers))"),
)  # fmt: skip


def told(x0):
    """A denoiser that always gives this x0, and the eps that fits."""
    return lambda xt, level: to_estimate(x0, xt, level, "x0")


def tamed(ratio=None, weigh=lambda x0, ratio, share: (share * ratio + 1 - share) * x0, over=lambda x: tuple(range(1, x.ndim)),
          keep=False, default=0.7):  # fmt: skip
    """rescaled, with one of its parts replaced. keep: the old eps."""

    def version(strong, plain, share=default):
        def denoise(xt, level):
            x0, eps = strong(xt, level)
            high, low = (x.std(over(x), keepdim=True) for x in (x0, plain(xt, level).x0))
            new = weigh(x0, low / high if ratio is None else ratio(low, high), share)
            return Estimate(new, eps) if keep else to_estimate(new, xt, level, "x0")

        return denoise

    return version


def about_the_mean(x0, ratio, share):
    mean = x0.mean((1, 2, 3), keepdim=True) if x0.ndim == 4 else x0.mean(1, keepdim=True)
    return mean + (share * ratio + 1 - share) * (x0 - mean)


GARISH, MODEST = 3 * torch.randn(3, 4, 4, 4, generator=GEN) + 1, torch.randn(3, 4, 4, 4, generator=GEN)
GARISH, MODEST = (x * torch.tensor([1.0, 2.0, 0.5]).view(3, 1, 1, 1) for x in (GARISH, MODEST.flip(1)))
MODEST = MODEST * torch.tensor([1.0, 0.5, 2.0, 1.0]).view(4, 1, 1)
rescaled_task = Task(
    "09.3", "contrast, taken back", rescaled,
    ask=lambda f, strong, plain, xt, level, *share: f(told(strong), told(plain), *share)(xt, level),
    cases=(
        Case("two numbers by hand, share 1",
             (torch.tensor([[1.0, 5.0]]), torch.tensor([[2.0, 4.0]]), torch.tensor([[1.1, 0.7]]), NOISY, 1.0),
             Estimate(torch.tensor([[0.5, 2.5]]), torch.tensor([[1.0, -1.0]]))),
        Case("images, share 0.4", (GARISH, MODEST, XT, HERE, 0.4)),
        Case("share 0, nothing is taken back", (GARISH, MODEST, XT, HERE, 0.0)),
        Case("the share that it takes by itself", (GARISH, MODEST, XT, HERE)),
        Case("on a flow", (GARISH, MODEST, XT, FLOW.at(700), 0.6)),
    ),
    mistakes=(
        Mistake("eps is that of before, and does not fit the new x0: solve it again, so that alpha * x0 + sigma * eps is x_t.",
                tamed(keep=True)),
        Mistake("the standard deviation is that of the batch: take it over each image by itself, keepdim=True.",
                tamed(over=lambda x: tuple(range(x.ndim)))),
        Mistake("the standard deviation is that of each channel: take it over all of an image.",
                tamed(over=lambda x: tuple(range(2, x.ndim)) or (1,))),
        Mistake("the ratio is upside down: contrast is to go from the strong one's to the plain one's.",
                tamed(ratio=lambda low, high: high / low)),
        Mistake("the share is the wrong way round: 1 takes back all that guidance adds, 0 nothing.",
                tamed(weigh=lambda x0, ratio, share: ((1 - share) * ratio + share) * x0)),
        Mistake("the mean was left where it was: the formula multiplies x0 itself, mean and all.", tamed(weigh=about_the_mean)),
        Mistake("the share is not used: a part of 1 - share stays as guidance made it.",
                tamed(weigh=lambda x0, ratio, share: ratio * x0)),
        Mistake("without a share given, take 0.7.", tamed(default=1.0)),
    ),
    hints=("Three lines: the two x0, the ratio of their standard deviations, the new x0. And then eps.",
           "x0.std(tuple(range(1, x0.ndim)), keepdim=True) is the contrast of each image.",
           "to_estimate(new_x0, xt, level, \"x0\") finds the eps that goes with it"),
)  # fmt: skip


def steered(sign=1.0, by_sigma=True, x0_too=True, eps_too=True, total=torch.sum, t_of=lambda level, x: level.timesteps(x),
            shown=lambda x, denoise, level: x, grad=True):  # fmt: skip
    """classifier_guided, with one of its parts replaced."""

    def version(denoise, log_prob, scale):
        def steer(xt, level):
            alpha, sigma = level.like(xt)
            with torch.set_grad_enabled(True if grad else torch.is_grad_enabled()):
                x = xt.detach().requires_grad_()
                seen = shown(x, denoise, level)
                slope = sign * torch.autograd.grad(total(log_prob(seen, t_of(level, x))), seen)[0]
            x0, eps = denoise(xt, level)
            step = scale * slope * (sigma if by_sigma else 1.0)
            return Estimate(x0 + sigma / alpha * step if x0_too else x0, eps - step if eps_too else eps)

        return steer

    return version


def hill(x, t):
    # log p of a Gaussian around 1 that is flatter where there is more noise
    return -((x - 1) ** 2).flatten(1).sum(1) / (2 + t / 500)


def steep(x, t):
    return -((x - 1) ** 2).flatten(1).sum(1) / 2


def under_a_sampler(f):
    with torch.no_grad():
        f(GaussianDenoiser(0.0, 0.5), steep, 2.0)(XT, HERE)
    return True


SWITCHED_OFF = "samplers run without gradients, and this one needs them: put `with torch.enable_grad():` around its two lines."
HALF, BOTH = GaussianDenoiser(0.0, 0.5), LINEAR.at(torch.tensor([900, 500, 40]))
guided_task = Task(
    "09.4", "steered by a classifier", classifier_guided,
    ask=lambda f, denoise, log_prob, scale, xt, level: f(denoise, log_prob, scale)(xt, level),
    cases=(
        Case("one number by hand: slope 0.5, scale 2",
             (told(torch.tensor([[0.3]])), steep, 2.0, torch.tensor([[0.5]]), NOISY),
             Estimate(torch.tensor([[1.3666667]]), torch.tensor([[-0.4]]))),
        Case("images, a classifier that looks at t", (HALF, hill, 1.5, XT, HERE)),
        Case("a level for each image", (HALF, hill, 1.0, XT, BOTH)),
        Case("scale 0", (HALF, steep, 0.0, XT, HERE)),
    ),
    mistakes=(
        Mistake("this goes downhill: log p is to grow, so eps loses what x0 gains.", steered(sign=-1.0)),
        Mistake("a factor sigma is missing: eps is -sigma times the score.", steered(by_sigma=False)),
        Mistake("only eps has moved: x0 must move too, or alpha * x0 + sigma * eps is x_t no more.", steered(x0_too=False)),
        Mistake("only x0 has moved: eps must move too, or alpha * x0 + sigma * eps is x_t no more.", steered(eps_too=False)),
        Mistake("the mean over the batch makes guidance weaker the more images there are: take the sum.",
                steered(total=torch.mean)),
        Mistake("the classifier is told t = 0 at every level: it knows noisy images, if it is told how noisy.",
                steered(t_of=lambda level, x: torch.zeros(len(x)))),
        Mistake("the classifier was shown the guess x0: it was trained on x_t, and its slope is wanted there.",
                steered(shown=lambda x, denoise, level: denoise(x, level).x0.detach().requires_grad_())),
        Mistake(SWITCHED_OFF, steered(grad=False)),
    ),
    laws=(Law(SWITCHED_OFF, under_a_sampler),),
    hints=("The slope first: x = xt.detach().requires_grad_(), then torch.autograd.grad of what the classifier says.",
           "Each image's log p depends on itself alone, so torch.autograd.grad(log_prob(x, t).sum(), x)[0] holds all slopes.",
           "x0 + scale * sigma**2 / alpha * slope, and eps - scale * sigma * slope"),
)  # fmt: skip

TASKS = [free_task, composed_task, rescaled_task, guided_task]
