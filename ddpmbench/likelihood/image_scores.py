"""A bound for every image with its standard error, and comparisons of two image sets.

The importance design estimates the mean over images only: a single image has few of its terms. Here
every image has its own stratified sample of timesteps.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import stdtr

from ddpmbench.likelihood.bound import (
    half_width_of,
    least_freedom_of_sum,
    population_half_width,
    quantile,
)
from ddpmbench.likelihood.designs import PER_IMAGE, check_density, unit_interval, words_of_turns
from ddpmbench.likelihood.regression import portions
from ddpmbench.likelihood.terms import TermIndex, TermTable, image_blocks
from ddpmbench.records import short_repr

LEAST_EVALUATIONS = 4
"""Per image: two draws of the decoder term and one stratum with two terms."""
_DECODER_SHARE = 8  # one term in this many is a decoder term
MOST_NEIGHBORS = 10_000
"""Most images among which the nearest is searched."""
_BLOCK_BYTES = 2**27  # of these in memory


@dataclasses.dataclass(frozen=True, eq=False)
class PerImageDesign:
    r"""M terms of every image: D draws at t = 1 and two in each of S strata of t = 2..T.

    The two timesteps of stratum s of an image are

    .. math:: t = F^{-1}\Bigl(\frac{s + u}{S}\Bigr), \quad s = 0..S-1

    with F the distribution function of the proposal density and u uniform on [0, 1), a function of
    (seed, image, s). So a term depends on the checkpoint, the image and its position in the set,
    the seed, M and the density, and on no other image of the set except through the density.

    The terms are ordered by image: draws 0..D-1 of t = 1, then draws 0..2S-1 of the strata.

    Attributes:
        num_images: N.
        num_timesteps: T, at least 2.
        density: (T - 1,) q over t = 2..T, positive, sums to 1.
        seed: 0 <= seed < 2^64.
        evaluations_per_image: M, at least `LEAST_EVALUATIONS`.

    Raises:
        ValueError: the density is none over t = 2..T, or M is too small.

    Source: Cochran 1977, chapter 5, for two terms per stratum.
    """

    num_images: int
    num_timesteps: int
    density: NDArray[np.float64]
    seed: int
    evaluations_per_image: int = 64

    __repr__ = short_repr

    def __post_init__(self) -> None:
        """Refuse a density under which some term could never be drawn."""
        check_density(self.density, self.num_timesteps)
        if self.evaluations_per_image < LEAST_EVALUATIONS:
            raise ValueError(f"an image must have at least {LEAST_EVALUATIONS} terms")

    @property
    def num_strata(self) -> int:
        """S."""
        decoder = max(2, self.evaluations_per_image // _DECODER_SHARE)
        return (self.evaluations_per_image - decoder) // 2

    @property
    def decoder_draws(self) -> int:
        """D, at least 2."""
        return self.evaluations_per_image - 2 * self.num_strata

    @cached_property
    def t(self) -> NDArray[np.int64]:
        """(N, S, 2) timesteps of the strata."""
        cumulative = np.cumsum(self.density)[:-1]
        t = np.empty((self.num_images, self.num_strata, 2), dtype=np.int64)
        for strata in image_blocks(self.num_strata, self.num_images):
            u = words_of_turns(self.num_images, self.seed, turns=strata, purpose=PER_IMAGE)
            place = np.arange(strata.start, strata.stop)[:, None] + unit_interval(u).T
            t[:, strata] = 2 + np.searchsorted(cumulative, place / self.num_strata, side="right")
        return t

    def __len__(self) -> int:
        """Number of terms."""
        return self.num_images * self.evaluations_per_image

    def index(self, start: int, stop: int) -> TermIndex:
        """The index of the terms at positions start..stop - 1."""
        position = np.arange(start, min(stop, len(self)), dtype=np.int64)
        image, term = np.divmod(position, self.evaluations_per_image)
        draw, t = term - self.decoder_draws, np.ones_like(position)
        later = draw >= 0
        t[later] = self.t.reshape(self.num_images, -1)[image[later], draw[later]]
        return TermIndex(image=image, t=t, draw=np.where(later, draw, term))


@dataclasses.dataclass(frozen=True, eq=False)
class ImageScores:
    """The bound of each of N images, nats per dimension.

    Attributes:
        prior: (N,) L_T.
        kl: (N,) estimated sum of L_{t-1} over t = 2..T.
        decoder: (N,) estimated L_0.
        variance: (N,) of the bound of an image, from the noise and the choice of timesteps.
        half_width: of the 95 % interval of the mean for these images.
        half_width_population: of the 95 % interval of the mean for the population that the images
            are drawn from; None for one image.
    """

    prior: NDArray[np.float64]
    kl: NDArray[np.float64]
    decoder: NDArray[np.float64]
    variance: NDArray[np.float64]
    half_width: float
    half_width_population: float | None

    __repr__ = short_repr

    @property
    def total(self) -> NDArray[np.float64]:
        """(N,) the bound of each image."""
        return self.prior + self.kl + self.decoder

    @property
    def standard_error(self) -> NDArray[np.float64]:
        """(N,) of the bound of each image."""
        return np.sqrt(self.variance)


def estimate_image_scores(
    design: PerImageDesign, prior: NDArray[np.float64], tables: Iterable[TermTable]
) -> ImageScores:
    r"""The bound of every image, unbiased, and its variance, unbiased too.

    .. math::
        L(n) &= L_T(n) + \frac{1}{D} \sum_k L_0(n, k)
                + \frac{1}{2S} \sum_{s} (y_{s1} + y_{s2}), \quad y = L_{t-1}(n) / q(t) \\
        V(n) &= \frac{1}{D} \mathrm{Var}_k L_0(n, k) + \frac{1}{4 S^2} \sum_s (y_{s1} - y_{s2})^2

    Args:
        design: the design of the terms.
        prior: (N,) L_T of each image, nats per dimension.
        tables: every term once, in order, in any portions.

    Raises:
        ValueError: a term is missing or is not one of the design.

    Source: Cochran 1977, section 5.4.
    """
    nats, start = np.empty(len(design)), 0
    for table in tables:
        stop = start + len(table)
        expected = design.index(start, stop)
        if len(expected) != len(table) or (table.index.t != expected.t).any():
            raise ValueError("the tables hold terms of another design")
        weight = np.append(1.0, design.density)[table.index.t - 1]
        nats[start:stop] = table.values["nats"] / weight
        start = stop
    if start != len(design):
        raise ValueError("the tables do not hold every term of the design")
    terms = nats.reshape(design.num_images, -1)
    decoder, later = np.split(terms, [design.decoder_draws], axis=1)
    pairs = later.reshape(*design.t.shape)
    of_decoder = decoder.var(axis=1, ddof=1) / design.decoder_draws
    of_strata = np.square(pairs[..., 0] - pairs[..., 1]) / (2 * design.num_strata) ** 2
    variance = of_decoder + of_strata.sum(1)
    over_freedom = np.square(of_decoder).sum() / (design.decoder_draws - 1)
    over_freedom += np.square(of_strata).sum()
    num_images, whole = design.num_images, float(variance.sum())
    freedom = least_freedom_of_sum(whole, float(over_freedom))
    half_width = half_width_of(whole / num_images**2, freedom)
    kl, of_first = later.mean(1), decoder.mean(1)
    return ImageScores(
        prior=prior,
        kl=kl,
        decoder=of_first,
        variance=variance,
        half_width=half_width,
        half_width_population=population_half_width(prior + kl + of_first, half_width),
    )


@dataclasses.dataclass(frozen=True)
class MeanDifference:
    """The difference of two sets' means, as samples of two populations.

    Attributes:
        difference: the second set's mean minus the first's.
        half_width: of its 95 % interval; None where a set has one image.
        p_value: two-sided, of no difference; None where it is unknown.
    """

    difference: float
    half_width: float | None
    p_value: float | None


def mean_difference(first: NDArray[np.float64], second: NDArray[np.float64]) -> MeanDifference:
    r"""Welch's test of two means.

    .. math:: V = \frac{s_1^2}{n_1} + \frac{s_2^2}{n_2}, \quad t = (\bar y_2 - \bar y_1) / \sqrt V

    Unpaired, since the images differ.

    Args:
        first: (n1,) scores.
        second: (n2,) scores.

    Source: Welch 1947.
    """
    difference = float(second.mean() - first.mean())
    if min(len(first), len(second)) < 2:
        return MeanDifference(difference, None, None)
    variances = [float(scores.var(ddof=1)) / len(scores) for scores in (first, second)]
    sizes = (len(first), len(second))
    over_freedom = sum(v**2 / (n - 1) for v, n in zip(variances, sizes, strict=True))
    variance = sum(variances)
    freedom = least_freedom_of_sum(variance, over_freedom)
    p_value = None
    if variance:
        p_value = float(2 * stdtr(freedom, -abs(difference) / math.sqrt(variance)))
    return MeanDifference(difference, half_width_of(variance, freedom), p_value)


@dataclasses.dataclass(frozen=True)
class Auroc:
    """The area under the ROC curve and its 95 % interval.

    Attributes:
        value: the area.
        lower: end of the interval.
        upper: end of the interval.
    """

    value: float
    lower: float
    upper: float


def auroc(first: NDArray[np.float64], second: NDArray[np.float64]) -> Auroc:
    r"""How well a score separates two sets: 0.5 not at all, 1 if the second is always higher.

    .. math:: A = P(y_2 > y_1) + P(y_2 = y_1) / 2

    The interval holds every area :math:`\theta` within 1.96 of its own standard errors from A, so
    that it has a width where A is 0 or 1, too:

    .. math:: V(\theta) = \frac{\theta (1 - \theta)}{n_1 n_2} \Bigl( 1 + N^* \Bigl[
              \frac{1 - \theta}{2 - \theta} + \frac{\theta}{1 + \theta} \Bigr] \Bigr), \quad
              N^* = \frac{n_1 + n_2}{2} - 1

    Args:
        first: (n1,) scores.
        second: (n2,) scores.

    Source: Hanley & McNeil 1982 for the variance; Newcombe 2006, method 5, for the interval.
    """
    sizes, ordered = (len(first), len(second)), np.sort(first)
    below, up_to = (np.searchsorted(ordered, second, side) for side in ("left", "right"))
    value = float((below + up_to).sum()) / 2 / math.prod(sizes)
    normal = quantile(math.inf)

    def excess(area: float) -> float:
        spread = (1 - area) / (2 - area) + area / (1 + area)
        variance = area * (1 - area) * (1 + (sum(sizes) / 2 - 1) * spread) / math.prod(sizes)
        return (value - area) ** 2 - normal**2 * variance

    within = min(max(value, 1e-9), 1 - 1e-9)
    lower = 0.0 if value == 0 else float(brentq(excess, 0, within))
    upper = 1.0 if value == 1 else float(brentq(excess, within, 1))
    return Auroc(value, lower, upper)


def nearest_distance(
    pixels: NDArray[np.uint8], others: NDArray[np.uint8], *, leave_one_out: bool = False
) -> NDArray[np.float64]:
    r"""Distance of every image to the nearest of the others: RMSE of the pixels, on 0..255.

    .. math:: d(n) = \min_m \| x_n - y_m \| / \sqrt D

    It needs no model, and so is a reference for what a model says of two sets. If training and test
    images are from one population, they are as far from each other as training images among
    themselves. Otherwise a gap between the bounds may be due to the images. Whether a model's
    samples are copies takes samples to answer; see `precision_recall` for their nearest images.

    At most `MOST_NEIGHBORS` others count, evenly spaced in the set.

    Args:
        pixels: (N, C, H, W), 0..255.
        others: (M, C, H, W), 0..255.
        leave_one_out: whether both are the same set, where no image is its own neighbor.

    Returns:
        (N,), NaN where there is no other image. Sums of squares are exact: equal images have
        distance 0.
    """
    count = min(len(others), MOST_NEIGHBORS)
    chosen = np.arange(count) * len(others) // count
    squares = np.full(len(pixels), np.inf)
    size = max(1, _BLOCK_BYTES // (8 * math.prod(pixels.shape[1:])))
    for start in range(0, count, size):
        index = chosen[start : start + size]
        reference = others[index].reshape(len(index), -1).astype(np.float64)
        of_reference = np.square(reference).sum(1)
        for part in portions(pixels, len(index)):
            own = pixels[part].reshape(part.stop - part.start, -1).astype(np.float64)
            between = np.square(own).sum(1)[:, None] + of_reference - 2 * own @ reference.T
            if leave_one_out:
                between[np.arange(part.start, part.stop)[:, None] == index] = np.inf
            squares[part] = np.minimum(squares[part], between.min(1))
    distance = np.sqrt(squares / math.prod(pixels.shape[1:]))
    return np.where(np.isinf(distance), np.nan, distance)


def num_copies(pixels: NDArray[np.uint8], others: NDArray[np.uint8]) -> int:
    """Number of (N, C, H, W) images that equal one of (M, C, H, W) others."""

    def digests(images: NDArray[np.uint8]) -> Iterator[bytes]:
        for part in portions(images):
            for image in images[part]:
                yield hashlib.blake2b(image.tobytes(), digest_size=16).digest()

    known = set(digests(others))
    return sum(digest in known for digest in digests(pixels))
