"""The range and levels of the data in the records of a result.

Results of before levels could be other than 256 on [-1, 1] do not say them: they were that.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpmbench.errors import InputError
from ddpmbench.process.data_range import UNIT_RANGE, DataRange

_INTERVAL = re.compile(r"\[(\S+), (\S+)\]")


def with_data_range(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with what one of before does not say.

    Args:
        record: `conventions` of a run, or `sampler` of samples.
    """
    return {**UNIT_RANGE.record, **record}


def data_range_words(record: Mapping[str, Any]) -> list[str]:
    """What to print of the range: nothing where it is [-1, 1] with 256 levels, else one thing.

    Args:
        record: see `with_data_range`.
    """
    found = with_data_range(record)
    if all(found[name] == value for name, value in UNIT_RANGE.record.items()):
        return []
    return [f"data in {found['data_range']}, {found['levels']} levels"]


def data_range_of(record: Mapping[str, Any], path: Path) -> DataRange:
    """The range that a record says.

    Args:
        record: see `with_data_range`.
        path: the file that it is from.

    Raises:
        InputError: it says none.
    """
    found = with_data_range(record)
    try:
        low, high = _INTERVAL.fullmatch(found["data_range"]).groups()  # type: ignore[union-attr]
        return DataRange(float(low), float(high), found["levels"])
    except (ValueError, TypeError, AttributeError, InputError) as error:
        raise InputError(
            f"{path}: missing or damaged: data_range or levels is no such thing; run the command "
            "of its folder again"
        ) from error
