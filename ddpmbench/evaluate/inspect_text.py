"""The text of `inspect`; messages name parameters in backticks."""

import json
import shlex
import textwrap
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from ddpmbench.checkpoints.load import FAMILIES
from ddpmbench.diffusion.model import ImageSize, size_words
from ddpmbench.report.text import INDENT, LABEL, aligned, fact, listed, timesteps_of

_WIDEST = 100
_WEIGHTS = {
    "ema": "ema, averaged over the training",
    "raw": "raw, the last of the training",
    None: "unknown: ema (averaged over the training) or raw (the last of it)",
}


def printed_inspect(summary: Mapping[str, Any], output_format: str, *, width: int = 80) -> str:
    """The summary of `inspect` for standard output.

    Args:
        summary: the object of its `inspect.json`.
        output_format: "table" for reading, "json" for the object itself.
        width: columns of the terminal.
    """
    if output_format == "json":
        return json.dumps(summary, indent=2)
    width = min(width, _WIDEST)
    head = [
        line
        for text in headline_lines(summary)
        for line in textwrap.wrap(text, width, break_on_hyphens=False)
    ]
    blocks = [
        head,
        _file_lines(summary["checkpoint"], width),
        _network_lines(summary["network"], width),
        _process_lines(summary["process"], width),
        _settings_lines(summary["settings"]),
        [line for note in summary["notes"] for line in fact("note", note, width)],
        _command_lines(summary, width),
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def headline_lines(summary: Mapping[str, Any]) -> list[str]:
    """The checkpoint in a line, and the settings that it lacks."""
    network, process = summary["network"], summary["process"]
    images = image_words(network["channels"], network["image_size"])
    length = ""
    if process is not None:
        total, original = process["num_timesteps"], process["num_original_timesteps"]
        length = f", T = {timesteps_of(total, original)}"
    name = PurePath(summary["checkpoint"]["source"]).name
    lines = [f"{name}: a diffusion model of {images}{length}"]
    if missing := [f"`{parameter}`" for parameter in summary["missing"]]:
        lines.append(f"To evaluate it, say how it was trained: {listed(missing)}")
    return lines


def image_words(channels: int | None, size: ImageSize | list[int] | None) -> str:
    """The images that a network takes: 32x32 RGB images."""
    kind = {None: "", 1: "gray ", 3: "RGB "}.get(channels)
    side = "" if size is None else f"{_shown_size(size)} "
    return f"{side}images of {channels} channels" if kind is None else f"{side}{kind}images"


def _shown_size(size: ImageSize | list[int]) -> str:
    return size_words(size if isinstance(size, int) else (size[0], size[1]))


def _file_lines(record: Mapping[str, Any], width: int) -> list[str]:
    source, files = record["source"], record["files"]
    if len(files) > 1:
        source += f" ({len(files)} shards)"
    elif files and files[0] != PurePath(source).name:
        source += f" ({files[0]})"
    if record["bytes"] is not None:
        source += f", {_byte_words(record['bytes'])}"
    facts = {
        "file": source,
        "sha256": record["sha256"],
        "family": _family_words(record["family"]),
        "weights": _WEIGHTS[record["weights"]],
    }
    if (code := record["code"]) is not None:
        facts["code"] = f"{code['name']}, sha256 {code['sha256'][:12]}"
    if training := _training_words(record["training"]):
        facts["training"] = training
    return [line for name, value in facts.items() for line in fact(name, value, width)]


def _family_words(name: str) -> str:
    projects = next(family.projects for family in FAMILIES if family.name == name)
    return f"{name}, a file of {projects}" if projects else name


def _training_words(record: Mapping[str, Any] | None) -> str | None:
    """The record of `ddpmbench train` in a line; other records appear in the JSON only."""
    try:
        data, recipe = record["data"], record["recipe"]  # type: ignore[index]
        source = data["source"] + (f":{data['split']}" if data["split"] else "")
        return f"{record['steps']:,} steps of {recipe['batch_size']:,} images of {source}"  # type: ignore[index]
    except (KeyError, TypeError, ValueError):
        return None


def _byte_words(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _network_lines(network: Mapping[str, Any], width: int) -> list[str]:
    kind, flop = network["kind"] or "known by its weights alone", network["flop_per_call"]
    words = [kind, f"{network['parameters']:,} parameters"]
    if flop is not None:
        is_large = flop >= 1e8
        count = f"{flop / 1e9:,.4g} G" if is_large else f"{flop / 1e6:,.3g} M"
        words.append(f"{count}FLOP per evaluation")
        if network["image_size"] is None:
            size = _shown_size(network["flop_image_size"])
            words[-1] += f" at {size} (`image_size=S` for another size)"
    lines = fact("network", ", ".join(words), width)
    if network["uncounted"] is not None:
        lines += fact("", network["uncounted"], width)
        if network["image_size"] is None:
            lines += fact("", "`image_size=S` calls it with images of another size", width)
    if network["channels"] is None and network["kind"] is not None:
        line = "channels of an image: unknown; set its attribute image_channels"
        lines += fact("", line, width)
    return lines


def _process_lines(process: Mapping[str, Any] | None, width: int) -> list[str]:
    if process is None:
        return []
    rows = [("t", "beta", "alphas_cumprod", "log SNR")]
    for at in process["steps"]:
        log_snr = round(at["log_snr"], 2) + 0.0  # -0.00 is 0.00
        numbers = f"{at['beta']:.4g}", f"{at['alphas_cumprod']:.5g}", f"{log_snr:.2f}"
        rows.append((f"{at['t']:,}", *numbers))
    prior = f"{process['prior']:.4f} bits/dim, L_T for data of unit mean square"
    return [*(INDENT + line for line in aligned(rows, right=True)), *fact("prior", prior, width)]


def _settings_lines(settings: Mapping[str, object]) -> list[str]:
    rows = [("setting", "value")]
    rows += [(name.replace("_", " "), shown_value(value)) for name, value in settings.items()]
    return aligned(rows) if settings else []


def is_placeholder(value: object) -> bool:
    """Whether a value contains placeholders: PREDICTION, linear:T:START:END."""
    return isinstance(value, str) and any(part.isupper() for part in value.split(":"))


# ---- the network


def shown_value(value: object) -> str:
    """The value of a setting in words; None means missing."""
    if value is None:
        return "missing"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _command_lines(summary: Mapping[str, Any], width: int) -> list[str]:
    refused, missing = summary["refused"], summary["missing"]
    lines = [] if refused is None else fact("refused", refused, width)
    name = "evaluate" if summary["settled"] and refused is None else "to evaluate"
    lines.append(f"{name:<{LABEL}}{shlex.join(summary['command'])}")
    placeholders = [value for value in missing.values() if is_placeholder(value)]
    examples = [
        f"`{parameter}`" for parameter, value in missing.items() if not is_placeholder(value)
    ]
    if placeholders:
        lines += fact("", f"put how it was trained in place of {listed(placeholders)}", width)
    if examples:
        lines += fact("", f"check {listed(examples)}: the value above is an example", width)
    if summary["data"] is not None:
        lines += fact("", f"DATA is {summary['data']}", width)
    return lines
