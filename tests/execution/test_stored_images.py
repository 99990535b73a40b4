"""The images of a run folder: what comes back, and what is refused."""

import os

import numpy as np
import pytest
from sealing import edit_npz

from ddpmbench.errors import InputError
from ddpmbench.execution.stored_images import PICTURES, SHOWN, Extremes, Pictures
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
    result = Pictures.read(tmp_path, 9)
    for kind in KINDS:
        check_same(getattr(result, kind), getattr(some, kind))
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


# ---- damage


def unsealed(path):
    """Writes the same arrays anew, as no command does."""
    with np.load(path) as archive:
        np.savez(path, **dict(archive))


DAMAGE = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "unsealed": unsealed,
    "no depth": lambda path: edit_npz(path, **{"interpolation.depth": None}),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(pictures, tmp_path, kind):
    pictures.write(tmp_path)
    DAMAGE[kind](tmp_path / PICTURES)
    with pytest.raises(InputError) as result:
        Pictures.read(tmp_path, 9)
    assert str(result.value).startswith(f"{tmp_path / PICTURES}: damaged; ")
    assert "\n" not in str(result.value)


# ---- the images at both ends of a set


PIXELS = np.random.default_rng(0).integers(0, 256, (30, 3, 4, 4)).astype(np.uint8)


def test_the_ends_of_the_order_are_shown_and_read_again(tmp_path):
    values = np.random.default_rng(1).permutation(30).astype(float)
    Extremes.of(values, PIXELS).write(tmp_path / "extremes.npz")
    ends = Extremes.read(tmp_path / "extremes.npz")
    assert list(values[ends.best_index]) == list(range(SHOWN))
    assert list(values[ends.worst_index]) == list(range(29, 29 - SHOWN, -1))
    np.testing.assert_array_equal(ends.best_pixels, PIXELS[ends.best_index])
    np.testing.assert_array_equal(ends.worst_pixels, PIXELS[ends.worst_index])


@pytest.mark.parametrize("count", [1, 2, 5, 15, 17])
def test_no_image_is_best_and_worst(count):
    ends = Extremes.of(np.zeros(count), PIXELS[:count])
    assert len(ends.best_index) == len(ends.worst_index) == min(SHOWN, count // 2)
    assert not set(ends.best_index) & set(ends.worst_index)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: os.truncate(path, 100),
        lambda path: edit_npz(path, best_pixels=None),
    ],
)
def test_damaged_extremes_are_named(tmp_path, damage):
    path = tmp_path / "extremes.npz"
    Extremes.of(np.arange(30.0), PIXELS).write(path)
    damage(path)
    with pytest.raises(InputError, match=str(path)):
        Extremes.read(path)
