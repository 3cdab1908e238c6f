"""One formula: the same trainer, samplers, guidance and inversion for DDPM's schedule and rectified flow, without a branch."""

import pytest
import torch
from torch import nn

from minidiff.diffusion import Schedule, classifier_free, ddim, denoiser, diffusion_loss, dpmpp_2m, heun, invert, sample
from minidiff.training import TrainConfig, Trainer

POINTS = torch.tensor([[1.0, 1.0], [-1.0, 0.5]])  # all the data there are: one point per class
NULL = 2
WAYS = {"vp eps": (Schedule.linear(), "eps"), "zero snr v": (Schedule.linear().zero_terminal_snr(), "v"),
        "flow": (Schedule.flow(), "flow")}  # fmt: skip


class Net(nn.Module):
    """(xt (B, 2), t (B,), y (B,)) -> (B, 2)."""

    def __init__(self):
        super().__init__()
        self.labels = nn.Embedding(3, 8)
        self.layers = nn.Sequential(nn.Linear(2 + 6 + 8, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, xt, t, y):
        angles = (t / 1000)[:, None] * torch.tensor([1.0, 3.0, 9.0])
        return self.layers(torch.cat([xt, angles.sin(), angles.cos(), self.labels(y)], dim=1))


@pytest.fixture(scope="module", params=WAYS)
def learned(request):
    schedule, predicts = WAYS[request.param]
    torch.manual_seed(0)

    def loss(net, x, y):
        return diffusion_loss(net, x, schedule, predicts, y=y.where(torch.rand(len(y)) > 0.3, NULL))

    def batches():
        while True:
            y = torch.randint(0, 2, (128,))
            yield POINTS[y], y

    trainer = Trainer(Net(), loss, TrainConfig(steps=500, lr=5e-3, warmup=20, optimizer="adamw", ema=0.99))
    trainer.fit(batches(), progress=False)
    return trainer.ema.net, schedule.levels(50, "trailing"), predicts


def miss(x, y):
    return (x - POINTS[y]).norm(dim=1).median().item()


@pytest.mark.parametrize("sampler", [ddim, heun, dpmpp_2m])
def test_it_draws_what_it_learned(learned, sampler, generator):
    net, levels, predicts = learned
    x, y = torch.randn(200, 2, generator=generator), torch.arange(200) % 2
    assert miss(sample(sampler, denoiser(net, predicts, y=y), x, levels, progress=False), y) < 0.2
    drawn = sample(sampler, denoiser(net, predicts, y=torch.full_like(y, NULL)), x, levels, progress=False)
    nearest = torch.cdist(drawn, POINTS).min(dim=1)
    assert nearest.values.median() < 0.7 and 0.3 < nearest.indices.float().mean() < 0.7  # without a class: both, less well


def test_guidance_leads_to_the_class_the_nearer_the_stronger(learned, generator):
    net, levels, predicts = learned
    x, y = torch.randn(200, 2, generator=generator), torch.arange(200) % 2
    cond, uncond = {"y": y}, {"y": torch.full_like(y, NULL)}
    ends = [sample(ddim, classifier_free(net, cond, uncond, scale, predicts), x, levels, progress=False) for scale in (0, 1, 2)]
    assert miss(ends[0], y) > 1 > 0.2 > miss(ends[1], y) > miss(ends[2], y)
    plain = sample(ddim, denoiser(net, predicts, y=y), x, levels, progress=False)
    torch.testing.assert_close(ends[1], plain)


def test_inversion_comes_back(learned, generator):
    net, levels, predicts = learned
    y = torch.arange(50) % 2
    denoise = denoiser(net, predicts, y=y)
    x0 = sample(ddim, denoise, torch.randn(50, 2, generator=generator), levels, progress=False)
    *_, last = invert(denoise, x0, levels)
    back = sample(ddim, denoise, last.x, levels, progress=False)
    assert last.level == levels[0] and (back - x0).norm(dim=1).median() < 0.05
