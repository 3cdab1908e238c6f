"""Sentences are true of their scenes, prompts ask for what can be done, and an answer is judged by what was wanted."""

import collections
import hashlib
import itertools
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from minidiff.data.captions import COLOURED, HELD_OUT, TASKS, Captioned, Prompt, imagine, obeyed, prompts
from minidiff.data.grammar import HIDING, WORDS, Chances, Want, describe, stands, tell
from minidiff.data.oracle import read_shapes
from minidiff.data.shapes import BACKGROUNDS, COLOURS, SHAPES, SIZES, Attributes, Shapes, caption, hidden

COLOUR = "|".join(COLOURS)
THING = re.compile(rf"(a|an|one|two|three|four) (?:(small|little|large|big) )?(?:({COLOUR}) )?"
                   rf"({'|'.join(SHAPES)})((?:e?s)?)(?: in ({COLOUR}))?")
BETWEEN = re.compile(r" ((?:to the |on the )?(?:left|right) of|above|over|below|under|beneath|in front of|behind|and"
                     r"|together with) (?=a |an |one |two |three |four )")
SIDES = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
OTHER_WORDS = {"over": "above", "under": "below", "beneath": "below", "little": "small", "big": "large"}
RED, BLUE = (Attributes("circle", colour, "small", "", x, 0.5, 0.15, math.nan, "white")
             for colour, x in (("red", 0.3), ("blue", 0.7)))


def parse(text):
    """A sentence, understood by rules that were not made from those that wrote it: things, what stands between, background."""
    text = re.sub(r"^(a picture|an image|a drawing) of ", "", text)
    names = "|".join(sorted(BACKGROUNDS, key=len, reverse=True))
    front = re.fullmatch(rf"a ({names}) background with (.*)", text)
    back = re.fullmatch(rf"(.*) (?:on|against) a ({names}) background", text)
    background, text = front.groups() if front else back.groups()[::-1] if back else (None, text)
    names, between = BETWEEN.split(text)[::2], BETWEEN.split(text)[1::2]
    things = []
    for name in names:
        number, size, before, shape, plural, after = THING.fullmatch(name).groups()
        assert (plural != "") == (number in ("two", "three", "four")) and not (before and after), text
        assert (plural == "es") == (shape == "cross" and plural != ""), text
        assert (number == "an") == bool(re.match("an? orange", name)), text
        count = {"two": 2, "three": 3, "four": 4}.get(number, 1)
        things.append((shape, before or after, OTHER_WORDS.get(size, size), count))
    words = [re.sub("^(to|on) the ", "", OTHER_WORDS.get(word, word)) for word in between]
    return things, words, background


def check_truth(text, scene):
    """Every object of the scene is named, and all that is said of it is so."""
    things, words, background = parse(text)
    assert background in (None, scene[0].background) and len(set(things)) == len(things), text
    assert sum(count for *_, count in things) == len(scene), text
    for shape, colour, size, count in things:
        named = [a for a in scene if a.shape == shape and colour in (None, a.colour)]
        assert len(named) == count and {a.size for a in named} <= ({size} if size else set(SIZES)), text
    for word in set(words) - {"and", "together with"}:
        assert len(things) == len(scene) == 2, text
        a, b = scene if things[0][0] == scene[0].shape and things[0][1] in (None, scene[0].colour) else scene[::-1]
        if word in HIDING:
            assert hidden(a, b) > 0.1 and (a.depth < b.depth) == (word == "in front of"), text
        else:
            across, down = SIDES[word]
            ahead = across * (a.x - b.x) + down * (a.y - b.y)
            assert ahead == max(abs(a.x - b.x), abs(a.y - b.y)) and hidden(a, b) == 0, text


LONGEST = 31  # words: "an image of", four times "one small star in red" with "and" between, "on a graded grey background"


@pytest.fixture(scope="module")
def plans():
    scenes = Captioned(1500, seed=1)
    return [scenes.plan(i) for i in range(1500)]


def test_captions_are_true(plans):
    for scene, prompt in plans:
        check_truth(prompt.text, scene)
        things, words, background = parse(prompt.text)
        assert [Want(*thing) for thing in things] == list(prompt.wants) and background == prompt.background
        assert prompt.relation in (None, *words) and obeyed(prompt, scene, alone=True), prompt


def test_every_other_caption_says_everything(plans):
    def whole(scene, prompt):
        kinds = {(a.shape, a.colour) for a in scene}
        sizes = {kind: {a.size for a in scene if (a.shape, a.colour) == kind} for kind in kinds}
        return (prompt.background is not None and {(want.shape, want.colour) for want in prompt.wants} == kinds
                and all(want.size is not None or len(sizes[want.shape, want.colour]) > 1 for want in prompt.wants))

    assert 0.5 < sum(whole(*plan) for plan in plans) / len(plans) < 0.6  # half, and those of the others where chance has it so
    sided = [prompt for scene, prompt in plans if whole(scene, prompt) and len(scene) == 2 and len(prompt.wants) == 2]
    assert sum(prompt.relation is not None for prompt in sided) > 0.9 * len(sided)


def test_brief_captions_ask_as_prompts_do(plans):
    """A third of all, none of those that say everything; the scenes and the rest of the captions stay what they are."""
    scenes = Captioned(1500, seed=1, brief=1 / 3)
    assert [scenes.plan(i)[0] for i in range(1500)] == [scene for scene, _ in plans]
    other = [i for i in range(1500) if scenes.plan(i)[1].text != plans[i][1].text]
    assert 0.15 < len(other) / 1500 < 1 / 3                         # some say by chance what they said before

    def told(prompt):
        return sum(want.colour is not None for want in prompt.wants) + sum(want.size is not None for want in prompt.wants)

    pairs = [i for i in other if scenes.plan(i)[1].task == "two objects"]
    assert len(pairs) > 20 and sum(told(scenes.plan(i)[1]) for i in pairs) == 0 < sum(told(plans[i][1]) for i in pairs)
    for i in pairs:                                                 # the upper left is named first
        (a, *_), prompt = sorted(scenes.plan(i)[0], key=lambda a: a.x + a.y), scenes.plan(i)[1]
        assert prompt.wants[0].shape == a.shape, prompt.text
    assert {"left of", "right of", "above", "below"} <= {scenes.plan(i)[1].relation for i in other}


def test_descriptions_are_true_and_start_with_either_object(plans):
    random, first = np.random.default_rng(0), collections.Counter()
    for scene, _ in plans[:600]:
        text = describe(scene, random)
        check_truth(text, scene)
        if len(scene) == 2 and scene[0].shape != scene[1].shape:
            first[parse(text)[0][0][0] == scene[0].shape] += 1
    assert min(first[True], first[False]) > 80


def test_a_star_right_of_a_circle_is_a_circle_left_of_a_star():
    random, scene = np.random.default_rng(0), (RED, BLUE._replace(shape="star"))
    said = {describe(scene, random) for _ in range(20000)}
    assert {"a circle left of a star", "a star right of a circle", "an image of one circle in red and a star"} <= said


def test_the_caption_of_shapes_is_one_of_the_descriptions():
    for i, scene in enumerate(map(Shapes(5, objects=(1, 2), seed=3).attributes, range(5))):
        random = np.random.default_rng(i)
        assert any(describe(scene, random) == caption(scene) for _ in range(20000)), caption(scene)


def test_alike_objects_are_counted_in_words():
    star, all_said = BLUE._replace(shape="star"), Chances(1, 1, 1, 1)
    _, wants, relation, background = tell((RED, star, RED._replace(x=0.5)), np.random.default_rng(0), all_said)
    assert wants == (Want("circle", "red", "small", 2), Want("star", "blue", "small", 1))
    assert (relation, background) == (None, "white")
    nothing = tell((RED, BLUE, star), np.random.default_rng(0), Chances(0, 0, 0, 0))
    assert nothing[1:] == ((Want("circle", count=2), Want("star")), None, None)
    mixed = tell((RED, RED._replace(size="large"), BLUE), np.random.default_rng(0), Chances(0, 1, 1, 0))
    assert mixed.wants == (Want("circle", count=3),)                # neither a size nor a colour is true of all three


def test_related_objects_of_one_shape_are_told_apart():
    for seed in range(30):
        sentence = tell((RED, BLUE), np.random.default_rng(seed), Chances(0.1, 0, 1, 0))
        assert sentence.relation == "left of" and [want.colour for want in sentence.wants] == ["red", "blue"]


def test_words_are_all_that_is_said_and_nothing_else(plans):
    assert {word for _, prompt in plans for word in prompt.text.split()} == set(WORDS) and list(WORDS) == sorted(WORDS)
    asked = [prompt.text for task in TASKS for prompt in prompts(task, 30)]
    assert {word for text in asked for word in text.split()} <= set(WORDS)
    assert max(len(prompt.text.split()) for _, prompt in plans) <= LONGEST
    assert all(sum(word in prompt.text.split() for _, prompt in plans) > 3 for word in WORDS)


def test_held_out_pairs_are_named_and_never_taught(plans):
    assert sorted(shape for _, shape in HELD_OUT) == sorted(SHAPES) and {colour for colour, _ in HELD_OUT} < set(COLOURS)
    assert len({colour for colour, _ in HELD_OUT}) == 6
    met = {(a.colour, a.shape) for scene, _ in plans for a in scene}
    assert met == set(itertools.product(COLOURS, SHAPES)) - set(HELD_OUT)
    assert not any(prompt.held_out for _, prompt in plans)


def test_held_out_scenes_hold_one_each():
    scenes = Captioned(150, seed=2, held_out=True)
    held = [{(a.colour, a.shape) for a in scenes.plan(i)[0]} & set(HELD_OUT) for i in range(150)]
    assert all(held) and set.union(*held) == set(HELD_OUT)
    assert any(scenes.plan(i)[1].held_out for i in range(20))


def test_scenes_are_those_of_their_task(plans):
    by_task = {task: [(scene, prompt) for scene, prompt in plans if prompt.task == task] for task in TASKS}
    assert all(200 < len(some) < 300 for some in by_task.values())
    for scene, _ in by_task["one object"] + by_task["colours"]:
        assert len(scene) == 1
    counts = collections.Counter(len(scene) for scene, _ in by_task["counting"])
    assert set(counts) == {1, 2, 3, 4} and min(counts.values()) > 40
    for scene, _ in by_task["counting"]:
        assert len({a.shape for a in scene}) == 1
    one_colour = sum(len({a.colour for a in scene}) == 1 for scene, _ in by_task["counting"] if len(scene) > 2)
    assert 0.65 < one_colour / (counts[3] + counts[4]) < 0.85
    assert all(prompt.wants[0].colour for _, prompt in by_task["colours"] + by_task["attribute binding"])
    assert all(prompt.relation for _, prompt in by_task["position"])
    assert {len(scene) for scene, _ in by_task["two objects"]} == {2, 3, 4}
    crowds = [{(a.shape, a.colour) for a in scene} for scene, _ in by_task["two objects"] if len(scene) > 2]
    assert 40 < len(crowds) < 85 and all(len(kinds) == 2 for kinds in crowds)
    first = collections.Counter(p.wants[0].count for scene, p in by_task["two objects"] if len(p.wants) < len(scene))
    assert min(first[1], first[2], first[3]) > 5                    # "a star and two circles", as well as the other way round


def test_objects_stand_clear_whole_and_in_the_frame(plans):
    hiding = 0
    for scene, prompt in plans:
        for a in scene:
            assert a.radius + 0.039 < min(a.x, a.y, 1 - a.x, 1 - a.y) and a.background == scene[0].background
            assert SIZES[a.size][0] <= a.radius <= SIZES[a.size][1] and (a.size == "small" or len(scene) < 3)
        for a, b in itertools.combinations(scene, 2):
            hides = prompt.relation in HIDING
            hiding += hides
            assert a.depth != b.depth and (hidden(a, b, grow=1.1) > 0) == hides, prompt.text
    assert 30 < hiding < 90


def test_a_scene_depends_on_seed_and_index_alone():
    few, many = Captioned(5, seed=3), Captioned(500, 32, seed=3)
    assert [few.plan(i) for i in (4, 0, 2)] == [many.plan(i) for i in (4, 0, 2)] and few.plan(-1) == few.plan(4)
    assert [Captioned(8, seed=4).plan(i) for i in range(5)] != [few.plan(i) for i in range(5)]
    assert [prompts("position", 3, seed=1)[k] for k in range(3)] == prompts("position", 6, seed=1)[:3]
    assert prompts("position", 6, seed=1) != prompts("position", 6, seed=2)


def test_another_process_says_and_draws_the_same():
    code = ("import hashlib, torch; torch.set_num_threads(1); from minidiff.data.captions import Captioned\n"
            "images, said = Captioned(40, 32, seed=7).tensors(chunk=7)\n"
            "print(hashlib.sha256(images.numpy().tobytes() + str(said).encode()).hexdigest())")
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                               env=os.environ | {"PYTHONHASHSEED": "1"}).stdout.strip()
    images, said = Captioned(40, 32, seed=7).tensors()
    assert elsewhere == hashlib.sha256(images.numpy().tobytes() + str(said).encode()).hexdigest()


def test_all_at_once_is_one_by_one():
    scenes = Captioned(60, 48, seed=5)
    images, said = scenes.tensors(chunk=25)
    assert images.shape == (60, 3, 48, 48) and images.dtype == torch.uint8 and len(scenes) == len(said) == 60
    for scene, image, text in zip(scenes, images, said, strict=True):
        assert torch.equal(image / 127.5 - 1, scene.image) and scene.caption == text
        nearest = torch.tensor([a.depth for a in scene.attributes]).min()
        assert scene.depth.shape == scene.mask.shape == (1, 48, 48) and scene.depth.min() == nearest
        assert torch.equal(scene.mask, (scene.depth < 1).float())
        assert len(scene.depth.unique()) == len(scene.attributes) + 1


def test_tasks_can_be_chosen():
    assert {prompt.task for prompt in (Captioned(40, tasks=["counting"]).plan(i)[1] for i in range(40))} == {"counting"}
    scenes = Captioned(400, tasks=["colours", "colours", "one object"])
    assert 220 < sum(scenes.plan(i)[1].task == "colours" for i in range(400)) < 310


@pytest.mark.parametrize("task", TASKS)
def test_prompts_ask_for_their_task(task):
    for prompt in prompts(task, 60):
        things, words, background = parse(prompt.text)
        assert [Want(*thing) for thing in things] == list(prompt.wants) and background == prompt.background
        shapes, colours = ({want[k] for want in prompt.wants} for k in range(2))
        assert prompt.task == task and not prompt.held_out and prompt.relation in (None, *words)
        assert None not in colours if task in COLOURED else colours == {None}
        assert all(want.size is None for want in prompt.wants) or task == "one object"
        if task == "counting":
            assert len(prompt.wants) == 1 and prompt.wants[0].count in (2, 3, 4)
        else:
            assert len(prompt.wants) == len(shapes) == (1 if task in ("one object", "colours") else 2)
            assert all(want.count == 1 for want in prompt.wants)
        assert (prompt.relation in SIDES) == (task == "position")
        assert len(colours) == 2 or task != "attribute binding"
    asked = prompts(task, 60)
    assert len({prompt.text for prompt in asked}) > 25 and any(prompt.background for prompt in asked)
    assert {prompt.wants[0].shape for prompt in asked} == set(SHAPES)


@pytest.mark.parametrize("task", COLOURED)
def test_held_out_prompts_name_a_held_out_pair(task):
    asked = prompts(task, 40, held_out=True)
    named = [{(want.colour, want.shape) for want in prompt.wants} & set(HELD_OUT) for prompt in asked]
    assert all(named) and all(prompt.held_out for prompt in asked) and set.union(*named) == set(HELD_OUT)


def wanting(*wants, relation=None, background=None, task="two objects"):
    return Prompt("", task, wants, relation, background, False)


@pytest.mark.parametrize(("prompt", "there", "verdict"), [
    (wanting(Want("circle")), [], False),
    (wanting(Want("circle")), [RED], True),
    (wanting(Want("circle")), [RED, BLUE], True),                                    # GenEval: at least what is asked
    (wanting(Want("circle", "red", "large")), [RED], False),
    (wanting(Want("circle", "red", "small")), [RED], True),
    (wanting(Want("star", "red")), [RED], False),
    (wanting(Want("circle", "red"), Want("star", "blue")), [RED, BLUE._replace(shape="star")], True),
    (wanting(Want("circle", "red"), Want("star", "blue")),                           # the colours are there, bound wrongly
     [RED._replace(shape="star"), BLUE], False),
    (wanting(Want("circle", "red"), Want("circle")), [RED], False),                  # one object meets one want
    (wanting(Want("circle"), Want("circle", "red")), [RED, BLUE], True),             # whichever way they are dealt out
    (wanting(Want("circle", count=2)), [RED], False),
    (wanting(Want("circle", count=2), task="counting"), [RED, BLUE], True),
    (wanting(Want("circle", count=2), task="counting"), [RED, BLUE, RED], False),
    (wanting(Want("circle", count=2), task="counting"), [RED, BLUE, RED._replace(shape="star")], False),
    (wanting(Want("circle", count=3), task="counting"), [RED, BLUE], False),
    (wanting(Want("circle"), background="white"), [RED], True),
    (wanting(Want("circle"), background="black"), [RED], False),
    (wanting(Want("circle", "red"), Want("circle", "blue"), relation="left of"), [BLUE, RED], True),
    (wanting(Want("circle", "blue"), Want("circle", "red"), relation="left of"), [RED, BLUE], False),
    (wanting(Want("circle", "blue"), Want("circle", "red"), relation="right of"), [RED, BLUE], True),
    (wanting(Want("circle", "blue"), Want("circle", "red"), relation="above"), [RED, BLUE], False),
    (wanting(Want("circle", "blue"), Want("circle", "red"), relation="below"), [RED, BLUE._replace(y=0.9)], True)])
def test_verdicts(prompt, there, verdict):
    assert obeyed(prompt, tuple(there)) is verdict


def test_alone_asks_that_nothing_else_be_there():
    assert obeyed(wanting(Want("circle", "red")), (RED, BLUE)) and not obeyed(wanting(Want("circle", "red")), (RED, BLUE), True)


def test_sides_are_genevals():
    def holds(word, dx, dy):
        return stands(RED, word, RED._replace(x=RED.x + dx, y=RED.y + dy))

    assert holds("left of", 0.4, 0.4) and holds("above", 0.4, 0.4)                   # on the diagonal, both
    assert holds("left of", 0.13, 0) and not holds("left of", 0.11, 0)               # 0.2 * 0.3 + half of it: 0.12
    assert not holds("left of", 0.2, 0.5) and holds("above", 0.2, 0.5) and not holds("right of", 0.4, 0)


def test_what_an_image_does_not_tell_is_not_judged():
    prompt = wanting(Want("circle", "red"), Want("circle", "blue"), relation="in front of")
    with pytest.raises(ValueError, match="in front of.*ask for a side"):
        obeyed(prompt, (RED, BLUE))
    over = BLUE._replace(x=0.45)
    assert not any(set(describe((RED, over), np.random.default_rng(i)).split()) & {"front", "behind"} for i in range(200))
    near, far = RED._replace(depth=0.25), BLUE._replace(x=0.45, depth=0.5)
    assert obeyed(prompt, (near, far)) and not obeyed(prompt, (near._replace(depth=0.75), far))


def test_the_oracle_confirms_captions_and_refuses_those_of_other_scenes():
    scenes = Captioned(120, 64, seed=11)
    judged = [i for i in range(120) if scenes.plan(i)[1].relation not in HIDING]
    plans, readings = [scenes.plan(i) for i in judged], read_shapes(scenes.tensors()[0][judged] / 127.5 - 1)
    assert all(obeyed(prompt, reading, alone=True) for (_, prompt), reading in zip(plans, readings, strict=True))
    agreed = verdicts = 0
    for (_, prompt), ((scene, _), reading) in itertools.product(plans, zip(plans, readings, strict=True)):
        verdict = obeyed(prompt, reading)
        agreed, verdicts = agreed + (verdict == obeyed(prompt, scene)), verdicts + verdict
    assert agreed / len(plans) ** 2 > 0.9995 and verdicts / len(plans) ** 2 < 0.15


@pytest.mark.parametrize(("call", "message"), [
    (lambda: prompts("colour", 3), "no task \"colour\": choose from one object"), (lambda: prompts("counting", 0), "n is 0"),
    (lambda: prompts("counting", 3, seed=-1), "seed is -1"),
    (lambda: prompts("counting", 3, held_out=True), "name no colour.*colours or attribute binding"),
    (lambda: Captioned(0), "n is 0"), (lambda: Captioned(4, 7), "size is 7"), (lambda: Captioned(4, tasks=()), "one task"),
    (lambda: Captioned(4, tasks=["count"]), "no task"), (lambda: Captioned(4, seed=-1), "seed is -1"),
    (lambda: Captioned(4, brief=0.6), "give 0 to 0.5"), (lambda: Captioned(4, brief=-0.1), "brief is -0.1"),
    (lambda: describe((), np.random.default_rng(0)), "0 objects"),
    (lambda: describe((RED,) * 5, np.random.default_rng(0)), "5 objects: .* one to four")])
def test_misuse_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_there_is_no_scene_beyond_the_last():
    with pytest.raises(IndexError, match="scene 4 of 4"):
        Captioned(4)[4]
    assert len(list(Captioned(4, 8))) == 4


def test_imagine_draws_random_alone():
    """`random()` has the same bits in every version of NumPy; other draws do not."""
    class Counted:
        def __init__(self):
            self.random = np.random.default_rng(0).random

    for task in TASKS:
        assert imagine(task, Counted()) and describe(imagine(task, Counted()), Counted())
