"""Is there room for so many samples? Asked before the first is made."""

import math
import shutil
from pathlib import Path

from ddpmbench.errors import InputError
from ddpmbench.runs.memory import available_memory
from ddpmbench.runs.parts import MOST_POSITIONS, FolderParts
from ddpmbench.runs.quality import PARTS

_SPARE = 2
"""What is advised leaves as much free as it takes, for figures, features and files under way."""


def check_room(option: str, count: int, shape: tuple[int, int, int], out: Path | None) -> None:
    """Refuse more samples than there is room for.

    They are kept as parts and as one file in the run folder, or in memory where there is none.

    Args:
        option: that asks for them.
        count: how many.
        shape: (C, H, W) of each, 8 bits a pixel.
        out: the run folder, made or not; None if the run is kept in memory.

    Raises:
        InputError: there is no room; it says for how many there is.
    """
    each = math.prod(shape)
    if out is None:
        where, kept, copies, has = "memory", 0, 1, available_memory()
    else:
        missing = sum(stop - start for start, stop in FolderParts(out / PARTS).missing(count))
        where, kept, copies, has = "disk", count - missing, 2, _free(out)
    needs = (copies * count - kept) * each
    fits = has // (copies * each)
    most = min(max(fits // _SPARE, min(fits, 1)), MOST_POSITIONS - 1)
    if needs > has:
        other = "name another --out" if out is not None else "name an --out, on disk"
        none = f"there is no room for one; free some, or {other}"
        remedy = f"choose at most {most}" if most else none
        raise InputError(
            f"{option} {count}: takes {needs / 1e9:,.1f} GB of {where}, and {has / 1e9:,.1f} GB "
            f"are free; {remedy}"
        )
    if count >= MOST_POSITIONS:
        raise InputError(f"{option} {count}: is more than a run holds; choose at most {most}")


def _free(out: Path) -> int:
    """Bytes free where the folder is, or will be."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free
