"""The estimators of the bound by name.

An estimator is an `Estimator`, a record of its options. It says which terms it evaluates, when it
stops, how terms reduce to a bound and what its folder holds besides; and, of a finished run, which
terms it has, how two runs differ and what its page says. Other modules ask for none by name.
"""

import dataclasses
import shlex
from collections.abc import Mapping
from typing import Any

from ddpmbench.errors import InputError, listed, one_of, options
from ddpmbench.execution.estimator import Estimator, EveryPair
from ddpmbench.execution.finished_runs import TERMS, FinishedRun
from ddpmbench.execution.folder import SHARDS
from ddpmbench.execution.importance import Importance
from ddpmbench.execution.store import EARLIER, UNREADABLE
from ddpmbench.likelihood.terms import columns_of_bound

_KINDS: tuple[type[Estimator], ...] = (Importance, EveryPair)
ESTIMATORS = {kind.name: kind for kind in _KINDS}
"""The estimators by name; `cli/likelihood.py` offers the same, without importing them."""


def estimator_of(name: str, **given: Any) -> Estimator:  # noqa: ANN401
    """The estimator with the given options; None stands for options not given.

    Raises:
        InputError: the name is unknown, or an option is invalid or belongs to another estimator.
    """
    one_of("estimator", name, ESTIMATORS)
    fields = {known: {f.name for f in dataclasses.fields(of)} for known, of in ESTIMATORS.items()}
    chosen = {option: value for option, value in given.items() if value is not None}
    for option, value in chosen.items():
        if option not in fields[name]:
            other = next(known for known in ESTIMATORS if option in fields[known])
            raise InputError(
                f"`{option}={value}`: goes with `estimator={other}`, not with {name}; leave one "
                "of them out"
            )
    return ESTIMATORS[name](**chosen)


def kind_of(summary: Mapping[str, Any]) -> type[Estimator]:
    """The estimator of a run of `nll`, by its `summary.json`."""
    return ESTIMATORS[summary["estimator"]]


def refuse_missing_shards(run: FinishedRun, *, option: str, reads_terms: bool = False) -> None:
    """Refuse a run with missing or damaged shards.

    A folder without any shards is that of a published result, and is accepted.

    Args:
        run: the run, with a complete summary.
        option: how the user named it.
        reads_terms: whether the command reads the terms, so that whole shards are verified; other
            commands read the tables, which have their own checksums.

    Raises:
        InputError: shards are missing or damaged; the message names them.
    """
    if not (run.path / SHARDS).is_dir():
        return
    length, store = kind_of(run.summary).num_terms(run.summary), run.shards(TERMS)
    columns = columns_of_bound(clip=run.summary["conventions"]["clip"])
    faults = store.faults(length, columns, by_headers=not reads_terms)
    problems = [f"no shard holds terms {a} to {b - 1}" for a, b in store.missing(length)]
    problems += [f"{name} {fault}" for name, fault in faults.items()]
    if not problems:
        return
    remedy = f"run its command again with {shlex.join(options(out=run.path))} to compute them"
    if any(EARLIER in fault for fault in faults.values()):
        remedy = "run its command again into a new folder"
    elif any(UNREADABLE in fault for fault in faults.values()):
        remedy = "try again when they can be read"
    raise InputError(
        f"{f'{option} {run.path}'.strip()}: some of its shards are missing or damaged: "
        f"{listed(problems)}; {remedy}"
    )
