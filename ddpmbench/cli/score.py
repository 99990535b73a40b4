"""`ddpmbench score`: a bound for every image."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddpmbench.cli import options
from ddpmbench.cli.likelihood import launch

if TYPE_CHECKING:
    from ddpmbench.data.images import ImageSet
    from ddpmbench.diffusion.model import Checkpoint
    from ddpmbench.evaluate.score import ScoreReport


@click.command(short_help="A bound for every image, and how it tells two image sets apart.")
@options.checkpoint_options
@options.two_sets_options
@options.score_options
@options.check_option
@options.run_options
@options.printed(
    "What to print; csv has a row an image, quiet the mean of each set.",
    *("table", "json", "csv", "quiet"),
)
def score(out: Path | None, output_format: str, **given: Any) -> None:  # noqa: ANN401
    """The variational bound of every image in bits/dim, each with its standard error.

    With two image sets also the difference of their means, and how well the scores tell the second
    from the first (AUROC), raw and corrected for the images' complexity. With the training set and
    the test set the difference is the generalization gap: memorization, if it is above 0.

    \b
    Examples:
        ddpmbench score --data fashion-mnist:test --num-images 500
        ddpmbench score --data fashion-mnist:test --data mnist:test --num-images 500
        ddpmbench score --ckpt google/ddpm-cifar10-32 --data cifar10:train --data cifar10:test
    """
    from ddpmbench.cli.inputs import open_checkpoint, open_images
    from ddpmbench.evaluate.reuse import page_of
    from ddpmbench.evaluate.score import score_images
    from ddpmbench.report.scores import printed_scores

    inputs = {name: given.pop(name) for name in options.INPUTS}
    names = inputs["data"] or (None,)
    if len(names) > 2:
        raise click.UsageError(
            f"--data: names {len(names)} image sets; name one, or two to compare them"
        )

    def opened() -> "tuple[Checkpoint, list[ImageSet]]":
        checkpoint = open_checkpoint({name: inputs[name] for name in options.CHECKPOINT})
        return checkpoint, [open_images(checkpoint, name, inputs) for name in names]

    def run(
        checkpoint: "Checkpoint",
        sets: "list[ImageSet]",
        **of_run: Any,  # noqa: ANN401
    ) -> "ScoreReport":
        first, second = sets if len(sets) > 1 else (sets[0], None)
        return score_images(checkpoint, first, second, **given, **of_run)

    report = launch("score", out, opened, run)
    if report is not None:
        click.echo(printed_scores(report.summary, report.per_image, output_format))
        click.echo(f"Run folder: {report.folder}", err=True)
        click.echo(f"Report: {page_of(report)}", err=True)
