"""Image sets: named data sets, folders, npz and idx files, all as 8-bit pixels."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ddpmbench.array_store import release
from ddpmbench.errors import InputError
from ddpmbench.inputs.datasets import SPLITS, dataset_specs, read_dataset
from ddpmbench.inputs.file_kinds import IMAGE_SUFFIXES, printable
from ddpmbench.inputs.folder_contents import passed_over_words
from ddpmbench.inputs.idx_files import read_idx
from ddpmbench.inputs.image_files import FolderOptions, ImageData, read_folder, read_npz
from ddpmbench.inputs.refusals import count_to_read, refusal

_HASH_CHUNK = 1 << 24
_MOST_LISTED = 10  # archives in a record


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """Images in a fixed order.

    Attributes:
        pixels: (N, C, H, W) uint8; those of a large set lie in a file (`array_store`).
        ids: (N,) a name for each image.
        source: the data set's name or the path, as given.
        labels: (N,) int64 classes, or None.
        split: the named data set's split, or None.
        skipped: a line for each image of a folder that was passed over.
        classes: the name of each class, where labels are of class folders.
        passed_over: how many other files the folder holds, by kind.
        archives: the names of those that are archives or arrays.

    Raises:
        InputError: if the pixels are not uint8 (N, C, H, W), or ids or labels differ in number.
    """

    pixels: NDArray[np.uint8]
    ids: Sequence[str]
    source: str
    labels: NDArray[np.int64] | None = None
    split: str | None = None
    skipped: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    passed_over: Mapping[str, int] = dataclasses.field(default_factory=dict)
    archives: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is not one id, and one label or none, for each 8-bit image."""
        if self.pixels.dtype != np.uint8 or self.pixels.ndim != 4 or not self.pixels.size:
            raise InputError(
                f"images {self.source}: pixels must be uint8 of shape (N, C, H, W), N >= 1"
            )
        if len(self.ids) != len(self) or (
            self.labels is not None and self.labels.shape != (len(self),)
        ):
            raise InputError(f"images {self.source}: there must be one id and one label an image")

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def name(self) -> str:
        """As `--data` names it."""
        return f"{self.source}:{self.split}" if self.split else self.source

    @property
    def record(self) -> dict[str, Any]:
        """What a result records of it: where it is from, and what was not read as it is."""
        record: dict[str, Any] = {
            "source": self.source,
            "split": self.split,
            "sha256": self.sha256,
        }
        if self.skipped:
            record["skipped"] = len(self.skipped)
        if self.passed_over:
            record["passed_over"] = dict(self.passed_over)
        if self.archives:
            record["archives"] = list(self.archives[:_MOST_LISTED])
        return record

    @property
    def notes(self) -> tuple[str, ...]:
        """A line for each thing worth knowing about how the images were read."""
        lines = []
        if self.passed_over:
            words = passed_over_words(self.passed_over, self.archives)
            lines.append(printable(f"{self.source}: passed over besides the images: {words}"))
        return tuple(lines)

    @cached_property
    def sha256(self) -> str:
        """Of shape and pixels: the same for the same images in any kind of file."""
        digest = hashlib.sha256(str(self.pixels.shape).encode())
        # In chunks, because pixels that are a view must be copied to be hashed.
        step = max(1, _HASH_CHUNK // max(1, self.pixels[:1].nbytes))
        for start in range(0, len(self), step):
            digest.update(np.ascontiguousarray(self.pixels[start : start + step]).data)
            release(self.pixels)
        return digest.hexdigest()

    def subset(self, num_images: int) -> Self:
        """The first images of the set.

        Raises:
            InputError: if there are not that many, or less than one is asked for.
        """
        count = count_to_read(num_images, len(self), self.source)
        return dataclasses.replace(
            self,
            pixels=self.pixels[:count],
            ids=self.ids[:count],
            labels=None if self.labels is None else self.labels[:count],
        )


def load_images(
    spec: str | Path,
    *,
    num_images: int | None = None,
    on_bad: str = "fail",
    option: str = "--data",
) -> ImageSet:
    """Read an image set.

    Args:
        spec: `name:split` of a named data set; or a folder of images, an .npz (arr_0 uint8
            (N, H, W, C) or (N, H, W), arr_1 labels) or an idx file. A `Path` is never a name.
        num_images: how many images, from the first on; None for all.
        on_bad: what a file of a folder that holds no image like the others leads to: "fail", or
            "skip", which passes over it.
        option: how the user named them, for messages.

    Returns:
        The images as they are stored: nothing is resized, nor turned to gray or to color.

    Raises:
        InputError: if there is no such data set or file, it holds something else than 8-bit
            gray or RGB images of one size, or fewer than `num_images` of them.
    """
    if num_images is not None and num_images < 1:
        raise InputError(f"--num-images {num_images}: give a number of at least 1")
    if on_bad not in ("fail", "skip"):
        raise InputError(f"--on-bad {on_bad}: choose fail or skip")
    name, _, split = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    try:
        if split in SPLITS.get(name, ()):
            data = read_dataset(name, split, num_images)
            return ImageSet(data.pixels, data.ids, name, data.labels, split)
        if not str(spec) or not Path(spec).exists():
            raise _unknown(spec, name, option)
        data = _read_path(Path(spec), num_images, FolderOptions(on_bad == "skip"))
    except MemoryError as error:
        raise refusal(
            f"{option} {spec}", "does not fit in memory; take fewer images with --num-images"
        ) from error
    except OSError as error:
        raise refusal(
            f"{option} {spec}", f"cannot be read ({error}); check the file and its permissions"
        ) from error
    return ImageSet(
        data.pixels,
        data.ids,
        str(spec),
        data.labels,
        skipped=data.skipped,
        classes=data.classes,
        passed_over=data.passed_over,
        archives=data.archives,
    )


def _read_path(path: Path, num_images: int | None, options: FolderOptions) -> ImageData:
    if path.is_dir():
        return read_folder(path, num_images, options)
    if path.suffix.lower() == ".npz":
        return read_npz(path, num_images)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise refusal(path, "is a single image; give the folder that holds it")
    return read_idx(path, num_images)


def _unknown(spec: str | Path, name: str, option: str) -> InputError:
    if name in SPLITS:
        choices = ", ".join(f"{name}:{split}" for split in SPLITS[name])
        return refusal(f"{option} {spec}", f"name a split of {name}: {choices}")
    names = ", ".join(dataset_specs())
    return refusal(
        f"{option} {spec}", f"no such file or folder, nor a data set's name; the names are {names}"
    )
