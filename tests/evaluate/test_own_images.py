"""Images as people have them: what is noted, and each remedy that a refusal names, followed."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import torch
from image_files import random_images, save_folder
from PIL import Image

import ddpmbench as db
from ddpmbench.checkpoints.native import write_native
from ddpmbench.data.load import load_images
from ddpmbench.diffusion.data_range import DataRange
from ddpmbench.errors import InputError
from ddpmbench.evaluate.inspect_text import printed_inspect
from ddpmbench.report.nll_text import printed_nll
from ddpmbench.report.text import raw_pixels_warning
from ddpmbench.unet.unet import UNet

HOW = {"estimator": "every-pair", "draws": 1, "check": False}


@pytest.fixture
def model(small_model):
    """The small network with other channels, classes or size, on four timesteps."""

    def make(*, channels=1, num_classes=0, image_size=8, **changes):
        config = dataclasses.replace(
            small_model.network.config,
            in_channels=channels,
            out_channels=channels,
            num_classes=num_classes,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = UNet(config).eval()
        given = {"channels": channels, "num_classes": num_classes, "image_size": image_size}
        model = dataclasses.replace(small_model, network=network, **given, **changes)
        return model.respaced(4)

    return make


def nll(model, data, **options):
    """The summary of a run on the images so read, and its notes and warnings."""
    lines = []
    listener = db.RunListener(note=lines.append, warn=lines.append)
    report = db.evaluate_nll(model, load_images(data, **options), **HOW, listener=listener)
    return report.summary, lines


def refusal(model, data, **options):
    """The line of a run that is refused."""
    with pytest.raises(InputError) as info:
        nll(model, data, **options)
    return str(info.value)


def named(line, name):
    """A parameter and its value as the line names it."""
    value = re.search(rf"`{name}=(\w+)`", line)[1]
    return {name: int(value) if value.isdecimal() else value}


def count(lines, words):
    return sum(line.count(words) for line in lines)


# What is not read is said


def test_what_is_passed_over_is_in_a_line_and_in_the_summary(model, tmp_path):
    folder = save_folder(tmp_path / "f", random_images(2, 8, 8))
    (folder / "labels.csv").write_text("a")
    (folder / ".hidden").write_text("")
    summary, lines = nll(model(), folder)
    assert count(lines, "passed over besides the images: 1 hidden, 1 .csv") == 1
    assert summary["data"]["passed_over"] == {"hidden": 1, ".csv": 1}
    Image.fromarray(random_images(1, 8, 8)[0]).save(folder / "9.tga")
    line = refusal(model(), folder)
    assert "9.tga: .tga is not read" in line
    summary, lines = nll(model(), folder, **named(line, "on_bad"))
    assert (summary["num_images"], summary["data"]["skipped"]) == (2, 1)
    assert count(lines, "1 file of") == 1


# Images that are not alike


def test_one_gray_image_is_converted_as_the_message_says(model, tmp_path):
    pixels = random_images(4, 8, 8, 3)
    folder = save_folder(tmp_path / "f", pixels)
    Image.fromarray(pixels[0, ..., 0]).save(folder / "0.png")
    options = named(refusal(model(channels=3), folder), "convert")
    summary, lines = nll(model(channels=3), folder, **options)
    assert summary["num_images"] == 4
    assert summary["data"]["convert"] == "rgb"
    assert count(lines, "gray is repeated to RGB") == 1
    pixels[0] = pixels[0, ..., :1]
    np.savez(tmp_path / "same.npz", pixels)
    assert load_images(tmp_path / "same.npz").sha256 == summary["data"]["sha256"]
    Image.fromarray(random_images(1, 8, 9, 3)[0]).save(folder / "1.png")
    line = refusal(model(channels=3), folder, **options)
    assert "`convert" not in line  # which would not help
    summary, _ = nll(model(channels=3), folder, **options, **named(line, "on_bad"))
    assert summary["num_images"] == 3


@pytest.mark.parametrize(("channels", "of_model"), [(1, 3), (3, 1)])
def test_channels_that_the_model_does_not_take_are_converted(model, tmp_path, channels, of_model):
    np.savez(tmp_path / "a.npz", random_images(2, 8, 8, *([3] if channels == 3 else [])))
    of = model(channels=of_model)
    options = named(refusal(of, tmp_path / "a.npz"), "convert")
    assert nll(of, tmp_path / "a.npz", **options)[0]["num_images"] == 2


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


def as_npz(path, folder, labels):
    np.savez(path, load_images(folder).pixels.transpose(0, 2, 3, 1), np.array(labels))
    return path


def test_class_folders_are_the_classes_in_sorted_order(model, class_folders, tmp_path):
    of = model(num_classes=2)
    summary, lines = nll(of, class_folders)
    assert count(lines, "cat = 0, dog = 1") == 1
    assert summary["data"]["classes"] == ["cat", "dog"]
    for labels, names in (([0, 0, 1, 1], ["cat", "dog"]), ([1, 1, 0, 0], ["dog", "cat"])):
        of_npz, _ = nll(of, as_npz(tmp_path / "a.npz", class_folders, labels))
        assert of_npz["conventions"]["labels"] == "of the images"
        named_so, _ = nll(of, class_folders, class_names=names)
        assert of_npz["bits_per_dim"] == named_so["bits_per_dim"]
        assert (of_npz["bits_per_dim"] == summary["bits_per_dim"]) == (names[0] == "cat")
    # The labels are those of the folder, however few of its images are taken.
    assert nll(of, class_folders, num_images=2)[0]["num_images"] == 2
    assert count(nll(model(), class_folders)[1], "cat = 0") == 0


def test_a_class_folder_without_images_keeps_its_number(model, class_folders):
    (class_folders / "cow").mkdir()
    summary, _ = nll(model(num_classes=3), class_folders)
    assert summary["data"]["classes"] == ["cat", "cow", "dog"]
    (class_folders / "cow" / "0.pgm").write_bytes(b"P5 8 8 255 " + bytes(64))
    assert set(load_images(class_folders, on_bad="skip").labels) == {0, 2}
    # Without images, no name is needed.
    nll(model(num_classes=2), class_folders, on_bad="skip", class_names=["dog", "cat"])


def test_fewer_folders_than_classes_are_named_as_the_message_says(model, class_folders, tmp_path):
    of = model(num_classes=3)
    line = refusal(of, class_folders)
    assert "2 class folders (cat, dog)" in line
    assert "`class_names" in line
    summary, _ = nll(of, class_folders, class_names=["bird", "cat", "dog"])
    assert summary["data"]["classes"] == ["bird", "cat", "dog"]
    of_npz, _ = nll(of, as_npz(tmp_path / "a.npz", class_folders, [1, 1, 2, 2]))
    assert of_npz["bits_per_dim"] == summary["bits_per_dim"]
    for names in (["bird", "cat"], ["bird", "cat", "cat", "dog"], ["a", "b", "c"]):
        refusal(of, class_folders, class_names=names)


def test_numbers_that_sort_in_two_ways_are_not_guessed(model, tmp_path):
    for number in (0, 1, 2, 10):
        save_folder(tmp_path / "f" / str(number), random_images(1, 8, 8, seed=number))
    of = model(num_classes=4)
    assert "`class_names" in refusal(of, tmp_path / "f")
    for names in (["0", "1", "10", "2"], ["0", "1", "2", "10"]):
        assert nll(of, tmp_path / "f", class_names=names)[0]["data"]["classes"] == names


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


def test_padding_is_said_and_counted(model, tmp_path):
    pixels, small = random_images(3, 6, 6), tmp_path / "small.npz"
    np.savez(small, pixels)
    np.savez(tmp_path / "bordered.npz", np.pad(pixels, ((0, 0), (1, 1), (1, 1))))
    summary, lines = nll(model(), small, **named(refusal(model(), small), "pad"))
    same, _ = nll(model(), tmp_path / "bordered.npz")
    assert summary["bits_per_dim"] == same["bits_per_dim"]
    assert "unpadded" not in same
    assert summary["data"]["padding"] == {"from": [6, 6], "to": [8, 8], "value": 0}
    unpadded = summary["bits_per_dim"] * 64 / 36
    assert summary["unpadded"]["bits_per_dim"] == pytest.approx(unpadded, rel=1e-12)
    assert count(lines, "per dimension of the padded images") == 1
    printed = printed_nll(summary, "table")
    assert re.search(r"padding +6x6 to 8x8 with black; <= [0-9.]+ bits per dimension", printed)
    for side in (4, 7, 9):
        refusal(model(), small, pad=side)
    twice = load_images(load_images(small, pad=8), pad=10)
    assert twice.record["padding"] == {"from": [6, 6], "to": [10, 10], "value": 0}


@pytest.mark.parametrize("option", [{"on_bad": "skip"}, {"class_names": ["a"]}])
def test_what_is_read_already_cannot_be_read_otherwise(option):
    images = load_images(random_images(3, 6, 6))
    with pytest.raises(InputError, match="read already; read its folder"):
        load_images(images, **option)


# Rectangles


def test_a_rectangle_is_evaluated_sampled_and_converted(model, tmp_path):
    of = model(image_size=(8, 16))
    data = load_images(random_images(3, 8, 16))
    summary, _ = nll(of, data)
    assert "are 8x16, the checkpoint" in refusal(of, random_images(3, 16, 8))
    assert db.generate_samples(of, 2).images.pixels.shape == (2, 1, 8, 16)
    whole = dataclasses.replace(of, schedule=db.NoiseSchedule.linear(40))
    again = db.convert_checkpoint(whole, tmp_path / "diffusers").checkpoint
    assert again.image_size == (8, 16)
    write_native(tmp_path / "native.safetensors", whole)
    shown = db.inspect_checkpoint(tmp_path / "native.safetensors").summary
    assert "16x8" in printed_inspect(shown, "table", width=80)
    bits = nll(again.respaced(4), data)[0]["bits_per_dim"]
    assert bits == pytest.approx(summary["bits_per_dim"], abs=1e-6)
    config = tmp_path / "diffusers" / "unet" / "config.json"
    for size, expected in (([8, 8], 8), (8, 8), (None, None)):
        fields = {**json.loads(config.read_text()), "sample_size": size}
        config.write_text(json.dumps(fields))
        assert db.load_checkpoint(tmp_path / "diffusers").image_size == expected


# A bound above the raw pixels


@pytest.mark.parametrize(("levels", "raw"), [(256, "8"), (16, "4"), (5, "2.322")])
def test_a_bound_above_the_raw_pixels_is_said(model, levels, raw):
    summary, lines = nll(model(data_range=DataRange(levels=levels)), random_images(2, 8, 8))
    line = f"worse than sending raw pixels ({raw} bits/dim)"
    assert summary["bits_per_dim"] > np.log2(levels)
    assert count(lines, line) == 1
    assert summary["worse_than_raw_pixels"] is True
    assert line in raw_pixels_warning(summary)
