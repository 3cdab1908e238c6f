import pytest
import torch
from torch import nn
from torch.nn.functional import layer_norm, silu

from minidiff.nets import DiT, DiTBlock, FinalLayer, JointAttention, JointBlock, MMDiT, PatchEmbedding, SelfAttention
from minidiff.nets.attention import attention_maps
from minidiff.nets.dit import GatedAttention

TINY = {"in_channels": 2, "out_channels": 2, "size": 12, "dim": 32, "depth": 2, "heads": 2}
TEXT = {"context_dim": 6, "pooled_dim": 5}
SD35 = {"qk_norm": True, "dual": (0,)}


def shaken(net):
    """What starts at zero would hide everything before it."""
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net


def dit(**options):
    return shaken(DiT(**{**TINY, **options}))


def mmdit(**options):
    return shaken(MMDiT(**{**TINY, **TEXT, **options}))


def inputs(height=8, width=12):
    g = torch.Generator().manual_seed(1)
    x, context, pooled = (torch.randn(shape, generator=g) for shape in ((3, 2, height, width), (3, 4, 6), (3, 5)))
    return x, torch.tensor([0, 10, 900]), {"context": context, "pooled": pooled}


def test_new_networks_answer_zero_and_their_blocks_are_the_identity(generator):
    x, t, text = inputs()
    assert DiT(**TINY, num_classes=3)(x, t, torch.tensor([0, 1, 2])).abs().max() == 0
    assert MMDiT(**TINY, **TEXT, **SD35)(x, t, **text).abs().max() == 0
    image, words, emb = (torch.randn(shape, generator=generator) for shape in ((2, 7, 32), (2, 4, 32), (2, 32)))
    assert DiTBlock(32, 2)(image, emb).equal(image)
    same = JointBlock(32, 2, dual=True)(image, words, emb)
    assert same[0].equal(image) and same[1].equal(words)
    assert DiTBlock(32, 2).attention(image).abs().max() > 0  # behind a gate of 0, a layer of 0 would get no gradient


def test_a_dit_block_is_its_formula(generator):
    block = shaken(DiTBlock(32, 2))
    x, emb = torch.randn(2, 7, 32, generator=generator), torch.randn(2, 32, generator=generator)
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = block.modulation.linear(silu(emb)).view(2, 6, 1, 32).unbind(1)
    normed = (x - x.mean(2, keepdim=True)) / (x.var(2, keepdim=True, unbiased=False) + 1e-6).sqrt()
    h = x + gate_1 * block.attention(normed * (1 + scale_1) + shift_1)
    normed = layer_norm(h, (32,), eps=1e-6)
    torch.testing.assert_close(block(x, emb), h + gate_2 * block.mlp(normed * (1 + scale_2) + shift_2), rtol=1e-4, atol=1e-4)


def test_qk_norm_bounds_what_attention_can_ask(generator):
    """Queries and keys of one length: however large the weights grow, no logit exceeds sqrt(d)."""
    x = torch.randn(2, 7, 32, generator=generator)
    free, normed = shaken(GatedAttention(32, 2)), shaken(GatedAttention(32, 2, qk_norm=True))
    for net in (free, normed):
        nn.init.normal_(net.to_q.weight, std=100.0)
    for norm in (normed.norm_q, normed.norm_k):
        nn.init.ones_(norm.weight)
    logits = [(q @ k.transpose(2, 3) / 4).abs().max() for q, k, _ in (free.qkv(x), normed.qkv(x))]
    assert logits[1] <= 4.001 and logits[0] > 100


def test_joint_attention_is_one_attention_over_both_rows(generator):
    """With the same weights for image and text it is self-attention of the joined row, and a JointBlock is a DiTBlock."""
    image, text, emb = (torch.randn(shape, generator=generator) for shape in ((2, 7, 32), (2, 4, 32), (2, 32)))
    row = torch.cat([image, text], 1)
    single, joint = shaken(GatedAttention(32, 2)), JointAttention(32, 2)
    for half in (joint.image, joint.text):
        half.load_state_dict(single.state_dict())
    torch.testing.assert_close(torch.cat(joint(image, text), 1), single(row), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(joint.weights(image, text), single.weights(row, row))
    assert JointAttention(32, 2, last=True)(image, text)[1] is None

    plain, block = shaken(DiTBlock(32, 2)), JointBlock(32, 2)
    for name, part in plain.named_children():
        for half in ("image", "text"):
            (getattr(block.attention, half) if name == "attention" else getattr(block, f"{half}_{name}")).load_state_dict(
                part.state_dict())  # fmt: skip
    torch.testing.assert_close(torch.cat(block(image, text, emb), 1), plain(row, emb), rtol=1e-4, atol=1e-4)


def test_the_second_attention_sees_the_image_alone(generator):
    """Of nine modulations only its gate is open, the last: what it adds is its own, and no word of the text."""
    image, text, emb = (torch.randn(shape, generator=generator) for shape in ((2, 7, 32), (2, 4, 32), (2, 32)))
    block = shaken(JointBlock(32, 2, dual=True))
    for parameter in block.image_modulation.parameters():
        nn.init.zeros_(parameter)
    nn.init.ones_(block.image_modulation.linear.bias[8 * 32 :])
    wanted = image + block.image_attention(layer_norm(image, (32,), eps=1e-6))
    torch.testing.assert_close(block(image, text, emb)[0], wanted)


def test_positions_say_column_and_row_and_are_counted_from_the_middle():
    embed = PatchEmbedding(1, 16, patch=2, size=12)
    nn.init.zeros_(embed.project.weight), nn.init.zeros_(embed.project.bias)
    full = embed(torch.zeros(1, 1, 12, 12)).unflatten(1, (6, 6))[0]  # what is said of every place
    k = 10_000.0 ** -(torch.arange(4) / 4)
    said = lambda n: torch.cat([(n * k).sin(), (n * k).cos()])  # noqa: E731
    for row in range(6):
        for column in range(6):
            torch.testing.assert_close(full[row, column], torch.cat([said(column), said(row)]), rtol=1e-5, atol=1e-5)
    wide = embed(torch.zeros(1, 1, 4, 8)).unflatten(1, (2, 4))[0]
    assert wide.equal(full[2:4, 1:5])
    assert "positions" in embed.state_dict() and "positions" not in dict(embed.named_parameters())


def test_patches_are_laid_where_they_were_taken(generator):
    """The token in row i, column j of the grid answers for the patch there, pixel by pixel, channel last."""
    final, tokens = FinalLayer(8, 2, patch=2), torch.randn(1, 6, 8, generator=generator)
    nn.init.normal_(final.linear.weight), nn.init.normal_(final.linear.bias)
    out = final(tokens, torch.zeros(1, 8), (4, 6))
    answers = final.linear(layer_norm(tokens, (8,), eps=1e-6))[0]
    assert out.shape == (1, 2, 4, 6)
    for i in range(2):
        for j in range(3):
            patch = out[0, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            torch.testing.assert_close(patch, answers[3 * i + j].view(2, 2, 2).permute(2, 0, 1))


@pytest.mark.parametrize("net, idle", [
    (dit(num_classes=4, **TEXT), []), (dit(heads=None, patch=4, out_channels=3), []),
    (mmdit(), ["to_q.weight", "to_q.bias"]), (mmdit(**SD35), ["to_q.weight", "to_q.bias", "norm_q.weight"]),
    (mmdit(pooled_dim=None), ["to_q.weight", "to_q.bias"]),
])  # fmt: skip
def test_every_parameter_takes_part(net, idle):
    """But the queries of the text in the last block, which nobody answers: they are in SD3's files too."""
    x, t, text = inputs()
    text = {name: value for name, value in text.items() if net.config[f"{name}_dim"]}
    out = net(x, t, **text, **({"y": torch.tensor([0, 3, 4])} if net.config.get("num_classes") else {}))
    assert out.shape == (3, net.config["out_channels"], 8, 12)
    out.square().sum().backward()
    found = [name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert sorted(found) == sorted(f"blocks.1.attention.text.{name}" for name in idle)


@pytest.mark.parametrize("net", [dit(**TEXT), mmdit(), mmdit(**SD35)])
def test_time_words_and_places_matter_and_images_do_not_see_each_other(net):
    x, t, text = inputs()
    answer, flipped = net(x, t, **text), {name: value.flip(0) for name, value in text.items()}
    for other in (net(x, t + 50, **text), net(x, t, **{**text, "context": flipped["context"]}),
                  net(x, t, **{**text, "pooled": flipped["pooled"]}), net(x.flip(3), t, **text).flip(3)):  # fmt: skip
        assert not torch.allclose(other, answer, rtol=1e-2, atol=1e-2)
    for i in range(3):
        alone = net(x[i : i + 1], t[i : i + 1], **{name: value[i : i + 1] for name, value in text.items()})
        torch.testing.assert_close(answer[i : i + 1], alone, rtol=1e-4, atol=1e-4)
    words = {**text, "context": text["context"].flip(1)}  # a text encoder has put their order into them
    torch.testing.assert_close(net(x, t, **words), answer, rtol=1e-4, atol=1e-4)


def test_the_class_matters_and_no_class_is_the_null_class():
    net, (x, t, _) = dit(num_classes=4), inputs()
    assert not torch.allclose(net(x, t, torch.tensor([1, 2, 3])), net(x, t, torch.tensor([0, 2, 3])))
    assert net(x, t).equal(net(x, t, torch.full((3,), net.null_class)))
    assert (net.null_class, dit().null_class, dit(patch=4).stride, mmdit().stride) == (4, None, 4, 2)


def test_it_learns_what_a_class_means(generator):
    """What no test of shapes gives: gradient descent through the whole network gets somewhere. Class 1 is the negative."""
    torch.manual_seed(0)
    net, t, y = DiT(1, 1, 8, dim=32, depth=2, heads=2, num_classes=2), torch.full((16,), 5), torch.arange(16) % 2
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(60):
        x = torch.randn(16, 1, 8, 8, generator=generator)
        loss = (net(x, t, y) - x * (1 - 2 * y).view(-1, 1, 1, 1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.15  # knowing no class leaves 1.0


def test_who_looks_at_whom_can_be_seen():
    x, t, text = inputs()
    net = mmdit(**SD35)
    with attention_maps(net, JointAttention) as maps:
        net(x, t, **text)
    assert list(maps) == ["blocks.0.attention", "blocks.1.attention"]
    weights = maps["blocks.0.attention"][0]  # 24 patches, 4 words
    assert weights.shape == (3, 2, 28, 28)
    torch.testing.assert_close(weights.sum(3), torch.ones(3, 2, 28))
    with attention_maps(net, SelfAttention) as maps:
        net(x, t, **text)
    assert {name: each[0].shape for name, each in maps.items()} == {"blocks.0.image_attention": (3, 2, 24, 24)}


@pytest.mark.parametrize("net", [dit(**TEXT), mmdit(**SD35)])
def test_half_precision_stays_half_and_near(net):
    x, t, text = inputs()
    wanted = net(x, t, **text)
    half = net.to(torch.bfloat16)(x.bfloat16(), t, **{name: value.bfloat16() for name, value in text.items()})
    net.float()
    assert half.dtype == torch.bfloat16
    assert (half - wanted).abs().mean() < 0.05 * wanted.abs().mean()


def test_bad_input_is_named():
    x, t, text = inputs()
    net, plain, both = dit(num_classes=4), dit(), mmdit()
    for error, call in {
        r"takes \(B, 2, H, W\)": lambda: net(torch.zeros(3, 3, 8, 8), t),
        r"shape \(2, 8, 8\): .*takes": lambda: net(torch.zeros(2, 8, 8), t),
        "patches of 2x2: pad": lambda: net(torch.zeros(3, 2, 7, 8), t),
        "inputs of 8x14: .* 12x12 at most": lambda: net(torch.zeros(3, 2, 8, 14), t),
        r"t of shape \(2,\) for a batch of 3": lambda: net(x, t[:2]),
        r"t of shape \(\) for a batch of 3": lambda: net(x, t[0]),
        r"y of shape \(1,\)": lambda: net(x, t, torch.tensor([1])),
        "labels run from 1 to 5, but .* 0 to 3": lambda: net(x, t, torch.tensor([1, 2, 5])),
        "takes no labels": lambda: plain(x, t, torch.tensor([1, 2, 3])),
        "without context_dim and takes no context": lambda: plain(x, t, context=text["context"]),
        "without pooled_dim and takes no pooled": lambda: plain(x, t, pooled=text["pooled"]),
        r"context_dim = 6: give it context=\(B, L, 6\)": lambda: both(x, t, pooled=text["pooled"]),
        r"pooled_dim = 5: give it pooled=\(B, 5\)": lambda: both(x, t, context=text["context"]),
        r"context of shape \(3, 4, 7\): .*\(B, L, 6\)": lambda: both(x, t, torch.zeros(3, 4, 7), text["pooled"]),
        r"context of shape \(3, 6\): .*\(B, L, 6\)": lambda: both(x, t, torch.zeros(3, 6), text["pooled"]),
        r"pooled of shape \(3, 4\): .*\(B, 5\)": lambda: both(x, t, text["context"], torch.zeros(3, 4)),
        r"pooled of shape \(2, 5\) for a batch of 3": lambda: both(x, t, text["context"], torch.zeros(2, 5)),
        "size 12 do not divide into patches of 5": lambda: dit(patch=5),
        "patches of 0": lambda: dit(patch=0),
        "divide by 4, and is 30": lambda: dit(dim=30),
        "32 channels do not divide into 5 heads": lambda: dit(heads=5),
        r"dual = \(0, 2\): the blocks of this network are 0 to 1": lambda: mmdit(dual=(0, 2)),
    }.items():
        with pytest.raises(ValueError, match=error):
            call()


SD35_MEDIUM = {"size": 768, "qk_norm": True, "dual": tuple(range(13))}
SD35_LARGE = {"dim": 2432, "depth": 38, "heads": 38, "qk_norm": True}


@pytest.mark.parametrize("options, parameters", [
    ({}, 2_028_328_000), (SD35_MEDIUM, 2_243_171_520), (SD35_LARGE, 8_056_627_520),
], ids=["SD3 medium", "SD 3.5 medium", "SD 3.5 large"])  # fmt: skip
def test_at_full_size_it_is_sd3s(options, parameters):
    with torch.device("meta"):
        net, x = MMDiT(**options), torch.zeros(2, 16, 128, 96)
        if not options:
            assert net(x, torch.zeros(2), context=torch.zeros(2, 154, 4096), pooled=torch.zeros(2, 2048)).shape == x.shape
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_the_default_dit_is_dit_s_2_of_the_paper():
    """33.0 M parameters in table 1, on latents of 4 channels, with 1000 classes and a variance beside the mean."""
    with torch.device("meta"):
        net = DiT(4, 8, num_classes=1000)
    assert round(sum(p.numel() for p in net.parameters()) / 1e6) == 33


@pytest.mark.gpu
def test_it_runs_on_a_gpu():
    net, (x, t, text) = mmdit(**SD35).cuda(), inputs()
    answer = net(x.cuda(), t.cuda(), **{name: value.cuda() for name, value in text.items()})
    torch.testing.assert_close(answer.cpu(), net.cpu()(x, t, **text), rtol=1e-2, atol=1e-2)
