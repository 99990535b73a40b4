"""What may be asked of pixels besides reading them: gray to RGB, RGB to gray, a black border."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from ddpmbench.array_store import release, store
from ddpmbench.inputs.refusals import refusal

Pixels = NDArray[np.uint8]

CONVERSIONS = {
    "rgb": "gray is repeated to RGB, and alpha that is opaque left out",
    "gray": "RGB becomes its luma, (299 R + 587 G + 114 B) / 1000",
}
"""What images can be converted to, and how."""

_PORTION = 1 << 24  # bytes converted together


def converted(pixels: Pixels, to: str) -> Pixels:
    """Images (N, C, H, W) as "rgb" or "gray", C = 1 or 3; those that are already stay as they are.

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
            f"--pad {side}",
            f"the images of {source} are {width}x{height}, which do not fit in the middle; choose "
            "a side that is larger by an even number, or leave it out",
        )

    def bordered(part: Pixels) -> Pixels:
        whole = np.zeros((*part.shape[:2], side, side), np.uint8)
        whole[:, :, top : top + height, left : left + width] = part
        return whole

    return _mapped(pixels, (pixels.shape[1], side, side), bordered)


def picture_of(image: Pixels, shape: tuple[int, ...]) -> Pixels:
    """An image (C, H, W) as a picture of another shape, only to be looked at.

    Args:
        image: C = 1 or 3.
        shape: (C, H, W); gray is repeated where it has three channels.
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
