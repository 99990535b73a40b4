"""Every file of a folder is read, refused or counted."""

import io
import os
import socket

import numpy as np
import pytest
from PIL import Image

from ddpmbench.data.file_kinds import IMAGE_SUFFIXES, kind_of
from ddpmbench.data.images import load_images
from ddpmbench.errors import InputError


def picture(seed=0, size=(8, 8)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(kind, image=None):
    buffer = io.BytesIO()
    (image or picture()).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Two images."""
    path = tmp_path / "images"
    path.mkdir()
    for index in range(2):
        picture(index).save(path / f"{index}.png")
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
    (folder / f"9{suffix}").write_bytes(encoded(FORMATS[suffix]))
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
    "no_ending": encoded("PNG"),
    "a.png.bak": encoded("PNG"),
    "a.download": encoded("JPEG"),
    "a.tmp": encoded("WEBP"),
    "0000": encoded("BMP"),
    "b": encoded("TIFF"),
    "c": encoded("GIF"),
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
        "Thumbs.db": encoded("PNG"),
        ".DS_Store": b"",
        ".hidden/0.png": encoded("PNG"),
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


def test_many_kinds_are_counted_together(folder):
    for number in range(60):
        (folder / f"a.k{number}").write_bytes(b"")
    images = load_images(folder)
    assert sum(images.passed_over.values()) == 60
    assert len(images.passed_over) <= 21


def test_a_folder_of_archives_names_one_that_can_be_given(tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    np.savez(folder / "batch.npz", np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(
        InputError, match=r"holds no images, but batch\.npz; give the path .*"
    ) as info:
        load_images(folder)
    assert len(load_images(str(info.value).rsplit(" ", 1)[1])) == 2


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
