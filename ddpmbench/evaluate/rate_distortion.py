"""Rate and distortion of progressive lossy decoding, and pictures along the chain."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ddpmbench.data.images import ImageSet
from ddpmbench.data.load import ImageSource, load_images
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.errors import InputError, one_of, path_of
from ddpmbench.evaluate.progress import listening
from ddpmbench.execution.devices import evaluating_checkpoint, resolve_device, strict_float32
from ddpmbench.execution.finished_runs import RATE_DISTORTION
from ddpmbench.execution.store import recomputed
from ddpmbench.execution.stored_images import PICTURES, DamagedPicturesError, Pictures
from ddpmbench.execution.worker import BatchSize, RunListener, RunProgress
from ddpmbench.report.nll import NllReport
from ddpmbench.report.rate_distortion import RateDistortion, curve_summary
from ddpmbench.report.tables import RATE_DISTORTION_COLUMNS
from ddpmbench.report.text import with_data_range
from ddpmbench.samples.progressive import (
    WEIGHTS,
    PicturePass,
    interpolation,
    progressive_decoding,
    progressive_generation,
)
from ddpmbench.user_code import user_errors


def rate_distortion(run: NllReport | str | Path) -> RateDistortion:
    """The rate-distortion curve of progressive lossy decoding, without network evaluations.

    Args:
        run: what `evaluate_nll` returned, or the folder of a finished run.

    Raises:
        InputError: the folder holds no finished run, or is damaged.

    Source: Ho, Jain & Abbeel 2020, section 4.3.
    """
    if isinstance(run, NllReport):
        summary, curve, folder = run.summary, run.rate_distortion, run.folder
    else:
        finished = NllReport.finished(path_of("run", run), option="`run`")
        summary, folder = finished.summary, finished.path
        curve = finished.table(RATE_DISTORTION, RATE_DISTORTION_COLUMNS)
    return RateDistortion(curve_summary(curve, summary), curve, folder)


KINDS = ("none", "decoding", "all")
"""Kinds of pictures."""
NUM_PICTURES = 8
"""Number of images decoded, and of samples; half as many pairs are interpolated."""
NUM_STEPS = 10
"""Number of timesteps shown: the first, and every T / 10."""


def check_pictures(
    checkpoint: Checkpoint, images: ImageSet, *, pictures: str, depth: int | None
) -> None:
    """Refuse pictures that cannot be made.

    Args:
        checkpoint: the model.
        images: the image set.
        pictures: one of `KINDS`.
        depth: the timestep at which images are mixed, or None.

    Raises:
        InputError: one line that names the parameter.
    """
    one_of("pictures", pictures, KINDS)
    if images.pixels.shape[1] not in (1, 3) and pictures != "none":
        raise InputError(
            f"`pictures={pictures}`: images of {images.pixels.shape[1]} channels cannot be shown; "
            "choose none"
        )
    if depth is not None and pictures != "all":
        raise InputError(
            f"`depth={depth}`: applies only to `pictures=all`; remove it or choose all"
        )
    num_timesteps = checkpoint.schedule.num_timesteps
    if depth is not None and not 1 <= depth <= num_timesteps:
        raise InputError(f"`depth={depth}`: choose a timestep from 1 to {num_timesteps}")
    if pictures == "all" and len(images) < 2:
        raise InputError(
            "`pictures=all`: interpolation needs two images; give more, or choose decoding"
        )


def progressive_pictures(
    checkpoint: Checkpoint,
    images: ImageSource,
    report: NllReport,
    *,
    pictures: str = "decoding",
    depth: int | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    listener: RunListener | None = None,
    progress: bool = True,
) -> Pictures:
    """Pictures along the chain, with the noise of a run.

    "decoding" reconstructs the first images after part of the reverse steps; "all" adds samples
    during generation and interpolations between pairs of images. They are stored in `pictures.npz`
    of the run folder, from which `write_report` draws them. Existing ones are not computed again,
    unless the depth of the interpolation differs.

    Args:
        checkpoint: that of the run.
        images: those of the run.
        report: what `evaluate_nll` returned for the run.
        pictures: "none", "decoding" or "all".
        depth: the timestep in 1..T at which images are mixed; None for T / 2.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        batch_size: images in a batch; None for what suits the device.
        listener: receives progress, warnings and notes.
        progress: whether progress, warnings and notes go to standard error where there is no
            listener.

    Returns:
        All pictures of the run.

    Raises:
        InputError: an argument is invalid, the run is of another checkpoint or of other images,
            or its folder cannot be written or holds damaged pictures.

    Source: Ho, Jain & Abbeel 2020, section 4.3 and figures 6 and 8.
    """
    images = load_images(images)
    check_pictures(checkpoint, images, pictures=pictures, depth=depth)
    if batch_size is not None and batch_size < 1:
        raise InputError(f"`batch_size={batch_size}`: give at least 1, or auto")
    _check_run(checkpoint, images, report)
    target = resolve_device(device)
    shape = images.pixels.shape[1:]
    num_timesteps = checkpoint.schedule.num_timesteps
    run_pictures = Pictures()
    amount = "network evaluations more for the pictures"
    out = report.folder
    with listening(
        listener, "pictures", "evaluations", amount, out=out, shown=progress
    ) as listener:
        if report.folder is not None:
            run_pictures = _existing_pictures(report.folder, num_timesteps, listener)
        size = len(images)
        plan = _plan(
            pictures, run_pictures, num_images=size, num_timesteps=num_timesteps, depth=depth
        )
        total, before = sum(part.num_calls for part in plan), 0
        batch = BatchSize(batch_size, device=target, image_shape=shape, warn=listener.warn)
        if total:
            listener.start(total)
        for part in plan:

            def make(rows: int, part: _Part = part, before: int = before) -> Pictures:
                def progress(done: int, _: int) -> None:
                    listener.progress(RunProgress(before + done, total))

                seed = report.summary["seed"]
                return part.make(PicturePass(checkpoint, images, seed, target, rows, progress))

            name = checkpoint.network_name
            with user_errors(name), evaluating_checkpoint(checkpoint), strict_float32():
                run_pictures = run_pictures.with_those_of(batch.attempt(make))
            before += part.num_calls
            if report.folder is not None:
                run_pictures.write(report.folder)
    return run_pictures


def _existing_pictures(folder: Path, num_timesteps: int, listener: RunListener) -> Pictures:
    """Pictures of an earlier session; none if they are damaged."""
    try:
        return Pictures.read(folder, num_timesteps)
    except DamagedPicturesError:
        listener.warn(recomputed([PICTURES]))
        return Pictures()


@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
    num_calls: int
    make: Callable[[PicturePass], Pictures]


def _plan(
    pictures: str, run_pictures: Pictures, *, num_images: int, num_timesteps: int, depth: int | None
) -> list[_Part]:
    """The missing pictures."""
    steps = np.rint(np.arange(NUM_STEPS + 1) * num_timesteps / NUM_STEPS).astype(np.int64)
    t = (num_timesteps + 1 - np.unique(np.maximum(steps, 1))).tolist()
    image = range(min(NUM_PICTURES, num_images))
    pair = [(i, i + 1) for i in image[:-1:2]]
    middle = max(1, num_timesteps // 2) if depth is None else depth
    has_interpolation = (
        run_pictures.interpolation is not None and run_pictures.interpolation.depth == middle
    )

    def decoding(run: PicturePass) -> Pictures:
        return Pictures(decoding=progressive_decoding(run, image, t))

    def generation(run: PicturePass) -> Pictures:
        # The last timestep shows the sample itself.
        return Pictures(generation=progressive_generation(run, NUM_PICTURES, t[:-1] or t))

    def between(run: PicturePass) -> Pictures:
        return Pictures(interpolation=interpolation(run, pair, middle))

    plan = []
    if pictures != "none" and run_pictures.decoding is None:
        plan.append(_Part(len(image) * len(t), decoding))
    if pictures == "all" and run_pictures.generation is None:
        plan.append(_Part(NUM_PICTURES * num_timesteps, generation))
    if pictures == "all" and not has_interpolation:
        plan.append(_Part(len(pair) * len(WEIGHTS) * middle, between))
    return plan


def _check_run(checkpoint: Checkpoint, images: ImageSet, report: NllReport) -> None:
    run, conventions = report.summary, with_data_range(report.summary["conventions"])
    data_range = checkpoint.data_range
    for name, run_value, value in (
        ("checkpoint", run["checkpoint"]["sha256"], checkpoint.sha256),
        ("image set", run["data"]["sha256"], images.sha256),
        ("number of steps", run["num_timesteps"], checkpoint.schedule.num_timesteps),
        ("prediction", conventions["prediction"], checkpoint.prediction),
        ("variance", conventions["variance"], checkpoint.variance),
        ("clip", conventions["clip"], checkpoint.clip),
        ("data range", conventions["data_range"], data_range.interval),
        ("number of levels", conventions["levels"], data_range.levels),
    ):
        if run_value != value:
            raise InputError(f"pictures: the run has another {name}; give the run's own")
