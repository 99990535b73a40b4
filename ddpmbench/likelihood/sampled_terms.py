"""The terms of an importance sample as arrays by replicate and image."""

import dataclasses
from collections.abc import Iterable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ddpmbench.likelihood.designs import ImportanceDesign, decoder_draws
from ddpmbench.likelihood.terms import TermTable, columns_of_bound

NATS, X_START, EPS = range(3)
"""The values of a term: the term itself, the mean squared errors of x_start and of the noise."""


@dataclasses.dataclass(frozen=True, eq=False)
class SampledTerms:
    """The values of all terms of an importance sample.

    Attributes:
        replicates: (3, r, N) `NATS`, `X_START` and `EPS` of each image in each replicate.
        decoder: (3, N) the same at t = 1, mean over the draws.
        decoder_draws: (N,) number of draws at t = 1.
        decoder_squares: (N,) sum of the squared deviations of the decoder term from its mean.
    """

    replicates: NDArray[np.float64]
    decoder: NDArray[np.float64]
    decoder_draws: NDArray[np.int64]
    decoder_squares: NDArray[np.float64]

    @cached_property
    def decoder_spread(self) -> float:
        """Variance of the decoder term among the draws of an image, pooled over the images."""
        return float(self.decoder_squares.sum() / (self.decoder_draws - 1).sum())

    @property
    def decoder_variance(self) -> float:
        """Variance of the mean decoder term over the images, from its noise."""
        return self.decoder_spread * float((1 / self.decoder_draws).mean()) / len(self.decoder[0])


def sampled_terms(
    design: ImportanceDesign, tables: Iterable[TermTable], *, clip: bool
) -> SampledTerms:
    """Sort the terms by replicate and image.

    Args:
        design: of the terms.
        tables: every term once, in any order and portions.
        clip: whether the error of x_start is that of the clipped prediction.

    Raises:
        ValueError: a term is missing, comes twice, or is not one of the design, or there is one
            replicate.
    """
    if design.num_replicates < 2:
        raise ValueError("the error of one replicate is unknown; take two")
    num_images, draws = design.num_images, 1 + decoder_draws(design.num_replicates)
    replicates = np.full((3, design.num_replicates, num_images), np.nan)
    mean, squares = np.zeros((3, num_images)), np.zeros(num_images)
    is_known = np.zeros((draws, num_images), dtype=bool)
    count = np.zeros(num_images, dtype=np.int64)
    length = 0
    for table in tables:
        image, t, draw = table.index.image, table.index.t, table.index.draw
        values = np.stack([table.values[name] for name in columns_of_bound(clip=clip)])
        first = t == 1
        later = (draw[~first], image[~first])
        if (design.t[later] != t[~first]).any() or (draw[first] >= draws).any():
            raise ValueError("the tables hold terms of another design")
        replicates[:, *later] = values[:, ~first]
        for k in np.unique(draw[first]):
            of_draw = np.flatnonzero(first & (draw == k))
            x, of_image = values[:, of_draw], image[of_draw]
            # Welford 1962.
            count[of_image] += 1
            deviation = x - mean[:, of_image]
            mean[:, of_image] += deviation / count[of_image]
            squares[of_image] += deviation[NATS] * (x[NATS] - mean[NATS, of_image])
            is_known[k, of_image] = ~np.isnan(x[NATS])
        length += len(table)
    known = int(is_known.sum()) + int((~np.isnan(replicates[NATS])).sum())
    if length != len(design) or known != len(design):
        raise ValueError("the tables do not hold every term of the design exactly once")
    return SampledTerms(replicates, mean, count, squares)
