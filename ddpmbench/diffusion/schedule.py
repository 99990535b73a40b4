"""Noise schedules: the tables of the forward process, in float64.

Timesteps are t = 1..T; the tables are 0-based, entry ``i`` belongs to ``t = i + 1``.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ddpmbench.diffusion.forward_process import log_prior_variance, log_scale
from ddpmbench.diffusion.named_schedules import NamedSchedules
from ddpmbench.diffusion.parameterization import Process
from ddpmbench.errors import InputError, whole_number
from ddpmbench.records import short_value

_LOG_LEAST = math.log(np.finfo(np.float64).tiny)
"""Smallest normal alphas_cumprod; smaller ones lose digits."""


def _spaced(total: int, count: int) -> list[int]:
    """`count` evenly spaced timesteps of 1..total, including the first and the last."""
    stride = (total - 1) / max(count - 1, 1)
    # summed, not multiplied: the same rounding as the source
    positions = itertools.accumulate(itertools.repeat(stride, count - 1), initial=0.0)
    return [1 + round(position) for position in positions]


@dataclasses.dataclass(frozen=True, eq=False)
class NoiseSchedule(NamedSchedules):
    r"""The variances of the forward process.

    .. math::
        q(x_t \mid x_{t-1}) = \mathcal N(\sqrt{1 - \beta_t}\, x_{t-1}, \beta_t I), \qquad
        \bar\alpha_t = \prod_{s=1}^{t} (1 - \beta_s)

    Build one with a named constructor: `linear`, `cosine`, `sigmoid`, `scaled_linear`,
    `sqrt_linear`, `geometric`, `warmup`, `cosine_betas`, `sigmoid_betas`, `from_betas`,
    `from_alphas_cumprod`.

    Attributes:
        betas: (T,) float64, the variance added at each timestep, in (0, 1).
        name: of the schedule, for messages and reports.
        original_timesteps: (T,) int64, the 1-based timesteps of the schedule that the network was
            trained on; 1..T unless the schedule was respaced. float64 if it was refined.
        num_original_timesteps: length of the schedule that the network was trained on.
        trained: the schedule that the network was trained on, if this one has timesteps between
            trained ones (`diffusion.continuous`); else None.
        is_continuous: whether the bound is in continuous time, divided into parts by the timesteps.
        process: the family of the forward process, which sets the scale of the network's x_t, the
            prior and the variance of the decoder.

    Raises:
        InputError: the betas are not a 1-D float64 tensor of numbers in (0, 1), or their
            alphas_cumprod underflows.

    Source: Ho, Jain & Abbeel 2020, eqs. 2, 4 and 7.
    """

    betas: Tensor
    name: str
    original_timesteps: Tensor
    num_original_timesteps: int
    trained: "NoiseSchedule | None" = None
    is_continuous: bool = False
    process: Process = Process.VP

    def __post_init__(self) -> None:
        """Refuse variances that define no forward process."""
        if self.betas.dtype != torch.float64 or self.betas.ndim != 1 or not len(self.betas):
            raise InputError(f"schedule {self.name}: betas must be one row of float64 numbers")
        if not bool(((self.betas > 0) & (self.betas < 1)).all()):
            raise InputError(f"schedule {self.name}: every beta must lie strictly between 0 and 1")
        if (log_last := float(self.log_alphas_cumprod[-1])) < _LOG_LEAST:
            raise InputError(
                f"schedule {self.name}: alphas_cumprod ends at 1e{log_last / math.log(10):.0f}, "
                "where nothing is left of the data; take fewer steps or smaller betas"
            )

    def __repr__(self) -> str:
        return f"NoiseSchedule({short_value(self.name)}, T = {self.num_timesteps})"

    @property
    def num_timesteps(self) -> int:
        """T."""
        return len(self.betas)

    @cached_property
    def log_alphas_cumprod(self) -> Tensor:
        """(T,) log of `alphas_cumprod`."""
        return torch.log1p(-self.betas).cumsum(0)

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        r"""(T,) :math:`\bar\alpha_t`, the fraction of the data's variance left in x_t."""
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
        r"""(T,) variance of q(x_{t-1} | x_t, x_start); 0 at t = 1.

        .. math::
            \tilde\beta_t = \frac{1 - \bar\alpha_{t-1}}{1 - \bar\alpha_t} \beta_t

        Source: Ho et al. 2020, eq. 7.
        """
        previous = torch.cat([torch.zeros(1, dtype=torch.float64), self.one_minus_alphas_cumprod])
        return self.betas * previous[:-1] / self.one_minus_alphas_cumprod

    @cached_property
    def log_snr(self) -> Tensor:
        """(T,) log of `snr`, without cancellation."""
        return self.log_alphas_cumprod - self.one_minus_alphas_cumprod.log()

    @cached_property
    def log_scale(self) -> Tensor:
        """(T,) log of the scale at which the network takes x_t; 0 for VP."""
        return log_scale(self.process, self.log_snr)

    @property
    def log_prior_variance(self) -> Tensor:
        """Log variance of p(x_T), for x_T of unit scale; 0 for VP."""
        return log_prior_variance(self.process, self.log_snr[-1])

    @cached_property
    def log_forward_variance(self) -> Tensor:
        r"""(T,) log variance that the forward process adds, at the scale of x_{t-1}.

        .. math:: \log \beta_t + 2 \log (c_t / c_{t-1}), \qquad c_0 = 1

        with the scale c of the network's x_t; log beta for VP.
        """
        if self.process is Process.VP:
            return self.betas.log()
        return self.betas.log() + 2 * self.log_scale.diff(prepend=self.log_scale.new_zeros(1))

    @property
    def log_decoder_variance(self) -> Tensor:
        """Log variance of p(x_0 | x_1), where the posterior variance is 0.

        For VP it is the posterior variance of t = 2; for the others, whose first levels are close
        together, the variance (s / a)^2 of the noise at t = 1, which is sigma_min^2 for VE.

        With a single timestep it is beta. A refined schedule keeps that of the trained one.
        """
        if self.trained is not None:
            return self.trained.log_decoder_variance
        if self.process is not Process.VP:
            return -self.log_snr[0]
        second = self.posterior_variance[1] if self.num_timesteps > 1 else self.betas[0]
        return second.log()

    def is_same_process(self, other: "NoiseSchedule") -> bool:
        """Whether another schedule has the same forward process."""
        return self.process is other.process and torch.equal(self.betas, other.betas)

    def in_family(self, process: Process) -> Self:
        """The schedule of another family of forward processes.

        The signal-to-noise ratios stay the same, except for sub-VP, which keeps a of VP.

        Args:
            process: the family.

        Raises:
            InputError: sub-VP of a family other than VP.
        """
        if process is self.process:
            return self
        name = f"{self.name}, {process}"
        if process is not Process.SUB_VP:
            return dataclasses.replace(self, process=process, name=name)
        if self.process is not Process.VP:
            raise InputError(f"`process={process}`: follows from VP, and this is {self.process}")
        sigma = self.one_minus_alphas_cumprod / self.alphas_cumprod.sqrt()
        betas = self.of_process(process, sigma, name=name).betas
        return dataclasses.replace(self, betas=betas, process=process, name=name)

    def respaced(self, num_timesteps: int) -> Self:
        """The schedule that visits only evenly spaced timesteps of this one.

        The respaced model is a different model: its bound does not estimate this one's.

        Args:
            num_timesteps: number of timesteps to keep, 1..T.

        Raises:
            InputError: `num_timesteps` lies outside 1..T.
        """
        return self.subset(self.evenly_spaced(num_timesteps))

    def evenly_spaced(self, num_timesteps: int) -> list[int]:
        """Evenly spaced timesteps of 1..T, the first and the last among them.

        They are those of the source's code; a single one is the last.

        Args:
            num_timesteps: their number, 1..T.

        Raises:
            InputError: `num_timesteps` lies outside 1..T.

        Source: Nichol & Dhariwal 2021, section 4.
        """
        total = self.num_timesteps
        num_timesteps = whole_number("timesteps", num_timesteps, 1, total)
        return [total] if num_timesteps == 1 else _spaced(total, num_timesteps)

    def in_sections(self, counts: Sequence[int]) -> Self:
        """The schedule that visits evenly spaced timesteps of each of several equal sections.

        The first sections are one timestep longer if T is not a multiple of their number; a count
        of 1 takes the first timestep of a section.

        Args:
            counts: timesteps to keep in each section, at least 1, the section nearest to the data
                first.

        Raises:
            InputError: a section has fewer timesteps than its count.

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
        r"""The schedule that visits only the given timesteps.

        .. math::
            \beta'_i = 1 - \bar\alpha_{t_i} / \bar\alpha_{t_{i-1}}

        Args:
            timesteps: strictly increasing, in 1..T of this schedule.

        Raises:
            InputError: they are not strictly increasing, or not in 1..T.

        Source: Nichol & Dhariwal 2021, eq. 19.
        """
        steps = torch.as_tensor(timesteps, dtype=torch.int64)
        if not len(steps) or steps[0] < 1 or steps[-1] > self.num_timesteps:
            raise InputError(f"timesteps must lie in 1..{self.num_timesteps}")
        if bool((steps.diff() <= 0).any()):
            raise InputError("timesteps must be strictly increasing")
        if len(steps) == self.num_timesteps:
            return self
        if self.trained is not None:
            raise InputError(
                f"schedule {self.name}: lies between the trained timesteps; respace the model as "
                "it was trained"
            )
        visited = self.log_alphas_cumprod[steps - 1]
        log_alphas = torch.diff(visited, prepend=torch.zeros(1, dtype=torch.float64))
        betas = -torch.expm1(log_alphas)
        if bool((betas >= 1).any()):
            raise InputError(
                f"schedule {self.name}: from one of these {len(steps)} timesteps to the next so "
                "little is left of the data that beta rounds to 1; take more of them"
            )
        return dataclasses.replace(
            self,
            betas=betas,
            name=f"{self.name}, {len(steps)} of {self.num_timesteps} steps",
            original_timesteps=self.original_timesteps[steps - 1],
        )

    @classmethod
    def from_betas(cls, betas: ArrayLike | Tensor, *, name: str = "betas") -> Self:
        """A schedule given by its variances.

        Args:
            betas: (T,) variances in (0, 1).
            name: of the schedule.

        Raises:
            InputError: they are not a 1-D array of numbers in (0, 1).
        """
        values = torch.from_numpy(_float64(betas))
        return cls(values, name, torch.arange(1, values.numel() + 1), values.numel())

    @classmethod
    def from_alphas_cumprod(
        cls, alphas_cumprod: ArrayLike | Tensor, *, name: str = "alphas_cumprod"
    ) -> Self:
        r"""A schedule given by its cumulative products.

        .. math::
            \beta_t = 1 - \bar\alpha_t / \bar\alpha_{t-1}, \qquad \bar\alpha_0 = 1

        Args:
            alphas_cumprod: (T,) strictly decreasing values in (0, 1).
            name: of the schedule.

        Raises:
            InputError: they are not a 1-D array of strictly decreasing numbers in (0, 1).
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
    def of_process(cls, process: Process, sigma: ArrayLike, *, name: str) -> Self:
        """A schedule of any family, given by its noise.

        Args:
            process: the family.
            sigma: (T,) s / a of each timestep, strictly increasing.
            name: of the schedule.

        Raises:
            InputError: they are not positive and strictly increasing.
        """
        values = _float64(sigma)
        is_rising = values.ndim == 1 and values.size and (np.diff(values, prepend=0.0) > 0).all()
        if not is_rising or not np.isfinite(values[-1]):
            raise InputError(f"schedule {name}: sigma must be positive and rise strictly")
        log_alphas_cumprod = -np.log1p(values**2)
        betas = -np.expm1(np.diff(log_alphas_cumprod, prepend=0.0))
        return dataclasses.replace(cls.from_betas(betas, name=name), process=process)


def _float64(values: ArrayLike | Tensor) -> NDArray[np.float64]:
    """Real numbers of 32 bits or more, as float64.

    Raises:
        InputError: they are not real numbers, or numpy would drop a mask or an imaginary part.
    """
    if isinstance(values, Tensor):
        if values.is_meta or values.layout != torch.strided:
            raise InputError("a schedule takes a dense tensor that has its numbers; pass that")
        if values.is_floating_point() and values.element_size() < 4:
            values = values.half()  # numpy has no bfloat16; both types are refused
        # numpy cannot copy a tensor that is on a device or requires a gradient.
        values = values.detach().cpu().numpy()
    if np.ma.isMaskedArray(values):
        raise InputError("a schedule takes no masked array; pass its numbers alone")
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise InputError("a schedule takes one row of real numbers; pass a list of them") from error
    if array.dtype.kind not in "fiu":
        raise InputError(
            f"a schedule takes real numbers, not {array.dtype}; convert them to float64"
        )
    if array.dtype.kind == "f" and array.itemsize < 4:
        raise InputError(
            f"a schedule in {8 * array.itemsize} bits is rounded too far; compute it in float64"
        )
    return np.array(array, dtype=np.float64)
