"""Which samples are more like real images, and is it sure? Differences between runs of `fid`."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddpmbench.checksums import DamageError, read_npz
from ddpmbench.files import named_path
from ddpmbench.questions.report import write_report
from ddpmbench.questions.unlike import refuse_unlike
from ddpmbench.report import comparison_fidelity
from ddpmbench.report.card import Card, Draw, Shown
from ddpmbench.report.checks import FIDELITY_VALUES
from ddpmbench.report.comparison_fidelity import FidelityDifference, difference
from ddpmbench.report.contents import lost
from ddpmbench.report.fidelity import INFLUENCE, SCHEMA, check_summary
from ddpmbench.report.figures.style import NORMAL
from ddpmbench.runs.finished import SUMMARY, FinishedRun
from ddpmbench.runs.folder import RunFolder

_WITH_INFLUENCE = ("fid", "kid", "precision", "inception_score")

Influence = Mapping[str, NDArray[np.float64]]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FidelityComparison(Shown):
    """Runs of `fid` by the same protocol, against the first of them.

    Attributes:
        summary: the object of `summary.json`.
        differences: one row a run, measure and reference; the fields of `FidelityDifference`.
    """

    summary: dict[str, Any]
    differences: pd.DataFrame

    def _card(self) -> Card:
        from ddpmbench.report.cards import fidelity_comparison_card

        return fidelity_comparison_card(self.summary)

    def _figures(self) -> Mapping[str, Draw]:
        from ddpmbench.report.figures.fidelity_differences import differences_figure

        drawn = differences_figure(self.differences, self.summary["name"])
        return {} if drawn is None else {"differences": lambda: drawn}


def compare_fidelity(
    runs: Sequence[str | Path], *, out: str | Path | None = None
) -> FidelityComparison:
    """The differences between runs of `fid`, with their intervals.

    Where both runs sampled with the same seed, sample i of both has the same noise: the interval
    is that of the mean of N differences of influences, narrower than that of runs that share
    nothing.

    Args:
        runs: two run folders or more; the first is the baseline.
        out: a folder for the table and the page; None writes nothing.

    Raises:
        InputError: one is no finished run of `fid`, or their protocols or references differ.
    """
    names = [str(run) for run in runs]
    opened = [FinishedRun.open(Path(run), option="", schema=SCHEMA) for run in runs]
    for run in opened:
        check_summary(run.summary, run.path / SUMMARY)
    baseline = opened[0]
    for run in opened[1:]:
        refuse_unlike(run, baseline, _facts)
    differences = [
        found
        for name, run in zip(names[1:], opened[1:], strict=True)
        for found in _differences(name, run, baseline)
    ]
    compared = FidelityComparison(
        comparison_fidelity.summary(names, [run.summary for run in opened], differences),
        pd.DataFrame([dataclasses.asdict(found) for found in differences]),
    )
    if out is not None:
        _write(named_path(out), compared)
    return compared


def _write(path: Path, found: FidelityComparison) -> None:
    runs = [found.summary["baseline"], *found.summary["runs"]]
    compared = {name: [run[name] for run in runs] for name in ("run", "samples")}
    folder = RunFolder(path, {"schema": comparison_fidelity.SCHEMA, **compared})
    folder.write_frame("differences.csv", found.differences)
    folder.write_summary(found.summary)
    write_report(path)


def _differences(name: str, run: FinishedRun, baseline: FinishedRun) -> list[FidelityDifference]:
    """Of each measure against each reference, and of the inception score."""
    paired = _paired_half_widths(run, baseline)
    of = run.summary["references"], baseline.summary["references"]
    found = [
        # Influences are on the measures against the first reference.
        difference(measure, (name, own), first, paired=paired.get(measure) if k == 0 else None)
        for k, (own, first) in enumerate(zip(*of, strict=True))
        for measure in FIDELITY_VALUES
    ]
    score = difference(
        "inception_score",
        (name, run.summary),
        baseline.summary,
        paired=paired.get("inception_score"),
    )
    return [*found, score]


def _paired_half_widths(run: FinishedRun, baseline: FinishedRun) -> dict[str, float]:
    """By measure; none where the runs do not share their noise."""
    if not _share_noise(run.summary, baseline.summary):
        return {}
    here, there = _influence(run), _influence(baseline)
    return {
        name: NORMAL * float((here[name] - there[name]).std(ddof=1)) / len(here[name]) ** 0.5
        for name in _WITH_INFLUENCE
        if name in here and name in there
    }


def _share_noise(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    sampled = one["sampler"] is not None and other["sampler"] is not None
    return sampled and one["seed"] is not None and bool(one["seed"] == other["seed"])


def _influence(run: FinishedRun) -> Influence:
    """Those that the folder has; of fewer than two samples nothing is known."""
    path = run.path / INFLUENCE
    number = run.summary["num_generated"]
    if not path.exists() or number < 2:
        return {}
    try:
        arrays = read_npz(path)
        found = {
            name: arrays[name].astype(np.float64) for name in _WITH_INFLUENCE if name in arrays
        }
    except (DamageError, ValueError) as error:
        raise lost(path) from error
    if any(of.shape != (number,) or not np.isfinite(of).all() for of in found.values()):
        raise lost(path)
    return found


def _facts(run: FinishedRun) -> dict[str, object]:
    """What must be the same, by its name in `summary.json`."""
    of = run.summary
    return {
        "name": of["name"],
        **_flat("protocol", of["protocol"]),
        "num_generated": of["num_generated"],
        "compute_precision": of["compute_precision"],
        "number of references": len(of["references"]),
        **{
            f"references[{k}].{name}": reference[name]
            for k, reference in enumerate(of["references"])
            for name in ("sha256", "num_reference")
        },
    }


def _flat(name: str, value: object) -> dict[str, object]:
    """The fields of a record by their whole names."""
    if not isinstance(value, dict):
        return {name: value}
    return {
        whole: of
        for key, inner in value.items()
        for whole, of in _flat(f"{name}.{key}", inner).items()
    }
