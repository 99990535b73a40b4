"""`ddpmbench nll` and `rd`, and how a command starts an evaluation of likelihood."""

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ddpmbench.cli import options
from ddpmbench.cli.messages import note, warn
from ddpmbench.execution.progress import progress

if TYPE_CHECKING:
    from ddpmbench.data.images import ImageSet
    from ddpmbench.diffusion.model import Checkpoint
    from ddpmbench.evaluate.nll import NllReport


Inputs = TypeVar("Inputs")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """A finished run and its inputs.

    Attributes:
        report: its result.
        checkpoint: the model.
        images: the image set.
    """

    report: "NllReport"
    checkpoint: "Checkpoint"
    images: "ImageSet"


def evaluate(
    command: str,
    out: Path | None,
    given: dict[str, Any],
    *,
    check: "Callable[[Checkpoint, ImageSet], None]" = lambda checkpoint, images: None,
) -> Evaluation | None:
    """Run `evaluate_nll` with a command's options.

    Args:
        command: its name.
        out: the run folder; None for a dated one.
        given: all its other options.
        check: raises InputError where the command cannot go on with the checkpoint and the
            images; it is called before the network is.

    Returns:
        The run; None in a process that does not report.
    """
    from ddpmbench.cli.inputs import open_inputs
    from ddpmbench.evaluate.nll import evaluate_nll

    inputs = {name: given.pop(name) for name in options.INPUTS}

    def opened() -> "tuple[Checkpoint, ImageSet]":
        checkpoint, images = open_inputs(inputs)
        check(checkpoint, images)
        return checkpoint, images

    def run(
        checkpoint: "Checkpoint",
        images: "ImageSet",
        **of_run: Any,  # noqa: ANN401
    ) -> Evaluation:
        return Evaluation(evaluate_nll(checkpoint, images, **given, **of_run), checkpoint, images)

    return launch(command, out, opened, run)


def launch(
    command: str,
    out: Path | None,
    opened: "Callable[[], tuple[Checkpoint, Inputs]]",
    run: "Callable[..., Result]",
    *,
    evaluations: str = "network evaluations",
) -> "Result | None":
    """Start an evaluation of likelihood, in as many processes as torchrun started.

    Args:
        command: its name.
        out: the run folder; None for a dated one.
        opened: returns the checkpoint and the image set or sets; it is called in one process.
        run: is called with both, and by name with the run folder `out`, the `command` line and the
            `listener`.
        evaluations: what is counted.

    Returns:
        What `run` returns; None in a process that does not report.
    """
    from ddpmbench.evaluate.progress import remark
    from ddpmbench.execution.distributed import joined
    from ddpmbench.execution.worker import RunListener, RunProgress

    with joined() as ranks:
        checkpoint, inputs = ranks.first_one(opened)
        folder = ranks.once(lambda: out or options.dated_folder(command))
        if ranks.reports:
            for line in checkpoint.notes:
                note(line)
        with progress(command, "evaluations") as update:

            def on_start(count: int) -> None:
                line = f"{count:,} {evaluations} at first; to resume: --out {folder}"
                if not count:
                    line = f"What was evaluated first is in {folder} already; none is repeated"
                click.echo(line, err=True)

            def on_progress(now: RunProgress) -> None:
                update(now.done, now.total, remark(now))

            result = run(
                checkpoint,
                inputs,
                out=folder,
                command=["ddpmbench", *sys.argv[1:]],
                listener=RunListener(on_start, on_progress, warn, note),
            )
    return result if ranks.reports else None


_likelihood_options = options.decorate(
    options.choice(
        "--estimator",
        ["importance", "every-pair"],
        "importance evaluates a few timesteps of some images and gives the same bound with an "
        "interval; every-pair evaluates every timestep of every image.",
        default="importance",
    ),
    click.option(
        "--half-width",
        type=float,
        metavar="H",
        help="importance: stop once the bound is known to +- H bits/dim, 95 %.  "
        "[default: 0.005, or that of the run of --terms-of]",
    ),
    options.count(
        "--max-evaluations",
        metavar="M",
        text="importance: stop after M network evaluations, however wide the interval is.",
    ),
    options.folder(
        "importance: evaluate the terms of that run, so that compare can pair the two.",
        "--terms-of",
        "RUN",
    ),
    options.count(
        "--draws",
        metavar="K",
        text="every-pair: noise draws for each image and timestep. The error due to the noise is "
        "known from 2 on.  [default: 2]",
    ),
    options.decoder_option,
)

_continuous_option = click.option(
    "--continuous/--no-continuous",
    default=None,
    help="Estimate the bound in continuous time, too, with at most 1,000 network evaluations that "
    "do not count towards the run.  [default: in runs of 10,000 evaluations and more]",
)


def _timesteps(
    context: click.Context, option: click.Parameter, value: str | None
) -> int | str | None:
    if value is None or value == options.CONTINUOUS:
        return value
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(
            f"{value!r} is neither a whole number from 1 on nor {options.CONTINUOUS}."
        )
    return int(value)


_timesteps_option = click.option(
    "--timesteps",
    callback=_timesteps,
    metavar=f"K|{options.CONTINUOUS}",
    help="Visit K evenly spaced timesteps: fewer than the model was trained on, or more, which lie "
    f"between those. {options.CONTINUOUS} is the limit of ever more.",
)

_precision_option = options.precision(
    "Below strict fp32, some terms are evaluated in both to correct the bound; auto is that of the "
    "run in --out, else fp16 on CUDA, on a CPU bf16 where a test finds it faster by a third, and "
    "else fp32."
)


@click.command(short_help="The variational bound in bits/dim, with two intervals.")
@options.ckpt_option
@options.reading_options
@_timesteps_option
@options.data_options
@_likelihood_options
@options.check_option
@_continuous_option
@options.run_options
@_precision_option
@options.format_option
def nll(out: Path | None, output_format: str, **given: Any) -> None:  # noqa: ANN401
    """The variational bound in bits/dim: its three parts, every timestep, two intervals.

    \b
    Examples:
        ddpmbench nll
        ddpmbench nll --ckpt google/ddpm-cifar10-32 --data cifar10:test --half-width 0.01
        ddpmbench nll --timesteps continuous
        ddpmbench nll --ckpt ema_0.9999_500000.pt --model-flags "--image_size 32 ..." --data DIR
        torchrun --nproc-per-node 4 -m ddpmbench nll --data fashion-mnist:test --out runs/four
    """
    evaluation = evaluate("nll", out, given)
    if evaluation is None:
        return
    from ddpmbench.evaluate.reuse import page_of
    from ddpmbench.report.nll_text import printed_nll

    folder = evaluation.report.folder
    assert folder is not None

    click.echo(printed_nll(evaluation.report.summary, output_format))
    click.echo(f"Run folder: {folder}", err=True)
    click.echo(f"Report: {page_of(evaluation.report)}", err=True)


@click.command(short_help="Rate-distortion of progressive lossy decoding.")
@options.checkpoint_options
@options.data_options
@_likelihood_options
@options.check_option
@options.run_options
@_precision_option
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
    from ddpmbench.evaluate.rate_distortion import check_pictures

    check = functools.partial(check_pictures, pictures=pictures, depth=depth)
    evaluation = evaluate("rd", out, given, check=check)
    if evaluation is None:
        return
    _print(evaluation.report, output_format)
    shown = {"pictures": pictures, "depth": depth}
    _make_pictures(evaluation, **shown, device=given["device"], batch_size=given["batch_size"])
    from ddpmbench.evaluate.reuse import page_of

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
    from ddpmbench.evaluate.rate_distortion import progressive_pictures
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
