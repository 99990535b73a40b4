"""What must be the same for runs to compare: the first thing that is not, is named."""

from collections.abc import Callable, Mapping

from ddpmbench.errors import InputError
from ddpmbench.runs.finished import SUMMARY, FinishedRun

Facts = Callable[[FinishedRun], Mapping[str, object]]


def refuse_unlike(run: FinishedRun, baseline: FinishedRun, facts: Facts) -> None:
    """Refuse a run that does not compare with another.

    Args:
        run: one.
        baseline: the other.
        facts: takes what must be the same from a run, by its name in `summary.json`.

    Raises:
        InputError: one line that names the first fact that differs, or the folder whose summary
            is damaged.
    """
    here, there = _facts(run, facts), _facts(baseline, facts)
    for name in {**here, **there}:
        if here.get(name) != there.get(name):
            raise InputError(
                f"{run.path}: {name} is {here.get(name)}, but {there.get(name)} in "
                f"{baseline.path}; runs compare only where these are the same"
            )


def _facts(run: FinishedRun, facts: Facts) -> Mapping[str, object]:
    try:
        return facts(run)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{run.path}: {SUMMARY} is damaged or of another version; run its command again"
        ) from error
