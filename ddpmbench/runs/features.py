"""Features of images: made in parts, and those of a reference kept for later runs."""

import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ddpmbench.array_store import release
from ddpmbench.errors import InputError
from ddpmbench.inputs.datasets import CACHE_VARIABLE, cache_folder
from ddpmbench.inputs.images import ImageSet
from ddpmbench.quality.features import FeatureNetwork
from ddpmbench.runs.distributed import Ranks
from ddpmbench.runs.parts import Arrays, FolderParts, PartStore
from ddpmbench.runs.parts_run import PartsRun

BATCH_SHAPE = (3, 64, 64)
"""As large as images are taken to be where a batch size is chosen: a feature network makes them as
large as it wants them, but soon small again."""
FORMAT = 3
"""Of the features kept; another number makes them anew."""


@dataclasses.dataclass(frozen=True, eq=False)
class FeaturesRun:
    """What makes features.

    Attributes:
        network: sees the images.
        parts: in which batches, and by which processes; it counts images.
    """

    network: FeatureNetwork
    parts: PartsRun

    @property
    def alone(self) -> "FeaturesRun":
        """The same without other processes."""
        return dataclasses.replace(self, parts=dataclasses.replace(self.parts, ranks=Ranks()))

    def compute(self, images: ImageSet, store: PartStore) -> None:
        """Make the features that are missing, as `features` and, with classes, `logits`.

        Raises:
            InputError: features are not finite; or see `PartsRun.compute`.
            ProcessLostError: another process has stopped.
        """
        self.parts.compute(len(images), store, self._features_of(images))

    def _features_of(
        self, images: ImageSet
    ) -> Callable[[NDArray[np.int64], Callable[[int], None]], Arrays]:
        def features(index: NDArray[np.int64], told: Callable[[int], None]) -> Arrays:
            found = self.network(images.part(int(index[0]), int(index[-1]) + 1))
            release(images.pixels)
            bad = np.flatnonzero(~np.isfinite(found.features).all(axis=1))
            if len(bad):
                raise InputError(
                    f"--feature-network {self.network.name}: features of image "
                    f"{images.ids[int(index[bad[0]])]} are not finite"
                )
            arrays: Arrays = {"features": found.features}
            if found.logits is not None:
                arrays["logits"] = found.logits
            return arrays

        return features


def reference_store(images: ImageSet, network: FeatureNetwork) -> FolderParts:
    """Where features of a reference are kept: by what they are of, not by its name.

    They lie in the user's cache, so that the next run, of whatever model, finds them.
    """
    text = repr((images.sha256, network.sha256, network.name, network.resize, FORMAT))
    key = hashlib.sha256(text.encode()).hexdigest()[:32]
    return FolderParts(cache_folder() / "features" / key, option=CACHE_VARIABLE)
