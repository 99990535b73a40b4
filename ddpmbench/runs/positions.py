"""Positions that files cover: the gaps between them, and waiting until there are none."""

import time
from collections.abc import Callable, Iterable

from ddpmbench.errors import InputError

ARRIVAL_SECONDS = 120.0
"""What another machine wrote to a network file system is seen here no later than that."""

Gaps = list[tuple[int, int]]


def gaps_between(ranges: Iterable[tuple[int, int]], length: int) -> Gaps:
    """The ranges of positions below `length` that none covers.

    Args:
        ranges: from and up to, in the order of where they begin; they may overlap.
        length: the positions are below it.
    """
    gaps, covered = [], 0
    for start, stop in ranges:
        if start > covered:
            gaps.append((covered, start))
        covered = max(covered, stop)
    if covered < length:
        gaps.append((covered, length))
    return gaps


def wait_until_there(missing: Callable[[], Gaps], *, what: str) -> None:
    """Go on when what other processes wrote is seen here.

    Args:
        missing: the gaps at present.
        what: lies at the positions, for the message.

    Raises:
        InputError: it does not come to be seen.
    """
    deadline = time.monotonic() + ARRIVAL_SECONDS
    while gaps := missing():
        if time.monotonic() > deadline:
            raise InputError(
                f"--out: {what} {gaps[0][0]} to {gaps[0][1] - 1} are not there, though they were "
                "computed; all processes must write to one folder that all machines see"
            )
        time.sleep(0.5)
