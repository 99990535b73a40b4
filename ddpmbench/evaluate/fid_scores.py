"""The scores of a run of `fid`: from features to tables, pictures and warnings."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddpmbench.checksums import write_npz
from ddpmbench.data.arrays import picture_of
from ddpmbench.data.images import ImageSet
from ddpmbench.errors import counted
from ddpmbench.evaluate.sample import MadeBy
from ddpmbench.execution.features import FidelityRun, Reference
from ddpmbench.execution.folder import RunFolder
from ddpmbench.execution.samples import SAMPLES, Generation, write_samples
from ddpmbench.execution.store import Store, gathered
from ddpmbench.execution.stored_images import NEAREST, NearestImages
from ddpmbench.metrics.feature_networks import FeatureNetwork
from ddpmbench.metrics.precision_recall import NEIGHBORS, nearest_images
from ddpmbench.metrics.scores import (
    PUBLISHED_AT,
    SUBSET_SIZE,
    SUBSETS,
    InceptionScore,
    Protocol,
    Scores,
    inception_score,
    scores_of,
)
from ddpmbench.metrics.statistics import Estimate, FeatureGaussian
from ddpmbench.report.fid import (
    AGAINST_N_COLUMNS,
    AGAINST_REFERENCE,
    INFLUENCE,
    METRICS,
    PER_IMAGE_COLUMNS,
    FidReport,
    half_width_of,
)
from ddpmbench.unet.timed_unet import Precision

_SHOWN, _NEAREST_SHOWN = 8, 4  # samples, and real images beside each
_LARGEST_SHOWN = 299  # side of pictures that are resized for display: Inception's input
_CHANNELS = {
    frozenset({1}): "gray repeated",
    frozenset({3}): "RGB",
    frozenset({1, 3}): "RGB, gray repeated",
}
_RARE_FIELDS = ("passed_over", "shapes")
"""Fields of the record of samples that are not relevant to most runs."""


@dataclasses.dataclass(frozen=True, eq=False)
class FidScores:
    """The scores of a run; each is computed once.

    Attributes:
        run: the run, whose samples and features are complete.
        images: the samples.
        protocol: how features become scores.
        made_by: how the samples were made; None where it is unknown.
        seed: seed of the subsets that a score draws.
    """

    run: FidelityRun
    images: ImageSet
    protocol: Protocol
    made_by: MadeBy | None
    seed: int

    @cached_property
    def _features(self) -> NDArray[np.float32]:
        return gathered(self.run.features, "features", len(self.images))

    @cached_property
    def _scores(self) -> list[Scores]:
        """The scores against each reference."""
        return [
            scores_of(self._features, self._known(reference, store), seed=self.seed)
            for reference, store in zip(self.run.references, self.run.reference_stores, strict=True)
        ]

    def _known(
        self, reference: Reference, store: Store | None
    ) -> NDArray[np.float32] | FeatureGaussian:
        if isinstance(reference, ImageSet):
            assert store is not None
            return gathered(store, "features", len(reference))
        return reference

    @cached_property
    def _classes(self) -> InceptionScore | None:
        count = len(self.images)
        edges = self.protocol.splits_of(count)
        if not edges or "logits" not in next(self.run.features.read(count)):
            return None
        logits = gathered(self.run.features, "logits", count)
        return inception_score(logits, edges, order=self.protocol.inception_order)

    @cached_property
    def per_image(self) -> pd.DataFrame:
        """One row per sample, `PER_IMAGE_COLUMNS`: nearest in the first reference."""
        first = self.run.references[0]
        neighbors, classes = self._scores[0].neighbors, self._classes
        nearest = None
        if neighbors is not None and isinstance(first, ImageSet):
            nearest = [first.ids[int(i)] for i in neighbors.nearest]
        columns = {
            "image_id": list(self.images.ids),
            "nearest_reference_id": nearest,
            "nearest_reference_distance": None if neighbors is None else neighbors.distance,
            "class_entropy": None if classes is None else classes.class_entropy,
        }
        return pd.DataFrame(columns, columns=list(PER_IMAGE_COLUMNS))

    @cached_property
    def against_n(self) -> pd.DataFrame:
        """The distance at N, N / 2 and N / 4 samples against each reference."""
        rows = [
            (_name(reference), point.num_generated, point.fid, point.standard_error)
            for reference, scores in zip(self.run.references, self._scores, strict=True)
            for point in (() if scores.infinity is None else scores.infinity.points)
        ]
        return pd.DataFrame(rows, columns=list(AGAINST_N_COLUMNS)).astype(AGAINST_N_COLUMNS)

    def summary(self) -> dict[str, Any]:
        """The fields of `summary.json` that follow from samples and features."""
        run, count, made_by = self.run, len(self.images), self.made_by
        of_classes = None if self._classes is None else self._classes.estimate
        is_generated = isinstance(run.source, Generation)
        stores = [run.features] + ([run.samples] if is_generated else [])
        references = [
            {
                **(reference.record if isinstance(reference, ImageSet) else {"split": None}),
                "source": _name(reference),
                "sha256": reference.sha256,
                "num_reference": len(reference) if isinstance(reference, ImageSet) else None,
                **_values(scores.estimates, AGAINST_REFERENCE),
            }
            for reference, scores in zip(run.references, self._scores, strict=True)
        ]
        record = self.images.record
        return {
            "schema": FidReport.SCHEMA,
            "name": run.network.label,
            **_values({**self._scores[0].estimates, "inception_score": of_classes}, METRICS),
            "num_generated": count,
            "num_reference": references[0]["num_reference"],
            "protocol": self._protocol_record(),
            "references": references,
            "samples": {
                "source": self.images.source,
                "sha256": self.images.sha256,
                "num_images": count,
                "skipped": len(self.images.skipped),
                **{name: record[name] for name in _RARE_FIELDS if name in record},
            },
            "checkpoint": None if made_by is None else made_by.checkpoint,
            "sampler": None if made_by is None else made_by.sampler,
            "num_evaluations": count * run.source.num_evaluations
            if isinstance(run.source, Generation)
            else 0,
            "seed": self.seed if made_by is None else made_by.seed,
            "device": " + ".join(sorted(set().union(*(s.devices(count) for s in stores)))),
            "compute_precision": str(Precision.FP32 if made_by is None else made_by.precision),
            "seconds": round(sum(s.seconds(count) for s in stores), 3),
            "warnings": _warnings(self.images, run.references, run.network, self._scores[0]),
        }

    def _protocol_record(self) -> dict[str, Any]:
        protocol, network, classes = self.protocol, self.run.network, self._classes
        first = self.run.references[:1]
        sizes = [len(images) for images in (self.images, *first) if isinstance(images, ImageSet)]
        return {
            "id": protocol.id,
            "resize": network.resize,
            "eight_bit": "as given" if self.made_by is None else self.made_by.eight_bit,
            "channels": _CHANNELS[self.images.channels],
            "feature_network": {
                "name": network.name,
                "sha256": network.sha256,
                "num_features": network.num_features,
            },
            "inception_splits": None if classes is None else len(classes.over_splits),
            "inception_order": None if classes is None else protocol.inception_order,
            "kid_subsets": SUBSETS,
            "kid_subset_size": min(SUBSET_SIZE, *sizes),
            "neighbors": NEIGHBORS,
            "num_generated": len(self.images),
            "dtype": "float32 features, float64 statistics",
        }

    def write(self, folder: RunFolder) -> None:
        """Write the samples, and the data of the report's figures."""
        if isinstance(self.run.source, Generation):
            write_samples(folder.path / SAMPLES, self.images.pixels, self.images.labels)
        scores, classes = self._scores[0], self._classes
        parts = {
            "fid": scores.frechet,
            "precision": None if scores.neighbors is None else scores.neighbors.precision,
            "inception_score": None if classes is None else classes.estimate,
        }
        influences: dict[str, Any] = {
            name: estimate.influence
            for name, estimate in parts.items()
            if estimate is not None and estimate.influence is not None
        }
        with folder.replacing(INFLUENCE) as temporary:
            write_npz(temporary, influences)
        first, store = self.run.references[0], self.run.reference_stores[0]
        if not isinstance(first, ImageSet) or store is None:
            return
        # Pictures need one size and number of channels; images of several sizes are resized.
        if first.shape == self.images.shape or None in (first.shape, self.images.shape):
            with folder.replacing(NEAREST) as temporary:
                self._nearest(first, store).write(temporary)

    def _nearest(self, reference: ImageSet, store: Store) -> NearestImages:
        """The first samples, each with the nearest images of a reference."""
        known = gathered(store, "features", len(reference))
        count = min(_NEAREST_SHOWN, len(reference))
        index, distance = nearest_images(self._features[:_SHOWN], known, count)
        sample = np.arange(len(index))
        shape = _shape_shown(self.images, reference)
        return NearestImages(
            samples=_shown(self.images, sample, shape),
            sample=sample,
            references=_shown(reference, index, shape),
            reference_id=np.array([[reference.ids[int(i)] for i in row] for row in index]),
            distance=distance,
        )


def _values(
    estimates: Mapping[str, Estimate | None], names: Iterable[str]
) -> dict[str, float | None]:
    """The scores of these names, each with its half width."""
    values: dict[str, float | None] = {}
    for name in names:
        estimate = estimates[name]
        values[name] = None if estimate is None else estimate.value
        values[half_width_of(name)] = None if estimate is None else estimate.half_width
    return values


def _shape_shown(samples: ImageSet, reference: ImageSet) -> tuple[int, ...]:
    """(C, H, W) of the pictures shown: the first sample's, with color if any image has it."""
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


LEAST_GENERATED = 2_048
"""Below this number of samples, the bias of a distance exceeds most differences."""
TOO_NEAR = 1e-3
"""A distance that no generator reaches."""
_LOSSY = (".jpg", ".jpeg", ".webp")


def _warnings(
    images: ImageSet, references: Sequence[Reference], network: FeatureNetwork, scores: Scores
) -> list[str]:
    """Warnings about the scores of samples, one line each."""
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
    if images.skipped_note is not None:
        lines.append(images.skipped_note)
    if any(Path(name).suffix.lower() in _LOSSY for name in images.ids[: min(count, 1000)]):
        lines.append("samples are JPEG or WebP files, whose compression changes the distance")
    hashes = _hashes(images)
    if copies := count - len(np.unique(hashes)):
        words = "is a copy of another" if copies == 1 else "are copies of others"
        lines.append(f"{counted(copies, 'sample')} {words}")
    for reference in references:
        if not isinstance(reference, ImageSet):
            continue
        if reference.skipped_note is not None:
            lines.append(reference.skipped_note)
        if images.shape_words != reference.shape_words:
            lines.append(
                f"samples are {images.shape_words}, the images of {reference.name} "
                f"{reference.shape_words}: their resizing differs"
            )
        if shared := int(np.isin(hashes, _hashes(reference)).sum()):
            verb = "is" if shared == 1 else "are"
            lines.append(f"{counted(shared, 'sample')} {verb} also in {reference.name}")
    return lines


def _hashes(images: ImageSet) -> NDArray[np.uint64]:
    """(N,) hashes of the pixels of each image; equal images have equal hashes."""
    digests = [
        hashlib.blake2b(str(image.shape).encode() + image.tobytes(), digest_size=8).digest()
        for image in images.part(0, len(images))
    ]
    return np.frombuffer(b"".join(digests), np.uint64)
