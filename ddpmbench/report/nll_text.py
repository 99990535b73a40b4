"""A bound and its rate-distortion curve as printed, with the settings that matter to compare.

A summary is the object of `summary.json`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ddpmbench.diffusion.data_range import UNIT_RANGE
from ddpmbench.report.card import Card, in_folder
from ddpmbench.report.tables import correction_line, uncorrected_note
from ddpmbench.report.text import (
    bound_line,
    checkpoint_line,
    conventions_line,
    device_line,
    digits_by,
    fact_lines,
    images_line,
    printed,
    process_line,
    unpadded,
    with_data_range,
    with_interval,
)

PARTS = {
    "prior": "L_T, the end of the chain",
    "kl": "L_1..L_{T-1}, the timesteps",
    "decoder": "L_0, the pixels",
}
LARGE_PRIOR = 0.1
"""Least L_T, in bits per dimension, that is worth a line."""


def printed_nll(summary: dict[str, Any], output_format: str) -> str:
    """The bound for standard output; see `printed`."""
    lines = [headline(summary), "", *_parts(summary), "", *comparability(summary)]
    return printed(summary, output_format, lines)


def bound_card(summary: Mapping[str, Any], folder: Path | None) -> Card:
    """The card of a run of `nll`."""
    numbers = {
        "for these images": _bound(summary, "half_width"),
        "for their population": _bound(summary, "half_width_population"),
        **{name: f"{summary[name]:,.4f} ({what})" for name, what in PARTS.items()},
    }
    return Card(headline(summary), numbers, in_folder(comparable_facts(summary), folder))


def _bound(summary: Mapping[str, Any], name: str) -> str:
    half_width = summary[name]
    if half_width is None:
        return "interval unknown"
    return f"{with_interval(summary['bits_per_dim'], half_width)} bits/dim, 95 %"


def headline(summary: Mapping[str, Any]) -> str:
    """The bound and its interval in one line."""
    return bound_line(summary["bits_per_dim"], summary["half_width"])


def _parts(summary: Mapping[str, Any]) -> list[str]:
    digits = digits_by(summary["half_width"])
    lines = [f"{name:<12}{summary[name]:>10,.{digits}f}  {what}" for name, what in PARTS.items()]
    return [f"{'part':<12}{'bits/dim':>10}", *lines]


def comparability(summary: Mapping[str, Any]) -> list[str]:
    """The settings that comparable numbers of `nll` share, a line each."""
    fields = {"interval": _interval(summary)}
    if summary.get("continuous_bits_per_dim") is not None:
        value = with_interval(summary["continuous_bits_per_dim"], summary["continuous_half_width"])
        fields["continuous"] = (
            f"{value} bits/dim in continuous time, from the difference for some terms"
        )
    fields |= comparable_facts(summary)
    if summary["prior"] >= LARGE_PRIOR:
        fields["prior"] = (
            f"{summary['prior']:.4f} bits/dim: q(x_T) is far from the normal prior of sampling"
        )
    if note := uncorrected_note(summary):
        fields["tables"] = note
    return fact_lines(fields.items())


def comparable_facts(summary: Mapping[str, Any]) -> dict[str, str]:
    """The settings that comparable numbers of `nll` share, by name."""
    conventions = summary["conventions"]
    correction = correction_line(summary)
    return {
        "images": images_line(summary),
        **_padding_line(summary),
        "checkpoint": checkpoint_line(summary["checkpoint"]),
        "process": process_line(summary),
        "conventions": conventions_line(conventions),
        "estimator": f"{summary['estimator']}, {_amount(summary)}, "
        f"{summary['num_evaluations']:,} network evaluations, seed {summary['seed']}",
        **({"precision": correction} if correction else {}),
        "device": f"{device_line(summary)}, {summary['seconds']:.0f} s",
    }


def _padding_line(summary: Mapping[str, Any]) -> dict[str, str]:
    of_images = unpadded(summary)
    if of_images is None:
        return {}
    padding = summary["data"]["padding"]
    before, after = (f"{width}x{height}" for height, width in (padding["from"], padding["to"]))
    value = with_interval(of_images["bits_per_dim"] or 0.0, of_images["half_width"])
    return {"padding": f"{before} to {after} with black; <= {value} bits per dimension of {before}"}


def num_sampled_images(summary: Mapping[str, Any]) -> int:
    """The number of images that the importance estimator evaluated."""
    return int(summary["sampling"].get("num_sampled_images", summary["num_images"]))


def _amount(summary: Mapping[str, Any]) -> str:
    sampling = summary["sampling"]
    if "num_replicates" not in sampling:
        return f"{sampling['draws']} draws"
    replicates = f"{sampling['num_replicates']} replicates"
    count = num_sampled_images(summary)
    return replicates if count == summary["num_images"] else f"{replicates} of {count:,} images"


def _interval(summary: Mapping[str, Any]) -> str:
    if summary["half_width"] is None:
        noise = "unknown for these images (one draw; two give an interval)"
    else:
        noise = f"{_half_width(summary['half_width'])} for these images"
    population = summary["half_width_population"]
    if population is None:
        return f"95 %: {noise}; unknown for the population (one image)"
    return f"95 %: {noise}; {_half_width(population)} for the population of images"


def _half_width(value: float) -> str:
    return f"+- {value:,.{digits_by(value)}f}"


RATE_DISTORTION_SCHEMA = "ddpmbench.rd/1"
_POINTS = 10
_NORMAL = 1.96

PUBLISHED = {
    1000: (1.77581, 0.95136),
    900: (0.11994, 12.02277),
    800: (0.05415, 18.47482),
    700: (0.02866, 24.43656),
    600: (0.01507, 30.80948),
    500: (0.00716, 38.03236),
    400: (0.00282, 46.12765),
    300: (0.00081, 54.18826),
    200: (0.00013, 60.97170),
    100: (0.00000, 67.60125),
}
"""Reverse steps to rate in bits per dimension and distortion on 0..255, for CIFAR-10's test set.

Source: Ho, Jain & Abbeel 2020, table 4. The paper does not state whether the distortion
is the mean RMSE or the root of the mean MSE.
"""


def curve_summary(curve: pd.DataFrame, run: dict[str, Any]) -> dict[str, Any]:
    """The object of `--format json`: the run's summary, and ten points of its curve."""
    num_timesteps = len(curve)
    decoded = {round(num_timesteps * k / _POINTS) for k in range(1, _POINTS + 1)} - {0}
    points = curve[curve.num_decoded_steps.isin(decoded)].drop(columns="t")
    rows = points.astype(object).where(points.notna(), None).to_dict("records")
    is_published = run["data"]["source"] == "cifar10" and decoded == set(PUBLISHED)
    if is_published and with_data_range(run["conventions"])["levels"] == UNIT_RANGE.levels:
        for row in rows:
            rate, distortion = PUBLISHED[row["num_decoded_steps"]]
            row |= {"published_rate_bits_per_dim": rate, "published_distortion_rmse": distortion}
    return {**run, "schema": RATE_DISTORTION_SCHEMA, "curve": rows}


def curve_card(summary: Mapping[str, Any], folder: Path | None) -> Card:
    """The card of a rate-distortion curve."""
    shown = {
        f"{point['num_decoded_steps']:,} reverse steps": (
            f"{point['rate_bits_per_dim']:.4f} bits/dim",
            _value(point["distortion_rmse"], 2),
        )
        for point in summary["curve"]
    }
    rate, rmse = next(iter(shown.values()))
    facts = {
        "images": images_line(summary),
        "checkpoint": checkpoint_line(summary["checkpoint"]),
    }
    numbers = {name: f"{bits}, RMSE {value}" for name, (bits, value) in shown.items()}
    return Card(f"{rate} at an RMSE of {rmse}", numbers, in_folder(facts, folder))


def printed_rate_distortion(summary: dict[str, Any], curve: pd.DataFrame, form: str) -> str:
    """The curve for standard output.

    Args:
        summary: from `curve_summary`.
        curve: every timestep; see `report.tables.rate_distortion`.
        form: "table" for ten points, "json" for the summary, "csv" for the whole curve, "quiet" for
            the total rate and the distortion at its end.
    """
    rows = summary["curve"]
    published = "published_rate_bits_per_dim" in rows[0]
    head = f"{'steps':>6}{'rate, bits/dim':>22}{'RMSE':>20}{'of mean MSE':>13}{'PSNR':>8}"
    if published:
        head += f"{'Ho et al. 2020: rate':>24}{'RMSE':>10}"
    lines = [head]
    for row in rows:
        rate = _value(row["rate_bits_per_dim"], 5, row["rate_standard_error"])
        distortion = _value(row["distortion_rmse"], 3, row["distortion_standard_error"])
        root, psnr = _value(row["distortion_rmse_of_mean_mse"], 3), _value(row["psnr"], 2)
        line = f"{row['num_decoded_steps']:>6}{rate:>22}{distortion:>20}{root:>13}{psnr:>8}"
        if published:
            line += f"{row['published_rate_bits_per_dim']:>24.5f}"
            line += f"{row['published_distortion_rmse']:>10.5f}"
        lines.append(line)
    facts = [
        "steps: reverse steps of the receiver; it shows the predicted x_start; 95 % intervals",
        "RMSE: of pixels on 0..255",
        f"lossless with the decoder's {summary['decoder']:.4f} bits/dim on top",
    ]
    return printed(
        summary,
        form,
        [*lines, "", *facts, "", *comparability(summary)],
        csv=curve,
        quiet=f"{rows[0]['rate_bits_per_dim']!r} {rows[0]['distortion_rmse']!r}",
    )


def _value(value: float | None, digits: int, standard_error: float | None = None) -> str:
    if value is None:
        return "unknown"
    if standard_error is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} +- {_NORMAL * standard_error:.{digits}f}"
