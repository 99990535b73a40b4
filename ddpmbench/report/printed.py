"""The result as it is printed: one headline, the parts, what makes it comparable."""

import io
import json
from typing import Any

import pandas as pd

PARTS = {
    "prior": "L_T, the end of the chain",
    "kl": "L_1..L_{T-1}, the steps",
    "decoder": "L_0, the pixels",
}


def printed_nll(summary: dict[str, Any], output_format: str) -> str:
    """The summary of `nll` for standard output.

    Args:
        summary: the object of `summary.json`.
        output_format: "table" for reading, "json" for the object itself, "csv" for one row with
            nested names joined by dots, "quiet" for the number alone.
    """
    match output_format:
        case "json":
            return json.dumps(summary, indent=2)
        case "csv":
            text = io.StringIO()
            pd.json_normalize(summary).to_csv(text, index=False)
            return text.getvalue().rstrip()
        case "quiet":
            return repr(summary["bits_per_dim"])
    return "\n".join([headline(summary), "", *_parts(summary), "", *_comparability(summary)])


def headline(summary: dict[str, Any]) -> str:
    """The bound and its interval in one line."""
    value, half_width = summary["bits_per_dim"], summary["half_width"]
    interval = "" if half_width is None else f" +- {half_width:.4f}"
    return f"NLL <= {value:.4f}{interval} bits/dim"


def _parts(summary: dict[str, Any]) -> list[str]:
    lines = [f"{name:<12}{summary[name]:>10.4f}  {what}" for name, what in PARTS.items()]
    return [f"{'part':<12}{'bits/dim':>10}", *lines]


def _comparability(summary: dict[str, Any]) -> list[str]:
    conventions, data, checkpoint = (
        summary[name] for name in ("conventions", "data", "checkpoint")
    )
    split = f":{data['split']}" if data["split"] else ""
    images = f"{summary['num_images']} of {data['source']}{split} ({data['sha256'][:12]})"
    weights = f"{checkpoint['family']}, {checkpoint['sha256'][:12]}"
    respaced = " (a model of its own)" if " of " in conventions["schedule"] else ""
    clip = "clip" if conventions["clip"] else "no clip"
    fields = {
        "interval": _interval(summary),
        "images": images,
        "checkpoint": f"{checkpoint['source']} ({weights})",
        "process": f"T = {summary['num_timesteps']}, {conventions['schedule']}{respaced}",
        "conventions": f"{conventions['prediction']}, {conventions['variance']}, {clip}, "
        f"{conventions['decoder']} decoder",
        "estimator": f"{summary['estimator']}, {conventions['draws']} draws, "
        f"{summary['num_evaluations']:,} network calls, seed {summary['seed']}",
        "device": f"{summary['device']}, {summary['precision']}, {summary['seconds']:.0f} s",
    }
    return [f"{name:<12}{value}" for name, value in fields.items()]


def _interval(summary: dict[str, Any]) -> str:
    if summary["half_width"] is None:
        noise = "unknown for these images (one draw; choose --draws 2)"
    else:
        noise = f"+- {summary['half_width']:.4f} for these images"
    population = summary["half_width_population"]
    if population is None:
        return f"95 %: {noise}; unknown for their population (one image)"
    return f"95 %: {noise}; +- {population:.4f} for the population they are drawn from"
