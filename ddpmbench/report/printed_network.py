"""A network as `inspect` prints it."""

from collections.abc import Mapping
from typing import Any

from ddpmbench.report.facts import INDENT, aligned, counted, fact
from ddpmbench.report.inspection import shown_size


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
