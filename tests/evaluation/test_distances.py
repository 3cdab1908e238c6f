"""Distances in mini-CLIP features: ours are torchmetrics', and go with n as theory says."""

import pytest
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

import minidiff as md
from minidiff.evaluation.distances import distances, features, load_ruler, looking, real_scenes
from minidiff.evaluation.metrics import frechet_distance, kernel_distance
from minidiff.training import save

SMALL = {"dim": 8, "layers": 1, "heads": 2, "projection": 8}


def clip(size=16):
    torch.manual_seed(0)
    return md.CLIP({"vocab": 20, "length": 8, **SMALL}, {"size": size, "patch": 8, **SMALL}).eval()


class AsTheyAre(nn.Module):
    """What torchmetrics takes for Inception: the "images" are features already. So it needs no torch-fidelity."""

    num_features = 12

    def forward(self, x):
        return x


def cloud(n, generator, d=12, shift=0.0):
    mix = torch.randn(d, d, generator=generator)
    return (torch.randn(n, d, generator=generator) @ mix).relu() + shift


def test_both_are_torchmetrics_given_the_same_features(generator):
    a, b = cloud(90, generator), cloud(70, generator, shift=0.2)
    fid = FrechetInceptionDistance(feature=AsTheyAre()).set_dtype(torch.float64)
    kid = KernelInceptionDistance(feature=AsTheyAre(), subsets=1, subset_size=70).set_dtype(torch.float64)
    for metric, real in ((fid, a), (kid, a[:70])):
        metric.update(real.double(), real=True)
        metric.update(b.double(), real=False)
    assert frechet_distance(a, b) == pytest.approx(fid.compute().item(), rel=1e-6)
    assert kernel_distance(a[:70], b) == pytest.approx(kid.compute()[0].item(), rel=1e-6)


def test_fd_falls_with_n_though_nothing_changes_and_kd_does_not(generator):
    a, b = torch.randn(2, 1024, 12, generator=generator)
    curve = distances(a, b)
    assert [d.n for d in curve] == [64, 128, 256, 512, 1024] and [d.parts for d in curve] == [16, 8, 4, 2, 1]
    fds, kds = [d.fd for d in curve], [d.kd for d in curve]
    assert all(x > 1.6 * y for x, y in zip(fds, fds[1:], strict=False))  # it goes as 1 / n
    assert max(map(abs, kds)) < 0.02 * kernel_distance(a, b + 1) and curve[0].kd_std > 2 * curve[2].kd_std > 0
    assert curve[-1][2:] == (frechet_distance(a, b), kernel_distance(a, b), 0, 0)
    parts = [frechet_distance(a[k : k + 512], b[k : k + 512]) for k in (0, 512)]
    assert curve[3].fd == pytest.approx(sum(parts) / 2)


def test_whatever_was_drawn_stands_last(generator):
    a, b = torch.randn(2, 100, 3, generator=generator)
    assert [(d.n, d.parts) for d in distances(a, b)] == [(64, 1), (100, 1)]
    assert [(d.n, d.parts) for d in distances(a[:10], b[:10])] == [(10, 1)]
    assert [d.n for d in distances(a[:64], b[:64])] == [64]


def test_features_have_numbers_of_size_1():
    net = clip()
    images = torch.rand(5, 3, 16, 16) * 2 - 1
    found = features(iter([images[:3], images[3:]]), looking(net))
    assert found.square().mean(1).allclose(torch.ones(5), atol=1e-5) and not found.requires_grad
    torch.testing.assert_close(found / 8**0.5, net.encode_image(images).detach())
    cosine = torch.nn.functional.cosine_similarity(found[0], found[1], dim=0)
    assert float((found[0] @ found[1] / 8 + 1) ** 3) == pytest.approx(float((cosine + 1) ** 3), rel=1e-5)


def test_real_scenes_and_what_is_said_of_them():
    batches, captions = real_scenes(70, 16, 3)
    assert [len(batch) for batch in batches] == [64, 6] and len(captions) == 70
    wanted = md.data.captions.Captioned(70, 16, 3)[66]
    assert batches[1][2].equal(wanted.image) and captions[66] == wanted.caption


def test_rulers_that_do_not_measure(tmp_path):
    save(tmp_path / "clip", clip())
    assert load_ruler(tmp_path / "clip", 16).image.config["size"] == 16
    with pytest.raises(ValueError, match=r"pictures of 16x16 and this model draws 64x64.*--set size=64"):
        load_ruler(tmp_path / "clip", 64)
    with pytest.raises(FileNotFoundError, match="train --stage clip"):
        load_ruler(tmp_path / "none", 16)
    save(tmp_path / "vae", md.VAE(channels=(8, 16), layers=1, groups=None))
    with pytest.raises(ValueError, match='describes "VAE"'):
        load_ruler(tmp_path / "vae", 16)
