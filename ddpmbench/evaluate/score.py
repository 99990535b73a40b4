"""A variational bound for every image, with its standard error."""

import dataclasses
import hashlib
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpmbench.checksums import reading
from ddpmbench.data.images import ImageSet
from ddpmbench.data.load import ImageSource, load_images
from ddpmbench.diffusion.data_range import DataRange
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.errors import InputError, one_of, path_of, whole_number
from ddpmbench.evaluate.evaluation import (
    Evaluation,
    check_arguments,
    check_images,
    computed_in,
    labels_sha256,
    note_images,
)
from ddpmbench.evaluate.progress import reported_session
from ddpmbench.execution.engine import Engine
from ddpmbench.execution.finished_runs import (
    DENSITY,
    PILOT,
    SUMMARY,
    TERMS,
    density_frame,
)
from ddpmbench.execution.folder import RunFolder
from ddpmbench.execution.importance import pilot_density
from ddpmbench.execution.store import num_missing
from ddpmbench.execution.stored_images import Extremes
from ddpmbench.execution.terms import TermsRun, checked, read_terms
from ddpmbench.execution.worker import RunListener
from ddpmbench.likelihood.decoders import DECODERS
from ddpmbench.likelihood.designs import PilotDesign
from ddpmbench.likelihood.image_scores import (
    LEAST_EVALUATIONS,
    ImageScores,
    PerImageDesign,
    estimate_image_scores,
    nearest_distance,
    num_copies,
)
from ddpmbench.likelihood.regression import code_length, portions
from ddpmbench.report.score import (
    EXTREMES,
    Scored,
    ScoreReport,
    comparison_record,
    per_image_frame,
    score_warnings,
    set_record,
)
from ddpmbench.unet.timed_unet import Precision
from ddpmbench.user_code import user_errors

_STORES = (TERMS, f"{TERMS}_of_second")


def score_images(
    checkpoint: Checkpoint,
    images: ImageSource,
    second: "ImageSource | None" = None,
    *,
    evaluations_per_image: int = 64,
    terms_of: str | Path | None = None,
    decoder: str = "exact",
    seed: int = 0,
    device: str = "auto",
    batch_size: int | None = None,
    check: bool | None = None,
    out: str | Path | None = None,
    command: list[str] | None = None,
    listener: RunListener | None = None,
    progress: bool = True,
) -> ScoreReport:
    """A bound for every image with its standard error, in bits per dimension.

    Every image has its own stratified sample of the timesteps (`PerImageDesign`). A score depends
    on the checkpoint, the image and its position in the set, the seed, the number of evaluations
    and the proposal density. The density comes from a pilot on a few images of the first set. It is
    the only way in which other images affect a score; it is recorded in `proposal.csv`, and shared
    by the second set.

    With a second set, the summary has the difference of the means (second minus first) with
    Welch's test, and the area under the ROC curve for telling the second from the first: by bits
    per dimension; by bits minus the code length, since raw bits rank simple images as likely; and,
    without the model, by the distance to the nearest other image of the first set.

    Where the model was trained on the first set, the difference is the generalization gap: above 0
    if the model has partly memorized its training images. Then the nearest images
    (`nearest_distance`) should not separate the sets, or the sets differ. The first set counts as
    trained on if the checkpoint's record of its training names it, or, without a record, if it is
    the split "train". If both sets are named, the second must be the split "test" of the same data.

    Args:
        checkpoint: what `load_checkpoint` returns.
        images: what `load_images` returns or takes.
        second: likewise; images of the same shape to compare with the first.
        evaluations_per_image: network evaluations of each image, at least 4.
        terms_of: the folder of a run of `score` whose proposal density is used in place of a
            pilot's.
        decoder: "exact" normal distribution function, or its approximation by "tanh".
        seed: seed of the noise and the timesteps, 0 <= seed < 2^64.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps"; the network computes in strict float32.
        batch_size: network evaluations in a batch, None for what suits the device. Another one
            changes a number by float rounding.
        check: whether a sanity check evaluates the checkpoint under other parameterizations
            first, which does not count towards the run; None where the run is long.
        out: the run folder; one that holds the same run unfinished is resumed. None keeps the run
            in memory.
        command: the command line, for the record.
        listener: called as the run proceeds.
        progress: whether progress, warnings and notes go to standard error where there is no
            listener.

    Raises:
        InputError: an argument, the images or the folder is unsuitable.
        ProcessLostError: another process of the run has stopped.

    Source: Nalisnick et al. 2019 for simple images, Serra et al. 2020 for the correction by a code
    length.
    """
    seed, batch_size = check_arguments(checkpoint, listener, seed, batch_size)
    one_of("decoder", decoder, DECODERS)
    evaluations = whole_number("evaluations_per_image", evaluations_per_image, LEAST_EVALUATIONS)
    sets = [load_images(source) for source in ([images] if second is None else [images, second])]
    _check_sets(checkpoint, sets)
    density = None if terms_of is None else _density_of(path_of("terms_of", terms_of), checkpoint)
    with reported_session("score", device, out, command, listener, shown=progress) as (
        session,
        reporter,
    ):
        evaluation = Evaluation(
            checkpoint, sets[0], session, reporter, seed, batch_size, decoder
        ).checked()
        checkpoint = evaluation.checkpoint
        identity = {
            "schema": ScoreReport.SCHEMA,
            "data": [image_set.sha256 for image_set in sets],
            "labels_sha256": [labels_sha256(checkpoint, image_set) for image_set in sets],
            "evaluations_per_image": evaluations,
            "terms_of": None if density is None else hashlib.sha256(density.tobytes()).hexdigest(),
            **evaluation.model_identity,
        }
        folder = evaluation.folder(identity, check=check)
        for image_set in sets:
            note_images(checkpoint, image_set, reporter)
        calls = evaluations * sum(map(len, sets))
        checked = evaluation.sanity_check(check, calls, folder)
        engine = evaluation.engine(evaluation.use(calls), Precision.FP32)
        result = _compute(evaluation, engine, sets, density, evaluations)
        run_fields = {
            "num_timesteps": checkpoint.schedule.num_timesteps,
            "evaluations_per_image": evaluations,
            "pilot_evaluations": result.pilot_evaluations,
            "num_evaluations": calls + result.pilot_evaluations,
            **{name: of for name, of in evaluation.record.items() if name != "data"},
            **result.computed_in,
            "check": checked,
        }
        lengths, nearest, copies = session.ranks.once(
            partial(_pixel_statistics, sets, checkpoint.data_range)
        )
        scored = list(map(Scored, sets, result.scores, lengths, nearest))
        report = _report(checkpoint, scored, copies, run_fields, out)
        for line in score_warnings(report.summary):
            reporter.warn(line)
        evaluation.write(
            folder,
            report,
            identity,
            engine=engine,
            more=partial(_write_files, scored, result.density, checkpoint.data_range),
        )
        return report


@dataclasses.dataclass(frozen=True, eq=False)
class _Result:
    """The scores of each set, the proposal density, and the cost."""

    scores: list[ImageScores]
    density: NDArray[np.float64]
    pilot_evaluations: int
    computed_in: dict[str, Any]


def _compute(
    evaluation: Evaluation,
    engine: Engine,
    sets: list[ImageSet],
    density: NDArray[np.float64] | None,
    evaluations: int,
) -> _Result:
    """Evaluate the missing terms, and reduce all terms to scores."""
    checkpoint, session, seed = evaluation.checkpoint, evaluation.session, evaluation.seed
    worker = evaluation.worker()
    runs = [TermsRun.of(evaluation.terms_pass(image_set), engine, worker) for image_set in sets]
    num_timesteps = checkpoint.schedule.num_timesteps
    pilot = PilotDesign(len(sets[0]), num_timesteps, seed)
    pilot_evaluations = len(pilot) if density is None else 0
    lengths = [evaluations * len(image_set) for image_set in sets]
    pilot_store, *stores = map(session.store, (PILOT, *_STORES[: len(sets)]))
    stored = [(pilot_store, pilot_evaluations), *zip(stores, lengths, strict=True)]
    evaluation.reporter.start(sum(starmap(num_missing, stored)))
    with user_errors(checkpoint.network_name), engine.running():
        if density is None:
            runs[0].compute(pilot, pilot_store, after=sum(lengths))
            density = session.ranks.once(partial(pilot_density, pilot, pilot_store))
        designs = [
            PerImageDesign(len(image_set), num_timesteps, density, seed, evaluations)
            for image_set in sets
        ]
        before, after = pilot_evaluations, sum(lengths)
        for run, design, store in zip(runs, designs, stores, strict=True):
            after -= len(design)
            run.compute(design, store, before=before, after=after)
            before += len(design)

    def reduce() -> _Result:
        scores = []
        for run, design, store in zip(runs, designs, stores, strict=True):
            tables = checked(read_terms(store, len(design), ("nats",)), design)
            scores.append(estimate_image_scores(design, run.prior(), tables))
        return _Result(scores, density, pilot_evaluations, computed_in(stored, engine))

    return session.ranks.once(reduce)


def _write_files(
    scored: list[Scored], density: NDArray[np.float64], data_range: DataRange, folder: RunFolder
) -> None:
    folder.write_frame(DENSITY, density_frame(density))
    for name, one in zip(EXTREMES, scored, strict=False):
        extremes = Extremes.of(one.scores.total, one.images.pixels)
        with folder.replacing(name) as temporary:
            extremes.shown(data_range).write(temporary)


def _pixel_statistics(
    sets: list[ImageSet], data_range: DataRange
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64] | None], int]:
    """Quantities without a model: code lengths, nearest distances, and images of B in A."""

    def code_lengths(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        parts = [code_length(data_range.reduced(pixels[part])) for part in portions(pixels)]
        return np.concatenate(parts)

    lengths = [code_lengths(image_set.pixels) for image_set in sets]
    if len(sets) < 2:
        return lengths, [None], 0
    first, second = (image_set.pixels for image_set in sets)
    nearest = [nearest_distance(first, first, leave_one_out=True), nearest_distance(second, first)]
    return lengths, [*nearest], num_copies(second, first)


def _report(
    checkpoint: Checkpoint,
    scored: list[Scored],
    copies: int,
    run_fields: dict[str, Any],
    out: str | Path | None,
) -> ScoreReport:
    per_image, records, comparison = per_image_frame(scored), list(map(set_record, scored)), None
    if len(scored) > 1:
        is_gap = _is_gap(checkpoint, *(one.images for one in scored))
        comparison = comparison_record(per_image, is_gap=is_gap, copies=copies)
    summary = {
        "schema": ScoreReport.SCHEMA,
        "bits_per_dim": records[0]["bits_per_dim"],
        "sets": records,
        "comparison": comparison,
        **run_fields,
    }
    return ScoreReport(summary, per_image, None if out is None else Path(out))


def _is_gap(checkpoint: Checkpoint, first: ImageSet, second: ImageSet) -> bool:
    """Whether the model was trained on the first set, and the second is its test set."""
    data = (checkpoint.training or {}).get("data")
    if isinstance(data, dict):
        name = (data.get("source"), data.get("split"))
        trained = first.sha256 == data.get("sha256") or (first.source, first.split) == name
    else:
        trained = first.split == "train"
    are_named = first.split is not None and second.split is not None
    is_other = are_named and (second.source != first.source or second.split == "train")
    return trained and not is_other and second.sha256 != first.sha256


def _check_sets(checkpoint: Checkpoint, sets: list[ImageSet]) -> None:
    if checkpoint.schedule.is_continuous:
        raise InputError(
            "`timesteps=continuous`: scores are of the model's timesteps; give the checkpoint as "
            "it was trained"
        )
    if checkpoint.schedule.num_timesteps < 2:
        raise InputError("`timesteps=1`: too few for scores; take at least 2")
    for image_set in sets:
        check_images(checkpoint, image_set)
    first, last = sets[0], sets[-1]
    if first.shape != last.shape:
        raise InputError(
            f"{last.name}: images are {last.shape_words}, but those of {first.name} are "
            f"{first.shape_words}; scores compare at one size only"
        )


def _density_of(path: Path, checkpoint: Checkpoint) -> NDArray[np.float64]:
    other = ScoreReport.finished(path, option="`terms_of`")
    with reading(path / SUMMARY):
        theirs = other.summary["num_timesteps"]
    ours = checkpoint.schedule.num_timesteps
    if theirs != ours:
        raise InputError(
            f"`timesteps`: the proposal of {path} is for {theirs}, this run is for {ours}; make "
            "them alike, or leave out `terms_of`"
        )
    return other.density()
