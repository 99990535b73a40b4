"""`ddpmbench report`: the figures and the page of a finished run."""

from pathlib import Path

import click

from ddpmbench.cli import paths


@click.command(short_help="The figures and the page of a finished run.")
@click.argument("run", metavar="RUN", type=paths.path)
def report(run: Path) -> None:
    """Draw the figures of a finished run again and write its page, report.html.

    RUN is the folder of a run of nll, rd, ode, likelihoods or fid, or of a comparison. No network
    is evaluated. The page is a single file; its path is printed.

    \b
    Example:
        ddpmbench report runs/mine
    """
    from ddpmbench.evaluate.report import write_report

    click.echo(str(write_report(run)))
