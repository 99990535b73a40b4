"""`ddpmbench rd`: rate-distortion of progressive lossy decoding."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddpmbench.cli import options
from ddpmbench.cli.likelihood import Evaluation, evaluate
from ddpmbench.cli.messages import warn
from ddpmbench.execution.progress import progress

if TYPE_CHECKING:
    from ddpmbench.evaluate.nll import NllReport


@click.command(short_help="Rate-distortion of progressive lossy decoding.")
@options.checkpoint_options
@options.data_options
@options.likelihood_options
@options.check_option
@options.run_options
@options.precision_option
@options.format_option
@options.choice(
    "--pictures",
    ["none", "decoding", "all"],
    "Pictures to draw: progressive decoding of the first images, or also progressive generation "
    "and interpolation, which take many more network evaluations.",
    default="decoding",
)
@options.count(
    "--depth",
    metavar="T",
    text="Timestep at which --pictures all mixes two images.  [default: half of all]",
)
@options.folder(
    "Print the curve of a finished run of nll or rd, without network evaluations.", "--run"
)
def rd(
    run: Path | None,
    out: Path | None,
    output_format: str,
    pictures: str,
    depth: int | None,
    **given: Any,  # noqa: ANN401
) -> None:
    """Rate-distortion of progressive lossy decoding, from the same network evaluations as nll.

    \b
    Examples:
        ddpmbench rd
        ddpmbench rd --pictures all --depth 300
        ddpmbench rd --run runs/mine
        ddpmbench rd --ckpt google/ddpm-cifar10-32 --data cifar10:test
    """
    if run is not None:
        _refuse_other_options(run, pictures)
        _print(run, output_format)
        return
    from ddpmbench.evaluate.pictures import check_pictures

    check = functools.partial(check_pictures, pictures=pictures, depth=depth)
    evaluation = evaluate("rd", out, given, check=check)
    if evaluation is None:
        return
    _print(evaluation.report, output_format)
    shown = {"pictures": pictures, "depth": depth}
    _make_pictures(evaluation, **shown, device=given["device"], batch_size=given["batch_size"])
    from ddpmbench.evaluate.answered import page_of

    assert evaluation.report.folder is not None
    click.echo(f"Report: {page_of(evaluation.report)}", err=True)


def _print(source: "NllReport | Path", output_format: str) -> None:
    from ddpmbench.evaluate.rate_distortion import rate_distortion
    from ddpmbench.report.nll_text import printed_rate_distortion
    from ddpmbench.report.text import raw_pixels_warning

    result = rate_distortion(source)
    click.echo(printed_rate_distortion(result.summary, result.curve, output_format))
    if isinstance(source, Path) and (line := raw_pixels_warning(result.summary)):
        warn(line)
    click.echo(f"Run folder: {result.folder}", err=True)


def _make_pictures(evaluation: Evaluation, **how: Any) -> None:  # noqa: ANN401
    from ddpmbench.evaluate.pictures import progressive_pictures
    from ddpmbench.execution.worker import RunListener

    with progress("pictures", "evaluations") as update:

        def on_start(calls: int) -> None:
            click.echo(f"{calls:,} network evaluations more for the pictures", err=True)

        listener = RunListener(on_start, lambda now: update(now.done, now.total, ""), warn)
        progressive_pictures(
            evaluation.checkpoint, evaluation.images, evaluation.report, listener=listener, **how
        )


def _refuse_other_options(run: Path, pictures: str) -> None:
    allowed = {"run", "output_format"} | ({"pictures"} if pictures == "none" else set())
    for option in options.given_options():
        if option.name not in allowed:
            raise click.UsageError(
                f"{option.opts[0]}: has no effect on a finished run; leave it out, or leave out "
                f"--run {run}"
            )
