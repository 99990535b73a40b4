"""Samples that a run has made already, with the record of how."""

import dataclasses
from pathlib import Path
from typing import Any

from ddpmbench.errors import InputError
from ddpmbench.inputs.images import ImageSet, load_images
from ddpmbench.questions.report import schema_of
from ddpmbench.questions.sample import SCHEMA as SAMPLE
from ddpmbench.report import checks, fidelity
from ddpmbench.runs.finished import SUMMARY, FinishedRun
from ddpmbench.runs.folder import IDENTITY
from ddpmbench.runs.samples import SAMPLES

_KINDS: checks.Kinds = {
    "checkpoint": checks.CHECKPOINT,
    "sampler": checks.SAMPLER,
    "seed": (int,),
}


@dataclasses.dataclass(frozen=True)
class MadeBy:
    """How samples were made.

    Attributes:
        checkpoint: the record of the model.
        sampler: that of how it was sampled.
        seed: of the noise.
        eight_bit: how samples became pixels.
        precision: of the network.
    """

    checkpoint: dict[str, Any]
    sampler: dict[str, Any]
    seed: int
    eight_bit: str
    precision: str


def load_samples(
    path: str | Path, *, on_bad: str = "fail", convert: str | None = None
) -> tuple[ImageSet, MadeBy | None]:
    """Samples of a file or a folder; of a run folder of `sample` or `fid` those that it made.

    Args:
        path: an .npz, a folder of images, or a run folder.
        on_bad: see `load_images`.
        convert: likewise.

    Returns:
        The samples, and how they were made; None where nobody says.

    Raises:
        InputError: they cannot be read, or the run has none, is unfinished, or is damaged.
    """
    path = Path(path)
    schema = schema_of(path) or ""
    if not schema.startswith("ddpmbench.") and not (path / IDENTITY).is_file():
        images = load_images(
            path, on_bad=on_bad, convert=convert, any_size=True, option="--samples"
        )
        return images, None
    has_samples = schema in (SAMPLE, fidelity.SCHEMA) and (path / SAMPLES).exists()
    if schema and not has_samples:
        raise InputError(
            f"--samples {path}: is a run folder without samples ({schema}); name one of sample, "
            "or a file or a folder of images"
        )
    run = FinishedRun.open(path, option="--samples", schema=schema or SAMPLE)
    images = load_images(path / SAMPLES, on_bad=on_bad, option="--samples")
    return images, _made_by(run, images)


def _made_by(run: FinishedRun, images: ImageSet) -> MadeBy:
    of, place = run.summary, run.path / SUMMARY
    checks.check(of, _KINDS, place)
    if of["schema"] == SAMPLE:
        checks.check(of, {"sha256": (str,), "eight_bit": (str,), "precision": (str,)}, place)
        sha256, eight_bit, precision = of["sha256"], of["eight_bit"], of["precision"]
    else:
        fidelity.check_summary(of, place)
        sha256, eight_bit = of["samples"]["sha256"], of["protocol"]["eight_bit"]
        precision = of["compute_precision"]
    if images.sha256 != sha256:
        raise InputError(
            f"--samples {run.path}: {SAMPLES} does not hold the samples of its {SUMMARY}; run its "
            "command again"
        )
    return MadeBy(of["checkpoint"], of["sampler"], of["seed"], eight_bit, precision)
