"""How a command starts: its checkpoint and images, its notes, and its evaluation."""

import contextlib
import dataclasses
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ddpmbench.cli import options
from ddpmbench.errors import InputError
from ddpmbench.execution.progress import note, warn

if TYPE_CHECKING:
    from ddpmbench.data.images import ImageSet
    from ddpmbench.diffusion.model import Checkpoint
    from ddpmbench.report.stored import PageReport

Result = TypeVar("Result")

DEFAULT_DATA = "fashion-mnist:test"

# ---- messages

_PARAMETER = re.compile(r"`([a-z][a-z0-9_]*)(?:=([^`]*))?`")


def with_options(line: str, command: click.Command | None) -> str:
    """The line, with options of the command in place of parameters in backticks.

    `eta` becomes --eta, `num_images=0` becomes --num-images 0, and `clip=False` --no-clip.
    Parameters without an option stay as they are.
    """
    parameters = {p.name: p for p in command.params} if command is not None else {}

    def spelled(match: re.Match[str]) -> str:
        name, value = match.groups()
        parameter = parameters.get(name)
        if parameter is None:
            return match[0]
        if isinstance(parameter, click.Argument):
            return parameter.human_readable_name if value is None else value
        option = next(o for o in parameter.opts if o.startswith("--"))
        if isinstance(parameter, click.Option) and parameter.is_flag:
            is_off = value == "False" and parameter.secondary_opts
            return parameter.secondary_opts[0] if is_off else option
        return option if value is None else f"{option} {value}"

    return _PARAMETER.sub(spelled, line)


def in_options(line: str) -> str:
    """The line, with options of the current command; see `with_options`."""
    context = click.get_current_context(silent=True)
    return with_options(line, context.command if context is not None else None)


# ---- checkpoint and images


def open_checkpoint(given: dict[str, Any]) -> "Checkpoint":
    """The checkpoint that the options of `options.CHECKPOINT` name, on `timesteps` if given."""
    from ddpmbench.checkpoints.load import load_checkpoint
    from ddpmbench.checkpoints.settings import CheckpointSettings

    settings = {name: given[name] for name in options.SETTINGS}
    checkpoint = load_checkpoint(given["ckpt"], CheckpointSettings(**settings))
    steps = given.get("timesteps")
    if steps == options.CONTINUOUS:
        return checkpoint.in_continuous_time()
    return checkpoint if steps is None else checkpoint.respaced(steps)


def take(given: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Remove the options of these names from those given, and return them."""
    return {name: given.pop(name) for name in names}


def open_inputs(given: dict[str, Any]) -> "tuple[Checkpoint, ImageSet]":
    """The checkpoint and the images that the options of `options.INPUTS` name, which it removes."""
    inputs = take(given, options.INPUTS)
    checkpoint = open_checkpoint(inputs)
    return checkpoint, open_images(checkpoint, inputs["data"], inputs)


def open_images(checkpoint: "Checkpoint", data: str | None, given: dict[str, Any]) -> "ImageSet":
    """Images prepared and labeled according to the options of `options.data_options`.

    Args:
        checkpoint: the model whose classes the labels are.
        data: replaces the option; None for the images of the package.
        given: the options.
    """
    import numpy as np

    from ddpmbench.data.load import load_images

    images = load_images(
        DEFAULT_DATA if data is None else data,
        num_images=given["num_images"],
        class_names=_class_names(given["class_names"]),
        **{name: given[name] for name in options.PREPARATION},
    )
    _check_preparation(checkpoint, images)
    label = given["label"]
    if label is None:
        return images
    if not checkpoint.has_class(label):
        if not checkpoint.num_classes:
            raise InputError(f"`label={label}`: the checkpoint has no classes; leave it out")
        raise InputError(f"`label={label}`: the checkpoint has {checkpoint.classes}")
    labels = np.full(len(images), label, dtype=np.int64)
    return dataclasses.replace(images, labels=labels, classes=())


def _check_preparation(checkpoint: "Checkpoint", images: "ImageSet") -> None:
    """Refuse options that make of the images what the checkpoint does not take."""
    from ddpmbench.diffusion.model import sides_of

    if images.convert is not None and checkpoint.channels not in (None, *images.channels):
        number = checkpoint.channels
        raise InputError(
            f"`convert={images.convert}`: the checkpoint takes images of {number} "
            f"channel{'' if number == 1 else 's'}; leave it out, or choose "
            f"{'gray' if images.convert == 'rgb' else 'rgb'}"
        )
    size = checkpoint.image_size
    if images.padded_from is not None and size is not None and sides_of(size) == images.padded_from:
        height, width = images.padded_from
        raise InputError(
            f"`pad={images.pixels.shape[-1]}`: the checkpoint takes {width}x{height}, which the "
            "images are; leave it out"
        )


def _class_names(given: str | None) -> list[str] | None:
    """The names in a text file, one per line, or in a comma-separated list."""
    if given is None:
        return None
    try:
        is_file = Path(given).is_file()
        names = Path(given).read_text("utf-8").splitlines() if is_file else given.split(",")
    except (OSError, ValueError) as error:
        raise InputError(f"`class_names={given}`: cannot be read ({error})") from error
    return [name.strip() for name in names if name.strip()]


def open_prepared(
    data: str, prepared: dict[str, Any], *, num_images: int | None = None
) -> "ImageSet":
    """Images according to the options of `options.PREPARATION`; their notes are printed."""
    from ddpmbench.data.load import load_images

    images = load_images(data, num_images=num_images, **prepared)
    note(*images.notes)
    if images.skipped_note is not None:
        warn(images.skipped_note)
    return images


# ---- evaluations


@contextlib.contextmanager
def resumable(out: Path) -> Iterator[None]:
    """Within, an interruption names the folder or file that the same command resumes from."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"with --out {shlex.quote(str(out))} to resume") from None


def launch(
    command: str,
    out: Path | None,
    given: dict[str, Any],
    run: "Callable[..., Result]",
    *,
    opened: Callable[[dict[str, Any]], tuple[Any, ...]] = open_inputs,
) -> "Result | None":
    """Start an evaluation, in as many processes as torchrun started.

    Args:
        command: the name of the command.
        out: the run folder; None for a dated one.
        given: the other options, `device` among them.
        run: called with the result of `opened`, and by name with the remaining options, the run
            folder `out` and the `command` line.
        opened: opens the checkpoint and all other inputs, and removes their options.

    Returns:
        The result of `run`; None in a process that does not report.
    """
    from ddpmbench.diffusion.model import Checkpoint
    from ddpmbench.execution.devices import resolve_device
    from ddpmbench.execution.distributed import joined

    with joined() as ranks:

        def inputs_of_process() -> tuple[Any, ...]:
            given["device"] = str(resolve_device(given["device"], ranks.local_rank))
            return opened(given)

        inputs = ranks.first_one(inputs_of_process)
        folder = ranks.once(lambda: out or options.dated_folder(command))
        if ranks.reports and isinstance(inputs[0], Checkpoint):
            note(*inputs[0].notes)
        with resumable(folder):
            result = run(*inputs, **given, out=folder, command=["ddpmbench", *sys.argv[1:]])
    return result if ranks.reports else None


def print_report(printed: str, report: "PageReport") -> None:
    """Print a result, and the paths of its folder and its page."""
    from ddpmbench.evaluate.page import page_of

    click.echo(printed)
    click.echo(f"Run folder: {report.folder}", err=True)
    click.echo(f"Report: {page_of(report)}", err=True)
