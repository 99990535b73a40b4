"""Differences between runs of `nll`: report, tables, text and figure."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from ddpmbench.diffusion.data_range import NATS_PER_BIT
from ddpmbench.errors import command
from ddpmbench.execution.finished_runs import num_steps
from ddpmbench.likelihood.bound import Bound
from ddpmbench.likelihood.precision import Correction
from ddpmbench.report import compare_fid
from ddpmbench.report.display import Card, Draw
from ddpmbench.report.figures import (
    DASHES,
    INK,
    Drawn,
    axes_panels,
    curve,
    drawing,
    finish,
    legend_below,
    log_axis,
    points,
    shortened,
)
from ddpmbench.report.nll_figures import by_group
from ddpmbench.report.stored import PageReport, Table
from ddpmbench.report.tables import (
    NO_CORRECTION,
    PER_TIMESTEP_COLUMNS,
    PLACE_COLUMNS,
    RATE_COLUMNS,
    STRICT,
    in_bits,
    per_timestep,
    rate,
    widened,
)
from ddpmbench.report.text import (
    conventions_line,
    digits_by,
    fact_lines,
    images_line,
    json_rows,
    printed,
    process_line,
    with_interval,
)

_DIFFERENCES = ("difference", "difference_half_width", "difference_half_width_population")
RUNS_COLUMNS = {
    **dict.fromkeys(("run", "checkpoint"), "str"),
    **dict.fromkeys(("bits_per_dim", "half_width"), "float64"),
    **dict.fromkeys((*_DIFFERENCES, "half_width_unpaired"), "float64"),
    "num_evaluations": "Int64",
    "same_rows": "float64",
}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Comparison(PageReport):
    """Runs on the same terms, against the first of them.

    Attributes:
        summary: the object of `summary.json`.
        runs: one row per run; see `runs_frame`.
        per_timestep: one row per run and timestep; see `steps_frame`.
        folder: with the tables, the figure and the page; None if nothing was written.
    """

    SCHEMA = "ddpmbench.comparison/1"
    TABLES: ClassVar = {
        "runs": Table("runs.csv", RUNS_COLUMNS),
        "per_timestep": Table(
            "per_timestep.csv",
            {"run": "str", **PER_TIMESTEP_COLUMNS, **RATE_COLUMNS},
            optional=PLACE_COLUMNS,
        ),
    }
    TEMPLATE = "compare_nll.html.j2"
    FIGURES: ClassVar = {"difference": "Difference from the baseline over t"}

    summary: dict[str, Any]
    runs: pd.DataFrame
    per_timestep: pd.DataFrame
    folder: Path | None

    def _card(self) -> Card:
        facts = {
            **{run["run"]: _paired(run) for run in self.summary["runs"]},
            "images": images_line(self.summary),
            "estimator": f"{self.summary['estimator']}, seed {self.summary['seed']}",
        }
        first = self.summary["baseline"]["run"]
        return Card(f"against {first}, bits/dim; negative is better", facts=facts)

    def _figures(self) -> Mapping[str, Draw]:
        baseline = str(self.summary["baseline"]["run"])
        return {"difference": lambda: difference_figure(self.per_timestep, baseline)}

    def _page(self) -> dict[str, Any]:
        summary, baseline, runs = self.summary, self.summary["baseline"], self.summary["runs"]
        first = baseline["run"]
        name = runs[0]["run"] if len(runs) == 1 else f"{len(runs)} runs"
        note = _precision_note(summary)
        return {
            "heading": f"{name} against {first}",
            "baseline": baseline,
            "runs": [{**run, **_verdict(run, first)} for run in runs],
            "facts": {
                "images": images_line(summary),
                "process": process_line(summary),
                "conventions": conventions_line(summary["conventions"]),
                "estimator": f"{summary['estimator']}, seed {summary['seed']}",
                **({"precision": note} if note else {}),
            },
            "num_steps": num_steps(summary),
            "is_continuous": summary.get("num_parts") is not None,
            "groups": difference_groups(self.per_timestep).to_dict("records"),
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Difference:
    """The difference of a run from the baseline.

    Attributes:
        bound: differences in place of a bound's values, nats per dimension.
        same_rows: share of terms that are the same; the others are at nearby timesteps.
        correction: of the difference; None if both runs are in strict float32.
    """

    bound: Bound
    same_rows: float
    correction: Correction | None = None


def runs_frame(
    names: Sequence[str], summaries: Sequence[dict[str, Any]], differences: Sequence[Difference]
) -> pd.DataFrame:
    """One row per run, in bits per dimension; the first is the baseline.

    Columns: `run`, `checkpoint`, `bits_per_dim`, `half_width`; `difference` from the baseline, its
    `half_width` for these images and for their population, `half_width_unpaired` of two runs
    without common terms, the `num_evaluations` used of each, and the share of terms that are the
    same for both (`same_rows`). If the runs are corrected, so is the difference.
    """
    rows: list[dict[str, object]] = []
    first = summaries[0]["half_width"]
    for name, summary, difference in zip(names, summaries, [None, *differences], strict=True):
        row: dict[str, object] = {
            "run": name,
            "checkpoint": summary["checkpoint"]["sha256"],
            "bits_per_dim": summary["bits_per_dim"],
            "half_width": summary["half_width"],
        }
        if difference is not None:
            bound, own = difference.bound, summary["half_width"]
            correction = in_bits(difference.correction, uncorrected=bound.nats) or NO_CORRECTION
            unpaired = None if None in (own, first) else math.hypot(own, first)
            row |= {
                "difference": bound.nats / NATS_PER_BIT + correction.bits_per_dim,
                "difference_half_width": widened(bound.half_width, correction),
                "difference_half_width_population": widened(
                    bound.half_width_population, correction
                ),
                "half_width_unpaired": unpaired,
                "num_evaluations": int(bound.num_evaluations.sum()) + correction.num_evaluations,
                "same_rows": difference.same_rows,
            }
        rows.append(row)
    # The baseline has none: without the type the column would be floating point.
    return pd.DataFrame(rows).astype({"num_evaluations": "Int64"})


def steps_frame(names: Sequence[str], differences: Sequence[Difference]) -> pd.DataFrame:
    """One row per run and timestep: differences of `per_timestep` and `rate` from the first run.

    For runs in low precision they are uncorrected.
    """
    frames = []
    for name, difference in zip(names, differences, strict=True):
        frame = per_timestep(difference.bound).merge(rate(difference.bound), on="t")
        frame.insert(0, "run", name)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def summary(frame: pd.DataFrame, baseline: dict[str, Any]) -> dict[str, Any]:
    """The object of a comparison's `summary.json`."""
    rows = json_rows(frame)
    return {
        "schema": Comparison.SCHEMA,
        "baseline": rows[0],
        "runs": rows[1:],
        **{
            name: baseline[name]
            for name in ("num_images", "num_timesteps", "estimator", "conventions", "data", "seed")
        },
        "num_parts": baseline.get("num_parts"),
        "precision": baseline.get("precision", STRICT),
    }


def printed_comparison(summary: dict[str, Any], output_format: str) -> str:
    """The summary of `compare`, for any kind of runs, for standard output; see `printed`.

    "csv" has one row per run, "quiet" only the differences, one per line.
    """
    if summary["schema"] == compare_fid.FidelityComparison.SCHEMA:
        return compare_fid.printed_fidelity_comparison(summary, output_format)
    baseline, runs = summary["baseline"], summary["runs"]
    names = [baseline["run"], *(run["run"] for run in runs)]
    width = max(map(len, [*names, "run"])) + 2
    lines = [
        f"{'run':<{width}}{'bits/dim':<20}difference from the first",
        f"{baseline['run']:<{width}}"
        f"{with_interval(baseline['bits_per_dim'], baseline['half_width'])}",
    ]
    for run in runs:
        own = with_interval(run["bits_per_dim"], run["half_width"])
        lines.append(f"{run['run']:<{width}}{own:<20}{_paired(run)}")
    shared = _shared(runs, baseline["run"])
    facts = {
        "images": images_line(summary),
        "terms": f"{summary['estimator']}, seed {summary['seed']}; {shared}",
        "interval": "95 %, for these images; in parentheses for the population of images",
    }
    if note := _precision_note(summary):
        facts["precision"] = note
    return printed(
        summary,
        output_format,
        [*lines, "", *fact_lines(facts.items())],
        csv=pd.DataFrame([baseline, *runs]).astype({"num_evaluations": "Int64"}),
        quiet="\n".join(repr(run["difference"]) for run in runs),
    )


def _shared(runs: list[dict[str, Any]], first: str) -> str:
    least = min(run["same_rows"] for run in runs)
    evaluations = f"{min(run['num_evaluations'] for run in runs):,}"
    if least == 1:
        return f"{evaluations} network evaluations each, all shared"
    return (
        f"{evaluations} network evaluations each, {least:.0%} shared; all are with "
        f"{command('nll', terms_of=first)} ..."
    )


def _precision_note(summary: Mapping[str, Any]) -> str | None:
    """A note on the correction of runs in low precision; None in strict float32."""
    precision = summary.get("precision", STRICT)
    if precision == STRICT:
        return None
    return f"{precision}; differences are corrected to fp32, those per timestep are not"


def _paired(run: dict[str, Any]) -> str:
    own, population = run["difference_half_width"], run["difference_half_width_population"]
    text = with_interval(run["difference"], own, sign="+")
    if population is not None:
        text += f" ({population:,.{digits_by(population)}f})"
    unpaired = run["half_width_unpaired"]
    if own and unpaired and unpaired < own:
        text += ", wider than unpaired"
    elif own and unpaired and unpaired < 1000 * own:
        text += f", {unpaired / own:.1f} times narrower than unpaired"
    return text


def _verdict(run: Mapping[str, Any], baseline: str) -> dict[str, str]:
    difference, half_width = run["difference"], run["difference_half_width"]
    if half_width is None:
        word, text = "interval unknown", "The interval is unknown: the runs have one noise draw."
    elif abs(difference) <= half_width:
        word, text = "not significant", "Not significant: the interval contains 0."
    else:
        better, worse = (run["run"], baseline) if difference < 0 else (baseline, run["run"])
        word = "better" if difference < 0 else "worse"
        text = f"{better} needs fewer bits than {worse}; the interval excludes 0."
    return {"word": word, "verdict": text}


def difference_groups(per_timestep: pd.DataFrame) -> pd.DataFrame:
    """`run` with the rows of `by_group`, whose `difference` is summed over the group.

    Args:
        per_timestep: see `steps_frame`.
    """
    groups = [
        by_group(timesteps).rename(columns={"bits_per_dim": "difference"}).assign(run=run)
        for run, timesteps in per_timestep.groupby("run", sort=False)
    ]
    numbers = pd.concat(groups, ignore_index=True)
    return numbers[["run", *numbers.columns.drop("run")]]


@drawing()
def difference_figure(per_timestep: pd.DataFrame, baseline: str) -> Drawn:
    """Where along the chain runs differ from a baseline: by groups of timesteps, and summed up.

    Args:
        per_timestep: see `steps_frame`.
        baseline: its name.

    Returns:
        The figure, and its `difference_groups`.
    """
    figure, (left, right) = axes_panels(2)
    numbers = difference_groups(per_timestep)
    for k, (run, groups) in enumerate(numbers.groupby("run", sort=False)):
        label, center = shortened(str(run)), np.sqrt(groups.t_first * groups.t_last)
        points(left, center, groups.difference, groups.half_width, k, label=label)
        sums = groups.cumulative, groups.cumulative_half_width
        curve(right, groups.t_first, *sums, k, label=label, ls=DASHES[k % 4])
    for axes in (left, right):
        axes.axhline(0, color=INK, lw=0.6)
        log_axis(axes, "x")
        legend_below(axes)
    minus = f"minus {shortened(baseline)}, bits/dim"
    finish(left, "Difference per group of timesteps", x="timestep t", y=minus)
    finish(right, "Cumulative difference from T", x="timestep t", y=minus)
    return figure, numbers
