"""The printed rate-distortion curve, beside the published one where there is one."""

import json
from typing import Any

import pandas as pd

from ddpmbench.diffusion.data_range import UNIT_RANGE
from ddpmbench.report.nll_text import comparability
from ddpmbench.report.text import with_data_range

SCHEMA = "ddpmbench.rd/1"
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
"""Reverse steps to rate in bits per dimension and distortion on 0..255, of CIFAR-10's test images.

Source: Ho, Jain & Abbeel 2020, table 4. The paper does not state whether the distortion
is the mean RMSE or the root of the mean MSE.
"""


def summary(curve: pd.DataFrame, run: dict[str, Any]) -> dict[str, Any]:
    """The object of `--format json`: that of the run, and ten points of its curve."""
    num_timesteps = len(curve)
    steps = {round(num_timesteps * k / _POINTS) for k in range(1, _POINTS + 1)} - {0}
    points = curve[curve.num_decoded_steps.isin(steps)].drop(columns="t")
    rows = points.astype(object).where(points.notna(), None).to_dict("records")
    is_published = run["data"]["source"] == "cifar10" and steps == set(PUBLISHED)
    if is_published and with_data_range(run["conventions"])["levels"] == UNIT_RANGE.levels:
        for row in rows:
            rate, distortion = PUBLISHED[row["num_decoded_steps"]]
            row |= {"published_rate_bits_per_dim": rate, "published_distortion_rmse": distortion}
    return {**run, "schema": SCHEMA, "curve": rows}


def printed_rate_distortion(summary: dict[str, Any], curve: pd.DataFrame, form: str) -> str:
    """The curve for standard output.

    Args:
        summary: what `summary` returns.
        curve: every step; see `report.tables.rate_distortion`.
        form: "table" with ten points for reading, "json" for the summary, "csv" for every step,
            "quiet" for the whole rate and the distortion at its end.
    """
    rows = summary["curve"]
    match form:
        case "json":
            return json.dumps(summary, indent=2)
        case "csv":
            return curve.to_csv(index=False).rstrip()
        case "quiet":
            return f"{rows[0]['rate_bits_per_dim']!r} {rows[0]['distortion_rmse']!r}"
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
    return "\n".join([*lines, "", *facts, "", *comparability(summary)])


def _value(value: float | None, digits: int, standard_error: float | None = None) -> str:
    if value is None:
        return "unknown"
    if standard_error is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} +- {_NORMAL * standard_error:.{digits}f}"
