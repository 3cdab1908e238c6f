import math
from functools import partial

import pytest
import torch

from minidiff.diffusion import (
    CLEAN,
    DatasetDenoiser,
    GaussianDenoiser,
    Level,
    Schedule,
    add_noise,
    ddim,
    ddpm,
    denoiser,
    dpmpp_2m,
    dpmpp_2m_sde,
    euler,
    euler_ancestral,
    heun,
    invert,
    lms,
    plms,
    sample,
)
from minidiff.diffusion.samplers import draws

LINEAR, FLOW = Schedule.linear(), Schedule.flow()
GAUSSIAN = GaussianDenoiser(mean=0.0, std=0.5)
ODE_SAMPLERS = {"ddim": ddim, "euler": euler, "heun": heun, "lms": lms, "lms 1": partial(lms, order=1), "plms": plms,
                "plms v": partial(plms, blends="v"), "plms flow": partial(plms, blends="flow"),
                "dpmpp_2m": dpmpp_2m}  # fmt: skip
STOCHASTIC = {"ddpm": ddpm, "euler_ancestral": euler_ancestral, "dpmpp_2m_sde": dpmpp_2m_sde, "eta 0.5": partial(ddim, eta=0.5)}
SAMPLERS = ODE_SAMPLERS | STOCHASTIC
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)


def walk(sampler, denoise, x, levels, **options):
    return sample(sampler, denoise, x, levels, progress=False, **options)


def exact_ddim(x, levels, std=0.5):
    """Where the ODE really leads for Gaussian data: every x_t keeps its quantile."""
    start, end = (math.sqrt(level.alpha**2 * std**2 + level.sigma**2) for level in (levels[0], levels[-1]))
    return x * end / start


@pytest.mark.parametrize("steps, std", [(10, 0.36), (20, 0.43), (50, 0.47), (100, 0.485), (1000, 0.4985)])
def test_ddim_spread_climbs_to_that_of_the_data(steps, std, generator):
    x = torch.randn(50_000, 1, generator=generator)
    assert walk(ddim, GAUSSIAN, x, LINEAR.levels(steps, "linspace")).std().item() == pytest.approx(std, abs=0.006)


@pytest.mark.parametrize("schedule", [LINEAR, Schedule.cosine(), FLOW, Schedule.scaled_linear().zero_terminal_snr()])
def test_ddpm_draws_from_the_data(schedule, generator):
    x = torch.randn(20_000, 1, generator=generator)
    drawn = walk(ddpm, GaussianDenoiser(mean=0.3, std=0.5), x, schedule.levels(300, "trailing"), generator=generator)
    assert drawn.mean().item() == pytest.approx(0.3, abs=0.02)
    assert drawn.std().item() == pytest.approx(0.5, abs=0.02)


def test_ddim_is_of_first_order(generator):
    x = torch.randn(200, 1, generator=generator, dtype=torch.float64)
    for schedule in (LINEAR, FLOW):
        steps, errors = (64, 128, 256, 512), []
        for n in steps:
            levels = [schedule.at(t) for t in torch.linspace(900, 100, n + 1, dtype=torch.float64).tolist()]
            errors.append((walk(ddim, GAUSSIAN, x, levels) - exact_ddim(x, levels)).abs().max().log().item())
        order = (errors[0] - errors[-1]) / math.log(steps[-1] / steps[0])
        assert order == pytest.approx(1.0, abs=0.1)


def test_ddim_on_a_flow_is_eulers_method(generator):
    """Rectified flow has no code of its own in the sampler."""
    x = torch.randn(8, 1, 4, 4, generator=generator)
    net = lambda xt, t: torch.tanh(xt) * (1 + t / 1000).view(-1, 1, 1, 1)  # noqa: E731
    levels = FLOW.levels(20)
    euler = x
    for here, there in zip(levels, levels[1:], strict=False):
        euler = euler + (there.sigma - here.sigma) * net(euler, here.timesteps(euler))
    torch.testing.assert_close(walk(ddim, denoiser(net, "flow"), x, levels), euler, rtol=1e-6, atol=1e-6)


def test_ddim_with_eta_1_is_ddpm(generator):
    x = torch.randn(64, 1, generator=generator, dtype=torch.float64)
    ends = [walk(s, GAUSSIAN, x, LINEAR.levels(50), generator=torch.Generator().manual_seed(3), **o)
            for s, o in ((ddim, {"eta": 1.0}), (ddpm, {}))]  # fmt: skip
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-6)


def test_inversion_error_falls_with_steps(generator):
    x0 = 0.5 * torch.randn(500, 1, generator=generator, dtype=torch.float64)
    errors = []
    for n in (20, 50, 200):
        levels = LINEAR.levels(n, "linspace")
        *_, last = invert(GAUSSIAN, x0, levels)
        errors.append((walk(ddim, GAUSSIAN, last.x, levels) - x0).abs().max().item())
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.06
    backwards = list(invert(GAUSSIAN, x0, levels[::-1]))  # either order of the same levels
    torch.testing.assert_close(backwards[-1].x, last.x)
    assert last.level == levels[0] and last.x.std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("schedule", [LINEAR, FLOW, LINEAR.zero_terminal_snr()], ids=["vp", "flow", "zero snr"])
def test_refined_inversion_closes_the_round_trip(schedule, generator):
    x0, levels = 0.5 * torch.randn(500, 1, generator=generator, dtype=torch.float64), schedule.levels(50, "trailing")
    errors, calls = [], []

    def counting(xt, level):
        calls.append(level)
        return GAUSSIAN(xt, level)

    for refine in (0, 1, 3, 10):
        calls.clear()
        *_, last = invert(counting, x0, levels, refine=refine)
        assert len(calls) == 50 * (1 + refine)
        errors.append((walk(ddim, GAUSSIAN, last.x, levels) - x0).abs().max().item())
    assert errors[0] > 5 * errors[1] > 25 * errors[2] and errors[3] < 1e-6, errors
    with pytest.raises(ValueError, match="refine = -1"):
        next(invert(GAUSSIAN, x0, levels, refine=-1))


def test_dataset_denoiser_gives_its_own_images_back(generator):
    data = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    for sampler in (ddim, ddpm):
        x = torch.randn(400, 2, generator=generator)
        drawn = walk(sampler, DatasetDenoiser(data), x, LINEAR.levels(20), generator=generator)
        nearest = torch.cdist(drawn, data).min(dim=1)
        assert nearest.values.max() < 0.01
        assert set(nearest.indices.tolist()) == {0, 1, 2, 3}


def test_dataset_denoiser_is_the_posterior_mean():
    data, level = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64), Level(0, 0.8, 0.6)
    xt = torch.tensor([[0.7], [-2.0]], dtype=torch.float64)
    for row, x in enumerate(xt):
        weight = [math.exp(-((x.item() - 0.8 * d) ** 2) / (2 * 0.36)) for d in (0.0, 1.0, 3.0)]
        mean = (weight[1] + 3 * weight[2]) / sum(weight)
        assert DatasetDenoiser(data)(xt, level).x0[row].item() == pytest.approx(mean, rel=1e-9)
    each = Level(torch.tensor([0, 1]), torch.tensor([0.8, 0.6]), torch.tensor([0.6, 0.8]))
    together = DatasetDenoiser(data)(xt, each)
    torch.testing.assert_close(together.x0[:1], DatasetDenoiser(data)(xt[:1], level).x0, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(0.8 * together.x0[0] + 0.6 * together.eps[0], xt[0], rtol=1e-6, atol=1e-6)


def test_blurred_dataset_is_a_mixture(generator):
    """Against the integral of x0 * p(x0) * p(x_t | x0), summed on a grid."""
    data, std = torch.tensor([[-1.0], [0.2], [0.2], [1.5]], dtype=torch.float64), 0.3
    x0 = torch.linspace(-6, 6, 40_001, dtype=torch.float64)
    prior = torch.exp(-((x0 - data) ** 2) / (2 * std**2)).sum(0)
    xt = torch.tensor([[-2.0], [0.1], [0.7], [3.0]], dtype=torch.float64)
    for level in (Level(0, 0.8, 0.6), LINEAR.at(5), LINEAR.at(900), FLOW.at(1000)):
        weight = prior * torch.exp(-((xt - level.alpha * x0) ** 2) / (2 * level.sigma**2))
        estimate = DatasetDenoiser(data, std=std)(xt, level)
        torch.testing.assert_close(estimate.x0[:, 0], (weight * x0).sum(1) / weight.sum(1), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(add_noise(*estimate, level), xt, rtol=1e-9, atol=1e-9)


def test_one_blurred_image_is_a_gaussian(generator):
    image = torch.randn(1, 2, 3, generator=generator, dtype=torch.float64)
    xt = torch.randn(4, 2, 3, generator=generator, dtype=torch.float64)
    for level in (LINEAR.at(3), LINEAR.at(700), FLOW.at(1000), LINEAR.at(torch.tensor([1, 50, 700, 999])), CLEAN):
        got, wanted = DatasetDenoiser(image, std=0.4)(xt, level), GaussianDenoiser(image[0], 0.4)(xt, level)
        torch.testing.assert_close(got.x0, wanted.x0, rtol=1e-9, atol=1e-9)
        if level is not CLEAN:
            torch.testing.assert_close(got.eps, wanted.eps, rtol=1e-9, atol=1e-9)


def test_gaussian_denoiser_is_the_limit_of_a_large_dataset(generator):
    data = 0.3 + 0.5 * torch.randn(200_000, 1, generator=generator)
    xt = torch.tensor([[-1.0], [0.0], [1.5]])
    for t in (300, 600, 950):
        level = LINEAR.at(t)
        known, sampled = GaussianDenoiser(0.3, 0.5)(xt, level), DatasetDenoiser(data)(xt, level)
        torch.testing.assert_close(known.x0, sampled.x0, rtol=0.02, atol=0.02)
        torch.testing.assert_close(level.alpha * known.x0 + level.sigma * known.eps, xt)


def test_exact_denoisers_at_the_clean_end():
    x = torch.tensor([[0.2], [-0.4]])
    for denoise in (GAUSSIAN, DatasetDenoiser(x)):
        estimate = denoise(x, CLEAN)
        torch.testing.assert_close(estimate.x0, x)
        assert estimate.eps.abs().max() == 0


def test_walks_keep_no_gradients_and_leave_yours_alone(generator):
    net = torch.nn.Conv2d(1, 1, 1)
    x, levels = torch.randn(1, 1, 2, 2, generator=generator), LINEAR.levels(3)
    for sampler in (invert, *SAMPLERS.values()):
        for state in sampler(denoiser(lambda xt, t: net(xt)), x, levels):
            assert not state.x.requires_grad and torch.is_grad_enabled()


@each_sampler
def test_levels_that_are_no_walk_are_named(sampler, generator):
    asked, x = [], torch.randn(2, 1, generator=generator)

    def spy(xt, level):
        asked.append(level)
        return GAUSSIAN(xt, level)

    levels = LINEAR.levels(5)
    swapped = [levels[0], levels[2], levels[1], *levels[3:]]
    for wrong in (levels[::-1], FLOW.levels(5)[::-1], [levels[0], levels[0], CLEAN], swapped):
        with pytest.raises(ValueError, match="noisy to clean.*invert"):
            walk(sampler, spy, x, wrong)
    for wrong in ([], [CLEAN]):
        with pytest.raises(ValueError, match="at least two levels"):
            walk(sampler, spy, x, wrong)
    assert not asked  # before any work is lost


@each_sampler
def test_eps_at_zero_snr_is_refused(sampler):
    """There x_t is noise alone, and what noise it is says nothing of x0."""
    x = torch.ones(2, 1)
    for schedule in (FLOW, Schedule.scaled_linear().zero_terminal_snr()):
        with pytest.raises(ValueError, match="alpha is 0 at this level.*predicts='v'"):
            walk(sampler, denoiser(lambda xt, t: xt, "eps"), x, schedule.levels(5, "trailing"))
        for predicts in ("v", "x0", "flow"):
            assert walk(sampler, denoiser(lambda xt, t: xt, predicts), x, schedule.levels(5, "trailing")).isfinite().all()


def test_who_draws_takes_a_generator(generator):
    x, levels = torch.randn(3, 1, generator=generator), LINEAR.levels(5)
    for sampler in SAMPLERS.values():
        same = walk(sampler, GAUSSIAN, x, levels).equal(walk(sampler, GAUSSIAN, x, levels))
        assert same == (sampler not in STOCHASTIC.values())
        if draws(sampler):
            ends = [walk(sampler, GAUSSIAN, x, levels, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
            assert ends[0].equal(ends[1])
    assert all(draws(sampler) for sampler in STOCHASTIC.values()) and draws(ddim) and draws(dpmpp_2m)
    assert not any(draws(sampler) for sampler in (euler, heun, lms, plms, partial(lms, order=2)))


@each_sampler
def test_states_say_where_the_walk_stands(sampler, generator):
    levels = LINEAR.levels(5)
    states = list(sampler(GAUSSIAN, torch.randn(2, 1, generator=generator), levels))
    assert [state.level for state in states] == levels[1:]
    if sampler in (ddim, euler, heun, dpmpp_2m, *STOCHASTIC.values()):
        torch.testing.assert_close(states[-1].x, states[-1].x0)  # at CLEAN x is the last estimate itself


def test_bad_input_is_named(generator):
    x = torch.randn(2, 1, generator=generator)
    for order in (0, 5, 2.5):
        with pytest.raises(ValueError, match=f"order = {order}"):
            walk(lms, GAUSSIAN, x, LINEAR.levels(5), order=order)
    with pytest.raises(ValueError, match='"noise"'):
        walk(plms, GAUSSIAN, x, LINEAR.levels(5), blends="noise")
    with pytest.raises(ValueError, match="noisier"):
        list(invert(GAUSSIAN, x, [CLEAN, CLEAN]))
    with pytest.raises(ValueError, match="std"):
        GaussianDenoiser(std=0)
    with pytest.raises(ValueError, match="std = -0.1"):
        DatasetDenoiser(torch.zeros(3, 2), std=-0.1)
    with pytest.raises(ValueError, match="empty"):
        DatasetDenoiser(torch.zeros(0, 2))
    with pytest.raises(ValueError, match="dataset of"):
        DatasetDenoiser(torch.zeros(3, 2))(x, LINEAR.at(5))
