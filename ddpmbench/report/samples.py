"""Samples as they are printed: how many, and what makes them comparable."""

import json
from pathlib import Path
from typing import Any

from ddpmbench.report.text import checkpoint_line, data_range_words, device_line


def printed_samples(summary: dict[str, Any], path: Path, output_format: str) -> str:
    """The summary of `sample` for standard output.

    Args:
        summary: the object of `summary.json`.
        path: of the samples.
        output_format: "table" for reading, "json" for the object itself, "quiet" for the path
            alone.
    """
    match output_format:
        case "json":
            return json.dumps(summary, indent=2)
        case "quiet":
            return str(path)
    lines = [f"{name:<12}{fact}" for name, fact in samples_facts(summary).items()]
    return "\n".join([f"{samples_headline(summary)}: {path}", "", *lines])


def samples_headline(summary: dict[str, Any]) -> str:
    """How many samples of which size."""
    channels, height, width = summary["shape"]
    color = "gray" if channels == 1 else "RGB"
    return f"{summary['num_samples']:,} samples, {width}x{height} {color}"


def samples_facts(summary: dict[str, Any]) -> dict[str, str]:
    """What makes samples comparable, and how they were made, by name."""
    speed = summary["images_per_second"]
    pace = f", {speed:.3g} images/s" if speed else ""
    return {
        "checkpoint": checkpoint_line(summary["checkpoint"]),
        "sampler": sampler_line(summary["sampler"]),
        "pixels": f"{summary['eight_bit']} to 8 bits, sha256 {summary['sha256'][:12]}",
        "calls": f"{summary['num_evaluations']:,} network evaluations, seed {summary['seed']}",
        "device": f"{device_line(summary)}, {summary['seconds']:,.0f} s{pace}",
    }


def sampler_line(sampler: dict[str, Any]) -> str:
    """The sampler and its settings in words."""
    steps, total = sampler["num_timesteps"], sampler["num_original_timesteps"]
    parts = [sampler["method"], f"T = {steps:,}" + (f" of {total:,}" if steps != total else "")]
    if sampler["method"] == "ancestral":
        noise = {"inner": None, "every-step": "noise at every step", "none": "no added noise"}
        parts += [sampler["variance"], *filter(None, [noise[sampler["added_noise"]]])]
    else:
        parts.append(f"eta {sampler['eta']:g}")
    parts.append("clip" if sampler["clip"] else "no clip")
    parts += data_range_words(sampler)
    if sampler["labels"] is not None:
        parts.append(f"classes: {sampler['labels']}")
    return ", ".join(parts)
