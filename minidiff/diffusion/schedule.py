"""Noise schedules: how much of the image, and how much noise, is left at every timestep.

Every model in this library lives on one formula,

    x_t = alpha_t * x0 + sigma_t * eps

and a schedule is nothing but the two tables alpha and sigma. DDPM, DDIM and Stable Diffusion 1 and 2 keep
alpha^2 + sigma^2 = 1 ("variance preserving", VP); rectified flow (Stable Diffusion 3) keeps alpha + sigma = 1.
A sampler never reads a table: it walks a list of `Level`s, noisy to clean, that `Schedule.levels` lays out.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Level:
    """How noisy: x_t = alpha * x0 + sigma * eps, and `t` is what the network is told.

    t, alpha, sigma: numbers, or (B,) tensors where every image of the batch has a level of its own.
    """

    t: float | Tensor
    alpha: float | Tensor
    sigma: float | Tensor

    def like(self, x: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """(alpha, sigma) ready to multiply `x` (B, ...): numbers as they are, (B,) tensors as (B, 1, 1, ...).

        Raises ValueError if the level holds another number of images than x.
        """
        if not isinstance(self.alpha, Tensor):
            return self.alpha, self.sigma
        if self.alpha.ndim != 1 or self.alpha.shape[0] != x.shape[0]:
            raise ValueError(f"this level is for {tuple(self.alpha.shape)} images and x holds {x.shape[0]}: "
                             "ask schedule.at(t) for a t of shape (B,)")
        shape = (-1,) + (1,) * (x.ndim - 1)
        return self.alpha.to(x).view(shape), self.sigma.to(x).view(shape)

    def timesteps(self, x: Tensor) -> Tensor:
        """t as the (B,) tensor a network expects, on the device of `x`."""
        return torch.as_tensor(self.t, device=x.device).expand(x.shape[0])


CLEAN = Level(t=0, alpha=1.0, sigma=0.0)  # where every walk ends; a network asked about it is told t = 0, its least noise


@dataclass(frozen=True, eq=False)
class Schedule:
    """Tables alpha, sigma (T,), float32, from t = 0 (nearly clean) to t = T-1 (nearly noise); build one by name.

    `t` (T,) is what a network is told at each row: 0 ... T-1 on a VP schedule, T * sigma on a flow. The tables are a
    few kilobytes and stay on the CPU; `Level.like` takes a level to the device and dtype of the images it meets.
    """

    alpha: Tensor = field(repr=False)
    sigma: Tensor = field(repr=False)
    t: Tensor = field(repr=False)
    kind: str = "vp"  # or "flow"
    shift: float = 1.0  # of a flow only

    def __post_init__(self):
        if not self.alpha.shape == self.sigma.shape == self.t.shape == (len(self.t),):
            raise ValueError(f"alpha {tuple(self.alpha.shape)}, sigma {tuple(self.sigma.shape)} and t {tuple(self.t.shape)} "
                             "are the columns of one table: give three of shape (T,)")
        _full_precision("alpha", self.alpha)
        _full_precision("sigma", self.sigma)

    # ---- by name ----------------------------------------------------------------------------------------------------

    @classmethod
    def linear(cls, T=1000, beta_start=1e-4, beta_end=0.02) -> "Schedule":
        """beta_t linear in t (Ho et al. 2020, section 4): the DDPM schedule. Ends at abar = 4.04e-5."""
        return cls.from_betas(torch.linspace(beta_start, beta_end, _steps(T), dtype=torch.float64))

    @classmethod
    def scaled_linear(cls, T=1000, beta_start=0.00085, beta_end=0.012) -> "Schedule":
        """sqrt(beta_t) linear in t (Rombach et al. 2022): Stable Diffusion 1 and 2. Ends at abar = 4.66e-3."""
        return cls.from_betas(torch.linspace(beta_start**0.5, beta_end**0.5, _steps(T), dtype=torch.float64) ** 2)

    @classmethod
    def cosine(cls, T=1000) -> "Schedule":
        """abar_t = cos^2((t/T + 0.008) / 1.008 * pi/2) (Nichol & Dhariwal 2021, eq. 17). Ends at abar = 2.4e-9.

        beta is held below 0.999 as in the paper, or the last step would divide by zero.
        """
        f = torch.cos((torch.arange(_steps(T) + 1, dtype=torch.float64) / T + 0.008) / 1.008 * math.pi / 2) ** 2
        return cls.from_betas((1 - f[1:] / f[:-1]).clamp(max=0.999))

    @classmethod
    def flow(cls, T=1000, shift=1.0) -> "Schedule":
        """Rectified flow: alpha = 1 - sigma, sigma = (t+1)/T pushed towards noise by `shift` (Esser et al. 2024, eq. 23).

        Large images keep their structure under more noise than small ones, so SD3 trains and samples with shift 3.
        """
        if shift <= 0:
            raise ValueError(f"shift must be positive, not {shift}: 1 is no shift, SD3 takes 3")
        sigma = _shifted(torch.arange(1, _steps(T) + 1, dtype=torch.float64) / T, shift)
        return cls((1 - sigma).float(), sigma.float(), (T * sigma).float(), "flow", shift)

    @classmethod
    def from_betas(cls, beta: Tensor) -> "Schedule":
        """A VP schedule from the variances added at each step, (T,): abar_t = prod_{s<=t} (1 - beta_s)  (DDPM, eq. 4).

        Raises ValueError unless every beta lies in [0, 1], and for betas in half precision.
        """
        _full_precision("beta", torch.as_tensor(beta))
        beta = torch.as_tensor(beta, dtype=torch.float64)
        if not ((beta >= 0) & (beta <= 1)).all():
            raise ValueError("every beta must lie in [0, 1]: it is the share of variance that one step replaces by noise")
        return cls._vp((1 - beta).cumprod(0).sqrt())

    @classmethod
    def _vp(cls, alpha: Tensor) -> "Schedule":  # alpha in float64: sigma of an almost clean level would lose its digits
        return cls(alpha.float(), (1 - alpha**2).sqrt().float(), torch.arange(len(alpha)))

    def zero_terminal_snr(self) -> "Schedule":
        """The same schedule, bent so that its last level is pure noise (Lin et al. 2023, algorithm 1).

        Without it a model never trains on what sampling starts from. eps says nothing of x0 at alpha = 0:
        predict v. A flow ends at alpha = 0 already and comes back as it is.
        """
        if self.kind == "flow":
            return self
        # Near 1, a float32 alpha has lost the digits that sigma needs; sigma still has them, and the two are one angle.
        alpha = torch.atan2(self.sigma.double(), self.alpha.double()).cos()
        first, last = alpha[0], alpha[-1]
        return self._vp((alpha - last) * first / (first - last))

    # ---- reading ----------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """T, the number of timesteps."""
        return len(self.alpha)

    @property
    def abar(self) -> Tensor:
        """alpha^2, (T,): DDPM's cumulative product of 1 - beta, the share of the variance that is still image."""
        return self.alpha**2

    def at(self, t) -> Level:
        """The level at timestep t: an int, a float between two ints, or a (B,) tensor of either.

        Between two ints a VP schedule walks along the arc that joins them, so alpha^2 + sigma^2 stays 1. On a flow
        t is T * sigma itself, so every t in [0, T] is a level. Raises ValueError for a t outside the schedule.
        """
        top = len(self) if self.kind == "flow" else len(self) - 1
        times = torch.as_tensor(t, device="cpu", dtype=torch.float64)
        if times.numel() == 0 or not ((times >= 0) & (times <= top)).all():  # NaN fails here too
            raise ValueError(f"t = {t} is outside the schedule, which runs from 0 to {top}; the clean image is CLEAN")
        if self.kind == "flow":
            alpha, sigma = 1 - times / len(self), times / len(self)
        else:
            alpha, sigma = self._between(times)
        if times.ndim == 0:
            return Level(t.item() if isinstance(t, Tensor) else t, alpha.item(), sigma.item())
        return Level(torch.as_tensor(t), alpha.float(), sigma.float())

    def _between(self, times: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.alpha.to(times), self.sigma.to(times)
        below, above = times.floor().long(), times.ceil().long()
        low, high = torch.atan2(sigma[below], alpha[below]), torch.atan2(sigma[above], alpha[above])
        angle = torch.lerp(low, high, times - below)
        whole = below == above  # the table's own digits where there is nothing to interpolate
        return torch.where(whole, alpha[below], angle.cos()), torch.where(whole, sigma[below], angle.sin())

    def at_ratio(self, s: float) -> Level:
        """The level where sigma/alpha = s > 0. Where that lies between two timesteps, t runs straight in log s (k-diffusion).

        Raises ValueError for an s that is not positive and finite.
        """
        if not 0 < s < math.inf:
            raise ValueError(f"sigma/alpha = {s}: take a positive number; pure noise is schedule.at(t) of the last t")
        if self.kind == "flow":  # alpha + sigma = 1
            return self.at(len(self) * s / (1 + s))
        t = np.interp(math.log(s), self.ratio.log(), np.arange(len(self)))
        return Level(t.item(), 1 / math.hypot(1, s), s / math.hypot(1, s))  # alpha^2 + sigma^2 = 1

    @property
    def ratio(self) -> Tensor:
        """s = sigma/alpha, (T,), float64: noise per image. Infinite where alpha is 0."""
        return self.sigma.double() / self.alpha.double()

    def levels(self, n: int, spacing: str | None = None, offset=0, last: Level | None = CLEAN) -> list[Level]:
        """n timesteps, noisy to clean, then `last`: the n+1 levels that a sampler of n steps walks.

        spacing (Lin et al. 2023, table 2), T = 1000 and n = 10 as an example:
            "leading"   900, 800, ..., 0 (+ offset)     the default; never starts from pure noise
            "trailing"  999, 899, ..., 99               the one to take with zero terminal SNR
            "linspace"  999, 888, ..., 0
            "karras"    dense where there is little noise, see `karras`; from alpha = 0 the first step is a single row
        On a flow the default is SD3's own: n values of sigma even between the table's ends, then shifted; the first three
        names pick rows of the table. Raises ValueError for n outside 1 ... T or an unknown spacing.
        """
        T = len(self)
        if not 1 <= n <= T:
            raise ValueError(f"{n} steps asked of a schedule of {T}: take 1 to {T}")
        if spacing is None and self.kind == "flow":
            least = self.shift / (T + self.shift - 1)  # sigma of the first row, in float64
            sigma = _shifted(torch.linspace(1, least, n, dtype=torch.float64), self.shift)
            walk = [self.at(T * s) for s in sigma.tolist()]
        elif spacing == "karras" and self.kind == "flow":
            walk = [self.at(T * s) for s in karras(1.0, self.sigma[0].item(), n)]
        elif spacing == "karras":
            noise = [self.at(T - 1)] if self.alpha[-1] == 0 else []
            first = self.ratio[-1 - len(noise)].item()
            walk = noise + [self.at_ratio(s) for s in karras(first, self.ratio[0].item(), n - len(noise))]
        else:
            walk = [self.at(self.t[i].item()) for i in _rows(T, n, spacing or "leading", offset)]
        return walk if last is None else [*walk, last]

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n random timesteps for training, (n,): uniform on a VP schedule; on a flow logit-normal, then shifted.

        The logit-normal draws the middle levels most often, where a flow has most to learn (Esser et al. 2024, eq. 19).
        """
        if self.kind == "vp":
            return torch.randint(len(self), (n,), generator=generator)
        return len(self) * _shifted(torch.randn(n, generator=generator).sigmoid(), self.shift)


def karras(first: float, last: float, n: int, rho: float = 7.0) -> list[float]:
    """n numbers from first down to last, even in the rho-th root: dense near last (Karras et al. 2022, eq. 5).

    The numbers are s = sigma/alpha on a VP schedule, as in the paper; sigma itself on a flow, where s would be infinite.
    """
    return (np.linspace(first ** (1 / rho), last ** (1 / rho), n) ** rho).tolist()


def _rows(T: int, n: int, spacing: str, offset: int) -> list[int]:
    if spacing == "leading":
        rows = [i * (T // n) + offset for i in reversed(range(n))]
    elif spacing == "trailing":
        rows = [round(t) - 1 for t in np.arange(T, 0, -T / n)[:n]]  # ties fall as they do in diffusers
    elif spacing == "linspace":
        rows = [round(i * ((T - 1) / (n - 1))) for i in reversed(range(n))] if n > 1 else [T - 1]
    else:
        raise ValueError(f'unknown spacing "{spacing}": take "leading", "trailing", "linspace" or "karras"')
    if not 0 <= min(rows) <= max(rows) < T:
        raise ValueError(f"offset {offset} pushes {n} leading steps beyond the {T} of the schedule: take a smaller one")
    return rows


def _shifted(sigma: Tensor, shift: float) -> Tensor:
    return shift * sigma / (1 + (shift - 1) * sigma)


def _full_precision(name: str, table: Tensor) -> None:
    if table.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(f"{name} is in {table.dtype}, which has too few digits for a schedule: 1 - 1e-4 is 1 there. Give "
                         "float32 or float64; levels take the dtype of the images they meet")


def _steps(T: int) -> int:
    if T < 2:
        raise ValueError(f"a schedule of T = {T} steps has nothing to walk: take at least 2")
    return T
