"""How many digits a number has, by the width of its interval."""

import math

MOST_DIGITS = 4
"""After the point, of bits per dimension."""


def digits_by(half_width: float | None, most: int = MOST_DIGITS) -> int:
    """Digits after the point with which a half width has three that count, at most `most`."""
    if half_width is None or not 0 < half_width < math.inf:
        return most
    return min(most, max(0, 2 - math.floor(math.log10(half_width))))


def with_interval(
    value: float, half_width: float | None, *, sign: str = "", most: int = MOST_DIGITS
) -> str:
    """A number and its half width, both with the same digits: `1,465.7 +- 18.8`."""
    digits = digits_by(half_width, most)
    interval = "" if half_width is None else f" +- {half_width:,.{digits}f}"
    return f"{value:{sign},.{digits}f}{interval}"
