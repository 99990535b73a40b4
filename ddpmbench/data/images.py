"""Image sets: 8-bit pixels in a fixed order, with names, labels and where they are from."""

import base64
import dataclasses
import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Self, overload

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from ddpmbench.data.pixel_store import release, store, store_flat
from ddpmbench.diffusion.data_range import UNIT_RANGE, DataRange
from ddpmbench.errors import InputError, count_to_read, counted, listed, printable, refusal
from ddpmbench.records import short_repr

CONVERSIONS = {
    "rgb": "gray is repeated to RGB, and alpha that is opaque left out",
    "gray": "RGB becomes its luma, (299 R + 587 G + 114 B) / 1000",
}
"""The conversions of images, and what each does."""
ARCHIVE = "archive or array"
"""The kind of the files of a folder that may hold images, but are not read."""
_HASH_CHUNK = 1 << 24
_MOST_LISTED = 10  # names in a record or a line
_MOST_SHOWN, _LARGEST_SHOWN = 8, 64  # images in a notebook, and pixels of a side
_TABLE = Markup('<table style="{style}"><caption style="{style}"><b>{}</b></caption>{}</table>')
_ROW = Markup('<tr><th scope="row" style="{style}">{}</th><td style="{style}">{}</td></tr>')
_IMAGE = Markup('<img src="data:image/png;base64,{}" alt="{name}" title="{name}" style="{style}"/>')
_STYLE = "text-align: left; color: inherit; background: none"


@dataclasses.dataclass(frozen=True)
class PositionIds(Sequence[str]):
    """Names of images by their index: "0", "1", ..."""

    positions: range

    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> "str | Self":
        if isinstance(index, slice):
            return dataclasses.replace(self, positions=self.positions[index])
        return str(self.positions[index])


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
        chosen_from: the number of images of the set that these were chosen from by index; None if
            they are all, or its first ones.

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
    chosen_from: int | None = None

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
            raise InputError(f"images {self.source}: there must be one id and one label per image")

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
            "chosen_from": self.chosen_from,
        }
        return {
            "source": self.source,
            "split": self.split,
            "sha256": self.sha256,
            **{name: value for name, value in optional.items() if value},
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """A line for each conversion and choice, and one for files that were passed over."""
        lines = []
        if self.passed_over:
            words = _passed_over_words(self.passed_over, self.archives)
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
        if self.chosen_from is not None:
            words = f"{len(self):,} of {self.chosen_from:,} images, chosen by index"
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
                "the images into a folder per class, add arr_1 to an npz, or name one with "
                f"`label=N` (it has {known})"
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
        verb = "was" if len(self.skipped) == 1 else "were"
        return (
            f"{counted(len(self.skipped), 'file')} of {self.name} {verb} skipped; the first: "
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
        return self[: count_to_read(num_images, len(self), self.source)]

    def __getitem__(self, index: "slice | Sequence[int] | NDArray[Any]") -> Self:
        """Some of the images: `images[:100]`, `images[[3, 5]]`, `images[images.labels == 2]`.

        Each keeps its name, its label and the number of its class; the hash is that of the images
        chosen. Images that are not adjacent are copied.

        Args:
            index: a slice, the positions of different images, or (N,) booleans.

        Raises:
            InputError: it is none of these, chooses no image or one twice, or there is no such
                image.
        """
        try:
            chosen = np.arange(len(self))[index]
        except (IndexError, TypeError, ValueError) as error:
            raise self._bad_index(str(error)) from None
        if chosen.ndim != 1 or not len(chosen):
            raise self._bad_index("takes a slice or a list, which chooses one image or more")
        if len(np.unique(chosen)) < len(chosen):
            raise self._bad_index("an image is there twice, and would count as two")
        start, stop = int(chosen[0]), int(chosen[-1]) + 1
        is_adjacent = bool((np.diff(chosen) == 1).all())
        shapes, ids = None, self.ids[start:stop]
        if self.shapes is not None:
            pixels, shapes = packed(image for i in chosen for image in self.part(i, i + 1))
        elif is_adjacent:
            pixels = self.pixels[start:stop]
        else:
            each = (self.pixels[i] for i in chosen)
            pixels = store((len(chosen), *self.pixels.shape[1:]), each, np.uint8)
        is_start = is_adjacent and not start
        return dataclasses.replace(
            self,
            pixels=pixels,
            shapes=shapes,
            ids=ids if is_adjacent else [self.ids[i] for i in chosen],
            labels=None if self.labels is None else self.labels[chosen],
            chosen_from=self.chosen_from or (None if is_start else len(self)),
        )

    def _bad_index(self, problem: str) -> InputError:
        remedy = f"give a slice or positions from 0 to {len(self) - 1}: images[:100], images[[3]]"
        return refusal("images[...]", f"{problem}; {remedy}")

    def _repr_html_(self) -> str:
        total = "" if self.chosen_from is None else f" of {self.chosen_from:,}"
        facts = {"images": f"{len(self):,}{total}, {self.shape_words}", "source": self.name}
        if self.labels is not None:
            facts["labels"] = f"{len(np.unique(self.labels)):,} classes"
        count = min(len(self), _MOST_SHOWN)
        pictures = Markup(" ").join(map(_picture, self.part(0, count), self.ids[:count]))
        rows = [_ROW.format(name, value, style=_STYLE) for name, value in facts.items()]
        rows.append(_ROW.format("first", pictures, style=_STYLE))
        return str(_TABLE.format("ImageSet", Markup("").join(rows), style=_STYLE))


def packed(
    images: Iterable[NDArray[np.uint8]],
) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    """Images of any sizes in one array, which for a large set is a file (`pixel_store`).

    Args:
        images: (C, H, W) each, in order; none is kept.

    Returns:
        pixels: (N, C, H, W) if all have one shape; else flat, one image after another.
        shapes: (N, 3), C, H, W of each; None if all have one shape.

    Raises:
        InputError: there is no space for a temporary file.
    """
    shapes: list[tuple[int, ...]] = []

    def noted() -> Iterator[NDArray[np.uint8]]:
        for image in images:
            shapes.append(image.shape)
            yield image

    pixels = store_flat(noted())
    if len(set(shapes)) == 1:
        return pixels.reshape(len(shapes), *shapes[0]), None
    return pixels, np.array(shapes, np.int64)


def shape_words(shapes: Iterable[Sequence[int]]) -> str:
    """Sizes and colors of images of (N, 3) shapes: "of 3 sizes from 8x8 to 32x16, gray and RGB"."""
    different = {(int(c), int(h), int(w)) for c, h, w in shapes}
    sizes = sorted({(h * w, w, h) for _, h, w in different})
    names = [f"{width}x{height}" for _, width, height in sizes]
    colors = " and ".join({1: "gray", 3: "RGB"}[c] for c in sorted({c for c, _, _ in different}))
    if len(names) == 1:
        return f"{names[0]} {colors}"
    return f"of {len(names)} sizes from {names[0]} to {names[-1]}, {colors}"


def _passed_over_words(passed_over: Mapping[str, int], archives: Sequence[str]) -> str:
    """Other files of a folder, in words: "3 hidden, 1 archive or array (all.npz), 1 .csv"."""
    words = {kind: f"{count:,} {kind}" for kind, count in passed_over.items()}
    if archives:
        words[ARCHIVE] += f" ({listed(archives)})"
    return ", ".join(words.values())


def _picture(image: NDArray[np.uint8], name: str) -> Markup:
    """An image (C, H, W) in HTML."""
    from PIL import Image

    picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    file = io.BytesIO()
    picture.thumbnail((_LARGEST_SHOWN, _LARGEST_SHOWN))
    picture.save(file, "PNG")
    code = base64.b64encode(file.getvalue()).decode()
    return _IMAGE.format(code, name=name, style="height: 4em; image-rendering: pixelated")


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
