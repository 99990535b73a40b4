"""The pictures of a run folder: what comes back, and what is refused."""

import io
import os
import zipfile

import numpy as np
import pytest

from ddpmbench.checksums import read_npz, write_npz
from ddpmbench.errors import InputError
from ddpmbench.execution.pictures import PICTURES, Pictures
from ddpmbench.samples.progressive import Interpolation, ProgressiveDecoding, ProgressiveGeneration


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)

    def pixels(*shape):
        return rng.integers(0, 256, (*shape, 3, 4, 5), dtype=np.uint8)

    names, t = np.array(["one", "zwölf.png"]), np.array([9, 1])
    rmse = rng.normal(size=(2, 2))
    return Pictures(
        ProgressiveDecoding(
            9, t, np.arange(2), names, pixels(2), pixels(2, 2), pixels(2, 2), rmse
        ),
        ProgressiveGeneration(9, t, pixels(3, 2), pixels(3)),
        Interpolation(
            9, 4, np.array([[0, 1]]), names[None], np.array([0, 1.0]), pixels(1, 2), pixels(1, 2)
        ),
    )  # fmt: skip


def check_same(one, other):
    assert type(one) is type(other)
    for name, value in vars(one).items() if one is not None else ():
        there = getattr(other, name)
        assert np.asarray(value).dtype == np.asarray(there).dtype
        np.testing.assert_array_equal(value, there)


KINDS = ("decoding", "generation", "interpolation")


@pytest.mark.parametrize("kept", [(), KINDS[:1], KINDS[1:], KINDS])
def test_what_is_written_comes_back(pictures, tmp_path, kept):
    some = Pictures(**{kind: getattr(pictures, kind) for kind in kept})
    some.write(tmp_path)
    found = Pictures.read(tmp_path, 9)
    for kind in KINDS:
        check_same(getattr(found, kind), getattr(some, kind))
    assert [path.name for path in tmp_path.iterdir()] == [PICTURES]


def test_a_folder_without_pictures_has_none(tmp_path):
    assert vars(Pictures.read(tmp_path, 9)) == dict.fromkeys(KINDS)


def test_what_is_new_takes_the_place_of_what_is_old(pictures):
    both = Pictures(decoding=pictures.decoding).with_those_of(
        Pictures(generation=pictures.generation)
    )
    assert (both.decoding, both.generation) == (pictures.decoding, pictures.generation)
    other = ProgressiveGeneration(9, np.array([3]), *np.zeros((2, 1, 1, 1, 2, 2), np.uint8)[:1],
                                  np.zeros((1, 1, 2, 2), np.uint8))  # fmt: skip
    assert both.with_those_of(Pictures(generation=other)).generation is other


def test_a_folder_that_cannot_be_written_is_named(pictures, tmp_path):
    with pytest.raises(InputError, match=f"`out` {tmp_path / 'nowhere'}: cannot be written"):
        pictures.write(tmp_path / "nowhere")


# ---- damage


def unsealed(path):
    """Writes the same arrays anew, as no command does."""
    with np.load(path) as archive:
        np.savez(path, **dict(archive))


def without_depth(path):
    arrays = read_npz(path)
    del arrays["interpolation.depth"]
    write_npz(path, arrays)


def flip(path):
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("decoding.x_t.npy")
    start = entry.header_offset + 30 + len(entry.filename)
    for k in range(start + 40, start + 60):
        data[k] ^= 0xFF
    path.write_bytes(data)


def array_alone():
    out = io.BytesIO()
    np.save(out, np.zeros(3))
    return out.getvalue()


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"\x00\xff" * 500),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "flipped": flip,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "an array alone": lambda path: path.write_bytes(array_alone()),
    "unsealed": unsealed,
    "no depth": without_depth,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(pictures, tmp_path, kind):
    pictures.write(tmp_path)
    DAMAGE[kind](tmp_path / PICTURES)
    with pytest.raises(InputError) as found:
        Pictures.read(tmp_path, 9)
    assert str(found.value).startswith(f"{tmp_path / PICTURES}: damaged; ")
    assert "\n" not in str(found.value)
