"""Runs that are interrupted again and again, and go on."""

from ddpmbench.execution.worker import RunListener


def interrupting(batches):
    """A listener that interrupts a run after so many batches."""
    left = iter(range(batches))

    def progress(now):
        if next(left, None) is None:
            raise KeyboardInterrupt

    return RunListener(progress=progress)


def resumed(run, batches, *, most=None):
    """What `run(listener=...)` returns, and the number of its sessions.

    Each session is interrupted after so many batches, but for the last of `most`.
    """
    sessions = 0
    while True:
        sessions += 1
        try:
            is_last = sessions == most
            return run(listener=RunListener() if is_last else interrupting(batches)), sessions
        except KeyboardInterrupt:
            assert not is_last
