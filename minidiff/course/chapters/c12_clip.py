"""Tasks of chapter 12: CLIP from the outside in, what it answers and how it is trained, then its two towers."""

from functools import partial
from math import log

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from ...data import Shapes, from_pixels
from ...nets import CLIP, CLIPImage, CLIPText, contrastive_loss, zero_shot
from ...nets.clip import Text
from ...nets.clip_image import MEAN, STD
from ..layers import COMPLETE, Asked, asking, filled, forwards, noise
from ..task import Case, Law, Mistake, Task

IMAGES = from_pixels(Shapes(4, size=32, seed=3).tensors()[0])  # (4, 3, 32, 32)
COLOURS = torch.tensor([[0, 0, 0], [2, 0, 0], [0, 1, 0], [0, 0, 0.5], [-1, -1, -1.0]])  # of words: -, red, green, blue, dark
RED, GREEN, BLUE, DARK = [1, 0], [2, 0], [3, 0], [4, 0]
WARMTH, unit = log(1 / 0.07), partial(normalize, dim=1)


class Tower(nn.Module):
    """Any function as one of a CLIP's two networks, with vectors of three numbers."""

    config = {"projection": 3}

    def __init__(self, forward):
        super().__init__()
        self.forward = forward


LOOKS = Tower(lambda images: images.mean((2, 3)))  # at the mean colour
READS = Tower(lambda ids: Text(COLOURS[ids], COLOURS[ids].sum(1)))  # and adds the colours of the words up


def compares(f, log_scale, images, ids):
    """All that a CLIP answers. The one number that it learns is found whatever its name and shape."""
    clip = f(READS, LOOKS)
    learned = list(clip.parameters()) if isinstance(clip, nn.Module) else []
    if sum(p.numel() for p in learned) != 1:
        raise TypeError("beside its towers, a CLIP is to learn one number, the logarithm of the scale: make it an nn.Parameter")
    with torch.no_grad():
        learned[0].fill_(log_scale)
        return {name: getattr(clip, name)(*args) for name, args in (
            ("encode_image", (images,)), ("encode_text", (ids,)), ("forward", (images, ids)))}  # fmt: skip


def clips(seen=unit, read=unit, also=lambda v: v, scale=lambda log: log.exp().clamp(max=100), logits=lambda a, b: a @ b.T):
    """CLIP, with one of its parts replaced. also: what forward does to the vectors after all."""

    def forward(self, images, ids):
        return scale(self.logit_scale) * logits(also(self.encode_image(images)), also(self.encode_text(ids)))

    encode = {"encode_image": lambda self, images: seen(self.image(images)),
              "encode_text": lambda self, ids: read(self.text(ids).pooled)}  # fmt: skip
    return type("Version", (CLIP,), {"forward": forward, **encode})


WARM = "a new CLIP has a scale of 1 / 0.07, about 14: let its one number start at the logarithm of that, 2.659."
clip_task = Task(
    "12.1", "the angle between a picture and a text", CLIP,
    cases=(
        # The pictures are (0.3, 0.4, 0) and (0, 0, -1), the texts (2, 0, 0), (0, 1, 0.5) and (0, 0, 0.5): of length 1 they are
        # as below, and twice their products are the logits.
        Case("two pictures of one pixel, three texts, scale 2, by hand",
             (log(2), torch.tensor([0.3, 0.4, 0, 0, 0, -1]).view(2, 3, 1, 1), torch.tensor([RED, [2, 3], BLUE])),
             {"encode_image": torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.0, -1.0]]),
              "encode_text": torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.894427, 0.447214], [0.0, 0.0, 1.0]]),
              "forward": torch.tensor([[1.2, 1.431084, 0.0], [0.0, -0.894427, -2.0]])}),
        Case("four pictures, five texts, as at the start", (WARMTH, IMAGES, torch.tensor([RED, GREEN, BLUE, [1, 3], DARK]))),
        Case("a scale that training has brought to e^5 = 148", (5.0, IMAGES, torch.tensor([RED, GREEN, BLUE]))),
    ),
    ask=compares,
    mistakes=(
        Mistake("the vectors keep their lengths: bring each to length 1, or a long text fits everything.",
                clips(seen=lambda v: v, read=lambda v: v)),
        Mistake("the pictures have length 1, the texts do not: the cosine of an angle needs both.", clips(read=lambda v: v)),
        Mistake("forward alone brings vectors to length 1: whoever asks encode_image and encode_text wants them so, too.",
                clips(lambda v: v, lambda v: v, also=unit)),
        Mistake("lengths were measured along the batch: each picture, each text is a row, so its numbers lie along dim=1.",
                clips(*2 * [partial(normalize, dim=0)])),
        Mistake("the learned number was multiplied in as it is: it is the logarithm of the scale.", clips(scale=lambda k: k)),
        Mistake("divided by the scale: 1 / 0.07 is a factor already; it is the temperature, 0.07, that would divide.",
                clips(scale=lambda k: 1 / k.exp().clamp(max=100))),
        Mistake("the scale goes beyond 100: it is exp of the learned number that is held there, not the number.",
                clips(scale=torch.exp)),
        Mistake("rows and columns have changed places: a row for each picture, a column for each text.",
                clips(logits=lambda a, b: b @ a.T)),
        Mistake(WARM, lambda text, image: filled(CLIP(text, image), lambda shape, *_: torch.full(shape, log(0.07)))),
    ),
    laws=(Law(WARM, lambda f: abs(next(f(READS, LOOKS).parameters()).item() - WARMTH) < 1e-4),),
    hints=("Of vectors of length 1, the inner product is the cosine of the angle between them.",
           "torch.nn.functional.normalize(v, dim=1) gives length 1. All pairs at once: (B, D) @ (D, N).",
           "self.logit_scale.exp().clamp(max=100) * self.encode_image(images) @ self.encode_text(ids).T"),
)  # fmt: skip


def losses(mean=lambda rows, columns: (rows + columns) / 2, to=lambda logits: logits, equal=torch.all, itself=False,
           value=-torch.inf):  # fmt: skip
    """contrastive_loss, with one of its parts replaced. itself: is a text among the equal ones that are left out?"""

    def loss(logits, ids=None):
        if ids is not None:
            logits = logits.masked_fill(equal(ids[:, None] == ids, dim=2).fill_diagonal_(itself), value)
        return mean(*(cross_entropy(to(way), torch.arange(len(logits))) for way in (logits, logits.T)))

    return loss


LOGITS = 3 * torch.randn(6, 6, generator=torch.Generator().manual_seed(12))
CAPTIONS = torch.tensor([[8, 1, 2, 9], [8, 3, 4, 9], [8, 1, 2, 9], [8, 3, 5, 9], [8, 1, 2, 9], [8, 2, 1, 9]])
loss_task = Task(
    "12.2", "to each its own", contrastive_loss,
    cases=(
        # Picture 0 gives its text 3/4, picture 1 a third; text 0 gives its picture 3/5, text 1 a half.
        Case("two pairs by hand", (torch.tensor([[log(3), 0.0], [log(2), 0.0]]),), torch.tensor(0.647567)),
        # Texts 0 and 2 are one: the pictures give their texts 3/4, 1/2 and 1/2, and the texts their pictures 3/5, 3/5 and 1/2.
        Case("three pairs, two equal texts, by hand",
             (torch.tensor([[log(3), 0, 5], [log(2), log(3), 0], [5, 0, 0]]), torch.tensor([[1, 2], [1, 3], [1, 2]])),
             torch.tensor(0.564796)),
        Case("six pairs", (LOGITS,)),
        Case("six pairs, three equal texts", (LOGITS, CAPTIONS)),
        Case("one text for all", (LOGITS, torch.ones(6, 4))),
        Case("as sharp as it gets: logits from -100 to 100", (100 * torch.tanh(LOGITS), CAPTIONS)),
    ),
    mistakes=(
        Mistake("only the pictures were asked for their texts: ask the texts for their pictures too, down the columns.",
                losses(lambda rows, columns: rows)),
        Mistake("the two questions were added up: take their mean, so that a guess costs log B.", losses(torch.add)),
        Mistake("a softmax too many: cross_entropy takes logits, and makes probabilities of them itself.",
                losses(to=lambda logits: logits.softmax(1))),
        Mistake("ids were given, and not used: pairs of equal texts are to be left out of both questions.",
                lambda logits, ids=None: contrastive_loss(logits)),
        Mistake("every text equals itself, and so its own pair was left out too: keep the diagonal.", losses(itself=True)),
        Mistake("texts that share a token, such as start and end, were taken for equal: all tokens have to be.",
                losses(equal=torch.any)),
        Mistake("pairs left out were given the logit 0, which still counts, exp(0) = 1: only exp(-inf) is nothing.",
                losses(value=0.0)),
    ),
    hints=("Two questions with B answers each: which text belongs to this picture, which picture to this text?",
           "Row i of the logits is picture i's question, column i that of text i. An answer that does not count gets -inf.",
           "twins = (ids[:, None] == ids).all(2).fill_diagonal_(False); logits.masked_fill(twins, -torch.inf); then "
           "(cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2, own = torch.arange(B)"),
)  # fmt: skip

EYES = CLIP(READS, LOOKS).requires_grad_(False)
zero_shot_task = Task(
    "12.3", "a classifier made of sentences", zero_shot,
    cases=(
        # The cosines with red, green and blue are 0.37, 0, 0.93; then 0.45, 0.89, 0; then -0.70, -0.14, -0.70.
        Case("three pictures of one pixel, by hand",
             (EYES, torch.tensor([[0.2, 0, 0.5], [0.3, 0.6, 0], [-0.5, -0.1, -0.5]])[..., None, None],
              torch.tensor([RED, GREEN, BLUE])), torch.tensor([2, 1, 1])),
        Case("four pictures, five sentences", (EYES, IMAGES, torch.tensor([DARK, RED, [1, 3], GREEN, [2, 3]]))),
        Case("two sentences", (EYES, IMAGES, torch.tensor([[3, 4], [1, 2]]))),
    ),
    mistakes=(
        Mistake("this is for each text the picture that fits best: asked for is the text, for each picture, along dim=1.",
                lambda clip, images, ids: clip(images, ids).argmax(0)),
        Mistake("the text that fits worst was taken: logits grow with the likeness, they are no distances.",
                lambda clip, images, ids: clip(images, ids).argmin(1)),
        Mistake("these are the logits of the best texts: asked for are their numbers, 0 to N - 1.",
                lambda clip, images, ids: clip(images, ids).amax(1)),
        Mistake("the softmax ran over the pictures: so a picture gets a text that fits the others even worse.",
                lambda clip, images, ids: clip(images, ids).softmax(0).argmax(1)),
        Mistake("the towers' vectors were compared as they are: of two texts, the one with the longer vector wins too often.",
                lambda clip, images, ids: (clip.image(images) @ clip.text(ids).pooled.T).argmax(1)),
        Mistake("the sign was lost: a text that says the contrary fits worst, not best.",
                lambda clip, images, ids: clip(images, ids).abs().argmax(1)),
    ),
    hints=("What the CLIP of 12.1 answers holds it all.", "Logits have a row for each picture, a column for each text.",
           "clip(images, ids).argmax(1)"),
)  # fmt: skip


def first_end(ids, eos):
    return (ids if eos is None else (ids == eos).int()).argmax(1)


def reads(start=lambda net, ids: net.tokens(ids) + net.positions[: ids.shape[1]], end=first_end, layer=-1):
    """CLIPText.forward, with one of its parts replaced. layer: which is pooled, None: that of the tokens."""

    def forward(net, ids, skip=0, final_norm=True):
        states = [start(net, ids)]
        for each in net.layers:
            states.append(each(states[-1]))
        tokens = states[-1 - skip]
        last = net.norm(tokens if layer is None else states[layer])
        pooled = (net.projection or nn.Identity())(last[torch.arange(len(ids)), end(ids, net.config["eos"])])
        return Text(net.norm(tokens) if final_norm else tokens, pooled)

    return forward


EOS, HIGHEST = (filled(CLIPText(24, 8, 16, layers=3, heads=2, projection=10, eos=eos), noise).requires_grad_(False)
                for eos in (20, None))  # fmt: skip
PLAIN = filled(CLIPText(vocab=3, length=3, dim=4, layers=1, heads=1, eos=2),
               lambda shape, _, scales: torch.full(shape, float(scales and len(shape) == 1))).requires_grad_(False)  # fmt: skip
PLAIN.tokens.weight.data = torch.tensor([[0.0, 0, 0, 0], [1, 1, 0, 0], [1, 0, -1, 0]])
PLAIN.positions.data = torch.tensor([[0.0, 0, -1, -1], [0, -1, 0, 1], [-2, 1, 2, -1]])
SENTENCES = torch.tensor([[19, 3, 5, 20, 20, 20], [19, 4, 20, 0, 0, 0], [19, 22, 5, 3, 7, 20]])  # 22: a word added later
text_task = Task(
    "12.4", "a sentence in one vector", CLIPText.forward,
    cases=(
        # The layer adds 0, and the norm leaves (1, 1, -1, -1), in any order, as it is.
        Case("a word and two end tokens, by hand", (PLAIN, torch.tensor([[1, 2, 2]])),
             Text(torch.tensor([[[1.0, 1, -1, -1], [1, -1, -1, 1], [-1, 1, 1, -1]]]), torch.tensor([[1.0, -1, -1, 1]]))),
        Case("three sentences of different lengths", (EOS, SENTENCES)),
        Case("eos is None: the highest id ends a sentence", (HIGHEST, torch.where(SENTENCES == 20, 23, SENTENCES), 2)),
        Case("tokens of the last layer but one, without the norm", (EOS, SENTENCES, 1, False)),
    ),
    mistakes=(
        Mistake("the last place was pooled, which is padding as a rule: take the first end token.",
                reads(end=lambda ids, eos: torch.full((len(ids),), ids.shape[1] - 1))),
        Mistake("the last end token was pooled: where end tokens fill up a row, it is the first that ends the sentence.",
                reads(end=lambda ids, eos: ids.shape[1] - 1 - first_end(ids.flip(1), eos))),
        Mistake("the first place was pooled: tokens see only those before them, so that one has seen no word.",
                reads(end=lambda ids, eos: torch.zeros(len(ids), dtype=torch.int64))),
        Mistake("the highest id was taken for the end, which is right only where eos is None: words added later are higher.",
                reads(end=lambda ids, eos: ids.argmax(1))),
        Mistake("the words do not know where they stand: add the first L positions.", reads(lambda net, ids: net.tokens(ids))),
        Mistake("pooled follows skip here: it comes from the last layer, whatever the tokens come from.", reads(layer=None)),
    ),
    hints=("Keep what comes out of every layer: the tokens may be those of an earlier one.",
           "argmax gives the first place of the largest: (ids == eos).int().argmax(1), or ids.argmax(1) where eos is None.",
           "last = net.norm(states[-1]); pooled = net.projection(last[torch.arange(len(ids)), end])"),
)  # fmt: skip


def by_hand(shape, rng, is_weight):
    """Attention that hands on what it finds, an mlp that answers 0, norms as they are at first."""
    if len(shape) == 4:  # of a patch, the red counts alone, times (1, -1, 1, -1)
        return torch.tensor([[1.0, 0, 0], [-1, 0, 0], [1, 0, 0], [-1, 0, 0]]).view(shape)
    if shape == (2, 4):  # positions
        return torch.tensor([[1.0, 1, -1, -1], [0, 0, 0, 0]])
    return torch.eye(4) if shape == (4, 4) else torch.full(shape, float(is_weight and len(shape) == 1))


def towers(to_01=lambda images: (images + 1) / 2, lay=lambda maps: maps.flatten(2).mT, join=lambda *both: torch.cat(both, 1),
           place=torch.add, gather=lambda x: x[:, 0], norm_in=True, causal=False):  # fmt: skip
    """CLIPImage, with one of its parts replaced."""

    def forward(self, images):
        mean, std = (torch.tensor(rgb).view(3, 1, 1) for rgb in (MEAN, STD))
        patches = lay(self.patches((to_01(images) - mean) / std))
        x = place(join(self.start.expand(len(images), 1, -1), patches), self.positions)
        x = self.norm_in(x) if norm_in else x
        for layer in self.layers:
            layer.attention.causal = causal
            x = layer(x)
        return (self.projection or nn.Identity())(self.norm(gather(x)))

    return forwards(CLIPImage, forward)


OF_32 = {"size": 32, "patch": 8, "dim": 16, "layers": 1, "heads": 2, "projection": 10}
image_task = Task(
    "12.5", "a picture in one vector", CLIPImage,
    cases=(
        # In front stands a = (1, 1, -1, -1). The patch is 1.93 b of a red pixel, -1.79 b of a black one, b = (1, -1, 1, -1), of
        # which the norm makes b and -b. a has the scores 2 with itself and 0 with the patch, finds 0.881 a + 0.119 b, or - b,
        # and is (2, 1.761594, -1.761594, -2) with what it was, or (1.761594, 2, -2, -1.761594). The norm divides by 1.884571.
        Case("pictures of one pixel, one red, one black, by hand",
             (by_hand, {"size": 1, "patch": 1, "dim": 4, "layers": 1, "heads": 1, "projection": None},
              torch.tensor([1.0, -1, -1, -1, -1, -1]).view(2, 3, 1, 1)),
             Asked(COMPLETE, torch.tensor([[1.061249, 0.934745, -0.934745, -1.061249],
                                           [0.934745, 1.061249, -1.061249, -0.934745]]))),
        Case("images, 16 patches each", (noise, OF_32, IMAGES)),
        Case("two layers, four heads, an mlp and an activation of its own, no projection",
             (noise, OF_32 | {"layers": 2, "heads": 4, "mlp": 50, "activation": "gelu", "projection": None}, IMAGES / 10)),
    ),
    ask=asking(CLIPImage),
    mistakes=(
        Mistake("images come in [-1, 1], and CLIP's mean and std are those of images from 0 to 1: shift them first.",
                towers(lambda images: images)),
        Mistake("the patches do not know where they are: add the positions.", towers(place=lambda x, positions: x)),
        Mistake("the positions were laid on the patches alone: the token in front has one too, the first.",
                towers(place=lambda x, positions: torch.cat([x[:, :1], x[:, 1:] + positions[1:]], dim=1))),
        Mistake("the token that gathers stands behind the patches here: it belongs in front of them.",
                towers(join=lambda start, x: torch.cat([x, start], dim=1), gather=lambda x: x[:, -1])),
        Mistake("the mean of all tokens was taken: it is the one in front that gathers what there is to say.",
                towers(gather=lambda x: x.mean(1))),
        Mistake("the patches stand column by column: read the picture as a page, row by row.",
                towers(lay=lambda maps: maps.mT.flatten(2).mT)),
        Mistake("reshape cannot turn (dim, N) into (N, dim): flatten the grid, then swap the two axes.",
                towers(lay=lambda maps: maps.reshape(len(maps), -1, maps.shape[1]))),
        Mistake("the layers are causal, so that the token in front sees no patch: pictures have no first and no last.",
                towers(causal=True)),
        Mistake("the norm before the layers is not used.", towers(norm_in=False)),
    ),
    hints=("A convolution whose stride is as long as its kernel looks at each patch once: (B, dim, h, w).",
           "start.expand(B, 1, dim) stands in front of the tokens (B, N, dim) by torch.cat, dim=1; then come the positions.",
           "norm_in(torch.cat([start.expand(B, 1, -1), patches.flatten(2).transpose(1, 2)], dim=1) + positions), all the "
           "layers, norm(x[:, 0]), and the projection if there is one"),
)  # fmt: skip

TASKS = [clip_task, loss_task, zero_shot_task, text_task, image_task]
