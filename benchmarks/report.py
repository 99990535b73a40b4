"""Tables and figures of a benchmark run, from the JSON of pytest-benchmark.

    pytest benchmarks/ --benchmark-only --benchmark-json FILE.json
    python benchmarks/report.py FILE.json --out results/throughput

For each device with rows: DEVICE.csv, DEVICE.md, DEVICE.json (where and when), and figures, each
with its numbers. A row is a benchmark, with columns for the times and its `extra_info`.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ddpmbench.errors import InputError
from ddpmbench.execution.folder import write_figure
from ddpmbench.files import replacing, writing_to
from ddpmbench.report.figures import COLORS, INK, axes_panels, drawing, finish
from ddpmbench.report.speed import BAR, batch_figure, name_bars, parts_figure

COLUMNS = (
    *("suite", "name", "device", "what", "model", "batch_size"),
    *("engine", "precision", "channels_last", "compiled", "cuda_graph"),
    *("median_seconds", "iqr_seconds", "rounds"),
    *("images_per_second", "evaluations_per_second", "ms_per_step"),
    *("flop_per_call", "tflops", "share_of_peak"),
)
"""The first columns; those of only some benchmarks follow, in order of appearance."""
_RENAMED = {"batch": "batch_size", "calls_per_second": "evaluations_per_second"}
_FLAGS = ("channels_last", "compiled", "cuda_graph")
_FORWARD = "forward"
"""`what` of rows that time network evaluations alone."""
_AGAINST_BATCH = (_FORWARD, "sampler")
"""`what` of rows whose speed is shown against the batch size."""


def read_benchmarks(path: Path) -> dict[str, Any]:
    """The output of `pytest --benchmark-json`.

    Raises:
        InputError: the file is missing, or something else.
    """
    advice = "write it with pytest benchmarks/ --benchmark-only --benchmark-json FILE"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read; {advice}") from error
    except ValueError as error:
        raise InputError(f"{path}: is no JSON; {advice}") from error
    if not isinstance(results, dict) or not results.get("benchmarks"):
        raise InputError(f"{path}: holds no benchmarks; {advice}")
    return results


def throughput_frame(results: Mapping[str, Any]) -> pd.DataFrame:
    """One row per benchmark, in order of execution: `COLUMNS`, and the rest of `extra_info`.

    `device` is the CPU if a benchmark names none; other missing values are empty.
    """
    rows = []
    for benchmark in results["benchmarks"]:
        stats, extra = benchmark["stats"], benchmark["extra_info"]
        rows.append(
            {
                "suite": Path(benchmark["fullname"].split("::")[0]).stem.removeprefix("test_"),
                "name": benchmark["name"],
                **{
                    _RENAMED.get(name, name): value
                    for name, value in extra.items()
                    if not isinstance(value, dict | list)
                },
                "device": _device(extra, results),
                "engine": _engine(extra),
                "median_seconds": stats["median"],
                "iqr_seconds": stats["iqr"],
                "rounds": stats["rounds"],
            }
        )
    frame = pd.DataFrame(rows)
    known = [name for name in COLUMNS if name in frame]
    return frame[[*known, *(name for name in frame if name not in COLUMNS)]]


def parts_frame(results: Mapping[str, Any]) -> pd.DataFrame:
    """`device`, `row`, `precision` and milliseconds of each part, of benchmarks with parts."""
    return pd.DataFrame(
        {
            "device": _device(extra, results),
            "row": f"{extra.get('what', benchmark['name'])}, {extra.get('model', '')}",
            "precision": extra.get("precision", ""),
            **{name: 1000 * seconds for name, seconds in extra["part_seconds"].items()},
        }
        for benchmark in results["benchmarks"]
        if "part_seconds" in (extra := benchmark["extra_info"])
    )


def speeds_against_batch(frame: pd.DataFrame) -> pd.DataFrame:
    """Images/s, or network evaluations/s, of rows timed at several batch sizes.

    Returns:
        `panel`, `engine`, `batch_size`, `per_second`.
    """
    columns = ["panel", "engine", "batch_size", "per_second"]
    full = frame.reindex(columns=list(COLUMNS))
    timed = full.assign(
        panel=full.what.astype(str) + ", " + full.model.astype(str),
        per_second=full.images_per_second.astype(float).fillna(full.evaluations_per_second),
    ).dropna(subset=["what", "model", *columns])
    timed = timed[timed.what.isin(_AGAINST_BATCH)].astype({"batch_size": "int64"})
    sizes = timed.groupby("panel").batch_size.transform("nunique")
    return timed.loc[sizes > 1, columns].reset_index(drop=True)


def shares_of_peak(frame: pd.DataFrame) -> pd.DataFrame:
    """`panel` (the model), `engine`, `batch_size` and `share_of_peak` of network evaluations."""
    columns = ["panel", "engine", "batch_size", "share_of_peak"]
    if not {"what", "model", *columns[1:]} <= set(frame):
        return pd.DataFrame(columns=columns)
    forward = frame[(frame.what == _FORWARD) & frame.share_of_peak.notna()]
    forward = forward.assign(panel=forward.model).astype({"batch_size": "int64"})
    return forward[columns].reset_index(drop=True)


@drawing()
def peak_figure(shares: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """The share of the measured peak that a network evaluation reaches, one bar per engine.

    Returns:
        The figure, and one row per bar: the best batch of each panel and engine.
    """
    best = shares.groupby(["panel", "engine"], sort=False).share_of_peak.idxmax()
    numbers = shares.loc[best, ["panel", "engine", "batch_size", "share_of_peak"]]
    numbers = numbers.reset_index(drop=True)
    panels = list(dict.fromkeys(numbers.panel))
    figure, all_axes = axes_panels(len(panels))
    for axes, panel in zip(all_axes, panels, strict=True):
        own = numbers[numbers.panel == panel]
        place = np.arange(len(own))
        axes.barh(place, 100 * own.share_of_peak, color=COLORS[0], height=BAR)
        axes.axvline(100, color=INK, lw=0.9, ls="--")
        axes.set_xlim(0, max(105.0, 105 * own.share_of_peak.max()))
        finish(axes, panel, x="% of the matrix product", y="")
        names = [f"{e}, {b:,} at once" for e, b in zip(own.engine, own.batch_size, strict=True)]
        name_bars(figure, axes, names)
    return figure, numbers


def machine_record(results: Mapping[str, Any]) -> dict[str, Any]:
    """Where, when and at which revision the benchmarks ran; nothing identifies the machine."""
    machine, commit = results.get("machine_info", {}), results.get("commit_info", {})
    cpu = machine.get("cpu", {})
    return {
        "cpu": cpu.get("brand_raw"),
        "cpu_count": cpu.get("count"),
        "architecture": machine.get("machine"),
        "system": machine.get("system"),
        "python": machine.get("python_version"),
        "versions": machine.get("versions"),
        "git_revision": commit.get("id"),
        "changed_since": commit.get("dirty"),
        "pytest_benchmark": results.get("version"),
        "datetime": results.get("datetime"),
    }


def device_slug(device: str) -> str:
    """The name of a device in file names."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def markdown(frame: pd.DataFrame, record: Mapping[str, Any]) -> str:
    """The rows of one device as tables, one per suite; ratios with 95 % intervals."""
    origin = (
        f"{record['datetime'] or 'unknown time'}, revision {record['git_revision'] or 'unknown'}"
    )
    blocks = [f"# {frame.device.iloc[0]}", f"{origin}{'+' if record['changed_since'] else ''}"]
    for suite, rows in frame.groupby("suite", sort=False):
        blocks += [f"## {str(suite).replace('_', ' ')}", _table(rows)]
    return "\n\n".join(blocks) + "\n"


def _number(form: str, scale: float = 1) -> Callable[[Any], str]:
    return lambda value: format(scale * value, form)


def _four_figures(value: float, scale: float = 1) -> str:
    return f"{scale * value:,.0f}" if scale * value >= 1000 else f"{scale * value:.4g}"


_NAMES: tuple[str, ...] = ("what", "model", "batch_size", "num_images", "engine")
_SHOWN: dict[str, tuple[str, Callable[[Any], str]]] = {
    "what": ("what", str),
    "model": ("model", str),
    "batch_size": ("batch", _number(",.0f")),
    "num_images": ("images", _number(",.0f")),
    "engine": ("engine", str),
    "median_seconds": ("median ms", lambda value: _four_figures(value, 1000)),
    "calls": ("calls", _number(",.0f")),
    "images_per_second": ("images/s", _four_figures),
    "evaluations_per_second": ("calls/s", _four_figures),
    "tflops": ("TFLOP/s", _number(".3g")),
    "share_of_peak": ("% of peak", _number(".0f", 100)),
    "peak_memory_bytes": ("MiB at most", _number(",.0f", 2**-20)),
    "compile_seconds": ("compile s", _number(".1f")),
    "break_even_calls": ("break-even calls", _number(",.0f")),
    "eps_error": ("error of eps", _number(".1e")),
    "terms_error": ("error of terms", _number(".1e")),
    "levels_error": ("levels off", _number(".2g")),
    "peer": ("against", str),
}
_RATIOS = {
    "ratio": "times faster",
    "ratio_to_eager": "times eager",
    "ratio_to_uncompiled": "times uncompiled",
    "ratio_to_every_pair": "times fewer than every pair",
}


def _table(rows: pd.DataFrame) -> str:
    def is_known(name: str) -> bool:
        return name in rows and bool(rows[name].notna().any())

    shown, ratios = filter(is_known, _SHOWN), list(filter(is_known, _RATIOS))
    columns = {_SHOWN[name][0]: [_cell(v, _SHOWN[name][1]) for v in rows[name]] for name in shown}
    columns |= {_RATIOS[name]: [_ratio(row, name) for _, row in rows.iterrows()] for name in ratios}
    names = [name for name in _NAMES if is_known(name)]
    if not names or rows.duplicated(names).any():
        columns = {"benchmark": [f"`{name}`" for name in rows.name], **columns}
    lines = [list(columns), ["---"] * len(columns), *zip(*columns.values(), strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object, how: Callable[[Any], str]) -> str:
    return "" if pd.isna(value) else how(value)  # type: ignore[call-overload]


def _ratio(row: pd.Series, name: str) -> str:
    ends = [row.get(f"{name}_{end}") for end in ("low", "high")]
    if pd.isna(row[name]) or any(pd.isna(end) for end in ends):
        return _cell(row[name], _four_figures)
    return f"{row[name]:.2f} ({ends[0]:.2f} to {ends[1]:.2f})"


def _engine(extra: Mapping[str, Any]) -> object:
    if "precision" not in extra:
        return np.nan
    return ", ".join([str(extra["precision"]), *(flag for flag in _FLAGS if extra.get(flag))])


def _device(extra: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """The device; a CPU with its brand and, if known, its number of threads."""
    name = str(extra.get("device", "cpu"))
    if not name.startswith("cpu"):
        return name
    brand = results.get("machine_info", {}).get("cpu", {}).get("brand_raw") or "CPU"
    named = [str(b["extra_info"].get("device", "cpu")) for b in results["benchmarks"]]
    threads = next((n.partition(", ")[2] for n in named if n.startswith("cpu, ")), "")
    return f"{brand}, {threads}" if threads else str(brand)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR")
def main(file, out):
    """Write the tables and figures of what pytest-benchmark wrote into FILE."""
    try:
        results = read_benchmarks(file)
        frame, parts, record = (
            throughput_frame(results),
            parts_frame(results),
            machine_record(results),
        )
        with writing_to(out):
            out.mkdir(parents=True, exist_ok=True)
        for device, rows in frame.groupby("device", sort=False):
            slug, own = device_slug(device), rows.dropna(axis="columns", how="all")
            write(out / f"{slug}.csv", own.to_csv(index=False))
            write(out / f"{slug}.md", markdown(own, record))
            write(out / f"{slug}.json", json.dumps({"device": device, **record}, indent=2) + "\n")
            for name, drawn in figures(own, parts[parts.device == device] if len(parts) else parts):
                write_figure(out, f"{slug}-{name}", *drawn)
            click.echo(out / f"{slug}.md")
    except InputError as error:
        raise click.ClickException(str(error)) from error


def write(place, text):
    with writing_to(place.parent), replacing(place) as temporary:
        temporary.write_text(text, encoding="utf-8")


def figures(rows: pd.DataFrame, parts: pd.DataFrame):
    """The figures that have numbers, each with its name."""
    speeds = speeds_against_batch(rows)
    if len(speeds):
        yield "batch", batch_figure(speeds, unit="images/s")
    if len(parts):
        yield "parts", parts_figure(parts)
    if len(shares := shares_of_peak(rows)):
        yield "peak", peak_figure(shares)


if __name__ == "__main__":
    main()
