"""`ddpmbench inspect`: what a checkpoint is, and what command evaluates it."""

import shutil
import sys
from pathlib import Path
from typing import Any

import click

from ddpmbench.cli import options


@click.command(short_help="What a checkpoint is, and what command evaluates it.")
@click.argument("source", metavar="[CKPT]", required=False)
@options.checkpoint_options
@click.option(
    "--image-size",
    type=click.IntRange(min=1),
    metavar="S",
    help="Height and width of an image, where the checkpoint does not say.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
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
def inspect(source: str | None, output_format: str, **given: Any) -> None:  # noqa: ANN401
    """What a checkpoint is: its family, network, schedule, and who says what of it.

    Nothing is evaluated. What the file leaves open is listed with the options that settle it, and
    the command of nll that evaluates it is spelled out. CKPT may also stand behind --ckpt.

    \b
    Examples:
        ddpmbench inspect
        ddpmbench inspect google/ddpm-cifar10-32
        ddpmbench inspect ema_0.9999_500000.pt --model-flags "--image_size 32 ..."
    """
    from ddpmbench.inputs.checkpoints.settings import CheckpointSettings
    from ddpmbench.questions.inspect import inspect_checkpoint
    from ddpmbench.report.block_plot import can_show
    from ddpmbench.report.printed_inspect import printed_inspect

    checkpoint = {name: given.pop(name) for name in options.CHECKPOINT}
    named, timesteps = checkpoint.pop("ckpt"), checkpoint.pop("timesteps")
    if source is not None and named not in ("default", source):
        raise click.UsageError(f"CKPT {source} and --ckpt {named}: name one checkpoint")
    found = inspect_checkpoint(
        named if source is None else source,
        CheckpointSettings(**checkpoint),
        timesteps=timesteps,
        **given,
    )
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 80
    plain = not can_show(sys.stdout.encoding)
    click.echo(printed_inspect(found.summary, output_format, width=width, plain=plain))
    if found.folder is not None:
        click.echo(f"Folder: {found.folder}", err=True)
