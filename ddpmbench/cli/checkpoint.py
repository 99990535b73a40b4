"""`ddpmbench inspect` and `convert`, which read a checkpoint and evaluate nothing."""

import shutil
import sys
from pathlib import Path
from typing import Any

import click

from ddpmbench.cli import options
from ddpmbench.cli.messages import note, with_options


@click.command(short_help="What a checkpoint is, and what command evaluates it.")
@click.argument("ckpt", metavar="[CKPT]", default="default", type=options.text)
@options.reading_options
@options.timesteps_option
@options.count(
    "--image-size",
    metavar="S",
    text="Height and width of an image, where the checkpoint does not state them.",
)
@options.folder(
    "Folder for the schedule as a figure and a table, and for all facts as JSON.  "
    "[default: nowhere]"
)
@options.printed("What to print.", "table", "json")
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
    from ddpmbench.evaluate.inspect import inspect_checkpoint
    from ddpmbench.evaluate.inspect_text import printed_inspect

    how = {name: given.pop(name) for name in ("timesteps", "image_size", "out")}
    inspection = inspect_checkpoint(ckpt, CheckpointSettings(**given), **how)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 80
    printed = printed_inspect(inspection.summary, output_format, width=width)
    if output_format == "table":
        printed = with_options(printed, click.get_current_context().command)
    click.echo("\n".join(map(escaped, printed.splitlines())))  # names in a file may hold anything
    if inspection.folder is not None:
        click.echo(f"Folder: {inspection.folder}", err=True)


@click.command(short_help="A checkpoint written as native, or for diffusers.")
@click.argument("ckpt", metavar="CKPT", type=options.text)
@click.argument("out", metavar="OUT", type=options.path)
@options.reading_options
@options.choice(
    "--to",
    ["native", "diffusers"],
    "What to write.  [default: native where OUT ends in .safetensors, else diffusers]",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing file or folder of that kind.")
@options.printed("What to print; quiet is the path alone.", "table", "json", "quiet")
def convert(ckpt: str, out: Path, output_format: str, **given: Any) -> None:  # noqa: ANN401
    """Write the checkpoint CKPT (a file, folder, hub id, or `default`) as OUT.

    OUT is a native file, which holds all that a number depends on, or a folder that diffusers'
    DDPMPipeline.from_pretrained reads. A checkpoint that diffusers cannot express is refused. The
    result is read back and compared before it is moved into place.

    \b
    Examples:
        ddpmbench convert ema_0.9999_500000.pt model.safetensors --model-flags "..."
        ddpmbench convert model.safetensors model-for-diffusers
        ddpmbench convert google/ddpm-cifar10-32 cifar10.safetensors
    """
    from ddpmbench.checkpoints.load import load_checkpoint
    from ddpmbench.checkpoints.settings import CheckpointSettings
    from ddpmbench.evaluate.convert import convert_checkpoint, printed_conversion

    how = {name: given.pop(name) for name in ("to", "overwrite")}
    checkpoint = load_checkpoint(ckpt, CheckpointSettings(**given))
    for line in checkpoint.notes:
        note(line)
    conversion = convert_checkpoint(checkpoint, out, **how)
    for line in conversion.summary["notes"]:
        note(line)
    click.echo(printed_conversion(conversion.summary, output_format))
