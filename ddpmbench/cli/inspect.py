"""`ddpmbench inspect`: what a checkpoint is, and what command evaluates it."""

import shutil
import sys
from typing import Any

import click

from ddpmbench.cli import options, paths
from ddpmbench.cli.messages import with_options


@click.command(short_help="What a checkpoint is, and what command evaluates it.")
@click.argument("ckpt", metavar="[CKPT]", default="default", type=paths.text)
@options.reading_options
@options.timesteps_option
@click.option(
    "--image-size",
    type=click.IntRange(min=1),
    metavar="S",
    help="Height and width of an image, where the checkpoint does not say.",
)
@click.option(
    "--out",
    type=paths.path,
    metavar="DIR",
    help="The schedule as a figure and a table, and all of it as JSON, go there.  "
    "[default: nowhere]",
)
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="What goes to standard output.",
)
def inspect(ckpt: str, output_format: str, **given: Any) -> None:  # noqa: ANN401
    """What a checkpoint is: its family, network, schedule and settings.

    CKPT is a file, folder or hub id. Nothing is evaluated. Options for missing settings are listed,
    and the command of nll that evaluates it is spelled out.

    \b
    Examples:
        ddpmbench inspect
        ddpmbench inspect google/ddpm-cifar10-32
        ddpmbench inspect ema_0.9999_500000.pt --model-flags "--image_size 32 ..."
    """
    from ddpmbench.checkpoints.settings import CheckpointSettings
    from ddpmbench.errors import escaped
    from ddpmbench.evaluate.inspect.inspection import inspect_checkpoint
    from ddpmbench.evaluate.inspect.text import printed_inspect

    how = {name: given.pop(name) for name in ("timesteps", "image_size", "out")}
    inspection = inspect_checkpoint(ckpt, CheckpointSettings(**given), **how)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 80
    printed = printed_inspect(inspection.summary, output_format, width=width)
    if output_format == "table":
        printed = with_options(printed, click.get_current_context().command)
    click.echo("\n".join(map(escaped, printed.splitlines())))  # names in a file may hold anything
    if inspection.folder is not None:
        click.echo(f"Folder: {inspection.folder}", err=True)
