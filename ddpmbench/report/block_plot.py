"""A curve in a few lines of text."""

from collections.abc import Sequence

import numpy as np

_BLOCKS = " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"  # eighths of a cell
_PLAIN = " .:#"  # thirds of it, where nothing else can be shown
_HEIGHT = 6


def can_show(encoding: str | None) -> bool:
    """Whether text of this encoding can have the characters of a plot."""
    try:
        (_BLOCKS + "\u2502\u2524\u2514\u2500").encode(encoding or "ascii")
    except (UnicodeError, LookupError):
        return False
    return True


def area_plot(
    values: Sequence[float], *, ends: tuple[str, str], width: int, margin: int, plain: bool
) -> list[str]:
    """The area under a curve between 0 and 1.

    Args:
        values: in [0, 1], evenly spaced from the left edge to the right.
        ends: what stands below the left and the right edge.
        width: columns of the whole plot.
        margin: columns of it before the axis, at least two.
        plain: whether only ASCII can be shown.

    Returns:
        Its lines, none longer than `width`.
    """
    columns = width - margin - 1
    ramp = _PLAIN if plain else _BLOCKS
    parts = len(ramp) - 1
    # Each column shows the curve at its own middle.
    places = (np.arange(columns) + 0.5) / columns * (len(values) - 1)
    curve = np.interp(places, np.arange(len(values)), values)
    filled = np.clip(np.round(curve * _HEIGHT * parts), 0, _HEIGHT * parts).astype(int)
    wall, tick, corner, floor = "||+-" if plain else "\u2502\u2524\u2514\u2500"
    lines = []
    for row in range(_HEIGHT - 1, -1, -1):
        cells = "".join(ramp[min(max(level - row * parts, 0), parts)] for level in filled)
        label = "1 " if row == _HEIGHT - 1 else ""
        lines.append(f"{label:>{margin}}{tick if label else wall}{cells}".rstrip())
    lines.append(f"{'0 ':>{margin}}{corner}{floor * columns}")
    first, last = ends
    gap = columns - len(first) - len(last)
    lines.append(" " * (margin + 1) + first + " " * max(gap, 1) + last)
    return lines
