"""The forward process, its posterior, and the reverse process a network implies."""

import dataclasses
from enum import StrEnum
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from ddpmbench.diffusion.data_range import UNIT_RANGE, DataRange
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.records import short_repr


class Prediction(StrEnum):
    """What the network was trained to output, given x_t and t."""

    EPSILON = "eps"
    """The noise in x_t (Ho et al. 2020, eq. 11)."""
    X_START = "x_start"
    """The data."""
    V = "v"
    """sqrt(alphas_cumprod) eps - sqrt(1 - alphas_cumprod) x_start (Salimans & Ho 2022)."""
    PREVIOUS_MEAN = "previous_mean"
    """The mean of q(x_{t-1} | x_t, x_start)."""


class Variance(StrEnum):
    """The variance of p(x_{t-1} | x_t)."""

    FIXED_SMALL = "fixed_small"
    """The posterior variance; at t = 1, where it is 0, that of t = 2."""
    FIXED_LARGE = "fixed_large"
    """beta; at t = 1 the posterior variance of t = 2 (Ho et al. 2020, section 3.2)."""
    LEARNED_RANGE = "learned_range"
    """Interpolated in log space between the two by the network (Nichol & Dhariwal 2021, eq. 15)."""
    LEARNED = "learned"
    """The network's own log variance."""

    @property
    def is_learned(self) -> bool:
        """Whether the network outputs a second image's worth of channels for it."""
        return self in (Variance.LEARNED_RANGE, Variance.LEARNED)


_CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True, eq=False)
class ReverseStep:
    """p(x_{t-1} | x_t) as the network has it, and what it says of the data.

    Attributes:
        mean: (B, C, H, W).
        log_variance: (B, 1, 1, 1), or (B, C, H, W) where it is learned.
        pred_x_start: (B, C, H, W), clipped if the process clips.
        unclipped_pred_x_start: (B, C, H, W), as the network has it.
        pred_eps: (B, C, H, W), the noise that the unclipped prediction implies.
    """

    mean: Tensor
    log_variance: Tensor
    pred_x_start: Tensor
    unclipped_pred_x_start: Tensor
    pred_eps: Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class _Tables:
    """One float64 table a coefficient, gathered by t and shaped to broadcast over images."""

    stacked: Tensor  # (number of tables, T)

    NAMES = (
        "signal",  # sqrt(alphas_cumprod)
        "noise",  # sqrt(1 - alphas_cumprod)
        "posterior_x_start",  # coefficient of x_start in the posterior mean
        "posterior_x_t",  # coefficient of x_t in the posterior mean
        "log_posterior_variance",  # its entry at t = 1 replaced by that of t = 2
        "log_beta",
        "log_fixed_large",  # log_beta, its entry at t = 1 replaced by log_posterior_variance's
        "previous_signal",  # sqrt(alphas_cumprod) of t - 1
        "previous_variance",  # 1 - alphas_cumprod of t - 1
        "posterior_variance",  # 0 at t = 1
    )

    def at(self, t: Tensor) -> "dict[str, Tensor]":
        rows = self.stacked[:, t - 1].unsqueeze(-1).unsqueeze(-1).unsqueeze(-1)
        return dict(zip(self.NAMES, rows, strict=True))


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianDiffusion:
    """A noise schedule together with the meaning of a network's output.

    Every method takes `t` as a (B,) int64 tensor in 1..T, one step an image, and computes in
    float64 where the device has it.

    Attributes:
        schedule: the noise schedule.
        prediction: what the network outputs.
        variance: the variance of the reverse process.
        clip: whether the predicted x_start is clamped to the data's range before the mean is
            formed.
        data_range: the numbers an image is made of.
        device: where the tables lie.

    Source: Ho, Jain & Abbeel 2020, section 2; conventions of the authors' code.
    """

    schedule: NoiseSchedule
    prediction: Prediction = Prediction.EPSILON
    variance: Variance = Variance.FIXED_LARGE
    clip: bool = True
    data_range: DataRange = UNIT_RANGE
    device: torch.device = _CPU

    __repr__ = short_repr

    def to(self, device: torch.device) -> Self:
        """The same process with its tables on another device."""
        return dataclasses.replace(self, device=device)

    @property
    def dtype(self) -> torch.dtype:
        """float64; float32 on a device that has no float64."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    @cached_property
    def _tables(self) -> _Tables:
        s = self.schedule
        previous = torch.cat([torch.zeros(1, dtype=torch.float64), s.log_alphas_cumprod[:-1]])
        log_pv = s.posterior_variance.log()
        # The posterior variance is 0 at t = 1; the authors put that of t = 2 in its place. A
        # schedule of a single step has no t = 2 and keeps beta.
        log_pv[0] = log_pv[1] if s.num_timesteps > 1 else s.betas[0].log()
        log_beta = s.betas.log()
        log_large = log_beta.clone()
        log_large[0] = log_pv[0]
        columns = [
            (0.5 * s.log_alphas_cumprod).exp(),
            s.one_minus_alphas_cumprod.sqrt(),
            s.betas * (0.5 * previous).exp() / s.one_minus_alphas_cumprod,
            -torch.expm1(previous) * (1 - s.betas).sqrt() / s.one_minus_alphas_cumprod,
            log_pv,
            log_beta,
            log_large,
            (0.5 * previous).exp(),
            -torch.expm1(previous),
            s.posterior_variance,
        ]
        return _Tables(torch.stack(columns).to(self.device, self.dtype))

    def q_sample(self, x_start: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t: the data after t steps of noise.

        Args:
            x_start: (B, C, H, W) in the data's range.
            t: (B,) steps.
            eps: (B, C, H, W) standard normal noise.

        Source: Ho et al. 2020, eq. 4.
        """
        c = self._tables.at(t)
        return c["signal"] * x_start + c["noise"] * eps

    def q_posterior(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(x_{t-1} | x_t, x_start).

        At t = 1, where the variance is 0, the log variance is that of t = 2.

        Args:
            x_start: (B, C, H, W).
            x_t: (B, C, H, W).
            t: (B,) steps.

        Returns:
            (B, C, H, W) and (B, 1, 1, 1).

        Source: Ho et al. 2020, eqs. 6 and 7.
        """
        c = self._tables.at(t)
        mean = c["posterior_x_start"] * x_start + c["posterior_x_t"] * x_t
        return mean, c["log_posterior_variance"]

    def p_mean_variance(self, model_output: Tensor, x_t: Tensor, t: Tensor) -> ReverseStep:
        """The reverse step that a network's output implies.

        Args:
            model_output: (B, C, H, W), or (B, 2C, H, W) where the variance is learned.
            x_t: (B, C, H, W), what the network was given.
            t: (B,) steps.

        Source: Ho et al. 2020, eq. 11 and section 3.2; Nichol & Dhariwal 2021, eq. 15.
        """
        c = self._tables.at(t)
        output = model_output.to(x_t.dtype)
        if self.variance.is_learned:
            output, value = output.chunk(2, dim=1)
            log_variance = self._learned_log_variance(value, c)
        elif self.variance is Variance.FIXED_LARGE:
            log_variance = c["log_fixed_large"]
        else:
            log_variance = c["log_posterior_variance"]
        unclipped = self._unclipped_pred_x_start(output, x_t, c)
        pred_x_start = self.data_range.clamp(unclipped) if self.clip else unclipped
        if self.prediction is Prediction.PREVIOUS_MEAN:
            mean = output
        else:
            mean = c["posterior_x_start"] * pred_x_start + c["posterior_x_t"] * x_t
        return ReverseStep(
            mean=mean,
            log_variance=log_variance,
            pred_x_start=pred_x_start,
            unclipped_pred_x_start=unclipped,
            pred_eps=(x_t - c["signal"] * unclipped) / c["noise"],
        )

    def implicit_step(
        self, pred_x_start: Tensor, x_t: Tensor, t: Tensor, *, eta: float
    ) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of x_{t-1} in the implicit process.

        The noise in x_t is what the prediction leaves of it, clipped if the prediction is.

        Args:
            pred_x_start: (B, C, H, W).
            x_t: (B, C, H, W).
            t: (B,) steps.
            eta: 0 adds no noise; 1 is the ancestral process with the posterior variance.

        Returns:
            (B, C, H, W) and (B, 1, 1, 1).

        Source: Song, Meng & Ermon 2021, eqs. 12 and 16.
        """
        c = self._tables.at(t)
        pred_eps = (x_t - c["signal"] * pred_x_start) / c["noise"]
        variance = eta**2 * c["posterior_variance"]
        direction = (c["previous_variance"] - variance).clamp(min=0.0).sqrt()
        return c["previous_signal"] * pred_x_start + direction * pred_eps, variance.sqrt()

    def _learned_log_variance(self, value: Tensor, c: dict[str, Tensor]) -> Tensor:
        if self.variance is Variance.LEARNED:
            return value
        share = (value + 1) / 2
        return share * c["log_beta"] + (1 - share) * c["log_posterior_variance"]

    def _unclipped_pred_x_start(self, output: Tensor, x_t: Tensor, c: dict[str, Tensor]) -> Tensor:
        match self.prediction:
            case Prediction.X_START:
                return output
            case Prediction.EPSILON:
                return (x_t - c["noise"] * output) / c["signal"]
            case Prediction.V:
                return c["signal"] * x_t - c["noise"] * output
            case Prediction.PREVIOUS_MEAN:
                return (output - c["posterior_x_t"] * x_t) / c["posterior_x_start"]
