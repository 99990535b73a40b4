"""The speed of a model as printed, and its figures: against the batch size, and part by part."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ddpmbench.report.display import Card, Draw, in_folder
from ddpmbench.report.figures import (
    COLORS,
    DASHES,
    GRID,
    MARKERS,
    Drawn,
    axes_panels,
    drawing,
    finish,
    legend_below,
    log_axis,
)
from ddpmbench.report.stored import StoredReport, Table
from ddpmbench.report.text import (
    aligned,
    checkpoint_line,
    counted,
    duration,
    fact_lines,
    printed,
    shape_words,
)

CALLS_COLUMNS = {
    **dict.fromkeys(("engine", "precision"), "str"),
    **dict.fromkeys(("channels_last", "compiled", "cuda_graph"), "bool"),
    "batch_size": "int64",
    **dict.fromkeys(("evaluations_per_second", "ms_per_batch", "tflops"), "float64"),
    **dict.fromkeys(("share_of_peak", "eps_error"), "float64"),
    **dict.fromkeys(("first_seconds", "break_even_evaluations"), "float64"),
}
PARTS_COLUMNS = {
    **dict.fromkeys(("row", "precision"), "str"),
    **dict.fromkeys(("ms", "network", "noise", "rest"), "float64"),
}
PREDICTIONS_COLUMNS = {
    **dict.fromkeys(("question", "command"), "str"),
    "num_evaluations": "int64",
    "precision": "str",
    "seconds": "float64",
}
PARTS = ("network", "noise", "rest")
BAR = 0.4
"""Height of a bar, of the distance between two."""

_NAME = 30


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SpeedReport(StoredReport):
    """How fast a model is on a device.

    Attributes:
        summary: the object of `summary.json`.
        calls: one row per engine and batch size: `engine` in words, `precision`,
            `channels_last`, `compiled`, `cuda_graph`, `batch_size`, `evaluations_per_second`,
            `ms_per_batch`, `tflops`, `share_of_peak` of the matrix product of that precision,
            `eps_error` against strict float32, `first_seconds`, and `break_even_evaluations`
            after which compiling has paid off (empty if not compiled, or never).
        parts: one row per kind of work and precision, in milliseconds: `row`, `precision`, `ms`,
            `network`, `noise`, `rest`.
        predictions: one row per command and precision: `question`, `command`, `num_evaluations`,
            `precision`, `seconds`.
        folder: where it was written; None if nowhere.
    """

    SCHEMA = "ddpmbench.speed/1"
    TABLES: ClassVar = {
        "calls": Table("calls.csv", CALLS_COLUMNS),
        "parts": Table("parts.csv", PARTS_COLUMNS),
        "predictions": Table("predictions.csv", PREDICTIONS_COLUMNS),
    }

    summary: dict[str, Any]
    calls: pd.DataFrame
    parts: pd.DataFrame
    predictions: pd.DataFrame
    folder: Path | None

    def _card(self) -> Card:
        numbers = {
            f"{row['question']}, {row['precision']}": f"about {duration(row['seconds'])}"
            for row in self.summary["predictions"]
        }
        facts = {
            "checkpoint": checkpoint_line(self.summary["checkpoint"]),
            "device": str(self.summary["device"]),
        }
        return Card(headline(self.summary), numbers, in_folder(facts, self.folder))

    def _figures(self) -> Mapping[str, Draw]:
        named = self.calls.assign(
            panel="Network evaluations", per_second=self.calls.evaluations_per_second
        )
        return {
            "calls": lambda: batch_figure(named, unit="evaluations/s"),
            "parts": lambda: parts_figure(self.parts),
        }


def printed_speed(summary: dict[str, Any], output_format: str) -> str:
    """The summary of `speed` for standard output; "csv" has one row per engine and batch size."""
    blocks = [[headline(summary)], _calls(summary), _parts(summary), _predictions(summary)]
    lines = [line for block in blocks for line in (*block, "")]
    lines += fact_lines(_facts(summary).items())
    return printed(summary, output_format, lines, csv=pd.DataFrame(summary["calls"]))


def headline(summary: Mapping[str, Any]) -> str:
    """The fastest strict float32 engine if there is one, else the fastest of all, in a line."""
    strict = [call for call in summary["calls"] if call["precision"] == "fp32"]
    best = max(strict or summary["calls"], key=lambda call: call["evaluations_per_second"])
    return (
        f"{_speed(best['evaluations_per_second'])} network evaluations/s: {best['engine']}, "
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
    heads = ("network", "at once", "evaluations/s", "GFLOP/s", "of the peak", "error of eps")
    compiled = [_compiled(call) for call in summary["calls"] if call["compiled"]]
    return [*_table(heads, rows), *compiled]


def _compiled(call: Mapping[str, Any]) -> str:
    calls = call["break_even_evaluations"]
    pays = "not won back" if calls is None else f"won back after {calls:,.0f} evaluations"
    setting = f"{call['engine']}, {call['batch_size']:,} at once"
    return f"{setting}: compiled in {call['first_seconds']:.0f} s, {pays}"


def _parts(summary: Mapping[str, Any]) -> list[str]:
    rows = []
    for part in summary["parts"]:
        shares = (f"{part[name] / part['ms']:.0%}" for name in PARTS)
        rows.append((f"{part['row']}, {part['precision']}", f"{part['ms']:.3g}", *shares))
    return _table(("one evaluation", "ms", "network", "noise", "all else"), rows)


def _predictions(summary: Mapping[str, Any]) -> list[str]:
    precisions = list(dict.fromkeys(row["precision"] for row in summary["predictions"]))
    questions: dict[str, list[str]] = {}
    for row in summary["predictions"]:
        cells = questions.setdefault(row["question"], [f"{row['num_evaluations']:,}"])
        cells.append(f"about {duration(row['seconds'])}")
    rows = [(question, *cells) for question, cells in questions.items()]
    return _table(("here it takes", "evaluations", *precisions), rows)


def _facts(summary: Mapping[str, Any]) -> dict[str, str]:
    peaks = ", ".join(f"{name} {peak:.3g}" for name, peak in summary["matmul_tflops"].items())
    return {
        "checkpoint": f"{checkpoint_line(summary['checkpoint'])}, "
        f"{counted(summary['parameters'], 'parameter')}, "
        f"{summary['flop_per_call'] / 1e9:.3f} GFLOP an evaluation",
        "process": f"T = {summary['num_timesteps']:,}, {shape_words(summary['shape'])}",
        "peak": f"of the matrix product: {peaks} TFLOP/s",
        "device": f"{summary['device']}, measured in {summary['seconds']:.0f} s",
    }


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Names left-aligned, numbers right-aligned."""
    all_rows = (heads, *rows)
    width = max(_NAME, *(len(name) for name, *_ in all_rows))
    return aligned([(name.ljust(width), *cells) for name, *cells in all_rows], right=True)


def _speed(per_second: float) -> str:
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"


# ---- figures


@drawing()
def batch_figure(speeds: pd.DataFrame, *, unit: str) -> Drawn:
    """Speed against the batch size: a line per engine, a panel per kind of work.

    Returns:
        The figure, and `panel`, `engine`, `batch_size`, `per_second` (in the unit), sorted.
    """
    columns = ["panel", "engine", "batch_size", "per_second"]
    numbers = speeds[columns].sort_values(columns[:3], kind="stable").reset_index(drop=True)
    engines = list(dict.fromkeys(speeds.engine))
    names = list(dict.fromkeys(speeds.panel))
    figure, all_axes = axes_panels(len(names))
    for axes, name in zip(all_axes, names, strict=True):
        of_panel = numbers[numbers.panel == name]
        for engine, line in of_panel.groupby("engine", sort=False):
            k = engines.index(str(engine))
            axes.plot(
                line.batch_size,
                line.per_second,
                color=COLORS[k % len(COLORS)],
                marker=MARKERS[k % len(MARKERS)],
                ls=DASHES[k // len(COLORS) % len(DASHES)],
                label=engine,
            )
        log_axis(axes, "x", "y")
        sizes = sorted(of_panel.batch_size.unique())
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.set_ylim(of_panel.per_second.min() / 1.5, of_panel.per_second.max() * 1.5)
        legend_below(axes)
        finish(axes, name, x="images in a batch", y=unit)
    return figure, numbers


@drawing()
def parts_figure(parts: pd.DataFrame) -> Drawn:
    """Shares of the time of network, noise and rest, a bar per kind of work.

    Returns:
        The figure, and `row`, `precision`, and the milliseconds `network`, `noise` and `rest`.
    """
    numbers = parts[["row", "precision", *PARTS]].reset_index(drop=True)
    whole = numbers[[*PARTS]].sum(axis=1)
    figure, (axes,) = axes_panels(1)
    names = [
        f"{row}, {kind}: {ms:.3g} ms"
        for row, kind, ms in zip(numbers.row, numbers.precision, whole, strict=True)
    ]
    place, left = np.arange(len(names)), np.zeros(len(names))
    for part, color in zip(PARTS, COLORS, strict=False):
        share = 100 * (numbers[part] / whole).to_numpy()
        axes.barh(place, share, left=left, color=color, height=BAR, label=part)
        left += share
    axes.set_xlim(0, 100)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=len(PARTS))
    finish(axes, "Share of the time", x="% of its time", y="")
    name_bars(figure, axes, names)
    return figure, numbers


def name_bars(figure: Figure, axes: Axes, names: list[str]) -> None:
    """Write a name above each of the bars, `BAR` high at 0, 1, ..., and make room for all."""
    width, _ = figure.get_size_inches()
    figure.set_size_inches(width, max(figure.get_size_inches()[1], 1.3 + 0.45 * len(names)))
    axes.set_yticks([])
    for place, name in enumerate(names):
        axes.annotate(name, (0, place - BAR / 2), (2, 2), textcoords="offset points", va="bottom")
    axes.set_ylim(len(names) - 0.5, -0.9)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=GRID, lw=0.7)
