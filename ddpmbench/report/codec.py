"""A compressed image set as printed, as a card and as a page."""

from collections.abc import Mapping
from typing import Any

from ddpmbench.report.display import Card
from ddpmbench.report.html import rendered
from ddpmbench.report.text import (
    aligned,
    checkpoint_line,
    counted,
    fact_lines,
    heading,
    images_line,
    printed,
    with_interval,
)


def printed_codec(summary: dict[str, Any], output_format: str) -> str:
    """The summary of `compress` for standard output; see `printed`."""
    rows = [["codec", "bits/dim", "seconds", "files"], *codec_rows(summary)]
    facts = fact_lines(codec_facts(summary).items())
    return printed(summary, output_format, [headline(summary), "", *aligned(rows), "", *facts])


def codec_card(summary: Mapping[str, Any]) -> Card:
    """The card of a compressed image set."""
    return Card(headline(summary), {}, codec_facts(summary))


def headline(summary: Mapping[str, Any]) -> str:
    """The length, with the bound if known."""
    length = f"{summary['bits_per_dim']:.4f} bits/dim, {summary['bits_per_dim_with_startup']:.4f}"
    return f"{length} with header and start-up"


def codec_page(summary: Mapping[str, Any]) -> str:
    """The page of a compressed image set."""
    return rendered(
        "codec.html.j2",
        summary=summary,
        heading=heading(summary),
        rows=codec_rows(summary),
        facts=codec_facts(summary),
    )


def codec_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """The model's code among other lossless codecs: name, bits per dimension, seconds, files."""
    size = summary["bits_per_dim_with_startup"]
    seconds = summary["seconds"]
    rows = [["this model", f"{size:.4f}", "" if seconds is None else _seconds(seconds), "one"]]
    for codec in summary["codecs"]:
        if codec["missing"] is None:
            files = "one" if codec["unit"] == "set" else "one per image"
            bits = f"{codec['bits_per_dim']:.4f}"
            rows.append([codec["name"], bits, _seconds(codec["seconds"]), files])
    return rows


def _seconds(seconds: float) -> str:
    return f"{seconds:,.1f}" if seconds >= 0.05 else "< 0.1"


def codec_facts(summary: Mapping[str, Any]) -> dict[str, str]:
    """The settings that the length depends on, by name."""
    bound, steps = summary["bound"], summary["timesteps"]
    ideal, net = summary["ideal_bits_per_dim"], summary["bits_per_dim"]
    saved = summary["tail_bits_per_dim"]
    start, header = summary["startup_bits"], summary["header_bits"]
    seconds = "continued" if summary["seconds"] is None else f"{summary['seconds']:,.0f} s"
    share = (start + header) / (8 * summary["bytes"])
    left_out: dict[str, list[str]] = {}
    for codec in summary["codecs"]:
        if codec["missing"] is not None:
            left_out.setdefault(codec["missing"], []).append(codec["name"])
    facts = {
        "bound": "not known: the run is of other images, or bounds other numbers of timesteps"
        if bound is None
        else f"{with_interval(bound['bits_per_dim'], bound['half_width'])} bits/dim of the same "
        f"model, by {bound['num_evaluations']:,} network evaluations, 95 %",
        "ideal": f"{ideal:.4f} bits/dim for the same draws, of which the tails save {saved:.4f}; "
        f"the net length deviates by {100 * (net / (ideal - saved) - 1):+.3f} %",
        "start-up": f"{start / 8:,.0f} bytes and header {header / 8:,.0f}, {100 * share:.2f} % of "
        f"the file; below 1 % from {summary['startup_below_one_percent_from']:,} images on",
        "timesteps": f"{len(steps)}, {summary['code_variance']} variance; "
        f"{counted(summary['evaluations_per_image'], 'network evaluation')} per image",
        "images": images_line(summary),
        "checkpoint": checkpoint_line(summary["checkpoint"]),
        "file": f"{summary['file']}, {summary['bytes']:,} bytes; "
        f"{counted(summary['num_blocks'], 'block')}, {summary['verified_blocks']} decoded and "
        "equal to the images",
        "device": f"{summary['machine']['device']}, {summary['machine']['engine']}, {seconds}",
    }
    if left_out:
        facts["left out"] = "; ".join(
            f"{', '.join(names)}: {why}" for why, names in left_out.items()
        )
    return facts
