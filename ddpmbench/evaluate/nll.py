"""How well does a model predict images? The variational bound."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from ddpmbench.data.images import ImageSet, ImageSource, load_images
from ddpmbench.diffusion.data_range import DataRange
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import LARGEST_SEED, InputError, instance_of, one_of, path_of, whole_number
from ddpmbench.evaluate.answered import Asked, answer_in, half_width_in, note_of_wider
from ddpmbench.evaluate.inputs import (
    check_images,
    conventions_of,
    labels_sha256,
    model_identity,
    note_images,
    uses_class_folders,
)
from ddpmbench.evaluate.progress import listening
from ddpmbench.execution.continuous import ContinuousRun, why_left_out
from ddpmbench.execution.devices import resolve_precision
from ddpmbench.execution.engine import Engine
from ddpmbench.execution.engine_choice import NetworkUse, at_once, settled_engine
from ddpmbench.execution.estimators import Estimator, EveryPair, LikelihoodRun
from ddpmbench.execution.finished import (
    CONTINUOUS_TABLE,
    DENSITY,
    PREDICTIONS,
    RATE_DISTORTION,
    TERMS,
    density_frame,
    write_predictions,
)
from ddpmbench.execution.folder import RunFolder
from ddpmbench.execution.importance import Importance
from ddpmbench.execution.precision_choice import Candidate, settled_precision
from ddpmbench.execution.precision_correction import CorrectionRun
from ddpmbench.execution.session import session
from ddpmbench.execution.terms import (
    EXTREMES,
    TERMS_TABLE,
    Extremes,
    Stores,
    TermsRun,
    num_written,
    write_terms,
)
from ddpmbench.execution.worker import RunListener
from ddpmbench.likelihood.continuous import (
    NUM_CONTINUOUS_TERMS,
    ContinuousDesign,
    terms_pass_of,
)
from ddpmbench.likelihood.decoders import DECODERS
from ddpmbench.likelihood.estimator import SampledBound
from ddpmbench.report import tables
from ddpmbench.report.card import Card, Draw, Shown
from ddpmbench.report.conventions import conventions_frame, sub_schedules_frame
from ddpmbench.report.schema import Comparability
from ddpmbench.report.tables import in_bits
from ddpmbench.report.text import raw_pixels_warning
from ddpmbench.sanity_check.run import PreliminaryCheck, recorded_check
from ddpmbench.unet.precision import Precision
from ddpmbench.user_code import user_errors


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class NllReport(Shown):
    """The variational bound of a checkpoint on images.

    Attributes:
        summary: the object of `summary.json`.
        per_timestep: one row a step; see `report.tables.per_timestep`.
        rate_distortion: one row a step; see `report.tables.rate_distortion`.
        conventions: one row a published convention; see `report.conventions`.
        sub_schedules: one row a model that visits some of the steps; see there.
        per_image: one row an image; see `report.tables.per_image`.
        folder: the run folder; None if the run was kept in memory.
        continuous: one row a term that was evaluated in continuous time, too; see
            `report.tables.continuous_frame`. None where there is none.
    """

    summary: dict[str, Any]
    per_timestep: pd.DataFrame
    rate_distortion: pd.DataFrame
    conventions: pd.DataFrame
    sub_schedules: pd.DataFrame
    per_image: pd.DataFrame
    folder: Path | None
    continuous: pd.DataFrame | None = None

    def _card(self) -> Card:
        from ddpmbench.report.nll_text import bound_card

        return bound_card(self.summary, self.folder)

    def _figures(self) -> Mapping[str, Draw]:
        from ddpmbench.report.contents import RunContents
        from ddpmbench.report.nll_page import run_figures

        return run_figures(RunContents(self))


def evaluate_nll(
    checkpoint: Checkpoint,
    images: ImageSource,
    *,
    estimator: str = "importance",
    half_width: float | None = None,
    max_evaluations: int | None = None,
    terms_of: str | Path | None = None,
    draws: int | None = None,
    decoder: str = "exact",
    seed: int = 0,
    device: str = "auto",
    precision: str = "fp32",
    batch_size: int | None = None,
    check: bool | None = None,
    continuous: bool | None = None,
    out: str | Path | None = None,
    command: list[str] | None = None,
    listener: RunListener | None = None,
    progress: bool = True,
) -> NllReport:
    """The variational bound in bits per dimension, its three parts and two intervals.

    In processes that torchrun started, each computes a share of the rows, and all return the
    report.

    Args:
        checkpoint: what `load_checkpoint` returns; its conventions are those of the bound.
        images: what `load_images` returns or takes: a name, a path, a uint8 array.
        estimator: "importance" computes a few steps of a sample of the images, so that the bound
            is unbiased and its interval narrow; "every-pair" every step of every image.
        half_width: importance: of the 95 % interval for these images, bits per dimension; rows
            are added until it is that narrow. None for 0.005, or with `terms_of` for that of its
            run.
        max_evaluations: importance: network calls not to be exceeded, however wide the
            interval is then.
        terms_of: importance: the folder of a run on the same images, whose rows are computed;
            `compare` takes runs with the same rows.
        draws: every-pair: noise draws a pair; with one, the interval for this image set cannot
            be known. None for 2.
        decoder: "exact" or "tanh" for the distribution function of the decoder.
        seed: of the noise and the choice of rows, 0 <= seed < 2^64.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        precision: what the network computes in: "fp32" strictly, "tf32", "bf16", "fp16", or
            "auto": that of the run in the folder, if there is one, else fp16 on CUDA, and on a
            CPU bf16 where a short test before a long run finds that to be faster by a third;
            otherwise fp32. In low precision some rows are computed in strict float32 too, and
            correct the bound, its parts and its intervals; the tables are as the rows have them.
        batch_size: rows a network call, None for what suits the device. Another one
            changes a number by float rounding.
        check: whether a sanity check evaluates the checkpoint under other parameterizations
            first, which does not count towards the run; None where the run is long.
        continuous: whether the bound in continuous time is estimated, too, from its difference
            for some hundred terms, which do not count towards the run; None where the run takes
            10,000 network evaluations or more.
        out: the run folder; one that holds the same run unfinished, or finished with a wider
            interval, is resumed. None keeps the run in memory.
        command: the command line, for the record.
        listener: called as the run proceeds.
        progress: whether progress, warnings and notes go to standard error where there is no
            listener.

    Raises:
        InputError: an argument, the images or the folder do not fit.
        ProcessLostError: another process of the run has stopped.

    Source: Ho, Jain & Abbeel 2020, eq. 5.
    """
    instance_of("checkpoint", checkpoint, Checkpoint, "see load_checkpoint")
    if listener is not None:
        instance_of("listener", listener, RunListener)
    one_of("decoder", decoder, DECODERS)
    seed = whole_number("seed", seed, 0, LARGEST_SEED)
    batch_size = None if batch_size is None else whole_number("batch_size", batch_size, 1)
    images = load_images(images)
    check_images(checkpoint, images)
    chosen = _estimator(
        estimator,
        half_width=half_width,
        max_evaluations=max_evaluations,
        terms_of=None if terms_of is None else path_of("terms_of", terms_of),
        draws=draws,
    )
    with (
        session(device, out, command) as run_session,
        listening(
            listener if run_session.ranks.reports else None,
            "nll",
            "evaluations",
            shown=progress and run_session.ranks.reports,
        ) as reporter,
    ):
        ranks, target = run_session.ranks, run_session.device
        check_in = partial(chosen.check, checkpoint, images, seed=seed)
        check_in(precision=resolve_precision(precision, target))
        conventions = conventions_of(checkpoint, images, decoder=decoder)
        shape = images.pixels.shape[1:]
        checkpoint = run_session.checked(checkpoint, shape)
        calls = chosen.expected_evaluations(len(images), checkpoint.schedule.num_timesteps)
        use = NetworkUse(shape, calls // ranks.count, batch_size)
        terms_pass = terms_pass_of(checkpoint, images, seed=seed, decoder=decoder, device=target)
        computed_in = settled_precision(
            precision,
            Candidate(
                terms_pass,
                use,
                chosen.correction_design(terms_pass),
                chosen.settings.get("half_width_goal"),
                lambda other: check_in(precision=other),
            ),
            run_session,
            note=reporter.note,
        )
        identity = {
            "schema": tables.SCHEMA,
            "data": images.sha256,
            "labels_sha256": labels_sha256(checkpoint, images),
            "num_images": len(images),
            **chosen.identity,
            "precision": str(computed_in),
            **model_identity(
                checkpoint, conventions, seed=seed, tables=run_session.dtype_of_tables(checkpoint)
            ),
        }
        run_session.agree(identity, **chosen.settings, continuous=continuous)
        before = PreliminaryCheck(
            check, calls, seed=seed, batch_size=batch_size, note=reporter.note, warn=reporter.warn
        )
        absent = ranks.once(
            lambda: why_left_out(checkpoint, shape, continuous, calls, device=target)
        )
        is_continuous_needed = absent is None
        classes = (
            {"classes": list(images.classes)} if uses_class_folders(checkpoint, images) else {}
        )
        known: dict[str, Any] = {
            "num_images": len(images),
            **_size(checkpoint.schedule),
            "estimator": estimator,
            "conventions": {**conventions, **checkpoint.data_range.record},
            "checkpoint": checkpoint.record,
            "data": {**images.record, **classes},
            "seed": seed,
            "precision": str(computed_in),
        }
        settings = {
            **identity,
            **checkpoint.data_range.record,
            **chosen.settings,
        }

        def answer(path: Path) -> NllReport | None:
            record = recorded_check(path) if before.is_needed else None
            if before.is_needed and record is None:
                return None
            asked = Asked(
                identity,
                {**known, "check": None if record is None else record.to_dict()},
                chosen.summary,
                run_session.environment(settings, batch_size=batch_size),
                images.ids,
            )
            answered = answer_in(path, asked)
            is_known = answered is None or answered.continuous is not None
            return answered if is_known or not is_continuous_needed else None

        out, store = run_session.out, run_session.store
        narrower = None if out is None else ranks.once(partial(half_width_in, out))
        answered = None if out is None else ranks.once(partial(answer, out))
        folder = run_session.folder(identity, reporter.warn)
        note_images(checkpoint, images, reporter)
        if continuous and absent is not None:
            reporter.note(f"no bound in continuous time beside that of the run: {absent}")
        line = chosen.note(len(images), checkpoint.schedule.num_timesteps, computed_in)
        if continuous is None and line is not None:
            reporter.note(line)
        checked = before.run(
            checkpoint.as_trained, images, device=target, ranks=ranks, folder=folder
        )
        if answered is not None:
            reporter.start(0)
            _warn_of(answered, chosen, reporter)
            return answered
        engine = settled_engine(
            checkpoint,
            use,
            device=target,
            precision=computed_in,
            folder=out,
            ranks=ranks,
            note=reporter.note,
        )
        run = TermsRun(
            terms_pass.calling(engine.model_output),
            run_session.worker(images.pixels.shape[1:], batch_size=batch_size, listener=reporter),
            computed_in,
        )
        with user_errors(checkpoint.network_name), engine.running():
            strict = _strict(run)
            result = chosen.run(run, store, correction=_correction(run, strict, chosen, store))
            if is_continuous_needed:
                design = ContinuousDesign(
                    len(images),
                    checkpoint.schedule.num_timesteps,
                    seed,
                    NUM_CONTINUOUS_TERMS,
                )
                difference = ContinuousRun(run, design, store, strict=strict).compute(
                    before=result.num_evaluations
                )
                result = dataclasses.replace(result, continuous=difference)
        comparability = Comparability(
            **{**known, "check": None if checked is None else checked.to_dict()},
            num_evaluations=result.num_evaluations,
            sampling=tables.sampling(result, chosen.summary),
            device=" + ".join(sorted(result.devices)),
            engine=str(engine.choice),
            precision_correction=in_bits(result.correction, uncorrected=result.bound.nats),
            seconds=round(result.seconds, 3),
        )
        of_run = (checkpoint.data_range, out, absent, checkpoint.schedule)
        report = _report(result, comparability, images, *of_run)
        _warn_of(report, chosen, reporter)
        if folder is not None and ranks.reports:
            if (line := note_of_wider(report, narrower)) is not None:
                reporter.note(line)
            record = run_session.environment(settings, batch_size=batch_size, engine=engine)
            _write(folder, report, result, _extremes(result, images, checkpoint.data_range), record)
        ranks.wait()
        return report


ESTIMATORS: dict[str, type[EveryPair] | type[Importance]] = {
    estimator.name: estimator for estimator in (Importance, EveryPair)
}
"""The estimators by name."""


def _estimator(name: str, **options: object) -> Estimator:
    """An estimator with the options that were given, None for those that were not.

    Raises:
        InputError: the name is unknown, or an option makes no sense or is another estimator's.
    """
    one_of("estimator", name, ESTIMATORS)
    fields = {of: {f.name for f in dataclasses.fields(ESTIMATORS[of])} for of in ESTIMATORS}
    given: dict[str, Any] = {option: of for option, of in options.items() if of is not None}
    for option, value in given.items():
        if option not in fields[name]:
            other = next(of for of in ESTIMATORS if option in fields[of])
            raise InputError(
                f"`{option}={value}`: goes with `estimator={other}`, not with {name}; leave one "
                "of them out"
            )
    return ESTIMATORS[name](**given)


def _size(schedule: NoiseSchedule) -> dict[str, int | None]:
    """Of the sum that the bound is, as `summary.json` has it."""
    if schedule.is_continuous:
        return {
            "num_timesteps": schedule.num_original_timesteps,
            "num_parts": schedule.num_timesteps,
        }
    return {"num_timesteps": schedule.num_timesteps, "num_parts": None}


def _strict(run: TermsRun) -> Engine | None:
    """The same network in strict float32; None where the run evaluates that."""
    if run.precision is Precision.FP32:
        return None
    of = run.terms_pass
    choice = at_once(of.checkpoint, of.device, Precision.FP32)
    return Engine(of.checkpoint, device=of.device, choice=choice)


def _correction(
    run: TermsRun, strict: Engine | None, estimator: Estimator, stores: Stores
) -> CorrectionRun | None:
    """What corrects a run in low precision; None where nothing has to."""
    if strict is None:
        return None
    return CorrectionRun(run, strict, estimator.correction_design(run.terms_pass), stores)


def _warn_of(report: NllReport, estimator: Estimator, reporter: RunListener) -> None:
    for line in (estimator.warning(report.summary), raw_pixels_warning(report.summary)):
        if line:
            reporter.warn(line)


def _report(
    result: LikelihoodRun,
    comparability: Comparability,
    images: ImageSet,
    data_range: DataRange,
    out: Path | None,
    absent: str | None,
    schedule: NoiseSchedule,
) -> NllReport:
    difference = None if result.continuous is None else result.continuous.correction
    return NllReport(
        summary=tables.summary(result.bound, comparability, continuous=difference, absent=absent),
        per_timestep=tables.per_timestep(result.bound, schedule),
        rate_distortion=tables.rate_distortion(result.bound, result.distortion, data_range),
        conventions=conventions_frame(
            result.others,
            comparability.num_timesteps,
            continuous=difference,
            is_continuous=schedule.is_continuous,
            process=schedule.process,
        ),
        sub_schedules=sub_schedules_frame(result.others),
        per_image=tables.per_image(result.bound, images.ids),
        folder=out,
        continuous=tables.continuous_frame(result.continuous),
    )


def _write(
    folder: RunFolder,
    report: NllReport,
    result: LikelihoodRun,
    extremes: Extremes,
    record: dict[str, object],
) -> None:
    folder.write_frame("per_timestep.csv", report.per_timestep)
    folder.write_frame(RATE_DISTORTION, report.rate_distortion)
    folder.write_frame("conventions.csv", report.conventions)
    folder.write_frame("sub_schedules.csv", report.sub_schedules)
    folder.write_frame("per_image.csv", report.per_image)
    if report.continuous is None:
        (folder.path / CONTINUOUS_TABLE).unlink(missing_ok=True)
    else:
        folder.write_frame(CONTINUOUS_TABLE, report.continuous)
    with folder.replacing(EXTREMES) as temporary:
        extremes.write(temporary)
    if result.density is not None:
        folder.write_frame(DENSITY, density_frame(result.density))
    if isinstance(result.bound, SampledBound):
        with folder.replacing(PREDICTIONS) as temporary:
            write_predictions(temporary, result.bound.predictions, result.bound.sample)
    _write_terms(folder, result.num_terms)
    folder.write_json("environment.json", record)
    folder.write_summary(report.summary)


def _write_terms(folder: RunFolder, length: int) -> None:
    """Write the table of the terms, unless it is there and the shards are older."""
    path, store = folder.path / TERMS_TABLE, folder.shards(TERMS)
    if (
        folder.keeps_table(TERMS_TABLE)
        and num_written(path) == length
        and store.last_saved(length) <= path.stat().st_mtime_ns
    ):
        return
    with folder.replacing_table(TERMS_TABLE) as temporary:
        write_terms(temporary, store, length)


def _extremes(result: LikelihoodRun, images: ImageSet, data_range: DataRange) -> Extremes:
    """By the whole bound, or by its decoder where that alone is known of single images."""
    bound = result.bound
    values = bound.image_decoder if isinstance(bound, SampledBound) else bound.total
    return Extremes.of(values, images.pixels).shown(data_range)
