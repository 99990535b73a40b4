"""Commands in processes of their own, each forked from one that has imported the package.

A new interpreter takes seconds to import PyTorch, a fork milliseconds. The fork server is a process
of its own, started at the first command of a session, so that no thread of the tests is forked.
The commands draw no page, which takes seconds as well.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["pytest", "torch", "pandas", "ddpmbench.evaluate.report", "ddpmbench.cli.main"]
    + [f"ddpmbench.evaluate.{name}" for name in ("likelihoods", "fid", "sample", "compare")]
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

    Attributes:
        process: the process.
        stdout: what it prints, to read from.
        stderr: its notes and errors, to read from.
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
            setup: a function of a module that is called first, to patch what the command does.
            environment: variables besides those of the test's own process.
        """
        pipes = [_CONTEXT.Pipe(duplex=False) for _ in range(2)]
        words = ["ddpmbench", *map(str, arguments)]
        variables = {**os.environ, **(environment or {})}
        self.process = _CONTEXT.Process(
            target=_run, args=(words, setup, variables, *(writing for _, writing in pipes))
        )
        self.process.start()
        for _, writing in pipes:
            writing.close()
        self.stdout, self.stderr = (
            os.fdopen(os.dup(reading.fileno()), "rb") for reading, _ in pipes
        )
        for reading, _ in pipes:
            reading.close()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return when the condition holds, or the process has ended."""
        while self.process.is_alive() and not condition():
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
        self.process.join()
        self.stdout.close()
        self.stderr.close()
        return self.process.exitcode

    def result(self) -> Result:
        """Wait for its end, with all that it printed."""
        with ThreadPoolExecutor() as pool:  # neither pipe waits for the other to be read
            printed = pool.map(lambda pipe: pipe.read().decode(), (self.stdout, self.stderr))
        return Result(self.wait(), *printed)


def ddpmbench(*arguments: object, setup: Callable[[], None] | None = None) -> Result:
    """Run a command to its end."""
    return Command(*arguments, setup=setup).result()


def ranks(count: int, *arguments: object, setup: Callable[[], None] | None = None) -> list[Result]:
    """Run a command on so many processes of one run, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        Command(
            *arguments,
            setup=setup,
            environment={n: str(v) for n, v in {**world, "RANK": k, "LOCAL_RANK": k}.items()},
        )
        for k in range(count)
    ]
    return [command.result() for command in started]


def undrawn(report: object) -> Path:
    """In the place of `answered.page_of`: where the page would be."""
    return report.folder / "report.html"


def _run(
    words: list[str],
    setup: Callable[[], None] | None,
    environment: dict[str, str],
    stdout: Connection,
    stderr: Connection,
) -> None:
    for pipe, descriptor in ((stdout, 1), (stderr, 2)):
        os.dup2(pipe.fileno(), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(k, "w", buffering=1) for k in (1, 2))
    sys.stdin = os.fdopen(os.open(os.devnull, os.O_RDONLY))
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = words
    # A test that itself runs in the background inherits a SIGINT that is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import torch

    from ddpmbench.cli.main import main
    from ddpmbench.evaluate import answered

    torch.set_num_threads(1)
    answered.page_of = undrawn
    if setup is not None:
        setup()
    main(words[1:])
