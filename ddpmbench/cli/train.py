"""`ddpmbench train`: a reference DDPM, so that there is something to evaluate."""

from pathlib import Path
from typing import Any

import click

from ddpmbench.cli import paths
from ddpmbench.execution.progress import progress


def _integers(context: click.Context, option: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of whole numbers such as 2,4") from None


@click.command(short_help="Train a reference DDPM.")
@click.option(
    "--data",
    type=paths.text,
    required=True,
    help="As for nll: NAME:SPLIT, a folder, .npz or idx file.",
)
@click.option(
    "--out",
    required=True,
    type=paths.path,
    metavar="DIR",
    help="Receives checkpoint.safetensors, the training curve and what resuming needs.",
)
@click.option(
    "--steps", type=click.IntRange(1), default=100_000, show_default=True, help="Length of the run."
)
@click.option(
    "--objective",
    type=click.Choice(["simple", "vlb", "hybrid"]),
    default="simple",
    show_default=True,
    help="L_simple, the bound itself, or L_simple + 0.001 L_vlb with a learned variance.",
)
@click.option(
    "--variance",
    type=click.Choice(["fixed_small", "fixed_large", "learned_range"]),
    default=None,
    show_default="fixed_large, or learned_range for hybrid",
    help="Of the reverse process.",
)
@click.option(
    "--schedule",
    type=click.Choice(["linear", "cosine", "sigmoid"]),
    default="linear",
    show_default=True,
    help="Of the noise.",
)
@click.option(
    "--timesteps",
    type=click.IntRange(2),
    default=1000,
    show_default=True,
    metavar="T",
    help="Steps of the chain.",
)
@click.option(
    "--channels",
    default="128,256,256",
    show_default=True,
    callback=_integers,
    help="Of the U-Net, at each resolution from the image's down.",
)
@click.option(
    "--model-channels",
    type=click.IntRange(4),
    help="Size of the sinusoidal embedding.  [default: the first of --channels]",
)
@click.option(
    "--num-blocks",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="Residual blocks at each resolution.",
)
@click.option(
    "--attention",
    default="2",
    show_default=True,
    callback=_integers,
    help="Resolutions with attention, as the number of halvings: 2 is a quarter of the image.",
)
@click.option(
    "--norm-groups",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Groups of the normalizations; must divide all --channels.",
)
@click.option("--dropout", type=click.FloatRange(0, 1, max_open=True), default=0.0)
@click.option("--batch-size", type=click.IntRange(1, 2**16), default=128, show_default=True)
@click.option(
    "--learning-rate", type=click.FloatRange(0, min_open=True), default=2e-4, show_default=True
)
@click.option(
    "--warmup-steps",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Steps over which the learning rate rises.",
)
@click.option(
    "--ema-decay",
    type=click.FloatRange(0, 1),
    default=0.9999,
    show_default=True,
    help="Of the moving average of the weights, which is what is written.",
)
@click.option("--horizontal-flip/--no-horizontal-flip", default=False, show_default=True)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    show_default=True,
    help="Of the network's forward pass.",
)
@click.option("--device", default="auto", show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True)
def train(
    data: str,
    out: Path,
    steps: int,
    device: str,
    variance: str | None,
    channels: tuple[int, ...],
    model_channels: int | None,
    num_blocks: int,
    attention: tuple[int, ...],
    norm_groups: int,
    dropout: float,
    timesteps: int,
    **recipe: Any,  # noqa: ANN401
) -> None:
    """Train a DDPM with Algorithm 1 of Ho et al. 2020 and write it as a native checkpoint.

    The same command on the same folder goes on where it stopped; with more --steps a finished
    run goes on too.

    \b
    Example:
        ddpmbench train --data fashion-mnist:train --out runs/fashion --steps 20000
    """
    from ddpmbench.data.images import load_images
    from ddpmbench.diffusion.process import Variance
    from ddpmbench.execution.devices import resolve_device
    from ddpmbench.train.loop import TrainingProgress, train
    from ddpmbench.train.recipe import TrainingRecipe
    from ddpmbench.unet.unet import UNetConfig

    if strange := [depth for depth in attention if not 0 <= depth < len(channels)]:
        raise click.BadParameter(
            f"{strange[0]} is none of 0..{len(channels) - 1}", param_hint="--attention"
        )
    images = load_images(data)
    for line in images.notes:
        click.echo(f"Note: {line}", err=True)
    learned = recipe["objective"] == "hybrid"
    kind = Variance(variance or ("learned_range" if learned else "fixed_large"))
    in_channels, image_size, width = images.pixels.shape[1:]
    if width != image_size:
        raise click.BadParameter(
            f"images of {width}x{image_size}; crop them to squares, which are what is trained on",
            param_hint="--data",
        )
    network = UNetConfig(
        in_channels=in_channels,
        out_channels=in_channels * (2 if kind.is_learned else 1),
        model_channels=model_channels or channels[0],
        channels=channels,
        num_blocks=num_blocks,
        attention=tuple(depth in attention for depth in range(len(channels))),
        norm_groups=norm_groups,
        dropout=dropout,
    )
    with progress("train", "steps") as update:

        def on_progress(now: TrainingProgress) -> None:
            update(now.step, now.total, f"loss {now.loss:.5f}" if now.loss is not None else "")

        path = train(
            TrainingRecipe(
                network=network,
                image_size=image_size,
                num_timesteps=timesteps,
                variance=kind,
                **recipe,
            ),
            images,
            out,
            steps=steps,
            device=resolve_device(device),
            on_progress=on_progress,
        )
    click.echo(path)
