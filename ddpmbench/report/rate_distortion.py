"""A rate-distortion curve as printed, its figure, and pictures along the chain."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddpmbench.diffusion.data_range import UNIT_RANGE
from ddpmbench.report.display import Card, Draw, Shown, in_folder
from ddpmbench.report.figures import (
    COLORS,
    GAP,
    NORMAL,
    Drawn,
    Pixels,
    Sheet,
    axes_panels,
    curve,
    drawing,
    finish,
    shown,
)
from ddpmbench.report.nll_text import comparability
from ddpmbench.report.text import (
    checkpoint_line,
    images_line,
    json_rows,
    printed,
    with_data_range,
)
from ddpmbench.samples.progressive import Interpolation, ProgressiveDecoding, ProgressiveGeneration

SCHEMA = "ddpmbench.rd/1"
_POINTS = 10
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


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class RateDistortion(Shown):
    """The rate-distortion curve of a checkpoint on images.

    Attributes:
        summary: what the curve depends on, and the curve at ten timesteps.
        curve: one row per timestep; see `report.tables.rate_distortion`.
        folder: the run folder; None if the run was kept in memory.
    """

    summary: dict[str, Any]
    curve: pd.DataFrame
    folder: Path | None

    def _card(self) -> Card:
        shown = {
            f"{point['num_decoded_steps']:,} reverse steps": (
                f"{point['rate_bits_per_dim']:.4f} bits/dim",
                _value(point["distortion_rmse"], 2),
            )
            for point in self.summary["curve"]
        }
        rate, rmse = next(iter(shown.values()))
        facts = {
            "images": images_line(self.summary),
            "checkpoint": checkpoint_line(self.summary["checkpoint"]),
        }
        numbers = {name: f"{bits}, RMSE {value}" for name, (bits, value) in shown.items()}
        return Card(f"{rate} at an RMSE of {rmse}", numbers, in_folder(facts, self.folder))

    def _figures(self) -> Mapping[str, Draw]:
        return {"rate_distortion": lambda: rate_distortion_figure(self.curve)}


def curve_summary(curve: pd.DataFrame, run: dict[str, Any]) -> dict[str, Any]:
    """The object of `--format json`: the run's summary, and ten points of its curve."""
    num_timesteps = len(curve)
    decoded = {round(num_timesteps * k / _POINTS) for k in range(1, _POINTS + 1)} - {0}
    points = curve[curve.num_decoded_steps.isin(decoded)].drop(columns="t")
    rows = json_rows(points)
    is_published = run["data"]["source"] == "cifar10" and decoded == set(PUBLISHED)
    if is_published and with_data_range(run["conventions"])["levels"] == UNIT_RANGE.levels:
        for row in rows:
            rate, distortion = PUBLISHED[row["num_decoded_steps"]]
            row |= {"published_rate_bits_per_dim": rate, "published_distortion_rmse": distortion}
    return {**run, "schema": SCHEMA, "curve": rows}


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
    return f"{value:.{digits}f} +- {NORMAL * standard_error:.{digits}f}"


@drawing()
def rate_distortion_figure(table: pd.DataFrame, *, steps: str = "reverse steps") -> Drawn:
    """Distortion over rate, and both over the reverse steps of a receiver.

    Args:
        table: see `report.tables.rate_distortion`.
        steps: what `num_decoded_steps` counts.

    Returns:
        The figure, and the table with the half widths of its 95 % intervals.

    Source: Ho, Jain & Abbeel 2020, figure 5.
    """
    numbers = table.assign(
        rate_half_width=NORMAL * table.rate_standard_error,
        distortion_half_width=NORMAL * table.distortion_standard_error,
    )
    few = numbers.iloc[shown(len(numbers))]
    figure, (both, distortion, rate) = axes_panels(3)
    rmse, bits = "distortion, RMSE (0..255)", "rate, bits/dim"
    both.plot(few.rate_bits_per_dim, few.distortion_rmse, color=COLORS[0])
    both.set_xlim(left=0)
    curve(distortion, few.num_decoded_steps, few.distortion_rmse, few.distortion_half_width, 0)
    curve(rate, few.num_decoded_steps, few.rate_bits_per_dim, few.rate_half_width, 0)
    finish(both, "Distortion over rate", x=bits, y=rmse)
    finish(distortion, "Distortion", x=steps, y=rmse)
    finish(rate, "Rate", x=steps, y=bits)
    for axes in (both, distortion, rate):
        axes.set_ylim(bottom=0)
    return figure, numbers


def decoding_figure(decoding: ProgressiveDecoding, curve: pd.DataFrame) -> Drawn:
    """What a receiver holds and shows after some of T reverse steps, an image in two rows.

    Args:
        decoding: the pictures.
        curve: see `report.tables.rate_distortion`.

    Returns:
        The figure, and one row per picture: `image_id`, `t`, `num_decoded_steps`,
        `rate_bits_per_dim` of all images and `rmse` of this one, on 0..255.

    Source: Ho, Jain & Abbeel 2020, section 4.3.
    """
    num_images, num_steps = decoding.rmse.shape
    rates = curve.rate_bits_per_dim.to_numpy()[decoding.t - 1]
    numbers = pd.DataFrame(
        {
            "image_id": np.repeat(decoding.image_id, num_steps),
            "t": np.tile(decoding.t, num_images),
            "num_decoded_steps": np.tile(_num_decoded_steps(decoding), num_images),
            "rate_bits_per_dim": np.tile(rates, num_images),
            "rmse": decoding.rmse.flatten(),
        }
    )
    sheet = Sheet(decoding.x_start.shape[2:], columns=num_steps + 1, apart={num_steps})
    sheet.text("steps", [*_steps(decoding), "image"])
    sheet.text("rate, bits/dim", [f"{rate:.5f}" for rate in rates])
    for n in range(num_images):
        sheet.space(GAP)
        sheet.pictures("x_t", list(decoding.x_t[n]))
        sheet.space(GAP // 2)
        sheet.pictures("x_0 predicted", [*decoding.pred_x_start[n], decoding.x_start[n]])
        sheet.text("RMSE", [f"{value:.1f}" for value in decoding.rmse[n]])
    return sheet.figure(), numbers


def generation_figure(
    generation: ProgressiveGeneration,
) -> Drawn:
    """What the network makes of samples after some of T reverse steps, a row per sample.

    Returns:
        The figure, and one row per picture but the samples: `sample`, `t`, `num_decoded_steps`, and
        `rmse_to_sample` of the two pictures, on 0..255.

    Source: Ho, Jain & Abbeel 2020, figure 6.
    """
    num_samples, num_steps = generation.pred_x_start.shape[:2]
    numbers = pd.DataFrame(
        {
            "sample": np.repeat(np.arange(num_samples), num_steps),
            "t": np.tile(generation.t, num_samples),
            "num_decoded_steps": np.tile(_num_decoded_steps(generation), num_samples),
            "rmse_to_sample": _rmse(generation.pred_x_start, generation.samples[:, None]).flatten(),
        }
    )
    sheet = Sheet(generation.samples.shape[2:], columns=num_steps + 1, apart={num_steps})
    sheet.text("steps", [*_steps(generation), "sample"])
    for n in range(num_samples):
        sheet.pictures(f"sample {n}", [*generation.pred_x_start[n], generation.samples[n]])
        sheet.space(GAP)
    return sheet.figure(), numbers


def interpolation_figure(mixed: Interpolation) -> Drawn:
    """What lies between two images, a row per pair, with the images at its ends.

    Returns:
        The figure, and one row per picture between: `first_image_id`, `second_image_id`, `t` at
        which they were mixed, `weight` of the second, and `rmse_to_first` and `rmse_to_second`,
        on 0..255.

    Source: Ho, Jain & Abbeel 2020, figure 8.
    """
    num_pairs, num_weights = mixed.decoded.shape[:2]
    numbers = pd.DataFrame(
        {
            "first_image_id": np.repeat(mixed.image_id[:, 0], num_weights),
            "second_image_id": np.repeat(mixed.image_id[:, 1], num_weights),
            "t": mixed.depth,
            "weight": np.tile(mixed.weight, num_pairs),
            "rmse_to_first": _rmse(mixed.decoded, mixed.x_start[:, :1]).flatten(),
            "rmse_to_second": _rmse(mixed.decoded, mixed.x_start[:, 1:]).flatten(),
        }
    )
    columns = num_weights + 2
    sheet = Sheet(mixed.x_start.shape[3:], columns=columns, apart={1, columns - 1})
    title = f"mixed at t = {mixed.depth} of {mixed.num_timesteps}, weight of the second image"
    sheet.text("", [""] * (columns // 2) + [title])
    sheet.text("", ["image", *(f"{weight:.1f}" for weight in mixed.weight), "image"])
    for pair, ends, between in zip(mixed.pair, mixed.x_start, mixed.decoded, strict=True):
        sheet.pictures(f"images {pair[0]}, {pair[1]}", [ends[0], *between, ends[1]])
        sheet.space(GAP)
    return sheet.figure(), numbers


def _num_decoded_steps(pictures: ProgressiveDecoding | ProgressiveGeneration) -> NDArray[np.int64]:
    return pictures.num_timesteps + 1 - pictures.t


def _steps(pictures: ProgressiveDecoding | ProgressiveGeneration) -> list[str]:
    return [f"{k} of {pictures.num_timesteps}" for k in _num_decoded_steps(pictures)]


def _rmse(pictures: Pixels, others: Pixels) -> NDArray[np.float64]:
    """Root mean squared difference of (..., C, H, W) pictures, on 0..255."""
    squares = np.square(pictures.astype(np.float64) - others)
    rmse: NDArray[np.float64] = np.sqrt(squares.mean(axis=(-3, -2, -1)))
    return rmse
