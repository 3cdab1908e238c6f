"""Pictures: what is painted where, the same bytes for the same input, clear errors."""

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

import minidiff as md
from minidiff import plot
from minidiff.diffusion import CLEAN, State


@pytest.fixture
def images():
    return torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def states(images):
    levels = md.Schedule.linear().levels(5)[1:]
    return [State(images * level.sigma, images, level) for level in levels]


def read(path):
    return np.asarray(Image.open(path).convert("RGB"))


def holds(picture, image):
    """Whether every pixel of an image stands in the picture, enlarged by some whole number, in its place among the others."""
    pixels = plot.to_pixels(image[None])[0]
    zoom = -(-plot.CELL[0] // pixels.shape[1])
    block = pixels.repeat(zoom, 0).repeat(zoom, 1)
    h, w, _ = block.shape
    starts = np.argwhere((picture[: picture.shape[0] - h + 1, : picture.shape[1] - w + 1] == block[0, 0]).all(-1))
    return any(np.array_equal(picture[y : y + h, x : x + w], block) for y, x in starts)


def test_every_pixel_of_every_image_is_painted_crisp(images, tmp_path):
    plot.show_images(images, titles=list("abcdef"), columns=3, title="six", file=tmp_path / "new" / "six.png")
    picture = read(tmp_path / "new" / "six.png")
    assert all(holds(picture, image) for image in images)
    assert (picture[:, -1] == 255).all()


def test_a_grid_fills_row_by_row_and_labels_stand_in_the_margins(images, tmp_path):
    colours = torch.tensor([[-1.0, -1, -1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1], [-1, 1, 1]])
    flat = colours[:, :, None, None].expand(-1, -1, 16, 16)
    plot.show_images(flat, row_labels=["upper", "lower"], column_labels=["x", "y", "z"], file=tmp_path / "grid.png")
    picture = read(tmp_path / "grid.png")
    h, w, _ = picture.shape
    corner = (h - plot.GAP - 60, w - plot.GAP - 60)  # inside the last image
    step = 112 + plot.GAP
    found = [picture[corner[0] - (1 - i) * step, corner[1] - (2 - j) * step] for i in range(2) for j in range(3)]
    assert np.array_equal(np.stack(found), plot.to_pixels(flat)[:, 0, 0])
    bare = plot.show_images(flat, columns=3)
    labelled = plot.show_images(flat, row_labels=["upper", "lower"], column_labels=["x", "y", "z"])
    assert (labelled.get_size_inches() > bare.get_size_inches()).all()
    assert [text.get_text() for text in labelled.axes[0].texts if text.get_text()] == ["upper", "lower", "x", "y", "z"]


def test_nothing_written_is_cut_off_or_written_over(images):
    labels = ["red →\nblue", "onewordwithoutanyplacetobreakit", "a label that is wider by far than its picture"]
    figure = plot.show_images(images[:3], column_labels=labels, row_labels=["a row"], title=12 * "a title that is long, ")
    renderer, texts = FigureCanvasAgg(figure).get_renderer(), [text for text in figure.axes[0].texts if text.get_text()]
    boxes = [text.get_window_extent(renderer) for text in texts]
    frame = figure.bbox
    assert len(texts) > 6 and all(frame.contains(*corner) for box in boxes for corner in (box.min, box.max))
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_values_are_clamped_and_nan_is_seen():
    x = torch.tensor([-9.0, -1, 0, 1, torch.inf, torch.nan]).view(1, 1, 1, 6)
    grey = [[v] * 3 for v in (0, 0, 128, 255, 255)]
    assert plot.to_pixels(x)[0, 0].tolist() == [*grey, [255, 0, 255]]


def test_large_images_shrink_and_narrow_ones_keep_their_shape(tmp_path):
    plot.show_images(torch.zeros(1, 3, 512, 512), file=tmp_path / "large.png")
    assert read(tmp_path / "large.png").shape[1] == 256 + 2 * plot.GAP
    plot.show_images(torch.zeros(1, 1, 8, 16), file=tmp_path / "flat.png")
    assert read(tmp_path / "flat.png").shape[:2] == (56 + 2 * plot.GAP, 112 + 2 * plot.GAP)


@pytest.mark.parametrize("wrong", [
    torch.zeros(3, 8, 8), torch.zeros(1, 4, 8, 8), torch.zeros(0, 3, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
], ids=["no batch", "latents", "empty", "bytes"])  # fmt: skip
def test_what_is_no_image_is_refused(wrong):
    with pytest.raises(ValueError, match="give floats in"):
        plot.show_images(wrong)


@pytest.mark.parametrize("labels", [{"titles": ["a"]}, {"row_labels": list("abcd")}, {"columns": 3, "column_labels": ["a"]}])
def test_labels_must_fit(images, labels):
    with pytest.raises(ValueError, match="6 images make"):
        plot.show_images(images, **labels)


def test_the_film_strip_begins_and_ends_with_the_walk(states):
    figure = plot.show_trajectory(states, count=3, images=2)
    texts = [text.get_text() for text in figure.axes[0].texts if text.get_text()]
    assert texts == ["$x_t$", "predicted $x_0$"] * 2 + ["t = 600", "t = 200", "clean"]
    assert states[-1].level == CLEAN
    with pytest.raises(ValueError, match="no states"):
        plot.show_trajectory([])


def test_the_film_strip_paints_x_above_x0(states, tmp_path):
    plot.show_trajectory(states, count=2, file=tmp_path / "film.png")
    picture = read(tmp_path / "film.png")
    upper, lower = np.split(picture, [picture.shape[0] - 112 - plot.GAP - 2])
    assert holds(upper, states[0].x[0]) and not holds(upper, states[0].x0[0])
    assert holds(lower, states[0].x0[0]) and not holds(lower, states[0].x[0])


def test_levels_are_drawn_as_they_are():
    schedules = {"linear": md.Schedule.linear(), "flow": md.Schedule.flow(shift=3.0)}
    figure = plot.show_levels(schedules)
    alpha, sigma, log_snr = figure.axes
    for line, s in zip(alpha.lines, schedules.values(), strict=True):
        assert np.allclose(line.get_ydata(), s.alpha)
    assert np.allclose(sigma.lines[0].get_ydata(), schedules["linear"].sigma)
    assert np.allclose(log_snr.lines[0].get_ydata(), (schedules["linear"].alpha ** 2 / schedules["linear"].sigma ** 2).log())
    assert np.isnan(log_snr.lines[1].get_ydata()[-1])  # pure noise: minus infinity is not drawn
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["linear", "flow"]
    assert not plot.show_levels(md.Schedule.cosine()).legends


def test_the_running_mean_of_losses_is_over_the_last_ones_and_leaves_nan_out():
    figure = plot.show_losses([4, 2, float("nan"), 6, 8], smooth=3)
    linear, log = figure.axes
    assert (linear.get_yscale(), log.get_yscale()) == ("linear", "log")
    assert np.allclose(linear.lines[1].get_ydata(), [4, 3, 3, 4, 7])
    assert np.array_equal(log.lines[0].get_ydata(), [4, 2, np.nan, 6, 8], equal_nan=True)
    assert len(plot.show_losses([0.5, 0.4], smooth=9).axes) == 2  # a window longer than the run
    with pytest.raises(ValueError, match="no losses"):
        plot.show_losses([])


def test_an_animation_moves_and_rests_at_its_end(states, tmp_path):
    file = plot.animate(states, tmp_path / "new" / "walk.gif", fps=10, predicted=True)
    with Image.open(file) as gif:
        assert gif.n_frames == len(states) and gif.info["loop"] == 0
        pauses, frames = [], []
        for i in range(gif.n_frames):
            gif.seek(i)
            pauses.append(gif.info["duration"])
            frames.append(np.asarray(gif.convert("RGB")))
    assert pauses == [100] * (len(states) - 1) + [1500]
    assert not np.array_equal(frames[0], frames[-1])
    alone = plot.animate([state.x for state in states], tmp_path / "alone.gif", fps=10)
    with Image.open(alone) as gif:
        assert 2 * gif.width == frames[0].shape[1]
        gif.seek(gif.n_frames - 1)
        shown = np.asarray(gif.convert("RGB"))[plot.GAP + 5, plot.GAP + 5].astype(int)
    assert np.abs(shown - plot.to_pixels(states[-1].x)[0, 0, 0]).max() < 40  # a GIF has 256 colours
    with pytest.raises(ValueError, match="no frames"):
        plot.animate([], tmp_path / "x.gif")
    with pytest.raises(ValueError, match="states of a sampler"):
        plot.animate([states[0].x], tmp_path / "x.gif", predicted=True)


def test_the_same_input_leaves_the_same_bytes(images, states, tmp_path, monkeypatch):
    import matplotlib

    def draw(folder):
        plot.show_images(images, titles=list("abcdef"), title="$x_0$", file=folder / "images.png")
        plot.show_levels({"a": md.Schedule.linear()}, file=folder / "levels.png")
        plot.show_trajectory(states, file=folder / "film.png")
        plot.show_losses([3, 2, 1], file=folder / "losses.png")
        plot.show_curves({"a": ([1, 2], [3, 4])}, file=folder / "curves.png")
        plot.animate(states, folder / "walk.gif")
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    first = draw(tmp_path / "a")
    with matplotlib.rc_context({"font.size": 30, "savefig.bbox": "tight", "savefig.facecolor": "red"}):  # a reader's settings
        second = draw(tmp_path / "b")
    assert len(first) == 6 and first == second
    assert not any(b"Software" in data for data in first.values())


def test_a_figure_shows_itself_and_leaves_nothing_open(images):
    import matplotlib.pyplot as plt

    figure = plot.show_images(images)
    assert figure._repr_png_()[:4] == b"\x89PNG"
    assert plt.get_fignums() == []
