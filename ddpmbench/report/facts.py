"""Lines of a page of facts: names to the left, what they are in one column beside them."""

import textwrap
from collections.abc import Sequence

LABEL, INDENT = 12, " " * 12
"""Columns of a name, and what stands in their place below it."""


def fact(name: str, value: str, width: int) -> list[str]:
    """A name and what it is, whose further lines stand below their first."""
    return textwrap.wrap(
        value,
        width,
        initial_indent=f"{name:<{LABEL}}",
        subsequent_indent=INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def aligned(rows: Sequence[Sequence[str]], *, right: bool = False) -> list[str]:
    """Columns three spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "   ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def counted(number: int, what: str) -> str:
    """So many of a thing."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """Names as they are written in a sentence."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
