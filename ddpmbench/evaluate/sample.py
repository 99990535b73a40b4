"""Samples of a model, as files for other tools to score."""

import dataclasses
from pathlib import Path
from typing import Any

from ddpmbench.checksums import reading
from ddpmbench.data.images import ImageSet
from ddpmbench.data.load import load_images
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.errors import InputError, instance_of, whole_number
from ddpmbench.evaluate.progress import reported_session
from ddpmbench.execution.engine import EngineChoice
from ddpmbench.execution.finished_runs import (
    ENVIRONMENT,
    SUMMARY,
    FinishedRun,
    result_kind,
    schema_of,
)
from ddpmbench.execution.folder import IDENTITY, write_figure
from ddpmbench.execution.samples import (
    SAMPLES,
    SAMPLES_STORE,
    Generation,
    SampleSettings,
    SamplesRun,
    write_pngs,
    write_samples,
)
from ddpmbench.execution.store import Store
from ddpmbench.execution.worker import RunListener
from ddpmbench.report.fid import FidReport
from ddpmbench.report.sample import SampleReport, samples_figure
from ddpmbench.version import __version__


@dataclasses.dataclass(frozen=True)
class MadeBy:
    """How samples were made.

    Attributes:
        checkpoint: the record of the model.
        sampler: the record of the sampler.
        seed: seed of the noise.
        eight_bit: how samples became pixels.
        precision: precision of the network.
    """

    checkpoint: dict[str, Any]
    sampler: dict[str, Any]
    seed: int
    eight_bit: str
    precision: str

    @classmethod
    def of(cls, generation: Generation) -> "MadeBy":
        """How a run makes its samples."""
        settings = generation.settings
        return cls(
            generation.checkpoint.record,
            generation.record,
            settings.seed,
            str(settings.eight_bit),
            str(settings.precision),
        )


def load_samples(
    path: str | Path, *, on_bad: str = "fail", convert: str | None = None
) -> tuple[ImageSet, MadeBy | None]:
    """Load samples from a file or folder, or those of a run folder of `sample` or `fid`.

    Args:
        path: an .npz, a folder of images, or a run folder.
        on_bad: see `load_images`.
        convert: see `load_images`.

    Returns:
        The samples, and how they were made; None where that is unknown.

    Raises:
        InputError: they cannot be read, or the run has none, is unfinished, or is damaged.
    """
    path = Path(path)
    schema = schema_of(path) or ""
    if not schema.startswith("ddpmbench.") and not (path / IDENTITY).is_file():
        images = load_images(path, on_bad=on_bad, convert=convert, any_size=True)
        return images, None
    has_samples = schema in (SampleReport.SCHEMA, FidReport.SCHEMA) and (path / SAMPLES).exists()
    if schema and not has_samples:
        raise InputError(
            f"{path}: is {result_kind(schema)} and holds no samples; name a run of sample, "
            "or a file or a folder of images"
        )
    run = FinishedRun.open(path, option="`samples`", schema=schema or SampleReport.SCHEMA)
    images = load_images(path / SAMPLES, on_bad=on_bad)
    return images, _made_by(run, images)


def _made_by(run: FinishedRun, images: ImageSet) -> MadeBy:
    summary = run.summary
    with reading(run.path / SUMMARY):
        if summary["schema"] == SampleReport.SCHEMA:
            sha256, eight_bit = summary["sha256"], summary["eight_bit"]
            precision = summary["precision"]
        else:
            sha256, eight_bit = summary["samples"]["sha256"], summary["protocol"]["eight_bit"]
            precision = summary["compute_precision"]
        made_by = summary["checkpoint"], summary["sampler"], summary["seed"]
    if images.sha256 != sha256:
        raise InputError(
            f"{run.path}: {SAMPLES} does not hold the samples of its {SUMMARY}; run its "
            "command again"
        )
    return MadeBy(*made_by, eight_bit, precision)


PNGS = "png"


def generate_samples(
    checkpoint: Checkpoint,
    num_samples: int,
    *,
    settings: SampleSettings | None = None,
    png: bool = False,
    device: str = "auto",
    batch_size: int | None = None,
    out: str | Path | None = None,
    command: list[str] | None = None,
    listener: RunListener | None = None,
    progress: bool = True,
) -> SampleReport:
    """Samples 0..N - 1 of a checkpoint.

    In processes that torchrun started, each generates a share, and all return the report.

    Args:
        checkpoint: what `load_checkpoint` returns; its timesteps, variance and clip are those of
            the sampler.
        num_samples: N.
        settings: the sampler, and how samples become pixels.
        png: whether to write a PNG file per sample as well.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        batch_size: samples generated together, None for what suits the device. Another one changes
            a sample by float rounding.
        out: the run folder; one that holds some of the same samples is resumed. None keeps
            the run in memory.
        command: the command line, for the record.
        listener: called as the run proceeds.
        progress: whether progress, warnings and notes go to standard error where there is no
            listener.

    Raises:
        InputError: an argument, the checkpoint or the folder is unsuitable.
        ProcessLostError: another process of the run has stopped.

    Source: Ho, Jain & Abbeel 2020, Algorithm 2; Song, Meng & Ermon 2021.
    """
    num_samples = whole_number("num_samples", num_samples, 1)
    if batch_size is not None:
        batch_size = whole_number("batch_size", batch_size, 1)
    instance_of("checkpoint", checkpoint, Checkpoint, "see load_checkpoint")
    settings = SampleSettings() if settings is None else settings
    instance_of("settings", settings, SampleSettings)
    generation = Generation(checkpoint, settings)
    if png and out is None:
        raise InputError("`png`: needs a folder; name one with `out`")
    calls = generation.num_evaluations
    with reported_session(
        "sample",
        device,
        out,
        command,
        listener,
        shown=progress,
        unit="images",
        amount=f"images, {calls:,} network evaluations each",
        calls=calls,
    ) as (run_session, reporter):
        ranks = run_session.ranks
        generation = generation.begun(run_session, "num_samples", num_samples)
        identity = {
            "schema": SampleReport.SCHEMA,
            **generation.identity,
            "tables": run_session.dtype_of_tables(generation.checkpoint),
            "ddpmbench": __version__,
        }
        run_session.agree(identity, num_samples=num_samples)
        folder = run_session.folder(identity, reporter.warn)
        if folder is not None:
            ranks.once(lambda: folder.refuse_more("num_samples", num_samples))
        store = run_session.store(SAMPLES_STORE)
        engine = generation.engine(
            num_samples, run_session, batch_size=batch_size, note=reporter.note
        )
        worker = run_session.worker(generation.shape, batch_size=batch_size, listener=reporter)
        SamplesRun(generation, engine, worker).compute(num_samples, store)
        report = _report(generation, num_samples, engine.choice, store, run_session.out)
        if folder is not None and ranks.reports:
            resolved = {**identity, "num_samples": num_samples}
            record = run_session.environment(resolved, batch_size=batch_size, engine=engine)
            write_samples(folder.path / SAMPLES, report.images.pixels, report.images.labels)
            folder.write_json(ENVIRONMENT, record)
            write_figure(
                folder.path, "samples", *samples_figure(report.images.pixels, report.images.labels)
            )
            if png:
                write_pngs(folder.path / PNGS, report.images.pixels)
            folder.write_summary(report.summary)
        ranks.wait()
        return report


def _report(
    generation: Generation,
    num_samples: int,
    engine: EngineChoice,
    store: Store,
    out: Path | None,
) -> SampleReport:
    source = "samples" if out is None else SAMPLES
    images = generation.images(num_samples, store, source=source)
    seconds, made_by = store.seconds(num_samples), MadeBy.of(generation)
    summary = {
        "schema": SampleReport.SCHEMA,
        "num_samples": num_samples,
        "shape": list(generation.shape),
        "sha256": images.sha256,
        "sampler": made_by.sampler,
        "eight_bit": made_by.eight_bit,
        "checkpoint": made_by.checkpoint,
        "num_evaluations": num_samples * generation.num_evaluations,
        "seed": made_by.seed,
        "device": " + ".join(sorted(store.devices(num_samples))),
        "precision": made_by.precision,
        "engine": str(engine),
        "seconds": round(seconds, 3),
        "images_per_second": round(num_samples / seconds, 4) if seconds else None,
    }
    return SampleReport(summary, images, out)
