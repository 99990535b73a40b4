"""Columns of every pair, summed over the images in one pass."""

import dataclasses
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ddpmbench.likelihood.design import EveryPair
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
        self, design: EveryPair, tables: Iterable[TermTable], columns: Iterable[str]
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
            index = table.rows.t[:: design.draws] - 1
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
