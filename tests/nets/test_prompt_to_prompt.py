"""Borrowed attention: whose maps are used, until when, and that nothing else changes."""

import pytest
import torch

from minidiff.nets import CrossAttention, SelfAttention, UNet, borrowed_attention, remembering


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = UNet(4, 4, (16, 16), (True, True), layers=1, context_dim=8).eval().requires_grad_(False)
    for weights in net.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    return net


def questions(rows=2, t=500):
    generator = torch.Generator().manual_seed(1)
    x, context = torch.randn(rows, 4, 8, 8, generator=generator), torch.randn(rows, 5, 8, generator=generator)
    return x, torch.full((rows,), float(t)), context


def ask(net, x, t, context, *source, **options):
    if not source:
        return net(x, t, context=context)
    with borrowed_attention(net, *source, **options):
        return remembering(net)(x, t, context=context)


def test_without_a_share_of_the_steps_nothing_changes_bit_for_bit(net):
    x, t, context = questions()
    plain = ask(net, x, t, context)
    assert ask(net, x, t, context, [0, 0], tau=500.0).equal(plain)  # t > tau, and not t >= tau
    assert ask(net, x, t, context, [0, 1]).equal(plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_who_borrows_from_an_equal_stays_as_it_is(net):
    x, t, context = (part[:1].repeat(2, *[1] * (part.ndim - 1)) for part in questions())
    plain = ask(net, x, t, context)
    torch.testing.assert_close(ask(net, x, t, context, [0, 0]), plain, rtol=1e-4, atol=1e-4)


def test_the_lender_stays_bit_for_bit_and_the_borrower_changes(net):
    x, t, context = questions()
    plain, lent = ask(net, x, t, context), ask(net, x, t, context, [0, 0])
    assert lent[0].equal(plain[0])
    assert (lent[1] - plain[1]).abs().mean() > 0.01 * plain[1].abs().mean()


@pytest.mark.parametrize("kind, inputs", [(SelfAttention, 1), (CrossAttention, 2)])
def test_it_is_the_sources_map_and_ones_own_values(kind, inputs):
    torch.manual_seed(2)
    module = SelfAttention(16, heads=2) if inputs == 1 else CrossAttention(16, 8, heads=2)
    torch.nn.init.normal_(module.to_out.weight)
    x, words = torch.randn(3, 6, 16), torch.randn(3, 5, 8)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = module

        def forward(self, x, t):
            return module(*(x, words)[:inputs])

    context = (x, words)[inputs - 1]
    maps, v = module.weights(x, context), module.keys_values(context)[1]
    wanted = module.to_out((maps[[2, 1, 2]] @ v).transpose(1, 2).flatten(2))
    lender = Net()
    with torch.no_grad(), borrowed_attention(lender, [2, 1, 2]):
        torch.testing.assert_close(lender(x, torch.ones(3)), wanted)
    with torch.no_grad(), borrowed_attention(lender, [2, 1, 2], kinds=(CrossAttention, SelfAttention)[inputs - 1 : inputs]):
        torch.testing.assert_close(lender(x, torch.ones(3)), module(*(x, words)[:inputs]))  # the other kind alone borrows


def test_each_row_asks_whether_it_is_its_time(net):
    x, _, context = questions(4)
    t = torch.tensor([900.0, 900.0, 100.0, 100.0])
    plain, lent = ask(net, x, t, context), ask(net, x, t, context, [0, 0, 2, 2], tau=500.0)
    assert lent[[0, 2, 3]].equal(plain[[0, 2, 3]]) and not lent[1].equal(plain[1])


def test_guidance_asks_twice_as_many_and_each_half_borrows_within_itself(net):
    x, t, context = questions(4)
    both = ask(net, x, t, context, [0, 0])
    halves = [ask(net, x[k : k + 2], t[k : k + 2], context[k : k + 2], [0, 0]) for k in (0, 2)]
    torch.testing.assert_close(both, torch.cat(halves), rtol=1e-4, atol=1e-4)


def test_what_there_is_not_is_refused(net):
    for source in ([], [0, 2], [-1, 0]):
        with pytest.raises(ValueError, match="for each of n rows"), borrowed_attention(net, source):
            pass
    with pytest.raises(ValueError, match="3 rows is no multiple of the 2"):
        ask(net, *questions(3), [0, 0])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
