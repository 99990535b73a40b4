"""What `inspect` prints: what a checkpoint is, what is said of it and by whom, what to type."""

import json
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from ddpmbench.report.inspection import image_words, shown_size
from ddpmbench.report.text import INDENT, LABEL, aligned, counted, fact, listed


def printed_network(network: Mapping[str, Any], width: int) -> list[str]:
    """Its size, its resolutions, and how time and classes come in.

    Args:
        network: see `inspection.network_record`.
        width: columns there are.

    Returns:
        The lines.
    """
    kind = {"UNet": "U-Net", None: "not known but for its weights"}
    words = [kind.get(network["kind"], network["kind"]), f"{network['parameters']:,} parameters"]
    if network["flop_per_call"] is not None:
        call = f"{_flop(network['flop_per_call'])} a call"
        if network["image_size"] is None:
            size = network["flop_image_size"]
            call += f" at {shown_size(size)} (--image-size S for another size)"
        words.append(call)
    lines = fact("network", ", ".join(words), width)
    rows = [_level(level) for level in network["levels"]]
    lines += [INDENT + row for row in aligned(rows)]
    for trait in (*_traits(network), *_unknown(network)):
        lines += fact("", trait, width)
    return lines


def _level(level: Mapping[str, Any]) -> tuple[str, ...]:
    size, blocks = level["size"], level["blocks_down"]
    if level["name"] == "middle":
        place, path = "middle", f"{counted(blocks, 'block')}"
    else:
        place = shown_size(size) if size else {"1": "full"}.get(level["name"], level["name"])
        path = f"{counted(blocks, 'block')} down, {level['blocks_up']} up"
    attention = ""
    if level["attention"]:
        heads = level["heads"]
        attention = "attention, " + (counted(heads, "head") if heads else "? heads")
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


def _unknown(network: Mapping[str, Any]) -> list[str]:
    """What could not be told of a network of the user's own."""
    lines = []
    if network["uncounted"] is not None:
        lines.append(network["uncounted"])
        if network["image_size"] is None:
            lines.append("--image-size S calls it with images of another size")
    if network["channels"] is None and network["kind"] is not None:
        line = "channels of an image: not said; its attribute image_channels says them"
        if (tried := network["flop_channels"]) is not None:
            line += f" (a call was counted with {tried})"
        lines.append(line)
    return lines


def _flop(count: int) -> str:
    return f"{count / 1e9:,.4g} GFLOP" if count >= 1e8 else f"{count / 1e6:,.3g} MFLOP"


_BLOCKS = " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"  # eighths of a cell
_PLAIN = " .:#"  # thirds of it, where nothing else can be shown
_HEIGHT = 6


def can_show(encoding: str | None) -> bool:
    """Whether text of this encoding can have the characters of a plot."""
    try:
        (_BLOCKS + "\u2502\u2524\u2514\u2500").encode(encoding or "ascii")
    except (UnicodeError, LookupError):
        return False
    return True


def area_plot(
    values: Sequence[float], *, ends: tuple[str, str], width: int, margin: int, plain: bool
) -> list[str]:
    """The area under a curve between 0 and 1.

    Args:
        values: in [0, 1], evenly spaced from the left edge to the right.
        ends: what stands below the left and the right edge.
        width: columns of the whole plot.
        margin: columns of it before the axis, at least two.
        plain: whether only ASCII can be shown.

    Returns:
        Its lines, none longer than `width`.
    """
    columns = width - margin - 1
    ramp = _PLAIN if plain else _BLOCKS
    parts = len(ramp) - 1
    # Each column shows the curve at its own middle.
    places = (np.arange(columns) + 0.5) / columns * (len(values) - 1)
    curve = np.interp(places, np.arange(len(values)), values)
    filled = np.clip(np.round(curve * _HEIGHT * parts), 0, _HEIGHT * parts).astype(int)
    wall, tick, corner, floor = "||+-" if plain else "\u2502\u2524\u2514\u2500"
    lines = []
    for row in range(_HEIGHT - 1, -1, -1):
        cells = "".join(ramp[min(max(level - row * parts, 0), parts)] for level in filled)
        label = "1 " if row == _HEIGHT - 1 else ""
        lines.append(f"{label:>{margin}}{tick if label else wall}{cells}".rstrip())
    lines.append(f"{'0 ':>{margin}}{corner}{floor * columns}")
    first, last = ends
    gap = columns - len(first) - len(last)
    lines.append(" " * (margin + 1) + first + " " * max(gap, 1) + last)
    return lines


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
        [
            line
            for text in headline_lines(summary)
            for line in textwrap.wrap(text, width, break_on_hyphens=False)
        ],
        _file(summary, width),
        printed_network(summary["network"], width),
        _process(summary["process"], width, plain=plain),
        _said(summary, width),
        _notes(summary, width),
        _command(summary, width),
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def headline_lines(summary: Mapping[str, Any]) -> list[str]:
    """What the checkpoint is; and what it does not say, where that is needed."""
    network, process = summary["network"], summary["process"]
    images = image_words(network["channels"], network["image_size"])
    steps = "" if process is None else f", T = {_steps(process)}"
    name = PurePath(summary["checkpoint"]["source"]).name
    lines = [f"{name}: a diffusion model of {images}{steps}"]
    if missing := _missing(summary):
        lines.append(f"It does not say all that is needed to evaluate it: {listed(missing)}")
    return lines


def _missing(summary: Mapping[str, Any]) -> list[str]:
    return [option.split()[0] for option in summary["missing"]]


def _file(summary: Mapping[str, Any], width: int) -> list[str]:
    of, lines = summary["checkpoint"], []
    source = of["source"]
    files = of["files"]
    if len(files) > 1:
        source += f" ({len(files)} shards)"
    elif files and files[0] != PurePath(source).name:
        source += f" ({files[0]})"
    size = "" if of["bytes"] is None else f", {_size(of['bytes'])}"
    lines += fact("file", source + size, width)
    lines += fact("sha256", of["sha256"], width)
    lines += fact("family", _FAMILIES.get(of["family"], of["family"]), width)
    if (code := of["code"]) is not None:
        lines += fact("code", f"{code['name']}, sha256 {code['sha256'][:12]}", width)
    lines += fact("weights", _WEIGHTS[of["weights"]], width)
    if trained := _training(of["training"]):
        lines += fact("training", trained, width)
    return lines


def _training(record: Mapping[str, Any] | None) -> str | None:
    """The record of `ddpmbench train` in a line; other records are in the JSON alone."""
    try:
        of, recipe = record["data"], record["recipe"]  # type: ignore[index]
        data = of["source"] + (f":{of['split']}" if of["split"] else "")
        return f"{record['steps']:,} steps of {recipe['batch_size']:,} images of {data}"  # type: ignore[index]
    except (KeyError, TypeError, ValueError):
        return None


def _process(process: Mapping[str, Any] | None, width: int, *, plain: bool) -> list[str]:
    if process is None:
        return []
    total = process["num_timesteps"]
    plot = area_plot(
        process["alphas_cumprod"],
        ends=("t = 1", f"t = {total:,}"),
        width=min(width, _PLOT),
        margin=LABEL,
        plain=plain,
    )
    heads = ("t", "beta", "alphas_cumprod", "log SNR")
    rows = [
        (
            f"{at['t']:,}",
            f"{at['beta']:.4g}",
            f"{at['alphas_cumprod']:.5g}",
            f"{round(at['log_snr'], 2) + 0.0:.2f}",  # -0.00 is 0.00
        )
        for at in process["steps"]
    ]
    prior = f"{process['prior']:.4f} bits/dim, L_T for data of unit mean square"
    return [
        *fact("schedule", f"{process['schedule']}, T = {total:,}", width),
        "",
        *plot,
        f"{INDENT} alphas_cumprod, the share of the signal in x_t",
        "",
        *(INDENT + line for line in aligned([heads, *rows], right=True)),
        "",
        *fact("prior", prior, width),
    ]


def _steps(process: Mapping[str, Any]) -> str:
    """How many, and of how many where not all are visited."""
    total, original = process["num_timesteps"], process["num_original_timesteps"]
    return f"{total:,}" if total == original else f"{total:,} of {original:,}"


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
            f"{what:<{LABEL}}{value:<{wide}}{by}"
            for what, value, by in [("", "taken as", "said by"), *rows]
        ]
    opened = {item["what"]: item["option"] for item in summary["said"] if item["value"] is None}
    if opened:
        options = list(dict.fromkeys(option.split()[0] for option in opened.values()))
        settle = "settles" if len(options) == 1 else "settle"
        them = "it" if len(opened) == 1 else "them"
        line = f"{listed(list(opened))}; {listed(options)} {settle} {them}"
        lines += fact("not said", line, width)
    return lines


def _by(item: Mapping[str, Any]) -> str:
    if item["by"] == "assumed":
        return f"nobody; {item['option']} changes it"
    return str(item["by"])


def _notes(summary: Mapping[str, Any], width: int) -> list[str]:
    lines: list[str] = []
    for note in summary["notes"]:
        lines += fact("" if lines else "notes", note, width)
    return lines


def _is_open(value: str) -> bool:
    """Whether it has words in the place of values: PREDICTION, linear:T:START:END."""
    return any(part.isupper() for part in value.split(":"))


def _command(summary: Mapping[str, Any], width: int) -> list[str]:
    lines = _shell_lines(summary["command"], width - LABEL)
    refused = summary["refused"]
    shown = [] if refused is None else fact("refused", refused, width)
    name = "evaluate" if summary["settled"] and refused is None else "to evaluate"
    shown += [f"{name:<{LABEL}}{lines[0]}", *(INDENT + line for line in lines[1:])]
    missing = [option.partition(" ")[::2] for option in summary["missing"]]
    placeholders = [value for _, value in missing if _is_open(value)]
    examples = [option for option, value in missing if not _is_open(value)]
    if placeholders:
        shown += fact("", f"put how it was trained in place of {listed(placeholders)}", width)
    if examples:
        shown += fact("", f"fill in {listed(examples)}: what stands there is an example", width)
    if summary["data"] is not None:
        shown += fact("", f"DATA is {summary['data']}", width)
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


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
