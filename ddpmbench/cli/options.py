"""Options that several commands share, each with one meaning and one help text."""

import functools
import unicodedata
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ddpmbench.diffusion.parameterization import Prediction, TimeInput, Variance
from ddpmbench.errors import LARGEST_SEED, escaped
from ddpmbench.files import LONGEST_NAME

Command = Callable[..., Any]
Option = Callable[[Command], Command]

_LONGEST_PATH = 4095  # bytes; that of Linux


def text(value: str) -> str:
    """The type of an option that takes a path or a name, which stays as given.

    Raises:
        click.BadParameter: it can be neither; an empty one would be the current folder.
    """
    if not value.strip():
        raise click.BadParameter("is empty; name a file or folder, or leave it out")
    if any(unicodedata.category(letter) == "Cc" for letter in value):
        raise click.BadParameter(f"{escaped(value)} holds a control character; rename it")
    longest = max(len(part.encode(errors="surrogateescape")) for part in value.split("/"))
    if longest > LONGEST_NAME:
        raise click.BadParameter(
            f"has a name of {longest:,} bytes, and a file system takes {LONGEST_NAME}; name it "
            "more briefly"
        )
    if len(value) > _LONGEST_PATH:
        raise click.BadParameter(f"has {len(value):,} characters; name it more briefly")
    return value


def path(value: str | Path) -> Path:
    """The type of an option that takes a path.

    Raises:
        click.BadParameter: it cannot be a path; see `text`.
    """
    return Path(text(str(value)))


def decorate(*options: Option) -> Option:
    """One decorator for several options; help lists them in this order."""
    return lambda command: functools.reduce(lambda f, option: option(f), reversed(options), command)


def _names(options: Option) -> tuple[str, ...]:
    """Python names of options."""
    return tuple(option.name or "" for option in click.command()(options(lambda: None)).params)


def choice(name: str, choices: Sequence[str], text: str, default: str | None = None) -> Option:
    """An option with named values."""
    shows = default is not None
    kind = click.Choice(choices)
    return click.option(name, type=kind, default=default, show_default=shows, help=text)


class Whole(click.IntRange):
    """A whole number within limits, by the name that messages give it."""

    name = "whole number"


class Real(click.FloatRange):
    """A number within limits."""

    name = "number"


def count(
    *names: str,
    text: str,
    metavar: str = "N",
    limits: tuple[int, int | None] = (1, None),
    default: int | None = None,
) -> Option:
    """An option that takes a whole number within limits."""
    shows = default is not None
    kind = Whole(*limits)
    return click.option(
        *names, type=kind, metavar=metavar, default=default, show_default=shows, help=text
    )


def output_format(text: str, *choices: str) -> Option:
    """`--format`, as `output_format`; "table" is the default."""
    return click.option(
        "--format",
        "output_format",
        type=click.Choice(choices),
        default="table",
        show_default=True,
        help=text,
    )


def path_option(
    text: str, name: str = "--out", metavar: str = "DIR", *, required: bool = False
) -> Option:
    """An option that takes a path."""
    return click.option(name, type=path, metavar=metavar, required=required, help=text)


def _batch_size(value: str) -> int | None:
    if value == "auto":
        return None
    if not value.isdigit() or int(value) < 1:
        raise click.BadParameter(f"{value!r} is neither auto nor a number from 1 on")
    return int(value)


def batch_size(text: str) -> Option:
    """`--batch-size`: a number, or None for auto."""
    return click.option(
        "--batch-size",
        default="auto",
        show_default=True,
        type=_batch_size,
        metavar="N|auto",
        help=text,
    )


def _seed(value: str) -> int:
    if not value.isdecimal() or int(value) > LARGEST_SEED:
        raise click.BadParameter(f"{value!r} is not a whole number from 0 to 2^64 - 1")
    return int(value)


def seed_option(text: str) -> Option:
    """`--seed`."""
    return click.option(
        "--seed", type=_seed, metavar="N", default="0", show_default=True, help=text
    )


def _data_range(value: str) -> tuple[float, float]:
    try:
        low, high = map(float, value.split(","))
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is not LOW,HIGH, as in -1,1, which hold for all channels; data normalized "
            "by a mean M and a deviation S lie from -M/S to (1 - M)/S (of several channels take "
            "the means of both: the number is then approximate)"
        ) from None
    return low, high


ckpt_option = click.option(
    "--ckpt",
    type=text,
    metavar="CKPT",
    default="default",
    show_default="the checkpoint that comes with ddpmbench",
    help="Checkpoint: a file, a folder or a hub id (google/ddpm-cifar10-32).",
)

reading_options = decorate(
    click.option(
        "--model-flags",
        metavar="FLAGS",
        help="For improved-/guided-diffusion files: the flags of your training script in one pair "
        'of quotes ("--image_size 32 --num_channels 128 ..."), or the name of a preset; for '
        "score_sde files the name of the configuration (vp/ddpm/cifar10).",
    ),
    click.option(
        "--network",
        type=text,
        metavar="FILE.py:NAME",
        help="Your own network. FILE.py is your code and is run; its class or function NAME builds "
        "the network, and --ckpt holds the weights. Without --ckpt the code loads them. Needs "
        "--schedule, --prediction, --variance and --time-input; for samples the network has an "
        "attribute image_channels.",
    ),
    choice(
        "--weights",
        ["ema", "raw"],
        "Which weights of a file that holds both: their moving average (ema) or the last ones "
        "(raw).  [default: ema where there is one]",
    ),
    click.option(
        "--schedule",
        metavar="SCHEDULE",
        help="Noise schedule; overrides the file: linear:1000, linear:T:START:END, cosine:T, "
        "cosine:T:OFFSET:POWER, sigmoid:T, sigmoid:T:START:END:TAU, scaled-linear:T:START:END, "
        "sqrt-linear:T:END, geometric:T:START:END, const:T:BETA, warmup10:T:START:END, "
        "warmup50:T:START:END, sigmoid-betas:T:START:END, cosine-betas:T:START:END, betas:FILE, "
        "alphas_cumprod:FILE, or buffers, the tables stored beside the weights.",
    ),
    click.option(
        "--process",
        metavar="PROCESS",
        help="Family of the forward process x_t = a x_start + s eps; overrides the file: vp, "
        "sub-vp, ve or flow at the noise levels of --schedule; or with levels of its own, "
        "ve:SIGMA_MIN:SIGMA_MAX:LEVELS or flow:T.  [default: the file's; else vp]",
    ),
    choice(
        "--prediction",
        [kind.value for kind in Prediction],
        "What the network predicts; overrides the file.",
    ),
    choice(
        "--variance",
        [kind.value for kind in Variance],
        "Variance of the reverse process; overrides the file.",
    ),
    choice(
        "--time-input",
        [kind.value for kind in TimeInput],
        "How the network receives timestep t = 1..T; overrides the file. By its number: t - 1 "
        "(index), t (one-based), T - t (reversed-index), t / T (fraction) or (t - 1) 1000 / T "
        "(rescaled-1000). By the signal a and the noise s in x_t: s (sigma), log s (log-sigma), "
        "log s / 4 (quarter-log-sigma) or log a^2 / s^2 (log-snr).",
    ),
    click.option(
        "--data-range",
        metavar="LOW,HIGH",
        type=_data_range,
        help="Lowest and highest input value of the network; overrides the file.  [default: -1,1]",
    ),
    count(
        "--levels",
        metavar="L",
        limits=(2, 256),
        text="Number of levels of a pixel; 8-bit images keep their top bits.  [default: 256]",
    ),
    click.option(
        "--clip/--no-clip",
        default=None,
        help="Clamp the predicted x_start to the data range.  [default: the file's; else clip]",
    ),
)
"""The fields of `CheckpointSettings`, which complete or override a checkpoint's file."""

timesteps_option = count(
    "--timesteps",
    metavar="K",
    text="Visit K evenly spaced timesteps: fewer than the model was trained on, or more, which lie "
    "between those.",
)


CONTINUOUS = "continuous"
"""The value of `--timesteps` for continuous time."""

checkpoint_options = decorate(ckpt_option, reading_options, timesteps_option)

convert_option = choice(
    "--convert",
    ["rgb", "gray"],
    "Convert images: rgb repeats gray to RGB; gray takes the luma of RGB (ITU-R BT.601).  "
    "[default: as stored]",
)
on_bad_option = choice(
    "--on-bad",
    ["fail", "skip"],
    "Fail at a file that is no image or differs in shape from the others, or skip and count it. "
    "fid takes images of any shape.",
    default="fail",
)
preparation_options = decorate(
    convert_option,
    count(
        "--pad",
        metavar="S",
        text="Pad images with black to S x S, such as MNIST's 28 to 32. Bits are then per "
        "dimension of the padded images.",
    ),
    on_bad_option,
)

_DATA_TEXT = (
    "Images: NAME:SPLIT (fashion-mnist, mnist, kmnist, cifar10; train, test), a folder, an .npz "
    "(arr_0, uint8 NHWC), an .npy or an idx file."
)
_SHIPPED_IMAGES = "the images that come with ddpmbench"


def _images_options(data: Option) -> Option:
    return decorate(
        data,
        count("--num-images", text="Use only the first N images.  [default: all of --data]"),
        count(
            "--class",
            "label",
            limits=(0, None),
            text="Condition every image on class N instead of its own label.",
        ),
        click.option(
            "--class-names",
            metavar="NAMES|FILE",
            help="Class folders of --data in the order of the checkpoint's classes: cat,dog, or a "
            "text file with one name per line.  [default: sorted]",
        ),
        preparation_options,
    )


data_options = _images_options(
    click.option("--data", type=text, metavar="DATA", show_default=_SHIPPED_IMAGES, help=_DATA_TEXT)
)
two_sets_options = _images_options(
    click.option(
        "--data",
        type=text,
        multiple=True,
        metavar="DATA",
        show_default=_SHIPPED_IMAGES,
        help=f"{_DATA_TEXT} Repeat it to compare a second set with the first.",
    )
)

SETTINGS = _names(reading_options)
"""Python names of the fields of `CheckpointSettings`."""
CHECKPOINT = _names(checkpoint_options)
PREPARATION = _names(preparation_options)
INPUTS = (*CHECKPOINT, *_names(data_options))


def precision(text: str) -> Option:
    """`--precision`, with the effect of low precision on the command's numbers."""
    choices = ["fp32", "tf32", "bf16", "fp16", "auto"]
    return choice("--precision", choices, f"Precision of the network. {text}", default="fp32")


decoder_option = choice(
    "--decoder",
    ["exact", "tanh"],
    "Normal distribution function at t = 1: exact, or the tanh approximation of the published "
    "code.",
    default="exact",
)

check_option = click.option(
    "--check/--no-check",
    default=None,
    help="Begin with the sanity check, which tests on a few images, with a few hundred network "
    "evaluations, whether the checkpoint's parameterization fits its weights.  [default: before "
    "runs of 10,000 evaluations or more]",
)

device_option = click.option(
    "--device",
    metavar="DEVICE",
    default="auto",
    show_default=True,
    help="Where the network runs: auto, cpu, cuda, cuda:N or mps.",
)

run_options = decorate(
    path_option(
        "Run folder. The same command on an unfinished one resumes it.  [default: a new dated "
        "folder under runs/]"
    ),
    batch_size("Network evaluations in a batch. It changes numbers by float rounding at most."),
    device_option,
    seed_option("Seed of the noise."),
)

format_option = output_format(
    "What to print; quiet is the number alone.", "table", "json", "csv", "quiet"
)


def refuse_given(is_refused: Callable[[str], bool], reason: str) -> None:
    """Refuse options of the current command line.

    Args:
        is_refused: whether to refuse the option with this Python name.
        reason: the problem, and the remedy.
    """
    context = click.get_current_context()
    for option in context.command.params:
        name = option.name or ""
        is_given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if is_given and is_refused(name):
            raise click.UsageError(f"{option.opts[-1]}: {reason}")


def dated_folder(command: str) -> Path:
    """A folder under runs/ that does not exist yet, named after the command and the time."""
    stem = f"{command}-{datetime.now():%Y-%m-%d-%H%M%S}"
    candidates = (Path("runs") / (stem + (f"-{n}" if n > 1 else "")) for n in range(1, 1000))
    return next(path for path in candidates if not path.exists())
