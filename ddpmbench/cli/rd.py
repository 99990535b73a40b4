"""`ddpmbench rd`: rate-distortion of progressive lossy decoding."""

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ddpmbench.cli import options
from ddpmbench.cli.likelihood import evaluate
from ddpmbench.cli.report import tell_report


@click.command(short_help="Rate-distortion of progressive lossy decoding.")
@options.checkpoint_options
@options.data_options
@options.likelihood_options
@options.run_options
@options.format_option
@click.option(
    "--run",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A finished run of nll or rd: its curve, without a network call.",
)
def rd(run: Path | None, out: Path | None, output_format: str, **given: Any) -> None:  # noqa: ANN401
    """Rate-distortion of progressive lossy decoding, from the same network calls as nll.

    \b
    Examples:
        ddpmbench rd
        ddpmbench rd --run runs/mine
        ddpmbench rd --ckpt google/ddpm-cifar10-32 --data cifar10:test
    """
    if run is not None:
        _refuse_other_options(run)
    source = run or evaluate("rd", out, given)
    if source is None:
        return
    from ddpmbench.questions.rd import rate_distortion
    from ddpmbench.report.rate_distortion import printed_rate_distortion

    found = rate_distortion(source)
    click.echo(printed_rate_distortion(found.summary, found.curve, output_format))
    click.echo(f"Run folder: {found.folder}", err=True)
    tell_report(found.folder)


def _refuse_other_options(run: Path) -> None:
    context = click.get_current_context()
    for option in context.command.params:
        name = option.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and name not in ("run", "output_format"):
            raise click.UsageError(
                f"{option.opts[0]}: has no effect on a finished run; leave it out, or leave out "
                f"--run {run}"
            )
