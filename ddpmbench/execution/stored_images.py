"""The images in a run folder, which figures are drawn from without the network."""

import dataclasses
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from ddpmbench.checksums import DamageError, read_npz, reading, write_npz
from ddpmbench.diffusion.data_range import DataRange
from ddpmbench.errors import InputError
from ddpmbench.files import replacing, writing_to
from ddpmbench.records import short_repr
from ddpmbench.samples.progressive import Interpolation, ProgressiveDecoding, ProgressiveGeneration

PICTURES = "pictures.npz"

Record = TypeVar("Record", ProgressiveDecoding, ProgressiveGeneration, Interpolation)


class DamagedPicturesError(InputError):
    """The file of a run's pictures is damaged."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """The pictures of a run; None for missing ones.

    Attributes:
        decoding: what a receiver holds and shows.
        generation: intermediate states of samples.
        interpolation: interpolations between images.
    """

    decoding: ProgressiveDecoding | None = None
    generation: ProgressiveGeneration | None = None
    interpolation: Interpolation | None = None

    __repr__ = short_repr

    @property
    def _steps(self) -> set[int]:
        """T of each; those of one run agree."""
        records = (self.decoding, self.generation, self.interpolation)
        return {record.num_timesteps for record in records if record is not None}

    def with_those_of(self, other: "Pictures") -> "Pictures":
        """The pictures of both; the other's where both have them."""
        return Pictures(
            other.decoding or self.decoding,
            other.generation or self.generation,
            other.interpolation or self.interpolation,
        )

    @classmethod
    def read(cls, folder: Path, num_timesteps: int) -> "Pictures":
        """Read the pictures in a run folder; all None where it has none.

        Args:
            folder: the run folder.
            num_timesteps: T of the run.

        Raises:
            InputError: the file is damaged, or belongs to another run.
        """
        path = folder / PICTURES
        if not path.exists():
            return cls()
        try:
            arrays = read_npz(path)
            pictures = cls(
                _record(ProgressiveDecoding, "decoding", arrays),
                _record(ProgressiveGeneration, "generation", arrays),
                _record(Interpolation, "interpolation", arrays),
            )
        except (DamageError, KeyError) as error:
            raise DamagedPicturesError(
                f"{path}: damaged; run rd with the options of its folder again to compute it again"
            ) from error
        if not pictures._steps <= {num_timesteps}:
            raise InputError(f"{path}: is that of another run; delete it")
        return pictures

    def write(self, folder: Path) -> None:
        """Write them into a run folder, atomically, replacing earlier ones.

        Raises:
            InputError: the folder cannot be written.
        """
        arrays: dict[str, Any] = {}
        for kind in dataclasses.fields(self):
            record = getattr(self, kind.name)
            for field in dataclasses.fields(record) if record is not None else ():
                arrays[f"{kind.name}.{field.name}"] = getattr(record, field.name)
        with writing_to(folder), replacing(folder / PICTURES) as temporary:
            write_npz(temporary, arrays, compressed=True)


def _record(kind: type[Record], name: str, arrays: dict[str, Any]) -> Record | None:
    """The record of this name; None where no array is one of its fields."""
    prefix = f"{name}."
    if not any(stored.startswith(prefix) for stored in arrays):
        return None
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        value = arrays[prefix + field.name]
        fields[field.name] = value if value.ndim else int(value)
    return kind(**fields)


EXTREMES, NEAREST = "extremes.npz", "nearest.npz"
SHOWN = 8
"""The most images shown with the shortest codes, and with the longest."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Arrays:
    """Arrays in a file of their own."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file of `write`.

        Raises:
            InputError: the file does not exist, or is damaged.
        """
        with reading(path):
            return cls(**read_npz(path, [field.name for field in dataclasses.fields(cls)]))

    def write(self, path: Path) -> None:
        """Write the file that `read` reads."""
        write_npz(path, dataclasses.asdict(self), compressed=True)


@dataclasses.dataclass(frozen=True, eq=False)
class Extremes(_Arrays):
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
        """The extremes of an image set.

        Args:
            values: (N,) code length of each image, NaN where unknown; of equal ones the first
                counts as shorter.
            pixels: (N, C, H, W).
        """
        order = np.argsort(values, kind="stable")[: int(np.isfinite(values).sum())]
        best = order[: min(SHOWN, len(order) // 2)]
        worst = order[::-1][: len(best)]
        return cls(best, pixels[np.array(best)], worst, pixels[np.array(worst)])

    def shown(self, data_range: DataRange) -> Self:
        """The same images in the levels of a model."""
        best, worst = map(data_range.shown, (self.best_pixels, self.worst_pixels))
        return dataclasses.replace(self, best_pixels=best, worst_pixels=worst)

    @property
    def ends(self) -> list[tuple[str, NDArray[np.int64], NDArray[np.uint8]]]:
        """Name, indices and pixels of both ends."""
        return [
            ("fewest", self.best_index, self.best_pixels),
            ("most", self.worst_index, self.worst_pixels),
        ]


def read_extremes(path: Path) -> Extremes | None:
    """The images with the fewest and the most bits; None if none can be drawn.

    Raises:
        InputError: it is damaged.
    """
    if not path.exists():
        return None
    extremes = Extremes.read(path)
    # A single image has no extremes, and images with other channels cannot be drawn.
    is_shown = len(extremes.best_index) > 0 and extremes.best_pixels.shape[1] in (1, 3)
    return extremes if is_shown else None


@dataclasses.dataclass(frozen=True, eq=False)
class NearestImages(_Arrays):
    """Samples and the reference images nearest to them in feature space.

    Attributes:
        samples: (K, C, H, W) uint8.
        sample: (K,) int64, indices of the samples.
        references: (K, M, C, H, W) uint8, the nearest first.
        reference_id: (K, M) str.
        distance: (K, M) float64, in feature space.
    """

    samples: NDArray[np.uint8]
    sample: NDArray[np.int64]
    references: NDArray[np.uint8]
    reference_id: NDArray[np.str_]
    distance: NDArray[np.float64]
