"""`ddpmbench ode`: the likelihood of the probability-flow ODE."""

from functools import partial
from pathlib import Path
from typing import Any

import click

from ddpmbench.cli import options
from ddpmbench.cli.likelihood import launch

ode_options = options.decorate(
    options.count(
        "--num-ode-images",
        default=256,
        text="Solve the ODE of N images at most; the variational bound of all leads from there to "
        "the ODE of all.",
    ),
    options.choice(
        "--dequantization",
        ["decoder", "uniform", "truncated-normal"],
        "decoder: the forward process to x_1, and the decoder of the variational bound; uniform "
        "and truncated-normal noise stay in the bin of each level.",
        default="decoder",
    ),
    options.choice(
        "--trace",
        ["hutchinson", "exact"],
        "Divergence: estimated with random signs, or exact with one vector-Jacobian product a "
        "dimension.",
        default="hutchinson",
    ),
    options.count(
        "--probes",
        default=1,
        text="hutchinson: vectors of random signs an image. Their error is known from 2 on.",
    ),
    options.choice(
        "--solver",
        ["heun", "rk4"],
        "Exponential Runge-Kutta method, of order 2 or 4.",
        default="rk4",
    ),
    options.count(
        "--solver-steps", default=12, text="Steps in log sigma, even. Half as many tell the error."
    ),
    click.option(
        "--half-width",
        type=float,
        metavar="H",
        help="Of the variational bound on all images, bits/dim.  [default: 0.005]",
    ),
)
"""How the ODE is solved, and the bound that its difference is from."""


@click.command(short_help="The likelihood of the probability-flow ODE, in bits/dim.")
@options.checkpoint_options
@options.data_options
@ode_options
@options.check_option
@options.run_options
@options.format_option
def ode(out: Path | None, output_format: str, **given: Any) -> None:  # noqa: ANN401
    """The likelihood of the probability-flow ODE in bits/dim, and how far below the bound it is.

    \b
    Examples:
        ddpmbench ode
        ddpmbench ode --num-images 64 --probes 4 --solver-steps 20
        ddpmbench ode --ckpt google/ddpm-cifar10-32 --data cifar10:test --dequantization uniform
    """
    from ddpmbench.cli.inputs import open_inputs
    from ddpmbench.evaluate.ode import evaluate_ode
    from ddpmbench.evaluate.reuse import page_of
    from ddpmbench.report.ode import printed_ode

    inputs = {name: given.pop(name) for name in options.INPUTS}
    report = launch(
        "ode",
        out,
        lambda: open_inputs(inputs),
        partial(evaluate_ode, **given),
        evaluations="network evaluations with gradients",
    )
    if report is not None:
        click.echo(printed_ode(report.summary, output_format))
        click.echo(f"Run folder: {report.folder}", err=True)
        click.echo(f"Report: {page_of(report)}", err=True)
