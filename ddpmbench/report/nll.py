"""The report of a run of `nll`: its tables, its figures and its page."""

import dataclasses
import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from markupsafe import Markup, escape

from ddpmbench.checksums import reading
from ddpmbench.errors import InputError
from ddpmbench.execution.estimators import ESTIMATORS, kind_of, refuse_missing_shards
from ddpmbench.execution.finished_runs import (
    CONTINUOUS_TABLE,
    DENSITY,
    PER_IMAGE,
    RATE_DISTORTION,
    SUMMARY,
    FinishedRun,
    density_frame,
    num_steps,
)
from ddpmbench.execution.stored_images import EXTREMES, Pictures, read_extremes
from ddpmbench.report import tables
from ddpmbench.report.conventions import CONVENTION_COLUMNS, SUB_SCHEDULE_COLUMNS
from ddpmbench.report.display import Card, Draw
from ddpmbench.report.nll_text import PARTS, bound_card, comparable_facts, num_sampled_images
from ddpmbench.report.stored import PageReport, Table
from ddpmbench.report.tables import bits_of_images, uncorrected_note
from ddpmbench.report.text import (
    counted,
    digits_by,
    heading,
    raw_pixels_warning,
    sanity_check_warning,
)

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


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class NllReport(PageReport):
    """The variational bound of a checkpoint on images.

    Attributes:
        summary: the object of `summary.json`.
        per_timestep: one row per timestep; see `report.tables.per_timestep`.
        rate_distortion: one row per timestep; see `report.tables.rate_distortion`.
        conventions: one row per published convention; see `report.conventions`.
        sub_schedules: one row per model on a subset of the timesteps; see `report.conventions`.
        per_image: one row per image; see `report.tables.per_image`.
        folder: the run folder; None if the run was kept in memory.
        continuous: one row per term that was evaluated in continuous time as well; see
            `report.tables.continuous_frame`. None without an estimate in continuous time.
    """

    SCHEMA = tables.SCHEMA
    TABLES: ClassVar = {
        "per_timestep": Table(
            "per_timestep.csv", tables.PER_TIMESTEP_COLUMNS, optional=tables.PLACE_COLUMNS
        ),
        "rate_distortion": Table(RATE_DISTORTION, tables.RATE_DISTORTION_COLUMNS),
        "conventions": Table(
            "conventions.csv", CONVENTION_COLUMNS, optional=["difference_half_width"]
        ),
        "sub_schedules": Table("sub_schedules.csv", SUB_SCHEDULE_COLUMNS),
        "per_image": Table(PER_IMAGE, tables.PER_IMAGE_COLUMNS),
        "continuous": Table(
            CONTINUOUS_TABLE, tables.CONTINUOUS_COLUMNS, where="continuous_num_evaluations"
        ),
    }
    TEMPLATE = "nll.html.j2"
    FIGURES: ClassVar = {
        "bound": "Bits per timestep, and cumulative bits from T, over t",
        "rate_distortion": "Distortion over rate, and both over the progress of the decoding",
        "images": "Histogram of the bits per image, and the images with the fewest and the most "
        "bits",
        "sub_schedules": "Bound over the number of timesteps, evenly spaced and best subset",
        "continuous": "Mean squared error of the predicted noise, at whole timesteps and between "
        "them",
        "calls": "Network evaluations per timestep",
    }
    STRIPS: ClassVar = {
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

    summary: dict[str, Any]
    per_timestep: pd.DataFrame
    rate_distortion: pd.DataFrame
    conventions: pd.DataFrame
    sub_schedules: pd.DataFrame
    per_image: pd.DataFrame
    folder: Path | None
    continuous: pd.DataFrame | None = None

    @classmethod
    def finished(cls, path: Path, *, option: str = "", reads_terms: bool = False) -> FinishedRun:
        """A finished run of `nll` or `rd` whose shards are whole.

        Args:
            path: the folder.
            option: how the user named the folder, for messages.
            reads_terms: see `refuse_missing_shards`.

        Raises:
            InputError: it holds none; its estimator is unknown, or its correction is not one of its
                precision; or shards are missing or damaged.
        """
        run = super().finished(path, option=option)
        summary, named = run.summary, f"{option} {path}".strip()
        with reading(path / SUMMARY):
            if summary["estimator"] not in ESTIMATORS:
                raise InputError(
                    f"{named}: estimator: {summary['estimator']} is unknown; upgrade ddpmbench"
                )
            is_corrected = summary.get("precision_correction") is not None
            if is_corrected == (summary["precision"] == tables.STRICT):
                raise InputError(
                    f"{named}: precision_correction: does not belong to {summary['precision']}; "
                    "run its command again"
                )
            # Whatever they take that the summary lacks is missed here.
            bound_card(summary, path), kind_of(summary).num_terms(summary)
        refuse_missing_shards(run, option=option, reads_terms=reads_terms)
        return run

    @classmethod
    def _read(cls, run: FinishedRun) -> dict[str, Any]:
        read = super()._read(run)
        # Results of earlier versions have no intervals of differences.
        return read | {"conventions": read["conventions"].reindex(columns=list(CONVENTION_COLUMNS))}

    def _card(self) -> Card:
        return bound_card(self.summary, self.folder)

    def _figures(self) -> Mapping[str, Draw]:
        # Here, since a run in memory takes no figure, and matplotlib a while to be imported.
        from ddpmbench.report import nll_figures, rate_distortion

        folder, summary, curve = self.folder, self.summary, self.rate_distortion
        extremes, pictures = None, Pictures()
        if folder is not None:
            extremes = read_extremes(folder / EXTREMES)
            pictures = Pictures.read(folder, summary["num_timesteps"])
        is_continuous = summary.get("num_parts") is not None
        steps = {"steps": "parts of continuous time"} if is_continuous else {}
        figures: dict[str, Draw] = {
            "bound": partial(nll_figures.bound_figure, self.per_timestep, curve),
            "rate_distortion": partial(rate_distortion.rate_distortion_figure, curve, **steps),
            "images": partial(nll_figures.images_figure, *bits_of_images(self.per_image), extremes),
        }
        if len(self.sub_schedules):
            figures["sub_schedules"] = partial(nll_figures.sub_schedules_figure, self.sub_schedules)
        if self.continuous is not None:
            figures["continuous"] = partial(nll_figures.continuous_figure, self.continuous)
        if folder is not None and (folder / DENSITY).exists():
            figures["calls"] = partial(
                nll_figures.calls_figure,
                self.per_timestep,
                density_frame(FinishedRun(folder, summary).density()),
                num_images=summary["num_images"],
                num_sampled=num_sampled_images(summary),
                num_replicates=summary["sampling"]["num_replicates"],
            )
        if pictures.decoding is not None:
            figures["decoding"] = partial(rate_distortion.decoding_figure, pictures.decoding, curve)
        if pictures.generation is not None:
            figures["generation"] = partial(rate_distortion.generation_figure, pictures.generation)
        if pictures.interpolation is not None:
            figures["interpolation"] = partial(
                rate_distortion.interpolation_figure, pictures.interpolation
            )
        return figures

    def _page(self) -> dict[str, Any]:
        from ddpmbench.report.figures import shown
        from ddpmbench.report.nll_figures import TALLEST
        from ddpmbench.report.rate_distortion import curve_summary

        summary, curve = self.summary, self.rate_distortion
        points = curve_summary(curve, summary)["curve"]
        every_pair = summary["num_images"] * num_steps(summary)
        steps = self.per_timestep.merge(
            curve[["t", "rate_bits_per_dim", "distortion_rmse"]], on="t"
        )
        # Of a long schedule the timesteps that a figure shows, to keep the page small.
        every_step = steps if len(steps) <= _MOST_ROWS else steps.iloc[shown(len(steps))]
        is_continuous = summary.get("num_parts") is not None
        return {
            "summary": summary,
            "notes": [raw_pixels_warning(summary), sanity_check_warning(summary)],
            "heading": heading(summary),
            "these": _these(summary["num_images"]),
            "chance": kind_of(summary).chance(summary),
            "evaluated": _evaluated(summary),
            "spread": _spread(summary),
            "facts": comparable_facts(summary),
            "uncorrected": uncorrected_note(summary),
            "bound_parts": _bound_parts(summary),
            "half_by": _half_by(steps, summary["prior"], "u" if is_continuous else "t"),
            "is_continuous": is_continuous,
            "num_steps": num_steps(summary),
            "points": points,
            "published": "published_rate_bits_per_dim" in points[0],
            "images_text": _images_text(self.per_image),
            "conventions": self._conventions(),
            "absent": _absent(summary),
            "every_pair": every_pair,
            "fewer": every_pair / summary["num_evaluations"],
            "every_step": every_step.to_dict("records"),
            "most": TALLEST,
            "digits": digits_by(summary["half_width"]),
            "best_constant": _BEST_CONSTANT,
            "steps_text": _steps_text(summary),
        }

    def _conventions(self) -> list[tuple[str, list[dict[Any, Any]]]]:
        """The conventions in groups: all timesteps, and fewer."""
        table = self.conventions
        rows: list[dict[Any, Any]] = table.assign(own=table.index == 0).to_dict("records")
        num_timesteps = self.summary["num_timesteps"]
        same = [row for row in rows if row["num_timesteps"] == num_timesteps]
        fewer = [row for row in rows if row["num_timesteps"] != num_timesteps]
        groups = [("", same), ("Fewer timesteps: bounds of respaced models", fewer)]
        # An unknown interval is None in a page, and nan in a table.
        for row in rows:
            for name in ("half_width", "difference_half_width"):
                row[name] = None if math.isnan(row[name]) else row[name]
        return [(title, group) for title, group in groups if group]


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
