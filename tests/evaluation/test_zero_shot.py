"""The zero-shot table, asked of readers made by hand: one knows every sentence, one a bag of words, one sees nothing."""

import itertools

import pytest
import torch

from minidiff.data.captions import HELD_OUT
from minidiff.data.shapes import BACKGROUNDS, COLOURS, SHAPES, SIZES, Shapes
from minidiff.evaluation import zero_shot
from minidiff.evaluation.zero_shot import OPPOSITE, QUESTIONS, share_right, zero_shot_answers, zero_shot_table
from minidiff.nets import CLIP
from minidiff.pretrained import words_tokenizer

WORDS = " ".join([*COLOURS, *SHAPES, *SIZES, *BACKGROUNDS, *OPPOSITE, "a an on background and"]).split()
N, SEED = 60, 3


class Reader(CLIP):
    """A CLIP whose two towers are given: texts are read by `read`, ids -> (D,), and pictures seen by what is true of them."""

    def __init__(self, read, truths):
        small = {"dim": 4, "layers": 1, "heads": 1, "projection": None}
        super().__init__({"vocab": 1, **small}, {"size": 16, "patch": 4, **small})
        self.read, self.truths = read, iter(truths)

    def encode_text(self, ids):
        return torch.stack([self.read(row.tolist()) for row in ids])

    def encode_image(self, images):
        return torch.stack([next(self.truths) for _ in images])


@pytest.fixture(scope="module")
def tokenizer():
    return words_tokenizer(WORDS)


def truths(tokenizer, read):
    """What each picture looks like to `read`: the sum of all true sentences about it."""
    for objects in (1, 2):
        scenes = Shapes(N, 16, SEED, objects)
        for i in range(N):
            asked = [sentences(scenes.attributes(i)) for k, _, sentences in QUESTIONS.values() if k == objects]
            yield sum(read(tokenizer(texts[0])[0].tolist()) for texts in asked if texts)


def knowing(hashed={}):  # noqa: B006
    """A vector of its own for every sentence, at random, so that two different ones are nearly at right angles."""
    def read(ids):
        if tuple(ids) not in hashed:
            hashed[tuple(ids)] = torch.randn(4096, generator=torch.Generator().manual_seed(len(hashed))) / 64
        return hashed[tuple(ids)]
    return read


def bag(ids):
    return torch.bincount(torch.tensor([i for i in ids if i < max(ids)]), minlength=1000).float()  # less the padding


def test_who_knows_every_sentence_is_always_right(tokenizer):
    answers = zero_shot_answers(Reader(knowing(), truths(tokenizer, knowing())), tokenizer, N, SEED)
    assert [a.question for a in answers] == list(QUESTIONS) and {a.right for a in answers} == {1.0}
    assert [round(1 / a.guess) for a in answers] == [8, 6, 2, 6, 8, 6, 2, 2, 2]
    one = [Shapes(N, 16, SEED).attributes(i)[0] for i in range(N)]
    unseen = sum((a.colour, a.shape) in HELD_OUT for a in one)
    assert [a.pictures for a in answers[:6]] == 4 * [N - unseen] + 2 * [unseen] and unseen > 3


def test_who_reads_a_bag_of_words_guesses_where_only_the_order_tells(tokenizer):
    answers = zero_shot_answers(Reader(bag, truths(tokenizer, bag)), tokenizer, N, SEED)
    answers = [a for a in answers if a.question != "background"]  # "graded grey" is a bag with "grey" in it
    assert [a.right for a in answers] == 6 * [1.0] + 2 * [0.5]


def test_who_sees_nothing_guesses(tokenizer):
    blind = torch.zeros(1000)
    answers = zero_shot_answers(Reader(bag, itertools.repeat(blind)), tokenizer, N, SEED)
    assert [a.right for a in answers] == pytest.approx([a.guess for a in answers])


def test_sentences_about_a_scene():
    scenes = map(Shapes(999, objects=2).attributes, range(999))
    scene = next((a, b) for a, b in scenes if a.colour == "orange" != b.colour and a.shape != b.shape)
    a, b = (f"{thing.colour} {thing.shape}" for thing in scene)
    texts = {name: sentences(scene) for name, (objects, _, sentences) in QUESTIONS.items() if objects == 2}
    relation, order, binding = texts.values()
    word = relation[0].removeprefix(f"an {a} ").split(" a ")[0]
    assert relation == [f"an {a} {word} a {b}", f"an {a} {OPPOSITE[word]} a {b}"]
    assert order == [relation[0], f"a {b} {word} an {a}"]
    assert binding[0] == f"an {a} and a {b}" and sorted(binding[0].split()) == sorted(binding[1].split())
    assert QUESTIONS["size"][2](scene)[0] == f"a {scene[0].size} {a}" and len(set(QUESTIONS["colour"][2](scene))) == 8
    assert all(text.endswith("background") for text in QUESTIONS["background"][2](scene))


def test_half_answers():
    assert share_right(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])) == 0.5
    assert share_right(torch.tensor([[2.0, 2.0, 2.0, 1.0]])) == pytest.approx(1 / 3)


def test_table(tokenizer):
    table = zero_shot_table([zero_shot.Answer("colour", 0.987, 0.125, 88)])
    assert table.splitlines()[-1] == "| colour | 98.7% | 12.5% | 88 |"


def test_a_tokenizer_of_other_words_is_refused():
    with pytest.raises(ValueError, match="never learned"):
        zero_shot_answers(Reader(bag, itertools.repeat(torch.ones(1000))), words_tokenizer(["a"]), 2)
