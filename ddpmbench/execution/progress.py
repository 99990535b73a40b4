"""Progress: a bar on a terminal, one line that changes in a notebook, lines elsewhere."""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import click

from ddpmbench.errors import printable

if TYPE_CHECKING:
    from rich.console import Console

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BEFORE_PACE = 0.5
_SECONDS_BETWEEN_CHANGES = 0.5
_LONGEST_BAR = 40
_WITH_UNIT = 72
"""From this number of columns, the pace is shown with its unit."""

Update = Callable[[int, int, str], None]
Spelling = Callable[[str], str]
_spelling: ContextVar[Spelling] = ContextVar("spelling", default=lambda line: line)


@contextlib.contextmanager
def progress(label: str, unit: str, *, calls: int = 1) -> Iterator[Update]:
    """Show the progress of a long task, its pace and the time left.

    Args:
        label: the task.
        unit: the unit of progress.
        calls: steps of the count per unit.

    Yields:
        A function of (done, total, remark). The amount done at the first call belongs to an earlier
        session and does not count towards the pace.
    """
    pace = _Pace(unit, calls)
    if sys.stderr.isatty():
        from rich.console import Console

        shown = terminal_bar(label, pace, Console(stderr=True))
    elif (display := _notebook_display()) is not None:
        seconds = _SECONDS_BETWEEN_CHANGES
        shown = _text(label, pace, _changing_line(display), seconds, with_ends=True)
    else:
        shown = _text(label, pace, tell, SECONDS_BETWEEN_LINES, with_ends=False)
    with shown as update:
        yield update


@contextlib.contextmanager
def terminal_bar(label: str, pace: "_Pace", console: "Console") -> Iterator[Update]:
    """A bar with the percentage and the time left, which are never cut; the remark is below."""
    from rich.console import RenderableType
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column
    from rich.text import Text

    class Bars(Progress):
        def get_renderables(self) -> Iterator[RenderableType]:
            yield self.make_tasks_table(self.tasks)
            for task in self.tasks:
                if remark := task.fields["remark"]:
                    yield Text(remark, no_wrap=True, overflow="ellipsis")

    fixed_column = Column(no_wrap=True)
    columns = (
        TextColumn("{task.description}", table_column=fixed_column),
        BarColumn(max(5, min(_LONGEST_BAR, console.width - 56))),
        TextColumn("{task.percentage:>3.0f} %", table_column=fixed_column),
        TextColumn("{task.fields[pace]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
    )
    bars = Bars(*columns, console=console, transient=True)
    task = bars.add_task(label, total=None, pace="", remark="")

    def update(done: int, total: int, remark: str = "") -> None:
        text = pace.text(done, total, with_unit=console.width >= _WITH_UNIT)
        bars.update(task, completed=done, total=total, pace=text, remark=remark)
        bars.start()  # only now, so that lines printed before are not disturbed

    try:
        yield update
    finally:
        bars.stop()


@contextlib.contextmanager
def spelled(spelling: Spelling) -> Iterator[None]:
    """Within, parameters in lines on standard error are spelled by this function."""
    token = _spelling.set(spelling)
    try:
        yield
    finally:
        _spelling.reset(token)


def tell(line: str) -> None:
    """Print a line on standard error, above the bar if there is one."""
    # By default click writes to the original stream, which the bar replaces.
    click.echo(printable(_spelling.get()(line)), file=sys.stderr)


def note(*lines: str) -> None:
    """Print notes on standard error."""
    for line in lines:
        tell(f"Note: {line}")


def warn(line: str) -> None:
    """Print a warning on standard error."""
    tell(f"Warning: {line}")


def _notebook_display() -> Callable[..., Any] | None:
    """The display function of the notebook; None outside notebooks."""
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if getattr(shell, "kernel", None) is None:
        return None
    from IPython.display import display

    return display


def _changing_line(display: Callable[..., Any]) -> Callable[[str], None]:
    """A function that shows a line in a notebook, replacing the last; it needs no widgets."""
    handle: Any = None

    def show(line: str) -> None:
        nonlocal handle
        data = {"text/plain": line}
        if handle is None:
            handle = display(data, raw=True, display_id=True)
        else:
            handle.update(data, raw=True)

    return show


@contextlib.contextmanager
def _text(
    label: str, pace: "_Pace", show: Callable[[str], None], seconds: float, *, with_ends: bool
) -> Iterator[Update]:
    """A line at most every `seconds`; with `with_ends`, also at the first and the last update."""
    shown = -math.inf if with_ends else time.monotonic()

    def update(done: int, total: int, remark: str = "") -> None:
        nonlocal shown
        text = pace.text(done, total)
        is_end = with_ends and done == total
        if is_end or time.monotonic() - shown >= seconds:
            shown = time.monotonic()
            show(_line(label, pace, done, total, text, remark))

    yield update


def _line(label: str, pace: "_Pace", done: int, total: int, text: str, remark: str) -> str:
    share = f" ({done / total:.0%})" if total else ""
    amount = f"{label}: {done // pace.calls:,} of {total // pace.calls:,}{share}"
    return ", ".join(part for part in (amount, text, remark) if part)


class _Pace:
    def __init__(self, unit: str, calls: int) -> None:
        self._unit, self.calls = unit, calls
        self._first: int | None = None
        self._start = time.monotonic()

    def text(self, done: int, total: int, *, with_unit: bool = True) -> str:
        if self._first is None:
            self._first, self._start = done, time.monotonic()
        elapsed = time.monotonic() - self._start
        if done == self._first or elapsed < SECONDS_BEFORE_PACE:
            return ""
        rate = (done - self._first) / elapsed
        left = _duration((total - done) / rate)
        unit = f" {self._unit}" if with_unit else ""
        return f"{_figures(rate / self.calls)}{unit}/s, {left} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _figures(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
