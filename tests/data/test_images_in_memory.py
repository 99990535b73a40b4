"""Images as names, paths and arrays are the same images, and hostile files are one line."""

import contextlib
import io
import os
import struct
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from ddpmbench.data.images import ImageSet, load_images
from ddpmbench.errors import InputError
from ddpmbench.evaluate.nll import evaluate_nll
from ddpmbench.samples.statistics import is_statistics, read_statistics


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def refused(source, **options):
    """The one line that refuses it."""
    with pytest.raises(InputError) as info:
        load_images(source, **options)
    message = str(info.value)
    assert len(message.splitlines()) == 1
    assert message.isprintable()
    return message


@pytest.mark.parametrize("channels", [1, 3])
def test_the_form_of_an_array_cannot_matter(tmp_path, channels):
    pixels = random_images(4, 5, 6, channels)
    np.savez(tmp_path / "a.npz", pixels)
    expected = load_images(tmp_path / "a.npz")
    pictures = [image[..., 0] if channels == 1 else image for image in pixels]
    forms = [
        pixels,
        np.asfortranarray(pixels),
        torch.from_numpy(pixels).permute(0, 3, 1, 2),
        pictures,
        [Image.fromarray(image) for image in pictures],
        str(tmp_path / "a.npz"),
        expected,
    ]
    if channels == 1:
        forms += [pixels[..., 0], torch.from_numpy(pixels[..., 0])]
    for form in forms:
        loaded = load_images(form)
        assert loaded.sha256 == expected.sha256
        assert load_images(form, num_images=3).sha256 == expected.subset(3).sha256
        assert not loaded.pixels.flags.writeable
    pixels[:] = 0
    assert load_images(expected).sha256 == expected.sha256


REFUSED = {
    "0..1": (np.random.default_rng(0).random((2, 5, 6, 3)), "(255 * x).round().astype('uint8')"),
    "-1..1": (np.linspace(-1, 1, 60).reshape(2, 5, 6), "(127.5 * x + 127.5).round()"),
    "tensor": (torch.rand(2, 3, 5, 6), "(255 * x).round()"),
    "bfloat16": (torch.rand(2, 3, 5, 6).bfloat16(), "(255 * x).round()"),
    "meta": (torch.zeros(2, 3, 5, 6, dtype=torch.uint8, device="meta"), "meta device"),
    "sparse": (torch.ones(2, 5, 6, dtype=torch.uint8).to_sparse(), "x.to_dense()"),
    "masked": (np.ma.array(np.ones((2, 5, 6), np.uint8), mask=True), "x.filled(0)"),
    "no mask": (np.ma.array(np.ones((2, 5, 6), np.uint8)), "x.filled(0)"),
    "masked images": ([np.ma.array(np.ones((5, 6), np.uint8), mask=True)], "x.filled(0)"),
    "int64": (np.zeros((2, 5, 6), np.int64), "x.astype('uint8')"),
    "bool": (np.zeros((2, 5, 6), bool), "255 * x"),
    "channels first": (random_images(2, 3, 5, 6), "x.transpose(0, 2, 3, 1)"),
    "channels last": (torch.zeros(2, 5, 6, 3, dtype=torch.uint8), "give a tensor as (N, C, H, W)"),
    "none": (random_images(0, 5, 6), "is empty"),
    "objects": (np.array([None]), "is object"),
    "sizes": ([random_images(5, 6), random_images(6, 5)], "image 1: has shape (6, 5)"),
    "a list of other things": ([1, 2], "image 0: is int"),
    "nothing": ([], "is neither"),
    "a number": (7, "is neither"),
    "transparent": ([Image.new("RGBA", (5, 6))], "image 0: has transparency"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_array_is_refused_with_how_to_convert_it(name):
    array, reason = REFUSED[name]
    assert reason in refused(array)


def test_the_conversion_that_is_named_works():
    for name in ("0..1", "-1..1", "int64", "bool", "channels first"):
        x = REFUSED[name][0]
        line = REFUSED[name][1]
        message = refused(x)
        line = message.split("(N, H, W, 3): " if name == "channels first" else "0..255: ")[1]
        assert load_images(eval(line.split(" where ")[0], {"x": x})).pixels.shape[0] == 2


def test_a_bound_takes_an_array_a_path_or_a_set(small_model, tmp_path):
    pixels = random_images(2, 8, 8)
    np.save(tmp_path / "a.npy", pixels)
    options = {"estimator": "every-pair", "draws": 1, "check": False, "device": "cpu"}
    model = small_model.respaced(3)
    found = {
        evaluate_nll(model, images, **options).summary["bits_per_dim"]
        for images in (pixels, tmp_path / "a.npy", str(tmp_path / "a.npy"), load_images(pixels))
    }
    assert len(found) == 1


# idx files in a folder


def save_idx(folder, name, values):
    folder.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    (folder / name).write_bytes(header + values.tobytes())


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


# Files made to be slow or wrong


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    for name in ("pipe", "pipe.npz", "pipe.png"):
        os.mkfifo(tmp_path / name)
        assert "is a named pipe, not a file" in refused(tmp_path / name)
        assert not is_statistics(tmp_path / name)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="has no such device")
def test_a_device_is_refused():
    assert "is a device, not a file" in refused("/dev/zero")


def test_a_long_name_is_one_line(tmp_path):
    name = "x" * 300
    assert "cannot be read" in refused(name)
    assert not is_statistics(f"{name}.npz")
    assert "\\x1b" in refused("a\x1b[2J")


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


def unless_refused(read):
    """What it gives; None where it is refused."""
    with contextlib.suppress(InputError):
        return read()


def test_any_flipped_bit_of_an_archive_is_one_line_or_harmless(tmp_path):
    pixels, labels = random_images(3, 4, 5), np.arange(3)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, pixels, labels)
    content = buffer.getvalue()
    expected = load_images(pixels).sha256
    chance, path = np.random.default_rng(0), tmp_path / "a.npz"
    for position in chance.choice(len(content), 150, replace=False):
        damaged = bytearray(content)
        damaged[position] ^= 1 << chance.integers(8)
        path.write_bytes(damaged)
        loaded = unless_refused(lambda: load_images(path))
        if loaded is not None:
            assert loaded.sha256 == expected
            assert loaded.labels is None or loaded.labels.tolist() == [0, 1, 2]


def test_any_flipped_bit_of_statistics_is_one_line_or_harmless(tmp_path):
    mean, covariance = np.arange(3.0), np.eye(3)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, mu=mean, sigma=covariance)
    content = buffer.getvalue()
    chance, path = np.random.default_rng(0), tmp_path / "a.npz"
    for position in chance.choice(len(content), 150, replace=False):
        damaged = bytearray(content)
        damaged[position] ^= 1 << chance.integers(8)
        path.write_bytes(damaged)
        is_statistics(path)
        found = unless_refused(lambda: read_statistics(path, num_features=3))
        if found is not None:
            np.testing.assert_array_equal(found.mean, mean)
            np.testing.assert_array_equal(found.covariance, covariance)


def test_an_image_set_is_what_it_was():
    images = load_images(random_images(2, 5, 6))
    assert isinstance(images, ImageSet)
    assert load_images(images) is images
