import math

import pytest
import torch

from minidiff.nets.vae import VAE, Gaussian

TINY = {"channels": (8, 16, 16), "layers": 1, "groups": 4}


def tiny(seed=0, **options):
    torch.manual_seed(seed)
    vae = VAE(**{**TINY, **options})
    for parameter in vae.parameters():  # what starts at zero would hide everything before it
        parameter.data = 0.2 * torch.randn_like(parameter) + (parameter.data if parameter.ndim == 1 else 0)
    return vae


def test_the_vae_of_stable_diffusion_has_its_parameters():
    with torch.device("meta"):
        vae = VAE()
        sd3 = VAE(latent_channels=16, quant_conv=False, scale=1.5305, shift=0.0609)
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863
    assert (vae.scale, vae.shift, vae.stride) == (0.18215, 0.0, 8)
    assert (sd3.scale, sd3.shift, sd3.stride) == (1.5305, 0.0609, 8)
    assert not any("quant" in name for name, _ in sd3.named_parameters())


def test_shapes_and_config(generator):
    vae = tiny(in_channels=1, latent_channels=5)
    x = torch.randn(2, 1, 8, 12, generator=generator)
    posterior = vae.encode(x)
    assert posterior.mean.shape == posterior.logvar.shape == posterior.std.shape == posterior.sample().shape == (2, 5, 2, 3)
    assert posterior.kl().shape == (2,)
    assert vae.decode(posterior.mean).shape == x.shape
    again = VAE(**vae.config)
    again.load_state_dict(vae.state_dict())
    torch.testing.assert_close(again.decode(posterior.mean), vae.decode(posterior.mean), rtol=0, atol=0)
    torch.testing.assert_close(posterior.mean, vae.moments(x)[:, :5], rtol=0, atol=0)


def test_kl_is_the_integral_it_stands_for():
    """KL = E[log q(z) - log p(z)], by integration over one dimension."""
    mean, logvar = torch.tensor([[0.7], [-1.3]]), torch.tensor([[0.4], [-2.0]])
    z = torch.linspace(-15, 15, 200_001, dtype=torch.float64)
    q = torch.distributions.Normal(mean.double(), (logvar.double() / 2).exp())
    integrand = q.log_prob(z).exp() * (q.log_prob(z) - torch.distributions.Normal(0.0, 1.0).log_prob(z))
    torch.testing.assert_close(Gaussian(mean, logvar).kl(), torch.trapezoid(integrand, z).float(), rtol=1e-5, atol=1e-6)
    assert Gaussian(torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, 3, 3)).kl().tolist() == [0, 0]
    assert Gaussian(torch.ones(1, 4, 3, 3), torch.zeros(1, 4, 3, 3)).kl().item() == pytest.approx(0.5 * 4 * 3 * 3)  # a sum


def test_samples_are_mean_plus_std_times_noise(generator):
    posterior = Gaussian(torch.full((1, 1, 300, 300), 2.0), torch.full((1, 1, 300, 300), math.log(9.0)))
    z = posterior.sample(generator)
    assert z.mean().item() == pytest.approx(2, abs=0.05)
    assert z.std().item() == pytest.approx(3, abs=0.05)
    eps = torch.randn(1, 1, 300, 300, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(z, 2 + 3 * eps)
    extreme = Gaussian(torch.zeros(2), torch.tensor([-1e9, 1e9]))
    assert extreme.logvar.tolist() == [-30, 20]
    assert extreme.std.isfinite().all()
    with pytest.raises(ValueError, match="mean has shape"):
        Gaussian(torch.zeros(2), torch.zeros(3))


def test_the_encoder_looks_right_and_below_and_the_decoder_both_ways():
    """Asymmetric down-sampling: without attention and GroupNorm, a latent pixel's window leans to the bottom right."""
    vae = VAE(channels=(4, 4), layers=1, groups=None, attention=False, in_channels=1)
    for module in vae.modules():
        if isinstance(module, torch.nn.GroupNorm | torch.nn.SiLU):
            module.forward = lambda x: x
        elif isinstance(module, torch.nn.Conv2d):
            torch.nn.init.ones_(module.weight)

    def seen(fn, x, pixel):
        grad, = torch.autograd.grad(fn(x.requires_grad_())[0, :, pixel, pixel].sum(), x)
        rows = grad[0].abs().sum((0, 2)).nonzero().flatten()
        return rows.min().item(), rows.max().item()

    # Below: three ResNetBlocks and `out`, seven 3x3. Then pixel i reads 2i ... 2i + 2, of what conv_in and two more 3x3 made.
    first, last = seen(lambda x: vae.encode(x).mean, torch.randn(1, 1, 64, 64), 16)
    assert (first, last) == (2 * (16 - 7) - 3, 2 * (16 + 7) + 2 + 3)
    first, last = seen(vae.decode, torch.randn(1, 4, 64, 64), 64)
    # At full size `out`, two ResNetBlocks and UpSample's own, six 3x3; below, four ResNetBlocks and conv_in.
    assert (first, last) == ((64 - 6) // 2 - 9, (64 + 6) // 2 + 9)


def test_attention_sees_the_whole_picture():
    with_it, without = tiny(), tiny(attention=False)
    x = torch.zeros(1, 4, 32, 32)
    x[..., 0, 0] = 5
    vae = VAE(**TINY)
    assert sum(p.numel() for p in vae.parameters()) - sum(p.numel() for p in without.parameters()) == 2 * (4 * 16 * 17 + 2 * 16)
    for net, moved in ((with_it, True), (without, False)):
        for module in net.modules():
            if isinstance(module, torch.nn.GroupNorm):
                module.forward = lambda h: h
        corner = net.double().decode(x.double())[..., -1, -1] - net.decode(0 * x.double())[..., -1, -1]
        assert (corner.abs().max().item() > 0) is moved


def test_a_new_one_learns_to_copy():
    """What training asks of it: gradients everywhere, and a reconstruction that improves."""
    torch.manual_seed(0)
    vae = VAE(in_channels=1, latent_channels=2, channels=(16, 16), layers=1, groups=None)
    x = torch.rand(16, 1, 8, 8).round() * 2 - 1
    x = torch.nn.functional.interpolate(x[..., ::4, ::4], scale_factor=4.0)
    optimizer, losses = torch.optim.Adam(vae.parameters(), lr=3e-3), []
    for _ in range(60):
        image, posterior = vae(x)
        loss = (image - x).square().mean() + 1e-4 * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in vae.parameters() if p.ndim > 1)
    assert losses[-1] < 0.1 * losses[0]


def test_bad_input_is_one_clear_error():
    vae = tiny()
    for call, message in [
        (lambda: vae.encode(torch.zeros(1, 1, 8, 8)), r"\(1, 1, 8, 8\): this VAE takes \(B, 3, H, W\)"),
        (lambda: vae.encode(torch.zeros(3, 8, 8)), r"takes \(B, 3, H, W\)"),
        (lambda: vae.encode(torch.zeros(1, 3, 10, 8)), "10x8 pixels do not divide by this VAE's stride of 4.* 12x8"),
        (lambda: vae.decode(torch.zeros(1, 3, 8, 8)), r"decodes \(B, 4, h, w\)"),
        (lambda: VAE(channels=(32, 48)), r"\(32, 48\) do not divide into 32 groups"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    vae, x = tiny().to(dtype), torch.zeros(1, 3, 8, 8, dtype=dtype)
    assert vae.decode(vae.encode(x).sample(torch.Generator().manual_seed(0))).dtype == dtype
