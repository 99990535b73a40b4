"""The metrics of samples: one table for text, page, figure and checks."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Metric:
    """The display of a metric.

    Attributes:
        label: its printed name. `{name}` is that of the Frechet distance, "FID" or "FD[...]"; for a
            network other than Inception `{network}` is " [...]" and `{kind}` "class".
        decimals: after the point.
        meaning: one line for the page; `{splits}` is the number of splits.
        times: factor from the value in `summary.json` to the printed one.
        higher_is_better: whether higher is better.
        has_reference: whether there is one value per reference; else a single value.
        in_figure: whether the figure of a comparison shows it.
    """

    label: str
    decimals: int
    meaning: str
    times: float = 1.0
    higher_is_better: bool = False
    has_reference: bool = True
    in_figure: bool = False


METRICS = {
    "fid": Metric("{name}", 2, "Fr\u00e9chet distance of the features", in_figure=True),
    "fid_infinity": Metric(
        "{name}-infinity", 2, "the same, extrapolated to infinitely many samples"
    ),
    "inception_score": Metric(
        "{kind} score{network}",
        2,
        "certainty and diversity of the predicted classes; without a reference, {splits}",
        higher_is_better=True,
        has_reference=False,
    ),
    "kid": Metric(
        "KID{network} x 1000",
        3,
        "squared kernel distance (cubic kernel); unbiased in N",
        times=1000.0,
    ),
    "precision": Metric(
        "precision{network}",
        3,
        "share of samples within the manifold of the reference",
        higher_is_better=True,
        in_figure=True,
    ),
    "recall": Metric(
        "recall{network}",
        3,
        "share of reference images within the manifold of the samples",
        higher_is_better=True,
        in_figure=True,
    ),
}
"""Metrics by their names in `summary.json`, in its order; computed by `samples.scores`."""
AGAINST_REFERENCE = tuple(name for name, metric in METRICS.items() if metric.has_reference)
WITHOUT_REFERENCE = tuple(name for name in METRICS if name not in AGAINST_REFERENCE)


def half_width_of(name: str) -> str:
    """The field of the half width of a metric's 95 % interval."""
    return f"{name}_half_width"


@dataclasses.dataclass(frozen=True)
class Score:
    """A value of a metric, as shown.

    Attributes:
        label: the metric's name in words.
        value: in the unit of the label; None if unknown.
        half_width: of its 95 % interval; None where it is not known.
        decimals: after the point.
        against: the reference, or other text in its place.
    """

    label: str
    value: float | None
    half_width: float | None
    decimals: int
    against: str = ""

    @classmethod
    def of(
        cls,
        metric: str,
        name: str,
        value: float | None,
        half_width: float | None = None,
        *,
        against: str = "",
    ) -> "Score":
        """A value and its half width in the unit of `summary.json`; None if unknown.

        Args:
            metric: one of `METRICS`.
            name: that of the Frechet distance.
            value: in the unit of `summary.json`, as is `half_width`.
            half_width: of its 95 % interval.
            against: see the attribute.
        """
        shown = METRICS[metric]
        value, half_width = (
            None if each is None else shown.times * each for each in (value, half_width)
        )
        return cls(label(metric, name), value, half_width, shown.decimals, against)

    @classmethod
    def read(cls, metric: str, values: Mapping[str, Any], name: str, against: str = "") -> "Score":
        """The score in a summary, or in one of its references; see `of`."""
        return cls.of(metric, name, values[metric], values[half_width_of(metric)], against=against)

    @property
    def text(self) -> str:
        """The value and its interval."""
        if self.value is None:
            return "unknown"
        interval = "" if self.half_width is None else f" +- {self.half_width:.{self.decimals}f}"
        return f"{self.value:.{self.decimals}f}{interval}"


def label(metric: str, name: str) -> str:
    """The printed name of one of `METRICS`, with the network if it is not Inception.

    Args:
        metric: its name in `summary.json`.
        name: that of the Frechet distance, "FID" or "FD[...]".
    """
    is_fid = name == "FID"
    network, kind = ("", "inception") if is_fid else (f" {name.removeprefix('FD')}", "class")
    return METRICS[metric].label.format(name=name, network=network, kind=kind)
