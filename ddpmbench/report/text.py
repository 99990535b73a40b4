"""Formatting of words and numbers, shared by several results."""

import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ddpmbench.diffusion.data_range import UNIT_RANGE
from ddpmbench.errors import counted as counted

if TYPE_CHECKING:
    import pandas as pd

    from ddpmbench.execution.features import Cost

MOST_DIGITS = 4
"""Decimals of bits per dimension."""


# ---- numbers


def digits_by(half_width: float | None, most: int = MOST_DIGITS) -> int:
    """Decimals that give a half width three significant digits, at most `most`, or else one."""
    if half_width is None or not 0 < half_width < math.inf:
        return most
    first = -math.floor(math.log10(half_width))  # the decimal of the first significant digit
    return max(first, min(most, max(0, first + 2)))


def with_interval(
    value: float, half_width: float | None, *, sign: str = "", most: int = MOST_DIGITS
) -> str:
    """A number and its half width, with the same decimals: `1,465.7 +- 18.8`."""
    digits = digits_by(half_width, most)
    interval = "" if half_width is None else f" +- {half_width:,.{digits}f}"
    return f"{value:{sign},.{digits}f}{interval}"


def plus_minus(half_width: float | None) -> str:
    """A half width with three significant digits, `+- 0.0153`, or "unknown"."""
    return "unknown" if half_width is None else f"+- {half_width:,.{digits_by(half_width)}f}"


def bound_line(value: float, half_width: float | None) -> str:
    """A bound and its interval, bits per dimension."""
    return f"NLL <= {with_interval(value, half_width)} bits/dim"


def duration(seconds: float) -> str:
    """A time in words, to two figures."""
    if seconds < 99:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    if minutes < 99:
        return f"{minutes:.0f} min"
    hours = minutes / 60
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def shape_words(shape: Sequence[int]) -> str:
    """The size and color of an image (C, H, W): `28x28 gray`."""
    channels, height, width = shape
    color = {1: "gray", 3: "RGB"}.get(channels, counted(channels, "channel"))
    return f"{width}x{height} {color}"


def timesteps_of(visited: int, trained: int) -> str:
    """The number of timesteps that a model visits: `50 of 1,000`, or `2,000 for 1,000`."""
    if visited == trained:
        return f"{visited:,}"
    return f"{visited:,} {'of' if visited < trained else 'for'} {trained:,}"


def typeset(text: str) -> str:
    """The text with signs in place of `+-` and `<=`, for pages and notebooks."""
    return text.replace("+-", "\N{PLUS-MINUS SIGN}").replace("<=", "\N{LESS-THAN OR EQUAL TO}")


# ---- lines of what is printed

LABEL, INDENT = 12, " " * 12
"""Width of the column of names, and its blanks on further lines."""


def printed(
    summary: dict[str, Any],
    output_format: str,
    table: Sequence[str],
    *,
    csv: "pd.DataFrame | None" = None,
    quiet: str | None = None,
) -> str:
    """A result for standard output.

    Args:
        summary: the object of `summary.json`.
        output_format: "table" for reading, "json" for the summary, "csv" or "quiet".
        table: the lines of "table".
        csv: None for the summary as one row, with nested names joined by dots.
        quiet: None for `bits_per_dim`.
    """
    match output_format:
        case "json":
            return json.dumps(summary, indent=2)
        case "csv":
            import pandas as pd  # here, since `inspect` needs no tables

            frame = pd.json_normalize(summary) if csv is None else csv
            return frame.to_csv(index=False).rstrip()
        case "quiet":
            return repr(summary["bits_per_dim"]) if quiet is None else quiet
    return "\n".join(table)


def json_rows(table: "pd.DataFrame") -> list[dict[Any, Any]]:
    """The rows of a table as JSON values, null where unknown."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def fact(name: str, value: str, width: int) -> list[str]:
    """A name and its value, with further lines aligned below the first."""
    return textwrap.wrap(
        value,
        width,
        initial_indent=f"{name:<{LABEL}}",
        subsequent_indent=INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def fact_lines(facts: Iterable[tuple[str, str]]) -> list[str]:
    """Names and values, a line each."""
    return [f"{name:<{LABEL}}{value}" for name, value in facts]


def aligned(rows: Sequence[Sequence[str]], *, right: bool = False, gap: int = 3) -> list[str]:
    """Aligned columns, some spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        (" " * gap)
        .join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        )
        .rstrip()
        for row in rows
    ]


def joined(facts: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Facts by name; those of one name, or without a name, are joined to the one before."""
    together: dict[str, str] = {}
    last = ""
    for name, text in facts:
        last = name or last
        together[last] = f"{together[last]}; {text}" if last in together else text
    return together


def listed(names: Sequence[str]) -> str:
    """Names, joined for a sentence."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


# ---- settings that comparable numbers share; a summary is the object of `summary.json`


def checkpoint_line(checkpoint: Mapping[str, Any]) -> str:
    """The source, family, kind of weights if known, and checksum of a checkpoint."""
    kind = checkpoint.get("weights")
    kinds = [checkpoint["family"], *([kind] if kind else []), checkpoint["sha256"][:12]]
    return f"{checkpoint['source']} ({', '.join(kinds)})"


def device_line(summary: Mapping[str, Any]) -> str:
    """The devices, the engine and the seconds of a run; its precision if no network ran."""
    # In a summary of fid, `precision` is the score of that name.
    precision = summary.get("compute_precision") or summary["precision"]
    return f"{summary['device']}, {summary.get('engine') or precision}, {summary['seconds']:,.0f} s"


def model_facts(summary: Mapping[str, Any]) -> dict[str, str]:
    """The checkpoint, the process and the conventions of a run, by name."""
    return {
        "checkpoint": checkpoint_line(summary["checkpoint"]),
        "process": process_line(summary),
        "conventions": conventions_line(summary["conventions"]),
    }


def images_name(summary: Mapping[str, Any]) -> str:
    """The image set under the name that the user gave."""
    data = summary["data"]
    return f"{data['source']}:{data['split']}" if data.get("split") else str(data["source"])


def images_line(summary: Mapping[str, Any]) -> str:
    """The image set and its number of images."""
    sha256 = summary["data"]["sha256"][:12]
    return f"{summary['num_images']:,} of {images_name(summary)} ({sha256})"


def heading(summary: Mapping[str, Any]) -> str:
    """The heading of a page: a checkpoint on an image set."""
    return f"{summary['checkpoint']['source']} on {images_name(summary)}"


def process_line(summary: Mapping[str, Any]) -> str:
    """The timesteps of a run or a comparison, and their schedule."""
    line = f"T = {summary['num_timesteps']}, {summary['conventions']['schedule']}"
    parts = summary.get("num_parts")
    return line if parts is None else f"{line} from t = 1 to T, in {parts:,} parts"


def conventions_line(conventions: Mapping[str, Any]) -> str:
    """The conventions that can differ between two bounds of one network."""
    parts = [
        conventions["prediction"],
        conventions["variance"],
        "clip" if conventions["clip"] else "no clip",
        f"{conventions['decoder']} decoder",
        *data_range_words(conventions),
    ]
    return ", ".join(parts)


def with_data_range(record: Mapping[str, Any]) -> dict[str, Any]:
    """`conventions` of a run or `sampler` of samples, with the default range if none is stated."""
    return {**UNIT_RANGE.record, **record}


def data_range_words(record: Mapping[str, Any]) -> list[str]:
    """The range, see `with_data_range`; empty for [-1, 1] with 256 levels."""
    conventions = with_data_range(record)
    if all(conventions[name] == value for name, value in UNIT_RANGE.record.items()):
        return []
    return [f"data in {conventions['data_range']}, {conventions['levels']} levels"]


def unpadded(summary: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """A bound per dimension of the images before they were padded; None if they were not.

    The bits of a padded image include its border, so that they bound the image's: b' = b (H_pad
    W_pad) / (H W).
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


def is_worse_than_raw_pixels(summary: Mapping[str, Any]) -> bool:
    """Whether the lower end of a bound's interval is above log2(levels) bits/dim.

    For padded images the bound per dimension of the original images counts, since a constant border
    costs no bits.
    """
    bound = unpadded(summary) or summary
    raw = _raw_bits_per_dim(summary)
    return bool(bound["bits_per_dim"] - (bound["half_width"] or 0.0) > raw)


def raw_pixels_warning(summary: Mapping[str, Any]) -> str | None:
    """A warning for a bound that is worse than sending raw pixels; None for any other."""
    if not is_worse_than_raw_pixels(summary):
        return None
    return (
        f"worse than sending raw pixels ({_raw_bits_per_dim(summary):.4g} bits/dim); likely "
        "causes: an untrained or damaged checkpoint, wrong settings of the checkpoint (schedule, "
        "prediction, time input, data range), or images of another data set"
    )


def _raw_bits_per_dim(summary: Mapping[str, Any]) -> float:
    return math.log2(with_data_range(summary["conventions"])["levels"])


def sanity_check_warning(summary: Mapping[str, Any]) -> str | None:
    """The warning of the sanity check in a summary, if any."""
    record = summary.get("check")
    return None if record is None else record["warning"]


# ---- the cost of a run of fid


def cost_lines(cost: "Cost") -> list[str]:
    """The cost of a run and of cheaper ones, in lines; empty for a short run."""
    from ddpmbench.execution.features import WORTH_SAYING

    if cost.seconds < WORTH_SAYING:
        return []
    lines = [
        f"About {duration(cost.seconds)} on this device: {cost.num_samples:,} samples of "
        f"{cost.num_evaluations:,} network evaluations {duration(cost.sampling)}, features of "
        f"{cost.num_images:,} images {duration(cost.seconds - cost.sampling)}"
    ]
    of_timesteps = "scores then are those of the respaced sampler"
    of_samples = (
        "the distance is biased upwards more; compare only at the same number of samples "
        "(fid_infinity is corrected for it)"
    )
    for name, now, values, cheaper, remark in (
        ("timesteps", cost.num_timesteps, (250, 100, 50), cost.with_timesteps, of_timesteps),
        ("num_generated", cost.num_samples, (10_000, 5_000), cost.with_samples, of_samples),
    ):
        fewer = [value for value in values if 2 * value <= now]
        if fewer and cost.sampling >= WORTH_SAYING:
            options = (f"`{name}={value}` {duration(cheaper(value).seconds)}" for value in fewer)
            lines.append(f"Cheaper: {', '.join(options)}; {remark}")
    return lines
