"""A compressed image set as it is printed, with what stands beside it."""

from collections.abc import Mapping
from typing import Any

from ddpmbench.report.card import Card
from ddpmbench.report.nll_text import in_format
from ddpmbench.report.text import aligned, checkpoint_line, counted, fact_lines, with_interval


def printed_codec(summary: dict[str, Any], output_format: str) -> str:
    """The summary of `compress` for standard output.

    Args:
        summary: see `evaluate.compress`.
        output_format: "table" for reading, "json" for the object itself, "csv" for one row with
            nested names joined by dots, "quiet" for the net bits per dimension alone.
    """
    return in_format(
        summary,
        output_format,
        lambda: [
            headline(summary),
            "",
            *codec_table(summary),
            "",
            *fact_lines(codec_facts(summary).items()),
        ],
    )


def codec_card(summary: Mapping[str, Any]) -> Card:
    """What Python shows of a compressed image set."""
    return Card(headline(summary), {}, codec_facts(summary))


def headline(summary: Mapping[str, Any]) -> str:
    """The length, with the bound where that is known."""
    length = f"{summary['bits_per_dim']:.4f} bits/dim, {summary['bits_per_dim_with_startup']:.4f}"
    return f"{length} with header and start-up"


def codec_table(summary: Mapping[str, Any]) -> list[str]:
    """The model's code among other lossless codecs, in lines."""
    rows = [["codec", "bits/dim", "seconds", "files"]]
    file = f"{summary['bits_per_dim_with_startup']:.4f}"
    rows.append(["this model", file, f"{summary['seconds']:,.1f}", "one"])
    for codec in summary["codecs"]:
        if codec["missing"] is None:
            files = "one" if codec["unit"] == "set" else "one an image"
            bits = f"{codec['bits_per_dim']:.4f}"
            rows.append([codec["name"], bits, f"{codec['seconds']:,.1f}", files])
    return aligned(rows)


def codec_facts(summary: Mapping[str, Any]) -> dict[str, str]:
    """What the length depends on, by name."""
    bound, steps = summary["bound"], summary["timesteps"]
    ideal, net = summary["ideal_bits_per_dim"], summary["bits_per_dim"]
    saved = summary["tail_bits_per_dim"]
    start, header = summary["startup_bits"], summary["header_bits"]
    share = (start + header) / (8 * summary["bytes"])
    data = summary["data"]
    missing = [codec["name"] for codec in summary["codecs"] if codec["missing"]]
    split = f":{data['split']}" if data.get("split") else ""
    facts = {
        "bound": "not known: the run is of other images"
        if bound is None
        else f"{with_interval(bound['bits_per_dim'], bound['half_width'])} bits/dim of the same "
        f"model, by {bound['num_evaluations']:,} network evaluations, 95 %",
        "ideal": f"{ideal:.4f} bits/dim of the same draws; {saved:.4f} of it saved in the tails; "
        f"the code is {100 * (net / (ideal - saved) - 1):+.3f} % from the rest",
        "start-up": f"{start / 8:,.0f} bytes, header {header / 8:,.0f}: {100 * share:.2f} %; below "
        f"1 % from {summary['startup_below_one_percent_from']:,} images on",
        "timesteps": f"{len(steps)}, {summary['code_variance']} variance; "
        f"{summary['evaluations_per_image']} network evaluations an image",
        "images": f"{summary['num_images']:,} of {data['source']}{split} ({data['sha256'][:12]})",
        "checkpoint": checkpoint_line(summary["checkpoint"]),
        "file": f"{summary['file']}, {summary['bytes']:,} bytes; "
        f"{counted(summary['num_blocks'], 'block')}, {summary['verified_blocks']} of them decoded "
        "and equal",
        "device": f"{summary['machine']['device']}, {summary['machine']['engine']}, "
        f"{summary['seconds']:,.0f} s",
    }
    if missing:
        facts["left out"] = f"{', '.join(missing)}: pip install imagecodecs"
    return facts
