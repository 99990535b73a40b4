"""What the records of a result must hold to be shown: a folder is a user's file."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpmbench.errors import InputError

_NUMBER, _NUMBER_OR_NONE = (int, float), (int, float, type(None))
_TEXT, _TEXT_OR_NONE, _WHOLE = (str,), (str, type(None)), (int,)

STRICT = "fp32"
"""The precision that needs no correction."""

Kinds = Mapping[str, Any]
"""Names to the types that their values may have, or to the kinds of a record within."""


@dataclasses.dataclass(frozen=True)
class Maybe:
    """The types of a value that a result of an earlier version does not have."""

    kinds: tuple[type, ...]


DATA: Kinds = {"source": _TEXT, "split": _TEXT_OR_NONE, "sha256": _TEXT}
CONVENTIONS: Kinds = {
    "prediction": _TEXT,
    "variance": _TEXT,
    "clip": (bool,),
    "decoder": _TEXT,
    "schedule": _TEXT,
    "labels": _TEXT_OR_NONE,
    "data_range": Maybe(_TEXT),
    "levels": Maybe(_WHOLE),
}
RUN: Kinds = {
    "bits_per_dim": _NUMBER,
    "half_width": _NUMBER_OR_NONE,
    "half_width_population": _NUMBER_OR_NONE,
    "prior": _NUMBER,
    "kl": _NUMBER,
    "decoder": _NUMBER,
    "num_images": _WHOLE,
    "num_timesteps": _WHOLE,
    "num_evaluations": _WHOLE,
    "estimator": _TEXT,
    "sampling": {},
    "conventions": CONVENTIONS,
    "checkpoint": {"source": _TEXT, "family": _TEXT, "sha256": _TEXT},
    "data": DATA,
    "seed": _WHOLE,
    "device": _TEXT,
    "precision": _TEXT,
    "seconds": _NUMBER,
}
"""`summary.json` of a run."""
CORRECTION: Kinds = {
    "bits_per_dim": _NUMBER,
    "half_width": _NUMBER,
    "num_evaluations": _WHOLE,
    "uncorrected_bits_per_dim": _NUMBER,
    "kl": _NUMBER,
    "decoder": _NUMBER,
}
"""`precision_correction` there, which a run in low precision has, and none in strict float32."""
READING_CHECK: Kinds = {
    "warning": _TEXT_OR_NONE,
    "likely": _TEXT_OR_NONE,
    "num_evaluations": _WHOLE,
    "outcome": Maybe(_TEXT),
    "better": Maybe(_TEXT_OR_NONE),
}
"""`check` there, which only a run has before which the sanity check of its checkpoint was made."""
COMPARED: Kinds = {
    "run": _TEXT,
    "bits_per_dim": _NUMBER,
    "half_width": _NUMBER_OR_NONE,
    "difference": _NUMBER_OR_NONE,
    "difference_half_width": _NUMBER_OR_NONE,
    "difference_half_width_population": _NUMBER_OR_NONE,
    "half_width_unpaired": _NUMBER_OR_NONE,
    "num_evaluations": _NUMBER_OR_NONE,
    "same_rows": _NUMBER_OR_NONE,
}
"""A run in `summary.json` of a comparison."""
COMPARISON: Kinds = {
    "baseline": COMPARED,
    "num_images": _WHOLE,
    "num_timesteps": _WHOLE,
    "estimator": _TEXT,
    "conventions": CONVENTIONS,
    "data": DATA,
    "seed": _WHOLE,
}
"""`summary.json` of a comparison, but for its `runs`."""
FIDELITY_VALUES = ("fid", "fid_infinity", "kid", "precision", "recall")
"""What is measured against a reference; each has its half width beside it."""


def _estimates(*names: str) -> Kinds:
    """Values that may not be known, and their half widths."""
    return {name: _NUMBER_OR_NONE for of in names for name in (of, f"{of}_half_width")}


FIDELITY_PROTOCOL: Kinds = {
    "id": _TEXT,
    "resize": _TEXT,
    "eight_bit": _TEXT,
    "channels": _TEXT,
    "feature_network": {"name": _TEXT, "sha256": _TEXT, "num_features": _WHOLE},
    "inception_splits": (int, type(None)),
    "inception_order": _TEXT_OR_NONE,
    "kid_subsets": _WHOLE,
    "kid_subset_size": _WHOLE,
    "neighbors": _WHOLE,
    "num_generated": _WHOLE,
    "dtype": _TEXT,
}
"""What two scores must have been made with alike to compare."""
REFERENCE: Kinds = {
    **DATA,
    "num_reference": (int, type(None)),
    **_estimates(*FIDELITY_VALUES),
}
"""A reference in `summary.json` of a run of `fid`."""
FIDELITY: Kinds = {
    "name": _TEXT,
    **_estimates(*FIDELITY_VALUES, "inception_score"),
    "num_generated": _WHOLE,
    "num_reference": (int, type(None)),
    "protocol": FIDELITY_PROTOCOL,
    "references": (list,),
    "samples": {"source": _TEXT, "sha256": _TEXT, "num_images": _WHOLE, "skipped": _WHOLE},
    "checkpoint": (dict, type(None)),
    "sampler": (dict, type(None)),
    "num_evaluations": (int, type(None)),
    "seed": (int, type(None)),
    "device": _TEXT,
    "compute_precision": _TEXT,
    "seconds": _NUMBER,
    "warnings": (list,),
}
"""`summary.json` of a run of `fid`; of its lists and of what may be null see `report.fidelity`."""
CHECKPOINT: Kinds = {"source": _TEXT, "family": _TEXT, "sha256": _TEXT}
"""The checkpoint that samples are of."""
SAMPLER: Kinds = {
    "method": _TEXT,
    "variance": _TEXT_OR_NONE,
    "clip": (bool,),
    "num_timesteps": _WHOLE,
    "num_original_timesteps": _WHOLE,
    "eta": _NUMBER_OR_NONE,
    "added_noise": _TEXT_OR_NONE,
    "labels": _TEXT_OR_NONE,
    "data_range": Maybe(_TEXT),
    "levels": Maybe(_WHOLE),
}
"""How samples were made."""
FIDELITY_COMPARISON: Kinds = {
    "baseline": {"run": _TEXT},
    "runs": (list,),
    "name": _TEXT,
    "num_generated": _WHOLE,
    "protocol": FIDELITY_PROTOCOL,
    "references": (list,),
}
"""`summary.json` of a comparison of runs of `fid`."""
FIDELITY_DIFFERENCE: Kinds = {
    "measure": _TEXT,
    "reference": _TEXT,
    "baseline": _NUMBER_OR_NONE,
    "value": _NUMBER_OR_NONE,
    "difference": _NUMBER_OR_NONE,
    "half_width": _NUMBER_OR_NONE,
    "half_width_unpaired": _NUMBER_OR_NONE,
    "how": _TEXT,
}
"""A difference of a run there."""
ENVIRONMENT: Kinds = {"versions": {}, "arguments": {"resolved": {}}}
"""`environment.json`."""


def check(record: object, kinds: Kinds, path: Path) -> None:
    """Refuse a record that lacks something, or has something of another type.

    Args:
        record: what was read.
        kinds: what it must hold.
        path: the file that it is from.

    Raises:
        InputError: one line that names the file and the first thing that is wrong.
    """
    _check(record, kinds, path, "")


def check_run(summary: dict[str, Any], path: Path) -> None:
    """Refuse a `summary.json` of a run that is not whole.

    Args:
        summary: what was read.
        path: the file that it is from.

    Raises:
        InputError: one line that names the file and the first thing that is wrong.
    """
    check(summary, RUN, path)
    if summary["precision"] != STRICT:
        check(summary, {"precision_correction": CORRECTION}, path)
    elif summary.get("precision_correction") is not None:
        raise _damaged(path, "precision_correction")
    check_reading_check(summary, path)


def check_reading_check(summary: Mapping[str, Any], path: Path) -> None:
    """Refuse a `summary.json` whose `check` is not whole; it need not have one.

    Args:
        summary: what was read.
        path: the file that it is from.

    Raises:
        InputError: one line that names the file and the first thing that is wrong.
    """
    if summary.get("check") is not None:
        check(summary, {"check": READING_CHECK}, path)


def reading_warning(summary: Mapping[str, Any]) -> str | None:
    """What spoke against the reading of a run's checkpoint before it; None if nothing did.

    Args:
        summary: the object of its `summary.json`, of this version or an older one.
    """
    found = summary.get("check")
    return None if found is None else found["warning"]


def _check(record: object, kinds: Kinds, path: Path, within: str) -> None:
    if not isinstance(record, dict):
        raise _damaged(path, within.rstrip(".") or "the whole")
    for name, kind in kinds.items():
        if isinstance(kind, Maybe):
            if name not in record:
                continue
            kind = kind.kinds
        if name not in record:
            raise _damaged(path, within + name)
        value = record[name]
        if isinstance(kind, Mapping):
            _check(value, kind, path, f"{within}{name}.")
        elif not isinstance(value, kind) or (isinstance(value, bool) and bool not in kind):
            raise _damaged(path, within + name)


def _damaged(path: Path, name: str) -> InputError:
    return InputError(
        f"{path}: missing or damaged: {name} is not there, or no such thing; run the command of "
        "its folder again"
    )
