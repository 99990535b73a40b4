"""How well does a model predict images? The variational bound."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ddpmbench.checksums import CHECKSUMS, DamageError, checksum, is_whole, read_json
from ddpmbench.data.load import ImageSource, load_images
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.errors import InputError, one_of, path_of
from ddpmbench.evaluate.evaluation import (
    Evaluation,
    check_arguments,
    check_images,
    note_images,
    uses_class_folders,
)
from ddpmbench.evaluate.progress import PartListener, reported_session
from ddpmbench.execution.devices import resolve_precision
from ddpmbench.execution.engine import Engine
from ddpmbench.execution.engine_choice import NetworkUse, at_once
from ddpmbench.execution.estimator import Estimator, LikelihoodRun
from ddpmbench.execution.estimators import estimator_of, kind_of
from ddpmbench.execution.finished_runs import CONTINUOUS_TABLE, ENVIRONMENT, SUMMARY, TERMS
from ddpmbench.execution.folder import RunFolder, run_store
from ddpmbench.execution.network_check import why_left_out
from ddpmbench.execution.precision_choice import Candidate, settled_precision
from ddpmbench.execution.stored_images import EXTREMES, Extremes
from ddpmbench.execution.terms import (
    TERMS_TABLE,
    ContinuousRun,
    CorrectionRun,
    TermsRun,
    paired_terms,
    write_terms,
)
from ddpmbench.execution.worker import RunListener
from ddpmbench.likelihood.continuous import NUM_CONTINUOUS_TERMS, ContinuousDesign
from ddpmbench.likelihood.decoders import DECODERS
from ddpmbench.likelihood.terms import TermsPass
from ddpmbench.report import tables
from ddpmbench.report.conventions import conventions_frame, sub_schedules_frame
from ddpmbench.report.nll import NllReport
from ddpmbench.report.tables import Comparability, in_bits
from ddpmbench.report.text import raw_pixels_warning
from ddpmbench.sanity_check.run import PreliminaryCheck, recorded_check
from ddpmbench.unet.timed_unet import Precision
from ddpmbench.user_code import user_errors


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

    In processes that torchrun started, each computes a share of the terms, and all return the
    report.

    Args:
        checkpoint: what `load_checkpoint` returns; its conventions are those of the bound.
        images: what `load_images` returns or takes: a name, a path, a uint8 array.
        estimator: "importance" evaluates a few timesteps of each image in a random sample, for an
            unbiased bound with a narrow interval; "every-pair" evaluates every timestep of every
            image.
        half_width: importance: half width of the 95 % interval for these images, bits per
            dimension; terms are added until it is reached. None for 0.005, or with `terms_of` for
            that of its run.
        max_evaluations: importance: the most network evaluations, even if the interval is then
            wider.
        terms_of: importance: the folder of a run on the same images; the same terms are evaluated,
            so that `compare` accepts the two runs.
        draws: every-pair: noise draws per image and timestep; with one, the interval for this
            image set is unknown. None for 2.
        decoder: "exact" normal distribution function, or its approximation by "tanh".
        seed: seed of the noise and the choice of terms, 0 <= seed < 2^64.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        precision: precision of the network: strict "fp32", "tf32", "bf16", "fp16", or "auto": that
            of the run in the folder, if any; else fp16 on CUDA, and bf16 on a CPU where a short
            test before a long run finds it a third faster; otherwise fp32. In low precision some
            terms are evaluated in strict float32 as well, and correct the bound, its parts and its
            intervals; the tables are not corrected.
        batch_size: network evaluations in a batch, None for what suits the device. Another one
            changes a number by float rounding.
        check: whether a sanity check evaluates the checkpoint under other parameterizations
            first, which does not count towards the run; None where the run is long.
        continuous: whether to estimate the bound in continuous time as well, from its difference
            for a few hundred terms, which do not count towards the run; None where the run takes
            10,000 network evaluations or more.
        out: the run folder; one that holds the same run unfinished, or finished with a wider
            interval, is resumed. None keeps the run in memory.
        command: the command line, for the record.
        listener: called as the run proceeds.
        progress: whether progress, warnings and notes go to standard error where there is no
            listener.

    Raises:
        InputError: an argument, the images or the folder is unsuitable.
        ProcessLostError: another process of the run has stopped.

    Source: Ho, Jain & Abbeel 2020, eq. 5.
    """
    seed, batch_size = check_arguments(checkpoint, listener, seed, batch_size)
    one_of("decoder", decoder, DECODERS)
    images = load_images(images)
    check_images(checkpoint, images)
    chosen = estimator_of(
        estimator,
        half_width=half_width,
        max_evaluations=max_evaluations,
        terms_of=None if terms_of is None else path_of("terms_of", terms_of),
        draws=draws,
    )
    with reported_session("nll", device, out, command, listener, shown=progress) as (
        session,
        reporter,
    ):
        ranks, size = session.ranks, (len(images), checkpoint.schedule.num_timesteps)
        check_in = partial(chosen.check, checkpoint, images, seed=seed)
        check_in(precision=resolve_precision(precision, session.device))
        evaluation = Evaluation(
            checkpoint, images, session, reporter, seed, batch_size, decoder
        ).checked()
        calls = chosen.expected_evaluations(*size)
        run = _Run.of(evaluation, chosen, precision, evaluation.use(calls), check_in)
        session.agree(run.identity, **chosen.settings, continuous=continuous, check=check)
        is_checked = PreliminaryCheck(check, calls).is_needed
        absent = ranks.once(
            lambda: why_left_out(
                evaluation.checkpoint, evaluation.shape, continuous, calls, device=session.device
            )
        )
        folder = session.folder(run.identity, reporter.warn)
        finished = ranks.once(lambda: run.finished(is_checked=is_checked, absent=absent))
        if not isinstance(listener, PartListener):
            note_images(checkpoint, images, reporter)
            if (line := chosen.note(*size, run.precision)) is not None:
                reporter.note(line)
        if continuous and absent is not None:
            reporter.note(f"no bound in continuous time beside that of the run: {absent}")
        checked = evaluation.sanity_check(check, calls, folder)
        if finished is not None:
            reporter.start(0)
            _warn(finished, chosen, reporter)
            return finished
        engine = evaluation.engine(run.use, run.precision)
        result = run.result(engine, is_continuous=absent is None)
        report = run.report(result, checked, absent=absent, engine=engine)
        _warn(report, chosen, reporter)
        evaluation.write(
            folder,
            report,
            run.resolved,
            engine=engine,
            more=partial(_write_files, report=report, result=result, evaluation=evaluation),
        )
        return report


@dataclasses.dataclass(frozen=True, eq=False)
class _Run:
    """A run that estimates the bound: all that its result depends on.

    Attributes:
        evaluation: the model, the images, the seed and the decoder.
        estimator: chooses the terms.
        terms_pass: evaluates terms.
        use: how the network is used, as far as known.
        precision: precision of the network.
    """

    evaluation: Evaluation
    estimator: Estimator
    terms_pass: TermsPass
    use: NetworkUse
    precision: Precision

    @classmethod
    def of(
        cls,
        evaluation: Evaluation,
        estimator: Estimator,
        precision: str,
        use: NetworkUse,
        check: Callable[..., None],
    ) -> "_Run":
        """A run in the precision that a name stands for; see `settled_precision`."""
        session, note = evaluation.session, evaluation.reporter.note
        terms_pass = evaluation.terms_pass(evaluation.images)
        candidate = Candidate(
            terms_pass,
            use,
            estimator.correction_design(terms_pass),
            estimator.goal,
            lambda other: check(precision=other),
        )
        settled = settled_precision(precision, candidate, session, note=note)
        return cls(evaluation, estimator, terms_pass, use, settled)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The object of `run.json`."""
        own = {**self.estimator.identity, "precision": str(self.precision)}
        return self.evaluation.identity(tables.SCHEMA, own)

    @property
    def resolved(self) -> dict[str, Any]:
        """The settings in `environment.json`."""
        data_range = self.evaluation.checkpoint.data_range
        return {**self.identity, **data_range.record, **self.estimator.settings}

    def _known(self, checked: dict[str, Any] | None) -> dict[str, Any]:
        """The fields of `summary.json` that do not depend on the terms."""
        checkpoint, images = self.evaluation.checkpoint, self.evaluation.images
        schedule, record = checkpoint.schedule, self.evaluation.record
        num_timesteps, num_parts = schedule.num_timesteps, None
        if schedule.is_continuous:
            num_timesteps, num_parts = schedule.num_original_timesteps, num_timesteps
        if uses_class_folders(checkpoint, images):
            record["data"] = {**record["data"], "classes": list(images.classes)}
        return {
            "num_images": len(images),
            "num_timesteps": num_timesteps,
            "num_parts": num_parts,
            "estimator": self.estimator.name,
            **record,
            "precision": str(self.precision),
            "check": checked,
        }

    def finished(self, *, is_checked: bool, absent: str | None) -> NllReport | None:
        """The report in the run folder, if it is of the same evaluation; else None.

        Args:
            is_checked: whether a sanity check comes first.
            absent: why there is no bound in continuous time; None where there is one.
        """
        session, batch_size = self.evaluation.session, self.evaluation.batch_size
        path, checked = session.out, None
        if path is None:
            return None
        if is_checked and (checked := recorded_check(path)) is None:
            return None
        report = finished_report(
            path,
            known=self._known(checked),
            environment=session.environment(self.resolved, batch_size=batch_size),
            image_ids=self.evaluation.images.ids,
        )
        if report is not None and absent is None and report.continuous is None:
            return None
        return report

    def result(self, engine: Engine, *, is_continuous: bool) -> LikelihoodRun:
        """Evaluate the missing terms, and reduce all terms to the bound."""
        terms, store = self.terms_pass, self.evaluation.session.store
        worker = self.evaluation.worker()
        run = strict = TermsRun.of(terms, engine, worker)
        with user_errors(terms.checkpoint.network_name), engine.running():
            if self.precision is not Precision.FP32:
                choice = at_once(terms.checkpoint, terms.device, Precision.FP32)
                exact = Engine(terms.checkpoint, device=terms.device, choice=choice)
                strict = TermsRun.of(terms, exact, worker)
            correction_terms = self.estimator.correction_design(terms)
            correction = CorrectionRun(run, strict, correction_terms, store)
            result = self.estimator.run(run, store, correction)
            if not is_continuous:
                return result
            size = (len(terms.images), terms.checkpoint.schedule.num_timesteps)
            design = ContinuousDesign(*size, terms.seed, NUM_CONTINUOUS_TERMS)
            paired = ContinuousRun(strict, design, store)
            difference = paired.estimate(before=result.num_evaluations)
            return dataclasses.replace(result, continuous=difference)

    def report(
        self,
        result: LikelihoodRun,
        checked: dict[str, Any] | None,
        *,
        absent: str | None,
        engine: Engine,
    ) -> NllReport:
        """The report from the terms; see `finished` for `absent`."""
        checkpoint, bound = self.evaluation.checkpoint, result.bound
        schedule = checkpoint.schedule
        comparability = Comparability(
            **self._known(checked),
            num_evaluations=result.num_evaluations,
            sampling=tables.sampling(result, self.estimator.summary),
            device=" + ".join(sorted(result.devices)),
            engine=str(engine.choice),
            precision_correction=in_bits(result.correction, uncorrected=bound.nats),
            seconds=round(result.seconds, 3),
        )
        difference = None if result.continuous is None else result.continuous.correction
        return NllReport(
            summary=tables.summary(bound, comparability, continuous=difference, absent=absent),
            per_timestep=tables.per_timestep(bound, schedule),
            rate_distortion=tables.rate_distortion(bound, result.distortion, checkpoint.data_range),
            conventions=conventions_frame(
                result.others,
                comparability.num_timesteps,
                continuous=difference,
                is_continuous=schedule.is_continuous,
                process=schedule.process,
            ),
            sub_schedules=sub_schedules_frame(result.others),
            per_image=tables.per_image(bound, self.evaluation.images.ids),
            folder=self.evaluation.session.out,
            continuous=tables.continuous_frame(result.continuous),
        )


def _warn(report: NllReport, estimator: Estimator, reporter: RunListener) -> None:
    for line in (estimator.warning(report.summary), raw_pixels_warning(report.summary)):
        if line:
            reporter.warn(line)


def _write_files(
    folder: RunFolder, *, report: NllReport, result: LikelihoodRun, evaluation: Evaluation
) -> None:
    """Write the terms, the estimator's own tables and files, and the extreme images."""
    for name, frame in result.tables.items():
        folder.write_frame(name, frame)
    if result.continuous is None:  # an earlier run had it
        (folder.path / CONTINUOUS_TABLE).unlink(missing_ok=True)
    bits, _ = tables.bits_of_images(report.per_image)
    extremes = Extremes.of(bits, evaluation.images.pixels)
    with folder.replacing(EXTREMES) as temporary:
        extremes.shown(evaluation.checkpoint.data_range).write(temporary)
    for name, write in result.files.items():
        with folder.replacing(name) as temporary:
            write(temporary)
    with folder.replacing_table(TERMS_TABLE) as temporary:
        write_terms(temporary, folder.shards(TERMS), result.num_terms)


# ---- a run that is finished already


def finished_report(
    folder: Path,
    *,
    known: Mapping[str, Any],
    environment: Mapping[str, Any],
    image_ids: Sequence[str],
) -> NllReport | None:
    """The report in the folder of a run of `nll`, if its command would give the same result.

    The result must have been computed with the same settings by the same versions on the same
    device, and be complete: shards, tables and all. Nothing in the folder is changed.

    Args:
        folder: holds this run, without damaged shards; see `Session.folder`.
        known: the fields of `summary.json` that are known before the run.
        environment: the object of `environment.json`; the command and the engine do not count.
        image_ids: names of the images, in order.

    Returns:
        The report as it was computed; None where anything differs, is missing, damaged or unknown,
        such as the result of a source with uncommitted changes.
    """
    if not (folder / SUMMARY).exists() or str(environment["git_revision"]).endswith("+"):
        return None
    try:
        summary = read_json(folder / SUMMARY)
        estimator, checksums = kind_of(summary), dict(summary[CHECKSUMS])
        checksums.pop("this")
        num_terms = {**estimator.other_terms(summary), **paired_terms(summary)}
        is_same = (
            _comparable(read_json(folder / ENVIRONMENT)) == _comparable(environment)
            and {**summary, **_as_read(known)} == summary
            and all(checksum(folder / name) == value for name, value in checksums.items())
            and all(is_whole(folder / name) for name in (EXTREMES, *estimator.sealed))
            and not any(run_store(folder, name).missing(size) for name, size in num_terms.items())
        )
        report = NllReport.load(folder) if is_same else None
    except (DamageError, InputError, OSError, LookupError, TypeError, ValueError):
        return None
    is_named_so = report is not None and [*report.per_image.image_id] == [*map(str, image_ids)]
    return report if is_named_so else None


def _comparable(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a record of the environment on which a result can depend."""
    record = _as_read(environment)
    record.pop(CHECKSUMS, None)
    resolved = record.pop("arguments")["resolved"]
    resolved.pop("engine", None)
    return {**record, "resolved": resolved}


def _as_read(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as it comes back from a JSON file."""
    return dict(json.loads(json.dumps(record)))
