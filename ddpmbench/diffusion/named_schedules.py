"""The noise schedules of the literature, by name."""

import math
from abc import ABC, abstractmethod
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddpmbench.diffusion.parameterization import Process
from ddpmbench.errors import InputError

MAX_TIMESTEPS = 1_000_000
"""Longest schedule that is not taken for a mistake."""


class NamedSchedules(ABC):
    """The named constructors of `diffusion.schedule.NoiseSchedule`."""

    @classmethod
    @abstractmethod
    def from_betas(cls, betas: ArrayLike, *, name: str) -> Self:
        """A schedule given by its variances."""

    @classmethod
    @abstractmethod
    def of_process(cls, process: Process, sigma: ArrayLike, *, name: str) -> Self:
        """A schedule of any family, given by its noise."""

    @classmethod
    def linear(
        cls, num_timesteps: int, *, beta_start: float | None = None, beta_end: float | None = None
    ) -> Self:
        r"""Evenly spaced variances.

        .. math::
            \beta_t = \beta_1 + \frac{t - 1}{T - 1} (\beta_T - \beta_1)

        Args:
            num_timesteps: T.
            beta_start: first variance; by default 1e-4 at T = 1000, scaled with 1000 / T.
            beta_end: last variance; by default 0.02 at T = 1000, scaled likewise.

        Raises:
            InputError: T is too small for the scaled variances, or they decrease or are not in (0,
                1).

        Source: Ho et al. 2020, section 4; the scaling is that of Nichol & Dhariwal 2021.
        """
        _check("linear", num_timesteps)
        if num_timesteps <= 20 and beta_end is None:
            raise InputError(
                f"schedule linear: {num_timesteps} steps are too few, its last beta would be 1 or "
                "more; take at least 21"
            )
        start = 0.1 / num_timesteps if beta_start is None else beta_start
        end = 20.0 / num_timesteps if beta_end is None else beta_end
        _check("linear", num_timesteps, start, end)
        return cls.from_betas(np.linspace(start, end, num_timesteps), name="linear")

    @classmethod
    def scaled_linear(
        cls, num_timesteps: int, *, beta_start: float = 0.00085, beta_end: float = 0.012
    ) -> Self:
        r"""Variances whose square roots are evenly spaced.

        .. math::
            \sqrt{\beta_t} = \sqrt{\beta_1}
            + \frac{t - 1}{T - 1} (\sqrt{\beta_T} - \sqrt{\beta_1})

        Source: Rombach et al. 2022.
        """
        if min(beta_start, beta_end) < 0:
            raise InputError("schedule scaled_linear: a beta must not be negative")
        _check("scaled_linear", num_timesteps, beta_start, beta_end)
        roots = np.linspace(beta_start**0.5, beta_end**0.5, num_timesteps)
        return cls.from_betas(roots**2, name="scaled_linear")

    @classmethod
    def sqrt_linear(cls, num_timesteps: int, *, beta_end: float = 0.02) -> Self:
        r"""Variances proportional to t.

        .. math::
            \beta_t = \beta_T\, t / T
        """
        _check("sqrt_linear", num_timesteps)
        steps = np.arange(1, num_timesteps + 1)
        return cls.from_betas(beta_end * steps / num_timesteps, name="sqrt_linear")

    @classmethod
    def geometric(
        cls, num_timesteps: int, *, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> Self:
        r"""Variances whose logarithms are evenly spaced.

        .. math::
            \beta_t = \beta_1 (\beta_T / \beta_1)^{(t - 1) / (T - 1)}
        """
        if min(beta_start, beta_end) <= 0:
            raise InputError("schedule geometric: a beta must be positive")
        _check("geometric", num_timesteps, beta_start, beta_end)
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
        """Variances that rise linearly over a share of the timesteps, then stay constant.

        A share of 0 gives a constant variance, which the source calls `const`.

        Source: the code of Ho et al. 2020.
        """
        rising = int(num_timesteps * share)
        _check("warmup", num_timesteps, beta_start if rising else -math.inf, beta_end)
        betas = np.full(num_timesteps, float(beta_end))
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
        r"""A power of a cosine.

        .. math::
            \bar\alpha_t = f(t) / f(0), \qquad
            f(t) = \cos^k\left(\frac{t / T + s}{1 + s} \cdot \frac{\pi}{2}\right)

        Args:
            num_timesteps: T.
            offset: s, which keeps the first variances from being too small.
            power: k; 2 in the source, others as in Chen 2023 with tau = k / 2.
            max_beta: upper limit of a variance.

        Source: Nichol & Dhariwal 2021, eq. 17.
        """
        _check("cosine", num_timesteps)
        share = (np.arange(num_timesteps + 1) / num_timesteps + offset) / (1 + offset)
        alpha_bar = np.cos(share * np.pi / 2) ** power
        return cls.from_betas(_betas_of(alpha_bar, max_beta), name="cosine")

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
        r"""A sigmoid, scaled to run from 1 to 0.

        .. math::
            \bar\alpha_t = \frac{\sigma(e / \tau) - \sigma(v_t / \tau)}
            {\sigma(e / \tau) - \sigma(s / \tau)}, \qquad v_t = s + (e - s)\, t / T

        Args:
            num_timesteps: T.
            start: s.
            end: e.
            temperature: tau.
            max_beta: upper limit of a variance.

        Source: Jabri et al. 2022; Chen 2023.
        """
        _check("sigmoid", num_timesteps)
        share = np.arange(num_timesteps + 1) / num_timesteps
        logistic = 1 / (1 + np.exp(-(share * (end - start) + start) / temperature))
        alpha_bar = (logistic[-1] - logistic) / (logistic[-1] - logistic[0])
        return cls.from_betas(_betas_of(alpha_bar, max_beta), name="sigmoid")

    @classmethod
    def sigmoid_betas(
        cls, num_timesteps: int, *, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> Self:
        r"""Variances that rise along a sigmoid on [-6, 6].

        .. math::
            \beta_t = \beta_1 + (\beta_T - \beta_1)\,
            \sigma\left(-6 + 12 \frac{t - 1}{T - 1}\right)

        Source: Xu et al. 2022 (GeoDiff).
        """
        _check("sigmoid_betas", num_timesteps, beta_start, beta_end)
        logistic = 1 / (1 + np.exp(-np.linspace(-6, 6, num_timesteps)))
        return cls.from_betas(logistic * (beta_end - beta_start) + beta_start, name="sigmoid_betas")

    @classmethod
    def cosine_betas(
        cls, num_timesteps: int, *, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> Self:
        r"""Variances that rise along half a period of a cosine.

        .. math::
            \beta_t = \beta_1 + (\beta_T - \beta_1)\,
            \frac{1 - \cos(\pi (t - 1) / (T - 1))}{2}
        """
        _check("cosine_betas", num_timesteps, beta_start, beta_end)
        rise = (1 - np.cos(np.linspace(0, np.pi, num_timesteps))) / 2
        return cls.from_betas(beta_start + (beta_end - beta_start) * rise, name="cosine_betas")

    @classmethod
    def variance_exploding(
        cls, num_timesteps: int, *, sigma_min: float = 0.01, sigma_max: float = 50.0
    ) -> Self:
        r"""Noise levels with evenly spaced logarithms, added to data of unchanged scale.

        .. math::
            x_t = x_0 + \sigma_t \epsilon, \qquad
            \sigma_t = \sigma_{min} (\sigma_{max} / \sigma_{min})^{(t - 1) / (T - 1)}

        Args:
            num_timesteps: T, the number of levels.
            sigma_min: of the first level.
            sigma_max: of the last level.

        Raises:
            InputError: they are not positive, or do not rise.

        Source: Song & Ermon 2019; Song et al. 2021, section 3.4.
        """
        _check("ve", num_timesteps)
        if not 0 < sigma_min < sigma_max < math.inf:
            raise InputError(
                f"schedule ve: sigma from {sigma_min:g} to {sigma_max:g}; take two positive "
                "numbers, the smaller one first"
            )
        sigma = np.geomspace(sigma_min, sigma_max, num_timesteps)
        name = f"ve, sigma {sigma_min:g} to {sigma_max:g}"
        return cls.of_process(Process.VE, sigma, name=name)

    @classmethod
    def flow(cls, num_timesteps: int) -> Self:
        r"""A straight path from the data to the noise, as in flow matching.

        .. math::
            x_t = (1 - \tau_t) x_0 + \tau_t \epsilon, \qquad \tau_t = t / (T + 1)

        Both ends are left out: the first has no noise to predict, the last no data.

        Args:
            num_timesteps: T.

        Source: Lipman et al. 2023; Liu et al. 2023.
        """
        _check("flow", num_timesteps)
        share = np.arange(1, num_timesteps + 1) / (num_timesteps + 1)
        return cls.of_process(Process.FLOW, share / (1 - share), name="flow")


def _check(
    name: str, num_timesteps: int, beta_start: float = -math.inf, beta_end: float = math.inf
) -> None:
    if not 1 <= num_timesteps <= MAX_TIMESTEPS:
        raise InputError(f"schedule: {num_timesteps} steps; take from 1 to {MAX_TIMESTEPS:,}")
    if beta_start > beta_end:
        raise InputError(
            f"schedule {name}: the first beta, {beta_start:g}, is above the last, {beta_end:g}; "
            "name the smaller one first"
        )


def _betas_of(alpha_bar: NDArray[np.float64], max_beta: float) -> NDArray[np.float64]:
    """(T,) variances from cumulative products (T + 1,), t = 0..T."""
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], max_beta)
