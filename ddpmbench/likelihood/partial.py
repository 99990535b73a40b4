"""What is left of a table of terms: the bound on the images all of whose rows are there.

An image of which a row is gone says little: a sum over the steps lacks one of them. So the result
is that of the others, exactly as if they had been all; of the rows that were computed for every
pair it is the same estimate, of a rotated warp the plain one of Horvitz and Thompson. Which rows
are gone must have nothing to do with their values, as where files are lost.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from ddpmbench.likelihood.bound import BoundEstimate, estimate_bound
from ddpmbench.likelihood.designs import Design, EveryPair, RotatedWarp
from ddpmbench.likelihood.estimator import Interaction, SampledBound, assembled
from ddpmbench.likelihood.per_timestep import StepTable, rate_standard_error
from ddpmbench.likelihood.rate_distortion import Distortion, distortion_of_pairs, distortion_of_rows
from ddpmbench.likelihood.regression import Predictions, log_bins
from ddpmbench.likelihood.sampled_terms import EPS, NATS, X_START, SampledRows
from ddpmbench.likelihood.terms import Rows, TermTable, columns_of_bound

Tables = Callable[[], Iterable[TermTable]]
"""The terms that are left, once each; called more than once."""

_ROWS_AT_ONCE = 2**18


@dataclasses.dataclass(frozen=True, eq=False)
class PartialBound:
    """The bound on some of the images, in nats per dimension.

    Attributes:
        image: (m,) which images, by their index among all, increasing.
        num_rows: how many rows it is from.
        bound: on them. The half width of a rotated warp is NaN where none of them has a second
            draw of the decoder.
        distortion: over them.
    """

    image: NDArray[np.int64]
    num_rows: int
    bound: BoundEstimate | SampledBound
    distortion: Distortion


def partial_bound(
    design: EveryPair | RotatedWarp,
    prior: NDArray[np.float64],
    tables: Tables,
    *,
    clip: bool = True,
) -> PartialBound | None:
    """The bound on the images all of whose rows are left.

    Of a rotated warp every row counts by the inverse of its density. As every image is at a step
    with the probability that the density says, whichever the others are, this is unbiased for
    any images that were not chosen by their terms. Its interval comes from the differences
    between the rotations of each image, as they are: that every cell of the density has its image
    narrows the interval of all the images, and is no longer so of some; leaving it out is
    conservative.

    Args:
        design: all rows that were computed.
        prior: (N,) L_T of each image, nats per dimension.
        tables: the terms of rows of the design, each at most once, in its order.
        clip: whether `x_start_mse` is that of the clipped prediction.

    Returns:
        None where no image has all its rows.

    Source: Horvitz & Thompson 1952.
    """
    expected = _rows_of_images(design, _all_rows(design))
    found = _rows_of_images(design, (table.rows for table in tables()))
    image = np.flatnonzero(found == expected)
    if not len(image):
        return None
    number = np.full(design.num_images, -1)
    number[image] = np.arange(len(image))

    def left() -> Iterator[TermTable]:
        return _renumbered(tables(), number)

    if isinstance(design, EveryPair):
        part = dataclasses.replace(design, num_images=len(image))
        bound: BoundEstimate | SampledBound = estimate_bound(part, prior[image], left(), clip=clip)
        distortion = distortion_of_pairs(part, left(), clip=clip)
    else:
        rows = _placed(design.rotations, len(image), left(), clip=clip)
        bound = _horvitz_thompson(design, image, prior[image], rows)
        distortion = distortion_of_rows(len(image), design.num_timesteps, left(), clip=clip)
    return PartialBound(image, int(expected[image].sum()), bound, distortion)


def _all_rows(design: Design) -> Iterator[Rows]:
    for start in range(0, len(design), _ROWS_AT_ONCE):
        yield design.rows(start, min(start + _ROWS_AT_ONCE, len(design)))


def _rows_of_images(design: EveryPair | RotatedWarp, rows: Iterable[Rows]) -> NDArray[np.int64]:
    count = np.zeros(design.num_images, dtype=np.int64)
    for portion in rows:
        count += np.bincount(portion.image, minlength=design.num_images)
    return count


def _renumbered(tables: Iterable[TermTable], number: NDArray[np.int64]) -> Iterator[TermTable]:
    """The rows of the images that have a number, under that number."""
    for table in tables:
        image = number[table.rows.image]
        kept = image >= 0
        rows = Rows(image[kept], table.rows.t[kept], table.rows.draw[kept])
        yield TermTable(rows, {name: values[kept] for name, values in table.values.items()})


def _placed(
    num_rotations: int, num_images: int, tables: Iterable[TermTable], *, clip: bool
) -> SampledRows:
    """The rows in their places; all of every image are there."""
    rotations = np.empty((3, num_rotations, num_images))
    images, decoders = [], []
    for table in tables:
        values = np.stack([table.values[name] for name in columns_of_bound(clip=clip)])
        image, first = table.rows.image, table.rows.t == 1
        rotations[:, table.rows.draw[~first], image[~first]] = values[:, ~first]
        images.append(image[first])
        decoders.append(values[:, first])
    image, decoder = np.concatenate(images), np.concatenate(decoders, axis=1)
    count = np.bincount(image, minlength=num_images)
    mean = np.empty((3, num_images))
    for which in (NATS, X_START, EPS):
        mean[which] = np.bincount(image, weights=decoder[which], minlength=num_images) / count
    squares = np.full(num_images, np.nan)  # the noise of single draws cannot be known
    if (count > 1).any():
        deviation = decoder[NATS] - mean[NATS, image]
        squares[:] = np.bincount(image, weights=np.square(deviation), minlength=num_images)
    return SampledRows(rotations, mean, count, squares)


def _horvitz_thompson(
    design: RotatedWarp,
    image: NDArray[np.int64],
    prior: NDArray[np.float64],
    rows: SampledRows,
) -> SampledBound:
    rotations, num_images = design.rotations, len(image)
    t = design.t[:, image]
    values = rows.rotations[NATS] / design.density[t - 2]
    spread = values.var(axis=0, ddof=1)
    # The images of a rotation share the cells among themselves: N / (N - 1) at most.
    shared = design.num_images / max(design.num_images - 1, 1)
    parts = Interaction(
        image=values.mean(0),
        spread=spread,
        cell=np.zeros(design.num_images),
        mean=float(values.mean()),
        variance=float(spread.sum() / rotations / num_images**2 * shared),
    )
    nothing = np.zeros((rotations, num_images))
    return assembled(
        prior,
        rows,
        parts,
        steps=_steps(design, t, rows),
        rate_error=rate_standard_error(design.num_timesteps, np.arange(rotations), t, values),
        predictions=Predictions(nothing, nothing, np.zeros((rotations, len(design.density)))),
    )


def _steps(design: RotatedWarp, t: NDArray[np.int64], rows: SampledRows) -> StepTable:
    """Each step from its rows: how many of some images' fall on it is left to chance."""
    step, size = t.ravel() - 2, len(design.density)
    count = np.bincount(step, minlength=size)
    nats, x_start, eps = (
        np.bincount(step, weights=rows.rotations[which].ravel(), minlength=size)
        for which in (NATS, X_START, EPS)
    )
    # Over the density, the rows of a bin are alike; few steps have rows enough.
    bins = log_bins(design.num_timesteps)
    square = np.square(rows.rotations[NATS].ravel() / design.density[step])
    of_bin = np.bincount(bins[step], weights=square, minlength=bins[-1] + 1)
    in_bin = np.bincount(bins[step], minlength=bins[-1] + 1)
    of_bin = np.where(in_bin > 0, of_bin / np.maximum(in_bin, 1), square.mean())
    first, rows_or_nan = rows.decoder.mean(1), np.where(count > 0, count, np.nan)
    return StepTable(
        term=np.append(first[NATS], nats / (t.size * design.density)),
        standard_error=np.append(
            np.sqrt(rows.decoder_variance), np.sqrt(design.density * of_bin[bins] / t.size)
        ),
        x_start_mse=np.append(first[X_START], x_start / rows_or_nan),
        eps_mse=np.append(first[EPS], eps / rows_or_nan),
        num_evaluations=np.append(rows.decoder_draws.sum(), count),
    )
