"""What `bench samplers` times side by side is the same work: both sides arrive at the same picture."""

import pytest
import torch

from minidiff.__main__ import main
from minidiff.evaluation import benchmark

pytest.importorskip("diffusers", reason="diffusers is the oracle of these tests: pip install -r requirements.txt")
import overhead  # noqa: E402

pytestmark = pytest.mark.parity


def net(x, t):
    """Bends, mixes channels, and knows the time."""
    return torch.tanh(x + 0.5 * x.roll(1, 1) + torch.cos(t.to(x) / 300).view(-1, 1, 1, 1))


@pytest.mark.parametrize("n", [1, 10, 25])
@pytest.mark.parametrize("name", benchmark.SAMPLERS)
def test_both_sides_arrive_at_the_same_picture(name, n, generator):
    x = torch.randn(1, 4, 8, 8, generator=generator)
    ours, theirs = (side(name, net, x, n, torch.Generator().manual_seed(3))() for side in (benchmark.ready, overhead.ready))
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()
    assert (ours - x).abs().max() > 0.1


@pytest.mark.parametrize("name", benchmark.SAMPLERS)
def test_both_sides_ask_as_often(name, generator):
    asked = []

    def counting(x, t):
        asked.append(t.shape)
        return net(x, t)

    x = torch.randn(1, 4, 8, 8, generator=generator)
    for side in (benchmark.ready, overhead.ready):
        side(name, counting, x, 10, generator)()
    assert asked == [(1,)] * 2 * benchmark.calls(benchmark.SAMPLERS[name], 10)


def test_the_command_times_both(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "SAMPLERS", {"ddim": benchmark.SAMPLERS["ddim"]})
    monkeypatch.setattr(benchmark, "floor", lambda: 0.0)
    assert main(["bench", "samplers"]) == 0
    _, _, row, *_ = capsys.readouterr().out.splitlines()
    *_, ours, theirs, ratio = row.strip("| ").split("|")
    assert float(ratio) == pytest.approx(float(theirs) / float(ours), rel=0.1)
