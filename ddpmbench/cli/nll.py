"""`ddpmbench nll`: the variational bound."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddpmbench.cli import options
from ddpmbench.cli.progress import progress

if TYPE_CHECKING:
    from ddpmbench.runs.rows import RunProgress


@click.command()
@options.checkpoint_options
@options.data_options
@options.sampling_options
@click.option(
    "--decoder",
    type=click.Choice(["exact", "tanh"]),
    default="exact",
    show_default=True,
    help="The normal distribution function at t = 1: exact, or the published code's tanh.",
)
@options.run_options
@options.format_option
def nll(out: Path | None, output_format: str, **given: Any) -> None:  # noqa: ANN401
    """The variational bound in bits/dim: its three parts, every step, two intervals.

    \b
    Examples:
        ddpmbench nll
        ddpmbench nll --ckpt google/ddpm-cifar10-32 --data cifar10:test --half-width 0.01
        ddpmbench nll --ckpt ema_0.9999_500000.pt --model-flags "--image_size 32 ..." --data DIR
        torchrun --nproc-per-node 4 -m ddpmbench nll --data fashion-mnist:test --out runs/four
    """
    from ddpmbench.cli.inputs import open_inputs
    from ddpmbench.questions.nll import evaluate_nll
    from ddpmbench.report.printed import printed_nll
    from ddpmbench.runs.distributed import joined
    from ddpmbench.runs.rows import RunListener

    inputs = {name: given.pop(name) for name in options.INPUTS}
    with joined() as ranks:
        checkpoint, images = open_inputs(**inputs)
        folder = ranks.once(lambda: out or options.dated_folder("nll"))
        if ranks.reports:
            for note in checkpoint.notes:
                click.echo(f"Note: {note}", err=True)
        with progress("nll", "evaluations") as update:

            def on_start(rows: int) -> None:
                where = f"to go on after a stop: --out {folder}"
                click.echo(f"{rows:,} network calls to begin with; {where}", err=True)

            report = evaluate_nll(
                checkpoint,
                images,
                **given,
                out=folder,
                command=["ddpmbench", *sys.argv[1:]],
                listener=RunListener(on_start, lambda now: update(*_shown(now)), _warn),
            )
    if ranks.reports:
        click.echo(printed_nll(report.summary, output_format))
        click.echo(f"Run folder: {folder}", err=True)


def _shown(now: "RunProgress") -> tuple[int, int, str]:
    from ddpmbench.process.units import NATS_PER_BIT
    from ddpmbench.report.printed import bound_line

    if now.bound is None:
        return now.done, now.total, ""
    bits, half_width = now.bound.nats / NATS_PER_BIT, now.bound.half_width / NATS_PER_BIT
    return now.done, now.total, f"so far {bound_line(bits, half_width)}"


def _warn(line: str) -> None:
    click.echo(f"Warning: {line}", err=True)
