"""The sizes of images under other lossless codecs, for comparison with a model's."""

import dataclasses
import io
import lzma
import time
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, features

Pixels = NDArray[np.uint8]
Encoder = Callable[[Pixels], int]
_EXTRA = 'pip install "ddpmbench[codecs]"'
_NEWER_PILLOW = "pip install --upgrade pillow"
_WEBP = {"lossless": True, "quality": 100, "method": 6, "exact": True}  # under any opacity


@dataclasses.dataclass(frozen=True)
class CodecSize:
    """The size of an image set under a codec.

    Attributes:
        name: the codec and its settings.
        unit: "image" where every image is a file of its own, "set" where all share one.
        bits_per_dim: size of the files; None where the codec was left out.
        seconds: time to compress all images; None where the codec was left out.
        missing: why it was left out, or how to install it; None where it was used.
    """

    name: str
    unit: str
    bits_per_dim: float | None = None
    seconds: float | None = None
    missing: str | None = None


def other_codecs(pixels: Pixels) -> list[CodecSize]:
    """The sizes by PNG, WebP, JPEG XL, JPEG-LS, Zstandard and LZMA.

    Args:
        pixels: (N, C, H, W).
    """
    return [_measured(pixels, *codec) for codec in _codecs()]


def _measured(
    pixels: Pixels, name: str, unit: str, encode: Encoder | None, remedy: str
) -> CodecSize:
    if encode is None:
        return CodecSize(name, unit, missing=remedy)
    hwc = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    if hwc.shape[-1] == 1:
        hwc = hwc[..., 0]
    begun = time.perf_counter()
    try:
        size = encode(hwc) if unit == "set" else sum(encode(image) for image in hwc)
    except (TypeError, ValueError, OSError, RuntimeError):
        return CodecSize(name, unit, missing=f"not for images of {pixels.shape[1]} channels")
    seconds = time.perf_counter() - begun
    return CodecSize(name, unit, 8 * size / pixels.size, round(seconds, 3))


def _codecs() -> Iterator[tuple[str, str, Encoder | None, str]]:
    """Name, unit, encoder and how to install each."""
    yield "PNG", "image", lambda image: _pillow(image, "PNG", optimize=True), ""
    has_webp = features.check("webp")
    webp: Encoder = lambda image: _pillow(image, "WEBP", **_WEBP)  # noqa: E731
    yield "WebP lossless", "image", webp if has_webp else None, _NEWER_PILLOW
    try:
        import imagecodecs
    except ImportError:
        xl = ls = None
    else:
        xl = lambda image: len(imagecodecs.jpegxl_encode(image, lossless=True, effort=9))  # noqa: E731
        ls = lambda image: len(imagecodecs.jpegls_encode(image))  # noqa: E731
    yield "JPEG XL lossless", "image", xl, _EXTRA
    yield "JPEG-LS", "image", ls, _EXTRA
    yield "zlib 9", "set", lambda images: len(zlib.compress(images.tobytes(), 9)), ""
    zstd = pa.Codec("zstd", compression_level=19)
    yield "Zstandard 19", "set", lambda images: len(zstd.compress(images.tobytes())), ""
    preset = 9 | lzma.PRESET_EXTREME
    yield "LZMA 9e", "set", lambda images: len(lzma.compress(images.tobytes(), preset=preset)), ""


def _pillow(image: Pixels, kind: str, **settings: object) -> int:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **settings)
    return len(file.getbuffer())
