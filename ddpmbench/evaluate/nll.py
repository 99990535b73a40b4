"""How well does a model predict images? The variational bound."""

import dataclasses
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ddpmbench.data.images import ImageSet, ImageSource, load_images
from ddpmbench.diffusion.data_range import DataRange
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.errors import InputError, one_of, path_of
from ddpmbench.evaluate.inputs import (
    check_arguments,
    check_images,
    conventions_of,
    images_identity,
    model_identity,
    note_images,
    uses_class_folders,
)
from ddpmbench.evaluate.nll_report import NllReport
from ddpmbench.evaluate.progress import reported_session
from ddpmbench.evaluate.reuse import finished_report, recorded_half_width, wider_note
from ddpmbench.execution.continuous import why_left_out
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
from ddpmbench.execution.pictures import EXTREMES, Extremes
from ddpmbench.execution.precision_choice import Candidate, settled_precision
from ddpmbench.execution.session import Session
from ddpmbench.execution.terms import (
    TERMS_TABLE,
    ContinuousRun,
    CorrectionRun,
    TermsRun,
    write_terms,
)
from ddpmbench.execution.worker import RunListener
from ddpmbench.likelihood.continuous import NUM_CONTINUOUS_TERMS, ContinuousDesign, terms_pass_of
from ddpmbench.likelihood.decoders import DECODERS
from ddpmbench.likelihood.estimator import SampledBound
from ddpmbench.likelihood.terms import TermsPass
from ddpmbench.report import tables
from ddpmbench.report.conventions import conventions_frame, sub_schedules_frame
from ddpmbench.report.schema import Comparability
from ddpmbench.report.tables import in_bits
from ddpmbench.report.text import raw_pixels_warning
from ddpmbench.sanity_check.run import PreliminaryCheck, recorded_check
from ddpmbench.unet.precision import Precision
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
    chosen = _estimator(
        estimator,
        half_width=half_width,
        max_evaluations=max_evaluations,
        terms_of=None if terms_of is None else path_of("terms_of", terms_of),
        draws=draws,
    )
    with reported_session("nll", device, out, command, listener, shown=progress) as (
        run_session,
        reporter,
    ):
        ranks, target, shape = run_session.ranks, run_session.device, images.pixels.shape[1:]
        out = run_session.out
        check_in = partial(chosen.check, checkpoint, images, seed=seed)
        check_in(precision=resolve_precision(precision, target))
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
        evaluation = _Evaluation(terms_pass, chosen, computed_in, run_session, batch_size)
        asked = {**chosen.settings, "continuous": continuous, "check": check}
        run_session.agree(evaluation.identity, **asked)
        preliminary = PreliminaryCheck(check, calls, seed, batch_size, reporter)
        absent = ranks.once(
            lambda: why_left_out(checkpoint, shape, continuous, calls, device=target)
        )
        finished = ranks.once(
            lambda: evaluation.finished(is_checked=preliminary.is_needed, absent=absent)
        )
        narrower = None if out is None else ranks.once(partial(recorded_half_width, out))
        folder = run_session.folder(evaluation.identity, reporter.warn)
        note_images(checkpoint, images, reporter)
        if continuous and absent is not None:
            reporter.note(f"no bound in continuous time beside that of the run: {absent}")
        line = chosen.note(len(images), checkpoint.schedule.num_timesteps, computed_in)
        if continuous is None and line is not None:
            reporter.note(line)
        checked = preliminary.run(checkpoint.as_trained, images, run_session, folder)
        if finished is not None:
            reporter.start(0)
            _warn(finished, chosen, reporter)
            return finished
        note = reporter.note
        engine = settled_engine(checkpoint, use, run_session, precision=computed_in, note=note)
        result = evaluation.run(engine, reporter, is_continuous=absent is None)
        report = evaluation.report(result, checked, absent=absent, engine=engine)
        _warn(report, chosen, reporter)
        if folder is not None and ranks.reports:
            reached = report.summary["half_width"]
            if (line := wider_note(folder.path, reached, narrower)) is not None:
                reporter.note(line)
            extremes = _extremes(result, images, checkpoint.data_range)
            _write(folder, report, result, extremes, evaluation.environment(engine))
        ranks.wait()
        return report


@dataclasses.dataclass(frozen=True, eq=False)
class _Evaluation:
    """An evaluation of the bound: all that its result depends on.

    Attributes:
        terms_pass: the model, the images, the seed and the decoder.
        estimator: chooses the terms.
        precision: precision of the network.
        session: the devices, the processes and the run folder.
        batch_size: as given by the user.
    """

    terms_pass: TermsPass
    estimator: Estimator
    precision: Precision
    session: Session
    batch_size: int | None

    @cached_property
    def conventions(self) -> dict[str, object]:
        """The conventions in which two bounds of one network can differ, but the data range."""
        terms = self.terms_pass
        return conventions_of(terms.checkpoint, terms.images, decoder=terms.decoder)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The object of `run.json`."""
        terms = self.terms_pass
        return {
            "schema": tables.SCHEMA,
            **images_identity(terms.checkpoint, terms.images),
            **self.estimator.identity,
            "precision": str(self.precision),
            **model_identity(
                terms.checkpoint,
                self.conventions,
                seed=terms.seed,
                tables=self.session.dtype_of_tables(terms.checkpoint),
            ),
        }

    def environment(self, engine: Engine | None = None) -> dict[str, object]:
        """The object of `environment.json`."""
        data_range = self.terms_pass.checkpoint.data_range
        resolved = {**self.identity, **data_range.record, **self.estimator.settings}
        return self.session.environment(resolved, batch_size=self.batch_size, engine=engine)

    def _known(self, checked: dict[str, Any] | None) -> dict[str, Any]:
        """The fields of `summary.json` that do not depend on the terms."""
        checkpoint, images = self.terms_pass.checkpoint, self.terms_pass.images
        schedule, classes = checkpoint.schedule, {}
        num_timesteps, num_parts = schedule.num_timesteps, None
        if schedule.is_continuous:
            num_timesteps, num_parts = schedule.num_original_timesteps, num_timesteps
        if uses_class_folders(checkpoint, images):
            classes = {"classes": list(images.classes)}
        return {
            "num_images": len(images),
            "num_timesteps": num_timesteps,
            "num_parts": num_parts,
            "estimator": self.estimator.name,
            "conventions": {**self.conventions, **checkpoint.data_range.record},
            "checkpoint": checkpoint.record,
            "data": {**images.record, **classes},
            "seed": self.terms_pass.seed,
            "precision": str(self.precision),
            "check": checked,
        }

    def finished(self, *, is_checked: bool, absent: str | None) -> NllReport | None:
        """The report in the run folder, if it is of the same evaluation; else None.

        Args:
            is_checked: whether a sanity check comes first.
            absent: why there is no bound in continuous time; None where there is one.
        """
        path, checked = self.session.out, None
        if path is None:
            return None
        if is_checked and (checked := recorded_check(path)) is None:
            return None
        report = finished_report(
            path,
            identity=self.identity,
            summary=self._known(checked),
            sampling=self.estimator.summary,
            environment=self.environment(),
            image_ids=self.terms_pass.images.ids,
        )
        has_all = report is None or absent is not None or report.continuous is not None
        return report if has_all else None

    def run(self, engine: Engine, listener: RunListener, *, is_continuous: bool) -> LikelihoodRun:
        """Evaluate the missing terms, and reduce all terms to the bound."""
        terms, store = self.terms_pass, self.session.store
        shape = terms.images.pixels.shape[1:]
        worker = self.session.worker(shape, batch_size=self.batch_size, listener=listener)
        run = strict = TermsRun(terms.calling(engine.model_output), worker, self.precision)
        with user_errors(terms.checkpoint.network_name), engine.running():
            if self.precision is not Precision.FP32:
                choice = at_once(terms.checkpoint, terms.device, Precision.FP32)
                strict = run.calling(Engine(terms.checkpoint, device=terms.device, choice=choice))
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
        terms, schedule = self.terms_pass, self.terms_pass.checkpoint.schedule
        comparability = Comparability(
            **self._known(checked),
            num_evaluations=result.num_evaluations,
            sampling=tables.sampling(result, self.estimator.summary),
            device=" + ".join(sorted(result.devices)),
            engine=str(engine.choice),
            precision_correction=in_bits(result.correction, uncorrected=result.bound.nats),
            seconds=round(result.seconds, 3),
        )
        difference = None if result.continuous is None else result.continuous.correction
        return NllReport(
            summary=tables.summary(
                result.bound, comparability, continuous=difference, absent=absent
            ),
            per_timestep=tables.per_timestep(result.bound, schedule),
            rate_distortion=tables.rate_distortion(
                result.bound, result.distortion, terms.checkpoint.data_range
            ),
            conventions=conventions_frame(
                result.others,
                comparability.num_timesteps,
                continuous=difference,
                is_continuous=schedule.is_continuous,
                process=schedule.process,
            ),
            sub_schedules=sub_schedules_frame(result.others),
            per_image=tables.per_image(result.bound, terms.images.ids),
            folder=self.session.out,
            continuous=tables.continuous_frame(result.continuous),
        )


ESTIMATORS: dict[str, type[EveryPair] | type[Importance]] = {
    estimator.name: estimator for estimator in (Importance, EveryPair)
}
"""The estimators by name."""


def _estimator(name: str, **options: object) -> Estimator:
    """The estimator with the given options; None stands for options not given.

    Raises:
        InputError: the name is unknown, or an option is invalid or belongs to another estimator.
    """
    one_of("estimator", name, ESTIMATORS)
    fields = {
        known: {f.name for f in dataclasses.fields(ESTIMATORS[known])} for known in ESTIMATORS
    }
    given: dict[str, Any] = {
        option: value for option, value in options.items() if value is not None
    }
    for option, value in given.items():
        if option not in fields[name]:
            other = next(known for known in ESTIMATORS if option in fields[known])
            raise InputError(
                f"`{option}={value}`: goes with `estimator={other}`, not with {name}; leave one "
                "of them out"
            )
    return ESTIMATORS[name](**given)


def _warn(report: NllReport, estimator: Estimator, reporter: RunListener) -> None:
    for line in (estimator.warning(report.summary), raw_pixels_warning(report.summary)):
        if line:
            reporter.warn(line)


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
    with folder.replacing_table(TERMS_TABLE) as temporary:
        write_terms(temporary, folder.shards(TERMS), result.num_terms)
    folder.write_json("environment.json", record)
    folder.write_summary(report.summary)


def _extremes(result: LikelihoodRun, images: ImageSet, data_range: DataRange) -> Extremes:
    """The images with extreme bounds, or decoder terms where an image has no bound of its own."""
    bound = result.bound
    values = bound.image_decoder if isinstance(bound, SampledBound) else bound.total
    return Extremes.of(values, images.pixels).shown(data_range)
