# %% [markdown]
# # 21 · Measuring, honestly
#
# **How do you know that a generative model is any good?**
#
# By looking at its pictures, says everyone, and shows six of them. Others give a number with two digits behind the point.
# Both can be true and tell you nothing. In this chapter we measure the text-to-image model that comes with minidiff in four
# ways: count how often it obeys, compare its pictures with real ones as a set, ask how varied they are, and lie to it. Each
# instrument is tested before it is used, on things whose truth we know; each number comes with what chance does to it.
#
# You need guidance (chapter 09), CLIP (chapter 12) and a text-to-image model (chapters 15 and 16). Nothing is downloaded.

# %% [markdown]
# > **For the lecturer.** 90 minutes: 10 for the pictures, 15 for the oracle's exam, 20 for intervals, 20 for distances and
# > their bias, 15 for the rest, 10 for the bugs. The cells take about five minutes on two CPU cores.
# >
# > Worth asking before the cell is run: *which of these two models is better?* (section 1) · *ten of ten are right: how many of
# > the next hundred?* (section 3) · *two sets of real pictures: what is their distance?* (section 7) · *every picture is handed
# > out for its neighbour's caption: what does the distance say?* (section 8). The first should be put to a vote.

# %%
from math import comb, fsum, nan, sqrt

import matplotlib
import numpy as np
import torch
from torch import nn
from torch.testing import assert_close

import minidiff as md
from minidiff.data.captions import COLOURED, TASKS, UNSEEN, Captioned, obeyed, prompts
from minidiff.data.grammar import HIDING
from minidiff.evaluation import alignment, calibration
from minidiff.evaluation.alignment import Row, Walk, draw, questions
from minidiff.evaluation.distances import distances, features, load_ruler, looking
from minidiff.evaluation.diversity import PROMPTS, diversity, real_images
from minidiff.evaluation.lies import lies
from minidiff.pipelines.own import locate

device = "cuda" if torch.cuda.is_available() else "cpu"

# %% [markdown]
# The knobs. A quick mode for tests replaces a value by the one in its comment; nothing else changes.

# %% tags=["knobs"]
SEED = 0
STEPS = 20  # of a walk  # quick: 3
TRIES = 16  # pictures of a prompt to choose from  # quick: 3
SCENES = 100  # real scenes that the oracle is examined on  # quick: 8
ASKED = 40  # prompts of each task  # quick: 2
SCALES = (0, 1, 2, 4, 7.5)  # of guidance  # quick: (0, 2)
EACH = 8  # pictures of each of six open prompts  # quick: 2
BINDING = 24  # prompts that say what is to have which colour  # quick: 2
REAL = 512  # real scenes in a set  # quick: 72
DRAWN = 128  # scenes that the model draws after their captions  # quick: 8
TRAIN = 3000  # steps of a small network in the plane  # quick: 36
POINTS = 2000  # that it draws  # quick: 200
LIES = 64  # scenes to lie about  # quick: 4
LONG = True  # hold the figures to the numbers in the text  # quick: False

# %%
pipe = md.StableDiffusion.from_pretrained("shapes", device=device)
pipe.progress = False
SIZE = pipe.size
good = Walk(scale=3.0, steps=STEPS, sampler=md.dpmpp_2m, seed=SEED)


def drawings(pipe, texts, walk):
    """A picture for each text, (B, 3, H, W), on the CPU."""
    return torch.cat([images.cpu() for images in draw(pipe, texts, walk, progress=False)])


def verdicts(asked, images):
    """Is what was asked for in its picture? A bool for each."""
    return torch.tensor([obeyed(p, reading) for p, reading in zip(asked, md.data.read_shapes(images), strict=True)])


# %% [markdown]
# ## 1. The naive attempt: look at the best
#
# Two models. The first is ours, walked as it should be. The second is the same network in a hurry: no guidance and five
# steps. For six prompts, one for each task of GenEval (Ghosh et al. 2023), each draws sixteen pictures, and we show the best
# one. That is what a figure in a paper is. Who decides what is best? `read_shapes`, the oracle, finds shapes, colours and
# places by geometry, and `obeyed` compares them with what was asked; section 2 asks whether the oracle can be trusted.

# %%
six = [prompts(task, 1, seed=SEED)[0] for task in TASKS]
asked = [p for p in six for _ in range(TRIES)]
models = {"ours": good, "in a hurry": good._replace(scale=1.0, steps=5)}
tried = {name: drawings(pipe, [p.text for p in asked], walk) for name, walk in models.items()}
right = {name: verdicts(asked, x).view(len(six), TRIES) for name, x in tried.items()}
best = {name: x.unflatten(0, (len(six), TRIES))[torch.arange(len(six)), right[name].int().argmax(1)]
        for name, x in tried.items()}  # fmt: skip
md.plot.show_images(torch.cat(list(best.values())), titles=[p.text for p in six] * 2, columns=6, title="the best of sixteen")

# %% [markdown]
# Which row is the better model? Let people vote before you go on. If a single picture is right with probability $p$, then one
# of sixteen or more is right with probability
#
# $$1 - (1-p)^{16}.$$
#
# At $p = \tfrac14$ that is 99 %. Choosing among sixteen makes all models alike that are right now and then. **Expected:** the
# best pictures are right in at least five of six columns for both; of all pictures, the hasty one has at least 15 points fewer.
# (Measured: six of six for both, and 98 % against 77 %.)

# %%
for p in (0.1, 0.25, 0.5, 0.95):
    print(f"right {p:4.0%} of the time: the best of 16 is right {1 - (1 - p) ** 16:6.1%} of the time")
for name, table in right.items():
    print(f"{name:10} best of {TRIES}: {int(table.any(1).sum())} of {len(six)} right; of all {table.float().mean():.0%}")
assert abs(1 - (1 - 0.25) ** 16 - 0.99) < 0.001
if LONG:
    assert all(table.any(1).sum() >= 5 for table in right.values())
    assert right["ours"].float().mean() > right["in a hurry"].float().mean() + 0.15

# %% [markdown]
# And what did we choose by? What is chosen for obedience will look obedient. Look closely at the last picture of the hasty
# model: below the blue circle hangs the hollow ghost of a second. The judge let it pass, and so it is among the best. (Nor
# did it mind that the foot of the pink cross is orange.)
#
# The remedy is simple and costs nothing: fix prompts and seeds before you draw, and show what comes out. Here is the first
# picture of each, unchosen. In the upper row nothing changes, the first was right each time. In the lower row two columns do:
# two of the first three triangles have grown together, and the first pink cross is so round that the judge knew no cross in
# it. Would you have chosen the ghost instead? And mind that an honest row of six is a small one: the hasty model, right three
# times in four, shows five right ones or more of six in nearly three cases of five. Here it shows four. How little six
# pictures say, section 3 works out.

# %%
first = [x[::TRIES] for x in tried.values()]
md.plot.show_images(torch.cat(first), titles=[p.text for p in six] * 2, columns=6, title="the first, whatever it is")

# %% [markdown]
# ## 2. The oracle is an instrument: calibrate it
#
# A thermometer is put into ice and into boiling water before anyone reads a fever from it. Our oracle gets scenes whose truth
# we know, for we drew them. Two questions make the exam. **Sensitivity** $s$: shown a scene with its own caption, does it say
# yes? **False alarms** $f$: shown a scene with another's caption, which is not true of it, how often does it say yes? A share
# of $p$ right pictures is then read as
#
# $$m = p\,s + (1-p)\,f \qquad\text{so}\qquad p = \frac{m-f}{s-f}$$
#
# (Rogan & Gladen 1978). The model's pictures also come out of an autoencoder, and may be blurred or grainy, so the exam is
# taken on damaged scenes, too. **Expected:** no mistake on clean scenes; more than 95 % seen through the autoencoder; at a
# blur of 1.8 pixels fewer than half; false alarms below 1 % everywhere. Guess before you run it: which is worse for the
# oracle, a JPEG file of quality 75, whose damage hardly anyone sees, or a blur of 1.2 pixels, which everyone sees?


# %%
def known_scenes(n, seed):
    """n real scenes (n, 3, SIZE, SIZE) in which nothing hides anything, what is on them, and their captions as prompts."""
    source = Captioned(2 * n, SIZE, UNSEEN + seed)
    kept = [i for i in range(2 * n) if source.plan(i)[1].relation not in HIDING][:n]
    return torch.stack([source[i].image for i in kept]), *zip(*(source.plan(i) for i in kept), strict=True)


def exam(readings, truth, captions):
    """Sensitivity, and the share of false alarms over all pairs of a scene and a caption that is not true of it."""
    own = [obeyed(p, reading) for p, reading in zip(captions, readings, strict=True)]
    alarms = [obeyed(p, reading) for scene, reading in zip(truth, readings, strict=True) for p in captions
              if not obeyed(p, scene)]  # fmt: skip
    return sum(own) / len(own), sum(alarms) / len(alarms)


# %%
scenes, truth, captions = known_scenes(SCENES, SEED)
with torch.no_grad():
    through = pipe.decode(pipe.encode(scenes.to(device), sample=False)).cpu()
damaged = {"clean": scenes, "through the autoencoder": through}
damaged |= {name: calibration.damages(SIZE)[name](scenes) for name in ("JPEG 75", "blur 1.2", "blur 1.8")}
marks = {}
for name, x in damaged.items():
    marks[name] = exam(md.data.read_shapes(x), truth, captions)
    print(f"{name:24} sensitivity {marks[name][0]:6.1%}, false alarms {marks[name][1]:.2%}")
assert marks["clean"] == (1.0, 0.0) and all(alarms < 0.01 for _, alarms in marks.values())
if LONG:
    assert marks["through the autoencoder"][0] > 0.95
    assert marks["blur 1.8"][0] < 0.5
    assert marks["JPEG 75"][0] < marks["blur 1.2"][0] and max(alarms for _, alarms in marks.values()) < 0.002
md.plot.show_images(torch.cat([x[:2] for x in damaged.values()]), columns=2, row_labels=list(damaged))

# %% [markdown]
# It is the JPEG: 8 of 100 scenes are lost to it, and to the milder blur none. An instrument does not mind what the eye
# minds. Between a blur of 1.2 pixels and one of 1.8 it breaks down, from 100 to 23 %. False alarms are rare throughout, at
# most 3 in 10 000. So a "yes" can be believed, but for things half drawn, such as the ghost above: the exam has none of
# these. And a "no" means one of two things: another thing was drawn, or the right thing badly.
#
# What a model loses to the autoencoder alone is $1-s$ in the second line. It is 0 of 100 here, so nothing need be
# corrected; if $s$ were 95 %, a measured share of 95 % could not be told from perfection. And nobody should use this oracle
# on photographs: it was examined on these scenes, and knows nothing of others. (`calibration.calibrate` is the long
# version, attribute by attribute, with halves and rings that must be refused.)
#
# ## 3. Counting, and what chance does to it
#
# Of $n$ pictures $k$ are right. Draw another $n$ and it will be another $k$. Its standard deviation around $pn$ is
# $\sqrt{n\,p(1-p)}$, and the textbook puts the observed share in place of the unknown $p$:
#
# $$\frac kn \pm 1.96\sqrt{\frac kn\Big(1-\frac kn\Big)\Big/ n}.$$
#
# At 10 of 10 it says $1 \pm 0$: certainty, from ten pictures. Wilson (1927) leaves $p$ where it belongs. The interval is
# made of every $p$ under which the observation would be no surprise:
#
# $$\Big|\frac kn - p\Big| \le z\sqrt{\frac{p(1-p)}{n}} \iff (n+z^2)\,p^2 - (2k+z^2)\,p + \frac{k^2}{n} \le 0,$$
#
# a quadratic, whose two roots are
#
# $$p_\pm = \frac{k + z^2/2}{n+z^2} \pm \frac{z}{n+z^2}\sqrt{\frac{k(n-k)}{n} + \frac{z^2}{4}}.$$
#
# **Expected** at 10 of 10: from 72 to 100 %.


# %%
def naive(k, n, z=1.96):
    """The textbook's interval of a share."""
    reach = z * sqrt(k / n * (1 - k / n) / n)
    return k / n - reach, k / n + reach


def wilson(k, n, z=1.96):
    """The interval of a share of which k of n are right (Wilson 1927)."""
    centre, reach = (k + z * z / 2) / (n + z * z), z / (n + z * z) * sqrt(k * (n - k) / n + z * z / 4)
    return max(0.0, centre - reach), min(1.0, centre + reach)


# %%
for k, n in ((10, 10), (57, 60), (95, 100), (950, 1000)):
    (a, b), (low, high) = naive(k, n), wilson(k, n)
    print(f"{k:3} of {n:4}: naive {a:6.1%} to {b:6.1%}, Wilson {low:6.1%} to {high:6.1%}")
    assert_close(torch.tensor(wilson(k, n)), torch.tensor(alignment.wilson(k, n)))
assert naive(10, 10) == (1.0, 1.0) and abs(wilson(10, 10)[0] - 0.722) < 0.001

# %% [markdown]
# Is "95 %" a promise that is kept? For every true $p$ the answer can be added up without a single random number: the chance of
# each $k$, counted where the interval holds $p$. **Expected** for $n = 20$ and $p = 0.95$: the naive interval holds the truth
# in 64 % of all experiments, Wilson's in 92 %; over all $p$ above one half, Wilson's never in fewer than 92 %, the naive one
# in as few as 18 %.


# %%
def coverage(interval, n, p):
    """The probability that the interval of k of n holds p."""
    chances = (comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1))
    return fsum(chance for k, chance in enumerate(chances) if interval(k, n)[0] <= p <= interval(k, n)[1])


# %%
ps = np.arange(0.5, 0.995, 0.01)
held = {f.__name__: [coverage(f, 20, p) for p in ps] for f in (naive, wilson)}
print({name: f"{coverage(f, 20, 0.95):.0%}" for name, f in (("naive", naive), ("wilson", wilson))})
assert abs(coverage(naive, 20, 0.95) - 0.64) < 0.01 and abs(coverage(wilson, 20, 0.95) - 0.925) < 0.01
assert min(held["wilson"]) > 0.92 and min(held["naive"]) < 0.2
md.plot.show_curves({**{name: (ps, v) for name, v in held.items()}, "promised": (ps, [0.95] * len(ps))},
                    xlabel="true share p", ylabel="intervals that hold p", title="n = 20: is the promise kept?")  # fmt: skip

# %% [markdown]
# The better the model, the worse the textbook. Turned around, the formula says how many pictures a claim needs: a reach of $h$
# takes about $n = z^2 p(1-p)/h^2$. For 95 % give or take one point that is 1825 pictures; for 95 % give or take ten, 19.
#
# ## 4. Six tasks, and pairs that no one has shown
#
# Now the model, on GenEval's six tasks. The two that name colours are asked once more with pairs of colour and shape which no
# training scene holds, such as an orange circle (`HELD_OUT`). Whoever draws these has learned what orange is and what a circle
# is. **Expected:** at least 90 % on average over the six tasks. Which one will come last, and would you bet that it comes last
# again with other prompts?

# %%
asked = questions(ASKED, SEED)
answers = verdicts(asked, drawings(pipe, [p.text for p in asked], good))
rows = []
for task, held_out in dict.fromkeys((p.task, p.held_out) for p in asked):
    mine = [bool(yes) for p, yes in zip(asked, answers, strict=True) if (p.task, p.held_out) == (task, held_out)]
    rows.append(Row(task, held_out, sum(mine), len(mine)))
    low, high = wilson(rows[-1].obeyed, rows[-1].n)
    print(f"{task + ', held out' * held_out:28} {rows[-1].share:6.1%} of {rows[-1].n}, from {low:.0%} to {high:.0%}")
print(f"mean over tasks: {alignment.mean_share(rows):.1%}")
if LONG:
    assert alignment.mean_share(rows) > 0.9
    assert max(row.interval[0] for row in rows) < min(row.interval[1] for row in rows)  # some share lies in all intervals

# %%
with matplotlib.rc_context(md.plot.STYLE):
    figure = md.plot.Picture(figsize=(9, 4.5), dpi=md.plot.DPI, layout="constrained")
    axes = figure.subplots()
    for i, row in enumerate(rows):
        low, high = wilson(row.obeyed, row.n)
        axes.plot([low, high], [-i, -i], color=md.plot.CURVES[row.held_out], linewidth=5, alpha=0.5)
        axes.plot(row.share, -i, "o", color=md.plot.CURVES[row.held_out], markersize=9)
    axes.set_yticks([-i for i in range(len(rows))], [row.task + ", held out" * row.held_out for row in rows])
    axes.set(xlabel="obeyed", xlim=(0, 1.02), title=f"{ASKED} prompts of each, with 95 % intervals")
figure.to(None)  # a cell that ends with a figure shows it

# %% [markdown]
# Counting comes last with 35 of 40, one object and colours come first with 40 of 40, and yet a share of 93 % lies in all eight
# intervals: this table is no ranking. Asked 500 prompts of each task, the model was worst at counting again, with 92 %; but
# attribute binding, which shares the last place but one here, came third with 97 %. What a ranking looks like, an early state
# of these weights showed. It had 29 of 40 at counting (57 to 84 %) and 39 of 40 for one object (87 to 100 %), two intervals
# that do not even touch; its mean, 88 %, hid that. Whether it miscounted or drew one of its things badly, the number did not
# say: both are a "no".
#
# Nor is the mean to be trusted far. The state just before this one, trained for less, had 97.5 % on these very prompts, and 39
# of 40 at counting; this one has 95.0 %. A step back? With 500 prompts of each task it is the other way round: 94.4 % then,
# 96.5 % now. To tell 95 from 97.5 % takes some 440 prompts for each model (the formula comes below), and the six tasks here
# are 240. A test that nearly everyone passes measures nearly nothing any more. Harder prompts would be cheaper.
#
# Are the held-out pairs drawn worse? The temptation is to see whether the two intervals overlap. That test is too timid: two
# independent errors are rarely both at their ends. Variances add, so reaches add as the sides of a right angle do. Newcombe
# (1998, method 10) takes each of Wilson's reaches on the side that matters:
#
# $$d = p_1 - p_2, \qquad d_- = d - \sqrt{(p_1-\ell_1)^2 + (u_2-p_2)^2}, \qquad d_+ = d + \sqrt{(u_1-p_1)^2 + (p_2-\ell_2)^2}.$$


# %%
def gap(row, other):
    """row.share - other.share, and the interval of that (Newcombe 1998, method 10)."""
    difference, (low, high), (other_low, other_high) = row.share - other.share, row.interval, other.interval
    down = sqrt((row.share - low) ** 2 + (other_high - other.share) ** 2)
    up = sqrt((high - row.share) ** 2 + (other.share - other_low) ** 2)
    return difference, difference - down, difference + up


def held_out_gaps(rows):
    """Task -> how much better (or worse, if negative) the held-out pairs are drawn than the others."""
    seen = {row.task: row for row in rows if not row.held_out}
    return {row.task: gap(row, seen[row.task]) for row in rows if row.held_out}


# %% [markdown]
# First on numbers made up for the purpose, 90 of 100 against 78 of 100. **Expected:** the two intervals overlap, and yet
# that of the difference lies above 0. Then on the model. **Expected:** with 40 prompts each, an interval at least 15 points
# wide: a loss of five points can be neither shown nor excluded.

# %%
a, b = Row("made up", False, 90, 100), Row("made up", False, 78, 100)
print("12 points, and their interval:", [f"{value:+.1%}" for value in gap(a, b)])
assert a.interval[0] < b.interval[1] and gap(a, b)[1] > 0
gaps = held_out_gaps(rows)
assert_close(torch.tensor(list(gaps.values())), torch.tensor(list(alignment.held_out_gaps(rows).values())))
for task, (difference, low, high) in gaps.items():
    print(f"{task:18} held out against seen: {difference:+.1%}, from {low:+.1%} to {high:+.1%}")
    assert high - low > 0.15
n = 1.96**2 * 2 * 0.95 * 0.05 / 0.05**2
print(f"a difference of five points, at shares of about 95 %, shows from about {n:.0f} prompts of each kind on")
assert set(gaps) == set(COLOURED) and 140 < n < 150

# %% [markdown]
# The measured differences are 0.0 and +5.0 points: what no training scene shows is drawn as well, or better. It would be easy
# to write "generalizes without any loss". The intervals say what was really found: no loss greater than 9 points for colours
# and 7 for binding, no gain greater than 9 and 18. Even the 146 prompts of the last line only make the interval's reach five
# points, so that a true difference of five is found in every second experiment; to find it in four of five takes twice as
# many. At shares of 85 % it begins at 392.
#
# "No significant difference" is therefore no result; the interval is. And mind how many you look at: among eight intervals of
# 95 %, one in three times at least one misses ($1 - 0.95^8 = 34$ %).
#
# ## 5. Is obedience paid for with variety?
#
# Guidance (chapter 09) makes a model obey, and is said to cost variety. Single pictures cannot show that, for each is fine.
# Draw eight pictures of "a star", which leaves open colour, size, background and place, and count. `diversity` gives the
# entropy of each open fact as the oracle reads it, 0 if it is always the same and 1 if all values come equally often, and
# beside it the mean $1-\cos$ between two pictures of one prompt, in the features of a CLIP. Neither has a scale of its own:
# real scenes, as many, are measured alike.
#
# For obedience, prompts such as "a red circle and a blue star" are asked at the same scales. **Expected:** without the words,
# scale 0, fewer than 10 % are obeyed by accident; from scale 1 on, more than half; at 7.5 the facts are less varied than at
# 1, but by less than 0.1. Guess before you run it: how much variety is lost between 1 and 4, where guidance is used in
# practice?

# %%
ruler = load_ruler(locate("shapes") / "clip", SIZE, device)
look = looking(ruler)
opened = [p for p in PROMPTS for _ in range(EACH)]
bound = prompts("attribute binding", BINDING, SEED + 1)
variety, obedience, strips = {}, {}, []
for scale in SCALES:
    x = drawings(pipe, opened + [p.text for p in bound], good._replace(scale=scale))
    variety[scale] = diversity([x[: len(opened)]], EACH, look)
    obedience[scale] = verdicts(bound, x[len(opened) :]).float().mean().item()
    strips.append(x[3 * EACH : 4 * EACH])
md.plot.show_images(torch.cat(strips), columns=EACH, row_labels=[f"scale {s:g}" for s in SCALES], title=PROMPTS[3])

# %%
real = diversity(real_images(EACH, SIZE, UNSEEN + SEED), EACH, look)
facts = [nan if variety[s].facts is None else variety[s].facts for s in SCALES]
for s, v in zip(SCALES, facts, strict=True):
    low, high = wilson(round(obedience[s] * BINDING), BINDING)
    print(f"scale {s:3g}: obeyed {obedience[s]:4.0%} ({low:.0%} to {high:.0%}), facts {v:.2f}, CLIP {variety[s].distance:.2f}, "
          f"read {variety[s].read} of {variety[s].n}")  # fmt: skip
print(f"real scenes: facts {real.facts:.2f}, CLIP {real.distance:.2f}")
if LONG:
    assert obedience[0] < 0.1 and min(obedience[s] for s in SCALES[1:]) > 0.5
    assert facts[1] - 0.1 < facts[-1] < facts[1] and variety[0].distance > real.distance + 0.2
curves = {"obeyed": obedience.values(), "entropy of open facts": facts, "the same of real scenes": [real.facts] * len(SCALES)}
md.plot.show_curves({name: (SCALES, list(v)) for name, v in curves.items()}, xlabel="guidance scale", ylabel="share; entropy",
                    title="what guidance buys, and pays")  # fmt: skip

# %% [markdown]
# None that we can see. From 1 to 4 the facts go from 0.87 to 0.89, what real scenes have; only at 7.5 are they at 0.82.
# From 1 on, the CLIP's distance stays between 0.40 and 0.43, about that of real scenes, 0.42. Forty-eight pictures cannot
# vouch for a single step: the state of these weights before this one fell from 0.86 to 0.83 between 1 and 4, an earlier one
# rose there from 0.83 to 0.87. But all three have less at 7.5 than at 1: 0.82, 0.81 and 0.75. In the row of stars you cannot
# see the loss: at 1 they have six colours, and at 7.5 they have six again. (One row of eight; it illustrates, and proves
# nothing.) Does 7.5 at least buy obedience? 96 %, after 100 % at 2 and 96 % at 4. But mind the intervals: of 24 prompts, 21,
# 24, 23 and 23 were obeyed, and all four shares could be the same. Firm is the step from 0 to 1, from telling nothing to
# telling the prompt.
#
# The left end of the dashed curve is a trap. At scale 0 the model is told nothing and draws any shape, so its pictures are the
# most varied, and the CLIP's distance, 0.81, says so. The entropy says 0.72, the lowest of all. It is taken only of pictures
# with one readable object, 24 of 48 here, and some four draws per prompt cannot spread over nine places, whatever they
# are drawn from. *Read 24 of 48* belongs to the figure. And the CLIP's distance has a trap of its own: look at the upper row,
# which was to be stars. Whatever else is drawn, or nothing at all, counts there as variety.
#
# One number hides such things, whichever number it is. Report the curve. And choose the scale by other prompts than those
# it is then reported on, or you will have chosen by luck (section 11).
#
# ## 6. Two clouds, one number
#
# Nobody can check photographs by geometry. What is left is to compare *sets*: are our pictures, as a cloud of points, like
# the cloud of the real ones? Points are features, what some network sees in a picture; ours is the picture half of the CLIP
# that comes with minidiff. The **Fréchet distance** fits a Gaussian to each cloud and asks how much work it is to move the
# one into the other. In one dimension,
#
# $$d^2 = (\mu_a - \mu_b)^2 + (s_a - s_b)^2,$$
#
# and in many, with covariances $C$ in place of the variances $s^2$ (chapter 05 derives it; Heusel et al. 2017, eq. 6),
#
# $$d^2 = |\mu_a - \mu_b|^2 + \operatorname{tr}\big(C_a + C_b - 2\,(C_a C_b)^{1/2}\big).$$
#
# The **kernel distance** fits nothing. It compares the mean similarity within each cloud with that across
# (Bińkowski et al. 2018, eq. 4), with the similarity $k(x, y) = (x\cdot y/D + 1)^3$:
#
# $$d^2 = \underset{i\ne j}{\operatorname{mean}}\;k(a_i, a_j) + \underset{i\ne j}{\operatorname{mean}}\;k(b_i, b_j)
# - 2\,\underset{i,j}{\operatorname{mean}}\;k(a_i, b_j).$$


# %%
def frechet_distance(features_a, features_b):
    """FD of features (N, D) and (M, D): that of the Gaussians fitted to them."""
    a, b = features_a.double(), features_b.double()
    cov_a, cov_b = (torch.cov(x.T).reshape(x.shape[1], -1) for x in (a, b))
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T  # C_a^(1/2): root C_b root has the eigenvalues of C_a C_b
    overlap = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return max(((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * overlap).item(), 0.0)


def kernel_distance(features_a, features_b):
    """KD of features (N, D) and (M, D); no row is compared with itself."""
    a, b = features_a.double(), features_b.double()
    aa, bb, ab = ((x @ y.T / a.shape[1] + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    within = [(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in (aa, bb)]
    return (within[0] + within[1] - 2 * ab.mean()).item()


# %% [markdown]
# By hand, on a line: $\mathcal N(0, 1)$ against $\mathcal N(3, 2^2)$. **Expected:** $3^2 + (2-1)^2 = 10$.

# %%
rng = torch.Generator().manual_seed(SEED)
a, b = torch.randn(50_000, 1, generator=rng), 3 + 2 * torch.randn(50_000, 1, generator=rng)
print(f"Fréchet distance {frechet_distance(a, b):.2f}")
assert abs(frechet_distance(a, b) - 10) < 0.2
for f in (frechet_distance, kernel_distance):
    assert_close(f(a[:900], b[:500]), getattr(md.evaluation, f.__name__)(a[:900], b[:500]))

# %% [markdown]
# A word on names. With the features of one certain network, Inception v3, these are the FID and the KID of papers. Ours are in
# features trained here; they compare what was measured with the same features, and nothing else. So we never call them that.
#
# ## 7. The number of pictures is part of the number
#
# Take two sets from *the same* source. The distance ought to be 0. It is not: means and covariances of $n$ samples are off by
# chance, and a square of something random does not average out. For samples of $\mathcal N(0, I)$ in $D$ dimensions it can
# be worked out. Two means differ by $\mathbb E|\mu_a-\mu_b|^2 = 2D/n$. For two covariances $I + E_a$ and $I + E_b$ the
# trace term is $\tfrac14|E_a - E_b|^2$ to second order, and each $|E|^2$ is $D(D+1)/n$ on average. Together
#
# $$\mathbb E\,\mathrm{FD} \approx \frac1n\Big(2D + \frac{D(D+1)}{2}\Big).$$
#
# The kernel distance leaves out the pairs $i = j$ for just this reason. What remains are means over pairs of different,
# independent samples, a *U-statistic*, and the mean of such means is the true value: here 0. Keep the diagonal, and it
# would be too large by $\big(\mathbb E\,k(x,x) - \mathbb E\,k(x,x')\big)(1/n + 1/m)$. **Expected** for $D = 8$: the formula
# holds within 10 % from 200 samples on (at 25 the orders left out add about a tenth), and the kernel distance is 0 within
# three standard errors at each $n$.

# %%
D, sizes, repeats = 8, (25, 50, 100, 200, 400), 60
table = {n: [(torch.randn(n, D, generator=rng), torch.randn(n, D, generator=rng)) for _ in range(repeats)] for n in sizes}
fd = {n: np.mean([frechet_distance(*pair) for pair in pairs]) for n, pairs in table.items()}
kd = {n: [kernel_distance(*pair) for pair in pairs] for n, pairs in table.items()}
theory = {n: (2 * D + D * (D + 1) / 2) / n for n in sizes}
for n in sizes:
    error = np.std(kd[n]) / repeats**0.5
    print(f"n = {n:3}: FD {fd[n]:.3f}, in theory {theory[n]:.3f}; KD {np.mean(kd[n]):+.4f}, standard error {error:.4f}")
    assert n < 200 or abs(fd[n] / theory[n] - 1) < 0.1
    assert abs(np.mean(kd[n])) < 3 * error
md.plot.show_orders({"FD": (sizes, list(fd.values())), r"$(2D + D(D+1)/2)\,/\,n$": (sizes, list(theory.values()))},
                    xlabel="samples in each set", ylabel="distance", title="two sets from one source")  # fmt: skip

# %% [markdown]
# In 128 dimensions the formula gives 17 for $n = 500$, if all features are independent and of variance 1. Those of our CLIP are
# not. Here are real scenes against other real scenes; small $n$ is averaged over disjoint parts. **Expected:** the Fréchet
# distance of nothing goes with $1/n$ all the same, and so falls to an eighth, at most a fifth, from 64 to 512; the kernel
# distance stays within 0.03 of 0.


# %%
def real_set(n, seed, **options):
    """n scenes as pictures, and their captions as prompts."""
    source = Captioned(n, SIZE, UNSEEN + seed, **options)
    return source.tensors()[0] / 127.5 - 1, [source.plan(i)[1] for i in range(n)]


def seen(x):
    """Features (N, D) of pictures."""
    return features(x.split(64), look)


# %%
A, said = real_set(REAL, SEED + 1)
R, _ = real_set(REAL, SEED + 2)
of_A, of_R = seen(A), seen(R)
curve = distances(of_A, of_R)
for row in curve:
    print(f"n = {row.n:3}, {row.parts} parts: FD {row.fd:.2f}, KD {row.kd:+.4f} (they spread by {row.kd_std:.4f})")
if LONG:
    assert 0.05 < curve[-1].fd / curve[0].fd < 0.2  # 1/8 if it goes with 1/n
    assert max(abs(row.kd) for row in curve) < 0.03 and abs(curve[-1].kd) < 0.02
ns = [row.n for row in curve]
md.plot.show_curves({"FD": (ns, [row.fd for row in curve]), "100 KD": (ns, [100 * row.kd for row in curve])},
                    xlabel="scenes in each set", ylabel="distance", title="real scenes against real scenes")  # fmt: skip

# %% [markdown]
# From 14.5 to 1.7: the same two sources, and nothing changed but the number of pictures. $n$ times the distance is between 850
# and 940 all along, so it is $1/n$ here, too, with a smaller factor than independent features would have. The kernel distance
# has no such slope. What it has is scatter: single sets of 128 scatter by 0.033. (The last line has one part only, which
# cannot scatter; its 0.0000 is no claim.)
#
# Two rules follow. Compare at equal $n$ only. And put the floor beside every figure: what real pictures, as many, score.
#
# ## 8. What the distance sees, and what it does not
#
# The Fréchet distance knows means and covariances. The kernel distance with a cube in it knows moments up to the third. Neither
# knows more. Eight points on a circle and a round Gaussian share all three, by symmetry. **Expected:** both distances below
# 0.1, of two clouds that no one would confuse.


# %%
def ring(n, generator):
    """n points of eight small heaps on a circle; their mean is 0 and their covariance the identity."""
    angle = torch.randint(8, (n,), generator=generator) * (torch.pi / 4)
    centres = 1.4 * torch.stack([angle.cos(), angle.sin()], 1)  # 1.4^2 / 2 + 0.02 = 1
    return centres + 0.02**0.5 * torch.randn(n, 2, generator=generator)


# %%
heaps, cloud = ring(5000, rng), torch.randn(5000, 2, generator=rng)
blind = frechet_distance(heaps, cloud), kernel_distance(heaps, cloud)
print(f"eight heaps against one cloud: FD {blind[0]:.3f}, KD {blind[1]:+.3f}")
assert max(map(abs, blind)) < 0.1
with matplotlib.rc_context(md.plot.STYLE):
    figure = md.plot.Picture(figsize=(8, 4), dpi=md.plot.DPI, layout="constrained")
    for axes, x, name in zip(figure.subplots(1, 2), (heaps, cloud), ("eight heaps", "one cloud"), strict=True):
        axes.scatter(*x[:1500].T, s=4, color=md.plot.CURVES[0])
        axes.set(title=name, xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
figure.to(None)

# %% [markdown]
# So everything hangs on the features: what they do not turn into a mean or a variance, the distance does not see. What do
# those of our CLIP turn into one? Real scenes, damaged in ways that we know, against other real scenes; beside them the
# share that the oracle finds obeyed. **Expected:** *mirrored* costs nothing, since mirrored scenes are scenes, too; and *each
# with its neighbour's caption* costs exactly nothing, while hardly anything is obeyed. Noise, which the oracle forgives, is
# more than five times as far off as the floor. So is a set with only sixteen scenes in it, each of which is real and obeyed.
# And blur, which everyone sees? Guess: nearer than the noise or farther, and by what factor?

# %%
few = torch.arange(REAL) % 16
sets = {
    "other real scenes": (A, said),
    "blur 1.2": (calibration.blur(A, 1.2), said),
    "noise 0.2": (calibration.noise(A, 0.2), said),
    "red for blue": (A.flip(1), said),
    "mirrored": (A.flip(-1), said),
    "sixteen scenes": (A[few], [said[k] for k in few]),
    "one object only": real_set(REAL, SEED + 3, tasks=("one object",)),
    "the neighbour's": (A, said[1:] + said[:1]),
}
figures, checked = {}, min(SCENES // 2, REAL)
for name, (x, ps) in sets.items():
    f = seen(x)
    fair = [i for i in range(REAL) if ps[i].relation not in HIDING][:checked]
    share = verdicts([ps[i] for i in fair], x[fair]).float().mean().item()
    figures[name] = frechet_distance(f, of_R), kernel_distance(f, of_R), share
    print(f"{name:18} FD {figures[name][0]:7.2f}, KD {figures[name][1]:+.4f}, obeyed {share:4.0%}")
fd = {name: values[0] for name, values in figures.items()}
assert figures["the neighbour's"][:2] == figures["other real scenes"][:2]
assert figures["the neighbour's"][2] < 0.2 < 0.9 < figures["sixteen scenes"][2]
if LONG:
    assert fd["mirrored"] < 1.3 * fd["other real scenes"]
    assert 2 * fd["other real scenes"] < fd["blur 1.2"] < fd["noise 0.2"] / 5
    assert min(fd[k] for k in ("noise 0.2", "red for blue", "sixteen scenes", "one object only")) > 5 * fd["other real scenes"]
with matplotlib.rc_context(md.plot.STYLE):
    figure = md.plot.Picture(figsize=(9, 4.2), dpi=md.plot.DPI, layout="constrained")
    axes = figure.subplots()
    axes.barh(list(fd)[::-1], list(fd.values())[::-1], color=md.plot.CURVES[0])
    axes.axvline(fd["other real scenes"], color="black", linestyle="--", linewidth=1)
    axes.set(xlabel=f"FD, n = {REAL}, in features of our CLIP", title="what it sees; dashed: the floor")
figure.to(None)

# %% [markdown]
# Blur is seen, at 6.0 over a floor of 1.7, but it is the mildest of all that is seen: red for blue is at 15, and the noise, in
# which the oracle still reads every scene, at 127. Above the floor that is some thirty times the blur. This ruler has a sense
# of proportion, and it is not ours. Nor does it belong to "CLIP features" as such. An earlier CLIP of the same build, trained
# for 330 steps in place of 1000, put the blur 0.04 above a floor of 1.5, which itself moves by more than that from one
# set of real scenes to the next (section 11): it was blind to it. Noise was at eleven times its floor. Captions mention
# neither sharpness nor grain, so a network trained on them may keep these or not, and we know of no way to tell beforehand.
# That is the lesson: you do not know what a distance sees until you have tried, and have to try again with every new ruler.
#
# The lowest bar and the top one are equal to the last digit, and stand for 0 and 100 % obedience. Distances of sets cannot know
# which picture belongs to which sentence. (*Mirrored* loses 18 % of obedience: there left became right.)
#
# Now the model. It draws the captions of the first scenes of A, so that it has to show what A shows. Beside it stands the
# floor, A itself, and A through the autoencoder: what part of the distance is not the diffusion's at all. **Expected:** with
# 128 pictures, all three are alike: autoencoder and floor within 0.01 in KD, the model within 0.06 of it, which is two of the
# spreads of section 7.

# %%
n = min(DRAWN, REAL)
M = drawings(pipe, [p.text for p in said[:n]], good)
with torch.no_grad():
    rebuilt = torch.cat([pipe.decode(pipe.encode(x.to(device), sample=False)).cpu() for x in A[:n].split(32)])
against = {"real scenes, the floor": A[:n], "through the autoencoder": rebuilt, "the model's": M}
far = {name: (frechet_distance(seen(x), of_R[:n]), kernel_distance(seen(x), of_R[:n])) for name, x in against.items()}
for name, (fd_, kd_) in far.items():
    print(f"{name:24} FD {fd_:.2f}, KD {kd_:+.4f}   ({n} pictures)")
if LONG:
    floor, rebuilds, models_own = (kd_ for _, kd_ in far.values())
    assert abs(rebuilds - floor) < 0.01 and abs(models_own - floor) < 0.06
    assert far["the model's"][0] < 1.3 * far["real scenes, the floor"][0]
md.plot.show_images(torch.cat([x[:6] for x in against.values()]), columns=6, row_labels=list(against))

# %% [markdown]
# By FD the model comes out *nearer* to real scenes than real scenes do, 6.27 against 6.42; by KD it is the farthest, by 0.003,
# a tenth of the spread of such sets. The autoencoder, too, is nearer by both than the scenes that went through it. All this is
# chance. From these lines nobody may conclude that the model draws better than the generator of scenes, or worse. And then
# look closely at the pictures: the blue squares are not quite square, one of the four crosses leans, and the hearts have lost
# some of their notch. Whoever looks long enough can tell the lower row from the upper, and the distance cannot. It is not
# that the model is perfect. It is that this ruler, with so few pictures, is blunt; and a blunt ruler flatters.
#
# ## 9. Measured along a training: averaged weights or raw?
#
# Everyone samples from the moving average of the weights (chapter 05). Is it better, and by how much? Train a small network
# on the eight heaps, with a learning rate that stays high, and measure both, on the way, from the same noise. We have just
# seen that in the plane itself the distances are blind here. So the points first go through fixed waves, $\varphi(x) =
# \big(\cos(w_i\cdot x), \sin(w_i\cdot x)\big)_i$ with random $w_i$, and moments of waves see everything. **Expected:** now
# heaps and cloud are far apart; and the average is nearer to the data than the raw network at most of the stops, by a
# quarter or more on average, and steadier.

# %%
directions = 2.5 * torch.randn(2, 32, generator=torch.Generator().manual_seed(SEED))


def waves(x):
    """Points (N, 2) -> (N, 64)."""
    return torch.cat([(x @ directions).cos(), (x @ directions).sin()], 1)


class Small(nn.Module):
    """net(xt, t): points (B, 2) and timesteps (B,) -> (B, 2)."""

    def __init__(self, width=96):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2 + 16, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                                  nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))  # fmt: skip

    def forward(self, xt, t):
        return self.body(torch.cat([xt, md.nets.sinusoidal(t / 100, 16)], 1))


# %%
schedule, walked = md.Schedule.flow(), {}
held_back, noise = ring(POINTS, torch.Generator().manual_seed(1)), torch.randn(POINTS, 2, generator=rng)


def measure(trainer):
    """Note the kernel distance to fresh data of what the raw and what the averaged network draws."""
    for name, net in (("raw", trainer.net), ("averaged", trainer.ema.net)):
        with torch.no_grad():
            x = md.sample(md.ddim, md.denoiser(net, "flow"), noise, schedule.levels(25, "trailing"), progress=False)
        walked.setdefault(name, {})[trainer.step] = kernel_distance(waves(x), waves(held_back))


torch.manual_seed(SEED)
config = md.TrainConfig(steps=TRAIN, optimizer="adamw", lr=1e-2, decay="constant", seed=SEED, every=TRAIN // 12)
trainer = md.Trainer(Small(), lambda net, x, y: md.diffusion_loss(net, x, schedule, "flow"), config)
feed = torch.Generator().manual_seed(2)
trainer.fit(((ring(64, feed), None) for _ in range(TRAIN)), progress=False, after=measure)
measure(trainer)

# %%
floor = kernel_distance(waves(ring(POINTS, rng)), waves(held_back))
told_apart = kernel_distance(waves(cloud[:POINTS]), waves(held_back))
wins = [walked["averaged"][s] < walked["raw"][s] for s in walked["raw"]]
late = {name: [v for s, v in values.items() if s > TRAIN / 3] for name, values in walked.items()}
print(f"floor {floor:+.4f}; one cloud in place of eight heaps {told_apart:.3f}")
print({name: f"mean {np.mean(v):.4f}, spread {np.std(v):.4f}" for name, v in late.items()})
print(f"the average is nearer at {sum(wins)} of {len(wins)} stops")
assert told_apart > 0.05
if LONG:
    assert sum(wins[4:]) >= 6 and np.mean(late["averaged"]) < 0.75 * np.mean(late["raw"])
    assert np.std(late["averaged"]) < np.std(late["raw"])
md.plot.show_curves({name: (list(values), [max(v, 1e-5) for v in values.values()]) for name, values in walked.items()},
                    xlabel="step", ylabel="KD in waves", title="raw and averaged weights", yscale="log")  # fmt: skip

# %% [markdown]
# Look how the raw curve jumps, between 0.02 and 0.06. At one stop of twelve, step 2250, it is a hair better than the average.
# A paper that reports the best checkpoint of the raw network reports this one. The average falls almost steadily and has hardly
# anything to choose from: after the first third it is at 0.022 on average, the raw network at 0.039. (Its spread of 0.004 is
# mostly this fall.) Neither has arrived: the floor is 0.0006.
#
# ## 10. Lies: a measure without a drawing
#
# Everything so far needed pictures, thousands of network calls for each figure. There is a cheaper question, and it goes to
# the heart: has the model *bound* its words? Noise a real scene, let the network guess it, told its true caption or a lie:
#
# $$\text{rise} = \frac{|\hat x_0(x_t, \text{lie}) - x_0|^2}{|\hat x_0(x_t, \text{truth}) - x_0|^2} - 1.$$
#
# One lie exchanges the two colours, one the two places, and for comparison nothing at all is said. The lies are made of the
# same words, or nearly. Whoever knows the words but not which belongs to which loses nothing by them. Whoever believes the
# sentence is misled, and that can cost more than silence. **Expected:** where it hurts most, a lie about colours costs more
# than 100 %, and clearly more than silence; at $\sigma = 0.6$ more than three times as much. Only at the most noise silence is
# the worst.

# %%
told = lies(pipe, LIES, SEED)
for lie in told:
    print(f"sigma {lie.sigma:.2f}: silence {lie.nothing:+.0%}, colours exchanged {lie.colours:+.0%}, places {lie.places:+.0%}")
if LONG:
    worst = max(told, key=lambda lie: lie.colours)
    assert worst.colours > 1 and worst.colours > worst.nothing + 0.3
    assert told[3].colours > 3 * told[3].nothing and told[0].nothing > max(told[0].colours, told[0].places) + 0.1
md.plot.show_curves({name: ([lie.sigma for lie in told], [getattr(lie, name) for lie in told]) for name in told[0]._fields[1:]},
                    xlabel="noise, sigma", ylabel="rise of the error", title="what a lie costs")  # fmt: skip

# %% [markdown]
# The model believes what it is told. At $\sigma = 0.8$ the wrong colours raise its error by 177 %, the wrong places by 192 %,
# silence by 104 %. At 0.6 colours cost 158 %, silence only 31 %, and now places (118 %) matter less than colours: by then the
# picture itself begins to show where things are. At 0.95, almost pure noise, a lie is better than nothing. It still names
# the right shapes and colours, and what goes where comes later. (That is how we read the curves; they do not prove it.)
#
# The same scenes and the same noises serve truth and lie, so most of the chance cancels, and 64 scenes give curves that can
# be read. It is no proof of good pictures, though: it asks one step at a time.
#
# ## 11. Find the bug: five honest-looking mistakes
#
# Each of these prints a number that looks right. One of them no distance between sets can show.
#
# **Too few samples.** Model A is right 90 % of the time, B 80 %. Each draws 20 pictures. **Expected:** in one comparison of
# four, B comes out at least as good; with 200 pictures in one of 360.


# %%
def upset(n, p, q):
    """The probability that the worse model, right with probability q < p, has at least as many of n right."""
    better, worse = ([comb(n, k) * r**k * (1 - r) ** (n - k) for k in range(n + 1)] for r in (p, q))
    return fsum(better[i] * worse[j] for i in range(n + 1) for j in range(i, n + 1))


# %%
print({n: f"{upset(n, 0.9, 0.8):.1%}" for n in (10, 20, 50, 100, 200)})
assert abs(upset(20, 0.9, 0.8) - 0.25) < 0.005 and abs(upset(200, 0.9, 0.8) - 1 / 360) < 1e-4

# %% [markdown]
# **The best of ten seeds.** One model, right 90 % of the time, measured ten times on 60 prompts, and the best run is
# reported ("seed 42"). The chance that all ten stay at $k$ or below is the tenth power of the chance for one. **Expected:**
# 95.5 % on average, five and a half points for nothing. The same happens, unnoticed, when a checkpoint, a scale or a sampler
# is chosen by the very prompts that it is then reported on. (One of the tutorials we learned from states seed 42 and sets
# 32. Whatever it reports, nobody can repeat.)

# %%
chances = np.array([comb(60, k) * 0.9**k * 0.1 ** (60 - k) for k in range(61)])
up_to = chances.cumsum() ** 10
lucky = float((np.diff(up_to, prepend=0) * np.arange(61) / 60).sum())
print(f"the best of ten: {lucky:.1%} on average")
assert abs(lucky - 0.955) < 0.001

# %% [markdown]
# **Different numbers of pictures.** Blurred pictures, all that we have, against sharp ones, of which there are fewer. Each
# distance is computed correctly. **Expected:** the blurred ones win by a factor of more than five, which is nothing but
# $512/64$; with 64 of each it is a tie within 10 %, for so mild a blur is lost in so high a floor. (With 512 of each the sharp
# ones win, as they should: 1.73 in section 7, against 2.05 here.)

# %%
soft, few = seen(calibration.blur(A, 0.6)), min(64, REAL // 2)
unequal = {"blurred": frechet_distance(soft, of_R), "sharp": frechet_distance(of_A[:few], of_R[:few])}
equal = {"blurred": frechet_distance(soft[:few], of_R[:few]), "sharp": unequal["sharp"]}
print(f"{REAL} blurred and {few} sharp:", {name: round(v, 2) for name, v in unequal.items()})
print(f"{few} of each:", {name: round(v, 2) for name, v in equal.items()})
if LONG:
    assert unequal["blurred"] < 0.2 * unequal["sharp"] and abs(equal["blurred"] / equal["sharp"] - 1) < 0.1
    assert unequal["blurred"] > curve[-1].fd

# %% [markdown]
# **Another preprocessing.** The real pictures went through a resize, there and back, because they lay on the disk in another
# size. Edges get a little softer, no more. (It happens to FIDs in papers; Parmar et al. 2022 found differences larger than
# those between models.) **Expected:** the floor rises by more than a quarter, and real scenes come out farther from
# resized real scenes than the model's pictures did in section 8 from real ones that nobody had touched.

# %%
resized = seen(calibration.half_size(R[:n]))
moved = frechet_distance(of_A[:n], resized)
print(f"real against real: FD {far['real scenes, the floor'][0]:.2f}; against real, resized: {moved:.2f}")
if LONG:
    assert moved > 1.25 * far["real scenes, the floor"][0] and moved > far["the model's"][0]

# %% [markdown]
# 10.05 against 6.42, where the whole diffusion model had made it 6.27: whoever resizes carelessly measures the resize. With the
# earlier CLIP of section 8, which was blind to blur, it was 5.57 against 5.46, and the mistake would never have been noticed.
# That was no acquittal: it depends on the features whether a mistake shows. Another one is in section 8 already: *red for
# blue* is what happens when a library hands out the channels as blue, green, red. It turned 1.7 into 15.5.
#
# **The test set in the training set.** A "model" that hands out its training pictures has learned nothing. If the reference
# is that very set, it is perfect, and beats new real pictures. Measured against pictures that it never saw, it scores the
# floor: no distance between sets tells a copy from a draw, and only a search for the nearest training picture does (chapter
# 05). **Expected:** 0 against what it copies, and against fresh scenes within a third of what other fresh scenes score. (It was
# 2.07 against 1.73, two floors of 512 scenes each. So much do floors differ by chance.)

# %%
S, _ = real_set(REAL, SEED + 4)
copies = {"the set it copies": frechet_distance(of_R, of_R), "fresh scenes": frechet_distance(of_R, seen(S))}
print("copies of R against:", {name: round(v, 3) for name, v in copies.items()}, f"real scenes against R: {curve[-1].fd:.3f}")
assert copies["the set it copies"] < 1e-3 < curve[-1].fd
if LONG:
    assert abs(copies["fresh scenes"] / curve[-1].fd - 1) < 1 / 3

# %% [markdown]
# ## 12. What we left out
#
# What a figure should carry: how many pictures, of which prompts and seeds, fixed beforehand; the interval; the floor; which
# features; how real pictures were prepared; and what was chosen by it.
#
# | left out | where to read it |
# |---|---|
# | precision and recall: are samples good, or varied? | Kynkäänniemi et al. 2019, eqs. 1 and 2 |
# | a distance without bias by extrapolation to $1/n \to 0$ | Chong & Forsyth 2020, section 3 |
# | the kernel distance with a Gaussian kernel on CLIP, which sees all moments | CMMD, Jayasumana et al. 2024 |
# | features of other networks change the ranking of models | Stein et al. 2023 |
# | people as judges, and how to ask them | Otani et al. 2023 |
# | likelihood, as a bound or by the flow's equation | Kingma et al. 2021; Song et al. 2021, eq. 39 |
# | paired tests: the same prompts for two models | McNemar 1947 |
# | halves, rings and blobs that the oracle must refuse | `calibration.calibrate` |
# | the edit of a picture: did only that change which should? | `evaluation/editing.py`; chapter 18 |
#
# What you wrote is in `minidiff/evaluation/alignment.py` and `metrics.py`; `python -m minidiff eval shapes` measures all of
# this with more pictures. [Exercises](exercises/21_measuring_honestly.ipynb): the core of it, from memory.

# %%
print(f"torch {torch.__version__}, minidiff {md.__version__}, {device}")
