"""Obedience, asked of models made by hand: one draws what it is told, one never listens, one takes colours the wrong way."""

import math
import random

import pytest
import torch
from scipy.stats import binom

from minidiff.data.captions import COLOURED, TASKS, prompts
from minidiff.data.shapes import SIZES, Attributes, draw as draw_scenes
from minidiff.evaluation import alignment as room
from minidiff.evaluation.alignment import Row, Walk, alignment, best_scale, draw, gap, questions, wilson

N = 12
CORNERS = [(0.27, 0.27), (0.73, 0.73), (0.73, 0.27), (0.27, 0.73)]
SIDES = {"left of": [(0.25, 0.5), (0.75, 0.5)], "right of": [(0.75, 0.5), (0.25, 0.5)], "above": [(0.5, 0.25), (0.5, 0.75)],
         "below": [(0.5, 0.75), (0.5, 0.25)]}  # fmt: skip


def scene(prompt, swap=False):
    """One that shows what is asked for; swap: with the colours of two objects exchanged."""
    wants = [want for want in prompt.wants for _ in range(want.count)]
    colours = [want.colour or "red" for want in wants]
    colours = colours[::-1] if swap and len(wants) == 2 else colours
    places = SIDES.get(prompt.relation, CORNERS if len(wants) > 1 else [(0.5, 0.5)])
    return [Attributes(want.shape, colour, want.size or "small", "", x, y, sum(SIZES[want.size or "small"]) / 2, 0.25 + k / 8,
                       prompt.background or "white")
            for k, (want, colour, (x, y)) in enumerate(zip(wants, colours, places, strict=False))]  # fmt: skip


class Hand:
    """A pipe that knows every question, and draws `answer(prompt)` or, to a text that is none of them, nothing."""

    def __init__(self, answer, asked, size=32):
        self.answer, self.size, self.calls = answer, size, []
        self.asked = {p.text: p for p in asked}

    def __call__(self, texts, steps, guidance_scale, sampler, generator):
        noise = torch.randn(len(texts), generator=generator)
        self.calls.append((list(texts), steps, guidance_scale, sampler, noise))
        blank = [Attributes("circle", "red", "small", "", 9.0, 9.0, 0.1, 0.5, "white")]  # beyond the frame
        scenes = [self.answer(self.asked[text]) if text in self.asked else blank for text in texts]
        return draw_scenes(scenes, self.size)[0] / 127.5 - 1


@pytest.fixture(scope="module")
def asked():
    return questions(N)


def shares(answer, asked, **walk):
    rows = alignment(Hand(answer, asked), asked, Walk(**walk), progress=False)
    return {(row.task, row.held_out): row.share for row in rows}


def test_what_is_asked(asked):
    rows = dict.fromkeys((p.task, p.held_out) for p in asked)
    assert list(rows) == [(task, False) for task in TASKS] + [(task, True) for task in COLOURED]
    assert len(asked) == 8 * N and asked[:N] == prompts(TASKS[0], N)
    assert {p.task for p in questions(2, tasks=["counting"])} == {"counting"}
    assert questions(N, seed=1) != asked
    with pytest.raises(ValueError, match='no task "flying"'):
        questions(2, tasks=["flying"])


def test_who_draws_what_is_asked_obeys_always(asked):
    rows = alignment(Hand(scene, asked), asked, Walk(1.0), progress=False)
    assert [(row.obeyed, row.n) for row in rows] == 8 * [(N, N)]
    assert rows[0].interval == wilson(N, N) and rows[0].share == 1


def test_who_never_listens_obeys_by_chance(asked):
    always = scene(asked[0])
    got = shares(lambda prompt: always, asked, scale=1.0)
    assert got["one object", False] < 0.5 and got["two objects", False] == got["position", False] == 0


def test_who_swaps_colours_loses_binding_and_nothing_else(asked):
    got = shares(lambda prompt: scene(prompt, swap=True), asked, scale=1.0)
    assert got == {key: float(key[0] != "attribute binding") for key in got} and len(got) == 8


def test_scale_0_listens_to_nobody_and_asks_once(asked):
    pipe = Hand(scene, asked)
    rows = alignment(pipe, asked[:5], Walk(0.0, 7, "sampler"), progress=False)
    assert [(texts, steps, scale, sampler) for texts, steps, scale, sampler, _ in pipe.calls] == [([""] * 5, 7, 1.0, "sampler")]
    assert rows[0].obeyed == 0


def test_batches_share_one_generator_and_scales_the_noise(asked):
    texts, noises = [p.text for p in asked[:7]], []
    for scale, batch in ((1.0, 3), (4.0, 3), (1.0, 7)):
        pipe = Hand(scene, asked)
        sizes = [len(images) for images in draw(pipe, texts, Walk(scale, batch=batch, seed=5), progress=False)]
        assert sizes == ([3, 3, 1] if batch == 3 else [7]) and {call[2] for call in pipe.calls} == {scale}
        noises.append(torch.cat([call[4] for call in pipe.calls]))
    assert noises[0].equal(noises[1]) and len(set(noises[0].tolist())) == 7
    assert next(draw(Hand(scene, asked), texts, Walk(None), progress=False)).shape == (7, 3, 32, 32)


def test_a_diverged_image_shows_nothing(asked):
    pipe = Hand(scene, asked)

    def broken(*args, **options):
        images = pipe(*args, **options)
        images[0, 1, 2, 3], images[1, 0, 0, 0] = math.nan, math.inf
        return images

    images = next(draw(broken, [p.text for p in asked[:3]], Walk(1.0), progress=False))
    assert images[:2].abs().max() == 0 and images[2].abs().max() > 0.1
    assert alignment(broken, asked[:3], Walk(1.0), progress=False)[0].obeyed == 1


def test_scale_0_of_a_real_pipeline_is_the_unconditional_network():
    import minidiff as md
    from minidiff.pipelines.own import OwnRecipe
    from minidiff.pretrained import words_tokenizer

    torch.manual_seed(0)
    tokenizer = words_tokenizer(["a", "star"], length=8)
    unet = md.UNet(4, 4, (8, 16), (True, False), layers=1, context_dim=12, shortcut=True).eval()
    text = md.CLIPText(len(tokenizer.vocab), 8, 12, layers=1, heads=2, eos=tokenizer.end).eval()
    for parameter in [*unet.parameters(), *text.parameters()]:
        torch.nn.init.normal_(parameter, std=0.3)
    vae = md.VAE(channels=(8, 16), layers=1, groups=None).eval()
    pipe = md.StableDiffusion(unet, vae, text, tokenizer, OwnRecipe({"name": "flow"}, "x0"), size=16)
    pipe.progress = False
    (ours,) = draw(pipe, ["a star", "a"], Walk(0.0, 3), progress=False)
    guided = {s: pipe(["a star", "a"], steps=3, guidance_scale=s, generator=torch.Generator().manual_seed(0)) for s in (0, 1)}
    torch.testing.assert_close(ours, guided[0], rtol=1e-4, atol=1e-4)
    assert (ours - guided[1]).abs().max() > 1e-3


@pytest.mark.parametrize("k, n", [(0, 10), (7, 10), (57, 60), (500, 500), (1, 2)])
def test_wilson_is_where_the_count_would_be_no_surprise(k, n):
    for p in wilson(k, n):
        surprise = abs(k / n - p) / math.sqrt(p * (1 - p) / n) if 0 < p < 1 else 1.96
        assert surprise == pytest.approx(1.96) and 0 <= p <= 1
    assert wilson(k, n)[0] <= k / n <= wilson(k, n)[1]
    assert wilson(n - k, n) == pytest.approx(tuple(1 - p for p in wilson(k, n)[::-1]))


def test_wilson_covers_the_truth_95_times_of_100():
    held = [sum(binom.pmf(k, 60, p) for k in range(61) if wilson(k, 60)[0] <= p <= wilson(k, 60)[1])
            for p in (0.05, 0.3, 0.5, 0.9, 0.97)]  # fmt: skip
    assert 0.93 < sum(held) / len(held) < 0.97 and min(held) > 0.9


def test_the_gap_covers_the_difference_95_times_of_100():
    dice = random.Random(0)

    def one():
        a, b = (Row("", False, sum(dice.random() < p for _ in range(100)), 100) for p in (0.9, 0.95))
        _, low, high = gap(a, b)
        return low <= -0.05 <= high

    assert 0.92 < sum(one() for _ in range(600)) / 600 < 0.98
    assert gap(Row("", True, 5, 10), Row("", False, 5, 10))[0] == 0
    assert gap(Row("", True, 10, 10), Row("", False, 10, 10))[1] == pytest.approx(wilson(10, 10)[0] - 1)


def rows(*counts, task="counting"):
    return [Row(task, False, k, 10) for k in counts]


def test_held_out_pairs_are_compared_with_those_of_their_task():
    some = [Row("colours", False, 9, 10), *rows(2), Row("colours", True, 6, 10)]
    assert list(room.held_out_gaps(some)) == ["colours"] and room.held_out_gaps(some)["colours"][0] == pytest.approx(-0.3)
    assert room.mean_share(some) == pytest.approx(0.55)


def test_the_best_scale_has_the_highest_mean_and_of_equals_is_the_smallest():
    sweep = {10.0: rows(9, 8, 7), 4.0: rows(7, 8, 9), 2.0: rows(8, 9, 7), 1.0: rows(8, 8, 7)}
    assert best_scale(sweep) == 2.0
    sweep[10.0].append(Row("counting", True, 10, 10))
    assert best_scale(sweep) == 2.0  # nothing is chosen by what was held out
    assert best_scale(sweep | {7.5: rows(9, 9, 9)}) == 7.5
