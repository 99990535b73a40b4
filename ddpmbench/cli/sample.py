"""`ddpmbench sample`: images that a model makes."""

import sys
from pathlib import Path
from typing import Any

import click

from ddpmbench.cli import options
from ddpmbench.cli.messages import note, warn
from ddpmbench.execution.progress import progress


@click.command(short_help="Images that a model makes, as npz and png.")
@options.checkpoint_options
@options.sampler_options
@options.sampling_precision_option
@click.option(
    "-n",
    "--num-samples",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    metavar="N",
    help="How many; on a folder that holds fewer, those that are missing are made.",
)
@click.option(
    "--eight-bit",
    type=click.Choice(["round", "truncate"]),
    default="round",
    show_default=True,
    help="How a sample becomes 8-bit pixels; truncate is that of guided-diffusion.",
)
@click.option("--png", is_flag=True, help="Also a PNG file an image, in png/ of the run folder.")
@options.run_options
@options.samples_format_option
def sample(out: Path | None, output_format: str, **given: Any) -> None:  # noqa: ANN401
    """Images that a model makes. Sample i depends on the checkpoint, sampler, seed and i alone.

    \b
    Examples:
        ddpmbench sample -n 16 --timesteps 100
        ddpmbench sample --ckpt google/ddpm-cifar10-32 -n 50000 --out runs/samples
        ddpmbench sample --ckpt google/ddpm-cifar10-32 --sampler ddim --timesteps 50 --png
        torchrun --nproc-per-node 4 -m ddpmbench sample -n 1000 --out runs/four
    """
    from ddpmbench.cli.inputs import open_checkpoint, sample_settings
    from ddpmbench.evaluate.sample import generate_samples
    from ddpmbench.execution.distributed import joined
    from ddpmbench.execution.worker import RunListener
    from ddpmbench.report.samples import printed_samples

    eight_bit = given.pop("eight_bit")
    of_checkpoint = {name: given.pop(name) for name in options.CHECKPOINT}
    with joined() as ranks:
        settings = sample_settings(given, eight_bit=eight_bit, local_rank=ranks.local_rank)
        checkpoint = ranks.first_one(lambda: open_checkpoint(of_checkpoint))
        folder = ranks.once(lambda: out or options.dated_folder("sample"))
        if ranks.reports:
            for line in checkpoint.notes:
                note(line)
        steps = checkpoint.schedule.num_timesteps
        with progress("sample", "images", calls=steps) as update:

            def on_start(calls: int) -> None:
                amount = f"{calls // steps:,} images to make, {steps:,} network calls each"
                line = f"{amount}; to resume after a stop: --out {folder}"
                click.echo(line if calls else f"All samples are in {folder} already", err=True)

            report = generate_samples(
                checkpoint,
                given.pop("num_samples"),
                settings=settings,
                **given,
                out=folder,
                command=["ddpmbench", *sys.argv[1:]],
                listener=RunListener(on_start, lambda now: update(now.done, now.total, ""), warn),
            )
    if ranks.reports:
        click.echo(printed_samples(report.summary, folder / "samples.npz", output_format))
        click.echo(f"Run folder: {folder}", err=True)
