"""A judge learns a toy set in a second; its figures move as they should when its pictures are damaged."""

import json
import os
from pathlib import Path

import pytest
import torch

from minidiff.data.images import Images, from_pixels, load_images
from minidiff.evaluation.judge import (
    Judge,
    _in_units_of_spread,
    floors,
    judge_samples,
    load_judge,
    load_or_train_judge,
    train_judge,
)
from minidiff.evaluation.metrics import frechet_distance

OPTIONS = {"epochs": 3, "batch_size": 32, "flip": False}


def stripes(n: int, seed: int) -> Images:
    """16x16 pictures of 3 classes: stripes across, stripes down, none; each with some noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (n,), generator=generator)
    wave = (torch.arange(16) // 2 % 2).float()
    clean = torch.stack([wave[:, None].expand(16, 16), wave.expand(16, 16), torch.full((16, 16), 0.5)])[labels, None]
    noisy = clean * 150 + 50 + 15 * torch.randn(clean.shape, generator=generator)
    return Images(noisy.clamp(0, 255).to(torch.uint8), labels, ["across", "down", "none"])


@pytest.fixture(scope="module")
def sets():
    return stripes(640, 0), stripes(300, 1)


@pytest.fixture(scope="module")
def judge(sets):
    return train_judge(sets[0], **OPTIONS)


def test_it_learns_from_train_what_holds_on_test(judge, sets):
    with torch.no_grad():
        guesses = judge(from_pixels(sets[1].pixels)).argmax(1)
    assert not judge.training and (guesses == sets[1].labels).float().mean() > 0.97


def test_logits_are_read_from_the_features(judge, sets):
    x = from_pixels(sets[1].pixels[:5])
    features = judge.features(x)
    assert features.shape == (5, 128) and bool((features >= 0).all())
    assert torch.equal(judge.head(features), judge(x)) and judge(x).shape == (5, 3)


def test_features_are_in_units_of_their_spread(judge, sets):
    with torch.no_grad():
        spread = judge.features(from_pixels(sets[0].pixels)).var(dim=0)
    assert float(spread.mean()) == pytest.approx(1, rel=1e-3)
    x, raw = from_pixels(sets[1].pixels[:50]), Judge(1, 16, 3).eval()
    before, small = raw(x), raw.features(x).std()
    scaled = _in_units_of_spread(raw, sets[0])
    assert scaled.features(x).std() > 1.5 * small  # it did something, and to no opinion
    torch.testing.assert_close(scaled(x), before)


def test_training_is_repeatable_and_leaves_the_global_generator_alone(judge, sets):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again, other = train_judge(sets[0], **OPTIONS), train_judge(sets[0], **OPTIONS, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, judge.state_dict()[name])
    assert not torch.equal(other.head.weight, judge.head.weight)


def test_report_of_real_pictures_is_at_the_floor_and_of_noise_far_above(judge, sets):
    train, test = sets
    real = stripes(200, 2)
    report = judge_samples(judge, from_pixels(real.pixels), real.labels, test, train)
    assert report.samples.n == report.floor.n == 200
    assert report.samples.fd < 3 * report.floor.fd and report.samples.accuracy > 0.97 and report.test_accuracy > 0.97
    noise = torch.rand(200, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    bad = judge_samples(judge, noise, real.labels, test, train)
    assert bad.samples.fd > 20 * report.samples.fd and bad.samples.kd > 20 * abs(report.samples.kd)
    assert bad.samples.accuracy < 0.6 and bad.floor == report.floor


def test_report_is_of_the_samples_features_against_the_whole_test_set(judge, sets):
    train, test = sets
    x = from_pixels(stripes(60, 3).pixels)
    with torch.no_grad():
        expected = frechet_distance(judge.features(x), judge.features(from_pixels(test.pixels)))
    report = judge_samples(judge, x, None, test, train)
    assert report.samples.fd == pytest.approx(expected, rel=1e-4) and report.samples.accuracy is None
    assert judge_samples(judge, x * 1.0, None, test, train, seed=1).floor.fd != report.floor.fd
    too_bright = torch.where(x > 0.5, x + 7, x)
    clamped = judge_samples(judge, too_bright.clamp(-1, 1), None, test, train)
    assert judge_samples(judge, too_bright, None, test, train) == clamped
    assert "floor" in str(report) and f"{report.samples.fd:.2f}" in str(report)


def test_accuracy_is_the_share_of_labels_hit(judge, sets):
    real = stripes(40, 4)
    x = from_pixels(real.pixels)
    with torch.no_grad():
        right = judge(x).argmax(1)
    labels = torch.where(torch.arange(40) < 10, (right + 1) % 3, right)
    assert judge_samples(judge, x, labels, sets[1], sets[0]).samples.accuracy == pytest.approx(0.75)


def test_a_judge_left_in_training_mode_does_not_learn_from_samples(judge, sets):
    before = judge.body[2].running_mean.clone()
    judge.train()
    judge_samples(judge, torch.ones(50, 1, 16, 16), None, sets[1], sets[0])
    assert torch.equal(before, judge.body[2].running_mean) and not judge.training


def test_floors_climb_with_the_damage(judge, sets, capsys):
    rows = floors(judge, *sets)
    names = ["real train, 500", "real train, 640", "with noise of std 10/255", "with noise of std 25/255",
             "with noise of std 50/255", "uniform noise"]
    assert list(rows) == names and [row.n for row in rows.values()] == [500] + [640] * 5
    assert rows[names[1]].fd < rows[names[3]].fd < rows[names[4]].fd < rows[names[5]].fd
    assert rows[names[1]].accuracy > 0.97 and rows[names[5]].accuracy < 0.6
    printed = capsys.readouterr().out
    assert all(name in printed for name in names) and f"{rows['uniform noise'].fd:.2f}" in printed


def test_trained_once_and_kept(tmp_path, sets, monkeypatch):
    folder = tmp_path / "judge"
    with pytest.raises(FileNotFoundError, match="load_or_train_judge"):
        load_judge(folder)
    first = load_or_train_judge(sets[0], folder, **OPTIONS)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    monkeypatch.setattr(torch.optim, "AdamW", lambda *args, **options: pytest.fail("it was trained again"))
    for again in (load_judge(folder), load_or_train_judge(sets[0], folder, **OPTIONS)):
        assert not again.training
        for name, weight in first.state_dict().items():
            assert torch.equal(weight, again.state_dict()[name])


def test_a_kept_judge_is_neither_used_nor_replaced_for_other_pictures_or_options(tmp_path, sets):
    train, test = sets
    first = load_or_train_judge(train, tmp_path, **OPTIONS)
    written = (tmp_path / "model.safetensors").stat().st_mtime_ns
    shuffled = train.select(torch.randperm(640, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(load_or_train_judge(shuffled, tmp_path, **OPTIONS).head.weight, first.head.weight)
    with pytest.raises(ValueError, match="other epochs"):
        load_or_train_judge(train, tmp_path, **{**OPTIONS, "epochs": 4})
    with pytest.raises(ValueError, match="images_per_class"):
        load_or_train_judge(test, tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match="sum_of_pixels"):
        load_or_train_judge(Images(255 - train.pixels, train.labels, train.classes), tmp_path, **OPTIONS)
    with pytest.raises(TypeError, match="epoch"):
        load_or_train_judge(train, tmp_path, epoch=3)
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == written


def test_damaged_files_are_said(tmp_path, judge, sets):
    load_or_train_judge(sets[0], tmp_path, **OPTIONS)
    about = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**about, "config": {**about["config"], "num_classes": 4}}))
    with pytest.raises(ValueError, match="does not fit"):
        load_judge(tmp_path)


def test_judges_of_other_sizes_and_colours():
    for channels, size in ((3, 8), (1, 28), (3, 64)):
        assert Judge(channels, size, 5)(torch.zeros(2, channels, size, size)).shape == (2, 5)
    for size in (4, 30):
        with pytest.raises(ValueError, match=f"size = {size}"):
            Judge(size=size)


def test_it_refuses(judge, sets):
    train, test = sets
    x, y = torch.zeros(4, 1, 16, 16), torch.zeros(4, dtype=torch.int64)
    for samples, labels, word in [
        (x[:1], None, "1 samples"),
        (torch.zeros(641, 1, 16, 16), None, r"2\.\.640"),
        (torch.full_like(x, torch.nan), None, "NaN"),
        (torch.full_like(x, torch.inf), None, "infinity"),
        (torch.zeros(4, 3, 16, 16), None, r"\(1, 16, 16\)"),
        (x.to(torch.uint8), None, "uint8"),
        (x, y[:3], "one class each"),
        (x, y + 3, r"0\.\.2"),
    ]:
        with pytest.raises(ValueError, match=word):
            judge_samples(judge, samples, labels, test, train)
    with pytest.raises(ValueError, match="with labels"):
        train_judge(Images(train.pixels))
    with pytest.raises(ValueError, match="square"):
        train_judge(Images(train.pixels[:, :, :8], train.labels))
    with pytest.raises(ValueError, match="batch_size"):
        train_judge(train.select(slice(8)), batch_size=32)


@pytest.mark.skipif("MINIDIFF_DATA" not in os.environ, reason="MINIDIFF_DATA is not set: no judge of real pictures is trained")
def test_real_fashion_mnist_in_a_tenth_of_an_epoch():
    folder = Path(os.environ["MINIDIFF_DATA"]) / "fashion_mnist"
    train, test = load_images(folder, size=32, limit=6000), load_images(folder, size=32, split="test", limit=1000)
    report = judge_samples(train_judge(train, epochs=1), from_pixels(test.pixels), test.labels, test, train)
    assert report.test_accuracy == report.samples.accuracy > 0.78 and report.samples.fd < 1e-3
