"""The bound from the rows of a rotated warp: two estimators, each with its two intervals."""

import dataclasses
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ddpmbench.likelihood.blocks import image_blocks
from ddpmbench.likelihood.panel import CellMeans, Interaction, interaction
from ddpmbench.likelihood.regression import FeatureTable, Predictions, no_predictions, predict
from ddpmbench.likelihood.sampled_bound import SampledBound, assembled
from ddpmbench.likelihood.sampled_rows import NATS, SampledRows, sampled_rows
from ddpmbench.likelihood.sampled_steps import rate_standard_error, step_table
from ddpmbench.likelihood.terms import TermTable
from ddpmbench.likelihood.warp import RotatedWarp


def horvitz_thompson(
    design: RotatedWarp,
    prior: NDArray[np.float64],
    tables: Iterable[TermTable],
    *,
    clip: bool = True,
) -> SampledBound:
    """The bound with every row counted by the inverse of its density.

    Args:
        design: the rows that were computed; at least two rotations.
        prior: (N,) L_T of each image, nats per dimension.
        tables: the terms of every row once, in any order and any portions.
        clip: whether `x_start_mse` is that of the clipped prediction.

    Returns:
        The estimate. A step at which no row fell has a term of 0, as it must for the terms to be
        unbiased and to sum to the bound, and errors of NaN.

    Raises:
        ValueError: a row is missing or comes twice, or there is a single rotation.

    Source: Horvitz & Thompson 1952.
    """
    rows = sampled_rows(design, tables, clip=clip)
    return _estimate(design, prior, rows, no_predictions(design), None)


def greg(
    design: RotatedWarp,
    prior: NDArray[np.float64],
    tables: Iterable[TermTable],
    features: FeatureTable,
    *,
    clip: bool = True,
) -> SampledBound:
    """The generalized regression estimator: predictions everywhere, corrected at the rows.

    Args:
        design: the rows that were computed; at least two rotations.
        prior: (N,) L_T of each image, nats per dimension.
        tables: the terms of every row once, in any order and any portions.
        features: of the same images and rows. They bear on the width of the intervals only.
        clip: whether `x_start_mse` is that of the clipped prediction.

    Returns:
        The estimate. A step at which no row fell has its prediction.

    Raises:
        ValueError: a row is missing or comes twice, or there is a single rotation.

    Source: Saerndal, Swensson & Wretman 1992, chapter 6.
    """
    _check(design)
    rows = sampled_rows(design, tables, clip=clip)
    predictions = predict(design, rows.rotations[NATS], features)
    return _estimate(design, prior, rows, predictions, features)


def with_predictions(
    design: RotatedWarp,
    prior: NDArray[np.float64],
    tables: Iterable[TermTable],
    predictions: Predictions,
    *,
    clip: bool = True,
) -> SampledBound:
    """The estimate of `greg` with predictions that are at hand.

    All of it is linear in terms and predictions: from the differences between two models' terms,
    and between the predictions of these, it is the difference between their bounds.

    Args:
        design: the rows; at least two rotations.
        prior: (N,) L_T of each image, nats per dimension.
        tables: the terms of every row once, in any order and any portions.
        predictions: of the same rows; those of a rotation must not depend on its terms.
        clip: whether `x_start_mse` is that of the clipped prediction.

    Raises:
        ValueError: a row is missing or comes twice, or there is a single rotation.

    Source: Saerndal, Swensson & Wretman 1992, chapter 6.
    """
    rows = sampled_rows(design, tables, clip=clip)
    return _estimate(design, prior, rows, predictions, None)


def _check(design: RotatedWarp) -> None:
    if design.rotations < 2:
        raise ValueError("the error of a single rotation cannot be known; take two")


def _estimate(
    design: RotatedWarp,
    prior: NDArray[np.float64],
    rows: SampledRows,
    predictions: Predictions,
    features: FeatureTable | None,
) -> SampledBound:
    _check(design)
    part = contributions(design, rows, predictions)
    parts = interaction(design, part.totals)
    rate_error = rate_standard_error(
        design.num_timesteps,
        np.arange(design.rotations),
        design.t,
        without_cells(design, part.rows, parts),
    )
    return assembled(
        prior,
        rows,
        parts,
        steps=step_table(design, rows, predictions, features),
        rate_error=rate_error,
        predictions=predictions,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Contributions:
    """What every row contributes to the sum of the terms over t = 2..T.

    Attributes:
        predicted: (r, N) the prediction of that sum.
        rows: (r, N) what depends on which row it is.
    """

    predicted: NDArray[np.float64]
    rows: NDArray[np.float64]

    @property
    def totals(self) -> NDArray[np.float64]:
        """(r, N) an estimate of the sum of its image; their mean is that of the bound."""
        return np.asarray(self.predicted + self.rows)


def contributions(
    design: RotatedWarp, rows: SampledRows, predictions: Predictions
) -> Contributions:
    """What every row contributes.

    What the predictions of a rotation have in common in a cell is no error, because every cell
    has its row; but it differs between rotations, and is counted with the row.
    """
    of_rows = np.empty(design.t.shape)
    for j, mean in enumerate(predictions.steps):
        common = CellMeans(design, mean / design.density)
        for part in image_blocks(design.num_images):
            left = rows.rotations[NATS, j, part] - predictions.rows[j, part]
            weighted = left / design.density[design.t[j, part] - 2]
            of_rows[j, part] = weighted + common.at(design.cell[j, part]) - mean.sum()
    return Contributions(predictions.totals, of_rows)


def without_cells(
    design: RotatedWarp, rows: NDArray[np.float64], parts: Interaction
) -> NDArray[np.float64]:
    """(r, N) contributions without those of their cells, 0 in the mean."""
    left = np.empty_like(rows)
    for j, of_rotation in enumerate(rows):
        np.subtract(of_rotation, parts.cell[design.cell[j]], out=left[j])
    left -= left.mean()
    return left
