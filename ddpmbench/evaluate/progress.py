"""Progress, notes and warnings: to the listener of the caller, or to standard error."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from ddpmbench.diffusion.data_range import NATS_PER_BIT
from ddpmbench.execution.progress import note, progress, tell, warn
from ddpmbench.execution.session import Session, session
from ddpmbench.execution.worker import RunListener, RunProgress
from ddpmbench.report.text import bound_line

AT_FIRST = "network evaluations at first"


@dataclasses.dataclass(frozen=True, repr=False)
class PartListener(RunListener):
    """The listener of a run that is part of another.

    The part leaves out notes on the images, which are the other's, and on options of its own.
    """

    @classmethod
    def of(cls, whole: RunListener, start: Callable[[int], None]) -> "PartListener":
        """That of a whole run, but for the start, which the run may have reported."""
        return cls(start, whole.progress, whole.warn, whole.note)


@dataclasses.dataclass(frozen=True, repr=False)
class _Printing(RunListener):
    """A listener that prints to standard error; `out` is the folder that resumes the run."""

    out: str | Path | None = None

    def stage(self, name: str, unit: str, calls: int) -> AbstractContextManager[RunListener]:
        return _printing(name, unit, f"{unit}: {name}", calls=calls, out=self.out)


@contextlib.contextmanager
def _printing(
    name: str, unit: str, amount: str, *, calls: int, out: str | Path | None
) -> Iterator[RunListener]:
    def start(count: int) -> None:
        if count:
            tell(f"{count // calls:,} {amount}{f'; to resume: `out={out}`' if out else ''}")
        elif out:
            which = "All" if unit == "images" else "The first"
            tell(f"{which} {unit} are in {out} already; none is repeated")

    with progress(name, unit, calls=calls) as update:
        yield _Printing(
            start, lambda now: update(now.done, now.total, remark(now)), warn, note, out
        )


def listening(
    listener: RunListener | None,
    name: str,
    unit: str,
    amount: str = AT_FIRST,
    *,
    calls: int = 1,
    out: str | Path | None = None,
    shown: bool,
) -> AbstractContextManager[RunListener]:
    """The caller's listener, or else one that prints to standard error.

    Args:
        listener: the caller's, or None.
        name: the current task.
        unit: the unit of progress.
        amount: what the line at the start counts, in words.
        calls: network evaluations per unit.
        out: the run folder, which that line names.
        shown: False for no output where there is no listener.
    """
    if listener is not None or not shown:
        return contextlib.nullcontext(listener or RunListener())
    return _printing(name, unit, amount, calls=calls, out=out)


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
    amount: str = AT_FIRST,
    calls: int = 1,
) -> Iterator[tuple[Session, RunListener]]:
    """The session of a run, see `session`, and the listener of its first process."""
    with session(device, out, command) as run_session:
        reports = run_session.ranks.reports
        with listening(
            listener if reports else None,
            name,
            unit,
            amount,
            calls=calls,
            out=out,
            shown=shown and reports,
        ) as reporter:
            yield run_session, reporter


def remark(now: RunProgress) -> str:
    """The bound so far and the current task besides the terms, in a line."""
    parts = []
    if now.bound is not None:
        half_width = now.bound.half_width / NATS_PER_BIT
        line = bound_line(now.bound.nats / NATS_PER_BIT, half_width)
        parts.append(f"so far {line}, narrower at the end" if now.bound.is_rough else line)
    return "; ".join([*parts, *([now.stage] if now.stage else [])])
