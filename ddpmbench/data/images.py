"""Image sets: named data sets, folders, npz, npy and idx files, and arrays, as 8-bit pixels."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ddpmbench.data.array_files import (
    IDX_SPLITS,
    chosen_idx,
    is_idx_of_images,
    is_npz,
    read_idx,
    read_npy,
    read_npz,
)
from ddpmbench.data.arrays import (
    CONVERSIONS,
    SOURCE,
    Arrays,
    ImageData,
    converted,
    packed,
    padded,
    read_array,
    shape_words,
)
from ddpmbench.data.datasets import SPLITS, dataset_specs, read_dataset
from ddpmbench.data.file_kinds import IMAGE_SUFFIXES, first_bytes, kind_of, refuse_unread
from ddpmbench.data.folders import FolderContents, FolderOptions, passed_over_words, read_folder
from ddpmbench.data.pixel_store import release
from ddpmbench.diffusion.data_range import UNIT_RANGE, DataRange
from ddpmbench.errors import (
    InputError,
    count_to_read,
    listed,
    one_of,
    printable,
    refusal,
    whole_number,
)
from ddpmbench.records import short_repr

_HASH_CHUNK = 1 << 24
_MOST_LISTED = 10  # names in a record or a line


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """Images in a fixed order.

    Attributes:
        pixels: (N, C, H, W) uint8, 0..255; memory-mapped for a large set (`pixel_store`). Flat
            where images differ in shape, one after another: see `shapes` and `part`.
        ids: (N,) a name for each image.
        source: the data set's name or the path, as given.
        labels: (N,) int64 classes, or None.
        split: the named data set's split, or None.
        skipped: a line for each image of a folder that was skipped.
        classes: the name of each class, where labels come from class folders.
        class_order_open: whether the classes are numbers whose order differs from that of their
            text.
        passed_over: number of other files in the folder, by kind.
        archives: names of archives and arrays in the folder.
        convert: "rgb" or "gray" where the images were converted, or None; see `CONVERSIONS`.
        padded_from: (H, W) before padding with black, or None.
        shapes: (N, 3), C, H, W of each image where they differ; else None.

    Raises:
        InputError: the pixels are not uint8 of these shapes, or ids or labels differ in number.
    """

    pixels: NDArray[np.uint8]
    ids: Sequence[str]
    source: str
    labels: NDArray[np.int64] | None = None
    split: str | None = None
    skipped: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    class_order_open: bool = False
    passed_over: Mapping[str, int] = dataclasses.field(default_factory=dict)
    archives: tuple[str, ...] = ()
    convert: str | None = None
    padded_from: tuple[int, ...] | None = None
    shapes: NDArray[np.int64] | None = None

    __repr__ = short_repr

    def __post_init__(self) -> None:
        """Check pixels, ids and labels."""
        is_packed = self.shapes is not None and self.pixels.shape == tuple(self._ends[-1:])
        has_shapes = self.pixels.ndim == 4 if self.shapes is None else is_packed
        if self.pixels.dtype != np.uint8 or not has_shapes or not self.pixels.size:
            raise InputError(
                f"images {self.source}: pixels must be uint8 of shape (N, C, H, W), N >= 1"
            )
        if len(self.ids) != len(self) or (
            self.labels is not None and self.labels.shape != (len(self),)
        ):
            raise InputError(f"images {self.source}: there must be one id and one label an image")

    def __len__(self) -> int:
        return len(self.pixels if self.shapes is None else self.shapes)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """(C, H, W) of every image; None where they differ."""
        return self.pixels.shape[1:] if self.shapes is None else None

    @property
    def channels(self) -> frozenset[int]:
        """The numbers of channels of the images."""
        return frozenset([self.pixels.shape[1]] if self.shapes is None else self.shapes[:, 0])

    @property
    def shape_words(self) -> str:
        """Sizes and colors of the images, in words."""
        return shape_words([self.pixels.shape[1:]] if self.shapes is None else self.shapes)

    def part(self, start: int, stop: int) -> "NDArray[np.uint8] | list[NDArray[np.uint8]]":
        """Images start..stop - 1: (B, C, H, W), or a list of (C, H, W) where shapes differ."""
        if self.shapes is None:
            return self.pixels[start:stop]
        shapes, ends = self.shapes[start:stop], self._ends[start:stop]
        return [
            self.pixels[end - shape.prod() : end].reshape(shape)
            for shape, end in zip(shapes, ends, strict=True)
        ]

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        """(N,) the end of each image in a packed set."""
        assert self.shapes is not None
        ends: NDArray[np.int64] = self.shapes.prod(axis=1).cumsum()
        return ends

    @property
    def name(self) -> str:
        """SOURCE:SPLIT of a named data set, else its source."""
        return f"{self.source}:{self.split}" if self.split else self.source

    @property
    def record(self) -> dict[str, Any]:
        """The record of the set in a result: the source, and what was skipped or converted."""
        padding = shapes = None
        if self.padded_from is not None:
            sides = {"from": list(self.padded_from), "to": list(self.pixels.shape[2:])}
            padding = {**sides, "value": 0}
        if self.shapes is not None:
            shapes = len(np.unique(self.shapes, axis=0))
        optional = {
            "skipped": len(self.skipped),
            "passed_over": dict(self.passed_over),
            "archives": list(self.archives[:_MOST_LISTED]),
            "convert": self.convert,
            "padding": padding,
            "shapes": shapes,
        }
        return {
            "source": self.source,
            "split": self.split,
            "sha256": self.sha256,
            **{name: value for name, value in optional.items() if value},
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """A line for each conversion, and one for files that were passed over."""
        lines = []
        if self.passed_over:
            words = passed_over_words(self.passed_over, self.archives)
            lines.append(printable(f"{self.source}: passed over besides the images: {words}"))
        if self.convert is not None:
            lines.append(f"`convert={self.convert}`: {CONVERSIONS[self.convert]}")
        if self.padded_from is not None:
            height, width = self.padded_from
            side = self.pixels.shape[-1]
            lines.append(
                f"`pad={side}`: the {width}x{height} images stand in {side}x{side} of black; bits "
                "are per dimension of the padded images"
            )
        if self.shapes is not None:
            words = f"images are {self.shape_words}; each is resized by the protocol alone"
            words += ", gray is repeated to RGB" if 1 in self.shapes[:, 0] else ""
            lines.append(printable(f"{self.source}: {words}"))
        return tuple(lines)

    def check_classes(self, num_classes: int, *, null_class: int | None = None) -> None:
        """Check that the labels are classes of a checkpoint.

        Args:
            num_classes: number of classes of the checkpoint.
            null_class: the label for no class, or None.

        Raises:
            InputError: there are no labels, or some are out of range; or class folders differ in
                number, or are numbers whose order differs from that of their text.
        """
        labels, classes = self.labels, self.classes
        known = f"classes 0..{num_classes - 1}"
        known += "" if null_class is None else f", and {null_class} for none"
        problem = None
        if labels is None:
            problem = (
                f"has no labels, but the checkpoint is conditioned on {num_classes} classes; put "
                "the images into a folder a class, add arr_1 to an npz, or name one with `label=N` "
                f"(it has {known})"
            )
        elif classes and len(classes) != num_classes:
            problem = (
                f"has {len(classes)} class folders ({listed(classes)}), but the checkpoint is "
                f"conditioned on {num_classes} classes; name all {num_classes} in their order with "
                "`class_names`, or one for all images with `label`"
            )
        elif self.class_order_open:
            problem = (
                "its class folders are numbers, and sorted as text they are in another order; name "
                "them in the order of the checkpoint's classes with `class_names`"
            )
        elif not (np.isin(labels, range(num_classes)) | (labels == null_class)).all():
            problem = f"labels {labels.min()}..{labels.max()} do not fit the checkpoint's {known}"
        if problem is not None:
            raise refusal(self.source, problem)

    @property
    def skipped_note(self) -> str | None:
        """A line about skipped images; None if there are none."""
        if not self.skipped:
            return None
        return (
            f"{len(self.skipped)} files of {self.name} were passed over; the first: "
            f"{self.skipped[0]}"
        )

    @property
    def class_note(self) -> str:
        """The class of each class folder, in a line."""
        pairs = [f"{name} = {number}" for number, name in enumerate(self.classes)]
        shown = pairs if len(pairs) <= _MOST_LISTED else [*pairs[:3], "...", pairs[-1]]
        return printable(f"{self.source}: classes by folder: {', '.join(shown)}")

    @cached_property
    def sha256(self) -> str:
        """Digest of shapes and pixels, independent of the kind of file."""
        shapes = self.pixels.shape if self.shapes is None else self.shapes.tolist()
        digest = hashlib.sha256(str(shapes).encode())
        # In chunks, because pixels that are a view must be copied for hashing.
        step = max(1, _HASH_CHUNK // max(1, self.pixels[:1].nbytes))
        for start in range(0, len(self.pixels), step):
            digest.update(np.ascontiguousarray(self.pixels[start : start + step]).data)
            release(self.pixels)
        return digest.hexdigest()

    def subset(self, num_images: int) -> Self:
        """The first images of the set.

        Raises:
            InputError: `num_images` lies outside 1..N.
        """
        count = count_to_read(num_images, len(self), self.source)
        pixels, shapes = self.pixels[:count], None
        if self.shapes is not None:
            pixels, shapes = packed(self.part(0, count))
        return dataclasses.replace(
            self,
            pixels=pixels,
            shapes=shapes,
            ids=self.ids[:count],
            labels=None if self.labels is None else self.labels[:count],
        )


ImageSource: TypeAlias = "ImageSet | str | Path | Arrays"
"""Sources that `load_images` accepts."""


def load_images(
    source: ImageSource,
    *,
    num_images: int | None = None,
    on_bad: str = "fail",
    convert: str | None = None,
    pad: int | None = None,
    class_names: Sequence[str] | None = None,
    any_size: bool = False,
) -> ImageSet:
    """Read an image set.

    Args:
        source: `name:split` of a named data set; a folder of images, an .npz (arr_0 uint8
            (N, H, W, C) or (N, H, W), arr_1 labels), an .npy or an idx file; or images in memory,
            see `arrays.read_array`. A `Path` is never a name. An `ImageSet` is converted and
            padded only.
        num_images: number of images to read, from the first on; None for all.
        on_bad: "fail" at a file in a folder that is not an image like the others, or "skip" it.
        convert: "rgb" repeats gray to RGB, "gray" takes the luma of color; None for neither.
        pad: height and width to which images are padded with black on all sides; None for none.
        class_names: the class folders in the order of the checkpoint's classes; None for sorted.
        any_size: accept images of several sizes, and gray among RGB, as `fid` does.

    Returns:
        The images, uint8 (N, C, H, W) in 0..255; nothing is resized.

    Raises:
        InputError: the data set or file does not exist, holds anything but 8-bit gray or RGB images
            of one size (unless `any_size`), or fewer than `num_images` of them.
    """
    if num_images is not None:
        num_images = whole_number("num_images", num_images, 1)
    one_of("on_bad", on_bad, ("fail", "skip"))
    if convert is not None:
        one_of("convert", convert, CONVERSIONS)
    names = None if class_names is None else tuple(class_names)
    options = FolderOptions(on_bad == "skip", convert, names, any_size)
    if isinstance(source, ImageSet):
        if names is not None or on_bad != "fail":
            given = "`on_bad`" if names is None else "`class_names`"
            raise refusal(given, f"{source.name} is read already; read its folder with it")
        images = source if num_images is None else source.subset(num_images)
    else:
        images = _read(source, num_images, options)
    if names is not None and not images.classes:
        raise refusal("`class_names`", f"{images.name} has no class folders; leave it out")
    if images.shapes is not None and (pad is not None or not any_size):
        raise refusal(
            images.name,
            f"images are {images.shape_words}, which only fid takes; read the folder without "
            'any_size, with on_bad="skip" to pass over those that differ from most',
        )
    if convert is not None:
        images = _converted(images, convert)
    if pad is not None:
        pad = whole_number("pad", pad, 1)
        images = dataclasses.replace(
            images,
            pixels=padded(images.pixels, pad, images.name),
            padded_from=images.padded_from or images.pixels.shape[2:],
        )
    return images


def _converted(images: ImageSet, to: str) -> ImageSet:
    if images.shapes is None:
        pixels, shapes = converted(images.pixels, to), None
    else:
        parts = images.part(0, len(images))
        pixels, shapes = packed(converted(image[None], to)[0] for image in parts)
    return dataclasses.replace(images, pixels=pixels, shapes=shapes, convert=to)


def _read(
    source: "str | Path | Arrays", num_images: int | None, options: FolderOptions
) -> ImageSet:
    if not isinstance(source, str | Path):
        return ImageSet(**vars(read_array(source, num_images, options.convert)), source=SOURCE)
    name, _, split = source.partition(":") if isinstance(source, str) else ("", "", "")
    try:
        if split in SPLITS.get(name, ()):
            data = read_dataset(name, split, num_images)
            return ImageSet(**vars(data), source=name, split=split)
        data = _read_path(*_path_and_split(source, name), num_images, options)
    except MemoryError as error:
        raise refusal(
            source, "does not fit in memory; take fewer images with `num_images`"
        ) from error
    except OSError as error:
        raise refusal(
            source, f"cannot be read ({error}); check the file and its permissions"
        ) from error
    is_open = options.class_names is None and _sorts_otherwise(data.classes)
    return ImageSet(**vars(data), source=str(source), class_order_open=is_open)


def _sorts_otherwise(classes: tuple[str, ...]) -> bool:
    return all(name.isdecimal() for name in classes) and list(classes) != sorted(classes, key=int)


def _path_and_split(source: str | Path, name: str) -> tuple[Path, str]:
    """The path, and the split of FOLDER:SPLIT, as for MNIST's files."""
    if str(source) and Path(source).exists():
        return Path(source), ""
    folder, _, split = str(source).rpartition(":")
    if split in IDX_SPLITS and folder and Path(folder).is_dir():
        return Path(folder), split
    if name in SPLITS:
        choices = ", ".join(f"{name}:{split}" for split in SPLITS[name])
        raise refusal(source, f"name a split of {name}: {choices}")
    raise refusal(
        source or "an empty path",
        "no such file or folder, nor a data set's name; the names are "
        f"{', '.join(dataset_specs())}",
    )


def _read_path(path: Path, split: str, num_images: int | None, options: FolderOptions) -> ImageData:
    if path.is_dir():
        contents = FolderContents.scan(path)
        idx = list(filter(is_idx_of_images, contents.archives))
        if split or (idx and not contents.names and not contents.refused):
            return read_idx(path / chosen_idx(path, idx, split), num_images)
        return read_folder(path, contents, num_images, options)
    suffix, kind = path.suffix.lower(), kind_of(first_bytes(path))
    if suffix == ".npz" or is_npz(path):
        return read_npz(path, num_images)
    if kind == ("unread", "npy"):
        return read_npy(path, num_images)
    if suffix in IMAGE_SUFFIXES or (kind and kind[0] in ("read", "unread")):
        raise refusal(path, "is a single image; give the folder that holds it")
    refuse_unread(path, kind[1] if kind else "")
    return read_idx(path, num_images)


def refuse_reduced(images: ImageSet, data_range: DataRange) -> None:
    """Refuse images whose pixels are levels of the model already, which would be reduced twice.

    Args:
        images: 8-bit pixels on 0..255.
        data_range: data range of the model.

    Raises:
        InputError: no pixel is above the highest level. With more than 128 levels the set may well
            be dark, and is accepted.
    """
    levels = data_range.levels
    if levels > UNIT_RANGE.levels // 2 or images.pixels.max() >= levels:
        return
    raise InputError(
        f"{images.source}: no pixel is above {levels - 1}, so its images look reduced to "
        f"{levels} levels already, but `levels={levels}` takes pixels on 0..255 and reduces them "
        f"itself; save level k as the pixel 256 k / {levels}, rounded up (of a set that is so "
        "dark take more images)"
    )
