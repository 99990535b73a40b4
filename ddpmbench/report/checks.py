"""What the records of a result must hold to be shown: a folder is a user's file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpmbench.errors import InputError

_NUMBER, _NUMBER_OR_NONE = (int, float), (int, float, type(None))
_TEXT, _TEXT_OR_NONE, _WHOLE = (str,), (str, type(None)), (int,)

Kinds = Mapping[str, Any]
"""Names to the types that their values may have, or to the kinds of a record within."""

DATA: Kinds = {"source": _TEXT, "split": _TEXT_OR_NONE, "sha256": _TEXT}
CONVENTIONS: Kinds = {
    "prediction": _TEXT,
    "variance": _TEXT,
    "clip": (bool,),
    "decoder": _TEXT,
    "schedule": _TEXT,
    "labels": _TEXT_OR_NONE,
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


def _check(record: object, kinds: Kinds, path: Path, within: str) -> None:
    if not isinstance(record, dict):
        raise _damaged(path, within.rstrip(".") or "the whole")
    for name, kind in kinds.items():
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
