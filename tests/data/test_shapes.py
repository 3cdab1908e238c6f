"""Scenes are the same everywhere, look as their attributes say, and say what they look like."""

import hashlib
import math
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader

from minidiff.data.shapes import (
    BACKGROUNDS,
    COLOURS,
    FAR,
    SHAPES,
    SIZES,
    Attributes,
    Shapes,
    caption,
    draw,
    hidden,
    position,
    relation,
    silhouettes,
)

RED_CIRCLE = Attributes("circle", "red", "large", "centre", 0.5, 0.5, 0.25, 0.5, "white")


def pair(**changes):
    return RED_CIRCLE, RED_CIRCLE._replace(colour="blue", **changes)


def test_a_scene_depends_on_seed_and_index_alone():
    few, many = Shapes(5, seed=3, objects=(1, 2)), Shapes(500, seed=3, objects=(1, 2))
    for i in (4, 0, 2):
        assert few[i].caption == many[i].caption
        assert torch.equal(few[i].image, many[i].image)
    assert few.attributes(1) == Shapes(5, size=64, seed=3, objects=(1, 2)).attributes(1)
    assert few[-1].attributes == few[4].attributes
    assert [Shapes(8, seed=3)[i].caption for i in range(8)] != [Shapes(8, seed=4)[i].caption for i in range(8)]


def test_the_global_generators_are_neither_read_nor_moved():
    torch.manual_seed(0)
    before, first = torch.get_rng_state(), Shapes(3, objects=2)[2].image
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(Shapes(3, objects=2)[2].image, first)


def test_another_process_draws_the_same_bytes():
    code = ("import hashlib, torch; torch.set_num_threads(1); from minidiff.data.shapes import Shapes\n"
            "print(hashlib.sha256(Shapes(40, seed=7).tensors(chunk=7)[0].numpy().tobytes()).hexdigest())")
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert elsewhere == hashlib.sha256(Shapes(40, seed=7).tensors()[0].numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("size", [17, 32])
def test_all_at_once_is_one_by_one(size):
    scenes = Shapes(150, size, seed=1)
    images, labels = scenes.tensors()
    assert images.dtype == torch.uint8 and images.shape == (150, 3, size, size) and labels.dtype == torch.int64
    for i in range(150):
        scene = scenes[i]
        assert torch.equal(images[i] / 127.5 - 1, scene.image)
        assert scenes.classes[labels[i]] == f"{scene.attributes[0].colour} {scene.attributes[0].shape}"
    assert len(scenes.classes) == len(set(scenes.classes)) == 48


def test_every_class_size_and_background_is_met():
    every = [Shapes(2000, seed=2).attributes(i)[0] for i in range(2000)]
    assert {(a.shape, a.colour) for a in every} == {(s, c) for s in SHAPES for c in COLOURS}
    assert {a.background for a in every} == set(BACKGROUNDS) and {a.size for a in every} == set(SIZES)
    assert len({a.position for a in every}) == 9


def test_objects_lie_whole_inside_the_frame_and_have_their_size():
    for i in range(100):
        for a in Shapes(100, objects=2).attributes(i):
            assert a.radius < a.x < 1 - a.radius and a.radius < a.y < 1 - a.radius
            assert SIZES[a.size][0] <= a.radius <= SIZES[a.size][1] and a.position == position(a.x, a.y)
    cover = silhouettes([RED_CIRCLE._replace(shape=s) for s in SHAPES], 400) > 0
    for k, shape in enumerate(SHAPES):                            # each fills its box, and no more than it
        rows, columns = torch.nonzero(cover[k].any(1)), torch.nonzero(cover[k].any(0))
        assert 99 <= int(columns.min()) < 118 and 283 < int(columns.max()) <= 300, shape
        assert 99 <= int(rows.min()) < 118 and 283 < int(rows.max()) <= 300, shape


def test_the_centre_has_the_objects_colour_and_the_corner_the_backgrounds():
    for i in range(60):
        scene = Shapes(60, 64, seed=5)[i]
        a, = scene.attributes
        found = (scene.image[:, int(a.y * 64), int(a.x * 64)] + 1) / 2
        assert torch.allclose(found, torch.tensor(COLOURS[a.colour]), atol=1 / 255), scene.caption
        assert torch.allclose((scene.image[:, 0, 0] + 1) / 2, torch.tensor(BACKGROUNDS[a.background][0]), atol=0.01)
        assert scene.image.min() >= -1 and scene.image.max() <= 1


@pytest.mark.parametrize(("shape", "area"), [("circle", math.pi), ("square", (2 * 0.86) ** 2), ("triangle", 1.74),
                                             ("cross", 4 * (2 * 0.34 * 0.97 - 0.34**2)),
                                             ("star", 10 * 0.46 * 1.05**2 * math.sin(math.pi / 5) / 2),
                                             ("heart", 1.62**2 * (0.5 + math.pi / 8))])
def test_areas_are_those_of_geometry_and_converge_with_size(shape, area):
    thing = RED_CIRCLE._replace(shape=shape, x=0.487, y=0.511, radius=0.237)

    def error(size):
        return abs(float(silhouettes([thing], size).sum()) / size**2 / 0.237**2 / area - 1)

    assert error(32) < 0.02 and error(64) < 0.01 and error(512) < 5e-4


def test_edges_are_smooth():
    cover = silhouettes([RED_CIRCLE], 64)
    edge = (cover > 0.05) & (cover < 0.95)
    assert 60 < int(edge.sum()) < 200                             # about the circumference, 100 pixels
    moved = silhouettes([RED_CIRCLE._replace(x=0.5 + 0.1 / 64)], 64)
    assert 0 < (moved - cover).abs().max() < 0.15                 # a tenth of a pixel is seen, and is no jump


def test_a_circle_mask_has_the_area_of_a_circle():
    for i in range(5):
        scene = Shapes(5, 128, shapes=["circle"], seed=1)[i]
        assert scene.mask.mean().item() == pytest.approx(math.pi * scene.attributes[0].radius ** 2, rel=0.02)
        assert set(scene.mask.unique().tolist()) == {0.0, 1.0}


def test_depth_says_who_hides_whom():
    scenes = Shapes(60, 48, seed=4, objects=2)
    for i in range(60):
        scene = scenes[i]
        far, near = sorted(scene.attributes, key=lambda a: -a.depth)
        assert far.depth - near.depth >= 0.125
        assert torch.equal(scene.mask, (scene.depth < FAR).float())
        cover = silhouettes([near, far], 48)
        assert torch.equal(scene.depth[0] == near.depth, cover[0] >= 0.5)
        assert torch.equal(scene.depth[0] == far.depth, (cover[1] >= 0.5) & (cover[0] < 0.5))
        for thing, seen in ((near, cover[0] == 1), (far, (cover[1] == 1) & (cover[0] == 0))):
            colours = (scene.image[:, seen] + 1) / 2
            assert torch.allclose(colours, torch.tensor(COLOURS[thing.colour]).view(3, 1), atol=1 / 255)


def test_relations_are_true_and_beyond_argument():
    scenes, met = Shapes(200, seed=6, objects=2), set()
    for a, b in map(scenes.attributes, range(200)):
        word = relation(a, b)
        met.add(word)
        assert (a.shape, a.colour) != (b.shape, b.colour)
        if word in ("in front of", "behind"):
            assert 0.1 < hidden(a, b) < 0.5 and (a.depth < b.depth) == (word == "in front of") and a.colour != b.colour
        else:
            ahead = {"left of": b.x - a.x, "right of": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}
            assert word == max(ahead, key=ahead.get) and hidden(a, b) == 0
    assert met == {"left of", "right of", "above", "below", "in front of", "behind"}


def test_captions():
    assert caption([RED_CIRCLE]) == "a large red circle on a white background"
    a, b = pair(shape="star", size="small", x=0.9, radius=0.15, background="graded grey")
    assert caption([a, b]) == "a large red circle left of a small blue star on a white background"
    assert caption([b, a]) == "a small blue star right of a large red circle on a graded grey background"
    assert relation(*pair(x=0.6, depth=0.25)) == "behind" and relation(*pair(y=0.1, radius=0.1)) == "below"
    with pytest.raises(ValueError, match="3 objects"):
        caption([a, b, a])


def test_half_of_an_equal_circle_is_hidden_at_the_known_distance():
    assert hidden(*pair(x=0.5 + 0.25 * 0.8079)) == pytest.approx(0.5, abs=0.03)
    assert hidden(*pair(x=0.999)) == 0


def test_graded_backgrounds_run_from_top_to_bottom():
    image = draw([[RED_CIRCLE._replace(background="graded grey")]], 64)[0][0].float()
    down = image[:, :, 0].mean(0)
    assert (down.diff() <= 0).all() and down[0] - down[-1] > 80 and (image[:, :, 0] == image[:, :, -1]).all()


def test_a_loader_stacks_scenes():
    batch = next(iter(DataLoader(Shapes(4, objects=2), batch_size=4)))
    assert batch.image.shape == (4, 3, 32, 32) and batch.depth.shape == batch.mask.shape == (4, 1, 32, 32)
    assert len(batch.caption) == 4 and len(batch.attributes[0].shape) == 4 and batch.attributes[1].x.shape == (4,)


def test_subsets_and_iteration():
    scenes = Shapes(30, shapes=["star", "heart"], colours=["pink"], backgrounds="black", objects=2)
    assert scenes.classes == ["pink star", "pink heart"]
    assert len(list(scenes)) == 30
    assert all({a.shape for a in s.attributes} == {"star", "heart"} and "black" in s.caption for s in scenes)


@pytest.mark.parametrize(("options", "message"), [
    ({"n": 0}, "n is 0"), ({"size": 7}, "size is 7"), ({"seed": -1}, "seed is -1"), ({"objects": 3}, "objects is 3"),
    ({"objects": ()}, "objects is"), ({"shapes": ["hexagon"]}, "no such shape: hexagon"), ({"colours": []}, "colour"),
    ({"backgrounds": ["red"]}, "no such background: red"),
    ({"objects": 2, "shapes": ["star"], "colours": ["red"]}, "must differ")])
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Shapes(**{"n": 4, **options})


def test_other_misuse_is_named():
    with pytest.raises(ValueError, match="no one label"):
        Shapes(4, objects=(1, 2)).tensors()
    with pytest.raises(IndexError):
        Shapes(4)[4]
    with pytest.raises(ValueError, match="no object"):
        draw([[]], 32)
