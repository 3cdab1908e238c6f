# %% [markdown]
# # 14 · Cross-attention, and the fourteen blocks of Stable Diffusion's U-Net
#
# **How does a sentence get into a picture?**
#
# In chapter 08 a class became a vector, and the vector was added to the features, the same at every pixel. A sentence is
# more than a class. "A red circle left of a blue square" speaks of two things, and each pixel has to know which of the two
# it belongs to. So a pixel must be able to *ask* the sentence, and different pixels must get different answers. The
# mechanism is cross-attention. We build it from one line of matrix products, train a small text-to-image model with it,
# look at which pixel listened to which word, and then open Stable Diffusion's U-Net and name each of its blocks.
#
# You need the U-Net (chapter 04), labels and their dropping (08), and guidance (09). Nothing is downloaded.

# %% [markdown]
# > **For the lecturer.** 90 minutes: 10 for the bag of words, 25 for attention by hand, 15 for the blocks, 25 for the
# > small model and its maps, 15 for Stable Diffusion. On two CPU cores the two trainings take about eight minutes: start
# > them before the lecture.
# >
# > Worth asking before the cell is run: *what can a network do with two sentences whose vectors are equal?* (section 1) ·
# > *what happens to a softmax whose inputs grow?* (section 2) · *is attention itself a bag of words?* (section 3) · *which
# > word does the background look at?* (section 8). The third has the best wrong answers.

# %%
import itertools
import time

import matplotlib
import numpy as np
import torch
from torch import nn
from torch.nn.functional import gelu, interpolate, scaled_dot_product_attention
from torch.testing import assert_close

import minidiff as md
from minidiff.data.shapes import Attributes, caption, draw as paint, position
from minidiff.nets.attention import group_norm, zero

device = "cuda" if torch.cuda.is_available() else "cpu"

# %% [markdown]
# The knobs. A quick mode for tests replaces a value by the one in its comment; nothing else changes.

# %% tags=["knobs"]
SEED = 0
SCENES = 6000  # captioned pictures to train on  # quick: 200
CHANNELS = (32, 64, 96)  # width of the U-Net's stages  # quick: (8, 16, 32)
WIDTH = 48  # numbers per word  # quick: 16
STEPS = 600  # optimizer steps for each of two networks  # quick: 2
BATCH = 32  # scenes to a step  # quick: 8
WALK = 25  # steps of a sampler  # quick: 2
MANY = 144  # drawings that the oracle marks, for each network  # quick: 8
SCALE = 3.0  # of guidance
LONG = True  # hold the trained networks to the numbers in the text  # quick: False

# %% [markdown]
# ## 1. The naive attempt: a sentence as one vector
#
# Give each word a vector, take the mean over the sentence, and treat it as chapter 08 treated a class. Our sentences will
# speak of two things, side by side:


# %%
def pair(first, second, generator):
    """Two things (colour, shape), the first left of the second, at random heights."""
    u, things = torch.rand(6, generator=generator).tolist(), []
    for k, (colour, shape) in enumerate((first, second)):
        x, y = 0.25 + 0.48 * k + 0.02 * u[k], 0.27 + 0.46 * u[2 + k]
        things.append(Attributes(shape, colour, "large", position(x, y), x, y, 0.22 + 0.01 * u[4 + k], 0.3 + 0.2 * k, "white"))
    return tuple(things)


# %%
red, blue, spread = ("red", "circle"), ("blue", "square"), torch.Generator().manual_seed(4)
crossed = ("blue", "circle"), ("red", "square")
four = [pair(*asked, spread) for asked in ((red, blue), crossed, crossed[::-1], (blue, red))]
captions = [caption(scene) for scene in four]
words = sorted(set(" ".join(captions).split()))
generator = torch.Generator().manual_seed(SEED)
vector = dict(zip(words, torch.randn(len(words), WIDTH, generator=generator, dtype=torch.float64), strict=True))
means = torch.stack([torch.stack([vector[word] for word in c.split()]).mean(0) for c in captions])
print(*captions, sep="\n")
print(f"largest difference between the four vectors: {(means - means[0]).abs().max():.0e}")
assert_close(means, means[:1].expand_as(means))

# %% [markdown]
# Four sentences of the same words in another order have the same mean: a *bag of words*. Whatever a network computes from
# it, it computes the same four times. It is asked one question to which the training data show four answers, so it draws
# each in a quarter of the cases, and in heavy noise, where the best answer is the mean over what is possible
# (chapter 08, section 1), it sees this:

# %%
pictures = md.data.from_pixels(paint(four, 64)[0])
shown = torch.cat([pictures, pictures.mean(0, keepdim=True)])
md.plot.show_images(shown, titles=[*(c.replace("large ", "")[:-22] for c in captions), "what the bag of words asks for"])

# %% [markdown]
# A sum, a maximum, or a deep network on top of the mean changes nothing: equal in, equal out. The order must stay, so a
# sentence stays what it is, a row of vectors, one per word: the **context**, a tensor (B, L, D).
#
# ## 2. Attention by hand
#
# A pixel holds a vector $x$. It wants to read from L words $c_1 \dots c_L$, more from some than from others, and which ones
# should depend on the pixel. Let it ask a question, the *query* $q = W_q x$. Let each word show a label, the *key*
# $k_j = W_k c_j$, and hold a content, the *value* $v_j = W_v c_j$. The better label and question fit, the more is read:
#
# $$\mathrm{out} = \sum_j w_j v_j, \qquad w = \operatorname{softmax}_j\!\left(\frac{q \cdot k_j}{\sqrt d}\right)
# \qquad\text{(Vaswani et al. 2017, eq. 1)}$$
#
# The weights are positive and add up to 1: a mean of the values, but one that each pixel weighs for itself. With all
# weights equal it would be the bag of words again.


# %%
def attend(q, k, v):
    """softmax(q k^T / sqrt(d)) v and the weights. q (..., N, d), k and v (..., L, d) -> (..., N, d), (..., N, L)."""
    weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
    return weights @ v, weights


# %%
torch.manual_seed(SEED)
q, k, v = torch.randn(1, 5, 16), torch.randn(1, 7, 16), torch.randn(1, 7, 16)
out, weights = attend(q, k, v)
assert_close(out, scaled_dot_product_attention(q, k, v))  # PyTorch's own, which keeps no weights
assert_close(weights.sum(-1), torch.ones(1, 5))

# %% [markdown]
# **Why $\sqrt d$?** A product $q \cdot k$ of vectors with $d$ independent entries of variance 1 is a sum of $d$ terms, each of
# variance 1. Its variance is $d$, its standard deviation $\sqrt d$. Without the division, wider heads would mean larger
# scores, and a softmax of large scores picks one word and ignores the rest. How many words are being read is told by the
# entropy $-\sum_j w_j \log w_j$: from 0, a single word, to $\log L$, all alike. For scores that are standard normal it can be
# worked out. With $Z = \sum_j e^{s_j}$, the entropy is $\log Z - \sum_j s_j e^{s_j} / Z$; over many words
# $Z \approx L\, e^{1/2}$ and $\sum_j s_j e^{s_j}/Z \approx 1$, since $\mathbb E[s\,e^s] = \mathbb E[e^s] = e^{1/2}$. **Expected
# for 77 words:** $\log 77 - \frac12 = 3.84$ at every width; without the division, below 0.5 from $d = 512$ on.

# %%
widths = [2**i for i in range(2, 11)]
entropy = {r"divided by $\sqrt{d}$": [], "not divided": []}
for d in widths:
    q, k = torch.randn(500, d), torch.randn(500, 77, d)
    scores = torch.einsum("nd,nld->nl", q, k)
    assert 0.8 < scores.var() / d < 1.2
    for name, s in zip(entropy, (scores / d**0.5, scores), strict=True):
        w = s.softmax(1)
        entropy[name].append(-(w * w.clamp(min=1e-30).log()).sum(1).mean().item())
divided, raw = entropy.values()
print(f"divided: {min(divided):.2f} to {max(divided):.2f}; not divided: {raw[0]:.2f} at d = 4, {raw[7]:.2f} at d = 512")
assert max(abs(e - 3.84) for e in divided[2:]) < 0.1 and raw[7] < 0.5
md.plot.show_curves({name: (np.log2(widths), e) for name, e in entropy.items()}, xlabel=r"$\log_2 d$",
                    ylabel="entropy of the weights", title="how many of 77 words are read")  # fmt: skip

# %% [markdown]
# A softmax that has picked is also one that cannot learn: its derivative, $w_i(1 - w_i)$ on the diagonal, is 0 at both 0 and 1.
#
# ## 3. Heads; and two ways to use them
#
# One softmax can hold one opinion. A pixel may want the shape from one word and the colour from another, so the $C$
# channels are cut into **heads** of $d = C / \text{heads}$, each with its own softmax, and a last matrix mixes what they
# read. In the following class, the only difficulty is to move the heads out of the channels' axis: split, *then* transpose.


# %%
class Attention(nn.Module):
    """Queries from x, keys and values from context: (B, N, dim), (B, L, context_dim) -> (B, N, dim)."""

    def __init__(self, dim, context_dim, heads=None, bias=False):
        super().__init__()
        self.heads = heads or max(1, dim // 64)
        self.to_q = nn.Linear(dim, dim, bias)
        self.to_k = nn.Linear(context_dim, dim, bias)
        self.to_v = nn.Linear(context_dim, dim, bias)
        self.to_out = zero(nn.Linear(dim, dim))  # a new layer adds nothing

    def forward(self, x, context):
        out = attend(self.split(self.to_q(x)), self.split(self.to_k(context)), self.split(self.to_v(context)))[0]
        return self.to_out(out.transpose(1, 2).flatten(2))  # (B, heads, N, d) -> (B, N, dim)

    def weights(self, x, context):
        return attend(*(self.split(y) for y in (self.to_q(x), self.to_k(context), self.to_v(context))))[1]

    def split(self, y):
        return y.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, N, dim) -> (B, heads, N, d)


class SelfAttention(Attention):
    """Attention of x on itself."""

    def __init__(self, dim, heads=None, bias=False):
        super().__init__(dim, dim, heads, bias)

    def forward(self, x):
        return super().forward(x, x)


class CrossAttention(Attention):
    """Attention of x on a context from elsewhere."""


# %% [markdown]
# **Self-attention** takes all three from the image: every position looks at every other. **Cross-attention** takes queries
# from the image, keys and values from the text. That is the whole difference. A published tutorial says that
# cross-attention attends twice, first to the image and then to the text. It does not: one softmax, over words. What attends
# twice is the block of section 5.
#
# A comparison of new layers would compare zeros, so we fill both with random numbers first.


# %%
def shaken(net, seed=0):
    """Random numbers in every parameter, also where a new network has zeros."""
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        spread = p[0].numel() ** -0.5 if p.ndim > 1 else 0.2
        p.data += spread * torch.randn(p.shape, generator=generator)
    return net.eval().requires_grad_(False)


# %%
x, context = torch.randn(2, 9, 64), torch.randn(2, 7, 24)
for ours, theirs, asked in [
    (SelfAttention(64, 4), shaken(md.nets.SelfAttention(64, 4)), (x,)),
    (CrossAttention(64, 24, 4), shaken(md.nets.CrossAttention(64, 24, 4)), (x, context)),
]:
    ours.load_state_dict(theirs.state_dict())
    assert theirs(*asked).std() > 0.1
    assert_close(ours(*asked), theirs(*asked))
print({name: tuple(weight.shape) for name, weight in theirs.state_dict().items()})
cross = theirs

# %% [markdown]
# What does looking cost? With $N$ positions of $C$ channels, self-attention multiplies $2N^2C$ numbers in its two products,
# cross-attention $2NLC$. **Expected:** at 64 × 64 positions and 77 words, $4096/77 = 53$ times as much. Twice the side of
# the picture is 16 times the cost of the one, 4 times that of the other. A 3 × 3 convolution, for comparison, takes $9NC^2$.

# %%
sides, C, L = np.array([8, 16, 32, 64, 128, 256]), 320, 77
cost = {"self-attention": 2 * sides**4 * C, "3 × 3 convolution": 9 * sides**2 * C**2, "cross-attention": 2 * sides**2 * L * C}
ratio = cost["self-attention"][3] / cost["cross-attention"][3]
print(f"at 64 x 64: {ratio:.0f} times as much for all pixels as for all words")
assert 53 < ratio < 54
md.plot.show_curves(
    {name: (sides, c / 1e9) for name, c in cost.items()}, xlabel="side of the feature map", yscale="log",
    ylabel="10⁹ multiplications", title="320 channels, 77 words",
)  # fmt: skip

# %% [markdown]
# **Is attention itself a bag of words?** Shuffle the context. The weights are shuffled with it, and the sum over words does
# not care. **Expected:** no difference but rounding.

# %%
shuffled = context[:, torch.randperm(7)]
print(f"after shuffling the words: {(cross(x, shuffled) - cross(x, context)).abs().max():.0e}")
assert_close(cross(x, shuffled), cross(x, context))

# %% [markdown]
# So the words must say where they stand. Add to each word's vector a second one for its *place*, learned as well: "red" in
# third place and "red" in eleventh are then different tokens. Stable Diffusion's text encoder, CLIP, begins exactly so, and
# then lets words look at words through twelve layers (chapter 16). Our sentences are simple enough for the beginning alone.


# %%
class Words(nn.Module):
    """Word numbers (B, L) -> tokens (B, L, width): what the word is, plus where it stands."""

    def __init__(self, vocabulary, length, width):
        super().__init__()
        self.word = nn.Embedding(vocabulary, width)
        self.place = nn.Embedding(length, width)

    def forward(self, ids):
        return self.word(ids) + self.place.weight[: ids.shape[1]]


# %%
torch.manual_seed(SEED)
ids = torch.randint(0, 14, (2, 7))
order, encode = torch.tensor([6, 0, 3, 1, 5, 2, 4]), Words(14, 7, 24)
moved = (cross(x, encode(ids[:, order])) - cross(x, encode(ids))).abs().max().item()
print(f"with places, after shuffling: {moved:.2f}")
assert moved > 0.1

# %% [markdown]
# ## 4. What a position makes of it: FeedForward
#
# Attention is a mean of values, and a mean of means is a mean. Between two attentions something must *think*: a small
# network at each position by itself. Stable Diffusion's is of the GEGLU kind. One matrix makes two halves; one half, bent
# by GELU, is the gate that says how much of the other passes:
#
# $$\mathrm{FF}(x) = W_2\,\big[(W_a x) \odot \mathrm{GELU}(W_b x)\big] \qquad\text{(Shazeer 2020, eq. 6, with biases)}$$


# %%
class FeedForward(nn.Module):
    """(B, N, dim) -> (B, N, dim), four times as wide inside."""

    def __init__(self, dim, dropout=0.0):
        super().__init__()
        self.widen = nn.Linear(dim, 2 * 4 * dim)
        self.dropout = nn.Dropout(dropout)
        self.narrow = nn.Linear(4 * dim, dim)

    def forward(self, x):
        value, gate = self.widen(x).chunk(2, dim=2)
        return self.narrow(self.dropout(value * gelu(gate)))


# %%
ours, theirs = FeedForward(64), shaken(md.nets.FeedForward(64))
ours.load_state_dict(theirs.state_dict())
assert_close(ours(x), theirs(x))
gate = torch.linspace(-4, 4, 200)
md.plot.show_curves({f"value = {value}": (gate, value * gelu(gate)) for value in (2, 1, -1)},
                    xlabel="gate", ylabel="what passes", title="a product, not a bend: GEGLU")  # fmt: skip

# %% [markdown]
# ## 5. Three questions in a row, and a map let through them
#
# A **BasicTransformerBlock** asks, at each position: *where else in the picture? which words? what of it?* Each answer is
# added to what was there, and each question begins with a LayerNorm. The order matters: a pixel first finds out what it is
# part of, and then asks the sentence about it.


# %%
class BasicTransformerBlock(nn.Module):
    """(B, N, dim), (B, L, context_dim) -> (B, N, dim)."""

    def __init__(self, dim, context_dim, heads=None, dropout=0.0):
        super().__init__()
        self.norm_1, self.self_attention = nn.LayerNorm(dim), SelfAttention(dim, heads)
        self.norm_2, self.cross_attention = nn.LayerNorm(dim), CrossAttention(dim, context_dim, heads)
        self.norm_3, self.feed_forward = nn.LayerNorm(dim), FeedForward(dim, dropout)

    def forward(self, x, context):
        x = x + self.self_attention(self.norm_1(x))
        x = x + self.cross_attention(self.norm_2(x), context)
        return x + self.feed_forward(self.norm_3(x))


# %% [markdown]
# A **SpatialTransformer** lays a feature map out as a row of tokens, (B, C, H, W) → (B, HW, C), sends it through such blocks
# between two projections, folds it back, and adds the map that came in. Stable Diffusion 1 projects before the laying out,
# by a 1 × 1 convolution; Stable Diffusion 2 after it, by a matrix. Is that a difference?


# %%
class SpatialTransformer(nn.Module):
    """(B, C, H, W), (B, L, context_dim) -> (B, C, H, W)."""

    def __init__(self, channels, context_dim, heads=None, depth=1, linear=False, dropout=0.0, groups=None):
        super().__init__()
        self.norm = group_norm(channels, groups, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.blocks = nn.ModuleList(BasicTransformerBlock(channels, context_dim, heads, dropout) for _ in range(depth))
        self.proj_out = zero(nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1))
        self.linear = linear

    def forward(self, x, context):
        h = self.norm(x) if self.linear else self.proj_in(self.norm(x))
        tokens = h.flatten(2).transpose(1, 2)  # (B, HW, C)
        tokens = self.proj_in(tokens) if self.linear else tokens
        for block in self.blocks:
            tokens = block(tokens, context)
        h = (self.proj_out(tokens) if self.linear else tokens).transpose(1, 2).unflatten(2, x.shape[2:])
        return x + (h if self.linear else self.proj_out(h))


# %%
maps = torch.randn(2, 64, 4, 6)
both = {}
for linear in (False, True):
    theirs = shaken(md.nets.SpatialTransformer(64, 24, 4, depth=2, linear=linear))
    ours = SpatialTransformer(64, 24, 4, depth=2, linear=linear)
    ours.load_state_dict(theirs.state_dict())
    assert_close(ours(maps, context), theirs(maps, context))
    both[linear] = theirs
as_matrices = {n: w[:, :, 0, 0] if n.startswith("proj") and w.ndim == 4 else w for n, w in both[False].state_dict().items()}
both[True].load_state_dict(as_matrices)
assert_close(both[True](maps, context), both[False](maps, context), rtol=1e-5, atol=1e-5)
print("a 1 x 1 convolution and a matrix: the same answers")

# %% [markdown]
# None: the same numbers, stored as (C, C, 1, 1) or (C, C). Our blocks are not merely *like* Stable Diffusion's. Fed the
# same weights, they answer what Hugging Face's diffusers answers: to the last bit when we measured it, and the tests in
# `tests/parity` hold every block to it.
#
# What did the picture gain? Ask which input positions a single output position depends on: the size of its gradient.
# **Expected:** two 3 × 3 convolutions reach 5 × 5 positions and not one more; self-attention reaches all of them.

# %%
attention = shaken(md.nets.SelfAttention(64, 4))
convolutions = shaken(nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.SiLU(), nn.Conv2d(64, 64, 3, padding=1)))
reach = {}
for name in ("two convolutions", "self-attention"):
    x = torch.randn(1, 64, 15, 15, generator=torch.Generator().manual_seed(1), requires_grad=True)
    rows = x.flatten(2).transpose(1, 2)  # (1, 225, 64)
    answer = convolutions(x)[0, :, 7, 7] if name == "two convolutions" else attention(rows)[0, 7 * 15 + 7]
    answer.square().sum().backward()  # of the position in the middle
    reach[name] = x.grad[0].norm(dim=0) / x.grad[0].norm(dim=0).max()
    print(f"{name:16} depends on {(reach[name] > 0).sum()} of 225 positions")
assert (reach["two convolutions"] > 0).sum() == 25 and (reach["self-attention"] > 0).all()
shown = torch.stack(list(reach.values()))[:, None].clamp(min=1e-4).log10() / 2 + 1  # -1 at 1e-4, 1 at 1
md.plot.show_images(shown, titles=list(reach), title="what the middle sees")

# %% [markdown]
# ## 6. The sentence is read once: `Memory`
#
# A walk of 50 steps asks the same sentence 50 times. The picture changes, and with it the queries; keys and values do not.
# `md.nets.Memory(tokens)` is given to a network in place of the tokens. It keeps each layer's keys and values from
# the first call on. **Expected:** equal answers. And the multiplications saved? At the bottom of Stable Diffusion 64
# positions of 1280 channels ask 77 words of 768. Keys and values take $2 \cdot 77 \cdot 768 \cdot 1280$ multiplications, all
# the rest $2 \cdot 64 \cdot 1280 \cdot (1280 + 77)$: 40 % are saved. At the top, with 4096 positions of 320 channels, 4 %.

# %%
attention, words77 = shaken(md.nets.CrossAttention(1280, 768, 8)), torch.randn(1, 77, 768)
memory, bottom = md.nets.Memory(words77), torch.randn(1, 64, 1280)
assert_close(attention(bottom, memory), attention(bottom, words77), rtol=0, atol=0)  # the first call fills it
assert_close(attention(bottom, memory), attention(bottom, words77), rtol=0, atol=0)  # and the second reads it
saved = {}
for C, N in ((1280, 64), (320, 4096)):
    keys_values, rest = 2 * 77 * 768 * C, 2 * N * C * C + 2 * N * 77 * C
    saved[N] = keys_values / (keys_values + rest)
seconds = {"tokens": [], "memory": []}
for name, given in 10 * [("tokens", words77), ("memory", memory)]:
    began = time.perf_counter()
    attention(bottom, given)
    seconds[name].append(time.perf_counter() - began)
print({f"{N} positions": f"{share:.1%} of the multiplications saved" for N, share in saved.items()})
print(f"time with memory, as a share of the time without: {min(seconds['memory']) / min(seconds['tokens']):.2f}")
assert abs(saved[64] - 0.40) < 0.01 and abs(saved[4096] - 0.04) < 0.01
assert len(memory.kept) == 1  # one layer asked

# %% [markdown]
# ## 7. A small text-to-image model
#
# Now with real pictures and real obedience. Three shapes in three colours, two things to a scene that differ in both, and
# 36 sentences, "a large red circle left of a large blue square on a white background" among them. Six, chosen by number,
# are never shown in training. Every sentence has 14 words, numbered by a vocabulary made from the sentences; number 0 is
# the empty word, and fourteen of those are the empty caption. Words decide what a picture is while it is still noise, so
# training and drawing spend more time there: they use the flow with Stable Diffusion 3's shift of 3 (chapter 01, section 8).

# %%
kinds = list(itertools.product(("red", "green", "blue"), ("circle", "square", "triangle")))
asks = [(a, b) for a, b in itertools.product(kinds, kinds) if a[0] != b[0] and a[1] != b[1]]
held = range(5, len(asks), 6)
shown_asks = [ask for i, ask in enumerate(asks) if i not in held]
generator = torch.Generator().manual_seed(SEED)
scenes = [pair(*shown_asks[int(torch.randint(30, (), generator=generator))], generator) for _ in range(SCENES)]
tests = [pair(*asks[i % 36], generator) for i in range(MANY)]
pixels, test_pixels = (torch.cat([paint(s[k : k + 200], 32)[0] for k in range(0, len(s), 200)]) for s in (scenes, tests))
vocabulary = {word: i + 1 for i, word in enumerate(sorted(set(" ".join(caption(s) for s in scenes).split())))}
print(len(asks), "sentences,", len(held), "of them held back;", vocabulary)
md.plot.show_images(md.data.from_pixels(pixels[:6]), titles=[caption(s) for s in scenes[:6]], columns=6)


# %%
def tokens(captions, vocabulary):
    """Captions of L words each -> word numbers (B, L)."""
    return torch.tensor([[vocabulary[word] for word in c.split()] for c in captions])


class TextToImage(nn.Module):
    """net(xt, t, words): a U-Net and its reader of words, trained together. bag: it reads only the mean of the tokens."""

    def __init__(self, vocabulary, length, width, bag=False, **unet):
        super().__init__()
        self.text, self.bag = Words(vocabulary, length, width), bag
        self.unet = md.UNet(3, 3, context_dim=width, **unet)

    def forward(self, xt, t, words):
        context = self.text(words)  # (B, L, width)
        return self.unet(xt, t, context=context.mean(1, keepdim=True) if self.bag else context)


def fit(net, pixels, ids, steps, batch, seed, device):
    """Train on rectified flow, one caption in ten left empty: the averaged network, and the loss of every step."""
    net, ids = net.to(device, memory_format=torch.channels_last), ids.to(device)

    def loss(net, x, y):
        empty = (torch.rand(len(y), 1) < 0.1).to(device)
        x = x.contiguous(memory_format=torch.channels_last)
        return md.diffusion_loss(net, x, md.Schedule.flow(shift=3.0), "flow", words=ids[y].masked_fill(empty, 0))

    trainer = md.Trainer(net, loss, md.TrainConfig(steps=steps, seed=seed))
    images = md.data.Images(pixels, torch.arange(len(pixels)))  # the "label" of a scene is its number
    losses = trainer.fit(md.data.batches(images, batch, device, seed=seed))
    return trainer.ema.net, losses


# %% [markdown]
# The control is the naive attempt in the *same* network, with the same parameters, started from the same numbers. Only the
# context is averaged to a single token. Attention to one token has nothing to choose, a softmax of one number is 1, and so
# each layer adds the same vector at every pixel: exactly what chapter 08 did with a class.

# %%
table, nets, losses = tokens([caption(s) for s in scenes], vocabulary), {}, {}
shape = {"channels": CHANNELS, "attention": (False, True, True), "layers": 1, "patch": 2, "shortcut": True}
for name in ("attention", "bag of words"):
    torch.manual_seed(SEED)
    net = TextToImage(len(vocabulary) + 1, table.shape[1], WIDTH, bag=name != "attention", **shape)
    nets[name], losses[name] = fit(net, pixels, table, STEPS, BATCH, SEED, device)
    print(f"{name}: {sum(p.numel() for p in net.parameters()):,} parameters")
some = md.data.from_pixels(test_pixels[:4]).to(device)
with torch.no_grad(), md.nets.attention_maps(nets["bag of words"].unet) as maps:
    nets["bag of words"](some, torch.full((4,), 500.0, device=device), table[:4].to(device))
assert all((weight == 1).all() for calls in maps.values() for weight in calls)

# %%
window = max(1, STEPS // 12)
smooth = {name: np.convolve(values, np.ones(window) / window, mode="valid") for name, values in losses.items()}
print({name: round(float(values[-1]), 4) for name, values in smooth.items()}, f"(mean of the last {window} steps)")
md.plot.show_curves(
    {name: (np.arange(len(values)) + window, values) for name, values in smooth.items()},
    xlabel="step", ylabel=f"loss, mean of {window} steps", title="the same network, told in two ways", yscale="log",
)  # fmt: skip

# %% [markdown]
# The curves lie close together, for words decide little once the picture shows itself. So ask directly: noise a real
# scene, and compare the error with its own caption, with the two colours exchanged, and with the two things exchanged.
# **Expected:** to the bag of words all three are the same sentence, at every level. To attention two of them are lies, and in
# heavy noise a lie costs: at the worst level the error more than doubles.

# %%
right = tokens([caption(s) for s in tests[:128]], vocabulary).to(device)
colours, sides = right.clone(), right.clone()
colours[:, [2, 8]] = right[:, [8, 2]]  # "a large RED circle left of a large BLUE square on a white background"
sides[:, [2, 3, 8, 9]] = right[:, [8, 9, 2, 3]]
x0, ts = md.data.from_pixels(test_pixels[:128]).to(device), range(500, 1001, 50)
told = {"its caption": right, "colours exchanged": colours, "things exchanged": sides}
error = {name: {told_name: [] for told_name in told} for name in nets}
for name, t, (told_name, asked) in itertools.product(nets, ts, told.items()):
    torch.manual_seed(t)  # the same noise for each question
    level = torch.full((len(x0),), float(t))
    with torch.no_grad():
        cost = md.diffusion_loss(nets[name], x0, md.Schedule.flow(), "flow", t=level, words=asked)
    error[name][told_name].append(cost.item())
lie = {name: np.array(e["colours exchanged"]) / np.array(e["its caption"]) - 1 for name, e in error.items()}
print({name: f"a lie about colours costs up to {worst.max():.2%}" for name, worst in lie.items()})
assert abs(lie["bag of words"]).max() < 1e-3
if LONG:
    assert lie["attention"].max() > 1
md.plot.show_curves({told_name: (ts, e) for told_name, e in error["attention"].items()},
                    xlabel="t", ylabel="squared error of the flow", title="attention: what a wrong word costs")  # fmt: skip

# %% [markdown]
# **Drawings.** Guidance compares the answer to the caption with the answer to the empty caption and overshoots (chapter 09).
# Each column is one sentence and one noise, drawn by both networks.


# %%
def draw(net, ids, start, steps, scale):
    """Images that `net` makes of the noise `start` for the captions `ids`, guided away from the empty caption."""
    denoise = md.classifier_free(net, {"words": ids}, {"words": torch.zeros_like(ids)}, scale, "flow")
    levels = md.Schedule.flow(shift=3.0).levels(steps, "trailing")
    return md.sample(md.ddim, denoise, start, levels).clamp(-1, 1)


# %%
wanted = [asks[i % 36] for i in range(MANY)]
ids = tokens([caption(s) for s in tests], vocabulary).to(device)
start = torch.randn(MANY, 3, 32, 32, generator=torch.Generator().manual_seed(SEED + 1)).to(device)
drawings = {name: draw(net, ids, start, WALK, SCALE).cpu() for name, net in nets.items()}
choice = [k * (min(MANY, 40) // 8) for k in range(8)]
md.plot.show_images(
    torch.cat([drawings[name][choice] for name in nets]), row_labels=list(nets), columns=8,
    titles=2 * [" ".join((*wanted[i][0], "left of", *wanted[i][1])) for i in choice],
)  # fmt: skip

# %% [markdown]
# Column by column one can quarrel. The oracle does not: `md.data.read_shapes` reads shapes, colours and places from the pixels,
# by formulas. A drawing obeys if both things asked for are there, and obeys fully if each stands on its side. There are 18
# pairs of things and 36 scenes, so a painter who has not read the sentence is right in 6 % and in 3 % of the cases. The bag of
# words knows two colours and two shapes. It cannot know which belongs to which, nor where: its **ceilings** are 50 % and
# 25 %, however long it is trained. **Expected:** attention above 90 %, also for the sentences it has never read; the bag
# below its ceilings.


# %%
def obeyed(images, wanted):
    """(B, 2): are both things there, and are they on the right sides too?"""
    verdict = []
    for things, (a, b) in zip(md.data.read_shapes(images, 0.1), wanted, strict=True):
        across = {(thing.colour, thing.shape): thing.x for thing in things}
        there = a in across and b in across
        verdict.append((there, there and across[a] < across[b]))
    return torch.tensor(verdict).float()


# %%
marks = {"real scenes": obeyed(md.data.from_pixels(test_pixels), wanted)}
marks |= {name: obeyed(images, wanted) for name, images in drawings.items()}
new = torch.tensor([i % 36 in held for i in range(MANY)])
for name, mark in marks.items():
    text = ", ".join(f"{m:.0%}" for m in mark.mean(0)) + " (things; things and sides)"
    print(f"{name:13} {text}; sentences never read: " + (f"{mark[new].mean(0)[1]:.0%}" if new.any() else "none drawn"))
assert marks["real scenes"].mean() > 0.97
if LONG:
    assert marks["attention"].mean(0)[1] > 0.9 and marks["attention"][new].mean(0)[1] > 0.8
    assert marks["bag of words"].mean(0)[1] < 0.33  # the ceiling of 1/4, and two standard deviations of 144 draws
with matplotlib.rc_context(md.plot.STYLE):
    figure = md.plot.Picture(figsize=(9, 4.2), dpi=md.plot.DPI, layout="constrained")
    axes = figure.subplots()
    for k, (what, ceiling, chance) in enumerate((("both things", 1 / 2, 1 / 18), ("and on their sides", 1 / 4, 1 / 36))):
        axes.bar(
            np.arange(3) + 0.4 * k - 0.2, [m.mean(0)[k] for m in marks.values()], 0.36, label=what, color=md.plot.CURVES[k]
        )
        axes.hlines(ceiling, 1.6 + 0.4 * k, 2.0 + 0.4 * k, "black", "dashed")
        axes.hlines(chance, -0.5, 2.5, md.plot.CURVES[k], "dotted")
    axes.set_xticks(range(3), list(marks))
    axes.set_axisbelow(True)
    axes.set(ylabel="share of drawings", ylim=(0, 1.05), title="dashed: the ceiling of a bag; dotted: chance")
    figure.legend(loc="outside lower center", ncols=2)
figure.to(None)  # a cell that ends with a figure shows it

# %% [markdown]
# ## 8. Who looks at which word?
#
# The weights of a cross-attention are a picture for every word: how much each position reads from it.
# `md.nets.attention_maps(net)` keeps them while the network answers, (B, heads, N, L) for each layer. We average over heads
# and layers, and enlarge to the size of the picture.


# %%
@torch.no_grad()
def word_maps(net, xt, t, ids, size=32):
    """How much each position reads from each word: (B, L, size, size), mean over heads and layers."""
    with md.nets.attention_maps(net.unet) as maps:
        net(xt, torch.full((len(xt),), float(t), device=xt.device), ids)
    total = 0
    for (weights,) in maps.values():  # (B, heads, N, L), one call
        side = round(weights.shape[2] ** 0.5)
        small = weights.mean(1).transpose(1, 2).unflatten(2, (side, side))  # (B, L, side, side)
        total = total + interpolate(small, (size, size), mode="bilinear") / len(maps)
    return total


# %%
spread = torch.Generator().manual_seed(9)
scene = pair(red, blue, spread)
sentence = caption(scene).split()
clean, ids_of = md.data.from_pixels(paint([scene], 32)[0]).to(device), tokens([caption(scene)], vocabulary).to(device)
eps, looked, rows = torch.randn(clean.shape, generator=spread).to(device), [2, 3, 4, 8, 9, 13], []
levels = [950, 800, 600, 300]
for t in levels:
    xt = md.add_noise(clean, eps, md.Schedule.flow().at(t))
    seen = word_maps(nets["attention"], xt, t, ids_of)[0, looked, None].cpu()  # (words, 1, 32, 32)
    low, high = seen.amin((1, 2, 3), keepdim=True), seen.amax((1, 2, 3), keepdim=True)
    rows += [xt.cpu(), (2 * (seen - low) / (high - low) - 1).expand(-1, 3, -1, -1)]
md.plot.show_images(torch.cat(rows), row_labels=[f"t = {t}" for t in levels], title="white: who reads this word most",
                    column_labels=["$x_t$", *(sentence[i] for i in looked)])  # fmt: skip

# %% [markdown]
# Beautiful maps are easily over-read, so count. Over many scenes, take the positions of the first thing, of the second, and
# of the background, and see how the reading of each is shared among the fourteen words. **Expected:** a thing's positions
# read their own colour and shape about twice as much as the other thing's positions read them. Words that say nothing, such
# as "a", get little and never nothing: a softmax has to spend its whole 100 % on each position, whether it needs a word or not.

# %%
some, t = tests[:128], 600
xt = md.add_noise(x0, torch.randn(x0.shape, generator=spread).to(device), md.Schedule.flow().at(t))
looks = word_maps(nets["attention"], xt, t, right).cpu()
cover = torch.stack([md.data.shapes.silhouettes(s, 32) for s in some])  # (B, 2, 32, 32)
places = torch.cat([cover, 1 - cover.amax(1, keepdim=True)], dim=1)  # first, second, background
share = torch.einsum("bphw,blhw->pl", places, looks) / places.sum((0, 2, 3))[:, None]  # (3, 14)
assert_close(share.sum(1), torch.ones(3))
own, other = share[0, [2, 3]].sum() + share[1, [8, 9]].sum(), share[0, [8, 9]].sum() + share[1, [2, 3]].sum()
print(f"a thing reads its own two words {own / other:.2f} times as much as the other thing's")
if LONG:
    assert own > 1.5 * other
template = ["a", "large", "colour 1", "shape 1", "left", "of", "a", "large", "colour 2", "shape 2", *sentence[10:]]
with matplotlib.rc_context(md.plot.STYLE | {"axes.grid": False}):
    figure = md.plot.Picture(figsize=(11, 3.6), dpi=md.plot.DPI, layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, aspect="auto")
    axes.set_xticks(range(14), template, rotation=40, ha="right")
    axes.set_yticks(range(3), ["first thing", "second thing", "background"])
    for row, column in np.ndindex(3, 14):
        dark = share[row, column] > 0.6 * share.max()
        axes.text(column, row, f"{share[row, column]:.0%}", ha="center", va="center", color="white" if dark else "black")
figure.to(None)

# %% [markdown]
# **Swap the words, and the maps move.** The same noise, and two sentences that differ in the order of their words alone. We
# draw both, and follow "red" and "circle" through the finished pictures, a little noise added. **Expected:** the centre of
# these maps moves from left to right, by a tenth of the picture's width or more. (A map is never 0 anywhere, so its centre
# moves less than the circle does.)

# %%
two = tokens([caption(pair(red, blue, spread)), caption(pair(blue, red, spread))], vocabulary).to(device)
drawn = draw(nets["attention"], two, start[:1].expand(2, -1, -1, -1), WALK, SCALE)
t = 600
xt = md.add_noise(drawn, eps.expand(2, -1, -1, -1), md.Schedule.flow().at(t))
found = [[ids_row.tolist().index(vocabulary[w]) for w in ("red", "circle", "blue", "square")] for ids_row in two]
seen = word_maps(nets["attention"], xt, t, two).cpu()
seen = torch.stack([seen[i, where] for i, where in enumerate(found)])  # (2, 4, 32, 32)
centre = (seen * torch.linspace(0, 1, 32)).sum((2, 3)) / seen.sum((2, 3))  # (2, 4): 0 left, 1 right
moved = (centre[1] - centre[0]).tolist()
print({w: f"{m:+.1%} of the width" for w, m in zip(("red", "circle", "blue", "square"), moved, strict=True)})
if LONG:
    assert moved[0] > 0.1 and moved[2] < -0.1 and sum(moved[:2]) - sum(moved[2:]) > 0.4
low, high = seen.amin((2, 3), keepdim=True), seen.amax((2, 3), keepdim=True)
grey = (2 * (seen - low) / (high - low) - 1)[:, :, None].expand(-1, -1, 3, -1, -1)
md.plot.show_images(
    torch.cat([drawn.cpu()[:, None], grey], dim=1).flatten(0, 1), column_labels=["drawn", "red", "circle", "blue", "square"],
    row_labels=["red circle left of blue square", "blue square left of red circle"],
)  # fmt: skip

# %% [markdown]
# ## 9. The fourteen blocks
#
# You now have every piece. Stable Diffusion's U-Net is `md.UNet` with other numbers, and PyTorch's *meta* device, on which
# tensors have shapes and no contents, builds it in a moment. **Expected: 859,520,964 parameters** for version 1, and
# **865,910,724** for version 2, which has wider text tokens, more heads, and matrices for convolutions.

# %%
with torch.device("meta"):
    sd1 = md.UNet(
        4, 4, channels=(320, 640, 1280, 1280), attention=(True, True, True, False), context_dim=768, heads=8, groups=32
    )
    sd2 = md.UNet(4, 4, channels=(320, 640, 1280, 1280), attention=(True, True, True, False), context_dim=1024,
                  heads=(5, 10, 20, 20), linear=True, groups=32)  # fmt: skip
    latent, t, prompt = torch.empty(1, 4, 64, 64), torch.empty(1), torch.empty(1, 77, 768)
count = {name: sum(p.numel() for p in net.parameters()) for name, net in (("SD1", sd1), ("SD2", sd2))}
print({name: f"{n:,}" for name, n in count.items()})
assert count == {"SD1": 859_520_964, "SD2": 865_910_724}

# %% [markdown]
# Send an empty latent of 64 × 64 through, and note at every block what goes in and what comes out. The table has for each
# kind how often it occurs, the shapes of the first one met, and the parameters of all of them. Blocks contain blocks, so
# the shares do not add up to 1.


# %%
def watch(net, *question, **cond):
    """Every module of `net` in the order in which it answers: [(name, module, shape in, shape out)]."""
    met, hooks = [], []
    for name, module in net.named_modules():

        def note(module, inputs, output, name=name):
            output = output[0] if isinstance(output, tuple) else output
            met.append((name, module, tuple(inputs[0].shape[1:]), tuple(output.shape[1:])))

        hooks.append(module.register_forward_hook(note))
    net(*question, **cond)
    for hook in hooks:
        hook.remove()
    return met


# %%
names = ["GSC", "DownSample", "UpSample", "ResNetBlock", "CrossAttention", "SelfAttention", "FeedForward",
         "BasicTransformerBlock", "SpatialTransformer", "DownBlock", "UpBlock", "CrossAttnDownBlock", "CrossAttnUpBlock",
         "CrossAttnMidBlock"]  # fmt: skip
with torch.no_grad():
    met = watch(sd1, latent, t, context=prompt)
parameters, shapes = {}, {}
print(f"{'block':22} {'times':>5}  {'first: in':>16} → {'out':16} {'parameters':>12}  share")
for name in names:
    here = [(m, i, o) for _, m, i, o in met if type(m) is getattr(md.nets, name)]
    parameters[name] = sum(p.numel() for m, _, _ in here for p in m.parameters())
    shapes[name] = (len(here), *here[0][1:])
    times, i, o = shapes[name]
    total = parameters[name] / count["SD1"]
    print(f"{name:22} {times:5}  {'×'.join(map(str, i)):>16} → {'×'.join(map(str, o)):16} {parameters[name]:12,}  {total:.1%}")
assert shapes["SpatialTransformer"] == (16, (320, 64, 64), (320, 64, 64))
assert shapes["CrossAttention"] == shapes["SelfAttention"] == (16, (4096, 320), (4096, 320))
assert shapes["ResNetBlock"][0] == 22 and shapes["CrossAttnMidBlock"] == (1, (1280, 8, 8), (1280, 8, 8))
assert shapes["CrossAttnDownBlock"] == (3, (320, 64, 64), (320, 32, 32)) and shapes["DownBlock"] == (
    1,
    (1280, 8, 8),
    (1280, 8, 8),
)
assert shapes["UpBlock"] == (1, (1280, 8, 8), (1280, 16, 16)) and shapes["CrossAttnUpBlock"] == (
    3,
    (1280, 16, 16),
    (1280, 32, 32),
)

# %%
with matplotlib.rc_context(md.plot.STYLE):
    figure = md.plot.Picture(figsize=(10, 5.6), dpi=md.plot.DPI, layout="constrained")
    axes = figure.subplots()
    ranked = sorted(parameters, key=parameters.get)
    bars = axes.barh(ranked, [100 * parameters[name] / count["SD1"] for name in ranked], color=md.plot.CURVES[0])
    axes.bar_label(bars, [f"{parameters[name] / 1e6:.0f} M" for name in ranked], padding=4, fontsize=11)
    axes.set(xlabel="% of 859,520,964 parameters", xlim=(0, 70), title="what Stable Diffusion 1 is made of")
    axes.set_axisbelow(True)
figure.to(None)

# %% [markdown]
# Stages do add up. With the time embedding, the first convolution and the last GSC, the eleven parts below are the whole
# network. **Expected:** more than half of it on the way up, where maps of the way down lie beside each input and every
# first convolution is twice as wide.

# %%
stages = [
    (n, m, i, o)
    for n, m, i, o in met
    if n in ("conv_in", "mid", "out") or n in [f"{w}.{k}" for w in ("down", "up") for k in range(4)]
]
sizes = {n: sum(p.numel() for p in m.parameters()) for n, m, _, _ in stages}
for n, m, i, o in stages:
    print(f"{n:8} {type(m).__name__:20} {'×'.join(map(str, i)):>12} → {'×'.join(map(str, o)):12} {sizes[n]:12,}")
assert sum(sizes.values()) + sum(p.numel() for p in sd1.time.parameters()) == count["SD1"]
assert sum(sizes[f"up.{k}"] for k in range(4)) > count["SD1"] / 2
with matplotlib.rc_context(md.plot.STYLE | {"axes.grid": False}):
    figure = md.plot.Picture(figsize=(14, 4.6), dpi=md.plot.DPI, layout="constrained")
    axes = figure.subplots()
    for k, (n, m, i, _) in enumerate(stages):
        crossed = "CrossAttn" in type(m).__name__
        axes.bar(k, i[1], 0.8, bottom=-i[1] / 2, color=md.plot.CURVES[0 if crossed else 4])
        axes.text(k, i[1] / 2 + 2, f"{i[0]} × {i[1]} × {i[2]}\n{sizes[n] / 1e6:.1f} M", ha="center", va="bottom", fontsize=9)
    axes.set_xticks(range(len(stages)), [n for n, *_ in stages])
    axes.set(ylim=(-34, 46), ylabel="side of the map that goes in", title="Stable Diffusion 1: dark stages read the words")
    axes.set_yticks([])
figure.to(None)

# %% [markdown]
# The words are read at 64, 32, 16 and at the bottom, but not in the outer stages at 8 × 8, which are plain.
#
# ## 10. Padding, and why everyone looks at it
#
# CLIP's tokenizer fills every prompt up to 77 tokens, so "a cat" is a start token, two words, and 74 copies of the end
# token. One would expect a mask that hides them. Stable Diffusion has none: it was trained without, and has come to use
# these places. CLIP has let each token look at all before it, so the padding carries a summary of the sentence; and a
# softmax that wants nothing has somewhere to look. Mask them afterwards, or pad otherwise, and the network
# meets weights that it never met in training. The worst idea is the tidiest: fill up with zeros. A key of zeros has score
# 0, and $e^0 = 1$ is not nothing. **Expected:** a 14-word caption among 63 zero tokens keeps about $14/77 = 18\,\%$ of the
# weight.

# %%
torch.manual_seed(SEED)
fresh, pixel, said = shaken(md.nets.CrossAttention(64, 24, 1)), 0.1 * torch.randn(1, 50, 64), torch.randn(1, 14, 24)
padded = torch.cat([said, torch.zeros(1, 63, 24)], dim=1)
kept = fresh.weights(pixel, padded)[..., :14].sum(-1).mean().item()
print(f"weight left to the words: {kept:.1%}")
assert 0.15 < kept < 0.25

# %% [markdown]
# ## 11. Four bugs you will meet
#
# **Heads split without the transpose.** `view(B, heads, N, d)` where `view(B, N, heads, d).transpose(1, 2)` was meant. The
# shapes agree and it trains. But now a "head" is a run of neighbouring positions, and its "positions" are pieces of
# channels. **Expected:** in a self-attention of four heads, position 0 no longer sees the last quarter of the picture at all.


# %%
def split_wrongly(y, heads):
    """The right shape, the wrong axis: (B, N, dim) -> (B, heads, N, d)."""
    return y.reshape(len(y), heads, y.shape[1], -1)


# %%
attention = shaken(md.nets.SelfAttention(64, 4))
influence = {}
for name in ("right", "wrong"):
    x = torch.randn(1, 16, 64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    q, k, v = (project(x) for project in (attention.to_q, attention.to_k, attention.to_v))
    q, k, v = (split_wrongly(y, 4) if name == "wrong" else y.unflatten(2, (4, -1)).transpose(1, 2) for y in (q, k, v))
    out = attend(q, k, v)[0]
    out = out.reshape(1, 16, 64) if name == "wrong" else out.transpose(1, 2).flatten(2)
    if name == "right":
        assert_close(attention.to_out(out), attention(x))
    rows = [torch.autograd.grad(out[0, n].square().sum(), x, retain_graph=True)[0][0].norm(dim=1) for n in range(16)]
    influence[name] = torch.stack(rows)
print({name: f"{(m == 0).float().mean():.0%} of the pairs cannot see each other" for name, m in influence.items()})
assert (influence["right"] > 0).all() and (influence["wrong"][0, 12:] == 0).all()
shown = torch.stack([(m > 0).float() for m in influence.values()])[:, None] * 2 - 1
md.plot.show_images(shown, titles=["right: all see all", "wrong: four closed rooms"])

# %% [markdown]
# **The softmax over the wrong axis.** With `softmax(-2)` each *word* shares itself out among the positions. Rows no longer add
# up to 1, and with 4096 positions and 77 words each pixel gets a fiftieth. **Expected:** $77/4096 = 1.9\,\%$.

# %%
scores = torch.randn(1, 4096, 77)
print(
    f"mean sum of a pixel's weights: {scores.softmax(-1).sum(-1).mean():.3f}, wrongly {scores.softmax(-2).sum(-1).mean():.3f}"
)
assert_close(scores.softmax(-2).sum(-1).mean().item(), 77 / 4096, rtol=1e-3, atol=0)

# %% [markdown]
# **"Two maps of 512 and one of 3072 channels."** A published walk-through of the skip connections uses maps of 512, 512 and
# 3072 channels. No such shape exists in Stable Diffusion. **Expected:** the widest input of any ResNetBlock is
# $1280 + 1280 = 2560$, at 8 × 8 and 16 × 16.

# %%
resnets = [(i, n) for n, m, i, _ in met if type(m) is md.nets.ResNetBlock and n.startswith("up")]
print("widths after the skips are laid beside:", [i[0] for i, _ in resnets])
assert max(i[0] for i, _ in resnets) == 2560 and {i[1] for i, _ in resnets if i[0] == 2560} == {8, 16}
assert not {512, 3072} & {size for _, m, i, o in met if type(m) is md.nets.ResNetBlock for size in (i[0], o[0])}

# %% [markdown]
# **A memory that outlives its weights.** `Memory` keeps what the layers made of the words. Train on, load a LoRA, or swap a
# checkpoint, and it answers with the old ones. **Expected:** no error, another answer. Make a new one per walk.

# %%
attention, memory = shaken(md.nets.CrossAttention(64, 24, 4)), md.nets.Memory(context[:1])
pixel = torch.randn(1, 9, 64)
attention(pixel, memory)
attention.to_v.weight.mul_(2)
stale = (attention(pixel, memory) - attention(pixel, context[:1])).norm() / attention(pixel, context[:1]).norm()
print(f"the stale answer is off by {stale:.0%}")
assert stale > 0.2

# %% [markdown]
# ## 12. What we left out
#
# | left out | where to read it |
# |---|---|
# | a text encoder that was trained on 400 million captions | chapters 12 and 16; CLIP, Radford et al. 2021 |
# | the latents that Stable Diffusion's U-Net works on | chapter 13; Rombach et al. 2022 |
# | attention without the (N, L) matrix in memory | chapter 22; FlashAttention, Dao et al. 2022 |
# | editing a picture through its maps | Prompt-to-Prompt, Hertz et al. 2022 |
# | "right of", "above": the pixel must read the relation before it knows which thing is its own | try it; a longer run |
# | when not all words are heard, and what to do about it | Attend-and-Excite, Chefer et al. 2023 |
# | image and text in one row, both asking both | chapter 20; MMDiT, Esser et al. 2024 |
#
# What you wrote is `minidiff/nets/attention.py`; `blocks.py` and `unet.py` stack it.
# [Exercises](exercises/14_cross_attention.ipynb): the core of it, from memory.
#
# **Next:** a reader of words, a compressor of pictures and a U-Net are on the table. Put them together, and train the whole.

# %%
print(f"torch {torch.__version__}, minidiff {md.__version__}, {device}")
