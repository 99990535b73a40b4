"""`ddpmbench nll`: the variational bound."""

from pathlib import Path
from typing import Any

import click

from ddpmbench.cli import options
from ddpmbench.cli.likelihood import evaluate


@click.command(short_help="The variational bound in bits/dim, with two intervals.")
@options.bound_checkpoint_options
@options.data_options
@options.likelihood_options
@options.check_option
@options.continuous_option
@options.run_options
@options.precision_option
@options.format_option
def nll(out: Path | None, output_format: str, **given: Any) -> None:  # noqa: ANN401
    """The variational bound in bits/dim: its three parts, every timestep, two intervals.

    \b
    Examples:
        ddpmbench nll
        ddpmbench nll --ckpt google/ddpm-cifar10-32 --data cifar10:test --half-width 0.01
        ddpmbench nll --timesteps continuous
        ddpmbench nll --ckpt ema_0.9999_500000.pt --model-flags "--image_size 32 ..." --data DIR
        torchrun --nproc-per-node 4 -m ddpmbench nll --data fashion-mnist:test --out runs/four
    """
    evaluation = evaluate("nll", out, given)
    if evaluation is None:
        return
    from ddpmbench.evaluate.answered import page_of
    from ddpmbench.report.nll_text import printed_nll

    folder = evaluation.report.folder
    assert folder is not None

    click.echo(printed_nll(evaluation.report.summary, output_format))
    click.echo(f"Run folder: {folder}", err=True)
    click.echo(f"Report: {page_of(evaluation.report)}", err=True)
