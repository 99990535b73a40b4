"""The check of a checkpoint's reading before samples of it are scored."""

from ddpmbench.errors import InputError
from ddpmbench.inputs.images import ImageSet
from ddpmbench.questions.check import CheckBefore
from ddpmbench.report.check import CheckRecord
from ddpmbench.runs.folder import RunFolder
from ddpmbench.runs.generation import Generation
from ddpmbench.runs.quality import QualityListener, QualityRun


def check_of_samples(
    run: QualityRun,
    wanted: bool | None,
    seed: int,
    told: QualityListener,
    folder: RunFolder | None,
) -> CheckRecord | None:
    """By the first reference whose images the network could have been trained on, if any is.

    Args:
        run: samples a checkpoint, or scores samples that there are.
        wanted: whether it is asked for; None where it is made before long runs.
        seed: of the noise.
        told: who hears of it.
        folder: of the run; None if it is kept in memory.

    Returns:
        What was found; None if nothing was checked.
    """
    if not isinstance(run.source, Generation):
        return None
    checkpoint = run.source.checkpoint
    check = CheckBefore(
        wanted,
        run.num_generated * checkpoint.schedule.num_timesteps,
        seed=seed,
        batch_size=run.batch_size,
        note=told.note,
        warn=told.warn,
    )
    for reference in run.references:
        if isinstance(reference, ImageSet) and _is_of_its_kind(reference, run.source):
            return check.made(
                checkpoint, reference, device=run.device, ranks=run.ranks, folder=folder
            )
    if wanted:
        told.note("--check: no --data has images such as the checkpoint makes; left out")
    return None


def _is_of_its_kind(reference: ImageSet, source: Generation) -> bool:
    classes = source.checkpoint.num_classes
    if classes:
        try:
            reference.check_classes(classes, null_class=source.checkpoint.null_class)
        except InputError:
            return False
    return reference.shape == source.shape
