"""The terms of an importance sample by replicate and image, and the effects of their strata."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ddpmbench.likelihood.designs import ImportanceDesign, decoder_draws
from ddpmbench.likelihood.image_sampling import ImageSample
from ddpmbench.likelihood.regression import Predictions
from ddpmbench.likelihood.terms import TermTable, image_blocks

NATS, X_START, EPS = range(3)
"""The columns of a bound (`columns_of_bound`): the term itself, the mean squared errors of x_start
and of the noise."""


@dataclasses.dataclass(frozen=True, eq=False)
class SampledTerms:
    """Some columns of all terms of an importance sample, such as `NATS`, `X_START` and `EPS`.

    Attributes:
        replicates: (C, r, M) the columns of each image in each replicate.
        decoder: (C + D, M) the same at t = 1, mean over the draws, then the decoder columns.
        decoder_draws: (M,) number of draws at t = 1.
        decoder_squares: (C + D, M) sum of the squared deviations at t = 1 from the mean.
    """

    replicates: NDArray[np.float64]
    decoder: NDArray[np.float64]
    decoder_draws: NDArray[np.int64]
    decoder_squares: NDArray[np.float64]

    def decoder_variance(self, weights: NDArray[np.float64], column: int = NATS) -> float:
        """Variance of the weighted sum of the decoder terms, from their noise.

        The variance of a draw is pooled over the images.
        """
        of_draw = float(self.decoder_squares[column].sum() / (self.decoder_draws - 1).sum())
        return of_draw * float((np.square(weights) / self.decoder_draws).sum())

    def decoder_error(self, sample: ImageSample) -> float:
        """Variance of the weighted sum from the noise and the choice of images."""
        noise = self.decoder_variance(sample.weights)
        return noise + sample.variance(self.decoder[NATS], noise)


def sampled_terms(
    design: ImportanceDesign,
    tables: Iterable[TermTable],
    columns: Sequence[str],
    decoders: Sequence[str] = (),
) -> SampledTerms:
    """Sort the terms of a design, in any order and portions, by replicate and image.

    Args:
        design: of the terms.
        tables: every term once.
        columns: the first has a value in every term.
        decoders: columns of t = 1 alone.

    Raises:
        ValueError: a term is missing, comes twice, or is not one of the design, or there is one
            replicate.
    """
    if design.num_replicates < 2:
        raise ValueError("the error of one replicate is unknown; take two")
    num_images, draws = design.num_sampled, 1 + decoder_draws(design.num_replicates)
    replicates = np.full((len(columns), design.num_replicates, num_images), np.nan)
    mean, squares = np.zeros((2, len(columns) + len(decoders), num_images))
    is_known = np.zeros((draws, num_images), dtype=bool)
    count = np.zeros(num_images, dtype=np.int64)
    length = 0
    for table in tables:
        image, t, draw = design.position[table.index.image], table.index.t, table.index.draw
        values = np.stack([table.values[name] for name in (*columns, *decoders)])
        first = t == 1
        later = (draw[~first], image[~first])
        is_other = (image < 0).any() or (design.t[later] != t[~first]).any()
        if is_other or (draw[first] >= draws).any():
            raise ValueError("the tables hold terms of another design")
        replicates[:, *later] = values[: len(columns), ~first]
        for k in np.unique(draw[first]):
            of_draw = np.flatnonzero(first & (draw == k))
            x, of_image = values[:, of_draw], image[of_draw]
            # Welford 1962.
            count[of_image] += 1
            deviation = x - mean[:, of_image]
            mean[:, of_image] += deviation / count[of_image]
            squares[:, of_image] += deviation * (x - mean[:, of_image])
            is_known[k, of_image] = ~np.isnan(x[0])
        length += len(table)
    known = int(is_known.sum()) + int((~np.isnan(replicates[0])).sum())
    if length != len(design) or known != len(design):
        raise ValueError("the tables do not hold every term of the design exactly once")
    return SampledTerms(replicates, mean, count, squares)


_KNOTS = 40  # the timestep effect is piecewise linear in log t, with about this many knots
_TERMS_A_KNOT = 5


@dataclasses.dataclass(frozen=True, eq=False)
class TwoWayFit:
    """An additive fit of image and stratum effects to the contributions of terms.

    Attributes:
        image: (M,) mean over the replicates of each image, without the effects of its strata.
        spread: (M,) variance among the replicates of each image, without the stratum effects.
        trend: (T - 1,) function of the timestep whose strata means are the stratum effects, up to a
            constant.
    """

    image: NDArray[np.float64]
    spread: NDArray[np.float64]
    trend: NDArray[np.float64]

    def variance(self, weights: NDArray[np.float64], num_replicates: int) -> float:
        """Variance of the weighted sum of (M,) means of r replicates; the weights sum to 1."""
        # The images of a replicate share the strata, hence M / (M - 1).
        count = len(weights)
        shared = count / max(count - 1, 1)
        return float(np.square(weights) @ self.spread) / num_replicates * shared


def two_way_fit(design: ImportanceDesign, values: NDArray[np.float64]) -> TwoWayFit:
    r"""Fit image and stratum effects by least squares.

    .. math:: y_{jn} = \alpha_n + \beta(s_{jn}) + \varepsilon_{jn}

    Every replicate has each stratum once, so that stratum effects do not contribute to the error of
    the mean, and the residuals have

    .. math:: \mathrm{Var}(\bar y) = \frac{1}{r (M - 1) M} \sum_n \mathrm{Var}_j(\varepsilon_{jn})

    Args:
        design: of the terms; at least two replicates.
        values: (r, M) contributions y, each an estimate of its image's sum.

    Source: Owen 1992, "A central limit theorem for Latin hypercube sampling", for the variance.
    """
    replicates, num_images = values.shape
    freedom = num_images * (replicates - 1)
    hats = _hat_functions(design, freedom // _TERMS_A_KNOT)
    means = StratumMeans(design, hats)
    columns = hats.shape[1]
    gram, moment = np.zeros((columns, columns)), np.zeros(columns)
    for part in image_blocks(num_images, replicates):
        y = _within(values[:, part]).ravel()
        x = _within(means.at(part)).reshape(y.size, columns)
        gram += x.T @ x
        moment += x.T @ y
    coefficients, _, rank, _ = np.linalg.lstsq(gram, moment, rcond=1e-10)
    trend = hats @ coefficients
    effects = StratumMeans(design, trend)
    image, spread = np.empty(num_images), np.empty(num_images)
    for part in image_blocks(num_images, replicates):
        left = values[:, part] - effects.at(part)
        image[part] = left.mean(0)
        spread[part] = left.var(axis=0, ddof=1) * freedom / (freedom - rank)
    return TwoWayFit(image, spread, trend)


def _within(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(values - values.mean(0))


class StratumMeans:
    """Means of a function of the timestep over the strata, under the proposal density."""

    def __init__(self, design: ImportanceDesign, values: NDArray[np.float64]) -> None:
        """Integrate the function, (T - 1, ...) values at t = 2..T.

        The density divides [0, 1] among the timesteps, the images into strata.
        """
        start = np.append(0.0, np.cumsum(design.density)[:-1])  # (T - 1,) of each timestep
        weighted = (design.density * values.T).T
        before = np.zeros_like(weighted[:1])
        integral = np.concatenate([before, np.cumsum(weighted, axis=0)[:-1]])
        # Blocks of as many images have the same strata.
        sizes, size = np.unique(np.diff(design.block_ends), return_inverse=True)
        means = []
        for count in sizes:
            place = np.arange(count + 1) / count
            index = np.searchsorted(start, place, side="right") - 1
            within = (place - start[index]).reshape(-1, *[1] * (values.ndim - 1))
            means.append(count * np.diff(integral[index] + values[index] * within, axis=0))
        self._means, self._stratum = np.concatenate(means), design.stratum
        # The place of the first stratum of each block.
        self._ends, self._first = design.block_ends[1:], (np.cumsum(sizes) - sizes)[size]

    def at(self, part: slice) -> NDArray[np.float64]:
        """(r, B, ...) the means over the strata of some images in every replicate."""
        return np.asarray(self._means[self._place(part)])

    def of_replicates(self, part: slice) -> NDArray[np.float64]:
        """(r, B) the same if the last axis of the values is that of the replicates."""
        place = self._place(part)
        return np.asarray(self._means[place, np.arange(len(place))[:, None]])

    def _place(self, part: slice) -> NDArray[np.int64]:
        block = np.searchsorted(self._ends, np.arange(part.start, part.stop), side="right")
        return np.asarray(self._first[block] + self._stratum[:, part])


def _hat_functions(design: ImportanceDesign, count: int) -> NDArray[np.float64]:
    """(T - 1, columns) basis of the piecewise linear functions of log t, up to a constant."""
    inner = min(_KNOTS, count - 2)  # with too few terms the timestep effect counts as error
    last = len(design.density) - 1
    index = np.searchsorted(np.cumsum(design.density), (np.arange(inner) + 0.5) / max(inner, 1))
    knots = np.unique(np.minimum([0, *index, *([last] if inner > 0 else [])], last))
    log_t = np.log(np.arange(2, design.num_timesteps + 1))
    hats = [np.interp(log_t, log_t[knots], row) for row in np.eye(len(knots))[1:]]
    return np.stack(hats, axis=1) if hats else np.zeros((len(log_t), 0))


class Contributions:
    """The errors of the predictions over the density, which correct them: (r, M) `at_terms`.

    Added to `Predictions.totals` they estimate the images' sums over t = 2..T; without predictions
    they are the terms over the density.

    Attributes:
        sums: (M,) estimated sum of each image, mean over the replicates.
        at_terms: (r, M) plus the strata's share of the mean prediction, which has mean 0.
            Predictions, and so this share, differ between replicates; with it a stratum has the
            same effect in all of them. It adds no error, because every stratum has a term.
    """

    def __init__(
        self, design: ImportanceDesign, nats: NDArray[np.float64], predictions: Predictions
    ) -> None:
        """Correct the predictions by (r, M) terms."""
        self._design, self._predictions = design, predictions
        self.at_terms = np.empty(design.t.shape)
        for part in image_blocks(design.num_sampled, design.num_replicates):
            left = nats[:, part] - predictions.terms[:, part]
            self.at_terms[:, part] = left / design.density[design.t[:, part] - 2]
        self.sums = self.totals.mean(0)
        common = StratumMeans(design, (predictions.timesteps / design.density).T)
        total = predictions.timesteps.sum(1)[:, None]
        for part in image_blocks(design.num_sampled, design.num_replicates):
            self.at_terms[:, part] += common.of_replicates(part) - total

    @property
    def totals(self) -> NDArray[np.float64]:
        """(r, M) estimates of the sum of each image over t = 2..T."""
        return self._predictions.totals + self.at_terms

    def without_strata(self, fit: TwoWayFit) -> NDArray[np.float64]:
        """(r, M) `at_terms` without stratum effects, mean 0."""
        left, effects = np.empty_like(self.at_terms), StratumMeans(self._design, fit.trend)
        for part in image_blocks(self._design.num_sampled, self._design.num_replicates):
            np.subtract(self.at_terms[:, part], effects.at(part), out=left[:, part])
        left -= left.mean()
        return left
