"""An evaluation of likelihood as commands start it: inputs, progress, notes."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ddpmbench.cli import options
from ddpmbench.cli.messages import note, warn
from ddpmbench.execution.progress import progress

if TYPE_CHECKING:
    from ddpmbench.checkpoints import Checkpoint
    from ddpmbench.data.images import ImageSet
    from ddpmbench.evaluate.nll import NllReport

Inputs = TypeVar("Inputs")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """A finished run and its inputs.

    Attributes:
        report: its result.
        checkpoint: the model.
        images: the image set.
    """

    report: "NllReport"
    checkpoint: "Checkpoint"
    images: "ImageSet"


def evaluate(
    command: str,
    out: Path | None,
    given: dict[str, Any],
    *,
    check: "Callable[[Checkpoint, ImageSet], None]" = lambda checkpoint, images: None,
) -> Evaluation | None:
    """Run `evaluate_nll` with a command's options.

    Args:
        command: its name.
        out: the run folder; None for a dated one.
        given: all its other options.
        check: raises InputError where the command cannot go on with the checkpoint and the
            images; it is called before the network is.

    Returns:
        The run; None in a process that does not report.
    """
    from ddpmbench.cli.inputs import open_inputs
    from ddpmbench.evaluate.nll import evaluate_nll

    inputs = {name: given.pop(name) for name in options.INPUTS}

    def opened() -> "tuple[Checkpoint, ImageSet]":
        checkpoint, images = open_inputs(inputs)
        check(checkpoint, images)
        return checkpoint, images

    def run(
        checkpoint: "Checkpoint",
        images: "ImageSet",
        **of_run: Any,  # noqa: ANN401
    ) -> Evaluation:
        return Evaluation(evaluate_nll(checkpoint, images, **given, **of_run), checkpoint, images)

    return launch(command, out, opened, run)


def launch(
    command: str,
    out: Path | None,
    opened: "Callable[[], tuple[Checkpoint, Inputs]]",
    run: "Callable[..., Result]",
    *,
    evaluations: str = "network evaluations",
) -> "Result | None":
    """Start an evaluation of likelihood, in as many processes as torchrun started.

    Args:
        command: its name.
        out: the run folder; None for a dated one.
        opened: returns the checkpoint and the image set or sets; it is called in one process.
        run: is called with both, and by name with the run folder `out`, the `command` line and the
            `listener`.
        evaluations: what is counted.

    Returns:
        What `run` returns; None in a process that does not report.
    """
    from ddpmbench.evaluate.progress import remark
    from ddpmbench.execution.distributed import joined
    from ddpmbench.execution.worker import RunListener, RunProgress

    with joined() as ranks:
        checkpoint, inputs = ranks.first_one(opened)
        folder = ranks.once(lambda: out or options.dated_folder(command))
        if ranks.reports:
            for line in checkpoint.notes:
                note(line)
        with progress(command, "evaluations") as update:

            def on_start(count: int) -> None:
                line = f"{count:,} {evaluations} at first; to resume: --out {folder}"
                if not count:
                    line = f"All {evaluations} are in {folder} already; none is repeated"
                click.echo(line, err=True)

            def on_progress(now: RunProgress) -> None:
                update(now.done, now.total, remark(now))

            result = run(
                checkpoint,
                inputs,
                out=folder,
                command=["ddpmbench", *sys.argv[1:]],
                listener=RunListener(on_start, on_progress, warn, note),
            )
    return result if ranks.reports else None
