"""The bounds of all models that visit only some of the steps, from the errors at every step.

The network is the same, and so is its prediction from x_t; such a model goes from t to the timestep
before it in its own schedule, at the cost that `Transitions` has. It begins with t = 1, where the
decoder is measured; that of a model without t = 1 could only be approximated, and is left out. The
best timesteps are a shortest path.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ddpmbench.diffusion.process import Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.likelihood.decoders import SCALES, WIDEST_RATIO, interpolated, log_variances
from ddpmbench.likelihood.designs import EveryPairDesign, ImportanceDesign
from ddpmbench.likelihood.intervals import half_width_of, least_freedom_of_sum
from ddpmbench.likelihood.rate_distortion import RatioLine, timestep_windows
from ddpmbench.likelihood.regression import FeatureTable
from ddpmbench.likelihood.terms import TermTable


@dataclasses.dataclass(frozen=True, eq=False)
class ColumnSums:
    """A column of every pair, over the images.

    Attributes:
        mean: (T,) at each step; (1,) of a decoder's column.
        squares: as many, sums of the variances among draws; 0 with a single draw.
        fourth: as many, sums of the squares of these variances.
    """

    mean: NDArray[np.float64]
    squares: NDArray[np.float64]
    fourth: NDArray[np.float64]


class PairSums:
    """Some columns, over every pair."""

    def __init__(
        self, design: EveryPairDesign, tables: Iterable[TermTable], columns: Iterable[str]
    ) -> None:
        """Sum up.

        Args:
            design: the rows that were computed.
            tables: the terms of every row once, with the draws of a pair side by side.
            columns: which.
        """
        names = list(columns)
        sizes = [1 if name.startswith("decoder") else design.num_timesteps for name in names]
        sums = {name: np.zeros((3, size)) for name, size in zip(names, sizes, strict=True)}
        for table in tables:
            index = table.index.t[:: design.draws] - 1
            for name, (mean, squares, fourth) in sums.items():
                by_draw = table.values[name].reshape(-1, design.draws)
                of = index < len(mean)  # a decoder's column has values at t = 1 alone
                by_draw, step = by_draw[of], index[of]
                mean += np.bincount(step, by_draw.mean(1), len(mean))
                if design.draws > 1:
                    spread = by_draw.var(axis=1, ddof=1)
                    squares += np.bincount(step, spread, len(mean))
                    fourth += np.bincount(step, np.square(spread), len(mean))
        self._sums = {
            name: ColumnSums(mean / design.num_images, squares, fourth)
            for name, (mean, squares, fourth) in sums.items()
        }

    def of(self, column: str) -> ColumnSums:
        """A column."""
        return self._sums[column]


Values = NDArray[np.float64]

_ALL = slice(None)


@dataclasses.dataclass(frozen=True, eq=False)
class TimestepErrors:
    """The mean squared error of the predicted x_start at each step t = 1..T.

    Attributes:
        mse: (T,) mean over the images, in the model's numbers.
        influence: (T, T) how much of each step's rows goes into the estimate at each step, or
            None where an estimate rests on its own step's rows alone.
        spread: (T,) variance that those rows give it; NaN where that cannot be known.
        over_freedom: (T,) square of that variance over its degrees of freedom.
    """

    mse: Values
    influence: Values | None
    spread: Values
    over_freedom: Values

    def variance(self, weights: Values) -> tuple[float, float]:
        """Of the sum of weight times error, on this image set, and the over_freedom of it.

        Args:
            weights: (T,).

        Returns:
            NaN where they cannot be known.
        """
        of_rows = weights if self.influence is None else weights @ self.influence
        used = of_rows != 0
        squares = np.square(of_rows[used])
        return float(squares @ self.spread[used]), float(
            np.square(squares) @ self.over_freedom[used]
        )

    @property
    def is_known(self) -> NDArray[np.bool_]:
        """(T,) whether there is an error at a step whose own error can be known."""
        if self.influence is None:
            return np.isfinite(self.mse)
        unknown = np.isnan(self.spread)
        known: NDArray[np.bool_] = ~(self.influence[:, unknown] != 0).any(1)
        return known & np.isfinite(self.mse)


def every_pair_errors(design: EveryPairDesign, sums: ColumnSums) -> TimestepErrors:
    """The errors, or another column, from every pair; what is not known is the noise.

    Args:
        design: the rows that were computed.
        sums: of the column.
    """
    scale = design.draws * design.num_images**2
    if design.draws == 1:
        unknown = np.full_like(sums.mean, np.nan)
        return TimestepErrors(sums.mean, None, unknown, unknown)
    over_freedom = sums.fourth / scale**2 / (design.draws - 1)
    return TimestepErrors(sums.mean, None, sums.squares / scale, over_freedom)


def importance_errors(
    design: ImportanceDesign, mse: Values, features: FeatureTable, replicates: slice = _ALL
) -> TimestepErrors:
    """The errors from the rows of an importance sample.

    At a step they are the linear denoiser's, which are known for all images, times the ratio of
    the two at the rows of this step, or a line in log t through those of the steps around it
    where they are few (`distortion`). Where there are no rows near, the ratio is that of the
    nearest steps with rows, and what rests on it has no known error.

    Args:
        design: the rows.
        mse: (r, N) the errors of each image in each replicate.
        features: of the same images and rows.
        replicates: which of them count.

    Returns:
        The errors; of the decoder's step, which is measured on every image, nothing.

    Source: Cochran 1977, chapter 6.
    """
    step = design.t[replicates].ravel() - 2
    size = design.num_timesteps - 1
    y = mse[replicates].ravel()
    x = features.at_terms[replicates].ravel() * features.error_scale[0, step]
    parts = (np.ones_like(x), y, x, y * y, y * x, x * x)
    moments = np.stack([np.bincount(step, part, size).astype(np.float64) for part in parts])
    count, sum_y, _, yy, yx, xx = moments
    known = features.timestep_means[:, 0] * features.error_scale[0]
    influence = np.zeros((size, size))
    factor = np.full(size, np.nan)
    for index, window in enumerate(timestep_windows(count)):
        line = RatioLine.of(moments, index, window)
        if line is not None:
            influence[index, window] = line.weights
            rows = count[window].sum()
            factor[index] = rows / line.freedom if line.freedom > 0 else np.nan
    ratio = influence @ sum_y
    there = influence.any(1)
    t = np.log(np.arange(2, size + 2))
    ratio = np.interp(t, t[there], ratio[there]) if there.any() else np.ones(size)
    squares = np.maximum(yy - 2 * ratio * yx + np.square(ratio) * xx, 0.0)
    own = np.where(there, factor, np.nan)
    influence[~there, ~there] = 1.0  # what is not known makes the sum unknown
    influence *= known[:, None]
    whole = np.zeros((size + 1, size + 1))
    whole[1:, 1:] = influence
    spread = np.where(count > 0, squares * own, np.where(there, 0.0, np.nan))
    return TimestepErrors(
        mse=np.append(np.nan, ratio * known),
        influence=whole,
        spread=np.append(np.nan, spread),
        over_freedom=np.append(np.nan, np.square(spread) / np.maximum(count, 1)),
    )


Steps = NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class Transitions:
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
class SubScheduleCosts:
    """What is known of every step a model can take.

    Attributes:
        schedule: the noise schedule, of at least two steps.
        prior: mean L_T, nats per dimension.
        errors: of the predicted x_start at each step.
        decoder: (7,) the exact decoder at the variances of `decoders.SCALES`, mean over the
            images.
        decoder_variance: of that mean: its noise; NaN where that cannot be known.
        decoder_over_freedom: the square of that over its degrees of freedom.
    """

    schedule: NoiseSchedule
    prior: float
    errors: TimestepErrors
    decoder: Values
    decoder_variance: float
    decoder_over_freedom: float

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
        kl_variance, kl_over_freedom = self.errors.variance(weights)
        variance_of_sum = kl_variance + self.decoder_variance
        over_freedom = kl_over_freedom + self.decoder_over_freedom
        return SubScheduleBound(
            variance=variance,
            spacing=spacing,
            steps=visited,
            rate=float(self.prior + terms.sum()),
            decoder=float(self._decoder(visited[1:2])[0]),
            half_width=half_width_of(
                variance_of_sum, least_freedom_of_sum(variance_of_sum, over_freedom)
            ),
        )

    def best_timesteps(self, variance: Variance | None, lengths: Sequence[int]) -> list[list[int]]:
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
        skips, mse = Transitions(self.schedule), self.errors.mse[t - 1]
        if variance is None:
            # The best variance is the posterior's and the mean square of the mean's error: Bao
            # et al. 2022, theorem 1.
            gain = skips.snr_gain(s, t)
            return np.log1p(gain * mse) / 2, gain / (1 + gain * mse) / 2
        weight = skips.weight(variance, s, t)
        return skips.constant(variance, s, t) + weight * mse, weight

    def _decoder(self, second: NDArray[np.int64]) -> Values:
        """(K,) the decoder of the models whose second step is each of these."""
        log_variance = Transitions(self.schedule).log_variance(np.ones_like(second), second)
        return interpolated(self.schedule, self.decoder, log_variance)


def sub_schedule_bounds(
    costs: SubScheduleCosts, *, chosen_by: TimestepErrors, judged_by: TimestepErrors
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
        best = chooser.best_timesteps(variance, lengths)
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
