"""The images that a model predicts best and worst, kept with a run so that they can be shown."""

import dataclasses
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ddpmbench.checksums import DamageError, read_npz, write_npz
from ddpmbench.errors import InputError
from ddpmbench.process.data_range import DataRange

EXTREMES = "extremes.npz"
SHOWN = 8
"""At most so many of the best, and of the worst."""


@dataclasses.dataclass(frozen=True, eq=False)
class Extremes:
    """The images with the shortest and the longest codes.

    Attributes:
        best_index: (K,) int64 index in the image set, the shortest code first.
        best_pixels: (K, C, H, W) uint8.
        worst_index: (K,) int64, the longest code first.
        worst_pixels: (K, C, H, W) uint8.
    """

    best_index: NDArray[np.int64]
    best_pixels: NDArray[np.uint8]
    worst_index: NDArray[np.int64]
    worst_pixels: NDArray[np.uint8]

    @classmethod
    def of(cls, values: NDArray[np.float64], pixels: NDArray[np.uint8]) -> Self:
        """Those of an image set.

        Args:
            values: (N,) what each image costs; of equal ones the first counts as shorter.
            pixels: (N, C, H, W).
        """
        order = np.argsort(values, kind="stable")
        best = order[: min(SHOWN, len(order) // 2)]
        worst = order[::-1][: len(best)]
        return cls(best, pixels[np.array(best)], worst, pixels[np.array(worst)])

    def shown(self, data_range: DataRange) -> Self:
        """The same images in the levels of a model."""
        best, worst = map(data_range.shown, (self.best_pixels, self.worst_pixels))
        return dataclasses.replace(self, best_pixels=best, worst_pixels=worst)

    @classmethod
    def read(cls, path: Path) -> Self:
        """What `write` wrote.

        Raises:
            InputError: it is not there, or damaged.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        try:
            found = cls(**read_npz(path, names))
        except DamageError as error:
            raise _lost(path) from error
        sizes = {len(getattr(found, name)) for name in names}
        pixels = (found.best_pixels, found.worst_pixels)
        if len(sizes) > 1 or any(of.dtype != np.uint8 or of.ndim != 4 for of in pixels):
            raise _lost(path)
        return found

    def write(self, path: Path) -> None:
        """Write what `read` reads."""
        write_npz(path, dataclasses.asdict(self), compressed=True)


def _lost(path: Path) -> InputError:
    return InputError(f"{path}: missing or damaged; run the command of its folder again")
