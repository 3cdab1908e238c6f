import json
import math
import os
import shutil

import pytest
import torch
from torch import nn

from minidiff.diffusion import Schedule, diffusion_loss
from minidiff.nets import DiT, MMDiT, UNet
from minidiff.pipelines import ClassToImage
from minidiff.training import EMA, TrainConfig, Trainer, load, save
from minidiff.training.checkpoint import load_weights, read_tensors, write_file, write_tensors
from minidiff.training.trainer import OPTIMIZERS

TINY = {"in_channels": 1, "out_channels": 1, "channels": (8, 16), "attention": (False, True), "layers": 1, "num_classes": 3}


def tiny():
    torch.manual_seed(0)
    return UNet(**TINY)


def tiny_dit():
    torch.manual_seed(0)
    return DiT(1, 1, size=8, dim=16, depth=1, num_classes=3)


def data(start=0):
    """Batch k depends on k alone."""
    while True:
        g = torch.Generator().manual_seed(start)
        yield torch.rand(4, 1, 8, 8, generator=g) * 2 - 1, torch.randint(0, 3, (4,), generator=g)
        start += 1


def loss(net, x, y):
    return diffusion_loss(net, x, Schedule.flow(), "flow", y=y)


def same(a, b):
    return all(x.equal(y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("build", [tiny, tiny_dit])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_lowers_the_loss_and_the_average_follows(optimizer, build):
    trainer = Trainer(build(), loss, TrainConfig(steps=120, warmup=5, lr=3e-3, optimizer=optimizer))
    losses = trainer.fit(data(), progress=False)
    assert len(losses) == trainer.step == 120
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])
    assert not same(trainer.ema.net, trainer.net)


def test_the_same_seed_gives_the_same_weights_whatever_else_draws_numbers():
    nets = []
    for noise in (False, True):
        trainer = Trainer(tiny(), loss, TrainConfig(steps=6, every=2))
        trainer.fit(data(), progress=False, after=lambda _, noise=noise: torch.randn(3) if noise else None)
        nets.append(trainer.net)
    assert same(*nets)
    other = Trainer(tiny(), loss, TrainConfig(steps=6, seed=1))
    other.fit(data(), progress=False)
    assert not same(other.net, nets[0])


@pytest.mark.parametrize("build, optimizer", [(tiny, "muon"), (tiny, "adamw"), (tiny_dit, "muon")])
def test_a_run_cut_in_two_ends_where_the_whole_run_does(tmp_path, build, optimizer):
    config = TrainConfig(steps=8, warmup=3, accumulate=2, optimizer=optimizer)
    whole = Trainer(build(), loss, config)
    whole.fit(data(), progress=False)

    class Cut(Exception):
        pass

    def cut(trainer):
        trainer.save_state(tmp_path)
        raise Cut

    first = Trainer(build(), loss, TrainConfig(**{**vars(config), "every": 5}))
    with pytest.raises(Cut):
        first.fit(data(), progress=False, after=cut)
    second = Trainer(build(), loss, config)
    second.load_state(tmp_path)
    assert second.step == 5
    second.fit(data(start=10), progress=False)
    assert same(second.net, whole.net) and same(second.ema.net, whole.ema.net)
    assert second.losses == whole.losses


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_network_learns_the_same_and_can_be_gone_on_with_uncompiled(tmp_path):
    asked = []

    def mse(net, x, y):
        asked.append(net)
        return ((net(x.flatten(1)) - x.flatten(1)) ** 2).mean()

    def build(**options):
        torch.manual_seed(0)
        return Trainer(nn.Sequential(nn.Linear(64, 8), nn.SiLU(), nn.Linear(8, 64)), mse, TrainConfig(warmup=2, **options))

    plain, compiled = build(steps=4), build(steps=4, compile=True)
    for trainer in (plain, compiled):
        trainer.fit(data(), progress=False)
    assert asked[0] is plain.net and asked[-1] is not compiled.net  # or nothing was compiled
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-4) and len(set(compiled.losses)) == 4
    compiled.save_state(tmp_path)
    other = build(steps=5)
    other.load_state(tmp_path)
    assert same(other.net, compiled.net) and same(other.ema.net, compiled.ema.net)
    assert len(other.fit(data(start=4), progress=False)) == 5


def test_momenta_are_kept_by_name_and_those_of_nobody_refused(tmp_path):
    trainer = Trainer(tiny(), loss, TrainConfig(steps=2, every=0))
    trainer.fit(data(), progress=False)
    trainer.save_state(tmp_path)
    file = tmp_path / "trainer.safetensors"
    state = read_tensors(file)
    for name, p in trainer.net.named_parameters():
        for key, value in trainer.optimizer.state[p].items():
            assert state[f"optimizer.{name}.{key}"].equal(value)
    key = next(key for key in state if key.startswith("optimizer."))
    write_tensors(file, {k if k != key else "optimizer.0.mean": value for k, value in state.items()})
    other = Trainer(tiny(), loss, TrainConfig(steps=2))
    before = [p.clone() for p in other.net.parameters()]
    with pytest.raises(ValueError, match="state of another network"):
        other.load_state(tmp_path)
    assert all(p.equal(q) for p, q in zip(other.net.parameters(), before, strict=True))


def test_accumulated_batches_are_one_large_batch():
    """The gradient of the mean over 8 images is the mean of the gradients over 2 x 4."""
    batches = data()
    parts = [next(batches) for _ in range(2)]
    joined = tuple(torch.cat(pair) for pair in zip(*parts, strict=True))
    mse = lambda net, x, y: net(x, torch.zeros(len(x)), y).sub(x).square().mean()  # noqa: E731
    nets = []
    for accumulate, feed in ((2, parts), (1, [joined])):
        trainer = Trainer(tiny(), mse, TrainConfig(steps=1, accumulate=accumulate, warmup=0))
        trainer.fit(iter(feed), progress=False)
        nets.append((trainer.net, trainer.losses[0]))
    assert nets[0][1] == pytest.approx(nets[1][1], rel=1e-5)
    for a, b in zip(nets[0][0].parameters(), nets[1][0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5)


def test_learning_rate():
    c = TrainConfig(steps=100, lr=1.0, warmup=10)
    assert c.lr_at(0) == pytest.approx(0.1, rel=1e-2) and c.lr_at(50) == pytest.approx(0.5) and c.lr_at(99) < 1e-3
    assert TrainConfig(steps=100, lr=1.0, warmup=10, decay="constant").lr_at(99) == 1.0


def test_ema_is_its_formula():
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 0.0)
    ema, expected = EMA(net, decay=0.5), 0.0
    for k in range(12):
        nn.init.constant_(net.weight, float(k + 1))
        ema.update(net)
        d = min(0.5, (1 + k) / (10 + k))
        expected = d * expected + (1 - d) * (k + 1)
        assert ema.net.weight.item() == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="decay"):
        EMA(net, decay=1.0)


def test_checkpoints_come_back(tmp_path):
    net = tiny()
    save(tmp_path / "run", net, classes=["a", "b", "c"])
    again, about = load(tmp_path / "run")
    assert same(net, again) and about["classes"] == ["a", "b", "c"] and not again.training
    assert sorted(os.listdir(tmp_path / "run")) == ["config.json", "model.safetensors"]  # nothing half-written is left


def test_every_network_comes_back_as_what_it_was(tmp_path):
    text = {"context_dim": 6, "pooled_dim": 5}
    nets = (tiny(), tiny_dit(), DiT(1, 1, 8, 4, 16, 1, 2, **text), MMDiT(1, 1, 8, 2, 16, 2, 2, **text, qk_norm=True, dual=(0,)))
    for i, net in enumerate(nets):
        for tensor in net.state_dict().values():  # positions too: those that a file brought differ from a new network's
            nn.init.normal_(tensor)
        again, about = load(save(tmp_path / str(i), net))
        assert type(again) is type(net) and about["class"] == type(net).__name__ and same(again, net)
        assert json.dumps(again.config) == json.dumps(net.config)


def test_a_folder_that_names_no_class_is_a_unet(tmp_path):
    file = save(tmp_path, tiny()) / "config.json"
    file.write_text(json.dumps({"config": json.loads(file.read_text())["config"]}))
    assert same(load(tmp_path)[0], tiny())
    file.write_text(json.dumps({"architectures": ["CLIPTextModel"]}))
    with pytest.raises(ValueError, match='network "None"'):
        load(tmp_path)


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "weights"
    write_file(file, b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError):
        write_file(file, b"new and longer")
    assert file.read_bytes() == b"old"


def test_bad_checkpoints_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="minidiff train"):
        load(tmp_path)
    folder = save(tmp_path / "run", tiny())
    with pytest.raises(ValueError, match="unexpected|is \\("):
        load_weights(UNet(**{**TINY, "channels": (8, 8)}), folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "class": "os.system"}))
    with pytest.raises(ValueError, match='network "os.system"'):
        load(folder)
    (folder / "config.json").write_text(json.dumps({**config, "config": {**TINY, "wings": 2}}))
    with pytest.raises(ValueError, match="wings"):
        load(folder)
    (folder / "config.json").write_text(json.dumps(config))
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match="damaged"):
        load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="JSON"):
        load(folder)


def test_bad_training_is_named(tmp_path):
    for bad in ({"steps": 0}, {"lr": -1.0}, {"accumulate": 0}, {"decay": "linear"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            TrainConfig(**bad)
    trainer = Trainer(tiny(), lambda net, x, y: loss(net, x, y) * math.nan, TrainConfig(steps=2))
    with pytest.raises(ValueError, match="loss became nan at step 0"):
        trainer.fit(data(), progress=False)
    with pytest.raises(FileNotFoundError):
        trainer.load_state(tmp_path)


@pytest.mark.parametrize("build", [tiny, tiny_dit])
def test_class_to_image_draws_what_it_saved(tmp_path, build):
    net = build()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.05)
    pipe = ClassToImage(net, {"name": "cosine", "zero_terminal_snr": True}, "v", 8, ["a", "b", "c"])
    pipe.save(tmp_path, data="noise")
    again = ClassToImage.load(tmp_path)
    labels = torch.tensor([0, 2])
    pictures = [p(labels, steps=4, guidance_scale=2.0, generator=torch.Generator().manual_seed(0)) for p in (pipe, again)]
    assert pictures[0].shape == (2, 1, 8, 8) and pictures[0].abs().max() <= 1
    assert pictures[0].equal(pictures[1])
    assert not pictures[0].equal(pipe(labels.flip(0), steps=4, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match="none of the 3 classes"):
        pipe(torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="unknown schedule"):
        ClassToImage(net, {"name": "sigmoid"}, "v", 8, [])
