"""Named data sets: shipped, on the machine, or downloaded once and verified."""

import contextlib
import dataclasses
import gzip
import hashlib
import http.client
import importlib
import os
import sys
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ddpmbench import assets
from ddpmbench.data.array_files import read_idx
from ddpmbench.data.images import ImageSet, PositionIds
from ddpmbench.data.pixel_store import store
from ddpmbench.errors import InputError, count_to_read, refusal

SPLITS = dict.fromkeys(("fashion-mnist", "mnist", "kmnist", "cifar10"), ("train", "test"))
"""The splits of each named data set."""

CACHE_VARIABLE = "DDPMBENCH_CACHE"

_SHIPPED = assets.FOLDER / "fashion-mnist"
_CIFAR10_ARCHIVE = "cifar-10-python.tar.gz"
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")

# gzip headers differ between distributors, so the hashes are those of the contents.
_FASHION_MNIST_SHA256 = {
    "train-images-idx3": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
# torchvision holds the address and the MD5 of each file.
_CLASSES = {"fashion-mnist": "FashionMNIST", "mnist": "MNIST", "kmnist": "KMNIST"}


def dataset_specs() -> list[str]:
    """All named data sets, as `name:split`."""
    return [f"{name}:{split}" for name, splits in SPLITS.items() for split in splits]


def cache_folder() -> Path:
    """The folder of downloads: $DDPMBENCH_CACHE, or else the user's cache folder.

    Raises:
        InputError: the variable is not set, and platformdirs cannot be imported.
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
    """Whether a named data set can be read without a download."""
    if name == "cifar10":
        folder = cache_folder() / "cifar10"
        return any((folder / part).exists() for part in ("cifar-10-batches-py", _CIFAR10_ARCHIVE))
    return _idx_folder(name, split) is not None


def read_dataset(name: str, split: str, num_images: int | None) -> ImageSet:
    """The first images of a named data set, with their labels.

    Args:
        name: a key of `SPLITS`.
        split: one of its splits.
        num_images: number of images to read, from the first on; None for all.

    Raises:
        InputError: the data set is not on this machine and cannot be downloaded.
    """
    if name == "cifar10":
        return _read_cifar10(split, num_images)
    names, folder = _idx_names(split), _idx_folder(name, split)
    if folder is None:
        cache = cache_folder() / name
        with _downloading(f"{name}:{split}", names, cache):
            _download(name, names, cache)
            folder = _idx_folder(name, split)
            if folder is None:
                raise RuntimeError("the files are not the published ones")
    images = read_idx(folder / names[0], num_images, source=f"{name}:{split}")
    return dataclasses.replace(images, source=name, split=split)


def _idx_names(split: str) -> list[str]:
    prefix = {"train": "train", "test": "t10k"}[split]
    return [f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz"]


def _idx_folder(name: str, split: str) -> Path | None:
    """The folder with the published files of a split; None if there is none."""
    files = _idx_names(split)
    return next(
        (
            folder
            for folder in _folders(name)
            if all(_is_published(name, folder / file) for file in files)
        ),
        None,
    )


def _folders(name: str) -> Iterator[Path]:
    if name == "fashion-mnist":
        yield _SHIPPED
        yield _DEBIAN
    yield cache_folder() / name


def _is_published(name: str, path: Path) -> bool:
    """Whether a file exists, and is as its authors published it."""
    try:
        if name == "fashion-mnist":
            with gzip.open(path, "rb") as content:
                sha256 = hashlib.file_digest(content, "sha256").hexdigest()
            return sha256 == _FASHION_MNIST_SHA256[path.name.removesuffix("-ubyte.gz")]
        with path.open("rb") as file:
            md5 = hashlib.file_digest(file, _md5).hexdigest()
    except (OSError, EOFError, zlib.error):
        return False
    return bool(md5 == dict(_torchvision_class(name).resources)[path.name])


def _md5() -> "hashlib._Hash":
    return hashlib.md5(usedforsecurity=False)


def _torchvision_class(name: str) -> Any:  # noqa: ANN401
    return getattr(importlib.import_module("torchvision.datasets"), _CLASSES[name])


def _download(name: str, files: list[str], folder: Path) -> None:
    published = _torchvision_class(name)
    from torchvision.datasets.utils import download_url

    md5 = dict(published.resources)
    folder.mkdir(parents=True, exist_ok=True)
    # Moved into place when complete, so that an interrupted download leaves no file.
    with tempfile.TemporaryDirectory(dir=folder) as partial:
        for file in files:
            download_url(published.mirrors[0] + file, partial, filename=file, md5=md5[file])
            os.replace(Path(partial, file), folder / file)


def _read_cifar10(split: str, num_images: int | None) -> ImageSet:
    folder = cache_folder() / "cifar10"
    with _downloading(f"cifar10:{split}", [_CIFAR10_ARCHIVE], folder):
        from torchvision.datasets import CIFAR10

        # CIFAR-10 comes as pickles. torchvision opens one only if it has the published hash.
        dataset = CIFAR10(str(folder), train=split == "train", download=True)
    count = count_to_read(num_images, len(dataset.data), f"cifar10:{split}")
    pixels = store((count, 3, 32, 32), [dataset.data[:count].transpose(0, 3, 1, 2)], np.uint8)
    labels = np.array(dataset.targets[:count], np.int64)
    return ImageSet(pixels, PositionIds(range(count)), "cifar10", labels, split)


@contextlib.contextmanager
def _downloading(spec: str, names: list[str], folder: Path) -> Iterator[None]:
    """Print the output of torchvision to stderr; turn its errors into InputErrors with remedies."""
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            # numpy and tarfile warn of the old format of the published pickles and archives.
            warnings.simplefilter("ignore")
            yield
    except ImportError as error:
        raise InputError(
            f"{spec}: torchvision cannot be imported ({error}): pip install torchvision"
        ) from error
    # RuntimeError: a wrong hash, or too many redirections.
    except (OSError, RuntimeError, EOFError, http.client.HTTPException) as error:
        raise refusal(
            spec,
            f"not intact on this machine, and not downloaded ({error}); put "
            f"{' and '.join(names)}, as published, into {folder} ({CACHE_VARIABLE} moves it)",
        ) from None  # the line has it all; urllib's errors come in long chains
