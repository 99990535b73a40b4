"""Tables and figures of a benchmark run, from the JSON of pytest-benchmark.

    pytest benchmarks/ --benchmark-only --benchmark-json FILE.json
    python benchmarks/report.py FILE.json --out results/throughput

Of each device that there are rows of: DEVICE.csv, DEVICE.md, DEVICE.json (where and when), and the
figures, each with its numbers. A row is a benchmark; its `extra_info` are columns beside the times.
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
from ddpmbench.report.figures.style import COLORS, INK, axes_panels, drawing, finish
from ddpmbench.report.figures.throughput import BAR, batch_figure, name_bars, parts_figure

COLUMNS = (
    *("suite", "name", "device", "what", "model", "batch_size"),
    *("engine", "precision", "channels_last", "compiled", "cuda_graph"),
    *("median_seconds", "iqr_seconds", "rounds"),
    *("images_per_second", "evaluations_per_second", "ms_per_step"),
    *("flop_per_call", "tflops", "share_of_peak"),
)
"""The first columns; those that only some benchmarks have follow, in the order they come."""
_RENAMED = {"batch": "batch_size", "calls_per_second": "evaluations_per_second"}
_FLAGS = ("channels_last", "compiled", "cuda_graph")
_FORWARD = "forward"
"""`what` of a row that times network calls alone."""
_AGAINST_BATCH = (_FORWARD, "sampler")
"""`what` of the rows whose speed is shown against the batch size."""


def read_benchmarks(path: Path) -> dict[str, Any]:
    """What `pytest --benchmark-json` wrote.

    Raises:
        InputError: the file is not there, or is something else.
    """
    advice = "write it with pytest benchmarks/ --benchmark-only --benchmark-json FILE"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read; {advice}") from error
    except ValueError as error:
        raise InputError(f"{path}: is no JSON; {advice}") from error
    if not isinstance(found, dict) or not found.get("benchmarks"):
        raise InputError(f"{path}: holds no benchmarks; {advice}")
    return found


def throughput_frame(found: Mapping[str, Any]) -> pd.DataFrame:
    """One row a benchmark, in the order they ran: `COLUMNS`, and what else is in `extra_info`.

    `device` is the CPU where a benchmark names none; what else it does not say is empty.
    """
    rows = []
    for benchmark in found["benchmarks"]:
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
                "device": _device(extra, found),
                "engine": _engine(extra),
                "median_seconds": stats["median"],
                "iqr_seconds": stats["iqr"],
                "rounds": stats["rounds"],
            }
        )
    frame = pd.DataFrame(rows)
    known = [name for name in COLUMNS if name in frame]
    return frame[[*known, *(name for name in frame if name not in COLUMNS)]]


def parts_frame(found: Mapping[str, Any]) -> pd.DataFrame:
    """`device`, `row`, `precision` and milliseconds of each part, where a benchmark has parts."""
    return pd.DataFrame(
        {
            "device": _device(extra, found),
            "row": f"{extra.get('what', benchmark['name'])}, {extra.get('model', '')}",
            "precision": extra.get("precision", ""),
            **{name: 1000 * seconds for name, seconds in extra["part_seconds"].items()},
        }
        for benchmark in found["benchmarks"]
        if "part_seconds" in (extra := benchmark["extra_info"])
    )


def speeds_against_batch(frame: pd.DataFrame) -> pd.DataFrame:
    """Images/s, or calls/s, of the network alone and of samplers timed at several batch sizes.

    Returns:
        `panel`, `engine`, `batch_size`, `per_second`.
    """
    columns = ["panel", "engine", "batch_size", "per_second"]
    full = frame.reindex(columns=list(COLUMNS))
    found = full.assign(
        panel=full.what.astype(str) + ", " + full.model.astype(str),
        per_second=full.images_per_second.astype(float).fillna(full.evaluations_per_second),
    ).dropna(subset=["what", "model", *columns])
    found = found[found.what.isin(_AGAINST_BATCH)].astype({"batch_size": "int64"})
    sizes = found.groupby("panel").batch_size.transform("nunique")
    return found.loc[sizes > 1, columns].reset_index(drop=True)


def shares_of_peak(frame: pd.DataFrame) -> pd.DataFrame:
    """`panel` (the model), `engine`, `batch_size` and `share_of_peak` of network calls alone."""
    columns = ["panel", "engine", "batch_size", "share_of_peak"]
    if not {"what", "model", *columns[1:]} <= set(frame):
        return pd.DataFrame(columns=columns)
    found = frame[(frame.what == _FORWARD) & frame.share_of_peak.notna()]
    found = found.assign(panel=found.model).astype({"batch_size": "int64"})
    return found[columns].reset_index(drop=True)


@drawing()
def peak_figure(shares: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """The share of the measured matrix product that a network call reaches, a bar an engine.

    Returns:
        The figure, and one row a bar: of each panel and engine the best batch.
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


def machine_record(found: Mapping[str, Any]) -> dict[str, Any]:
    """Where and when the benchmarks ran, and of which revision; nothing that names the machine."""
    machine, commit = found.get("machine_info", {}), found.get("commit_info", {})
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
        "pytest_benchmark": found.get("version"),
        "datetime": found.get("datetime"),
    }


def device_slug(device: str) -> str:
    """A device's name as a file's."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def markdown(frame: pd.DataFrame, record: Mapping[str, Any]) -> str:
    """The rows of one device as tables, one a suite; a ratio with its 95 % interval."""
    made = f"{record['datetime'] or 'unknown time'}, revision {record['git_revision'] or 'unknown'}"
    blocks = [f"# {frame.device.iloc[0]}", f"{made}{'+' if record['changed_since'] else ''}"]
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


def _device(extra: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """The CPU by what it is and how many threads, if the benchmarks say how many."""
    name = str(extra.get("device", "cpu"))
    if not name.startswith("cpu"):
        return name
    brand = found.get("machine_info", {}).get("cpu", {}).get("brand_raw") or "CPU"
    named = [str(b["extra_info"].get("device", "cpu")) for b in found["benchmarks"]]
    threads = next((n.partition(", ")[2] for n in named if n.startswith("cpu, ")), "")
    return f"{brand}, {threads}" if threads else str(brand)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR")
def main(file, out):
    """Write the tables and figures of what pytest-benchmark wrote into FILE."""
    try:
        found = read_benchmarks(file)
        frame, parts, record = throughput_frame(found), parts_frame(found), machine_record(found)
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
    """Those that there are numbers for, each with its name."""
    speeds = speeds_against_batch(rows)
    if len(speeds):
        yield "batch", batch_figure(speeds, unit="images/s")
    if len(parts):
        yield "parts", parts_figure(parts)
    if len(shares := shares_of_peak(rows)):
        yield "peak", peak_figure(shares)


if __name__ == "__main__":
    main()
