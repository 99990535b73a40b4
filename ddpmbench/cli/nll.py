"""`ddpmbench nll`: the variational bound."""

import sys
from pathlib import Path
from typing import Any

import click

from ddpmbench.cli import options
from ddpmbench.cli.progress import progress

DEFAULT_NUM_IMAGES = 32
"""Images of the embedded set that every pair of takes minutes, not hours, on two cores."""


@click.command()
@options.checkpoint_options
@options.data_options
@click.option(
    "--estimator",
    type=click.Choice(["every-pair"]),
    default="every-pair",
    show_default=True,
    help="Which network calls are made: every step of every image.",
)
@click.option(
    "--draws",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    metavar="K",
    help="Noise draws for each image and step; the error of the noise is known from 2 on.",
)
@click.option(
    "--decoder",
    type=click.Choice(["exact", "tanh"]),
    default="exact",
    show_default=True,
    help="The normal distribution function at t = 1: exact, or the published code's tanh.",
)
@options.run_options
@options.format_option
def nll(
    draws: int,
    decoder: str,
    estimator: str,
    seed: int,
    device: str,
    batch_size: int | None,
    out: Path | None,
    output_format: str,
    **inputs: Any,  # noqa: ANN401
) -> None:
    """The variational bound in bits/dim: its three parts, every step, two intervals.

    \b
    Examples:
        ddpmbench nll
        ddpmbench nll --ckpt google/ddpm-cifar10-32 --data cifar10:test --num-images 100
        ddpmbench nll --ckpt ema_0.9999_500000.pt --model-flags "--image_size 32 ..." --data DIR
    """
    from ddpmbench.cli.inputs import open_inputs
    from ddpmbench.evaluate import evaluate_nll
    from ddpmbench.report.printed import printed_nll
    from ddpmbench.runs.likelihood import RunListener, RunProgress

    checkpoint, images = open_inputs(default_num_images=DEFAULT_NUM_IMAGES, **inputs)
    for note in checkpoint.notes:
        click.echo(f"Note: {note}", err=True)
    folder = out or options.dated_folder("nll")
    with progress("nll", "evaluations") as update:

        def on_start(rows: int) -> None:
            click.echo(f"{rows:,} network calls; to go on after a stop: --out {folder}", err=True)

        def on_progress(now: RunProgress) -> None:
            update(now.done, now.total, "")

        report = evaluate_nll(
            checkpoint,
            images,
            estimator=estimator,
            draws=draws,
            decoder=decoder,
            seed=seed,
            device=device,
            batch_size=batch_size,
            out=folder,
            command=["ddpmbench", *sys.argv[1:]],
            listener=RunListener(on_start, on_progress, _warn),
        )
    click.echo(printed_nll(report.summary, output_format))
    click.echo(f"Run folder: {folder}", err=True)


def _warn(line: str) -> None:
    click.echo(f"Warning: {line}", err=True)
