"""Arguments from Python are checked once, and a refusal names the parameter in one line."""

import math

import numpy as np
import pytest

from ddpmbench.data.load import load_images
from ddpmbench.errors import (
    LARGEST_SEED,
    InputError,
    count_to_read,
    instance_of,
    number,
    one_of,
    positive_number,
    whole_number,
)


def test_integers_of_numpy_are_whole_numbers() -> None:
    for value in (3, np.int64(3), np.uint8(3)):
        found = whole_number("num_samples", value, 1, 3)
        assert (found, type(found)) == (3, int)
    assert whole_number("seed", LARGEST_SEED, 0, LARGEST_SEED) == LARGEST_SEED


@pytest.mark.parametrize("value", [2.0, 2.5, "2", True, np.True_, None, [2], math.nan])
def test_nothing_else_is(value: object) -> None:
    with pytest.raises(InputError, match=r"^`num_samples=.*`: give a whole number from 1 on$"):
        whole_number("num_samples", value, 1)


def test_limits_are_inclusive_and_named() -> None:
    with pytest.raises(InputError, match=r"^`n=0`: give a whole number from 1 to 4$"):
        whole_number("n", 0, 1, 4)
    with pytest.raises(InputError, match=r"^`n=5`"):
        whole_number("n", 5, 1, 4)
    with pytest.raises(InputError, match=r"^`seed=-1`: give .* from 0 to 2\^64 - 1$"):
        whole_number("seed", -1, 0, LARGEST_SEED)
    assert number("eta", np.float32(1), 0, 1) == number("eta", 1, 0, 1) == 1.0


@pytest.mark.parametrize("value", [1.5, -0.1, math.nan, math.inf, "0.5", True, None])
def test_numbers_outside_their_limits_are_refused(value: object) -> None:
    with pytest.raises(InputError, match=r"^`eta=.*`: give a number from 0 to 1$"):
        number("eta", value, 0, 1)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "1", True])
def test_positive_numbers_are_finite(value: object) -> None:
    with pytest.raises(InputError, match=r"^`half_width=.*`: must be positive and finite$"):
        positive_number("half_width", value)


def test_choices_and_classes_are_named() -> None:
    one_of("sampler", "ddim", ["ancestral", "ddim"])
    for value in ("euler", None, ["ddim"]):
        with pytest.raises(InputError, match=r"^`sampler=.*`: choose ancestral or ddim$"):
            one_of("sampler", value, ["ancestral", "ddim"])
    instance_of("settings", 3, int)
    with pytest.raises(InputError, match=r"^`settings='a b'`: must be of type int$"):
        instance_of("settings", "a b", int)


@pytest.mark.parametrize("value", [2.5, True, "5", 0, 7])
def test_images_are_counted_by_whole_numbers(value: object) -> None:
    pixels = np.zeros((6, 4, 4), np.uint8)
    with pytest.raises(InputError, match=r"^`num_images="):
        load_images(pixels, num_images=value)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^`num_images="):
        count_to_read(value, 6, "a set")  # type: ignore[arg-type]
    assert len(load_images(pixels, num_images=np.int64(5))) == 5  # type: ignore[arg-type]
