"""Progress, notes and warnings: to the listener of the caller, or to standard error."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from ddpmbench.diffusion.data_range import NATS_PER_BIT
from ddpmbench.execution.features import Cost, FidelityListener
from ddpmbench.execution.progress import progress, tell
from ddpmbench.execution.session import Session, session
from ddpmbench.execution.worker import RunListener, RunProgress
from ddpmbench.report.text import bound_line, cost_lines


@dataclasses.dataclass(frozen=True, repr=False)
class PartListener(RunListener):
    """The listener of a run that is part of another.

    The part leaves out notes on the images, which are the other's, and on options of its own.
    """

    @classmethod
    def of(cls, whole: RunListener, start: Callable[[int], None]) -> "PartListener":
        """That of a whole run, but for the start, which the run may have reported."""
        return cls(start, whole.progress, whole.warn, whole.note)


@contextlib.contextmanager
def listening(
    listener: RunListener | None, name: str, unit: str, *, calls: int = 1, shown: bool
) -> Iterator[RunListener]:
    """The caller's listener, or else one that prints to standard error.

    Args:
        listener: the caller's, or None.
        name: the current task.
        unit: the unit of progress.
        calls: network evaluations per unit.
        shown: False for no output where there is no listener.
    """
    if listener is not None or not shown:
        yield listener or RunListener()
        return
    with progress(name, unit, calls=calls) as update:
        yield RunListener(
            progress=lambda now: update(now.done, now.total, remark(now)), warn=warn, note=note
        )


@contextlib.contextmanager
def reported_session(
    name: str,
    device: str,
    out: str | Path | None,
    command: list[str] | None,
    listener: RunListener | None,
    *,
    shown: bool,
    unit: str = "evaluations",
    calls: int = 1,
) -> Iterator[tuple[Session, RunListener]]:
    """The session of a run, see `session`, and the listener of its first process."""
    with session(device, out, command) as run_session:
        reports = run_session.ranks.reports
        own_listener = listener if reports else None
        with listening(own_listener, name, unit, calls=calls, shown=shown and reports) as reporter:
            yield run_session, reporter


def fidelity_listening(listener: FidelityListener | None, *, shown: bool) -> FidelityListener:
    """The listener of a run of `fid`, whose stages have their own progress."""
    if listener is not None or not shown:
        return listener or FidelityListener()

    def stage(name: str, unit: str, calls: int) -> contextlib.AbstractContextManager[RunListener]:
        return listening(None, name, unit, calls=calls, shown=True)

    def tell_cost(cost: Cost) -> None:
        for line in cost_lines(cost):
            tell(line)

    return FidelityListener(stage, tell_cost, warn, note)


def remark(now: RunProgress) -> str:
    """The bound so far and the current task besides the terms, in a line."""
    parts = []
    if now.bound is not None:
        half_width = now.bound.half_width / NATS_PER_BIT
        line = bound_line(now.bound.nats / NATS_PER_BIT, half_width)
        parts.append(f"so far {line}, narrower at the end" if now.bound.is_rough else line)
    return "; ".join([*parts, *([now.stage] if now.stage else [])])


def note(line: str) -> None:
    """Print a note on standard error."""
    tell(f"Note: {line}")


def warn(line: str) -> None:
    """Print a warning on standard error."""
    tell(f"Warning: {line}")
