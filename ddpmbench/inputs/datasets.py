"""Named data sets: shipped, found on the machine, or downloaded once and verified."""

import contextlib
import gzip
import hashlib
import http.client
import os
import sys
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ddpmbench import assets
from ddpmbench.array_store import store
from ddpmbench.errors import InputError
from ddpmbench.inputs.idx_files import read_idx
from ddpmbench.inputs.image_files import ImageData, PositionIds
from ddpmbench.inputs.refusals import count_to_read, refusal

SPLITS = {"fashion-mnist": ("train", "test"), "cifar10": ("train", "test")}
"""The splits of each data set that has a name."""

CACHE_VARIABLE = "DDPMBENCH_CACHE"

_SHIPPED = assets.FOLDER / "fashion-mnist"
_CIFAR10_ARCHIVE = "cifar-10-python.tar.gz"
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")

# The gzip headers differ from one distributor to the next, so the hashes are of what is inside.
_FASHION_MNIST = {
    "train": {
        "train-images-idx3-ubyte.gz": (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
        ),
        "train-labels-idx1-ubyte.gz": (
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
        ),
    },
    "test": {
        "t10k-images-idx3-ubyte.gz": (
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
        ),
        "t10k-labels-idx1-ubyte.gz": (
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
        ),
    },
}


def dataset_specs() -> list[str]:
    """Every data set that can be asked for by name, as `name:split`."""
    return [f"{name}:{split}" for name, splits in SPLITS.items() for split in splits]


def cache_folder() -> Path:
    """Where downloads are kept: $DDPMBENCH_CACHE, or else the user's cache folder.

    Raises:
        InputError: if the variable is not set and platformdirs cannot be imported.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    try:
        import platformdirs
    except ImportError as error:
        raise InputError(
            f"platformdirs cannot be imported ({error}): pip install platformdirs, or set "
            f"{CACHE_VARIABLE} to a folder for downloads"
        ) from error
    return Path(platformdirs.user_cache_dir("ddpmbench"))


def is_at_hand(name: str, split: str) -> bool:
    """Whether a named data set can be read here without a download."""
    if name == "cifar10":
        folder = cache_folder() / "cifar10"
        return any((folder / part).exists() for part in ("cifar-10-batches-py", _CIFAR10_ARCHIVE))
    return any(_holds(folder, _FASHION_MNIST[split]) for folder in _fashion_mnist_folders())


def read_dataset(name: str, split: str, num_images: int | None) -> ImageData:
    """The first images of a named data set, with their labels.

    Args:
        name: a key of `SPLITS`.
        split: one of its splits.
        num_images: how many, or None for all.

    Raises:
        InputError: if it is not on this machine and cannot be downloaded.
    """
    if name == "cifar10":
        return _read_cifar10(split, num_images)
    return _read_fashion_mnist(split, num_images)


def _read_fashion_mnist(split: str, num_images: int | None) -> ImageData:
    hashes = _FASHION_MNIST[split]
    folder = next((folder for folder in _fashion_mnist_folders() if _holds(folder, hashes)), None)
    if folder is None:
        cache = cache_folder() / "fashion-mnist"
        with _downloading(f"fashion-mnist:{split}", list(hashes), cache):
            _download_fashion_mnist(list(hashes), cache)
            if not _holds(cache, hashes):
                raise RuntimeError("the files are not the published ones")
        folder = cache
    return read_idx(folder / next(iter(hashes)), num_images)


def _fashion_mnist_folders() -> Iterator[Path]:
    yield _SHIPPED
    yield _DEBIAN
    yield cache_folder() / "fashion-mnist"


def _holds(folder: Path, hashes: dict[str, str]) -> bool:
    return all(_content_sha256(folder / name) == sha256 for name, sha256 in hashes.items())


def _content_sha256(path: Path) -> str | None:
    """The hash of what a gzip file holds; None if there is no such file or it is damaged."""
    try:
        with gzip.open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, EOFError, zlib.error):
        return None


def _download_fashion_mnist(names: list[str], folder: Path) -> None:
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.utils import download_url

    md5 = dict(FashionMNIST.resources)
    folder.mkdir(parents=True, exist_ok=True)
    # Moved into place when complete, so that an interrupted download leaves nothing behind.
    with tempfile.TemporaryDirectory(dir=folder) as partial:
        for name in names:
            download_url(FashionMNIST.mirrors[0] + name, partial, filename=name, md5=md5[name])
            os.replace(Path(partial, name), folder / name)


def _read_cifar10(split: str, num_images: int | None) -> ImageData:
    folder = cache_folder() / "cifar10"
    with _downloading(f"cifar10:{split}", [_CIFAR10_ARCHIVE], folder):
        from torchvision.datasets import CIFAR10

        # CIFAR-10 comes as pickles. torchvision opens one only if its hash is the published one.
        dataset = CIFAR10(str(folder), train=split == "train", download=True)
    count = count_to_read(num_images, len(dataset.data), f"cifar10:{split}")
    pixels = store((count, 3, 32, 32), [dataset.data[:count].transpose(0, 3, 1, 2)], np.uint8)
    labels = np.array(dataset.targets[:count], np.int64)
    return ImageData(pixels, PositionIds(range(count)), labels)


@contextlib.contextmanager
def _downloading(spec: str, names: list[str], folder: Path) -> Iterator[None]:
    """What torchvision prints goes to stderr; what it raises becomes one line with a remedy."""
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            # The published pickles and archives are old: numpy and tarfile warn of their form.
            warnings.simplefilter("ignore")
            yield
    except ImportError as error:
        raise InputError(
            f"--data {spec}: torchvision cannot be imported ({error}): pip install torchvision"
        ) from error
    # RuntimeError: a hash that differs, or too many redirections.
    except (OSError, RuntimeError, EOFError, http.client.HTTPException) as error:
        raise refusal(
            f"--data {spec}",
            f"not found intact on this machine, and not downloaded ({error}); put "
            f"{' and '.join(names)}, as published, into {folder} ({CACHE_VARIABLE} moves it)",
        ) from error
