"""The entry point: all commands, `compare`, `report` and `env` among them, and the exit codes."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from ddpmbench.cli import options
from ddpmbench.cli.checkpoint import convert, inspect, speed
from ddpmbench.cli.codec import compress, decompress
from ddpmbench.cli.launch import in_options, with_options
from ddpmbench.cli.likelihood import likelihoods, nll, ode, rd, score
from ddpmbench.cli.samples import fid, sample
from ddpmbench.cli.train import train
from ddpmbench.errors import InputError, ProcessLostError, ReportedError, printable
from ddpmbench.execution.progress import spelled
from ddpmbench.version import __version__

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_IMPATIENCE = 2.0  # seconds within which another signal is taken for the same request


class Stopped:
    """The number of the signal that stopped a command; SIGINT by default."""

    number: int = signal.SIGINT
    _since = float("-inf")

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Interrupt the process; ignore repeated signals within two seconds."""
        if time.monotonic() - self._since < _IMPATIENCE:
            return
        self.number, self._since = number, time.monotonic()
        raise KeyboardInterrupt

    @property
    def status(self) -> int:
        """The exit status that a shell expects: 128 and the signal's number."""
        return 128 + self.number


@contextlib.contextmanager
def stopping() -> Iterator[Stopped]:
    """Within, SIGTERM and SIGHUP interrupt as SIGINT does, unless they are ignored."""
    stopped = Stopped()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    before = {n: handler for n, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, stopped.stop)
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


DONE, FAILED, USER_MISTAKE = 0, 1, 2


@click.command(short_help="Paired differences between runs.")
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN ...", type=options.text)
@options.path_option(
    "Folder for the tables, the figure and the page.  [default: a new dated folder under runs/]"
)
@options.format_option
def compare(runs: tuple[str, ...], out: Path | None, output_format: str) -> None:
    """Differences between runs of nll, or of fid, each against the first, with their intervals.

    Runs of nll must have the same images, conventions and terms; the difference then has a much
    smaller error than either bound. Use --terms-of to evaluate a second checkpoint on the terms of
    the first.

    Runs of fid must have the same protocol, number of samples and references. Runs of the same seed
    share their noise, which reduces the error of the difference.

    \b
    Examples:
        ddpmbench nll --ckpt a.safetensors --data cifar10:test --out runs/a
        ddpmbench nll --ckpt b.safetensors --data cifar10:test --out runs/b --terms-of runs/a
        ddpmbench compare runs/a runs/b
        ddpmbench compare runs/ddim-50 runs/ddim-100
    """
    from ddpmbench.evaluate.compare import compare
    from ddpmbench.report.compare_nll import printed_comparison

    folder = out or options.dated_folder("compare")
    comparison = compare(runs, out=folder)
    click.echo(printed_comparison(comparison.summary, output_format))
    click.echo(f"Tables and figure: {folder}", err=True)
    click.echo(f"Report: {folder / 'report.html'}", err=True)


@click.command(short_help="The figures and the page of a finished run.")
@click.argument("run", metavar="RUN", type=options.path)
def report(run: Path) -> None:
    """Draw the figures of a finished run again and write its page, report.html.

    RUN is the folder of a run of nll, rd, ode, likelihoods, score or fid, or of a comparison. No
    network is evaluated. The page is a single file; its path is printed.

    \b
    Example:
        ddpmbench report runs/mine
    """
    from ddpmbench.evaluate.page import write_report

    click.echo(str(write_report(run)))


@click.command(short_help="Versions, devices, data sets and caches here.")
def env() -> None:
    """Versions, devices, data sets and caches here, and what is missing."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from ddpmbench.checkpoints.load import load_checkpoint
    from ddpmbench.data.datasets import cache_folder, dataset_specs, is_at_hand
    from ddpmbench.execution.folder import describe_devices, source_revision, versions
    from ddpmbench.metrics.feature_weights import feature_networks

    facts = [
        (name, version or f"missing: pip install {name}") for name, version in versions().items()
    ]
    facts.append(("source revision", source_revision() or "an installed package"))
    facts += [("device", device) for device in describe_devices()]
    facts.append(("checkpoint", f"default, sha256 {load_checkpoint().sha256[:12]}"))
    for spec in dataset_specs():
        at_hand = is_at_hand(*spec.split(":"))
        facts.append(
            ("data set", f"{spec}, {'at hand' if at_hand else 'downloaded when asked for'}")
        )
    facts += [("feature network", line) for line in feature_networks()]
    facts += [("downloads go to", str(cache_folder())), ("hub models go to", HF_HUB_CACHE)]
    for name, value in facts:
        click.echo(f"{name:<18}{value}")


@click.group(
    commands=[
        *(nll, rd, ode, likelihoods, score, sample, fid, compare, report, compress, decompress),
        *(inspect, speed, train, convert, env),
    ],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="ddpmbench")
def ddpmbench() -> None:
    """Measure denoising diffusion models: likelihood, samples and speed, with intervals.

    \b
    Without options, nll and rd run on the checkpoint and the images that come with ddpmbench:
        ddpmbench nll
    """


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit.

    The exit code is 0 on success, 2 for a mistake of the user, 128 plus the signal's number where
    one stopped the command (130 for Ctrl-C, 143 for SIGTERM), and 1 for anything else.

    Args:
        arguments: the command line without the program's name; None for that of the process.
    """
    status = run(arguments)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # During shutdown Python would print an ignored KeyboardInterrupt.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(status)


def run(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code."""
    with stopping() as stopped:
        return _run(arguments, stopped)


def _run(arguments: list[str] | None, stopped: Stopped) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    try:
        with spelled(in_options):
            status = ddpmbench.main(arguments, prog_name="ddpmbench", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return USER_MISTAKE
    except ReportedError:
        return USER_MISTAKE
    except (click.ClickException, InputError, ProcessLostError) as error:
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        line = printable(text)
        click.echo(f"Error: {with_options(line, _command(given))}", err=True)
        return FAILED if isinstance(error, ProcessLostError) else USER_MISTAKE
    except (click.Abort, KeyboardInterrupt) as error:
        if os.environ.get("RANK", "0") == "0":
            how = str(error.__cause__ or error) or "again"  # click wraps what `resumable` says
            click.echo(f"Interrupted: run the same command {how}", err=True)
        return stopped.status
    return status if isinstance(status, int) else DONE


def _command(given: list[str]) -> click.Command | None:
    return next((ddpmbench.commands[word] for word in given if word in ddpmbench.commands), None)
