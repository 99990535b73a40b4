"""The bounds of all models that visit only some of the steps, from the errors at every step.

The network is the same, and so is what it predicts from x_t; such a model goes from t to the step
before it in its own schedule, and pays what `Skips` says. It begins with t = 1, where the decoder
is measured; that of a model without t = 1 could only be approximated, and is left out. Which steps
are best is a shortest path.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ddpmbench.likelihood.decoders import SCALES, WIDEST_RATIO, interpolated, log_variances
from ddpmbench.likelihood.intervals import half_width_of, least_freedom_of_sum
from ddpmbench.likelihood.skips import Skips
from ddpmbench.likelihood.step_errors import StepErrors
from ddpmbench.process.prediction import Variance
from ddpmbench.process.schedule import NoiseSchedule

EVENLY_SPACED, BEST = "evenly spaced", "best"
VARIANCES = (Variance.FIXED_LARGE, Variance.FIXED_SMALL, None)
"""None stands for the best constant at every step but the first, for these images."""
LENGTHS = (
    *(2, 3, 4, 5, 7, 10, 14, 20, 25, 35, 50, 70, 100, 140, 200, 250, 350, 500, 700, 1000),
    *(1400, 2000, 2800, 4000),
)
"""The numbers of steps whose models are looked at, and T; the usual respacings among them."""
LONGEST_BEST = 250
"""Best schedules are looked for up to so many steps."""
LONGEST_SCHEDULE = 5000
"""A table of all skips of a longer schedule would be too large."""
_WORK = 10**9  # additions of the search

Values = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class SubScheduleBound:
    """The bound of a model that visits some of the steps, nats per dimension.

    Attributes:
        variance: of its reverse process; None for the best constant at every step but the first.
        spacing: `EVENLY_SPACED`, or `BEST` on these images.
        steps: (K,) which it visits, increasing from 1 to T.
        rate: the prior and the steps but the first.
        decoder: the term at t = 1.
        half_width: of the 95 % interval for these images; None where it cannot be known.
    """

    variance: Variance | None
    spacing: str
    steps: NDArray[np.int64]
    rate: float
    decoder: float
    half_width: float | None

    @property
    def nats(self) -> float:
        """The bound."""
        return self.rate + self.decoder


@dataclasses.dataclass(frozen=True, eq=False)
class StepCosts:
    """What is known of every step a model can take.

    Attributes:
        schedule: the noise schedule, of at least two steps.
        prior: mean L_T, nats per dimension.
        errors: of the predicted x_start at each step.
        decoder: (7,) the exact decoder at the variances of `decoders.SCALES`, mean over the
            images.
        decoder_variance: of that mean: its noise; NaN where that cannot be known.
        decoder_doubt: the square of that over its degrees of freedom.
    """

    schedule: NoiseSchedule
    prior: float
    errors: StepErrors
    decoder: Values
    decoder_variance: float
    decoder_doubt: float

    def __post_init__(self) -> None:
        """Refuse a number of decoders that is not that of the scales."""
        if self.decoder.shape != (len(SCALES),):
            raise ValueError(f"decoder must have {len(SCALES)} values")

    def bound(
        self, variance: Variance | None, steps: Sequence[int], spacing: str = EVENLY_SPACED
    ) -> SubScheduleBound:
        """The bound of the model that visits these steps.

        Args:
            variance: fixed_small, fixed_large, or None for the best constant.
            steps: at least two, increasing from 1 to T.
            spacing: how they were chosen.
        """
        visited = np.asarray(steps, dtype=np.int64)
        s, t = visited[:-1], visited[1:]
        if visited[0] != 1 or visited[-1] != self.schedule.num_timesteps or (s >= t).any():
            raise ValueError("steps must increase from 1 to T")
        terms, slopes = self._terms(variance, s, t)
        weights = np.zeros(self.schedule.num_timesteps)
        weights[t - 1] = slopes
        of_steps, steps_doubt = self.errors.variance(weights)
        variance_of_sum, doubt = of_steps + self.decoder_variance, steps_doubt + self.decoder_doubt
        return SubScheduleBound(
            variance=variance,
            spacing=spacing,
            steps=visited,
            rate=float(self.prior + terms.sum()),
            decoder=float(self._decoder(visited[1:2])[0]),
            half_width=half_width_of(variance_of_sum, least_freedom_of_sum(variance_of_sum, doubt)),
        )

    def best_steps(self, variance: Variance | None, lengths: Sequence[int]) -> list[list[int]]:
        """The steps of the best models of some lengths, each of all that visit t = 1 and T.

        Lengths beyond what can be searched are left out, and steps at which the error cannot be
        known. By the errors that chose them their bound would come out too good.

        Args:
            variance: fixed_small, fixed_large, or None for the best constant.
            lengths: numbers of steps, at least two.

        Source: Watson, Ho, Norouzi & Chan 2021, "Learning to efficiently sample from diffusion
        probabilistic models", algorithm 1.
        """
        longest = min(LONGEST_BEST, _WORK // self.schedule.num_timesteps**2)
        wanted = [k for k in lengths if 2 <= k <= min(longest, self.schedule.num_timesteps)]
        if not wanted:
            return []
        cost = self._cost(variance)
        last = len(cost) - 1
        total = cost[:, 0] + np.append(np.inf, self._decoder(np.arange(2, last + 2)))
        came_from: list[NDArray[np.int64]] = []
        found = {}
        through = np.empty_like(cost)
        for length in range(2, max(wanted) + 1):
            if length > 2:
                # A row a step t: what it takes to be there from every s.
                np.add(total, cost, out=through)
                came_from.append(through.argmin(1))
                total = np.take_along_axis(through, came_from[-1][:, None], axis=1)[:, 0]
            if length in wanted:
                path = [last]
                for before in reversed(came_from):
                    path.append(int(before[path[-1]]))
                if np.isfinite(total[last]):
                    found[length] = [1, *(step + 1 for step in reversed(path))]
        return list(found.values())

    def _cost(self, variance: Variance | None) -> Values:
        """(T, T) of the step from each t (rows) to each s (columns); infinite where s >= t.

        The minimum over s is taken many times, and is fastest along rows.
        """
        t = np.arange(1, self.schedule.num_timesteps + 1)
        cost = np.full((len(t), len(t)), np.inf)
        s, later = np.triu_indices(len(t), 1)
        cost[later, s], _ = self._terms(variance, t[s], t[later])
        cost[:-1][~self.errors.is_known[:-1]] = np.inf  # every model visits T
        return cost

    def _terms(
        self, variance: Variance | None, s: NDArray[np.int64], t: NDArray[np.int64]
    ) -> tuple[Values, Values]:
        """What the steps from t to s cost, and how much more with the error at t."""
        skips, mse = Skips(self.schedule), self.errors.mse[t - 1]
        if variance is None:
            # The best variance is the posterior's and the mean square of the mean's error: Bao
            # et al. 2022, theorem 1.
            gain = skips.snr_gain(s, t)
            return np.log1p(gain * mse) / 2, gain / (1 + gain * mse) / 2
        weight = skips.weight(variance, s, t)
        return skips.constant(variance, s, t) + weight * mse, weight

    def _decoder(self, second: NDArray[np.int64]) -> Values:
        """(K,) the decoder of the models whose second step is each of these."""
        log_variance = Skips(self.schedule).log_variance(np.ones_like(second), second)
        return interpolated(self.schedule, self.decoder, log_variance)


def sub_schedule_bounds(
    costs: StepCosts, *, chosen_by: StepErrors, judged_by: StepErrors
) -> list[SubScheduleBound]:
    """The models of `LENGTHS` steps: under each variance evenly spaced ones, and the best.

    Args:
        costs: of evenly spaced steps.
        chosen_by: the errors by which the best steps are chosen.
        judged_by: those that their bound is from. Where errors are estimates they must be others,
            or the bound comes out too good and its interval too narrow.
    """
    schedule = costs.schedule
    lengths = [k for k in LENGTHS if k < schedule.num_timesteps] + [schedule.num_timesteps]
    chooser = dataclasses.replace(costs, errors=chosen_by)
    judge = dataclasses.replace(costs, errors=judged_by)
    found = []
    for variance in VARIANCES:
        found += [costs.bound(variance, schedule.evenly_spaced(k)) for k in lengths]
        best = chooser.best_steps(variance, lengths)
        found += [judge.bound(variance, steps, BEST) for steps in best]
    return found


def can_skip(schedule: NoiseSchedule) -> bool:
    """Whether models that skip steps of a schedule are looked at.

    It must have two steps at least and not too many, and begin evenly enough for their decoders to
    be interpolated.
    """
    ends = log_variances(schedule)[[0, -1]]
    is_even = bool(ends[1] - ends[0] <= np.log(WIDEST_RATIO))
    return 1 < schedule.num_timesteps <= LONGEST_SCHEDULE and is_even
