"""Signals that stop a command: each is an interruption, in which what is whole is kept."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_IMPATIENCE = 2.0  # seconds in which another signal is the same wish once more


class Stopped:
    """The signal by which a command was stopped.

    Attributes:
        number: of the signal; None where there was none.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._since = float("-inf")

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Interrupt what the process does, but not what it does to keep what is whole."""
        if time.monotonic() - self._since < _IMPATIENCE:
            return
        self.number, self._since = number, time.monotonic()
        raise KeyboardInterrupt

    @property
    def status(self) -> int:
        """The exit status that a shell expects: 128 and the signal's number."""
        return 128 + (signal.SIGINT if self.number is None else self.number)


@contextlib.contextmanager
def stopping() -> Iterator[Stopped]:
    """Within, SIGTERM and SIGHUP interrupt as SIGINT does; one that is ignored stays so."""
    stopped = Stopped()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    before = {n: how for n, how in before.items() if how not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, stopped.stop)
        yield stopped
    finally:
        for number, how in before.items():
            signal.signal(number, how)
