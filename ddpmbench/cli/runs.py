"""`ddpmbench compare` and `report`, which read finished runs."""

from pathlib import Path

import click

from ddpmbench.cli import options


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
    from ddpmbench.evaluate.finished_reports import write_report

    click.echo(str(write_report(run)))
