"""`ddpmbench sample` and `fid`: samples of a model, and their scores."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddpmbench.cli import options
from ddpmbench.cli.launch import (
    DEFAULT_DATA,
    launch,
    open_checkpoint,
    print_report,
    take,
)
from ddpmbench.errors import InputError
from ddpmbench.execution.progress import progress

if TYPE_CHECKING:
    from ddpmbench.data.images import ImageSet
    from ddpmbench.diffusion.model import Checkpoint
    from ddpmbench.evaluate.fid import FidSettings
    from ddpmbench.evaluate.sample import MadeBy
    from ddpmbench.execution.samples import SampleSettings
    from ddpmbench.metrics.feature_networks import FeatureNetwork
    from ddpmbench.metrics.statistics import ReferenceStatistics

_sampler_options = options.decorate(
    options.choice(
        "--sampler",
        ["ancestral", "ddim", "langevin", "predictor-corrector", "ode", "dpm-solver++"],
        "ancestral: Algorithm 2 of Ho et al. with the checkpoint's variance; ddim: the implicit "
        "process; langevin: annealed Langevin dynamics; predictor-corrector: Langevin steps before "
        "each ancestral step; ode: the probability-flow ODE; dpm-solver++: its multistep solver "
        "2M.",
        default="ancestral",
    ),
    click.option(
        "--eta",
        type=float,
        metavar="ETA",
        help="ddim: amount of noise, from 0 (deterministic) to 1 (that of the posterior).  "
        "[default: 0]",
    ),
    options.choice(
        "--added-noise",
        ["inner", "every-step", "none"],
        "ancestral: add noise at all timesteps but the last (inner), at every one, or at none.  "
        "[default: inner]",
    ),
    options.count(
        "--langevin-steps",
        metavar="L",
        text="langevin, predictor-corrector: Langevin steps at each timestep.  [default: 5 and 1]",
    ),
    click.option(
        "--step-size",
        type=float,
        metavar="RHO",
        help="langevin: size of a step, divided by sigma^2 (in Song & Ermon 2020 epsilon / "
        "sigma_min^2): above 0 and at most 1.  [default: 0.062]",
    ),
    click.option(
        "--snr",
        type=float,
        metavar="R",
        help="predictor-corrector: signal-to-noise ratio of a Langevin step: above 0 and at most "
        "1.  [default: 0.16]",
    ),
    options.choice(
        "--solver",
        ["heun", "rk4"],
        "ode: the Runge-Kutta method; rk4 needs --solver-steps.  [default: heun]",
    ),
    options.count(
        "--solver-steps",
        metavar="N",
        text="ode, dpm-solver++: take N equal steps in log sigma, with the network evaluated "
        "between its timesteps.  [default: from timestep to timestep]",
    ),
    options.count(
        "--image-size",
        metavar="S",
        text="Height and width of a sample, where the checkpoint does not state them.",
    ),
    options.count(
        "--class",
        "label",
        limits=(0, None),
        text="Class of all samples.  [default: the classes in turn]",
    ),
)

_reference_options = options.decorate(
    click.option(
        "--samples",
        type=options.text,
        metavar="DIR|NPZ",
        help="Score existing samples instead of a checkpoint's: a folder of PNG files, an npz, or "
        "the run folder of sample.",
    ),
    options.count(
        "--num-generated",
        limits=(2, None),
        default=50_000,
        text="Number of samples to generate. Compare scores only at the same number.",
    ),
    click.option(
        "--data",
        type=options.text,
        multiple=True,
        metavar="DATA",
        show_default="for the checkpoint that comes with ddpmbench, the images that do",
        help="Real images: NAME:SPLIT, a folder, an npz or idx file; or an npz of mu and sigma "
        "(pytorch-fid, clean-fid, ADM). Repeat it for several references; the first one gives the "
        "headline.",
    ),
    options.count(
        "--num-images",
        limits=(2, None),
        text="Use only the first N images of each reference.  [default: all]",
    ),
    options.choice(
        "--protocol",
        ["ddpm", "clean", "adm", "edm"],
        "Published convention of resizing, rounding and splits.  [default: ddpm, that of Ho et "
        "al.; clean with a feature network that cannot resize as TensorFlow does]",
    ),
    click.option(
        "--feature-network",
        type=options.text,
        default="inception",
        show_default=True,
        metavar="NAME|FILE",
        help="inception, efficientnet-lite0 (needs no download), or a TorchScript file with "
        "Inception's interface. Only the distance in Inception's features is called FID.",
    ),
    options.path_option(
        "Path of inception-2015-12-05.pt.  [default: $DDPMBENCH_INCEPTION, or downloaded once]",
        "--inception",
        "FILE",
    ),
    options.convert_option,
    options.on_bad_option,
)

_precision_option = options.precision(
    "In any but fp32 the samples differ, and their scores are not corrected for it; auto is bf16 "
    "on CUDA and fp32 elsewhere."
)


@click.command(short_help="Samples of a model, as npz and png.")
@options.checkpoint_options
@_sampler_options
@_precision_option
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
@options.output_format("What to print; quiet is the path of the samples.", "table", "json", "quiet")
def sample(out: Path | None, output_format: str, **given: Any) -> None:  # noqa: ANN401
    """Samples of a model. Sample i depends on the checkpoint, sampler, seed and i alone.

    \b
    Examples:
        ddpmbench sample -n 16 --timesteps 100
        ddpmbench sample --ckpt google/ddpm-cifar10-32 -n 50000 --out runs/samples
        ddpmbench sample --ckpt google/ddpm-cifar10-32 --sampler ddim --timesteps 50 --png
        ddpmbench sample -n 16 --sampler dpm-solver++ --timesteps 20
        torchrun --nproc-per-node 4 -m ddpmbench sample -n 1000 --out runs/four
    """
    from ddpmbench.evaluate.sample import generate_samples
    from ddpmbench.report.sample import printed_samples

    def opened(given: dict[str, Any]) -> "tuple[Checkpoint, int]":
        given["settings"] = _sample_settings(given)
        return open_checkpoint(take(given, options.CHECKPOINT)), given.pop("num_samples")

    report = launch("sample", out, given, generate_samples, opened=opened)
    if report is not None and (folder := report.folder) is not None:
        click.echo(printed_samples(report.summary, folder / "samples.npz", output_format))
        click.echo(f"Run folder: {folder}", err=True)


_SAMPLER_SETTINGS = (
    *("added_noise", "eta", "langevin_steps", "step_size", "snr"),
    *("solver", "solver_steps"),
)
_OF_CHECKPOINT = {
    *options.CHECKPOINT,
    *("sampler", *_SAMPLER_SETTINGS, "image_size", "label", "num_generated", "batch_size"),
    *("precision", "check"),
}


def _sample_settings(given: dict[str, Any]) -> "SampleSettings":
    """Settings of samples from the options, which are removed from those given."""
    from ddpmbench.diffusion.data_range import EightBit
    from ddpmbench.execution.devices import resolve_device, resolve_precision
    from ddpmbench.execution.samples import SampleSettings
    from ddpmbench.samples.samplers import SamplerChoice
    from ddpmbench.unet.timed_unet import Precision

    device = resolve_device(given["device"])
    return SampleSettings(
        sampler=SamplerChoice(given.pop("sampler"), **take(given, _SAMPLER_SETTINGS)),
        eight_bit=EightBit(given.pop("eight_bit", "round")),
        precision=resolve_precision(given.pop("precision"), device, on_cuda=Precision.BF16),
        **take(given, ("image_size", "label", "seed")),
    )


@click.command(short_help="FID, Inception score, KID, precision and recall of samples.")
@options.checkpoint_options
@_sampler_options
@_precision_option
@_reference_options
@options.check_option
@options.run_options
@options.format_option
def fid(out: Path | None, output_format: str, **given: Any) -> None:  # noqa: ANN401
    """FID, Inception score, KID, precision and recall, each with an interval.

    Samples of the checkpoint are generated first; --samples scores existing ones instead.

    \b
    Examples:
        ddpmbench fid --ckpt google/ddpm-cifar10-32 --data cifar10:train --data cifar10:test
        ddpmbench fid --samples runs/samples/samples.npz --data cifar10:train --protocol adm
        ddpmbench fid --num-generated 1000 --timesteps 100 --feature-network efficientnet-lite0
        torchrun --nproc-per-node 4 -m ddpmbench fid --data cifar10:train --out runs/four
    """
    if given["samples"] is not None:
        options.refuse_given(
            lambda name: name in _OF_CHECKPOINT,
            "applies only to a checkpoint; leave it out, or leave out --samples",
        )
    from ddpmbench.evaluate.fid import evaluate_fid
    from ddpmbench.report.fid import printed_fid

    report = launch("fid", out, given, evaluate_fid, opened=_open_fid)
    if report is not None:
        print_report(printed_fid(report.summary, output_format), report)


def _open_fid(
    given: dict[str, Any],
) -> "tuple[Checkpoint | ImageSet, list[ImageSet | ReferenceStatistics], FidSettings]":
    """The checkpoint or its samples, the references and the settings."""
    from ddpmbench.evaluate.fid import FidSettings

    how = take(given, given.keys() - {"device", "batch_size"})
    samples = _sample_settings(how | {"device": given["device"]})
    # The inputs first: a feature network takes long to load or download.
    source, made_by = _source(how)
    references = _references(how)
    network, protocol = _network(how)
    scored = FidSettings(network, protocol, how["num_generated"], samples, how["check"], made_by)
    return source, references, scored


def _network(given: dict[str, Any]) -> "tuple[FeatureNetwork, Any]":
    from ddpmbench.metrics.feature_networks import load_feature_network, resizes_inside
    from ddpmbench.metrics.scores import protocol_named

    name = given["feature_network"]
    protocol = protocol_named(given["protocol"], resizes_inside=resizes_inside(name))
    with progress("weights", "MB", calls=1_000_000) as update:  # for a download
        network = load_feature_network(
            name,
            resize=protocol.resize,
            inception=given["inception"],
            on_progress=lambda done, total: update(done, total, ""),
        )
    return network, protocol


def _source(given: dict[str, Any]) -> "tuple[Checkpoint | ImageSet, MadeBy | None]":
    from ddpmbench.evaluate.sample import load_samples

    if given["samples"] is not None:
        return load_samples(given["samples"], on_bad=given["on_bad"], convert=given["convert"])
    return open_checkpoint(given), None


def _references(given: dict[str, Any]) -> "list[ImageSet | ReferenceStatistics]":
    from ddpmbench.evaluate.fid import load_reference

    specs = given["data"]
    if not specs:
        is_shipped = given["ckpt"] == "default" and given["network"] is None
        if given["samples"] is not None or not is_shipped:
            raise InputError("`data`: name the real images to compare the samples with")
        specs = (DEFAULT_DATA,)
    how = {name: given[name] for name in ("num_images", "on_bad", "convert")}
    return [load_reference(spec, **how) for spec in specs]
