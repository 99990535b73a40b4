"""Files of arrays, npz, npy and idx: their images and labels, and damage of every kind."""

import contextlib
import gzip
import io
import struct
import zipfile

import numpy as np
import pytest
from image_files import idx_bytes, npz_bytes, random_images, refused
from numpy.lib import format as npy

from ddpmbench.data.load import load_images
from ddpmbench.errors import InputError
from ddpmbench.metrics.statistics import is_statistics, read_statistics


def npz_with_bad_checksum():
    content = bytearray(npz_bytes(random_images(2, 8, 8)))
    content[200] ^= 1
    return bytes(content)


PIXELS = random_images(4, 8, 8, 3)
BAD_NPZ = {
    "float": (npz_bytes(PIXELS / np.float32(255)), "arr_0 is float32; save the pixels as uint8"),
    "object": (npz_bytes(np.array([None, "a"], object)), "cannot be read (Object arrays"),
    "object labels": (npz_bytes(PIXELS, np.array([None] * 4)), "cannot be read (Object arrays"),
    "none": (npz_bytes(PIXELS[:0]), "arr_0: is empty, of shape (0, 8, 8, 3)"),
    "one image": (npz_bytes(PIXELS[0]), "arr_0: has shape (8, 8, 3); save gray as"),
    "five axes": (npz_bytes(PIXELS[None]), "arr_0: has shape (1, 4, 8, 8, 3); save gray as"),
    "rgba": (npz_bytes(np.zeros((2, 8, 8, 4), np.uint8)), "arr_0: has shape (2, 8, 8, 4)"),
    "channels first": (npz_bytes(PIXELS.transpose(0, 3, 1, 2)), "arr_0: has shape (4, 3, 8, 8)"),
    "other name": (npz_bytes(images=PIXELS), "has no array arr_0 but ['images']"),
    "no array": (npz_bytes(), "has no array arr_0"),
    "too few labels": (npz_bytes(PIXELS, np.arange(3)), "arr_1 has shape (3,) for 4 images"),
    "float labels": (npz_bytes(PIXELS, np.arange(4.0)), "arr_1 is float64; save the labels"),
    "negative labels": (npz_bytes(PIXELS, np.arange(4) - 1), "arr_1 holds labels outside"),
    "huge labels": (npz_bytes(PIXELS, np.full(4, 2**63, np.uint64)), "arr_1 holds labels outside"),
    "cut": (npz_bytes(PIXELS)[:-40], "is cut short"),
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
    pixels = random_images(4, 8, 8)
    np.savez(tmp_path / "a.npz", pixels)
    np.savez(tmp_path / "b.npz", pixels[..., None])
    assert load_images(tmp_path / "a.npz").sha256 == load_images(tmp_path / "b.npz").sha256


# ---- idx

GRAY = random_images(4, 8, 8)
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
    "text": (b"something else", "is not an idx file; give a folder"),
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


def save_idx(folder, name, values):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(idx_bytes(values))


def test_idx_files_in_a_folder_are_read(tmp_path):
    folder = tmp_path / "MNIST"
    train, test = random_images(3, 5, 6), random_images(2, 5, 6, seed=1)
    save_idx(folder / "raw", "t10k-images-idx3-ubyte", test)
    save_idx(folder / "raw", "t10k-labels-idx1-ubyte", np.arange(2, dtype=np.uint8))
    loaded = load_images(folder)
    np.testing.assert_array_equal(loaded.pixels[:, 0], test)
    assert loaded.labels.tolist() == [0, 1]
    (folder / "raw" / "t10k-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b")  # the same, downloaded
    assert load_images(folder).sha256 == loaded.sha256
    assert "holds 0 idx files" in refused(f"{folder}:train")
    save_idx(folder / "raw", "train-images-idx3-ubyte", train)
    message = refused(folder)
    for split, pixels in (("train", train), ("test", test)):
        assert f"{folder}:{split}" in message
        np.testing.assert_array_equal(load_images(f"{folder}:{split}").pixels[:, 0], pixels)


# ---- headers and bits


def header_of(shape):
    text = str({"descr": "|u1", "fortran_order": False, "shape": shape}).ljust(117) + "\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode()


@pytest.mark.parametrize("shape", [(10**12, 8, 8), (2, 10**9, 10**9), (2**70, 8, 8), (2, 8, 2**70)])
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_a_header_that_claims_too_much_is_refused_at_once(tmp_path, shape, kind):
    path = tmp_path / f"a.{kind}"
    content = header_of(shape) + bytes(200)
    if kind == "npz":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("arr_0.npy", content)
    else:
        path.write_bytes(content)
    assert "it holds" in refused(path)


def read_set(path):
    loaded = load_images(path)
    return [loaded.pixels, *([] if loaded.labels is None else [loaded.labels])]


def read_moments(path):
    is_statistics(path)
    result = read_statistics(path, num_features=3)
    return [result.mean, result.covariance]


@pytest.mark.parametrize(
    ("arrays", "read"),
    [
        ({"arr_0": random_images(3, 4, 5), "arr_1": np.arange(3)}, read_set),
        ({"mu": np.arange(3.0), "sigma": np.eye(3)}, read_moments),
    ],
)
def test_any_flipped_bit_is_refused_or_harmless(tmp_path, arrays, read):
    path, chance = tmp_path / "a.npz", np.random.default_rng(0)
    np.savez_compressed(path, **arrays)
    content, expected = path.read_bytes(), read(path)
    for position in chance.choice(len(content), 150, replace=False):
        damaged = bytearray(content)
        damaged[position] ^= 1 << chance.integers(8)
        path.write_bytes(damaged)
        with contextlib.suppress(InputError):
            # Labels may be lost with the name of their array.
            for array, intact in zip(read(path), expected, strict=False):
                np.testing.assert_array_equal(array, intact)


def test_other_arrays_of_an_archive_are_counted(tmp_path):
    np.savez(tmp_path / "two.npz", arr_0=np.zeros((2, 8, 8), np.uint8), images=np.zeros(3))
    images = load_images(tmp_path / "two.npz")
    assert images.passed_over == {"array": 1}
    assert any("1 array" in note for note in images.notes)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("claim", [4, 5])
def test_every_version_of_the_format_is_read(tmp_path, version, claim):
    pixels, member = random_images(4, 5, 6, 3), io.BytesIO()
    npy.write_array(member, pixels, version)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        claimed = f"({claim}, 5".encode()
        archive.writestr("arr_0.npy", member.getvalue().replace(b"(4, 5", claimed))
    if claim > 4:
        with pytest.raises(InputError, match="it holds 360 bytes of 450"):
            load_images(tmp_path / "a.npz")
        assert len(load_images(tmp_path / "a.npz", num_images=4)) == 4
    else:
        np.testing.assert_array_equal(
            load_images(tmp_path / "a.npz").pixels, pixels.transpose(0, 3, 1, 2)
        )
