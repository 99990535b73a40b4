"""Tables of a quality run: scores become rows and the object of its summary."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ddpmbench.quality.estimate import Estimate
from ddpmbench.quality.fidelity import Scores
from ddpmbench.quality.inception_score import InceptionScore
from ddpmbench.report.fidelity import AGAINST_N_COLUMNS, PER_IMAGE_COLUMNS


def per_image_frame(
    ids: Sequence[str],
    scores: Scores,
    reference_ids: Sequence[str],
    classes: InceptionScore | None,
) -> pd.DataFrame:
    """One row a sample, the columns `PER_IMAGE_COLUMNS`; what is not known is empty.

    Args:
        ids: the samples' names.
        scores: against the first reference.
        reference_ids: the names of its images.
        classes: their classes, in nats.
    """
    found = scores.neighbors
    nearest = None if found is None else [reference_ids[int(i)] for i in found.nearest]
    columns = {
        "image_id": list(ids),
        "nearest_reference_id": nearest,
        "nearest_reference_distance": None if found is None else found.distance,
        "class_entropy": None if classes is None else classes.class_entropy,
    }
    return pd.DataFrame(columns, columns=list(PER_IMAGE_COLUMNS))


def against_n_frame(sources: Sequence[str], scores: Sequence[Scores]) -> pd.DataFrame:
    """The distance at N, N / 2 and N / 4 samples against each reference."""
    rows: list[tuple[str, int, float, float]] = []
    for source, of in zip(sources, scores, strict=True):
        for point in of.infinity.points if of.infinity is not None else ():
            error = point.standard_error
            rows.append(
                (source, point.num_generated, point.fid, np.nan if error is None else error)
            )
    return pd.DataFrame(rows, columns=list(AGAINST_N_COLUMNS))


def scores_summary(scores: Scores) -> dict[str, float | None]:
    """The scores against one reference by name, each with its half width."""
    infinity = scores.infinity
    neighbors = scores.neighbors
    return {
        **_pair("fid", scores.frechet),
        **_pair("fid_infinity", None if infinity is None else infinity.estimate),
        **_pair("kid", scores.kernel),
        **_pair("precision", None if neighbors is None else neighbors.precision),
        **_pair("recall", None if neighbors is None else neighbors.recall),
    }


def headline_summary(scores: Scores, classes: InceptionScore | None) -> dict[str, float | None]:
    """The scores of the headline: against the first reference, and the Inception score."""
    found = scores_summary(scores)
    inception = _pair("inception_score", None if classes is None else classes.estimate)
    order = ("fid", "fid_infinity", "inception_score", "kid", "precision", "recall")
    together = {**found, **inception}
    return {
        name + suffix: together[name + suffix] for name in order for suffix in ("", "_half_width")
    }


def _pair(name: str, estimate: Estimate | None) -> dict[str, Any]:
    if estimate is None:
        return {name: None, f"{name}_half_width": None}
    return {name: estimate.value, f"{name}_half_width": estimate.half_width}
