"""Tasks of chapter 10: one step from several batches, weights that fit or are refused, and a step alike in all directions."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...training import TrainConfig, Trainer
from ...training.checkpoint import load_weights, read_tensors, write_tensors
from ...training.muon import QUINTIC, orthogonalise
from ..task import Case, Law, Mistake, Task

GENERATOR = torch.Generator().manual_seed(10)


class Stepped(NamedTuple):  # what is to be seen of a few steps, one number for each
    weights: Tensor
    averages: Tensor
    losses: Tensor
    images: Tensor


def one_weight(value: float) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


def halved_square(net, x, y):  # its slope is weight - mean of x
    return (net.weight.flatten() - x).square().mean() / 2


def shaken_square(net, x, y):
    return halved_square(net, x + 0.5 * torch.randn(x.shape), y)


def walk(f: Callable, config: TrainConfig, loss: Callable, parts: tuple) -> Stepped:
    """As many steps as the parts allow, from weight 1, by plain gradient descent: nothing hides how long a step is."""
    trainer, feed, seen = Trainer(one_weight(1.0), loss, config), iter([(part, None) for part in parts]), []
    trainer.optimizer = torch.optim.SGD(trainer.net.parameters(), lr=7.0)  # each step has to set its own
    for _ in range(len(parts) // config.accumulate):
        images = f(trainer, feed)
        seen.append((trainer.net.weight.item(), trainer.ema.net.weight.item(), images))
    weights, averages, images = zip(*seen, strict=True)
    if any(count is None for count in images):
        return None
    return Stepped(*(torch.tensor(some, dtype=torch.float32) for some in (weights, averages, trainer.losses, images)))


def stepping(divide=True, empty="step", go="step", rate=True, clip="step", average=True, seed=True, finite=True,
             back=lambda loss: loss.backward(), told=sum):  # fmt: skip
    """one_step, with one of its parts replaced. "batch": done for each batch, "step": once at the end."""

    def version(trainer, batches):
        c, losses, images = trainer.config, [], 0

        def move():
            if clip == go or (clip and go == "batch"):
                nn.utils.clip_grad_norm_(trainer.net.parameters(), c.clip)
            trainer.optimizer.step()

        if seed:
            torch.manual_seed(c.seed * 1_000_003 + trainer.step)
        for group in trainer.optimizer.param_groups:
            group["lr"] = c.lr_at(trainer.step) if rate else group["lr"] / 7
        for _ in range(c.accumulate):
            x, y = next(batches)
            if empty == "batch":
                trainer.optimizer.zero_grad()
            loss = trainer.loss(trainer.net, x, y) / (c.accumulate if divide else 1)
            back(loss)
            losses, images = [*losses, loss.item()], images + len(x)
            if go == "batch":
                move()
        total = told(losses)
        if finite and not abs(total) < float("inf"):
            raise ValueError(f"the loss is {total}")
        if go == "step":
            move()
        if empty == "step":
            trainer.optimizer.zero_grad()
        if average:
            trainer.ema.update(trainer.net)
        trainer.losses.append(total)
        return images

    return version


def refuses_nan(f):
    trainer = Trainer(one_weight(1.0), halved_square, TrainConfig(steps=2, accumulate=2))
    try:
        f(trainer, iter([(torch.ones(1), None), (torch.full((1,), float("nan")), None)]))
    except ValueError:
        return trainer.net.weight.item() == 1.0
    return False


PLAIN = TrainConfig(steps=1, accumulate=2, lr=0.5, warmup=0, decay="constant", clip=100.0)
THREES = TrainConfig(steps=4, accumulate=3, lr=0.4, warmup=2, clip=0.3, seed=3)
NINE = tuple(4 + torch.randn(9, 4, generator=GENERATOR))
NAN = "a loss that is not finite should raise a ValueError before the weights are touched: afterwards they are lost."
one_step_task = Task(
    "10.1", "one step from several batches", Trainer.one_step,
    cases=(
        Case("weight 1 and batches of one image, 3 and 5, by hand",
             (PLAIN, halved_square, (torch.tensor([3.0]), torch.tensor([5.0]))),
             Stepped(torch.tensor([2.5]), torch.tensor([2.35]), torch.tensor([5.0]), torch.tensor([2.0]))),
        # slope (1 - 3) / 2 + (1 - 5) / 2 = -3; losses 2 and 8, of which the mean is told; the average takes 9/10 of the way
        Case("three steps of three batches, with noise in the loss", (THREES, shaken_square, NINE)),
        Case("four steps of one batch", (TrainConfig(steps=4, lr=0.1, clip=100.0), halved_square, NINE[:4])),
    ),
    ask=walk,
    mistakes=(
        Mistake("the gradients are added up and not divided: the step is `accumulate` times too long. (Adam would hide it.)",
                stepping(divide=False)),
        Mistake("the gradient is emptied before each batch, so only the last one counts: empty it once a step.",
                stepping(empty="batch")),
        Mistake("the gradient is never emptied, so every step goes on with those before it.", stepping(empty="never")),
        Mistake("this steps after every batch: accumulation walks once, with the gradient of all.", stepping(go="batch")),
        Mistake("the learning rate is the one the optimizer was built with: set that of this step, config.lr_at(trainer.step).",
                stepping(rate=False)),
        Mistake("the gradient is not clipped to config.clip.", stepping(clip=None)),
        Mistake("the average is not told of the step: trainer.ema.update(trainer.net).", stepping(average=False)),
        Mistake("the loss that is kept is that of the last batch: keep the mean over all of them.",
                stepping(told=lambda losses: losses[-1])),
        Mistake("`loss.backward(loss)` multiplies the gradient by the loss: a batch that is twice as wrong counts four times.",
                stepping(back=lambda loss: loss.backward(loss))),
        Mistake("what a step draws depends on what came before it: torch.manual_seed(config.seed * 1_000_003 + step) is first.",
                stepping(seed=False)),
        Mistake(NAN, stepping(finite=False)),
    ),
    laws=(Law(NAN, refuses_nan),),
    hints=("Seed, set the learning rate, then a loop over `config.accumulate` batches that only calls backward.",
           "PyTorch adds each backward to `.grad`: with losses divided by `accumulate` the sum is a mean. Clip, step, empty",
           "loss = trainer.loss(trainer.net, x, y) / c.accumulate; loss.backward(); then nn.utils.clip_grad_norm_, "
           "optimizer.step(), optimizer.zero_grad(), ema.update, losses.append(total), return images"),
    seconds=30.0,  # the first optimizer of a process makes torch import half of itself
)  # fmt: skip


class Loaded(NamedTuple):
    refused: str  # by which error
    named: Any  # how many of the names that it should tell are in its message
    weights: Any


def two_layers(start: float = 0.0) -> nn.Sequential:
    net, sizes = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3)), iter(range(9))
    with torch.no_grad():
        for weights in net.parameters():
            weights.copy_(start + next(sizes) + torch.arange(weights.numel()).view(weights.shape) / 10)
    return net


RIGHT = {name: value.clone() for name, value in two_layers(5.0).state_dict().items()}
WITHOUT = {name: value for name, value in RIGHT.items() if name != "1.weight"}
PREFIXED = {f"module.{name}": value for name, value in RIGHT.items()}


def fill(f: Callable, tensors: dict, wrong: tuple) -> Loaded:
    """A network of two layers, asked to take what is in a file; wrong: the names that do not fit."""
    net, refused, named = two_layers(), "no", 0
    with tempfile.TemporaryDirectory() as folder:
        write_tensors(file := Path(folder) / "model.safetensors", tensors)
        try:
            f(net, file)
        except NotImplementedError:
            raise
        except Exception as error:  # noqa: BLE001  which one it was is part of the answer
            refused, named = f"a {type(error).__name__}", sum(name in str(error) for name in wrong)
    return Loaded(refused, named, dict(net.state_dict()))


def loading(missing=True, unexpected=True, shapes=True, most=5, put=lambda net, weights: net.load_state_dict(weights)):
    """load_weights, with one of its looks left out."""

    def version(net, file):
        weights, wanted = read_tensors(file), net.state_dict()
        wrong = [name for name in wanted if name not in weights and missing]
        wrong += [name for name in weights if name not in wanted and unexpected]
        wrong += [name for name in wanted if shapes and name in weights and weights[name].shape != wanted[name].shape]
        if wrong:
            raise ValueError("does not fit: " + ", ".join(wrong[:most]))
        put(net, weights)

    return version


@torch.no_grad()
def copied(net, weights):
    for name, value in net.state_dict().items():
        value.copy_(weights.get(name, value))


load_weights_task = Task(
    "10.2", "weights that fit, or none", load_weights,
    cases=(
        Case("a file that fits: its numbers, and no others", (RIGHT, ()), Loaded("no", 0, dict(RIGHT))),
        Case("a tensor is missing", (WITHOUT, ("1.weight",))),
        Case("a tensor too many", (RIGHT | {"2.weight": torch.ones(3)}, ("2.weight",))),
        Case("two shapes that are others", (RIGHT | {"0.bias": torch.ones(1), "1.bias": torch.ones(1)}, ("0.bias", "1.bias"))),
        Case("names of a network that was wrapped", (WITHOUT | {"module.1.weight": RIGHT["1.weight"]}, ("module.1.weight",))),
    ),
    ask=fill,
    mistakes=(
        Mistake("what does not fit is left out in silence, and a part of the network stays random: compare the names first.",
                lambda net, file: copied(net, {k: v for k, v in read_tensors(file).items()
                                               if k in net.state_dict() and v.shape == net.state_dict()[k].shape})),
        Mistake("PyTorch's own error comes when the tensors before it are already in: compare first, then raise a ValueError.",
                loading(False, False, False)),
        Mistake("tensors that are missing in the file are not noticed.", loading(missing=False, put=copied)),
        Mistake("tensors that the network has no place for are not noticed.", loading(unexpected=False, put=copied)),
        Mistake("shapes are not compared, and copy_ stretches one number over a whole row.", loading(shapes=False, put=copied)),
        Mistake("the error names one tensor, where several do not fit: name up to five.", loading(most=1)),
    ),
    hints=("`read_tensors(file)` and `net.state_dict()` are two dicts from names to tensors. When are they alike?",
           "Three lists: names that only the network has, names that only the file has, and names whose shapes differ.",
           "raise ValueError with the names if any list is not empty; only then net.load_state_dict(weights)"),
)  # fmt: skip


def flattening(rounds=None, scale=lambda x: x.norm(), coefficients=QUINTIC, times=torch.matmul):
    """orthogonalise, with one of its parts replaced."""

    def version(matrix, given=5):
        a, b, c = coefficients
        x = matrix / (scale(matrix) + 1e-7)
        for _ in range(given if rounds is None else rounds):
            gram = times(x, x.T) if times is torch.matmul else x * x
            x = a * x + times(b * gram + c * times(gram, gram), x)
        return x

    return lambda matrix, rounds=5: version(matrix, rounds)


def by_svd(matrix, rounds=5):
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    return u @ v


WIDE, TALL = torch.randn(4, 9, generator=GENERATOR), torch.randn(8, 3, generator=GENERATOR)
orthogonalise_task = Task(
    "10.3", "every direction alike", orthogonalise,
    cases=(
        Case("3 and 4 on a diagonal, one round, by hand", (torch.diag(torch.tensor([3.0, 4.0])), 1),
             torch.diag(torch.tensor([1.193268, 0.976483]))),  # s = 0.6, 0.8: a s + b s**3 + c s**5
        Case("a wide matrix", (WIDE,)),
        Case("a tall matrix", (TALL,)),
        Case("one direction in a thousand", (torch.outer(WIDE[0], WIDE[1]) + WIDE[2, 0] * torch.eye(9) / 1000,)),
        Case("three rounds", (WIDE, 3)),
    ),
    mistakes=(
        Mistake("the matrix is not divided by its norm: above 1.3 the polynomial drives singular values apart, not together.",
                flattening(scale=lambda x: torch.ones(()))),
        Mistake("this is divided by the largest entry: singular values are held by the norm of the whole matrix.",
                flattening(scale=lambda x: x.abs().max())),
        Mistake("the powers are those of the entries: A is the matrix product X @ X.T.", flattening(times=torch.mul)),
        Mistake("the term with c is missing: it is what makes the first rounds steep and the others stay.",
                flattening(coefficients=(*QUINTIC[:2], 0.0))),
        Mistake("this is the exact U V^T, by an SVD: asked for are rounds of the polynomial, which come near it.", by_svd),
        Mistake("`rounds` is not used: it says how often the polynomial is applied.", flattening(rounds=5)),
        Mistake("two of the coefficients have changed places: b is that of A, and c that of A @ A.",
                flattening(coefficients=(QUINTIC[0], QUINTIC[2], QUINTIC[1]))),
    ),
    hints=("Divide by matrix.norm(), then repeat one line `rounds` times.",
           "With A = X @ X.T the line is X <- a X + (b A + c A @ A) @ X: each singular value s becomes a s + b s^3 + c s^5.",
           "gram = x @ x.T; x = a * x + (b * gram + c * gram @ gram) @ x"),
    tolerance=1e-3,
)  # fmt: skip

TASKS = [one_step_task, load_weights_task, orthogonalise_task]
