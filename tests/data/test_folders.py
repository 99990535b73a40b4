"""Folders of images: every file is read, refused or counted."""

import os
import re
import socket
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import encoded, gray, png, random_images, refused, rgb, save_folder
from PIL import Image
from safetensors.torch import save_file

from ddpmbench.checksums import write_json
from ddpmbench.data.file_kinds import IMAGE_SUFFIXES, kind_of
from ddpmbench.data.load import load_images
from ddpmbench.errors import InputError


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
    save_folder(tmp_path / "f", random_images(3, 5, 5))
    (tmp_path / "f" / "2.png").write_bytes(b"damaged")
    assert len(load_images(tmp_path / "f", num_images=2)) == 2
    assert str(tmp_path / "f" / "2.png") in refused(tmp_path / "f")


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff", "webp", "jpg", "jpeg"])
def test_every_format_is_taken_as_stored(tmp_path, suffix):
    pixels = random_images(16, 16, 3)
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
    save_folder(tmp_path / "elsewhere", random_images(2, 5, 5))
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    assert list(load_images(folder).ids) == ["linked/0.png", "linked/1.png"]
    (tmp_path / "elsewhere" / "up").symlink_to(folder)
    assert "remove the link" in refused(folder)


def tiff_16_bit_rgb():
    """A minimal uncompressed TIFF of 8x8 RGB with 16 bits per channel."""
    entries = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 3, 134), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [(273, 4, 1, 140), (277, 3, 1, 3), (278, 4, 1, 8), (279, 4, 1, 384)]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + struct.pack("<I", 0)
    return head.ljust(134, b"\0") + struct.pack("<HHH", 16, 16, 16) + bytes(384)


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


# name of the file: (its bytes, what the line must say)
BAD_IMAGES = {
    "rgba.png": (lambda: encoded(rgb().convert("RGBA")), "transparency (mode RGBA); save it"),
    "la.png": (lambda: encoded(gray().convert("LA")), "transparency (mode LA); save it"),
    "palette.png": (lambda: encoded(rgb().convert("P")), "palette (mode P); save it"),
    "one.png": (lambda: encoded(gray().convert("1")), "1 bit per pixel (mode 1); save it"),
    "gray16.png": (
        lambda: encoded(Image.fromarray(np.zeros((8, 8), np.uint16))),
        "more than 8 bits per channel (mode I;16",
    ),
    "gray32.tif": (
        lambda: encoded(Image.fromarray(np.zeros((8, 8), np.int32)), "TIFF"),
        "more than 8 bits per channel (mode I)",
    ),
    "float.tif": (
        lambda: encoded(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"),
        "floating-point",
    ),
    "cmyk.jpg": (lambda: encoded(rgb().convert("CMYK"), "JPEG"), "not gray or RGB (mode CMYK)"),
    "keyed.png": (lambda: encoded(rgb(), transparency=(1, 2, 3)), "transparent color"),
    "rgb16.png": (lambda: png(8, 8, bit_depth=16, color=2, row=bytes(48)), "8 bits per channel"),
    "rgb16.tif": (tiff_16_bit_rgb, "8 bits per channel"),
    "gray4.png": (lambda: png(8, 8, bit_depth=4, color=0, row=bytes(4)), "8 bits per channel"),
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
    "cut.jpg": (lambda: encoded(rgb(64, 64), "JPEG")[:-900], "cannot be read as an image"),
    "cut.webp": (lambda: encoded(rgb(), "WEBP")[:50], "cannot be read as an image"),
    "empty.png": (lambda: b"", "cannot be read as an image"),
    "portable.ppm": (lambda: encoded(rgb(), "PPM"), "save it as PNG"),
    "photo.heic": (lambda: b"", "save it as PNG"),
    "warned.png": (
        lambda: png(10000, 9500, bit_depth=8, color=0, row=bytes(1)),
        "decompression bomb",
    ),
    "flipped.png": (lambda: flipped(encoded(rgb())), "cannot be read as an image"),
    "bomb.png": (
        lambda: png(30000, 30000, bit_depth=8, color=0, row=bytes(1)),
        "decompression bomb",
    ),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_is_named_wherever_it_stands_or_skipped(tmp_path, name):
    content, reason = BAD_IMAGES[name]
    (tmp_path / name).write_bytes(content())
    assert "holds no image that can be read" in refused(tmp_path, on_bad="skip")
    for _ in range(2):
        message = refused(tmp_path)
        assert message.startswith(f"{tmp_path / name}: ")
        assert reason in message
        rgb().save(tmp_path / "a.png")
    left = load_images(tmp_path, on_bad="skip")
    assert list(left.ids) == ["a.png"]
    assert [line.startswith(f"{tmp_path / name}: ") for line in left.skipped] == [True]


def test_all_bad_images_are_skipped_and_those_unlike_the_others(tmp_path):
    folder = save_folder(tmp_path / "images", random_images(10, 8, 8, 3))
    whole = load_images(folder)
    others = {"gray.png": gray(), "large.png": rgb(9, 9), "small.png": rgb(1, 1)}
    for name, (content, _) in BAD_IMAGES.items():
        (folder / name).write_bytes(content())
    for name, image in others.items():
        image.save(folder / name)
    left = load_images(folder, on_bad="skip")
    assert left.sha256 == whole.sha256
    names = [*BAD_IMAGES, *others]
    assert len(left.skipped) == len(names)
    assert all(sum(f"/{name}:" in line for line in left.skipped) == 1 for name in names)
    assert load_images(folder, num_images=4, on_bad="skip").sha256 == whole.subset(4).sha256
    message = refused(folder, num_images=11, on_bad="skip")
    assert message.startswith("`num_images=11`: ")
    assert "holds 10 images" in message
    assert "`on_bad=ignore`: choose fail or skip" in refused(tmp_path, on_bad="ignore")


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (gray(), rgb(), "is 8x8 RGB, but 0.png is 8x8 gray"),
        (rgb(), gray(), "is 8x8 gray, but 0.png is 8x8 RGB"),
        (rgb(8, 9), rgb(9, 8), "is 9x8 RGB, but 0.png is 8x9 RGB"),
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


# ---- files of other kinds


@pytest.fixture
def folder(tmp_path):
    """Two images."""
    path = tmp_path / "images"
    path.mkdir()
    for index in range(2):
        rgb(seed=index).save(path / f"{index}.png")
    return path


FORMATS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".jfi", ".JPE", ".JfIf"), "JPEG"),
    **dict.fromkeys((".png", ".PNG", ".apng"), "PNG"),
    **dict.fromkeys((".tif", ".tiff", ".TIFF"), "TIFF"),
    **dict.fromkeys((".bmp", ".dib"), "BMP"),
    ".webp": "WEBP",
}


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_format_is_read_by_any_of_its_endings(folder, suffix):
    (folder / f"9{suffix}").write_bytes(encoded(rgb(), FORMATS[suffix]))
    images = load_images(folder)
    assert images.ids[-1] == f"9{suffix}"
    assert len(images) == 3
    assert images.passed_over == {}
    assert images.notes == ()


def test_every_ending_that_is_read_is_among_them():
    assert {suffix.lower() for suffix in FORMATS} == set(IMAGE_SUFFIXES) - {".gif"}


UNREAD = {
    "a.tga": b"\0\0\2",
    "a.pbm": b"P4\n8 8\n",
    "a.ico": b"",
    "a.J2K": b"",
    "a.qoi": b"qoif",
    "a.exr": b"",
    "a.heic": b"",
    "a.psd": b"",
    "a.svg": b"<svg/>",
    "a.dcm": b"",
    "a.npy": b"",
    "no_ending": encoded(rgb()),
    "a.png.bak": encoded(rgb()),
    "a.download": encoded(rgb(), "JPEG"),
    "a.tmp": encoded(rgb(), "WEBP"),
    "0000": encoded(rgb(), "BMP"),
    "b": encoded(rgb(), "TIFF"),
    "c": encoded(rgb(), "GIF"),
    "a.image": b"P6\n# by hand\n8 8\n255\n" + bytes(192),
    "a.dat": b"\0\0\0\x1cftypheic" + bytes(40),
    "vector": b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>",
    "scan": bytes(128) + b"DICM",
    "codestream": b"\xff\x4f\xff\x51" + bytes(9),
}


@pytest.mark.parametrize("name", UNREAD)
def test_an_image_that_is_not_read_is_refused_or_skipped_by_name(folder, name):
    (folder / name).write_bytes(UNREAD[name])
    with pytest.raises(InputError) as refusal:
        load_images(folder)
    assert str(refusal.value).startswith(f"{folder / name}: ")
    assert str(refusal.value).endswith("`on_bad=skip`")
    left = load_images(folder, on_bad="skip")
    assert list(left.ids) == ["0.png", "1.png"]
    assert [name in line for line in left.skipped] == [True]
    assert left.record["skipped"] == 1
    (folder / name).unlink()
    assert load_images(folder).sha256 == left.sha256


def test_what_is_no_image_is_counted_by_its_kind(folder):
    for name, content in {
        "labels.csv": b"a,b",
        "notes.txt": b"P3 is a printer; BM is none",
        "more/notes.txt": b"GIF is a format",
        "README": b"",
        "Thumbs.db": encoded(rgb()),
        ".DS_Store": b"",
        ".hidden/0.png": encoded(rgb()),
        "__MACOSX/._0.png": b"",
        "stats.npz": b"",
        "rest.tar": b"",
        "packed": b"PK\3\4",
        "odd.a b": b"",
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    images = load_images(folder)
    assert len(images) == 2
    assert images.passed_over == {
        "hidden": 4,
        "archive or array": 3,
        ".txt": 2,
        ".csv": 1,
        "no ending": 1,
        "other": 1,
    }
    assert images.record["passed_over"] == images.passed_over
    (line,) = images.notes
    assert line.startswith(f"{folder}: ")
    assert "4 hidden" in line
    assert "stats.npz" in line


def test_many_endings_are_counted_together(folder):
    for number in range(60):
        (folder / f"a.k{number}").write_bytes(b"")
    np.savez(folder / "all.npz", np.zeros(3))
    images = load_images(folder)
    assert sum(images.passed_over.values()) == 61
    assert len(images.passed_over) == 22
    (line,) = images.notes
    assert "40 other" in line
    assert "1 archive or array (all.npz)" in line


def test_a_folder_of_archives_names_one_that_can_be_given(tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    np.savez(folder / "batch.npz", np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(
        InputError, match=r"holds no images, but batch\.npz; give the path .*"
    ) as info:
        load_images(folder)
    assert len(load_images(str(info.value).rsplit(" ", 1)[1])) == 2
    (folder / "data_batch_1").write_bytes(b"\x80\2")
    assert "name the data set, cifar10:train or cifar10:test" in refused(folder)


@pytest.mark.parametrize("place", ["", "runs/a"])
@pytest.mark.parametrize("record", ["run.json", "summary.json"])
def test_a_run_folder_is_none_of_images(folder, place, record):
    run = folder / place
    run.mkdir(parents=True, exist_ok=True)
    (run / record).write_text('{"schema": "another.tool/1"}')
    assert len(load_images(folder)) == 2
    write_json(run / record, {"schema": "ddpmbench.nll/1"})
    for on_bad in ("fail", "skip"):
        message = refused(folder, on_bad=on_bad)
        assert message.startswith(f"{run}: is a run folder")
        assert message.endswith("give the images that it evaluated")
    np.savez(run / "samples.npz", random_images(3, 8, 8))
    given = re.search(r"give (\S+) for its samples$", refused(folder))[1]
    assert len(load_images(given)) == 3


def test_a_folder_of_weights_names_none_of_them_as_images(tmp_path):
    for name in ("checkpoint.safetensors", "training_state.pt"):
        (tmp_path / name).write_bytes(b"")
        assert refused(tmp_path).endswith("give a folder of images (and a checkpoint as `ckpt`)")
    save_file({"a": torch.zeros(1)}, tmp_path / "checkpoint.safetensors")
    assert "a checkpoint is given as `ckpt`" in refused(tmp_path / "checkpoint.safetensors")


@pytest.mark.parametrize("name", ["a.png", "a", "a.txt"])
@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_special_file_is_refused_and_not_waited_for(folder, name, kind, monkeypatch):
    monkeypatch.chdir(folder)  # a socket's path may not be long
    if kind == "pipe":
        os.mkfifo(name)
    else:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(name)
    with pytest.raises(InputError, match=rf"{name}: .*is a (named pipe|socket), not a file"):
        load_images(folder)
    assert len(load_images(folder, on_bad="skip").skipped) == 1


def test_names_that_a_terminal_would_obey_are_escaped(folder):
    (folder / "a\x1b[2J.png").write_bytes(b"")
    (folder / "b.\x1b").write_bytes(b"")
    with pytest.raises(InputError) as refusal:
        load_images(folder)
    lines = [str(refusal.value), *load_images(folder, on_bad="skip").skipped]
    assert all("\\x1b[2J.png" in line and line.isprintable() for line in lines)


@pytest.mark.parametrize(
    "content",
    [b"", b"text", b"BMW\n", b"P1 of 3", b"MM", b"\0" * 512, b"<html><svg>", b"RIFF....WAVE"],
)
def test_other_content_is_no_image(content):
    assert kind_of(content) is None
