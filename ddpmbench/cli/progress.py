"""Progress on standard error: a bar on a terminal, a plain line now and then elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

import click

SECONDS_BETWEEN_LINES = 10.0

Update = Callable[[int, int, str], None]


@contextlib.contextmanager
def progress(label: str, unit: str, *, calls: int = 1) -> Iterator[Update]:
    """Show how far a long piece of work is, how fast it goes and how long it will take.

    Args:
        label: what is being done.
        unit: what is counted.
        calls: steps of the count that make one of the unit.

    Yields:
        A function of (done, total, remark). What is done at the first call was done in an
        earlier sitting and does not count towards the speed.
    """
    pace = _Pace(unit, calls)
    with _bar(label, pace) if sys.stderr.isatty() else _lines(label, pace) as update:
        yield update


@contextlib.contextmanager
def _bar(label: str, pace: "_Pace") -> Iterator[Update]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[pace]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(label, total=None, pace="")

        def update(done: int, total: int, remark: str = "") -> None:
            text = ", ".join(part for part in (pace.text(done, total), remark) if part)
            bars.update(task, completed=done, total=total, pace=text)

        yield update


@contextlib.contextmanager
def _lines(label: str, pace: "_Pace") -> Iterator[Update]:
    spoken = time.monotonic()

    def update(done: int, total: int, remark: str = "") -> None:
        nonlocal spoken
        text = pace.text(done, total)
        if time.monotonic() - spoken < SECONDS_BETWEEN_LINES:
            return
        spoken = time.monotonic()
        amount = f"{done // pace.calls:,} of {total // pace.calls:,} ({done / total:.0%})"
        parts = (f"{label}: {amount}", text, remark)
        click.echo(", ".join(part for part in parts if part), err=True)

    yield update


class _Pace:
    def __init__(self, unit: str, calls: int) -> None:
        self._unit, self.calls = unit, calls
        self._first: int | None = None
        self._start = time.monotonic()

    def text(self, done: int, total: int) -> str:
        if self._first is None:
            self._first, self._start = done, time.monotonic()
        elapsed = time.monotonic() - self._start
        if done == self._first or elapsed < 0.5:
            return ""
        rate = (done - self._first) / elapsed
        left = _duration((total - done) / rate)
        return f"{_figures(rate / self.calls)} {self._unit}/s, {left} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _figures(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
