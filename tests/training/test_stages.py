"""The three trainings of a text-to-image model, piece by piece."""

import os
from itertools import islice

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from minidiff.diffusion import Schedule, diffusion_loss
from minidiff.nets import VAE, CLIPText, Discriminator, Pixels, UNet, hinge
from minidiff.training import TrainConfig, Trainer, load, save
from minidiff.training.autoencoder import Judged, autoencoder_loss, encode, measure, sure_of_itself
from minidiff.training.cache import cached, fingerprint
from minidiff.training.latent import Lessons, Reader, deal, latent_loss, plain_attention, widened


def shaken(net):
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net


def small_vae():
    return shaken(VAE(channels=(8, 16), layers=1, groups=None, attention=False))


def small_unet(**options):
    return shaken(UNet(4, 4, (8, 16), (False, True), layers=1, context_dim=6, **options))


def pixels(n=6, size=8):
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


# ---- stage one ------------------------------------------------------------------------------------------------------------


def test_the_autoencoders_loss_is_its_formula():
    vae, x = small_vae(), pixels() / 127.5 - 1
    torch.manual_seed(3)
    loss = autoencoder_loss(beta=0.3)(vae, x, None)
    torch.manual_seed(3)
    posterior = vae.encode(x)
    z = posterior.mean + posterior.std * torch.randn_like(posterior.mean)
    variance = posterior.std**2
    kl = (posterior.mean**2 + variance - 1 - variance.log()).sum() / 2
    wanted = ((vae.decode(z) - x).abs().sum() + 0.3 * kl) / x.numel()
    torch.testing.assert_close(loss, wanted)


def test_an_encoder_begins_sure_of_itself():
    vae = VAE(channels=(8, 16), layers=1, groups=None)
    x = pixels() / 127.5 - 1
    before, after = vae.encode(x), sure_of_itself(vae).encode(x)
    torch.testing.assert_close(after.mean, before.mean)
    torch.testing.assert_close(after.logvar, before.logvar - 4)


def test_vae_and_critic_each_learn_from_their_own_term():
    net, x = Judged(small_vae(), shaken(Discriminator(width=8, halvings=1))), pixels(size=16) / 127.5 - 1
    grads = {}
    for judge in (1e-9, 1.0):
        net.zero_grad()
        torch.manual_seed(3)
        autoencoder_loss(0.1, judge)(net, x).backward()
        grads[judge] = {name: p.grad.clone() for name, p in net.named_parameters()}
    for name in grads[1.0]:  # the critic's step does not depend on how much the decoder cares
        assert torch.allclose(grads[1e-9][name], grads[1.0][name], rtol=1e-4, atol=1e-7) == name.startswith("critic"), name
    net.vae.zero_grad()
    torch.manual_seed(3)
    autoencoder_loss(0.1)(net.vae, x).backward()
    for name, p in net.vae.named_parameters():
        torch.testing.assert_close(p.grad, grads[1e-9][f"vae.{name}"], rtol=1e-4, atol=1e-6)
    critic = Discriminator(width=8, halvings=1)
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 0.5])
    assert hinge(real, fake).item() == pytest.approx(((0 + 1) / 2 + (0 + 1.5) / 2) / 2)
    assert critic(x).shape == (6, 1, 6, 6) and Discriminator()(torch.zeros(1, 3, 64, 64)).shape == (1, 1, 14, 14)


def test_latents_are_measured_to_unit_variance():
    vae = small_vae()
    latents = encode(vae, pixels(40), batch=16)
    assert latents["mean"].dtype == torch.float16 and latents["mean"].shape == latents["std"].shape == (40, 4, 4, 4)
    direct = vae.encode(pixels(40) / 127.5 - 1)
    torch.testing.assert_close(latents["mean"].float(), direct.mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(latents["std"].float(), direct.std, rtol=1e-3, atol=1e-3)
    assert measure(vae, latents) is vae
    draws = torch.cat([direct.sample() for _ in range(50)])
    unit = (draws - vae.shift) * vae.scale
    assert abs(unit.mean()) < 0.02 and abs(unit.std() - 1) < 0.02
    assert vae.config["scale"] == vae.scale != 0.18215 and vae.config["shift"] == vae.shift


def test_what_is_hidden_is_grey_to_the_encoder(tmp_path):
    vae, hidden = small_vae(), torch.zeros(6, 1, 8, 8)
    hidden[:, :, :, 4:] = 1
    x = pixels() / 127.5 - 1
    x[:, :, :, 4:] = 0
    torch.testing.assert_close(encode(vae, pixels(), hidden)["mean"].float(), vae.encode(x).mean, rtol=1e-3, atol=1e-3)


def test_a_measured_vae_comes_back_with_its_measure(tmp_path):
    vae = measure(small_vae(), encode(small_vae(), pixels()))
    again = load(save(tmp_path, vae))[0]
    assert (again.scale, again.shift) == (vae.scale, vae.shift)
    x = pixels() / 127.5 - 1
    assert again.encode(x).mean.equal(vae.encode(x).mean)


def test_pixels_are_a_vae_that_does_nothing(tmp_path):
    net, x = load(save(tmp_path, Pixels()))[0], pixels() / 127.5 - 1
    assert net.decode(net.encode(x).mean).equal(x) and net.stride == net.scale == 1 and net.shift == 0
    assert net.encode(x).std.max() < 1e-6


# ---- what is computed once ------------------------------------------------------------------------------------------------


def test_a_fingerprint_knows_weights_and_facts():
    a, b = small_vae(), small_vae()
    assert fingerprint(a, n=1) == fingerprint(b, n=1) != fingerprint(a, n=2)
    with torch.no_grad():
        b.decoder.out[-1].bias[0] += 1e-6
    assert fingerprint(a) != fingerprint(b)


def test_a_cache_is_made_once_and_refused_to_others(tmp_path):
    file, made = tmp_path / "cache" / "x.safetensors", []

    def make():
        made.append(1)
        return {"x": torch.full((2,), float(len(made)))}

    first = cached(file, "a", make)
    assert cached(file, "a", make)["x"].equal(first["x"]) and len(made) == 1
    with pytest.raises(ValueError, match="other weights or of other scenes: --fresh-cache"):
        cached(file, "b", make)
    assert cached(file, "b", make, fresh=True)["x"].tolist() == [2, 2]
    assert cached(file, "b", make)["x"].tolist() == [2, 2] and len(made) == 2
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(ValueError, match="damaged"):
        cached(file, "b", make)


def test_a_full_disk_is_told_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    file = tmp_path / "x.safetensors"
    with pytest.raises(ValueError, match="MB, and the disk has .* MB left"):  # before anything is made
        cached(file, "a", lambda: pytest.fail("made for nothing"), size=2**62)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ValueError, match="make room"):
        cached(file, "a", lambda: {"x": torch.zeros(2)})
    assert not list(tmp_path.iterdir())


# ---- stage three ----------------------------------------------------------------------------------------------------------


def test_every_scene_is_dealt_once_an_epoch_and_a_resumed_deal_goes_on():
    dealt = list(islice(deal(10, 3, seed=5), 9))
    for epoch in range(3):
        assert torch.cat(dealt[3 * epoch : 3 * epoch + 3]).unique().numel() == 9
    assert not dealt[0].equal(dealt[3])
    for start in (1, 3, 7):
        assert all(a.equal(b) for a, b in zip(islice(deal(10, 3, 5, start), 2), dealt[start:], strict=False))
    assert not dealt[0].equal(next(deal(10, 3, seed=6)))
    with pytest.raises(ValueError, match="batch of 11 from 10 scenes"):
        next(deal(10, 11))


def test_lessons_draw_latents_and_drop_texts():
    n = 4000
    texts, nothing = torch.ones(n, 2, 3).half(), torch.zeros(1, 2, 3).half()
    scenes = Lessons(torch.full((n, 1, 2, 2), 5.0).half(), torch.full((n, 1, 2, 2), 0.5).half(), texts, nothing,
                     torch.full((n, 2, 2, 2), 7.0).half())  # fmt: skip
    torch.manual_seed(0)
    z, given = next(scenes.batches(n))
    assert abs(z.mean() - 5) < 0.02 and abs(z.std() - 0.5) < 0.02 and z.dtype == torch.float32
    dropped = given["context"].mean((1, 2))
    assert set(dropped.tolist()) == {0.0, 1.0} and 0.08 < 1 - dropped.mean() < 0.12
    assert given["beside"].eq(7).all()
    ids = Lessons(z, None, torch.ones(n, 4, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.int64))
    exact, given = next(ids.batches(8))
    assert exact.shape == (8, 1, 2, 2) and given["context"].dtype == torch.int64 and "beside" not in given


def test_easy_scenes_come_first_in_plain_words_also_in_a_resumed_run():
    n, easy = 12, torch.tensor([3, 5, 7])
    numbers, texts = torch.arange(n, dtype=torch.float32).view(n, 1, 1, 1), torch.arange(n).view(n, 1)
    given = {"std": None, "nothing": torch.full((1, 1), -1), "dropout": 0.0}
    lessons = Lessons(numbers, texts=texts, easy=easy, plain=100 + easy.view(3, 1), **given)

    def dealt(start):
        return [(z.flatten().int().tolist(), given["context"].flatten().tolist())
                for z, given in islice(lessons.batches(4, start=start, ahead=5), 8 - start)]  # fmt: skip

    for half in ({"easy": easy}, {"plain": texts}):
        with pytest.raises(ValueError, match="5 batches of easy scenes, but none are marked"):
            next(Lessons(numbers, texts=texts, **half, **given).batches(4, ahead=5))
    whole = dealt(0)
    seen = [{i for scenes, _ in part for i in scenes} for part in (whole[:5], whole[5:])]
    assert seen[0] == {3, 5, 7} and len(seen[1]) > 3
    assert all(said == [i + 100 * (k < 5) for i in scenes] for k, (scenes, said) in enumerate(whole))
    assert all(sorted(whole[k][0]) == sorted(later[0]) for start in (2, 6) for k, later in enumerate(dealt(start), start))


def test_the_latent_loss_is_that_of_diffusion_with_more_in_sight():
    net, schedule = small_unet(), Schedule.flow()
    z, context = torch.randn(3, 4, 4, 4), torch.randn(3, 5, 6)
    torch.manual_seed(1)
    wanted = diffusion_loss(net, z, schedule, "x0", measured="flow", context=context)
    torch.manual_seed(1)
    torch.testing.assert_close(latent_loss(schedule, "x0", measured="flow")(net, z, {"context": context}), wanted)
    wide = widened(net, 9)
    torch.manual_seed(1)
    given = {"context": context, "beside": torch.randn(3, 5, 4, 4)}
    torch.manual_seed(1)
    torch.testing.assert_close(latent_loss(schedule, "x0", measured="flow")(wide, z, given), wanted)  # zeros as yet


def test_plain_attention_is_attention_stays_in_bfloat16_and_leaves_no_trace():
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append((func.overloadpacket.__name__, args[0].dtype if args and isinstance(args[0], torch.Tensor) else None))
            return func(*args, **(kwargs or {}))

    q, k, v = torch.randn(3, 2, 2, 5, 8)
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(False)  # as it is by itself
    with pytest.raises(KeyError), plain_attention():
        torch.testing.assert_close(scaled_dot_product_attention(q, k, v), (q @ k.mT / 8**0.5).softmax(3) @ v)
        with Watch():
            assert scaled_dot_product_attention(q.bfloat16(), k.bfloat16(), v.bfloat16()).dtype == torch.bfloat16
        raise KeyError
    assert not torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    assert [kind for name, kind in seen if "mm" in name] == 2 * [torch.bfloat16]


@pytest.mark.parametrize("options", [{}, {"patch": 2}, {"shortcut": True}, {"num_classes": 4, "class_channels": 2}])
def test_a_widened_network_begins_as_the_narrow_one(options):
    net = small_unet(**options)
    wide = widened(net, 9)
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 700.0]), torch.randn(2, 5, 6)
    seen = torch.cat([x, torch.randn(2, 5, 8, 8)], dim=1)
    torch.testing.assert_close(wide(seen, t, context=context), net(x, t, context=context))
    assert wide.config == net.config | {"in_channels": 9}
    wide(seen, t, context=context).square().sum().backward()
    assert wide.conv_in.weight.grad[:, 4 * net.patch**2 :].abs().max() > 0
    kept = widened(net.eval().bfloat16(), 9)
    assert kept.conv_in.weight.dtype == torch.bfloat16 and not kept.training
    with pytest.raises(ValueError, match="cannot be widened to 3"):
        widened(net, 3)


def test_a_text_encoder_learns_with_its_unet():
    text = CLIPText(vocab=11, length=5, dim=6, layers=1, heads=2, eos=10)
    net = Reader(small_unet(), shaken(text))
    ids, z = torch.randint(0, 10, (8, 5)), torch.randn(8, 4, 4, 4)
    before = [p.clone() for p in net.text.parameters() if p.requires_grad]
    scenes = Lessons(z, None, ids, torch.zeros(1, 5, dtype=torch.int64))
    trainer = Trainer(net, latent_loss(Schedule.flow(), "flow"), TrainConfig(steps=3, warmup=0))
    trainer.fit(scenes.batches(4), progress=False)
    assert all(not a.equal(b) for a, b in zip(before, net.text.parameters(), strict=True))
