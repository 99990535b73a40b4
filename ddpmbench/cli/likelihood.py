"""A likelihood run as `nll` and `rd` start it: inputs, progress, notes."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddpmbench.cli import options
from ddpmbench.cli.messages import note, warn
from ddpmbench.execution.progress import progress

if TYPE_CHECKING:
    from ddpmbench.checkpoints import Checkpoint
    from ddpmbench.data.images import ImageSet
    from ddpmbench.evaluate.nll import NllReport


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
    from ddpmbench.evaluate.progress import remark
    from ddpmbench.execution.distributed import joined
    from ddpmbench.execution.worker import RunListener, RunProgress

    inputs = {name: given.pop(name) for name in options.INPUTS}

    def opened() -> "tuple[Checkpoint, ImageSet]":
        checkpoint, images = open_inputs(inputs)
        check(checkpoint, images)
        return checkpoint, images

    with joined() as ranks:
        checkpoint, images = ranks.first_one(opened)
        folder = ranks.once(lambda: out or options.dated_folder(command))
        if ranks.reports:
            for line in checkpoint.notes:
                note(line)
        with progress(command, "evaluations") as update:

            def on_start(evaluations: int) -> None:
                line = f"{evaluations:,} network evaluations at first; to resume: --out {folder}"
                if not evaluations:
                    line = f"All network evaluations are in {folder} already; none is repeated"
                click.echo(line, err=True)

            def on_progress(now: RunProgress) -> None:
                update(now.done, now.total, remark(now))

            report = evaluate_nll(
                checkpoint,
                images,
                **given,
                out=folder,
                command=["ddpmbench", *sys.argv[1:]],
                listener=RunListener(on_start, on_progress, warn, note),
            )
    return Evaluation(report, checkpoint, images) if ranks.reports else None
