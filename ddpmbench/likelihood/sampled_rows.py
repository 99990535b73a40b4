"""The rows of a rotated warp, read from tables and put in their places."""

import dataclasses
from collections.abc import Iterable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ddpmbench.likelihood.terms import TermTable
from ddpmbench.likelihood.warp import RotatedWarp

NATS, X_START, EPS = range(3)
"""Which value of a row: its term, the mean squared error of x_start, and of the noise."""


@dataclasses.dataclass(frozen=True, eq=False)
class SampledRows:
    """The values of all rows of a rotated warp.

    Attributes:
        rotations: (3, r, N) `NATS`, `X_START` and `EPS` of each image in each rotation.
        decoder: (3, N) the same at t = 1, mean over the draws.
        decoder_draws: (N,) how many there are.
        decoder_squares: (N,) sum of the squared deviations of the term from its mean.
    """

    rotations: NDArray[np.float64]
    decoder: NDArray[np.float64]
    decoder_draws: NDArray[np.int64]
    decoder_squares: NDArray[np.float64]

    @cached_property
    def decoder_spread(self) -> float:
        """Variance of the decoder's term among the draws of an image, mean over the images."""
        return float(self.decoder_squares.sum() / (self.decoder_draws - 1).sum())

    @property
    def decoder_variance(self) -> float:
        """Of the mean over the images of the decoder's term: its noise."""
        return self.decoder_spread * float((1 / self.decoder_draws).mean()) / len(self.decoder[0])


def sampled_rows(design: RotatedWarp, tables: Iterable[TermTable], *, clip: bool) -> SampledRows:
    """Put the rows in their places.

    Args:
        design: the rows that were computed.
        tables: the terms of every row once, in any order and any portions.
        clip: whether the error of x_start is that of the clipped prediction.

    Raises:
        ValueError: a row is missing, comes twice, or is not one of the design.
    """
    num_images, draws = design.num_images, 1 + int(design.rows(0, len(design)).draw.max())
    rotations = np.full((3, design.rotations, num_images), np.nan)
    decoder = np.full((3, draws, num_images), np.nan)
    seen = 0
    for table in tables:
        image, t, draw = table.rows.image, table.rows.t, table.rows.draw
        first = t == 1
        x_start_mse = table.values["x_start_mse" if clip else "x_start_mse_noclip"]
        values = np.stack([table.values["nats"], x_start_mse, table.values["eps_mse"]])
        later = (draw[~first], image[~first])
        if (design.t[later] != t[~first]).any():
            raise ValueError("the tables hold rows of another design")
        rotations[:, *later] = values[:, ~first]
        decoder[:, draw[first], image[first]] = values[:, first]
        seen += len(table)
    there = ~np.isnan(decoder[NATS])
    count = there.sum(0)
    found = int(count.sum()) + int((~np.isnan(rotations[NATS])).sum())
    if seen != len(design) or found != len(design):
        raise ValueError("the tables do not hold every row of the design exactly once")
    mean = np.where(there, decoder, 0.0).sum(1) / count
    deviation = np.where(there, decoder[NATS] - mean[NATS], 0.0)
    return SampledRows(rotations, mean, count, np.square(deviation).sum(0))
