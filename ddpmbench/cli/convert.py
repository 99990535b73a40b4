"""`ddpmbench convert`: a checkpoint in another family's files."""

from pathlib import Path
from typing import Any

import click

from ddpmbench.cli import options, paths
from ddpmbench.cli.messages import note


@click.command(short_help="A checkpoint written as native, or for diffusers.")
@click.argument("ckpt", metavar="CKPT", type=paths.text)
@click.argument("out", metavar="OUT", type=paths.path)
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
    from ddpmbench.checkpoints import CheckpointSettings, load_checkpoint
    from ddpmbench.evaluate.convert import convert_checkpoint, printed_conversion

    how = {name: given.pop(name) for name in ("to", "overwrite")}
    checkpoint = load_checkpoint(ckpt, CheckpointSettings(**given))
    for line in checkpoint.notes:
        note(line)
    conversion = convert_checkpoint(checkpoint, out, **how)
    for line in conversion.summary["notes"]:
        note(line)
    click.echo(printed_conversion(conversion.summary, output_format))
