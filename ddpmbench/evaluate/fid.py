"""How good are a model's samples? Distances to real images in the features of a network."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from ddpmbench.data.images import ImageSet, refuse_reduced
from ddpmbench.data.load import ImageSource, load_images
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.errors import InputError, instance_of, whole_number
from ddpmbench.evaluate.fid_scores import FidScores
from ddpmbench.evaluate.progress import reported_session
from ddpmbench.evaluate.sample import MadeBy
from ddpmbench.execution.features import FidelityRun, Reference
from ddpmbench.execution.finished_runs import ENVIRONMENT
from ddpmbench.execution.folder import RunFolder
from ddpmbench.execution.samples import Generation, SampleSettings
from ddpmbench.execution.store import recomputed
from ddpmbench.execution.worker import RunListener
from ddpmbench.metrics.feature_networks import FeatureNetwork
from ddpmbench.metrics.scores import PUBLISHED_AT, Protocol
from ddpmbench.metrics.statistics import ReferenceStatistics, is_statistics, read_statistics
from ddpmbench.report.fid import FidReport
from ddpmbench.report.text import cost_lines
from ddpmbench.sanity_check.run import PreliminaryCheck
from ddpmbench.unet.timed_unet import Precision
from ddpmbench.version import __version__

ReferenceSource: TypeAlias = "ReferenceStatistics | ImageSource"


@dataclasses.dataclass(frozen=True, eq=False)
class FidSettings:
    """How samples are generated and scored.

    Attributes:
        network: extracts the features.
        protocol: how images become scores; the network resizes accordingly.
        num_generated: number of samples of a checkpoint.
        samples: how to sample a checkpoint; the protocol says how samples become pixels.
        check: whether a sanity check evaluates the checkpoint under other parameterizations
            first, on the first reference whose images are like the checkpoint's; None where the
            run is long.
        made_by: how the given samples were made, if known; see `load_samples`.
    """

    network: FeatureNetwork
    protocol: Protocol
    num_generated: int = PUBLISHED_AT
    samples: SampleSettings = dataclasses.field(default_factory=SampleSettings)
    check: bool | None = None
    made_by: MadeBy | None = None

    def __post_init__(self) -> None:
        """Refuse values of other types."""
        instance_of("network", self.network, FeatureNetwork, "see load_feature_network")
        instance_of("protocol", self.protocol, Protocol, "see PROTOCOLS")
        instance_of("samples", self.samples, SampleSettings)
        count = whole_number("num_generated", self.num_generated, 2)
        object.__setattr__(self, "num_generated", count)


def evaluate_fid(
    source: "Checkpoint | ImageSource",
    references: "ReferenceSource | Sequence[ReferenceSource]",
    settings: FidSettings,
    *,
    device: str = "auto",
    batch_size: int | None = None,
    out: str | Path | None = None,
    command: list[str] | None = None,
    listener: RunListener | None = None,
    progress: bool = True,
) -> FidReport:
    """Frechet distance, kernel distance, precision, recall and Inception score of samples.

    In processes that torchrun started, each computes a share of the samples and of the features,
    and all return the report.

    Args:
        source: a checkpoint to sample, or samples: what `load_images` returns or takes.
        references: real images (what `load_images` returns or takes) or the moments of their
            features; or a list or tuple of several. The headline is against the first.
        settings: how samples are generated and scored.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps", for both networks.
        batch_size: samples generated together, None for what suits the device.
        out: the run folder; one that holds the same run, even of fewer samples, is resumed.
            None keeps the run in memory.
        command: the command line, for the record.
        listener: called as the run proceeds, once a stage.
        progress: whether progress, warnings and notes go to standard error where there is no
            listener.

    Raises:
        InputError: an argument, the inputs or the folder is unsuitable.
        ProcessLostError: another process of the run has stopped.

    Source: Heusel et al. 2017; Salimans et al. 2016; Binkowski et al. 2018; Kynkaanniemi et al.
    2019; Chong & Forsyth 2020.
    """
    instance_of("settings", settings, FidSettings)
    if batch_size is not None:
        batch_size = whole_number("batch_size", batch_size, 1)
    if not isinstance(source, Checkpoint):
        source = load_images(source, any_size=True)
    several: Sequence[Any] = references if isinstance(references, list | tuple) else [references]
    known = tuple(load_reference(reference) for reference in several)
    _check(source, known, settings)
    with reported_session("fid", device, out, command, listener, shown=progress) as (
        run_session,
        reporter,
    ):
        ranks = run_session.ranks
        samples: Generation | ImageSet
        if isinstance(source, Checkpoint):
            eight_bit = settings.protocol.eight_bit
            samples = Generation(source, dataclasses.replace(settings.samples, eight_bit=eight_bit))
            samples = samples.begun(run_session, "num_generated", settings.num_generated)
        else:
            samples = source
        run = FidelityRun(
            samples,
            settings.num_generated,
            known,
            settings.network.to(run_session.device),
            run_session,
            batch_size,
        )
        identity = _identity(run, settings)
        asked = {"num_generated": settings.num_generated, "check": settings.check}
        run_session.agree(identity, **asked)
        folder = run_session.folder(identity, reporter.warn)
        if folder is not None and isinstance(samples, Generation):
            ranks.once(lambda: folder.refuse_more("num_generated", settings.num_generated))
        for images in (samples, *known):
            for line in () if isinstance(images, Generation) else images.notes:
                reporter.note(line)
        checked = _check_record(run, settings, reporter, folder)
        engine = run.engine(note=reporter.note)
        if dropped := ranks.once(run.drop_damaged_references):
            reporter.warn(recomputed(dropped))
        if ranks.reports and (cost := run.cost(engine)) is not None:
            for line in cost_lines(cost):
                reporter.note(line)
        made_by = settings.made_by
        if isinstance(samples, Generation):
            made_by = MadeBy.of(samples)
        scoring = FidScores(
            run, run.compute(engine, reporter), settings.protocol, made_by, settings.samples.seed
        )

        def scored() -> FidReport:
            summary = {
                **scoring.summary(),
                "engine": None if engine is None else str(engine.choice),
                "check": checked,
            }
            report = FidReport(summary, scoring.per_image, scoring.against_n, run_session.out)
            if folder is not None:
                report.write_tables(folder)
                scoring.write(folder)
            return report

        report = ranks.once(scored)
        if ranks.reports:
            for line in report.summary["warnings"]:
                reporter.warn(line)
        if folder is not None and ranks.reports:
            count = report.summary["num_generated"]
            resolved = {**identity, "num_generated": count, "engine": None}
            record = run_session.environment(resolved, batch_size=batch_size, engine=engine)
            folder.write_json(ENVIRONMENT, record)
            folder.write_summary(report.summary)
        ranks.wait()
        return report


def load_reference(
    source: "ReferenceSource",
    *,
    num_images: int | None = None,
    on_bad: str = "fail",
    convert: str | None = None,
) -> Reference:
    """Load a reference: images, or moments of features where the path is a file of them.

    Args:
        source: what `load_images` takes, the path of an npz of `mu` and `sigma`, or a loaded one.
        num_images: number of images to use, from the first on; None for all.
        on_bad: see `load_images`.
        convert: see `load_images`.

    Raises:
        InputError: the reference does not exist, or has `num_images` but holds no images.
    """
    if isinstance(source, str | Path) and is_statistics(source):
        source = read_statistics(Path(source))
    if not isinstance(source, ReferenceStatistics):
        return load_images(
            source, num_images=num_images, on_bad=on_bad, convert=convert, any_size=True
        )
    if num_images is not None:
        raise InputError(
            f"`num_images={num_images}`: does not apply to the mu and sigma of {source.source}; "
            "leave it out"
        )
    return source


def _check(
    source: Checkpoint | ImageSet, references: tuple[Reference, ...], settings: FidSettings
) -> None:
    if not references:
        raise InputError("`references`: name at least one")
    if settings.network.resize != settings.protocol.resize:
        raise InputError(
            f"`protocol={settings.protocol.id}`: resizes by {settings.protocol.resize}, the "
            f"feature network by {settings.network.resize}; load it with that"
        )
    if isinstance(source, ImageSet) and len(source) < 2:
        raise InputError(f"{source.source}: a distance takes at least 2 images")
    for reference in references:
        if isinstance(reference, ReferenceStatistics):
            reference.check_features(settings.network.num_features)
        if isinstance(reference, ImageSet) and len(reference) < 2:
            raise InputError(f"{reference.source}: a distance takes at least 2 images")
        if isinstance(reference, ImageSet) and isinstance(source, Checkpoint):
            refuse_reduced(reference, source.data_range)


def _identity(run: FidelityRun, settings: FidSettings) -> dict[str, Any]:
    """Everything that determines the scores, except the number of samples."""
    sample_identity: dict[str, Any]
    if isinstance(run.source, ImageSet):
        sample_identity = {"samples": run.source.sha256, "precision": str(Precision.FP32)}
    else:
        tables = run.session.dtype_of_tables(run.source.checkpoint)
        sample_identity = {**run.source.identity, "tables": tables}
    return {
        "schema": FidReport.SCHEMA,
        **sample_identity,
        "references": [reference.sha256 for reference in run.references],
        "protocol": settings.protocol.id,
        "feature_network": run.network.sha256,
        "feature_network_name": run.network.name,
        "resize": run.network.resize,
        "seed": settings.samples.seed,
        "ddpmbench": __version__,
    }


def _check_record(
    run: FidelityRun,
    settings: FidSettings,
    reporter: RunListener,
    folder: RunFolder | None,
) -> dict[str, Any] | None:
    """The sanity check, on the first reference that the network could have been trained on.

    Returns:
        None if there was no check.
    """
    if not isinstance(run.source, Generation):
        return None
    checkpoint = run.source.checkpoint
    calls, seed = run.num_generated * run.source.num_evaluations, settings.samples.seed
    check = PreliminaryCheck(settings.check, calls, seed, run.batch_size, reporter)
    for reference in run.references:
        if isinstance(reference, ImageSet) and _is_of_its_kind(reference, run.source):
            return check.run(checkpoint, reference, run.session, folder)
    if settings.check:
        reporter.note("`check`: no reference has images such as the checkpoint makes; left out")
    return None


def _is_of_its_kind(reference: ImageSet, source: Generation) -> bool:
    classes = source.checkpoint.num_classes
    if classes:
        try:
            reference.check_classes(classes, null_class=source.checkpoint.null_class)
        except InputError:
            return False
    return reference.shape == source.shape
