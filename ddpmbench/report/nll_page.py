"""The page of a run of `nll`: a single self-contained file."""

import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
from markupsafe import Markup, escape

from ddpmbench.execution.estimators import kind_of
from ddpmbench.execution.finished_runs import DENSITY, FinishedRun, density_frame, num_steps
from ddpmbench.execution.stored_images import EXTREMES, Pictures, read_extremes
from ddpmbench.report.display import Draw
from ddpmbench.report.figures import shown
from ddpmbench.report.html import drawn, rendered
from ddpmbench.report.nll_figures import (
    TALLEST,
    bound_figure,
    calls_figure,
    continuous_figure,
    images_figure,
    sub_schedules_figure,
)
from ddpmbench.report.nll_text import PARTS, comparable_facts, num_sampled_images
from ddpmbench.report.rate_distortion import (
    curve_summary,
    decoding_figure,
    generation_figure,
    interpolation_figure,
    rate_distortion_figure,
)
from ddpmbench.report.tables import bits_of_images, uncorrected_note
from ddpmbench.report.text import (
    counted,
    digits_by,
    heading,
    raw_pixels_warning,
    sanity_check_warning,
)

FIGURES = {
    "bound": "Bits per timestep, and cumulative bits from T, over t",
    "rate_distortion": "Distortion over rate, and both over the progress of the decoding",
    "images": "Histogram of the bits per image, and the images with the fewest and the most bits",
    "sub_schedules": "Bound over the number of timesteps, evenly spaced and best subset",
    "continuous": "Mean squared error of the predicted noise, at whole timesteps and between them",
    "calls": "Network evaluations per timestep",
}
"""Captions of the figures, by name."""

STRIPS = {
    "decoding": (
        "Progressive lossy decoding",
        "Reconstructions after part of the reverse steps, with the rate so far.",
    ),
    "generation": (
        "Progressive generation",
        "Predictions of x_0 during sampling.",
    ),
    "interpolation": (
        "Interpolation",
        "Between two images: mixed at one timestep, then decoded by the reverse process.",
    ),
}
"""Optional strips of pictures, by name: title and text."""

_BEST_CONSTANT = (
    "\u201cbest_constant\u201d is the variance per timestep, shared by all pixels and images, that "
    "minimizes the bound on these images (Bao et al. 2022)."
)
_PARTS_OF_TIME = (
    "A part of continuous time ends at timestep u of the training and begins where the one before "
    "it ends; the network is evaluated at random times within it. The first row is the decoder."
)
_MOST_ROWS = 4000  # most rows of the table of timesteps
_COLORS = {"prior": 3, "kl": 1, "decoder": 2}


class RunTables(Protocol):
    """The report of a run of `nll`; see `evaluate.nll_report.NllReport`."""

    @property
    def summary(self) -> dict[str, Any]: ...  # noqa: D102
    @property
    def per_timestep(self) -> pd.DataFrame: ...  # noqa: D102
    @property
    def rate_distortion(self) -> pd.DataFrame: ...  # noqa: D102
    @property
    def per_image(self) -> pd.DataFrame: ...  # noqa: D102
    @property
    def conventions(self) -> pd.DataFrame: ...  # noqa: D102
    @property
    def sub_schedules(self) -> pd.DataFrame: ...  # noqa: D102
    @property
    def continuous(self) -> pd.DataFrame | None: ...  # noqa: D102


def run_figures(tables: RunTables, folder: Path | None) -> dict[str, Draw]:
    """The figures of a run of `nll` by name, without those that lack data.

    Args:
        tables: the report of the run.
        folder: with its pictures and its proposal density; None for a run in memory.

    Raises:
        InputError: a file of the folder is damaged; the message names it.
    """
    summary, curve = tables.summary, tables.rate_distortion
    extremes, pictures = None, Pictures()
    if folder is not None:
        extremes = read_extremes(folder / EXTREMES)
        pictures = Pictures.read(folder, summary["num_timesteps"])
    is_continuous = summary.get("num_parts") is not None
    steps = {"steps": "parts of continuous time"} if is_continuous else {}
    figures: dict[str, Draw] = {
        "bound": partial(bound_figure, tables.per_timestep, curve),
        "rate_distortion": partial(rate_distortion_figure, curve, **steps),
        "images": partial(images_figure, *bits_of_images(tables.per_image), extremes),
    }
    if len(tables.sub_schedules):
        figures["sub_schedules"] = partial(sub_schedules_figure, tables.sub_schedules)
    if tables.continuous is not None:
        figures["continuous"] = partial(continuous_figure, tables.continuous)
    if folder is not None and (folder / DENSITY).exists():
        figures["calls"] = partial(
            calls_figure,
            tables.per_timestep,
            density_frame(FinishedRun(folder, summary).density()),
            num_images=summary["num_images"],
            num_sampled=num_sampled_images(summary),
            num_replicates=summary["sampling"]["num_replicates"],
        )
    if pictures.decoding is not None:
        figures["decoding"] = partial(decoding_figure, pictures.decoding, curve)
    if pictures.generation is not None:
        figures["generation"] = partial(generation_figure, pictures.generation)
    if pictures.interpolation is not None:
        figures["interpolation"] = partial(interpolation_figure, pictures.interpolation)
    return figures


def run_page(
    tables: RunTables, environment: Mapping[str, Any] | None, svgs: Mapping[str, str]
) -> str:
    """The page of a finished run of `nll` or `rd`.

    Args:
        tables: the report of the run.
        environment: the object of `environment.json`, if any.
        svgs: its figures by name, of `FIGURES` and `STRIPS`; missing ones are left out.
    """
    summary, curve = tables.summary, tables.rate_distortion
    points = curve_summary(curve, summary)["curve"]
    every_pair = summary["num_images"] * num_steps(summary)
    steps = tables.per_timestep.merge(curve[["t", "rate_bits_per_dim", "distortion_rmse"]], on="t")
    is_continuous = summary.get("num_parts") is not None
    return rendered(
        "nll.html.j2",
        summary=summary,
        notes=[raw_pixels_warning(summary), sanity_check_warning(summary)],
        heading=heading(summary),
        these=_these(summary["num_images"]),
        chance=kind_of(summary).chance(summary),
        evaluated=_evaluated(summary),
        spread=_spread(summary),
        facts=comparable_facts(summary),
        uncorrected=uncorrected_note(summary),
        bound_parts=_bound_parts(summary),
        half_by=_half_by(steps, summary["prior"], "u" if is_continuous else "t"),
        is_continuous=is_continuous,
        num_steps=num_steps(summary),
        points=points,
        published="published_rate_bits_per_dim" in points[0],
        images_text=_images_text(tables.per_image),
        conventions=_conventions(tables),
        absent=_absent(summary),
        every_pair=every_pair,
        fewer=every_pair / summary["num_evaluations"],
        # For a long schedule the timesteps that a figure shows, to keep the page small.
        every_step=(steps if len(steps) <= _MOST_ROWS else steps.iloc[shown(len(steps))]).to_dict(
            "records"
        ),
        most=TALLEST,
        digits=digits_by(summary["half_width"]),
        best_constant=_BEST_CONSTANT,
        steps_text=_steps_text(summary),
        environment=environment,
        **drawn(svgs, FIGURES, STRIPS),
    )


# ---- sentences


def _evaluated(summary: dict[str, Any]) -> str:
    """Which images the estimator evaluates, as the beginning of a sentence."""
    count = num_sampled_images(summary)
    return (
        "Every image is" if count == summary["num_images"] else f"{count:,} of the images are each"
    )


def _these(num_images: int) -> str:
    return f"these {num_images:,} images" if num_images > 1 else "this one image"


def _spread(summary: Mapping[str, Any]) -> float | None:
    """The interval for these images, in percent of that for their population."""
    own, population = summary["half_width"], summary["half_width_population"]
    if own is None or not population:
        return None
    return min(100.0, 100 * float(own) / float(population))


def _bound_parts(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    total = sum(summary[name] for name in PARTS)
    return [
        {
            "name": name,
            "bits": summary[name],
            "share": max(0.0, summary[name] / total) if total else 0.0,
            "what": _typeset(what),
            "color": _COLORS[name],
        }
        for name, what in PARTS.items()
    ]


def _typeset(text: str) -> Markup:
    """The text with the index of L_{T-1} as a subscript."""
    return Markup(re.sub(r"_\{?([\w-]+)\}?", r"<sub>\1</sub>", str(escape(text))))


def _half_by(steps: pd.DataFrame, prior: float, place: str) -> int | None:
    """The timestep by which, from T down, the KL terms have sent half of their bits."""
    sent = steps.rate_bits_per_dim - prior
    if len(steps) < 3 or not sent.iloc[0] > 0:
        return None
    # The rate at x_t is the bits sent at later timesteps.
    return math.ceil(float(steps[place][sent <= sent.iloc[0] / 2].min()))


def _images_text(per_image: pd.DataFrame) -> str:
    if per_image.bits_per_dim.notna().all():
        return (
            "The bound of each image. It measures how well the model predicts the image, not its "
            "visual quality."
        )
    count = int(per_image.decoder.notna().sum())
    return (
        "Only the decoder term is known per image: this estimator evaluates a few timesteps of "
        "an image, enough for the mean over images but not for the total of one. "
        f"{counted(count, 'image')} {'was' if count == 1 else 'were'} evaluated."
    )


def _steps_text(summary: Mapping[str, Any]) -> str:
    text = kind_of(summary).about_timesteps
    return text if summary.get("num_parts") is None else f"{text} {_PARTS_OF_TIME}"


def _absent(summary: Mapping[str, Any]) -> Markup | None:
    """Why the bound in continuous time is not among the conventions; None if it is."""
    why = summary.get("continuous_absent")
    if why is None or summary.get("num_parts") is not None:
        return None
    words = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(why)))
    return Markup(f"The bound in continuous time is not among them: {words}.")


def _conventions(tables: RunTables) -> list[tuple[str, list[dict[Any, Any]]]]:
    """The conventions in groups: all timesteps, and fewer."""
    table = tables.conventions
    rows: list[dict[Any, Any]] = table.assign(own=table.index == 0).to_dict("records")
    num_timesteps = tables.summary["num_timesteps"]
    same = [row for row in rows if row["num_timesteps"] == num_timesteps]
    fewer = [row for row in rows if row["num_timesteps"] != num_timesteps]
    groups = [("", same), ("Fewer timesteps: bounds of respaced models", fewer)]
    # An unknown interval is None in a page, and nan in a table.
    for row in rows:
        for name in ("half_width", "difference_half_width"):
            row[name] = None if math.isnan(row[name]) else row[name]
    return [(title, group) for title, group in groups if group]
