"""What the error of a rotated warp comes from: images and steps together, neither alone.

A row's contribution is that of its image, plus that of its cell of the density, plus what belongs
to neither. Every rotation has every image once and every cell once: the first two do not vary
between rotations. What is left of the rows after both are taken out is the error.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from ddpmbench.likelihood.warp import RotatedWarp

KNOTS = 40
"""The contribution of the step is a line in log t between about this many steps."""
_ROWS_A_KNOT = 5
_IMAGES = 8192  # worked on at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Interaction:
    """The rows of a warp, taken apart.

    Attributes:
        image: (N,) mean over the rotations of each image, without the contribution of the cells.
        spread: (N,) variance among rotations of each image, without that contribution.
        variance: of the mean over all rows.
    """

    image: NDArray[np.float64]
    spread: NDArray[np.float64]
    variance: float


def interaction(design: RotatedWarp, values: NDArray[np.float64]) -> Interaction:
    """Take image and cell out of the rows by least squares.

    Args:
        design: the rows; at least two rotations.
        values: (r, N) what each row contributes, an estimate of its image's total.

    Source: Owen 1992, "A central limit theorem for Latin hypercube sampling", for the variance.
    """
    rotations, num_images = values.shape
    freedom = num_images * (rotations - 1)
    hats = _hats(design, freedom // _ROWS_A_KNOT)
    columns = hats.shape[1]
    gram, moment = np.zeros((columns, columns)), np.zeros(columns)
    parts = [slice(i, i + _IMAGES) for i in range(0, num_images, _IMAGES)]
    for part in parts:
        x = _within(hats[design.cell[:, part]])
        gram += np.einsum("jnk,jnl->kl", x, x, optimize=True)
        moment += np.einsum("jnk,jn->k", x, _within(values[:, part]), optimize=True)
    trend, _, rank, _ = np.linalg.lstsq(gram, moment, rcond=1e-10)
    left = values - (hats @ trend)[design.cell]
    spread = left.var(axis=0, ddof=1) * freedom / (freedom - rank)
    # The images of a rotation share the cells among themselves: N / (N - 1).
    shared = num_images / max(num_images - 1, 1)
    variance = float(spread.sum() / rotations / num_images**2 * shared)
    return Interaction(image=left.mean(0), spread=spread, variance=variance)


def _within(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(values - values.mean(0))


def cell_means(design: RotatedWarp, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) means over each cell of (T - 1,) values that belong to the steps."""
    end = np.append(0.0, np.cumsum(design.density))
    end[-1] = 1.0
    integral = np.append(0.0, np.cumsum(design.density * values))
    edges = np.arange(design.num_images + 1) / design.num_images
    return np.asarray(np.diff(np.interp(edges, end, integral)) * design.num_images)


def _hats(design: RotatedWarp, count: int) -> NDArray[np.float64]:
    """(N, columns) means over each cell of functions that are linear in log t between knots.

    They span all such functions up to a constant.
    """
    inner = min(KNOTS, count - 2)  # with too few rows the steps' contribution counts as error
    last = len(design.density) - 1
    index = np.searchsorted(np.cumsum(design.density), (np.arange(inner) + 0.5) / max(inner, 1))
    knots = np.unique(np.minimum([0, *index, *([last] if inner > 0 else [])], last))
    log_t = np.log(np.arange(2, design.num_timesteps + 1))
    hats = [np.interp(log_t, log_t[knots], row) for row in np.eye(len(knots))[1:]]
    means = [cell_means(design, hat) for hat in hats]
    return np.stack(means, axis=1) if means else np.zeros((design.num_images, 0))
