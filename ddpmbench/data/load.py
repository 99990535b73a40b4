"""Reading image sets: named data sets, folders, npz, npy and idx files, and arrays."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from ddpmbench.data.array_files import (
    IDX_SPLITS,
    chosen_idx,
    is_idx_of_images,
    is_npz,
    read_idx,
    read_npy,
    read_npz,
)
from ddpmbench.data.arrays import Arrays, converted, padded, read_array
from ddpmbench.data.datasets import SPLITS, dataset_specs, read_dataset
from ddpmbench.data.file_kinds import IMAGE_SUFFIXES, first_bytes, kind_of, refuse_unread
from ddpmbench.data.folders import FolderContents, FolderOptions, read_folder
from ddpmbench.data.images import CONVERSIONS, ImageSet, packed
from ddpmbench.errors import one_of, refusal, whole_number

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
        return read_array(source, num_images, options.convert)
    name, _, split = source.partition(":") if isinstance(source, str) else ("", "", "")
    try:
        if split in SPLITS.get(name, ()):
            return read_dataset(name, split, num_images)
        images = _read_path(*_path_and_split(source, name), num_images, options)
    except MemoryError as error:
        raise refusal(
            source, "does not fit in memory; take fewer images with `num_images`"
        ) from error
    except OSError as error:
        raise refusal(
            source, f"cannot be read ({error}); check the file and its permissions"
        ) from error
    return dataclasses.replace(images, source=str(source))


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


def _read_path(path: Path, split: str, num_images: int | None, options: FolderOptions) -> ImageSet:
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
