"""The text encoder: what a token may see, which layer is asked, where the pooled vector is taken, what is refused."""

import pytest
import torch
from torch.nn.functional import gelu

from minidiff.nets.clip import CLIPText, TokenAttention, TransformerLayer, quick_gelu

SMALL = {"vocab": 50, "length": 9, "dim": 16, "layers": 3, "heads": 4, "eos": 40}


def shaken(net, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return net.eval()


@pytest.fixture
def net():
    return shaken(CLIPText(**SMALL))


@pytest.fixture
def ids(generator):
    ids = torch.randint(1, 39, (2, 9), generator=generator)
    ids[0, 5:], ids[1, 7] = 40, 40  # end of text: padded with itself, as Stable Diffusion 1 does; and once
    ids[0, 2], ids[1, 8] = 45, 45  # an added token, beyond it
    return ids


@pytest.mark.parametrize("options, count", [
    ({}, 123_060_480),  # CLIP ViT-L/14, Stable Diffusion 1
    ({"dim": 1024, "layers": 23, "heads": 16, "activation": "gelu"}, 340_387_840),  # OpenCLIP ViT-H/14, Stable Diffusion 2
    ({"projection": 768}, 123_060_480 + 768 * 768),
])  # fmt: skip
def test_sizes_are_those_of_stable_diffusion(options, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in CLIPText(**options).parameters()) == count


def test_quick_gelu_is_nearly_gelu():
    x = torch.linspace(-8, 8, 10001)
    torch.testing.assert_close(quick_gelu(x), x / (1 + torch.exp(-1.702 * x)))
    assert (quick_gelu(x) - gelu(x)).abs().max() == pytest.approx(0.0203, abs=1e-4)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_its_formula(generator, causal):
    net, x = shaken(TokenAttention(12, 3, causal)), torch.randn(2, 5, 12, generator=generator)
    q, k, v = net.to_q(x), net.to_k(x), net.to_v(x)
    heads = []
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / 4**0.5  # (B, L, L)
        if causal:
            scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(2) @ v[..., part])
    torch.testing.assert_close(net(x), net.to_out(torch.cat(heads, dim=2)))


@pytest.mark.parametrize("activation, function", [("quick_gelu", quick_gelu), ("gelu", gelu)])
def test_layer_is_its_formula(generator, activation, function):
    net, x = shaken(TransformerLayer(12, 3, 20, activation)), torch.randn(2, 5, 12, generator=generator)
    y = x + net.attention(net.norm_1(x))
    torch.testing.assert_close(net(x), y + net.mlp_out(function(net.mlp_in(net.norm_2(y)))))


def test_no_token_sees_those_after_it(net, ids):
    changed = ids.clone()
    changed[:, 4] += 1
    before, after = net(ids).tokens, net(changed).tokens
    torch.testing.assert_close(after[:, :4], before[:, :4])
    assert ((after - before)[:, 4:].abs().amax(dim=2) > 1e-4).all()


def test_order_matters(net):
    assert not torch.allclose(net(torch.tensor([[1, 2, 40]])).pooled, net(torch.tensor([[2, 1, 40]])).pooled, atol=1e-3)


@pytest.mark.parametrize("final_norm", [True, False])
@pytest.mark.parametrize("skip", [0, 1, 2])
def test_skip_leaves_out_the_last_layers(net, ids, skip, final_norm):
    x = net.tokens(ids) + net.positions
    for layer in net.layers[: 3 - skip]:
        x = layer(x)
    text = net(ids, skip, final_norm)
    torch.testing.assert_close(text.tokens, net.norm(x) if final_norm else x)
    torch.testing.assert_close(text.pooled, net(ids).pooled)  # always of the last layer, with the norm


def test_pooled_is_the_first_end_of_text(net, ids):
    text = net(ids)
    torch.testing.assert_close(text.pooled, torch.stack([text.tokens[0, 5], text.tokens[1, 7]]))


def test_without_eos_the_highest_id_is_pooled(ids):
    net = shaken(CLIPText(**SMALL | {"eos": None}))
    ids[0, 6] = 45
    text = net(ids)
    torch.testing.assert_close(text.pooled, torch.stack([text.tokens[0, 2], text.tokens[1, 8]]))


def test_pooled_goes_through_the_projection(ids):
    net = shaken(CLIPText(**SMALL, projection=5))
    text = net(ids)
    assert text.tokens.shape == (2, 9, 16) and text.pooled.shape == (2, 5)
    torch.testing.assert_close(text.pooled, torch.stack([text.tokens[0, 5], text.tokens[1, 7]]) @ net.projection.weight.T)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_says_nearly_the_same(net, ids, dtype):
    exact, half = net(ids), net.to(dtype)(ids)
    assert half.tokens.dtype == half.pooled.dtype == dtype
    torch.testing.assert_close(half.tokens.float(), exact.tokens, rtol=0, atol=0.1)


def test_config_rebuilds_it(net, ids):
    again = CLIPText(**net.config)
    again.load_state_dict(net.state_dict())
    torch.testing.assert_close(again(ids).tokens, net(ids).tokens)


@pytest.mark.parametrize("ids, skip, match", [
    ([[1, 50]], 0, "ids run from 1 to 50, but this encoder knows 0 to 49"),
    ([[-1, 2]], 0, "ids run from -1 to 2"),
    ([[1] * 10], 0, r"\(1, 10\).* L from 1 to 9"),
    ([1, 2], 0, r"\(2,\)"),
    ([[]], 0, r"\(1, 0\)"),
    ([[1]], 3, "skip = 3 of 3 layers"),
    ([[1]], -1, "skip = -1"),
])  # fmt: skip
def test_bad_input_is_refused(net, ids, skip, match):
    with pytest.raises(ValueError, match=match):
        net(torch.tensor(ids, dtype=torch.int64), skip)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="16 channels do not divide into 3 heads"):
        CLIPText(**SMALL | {"heads": 3})
    with pytest.raises(ValueError, match='activation "relu" is unknown: choose one of quick_gelu, gelu'):
        CLIPText(**SMALL, activation="relu")
