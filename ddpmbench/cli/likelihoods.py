"""`ddpmbench likelihoods`: the likelihoods of a checkpoint, side by side."""

from functools import partial
from pathlib import Path
from typing import Any

import click

from ddpmbench.cli import options
from ddpmbench.cli.likelihood import launch
from ddpmbench.cli.ode import ode_options


@click.command(short_help="Bound, best variance, continuous time and ODE, side by side.")
@options.checkpoint_options
@options.data_options
@ode_options
@options.check_option
@options.run_options
@options.printed(
    "What to print; csv has a row a likelihood, quiet a number.", "table", "json", "csv", "quiet"
)
def likelihoods(out: Path | None, output_format: str, **given: Any) -> None:  # noqa: ANN401
    """The likelihoods of a checkpoint by the published conventions, in bits/dim.

    The variational bound, the same with the best constant variance, the bound in continuous time
    and the probability-flow ODE: of the same images and seed, with paired differences and costs.

    \b
    Examples:
        ddpmbench likelihoods
        ddpmbench likelihoods --num-images 500 --num-ode-images 100
        ddpmbench likelihoods --ckpt google/ddpm-cifar10-32 --data cifar10:test
    """
    from ddpmbench.cli.inputs import open_inputs
    from ddpmbench.evaluate.likelihoods import evaluate_likelihoods
    from ddpmbench.evaluate.reuse import page_of
    from ddpmbench.report.likelihoods import printed_likelihoods

    inputs = {name: given.pop(name) for name in options.INPUTS}
    report = launch(
        "likelihoods", out, lambda: open_inputs(inputs), partial(evaluate_likelihoods, **given)
    )
    if report is not None:
        click.echo(printed_likelihoods(report.summary, report.likelihoods, output_format))
        click.echo(f"Run folder: {report.folder}", err=True)
        click.echo(f"Report: {page_of(report)}", err=True)
