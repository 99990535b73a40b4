"""What `speed` prints: the fastest way, all ways, what rows spend, what questions would take."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ddpmbench.execution.engine_choice import CallSpeed
from ddpmbench.execution.speed import MeasuredSpeed, PartSeconds, RowSeconds, Workload
from ddpmbench.report.text import checkpoint_line, duration

SCHEMA = "ddpmbench.speed/1"


def calls_frame(found: MeasuredSpeed) -> pd.DataFrame:
    """One row a way to call the network and a batch size.

    Its columns are `engine` in words, `precision`, `channels_last`, `compiled`, `cuda_graph`,
    `batch_size`, `evaluations_per_second`, `ms_per_batch`, `tflops`, `share_of_peak` of the matrix
    product of that precision, `eps_error`, `first_seconds`, and `break_even_evaluations`, from
    which on compiling has won its time back (empty where it is not compiled, or never).
    """
    rows = []
    for call in found.calls:
        flops = found.flop_per_call * call.per_second
        peak = found.peaks.get(call.choice.precision, np.nan)
        rows.append(
            {
                "engine": str(call.choice),
                **dataclasses.asdict(call.choice),
                "precision": str(call.choice.precision),
                "batch_size": call.batch_size,
                "evaluations_per_second": call.per_second,
                "ms_per_batch": 1000 * call.seconds * call.batch_size,
                "tflops": flops / 1e12,
                "share_of_peak": flops / peak,
                "eps_error": call.eps_error,
                "first_seconds": call.first_seconds,
                "break_even_evaluations": _break_even(call, found.calls),
            }
        )
    return pd.DataFrame(rows)


def _break_even(call: CallSpeed, calls: Sequence[CallSpeed]) -> float:
    if not call.choice.compiled:
        return np.nan
    plain = [
        other
        for other in calls
        if not other.choice.compiled
        and (other.choice.precision, other.batch_size) == (call.choice.precision, call.batch_size)
    ]
    saved = min((other.seconds for other in plain), default=0.0) - call.seconds
    return call.first_seconds / saved if saved > 0 else np.nan


def parts_frame(found: MeasuredSpeed) -> pd.DataFrame:
    """One row a kind of row and precision, in milliseconds: `row`, `precision`, `network`, ..."""
    return pd.DataFrame(
        [
            {
                "row": part.row,
                "precision": str(precision),
                "ms": 1000 * part.seconds,
                "network": 1000 * part.network,
                "noise": 1000 * part.noise,
                "rest": 1000 * part.rest,
            }
            for precision, parts in found.parts.items()
            for part in parts
        ]
    )


def predictions_frame(found: MeasuredSpeed, works: Sequence[Workload]) -> pd.DataFrame:
    """One row a question and precision: `question`, `command`, `num_evaluations`, `seconds`."""
    return pd.DataFrame(
        [
            {
                "question": work.name,
                "command": work.command,
                "num_evaluations": work.num_evaluations,
                "precision": str(precision),
                "seconds": work.seconds(row_seconds(parts)),
            }
            for work in works
            for precision, parts in found.parts.items()
        ]
    )


def row_seconds(parts: Sequence[PartSeconds]) -> RowSeconds:
    """What the kinds of rows take: at t = 1, after it where a model has such steps, and of samples.

    Args:
        parts: of one precision, in that order.
    """
    first, *later, step = (part.seconds for part in parts)
    return RowSeconds(first, later[0] if later else 0.0, step)


_NAME = 30


def printed_speed(summary: Mapping[str, Any], output_format: str) -> str:
    """The summary of `speed` for standard output.

    Args:
        summary: the object of its `summary.json`.
        output_format: "table" for reading, "json" for the object itself, "csv" for one row a way
            to call the network.
    """
    match output_format:
        case "json":
            return json.dumps(summary, indent=2)
        case "csv":
            return str(pd.DataFrame(summary["calls"]).to_csv(index=False)).rstrip()
    blocks = [[headline(summary)], _calls(summary), _parts(summary), _predictions(summary)]
    return "\n\n".join("\n".join(block) for block in [*blocks, _facts(summary)])


def headline(summary: Mapping[str, Any]) -> str:
    """The fastest strict float32 where there is one, else the fastest of all, in one line."""
    strict = [call for call in summary["calls"] if call["precision"] == "fp32"]
    best = max(strict or summary["calls"], key=lambda call: call["evaluations_per_second"])
    return (
        f"{_speed(best['evaluations_per_second'])} network calls/s: {best['engine']}, "
        f"{best['batch_size']:,} at once"
    )


def _calls(summary: Mapping[str, Any]) -> list[str]:
    rows = []
    for call in summary["calls"]:
        share, error = call["share_of_peak"], call["eps_error"]
        rows.append(
            (
                call["engine"],
                f"{call['batch_size']:,}",
                _speed(call["evaluations_per_second"]),
                _speed(1000 * call["tflops"]),
                "" if share is None else f"{share:.0%}",
                f"{error:.1e}" if error else "0",
            )
        )
    heads = ("network", "at once", "calls/s", "GFLOP/s", "of the peak", "error of eps")
    return [*_table(heads, rows), *_compiled(summary)]


def _compiled(summary: Mapping[str, Any]) -> list[str]:
    lines = []
    for call in summary["calls"]:
        if call["compiled"]:
            calls = call["break_even_evaluations"]
            pays = "not won back" if calls is None else f"won back after {calls:,.0f} calls"
            what = f"{call['engine']}, {call['batch_size']:,} at once"
            lines.append(f"{what}: compiled in {call['first_seconds']:.0f} s, {pays}")
    return lines


def _parts(summary: Mapping[str, Any]) -> list[str]:
    rows = []
    for part in summary["parts"]:
        shares = (f"{part[name] / part['ms']:.0%}" for name in ("network", "noise", "rest"))
        rows.append((f"{part['row']}, {part['precision']}", f"{part['ms']:.3g}", *shares))
    return _table(("one row", "ms", "network", "noise", "all else"), rows)


def _predictions(summary: Mapping[str, Any]) -> list[str]:
    precisions = list(dict.fromkeys(row["precision"] for row in summary["predictions"]))
    questions: dict[str, list[str]] = {}
    for row in summary["predictions"]:
        cells = questions.setdefault(row["question"], [f"{row['num_evaluations']:,}"])
        cells.append(f"about {duration(row['seconds'])}")
    rows = [(question, *cells) for question, cells in questions.items()]
    return _table(("here it takes", "calls", *precisions), rows)


def _facts(summary: Mapping[str, Any]) -> list[str]:
    channels, height, width = summary["shape"]
    color = {1: "gray", 3: "RGB"}.get(channels, f"{channels} channels")
    peaks = ", ".join(f"{name} {peak:.3g}" for name, peak in summary["matmul_tflops"].items())
    facts = {
        "checkpoint": f"{checkpoint_line(summary['checkpoint'])}, "
        f"{summary['parameters']:,} parameters, "
        f"{summary['flop_per_call'] / 1e9:.3f} GFLOP a call",
        "process": f"T = {summary['num_timesteps']:,}, {width}x{height} {color}",
        "peak": f"of the matrix product: {peaks} TFLOP/s",
        "device": f"{summary['device']}, measured in {summary['seconds']:.0f} s",
    }
    return [f"{name:<12}{fact}" for name, fact in facts.items()]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Names to the left, numbers to the right, three spaces between."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    return [
        "   ".join(
            cell.rjust(width) if k else cell.ljust(max(width, _NAME))
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (heads, *rows)
    ]


def _speed(per_second: float) -> str:
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"
