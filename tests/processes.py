"""Commands in processes of their own, each forked from one that has imported the package.

A new interpreter takes seconds to import PyTorch, a fork milliseconds. The fork server is a process
of its own, started at the first command of a session, so that no thread of the tests is forked.
The commands draw no page, which takes seconds as well.
"""

import atexit
import contextlib
import dataclasses
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

LIMIT = 120
"""Seconds after which a command is killed, and its test fails."""
STREAMS = ("stdout", "stderr")

_CONTEXT = multiprocessing.get_context("forkserver")
# All that a command imports on its way, so that none of them does it again.
_CONTEXT.set_forkserver_preload(
    ["pandas", "pyarrow.parquet", "pyarrow.pandas_compat", "pandas.io.formats.csvs"]
    + ["ddpmbench.cli.main", "ddpmbench.train.loop", "scipy.interpolate", "torch._dynamo"]
    + [f"ddpmbench.evaluate.{name}" for name in ("likelihoods", "fid", "sample", "compare")]
    + [f"ddpmbench.evaluate.{name}" for name in ("report", "rate_distortion", "inspect")]
    + ["ddpmbench.evaluate.compress"]
)


@dataclasses.dataclass(frozen=True)
class Result:
    """A command that has ended.

    Attributes:
        returncode: its exit code; -signal where one killed it.
        stdout: what it printed.
        stderr: its notes and errors.
    """

    returncode: int
    stdout: str
    stderr: str


class Command:
    """`ddpmbench` with some arguments, running.

    It prints into files: a pipe would be open as long as any process that it started lives.

    Attributes:
        process: the process.
    """

    def __init__(
        self,
        *arguments: object,
        setup: Callable[[], None] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        """Start it.

        Args:
            arguments: of the command line.
            setup: a function that is called first, to patch what the command does; best of
                `setups`, as its module is imported again.
            environment: variables besides those of the test's own process.
        """
        self._folder = Path(tempfile.mkdtemp())
        for name in STREAMS:
            (self._folder / name).touch()
        words = ["ddpmbench", *map(str, arguments)]
        variables = {**os.environ, **(environment or {})}
        self.process = _CONTEXT.Process(
            target=_run, args=(words, setup, variables, self._folder), daemon=True
        )
        self.process.start()
        atexit.register(self.process.kill)  # ahead of multiprocessing, which would wait for it

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return when the condition holds, or the process has ended."""
        deadline = time.monotonic() + LIMIT
        while self.process.is_alive() and not condition():
            assert time.monotonic() < deadline, f"not so after {LIMIT} s"
            time.sleep(0.001)

    def send(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def kill(self) -> int:
        """Kill it; returns its exit code."""
        self.send(signal.SIGKILL)
        return self.wait()

    def wait(self) -> int:
        """Wait for its end; returns its exit code."""
        return self.result().returncode

    def result(self) -> Result:
        """Wait for its end, with all that it printed."""
        self.process.join(LIMIT)
        ended = not self.process.is_alive()
        self.process.kill()
        self.process.join()
        printed = [(self._folder / name).read_text() for name in STREAMS]
        shutil.rmtree(self._folder)
        assert ended, "\n".join([f"it ran for more than {LIMIT} s", *printed])
        return Result(self.process.exitcode, *printed)


def ddpmbench(*arguments: object, setup: Callable[[], None] | None = None) -> Result:
    """Run a command to its end."""
    return Command(*arguments, setup=setup).result()


def started_ranks(
    *commands: Sequence[object], setup: Callable[[], None] | None = None
) -> list[Command]:
    """Start the processes of one run, as torchrun does; each has its own arguments."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": len(commands), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        Command(
            *arguments,
            setup=setup,
            environment={n: str(v) for n, v in {**world, "RANK": k, "LOCAL_RANK": k}.items()},
        )
        for k, arguments in enumerate(commands)
    ]


def ranks(count: int, *arguments: object, setup: Callable[[], None] | None = None) -> list[Result]:
    """Run a command on so many processes of one run."""
    started = started_ranks(*count * [arguments], setup=setup)
    return [command.result() for command in started]


def undrawn(report: object) -> Path:
    """In the place of `page.page_of`: where the page would be."""
    return report.folder / "report.html"


def _run(
    words: list[str],
    setup: Callable[[], None] | None,
    environment: dict[str, str],
    folder: Path,
) -> None:
    for descriptor, name in enumerate(STREAMS, 1):
        os.dup2(os.open(folder / name, os.O_WRONLY), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(k, "w", buffering=1) for k in (1, 2))
    sys.stdin = os.fdopen(os.open(os.devnull, os.O_RDONLY))
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = words
    # A test that itself runs in the background inherits a SIGINT that is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import torch

    from ddpmbench.cli.main import main
    from ddpmbench.evaluate import page

    torch.set_num_threads(1)
    os.fsync = os.fstat
    page.page_of = undrawn
    if setup is not None:
        setup()
    main(words[1:])
