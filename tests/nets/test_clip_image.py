"""CLIP whole: the tower that looks, the two together, the contrastive loss against the paper's words, what is refused."""

from math import exp, log

import pytest
import torch

from minidiff.nets import CLIP, CLIPImage, CLIPText, contrastive_loss, zero_shot
from minidiff.nets.clip_image import MEAN, STD
from minidiff.training import load, save

TEXT = {"vocab": 30, "length": 7, "dim": 16, "layers": 2, "heads": 2, "projection": 10, "eos": 29}
IMAGE = {"size": 12, "patch": 4, "dim": 24, "layers": 2, "heads": 3, "projection": 10}


def shaken(net):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return net.eval()


@pytest.fixture
def clip():
    return shaken(CLIP(TEXT, IMAGE))


@pytest.fixture
def images(generator):
    return torch.rand(3, 3, 12, 12, generator=generator) * 2 - 1


@pytest.fixture
def ids():
    return torch.tensor([[1, 5, 29, 29], [5, 1, 29, 29], [2, 3, 4, 29]])


@pytest.mark.parametrize("text, image, count", [
    ({"dim": 512, "heads": 8, "projection": 512},
     {"patch": 32, "dim": 768, "layers": 12, "heads": 12, "projection": 512}, 151_277_313),  # CLIP ViT-B/32
    ({"projection": 768}, {}, 427_616_513),  # CLIP ViT-L/14
])  # fmt: skip
def test_sizes_are_those_of_clip(text, image, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in CLIP(CLIPText(**text), CLIPImage(**image)).parameters()) == count


def test_image_tower_is_its_formula(clip, images):
    net, rows = clip.image, []
    for image in images:
        tokens = [net.start]
        for top in range(0, 12, 4):
            for left in range(0, 12, 4):
                patch = torch.stack([((image[c, top : top + 4, left : left + 4] + 1) / 2 - MEAN[c]) / STD[c] for c in range(3)])
                tokens.append(net.patches.weight.flatten(1) @ patch.flatten())
        x = net.norm_in(torch.stack(tokens) + net.positions)[None]  # (1, 10, dim)
        for layer in net.layers:
            x = layer(x)
        rows.append(net.projection.weight @ net.norm(x[0, 0]))
    torch.testing.assert_close(net(images), torch.stack(rows))


def test_every_patch_is_seen_in_its_place(clip, images):
    net, seen = clip.image, clip.image(images)
    for top in range(0, 12, 4):
        changed = images.clone()
        changed[:, :, top : top + 4, 4:8] *= -1
        assert ((net(changed) - seen).abs().amax(dim=1) > 1e-3).all()  # no mask: the first token sees them all
    assert not torch.allclose(net(images.flip(3)), seen, atol=1e-3)


def test_without_projection(images):
    net = shaken(CLIPImage(**IMAGE | {"projection": None}))
    assert net(images).shape == (3, 24)
    assert CLIP(CLIPText(**TEXT | {"projection": None, "dim": 24}), net)(images, torch.tensor([[3, 29]])).shape == (3, 1)


def test_logits_are_scaled_cosines(clip, images, ids):
    seen, read = clip.image(images), clip.text(ids).pooled
    cosines = torch.cosine_similarity(seen[:, None], read[None], dim=2)
    torch.testing.assert_close(clip(images, ids[:2]), clip.logit_scale.exp() * cosines[:, :2])
    for vectors, plain in ((clip.encode_image(images), seen), (clip.encode_text(ids), read)):
        torch.testing.assert_close(vectors, plain / plain.norm(dim=1, keepdim=True))


def test_scale_begins_at_a_temperature_of_007_and_ends_at_100(clip, images, ids):
    assert CLIP(TEXT, IMAGE).logit_scale.item() == pytest.approx(log(1 / 0.07))
    cosines = clip(images, ids) / clip.logit_scale.exp()
    for value, scale in ((2.0, exp(2.0)), (4.7, 100.0), (9.0, 100.0)):
        with torch.no_grad():
            clip.logit_scale.fill_(value)
        torch.testing.assert_close(clip(images, ids), scale * cosines)


def test_loss_is_that_of_the_paper(generator):
    logits = torch.randn(5, 5, generator=generator) * 3
    by_picture = [-(logits[i, i].exp() / logits[i].exp().sum()).log() for i in range(5)]
    by_text = [-(logits[i, i].exp() / logits[:, i].exp().sum()).log() for i in range(5)]
    torch.testing.assert_close(contrastive_loss(logits), (sum(by_picture) + sum(by_text)) / 10)
    assert contrastive_loss(torch.zeros(8, 8)).item() == pytest.approx(log(8))


def test_equal_texts_are_no_negatives_of_each_other(generator):
    ids = torch.tensor([[1, 2], [3, 4], [1, 2], [3, 5]])  # 0 and 2 are twins, 1 and 3 begin alike
    logits = torch.randn(4, 4, generator=generator) * 3
    loss = contrastive_loss(logits, ids)
    rivals = [[0, 1, 3], [0, 1, 2, 3], [1, 2, 3], [0, 1, 2, 3]]
    by_hand = [logits[i, j].logsumexp(0) + logits[j, i].logsumexp(0) - 2 * logits[i, i] for i, j in enumerate(rivals)]
    torch.testing.assert_close(loss, sum(by_hand) / 8)
    blind = torch.zeros(4, 4, requires_grad=True)  # who sees no difference between twins loses nothing by it
    contrastive_loss(blind, ids).backward()
    assert blind.grad[0, 2] == blind.grad[2, 0] == 0 and blind.grad[0, 1] > 0 and blind.grad.isfinite().all()
    torch.testing.assert_close(contrastive_loss(logits, torch.arange(4)[:, None]), contrastive_loss(logits))
    assert contrastive_loss(logits, torch.zeros(4, 2)).item() == 0  # four times one text asks nothing


def test_three_pairs_are_learned(images, ids):
    torch.manual_seed(0)
    clip = CLIP(TEXT, IMAGE)
    optimizer = torch.optim.Adam(clip.parameters(), 3e-3)
    for _ in range(60):
        loss = contrastive_loss(clip(images, ids), ids)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad.abs().max() > 0 for p in (clip.logit_scale, clip.image.start, clip.text.positions))
        optimizer.step()
    assert loss < 0.05
    assert zero_shot(clip, images, ids).tolist() == [0, 1, 2]
    assert zero_shot(clip, images[[2, 0]], ids.flip(0)).tolist() == [0, 2]  # [1, 5] and [5, 1] differ in order alone


@pytest.mark.parametrize("part", ["clip", "text", "image"])
def test_a_checkpoint_gives_it_back(tmp_path, clip, images, ids, part):
    net = {"clip": clip, "text": clip.text, "image": clip.image}[part]
    inputs = {"clip": (images, ids), "text": (ids,), "image": (images,)}[part]
    again, about = load(save(tmp_path, net))
    assert type(again) is type(net) and about["config"] == net.config
    flat = lambda answer: answer.pooled if part == "text" else answer  # noqa: E731
    torch.testing.assert_close(flat(again(*inputs)), flat(net(*inputs)))
    assert all(torch.equal(weight, net.state_dict()[name]) for name, weight in again.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_says_nearly_the_same(clip, images, ids, dtype):
    exact, half = clip(images, ids), clip.to(dtype)(images.to(dtype), ids)
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), exact, rtol=0, atol=0.2)


@pytest.mark.parametrize("x", [
    torch.zeros(2, 3, 12, 8), torch.zeros(2, 1, 12, 12), torch.zeros(3, 12, 12), torch.zeros(2, 3, 12, 12, dtype=torch.uint8),
])  # fmt: skip
def test_other_images_are_refused(clip, x):
    with pytest.raises(ValueError, match=r"floats in \[-1, 1\], \(B, 3, 12, 12\); resize them"):
        clip.image(x)


def test_bad_sizes_are_refused():
    for patch in (5, 0, 24):
        with pytest.raises(ValueError, match=f"size 12 do not divide into patches of {patch}"):
            CLIPImage(**IMAGE | {"patch": patch})
    with pytest.raises(ValueError, match="24 channels do not divide into 5 heads"):
        CLIPImage(**IMAGE | {"heads": 5})
    with pytest.raises(ValueError, match="texts become vectors of 10 numbers, pictures of 24"):
        CLIP(TEXT, IMAGE | {"projection": None})


@pytest.mark.parametrize("logits, ids", [((2, 3), None), ((3,), None), ((3, 3), (2, 4))])
def test_batches_that_are_no_pairs_are_refused(logits, ids):
    with pytest.raises(ValueError, match="one text per picture"):
        contrastive_loss(torch.zeros(logits), None if ids is None else torch.zeros(ids))
