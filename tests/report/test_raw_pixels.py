"""Whether a bound is worse than sending the pixels: of padded images, than sending theirs."""

import pytest

from ddpmbench.report.text import is_worse_than_raw_pixels


@pytest.mark.parametrize(("bound", "is_worse"), [(6.5, True), (6.1, False), (8.1, True)])
def test_padded_images_are_held_against_their_own_pixels(bound, is_worse):
    padding = {"from": [28, 28], "to": [32, 32], "value": 0}
    summary = {"bits_per_dim": bound, "half_width": 0.01, "conventions": {}, "data": {}}
    assert is_worse_than_raw_pixels(summary) == (bound > 8)
    summary["data"] = {"padding": padding}
    assert is_worse_than_raw_pixels(summary) == is_worse
