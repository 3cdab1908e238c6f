"""Perturbed attention: which rows look at nothing, in which layers, and that nothing else changes."""

import pytest
import torch

import minidiff as md
from minidiff.nets import SelfAttention, UNet, perturbed

BLIND = torch.tensor([False, True, False])


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = UNet(4, 4, (16, 16), (True, True), layers=1, context_dim=8, heads=2).eval().requires_grad_(False)
    for weights in net.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    return net


@pytest.fixture
def question(generator):
    shapes = ((3, 4, 8, 8), (3, 5, 8))
    x, context = (torch.randn(shape, generator=generator) for shape in shapes)
    return {"x": x, "t": torch.full((3,), 500.0), "context": context}


def test_a_blind_row_sees_itself_alone_and_the_others_stay_bit_for_bit(net, question):
    plain, answer = net(**question), perturbed(net, net, [""])(**question, blind=BLIND)
    assert answer[~BLIND].equal(plain[~BLIND])
    for module in net.modules():  # by hand: v where softmax(q k^T / sqrt(d)) v was
        if isinstance(module, SelfAttention):
            module.forward = lambda x, module=module: module.to_out(module.to_v(x))
    wanted = net(**question)
    torch.testing.assert_close(answer[BLIND], wanted[BLIND], rtol=1e-4, atol=1e-4)
    assert (answer[BLIND] - plain[BLIND]).abs().mean() > 0.01 * plain.abs().mean()


def test_only_the_layers_that_are_named(net, question):
    looked = []
    for name, module in net.named_modules():
        if isinstance(module, SelfAttention):
            module.to_out.register_forward_hook(lambda *_, name=name: looked.append(name))  # once more where it is perturbed
    perturbed(net, net, ["mid", "up.0.layers.1"])(**question, blind=BLIND)
    assert sorted({name for name in looked if looked.count(name) == 2}) == [
        "mid.layer.attention.blocks.0.self_attention", "up.0.layers.1.attention.blocks.0.self_attention"]  # fmt: skip
    assert len(set(looked)) == 7 and len(looked) == 9


def test_afterwards_the_network_is_as_it_was(net, question):
    def fails(*inputs, **cond):
        raise RuntimeError("the question failed")

    perturbed(net, net)(**question, blind=BLIND)
    with pytest.raises(RuntimeError, match="the question failed"):
        perturbed(fails, net)(**question, blind=BLIND)
    assert not any(module._forward_hooks for module in net.modules())


def test_layers_that_there_are_not(net):
    with pytest.raises(ValueError, match=r'of this UNet is in "down.7": it has down.0.layers.0.attention.*mid'):
        perturbed(net, net, ["mid", "down.7"])
    with pytest.raises(ValueError, match='in "mid": it has none at all'):
        perturbed(net, md.UNet(3, 3, (8, 8), (False, False), mid_attention=False))
