r"""Samplers of the score: annealed Langevin dynamics, and the predictor-corrector sampler.

Both act on x_t / a_t, whose noise has the standard deviation sigma = s / a, so that a model gives
the same samples whatever the family of its forward process. The exception is the ancestral step
after a corrector with the variance `fixed_large`, or with `learned_range`, whose range ends there:
this variance is the one the family's forward process adds. The score follows from the network's
unclipped prediction:

.. math:: \nabla \log q(x_t / a_t) = -\hat\epsilon / \sigma_t
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ddpmbench.samples.ancestral import AncestralSampler
from ddpmbench.samples.chain import LANGEVIN_DRAW, Chain, Sampler, SamplingStep


def _langevin_step(x_t: Tensor, eps: Tensor, noise: Tensor, scale: Tensor, step: Tensor) -> Tensor:
    r"""A step of Langevin dynamics.

    .. math::
        u \gets u + \alpha\, \nabla \log q(u) + \sqrt{2 \alpha}\, z, \qquad
        \alpha = \rho\, \sigma^2, \quad u = x / a

    Args:
        x_t: (B, C, H, W) of unit scale.
        eps: (B, C, H, W) the predicted noise.
        noise: (B, C, H, W) z.
        scale: (B, 1, 1, 1) s = a sigma.
        step: (B, 1, 1, 1) rho.
    """
    return x_t - step * scale * eps + (2 * step).sqrt() * scale * noise


def _draw(step: int) -> int:
    """Offset of the draw for the noise of a Langevin step, counted from 0."""
    return LANGEVIN_DRAW + 2 * step


class LangevinSampler(Sampler):
    r"""Annealed Langevin dynamics: L steps at every noise level, and a last one without noise.

    .. math::
        u \gets u - \alpha_t\, \hat\epsilon / \sigma_t + \sqrt{2 \alpha_t}\, z, \qquad
        \alpha_t = \rho\, \sigma_t^2, \qquad u = x_t / a_t

    and after those at t = 1, :math:`x_0 = \hat x_0(u)`. With the sources' epsilon, rho is
    :math:`\epsilon / \sigma_{min}^2` of 2020, and :math:`\epsilon / (2 \sigma_{min}^2)` of 2019,
    whose Algorithm 1 takes alpha / 2 of the score and the root of alpha of the noise.

    Source: Song & Ermon 2019, Algorithm 1; 2020, "Improved techniques for training score-based
    generative models", section 4 and Algorithm 1, for the last step.
    """

    remedy = "choose a smaller `step_size`"

    def __init__(self, chain: Chain, *, langevin_steps: int, step_size: float) -> None:
        """Prepare the chain.

        Args:
            chain: the model.
            langevin_steps: L, per noise level.
            step_size: rho.
        """
        super().__init__(chain)
        self._num_steps, self._step_size = langevin_steps, step_size

    def _steps(
        self, x_t: Tensor, t: int, sample: Tensor, labels: Tensor | None
    ) -> Iterator[SamplingStep]:
        signal = (0.5 * self.chain.checkpoint.schedule.log_alphas_cumprod).exp().tolist()
        size = torch.full((1, 1, 1, 1), self._step_size, dtype=x_t.dtype, device=x_t.device)
        for step in range(t, 0, -1):
            at = torch.full_like(sample, step)
            scale = self.diffusion.noise_scale(at)
            for k in range(self._num_steps):
                reverse = self.chain.predict(x_t, at, labels)
                noise = self.chain.noise(sample, at, tuple(x_t.shape[1:]), _draw(k))
                x_t = _langevin_step(x_t, reverse.pred_eps, noise, scale, size)
            if step > 1:
                x_t = signal[step - 2] / signal[step - 1] * x_t
            else:
                reverse = self.chain.predict(x_t, at, labels)
                x_t = reverse.pred_x_start
            yield SamplingStep(step, x_t, reverse.pred_x_start, self._num_steps + (step == 1))


class PredictorCorrectorSampler(AncestralSampler):
    r"""At every timestep Langevin steps that correct x_t, then an ancestral step to x_{t-1}.

    .. math::
        u \gets u - \alpha\, \hat\epsilon / \sigma_t + \sqrt{2 \alpha}\, z, \qquad
        \alpha = 2 \left( r\, \frac{\lVert z \rVert}{\lVert \hat\epsilon / \sigma_t \rVert}
        \right)^2, \qquad u = x_t / a_t

    The source averages either norm over the batch. Here they are those of the single image, since a
    sample must not depend on its batch. The factor 1 - beta_t, which the source has in alpha for VP
    only, is left out. The step grows without bound as the predicted noise goes to 0; where it is 0
    the sample is not finite, and is refused.

    Source: Song et al. 2021, "Score-based generative modeling through stochastic differential
    equations", Algorithms 4 and 5.
    """

    remedy = (
        "choose a smaller `snr`, or check that the network does not predict noise of 0, for which "
        f"the corrector's step is infinite; or {AncestralSampler.remedy}"
    )

    def __init__(self, chain: Chain, *, langevin_steps: int, snr: float) -> None:
        """Prepare the chain.

        Args:
            chain: the model.
            langevin_steps: corrector steps at each timestep.
            snr: r.
        """
        super().__init__(chain)
        self._num_steps, self._snr = langevin_steps, snr
        self.evaluations_per_step = langevin_steps + 1

    def _take_step(
        self, x_t: Tensor, t: Tensor, sample: Tensor, *labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        scale = self.diffusion.noise_scale(t)
        for k in range(self._num_steps):
            eps = self.chain.predict(x_t, t, labels[0] if labels else None).pred_eps
            noise = self.chain.noise(sample, t, tuple(x_t.shape[1:]), _draw(k))
            step = 2 * self._snr**2 * _square_norm(noise) / _square_norm(eps)
            x_t = _langevin_step(x_t, eps, noise, scale, step)
        return super()._take_step(x_t, t, sample, *labels)


def _square_norm(x: Tensor) -> Tensor:
    """(B, 1, 1, 1) squared norm of each image."""
    return x.square().sum((1, 2, 3), keepdim=True)
