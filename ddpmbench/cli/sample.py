"""`ddpmbench sample`: samples of a model."""

import sys
from pathlib import Path
from typing import Any

import click

from ddpmbench.cli import options
from ddpmbench.cli.messages import note, warn
from ddpmbench.execution.progress import progress


@click.command(short_help="Samples of a model, as npz and png.")
@options.checkpoint_options
@options.sampler_options
@options.sampling_precision_option
@options.count(
    "-n",
    "--num-samples",
    default=64,
    text="Number of samples. A folder that holds fewer receives the missing ones.",
)
@options.choice(
    "--eight-bit",
    ["round", "truncate"],
    "Conversion of samples to 8-bit pixels; guided-diffusion truncates.",
    default="round",
)
@click.option("--png", is_flag=True, help="Also write each sample as a PNG file in png/.")
@options.run_options
@options.printed("What to print; quiet is the path of the samples.", "table", "json", "quiet")
def sample(out: Path | None, output_format: str, **given: Any) -> None:  # noqa: ANN401
    """Samples of a model. Sample i depends on the checkpoint, sampler, seed and i alone.

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
    from ddpmbench.report.samples_text import printed_samples

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
                amount = f"{calls // steps:,} images, {steps:,} network evaluations each"
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
