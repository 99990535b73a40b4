"""Images that are in memory already: arrays, tensors and Pillow images, all as 8-bit pixels."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ddpmbench.data.image_files import ImageData, PositionIds, image_shape, pixels_of
from ddpmbench.data.pixel_store import release, store
from ddpmbench.errors import InputError, count_to_read, refusal

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


Pixels = NDArray[np.uint8]

CONVERSIONS = {
    "rgb": "gray is repeated to RGB, and alpha that is opaque left out",
    "gray": "RGB becomes its luma, (299 R + 587 G + 114 B) / 1000",
}
"""Conversion -> its description."""

_PORTION = 1 << 24  # bytes converted together


def converted(pixels: Pixels, to: str) -> Pixels:
    """Images (N, C, H, W) as "rgb" or "gray", C = 1 or 3.

    Luma is (299 R + 587 G + 114 B) / 1000.

    Source: ITU-R BT.601-2, rounded as Pillow does.
    """
    wanted = 3 if to == "rgb" else 1
    if pixels.shape[1] == wanted:
        return pixels
    return _mapped(pixels, (wanted, *pixels.shape[2:]), _repeated if to == "rgb" else _luma)


def padded(pixels: Pixels, side: int, source: str) -> Pixels:
    """Images (N, C, H, W) in the middle of black ones, (N, C, side, side).

    Raises:
        InputError: they are larger, or cannot stand in the middle.
    """
    height, width = pixels.shape[2:]
    top, left = (side - height) // 2, (side - width) // 2
    if side < max(height, width) or (side - height) % 2 or (side - width) % 2:
        raise refusal(
            f"`pad={side}`",
            f"the images of {source} are {width}x{height}, which do not fit in the middle; choose "
            "a side that is larger by an even number, or leave it out",
        )

    def bordered(part: Pixels) -> Pixels:
        whole = np.zeros((*part.shape[:2], side, side), np.uint8)
        whole[:, :, top : top + height, left : left + width] = part
        return whole

    return _mapped(pixels, (pixels.shape[1], side, side), bordered)


def picture_of(image: Pixels, shape: tuple[int, ...]) -> Pixels:
    """An image (C, H, W) resized for display.

    Args:
        image: C = 1 or 3.
        shape: (C, H, W) of the result; gray is repeated to three channels.
    """
    from PIL import Image

    channels, height, width = shape
    planes = [
        np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC))
        for plane in image
    ]
    return np.stack(planes * (channels // len(planes)))


def _repeated(part: Pixels) -> Pixels:
    return np.repeat(part, 3, axis=1)


def _luma(part: Pixels) -> Pixels:
    red, green, blue = part.astype(np.uint32).transpose(1, 0, 2, 3)
    luma: NDArray[np.uint32] = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
    return luma.astype(np.uint8)[:, None]


def _mapped(
    pixels: Pixels, shape: tuple[int, int, int], function: Callable[[Pixels], Pixels]
) -> Pixels:
    step = max(1, _PORTION // max(pixels[:1].nbytes, 1))

    def portions() -> Iterator[Pixels]:
        for start in range(0, len(pixels), step):
            yield function(pixels[start : start + step])
            release(pixels)

    return store((len(pixels), *shape), portions(), np.uint8)


Arrays: TypeAlias = "NDArray[Any] | Tensor | Sequence[Image | NDArray[Any]]"
"""Images in memory; see `read_array`."""

SOURCE = "an array"


def read_array(images: Arrays, num_images: int | None, convert: str | None) -> ImageData:
    """The images of an array, copied.

    Args:
        images: uint8, as NumPy has them, (N, H, W, C) or (N, H, W), or as a torch tensor,
            (N, C, H, W) or (N, H, W), C = 1 or 3; or a sequence of Pillow images or of arrays
            (H, W, C) or (H, W).
        num_images: how many, from the first on; None for all.
        convert: for Pillow images; see `image_files.FolderOptions`.

    Raises:
        InputError: they are of another type or shape.
    """
    array = _as_array(images, convert)
    if array.dtype != np.uint8:
        raise refusal(SOURCE, f"is {array.dtype}; give uint8, 0..255{_remedy(array)}")
    shape = image_shape(array.shape, SOURCE)
    count = count_to_read(num_images, shape[0], SOURCE)
    height, width, channels = shape[1:]
    step = max(1, _PORTION // (height * width * channels))

    def portions() -> Iterator[NDArray[np.uint8]]:
        for start in range(0, count, step):
            part = array[start : min(start + step, count)]
            yield part.reshape(len(part), *shape[1:]).transpose(0, 3, 1, 2)

    pixels = store((count, channels, height, width), portions(), np.uint8)
    return ImageData(pixels, PositionIds(range(count)))


def _as_array(images: object, convert: str | None) -> NDArray[Any]:
    if isinstance(images, np.ndarray):
        return _without_mask(images, SOURCE)
    if _is_tensor(images):
        array = _array_of(images)  # type: ignore[arg-type]
        if array.ndim == 4 and array.shape[1] not in (1, 3):
            raise refusal(SOURCE, f"has shape {array.shape}; give a tensor as (N, C, H, W)")
        return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array
    if isinstance(images, Sequence) and not isinstance(images, str | bytes) and images:
        parts = [_one_image(index, image, convert) for index, image in enumerate(images)]
        for index, part in enumerate(parts):
            if part.shape != parts[0].shape:
                raise refusal(
                    f"image {index}",
                    f"has shape {part.shape}, but the first has {parts[0].shape}; give images that "
                    "are alike, or their files in a folder",
                )
        return np.stack(parts)
    raise refusal(
        f"images: {type(images).__name__}",
        "is neither a data set's name, a path, nor images; give a uint8 array (N, H, W, C)",
    )


def _without_mask(array: NDArray[Any], source: str) -> NDArray[Any]:
    """The array; refused if it is masked, as the pixels under the mask would be evaluated."""
    if isinstance(array, np.ma.MaskedArray):
        raise refusal(source, "is a masked array; fill it as it is meant: x.filled(0)")
    return array


def _array_of(tensor: "Tensor") -> NDArray[Any]:
    """The numbers of a dense tensor."""
    import torch

    if tensor.is_meta:
        raise refusal(SOURCE, "is a tensor without numbers (meta device); give its pixels")
    if tensor.layout != torch.strided:
        raise refusal(SOURCE, "is a sparse tensor; give x.to_dense()")
    if tensor.dtype == torch.bfloat16:  # numpy has none
        tensor = tensor.float()
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    return array


def _is_tensor(images: object) -> bool:
    import torch

    return isinstance(images, torch.Tensor)


def _one_image(index: int, image: object, convert: str | None) -> NDArray[Any]:
    if isinstance(image, np.ndarray):
        return _without_mask(image, f"image {index}")
    if not hasattr(image, "getbands"):
        raise refusal(f"image {index}", f"is {type(image).__name__}; give Pillow images or arrays")
    try:
        pixels = pixels_of(image, convert)  # type: ignore[arg-type]
    except InputError as error:
        raise refusal(f"image {index}", str(error)) from error
    return pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)


def _remedy(array: NDArray[Any]) -> str:
    """The likely conversion of the numbers to pixels."""
    if array.dtype == bool:
        return ": 255 * x.astype('uint8')"
    if not array.size or array.dtype.kind not in "fiu":
        return ""
    low, high = float(array.min()), float(array.max())
    if array.dtype.kind in "iu":
        return ": x.astype('uint8')" if low >= 0 and high <= 255 else ""
    if low >= 0 and high <= 1:
        return ": (255 * x).round().astype('uint8') where 0..1 are black and white"
    if low >= -1 and high <= 1:
        return ": (127.5 * x + 127.5).round().astype('uint8') where -1..1 are black and white"
    if low >= 0 and high <= 255:
        return ": x.round().astype('uint8')"
    return ""
