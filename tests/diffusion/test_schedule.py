import math

import pytest
import torch
from hypothesis import given, strategies as st
from torch.testing import assert_close

from minidiff.diffusion import CLEAN, Level, Schedule
from minidiff.diffusion.schedule import karras

VP = {
    "linear": Schedule.linear(),
    "scaled_linear": Schedule.scaled_linear(),
    "cosine": Schedule.cosine(),
    "zero_snr": Schedule.scaled_linear().zero_terminal_snr(),
}
ALL = {**VP, "flow": Schedule.flow(), "flow_shift_3": Schedule.flow(shift=3.0)}
each = pytest.mark.parametrize("schedule", ALL.values(), ids=ALL)


@pytest.mark.parametrize("name, abar", [("linear", 4.04e-5), ("scaled_linear", 4.66e-3), ("cosine", 2.4e-9)])
def test_terminal_abar(name, abar):
    assert VP[name].abar[-1].item() == pytest.approx(abar, rel=0.02)


def test_linear_is_the_product_of_one_minus_beta():
    product = 1.0
    for i in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * i / 999)
        assert Schedule.linear().abar[i].item() == pytest.approx(product, rel=1e-5)


@pytest.mark.parametrize("schedule", VP.values(), ids=VP)
def test_variance_is_preserved(schedule):
    torch.testing.assert_close(schedule.alpha**2 + schedule.sigma**2, torch.ones(1000))


def test_flow_is_a_straight_line():
    flow = Schedule.flow()
    torch.testing.assert_close(flow.alpha + flow.sigma, torch.ones(1000))
    torch.testing.assert_close(flow.t, torch.arange(1.0, 1001.0))
    shifted = Schedule.flow(shift=3.0)  # sigma -> 3 sigma / (1 + 2 sigma)
    assert shifted.sigma[499].item() == pytest.approx(0.75)


@each
def test_levels_get_cleaner_and_end_clean(schedule):
    for spacing in (None, "leading", "trailing", "linspace", "karras"):
        for n in (1, 2, 7, 50, 1000):
            levels = schedule.levels(n, spacing)
            assert len(levels) == n + 1 and levels[-1] is CLEAN
            noise = [level.sigma / (level.alpha + level.sigma) for level in levels]
            assert noise == sorted(noise, reverse=True) and len(set(noise)) == n + 1


def test_spacings_are_those_of_the_table():
    def times(n, *options):
        return [level.t for level in VP["linear"].levels(n, *options)[:-1]]

    assert times(10) == times(10, "leading") == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    assert times(10, "leading", 1) == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]
    assert times(10, "trailing") == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert times(10, "linspace") == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
    assert times(1, "linspace") == times(1, "trailing") == [999]
    assert times(48, "trailing")[3] == 936  # a tie, 937.5, falls as in diffusers
    assert all(isinstance(t, int) for t in times(10))
    assert VP["linear"].levels(5, last=None)[-1].t == 0


def test_karras_is_its_equation():
    """Karras et al. 2022, eq. 5, letter by letter."""
    n, rho = 12, 7
    wanted = [(80 ** (1 / rho) + i / (n - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho for i in range(n)]
    assert karras(80, 0.002, n) == pytest.approx(wanted, rel=1e-12)
    assert karras(80, 0.002, 3, rho=1) == pytest.approx([80, 40.001, 0.002])
    assert karras(80, 0.002, 1) == [pytest.approx(80)]


@pytest.mark.parametrize("name", VP)
@pytest.mark.parametrize("n", [1, 2, 12])
def test_karras_levels_run_between_the_ends_of_the_table(name, n):
    schedule = VP[name]
    levels = schedule.levels(n, "karras", last=None)
    assert len(levels) == n
    if name == "zero_snr":  # pure noise is a row of its own, and the even way begins below it
        assert levels[0] == schedule.at(999)
        levels = levels[1:]
        first = schedule.ratio[-2].item()
    else:
        first = schedule.ratio[-1].item()
    s = [level.sigma / level.alpha for level in levels]
    assert s == pytest.approx(karras(first, schedule.ratio[0].item(), len(s)), rel=1e-6)
    for level in levels:
        assert level.alpha**2 + level.sigma**2 == pytest.approx(1)


def test_karras_levels_of_a_flow():
    for shift in (1.0, 3.0):
        flow = Schedule.flow(shift=shift)
        levels = flow.levels(9, "karras", last=None)
        assert [level.sigma for level in levels] == pytest.approx(karras(1.0, flow.sigma[0].item(), 9))
        assert [level.t for level in levels] == pytest.approx([1000 * level.sigma for level in levels])


@given(st.floats(0, 998), st.sampled_from(list(ALL)))
def test_at_ratio_is_at_read_backwards(position, name):
    """The level is exact; t runs straight in log s between two timesteps."""
    schedule, row = ALL[name], int(position)
    s = torch.lerp(*schedule.ratio[row : row + 2].log(), position % 1).exp().item() if row < 998 else schedule.ratio[row].item()
    level = schedule.at_ratio(s)
    assert level.sigma / level.alpha == pytest.approx(s, rel=1e-9)
    if schedule.kind == "flow":
        assert level.alpha + level.sigma == pytest.approx(1) and level.t == pytest.approx(1000 * level.sigma)
    else:
        assert level.t == pytest.approx(position if row < 998 else row, abs=1e-6)
        assert level.alpha**2 + level.sigma**2 == pytest.approx(1)


@each
def test_ratio_is_noise_per_image(schedule):
    ratio = schedule.ratio
    assert ratio.shape == (1000,) and ratio.dtype == torch.float64 and (ratio.diff() > 0).all()
    assert_close(ratio[:-1], schedule.sigma[:-1].double() / schedule.alpha[:-1].double())
    assert ratio[-1].isinf() == (schedule.alpha[-1] == 0)


def test_zero_terminal_snr_keeps_the_digits_of_the_nearly_clean_level():
    u = torch.arange(1001, dtype=torch.float64) / 1000
    abar = torch.cos((u + 0.008) / 1.008 * torch.pi / 2) ** 2
    alpha = (1 - (1 - abar[1:] / abar[:-1]).clamp(max=0.999)).cumprod(0).sqrt()
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    assert_close(Schedule.cosine().zero_terminal_snr().sigma, (1 - alpha**2).sqrt().float(), rtol=2e-6, atol=0)


def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_its_start():
    bent, straight = VP["zero_snr"], VP["scaled_linear"]
    assert bent.alpha[-1] == 0 and bent.sigma[-1] == 1
    assert bent.alpha[0].item() == pytest.approx(straight.alpha[0].item(), rel=1e-6)
    assert (bent.alpha.diff() < 0).all()
    assert Schedule.flow().zero_terminal_snr().alpha[-1] == 0


@given(st.floats(0, 999), st.sampled_from(list(VP)))
def test_between_two_timesteps_lies_between_their_levels(t, name):
    schedule = VP[name]
    level, below, above = schedule.at(t), schedule.at(int(t)), schedule.at(min(int(t) + 1, 999))
    assert level.alpha**2 + level.sigma**2 == pytest.approx(1, abs=1e-6)
    assert below.sigma - 1e-6 <= level.sigma <= above.sigma + 1e-6
    assert above.alpha - 1e-6 <= level.alpha <= below.alpha + 1e-6


@each
def test_at_reads_the_table_and_takes_batches(schedule):
    rows = [0, 1, 500, 999]
    times = schedule.t[rows]
    batch = schedule.at(times)
    torch.testing.assert_close(batch.alpha, schedule.alpha[rows], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(batch.sigma, schedule.sigma[rows], rtol=1e-6, atol=1e-7)
    for i, t in enumerate(times.tolist()):
        one = schedule.at(t)
        assert isinstance(one.alpha, float)
        assert (one.alpha, one.sigma) == pytest.approx((batch.alpha[i].item(), batch.sigma[i].item()), abs=1e-6)


def test_level_meets_images():
    x = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    alpha, sigma = VP["linear"].at(torch.tensor([3, 700])).like(x)
    assert alpha.shape == sigma.shape == (2, 1, 1, 1) and alpha.dtype == torch.float64
    assert VP["linear"].at(5).timesteps(x).tolist() == [5, 5]
    assert Level(7, 1.0, 0.0).like(x) == (1.0, 0.0)
    with pytest.raises(ValueError, match="x holds 2"):
        VP["linear"].at(torch.tensor([3, 700, 1])).like(x)


@each
def test_drawn_timesteps_lie_on_the_schedule_and_repeat(schedule):
    draw = [schedule.draw(4000, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert draw[0].equal(draw[1])
    schedule.at(draw[0])  # raises if one lies outside
    if schedule.kind == "vp":
        assert draw[0].min() == 0 and draw[0].max() == 999


def test_flow_draws_the_middle_most_often():
    sigma = Schedule.flow().draw(20_000, torch.Generator().manual_seed(0)) / 1000
    middle = ((sigma > 0.4) & (sigma < 0.6)).float().mean()
    assert middle.item() == pytest.approx(0.3149, abs=0.015)  # P(|N(0,1)| < logit(0.6)), 0.2 if it were uniform
    assert Schedule.flow(shift=3.0).draw(20_000, torch.Generator().manual_seed(0)).median().item() == pytest.approx(750, abs=10)


@pytest.mark.parametrize("t", [-1, 1000, 999.5, float("nan"), torch.tensor([0, 1000])])
def test_t_outside_the_schedule(t):
    with pytest.raises(ValueError, match="outside the schedule"):
        VP["linear"].at(t)


def test_bad_input_is_named():
    for n in (0, 1001):
        with pytest.raises(ValueError, match="take 1 to 1000"):
            VP["linear"].levels(n)
    with pytest.raises(ValueError, match='unknown spacing "karas": take .*"karras"'):
        VP["linear"].levels(10, "karas")
    with pytest.raises(ValueError, match='unknown spacing "karas"'):
        Schedule.flow().levels(10, "karas")
    with pytest.raises(ValueError, match="offset"):
        VP["linear"].levels(1000, "leading", 1)
    with pytest.raises(ValueError, match="beta"):
        Schedule.from_betas(torch.tensor([0.1, 1.2]))
    with pytest.raises(ValueError, match="shift"):
        Schedule.flow(shift=0)
    with pytest.raises(ValueError, match="at least 2"):
        Schedule.cosine(T=1)
    for s in (0.0, -1.0, math.inf, math.nan):
        for schedule in (VP["linear"], Schedule.flow()):
            with pytest.raises(ValueError, match="take a positive number"):
                schedule.at_ratio(s)


@each
def test_too_many_steps_or_none(schedule):
    for spacing in (None, "leading", "trailing", "linspace", "karras"):
        for n in (0, -1, 1001):
            with pytest.raises(ValueError, match=f"{n} steps asked of a schedule of 1000: take 1 to 1000"):
                schedule.levels(n, spacing)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tables_in_half_precision_are_refused(dtype):
    table = torch.linspace(0.9, 0.1, 5)
    for alpha, sigma, name in ((table.to(dtype), table, "alpha"), (table, table.to(dtype), "sigma")):
        with pytest.raises(ValueError, match=f"{name} is in {dtype}, which has too few digits"):
            Schedule(alpha, sigma, torch.arange(5))
    with pytest.raises(ValueError, match=f"beta is in {dtype}"):
        Schedule.from_betas(torch.linspace(1e-4, 0.02, 1000).to(dtype))


def test_columns_of_a_table_have_one_length():
    alpha, sigma, t = torch.linspace(0.9, 0.1, 5), torch.linspace(0.4, 0.9, 5), torch.arange(5)
    assert len(Schedule(alpha, sigma, t)) == 5
    for columns in ((alpha[:4], sigma, t), (alpha, sigma[:4], t), (alpha, sigma, t[:4]), (alpha[None], sigma[None], t[None])):
        with pytest.raises(ValueError, match="columns of one table"):
            Schedule(*columns)


def test_it_is_printed_without_its_tables():
    assert repr(Schedule.flow(shift=3.0)) == "Schedule(kind='flow', shift=3.0)"
