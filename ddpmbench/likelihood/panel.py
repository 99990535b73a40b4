"""What the error of a rotated warp comes from: images and steps together, neither alone.

A row's contribution is that of its image, plus that of its cell of the density, plus what belongs
to neither. Every rotation has every image once and every cell once: the first two do not vary
between rotations. What is left of the rows after both are taken out is the error.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from ddpmbench.likelihood.blocks import image_blocks
from ddpmbench.likelihood.warp import RotatedWarp

KNOTS = 40
"""The contribution of the step is a line in log t between about this many steps."""
_ROWS_A_KNOT = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Interaction:
    """The rows of a warp, taken apart.

    Attributes:
        image: (N,) mean over the rotations of each image, without the contribution of the cells.
        spread: (N,) variance among rotations of each image, without that contribution.
        cell: (N,) contribution of each cell, up to a constant.
        mean: over all rows.
        variance: of that mean.
    """

    image: NDArray[np.float64]
    spread: NDArray[np.float64]
    cell: NDArray[np.float64]
    mean: float
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
    of_cells = CellMeans(design, hats)
    columns = hats.shape[1]
    gram, moment = np.zeros((columns, columns)), np.zeros(columns)
    for part in image_blocks(num_images, rotations):
        x = _within(of_cells.at(design.cell[:, part]))
        gram += np.einsum("jnk,jnl->kl", x, x, optimize=True)
        moment += np.einsum("jnk,jn->k", x, _within(values[:, part]), optimize=True)
    trend, _, rank, _ = np.linalg.lstsq(gram, moment, rcond=1e-10)
    cell = cell_means(design, hats @ trend)
    image, spread = np.empty(num_images), np.empty(num_images)
    for part in image_blocks(num_images, rotations):
        left = values[:, part] - cell[design.cell[:, part]]
        image[part] = left.mean(0)
        spread[part] = left.var(axis=0, ddof=1) * freedom / (freedom - rank)
    # The images of a rotation share the cells among themselves: N / (N - 1).
    shared = num_images / max(num_images - 1, 1)
    return Interaction(
        image=image,
        spread=spread,
        cell=cell,
        mean=float(values.mean()),
        variance=float(spread.sum() / rotations / num_images**2 * shared),
    )


def _within(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(values - values.mean(0))


class CellMeans:
    """Means over cells of the density, of values that belong to the steps."""

    def __init__(self, design: RotatedWarp, values: NDArray[np.float64]) -> None:
        """Integrate the values over the density.

        Args:
            design: its density divides [0, 1] among the steps, its images divide it into cells.
            values: (T - 1, ...) at t = 2..T.
        """
        self._num_cells, self._values = design.num_images, values
        self._start = np.append(0.0, np.cumsum(design.density)[:-1])  # (T - 1,) of each step
        weighted = (design.density * values.T).T
        before = np.zeros_like(weighted[:1])
        self._integral = np.concatenate([before, np.cumsum(weighted, axis=0)[:-1]])

    def at(self, cell: NDArray[np.int64]) -> NDArray[np.float64]:
        """The means over some of the N cells; as many axes of them as `cell` has come first."""
        return np.asarray((self._up_to(cell + 1) - self._up_to(cell)) * self._num_cells)

    def _up_to(self, edge: NDArray[np.int64]) -> NDArray[np.float64]:
        place = edge / self._num_cells
        step = np.searchsorted(self._start, place, side="right") - 1
        within = place - self._start[step]
        within = within.reshape(within.shape + (1,) * (self._values.ndim - 1))
        return np.asarray(self._integral[step] + self._values[step] * within)


def cell_means(design: RotatedWarp, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) means over each cell of (T - 1,) values that belong to the steps."""
    means, of_cells = np.empty(design.num_images), CellMeans(design, values)
    for part in image_blocks(design.num_images):
        means[part] = of_cells.at(np.arange(part.start, part.stop))
    return means


def _hats(design: RotatedWarp, count: int) -> NDArray[np.float64]:
    """(T - 1, columns) functions that are linear in log t between knots.

    They span all such functions up to a constant.
    """
    inner = min(KNOTS, count - 2)  # with too few rows the steps' contribution counts as error
    last = len(design.density) - 1
    index = np.searchsorted(np.cumsum(design.density), (np.arange(inner) + 0.5) / max(inner, 1))
    knots = np.unique(np.minimum([0, *index, *([last] if inner > 0 else [])], last))
    log_t = np.log(np.arange(2, design.num_timesteps + 1))
    hats = [np.interp(log_t, log_t[knots], row) for row in np.eye(len(knots))[1:]]
    return np.stack(hats, axis=1) if hats else np.zeros((len(log_t), 0))
