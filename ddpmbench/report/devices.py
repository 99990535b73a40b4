"""What a result was computed on, and how, in a line."""

from collections.abc import Mapping
from typing import Any


def device_line(summary: Mapping[str, Any]) -> str:
    """The devices and the engine of a run; where no network of a checkpoint ran, its precision."""
    # In a summary of fid, `precision` is the score of that name.
    precision = summary.get("compute_precision") or summary["precision"]
    return f"{summary['device']}, {summary.get('engine') or precision}"
