# %% [markdown]
# # 08 · Class conditioning, both injections
#
# **How do you ask a diffusion model for a sneaker?**
#
# So far our models drew whatever came out. Now a *label* $y$ goes in beside the noisy image, and an image of that class
# comes out. In mathematics this is a small step: the denoiser of the data becomes the denoiser of a part of the data. In a
# network it raises a question of plumbing: where does a label, which is a name, enter a machine made of convolutions?
# There are two classic answers. We build both, train both, and let an independent judge mark the drawings.
#
# You need the U-Net and its time embedding (chapter 04) and the training loop (chapter 05). Nothing is downloaded.

# %% [markdown]
# > **For the lecturer.** 75 minutes: 15 for the exact part, 10 for the naive attempts, 15 for each injection, 20 for the
# > pictures. On two CPU cores the trainings take about ten minutes in all, so start them before the lecture.
# >
# > Worth asking before the cell is run: *at which noise levels does a label help?* (section 1) · *what lies between sneaker
# > and ankle boot, for someone who knows them as 7 and 9?* (section 9) · *the same noise, another class: what stays?*
# > (section 7) · *what does a constant channel do to a convolution?* (section 5). The second has an answer that the room
# > remembers.

# %%
import copy
import os
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch import nn
from torch.nn.functional import one_hot
from torch.testing import assert_close

import minidiff as md

device = "cuda" if torch.cuda.is_available() else "cpu"

# %% [markdown]
# The knobs. A quick mode for tests replaces a value by the one in its comment; nothing else changes.

# %% tags=["knobs"]
SEED = 0
IMAGES = 20000  # training images  # quick: 300
TESTS = 2000  # real images that no one trains on, for the judge's own mark  # quick: 100
EXACT = 2000  # images that the exact denoisers know  # quick: 300
CHANNELS = (48, 96, 160)  # width of the U-Net's stages  # quick: (16, 16, 32)
STEPS = 500  # optimizer steps for each of four networks  # quick: 4
BATCH = 32  # images to a step  # quick: 16
WALK = 25  # steps of a sampler  # quick: 2
MANY = 500  # samples that the judge marks, for each network  # quick: 20
EPOCHS = 3  # of the judge's training  # quick: 1
LONG = True  # hold the trained networks to the numbers in the text  # quick: False

# %% [markdown]
# **The data.** If the environment variable `MINIDIFF_DATA` names a folder with `fashion_mnist/` in it, the chapter runs on
# Fashion-MNIST: ten kinds of clothing, grey, padded from 28 to 32 pixels. If not, it draws ten classes of its own, five
# shapes in two colours. The text speaks of sneakers; with shapes, read "blue star" for sneaker (class 7), "red heart" for
# bag (8) and "blue heart" for ankle boot (9). Where a number differs, both are stated.

# %%
folder = os.environ.get("MINIDIFF_DATA")
if folder and (Path(folder) / "fashion_mnist").is_dir():
    DATA, where = "Fashion-MNIST", Path(folder) / "fashion_mnist"
    train = md.data.load_images(where, size=32, limit=IMAGES)
    test = md.data.load_images(where, size=32, split="test", limit=TESTS)
else:
    DATA, some = "Shapes", {"shapes": ["circle", "square", "triangle", "star", "heart"], "colours": ["red", "blue"]}
    some |= {"backgrounds": ["white"], "sizes": ["large"]}
    scenes, others = md.data.Shapes(IMAGES, seed=1, **some), md.data.Shapes(TESTS, seed=2, **some)
    train, test = (md.data.Images(*s.tensors(), s.classes) for s in (scenes, others))
classes = [name.replace(" - ", "-").split(" /")[0] for name in train.classes]
C, SNEAKER, BAG, BOOT = train.pixels.shape[1], 7, 8, 9
print(f"This run is on {DATA}: {train} to train on, {test} to judge by")
print(dict(enumerate(classes)))

# %% [markdown]
# ## 1. Another class is another denoiser
#
# What do we want? Draws of $p(x_0 \mid y)$, the images of class $y$, instead of $p(x_0)$, all images. The sampler needs
# nothing but a denoiser, and a denoiser is a conditional mean. So the only change is a second condition in it:
#
# $$D(x_t) = \mathbb E[x_0 \mid x_t] \qquad\longrightarrow\qquad D(x_t, y) = \mathbb E[x_0 \mid x_t, y].$$
#
# For a finite set of images both are formulas (chapter 02): the mean over all images, or over those of the class. No
# network is needed to see what conditioning does. Below, a sneaker that the set does not hold is drowned and denoised by
# both.

# %%
torch.manual_seed(SEED)
schedule = md.Schedule.flow()
x0, y = md.data.from_pixels(train.pixels[:EXACT]), train.labels[:EXACT]
everything = md.DatasetDenoiser(x0)
of_class = [md.DatasetDenoiser(x0[y == k]) for k in range(10)]

one = md.data.from_pixels(test.pixels[test.labels == SNEAKER][:1])
ts, eps = [1000, 960, 920, 880, 840, 800], torch.randn_like(one)
noisy = [md.add_noise(one, eps, schedule.at(t)) for t in ts]
rows = [noisy] + [[d(xt, schedule.at(t)).x0 for t, xt in zip(ts, noisy, strict=True)] for d in (everything, of_class[SNEAKER])]
md.plot.show_images(
    torch.cat(sum(rows, [])), row_labels=["$x_t$", "all images", classes[SNEAKER]], column_labels=[f"t = {t}" for t in ts]
)

# %% [markdown]
# In pure noise ($t = 1000$) the one answers with the mean of everything, the other with the mean sneaker. Once the noise
# is thin enough for the image to show its class, they agree: who sees a sneaker need not be told. The two are tied
# by an exact law. Average over the classes, each weighted by how likely it is *given what is seen*:
#
# $$\mathbb E[x_0 \mid x_t] = \sum_y p(y \mid x_t)\; \mathbb E[x_0 \mid x_t, y], \qquad
# p(y \mid x_t) = \frac{p(y)\,p(x_t \mid y)}{\sum_{y'} p(y')\,p(x_t \mid y')}.$$
#
# The left side is the law of total expectation, the right side is Bayes' rule. For our finite set, $p(y)\,p(x_t \mid y)$
# is a sum of Gaussians around the images of the class.


# %%
def class_posterior(x0, y, xt, level, classes=10):
    """p(y | x_t), (B, classes), where the data are exactly the images x0 with their labels y."""
    alpha, sigma = level.like(xt)
    distance = torch.cdist(xt.flatten(1).double(), alpha * x0.flatten(1).double())  # (B, N)
    return (-(distance**2) / (2 * sigma**2)).softmax(dim=1) @ one_hot(y, classes).double()


# %%
level = schedule.at(920)
xt = md.add_noise(x0[:20], torch.randn_like(x0[:20]), level)
posterior = class_posterior(x0, y, xt, level)  # (20, 10)
answers = torch.stack([denoise(xt, level).x0 for denoise in of_class], dim=1)  # (20, 10, C, 32, 32)
mixture = (posterior.float()[:, :, None, None, None] * answers).sum(1)
assert_close(mixture, everything(xt, level).x0, atol=1e-4, rtol=1e-4)

# %% [markdown]
# Keep this law in mind. It says what a network that is asked for "any class" ought to answer: the mixture.
#
# It also says at which levels a label is worth something. In pure noise the best answer without a label is off by the
# variance of all images, with a label by the variance *within* a class. Total variance is variance within plus variance
# between the class means, so at that end the label saves exactly the share of the variance that lies between. **Expected:**
# 40 % on Fashion-MNIST, 15 % on shapes, whose places in the frame no label tells; and at $t = 500$ nothing.

# %%
ts = range(500, 1001, 50)
some, labels = x0[:100], y[:100]
error = {"without a label": [], "with its label": []}
known = []
for t in ts:
    level = schedule.at(t)
    xt = md.add_noise(some, torch.randn_like(some), level)
    told = torch.empty_like(xt)
    for k in labels.unique():
        told[labels == k] = of_class[k](xt[labels == k], level).x0
    for name, x0_hat in zip(error, (everything(xt, level).x0, told), strict=True):
        error[name].append((x0_hat - some).square().mean().item())
    known.append(class_posterior(x0, y, xt, level)[range(100), labels].mean().item())
means = torch.stack([x0[y == k].mean(0) for k in range(10)])[y]
between = ((means - x0.mean(0)).square().mean() / (x0 - x0.mean(0)).square().mean()).item()
print(f"of the variance of the images, {between:.0%} lies between the classes")
saved = 1 - error["with its label"][-1] / error["without a label"][-1]
print(f"share of the error that the label saves: {saved:.0%} at t = 1000")
assert abs(between - {"Fashion-MNIST": 0.40, "Shapes": 0.15}[DATA]) < 0.05
assert error["without a label"][0] - error["with its label"][0] < 0.01 * error["without a label"][-1]
assert 0.05 < known[-1] < 0.2 and known[0] > 0.99
md.plot.show_curves(
    {**{name: (ts, v) for name, v in error.items()}, r"$p(y\,|\,x_t)$ of the true class": (ts, known)},
    xlabel="t", ylabel="squared error per pixel; probability", title="what a label is worth, level by level",
)  # fmt: skip

# %% [markdown]
# The class of an image is decided early in a walk, in heavy noise, and never again. (A finite set of images exaggerates:
# with all clothes in the world to choose from, the curves would part at lower levels too.)
#
# Does a denoiser of the class really draw the class? Walk down from the same two noises with all eleven of them.

# %%
start = torch.randn(2, C, 32, 32)
levels = schedule.levels(25, "trailing")
drawn = [md.sample(md.ddim, denoise, start, levels, progress=False) for denoise in (everything, *of_class)]
far = torch.cdist(drawn[1 + SNEAKER].flatten(1).double(), x0[y == SNEAKER].flatten(1).double()).amin(1)
assert far.max() < 0.1  # each is, to the last grey, a sneaker of the set
md.plot.show_images(torch.stack(drawn, 1).flatten(0, 1), columns=11, column_labels=["any", *classes], title="no network")

# %% [markdown]
# This is perfect obedience, bought by knowing nothing else: each picture is one of the training set. A network has to
# generalise, and one network should serve all ten classes. Two attempts that seem natural come first.
#
# ## 2. Naive attempt one: draw, look, throw away
#
# Train without labels. Draw, and keep what a classifier takes for a sneaker. The classifier is a small network that
# saw real images only. It will be the judge of all networks to come, so its own mark stands first, and no drawing can be
# expected to score above it. **Expected of the judge:** right on 90 % of real clothes, on 99 % of real shapes.
#
# Every network is trained by the same function: the same batches, noise and levels at each step, so that losses can be
# compared step by step. `drop_labels` is explained in section 4.


# %%
def fit(net, images, steps, batch, seed, device):
    """Train on rectified flow: the averaged network, and the loss of every step."""
    net, null_class = net.to(device, memory_format=torch.channels_last), len(images.classes)

    def loss(net, x, y):
        y = md.nets.drop_labels(y, null_class, 0.1)  # drawn even where it is not used: the noise after it stays the same
        cond = {"y": y} if net.label else {}
        return md.diffusion_loss(net, x.contiguous(memory_format=torch.channels_last), md.Schedule.flow(), "flow", **cond)

    trainer = md.Trainer(net, loss, md.TrainConfig(steps=steps, seed=seed))
    losses = trainer.fit(md.data.batches(images, batch, device, seed=seed))
    return trainer.ema.net, losses


def draw(net, start, y, steps):
    """The images that `net` makes of the noise `start`, asked for the labels y, or for nothing where y is None."""
    cond = {} if y is None else {"y": y}
    levels = md.Schedule.flow().levels(steps, "trailing")
    return md.sample(md.ddim, md.denoiser(net, "flow", **cond), start, levels).clamp(-1, 1)


@torch.no_grad()
def verdicts(judge, x):
    """The classes (B,) that the judge sees."""
    return torch.cat([judge(part).argmax(1) for part in x.split(500)]).cpu()


# %%
judge = md.evaluation.train_judge(train, epochs=EPOCHS, seed=SEED, device=device)
on_real = (verdicts(judge, md.data.from_pixels(test.pixels).to(device)) == test.labels).float().mean().item()
print(f"the judge is right on {on_real:.1%} of {len(test)} real images that it never saw")
if LONG:
    assert on_real > {"Fashion-MNIST": 0.87, "Shapes": 0.97}[DATA]

# %% [markdown]
# Now the unconditional network and its lottery. **Expected:** each class comes up about once in ten draws, so a sneaker
# costs about ten pictures.

# %%
losses, shape = {}, {"channels": CHANNELS, "attention": (False, True, True), "layers": 1, "patch": 2, "shortcut": True}
torch.manual_seed(SEED)
unconditional, losses["no label"] = fit(md.UNet(C, C, **shape), train, STEPS, BATCH, SEED, device)

# %%
start = torch.randn(MANY, C, 32, 32, generator=torch.Generator().manual_seed(SEED)).to(device)
lottery = draw(unconditional, start, None, WALK)
seen = verdicts(judge, lottery)
hits = int((seen == SNEAKER).sum())
print(f"{hits} of {MANY} draws are taken for a {classes[SNEAKER]}: {MANY / max(hits, 1):.0f} draws for one")
if LONG:
    assert 5 < MANY / max(hits, 1) < 30
md.plot.show_images(lottery[:20].cpu(), titles=[classes[k] for k in seen[:20]], columns=10, title="what the judge sees")

# %% [markdown]
# It works, at ten times the price. With a thousand classes it would be a thousand times, and for a class of sentences,
# "a red shoe on a beach", for ever. And the judge must name something even where a person would shrug.
#
# ## 3. Naive attempt two: the label as a number
#
# Labels are stored as numbers, so why not give the network the number? Lay a channel beside the image, filled with
# one constant: $-1$ for class 0, $-0.8$ for class 1, and so on in equal steps up to class 9, and $1$ for "any". It trains
# without complaint. What is wrong with it is that a number has neighbours: class 8 lies *between* 7 and 9, and a smooth
# function of the number has to pass through bags on its way from sneakers to ankle boots. Nothing in the data says so, and
# before the network can tell ten classes apart it must learn to bend sharply ten times. Section 6 measures how far it gets.
#
# In the library's terms this is a class embedding of width 1 that is not trained:


# %%
def as_a_number(net):
    """The same U-Net, its class embedding of width 1 frozen to evenly spaced numbers from -1 to 1."""
    table = net.label.table.weight.requires_grad_(False)
    table.copy_(torch.linspace(-1, 1, len(table))[:, None])
    return net


# %%
torch.manual_seed(SEED)
number = as_a_number(md.UNet(C, C, **shape, num_classes=10, class_channels=1))
number, losses["a number"] = fit(number, train, STEPS, BATCH, SEED, device)

# %% [markdown]
# ## 4. Injection one: added to the time embedding
#
# The network already takes one piece of side information, the time $t$. It becomes a vector, and every residual block
# adds a linear map of that vector to its features, the same number at every pixel. A class can travel in the same
# vehicle. Give each class a vector of the same width, *learned*, so that no order is implied, and add:
#
# $$e = \mathrm{time}(t) + E_y, \qquad h \leftarrow h + W_b\,\mathrm{silu}(e) + c_b \quad\text{in every block } b.$$
#
# $E$ is a table with a row per class, an `nn.Embedding`. And one row more: the **null class**, which stands for "any". In
# training, each label is replaced by it with probability 0.1, so the network learns both questions (Ho & Salimans
# 2022, algorithm 1). The reward is one network with two answers: $D(x_t, y)$, and the mixture $D(x_t)$.


# %%
class ClassEmbedding(nn.Module):
    """Labels (B,) -> (B, dim): a learned vector per class, and one more for the null class, number num_classes."""

    def __init__(self, num_classes, dim):
        super().__init__()
        self.null_class = num_classes
        self.table = nn.Embedding(num_classes + 1, dim)

    def forward(self, y):
        if y.numel() and not 0 <= y.min() <= y.max() <= self.null_class:
            raise ValueError(f"labels from {int(y.min())} to {int(y.max())}, but the classes are 0 to {self.null_class - 1}")
        return self.table(y)


def drop_labels(y, null_class, probability, generator=None):
    """Labels (B,), each replaced by the null class at the given probability."""
    dropped = torch.rand(y.shape, generator=generator).to(y.device) < probability
    return torch.where(dropped, null_class, y)


# %% [markdown]
# In the library, `UNet(..., num_classes=10)` does this. To check, we listen inside: what the first block is given
# as its embedding must be the sum. And of ten thousand labels, a tenth should be dropped.


# %%
def heard(module, net, *question):
    """(inputs, output) of one module inside `net`, while net answers the question."""
    kept = []
    hook = module.register_forward_hook(lambda module, inputs, output: kept.append((inputs, output)))
    with torch.no_grad():
        net(*question)
    hook.remove()
    return kept[0]


# %%
torch.manual_seed(SEED)
added = md.UNet(C, C, **shape, num_classes=10)
first_table = added.label.table.weight.detach().clone()  # for later: what training adds to it
mine = ClassEmbedding(10, 4 * CHANNELS[0])
mine.load_state_dict(added.label.state_dict())  # the same names, so the same weights fit
xt, t, asked = torch.randn(4, C, 32, 32), torch.tensor([10.0, 300.0, 600.0, 990.0]), torch.tensor([0, 7, 9, 10])
inputs, _ = heard(added.down[0], added, xt, t, asked)
assert_close(inputs[1], added.time(t) + mine(asked), rtol=0, atol=0)

many = torch.arange(10).repeat(1000)
seeds = [torch.Generator().manual_seed(SEED) for _ in range(2)]
dropped = drop_labels(many, 10, 0.1, seeds[0])
assert_close(dropped, md.nets.drop_labels(many, 10, 0.1, seeds[1]), rtol=0, atol=0)
print(f"{(dropped == 10).float().mean():.3f} of the labels were dropped; all others are as they were")
assert abs((dropped == 10).float().mean() - 0.1) < 0.015 and dropped[dropped < 10].equal(many[dropped < 10])

# %%
added, losses["added to time"] = fit(added, train, STEPS, BATCH, SEED, device)

# %% [markdown]
# ## 5. Injection two: laid beside the image
#
# The second answer is older than diffusion: show the label as part of the picture (Mirza & Osindero 2014 did so with a
# GAN). Embed the class in four numbers, spread each over a whole map, and lay the four maps beside the image as
# channels. The network itself stays as it is; only its door is wider. Here it is as a wrapper around any U-Net, as the
# Hugging Face course builds it, with a null class added:


# %%
class ClassConditionedUnet(nn.Module):
    """A U-Net that is shown the class as constant channels: (B, C, H, W), (B,), (B,) -> (B, C, H, W)."""

    def __init__(self, image_channels, num_classes=10, class_emb_size=4, **options):
        super().__init__()
        self.class_emb = nn.Embedding(num_classes + 1, class_emb_size)
        self.model = md.UNet(image_channels + class_emb_size, image_channels, **options)

    def forward(self, x, t, y):
        maps = self.class_emb(y)[:, :, None, None].expand(-1, -1, *x.shape[2:])  # (B, 4, H, W), all equal within a map
        return self.model(torch.cat([x, maps], dim=1), t)


# %% [markdown]
# The library's `UNet(..., num_classes=10, class_channels=4)` is the same network, as long as it has the same weights.
# (Not zeros: a new U-Net answers 0 to everything, and two zeros would agree about nothing.)

# %%
plain = {name: value for name, value in shape.items() if name != "shortcut"}  # a shortcut needs as many channels out as in
theirs = md.UNet(C, C, **plain, num_classes=10, class_channels=4)
for weights in theirs.parameters():
    nn.init.normal_(weights, std=0.1)
ours = ClassConditionedUnet(C, **plain)
ours.class_emb.load_state_dict({"weight": theirs.label.table.weight})
ours.model.load_state_dict({name: value for name, value in theirs.state_dict().items() if not name.startswith("label")})
with torch.no_grad():
    assert theirs(xt, t, asked).std() > 0
    assert_close(ours(xt, t, asked), theirs(xt, t, asked), rtol=0, atol=0)

# %% [markdown]
# What can a constant channel do? Follow it through the first convolution. A convolution is linear, and a constant map
# $e$ seen through a filter $w$ gives a constant again:
#
# $$w * [x,\, e\mathbf 1] = w_x * x + \Big(\sum_{i,j} w_{e,ij}\Big)\,e .$$
#
# So the class becomes **a bias of the first layer**, one vector, just as in injection one, but in one place
# only, from where it must reach all others. At the border, where the filter hangs over the edge and sees padding,
# fewer terms are summed. **Expected:** ask for two classes, and the first layer's answers differ by the same number at all
# inner places, and by others along the border.

# %%
same = torch.randn(1, C, 32, 32).expand(2, -1, -1, -1)
_, felt = heard(theirs.conv_in, theirs, same, torch.tensor([500.0, 500.0]), torch.tensor([SNEAKER, BOOT]))
difference = felt[0] - felt[1]  # (CHANNELS[0], 16, 16): 2 x 2 pixels are folded into each place
inner = difference[:, 1:-1, 1:-1]
print(f"spread over the inner places {inner.std((1, 2)).max():.1e}, over all places {difference.std((1, 2)).max():.2f}")
assert inner.std((1, 2)).max() < 1e-4 and difference.std((1, 2)).max() > 0.01
torch.manual_seed(SEED)
beside = md.UNet(C, C, **shape, num_classes=10, class_channels=4)
beside, losses["laid beside"] = fit(beside, train, STEPS, BATCH, SEED, device)

# %% [markdown]
# Four runs, side by side. Every network saw the same batches, noise and levels, and every U-Net begins by answering 0, so
# the first losses are equal. **Expected at the end:** the class added to the time lies lowest, since it enters at every
# block from the first step on. The others are still learning to pass it along; and nobody gains more than a few per cent,
# because the levels drawn most often are the middle ones, where the image tells its class itself.

# %%
window = max(1, STEPS // 10)
smooth = {name: np.convolve(values, np.ones(window) / window, mode="valid") for name, values in losses.items()}
print({name: round(float(values[-1]), 4) for name, values in smooth.items()}, f"(mean of the last {window} steps)")
firsts = [values[0] for values in losses.values()]
assert max(firsts) - min(firsts) < 1e-3
if LONG:
    assert smooth["added to time"][-1] < smooth["no label"][-1]
md.plot.show_curves(
    {name: (np.arange(len(values)) + window, values) for name, values in smooth.items()},
    xlabel="step", ylabel=f"loss, mean of {window} steps", title="four ways to be told the class", yscale="log",
)  # fmt: skip

# %% [markdown]
# A loss says little about obedience. Pictures do.
#
# ## 6. Eighty pictures for each
#
# Eight noises, one to a row; ten classes, one to a column. First, the class added to the time:

# %%
eight = torch.randn(8, C, 32, 32, generator=torch.Generator().manual_seed(SEED + 1)).to(device)
grid, columns = eight.repeat_interleave(10, dim=0), torch.arange(10, device=device).repeat(8)
sheets = {name: draw(net, grid, columns, WALK).cpu() for name, net in (("added", added), ("beside", beside))}
md.plot.show_images(sheets["added"], columns=10, column_labels=classes, title="the class added to the time embedding")

# %% [markdown]
# And the class laid beside the image:

# %%
md.plot.show_images(sheets["beside"], columns=10, column_labels=classes, title="the class laid beside the image")

# %% [markdown]
# Look for pictures in the wrong column before you look at the numbers. Then the judge, on fresh noise. Its **confusion
# matrix** has a row for each class that was asked for and a column for each that was seen; what is right lies on the
# diagonal. **Expected on Fashion-MNIST:** 15 % right with the number, where guessing gives 10; 74 % with the class added to
# the time; 51 % with it laid beside the image. And more than half of the mistakes are among the tops (T-shirt, pullover,
# coat, shirt), which the judge confuses on real images too. On shapes: 13, 98 and 68 %.


# %%
def show_matrices(named, classes, label="asked for", low=0, high=1):
    """Square matrices (K, K) of numbers from low to high, side by side, with the classes at their margins."""
    with matplotlib.rc_context(md.plot.STYLE | {"axes.grid": False, "font.size": 10}):
        figure = md.plot.Picture(figsize=(1 + 5 * len(named), 6.8), dpi=md.plot.DPI, layout="constrained")
        for i, (name, matrix) in enumerate(named.items()):
            axes = figure.add_subplot(1, len(named), i + 1, title=name)
            axes.imshow(matrix, cmap="Blues" if low == 0 else "RdBu_r", vmin=low, vmax=high)
            axes.set_xticks(range(len(classes)), classes, rotation=90)
            axes.set_yticks(range(len(classes)), classes if i == 0 else [], rotation=0)
            axes.set_ylabel(label if i == 0 else "")
            for row, column in np.ndindex(*matrix.shape):
                value, dark = float(matrix[row, column]), abs(float(matrix[row, column])) > 0.6 * high
                axes.text(column, row, f"{value:.2f}".replace("0.", "."), ha="center", va="center", fontsize=8,
                          color="white" if dark else "black")  # fmt: skip
    return figure


# %%
wanted = torch.arange(MANY) % 10
drawings = {name: draw(net, start, wanted.to(device), WALK)
            for name, net in (("a number", number), ("added to time", added), ("laid beside", beside))}  # fmt: skip
accuracy, confusion = {}, {}
for name, x in drawings.items():
    pairs = one_hot(wanted, 10).T.float() @ one_hot(verdicts(judge, x), 10).float()  # (asked, seen): how often
    accuracy[name], confusion[name] = pairs.diag().sum().item() / MANY, pairs / pairs.sum(1, keepdim=True)
    print(f"{name:14} {accuracy[name]:.1%} of {MANY} drawings are of the class asked for")
print(f"{'real images':14} {on_real:.1%}")
if LONG:
    by_number, by_adding, by_laying = accuracy.values()
    assert by_number < by_laying - 0.1 and by_laying < by_adding - 0.05 and by_adding > 0.6
if LONG and DATA == "Fashion-MNIST":
    tops, mistakes = [0, 2, 4, 6], confusion["added to time"] * (1 - torch.eye(10))
    print(f"mistakes among tops: {mistakes[tops][:, tops].sum() / mistakes.sum():.0%}")
    assert mistakes[tops][:, tops].sum() > 0.4 * mistakes.sum()
show_matrices(confusion, classes)

# %% [markdown]
# On shapes there is a second judge, without a network in it: `md.data.matches` reads shape and colour from the pixels and
# accepts nothing that is blurred. **Expected:** a mark near that of the first judge.

# %%
if DATA == "Shapes":
    for name, x in drawings.items():
        found = []
        for k, (colour, figure) in enumerate(one.split() for one in classes):
            found.append(md.data.matches(x[wanted == k].cpu(), figure, colour))
        oracle = torch.cat(found).float().mean().item()
        print(f"{name:14} {oracle:.1%} by the oracle")
        assert not LONG or abs(oracle - accuracy[name]) < 0.2
else:
    print("no oracle for clothes")

# %% [markdown]
# ## 7. What the class decides, and what the noise
#
# In the sheets above each row began with the same noise. Look along a row: whatever its pictures have in common, they
# have from the noise. Noise and class share out the picture between them, and the share can be measured. Split each
# pixel's variance over the sheet into three parts that add up to the whole: between the means of the columns (the class),
# between the means of the rows (the noise), and the rest (what this noise means *to this class*).


# %%
def shares(sheet):
    """Sheet (rows, columns, ...) -> the parts of its variance that rows explain, columns explain, and neither alone does."""
    sheet = sheet.flatten(2).double()
    centred = sheet - sheet.mean((0, 1))
    by_row, by_column = centred.mean(1, keepdim=True), centred.mean(0, keepdim=True)
    parts = [part.square().mean() for part in (by_row.expand_as(centred), by_column.expand_as(centred))]
    rest = (centred - by_row - by_column).square().mean()
    return [(part / centred.square().mean()).item() for part in (*parts, rest)]


# %% [markdown]
# **Expected on Fashion-MNIST:** two fifths for the class where it is added, less where it is laid beside; a quarter for the
# two together, and the rest for the noise alone. On shapes the noise has more, since the place in the frame is its choice.

# %%
for name, sheet in sheets.items():
    by_noise, by_class, rest = shares(sheet.unflatten(0, (8, 10)))
    print(f"{name:7} class {by_class:.0%}, noise {by_noise:.0%}, both together {rest:.0%}")
    assert abs(by_noise + by_class + rest - 1) < 1e-6
    if LONG:
        assert by_class > {"Fashion-MNIST": 0.25, "Shapes": 0.02}[DATA] and by_noise > 0.02

# %% [markdown]
# **And the null class?** By the law of section 1 it should draw from the mixture: every class, in the proportions
# of the data, like the network that never saw a label. It is the same network as the obedient one, asked another question.
# **Expected:** no class below 2 % or above 25 %.

# %%
anything = torch.full((MANY,), added.null_class, device=device)
freely = verdicts(judge, draw(added, start, anything, WALK))
counts = {"unconditional network": seen, "null class, added": freely, "real images": test.labels}
parts = {name: one_hot(labels, 10).float().mean(0) for name, labels in counts.items()}
if LONG:
    assert parts["null class, added"].min() >= 0.02 and parts["null class, added"].max() <= 0.25
with matplotlib.rc_context(md.plot.STYLE):
    figure = md.plot.Picture(figsize=(11, 4.2), dpi=md.plot.DPI, layout="constrained")
    axes = figure.subplots()
    for i, (name, part) in enumerate(parts.items()):
        axes.bar(np.arange(10) + 0.27 * (i - 1), part, 0.25, label=name, color=md.plot.CURVES[i])
    axes.set_xticks(range(10), classes, rotation=30, ha="right")
    axes.set(ylabel="share of the pictures", title="what is drawn when nothing is asked for")
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=3)
figure.to(None)  # a cell that ends with a figure shows it

# %% [markdown]
# Two answers from one network, for the class and for anything: their difference points towards "more of this class", and
# chapter 09 will walk further along it. Everything here is at `scale` 1, plain conditional.
#
# ## 8. Who is whose neighbour?
#
# No one told the network that sneakers resemble ankle boots. Look at the table it learned. Each row began as random
# numbers, so take what training *added* to it, subtract the mean over the classes, and compare directions: the cosine is 1
# for the same direction, 0 for unrelated ones, −1 for opposite ones. **Expected on Fashion-MNIST:** classes of a
# kin, the three kinds of shoe, are closer to each other than to strangers. (On shapes no kin shows in so short a run.)

# %%
learned = (added.label.table.weight.cpu() - first_table)[:10]
learned = nn.functional.normalize(learned - learned.mean(0), dim=1)
cosine = learned @ learned.T  # (10, 10)
kin = [5, 7, 9] if DATA == "Fashion-MNIST" else [1, 3, 5, 7, 9]
strangers = [k for k in range(10) if k not in kin]
within = (cosine[kin][:, kin].sum() - len(kin)).item() / (len(kin) * (len(kin) - 1))
across = cosine[kin][:, strangers].mean().item()
nearest = classes[(cosine - 2 * torch.eye(10))[SNEAKER].argmax()]
print(f"among kin {within:.2f}, kin to strangers {across:.2f}; the nearest to {classes[SNEAKER]} is {nearest}")
if LONG and DATA == "Fashion-MNIST":
    assert within > across + 0.05
show_matrices({"cosine between class embeddings": cosine}, classes, label="", low=-1)

# %% [markdown]
# ## 9. Between a sneaker and an ankle boot
#
# A class is now a vector, and between two vectors there are others. Ask for $(1-w)\,E_7 + w\,E_9$: a mixture that no
# image was ever labelled with. We write the mixtures into the rows of a copy's table, and ask for the rows. The same can be
# done with the four channels of injection two, and with the one number of section 3, where half way from 7 to 9 is 8.


# %%
def mixed(net, a, b, weights):
    """A copy of `net` whose label i asks for (1 - w) * class a + w * class b, with w = weights[i]."""
    net = copy.deepcopy(net)
    table = net.label.table.weight.requires_grad_(False)
    w = torch.as_tensor(weights).to(table)[:, None]
    table[: len(w)] = torch.lerp(table[a], table[b], w)
    return net


# %%
ws = [0, 0.25, 0.4, 0.5, 0.6, 0.75, 1]
three = {"added": added, "beside": beside, "number": number}
strip = [draw(mixed(net, SNEAKER, BOOT, ws), eight[:1].expand(len(ws), -1, -1, -1), torch.arange(len(ws), device=device), WALK)
         for net in three.values()]  # fmt: skip
md.plot.show_images(
    torch.cat(strip).cpu(), row_labels=list(three), column_labels=[f"w = {w}" for w in ws],
    title=f"from {classes[SNEAKER]} to {classes[BOOT]}",
)  # fmt: skip

# %% [markdown]
# One noise is an anecdote. For a hundred, at $w = \frac12$: **expected** of the two embeddings, sneakers and boots nine times
# in ten, and hardly a bag; of the number, which is 8 here, as many bags as sneakers (on shapes, a red shape between two
# blue ones).

# %%
half, bags = min(MANY, 100), {}
zeros = torch.zeros(half, dtype=torch.long, device=device)
for name, net in three.items():
    middle = verdicts(judge, draw(mixed(net, SNEAKER, BOOT, [0.5]), start[:half], zeros, WALK))
    share = {classes[k]: (middle == k).float().mean().item() for k in (SNEAKER, BAG, BOOT)}
    print(f"{name:7} half way: " + ", ".join(f"{part:.0%} {kind}" for kind, part in share.items()))
    bags[name] = share[classes[BAG]]
if LONG:
    assert max(bags["added"], bags["beside"]) < min(0.1, bags["number"])

# %% [markdown]
# The number line has only one road from 7 to 9. A space of many dimensions has room for the direct one.
#
# ## 10. Five bugs you will meet
#
# **A group of one channel.** The class arrives in a block as one number per channel, added at every pixel. Next comes a
# GroupNorm. With one channel to a group it subtracts the mean of that channel, and with it, exactly, what was
# added:
#
# $$\mathrm{GN}(h + b) = \frac{(h + b) - (\bar h + b)}{\operatorname{std}(h)} = \mathrm{GN}(h).$$
#
# The network runs and trains, and knows neither class nor time. In a larger group only the mean of the group is lost.
# **Expected** response of a block to another embedding: 0 with groups of one, and more than 1 with the library's eight.


# %%
def response(per_group, channels=64):
    """How much a residual block's answer changes with the embedding, if its second GroupNorm has groups of so many channels."""
    torch.manual_seed(0)
    block = md.nets.ResNetBlock(channels, channels, 32)
    nn.init.normal_(block.second[-1].weight, std=0.1)  # it starts as zeros, and would hide the answer
    block.second[0] = nn.GroupNorm(channels // per_group, channels)
    x, emb, other = torch.randn(1, channels, 8, 8), torch.randn(1, 32), torch.randn(1, 32)
    with torch.no_grad():
        return (block(x, emb) - block(x, other)).abs().max().item()


# %%
for per_group in (1, 2, 4, 8, 64):
    print(f"{per_group:3} channels to a group: the answer changes by {response(per_group):.6f}")
assert response(1) < 1e-4 and response(8) > 1
assert CHANNELS[0] // md.nets.attention.group_norm(CHANNELS[0]).num_groups >= 8  # what the library builds

# %% [markdown]
# **A label out of range.** A dataset whose labels count from 1, or −1 where a label is missing. A bare `nn.Embedding`
# raises an IndexError without a name in it on a CPU; on a GPU the error surfaces at some later line, and the process must
# be restarted. Hence the check in `ClassEmbedding`. One mistake no check can find: label 10 of ten classes that count
# from 1 is, to the network, "any".

# %%
for wrong in (-1, 11):
    try:
        mine(torch.tensor([wrong]))
    except ValueError as error:
        print("ValueError:", error)

# %% [markdown]
# **A table without the null row.** `nn.Embedding(10, dim)` has rows 0 to 9, and the first dropped label asks for row 10.

# %%
try:
    nn.Embedding(10, 4)(drop_labels(many, 10, 0.1))
except IndexError as error:
    print("IndexError:", error)

# %% [markdown]
# **A null class that is never trained.** The row is there and `drop_labels` was forgotten. Nothing complains, and the
# row is what it was at the start: random numbers. Its gradient shows it, and so does a picture. Below, the row of our
# trained network is set back to its first values. (In the real bug the rest of the network would not have met
# a dropped label either.) **Expected:** a gradient of exactly 0 without dropping. The loss for "any" would not tell: in a run
# as short as ours it changes by less than 15 %, for the row has hardly moved, and what was learned is how to answer to it.

# %%
x, labels = md.data.from_pixels(test.pixels[:100]).to(device), test.labels[:100].to(device)
learner, slopes = copy.deepcopy(added).requires_grad_(True), {}
for probability in (0.0, 0.5):
    torch.manual_seed(SEED)
    learner.zero_grad()
    md.diffusion_loss(learner, x, schedule, "flow", y=drop_labels(labels, 10, probability)).backward()
    slopes[probability] = learner.label.table.weight.grad[10].abs().max().item()
print({f"dropped {p:.0%}": f"gradient of the null row {slope:.1e}" for p, slope in slopes.items()})
assert slopes[0.0] == 0 and slopes[0.5] > 0

forgotten = copy.deepcopy(added)
forgotten.label.table.weight[10] = first_table[10].to(device)
cost = []
for net in (added, forgotten):
    torch.manual_seed(SEED)
    with torch.no_grad():
        cost.append(md.diffusion_loss(net, x, schedule, "flow", y=anything[:1].expand(len(x))).item())
print(f"loss of the question 'any': trained {cost[0]:.4f}, never trained {cost[1]:.4f}")
assert abs(cost[1] / cost[0] - 1) < 0.15
pair = [draw(net, eight, anything[:8], WALK).cpu() for net in (added, forgotten)]
md.plot.show_images(torch.cat(pair), columns=8, row_labels=["trained", "never trained"], title="asked for anything")

# %% [markdown]
# **Labels shuffled apart from their images.** A DataLoader for images, another for labels, each with `shuffle=True`. Then $y$
# and $x_0$ are independent, so $p(x_0 \mid y) = p(x_0)$: the network learns, correctly, that the label means nothing. The
# loss is that of an unconditional network and looks healthy. Exactly, without a network: the denoiser of "sneakers" by
# shuffled labels. **Expected:** of what it draws, one in ten is a sneaker, instead of all.

# %%
torch.manual_seed(SEED)
apart = y[torch.randperm(len(y))]
start, drawn = torch.randn(100, C, 32, 32), []
for name, labels in (("right labels", y), ("shuffled", apart)):
    images = md.sample(md.ddim, md.DatasetDenoiser(x0[labels == SNEAKER]), start, levels, progress=False)
    truly = y[torch.cdist(images.flatten(1), x0.flatten(1)).argmin(1)]  # each is an image of the set: what is it really?
    drawn.append((truly == SNEAKER).float().mean().item())
    print(f"{name:13} {drawn[-1]:.0%} {classes[SNEAKER]}")
assert drawn[0] == 1 and drawn[1] < 0.3

# %% [markdown]
# ## 11. What we left out
#
# | left out | where to read it |
# |---|---|
# | the class also *scales* the features after each GroupNorm | Dhariwal & Nichol 2021, section 3; FiLM, Perez et al. 2018 |
# | the class in a network without convolutions | DiT, Peebles & Xie 2023, section 3.2 (adaLN-Zero) |
# | a class that is a sentence: tokens, and attention to them | chapter 14; Rombach et al. 2022, section 3.3 |
# | a network without labels, steered by a classifier's gradient | classifier guidance, Dhariwal & Nichol 2021, section 4 |
# | distances between sets of drawings, and how far to trust a judge | chapter 21 |
# | several labels at once, and labels that are sometimes missing | drop each by itself |
#
# What you wrote is `ClassEmbedding` and `drop_labels` of `minidiff/nets/embeddings.py`, and the two places where
# `UNet` uses them.
#
# **Next:** the network obeys, but not always and not clearly. How do you make it obey *more*?

# %%
print(f"torch {torch.__version__}, minidiff {md.__version__}, {device}")
