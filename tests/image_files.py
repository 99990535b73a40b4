"""Images of random pixels, and files of them in every format."""

import gzip
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ddpmbench.data.load import load_images
from ddpmbench.errors import InputError


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def rgb(width=8, height=8, seed=0):
    return Image.fromarray(random_images(height, width, 3, seed=seed))


def gray(width=8, height=8):
    return Image.fromarray(random_images(height, width))


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width, height, *, bit_depth, color, row):
    """A PNG of equal rows, written by hand where Pillow cannot write it."""

    def chunk(kind, body):
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = struct.pack(">IIBBBBB", width, height, bit_depth, color, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress((b"\0" + row) * height)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def idx_bytes(values, kind=0x08):
    header = bytes([0, 0, kind, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.tobytes()


def npz_bytes(*arrays, **named):
    buffer = io.BytesIO()
    np.savez(buffer, *arrays, **named)
    return buffer.getvalue()


def save_folder(folder, pixels, suffix="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{index}.{suffix}")
    return folder


FORMS = ("folder", "stored.npz", "compressed.npz", "idx", "idx.gz")


def save_as(folder, form, pixels):
    """Images (N, H, W) or (N, H, W, 3) in one of `FORMS`; the path."""
    path = folder / f"{len(pixels)}-{form}"
    match form:
        case "folder":
            save_folder(path, pixels, "bmp")
        case "stored.npz":
            np.savez(path, pixels)
        case "compressed.npz":
            np.savez_compressed(path, pixels)
        case "idx":
            path.write_bytes(idx_bytes(pixels))
        case "idx.gz":
            path.write_bytes(gzip.compress(idx_bytes(pixels), 1))
    return path


def refused(source, **options):
    """The one line that refuses it."""
    with pytest.raises(InputError) as info:
        load_images(source, **options)
    message = str(info.value)
    assert len(message.splitlines()) == 1
    assert message.isprintable()
    return message
