"""`ddpmbench speed` and `env`: how fast this machine is, and what it has."""

import sys
from pathlib import Path
from typing import Any

import click

from ddpmbench.cli import options
from ddpmbench.cli.messages import note, warn, with_options

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
        help="Repeat it for several.  [default: those that suit the device]",
    ),
    click.option(
        "--compile", "compiled", is_flag=True, help="Also compile the network, which takes minutes."
    ),
    options.folder("Folder for tables and figures.  [default: nowhere]"),
    options.batch_size("The largest batch."),
    options.device_option,
    options.printed(
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
    from ddpmbench.cli.inputs import open_checkpoint
    from ddpmbench.data.images import load_images
    from ddpmbench.evaluate.speed import SpeedSettings, measure_speed, printed_speed
    from ddpmbench.execution.speed import SpeedPlan
    from ddpmbench.unet.precision import Precision

    checkpoint = open_checkpoint({name: given.pop(name) for name in options.CHECKPOINT})
    for line in checkpoint.notes:
        note(line)
    data, num_images = given.pop("data"), given.pop("num_images")
    prepared = {name: given.pop(name) for name in options.PREPARATION}
    images = None if data is None else load_images(data, num_images=num_images, **prepared)
    for line in () if images is None else images.notes:
        note(line)
    if images is not None and images.skipped_note is not None:
        warn(images.skipped_note)
    precisions = tuple(map(Precision, dict.fromkeys(given.pop("precision"))))
    settings = SpeedSettings(
        plan=SpeedPlan(precisions or None, given.pop("compiled")),
        num_images=num_images or SpeedSettings.num_images,
        **{name: given.pop(name) for name in ("half_width", "num_samples", "image_size")},
    )
    out: Path | None = given["out"]
    command = click.get_current_context().command
    report = measure_speed(
        checkpoint,
        images,
        settings=settings,
        **given,
        command=["ddpmbench", *sys.argv[1:]],
        tell=lambda line: click.echo(with_options(line, command), err=True),
    )
    click.echo(printed_speed(report.summary, output_format))
    if out is not None:
        click.echo(f"Folder: {out}", err=True)


@click.command(short_help="Versions, devices, data sets and caches here.")
def env() -> None:
    """Versions, devices, data sets and caches here, and what is missing."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from ddpmbench.checkpoints.load import load_checkpoint
    from ddpmbench.data.datasets import cache_folder, dataset_specs, is_at_hand
    from ddpmbench.execution.folder import describe_devices, source_revision, versions
    from ddpmbench.samples.feature_weights import feature_networks

    for name, version in versions().items():
        _line(name, version or f"missing: pip install {name}")
    _line("source revision", source_revision() or "an installed package")
    for device in describe_devices():
        _line("device", device)
    _line("checkpoint", f"default, sha256 {load_checkpoint().sha256[:12]}")
    for spec in dataset_specs():
        at_hand = is_at_hand(*spec.split(":"))
        _line("data set", f"{spec}, {'at hand' if at_hand else 'downloaded when asked for'}")
    for line in feature_networks():
        _line("feature network", line)
    _line("downloads go to", str(cache_folder()))
    _line("hub models go to", HF_HUB_CACHE)


def _line(name: str, value: str) -> None:
    click.echo(f"{name:<18}{value}")
