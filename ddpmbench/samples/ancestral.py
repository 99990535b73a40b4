"""Ancestral and implicit (DDIM) sampling: one network evaluation per timestep."""

from enum import StrEnum

import torch
from torch import Tensor

from ddpmbench.samples.chain import Chain, StepSampler


class AddedNoise(StrEnum):
    """At which timesteps ancestral sampling adds noise."""

    INNER = "inner"
    """all timesteps but the last"""
    EVERY_STEP = "every-step"
    """all timesteps"""
    NONE = "none"
    """no timestep: every step takes the mean"""


class AncestralSampler(StepSampler):
    r"""Samples p(x_{t-1} | x_t), with the checkpoint's variance and clip.

    .. math::

        x_{t-1} = \mu_\theta(x_t, t) + \sigma_t z, \qquad z \sim N(0, I)

    Source: Ho, Jain & Abbeel 2020, Algorithm 2.
    """

    def __init__(self, chain: Chain, *, added_noise: AddedNoise = AddedNoise.INNER) -> None:
        super().__init__(chain)
        self._added_noise = added_noise

    def _take_step(
        self, x_t: Tensor, t: Tensor, sample: Tensor, *labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        reverse = self.chain.predict(x_t, t, labels[0] if labels else None)
        if self._added_noise is AddedNoise.NONE:
            return reverse.mean, reverse.pred_x_start
        deviation = (0.5 * reverse.log_variance).exp()
        if self._added_noise is AddedNoise.INNER:
            is_inner = (t > 1).reshape(-1, 1, 1, 1)
            deviation = torch.where(is_inner, deviation, torch.zeros_like(deviation))
        noise = self.chain.noise(sample, t, tuple(x_t.shape[1:]))
        return reverse.mean + deviation * noise, reverse.pred_x_start


class DdimSampler(StepSampler):
    r"""Samples the implicit process, which does not use the checkpoint's variance.

    .. math::

        x_{t-1} = \sqrt{\bar\alpha_{t-1}}\, \hat x_0
            + \sqrt{1 - \bar\alpha_{t-1} - \sigma_t^2}\, \hat\epsilon + \sigma_t z, \qquad
        \sigma_t = \eta \sqrt{\tilde\beta_t}

    Source: Song, Meng & Ermon 2021, eq. 12.
    """

    def __init__(self, chain: Chain, *, eta: float) -> None:
        super().__init__(chain)
        self._eta = eta

    def _take_step(
        self, x_t: Tensor, t: Tensor, sample: Tensor, *labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        pred_x_start = self.chain.predict(x_t, t, labels[0] if labels else None).pred_x_start
        mean, deviation = self.diffusion.ddim_mean_std(pred_x_start, x_t, t, eta=self._eta)
        if not self._eta:
            return mean, pred_x_start
        noise = self.chain.noise(sample, t, tuple(x_t.shape[1:]))
        return mean + deviation * noise, pred_x_start
