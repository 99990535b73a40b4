"""What is said of images, and each remedy that a message names, followed to a number."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import torch
from image_files import random_images, save_folder
from PIL import Image

from ddpmbench import load_checkpoint
from ddpmbench.checkpoints.native import write_native
from ddpmbench.data.load import load_images
from ddpmbench.errors import InputError
from ddpmbench.unet.unet import UNet

FAST = ("--estimator", "every-pair", "--draws", "1", "--no-check", "--timesteps", "4")


@pytest.fixture
def model(small_model, tmp_path):
    """Writes the small network with other channels, classes or size; its path."""

    def write(*, channels=1, num_classes=0, image_size=8):
        config = dataclasses.replace(
            small_model.network.config,
            in_channels=channels,
            out_channels=channels,
            num_classes=num_classes,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = UNet(config).eval()
        path = tmp_path / f"c{channels}-k{num_classes}-s{image_size}.safetensors"
        checkpoint = dataclasses.replace(
            small_model,
            network=network,
            channels=channels,
            num_classes=num_classes,
            image_size=image_size,
        )
        write_native(path, checkpoint)
        return path

    return write


@pytest.fixture
def nll(invoke, tmp_path):
    """Runs nll; returns its status, its summary if any, and what it said."""

    def call(checkpoint, data, *options):
        out = tmp_path / "run"
        shutil.rmtree(out, ignore_errors=True)
        status, _, message = invoke(
            "nll", "--ckpt", checkpoint, "--data", data, *FAST, "--out", out, *options
        )
        if status:
            assert status == 2
            assert message.splitlines()[-1].startswith("Error: ")
            return status, None, message
        return status, json.loads((out / "summary.json").read_text()), message

    return call


# What is not read is said


def test_what_is_passed_over_is_in_a_line_and_in_the_summary(nll, model, tmp_path):
    folder = save_folder(tmp_path / "f", random_images(2, 8, 8))
    (folder / "labels.csv").write_text("a")
    (folder / ".hidden").write_text("")
    status, summary, message = nll(model(), folder)
    assert status == 0
    assert message.count("passed over besides the images: 1 hidden, 1 .csv") == 1
    assert summary["data"]["passed_over"] == {"hidden": 1, ".csv": 1}
    Image.fromarray(random_images(1, 8, 8)[0]).save(folder / "9.tga")
    status, _, message = nll(model(), folder)
    assert status == 2
    assert "9.tga: .tga is not read" in message
    status, summary, message = nll(model(), folder, *_named(message, "--on-bad"))
    assert (status, summary["num_images"], summary["data"]["skipped"]) == (0, 2, 1)
    assert "1 file of" in message


def _named(told, option):
    """The option as the message names it, with its value."""
    return re.search(rf"{option} \w+", told)[0].split()


# Images that are not alike


def test_one_gray_image_is_converted_as_the_message_says(nll, model, tmp_path):
    pixels = random_images(4, 8, 8, 3)
    folder = save_folder(tmp_path / "f", pixels)
    Image.fromarray(pixels[0, ..., 0]).save(folder / "0.png")
    status, _, message = nll(model(channels=3), folder)
    assert status == 2
    status, summary, told_then = nll(model(channels=3), folder, *_named(message, "--convert"))
    assert status == 0
    assert summary["num_images"] == 4
    assert summary["data"]["convert"] == "rgb"
    assert "gray is repeated to RGB" in told_then
    pixels[0] = pixels[0, ..., :1]
    np.savez(tmp_path / "same.npz", pixels)
    assert load_images(tmp_path / "same.npz").sha256 == summary["data"]["sha256"]
    Image.fromarray(random_images(1, 8, 9, 3)[0]).save(folder / "1.png")
    options = _named(message, "--convert")
    status, _, message = nll(model(channels=3), folder, *options)
    assert status == 2
    assert "--convert" not in message  # which would not help
    status, summary, _ = nll(model(channels=3), folder, *options, *_named(message, "--on-bad"))
    assert summary["num_images"] == 3


@pytest.mark.parametrize(("channels", "of_model"), [(1, 3), (3, 1)])
def test_channels_that_the_model_does_not_take_are_converted(
    nll, model, tmp_path, channels, of_model
):
    shape = (2, 8, 8) if channels == 1 else (2, 8, 8, 3)
    np.savez(tmp_path / "a.npz", random_images(*shape))
    status, _, message = nll(model(channels=of_model), tmp_path / "a.npz")
    assert status == 2
    assert nll(model(channels=of_model), tmp_path / "a.npz", *_named(message, "--convert"))[0] == 0


@pytest.mark.parametrize("to", ["rgb", "gray"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_a_conversion_is_pillow_s(tmp_path, mode, to):
    image = Image.fromarray(random_images(1, 64, 64, 3)[0]).convert(mode)
    folder = tmp_path / "f"
    folder.mkdir()
    image.save(folder / "0.png")
    loaded = load_images(folder, convert=to).pixels[0]
    expected = np.asarray(image.convert("RGB") if to == "rgb" else image.convert("L"))
    np.testing.assert_array_equal(loaded.transpose(1, 2, 0).squeeze(), expected)
    if mode == "RGB":
        np.savez(tmp_path / "a.npz", np.asarray(image)[None])
        np.testing.assert_array_equal(load_images(tmp_path / "a.npz", convert=to).pixels[0], loaded)


# Classes


@pytest.fixture
def class_folders(tmp_path):
    for index, name in enumerate(("cat", "dog")):
        save_folder(tmp_path / "classes" / name, random_images(2, 8, 8, seed=index))
    return tmp_path / "classes"


def test_class_folders_are_the_classes_in_sorted_order(nll, model, class_folders, tmp_path):
    checkpoint = model(num_classes=2)
    status, summary, message = nll(checkpoint, class_folders)
    assert status == 0
    assert message.count("cat = 0, dog = 1") == 1
    assert summary["data"]["classes"] == ["cat", "dog"]
    images = load_images(class_folders)
    pixels = images.pixels.transpose(0, 2, 3, 1)
    for labels, is_same in (([0, 0, 1, 1], True), ([1, 1, 0, 0], False)):
        np.savez(tmp_path / "a.npz", pixels, np.array(labels))
        of_npz = nll(checkpoint, tmp_path / "a.npz")[1]
        assert (of_npz["bits_per_dim"] == summary["bits_per_dim"]) == is_same
    assert (
        of_npz["bits_per_dim"]
        == nll(checkpoint, class_folders, "--class-names", "dog,cat")[1]["bits_per_dim"]
    )
    # The labels are those of the folder, however few of its images are taken.
    assert nll(checkpoint, class_folders, "--num-images", "2")[0] == 0
    assert "cat = 0" not in nll(checkpoint, class_folders, "--class", "1")[2]
    assert "cat = 0" not in nll(model(), class_folders)[2]


def test_a_class_folder_without_images_keeps_its_number(nll, model, class_folders):
    (class_folders / "cow").mkdir()
    status, summary, message = nll(model(num_classes=3), class_folders)
    assert status == 0, message
    assert summary["data"]["classes"] == ["cat", "cow", "dog"]
    (class_folders / "cow" / "0.pgm").write_bytes(b"P5 8 8 255 " + bytes(64))
    assert set(load_images(class_folders, on_bad="skip").labels) == {0, 2}
    names = ("--on-bad", "skip", "--class-names", "dog,cat")  # without images, no name is needed
    assert nll(model(num_classes=2), class_folders, *names)[0] == 0


def test_fewer_folders_than_classes_are_named_as_the_message_says(
    nll, model, class_folders, tmp_path
):
    checkpoint = model(num_classes=3)
    status, _, message = nll(checkpoint, class_folders)
    assert status == 2
    assert "2 class folders (cat, dog)" in message
    assert "--class-names" in message
    (tmp_path / "names.txt").write_text("bird\ncat\ndog\n")
    status, summary, message = nll(
        checkpoint, class_folders, "--class-names", tmp_path / "names.txt"
    )
    assert status == 0
    assert summary["data"]["classes"] == ["bird", "cat", "dog"]
    np.savez(
        tmp_path / "a.npz",
        load_images(class_folders).pixels.transpose(0, 2, 3, 1),
        np.array([1, 1, 2, 2]),
    )
    assert nll(checkpoint, tmp_path / "a.npz")[1]["bits_per_dim"] == summary["bits_per_dim"]
    for names in ("bird,cat", "bird,cat,cat,dog", "a,b,c"):
        assert nll(checkpoint, class_folders, "--class-names", names)[0] == 2


def test_numbers_that_sort_in_two_ways_are_not_guessed(nll, model, tmp_path):
    for number in (0, 1, 2, 10):
        save_folder(tmp_path / "f" / str(number), random_images(1, 8, 8, seed=number))
    checkpoint = model(num_classes=4)
    status, _, message = nll(checkpoint, tmp_path / "f")
    assert status == 2
    assert "--class-names" in message
    for names in ("0,1,10,2", "0,1,2,10"):
        status, summary, _ = nll(checkpoint, tmp_path / "f", "--class-names", names)
        assert status == 0
        assert summary["data"]["classes"] == names.split(",")


# Archives and arrays of other kinds


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar", "bztar", "xztar"])
def test_an_archive_is_named_and_can_be_unpacked(tmp_path, kind):
    pixels = random_images(4, 8, 8, 3)
    path = shutil.make_archive(tmp_path / "a", kind, save_folder(tmp_path / "images", pixels))
    with pytest.raises(InputError, match=r"is a (zip|tar|gzip|bzip2|xz) .*; unpack it, or "):
        load_images(path)
    shutil.unpack_archive(path, tmp_path / "unpacked")
    loaded = load_images(tmp_path / "unpacked")
    np.testing.assert_array_equal(loaded.pixels.transpose(0, 2, 3, 1), pixels)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.parquet", b"PAR1", "is a parquet file; save its images as PNG files in a folder, or "),
        ("a.mat", b"MATLAB 5.0", "is a MATLAB file; save its images as PNG files in a folder, or "),
        ("a.ckpt", b"\x80\2", "is a file of weights; "),
        ("a.safetensors", b"", "(a checkpoint is given as `ckpt`)"),
        ("a.bin", b"\6 of CIFAR-10", "is not an idx file; give a folder of images"),
        ("a.gz", b"\x1f\x8b", "is cut short or corrupt"),
    ],
)
def test_other_files_say_what_they_are(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=re.escape(words)):
        load_images(tmp_path / name)


def test_an_npy_is_read(tmp_path):
    pixels = random_images(4, 8, 8, 3)
    expected, path = load_images(pixels), tmp_path / "a.npy"
    for array in (pixels, np.asfortranarray(pixels)):
        np.save(path, array)
        assert load_images(path).sha256 == expected.sha256
        assert load_images(path, num_images=2).sha256 == expected.subset(2).sha256


# A border


def test_padding_is_said_and_counted(nll, model, invoke, tmp_path):
    pixels = random_images(3, 6, 6)
    np.savez(tmp_path / "small.npz", pixels)
    bordered = np.pad(pixels, ((0, 0), (1, 1), (1, 1)))
    np.savez(tmp_path / "bordered.npz", bordered)
    status, _, message = nll(model(), tmp_path / "small.npz")
    assert status == 2
    status, summary, message = nll(model(), tmp_path / "small.npz", *_named(message, "--pad"))
    assert status == 0
    same = nll(model(), tmp_path / "bordered.npz")[1]
    assert summary["bits_per_dim"] == same["bits_per_dim"]
    assert "unpadded" not in same
    assert summary["data"]["padding"] == {"from": [6, 6], "to": [8, 8], "value": 0}
    unpadded = summary["bits_per_dim"] * 64 / 36
    assert summary["unpadded"]["bits_per_dim"] == pytest.approx(unpadded, rel=1e-12)
    assert "per dimension of the padded images" in message
    words = ("--ckpt", model(), "--data", tmp_path / "small.npz", *FAST, "--pad", 8)
    printed = invoke("nll", *words, "--out", tmp_path / "run")[1]
    assert re.search(r"padding +6x6 to 8x8 with black; <= [0-9.]+ bits per dimension", printed)
    for side in (4, 7, 9):
        assert nll(model(), tmp_path / "small.npz", "--pad", side)[0] == 2
    twice = load_images(load_images(tmp_path / "small.npz", pad=8), pad=10)
    assert twice.record["padding"] == {"from": [6, 6], "to": [10, 10], "value": 0}


@pytest.mark.parametrize("option", [{"on_bad": "skip"}, {"class_names": ["a"]}])
def test_what_is_read_already_cannot_be_read_otherwise(option):
    images = load_images(random_images(3, 6, 6))
    with pytest.raises(InputError, match="read already; read its folder"):
        load_images(images, **option)


# Rectangles


def test_a_rectangle_goes_through_every_command(nll, model, invoke, tmp_path):
    checkpoint = model(image_size=(8, 16))
    np.savez(tmp_path / "a.npz", random_images(3, 8, 16))
    np.savez(tmp_path / "turned.npz", random_images(3, 16, 8))
    status, summary, _ = nll(checkpoint, tmp_path / "a.npz")
    assert status == 0
    assert "are 8x16, the checkpoint" in nll(checkpoint, tmp_path / "turned.npz")[2]
    assert "16x8" in invoke("inspect", checkpoint)[1]
    assert invoke("sample", "--ckpt", checkpoint, "-n", 2, "--out", tmp_path / "s")[0] == 0
    assert load_images(tmp_path / "s" / "samples.npz").pixels.shape == (2, 1, 8, 16)
    assert invoke("convert", checkpoint, tmp_path / "diffusers")[0] == 0
    assert load_checkpoint(tmp_path / "diffusers").image_size == (8, 16)
    again = nll(tmp_path / "diffusers", tmp_path / "a.npz")[1]
    assert again["bits_per_dim"] == pytest.approx(summary["bits_per_dim"], abs=1e-6)
    config = tmp_path / "diffusers" / "unet" / "config.json"
    for size, expected in (([8, 8], 8), (8, 8), (None, None)):
        fields = {**json.loads(config.read_text()), "sample_size": size}
        config.write_text(json.dumps(fields))
        assert load_checkpoint(tmp_path / "diffusers").image_size == expected


# A bound above the raw pixels


@pytest.mark.parametrize(("levels", "raw"), [(256, "8"), (16, "4"), (5, "2.322")])
def test_a_bound_above_the_raw_pixels_is_said(nll, model, invoke, tmp_path, levels, raw):
    np.savez(tmp_path / "a.npz", random_images(2, 8, 8))
    status, summary, message = nll(model(), tmp_path / "a.npz", "--levels", levels)
    assert status == 0
    line = f"worse than sending raw pixels ({raw} bits/dim)"
    assert summary["bits_per_dim"] > np.log2(levels)
    assert message.count(line) == 1
    assert summary["worse_than_raw_pixels"] is True
    assert invoke("rd", "--run", tmp_path / "run")[2].count(line) == 1


TRAINING = ("--steps", 1, "--channels", "8", "--attention", "0", "--norm-groups", 4)
MEASURING = ("--num-samples", 1, "--precision", "fp32")


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("train", (*TRAINING, "--num-blocks", 1, "--batch-size", 2)),
        ("speed", (*MEASURING, "--batch-size", 2)),
    ],
)
def test_the_remedies_are_options_of_the_commands_that_name_them(
    invoke, model, tmp_path, monkeypatch, command, options
):
    """Those for an image that cannot be read, one of another color, and one that is too small."""
    images = save_folder(tmp_path / "images", random_images(3, 6, 6, 3))
    (images / "9.png").write_bytes(b"no image")
    ckpt = ("--ckpt", model(image_size=8)) if command == "speed" else ()
    monkeypatch.setattr("ddpmbench.execution.timing.LEAST_SECONDS", 0.0)
    words = (command, *ckpt, "--data", images, "--out", tmp_path / "out", *options)
    status, _, line = invoke(*words)
    assert (status, line.count("\n")) == (2, 1)
    assert "--on-bad skip" in line
    status, _, lines = invoke(*words, "--on-bad", "skip", "--convert", "gray", "--pad", 8)
    assert status == 0, lines
    assert "1 file of" in lines
    assert "9.png" in lines
    assert "--pad 8" in lines
