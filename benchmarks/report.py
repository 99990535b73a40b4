"""Tables and figures of a benchmark run.

    pytest benchmarks/ --benchmark-only --benchmark-json FILE.json
    python benchmarks/report.py FILE.json --out results/throughput

Of each device that there are rows of: DEVICE.csv, DEVICE.md, DEVICE.json (where and when), and the
figures, each with its numbers.
"""

import json
from pathlib import Path

import click
import pandas as pd
from throughput import (
    device_slug,
    machine_record,
    markdown,
    parts_frame,
    peak_figure,
    read_benchmarks,
    shares_of_peak,
    speeds_against_batch,
    throughput_frame,
)

from ddpmbench.errors import InputError
from ddpmbench.execution.folder import write_figure
from ddpmbench.files import replacing, writing_to
from ddpmbench.report.figures.throughput import batch_figure, parts_figure


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
