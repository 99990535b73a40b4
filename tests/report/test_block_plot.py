"""A curve in lines of text."""

import numpy as np
import pytest

from ddpmbench.report.inspection_text import area_plot, can_show

LEVELS = {False: " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588", True: " .:#"}
MARGIN = 12


def filled(values, width, plain):
    """(columns,) how much of each column is filled, 0 to 1."""
    ends = ("t = 1", "t = 9")
    *area, floor, below = area_plot(values, ends=ends, width=width, margin=MARGIN, plain=plain)
    columns = width - MARGIN - 1
    assert len(floor) == len(below) == width
    assert below.split("t = ") == [" " * (MARGIN + 1), f"1{' ' * (columns - 10)}", "9"]
    cells = [line[MARGIN + 1 :].ljust(columns) for line in area]
    ramp = LEVELS[plain]
    share = np.array([[ramp.index(cell) for cell in line] for line in cells]) / (len(ramp) - 1)
    # What is filled stands on the floor: nothing hangs above a cell that is not full.
    assert ((share[:-1] == 0) | (share[1:] == 1)).all()
    return share.mean(axis=0)


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("count", [2, 7, 1000])
def test_the_area_is_that_under_the_curve(plain, width, count):
    values = np.cos(np.linspace(0, np.pi / 2, count)) ** 2
    shown = filled(values, width, plain)
    places = (np.arange(len(shown)) + 0.5) / len(shown)
    expected = np.interp(places, np.linspace(0, 1, count), values)
    half_a_step = 0.5 / (6 * (len(LEVELS[plain]) - 1))
    np.testing.assert_allclose(shown, expected, atol=half_a_step + 1e-9)


@pytest.mark.parametrize("plain", [True, False])
def test_its_ends_are_nothing_and_all(plain):
    assert (filled([0.0], 40, plain) == 0).all()
    assert (filled([1.0], 40, plain) == 1).all()


def test_what_an_encoding_can_show():
    assert can_show("utf-8")
    assert not can_show("ascii")
    assert not can_show("latin-1")
    assert not can_show(None)
    assert not can_show("no such encoding")
    plain = area_plot([1.0, 0.0], ends=("a", "b"), width=40, margin=4, plain=True)
    assert "".join(plain).isascii()
