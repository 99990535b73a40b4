"""How good are a model's samples? Distances to real images in the features of a network."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddpmbench.checksums import write_npz
from ddpmbench.data.arrays import picture_of
from ddpmbench.data.images import ImageSet, ImageSource, load_images, refuse_reduced
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.errors import InputError, instance_of, whole_number
from ddpmbench.evaluate.progress import quality_listening
from ddpmbench.evaluate.sample import MadeBy
from ddpmbench.execution.engine import Engine
from ddpmbench.execution.features import (
    FidelityListener,
    FidelityRun,
    FidelityStores,
    Reference,
    check_room,
)
from ddpmbench.execution.finished import ENVIRONMENT, PER_IMAGE
from ddpmbench.execution.folder import RunFolder
from ddpmbench.execution.samples import SAMPLES, Generation, SampleSettings, write_samples
from ddpmbench.execution.session import session
from ddpmbench.execution.store import Store, gathered, recomputed
from ddpmbench.report import fidelity as tables
from ddpmbench.report.card import Card, Draw, Shown
from ddpmbench.report.fidelity import AGAINST_N, INFLUENCE, NEAREST, SCHEMA, NearestImages
from ddpmbench.samples.feature_networks import FeatureNetwork
from ddpmbench.samples.precision_recall import NEIGHBORS, nearest_images
from ddpmbench.samples.scores import (
    PUBLISHED_AT,
    SUBSET_SIZE,
    SUBSETS,
    InceptionScore,
    Protocol,
    Scores,
    inception_score,
    scores_of,
)
from ddpmbench.samples.statistics import (
    FeatureGaussian,
    ReferenceStatistics,
    is_statistics,
    read_statistics,
)
from ddpmbench.sanity_check.record import CheckRecord
from ddpmbench.sanity_check.run import PreliminaryCheck
from ddpmbench.unet.precision import Precision
from ddpmbench.version import __version__


def check_of_samples(
    run: FidelityRun,
    wanted: bool | None,
    seed: int,
    reporter: FidelityListener,
    folder: RunFolder | None,
) -> CheckRecord | None:
    """By the first reference whose images the network could have been trained on, if any is.

    Args:
        run: samples a checkpoint, or scores samples that there are.
        wanted: whether it is asked for; None where it is made before long runs.
        seed: of the noise.
        reporter: receives notes and warnings.
        folder: of the run; None if it is kept in memory.

    Returns:
        The record; None if nothing was checked.
    """
    if not isinstance(run.source, Generation):
        return None
    checkpoint = run.source.checkpoint
    check = PreliminaryCheck(
        wanted,
        run.num_generated * checkpoint.schedule.num_timesteps,
        seed=seed,
        batch_size=run.batch_size,
        note=reporter.note,
        warn=reporter.warn,
    )
    for reference in run.references:
        if isinstance(reference, ImageSet) and _is_of_its_kind(reference, run.source):
            return check.run(
                checkpoint, reference, device=run.device, ranks=run.ranks, folder=folder
            )
    if wanted:
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


LEAST_GENERATED = 2_048
"""Samples below which the bias of a distance is larger than most differences."""
TOO_NEAR = 1e-3
"""A distance that no generator reaches."""
_LOSSY = (".jpg", ".jpeg", ".webp")


def warnings_of(
    images: ImageSet, references: Sequence[Reference], network: FeatureNetwork, scores: Scores
) -> list[str]:
    """A line for each thing that is worth knowing about the scores of samples."""
    count, lines = len(images), []
    if count < LEAST_GENERATED:
        lines.append(
            f"{count:,} samples are few: the distance is biased upwards; compare it only with "
            "scores of as many samples"
        )
    elif network.is_inception and count != PUBLISHED_AT:
        lines.append(
            f"published scores are of {PUBLISHED_AT:,} samples, these of {count:,}: the distance "
            "is biased by their number"
        )
    if scores.frechet.value < TOO_NEAR:
        lines.append(
            f"the distance is {scores.frechet.value:.2g}: these are likely the images of the "
            "reference themselves"
        )
    if images.skipped:
        lines.append(
            f"{len(images.skipped)} of {count + len(images.skipped):,} files were passed over; "
            f"the first: {images.skipped[0]}"
        )
    if any(Path(name).suffix.lower() in _LOSSY for name in images.ids[: min(count, 1000)]):
        lines.append("samples are JPEG or WebP files, whose compression changes the distance")
    own = _hashes(images)
    if copies := count - len(np.unique(own)):
        lines.append(f"{copies:,} samples are copies of others")
    for reference in references:
        if not isinstance(reference, ImageSet):
            continue
        if reference.skipped:
            lines.append(f"{len(reference.skipped)} files of {reference.name} were passed over")
        if images.shape_words != reference.shape_words:
            lines.append(
                f"samples are {images.shape_words}, the images of {reference.name} "
                f"{reference.shape_words}: their resizing differs"
            )
        if shared := int(np.isin(own, _hashes(reference)).sum()):
            lines.append(f"{shared:,} samples are also in {reference.name}")
    return lines


def _hashes(images: ImageSet) -> NDArray[np.uint64]:
    """(N,) of the pixels of each image; equal images have equal ones."""
    digests = [
        hashlib.blake2b(str(image.shape).encode() + image.tobytes(), digest_size=8).digest()
        for image in images.part(0, len(images))
    ]
    return np.frombuffer(b"".join(digests), np.uint64)


ReferenceSource: TypeAlias = "ReferenceStatistics | ImageSource"
_SHOWN, _NEAREST_SHOWN = 8, 4  # samples, and real images beside each
_LARGEST_SHOWN = 299  # of pictures that are resized to be shown: what Inception sees
_CHANNELS = {
    frozenset({1}): "gray repeated",
    frozenset({3}): "RGB",
    frozenset({1, 3}): "RGB, gray repeated",
}
_OF_SOME = ("passed_over", "shapes")


@dataclasses.dataclass(frozen=True, eq=False)
class FidSettings:
    """How samples are scored.

    Attributes:
        network: of features.
        protocol: how images become scores; the network resizes as it says.
        num_generated: samples of a checkpoint.
        samples: how a checkpoint is sampled; the protocol says how samples become pixels.
        check: whether a sanity check evaluates the checkpoint under other parameterizations
            first, on the first reference with images such as the checkpoint's; None where the run
            is long.
        made_by: how samples that are given were made, where a run says so; see `load_samples`.
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


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FidReport(Shown):
    """Scores of samples against references.

    Attributes:
        summary: the object of `summary.json`.
        per_image: one row a sample; see `report.fidelity_tables`.
        against_n: the distance at several numbers of samples; see there.
        folder: the run folder; None if the run was kept in memory.
    """

    summary: dict[str, Any]
    per_image: pd.DataFrame
    against_n: pd.DataFrame
    folder: Path | None

    def _card(self) -> Card:
        from ddpmbench.report.samples_text import fidelity_card

        return fidelity_card(self.summary, self.folder)

    def _figures(self) -> Mapping[str, Draw]:
        from ddpmbench.report.fidelity import FidelityContents
        from ddpmbench.report.fidelity_page import fid_figures

        return fid_figures(FidelityContents(self))


def evaluate_fid(
    source: "Checkpoint | ImageSource",
    references: "ReferenceSource | Sequence[ReferenceSource]",
    settings: FidSettings,
    *,
    device: str = "auto",
    batch_size: int | None = None,
    out: str | Path | None = None,
    command: list[str] | None = None,
    listener: FidelityListener | None = None,
    progress: bool = True,
) -> FidReport:
    """Frechet distance, kernel distance, precision, recall and Inception score of samples.

    In processes that torchrun started, each makes a share of the samples and of the features,
    and all return the report.

    Args:
        source: a checkpoint to be sampled, or samples: what `load_images` returns or takes.
        references: real images, likewise, or the moments of their features, or a list or tuple
            of several; the first is the headline's.
        settings: how.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps": of both networks.
        batch_size: samples made together, None for what suits the device.
        out: the run folder; one that holds the same run, of fewer samples too, is resumed.
            None keeps the run in memory.
        command: the command line, for the record.
        listener: called as the run proceeds.
        progress: whether progress, warnings and notes go to standard error where there is no
            listener.

    Raises:
        InputError: an argument, the inputs or the folder do not fit.
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
    known = tuple(load_reference(of) for of in several)
    _check(source, known, settings)
    with session(device, out, command) as run_session:
        ranks, target = run_session.ranks, run_session.device
        made = _generation(source, settings) if isinstance(source, Checkpoint) else source
        network = settings.network.to(target)
        if isinstance(made, Generation):
            wanted, room_in = settings.num_generated, run_session.out
            shape = made.shape
            ranks.once(lambda: check_room("num_generated", wanted, shape, room_in))
            model = run_session.checked(made.checkpoint, shape)
            made = dataclasses.replace(made, checkpoint=model)
        run = FidelityRun(made, settings.num_generated, known, network, target, ranks, batch_size)
        identity = _identity(run, settings)
        run_session.agree(identity, num_generated=settings.num_generated)
        folder = run_session.folder(identity)
        if folder is not None and not isinstance(made, ImageSet):
            ranks.once(lambda: folder.refuse_more("num_generated", settings.num_generated))
        reporter = quality_listening(
            listener if ranks.reports else None, shown=progress and ranks.reports
        )
        stores = FidelityStores.of(known, settings.network, folder)
        if folder is not None and folder.dropped:
            reporter.warn(recomputed(list(folder.dropped)))
        for images in (made, *known):
            for line in () if isinstance(images, Generation) else images.notes:
                reporter.note(line)
        checked = check_of_samples(run, settings.check, settings.samples.seed, reporter, folder)
        engine = run.engine(None if folder is None else folder.path, note=reporter.note)
        images = run.compute(engine, stores, reporter)
        scoring = _Scoring(run, engine, settings, images, stores, checked)
        report = ranks.once(lambda: scoring.report(folder))
        if ranks.reports:
            for line in report.summary["warnings"]:
                reporter.warn(line)
        if folder is not None and ranks.reports:
            resolved = {**identity, "num_generated": len(images), "engine": None}
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
    """A reference: images, or moments of features where a path is to a file of them.

    Args:
        source: what `load_images` takes, the path of an npz of `mu` and `sigma`, or either read.
        num_images: only the first so many images; None for all.
        on_bad: see `load_images`.
        convert: likewise.

    Raises:
        InputError: there is no such reference, or it holds no images of which to take the first
            ones.
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


def _generation(checkpoint: Checkpoint, settings: FidSettings) -> Generation:
    eight_bit = settings.protocol.eight_bit
    return Generation(checkpoint, dataclasses.replace(settings.samples, eight_bit=eight_bit))


def _identity(run: FidelityRun, settings: FidSettings) -> dict[str, Any]:
    """Everything that determines the scores, besides how many samples there are."""
    of_samples: dict[str, Any]
    if isinstance(run.source, ImageSet):
        of_samples = {"samples": run.source.sha256, "precision": str(Precision.FP32)}
    else:
        tables_are = str(run.source.checkpoint.diffusion.to(run.device).dtype)
        of_samples = {**run.source.identity, "tables": tables_are}
    return {
        "schema": SCHEMA,
        **of_samples,
        "references": [reference.sha256 for reference in run.references],
        "protocol": settings.protocol.id,
        "feature_network": run.network.sha256,
        "feature_network_name": run.network.name,
        "resize": run.network.resize,
        "seed": settings.samples.seed,
        "ddpmbench": __version__,
    }


@dataclasses.dataclass(frozen=True, eq=False)
class _Scoring:
    """From what a run has made to its report."""

    run: FidelityRun
    engine: Engine | None
    settings: FidSettings
    images: ImageSet
    stores: FidelityStores
    checked: CheckRecord | None = None

    def report(self, folder: RunFolder | None) -> FidReport:
        features = gathered(self.stores.features, "features", len(self.images))
        scores = [
            scores_of(features, self._known(reference, store), seed=self.settings.samples.seed)
            for reference, store in zip(self.run.references, self.stores.references, strict=True)
        ]
        classes, first = self._classes(), self.run.references[0]
        reference_ids = first.ids if isinstance(first, ImageSet) else ()
        sources = [_name(reference) for reference in self.run.references]
        report = FidReport(
            self._summary(scores, classes),
            tables.per_image_frame(self.images.ids, scores[0], reference_ids, classes),
            tables.against_n_frame(sources, scores),
            None if folder is None else folder.path,
        )
        if folder is not None:
            folder.write_frame(PER_IMAGE, report.per_image)
            folder.write_frame(AGAINST_N, report.against_n)
            self._write_arrays(folder, features, scores[0], classes)
        return report

    def _known(
        self, reference: Reference, store: Store | None
    ) -> NDArray[np.float32] | FeatureGaussian:
        if isinstance(reference, ImageSet):
            assert store is not None
            return gathered(store, "features", len(reference))
        return FeatureGaussian(reference.mean, reference.covariance)

    def _classes(self) -> InceptionScore | None:
        count = len(self.images)
        edges = self.settings.protocol.splits_of(count)
        if not edges or "logits" not in next(self.stores.features.read(count)):
            return None
        order = self.settings.protocol.inception_order
        logits = gathered(self.stores.features, "logits", count)
        return inception_score(logits, edges, order=order)

    def _write_arrays(
        self,
        folder: RunFolder,
        features: NDArray[np.float32],
        scores: Scores,
        classes: InceptionScore | None,
    ) -> None:
        first, store = self.run.references[0], self.stores.references[0]
        if isinstance(self.run.source, Generation):
            write_samples(folder.path / SAMPLES, self.images.pixels, self.images.labels)
        parts = {
            "fid": scores.frechet,
            "precision": None if scores.neighbors is None else scores.neighbors.precision,
            "inception_score": None if classes is None else classes.estimate,
        }
        influences: dict[str, Any] = {
            name: of.influence
            for name, of in parts.items()
            if of is not None and of.influence is not None
        }
        with folder.replacing(INFLUENCE) as temporary:
            write_npz(temporary, influences)
        if not isinstance(first, ImageSet) or store is None:
            return
        # Pictures of two sizes or colors do not stand side by side; those of several are resized.
        if first.shape == self.images.shape or None in (first.shape, self.images.shape):
            count = min(_NEAREST_SHOWN, len(first))
            known = gathered(store, "features", len(first))
            index, distance = nearest_images(features[:_SHOWN], known, count)
            sample = np.arange(len(index))
            shape = _shape_shown(self.images, first)
            nearest = NearestImages(
                samples=_shown(self.images, sample, shape),
                sample=sample,
                references=_shown(first, index, shape),
                reference_id=np.array([[first.ids[int(i)] for i in row] for row in index]),
                distance=distance,
            )
            with folder.replacing(NEAREST) as temporary:
                nearest.write(temporary)

    def _summary(self, scores: Sequence[Scores], classes: InceptionScore | None) -> dict[str, Any]:
        run, count = self.run, len(self.images)
        generation = run.source if isinstance(run.source, Generation) else None
        made_by = self._made_by
        stores = [self.stores.features] + ([self.stores.samples] if generation else [])
        references = [
            {
                **(reference.record if isinstance(reference, ImageSet) else {"split": None}),
                "source": _name(reference),
                "sha256": reference.sha256,
                "num_reference": len(reference) if isinstance(reference, ImageSet) else None,
                **tables.scores_summary(of),
            }
            for reference, of in zip(run.references, scores, strict=True)
        ]
        return {
            "schema": SCHEMA,
            "name": run.network.label,
            **tables.headline_summary(scores[0], classes),
            "num_generated": count,
            "num_reference": references[0]["num_reference"],
            "protocol": self._protocol(classes),
            "references": references,
            "samples": {
                "source": self.images.source,
                "sha256": self.images.sha256,
                "num_images": count,
                "skipped": len(self.images.skipped),
                **_differing(self.images),
            },
            "checkpoint": None if made_by is None else made_by.checkpoint,
            "sampler": None if made_by is None else made_by.sampler,
            "num_evaluations": 0
            if generation is None
            else count * generation.checkpoint.schedule.num_timesteps,
            "seed": self.settings.samples.seed if made_by is None else made_by.seed,
            "device": " + ".join(sorted(set().union(*(s.devices(count) for s in stores)))),
            "compute_precision": str(Precision.FP32 if made_by is None else made_by.precision),
            "engine": None if self.engine is None else str(self.engine.choice),
            "seconds": round(sum(s.seconds(count) for s in stores), 3),
            "warnings": self._warnings(scores[0]),
            "check": None if self.checked is None else self.checked.to_dict(),
        }

    @property
    def _made_by(self) -> MadeBy | None:
        source = self.run.source
        if isinstance(source, ImageSet):
            return self.settings.made_by
        settings = source.settings
        return MadeBy(
            source.checkpoint_record,
            source.record,
            settings.seed,
            str(settings.eight_bit),
            str(settings.precision),
        )

    def _protocol(self, classes: InceptionScore | None) -> dict[str, Any]:
        protocol, network = self.settings.protocol, self.run.network
        return {
            "id": protocol.id,
            "resize": network.resize,
            "eight_bit": "as given" if self._made_by is None else self._made_by.eight_bit,
            "channels": _CHANNELS[self.images.channels],
            "feature_network": {
                "name": network.name,
                "sha256": network.sha256,
                "num_features": network.num_features,
            },
            "inception_splits": None if classes is None else len(classes.over_splits),
            "inception_order": None if classes is None else protocol.inception_order,
            "kid_subsets": SUBSETS,
            "kid_subset_size": min(SUBSET_SIZE, len(self.images), *self._reference_sizes()),
            "neighbors": NEIGHBORS,
            "num_generated": len(self.images),
            "dtype": "float32 features, float64 statistics",
        }

    def _reference_sizes(self) -> list[int]:
        return [len(of) for of in self.run.references[:1] if isinstance(of, ImageSet)]

    def _warnings(self, scores: Scores) -> list[str]:
        return warnings_of(self.images, self.run.references, self.run.network, scores)


def _differing(images: ImageSet) -> dict[str, Any]:
    """Of the record of samples, what most have nothing to say of."""
    return {name: images.record[name] for name in _OF_SOME if name in images.record}


def _shape_shown(samples: ImageSet, reference: ImageSet) -> tuple[int, ...]:
    """(C, H, W) of pictures beside one another: of the first sample, or color if any image is."""
    if samples.shape == reference.shape and samples.shape is not None:
        return samples.shape
    _, *sides = samples.part(0, 1)[0].shape
    channels = max(samples.channels | reference.channels)
    return (channels, *(min(side, _LARGEST_SHOWN) for side in sides))


def _shown(
    images: ImageSet, positions: NDArray[np.int64], shape: tuple[int, ...]
) -> NDArray[np.uint8]:
    """Images at (...) positions as pictures, (..., C, H, W)."""
    if images.shape == shape:
        return images.pixels[positions]
    pictures = [picture_of(images.part(k, k + 1)[0], shape) for k in positions.flatten().tolist()]
    return np.stack(pictures).reshape(*positions.shape, *shape)


def _name(reference: Reference) -> str:
    return reference.name if isinstance(reference, ImageSet) else reference.source
