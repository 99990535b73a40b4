"""The forward process, its posterior, and the reverse process that a network implies."""

import dataclasses
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from ddpmbench.diffusion.data_range import UNIT_RANGE, DataRange
from ddpmbench.diffusion.forward_process import log_scale, preconditioning
from ddpmbench.diffusion.parameterization import Prediction as Prediction
from ddpmbench.diffusion.parameterization import Process
from ddpmbench.diffusion.parameterization import Variance as Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError
from ddpmbench.records import short_repr

_CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True, eq=False)
class ReverseStep:
    """p(x_{t-1} | x_t), and the network's prediction of the data and the noise.

    Attributes:
        mean: (B, C, H, W).
        log_variance: (B, 1, 1, 1), or (B, C, H, W) where it is learned.
        pred_x_start: (B, C, H, W), clipped if the process clips.
        unclipped_pred_x_start: (B, C, H, W).
        pred_eps: (B, C, H, W), the noise that the unclipped prediction implies.
    """

    mean: Tensor
    log_variance: Tensor
    pred_x_start: Tensor
    unclipped_pred_x_start: Tensor
    pred_eps: Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianDiffusion:
    r"""The forward process q, its posterior, and the reverse process p that a network implies.

    .. math::
        q(x_t \mid x_0) = \mathcal N(\sqrt{\bar\alpha_t}\, x_0, (1 - \bar\alpha_t) I), \qquad
        q(x_{t-1} \mid x_t, x_0) = \mathcal N(\tilde\mu_t(x_t, x_0), \tilde\beta_t I), \qquad
        p(x_{t-1} \mid x_t) = \mathcal N(\mu_\theta(x_t, t), \Sigma_\theta(x_t, t))

    In the code :math:`x_0` is `x_start`, and :math:`\bar\alpha_t` is `alphas_cumprod`. Every method
    takes `t` as a (B,) int64 tensor in 1..T, one timestep per image, and computes in float64 where
    the device has it.

    Attributes:
        schedule: the noise schedule.
        prediction: the quantity that the network predicts.
        variance: the variance of the reverse process.
        clip: whether the predicted x_start is clamped to the data's range before it enters the
            mean.
        data_range: the range of an image's values.
        device: the device of the tables.

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

    def q_sample(self, x_start: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        r"""A sample of q(x_t | x_start).

        .. math:: x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon

        Args:
            x_start: (B, C, H, W) in the data's range.
            t: (B,) timesteps.
            eps: (B, C, H, W) standard normal noise.

        Returns:
            (B, C, H, W).

        Source: Ho et al. 2020, eq. 4.
        """
        at = self._coefficients(t)
        return at["sqrt_alphas_cumprod"] * x_start + at["sqrt_one_minus_alphas_cumprod"] * eps

    def noise_scale(self, t: Tensor) -> Tensor:
        """(B, 1, 1, 1) the factor of the noise in x_t, at timesteps (B,)."""
        return self._coefficients(t)["sqrt_one_minus_alphas_cumprod"]

    def q_posterior_mean_variance(
        self, x_start: Tensor, x_t: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor]:
        r"""Mean and log variance of the posterior q(x_{t-1} | x_t, x_start).

        .. math::
            \tilde\mu_t = \frac{\sqrt{\bar\alpha_{t-1}}\, \beta_t}{1 - \bar\alpha_t} x_0
            + \frac{\sqrt{\alpha_t}\, (1 - \bar\alpha_{t-1})}{1 - \bar\alpha_t} x_t, \qquad
            \tilde\beta_t = \frac{1 - \bar\alpha_{t-1}}{1 - \bar\alpha_t} \beta_t

        At t = 1, where the variance is 0, the log variance is that of t = 2.

        Args:
            x_start: (B, C, H, W).
            x_t: (B, C, H, W).
            t: (B,) timesteps.

        Returns:
            Mean (B, C, H, W) and log variance (B, 1, 1, 1).

        Source: Ho et al. 2020, eqs. 6 and 7.
        """
        at = self._coefficients(t)
        return _posterior_mean(x_start, x_t, at), at["posterior_log_variance_clipped"]

    def p_mean_variance(self, model_output: Tensor, x_t: Tensor, t: Tensor) -> ReverseStep:
        r"""The reverse distribution p(x_{t-1} | x_t) that a network's output implies.

        Its mean is the posterior mean at the predicted x_start, or the output itself where the
        network predicts the mean:

        .. math:: \mu_\theta(x_t, t) = \tilde\mu_t(x_t, \hat x_0)

        Args:
            model_output: (B, C, H, W), or (B, 2C, H, W) where the variance is learned.
            x_t: (B, C, H, W), the network's input.
            t: (B,) timesteps.

        Source: Ho et al. 2020, eq. 11 and section 3.2; Nichol & Dhariwal 2021, eq. 15.
        """
        at = self._coefficients(t)
        output = model_output.to(x_t.dtype)
        if self.variance.is_learned:
            output, value = output.chunk(2, dim=1)
            log_variance = self._learned_log_variance(value, at)
        elif self.variance is Variance.FIXED_LARGE:
            log_variance = at["fixed_large_log_variance"]
        else:
            log_variance = at["posterior_log_variance_clipped"]
        unclipped = self._predict_x_start(output, x_t, at)
        pred_x_start = self.data_range.clamp(unclipped) if self.clip else unclipped
        is_mean = self.prediction is Prediction.PREVIOUS_MEAN
        return ReverseStep(
            mean=output / at["scale_prev"] if is_mean else _posterior_mean(pred_x_start, x_t, at),
            log_variance=log_variance,
            pred_x_start=pred_x_start,
            unclipped_pred_x_start=unclipped,
            pred_eps=_predict_eps(unclipped, x_t, at),
        )

    def prediction_at(
        self, model_output: Tensor, x: Tensor, log_snr: Tensor
    ) -> tuple[Tensor, Tensor]:
        r"""The unclipped x_start and the noise that an output predicts, at any log SNR.

        .. math::
            x = a x_0 + s \epsilon, \qquad a^2 = \sigma(\lambda), \quad s^2 = \sigma(-\lambda)

        with the logistic function sigma.

        Args:
            model_output: (B, C, H, W), or (B, 2C, H, W) where the variance is learned.
            x: (B, C, H, W), the network's input.
            log_snr: (B,) lambda.

        Returns:
            The predicted x_start and noise, (B, C, H, W) each.

        Raises:
            InputError: the network predicts the mean of x_{t-1}, defined only at the schedule's
                timesteps.
        """
        if self.prediction is Prediction.PREVIOUS_MEAN:
            raise InputError(
                f"`prediction={self.prediction}`: the network predicts the mean at the next of its "
                "timesteps, and there is none between them; leave out continuous time"
            )
        output = model_output.to(x.dtype)
        if self.variance.is_learned:
            output = output.chunk(2, dim=1)[0]
        signal, noise = signal_and_noise(log_snr)
        log_snr = log_snr[:, None, None, None]
        c_skip, c_out, _ = preconditioning(log_snr)
        at = {
            "sqrt_alphas_cumprod": signal,
            "sqrt_one_minus_alphas_cumprod": noise,
            "scale": log_scale(self.schedule.process, log_snr).exp(),
            "c_skip": c_skip,
            "c_out": c_out,
        }
        x_start = self._predict_x_start(output, x, at)
        return x_start, _predict_eps(x_start, x, at)

    def ddim_mean_std(
        self, pred_x_start: Tensor, x_t: Tensor, t: Tensor, *, eta: float
    ) -> tuple[Tensor, Tensor]:
        r"""Mean and standard deviation of x_{t-1} in the implicit process (DDIM).

        .. math::
            \sqrt{\bar\alpha_{t-1}}\, \hat x_0
            + \sqrt{1 - \bar\alpha_{t-1} - \sigma_t^2}\, \hat\epsilon, \qquad
            \sigma_t = \eta \sqrt{\tilde\beta_t}, \qquad
            \hat\epsilon = \frac{x_t - \sqrt{\bar\alpha_t}\, \hat x_0}{\sqrt{1 - \bar\alpha_t}}

        Args:
            pred_x_start: (B, C, H, W), clipped if the process clips; the noise follows from it.
            x_t: (B, C, H, W).
            t: (B,) timesteps.
            eta: 0 adds no noise; 1 is the ancestral process with the posterior variance.

        Returns:
            Mean (B, C, H, W) and standard deviation (B, 1, 1, 1).

        Source: Song, Meng & Ermon 2021, eqs. 12 and 16.
        """
        at = self._coefficients(t)
        variance = eta**2 * at["posterior_variance"]
        direction = (at["one_minus_alphas_cumprod_prev"] - variance).clamp(min=0.0).sqrt()
        pred_eps = _predict_eps(pred_x_start, x_t, at)
        return at["sqrt_alphas_cumprod_prev"] * pred_x_start + direction * pred_eps, variance.sqrt()

    @cached_property
    def _tables(self) -> dict[str, Tensor]:
        """(T,) float64 each, named as in the code of Ho et al."""
        s = self.schedule
        log_previous = torch.cat([torch.zeros(1, dtype=torch.float64), s.log_alphas_cumprod[:-1]])
        log_posterior = s.posterior_variance.log()
        log_posterior[0] = s.log_decoder_variance
        tables = {
            "sqrt_alphas_cumprod": (0.5 * s.log_alphas_cumprod).exp(),
            "sqrt_one_minus_alphas_cumprod": s.one_minus_alphas_cumprod.sqrt(),
            "sqrt_alphas_cumprod_prev": (0.5 * log_previous).exp(),
            "one_minus_alphas_cumprod_prev": -torch.expm1(log_previous),
            "posterior_mean_coef_x_start": (
                s.betas * (0.5 * log_previous).exp() / s.one_minus_alphas_cumprod
            ),
            "posterior_mean_coef_x_t": (
                -torch.expm1(log_previous) * (1 - s.betas).sqrt() / s.one_minus_alphas_cumprod
            ),
            "posterior_variance": s.posterior_variance,
            "posterior_log_variance_clipped": log_posterior,
            "log_forward_variance": s.log_forward_variance,
            "fixed_large_log_variance": torch.cat([log_posterior[:1], s.log_forward_variance[1:]]),
        }
        if self.prediction in (Prediction.SCORE, Prediction.VELOCITY):
            tables["scale"] = s.log_scale.exp()
        elif self.prediction is Prediction.EDM:
            tables["c_skip"], tables["c_out"], _ = preconditioning(s.log_snr)
        elif self.prediction is Prediction.PREVIOUS_MEAN:
            one = torch.ones(1, dtype=torch.float64)
            tables["scale_prev"] = torch.cat([one, s.log_scale[:-1].exp()])
        if self.variance is Variance.LEARNED and s.process is not Process.VP:
            zero = torch.zeros(1, dtype=torch.float64)
            tables["log_scale_prev"] = torch.cat([zero, s.log_scale[:-1]])
        return tables

    @cached_property
    def _stacked_tables(self) -> Tensor:
        """(number of tables, T), so that a batch takes one gather."""
        return torch.stack(list(self._tables.values())).to(self.device, self.dtype)

    def _coefficients(self, t: Tensor) -> dict[str, Tensor]:
        """(B, 1, 1, 1) each, at the batch's timesteps."""
        columns = self._stacked_tables[:, t - 1, None, None, None]
        return dict(zip(self._tables, columns, strict=True))

    def _learned_log_variance(self, value: Tensor, at: dict[str, Tensor]) -> Tensor:
        if self.variance is Variance.LEARNED:
            return value - 2 * at["log_scale_prev"] if "log_scale_prev" in at else value
        fraction = (value + 1) / 2
        return (
            fraction * at["log_forward_variance"]
            + (1 - fraction) * at["posterior_log_variance_clipped"]
        )

    def _predict_x_start(self, output: Tensor, x_t: Tensor, at: dict[str, Tensor]) -> Tensor:
        signal, noise = at["sqrt_alphas_cumprod"], at["sqrt_one_minus_alphas_cumprod"]
        match self.prediction:
            case Prediction.X_START:
                return output
            case Prediction.EPSILON:
                return (x_t - noise * output) / signal
            case Prediction.V:
                return signal * x_t - noise * output
            case Prediction.SCORE:
                return (x_t + noise.square() * at["scale"] * output) / signal
            case Prediction.VELOCITY:
                # scale x_t = a x_start + s (x_start + output)
                a, s = at["scale"] * signal, at["scale"] * noise
                return (at["scale"] * x_t - s * output) / (a + s)
            case Prediction.EDM:
                return at["c_skip"] * x_t + at["c_out"] * output
            case Prediction.PREVIOUS_MEAN:
                rest = output / at["scale_prev"] - at["posterior_mean_coef_x_t"] * x_t
                return rest / at["posterior_mean_coef_x_start"]


def signal_and_noise(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of x_start and of the noise in x, (B, 1, 1, 1) each, at (B,) log SNRs."""
    log_snr = log_snr[:, None, None, None]
    return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()


def _posterior_mean(x_start: Tensor, x_t: Tensor, at: dict[str, Tensor]) -> Tensor:
    return at["posterior_mean_coef_x_start"] * x_start + at["posterior_mean_coef_x_t"] * x_t


def _predict_eps(pred_x_start: Tensor, x_t: Tensor, at: dict[str, Tensor]) -> Tensor:
    return (x_t - at["sqrt_alphas_cumprod"] * pred_x_start) / at["sqrt_one_minus_alphas_cumprod"]
