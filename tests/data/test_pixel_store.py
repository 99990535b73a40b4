"""Sets of pixels in a temporary file: the same, in bounded memory, and gone with the array."""

import os
import re
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import FORMS, random_images, save_as

from ddpmbench.data import folders, pixel_store
from ddpmbench.data.images import PositionIds
from ddpmbench.data.load import load_images
from ddpmbench.errors import InputError


@pytest.fixture
def in_a_file(monkeypatch, tmp_path):
    """Every set is large, and read in portions of a few images; the folder of temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(pixel_store, "IN_MEMORY", 0)
    monkeypatch.setattr(pixel_store, "_PORTION", 500)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("size", [(5, 6, 3), (20, 20, 3)])  # some images a portion, and one
def test_a_large_set_is_the_same_as_a_small_one(tmp_path, kind, size, request):
    pixels = random_images(11, *size)
    path = save_as(tmp_path, kind, pixels)
    small = load_images(path)
    request.getfixturevalue("in_a_file")
    large = load_images(path)
    np.testing.assert_array_equal(large.pixels, pixels.transpose(0, 3, 1, 2))
    assert large.sha256 == small.sha256
    assert load_images(path, num_images=7).sha256 == small.subset(7).sha256
    assert large.subset(7).sha256 == small.subset(7).sha256
    assert np.shares_memory(large.subset(7).pixels, large.pixels)
    for images in (small, large):
        assert type(images.pixels) is np.ndarray
        assert images.pixels.flags.c_contiguous
        assert not images.pixels.flags.writeable


@pytest.mark.parametrize("kind", FORMS)
def test_memory_does_not_grow_with_the_pixels(tmp_path, in_a_file, kind):
    size, few = (16, 16, 3), 50 if kind == "folder" else 1000

    def peak(count):
        path = save_as(tmp_path, kind, random_images(count, *size))
        tracemalloc.start()
        load_images(path).sha256  # noqa: B018
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    peak(2)  # what is imported and cached the first time
    growth = (peak(4 * few) - peak(few)) / (3 * few)
    assert growth < (400 if kind == "folder" else 8)  # a folder has names; an image, 768 bytes


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("kind", ["stored.npz", "idx"])
def test_what_lies_in_a_file_does_not_stay_resident(tmp_path, kind, monkeypatch):
    for name in ("IN_MEMORY", "_PORTION"):
        monkeypatch.setattr(pixel_store, name, 1 << 20)

    def most_resident(path):
        Path("/proc/self/clear_refs").write_text("5")  # begins to count anew
        load_images(path).sha256  # noqa: B018
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])

    paths = [save_as(tmp_path, kind, random_images(n, 16, 16, 3)) for n in (20_000, 80_000)]
    few, many = map(most_resident, paths)
    assert (many - few) / 60_000 < 64  # bytes an image, of 768


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_file_goes_with_the_array(tmp_path, in_a_file):
    images = load_images(save_as(tmp_path, "idx", random_images(11, 5, 6, 3)))
    part = images.subset(3)
    for _ in range(2):
        assert list(in_a_file.iterdir()) == []
        assert str(in_a_file) in Path("/proc/self/maps").read_text()
        images = None
    del part
    assert str(in_a_file) not in Path("/proc/self/maps").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("kind", FORMS)
def test_a_read_that_fails_leaves_nothing_behind(tmp_path, in_a_file, kind):
    path = save_as(tmp_path, kind, random_images(11, 5, 6, 3))
    load_images(path)
    damaged = path / "10.bmp" if kind == "folder" else path
    content = bytearray(damaged.read_bytes())
    if kind.endswith("npz"):
        content[200] ^= 255
        damaged.write_bytes(content)
    else:
        damaged.write_bytes(content[:-5])
    files = os.listdir("/proc/self/fd")
    with pytest.raises(InputError, match=r"cut short or corrupt|cannot be read"):
        load_images(path)
    assert list(in_a_file.iterdir()) == []
    assert os.listdir("/proc/self/fd") == files
    assert str(in_a_file) not in Path("/proc/self/maps").read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit on the size of files")
@pytest.mark.parametrize("kind", FORMS)
def test_where_there_is_no_room_the_line_says_what_to_do(tmp_path, in_a_file, monkeypatch, kind):
    import resource

    path = save_as(tmp_path, kind, random_images(11, 5, 6, 3))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))  # amid a portion
    try:
        with pytest.raises(InputError, match=r"of 990 bytes.*File too large.*TMPDIR.*`num_image"):
            load_images(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(in_a_file.iterdir()) == []
    monkeypatch.setattr(tempfile, "tempdir", "/no such\nfolder")
    with pytest.raises(InputError, match=r"^11 images take .*TMPDIR.*`num_images`$"):
        load_images(path)


# npz


def test_only_the_images_asked_for_are_read(tmp_path, in_a_file):
    pixels = random_images(99, 5, 6, 3)
    path = save_as(tmp_path, "stored.npz", pixels)
    content = path.read_bytes()
    last = content.index(pixels[-1].tobytes())
    path.write_bytes(content[:last] + bytes([content[last] ^ 1]) + content[last + 1 :])
    first = load_images(path, num_images=5).pixels
    np.testing.assert_array_equal(first, pixels[:5].transpose(0, 3, 1, 2))
    with pytest.raises(InputError, match="Bad CRC-32"):
        load_images(path)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("shape", [(4, 5, 6, 3), (4, 5, 6)])
def test_the_order_of_the_array_cannot_matter(tmp_path, shape, large, request):
    pixels = random_images(*shape)
    np.savez(tmp_path / "a.npz", pixels)
    np.savez(tmp_path / "b.npz", np.asfortranarray(pixels))
    if large:
        request.getfixturevalue("in_a_file")
    for count in (None, 3):
        loaded = [load_images(tmp_path / f"{name}.npz", num_images=count) for name in "ab"]
        assert loaded[0].sha256 == loaded[1].sha256
        assert loaded[1].pixels.flags.c_contiguous


# Names


@given(st.integers(0, 12), st.slices(12))
def test_the_ids_of_positions_are_those_of_a_list(count, part):
    ids, names = PositionIds(range(count)), [str(i) for i in range(count)]
    assert list(ids) == names
    assert list(ids[part]) == names[part]
    assert [ids[i] for i in range(-count, count)] == names + names
    with pytest.raises(IndexError):
        ids[count]


@given(st.lists(st.text("ab0019./", max_size=9), unique=True))
def test_names_are_sorted_by_parts_text_and_numbers(names):
    def by_parts(name):
        parts = [re.split("([0-9]+)", part) for part in name.split("/")]
        return [[int(p) if i % 2 else p for i, p in enumerate(part)] for part in parts], name

    assert sorted(names, key=folders.natural_key) == sorted(names, key=by_parts)
