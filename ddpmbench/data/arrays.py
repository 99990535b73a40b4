"""Images in memory (arrays, tensors and Pillow images) as 8-bit pixels."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ddpmbench.data.images import ImageSet, PositionIds
from ddpmbench.data.pixel_store import release, store
from ddpmbench.errors import InputError, count_to_read, refusal

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


Pixels = NDArray[np.uint8]
Arrays: TypeAlias = "NDArray[Any] | Tensor | Sequence[Image | NDArray[Any]]"
"""Images in memory; see `read_array`."""
SOURCE = "an array"
_PORTION = 1 << 24  # bytes converted together


def image_shape(shape: tuple[int, ...], subject: str) -> tuple[int, int, int, int]:
    """(N, H, W, C) from the shape of images, which is this or (N, H, W).

    Raises:
        InputError: the shape is another, or there is no image; the message names `subject`.
    """
    if 0 in shape:
        raise refusal(subject, f"is empty, of shape {shape}; give at least one image")
    if len(shape) == 3:
        return (*shape, 1)
    if len(shape) == 4 and shape[-1] in (1, 3):
        return shape
    raise shape_refusal(subject, shape)


def shape_refusal(subject: str, shape: tuple[int, ...]) -> InputError:
    """The error to raise for a shape that is not that of images."""
    order = ": x.transpose(0, 2, 3, 1)" if len(shape) == 4 and shape[1] in (1, 3) else ""
    return refusal(
        subject,
        f"has shape {shape}; save gray as (N, H, W) or (N, H, W, 1), RGB as (N, H, W, 3){order}",
    )


# ---- conversions


def converted(pixels: Pixels, to: str) -> Pixels:
    """Images (N, C, H, W) as "rgb" or "gray", C = 1 or 3.

    Source: ITU-R BT.601-2 for the luma, rounded as Pillow does.
    """
    channels = 3 if to == "rgb" else 1
    if pixels.shape[1] == channels:
        return pixels

    def luma(part: Pixels) -> Pixels:
        red, green, blue = part.astype(np.uint32).transpose(1, 0, 2, 3)
        luma = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
        return luma.astype(np.uint8)[:, None]  # type: ignore[no-any-return]

    def repeated(part: Pixels) -> Pixels:
        return np.repeat(part, 3, axis=1)

    return _mapped(pixels, (channels, *pixels.shape[2:]), repeated if to == "rgb" else luma)


def padded(pixels: Pixels, side: int, source: str) -> Pixels:
    """Images (N, C, H, W) centered on black, (N, C, side, side).

    Raises:
        InputError: they are larger, or cannot be centered.
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
        return np.pad(part, ((0, 0), (0, 0), (top, top), (left, left)))

    return _mapped(pixels, (pixels.shape[1], side, side), bordered)


def picture_of(image: Pixels, shape: tuple[int, ...]) -> Pixels:
    """An image (C, H, W), C = 1 or 3, resized for display; gray is repeated to three channels.

    Args:
        image: the pixels.
        shape: (C, H, W) of the result.
    """
    from PIL import Image

    channels, height, width = shape
    planes = [
        np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC))
        for plane in image
    ]
    return np.stack(planes * (channels // len(planes)))


def _mapped(pixels: Pixels, shape: tuple[int, ...], function: Callable[[Pixels], Pixels]) -> Pixels:
    step = max(1, _PORTION // max(pixels[:1].nbytes, 1))

    def portions() -> Iterator[Pixels]:
        for start in range(0, len(pixels), step):
            yield function(pixels[start : start + step])
            release(pixels)

    return store((len(pixels), *shape), portions(), np.uint8)


# ---- Pillow images

_MODES = {
    "1": "has 1 bit per pixel",
    "P": "has a palette",
    "PA": "has a palette and transparency",
    **dict.fromkeys(("LA", "RGBA"), "has transparency"),
    **dict.fromkeys(("I", "I;16", "I;16B"), "has more than 8 bits per channel"),
    "F": "has floating-point pixels",
}
_PILLOW_MODES = {"rgb": "RGB", "gray": "L"}
_REMEDY = "save it as 8-bit gray or 8-bit RGB without transparency"


def pixels_of(image: "Image", convert: str | None) -> Pixels:
    """The pixels of a Pillow image, (C, H, W).

    Raises:
        InputError: it is not 8-bit gray or RGB, and cannot be converted.
    """
    _refuse_other(image, convert)
    image.load()
    pixels = np.asarray(image if convert is None else image.convert(_PILLOW_MODES[convert]))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _refuse_other(image: "Image", convert: str | None) -> None:
    if getattr(image, "is_animated", False):
        raise InputError("has more than one frame; save each frame as a file of its own")
    # Pillow silently scales 2, 4, 5 and 16 bits per channel to 8; "RGB;16B" shows that it will.
    codecs = (tile[3] for tile in getattr(image, "tile", ()))
    raw_modes = (str(codec if isinstance(codec, str) else codec[0]) for codec in codecs)
    scaled = next((raw for raw in raw_modes if re.search(";[0-9]", raw)), None)
    if image.mode == "P":  # its bits are those of an index
        scaled = None
    if image.mode not in ("L", "RGB"):
        is_convertible = scaled is None and _holds_only_rgb(image)
        if not (is_convertible and convert):
            remedy = f"{_REMEDY}, or convert it with `convert=rgb`" if is_convertible else _REMEDY
            problem = _MODES.get(image.mode, "is not gray or RGB")
            raise InputError(f"{problem} (mode {image.mode}); {remedy}")
    if "transparency" in image.info:
        raise InputError(f"has a transparent color; {_REMEDY}")
    if scaled is not None:
        raise InputError(f"does not have 8 bits per channel ({scaled}); {_REMEDY}")


def _holds_only_rgb(image: "Image") -> bool:
    """Whether an image of another mode converts to RGB without loss."""
    if image.mode in ("LA", "RGBA"):
        return image.getchannel("A").getextrema() == (255, 255)
    return image.mode in ("1", "P") and "transparency" not in image.info


# ---- arrays


def read_array(images: Arrays, num_images: int | None, convert: str | None) -> ImageSet:
    """The images of an array, copied.

    Args:
        images: uint8, as a NumPy array (N, H, W, C) or (N, H, W), or a torch tensor (N, C, H, W) or
            (N, H, W), C = 1 or 3; or a sequence of Pillow images or of arrays (H, W, C) or
            (H, W).
        num_images: number of images to read, from the first on; None for all.
        convert: for Pillow images; see `CONVERSIONS`.

    Raises:
        InputError: they have another type or shape.
    """
    array = _as_array(images, convert)
    if array.dtype != np.uint8:
        raise refusal(SOURCE, f"is {array.dtype}; give uint8, 0..255{_remedy(array)}")
    shape = image_shape(array.shape, SOURCE)
    count = count_to_read(num_images, shape[0], SOURCE)
    channels_first = array.reshape(shape)[:count].transpose(0, 3, 1, 2)
    # Without `release`: what a private mapping of the user's has in memory is nowhere else.
    step = max(1, _PORTION // math.prod(shape[1:]))
    portions = (channels_first[start : start + step] for start in range(0, count, step))
    pixels = store(channels_first.shape, portions, np.uint8)
    return ImageSet(pixels, PositionIds(range(count)), SOURCE)


def _as_array(images: object, convert: str | None) -> NDArray[Any]:
    import torch

    if isinstance(images, np.ndarray):
        return _without_mask(images, SOURCE)
    if isinstance(images, torch.Tensor):
        array = _array_of(images)
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
    """The array; refused if masked, since the pixels under the mask would be evaluated."""
    if isinstance(array, np.ma.MaskedArray):
        raise refusal(source, "is a masked array; fill it as it is meant: x.filled(0)")
    return array


def _array_of(tensor: "Tensor") -> NDArray[Any]:
    import torch

    if tensor.dtype == torch.bfloat16:  # which numpy lacks
        tensor = tensor.float()
    try:
        array: NDArray[Any] = tensor.numpy(force=True)
    except (TypeError, NotImplementedError) as error:
        raise refusal(
            SOURCE,
            f"is a tensor that numpy has no array of ({tensor.dtype}, {tensor.layout}, on "
            f"{tensor.device}): sparse, quantized, of 8-bit floats, or without numbers (meta "
            "device); give its pixels as uint8, as from x.to_dense() or x.dequantize()",
        ) from error
    return array


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
    is_float = array.dtype.kind == "f"
    if is_float and low >= 0 and high <= 1:
        return ": (255 * x).round().astype('uint8') where 0..1 are black and white"
    if is_float and low >= -1 and high <= 1:
        return ": (127.5 * x + 127.5).round().astype('uint8') where -1..1 are black and white"
    if low >= 0 and high <= 255:
        return f": x{'.round()' * is_float}.astype('uint8')"
    return ""
