"""The best and the worst images of a run."""

import os

import numpy as np
import pytest

from ddpmbench.errors import InputError
from ddpmbench.execution.pictures import SHOWN, Extremes

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 3, 4, 4)).astype(np.uint8)


def test_the_ends_of_the_order_are_shown():
    values = np.random.default_rng(1).permutation(30).astype(float)
    found = Extremes.of(values, PIXELS)
    assert list(values[found.best_index]) == list(range(SHOWN))
    assert list(values[found.worst_index]) == list(range(29, 29 - SHOWN, -1))
    np.testing.assert_array_equal(found.best_pixels, PIXELS[found.best_index])
    np.testing.assert_array_equal(found.worst_pixels, PIXELS[found.worst_index])


@pytest.mark.parametrize("count", [1, 2, 5, 15, 17])
def test_no_image_is_best_and_worst(count):
    found = Extremes.of(np.zeros(count), PIXELS[:count])
    assert len(found.best_index) == len(found.worst_index) == min(SHOWN, count // 2)
    assert not set(found.best_index) & set(found.worst_index)


def test_what_is_written_is_read(tmp_path):
    found = Extremes.of(np.arange(30.0), PIXELS)
    found.write(tmp_path / "extremes.npz")
    again = Extremes.read(tmp_path / "extremes.npz")
    for name in ("best_index", "best_pixels", "worst_index", "worst_pixels"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))


def without(name):
    def damage(path):
        with np.load(path) as archive:
            kept = {key: archive[key] for key in archive.files if key != name}
        np.savez(path, **kept)

    return damage


def other(name, values):
    def damage(path):
        with np.load(path) as archive:
            kept = {key: archive[key] for key in archive.files}
        np.savez(path, **{**kept, name: values})

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: os.truncate(path, 100),
        lambda path: os.truncate(path, 0),
        lambda path: path.write_text("precious"),
        without("best_pixels"),
        other("best_pixels", np.zeros((8, 3, 4, 4))),
        other("worst_index", np.arange(3)),
        other("worst_pixels", np.array(["x"] * 8, dtype=object)),
    ],
)
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "extremes.npz"
    Extremes.of(np.arange(30.0), PIXELS).write(path)
    damage(path)
    with pytest.raises(InputError, match=str(path)):
        Extremes.read(path)
