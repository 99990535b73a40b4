"""A bound beside what it costs to send pixels as they are, and beside its images unpadded."""

import math
from collections.abc import Mapping
from typing import Any

from ddpmbench.report.data_ranges import with_data_range


def raw_warning(summary: Mapping[str, Any]) -> str | None:
    """A line where even the lower end of a bound's interval is above log2(levels) bits/dim.

    Of padded images it is the bound per dimension of what was padded: a border costs nothing.

    Args:
        summary: the object of `summary.json` of a run, of this version or an older one.
    """
    levels = with_data_range(summary["conventions"])["levels"]
    raw = math.log2(levels)
    bound: Mapping[str, Any] = unpadded(summary) or summary
    if not bound["bits_per_dim"] - (bound["half_width"] or 0.0) > raw:
        return None
    return (
        f"worse than sending raw pixels ({raw:.4g} bits/dim); likely causes: an untrained or "
        "damaged checkpoint, a checkpoint read otherwise than it was trained (schedule, "
        "prediction, time input, data range), or other images than it was trained on"
    )


def unpadded(summary: Mapping[str, Any]) -> dict[str, float | None] | None:
    """A bound per dimension of the images before they were padded; None if they were not.

    The bits of a padded image are those of the image and of its border, so that they bound the
    image's: b' = b (H_pad W_pad) / (H W).

    Args:
        summary: see `raw_warning`.
    """
    padding = summary["data"].get("padding")
    if padding is None:
        return None
    ratio = math.prod(padding["to"]) / math.prod(padding["from"])
    half_width = summary["half_width"]
    return {
        "bits_per_dim": ratio * summary["bits_per_dim"],
        "half_width": None if half_width is None else ratio * half_width,
    }
