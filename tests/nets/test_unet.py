import pytest
import torch

from minidiff.nets import GSC, CrossAttention, DownSample, Memory, ResNetBlock, SelfAttention, UNet, UpSample

TINY = {"channels": (16, 32), "attention": (False, True), "layers": 1}


def tiny(**options):
    torch.manual_seed(0)
    net = UNet(**{"in_channels": 1, "out_channels": 1, **TINY, **options})
    for parameter in net.parameters():  # what starts at zero would hide everything before it
        if parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.05)
    return net


def inputs(size=8):
    g = torch.Generator().manual_seed(1)
    return torch.randn(3, 1, size, size, generator=g), torch.tensor([0, 10, 900])


def test_attention_is_softmax_of_qk_over_sqrt_d_times_v(generator):
    attention = CrossAttention(32, 12, heads=2)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    x, context = torch.randn(2, 5, 32, generator=generator), torch.randn(2, 7, 12, generator=generator)
    q, k, v = attention.to_q(x), attention.to_k(context), attention.to_v(context)
    heads = []
    for h in (slice(0, 16), slice(16, 32)):
        weight = (torch.einsum("bnd,bld->bnl", q[..., h], k[..., h]) / 4).softmax(-1)
        heads.append(torch.einsum("bnl,bld->bnd", weight, v[..., h]))
    torch.testing.assert_close(attention(x, context), attention.to_out(torch.cat(heads, -1)), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="100 channels do not divide into 3 heads"):
        SelfAttention(100, heads=3)


def test_new_blocks_start_as_the_identity(generator):
    x, emb = torch.randn(2, 32, 4, 4, generator=generator), torch.randn(2, 8, generator=generator)
    torch.testing.assert_close(ResNetBlock(32, 32, 8)(x, emb), x)
    assert SelfAttention(32)(x.flatten(2).transpose(1, 2)).abs().max() == 0
    assert UNet(1, 1, **TINY)(*inputs()).abs().max() == 0
    assert UNet(1, 1, **TINY, shortcut=True)(*inputs()).abs().max() == 0


def test_the_shortcut_is_a_straight_line_in_x():
    """With the deep path silent, the answer is gain * x + shift, the same for every pixel."""
    net, (x, t) = tiny(shortcut=True), inputs()
    for parameter in net.out[-1].parameters():
        torch.nn.init.zeros_(parameter)
    answer = net(x, t)
    slope = (answer[:, 0, 0, 0] - answer[:, 0, 1, 1]) / (x[:, 0, 0, 0] - x[:, 0, 1, 1])
    shift = answer[:, 0, 0, 0] - slope * x[:, 0, 0, 0]
    torch.testing.assert_close(answer, slope.view(-1, 1, 1, 1) * x + shift.view(-1, 1, 1, 1), rtol=1e-3, atol=1e-4)
    assert slope.unique().numel() == 3  # of t alone


def test_shapes_of_the_pieces(generator):
    x = torch.randn(2, 32, 6, 10, generator=generator)
    assert GSC(32, 48)(x).shape == (2, 48, 6, 10)
    assert DownSample(32)(x, None).shape == (2, 32, 3, 5)
    assert UpSample(32)(x, None).shape == (2, 32, 12, 20)


@pytest.mark.parametrize("options", [
    {}, {"patch": 2}, {"num_classes": 10}, {"num_classes": 10, "class_channels": 4}, {"context_dim": 12},
    {"out_channels": 3}, {"shortcut": True}, {"layers": 2, "channels": (16, 16, 32), "attention": (True, False, False)},
])  # fmt: skip
def test_every_parameter_takes_part(options):
    net, (x, t) = tiny(**options), inputs()
    y = torch.tensor([0, 9, 10]) if "num_classes" in options else None
    context = torch.randn(3, 5, 12) if "context_dim" in options else None
    out = net(x, t, y=y, context=context)
    assert out.shape == (3, options.get("out_channels", 1), 8, 8)
    out.square().sum().backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert idle == []


@pytest.mark.parametrize("class_channels", [0, 4])
def test_the_class_matters_and_no_class_is_the_null_class(class_channels):
    net, (x, t) = tiny(num_classes=10, class_channels=class_channels), inputs()
    assert not torch.allclose(net(x, t, y=torch.tensor([1, 2, 3])), net(x, t, y=torch.tensor([4, 2, 3])))
    torch.testing.assert_close(net(x, t), net(x, t, y=torch.full((3,), net.null_class)))


def test_time_and_context_matter():
    net, (x, t) = tiny(context_dim=12), inputs()
    context = torch.randn(3, 5, 12)
    assert not torch.allclose(net(x, t, context=context), net(x, t + 50, context=context))
    assert not torch.allclose(net(x, t, context=context), net(x, t, context=context.flip(0)))


def test_images_of_a_batch_do_not_see_each_other():
    net, (x, t) = tiny(num_classes=10), inputs()
    y = torch.tensor([1, 2, 3])
    together = net(x, t, y)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], net(x[i : i + 1], t[i : i + 1], y[i : i + 1]), rtol=1e-4, atol=1e-5)


def test_other_sizes_and_memory_layouts_give_the_same_answer():
    net, (x, t) = tiny(), inputs(16)
    wanted = net(x, t)
    torch.testing.assert_close(net.to(memory_format=torch.channels_last)(x, t), wanted, rtol=1e-4, atol=1e-5)
    assert net(torch.randn(1, 1, 8, 24), t[:1]).shape == (1, 1, 8, 24)
    assert net(torch.randn(1, 1, 9, 15), t[:1]).shape == (1, 1, 9, 15)  # halving rounds up, and the way back knows it


def test_it_learns_what_a_class_means(generator):
    """What no test of shapes gives: gradient descent through the whole network gets somewhere. Class 1 is the negative."""
    torch.manual_seed(0)
    net, t, y = UNet(1, 1, **TINY, num_classes=2), torch.full((16,), 5), torch.arange(16) % 2
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(200):
        x = torch.randn(16, 1, 8, 8, generator=generator)
        loss = (net(x, t, y) - x * (1 - 2 * y).view(-1, 1, 1, 1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.15  # knowing no class leaves 1.0


def test_bad_input_is_named():
    net, (x, t) = tiny(num_classes=10), inputs()
    for error, call in {
        r"takes \(B, 1, H, W\)": lambda: net(torch.zeros(3, 3, 8, 8), t),
        "patches of 2x2: pad": lambda: tiny(patch=2)(torch.zeros(3, 1, 9, 9), t),
        "t has 2 rows for a batch of 3": lambda: net(x, t[:2]),
        "y has 1 rows": lambda: net(x, t, y=torch.tensor([1])),
        "classes 0 to 9": lambda: net(x, t, y=torch.tensor([1, 2, 11])),
        "takes no context": lambda: net(x, t, context=torch.zeros(3, 1, 4)),
        "give it context": lambda: tiny(context_dim=4)(x, t),
        r"context of shape \(3, 1, 5\): .*\(B, L, 4\)": lambda: tiny(context_dim=4)(x, t, context=torch.zeros(3, 1, 5)),
        "no null class: give it labels": lambda: tiny(num_classes=4, null_class=False)(x, t),
        "labels run from 1 to 4, but .* 0 to 3$": lambda: tiny(num_classes=4, null_class=False)(x, t, torch.tensor([1, 2, 4])),
        "takes no labels": lambda: tiny()(x, t, y=t),
        "attention has 1 entries .* one per stage": lambda: UNet(1, 1, channels=(8, 8), attention=(True,)),
        "heads has 3 entries": lambda: UNet(1, 1, **TINY, heads=(1, 2, 3)),
        "say how many": lambda: UNet(1, 1, **TINY, class_channels=4),
        "1 channels in, 3 out": lambda: UNet(1, 3, **TINY, shortcut=True),
    }.items():
        with pytest.raises(ValueError, match=error):
            call()


SD1 = {"context_dim": 768, "heads": 8}
SD2 = {"context_dim": 1024, "heads": (5, 10, 20, 20), "linear": True}


@pytest.mark.parametrize("in_channels, options, parameters", [
    (4, SD1, 859_520_964), (9, SD1, 859_535_364), (4, SD2, 865_910_724), (5, SD2, 865_913_604),
], ids=["SD 1", "SD 1 for inpainting", "SD 2", "SD 2 with depth"])  # fmt: skip
def test_at_full_size_it_is_stable_diffusions(in_channels, options, parameters):
    with torch.device("meta"):
        net = UNet(in_channels, 4, (320, 640, 1280, 1280), (True, True, True, False), groups=32, **options)
        x, t, context = torch.zeros(2, in_channels, 64, 64), torch.zeros(2), torch.zeros(2, 77, options["context_dim"])
        assert net(x, t, context=context).shape == (2, 4, 64, 64)
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_a_memory_answers_as_its_tokens():
    net, (x, t) = tiny(context_dim=12), inputs()
    memory = Memory(torch.randn(3, 5, 12))
    for _ in range(2):
        torch.testing.assert_close(net(x, t, context=memory), net(x, t, context=memory.tokens), rtol=0, atol=0)


def test_dropout_drops_in_training_only():
    net, (x, t) = tiny(context_dim=12, dropout=0.5), inputs()
    context = torch.randn(3, 5, 12)
    assert not torch.equal(net(x, t, context=context), net(x, t, context=context))
    net.eval()
    assert torch.equal(net(x, t, context=context), net(x, t, context=context))


@pytest.mark.gpu
def test_it_runs_on_a_gpu():
    net, (x, t) = tiny(num_classes=10).cuda(), inputs()
    torch.testing.assert_close(net(x.cuda(), t.cuda()).cpu(), net.cpu()(x, t), rtol=1e-2, atol=1e-3)
