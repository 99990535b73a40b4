"""`ddpmbench compare`: paired differences between runs."""

from pathlib import Path

import click

from ddpmbench.cli import options


@click.command(short_help="Paired differences between runs.")
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN ...", type=click.Path())
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Receives the tables, the figure and the page.  [default: a new dated folder under runs/]",
)
@options.format_option
def compare(runs: tuple[str, ...], out: Path | None, output_format: str) -> None:
    """Differences between runs of nll, each against the first, with their intervals.

    The runs must have the same images, conventions and rows; then the difference is known much
    better than either bound. A second checkpoint is evaluated on the rows of the first with
    --rows-of.

    \b
    Example:
        ddpmbench nll --ckpt a.safetensors --data cifar10:test --out runs/a
        ddpmbench nll --ckpt b.safetensors --data cifar10:test --out runs/b --rows-of runs/a
        ddpmbench compare runs/a runs/b
    """
    from ddpmbench.questions.compare import compare
    from ddpmbench.report.printed import printed_comparison

    folder = out or options.dated_folder("compare")
    comparison = compare(runs, out=folder)
    click.echo(printed_comparison(comparison.summary, output_format))
    click.echo(f"Tables and figure: {folder}", err=True)
    click.echo(f"Report: {folder / 'report.html'}", err=True)
