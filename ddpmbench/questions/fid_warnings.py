"""What makes a score less than it seems: few samples, copies, other sizes."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddpmbench.inputs.images import ImageSet
from ddpmbench.quality.features import FeatureNetwork
from ddpmbench.quality.fidelity import Scores
from ddpmbench.quality.protocols import PUBLISHED_AT
from ddpmbench.runs.quality import Reference

LEAST_GENERATED = 2_048
"""Samples below which the bias of a distance is larger than most differences."""
TOO_NEAR = 1e-3
"""A distance that no generator reaches."""
_LOSSY = (".jpg", ".jpeg", ".webp")


def warnings_of(
    images: ImageSet, references: Sequence[Reference], network: FeatureNetwork, scores: Scores
) -> list[str]:
    """A line for each thing that is worth knowing about the scores of samples."""
    count, found = len(images), []
    if count < LEAST_GENERATED:
        found.append(
            f"{count:,} samples are few: the distance is biased upwards; hold it against others of "
            "as many only"
        )
    elif network.is_inception and count != PUBLISHED_AT:
        found.append(
            f"published scores are of {PUBLISHED_AT:,} samples, these of {count:,}: the distance "
            "is biased by their number"
        )
    if scores.frechet.value < TOO_NEAR:
        found.append(
            f"the distance is {scores.frechet.value:.2g}: these are likely the images of the "
            "reference themselves"
        )
    if images.skipped:
        found.append(
            f"{len(images.skipped)} of {count + len(images.skipped):,} files were passed over; "
            f"the first: {images.skipped[0]}"
        )
    if any(Path(name).suffix.lower() in _LOSSY for name in images.ids[: min(count, 1000)]):
        found.append("samples are JPEG or WebP files, whose compression changes the distance")
    own = _hashes(images)
    if copies := count - len(np.unique(own)):
        found.append(f"{copies:,} samples are copies of others")
    for reference in references:
        if not isinstance(reference, ImageSet):
            continue
        if reference.skipped:
            found.append(f"{len(reference.skipped)} files of {reference.name} were passed over")
        if images.shape_words != reference.shape_words:
            found.append(
                f"samples are {images.shape_words}, the images of {reference.name} "
                f"{reference.shape_words}: their resizing differs"
            )
        if shared := int(np.isin(own, _hashes(reference)).sum()):
            found.append(f"{shared:,} samples are also in {reference.name}")
    return found


def _hashes(images: ImageSet) -> NDArray[np.uint64]:
    """(N,) of the pixels of each image; equal images have equal ones."""
    digests = [
        hashlib.blake2b(str(image.shape).encode() + image.tobytes(), digest_size=8).digest()
        for image in images.part(0, len(images))
    ]
    return np.frombuffer(b"".join(digests), np.uint64)
