"""The bounds of all models that visit only some timesteps, from the errors at every timestep.

The network and its prediction from x_t stay the same; such a model goes from t to the previous
timestep of its own schedule, at the cost given by `Transitions`. It visits t = 1, where the decoder
is measured; the decoder of a model without t = 1 could only be approximated, so such models are
left out. The best timesteps are a shortest path.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ddpmbench.diffusion.parameterization import Process, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.likelihood.bound import PairMoments, half_width_of, least_freedom_of_sum
from ddpmbench.likelihood.decoders import WIDEST_RATIO, interpolated, log_variances
from ddpmbench.likelihood.designs import EveryPairDesign, ImportanceDesign
from ddpmbench.likelihood.rate_distortion import RatioLine, ratio_moments, timestep_windows
from ddpmbench.likelihood.regression import FeatureTable

Values = NDArray[np.float64]

_ALL = slice(None)


@dataclasses.dataclass(frozen=True, eq=False)
class TimestepErrors:
    """The mean squared error of the predicted x_start at each timestep t = 1..T.

    Attributes:
        mse: (T,) mean over the images, in the data range.
        influence: (T, T) weight of the terms at each timestep in the estimate at each timestep, or
            None where every estimate uses only its own terms.
        spread: (T,) variance from the terms at each timestep; NaN where it is unknown.
        over_freedom: (T,) square of that variance over its degrees of freedom.
    """

    mse: Values
    influence: Values | None
    spread: Values
    over_freedom: Values

    def variance(self, weights: Values) -> tuple[float, float]:
        """Variance of the sum with (T,) weights, and its square over freedom; NaN if unknown."""
        visited = np.flatnonzero(weights)
        of_terms = weights if self.influence is None else weights[visited] @ self.influence[visited]
        used = of_terms != 0
        squares = np.square(of_terms[used])
        over_freedom = np.square(squares) @ self.over_freedom[used]
        return float(squares @ self.spread[used]), float(over_freedom)

    @property
    def is_known(self) -> NDArray[np.bool_]:
        """(T,) whether there is an error with a known variance."""
        if self.influence is None:
            return np.isfinite(self.mse)
        unknown = np.isnan(self.spread)
        known: NDArray[np.bool_] = ~(self.influence[:, unknown] != 0).any(1)
        return known & np.isfinite(self.mse)


def every_pair_errors(design: EveryPairDesign, moments: PairMoments) -> TimestepErrors:
    """The errors, or another column, from its moments; the variance is that of the noise."""
    scale = design.draws * design.num_images**2
    if design.draws == 1:
        unknown = np.full_like(moments.mean, np.nan)
        return TimestepErrors(moments.mean, None, unknown, unknown)
    over_freedom = moments.fourth / scale**2 / (design.draws - 1)
    return TimestepErrors(moments.mean, None, moments.squares / scale, over_freedom)


def importance_errors(
    design: ImportanceDesign, mse: Values, features: FeatureTable, replicates: slice = _ALL
) -> TimestepErrors:
    """The errors from an importance sample, by a ratio estimator.

    The linear denoiser's errors, known for all images, are multiplied by the ratio of the two at
    the terms of a timestep or, where these are few, by a line in log t through the terms around it
    (`RatioLine`). Where no terms are near, the ratio is that of the nearest timesteps with terms,
    and the variance of sums that use it is unknown. At t = 1 all are NaN.

    Args:
        design: of the terms.
        mse: (r, N) the errors of each image in each replicate.
        features: of the same images and terms.
        replicates: those to use.

    Source: Cochran 1977, chapter 6.
    """
    t, size = design.t[replicates], design.num_timesteps - 1
    linear = features.at_terms[replicates] * features.error_scale[0, t - 2]
    moments = ratio_moments(t, mse[replicates], linear, design.num_timesteps)
    count, sum_y, _, yy, yx, xx = moments
    known = features.timestep_means[:, 0] * features.error_scale[0]
    influence = np.zeros((size, size))
    factor = np.full(size, np.nan)
    for index, window in enumerate(timestep_windows(count)):
        line = RatioLine.of(moments, index, window)
        if line is not None:
            influence[index, window] = line.weights
            factor[index] = count[window].sum() / line.freedom if line.freedom > 0 else np.nan
    ratio = influence @ sum_y
    has_terms = influence.any(1)
    log_t = np.log(np.arange(2, size + 2))
    ratio = (
        np.interp(log_t, log_t[has_terms], ratio[has_terms]) if has_terms.any() else np.ones(size)
    )
    squares = np.maximum(yy - 2 * ratio * yx + np.square(ratio) * xx, 0.0)
    own = np.where(has_terms, factor, np.nan)
    influence[~has_terms, ~has_terms] = 1.0  # an unknown error makes the sum unknown
    influence *= known[:, None]
    whole = np.zeros((size + 1, size + 1))
    whole[1:, 1:] = influence
    spread = np.where(count > 0, squares * own, np.where(has_terms, 0.0, np.nan))
    return TimestepErrors(
        mse=np.append(np.nan, ratio * known),
        influence=whole,
        spread=np.append(np.nan, spread),
        over_freedom=np.append(np.nan, np.square(spread) / np.maximum(count, 1)),
    )


Steps = NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class Transitions:
    r"""The terms of transitions from t to any s < t, as functions of the error of x_start.

    .. math:: L_{s,t} = c_{s,t} + w_{s,t} \, \mathrm{E} \| x_0 - \hat x_0 \|^2 / D

    With variance fixed_small c = 0 and :math:`w = (\mathrm{SNR}(s) - \mathrm{SNR}(t)) / 2`; with
    fixed_large c = (r - 1 - log r) / 2, and w is r times that,

    .. math:: r = \frac{1 - \bar\alpha_s}{1 - \bar\alpha_t} \frac{c_s^2}{c_t^2}

    and the scale c of `diffusion.forward_process`, 1 for VP.

    Every method takes timesteps s < t, int64 arrays that broadcast, in 1..T.

    Attributes:
        schedule: the noise schedule.

    Source: Ho, Jain & Abbeel 2020, eqs. 5 to 8, with s in the place of t - 1; Kingma et al. 2021,
    eq. 13, for the weight in signal-to-noise ratios.
    """

    schedule: NoiseSchedule

    def weight(self, variance: Variance, s: Steps, t: Steps) -> Values:
        """w, nats per dimension per unit of mean squared error in the data range."""
        weight = self.snr_gain(s, t) / 2
        return weight if variance is Variance.FIXED_SMALL else weight * self._noise_ratio(s, t)

    def constant(self, variance: Variance, s: Steps, t: Steps) -> Values:
        """c, nats per dimension of a perfect prediction."""
        ratio = self._noise_ratio(s, t)
        if variance is Variance.FIXED_SMALL:
            return np.zeros_like(ratio)
        return np.asarray((ratio - 1 - np.log(ratio)) / 2)

    def snr_gain(self, s: Steps, t: Steps) -> Values:
        """SNR(s) - SNR(t), without cancellation."""
        signal, noise = self.schedule.alphas_cumprod.numpy(), self._noise
        return np.asarray(signal[s - 1] * self._beta(s, t) / noise[s - 1] / noise[t - 1])

    def log_variance(self, s: Steps, t: Steps) -> Values:
        """Log variance of q(x_s | x_t, x_start)."""
        ratio = self._noise[s - 1] / self._noise[t - 1]
        return np.asarray(np.log(self._beta(s, t) * ratio))

    @property
    def _noise(self) -> Values:
        return self.schedule.one_minus_alphas_cumprod.numpy()

    def _noise_ratio(self, s: Steps, t: Steps) -> Values:
        """Ratio of the posterior variance to the forward one, both at the scale of the process."""
        scaled = self._noise * np.exp(2 * self.schedule.log_scale.numpy())
        return np.asarray(scaled[s - 1] / scaled[t - 1])

    def _beta(self, s: Steps, t: Steps) -> Values:
        log = self.schedule.log_alphas_cumprod.numpy()
        return np.asarray(-np.expm1(log[t - 1] - log[s - 1]))


EVENLY_SPACED, BEST = "evenly spaced", "best"
VARIANCES = (Variance.FIXED_LARGE, Variance.FIXED_SMALL, None)
"""None is the best constant for these images at every timestep but the first."""
LENGTHS = (
    *(2, 3, 4, 5, 7, 10, 14, 20, 25, 35, 50, 70, 100, 140, 200, 250, 350, 500, 700, 1000),
    *(1400, 2000, 2800, 4000),
)
"""Lengths of sub-schedules besides T, including the usual respacings."""
LONGEST_BEST = 250
"""Longest sub-schedule whose best timesteps are searched."""
LONGEST_SCHEDULE = 5000
"""A table of all skips of a longer schedule would be too large."""
_WORK = 10**9  # additions of the search
_ROWS = 64  # that are added at once, and stay in the cache


@dataclasses.dataclass(frozen=True, eq=False)
class SubScheduleBound:
    """The bound of a model that visits some of the timesteps, nats per dimension.

    Attributes:
        variance: of its reverse process; None for the best constant at every
            timestep but the first.
        spacing: `EVENLY_SPACED`, or `BEST` on these images.
        steps: (K,) its timesteps, increasing from 1 to T.
        rate: the prior and the terms but the first.
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
class SubScheduleCosts:
    """The costs of every transition of a sub-schedule.

    Attributes:
        schedule: the noise schedule, of at least two timesteps.
        prior: mean L_T, nats per dimension.
        errors: of the predicted x_start at each timestep.
        decoder: (7,) the exact decoder at the variances of `decoders.SCALES`, mean over the
            images.
        decoder_variance: of that mean, from its noise; NaN where it is unknown.
        decoder_over_freedom: the square of that over its degrees of freedom.
    """

    schedule: NoiseSchedule
    prior: float
    errors: TimestepErrors
    decoder: Values
    decoder_variance: float
    decoder_over_freedom: float

    def bound(
        self, variance: Variance | None, steps: Sequence[int], spacing: str = EVENLY_SPACED
    ) -> SubScheduleBound:
        """The bound of the model that visits some timesteps: at least two, from 1 to T.

        Raises:
            ValueError: they do not increase from 1 to T.
        """
        visited = np.asarray(steps, dtype=np.int64)
        s, t = visited[:-1], visited[1:]
        if visited[0] != 1 or visited[-1] != self.schedule.num_timesteps or (s >= t).any():
            raise ValueError("timesteps must increase from 1 to T")
        terms, slopes = self._terms(variance, s, t)
        weights = np.zeros(self.schedule.num_timesteps)
        weights[t - 1] = slopes
        kl_variance, kl_over_freedom = self.errors.variance(weights)
        variance_of_sum = kl_variance + self.decoder_variance
        over_freedom = kl_over_freedom + self.decoder_over_freedom
        return SubScheduleBound(
            variance=variance,
            spacing=spacing,
            steps=visited,
            rate=float(self.prior + terms.sum()),
            decoder=float(self._decoder(visited[1:2])[0]),
            half_width=_known_half_width(variance_of_sum, over_freedom),
        )

    def difference_half_width(self, variance: Variance | None, other: Variance) -> float | None:
        """Half width of the 95 % interval of the difference of two variances' bounds.

        Both use the same errors and decoder term, so that it is narrower than either bound's. None
        where it is unknown.
        """
        t = np.arange(2, self.schedule.num_timesteps + 1)
        slopes = self._terms(variance, t - 1, t)[1] - self._terms(other, t - 1, t)[1]
        return _known_half_width(*self.errors.variance(np.append(0.0, slopes)))

    def best_timesteps(self, variance: Variance | None, lengths: Sequence[int]) -> list[list[int]]:
        """The timesteps of the best models of some lengths, among all that visit t = 1 and T.

        Lengths beyond the limit of the search, and timesteps whose error has no known variance, are
        left out. With the errors that chose them, their bound would be too low.

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
        best = {}
        for length in range(2, max(wanted) + 1):
            if length > 2:
                came_from.append(_cheapest(total, cost))
                total = total[came_from[-1]] + cost[np.arange(len(cost)), came_from[-1]]
            if length in wanted:
                path = [last]
                for before in reversed(came_from):
                    path.append(int(before[path[-1]]))
                if np.isfinite(total[last]):
                    best[length] = [1, *(index + 1 for index in reversed(path))]
        return list(best.values())

    def _cost(self, variance: Variance | None) -> Values:
        """(T, T) from each t (rows) to each s (columns); infinite where s >= t.

        The minimum over s is taken many times; along rows it is fastest.
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
        """The costs of the transitions from t to s, and their derivatives in the error at t."""
        skips, mse = Transitions(self.schedule), self.errors.mse[t - 1]
        if variance is None:
            # The best variance is the posterior's plus the mean squared error of the mean: Bao et
            # al. 2022, theorem 1.
            gain = skips.snr_gain(s, t)
            return np.log1p(gain * mse) / 2, gain / (1 + gain * mse) / 2
        weight = skips.weight(variance, s, t)
        return skips.constant(variance, s, t) + weight * mse, weight

    def _decoder(self, second: NDArray[np.int64]) -> Values:
        """(K,) the decoder term of the models with each second timestep."""
        if self.schedule.process is not Process.VP:  # its variance is that of t = 1 for all
            return np.repeat(self.decoder[0], len(second))
        log_variance = Transitions(self.schedule).log_variance(np.ones_like(second), second)
        return interpolated(self.schedule, self.decoder, log_variance)


def _cheapest(total: Values, cost: Values) -> NDArray[np.int64]:
    """(T,) the s through which each t is reached at the least cost.

    Args:
        total: (T,) cost of reaching each s.
        cost: (T, T) from each t (rows) to each s (columns); infinite where s >= t.
    """
    through = np.empty(len(cost), dtype=np.int64)
    for start in range(0, len(cost), _ROWS):
        stop = start + _ROWS
        (total[:stop] + cost[start:stop, :stop]).argmin(1, out=through[start:stop])
    return through


def _known_half_width(variance: float, over_freedom: float) -> float | None:
    if math.isnan(variance):
        return None
    return half_width_of(variance, least_freedom_of_sum(variance, over_freedom))


def sub_schedule_bounds(
    costs: SubScheduleCosts, *, chosen_by: TimestepErrors, judged_by: TimestepErrors
) -> list[SubScheduleBound]:
    """The sub-schedules of `LENGTHS`: evenly spaced and best ones under each variance.

    Args:
        costs: of evenly spaced timesteps.
        chosen_by: the errors by which the best timesteps are chosen.
        judged_by: the errors their bound is computed from. Where errors are estimates they must be
            others, or the bound is too low and its interval too narrow.
    """
    schedule = costs.schedule
    lengths = [k for k in LENGTHS if k < schedule.num_timesteps] + [schedule.num_timesteps]
    chooser = dataclasses.replace(costs, errors=chosen_by)
    judge = dataclasses.replace(costs, errors=judged_by)
    bounds = []
    for variance in VARIANCES:
        bounds += [costs.bound(variance, schedule.evenly_spaced(k)) for k in lengths]
        best = chooser.best_timesteps(variance, lengths)
        bounds += [judge.bound(variance, steps, BEST) for steps in best]
    return bounds


def can_skip(schedule: NoiseSchedule) -> bool:
    """Whether sub-schedules of a schedule are evaluated.

    It needs at least two timesteps and not too many, all of them trained ones, and first betas
    close enough to interpolate the decoder.
    """
    if schedule.trained is not None:
        return False
    ends = log_variances(schedule)[[0, -1]]
    is_even = bool(ends[1] - ends[0] <= np.log(WIDEST_RATIO))
    return 1 < schedule.num_timesteps <= LONGEST_SCHEDULE and is_even
