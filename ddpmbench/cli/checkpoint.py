"""`ddpmbench inspect`, `convert` and `speed`: a checkpoint, another form of it, and its speed."""

import shutil
import sys
from pathlib import Path
from typing import Any

import click

from ddpmbench.cli import options
from ddpmbench.cli.launch import in_options, open_checkpoint, open_prepared, take
from ddpmbench.execution.progress import note


@click.command(short_help="What a checkpoint is, and what command evaluates it.")
@click.argument("ckpt", metavar="[CKPT]", default="default", type=options.text)
@options.reading_options
@options.timesteps_option
@options.count(
    "--image-size",
    metavar="S",
    text="Height and width of an image, where the checkpoint does not state them.",
)
@options.path_option(
    "Folder for the schedule as a figure and a table, and for all facts as JSON.  "
    "[default: nowhere]"
)
@options.output_format("What to print.", "table", "json")
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

    how = take(given, ("timesteps", "image_size", "out"))
    inspection = inspect_checkpoint(ckpt, CheckpointSettings(**given), **how)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 80
    printed = printed_inspect(inspection.summary, output_format, width=width)
    if output_format == "table":
        printed = in_options(printed)
    click.echo("\n".join(map(escaped, printed.splitlines())))  # names in a file may hold anything
    if inspection.folder is not None:
        click.echo(f"Folder: {inspection.folder}", err=True)


@click.command(short_help="Write a checkpoint as a native file, or for diffusers.")
@click.argument("ckpt", metavar="CKPT", type=options.text)
@click.argument("out", metavar="OUT", type=options.path)
@options.reading_options
@options.choice(
    "--to",
    ["native", "diffusers"],
    "What to write.  [default: native where OUT ends in .safetensors, else diffusers]",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing file or folder of that kind.")
@options.output_format("What to print; quiet is the path alone.", "table", "json", "quiet")
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
    from ddpmbench.evaluate.convert import convert_checkpoint, printed_conversion

    how = take(given, ("to", "overwrite"))
    checkpoint = open_checkpoint({"ckpt": ckpt, **given})
    note(*checkpoint.notes)
    conversion = convert_checkpoint(checkpoint, out, **how)
    note(*conversion.summary["notes"])
    click.echo(printed_conversion(conversion.summary, output_format))


_speed_options = options.decorate(
    click.option(
        "--data",
        type=options.text,
        metavar="DATA",
        help="Images whose bound would be computed.  [default: gray ones]",
    ),
    options.count("--num-images", text="How many of them.  [default: all of --data; else 10,000]"),
    options.count("--num-samples", default=50_000, text="Number of samples to predict for."),
    click.option(
        "--half-width",
        type=float,
        default=0.005,
        show_default=True,
        metavar="H",
        help="Half width of the bound's interval, bits/dim.",
    ),
    options.count(
        "--image-size",
        metavar="S",
        text="Height and width, where neither the checkpoint nor --data states them.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "tf32", "bf16", "fp16"]),
        multiple=True,
        help="Precision to measure; repeat it for several.  [default: those that suit the device]",
    ),
    click.option(
        "--compile", "compiled", is_flag=True, help="Also compile the network, which takes minutes."
    ),
    options.path_option("Folder for tables and figures.  [default: nowhere]"),
    options.batch_size("The largest batch."),
    options.device_option,
    options.output_format(
        "What to print; csv is the network's evaluations alone.", "table", "json", "csv"
    ),
)


@click.command(short_help="How fast a model is here, and how long nll, rd, sample would take.")
@options.checkpoint_options
@options.preparation_options
@_speed_options
def speed(output_format: str, **given: Any) -> None:  # noqa: ANN401
    """How fast a model is on this device, and about how long the other commands would take.

    A short version of benchmarks/ for your own model. Each precision and engine is listed with the
    deviation of its output from strict float32.

    \b
    Examples:
        ddpmbench speed
        ddpmbench speed --ckpt google/ddpm-cifar10-32 --device cuda --compile
        ddpmbench speed --data cifar10:test --ckpt DIR --precision fp32 --precision fp16
    """
    from ddpmbench.evaluate.speed import SpeedSettings, measure_speed
    from ddpmbench.report.speed import printed_speed
    from ddpmbench.unet.timed_unet import Precision

    checkpoint = open_checkpoint(take(given, options.CHECKPOINT))
    note(*checkpoint.notes)
    data, num_images = given.pop("data"), given.pop("num_images")
    prepared = take(given, options.PREPARATION)
    images = None if data is None else open_prepared(data, prepared, num_images=num_images)
    precisions = tuple(map(Precision, dict.fromkeys(given.pop("precision"))))
    settings = SpeedSettings(
        precisions=precisions or None,
        compiled=given.pop("compiled"),
        num_images=num_images or SpeedSettings.num_images,
        **take(given, ("half_width", "num_samples", "image_size")),
    )
    out: Path | None = given["out"]
    command = ["ddpmbench", *sys.argv[1:]]
    report = measure_speed(checkpoint, images, settings=settings, **given, command=command)
    click.echo(printed_speed(report.summary, output_format))
    if out is not None:
        click.echo(f"Folder: {out}", err=True)
