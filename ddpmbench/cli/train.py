"""`ddpmbench train`: a reference DDPM, so that there is something to evaluate."""

from pathlib import Path
from typing import Any

import click

from ddpmbench.cli import options
from ddpmbench.cli.launch import open_prepared, resumable, take
from ddpmbench.execution.progress import progress


def _integers(value: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of whole numbers such as 2,4") from None


def _depths(value: str) -> tuple[int, ...]:
    return () if value == "none" else _integers(value)


@click.command(short_help="Train a reference DDPM.")
@click.option(
    "--data",
    type=options.text,
    metavar="DATA",
    required=True,
    help="Images as for nll: NAME:SPLIT, a folder, .npz or idx file.",
)
@options.preparation_options
@click.option(
    "--out",
    required=True,
    type=options.path,
    metavar="DIR",
    help="Folder for checkpoint.safetensors, the training curve and the state to resume from.",
)
@options.count("--steps", default=100_000, text="Number of training steps.")
@options.choice(
    "--objective",
    ["simple", "vlb", "hybrid", "sliced"],
    "simple: L_simple, which is weighted denoising score matching; vlb: the bound itself; hybrid: "
    "L_simple + 0.001 L_vlb with a learned variance; sliced: sliced score matching.",
    default="simple",
)
@click.option(
    "--process",
    default="vp",
    show_default=True,
    metavar="PROCESS",
    help="Family of the forward process x_t = a x_start + s eps: vp, sub-vp, flow, ve, or "
    "ve:SIGMA_MIN:SIGMA_MAX.",
)
@click.option(
    "--variance",
    type=click.Choice(["fixed_small", "fixed_large", "learned_range"]),
    show_default="fixed_large, or learned_range for hybrid",
    help="Variance of the reverse process.",
)
@click.option(
    "--schedule",
    type=click.Choice(["linear", "cosine", "sigmoid"]),
    show_default="linear",
    help="Noise schedule of vp and sub-vp.",
)
@options.count(
    "--timesteps",
    "num_timesteps",
    metavar="T",
    limits=(2, None),
    default=1000,
    text="Number of timesteps, or noise levels.",
)
@click.option(
    "--channels",
    default="128,256,256",
    show_default=True,
    type=_integers,
    metavar="C,C,...",
    help="Channels of the U-Net at each resolution, from the image's down.",
)
@options.count(
    "--model-channels",
    metavar="C",
    limits=(4, None),
    text="Size of the sinusoidal embedding.  [default: the first of --channels]",
)
@options.count("--num-blocks", default=2, text="Residual blocks at each resolution.")
@click.option(
    "--attention",
    default="2",
    show_default=True,
    type=_depths,
    metavar="K,K,...|none",
    help="Resolutions with attention, as numbers of halvings: 2 is a quarter of the image's side. "
    "The middle always has it; none means the middle alone.",
)
@options.count(
    "--norm-groups", default=32, text="Groups of the normalizations; must divide all --channels."
)
@click.option(
    "--dropout",
    type=options.Real(0, 1, max_open=True),
    metavar="P",
    default=0.0,
    show_default=True,
    help="Share of activations that the residual blocks set to 0 in training.",
)
@options.count("--batch-size", limits=(1, 2**16), default=128, text="Images in a training step.")
@click.option(
    "--learning-rate",
    "--lr",
    type=options.Real(0, min_open=True),
    metavar="RATE",
    default=2e-4,
    show_default=True,
    help="Learning rate of Adam, after the warm-up.",
)
@options.count("--warmup-steps", default=1000, text="Steps over which the learning rate rises.")
@click.option(
    "--ema-decay",
    type=options.Real(0, 1),
    metavar="D",
    default=0.9999,
    show_default=True,
    help="Decay of the moving average of the weights, which the checkpoint holds.",
)
@click.option(
    "--horizontal-flip/--no-horizontal-flip",
    default=False,
    show_default=True,
    help="Mirror each image with probability 1/2.",
)
@options.choice(
    "--precision", ["fp32", "bf16"], "Precision of the network's forward pass.", default="fp32"
)
@options.device_option
@options.seed_option(
    "Seed of the first weights, and of the images, timesteps and noise of each step."
)
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
    **recipe: Any,  # noqa: ANN401
) -> None:
    """Train a DDPM with Algorithm 1 of Ho et al. 2020 and write it as a native checkpoint.

    The same command on the same folder resumes the run; with more --steps it also continues a
    finished one.

    \b
    Example:
        ddpmbench train --data fashion-mnist:train --out runs/fashion --steps 20000
    """
    from ddpmbench.diffusion.process import Variance
    from ddpmbench.execution.devices import resolve_device
    from ddpmbench.train.loop import TrainingProgress, train
    from ddpmbench.train.recipe import TrainingRecipe
    from ddpmbench.unet.unet import UNetConfig

    if beyond := [depth for depth in attention if not 0 <= depth < len(channels)]:
        raise click.BadParameter(
            f"{beyond[0]} is not in 0..{len(channels) - 1}", param_hint="--attention"
        )
    images = open_prepared(data, take(recipe, options.PREPARATION))
    learned = recipe["objective"] == "hybrid"
    kind = Variance(variance or ("learned_range" if learned else "fixed_large"))
    in_channels, image_size, width = images.pixels.shape[1:]
    if width != image_size:
        raise click.BadParameter(
            f"images are {width}x{image_size}; crop them to squares",
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
    with progress("train", "steps") as update, resumable(out):

        def on_progress(now: TrainingProgress) -> None:
            update(now.step, now.total, f"loss {now.loss:.5f}" if now.loss is not None else "")

        path = train(
            TrainingRecipe(network=network, image_size=image_size, variance=kind, **recipe),
            images,
            out,
            steps=steps,
            device=resolve_device(device),
            on_progress=on_progress,
        )
    click.echo(path)
