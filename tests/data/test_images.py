import gzip
import hashlib
import http.client
import io
import os
import pickle
import shutil
import socket
import struct
import sys
import tarfile
import urllib.request
import zlib
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ddpmbench.data import datasets, images
from ddpmbench.data.images import ImageSet, load_images
from ddpmbench.errors import InputError

ASSETS = Path(datasets.__file__).parents[1] / "assets"
T10K = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
TRAIN = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path_factory):
    """An empty cache, no Debian package, and a network that is down."""
    monkeypatch.setenv("DDPMBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(datasets, "_DEBIAN", Path("/nonexistent"))

    def down(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", down)
    monkeypatch.setattr(socket, "create_connection", down)


def random_images(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def idx_bytes(values, kind=0x08):
    header = bytes([0, 0, kind, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.tobytes()


def save_folder(folder, pixels):
    folder.mkdir()
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{index}.png")


def in_every_form(folder, pixels):
    """The same images, (N, H, W) or (N, H, W, 3), as each kind of input."""
    name = f"a-images-idx{pixels.ndim}-ubyte"
    save_folder(folder / "folder", pixels)
    np.savez(folder / "plain.npz", pixels)
    np.savez_compressed(folder / "compressed.npz", pixels)
    (folder / name).write_bytes(idx_bytes(pixels))
    (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(pixels)))
    names = ["folder", "plain.npz", "compressed.npz", name, f"{name}.gz"]
    return [folder / name for name in names]


def png(width, height, *, bit_depth, color, row):
    """A PNG of equal rows, written by hand where Pillow cannot write it."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, bit_depth, color, 0, 0, 0)
    body = zlib.compress((b"\0" + row) * height)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", body), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def refused(spec, **options):
    """The one line that refuses it."""
    with pytest.raises(InputError) as info:
        load_images(spec, **options)
    message = str(info.value)
    assert len(message.splitlines()) == 1
    return message


# The same images, whatever holds them


@settings(max_examples=20, deadline=None)
@given(
    count=st.integers(1, 12),
    size=st.tuples(st.integers(1, 9), st.integers(5, 9)),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)
def test_the_form_of_the_input_cannot_matter(tmp_path_factory, count, size, channels, seed):
    shape = (count, *size) if channels == 1 else (count, *size, channels)
    pixels = random_images(shape, seed)
    expected = pixels.reshape(count, *size, channels).transpose(0, 3, 1, 2)
    for path in in_every_form(tmp_path_factory.mktemp("forms"), pixels):
        loaded = load_images(path)
        np.testing.assert_array_equal(loaded.pixels, expected)
        assert loaded.pixels.flags.c_contiguous
        assert (
            loaded.sha256
            == hashlib.sha256(
                str((count, channels, *size)).encode() + np.ascontiguousarray(expected).tobytes()
            ).hexdigest()
        )
        assert list(loaded.ids) == [f"{i}.png" if path.is_dir() else str(i) for i in range(count)]
        assert (loaded.source, loaded.split, loaded.labels) == (str(path), None, None)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_first_images_are_the_start_of_all(tmp_path, channels):
    pixels = random_images((12, 6, 7) if channels == 1 else (12, 6, 7, 3))
    for path in in_every_form(tmp_path, pixels):
        everything = load_images(str(path))
        part = load_images(str(path), num_images=11)
        assert len(part) == 11
        np.testing.assert_array_equal(part.pixels, everything.pixels[:11])
        assert list(part.ids) == list(everything.ids[:11])
        assert part.sha256 == everything.subset(11).sha256 != everything.sha256
        assert load_images(path, num_images=12).sha256 == everything.sha256
        for number in (0, -1, 13):
            message = refused(str(path), num_images=number)
            assert message.startswith(f"`num_images={number}`: ")
        assert "holds 12 images" in message


def test_a_set_of_any_layout_and_chunk_has_one_hash(monkeypatch):
    pixels = random_images((5, 4, 3, 2))
    whole = ImageSet(pixels, "abcde", "x").sha256
    monkeypatch.setattr(images, "_HASH_CHUNK", 50)
    strided = np.repeat(pixels, 2, axis=0)[::2]
    assert ImageSet(strided, "abcde", "x").sha256 == whole
    assert ImageSet(pixels.reshape(5, 4, 2, 3), "abcde", "x").sha256 != whole


def test_a_set_refuses_what_does_not_match():
    pixels = random_images((2, 1, 3, 3))
    good = ImageSet(pixels, ["a", "b"], "x", np.array([3, 4]))
    assert good.subset(1).labels.tolist() == [3]
    with pytest.raises(InputError, match="`num_images=3`"):
        good.subset(3)
    with pytest.raises(InputError, match="uint8"):
        ImageSet(pixels.astype(np.float32), ["a", "b"], "x")
    with pytest.raises(InputError, match="N, C, H, W"):
        ImageSet(pixels[0], ["a"], "x")
    with pytest.raises(InputError, match="one id"):
        ImageSet(pixels, ["a"], "x")
    with pytest.raises(InputError, match="one label"):
        ImageSet(pixels, ["a", "b"], "x", np.array([3]))


# Folders


def test_a_folder_is_read_in_natural_order_with_its_subfolders(tmp_path):
    names = ["1.png", "2.PNG", "a2/1.png", "a2/9.bmp", "a2/10.png", "a10/1.png", "img_2.png"]
    names += ["img_10.png", "img_10b.png"]
    for value, name in enumerate(names):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((5, 5), value, np.uint8)).save(path)
    for stray in ("Thumbs.db", "notes.txt", ".hidden.png", "a2/.DS_Store", "png"):
        (tmp_path / stray).write_bytes(b"no image")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "0.png").write_bytes(b"no image")
    loaded = load_images(tmp_path)
    assert list(loaded.ids) == names
    assert loaded.pixels[:, 0, 0, 0].tolist() == list(range(len(names)))


def test_only_the_images_asked_for_are_opened(tmp_path):
    save_folder(tmp_path / "f", random_images((3, 5, 5)))
    (tmp_path / "f" / "2.png").write_bytes(b"damaged")
    assert len(load_images(tmp_path / "f", num_images=2)) == 2
    assert str(tmp_path / "f" / "2.png") in refused(tmp_path / "f")


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff", "webp", "jpg", "jpeg"])
def test_every_format_is_taken_as_stored(tmp_path, suffix):
    pixels = random_images((16, 16, 3))
    path = tmp_path / f"0.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn, which is not made
    options = {"exif": exif} if suffix in ("png", "webp", "jpg", "jpeg") else {}
    if suffix == "webp":
        options["lossless"] = True
    Image.fromarray(pixels).save(path, **options)
    if suffix.startswith("jp"):
        with Image.open(path) as image:
            pixels = np.asarray(image)
    np.testing.assert_array_equal(load_images(tmp_path).pixels[0].transpose(1, 2, 0), pixels)


def test_links_are_followed_but_not_in_a_circle(tmp_path):
    save_folder(tmp_path / "elsewhere", random_images((2, 5, 5)))
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    assert list(load_images(folder).ids) == ["linked/0.png", "linked/1.png"]
    (tmp_path / "elsewhere" / "up").symlink_to(folder)
    assert "remove the link" in refused(folder)


def rgb(size=(8, 8)):
    return Image.fromarray(random_images((*size[::-1], 3)))


def gray(size=(8, 8)):
    return Image.fromarray(random_images(size[::-1]))


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff_16_bit_rgb():
    """A minimal uncompressed TIFF of 8x8 RGB with 16 bits a channel."""
    entries = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 3, 134), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [(273, 4, 1, 140), (277, 3, 1, 3), (278, 4, 1, 8), (279, 4, 1, 384)]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + struct.pack("<I", 0)
    return head.ljust(134, b"\0") + struct.pack("<HHH", 16, 16, 16) + bytes(384)


# name of the file: (its bytes, what the line must say)
BAD_IMAGES = {
    "rgba.png": (lambda: encoded(rgb().convert("RGBA")), "transparency (mode RGBA); save it"),
    "la.png": (lambda: encoded(gray().convert("LA")), "transparency (mode LA); save it"),
    "palette.png": (lambda: encoded(rgb().convert("P")), "palette (mode P); save it"),
    "one.png": (lambda: encoded(gray().convert("1")), "1 bit a pixel (mode 1); save it"),
    "gray16.png": (
        lambda: encoded(Image.fromarray(np.zeros((8, 8), np.uint16))),
        "more than 8 bits a channel (mode I;16",
    ),
    "gray32.tif": (
        lambda: encoded(Image.fromarray(np.zeros((8, 8), np.int32)), "TIFF"),
        "more than 8 bits a channel (mode I)",
    ),
    "float.tif": (
        lambda: encoded(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"),
        "floating-point",
    ),
    "cmyk.jpg": (lambda: encoded(rgb().convert("CMYK"), "JPEG"), "not gray or RGB (mode CMYK)"),
    "keyed.png": (lambda: encoded(rgb(), transparency=(1, 2, 3)), "transparent color"),
    "rgb16.png": (lambda: png(8, 8, bit_depth=16, color=2, row=bytes(48)), "8 bits a channel"),
    "rgb16.tif": (tiff_16_bit_rgb, "8 bits a channel"),
    "gray4.png": (lambda: png(8, 8, bit_depth=4, color=0, row=bytes(4)), "8 bits a channel"),
    "colored.gif": (lambda: encoded(rgb(), "GIF"), "palette (mode P)"),
    "animated.gif": (
        lambda: encoded(gray(), "GIF", save_all=True, append_images=[gray(), rgb()]),
        "more than one frame",
    ),
    "animated.png": (
        lambda: encoded(rgb(), "PNG", save_all=True, append_images=[Image.new("RGB", (8, 8))]),
        "more than one frame",
    ),
    "pages.tif": (
        lambda: encoded(rgb(), "TIFF", save_all=True, append_images=[rgb()]),
        "more than one frame",
    ),
    "cut.png": (lambda: encoded(rgb())[:100], "cannot be read as an image"),
    "cut.jpg": (lambda: encoded(rgb((64, 64)), "JPEG")[:-900], "cannot be read as an image"),
    "cut.bmp": (lambda: encoded(rgb(), "BMP")[:100], "cannot be read as an image"),
    "cut.tif": (lambda: encoded(rgb(), "TIFF")[:100], "cannot be read as an image"),
    "cut.webp": (lambda: encoded(rgb(), "WEBP")[:50], "cannot be read as an image"),
    "empty.png": (lambda: b"", "cannot be read as an image"),
    "text.png": (lambda: b"not an image", "cannot be read as an image"),
    "portable.png": (lambda: encoded(rgb(), "PPM"), "cannot be read as an image"),
    "portable.ppm": (lambda: encoded(rgb(), "PPM"), "save it as PNG"),
    "photo.heic": (lambda: b"", "save it as PNG"),
    "warned.png": (
        lambda: png(10000, 9500, bit_depth=8, color=0, row=bytes(1)),
        "decompression bomb",
    ),
    "bomb.png": (
        lambda: png(30000, 30000, bit_depth=8, color=0, row=bytes(1)),
        "decompression bomb",
    ),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_is_named_wherever_it_stands(tmp_path, name):
    content, reason = BAD_IMAGES[name]
    (tmp_path / name).write_bytes(content())
    for _ in range(2):
        message = refused(tmp_path)
        assert message.startswith(f"{tmp_path / name}: ")
        assert reason in message
        rgb().save(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (gray(), rgb(), "is 8x8 RGB, but 0.png is 8x8 gray"),
        (rgb(), gray(), "is 8x8 gray, but 0.png is 8x8 RGB"),
        (rgb((8, 9)), rgb((9, 8)), "is 9x8 RGB, but 0.png is 8x9 RGB"),
    ],
)
def test_images_that_differ_are_refused(tmp_path, first, second, reason):
    for index, image in enumerate([first, first, second, second]):
        image.save(tmp_path / f"{index}.png")
    assert refused(tmp_path).startswith(f"{tmp_path / '2.png'}: {reason}; make")


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("none here")
    assert f"{tmp_path}: holds no images" in refused(str(tmp_path))


def test_a_message_stays_one_line_whatever_a_file_is_called(tmp_path):
    (tmp_path / "two\nlines.png").write_bytes(b"no image")
    assert "two lines.png: cannot be read" in refused(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such a name themselves")
def test_a_name_that_no_table_can_hold_is_refused(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")).write_bytes(encoded(rgb()))
    assert "not UTF-8; rename" in refused(tmp_path)


# npz


def npz_bytes(*arrays, **named):
    buffer = io.BytesIO()
    np.savez(buffer, *arrays, **named)
    return buffer.getvalue()


def npz_with_bad_checksum():
    content = bytearray(npz_bytes(random_images((2, 8, 8))))
    content[200] ^= 1
    return bytes(content)


PIXELS = random_images((4, 8, 8, 3))
BAD_NPZ = {
    "float": (npz_bytes(PIXELS / np.float32(255)), "arr_0 is float32; save the pixels as uint8"),
    "int64": (npz_bytes(PIXELS.astype(np.int64)), "arr_0 is int64; save the pixels as uint8"),
    "bool": (npz_bytes(PIXELS > 4), "arr_0 is bool"),
    "object": (npz_bytes(np.array([None, "a"], object)), "cannot be read (Object arrays"),
    "object labels": (npz_bytes(PIXELS, np.array([None] * 4)), "cannot be read (Object arrays"),
    "none": (npz_bytes(PIXELS[:0]), "arr_0: is empty, of shape (0, 8, 8, 3)"),
    "no height": (npz_bytes(PIXELS[:, :0]), "arr_0: is empty"),
    "one image": (npz_bytes(PIXELS[0]), "arr_0: has shape (8, 8, 3); save gray as"),
    "flat": (npz_bytes(PIXELS[0, 0]), "arr_0: has shape (8, 3); save gray as"),
    "scalar": (npz_bytes(np.uint8(3)), "arr_0: has shape (); save gray as"),
    "five axes": (npz_bytes(PIXELS[None]), "arr_0: has shape (1, 4, 8, 8, 3); save gray as"),
    "rgba": (npz_bytes(np.zeros((2, 8, 8, 4), np.uint8)), "arr_0: has shape (2, 8, 8, 4)"),
    "channels first": (npz_bytes(PIXELS.transpose(0, 3, 1, 2)), "arr_0: has shape (4, 3, 8, 8)"),
    "other name": (npz_bytes(images=PIXELS), "has no array arr_0 but ['images']"),
    "no array": (npz_bytes(), "has no array arr_0"),
    "too few labels": (npz_bytes(PIXELS, np.arange(3)), "arr_1 has shape (3,) for 4 images"),
    "label rows": (npz_bytes(PIXELS, np.eye(4, dtype=int)), "arr_1 has shape (4, 4)"),
    "float labels": (npz_bytes(PIXELS, np.arange(4.0)), "arr_1 is float64; save the labels"),
    "negative labels": (npz_bytes(PIXELS, np.arange(4) - 1), "arr_1 holds labels outside"),
    "huge labels": (npz_bytes(PIXELS, np.full(4, 2**63, np.uint64)), "arr_1 holds labels outside"),
    "cut": (npz_bytes(PIXELS)[:-40], "is cut short"),
    "empty file": (b"", "is cut short"),
    "npy": (idx_bytes(PIXELS), "is not an npz archive"),
    "checksum": (npz_with_bad_checksum(), "cannot be read (Bad CRC-32"),
}


@pytest.mark.parametrize("name", BAD_NPZ)
def test_a_bad_npz_is_refused(tmp_path, name):
    content, reason = BAD_NPZ[name]
    path = tmp_path / "images.npz"
    path.write_bytes(content)
    message = refused(str(path))
    assert message.startswith(f"{path}: ")
    assert reason in message


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int32, np.uint64])
def test_an_npz_brings_its_labels(tmp_path, dtype):
    np.savez(tmp_path / "a.npz", PIXELS, np.array([7, 0, 2, 1], dtype))
    loaded = load_images(tmp_path / "a.npz", num_images=3)
    assert loaded.labels.dtype == np.int64
    assert loaded.labels.tolist() == [7, 0, 2]


def test_gray_may_have_its_axis_or_not(tmp_path):
    pixels = random_images((4, 8, 8))
    np.savez(tmp_path / "a.npz", pixels)
    np.savez(tmp_path / "b.npz", pixels[..., None])
    assert load_images(tmp_path / "a.npz").sha256 == load_images(tmp_path / "b.npz").sha256


# idx

GRAY = random_images((4, 8, 8))
HUGE = bytes([0, 0, 8, 3]) + struct.pack(">3I", *[2**32 - 1] * 3) + bytes(100)
BAD_IDX = {
    "cut": (idx_bytes(GRAY)[:-1], "is cut short or corrupt (it holds 255 bytes of 256)"),
    "cut header": (idx_bytes(GRAY)[:9], "is cut short or corrupt"),
    "too long": (idx_bytes(GRAY) + b"\0", "holds more than its shape (4, 8, 8) says"),
    "cut gzip": (gzip.compress(idx_bytes(GRAY))[:-20], "is cut short or corrupt"),
    "cut gzip header": (gzip.compress(idx_bytes(GRAY))[:6], "is cut short or corrupt"),
    "gzip checksum": (gzip.compress(idx_bytes(GRAY))[:-8] + bytes(8), "is cut short or corrupt"),
    "corrupt gzip": (gzip.compress(idx_bytes(GRAY))[:99] + bytes(300), "is cut short or corrupt"),
    "floats": (idx_bytes(GRAY.astype(">f4"), kind=0x0D), "does not hold unsigned bytes"),
    "labels": (idx_bytes(np.arange(4, dtype=np.uint8)), "is a labels file; give the idx file"),
    "two axes": (idx_bytes(GRAY[0]), "is 2-dimensional"),
    "channels first": (idx_bytes(PIXELS.transpose(0, 3, 1, 2)), "has shape (4, 3, 8, 8)"),
    "none": (idx_bytes(GRAY[:0]), "is empty, of shape (0, 8, 8)"),
    "huge": (HUGE, "is cut short or corrupt (it holds 100 bytes of"),
    "huge gzip": (gzip.compress(HUGE), "too large for memory"),
    "empty file": (b"", "is not an idx file; give a folder"),
    "text": (b"something else", "is not an idx file; give a folder"),
    "gzipped text": (gzip.compress(b"something else"), "is not an idx file; give a folder"),
}


@pytest.mark.parametrize("name", BAD_IDX)
@pytest.mark.parametrize("file_name", ["a-images-idx3-ubyte", "a.gz"])
def test_a_bad_idx_is_refused(tmp_path, name, file_name):
    content, reason = BAD_IDX[name]
    path = tmp_path / file_name
    path.write_bytes(content)
    message = refused(str(path))
    assert message.startswith(f"{path}: ")
    assert reason in message


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("labels_suffix", ["", ".gz"])
@pytest.mark.parametrize("infix", ["-idx", ".idx"])
def test_an_idx_brings_the_labels_of_its_sibling(tmp_path, suffix, labels_suffix, infix):
    def save(name, values):
        content = idx_bytes(values)
        content = gzip.compress(content) if name.endswith(".gz") else content
        (tmp_path / name).write_bytes(content)

    path = tmp_path / f"t-images{infix}3-ubyte{suffix}"
    labels = tmp_path / f"t-labels{infix}1-ubyte{labels_suffix}"
    save(path.name, GRAY)
    assert load_images(path).labels is None
    save(labels.name, np.array([5, 3, 0, 255], np.uint8))
    assert load_images(path).labels.tolist() == [5, 3, 0, 255]
    assert load_images(path, num_images=2).labels.tolist() == [5, 3]
    save(labels.name, np.array([5, 3], np.uint8))
    message = refused(path, num_images=2)
    assert message.startswith(f"{labels}: has shape (2,) for the 4 images of {path.name}")
    labels.write_bytes(labels.read_bytes()[:-1])
    assert str(labels) in refused(path)


# Specs


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("cifar10", "name a split of cifar10: cifar10:train, cifar10:test"),
        ("cifar10:", "name a split of cifar10"),
        ("fashion-mnist:val", "name a split of fashion-mnist: fashion-mnist:train, "),
        ("svhn:test", "no such file or folder, nor a data set's name; the names are fashion-mnis"),
        ("mnist:val", "name a split of mnist: mnist:train, mnist:test"),
        ("no/such/folder", "no such file or folder"),
        ("", "no such file or folder"),
        (Path("cifar10:test"), "no such file or folder"),
    ],
)
def test_an_unknown_spec_is_told_what_there_is(monkeypatch, tmp_path, spec, reason):
    monkeypatch.chdir(tmp_path)
    message = refused(spec)
    assert message.startswith(f"{spec or 'an empty path'}: ")
    assert reason in message or (isinstance(spec, Path) and "name a split" not in message)
    for name in ("fashion-mnist:train", "fashion-mnist:test", "cifar10:train", "cifar10:test"):
        assert name in message or "name a split" in message


def test_a_folder_may_have_a_data_set_s_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    save_folder(tmp_path / "cifar10", random_images((2, 5, 5)))
    assert len(load_images("cifar10")) == 2


def test_a_single_image_is_not_a_set(tmp_path):
    rgb().save(tmp_path / "a.png")
    assert "give the folder that holds it" in refused(tmp_path / "a.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(idx_bytes(GRAY))
    (tmp_path / "a").chmod(0)
    assert "permissions" in refused(tmp_path / "a")


def test_a_path_too_long_for_the_system_is_refused():
    assert refused("x" * 5000).startswith("xxx")


# Named data sets


def test_the_shipped_set_is_the_published_one():
    from torchvision.datasets import FashionMNIST

    published = dict(FashionMNIST.resources)
    for name in T10K:
        content = (ASSETS / "fashion-mnist" / name).read_bytes()
        assert hashlib.md5(content, usedforsecurity=False).hexdigest() == published[name]
    loaded = load_images("fashion-mnist:test")
    assert loaded.pixels.shape == (10000, 1, 28, 28)
    assert np.bincount(loaded.labels).tolist() == [1000] * 10
    assert (loaded.source, loaded.split) == ("fashion-mnist", "test")
    assert list(loaded.ids[:2]) == ["0", "1"]
    assert loaded.ids[-1] == "9999"
    assert load_images("fashion-mnist:test", num_images=5).sha256 == loaded.subset(5).sha256
    assert load_images(ASSETS / "fashion-mnist" / T10K[0]).sha256 == loaded.sha256
    assert "Copyright (c) 2017 Zalando SE" in (ASSETS / "FASHION_MNIST_LICENSE").read_text()
    message = refused("fashion-mnist:test", num_images=10001)
    assert message.startswith("`num_images=10001`: ")
    assert "10000" in message


@pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist", TRAIN[0]).exists(),
    reason="needs the Debian package dataset-fashion-mnist",
)
def test_the_training_split_is_found_in_debian_s_folder_or_the_cache(monkeypatch):
    debian = Path("/usr/share/datasets/fashion-mnist")
    cache = datasets.cache_folder() / "fashion-mnist"
    cache.mkdir(parents=True)
    for name in TRAIN:
        shutil.copy(debian / name, cache)
    from_cache = load_images("fashion-mnist:train", num_images=1000)
    assert from_cache.labels.shape == (1000,)
    assert from_cache.pixels.shape == (1000, 1, 28, 28)
    shutil.rmtree(cache)
    monkeypatch.setattr(datasets, "_DEBIAN", debian)
    assert load_images("fashion-mnist:train", num_images=1000).sha256 == from_cache.sha256


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("fashion-mnist:train", TRAIN),
        ("mnist:train", TRAIN),
        ("mnist:test", T10K),
        ("kmnist:test", T10K),
        ("cifar10:train", ["cifar-10-python.tar.gz"]),
        ("cifar10:test", ["cifar-10-python.tar.gz"]),
    ],
)
@pytest.mark.parametrize(
    "error",
    [
        URLError("down"),
        TimeoutError("timed out"),
        http.client.RemoteDisconnected("closed"),
        http.client.IncompleteRead(b"", 5),
        RuntimeError("File not found or corrupted."),
    ],
)
def test_a_failed_download_says_which_files_to_put_where(monkeypatch, spec, names, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    message = refused(spec)
    assert message.startswith(f"{spec}: ")
    for name in names:
        assert name in message
    folder = datasets.cache_folder() / spec.split(":")[0]
    assert f"into {folder} " in message
    assert not [path for path in folder.rglob("*") if path.is_file()]


def test_a_cache_that_cannot_be_written_is_refused(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DDPMBENCH_CACHE", str(tmp_path / "file"))
    for spec in ("fashion-mnist:train", "cifar10:test"):
        assert refused(spec).startswith(f"{spec}: ")


def test_without_the_variable_the_cache_is_the_user_s(monkeypatch):
    monkeypatch.delenv("DDPMBENCH_CACHE")
    assert datasets.cache_folder().name == "ddpmbench"
    assert datasets.cache_folder().is_absolute()


@pytest.mark.parametrize("module", ["torchvision.datasets", "platformdirs", "PIL"])
def test_a_missing_library_is_named(monkeypatch, tmp_path, module):
    save_folder(tmp_path / "f", random_images((1, 5, 5)))
    monkeypatch.setitem(sys.modules, module, None)
    if module == "PIL":
        assert "pip install pillow" in refused(tmp_path / "f")
    elif module == "platformdirs":
        monkeypatch.delenv("DDPMBENCH_CACHE")
        assert "pip install platformdirs" in refused("cifar10:test")
        assert len(load_images("fashion-mnist:test", num_images=3)) == 3
    else:
        for spec in ("cifar10:test", "fashion-mnist:train"):
            assert "pip install torchvision" in refused(spec)


class Response(io.BytesIO):
    """A server's answer, from memory."""

    def __init__(self, url, content):
        super().__init__(content)
        self.url, self.length = url, len(content)


def serve(monkeypatch, contents):
    """The network answers with these files, by name; returns the names asked for."""
    asked = []

    def urlopen(request, *args, **kwargs):
        name = request.full_url.rsplit("/", 1)[1]
        asked.append(name)
        sys.stdout.write("downloading, as older torchvisions say on stdout\n")
        return Response(request.full_url, contents[name])

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


@pytest.fixture
def not_shipped(monkeypatch, tmp_path):
    """The test split in the place of one that has to be downloaded; its bytes by name."""
    monkeypatch.setattr(datasets, "_SHIPPED", tmp_path / "nothing")
    return {name: (ASSETS / "fashion-mnist" / name).read_bytes() for name in T10K}


def test_a_download_is_kept_and_used_again(monkeypatch, not_shipped, capsys):
    asked = serve(monkeypatch, not_shipped)
    first = load_images("fashion-mnist:test", num_images=100)
    assert set(asked) == set(T10K)
    asked.clear()
    assert load_images("fashion-mnist:test", num_images=100).sha256 == first.sha256
    assert asked == []
    assert capsys.readouterr().out == ""
    folder = datasets.cache_folder() / "fashion-mnist"
    assert sorted(path.name for path in folder.iterdir()) == sorted(T10K)


@pytest.mark.parametrize("name", ["MNIST", "KMNIST"])
def test_mnist_is_downloaded_verified_and_kept(monkeypatch, name):
    import torchvision

    spec = f"{name.lower()}:test"
    assert "not downloaded" in refused(spec)
    labels = np.arange(4, dtype=np.uint8)
    contents = {n: gzip.compress(idx_bytes(v)) for n, v in zip(T10K, (GRAY, labels), strict=True)}
    md5 = {n: hashlib.md5(c, usedforsecurity=False).hexdigest() for n, c in contents.items()}
    resources = list(md5.items())
    serve(monkeypatch, contents)
    assert "not downloaded" in refused(spec)  # those are not the published ones
    monkeypatch.setattr(getattr(torchvision.datasets, name), "resources", resources)
    asked = serve(monkeypatch, contents)
    loaded = load_images(spec)
    assert set(asked) == set(T10K)
    assert (loaded.source, loaded.split) == (name.lower(), "test")
    assert loaded.labels.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(loaded.pixels[:, 0], GRAY)
    asked.clear()
    assert load_images(spec).sha256 == loaded.sha256
    assert asked == []
    path = datasets.cache_folder() / name.lower() / T10K[1]
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    asked = serve(monkeypatch, contents)
    assert load_images(spec).labels.tolist() == [0, 1, 2, 3]
    assert asked


@pytest.mark.parametrize("damaged", T10K)
def test_a_file_in_the_cache_that_is_not_the_published_one_is_not_used(
    monkeypatch, not_shipped, damaged
):
    folder = datasets.cache_folder() / "fashion-mnist"
    folder.mkdir(parents=True)
    for name, content in not_shipped.items():
        (folder / name).write_bytes(content)
    assert len(load_images("fashion-mnist:test", num_images=7)) == 7
    values = bytearray(gzip.decompress(not_shipped[damaged]))
    values[-1] ^= 1
    for content in (gzip.compress(values, 1), not_shipped[damaged][:-100], b"", b"text"):
        (folder / damaged).write_bytes(content)
        assert "not intact on this machine" in refused("fashion-mnist:test", num_images=7)
    serve(monkeypatch, not_shipped)
    assert len(load_images("fashion-mnist:test", num_images=7)) == 7


def test_a_download_that_is_not_the_published_file_is_refused(monkeypatch, not_shipped):
    serve(monkeypatch, {**not_shipped, T10K[1]: gzip.compress(b"something else")})
    assert "not downloaded (File not found or corrupted.)" in refused("fashion-mnist:test")


@pytest.fixture
def small_cifar10(monkeypatch):
    """Two images a batch instead of 10,000, archived as the authors did; the archive's bytes."""
    from torchvision.datasets import CIFAR10

    def md5(content):
        return hashlib.md5(content, usedforsecurity=False).hexdigest()

    names = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    files = {}
    for batch, name in enumerate(names):
        values = random_images((2, 3072), seed=batch)
        files[name] = pickle.dumps({"data": values, "labels": [batch, 9 - batch]})
    files["batches.meta"] = pickle.dumps({"label_names": ["a"]})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5(files[name])] for name in names[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [[name, md5(files[name])] for name in names[5:]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5(files["batches.meta"])})
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(buffer.getvalue()))
    return buffer.getvalue()


def test_cifar10_is_downloaded_once_and_its_channels_come_first(monkeypatch, small_cifar10, capsys):
    asked = serve(monkeypatch, {"cifar-10-python.tar.gz": small_cifar10})
    test = load_images("cifar10:test")
    assert asked
    asked.clear()
    train = load_images("cifar10:train", num_images=9)
    assert asked == []
    assert capsys.readouterr().out == ""
    np.testing.assert_array_equal(
        test.pixels, random_images((2, 3072), seed=5).reshape(2, 3, 32, 32)
    )
    assert test.labels.tolist() == [5, 4]
    assert train.labels.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4]
    assert train.pixels.shape == (9, 3, 32, 32)
    assert (train.source, train.split, list(train.ids[:2])) == ("cifar10", "train", ["0", "1"])
    assert "holds 10 images" in refused("cifar10:train", num_images=11)


def test_a_cifar10_archive_put_into_the_cache_is_used_if_intact(small_cifar10):
    folder = datasets.cache_folder() / "cifar10"
    folder.mkdir(parents=True)
    (folder / "cifar-10-python.tar.gz").write_bytes(small_cifar10[:-1])
    assert "not intact on this machine" in refused("cifar10:test")
    (folder / "cifar-10-python.tar.gz").write_bytes(small_cifar10)
    assert len(load_images("cifar10:test")) == 2


def test_a_damaged_pickle_is_never_opened(monkeypatch, small_cifar10):
    serve(monkeypatch, {"cifar-10-python.tar.gz": small_cifar10})
    load_images("cifar10:test")
    folder = datasets.cache_folder() / "cifar10"
    (folder / "cifar-10-python.tar.gz").unlink()
    batch = folder / "cifar-10-batches-py" / "test_batch"
    batch.write_bytes(batch.read_bytes() + b"\0")

    def opened(*args, **kwargs):
        raise AssertionError("a pickle of another hash was opened")

    monkeypatch.setattr(pickle, "load", opened)
    serve(monkeypatch, {"cifar-10-python.tar.gz": b"another archive"})
    assert "cifar10:test: " in refused("cifar10:test")


def test_other_arrays_of_an_archive_are_counted(tmp_path):
    np.savez(tmp_path / "two.npz", arr_0=np.zeros((2, 8, 8), np.uint8), images=np.zeros(3))
    images = load_images(tmp_path / "two.npz")
    assert images.passed_over == {"array": 1}
    assert any("1 array" in note for note in images.notes)
