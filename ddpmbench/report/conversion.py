"""What `convert` prints: what was written, and how far it is from what was read."""

import json
from collections.abc import Mapping
from typing import Any


def printed_conversion(summary: Mapping[str, Any], output_format: str) -> str:
    """The summary of `convert` for standard output.

    Args:
        summary: that of a `Conversion`.
        output_format: "table" for reading, "json" for the object itself, "quiet" for the path
            alone.
    """
    match output_format:
        case "json":
            return json.dumps(summary, indent=2)
        case "quiet":
            return str(summary["path"])
    return "\n".join(f"{name:<9}{fact}" for name, fact in conversion_facts(summary).items())


def conversion_facts(summary: Mapping[str, Any]) -> dict[str, str]:
    """What was read and written, and how the two differ, by name."""
    inputs = f"{summary['num_inputs']} random inputs, float32"
    return {
        "read": _line(summary["source"]),
        "written": _line(summary["written"]),
        "output": f"differs by at most {summary['output_difference']:.1e} of "
        f"{summary['output_max']:.1e} ({inputs})",
        "terms": f"differ by at most {summary['term_difference_bits_per_dim']:.1e} bits/dim",
    }


def _line(checkpoint: Mapping[str, str]) -> str:
    return f"{checkpoint['source']} ({checkpoint['family']}, {checkpoint['sha256'][:12]})"
