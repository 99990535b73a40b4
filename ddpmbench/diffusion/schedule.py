"""Noise schedules: the tables of the forward process, in float64.

The steps are t = 1..T; the tables are 0-based, entry ``i`` belongs to ``t = i + 1``.
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ddpmbench.errors import InputError
from ddpmbench.records import short_value

MAX_TIMESTEPS = 1_000_000
"""A longer schedule is taken for a mistake."""


def _spaced(total: int, count: int) -> list[int]:
    """So many evenly spaced numbers of 1..total, the first and the last among them."""
    stride = (total - 1) / max(count - 1, 1)
    position, steps = 0.0, []
    for _ in range(count):
        steps.append(1 + round(position))
        position += stride  # summed, not multiplied: the same rounding as the source
    return steps


def _check_length(num_timesteps: int) -> None:
    if not 1 <= num_timesteps <= MAX_TIMESTEPS:
        raise InputError(f"schedule: {num_timesteps} steps; take from 1 to {MAX_TIMESTEPS:,}")


@dataclasses.dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The variances of the forward process and what follows from them.

    Build one with a named constructor: `linear`, `cosine`, `sigmoid`, `scaled_linear`,
    `sqrt_linear`, `geometric`, `warmup`, `cosine_betas`, `sigmoid_betas`, `from_betas`,
    `from_alphas_cumprod`.

    Attributes:
        betas: (T,) float64, variance added at each step, in (0, 1).
        name: what the schedule is called where it is printed.
        original_timesteps: (T,) int64, the 1-based steps of the schedule the network was trained
            on; 1..T unless the schedule was respaced.
        num_original_timesteps: length of the schedule the network was trained on.

    Source: Ho, Jain & Abbeel 2020, eqs. 2, 4 and 7.
    """

    betas: Tensor
    name: str
    original_timesteps: Tensor
    num_original_timesteps: int

    def __post_init__(self) -> None:
        """Refuse variances that define no forward process."""
        if self.betas.dtype != torch.float64 or self.betas.ndim != 1 or not len(self.betas):
            raise InputError(f"schedule {self.name}: betas must be one row of float64 numbers")
        if not bool(((self.betas > 0) & (self.betas < 1)).all()):
            raise InputError(f"schedule {self.name}: every beta must lie strictly between 0 and 1")

    def __repr__(self) -> str:
        return f"NoiseSchedule({short_value(self.name)}, T = {self.num_timesteps})"

    @property
    def num_timesteps(self) -> int:
        """T."""
        return len(self.betas)

    @cached_property
    def log_alphas_cumprod(self) -> Tensor:
        """(T,) log of the product of 1 - beta up to and including each step."""
        return torch.log1p(-self.betas).cumsum(0)

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """(T,) share of the data's variance left in x_t."""
        return self.log_alphas_cumprod.exp()

    @cached_property
    def one_minus_alphas_cumprod(self) -> Tensor:
        """(T,) variance of the noise in x_t, without cancellation at small t."""
        return -torch.expm1(self.log_alphas_cumprod)

    @cached_property
    def snr(self) -> Tensor:
        """(T,) signal-to-noise ratio alphas_cumprod / (1 - alphas_cumprod)."""
        return self.alphas_cumprod / self.one_minus_alphas_cumprod

    @cached_property
    def posterior_variance(self) -> Tensor:
        """(T,) variance of q(x_{t-1} | x_t, x_start); 0 at t = 1. Ho et al. 2020, eq. 7."""
        previous = torch.cat([torch.zeros(1, dtype=torch.float64), self.one_minus_alphas_cumprod])
        return self.betas * previous[:-1] / self.one_minus_alphas_cumprod

    def respaced(self, num_timesteps: int) -> Self:
        """The schedule of the model that visits only evenly spaced steps of this one.

        The bound of a respaced model is that of a different model, not an estimate of this one's.

        Args:
            num_timesteps: number of steps to keep, 1..T.
        """
        return self.subset(self.evenly_spaced(num_timesteps))

    def evenly_spaced(self, num_timesteps: int) -> list[int]:
        """So many steps of 1..T, the first and the last among them; of a single one the last.

        From two on they are those that the source's code chooses.

        Args:
            num_timesteps: 1..T.

        Source: Nichol & Dhariwal 2021, section 4.
        """
        total = self.num_timesteps
        if not 1 <= num_timesteps <= total:
            raise InputError(
                f"`timesteps={num_timesteps}`: choose from 1 to {total}, the checkpoint's steps"
            )
        return [total] if num_timesteps == 1 else _spaced(total, num_timesteps)

    def in_sections(self, counts: Sequence[int]) -> Self:
        """The schedule that visits so many evenly spaced steps of each of equal sections.

        The first sections are a step longer where T is no multiple of their number; a single step
        is the first of its section.

        Args:
            counts: steps of each section, at least 1, the section nearest to the data first.

        Source: Dhariwal & Nichol 2021, `space_timesteps` in the project's code.
        """
        length, longer = divmod(self.num_timesteps, len(counts))
        start, steps = 0, []
        for number, count in enumerate(counts):
            size = length + (number < longer)
            if not 1 <= count <= size:
                raise InputError(
                    f"section {number + 1} of {len(counts)} has {size} steps, not {count}"
                )
            steps += [start + step for step in _spaced(size, count)]
            start += size
        return self.subset(steps)

    def subset(self, timesteps: Sequence[int]) -> Self:
        """The schedule that visits only the given steps.

        Args:
            timesteps: strictly increasing steps in 1..T of this schedule.
        """
        steps = torch.as_tensor(timesteps, dtype=torch.int64)
        if not len(steps) or steps[0] < 1 or steps[-1] > self.num_timesteps:
            raise InputError(f"timesteps must lie in 1..{self.num_timesteps}")
        if bool((steps.diff() <= 0).any()):
            raise InputError("timesteps must be strictly increasing")
        if len(steps) == self.num_timesteps:
            return self
        kept = self.log_alphas_cumprod[steps - 1]
        log_alphas = torch.diff(kept, prepend=torch.zeros(1, dtype=torch.float64))
        return dataclasses.replace(
            self,
            betas=-torch.expm1(log_alphas),
            name=f"{self.name}, {len(steps)} of {self.num_timesteps} steps",
            original_timesteps=self.original_timesteps[steps - 1],
        )

    @classmethod
    def from_betas(cls, betas: ArrayLike | Tensor, *, name: str = "betas") -> Self:
        """A schedule given by its variances.

        Args:
            betas: (T,) variances in (0, 1).
            name: what to call it.
        """
        values = torch.from_numpy(_float64(betas))
        return cls(values, name, torch.arange(1, values.numel() + 1), values.numel())

    @classmethod
    def from_alphas_cumprod(
        cls, alphas_cumprod: ArrayLike | Tensor, *, name: str = "alphas_cumprod"
    ) -> Self:
        """A schedule given by its cumulative products.

        Args:
            alphas_cumprod: (T,) strictly decreasing values in (0, 1).
            name: what to call it.
        """
        values = _float64(alphas_cumprod)
        if values.ndim != 1 or not values.size:
            raise InputError(f"schedule {name}: alphas_cumprod must be one row of numbers")
        if not (np.diff(values, prepend=1.0) < 0).all() or not values[-1] > 0:
            raise InputError(
                f"schedule {name}: alphas_cumprod must decrease strictly and stay inside (0, 1)"
            )
        return cls.from_betas(
            -np.diff(values, prepend=1.0) / np.append(1.0, values[:-1]), name=name
        )

    @classmethod
    def linear(
        cls, num_timesteps: int, *, beta_start: float | None = None, beta_end: float | None = None
    ) -> Self:
        """Evenly spaced variances.

        Args:
            num_timesteps: T.
            beta_start: first variance; 1e-4 at T = 1000, scaled with 1000 / T, where not given.
            beta_end: last variance; 0.02 at T = 1000, scaled likewise.

        Source: Ho et al. 2020, section 4; the scaling is that of Nichol & Dhariwal 2021.
        """
        _check_length(num_timesteps)
        if num_timesteps <= 20 and beta_end is None:
            raise InputError(
                f"schedule linear: {num_timesteps} steps are too few, its last beta would be 1 or "
                "more; take at least 21"
            )
        start = 0.1 / num_timesteps if beta_start is None else beta_start
        end = 20.0 / num_timesteps if beta_end is None else beta_end
        return cls.from_betas(np.linspace(start, end, num_timesteps), name="linear")

    @classmethod
    def scaled_linear(
        cls, num_timesteps: int, *, beta_start: float = 0.00085, beta_end: float = 0.012
    ) -> Self:
        """Variances whose square roots are evenly spaced (Rombach et al. 2022)."""
        _check_length(num_timesteps)
        if min(beta_start, beta_end) < 0:
            raise InputError("schedule scaled_linear: a beta must not be negative")
        roots = np.linspace(beta_start**0.5, beta_end**0.5, num_timesteps)
        return cls.from_betas(roots**2, name="scaled_linear")

    @classmethod
    def sqrt_linear(cls, num_timesteps: int, *, beta_end: float = 0.02) -> Self:
        """x_t keeps alpha_t = sqrt(1 - beta_end t / T) of x_{t-1}: variances beta_end t / T."""
        _check_length(num_timesteps)
        steps = np.arange(1, num_timesteps + 1)
        return cls.from_betas(beta_end * steps / num_timesteps, name="sqrt_linear")

    @classmethod
    def geometric(
        cls, num_timesteps: int, *, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> Self:
        """Variances whose logarithms are evenly spaced: beta_start (end / start)^(i / (T - 1))."""
        _check_length(num_timesteps)
        if min(beta_start, beta_end) <= 0:
            raise InputError("schedule geometric: a beta must be positive")
        return cls.from_betas(np.geomspace(beta_start, beta_end, num_timesteps), name="geometric")

    @classmethod
    def warmup(
        cls,
        num_timesteps: int,
        *,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        share: float = 0.1,
    ) -> Self:
        """Variances that rise linearly over a share of the steps and stay (the code of Ho et al.).

        A share of 0 gives a constant variance, `const` there.
        """
        _check_length(num_timesteps)
        betas = np.full(num_timesteps, float(beta_end))
        rising = int(num_timesteps * share)
        betas[:rising] = np.linspace(beta_start, beta_end, rising)
        return cls.from_betas(betas, name="warmup" if rising else "const")

    @classmethod
    def cosine(
        cls,
        num_timesteps: int,
        *,
        offset: float = 0.008,
        power: float = 2.0,
        max_beta: float = 0.999,
    ) -> Self:
        """A power of the cosine of the elapsed share (Nichol & Dhariwal 2021, eq. 17).

        Another power than 2 is a raised cosine (Chen 2023, with tau = power / 2).
        """
        _check_length(num_timesteps)
        share = (np.arange(num_timesteps + 1) / num_timesteps + offset) / (1 + offset)
        alpha_bar = np.cos(share * np.pi / 2) ** power
        betas = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], max_beta)
        return cls.from_betas(betas, name="cosine")

    @classmethod
    def sigmoid(
        cls,
        num_timesteps: int,
        *,
        start: float = -3.0,
        end: float = 3.0,
        temperature: float = 1.0,
        max_beta: float = 0.999,
    ) -> Self:
        """A sigmoid of the elapsed share, scaled to run from 1 to 0 (Jabri et al. 2022)."""
        _check_length(num_timesteps)
        share = np.arange(num_timesteps + 1) / num_timesteps
        logistic = 1 / (1 + np.exp(-(share * (end - start) + start) / temperature))
        alpha_bar = (logistic[-1] - logistic) / (logistic[-1] - logistic[0])
        betas = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], max_beta)
        return cls.from_betas(betas, name="sigmoid")

    @classmethod
    def sigmoid_betas(
        cls, num_timesteps: int, *, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> Self:
        """Variances that rise along a sigmoid on [-6, 6] (Xu et al. 2022, GeoDiff)."""
        _check_length(num_timesteps)
        logistic = 1 / (1 + np.exp(-np.linspace(-6, 6, num_timesteps)))
        return cls.from_betas(logistic * (beta_end - beta_start) + beta_start, name="sigmoid_betas")

    @classmethod
    def cosine_betas(
        cls, num_timesteps: int, *, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> Self:
        """Variances that rise along half a period of a cosine, a raised cosine in beta itself."""
        _check_length(num_timesteps)
        rise = (1 - np.cos(np.linspace(0, np.pi, num_timesteps))) / 2
        return cls.from_betas(beta_start + (beta_end - beta_start) * rise, name="cosine_betas")


def _float64(values: ArrayLike | Tensor) -> NDArray[np.float64]:
    # numpy cannot copy a tensor that lies on a device or that requires a gradient.
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    return np.array(array, dtype=np.float64)
