"""`ddpmbench nll`, `rd`, `score`, `ode` and `likelihoods`: the bound and other likelihoods."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddpmbench.cli import options
from ddpmbench.cli.launch import (
    launch,
    open_checkpoint,
    open_images,
    open_inputs,
    print_report,
    resumable,
    take,
)
from ddpmbench.execution.progress import warn

if TYPE_CHECKING:
    from ddpmbench.data.images import ImageSet
    from ddpmbench.diffusion.model import Checkpoint
    from ddpmbench.report.nll import NllReport

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
    options.path_option(
        "importance: evaluate the same terms as that run, so that compare can pair the two.",
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


def _timesteps(value: str) -> int | str:
    if value == options.CONTINUOUS:
        return value
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(
            f"{value!r} is neither a whole number from 1 on nor {options.CONTINUOUS}"
        )
    return int(value)


_timesteps_option = click.option(
    "--timesteps",
    type=_timesteps,
    metavar=f"K|{options.CONTINUOUS}",
    help="Visit K evenly spaced timesteps: fewer than the model was trained on, or more, which lie "
    f"between those. {options.CONTINUOUS} is the limit of infinitely many.",
)

_precision_option = options.precision(
    "In any but fp32, some terms are evaluated in both, to correct the bound. auto is that of the "
    "run in --out, if there is one; else fp16 on CUDA, bf16 on a CPU where it measures a third "
    "faster, and fp32 elsewhere."
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
    from ddpmbench.evaluate.nll import evaluate_nll
    from ddpmbench.report.nll_text import printed_nll

    report = launch("nll", out, given, evaluate_nll)
    if report is not None:
        print_report(printed_nll(report.summary, output_format), report)


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
@options.path_option(
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
        allowed = {"run", "output_format"} | ({"pictures"} if pictures == "none" else set())
        options.refuse_given(
            lambda name: name not in allowed,
            f"has no effect on a finished run; leave it out, or leave out --run {run}",
        )
        _print_curve(run, output_format)
        return
    from ddpmbench.evaluate.nll import evaluate_nll
    from ddpmbench.evaluate.page import page_of
    from ddpmbench.evaluate.rate_distortion import check_pictures, progressive_pictures

    def opened(given: dict[str, Any]) -> "tuple[Checkpoint, ImageSet]":
        checkpoint, images = open_inputs(given)
        check_pictures(checkpoint, images, pictures=pictures, depth=depth)
        return checkpoint, images

    def evaluated(
        checkpoint: "Checkpoint",
        images: "ImageSet",
        **how: Any,  # noqa: ANN401
    ) -> "tuple[Checkpoint, ImageSet, NllReport]":
        return checkpoint, images, evaluate_nll(checkpoint, images, **how)

    result = launch("rd", out, given, evaluated, opened=opened)
    if result is None:
        return
    report = result[-1]
    _print_curve(report, output_format)
    assert report.folder is not None
    how = {name: given[name] for name in ("device", "batch_size")}
    with resumable(report.folder):
        progressive_pictures(*result, pictures=pictures, depth=depth, **how)
    click.echo(f"Report: {page_of(report)}", err=True)


def _print_curve(source: "NllReport | Path", output_format: str) -> None:
    from ddpmbench.evaluate.rate_distortion import rate_distortion
    from ddpmbench.report.rate_distortion import printed_rate_distortion
    from ddpmbench.report.text import raw_pixels_warning

    result = rate_distortion(source)
    click.echo(printed_rate_distortion(result.summary, result.curve, output_format))
    if isinstance(source, Path) and (line := raw_pixels_warning(result.summary)):
        warn(line)
    click.echo(f"Run folder: {result.folder}", err=True)


_score_options = options.decorate(
    options.count(
        "--evaluations-per-image",
        limits=(4, None),
        metavar="M",
        default=64,
        text="Network evaluations of each image: one in eight at t = 1, the others at stratified "
        "timesteps.",
    ),
    options.path_option(
        "Sample the timesteps as that run of score did, so that an image has the same score in "
        "both.",
        "--terms-of",
        "RUN",
    ),
    options.decoder_option,
)


@click.command(short_help="A bound for every image, and how it tells two image sets apart.")
@options.checkpoint_options
@options.two_sets_options
@_score_options
@options.check_option
@options.run_options
@options.output_format(
    "What to print; csv has a row per image, quiet the mean of each set.",
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
    from ddpmbench.evaluate.score import score_images
    from ddpmbench.report.score import printed_scores

    names = given["data"] or (None,)
    if len(names) > 2:
        raise click.UsageError(
            f"--data: names {len(names)} image sets; name one, or two to compare them"
        )

    def opened(given: dict[str, Any]) -> "tuple[Checkpoint | ImageSet, ...]":
        inputs = take(given, options.INPUTS)
        checkpoint = open_checkpoint(inputs)
        return checkpoint, *(open_images(checkpoint, name, inputs) for name in names)

    report = launch("score", out, given, score_images, opened=opened)
    if report is not None:
        print_report(printed_scores(report.summary, report.per_image, output_format), report)


_ode_options = options.decorate(
    options.count(
        "--num-ode-images",
        default=256,
        text="Solve the ODE of at most N images. Their mean difference from the variational bound, "
        "added to the bound of all images, gives the ODE of all.",
    ),
    options.choice(
        "--dequantization",
        ["decoder", "uniform", "truncated-normal"],
        "How pixels become continuous. decoder: by the noise of the forward process up to x_1, "
        "with the decoder of the variational bound; uniform, truncated-normal: by noise within the "
        "bin of each level.",
        default="decoder",
    ),
    options.choice(
        "--trace",
        ["hutchinson", "exact"],
        "Divergence: estimated with random signs (hutchinson), or exact, with a vector-Jacobian "
        "product per dimension.",
        default="hutchinson",
    ),
    options.count(
        "--probes",
        default=1,
        text="hutchinson: vectors of random signs per image; from 2 on, their error is known.",
    ),
    options.choice(
        "--solver",
        ["heun", "rk4"],
        "Exponential Runge-Kutta method, of order 2 or 4.",
        default="rk4",
    ),
    options.count(
        "--solver-steps",
        default=12,
        text="Steps in log sigma, an even number; the error of the solver is estimated with half "
        "as many.",
    ),
    click.option(
        "--half-width",
        type=float,
        metavar="H",
        help="Half width of the interval of the variational bound on all images, bits/dim.  "
        "[default: 0.005]",
    ),
)


@click.command(short_help="The likelihood of the probability-flow ODE, in bits/dim.")
@options.checkpoint_options
@options.data_options
@_ode_options
@options.check_option
@options.run_options
@options.format_option
def ode(out: Path | None, output_format: str, **given: Any) -> None:  # noqa: ANN401
    """The likelihood of the probability-flow ODE in bits/dim, and how far below the bound it is.

    \b
    Examples:
        ddpmbench ode
        ddpmbench ode --num-images 64 --probes 4 --solver-steps 20
        ddpmbench ode --ckpt google/ddpm-cifar10-32 --data cifar10:test --dequantization uniform
    """
    from ddpmbench.evaluate.ode import evaluate_ode
    from ddpmbench.report.ode import printed_ode

    report = launch("ode", out, given, evaluate_ode)
    if report is not None:
        print_report(printed_ode(report.summary, output_format), report)


@click.command(short_help="Bound, best variance, continuous time and ODE, side by side.")
@options.checkpoint_options
@options.data_options
@_ode_options
@options.check_option
@options.run_options
@options.output_format(
    "What to print; csv has one row per likelihood, quiet the numbers alone.",
    "table",
    "json",
    "csv",
    "quiet",
)
def likelihoods(out: Path | None, output_format: str, **given: Any) -> None:  # noqa: ANN401
    """The likelihoods of a checkpoint by the published conventions, in bits/dim.

    The variational bound, the same with the best constant variance, the bound in continuous time
    and the probability-flow ODE, on the same images with one seed, with paired differences and
    costs.

    \b
    Examples:
        ddpmbench likelihoods
        ddpmbench likelihoods --num-images 500 --num-ode-images 100
        ddpmbench likelihoods --ckpt google/ddpm-cifar10-32 --data cifar10:test
    """
    from ddpmbench.evaluate.likelihoods import evaluate_likelihoods
    from ddpmbench.report.likelihoods import printed_likelihoods

    report = launch("likelihoods", out, given, evaluate_likelihoods)
    if report is not None:
        printed = printed_likelihoods(report.summary, report.likelihoods, output_format)
        print_report(printed, report)
