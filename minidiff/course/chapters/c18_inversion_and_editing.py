"""Tasks of chapter 18: inversion closed by a fixed point, an edit whose levels fit, its damage, and borrowed attention."""

from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import nn

from ...data import Shapes, from_pixels
from ...diffusion import CLEAN, GaussianDenoiser, Level, Schedule, State, add_noise, ddim, ddim_step, invert, sample
from ...diffusion.forward import to_estimate
from ...evaluation.editing import spoilt
from ...nets import CrossAttention, SelfAttention, borrowed_attention
from ...pipelines.own import OwnRecipe
from ...pipelines.text_to_image import TextToImage
from ..task import Case, Law, Mistake, Task
from ..walks import path

IMAGES = from_pixels(Shapes(8, size=32, seed=18).tensors()[0])  # (8, 3, 32, 32)
PICTURES = GaussianDenoiser(IMAGES.mean(0), IMAGES.std(0) + 0.1)
NOISY, CLEANER = Level(300, 0.6, 0.8), Level(200, 0.8, 0.6)  # for numbers by hand
FLOW, LINEAR = Schedule.flow().levels(6), Schedule.linear().levels(8, "trailing")


def velocity_step(x, seen, here, there):
    return ddim_step(x, to_estimate(seen.eps - seen.x0, x, here, "flow"), here, there)


def eps_step(x, seen, here, there):
    return ddim_step(x, to_estimate(seen.eps, x, here, "eps"), here, there)


def inverting(again=velocity_step, rounds=lambda refine: refine, asks=lambda here, there: there, moved=False, last_only=False):
    """invert, with one of its parts replaced."""

    def walk(denoise, x0, levels, *, refine=0):
        x, up = x0, levels[::-1]
        for here, there in pairwise(up):
            estimate = denoise(x, here)
            ahead = ddim_step(x, estimate, here, there)
            for _ in range(0 if last_only and there is not up[-1] else rounds(refine)):
                ahead = again(ahead if moved else x, denoise(ahead, asks(here, there)), here, there)
            x = ahead
            yield State(x, estimate.x0, there)

    return walk


def refined(f, denoise, x0, levels, refine):
    return path(lambda *args: f(*args, refine=refine), denoise, x0, levels)


def closes(f):
    x0 = 0.5 * torch.randn(20, 1, dtype=torch.float64)
    *_, last = f(GaussianDenoiser(0.0, 0.5), x0, LINEAR, refine=60)
    return bool((sample(ddim, GaussianDenoiser(0.0, 0.5), last.x, LINEAR, progress=False) - x0).abs().max() < 1e-4)


CLOSE = "refined often enough, the walk down should end exactly where the walk up began, and this one ends elsewhere."
invert_task = Task(
    "18.1", "a way back without a loss", invert,
    ask=refined,
    cases=(
        Case("two steps by hand, refined once", (GaussianDenoiser(0.0, 0.5), torch.tensor([[1.3]]), [NOISY, CLEANER, CLEAN], 1),
             {"number of states": 2, "x": torch.tensor([[[2.3]], [[2.772602]]]), "x0": torch.tensor([[[1.3]], [[0.884615]]]),
              "t of the states": torch.tensor([200.0, 300.0]), "sigma of the states": torch.tensor([0.6, 0.8])}),
        Case("pictures, six steps of a flow, refined twice", (PICTURES, IMAGES[:4], FLOW, 2)),
        Case("pictures, eight steps, refined three times", (PICTURES, IMAGES[:4], LINEAR, 3)),
        Case("not refined", (PICTURES, IMAGES[:4], FLOW, 0)),
    ),
    mistakes=(
        Mistake("this is the plain walk. What was seen at `there`, written down at `there`, is `ahead` again: take it as a "
                "slope, eps - x0, and step once more from x.",
                inverting(again=lambda x, seen, here, there: ddim_step(x, seen, here, there))),
        Mistake("every round goes a step further: a round begins again at x, where this step began, and not at `ahead`.",
                inverting(moved=True)),
        Mistake("the rounds ask about `here`. What is missing is the answer where the step ends: ask about `ahead` at `there`.",
                inverting(asks=lambda here, there: here)),
        Mistake("eps alone is kept. Where alpha is 0, eps is x_t itself and says nothing of the picture: keep eps - x0.",
                inverting(again=eps_step)),
        Mistake("one round too many: refine = 0 is the plain walk, and every round is one more question.",
                inverting(rounds=lambda refine: refine + 1)),
        Mistake("only the last step is refined: every step has an end that it did not ask about.", inverting(last_only=True)),
    ),
    laws=(Law(CLOSE, closes),),
    hints=("First the plain step, to `ahead`. Then, `refine` times: ask about ahead, and step again from x.",
           "seen = denoise(ahead, there). Its slope is seen.eps - seen.x0: what a network that predicts \"flow\" would say.",
           "estimate = to_estimate(seen.eps - seen.x0, x, here, \"flow\"); ahead = md.ddim_step(x, estimate, here, there)"),
)  # fmt: skip


class Bench(TextToImage):
    """A pipeline without networks: a prompt asks for pictures of one brightness."""

    says = {"": 0.0, "dark": -0.5, "light": 0.5, "grey": 0.125}

    def __init__(self):
        self.recipe, self.progress = OwnRecipe({"name": "flow"}, "x0"), False

    def encode(self, image, generator=None, sample=True):
        return image + 0.25 if sample else image

    def decode(self, latents):
        return 2 * latents

    def denoiser(self, prompts, negative_prompt="", guidance_scale=None, sampler=None, beside=None):
        unlike = [negative_prompt] * len(prompts) if isinstance(negative_prompt, str) else negative_prompt
        scale = 3.0 if guidance_scale is None else guidance_scale
        means = [self.says[no] + scale * (self.says[yes] - self.says[no]) for yes, no in zip(prompts, unlike, strict=True)]
        return GaussianDenoiser(torch.tensor(means).view(-1, 1, 1, 1), 0.5)


def editing(begin=lambda start, steps: start, up_scale=1.0, noise=False, swapped=False, drawn=False, guided=True, down=0,
            negative=True, decoded=True, inverse=None):  # fmt: skip
    """edit, with one of its parts replaced."""

    def edit(self, image, source_prompt, target_prompt, steps=50, start=10, negative_prompt="", guidance_scale=None, refine=0,
             borrow=0.0):  # fmt: skip
        source, target = ([p] if isinstance(p, str) else list(p) for p in (source_prompt, target_prompt))
        source, target = (target, source) if swapped else (source, target)
        levels, z = self.recipe.levels(steps, ddim), self.encode(image, sample=drawn).expand(len(target), -1, -1, -1)
        up = list(invert(self.denoiser(source, "", up_scale, ddim), z, levels, refine=refine if inverse is None else inverse))
        first = begin(start, steps)
        x = up[max(-1 - first, -len(up))].x
        x = add_noise(z, torch.randn_like(z), levels[first]) if noise else x
        denoise = self.denoiser(target, negative_prompt if negative else "", guidance_scale if guided else 1.0, ddim)
        x = sample(ddim, denoise, x, levels[min(start + down, steps - 1) :], progress=False)
        return self.decode(x) if decoded else x

    return edit


GREYS = IMAGES[:2] / 4
ONE = torch.full((1, 1, 1, 1), 0.75)
edit_task = Task(
    "18.2", "an edit", TextToImage.edit,
    ask=lambda f, image, *args: f(Bench(), image, *args),
    cases=(
        Case("one step by hand: up to sigma = 0.5 and down again", (ONE, "grey", "light", 2, 1, "", 3.0),
             torch.full((1, 1, 1, 1), 2.7)),
        Case("two pictures, ten steps, three left out", (GREYS, ["dark", "grey"], ["light", "light"], 10, 3)),
        Case("from pure noise", (GREYS, ["dark", "grey"], ["light", "light"], 10, 0, "", 2.0)),
        Case("guidance away from the source", (GREYS, ["dark", "grey"], ["light", "grey"], 10, 4, ["dark", "grey"], 2.0)),
        Case("refined", (GREYS, ["dark", "grey"], ["light", "dark"], 6, 2, "", 2.0, 2)),
    ),
    mistakes=(
        Mistake("the walk down begins a level too low: states[-1] is at levels[0], so states[-1 - start] is at levels[start].",
                editing(down=1)),
        Mistake("x is one step too clean for its level: states[-1] is at levels[0], so states[-1 - start] is at levels[start].",
                editing(begin=lambda start, steps: start + 1)),
        Mistake("start is counted from the picture. It says how many of the first, noisy steps of the walk down are left out.",
                editing(begin=lambda start, steps: steps - 1 - start, down=0)),
        Mistake("the inversion was guided. The picture is no exaggerated one: invert at scale 1, without a negative prompt.",
                editing(up_scale=None)),
        Mistake("the picture was noised, not inverted: fresh noise knows nothing of it, and all that noise hid is drawn anew.",
                editing(noise=True)),
        Mistake("source and target have changed places: go up under the words that describe the picture.",
                editing(swapped=True)),
        Mistake("the latents were drawn from the VAE's Gaussian: take its mean, or no edit is the same twice.",
                editing(drawn=True)),
        Mistake("negative_prompt does not reach the denoiser of the walk down.", editing(negative=False)),
        Mistake("guidance_scale does not reach the denoiser of the walk down.", editing(guided=False)),
        Mistake("this ends with latents: decode them.", editing(decoded=False)),
        Mistake("refine does not reach the inversion.", editing(inverse=0)),
    ),
    hints=("Three walks' worth of code: encode, invert, then the sampler from the middle of its levels.",
           "up = list(md.invert(pipe.denoiser(sources, \"\", 1.0, md.ddim), z, levels, refine=refine)); up[-1] is at levels[0]",
           "x = up[-1 - start].x; md.sample(md.ddim, pipe.denoiser(targets, negative_prompt, guidance_scale, md.ddim), x, "
           "levels[start:]); pipe.decode"),
)  # fmt: skip

BOX = torch.zeros(4, 1, 32, 32)
for k in range(4):
    BOX[k, :, : 8 * (k + 1), 4:20] = 1
CORNER = torch.zeros(1, 1, 2, 2)
CORNER[0, 0, 0] = 1  # the upper two pixels
HAND = torch.tensor([[0.5, -0.25], [1.0, 1.0]]).expand(1, 3, 2, 2)
spoilt_task = Task(
    "18.3", "what an edit spoils", spoilt,
    cases=(
        Case("four pixels by hand, of which two should have stayed", (HAND, 0 * HAND, CORNER), torch.tensor([0.375])),
        Case("four pictures, each with a place of its own", (IMAGES[:4], IMAGES[4:], BOX)),
        Case("nothing has changed", (IMAGES[:4], IMAGES[:4], BOX), torch.zeros(4)),
    ),
    mistakes=(
        Mistake("the mean is over all pixels, those that may change among them: divide by the pixels where mask is 1.",
                lambda a, b, mask: ((a - b).abs() * mask).flatten(1).mean(1)),
        Mistake("this is the other part: mask is 1 where nothing should have changed.",
                lambda a, b, mask: ((a - b).abs() * (1 - mask)).flatten(1).sum(1) / (3 * (1 - mask).flatten(1).sum(1))),
        Mistake("differences of both signs cancel: take their absolute value first.",
                lambda a, b, mask: ((a - b) * mask).flatten(1).sum(1).abs() / (3 * mask.flatten(1).sum(1))),
        Mistake("this is the squared difference, and the absolute one is asked for.",
                lambda a, b, mask: ((a - b).square() * mask).flatten(1).sum(1) / (3 * mask.flatten(1).sum(1))),
        Mistake("one mask serves all channels, so it is counted once for each of them: this is as many times too large.",
                lambda a, b, mask: ((a - b).abs() * mask).flatten(1).sum(1) / mask.flatten(1).sum(1)),
        Mistake("this is one number for the whole batch: each picture has its own.",
                lambda a, b, mask: ((a - b).abs() * mask).sum() / (3 * mask.sum())),
    ),
    hints=("|images - originals| * mask is what counts. By how many numbers is its sum to be divided?",
           "mask has one channel and the images C of them: C * mask.flatten(1).sum(1) numbers for each picture.",
           "((images - originals).abs() * mask).flatten(1).sum(1) / (mask.flatten(1).sum(1) * images.shape[1])"),
)  # fmt: skip


class Net(nn.Module):
    """Looks around, then reads: x (B, 4, 8), t (B,), context (B, 3, 6)."""

    def __init__(self):
        super().__init__()
        self.around, self.words = SelfAttention(8, heads=2), CrossAttention(8, 6, heads=2)
        for k, weights in enumerate(self.parameters()):
            nn.init.normal_(weights, generator=torch.Generator().manual_seed(k))
        self.requires_grad_(False)

    def forward(self, x, t, context):
        x = x + self.around(x)
        return x + self.words(x, context)


def answers(f, source, tau, kinds, rows, t):
    """Inside the block, and after it."""
    net, generator = Net(), torch.Generator().manual_seed(1)
    x, context = torch.randn(rows, 4, 8, generator=generator), torch.randn(rows, 3, 6, generator=generator)
    t = torch.tensor(t).expand(rows)
    with f(net, source, tau, *kinds):
        inside = net(x, t, context)
    return {"inside the block": inside, "after it": net(x, t, context)}


def borrowing(rows=lambda own, n, source: own.view(-1, n)[:, source].flatten(), when=torch.gt, values=False, stays=False,
              only=None):  # fmt: skip
    """borrowed_attention, with one of its parts replaced."""

    @contextmanager
    def block(net, source, tau=0.0, kinds=(SelfAttention, CrossAttention)):
        at = []

        def begin(net, inputs):
            own = torch.arange(len(inputs[0]))
            at[:] = [torch.where(when(inputs[1], torch.tensor(tau)), rows(own, len(source), source), own)]

        def look(module, inputs, output):
            x, context = inputs if len(inputs) == 2 else 2 * inputs
            v = module.keys_values(context)[1]
            seen = module.weights(x, context)[at[0]] @ (v[at[0]] if values else v)
            return module.to_out(seen.transpose(1, 2).flatten(2))

        found = [m for m in net.modules() if isinstance(m, only or kinds)]
        hooks = [net.register_forward_pre_hook(begin), *(m.register_forward_hook(look) for m in found)]
        yield
        for hook in () if stays else hooks:
            hook.remove()

    return block


borrowed_task = Task(
    "18.4", "look where another one looks", borrowed_attention,
    ask=answers,
    cases=(
        Case("two pictures, the second borrows", ([0, 0], 0.0, (), 2, 500.0)),
        Case("three, of which the first two borrow from the third", ([2, 2, 2], 0.0, (), 3, 500.0)),
        Case("each has its own", ([0, 1], 0.0, (), 2, 500.0)),
        Case("a batch with guidance, twice as long", ([0, 0], 0.0, (), 4, 500.0)),
        Case("at t = tau, when it is over", ([0, 0], 500.0, (), 2, 500.0)),
        Case("t and tau for each row", ([0, 0], 400.0, (), 4, [900.0, 900.0, 100.0, 100.0])),
        Case("cross-attention alone", ([0, 0], 0.0, ((CrossAttention,),), 2, 500.0)),
    ),
    mistakes=(
        Mistake("the values were borrowed, too. M is the other picture's, v its own: else it shows what the other shows.",
                borrowing(values=True)),
        Mistake("who borrows from whom is the wrong way round: row i takes the map of row source[i].",
                borrowing(rows=lambda own, n, source: own.view(-1, n).flip(1)[:, source].flatten())),
        Mistake("in a batch of two parts, as guidance asks, the second part borrows from the first: each within itself.",
                borrowing(rows=lambda own, n, source: torch.tensor(source).repeat(len(own) // n))),
        Mistake("it borrows when t is small. t falls on the way down, and it is the first steps, t > tau, that set the scene.",
                borrowing(when=torch.lt)),
        Mistake("at t = tau it still borrows: t > tau, so that tau = T is never.", borrowing(when=torch.ge)),
        Mistake("the hooks are still there after the block: remove them, whatever happens inside.", borrowing(stays=True)),
        Mistake("only cross-attention borrows, whatever `kinds` says.", borrowing(only=CrossAttention)),
    ),
    hints=("Two kinds of hooks: one on the net, before it answers, finds out which rows borrow; one on each attention, after.",
           "module.weights(x, context) is M, (B, heads, N, L); module.keys_values(context)[1] is v. A SelfAttention is called "
           "with x alone, which is its context as well.",
           "seen = M[borrowed] @ v; module.to_out(seen.transpose(1, 2).flatten(2)), returned by the hook, is the new output"),
)  # fmt: skip

TASKS = [invert_task, edit_task, spoilt_task, borrowed_task]
