"""What a step from t to any earlier s costs, given how well x_start is predicted from x_t.

With a fixed variance the divergence at a step is a constant plus a weight times the mean squared
error of the predicted x_start. That error is a matter of x_t alone: it is the same whatever the
model's next step is.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from ddpmbench.process.prediction import Variance
from ddpmbench.process.schedule import NoiseSchedule

Steps = NDArray[np.int64]
Values = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class Skips:
    """The steps of all models that visit some steps of a schedule.

    Every method takes steps s < t, int64 arrays that broadcast, in 1..T.

    Attributes:
        schedule: the noise schedule.

    Source: Ho, Jain & Abbeel 2020, eqs. 5 to 8, with s in the place of t - 1; Kingma et al. 2021,
    eq. 13, for the weight in signal-to-noise ratios.
    """

    schedule: NoiseSchedule

    def weight(self, variance: Variance, s: Steps, t: Steps) -> Values:
        """Nats per dimension that a mean squared error of 1 in the model's numbers costs."""
        if variance is Variance.FIXED_SMALL:
            return self.snr_gain(s, t) / 2
        log, noise = self._tables()
        beta = -np.expm1(log[t - 1] - log[s - 1])
        return np.asarray(np.exp(log[s - 1]) * beta / np.square(noise[t - 1]) / 2)

    def constant(self, variance: Variance, s: Steps, t: Steps) -> Values:
        """Nats per dimension that a perfect prediction costs."""
        log_ratio = self.log_variance(s, t)
        if variance is Variance.FIXED_SMALL:
            return np.zeros_like(log_ratio)
        log, _ = self._tables()
        log_ratio = log_ratio - np.log(-np.expm1(log[t - 1] - log[s - 1]))
        return np.asarray((np.expm1(log_ratio) - log_ratio) / 2)

    def snr_gain(self, s: Steps, t: Steps) -> Values:
        """SNR(s) - SNR(t), without the difference."""
        log, noise = self._tables()
        beta = -np.expm1(log[t - 1] - log[s - 1])
        return np.asarray(np.exp(log[s - 1]) * beta / noise[s - 1] / noise[t - 1])

    def log_variance(self, s: Steps, t: Steps) -> Values:
        """Log variance of q(x_s | x_t, x_start)."""
        log, noise = self._tables()
        beta = -np.expm1(log[t - 1] - log[s - 1])
        return np.asarray(np.log(beta * noise[s - 1] / noise[t - 1]))

    def _tables(self) -> tuple[Values, Values]:
        schedule = self.schedule
        return schedule.log_alphas_cumprod.numpy(), schedule.one_minus_alphas_cumprod.numpy()
