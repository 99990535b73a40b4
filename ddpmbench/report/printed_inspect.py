"""What `inspect` prints: what a checkpoint is, what is said of it and by whom, what to type."""

import json
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from ddpmbench.report.block_plot import area_plot
from ddpmbench.report.inspection import image_words

_LABEL, _INDENT = 12, " " * 12
_WIDEST, _PLOT = 100, 80
"""Columns of the longest line, and of the widest plot."""
_GOES_ON = " \\"
_FAMILIES = {
    "native": "native, a file of ddpmbench train or convert",
    "openai": "openai, that of improved-diffusion and guided-diffusion",
    "pesser": "pesser, that of pytorch_diffusion",
    "lucidrains": "lucidrains, that of denoising-diffusion-pytorch",
}
_WEIGHTS = {
    "ema": "ema, averaged over the training",
    "raw": "raw, the last of the training",
    None: "not said whether averaged over the training (ema) or its last (raw)",
}


def printed_inspect(
    summary: Mapping[str, Any], output_format: str, *, width: int = 80, plain: bool = False
) -> str:
    """The summary of `inspect` for standard output.

    Args:
        summary: the object of its `inspect.json`.
        output_format: "table" for reading, "json" for the object itself.
        width: columns there are.
        plain: whether only ASCII can be shown.
    """
    if output_format == "json":
        return json.dumps(summary, indent=2)
    width = min(width, _WIDEST)
    blocks = [
        headline(summary),
        _file(summary, width),
        _network(summary["network"], width),
        _process(summary["process"], width, plain=plain),
        _said(summary, width),
        _notes(summary, width),
        _command(summary, width),
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def headline(summary: Mapping[str, Any]) -> list[str]:
    """What it is, and what is needed to evaluate it, a line each."""
    network, process = summary["network"], summary["process"]
    images = image_words(network["channels"], network["image_size"])
    steps = "" if process is None else f", T = {process['num_timesteps']:,}"
    name = PurePath(summary["checkpoint"]["source"]).name
    lines = [f"{name}: a diffusion model of {images}{steps}"]
    if missing := _missing(summary):
        lines.append(f"It does not say all that is needed to evaluate it: {_listed(missing)}")
    return lines


def _missing(summary: Mapping[str, Any]) -> list[str]:
    return [option.split()[0] for option in summary["missing"]]


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _file(summary: Mapping[str, Any], width: int) -> list[str]:
    of, lines = summary["checkpoint"], []
    source = of["source"]
    files = of["files"]
    if len(files) > 1:
        source += f" ({len(files)} shards)"
    elif files and files[0] != PurePath(source).name:
        source += f" ({files[0]})"
    size = "" if of["bytes"] is None else f", {_size(of['bytes'])}"
    lines += _fact("file", source + size, width)
    lines += _fact("sha256", of["sha256"], width)
    lines += _fact("family", _FAMILIES.get(of["family"], of["family"]), width)
    lines += _fact("weights", _WEIGHTS[of["weights"]], width)
    if trained := _training(of["training"]):
        lines += _fact("training", trained, width)
    return lines


def _training(record: Mapping[str, Any] | None) -> str | None:
    """The record of `ddpmbench train` in a line; other records are in the JSON alone."""
    try:
        of, recipe = record["data"], record["recipe"]  # type: ignore[index]
        data = of["source"] + (f":{of['split']}" if of["split"] else "")
        return f"{record['steps']:,} steps of {recipe['batch_size']:,} images of {data}"  # type: ignore[index]
    except (KeyError, TypeError, ValueError):
        return None


def _network(network: Mapping[str, Any], width: int) -> list[str]:
    kind = {"UNet": "U-Net", None: "not known but for its weights"}
    words = [kind.get(network["kind"], network["kind"]), f"{network['parameters']:,} parameters"]
    if network["flop_per_call"] is not None:
        call = f"{network['flop_per_call'] / 1e9:,.4g} GFLOP a call"
        if network["image_size"] is None:
            size = network["flop_image_size"]
            call += f" at {size}x{size} (--image-size S for another size)"
        words.append(call)
    lines = _fact("network", ", ".join(words), width)
    rows = [_level(level) for level in network["levels"]]
    lines += [_INDENT + row for row in _aligned(rows)]
    for trait in _traits(network):
        lines += _fact("", trait, width)
    return lines


def _level(level: Mapping[str, Any]) -> tuple[str, ...]:
    size, blocks = level["size"], level["blocks_down"]
    if level["name"] == "middle":
        place, path = "middle", f"{_count(blocks, 'block')}"
    else:
        place = f"{size}x{size}" if size else {"1": "full"}.get(level["name"], level["name"])
        path = f"{_count(blocks, 'block')} down, {level['blocks_up']} up"
    attention = ""
    if level["attention"]:
        heads = level["heads"]
        attention = "attention, " + (_count(heads, "head") if heads else "? heads")
    return place, f"{level['channels']:,} channels", path, attention


def _traits(network: Mapping[str, Any]) -> list[str]:
    if network["layers"]:
        return [", ".join(f"{count:,} {kind}" for kind, count in network["layers"].items())]
    if network["ends"]:
        return [f"{name} {shape}" for name, shape in network["ends"].items()]
    config = network["config"]
    order = "cosines" if config["cosine_first"] else "sines"
    enters = "scales and shifts" if config["scale_shift"] else "is added in"
    resampled = {
        "conv": "by convolutions",
        "pool": "by pooling and repeating",
        "block": "in residual blocks",
    }
    traits = [
        f"time as {config['model_channels']} sinusoids, {order} first, {enters} every block",
        f"resampled {resampled[config['resampling']]}",
    ]
    if config["num_classes"]:
        traits.append(f"conditioned on {config['num_classes']:,} classes")
    if config["out_channels"] != config["in_channels"]:
        traits.append("a second output of each channel, for the variance")
    return traits


def _process(process: Mapping[str, Any] | None, width: int, *, plain: bool) -> list[str]:
    if process is None:
        return []
    total = process["num_timesteps"]
    plot = area_plot(
        process["alphas_cumprod"],
        ends=("t = 1", f"t = {total:,}"),
        width=min(width, _PLOT),
        margin=_LABEL,
        plain=plain,
    )
    heads = ("t", "beta", "alphas_cumprod", "log SNR")
    rows = [
        (f"{at['t']:,}", *(f"{at[name]:.4g}" for name in ("beta", "alphas_cumprod", "log_snr")))
        for at in process["steps"]
    ]
    prior = f"{process['prior']:.4f} bits/dim, L_T for data of unit mean square"
    return [
        *_fact("schedule", f"{process['schedule']}, T = {total:,}", width),
        "",
        *plot,
        f"{_INDENT} alphas_cumprod, the share of the signal in x_t",
        "",
        *(_INDENT + line for line in _aligned([heads, *rows], right=True)),
        "",
        *_fact("prior", prior, width),
    ]


def _said(summary: Mapping[str, Any], width: int) -> list[str]:
    rows = [
        (item["what"], item["value"], _by(item))
        for item in summary["said"]
        if item["value"] is not None
    ]
    lines = []
    if rows:
        wide = max(len(value) for _, value, _ in rows) + 3
        lines = [
            f"{what:<{_LABEL}}{value:<{wide}}{by}"
            for what, value, by in [("", "taken as", "said by"), *rows]
        ]
    opened: dict[str, list[str]] = {}
    for item in summary["said"]:
        if item["value"] is None:
            opened.setdefault(item["option"].split()[0], []).append(item["what"])
    for number, (option, whats) in enumerate(opened.items()):
        settles = f"{_listed(whats)}; {option} settles {'them' if len(whats) > 1 else 'it'}"
        lines += _fact("" if number else "not said", settles, width)
    return lines


def _by(item: Mapping[str, Any]) -> str:
    if item["by"] == "assumed":
        return f"nobody; {item['option']} changes it"
    return str(item["by"])


def _notes(summary: Mapping[str, Any], width: int) -> list[str]:
    lines: list[str] = []
    for note in summary["notes"]:
        lines += _fact("" if lines else "notes", note, width)
    return lines


def _command(summary: Mapping[str, Any], width: int) -> list[str]:
    lines = _shell_lines(summary["command"], width - _LABEL)
    name = "evaluate" if summary["settled"] else "to evaluate"
    shown = [f"{name:<{_LABEL}}{lines[0]}", *(_INDENT + line for line in lines[1:])]
    if missing := _missing(summary):
        shown += _fact("", f"fill in {_listed(missing)}: what stands there is an example", width)
    if summary["data"] is not None:
        shown += _fact("", f"DATA is {summary['data']}", width)
    return shown


def _shell_lines(words: Sequence[str], width: int) -> list[str]:
    """A command that can be pasted, in lines as long as there is room for."""
    parts = [" ".join(words[:2])]
    for word in map(shlex.quote, words[2:]):
        if word.startswith("--"):
            parts.append(word)
        else:
            parts[-1] += f" {word}"
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + 1 + len(part) + len(_GOES_ON) <= width:
            lines[-1] += f" {part}"
        else:
            lines[-1] += _GOES_ON
            lines.append(f"    {part}")
    return lines


def _aligned(rows: Sequence[Sequence[str]], *, right: bool = False) -> list[str]:
    """Columns three spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "   ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _fact(name: str, value: str, width: int) -> list[str]:
    """A name and what it is, whose further lines stand below their first."""
    return textwrap.wrap(
        value,
        width,
        initial_indent=f"{name:<{_LABEL}}",
        subsequent_indent=_INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )
