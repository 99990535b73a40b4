"""Options that several commands share, each with one meaning and one help text."""

import functools
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from ddpmbench.cli import paths
from ddpmbench.diffusion.process import Prediction, Variance

Command = Callable[..., Any]


def _batch_size(context: click.Context, option: click.Parameter, value: str) -> int | None:
    if value == "auto":
        return None
    if not value.isdigit() or int(value) < 1:
        raise click.BadParameter(f"{value!r} is neither auto nor a number from 1 on")
    return int(value)


def _data_range(
    context: click.Context, option: click.Parameter, value: str | None
) -> tuple[float, float] | None:
    if value is None:
        return None
    try:
        low, high = map(float, value.split(","))
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is not LOW,HIGH, as in -1,1, which hold for all channels; data normalized "
            "by a mean M and a deviation S lie from -M/S to (1 - M)/S (of several channels take "
            "the means of both: the number is then approximate)"
        ) from None
    return low, high


def decorate(options: list[Command]) -> Callable[[Command], Command]:
    """One decorator in the place of several, which appear in their order."""
    return lambda command: functools.reduce(lambda f, option: option(f), reversed(options), command)


ckpt_option = click.option(
    "--ckpt",
    type=paths.text,
    default="default",
    show_default="the checkpoint that comes with ddpmbench",
    help="File, folder or hub id (google/ddpm-cifar10-32).",
)

reading_options = decorate(
    [
        click.option(
            "--model-flags",
            metavar="FLAGS",
            help="For improved-/guided-diffusion files: their own flags in one pair of quotes, "
            'as in your scripts ("--image_size 32 --num_channels 128 ..."), or a preset\'s name.',
        ),
        click.option(
            "--network",
            type=paths.text,
            metavar="FILE.py:NAME",
            help="A network of your own: FILE.py is your own code and is run; its class or "
            "function NAME builds the network, and --ckpt has its weights; without --ckpt the code "
            "loads them. Needs --schedule, --prediction, --variance and --time-input.",
        ),
        click.option(
            "--weights",
            type=click.Choice(["ema", "raw"]),
            help="Of a file that holds both: those averaged over the training, or its last.  "
            "[default: ema where there are any]",
        ),
        click.option(
            "--schedule",
            metavar="SCHEDULE",
            help="The noise schedule, where the file does not say: linear:1000, "
            "linear:T:START:END, cosine:T, cosine:T:OFFSET:POWER, sigmoid:T, "
            "sigmoid:T:START:END:TAU, scaled-linear:T:START:END, sqrt-linear:T:END, "
            "geometric:T:START:END, const:T:BETA, warmup10:T:START:END, warmup50:T:START:END, "
            "sigmoid-betas:T:START:END, cosine-betas:T:START:END, betas:FILE, "
            "alphas_cumprod:FILE, or buffers, the tables beside the weights.",
        ),
        click.option(
            "--prediction",
            type=click.Choice([kind.value for kind in Prediction]),
            help="What the network outputs, where the file does not say or is to be overridden.",
        ),
        click.option(
            "--variance",
            type=click.Choice([kind.value for kind in Variance]),
            help="That of the reverse process, likewise.",
        ),
        click.option(
            "--time-input",
            type=click.Choice(["index", "one-based", "fraction", "rescaled-1000"]),
            help="What the network is given for step t = 1..T, likewise: t - 1 or t, whole "
            "numbers; t / T or (t - 1) 1000 / T, floating-point ones.",
        ),
        click.option(
            "--data-range",
            metavar="LOW,HIGH",
            callback=_data_range,
            help="Lowest and highest value of an image, likewise.  [default: -1,1]",
        ),
        click.option(
            "--levels",
            type=click.IntRange(2, 256),
            metavar="L",
            help="Levels of a pixel, likewise; 8-bit images are reduced to their top bits.  "
            "[default: 256]",
        ),
        click.option(
            "--clip/--no-clip",
            default=None,
            help="Clamp the predicted x_start to the range of the data.  [default: the file's; "
            "else clip]",
        ),
    ]
)
"""What is said of a checkpoint besides its file: the fields of `CheckpointSettings`."""

timesteps_option = click.option(
    "--timesteps",
    type=click.IntRange(min=1),
    metavar="K",
    help="Evaluate the model that visits only K evenly spaced steps.",
)

checkpoint_options = decorate([ckpt_option, reading_options, timesteps_option])

convert_option = click.option(
    "--convert",
    type=click.Choice(["rgb", "gray"]),
    help="rgb: gray images are repeated to RGB, as for a folder of both; gray: RGB becomes its "
    "luma (ITU-R BT.601).  [default: as they are stored]",
)
on_bad_option = click.option(
    "--on-bad",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="What a file that holds no image like the others (for fid: none at all) leads to; skipped "
    "ones count.",
)

data_options = decorate(
    [
        click.option(
            "--data",
            type=paths.text,
            default=None,
            show_default="the images that come with ddpmbench",
            help="NAME:SPLIT (fashion-mnist, mnist, kmnist, cifar10; train, test), a folder of "
            "images, an .npz (arr_0, uint8 NHWC), an .npy or an idx file.",
        ),
        click.option(
            "--num-images",
            type=click.IntRange(min=1),
            metavar="N",
            help="Only the first N images.  [default: all of --data]",
        ),
        click.option(
            "--class",
            "label",
            type=click.IntRange(min=0),
            metavar="N",
            help="Condition every image on class N, in place of the set's labels.",
        ),
        click.option(
            "--class-names",
            metavar="NAMES|FILE",
            help="The class folders of --data in the order of the checkpoint's classes, as in "
            "cat,dog, or a text file with one a line.  [default: sorted]",
        ),
        convert_option,
        click.option(
            "--pad",
            type=click.IntRange(min=1),
            metavar="S",
            help="Pad images with black to S x S, as MNIST's 28 to 32; the bits are then per "
            "dimension of the padded images.",
        ),
        on_bad_option,
    ]
)

CHECKPOINT = (
    *("ckpt", "network", "model_flags", "weights", "schedule", "prediction", "variance", "clip"),
    *("time_input", "data_range", "levels", "timesteps"),
)
"""What the checkpoint's options are called in Python."""
DATA = ("data", "num_images", "label", "class_names", "convert", "pad", "on_bad")
"""What the data's options are called in Python."""
INPUTS = (*CHECKPOINT, *DATA)
"""What the checkpoint's and the data's options are called in Python."""

sampler_options = decorate(
    [
        click.option(
            "--sampler",
            type=click.Choice(["ancestral", "ddim"]),
            default="ancestral",
            show_default=True,
            help="Algorithm 2 with the checkpoint's variance, or the implicit process.",
        ),
        click.option(
            "--eta",
            type=float,
            metavar="ETA",
            help="ddim: noise added, from 0 (none) to 1 (as much as the posterior has).  "
            "[default: 0]",
        ),
        click.option(
            "--added-noise",
            type=click.Choice(["inner", "every-step", "none"]),
            default="inner",
            show_default=True,
            help="ancestral: after which steps noise is added: all but the last, all, none.",
        ),
        click.option(
            "--image-size",
            type=click.IntRange(min=1),
            metavar="S",
            help="Height and width of a sample, where the checkpoint does not say.",
        ),
        click.option(
            "--class",
            "label",
            type=click.IntRange(min=0),
            metavar="N",
            help="The class of all samples.  [default: the classes in turn]",
        ),
    ]
)

reference_options = decorate(
    [
        click.option(
            "--samples",
            type=paths.text,
            metavar="DIR|NPZ",
            help="Samples that there are already, in place of --ckpt: PNG files, an npz, or the "
            "run folder of sample.",
        ),
        click.option(
            "--num-generated",
            type=click.IntRange(min=2),
            default=50_000,
            show_default=True,
            metavar="N",
            help="Samples of the checkpoint. Scores compare only with others of as many.",
        ),
        click.option(
            "--data",
            type=paths.text,
            multiple=True,
            metavar="DATA",
            help="Real images: NAME:SPLIT, a folder, an npz or idx file; or an npz of mu and sigma "
            "(pytorch-fid, clean-fid, ADM). May be given again; the first makes the headline.",
        ),
        click.option(
            "--num-images",
            type=click.IntRange(min=2),
            metavar="N",
            help="Only the first N images of each reference.  [default: all]",
        ),
        click.option(
            "--protocol",
            type=click.Choice(["ddpm", "clean", "adm", "edm"]),
            help="Whose convention: resizing, rounding, splits.  [default: ddpm, the paper's; "
            "clean with a feature network that cannot resize as TensorFlow did]",
        ),
        click.option(
            "--feature-network",
            type=paths.text,
            default="inception",
            show_default=True,
            metavar="NAME|FILE",
            help="inception, efficientnet-lite0 (no download), or a TorchScript file with "
            "Inception's interface. Only Inception's distance is called FID.",
        ),
        click.option(
            "--inception",
            type=paths.path,
            metavar="FILE",
            help="inception-2015-12-05.pt.  [default: $DDPMBENCH_INCEPTION, or downloaded once]",
        ),
        convert_option,
        on_bad_option,
    ]
)

samples_format_option = click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "json", "quiet"]),
    default="table",
    show_default=True,
    help="What goes to standard output; quiet is the path of the samples alone.",
)


def _precision_option(what_follows: str) -> Callable[[Command], Command]:
    return click.option(
        "--precision",
        type=click.Choice(["fp32", "tf32", "bf16", "fp16", "auto"]),
        default="fp32",
        show_default=True,
        help=f"What the network computes in. {what_follows}",
    )


precision_option = _precision_option(
    "Less than strict fp32 is corrected by some rows in both; auto is fp16 on CUDA and fp32 "
    "elsewhere."
)
sampling_precision_option = _precision_option(
    "Less than strict fp32 makes other samples, and nothing corrects what they score; auto is bf16 "
    "on CUDA and fp32 elsewhere."
)

likelihood_options = decorate(
    [
        click.option(
            "--estimator",
            type=click.Choice(["importance", "every-pair"]),
            default="importance",
            show_default=True,
            help="Which network calls are made: a few chosen steps of every image, which give the "
            "same bound with an interval, or every step of every image.",
        ),
        click.option(
            "--half-width",
            type=float,
            metavar="H",
            help="importance: calls are made until the bound is known to +- H bits/dim, 95 %.  "
            "[default: 0.005]",
        ),
        click.option(
            "--max-evaluations",
            type=click.IntRange(min=1),
            metavar="M",
            help="importance: no more network calls than that, however wide the interval is.",
        ),
        click.option(
            "--terms-of",
            type=paths.path,
            metavar="RUN",
            help="importance: the rows of that run folder, so that compare can pair the two.",
        ),
        click.option(
            "--draws",
            type=click.IntRange(min=1),
            metavar="K",
            help="every-pair: noise draws for each image and step; the error of the noise is known "
            "from 2 on.  [default: 2]",
        ),
        click.option(
            "--decoder",
            type=click.Choice(["exact", "tanh"]),
            default="exact",
            show_default=True,
            help="The normal distribution function at t = 1: exact, or the published code's tanh.",
        ),
    ]
)

check_option = click.option(
    "--check/--no-check",
    default=None,
    help="First look, with some hundred network calls on a few images, whether the checkpoint is "
    "read as it was trained.  [default: check before runs of 15,000 calls and more]",
)

device_option = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps."
)


def batch_size_option(what: str) -> Callable[[Command], Command]:
    """`--batch-size`, with what it is of this command."""
    return click.option(
        "--batch-size",
        default="auto",
        show_default=True,
        callback=_batch_size,
        metavar="N|auto",
        help=what,
    )


run_options = decorate(
    [
        click.option(
            "--out",
            type=paths.path,
            metavar="DIR",
            help="Run folder. The same command on an unfinished one goes on with it.  "
            "[default: a new dated folder under runs/]",
        ),
        batch_size_option(
            "Network calls made together; changes a number by float rounding at most."
        ),
        device_option,
        click.option(
            "--seed",
            type=click.IntRange(0, 2**64 - 1),
            default=0,
            help="Of the noise.  [default: 0]",
        ),
    ]
)

format_option = click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "json", "csv", "quiet"]),
    default="table",
    show_default=True,
    help="What goes to standard output; quiet is the number alone.",
)


def dated_folder(command: str) -> Path:
    """A folder under runs/ that does not exist yet, named by the command and the time."""
    stem = f"{command}-{datetime.now():%Y-%m-%d-%H%M%S}"
    candidates = (Path("runs") / (stem + (f"-{n}" if n > 1 else "")) for n in range(1, 1000))
    return next(path for path in candidates if not path.exists())
