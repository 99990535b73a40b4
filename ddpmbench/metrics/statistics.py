"""Mean and covariance of features, computed or read from a file; estimates of scores."""

import dataclasses
import hashlib
import zipfile
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddpmbench.data.file_kinds import require_regular
from ddpmbench.errors import InputError
from ddpmbench.files import JOINED, is_alone
from ddpmbench.records import short_repr

Floats = NDArray[np.float64]
FeatureArray = NDArray[np.floating[Any]]
"""(N, D), one row per image."""
AnyArray = NDArray[Any]

CHUNK = 4096
"""Rows converted to float64 at a time."""
_NEGLIGIBLE = 10 * float(np.finfo(np.float64).eps)
"""Eigenvalues below this share of the largest count as rounding."""


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureGaussian:
    """A normal distribution of features.

    Attributes:
        mean: (D,) float64.
        covariance: (D, D) float64, of any rank.
        thin_factor: (D, r) factor F of the covariance F F^T with r < D; None if unknown.
    """

    mean: Floats
    covariance: Floats
    thin_factor: Floats | None = dataclasses.field(default=None, kw_only=True)

    __repr__ = short_repr

    @property
    def trace(self) -> float:
        """Trace of the covariance."""
        return float(np.trace(self.covariance))

    @cached_property
    def factor(self) -> Floats:
        """(D, r) factor F of the covariance F F^T; computed once."""
        if self.thin_factor is not None:
            return self.thin_factor
        try:
            factor: Floats = np.linalg.cholesky(self.covariance).astype(np.float64, copy=False)
            return factor
        except np.linalg.LinAlgError:  # not of full rank
            values, vectors = np.linalg.eigh(self.covariance)
            significant = values > _NEGLIGIBLE * values[-1]
            factor = vectors[:, significant] * np.sqrt(values[significant])
            return factor


@dataclasses.dataclass(frozen=True, eq=False)
class ReferenceStatistics(FeatureGaussian):
    """Mean and covariance of the features of real images, from a file.

    Attributes:
        source: the path as given.
        notes: notes on the file, a line each.
    """

    source: str
    notes: tuple[str, ...] = ()

    __repr__ = short_repr

    def check_features(self, num_features: int) -> None:
        """Refuse moments whose D differs from the feature network's."""
        if len(self.mean) != num_features:
            raise InputError(
                f"`data={self.source}`: mu has shape {self.mean.shape}, but the feature network "
                f"has {num_features} features; it is of another network"
            )

    @property
    def sha256(self) -> str:
        """Digest of mean and covariance, independent of the file format."""
        digest = hashlib.sha256(self.mean.tobytes())
        digest.update(np.ascontiguousarray(self.covariance).tobytes())
        return digest.hexdigest()


def feature_statistics(features: ArrayLike) -> FeatureGaussian:
    r"""Mean and covariance of features.

    .. math::

        \mu = \frac{1}{N} \sum_i f_i, \qquad
        \Sigma = \frac{1}{N - 1} \sum_i (f_i - \mu) (f_i - \mu)^T

    Args:
        features: (N, D), N >= 2; of integers or floats of any precision.

    Returns:
        The normal distribution with these moments, in float64. If N < D it keeps the centered
        features as a factor of the covariance, so that distances are cheaper and more precise.

    Raises:
        InputError: another shape, fewer than two vectors, or a feature that is not finite.
    """
    array = checked_features("features", features)
    mean, covariance = mean_and_covariance(array)
    if len(array) >= array.shape[1]:
        return FeatureGaussian(mean, covariance)
    centered = array.astype(np.float64) - mean
    return FeatureGaussian(mean, covariance, thin_factor=centered.T / np.sqrt(len(array) - 1))


def mean_and_covariance(features: FeatureArray) -> tuple[Floats, Floats]:
    """(D,) mean and (D, D) covariance of (N, D) features, in float64 chunks and two passes.

    Raises:
        InputError: fewer than two vectors, or a feature that is not finite.
    """
    if len(features) < 2:
        raise InputError(f"a covariance needs at least 2 images, and there are {len(features)}")
    mean = features.mean(0, dtype=np.float64)
    if not np.isfinite(mean).all():
        raise InputError("`features`: must be finite")
    scatter = np.zeros((len(mean), len(mean)))
    for rows in chunks(features):
        centered = rows - mean
        scatter += centered.T @ centered
    return mean, scatter / (len(features) - 1)


def checked_features(name: str, features: ArrayLike, *, dimensions: int | None = None) -> AnyArray:
    """The features as an array.

    Args:
        name: of the parameter.
        features: (N, D), N >= 2.
        dimensions: D; None for any.

    Raises:
        InputError: another shape, or not numbers.
    """
    array = np.asarray(features)
    is_table = array.ndim == 2 and len(array) >= 2 and array.shape[1] and array.dtype.kind in "fiu"
    if not is_table or dimensions not in (None, array.shape[1]):
        columns = "D" if dimensions is None else dimensions
        raise InputError(
            f"`{name}`: must be numbers of shape (N, {columns}) with N >= 2, not {array.dtype} of "
            f"shape {array.shape}"
        )
    return array


def checked_pair(features: ArrayLike, reference: ArrayLike) -> tuple[AnyArray, AnyArray]:
    """(N, D) features of samples and (M, D) of real images, as arrays.

    Raises:
        InputError: other shapes, or not finite.
    """
    ours = checked_features("features", features)
    real = checked_features("reference", reference, dimensions=ours.shape[1])
    for name, array in (("features", ours), ("reference", real)):
        if not np.isfinite(array).all():
            raise InputError(f"`{name}`: must be finite")
    return ours, real


def chunks(features: FeatureArray) -> Iterator[Floats]:
    """The features in float64, at most `CHUNK` rows at a time."""
    for start in range(0, len(features), CHUNK):
        yield np.asarray(features[start : start + CHUNK], np.float64)


def without_rounding(values: Floats) -> Floats:
    """Eigenvalues of a positive semidefinite matrix; those within rounding are set to 0."""
    floor = _NEGLIGIBLE * max(float(values.max(initial=0.0)), 0.0)
    return np.where(values > floor, values, 0.0)


# ---- files

_DAMAGE = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error)
_REMEDY = "it must hold mu (D,) and sigma (D, D) as pytorch-fid, clean-fid and ADM write them"


def is_statistics(spec: str | Path) -> bool:
    """Whether a path is an npz with a mean and a covariance."""
    path = Path(spec)
    if path.suffix.lower() != ".npz":
        return False
    try:
        require_regular(path)
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return False
    # ADM's reference batches hold the moments of all images, and some of the images.
    return {"mu", "sigma"} <= names or ("arr_0" not in names and bool(names & {"mu", "sigma"}))


def read_statistics(path: str | Path, *, num_features: int | None = None) -> ReferenceStatistics:
    """Read `mu` and `sigma` from a file.

    Args:
        path: an npz.
        num_features: D of the feature network; None for any.

    Raises:
        InputError: they are missing or not finite, `sigma` is not a covariance, or D is another.
    """
    path = Path(path)
    try:
        require_regular(path)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if not is_alone(archive.zip):
                raise InputError(f"`data={path}`: {JOINED}")
            missing = [name for name in ("mu", "sigma") if name not in archive.files]
            if missing:
                raise InputError(f"`data={path}`: has no {missing[0]}; {_REMEDY}")
            mean, covariance = archive["mu"], archive["sigma"]
            has_images = "arr_0" in archive.files
    except _DAMAGE as error:
        reason = " ".join(str(error).split())
        raise InputError(f"`data={path}`: cannot be read ({reason}); {_REMEDY}") from error
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
        raise InputError(
            f"`data={path}`: mu has shape {mean.shape} and sigma {covariance.shape}; {_REMEDY}"
        )
    for name, array in (("mu", mean), ("sigma", covariance)):
        if array.dtype.kind not in "fiu":
            raise InputError(f"`data={path}`: {name} is {array.dtype}; {_REMEDY}")
        if not np.isfinite(array).all():
            raise InputError(
                f"`data={path}`: {name} holds numbers that are not finite; write it again"
            )
    covariance = covariance.astype(np.float64)
    scale = np.abs(covariance).max()
    if np.abs(covariance - covariance.T).max() > 1e-6 * scale or (covariance.diagonal() < 0).any():
        raise InputError(
            f"`data={path}`: sigma is no covariance: it must be symmetric, and its diagonal "
            "not negative; write it again"
        )
    symmetric = (covariance + covariance.T) / 2
    notes = (f"`data={path}`: mu and sigma are the reference; the images in arr_0 are not used",)
    statistics = ReferenceStatistics(
        mean.astype(np.float64), symmetric, str(path), notes if has_images else ()
    )
    if num_features is not None:
        statistics.check_features(num_features)
    return statistics


# ---- scores

NORMAL = 1.959963984540054
"""Half width of a 95 % interval in standard errors."""


@dataclasses.dataclass(frozen=True, eq=False)
class Estimate:
    """A score with its standard error.

    The error is that of drawing the samples anew, the reference held fixed.

    Attributes:
        value: the score.
        standard_error: None if unknown.
        influence: (N,) first-order influence of each sample on the score, with mean 0; None if the
            error is not computed from it.
    """

    value: float
    standard_error: float | None
    influence: Floats | None = None

    __repr__ = short_repr

    @property
    def half_width(self) -> float | None:
        """Half width of the 95 % interval; None if unknown."""
        return None if self.standard_error is None else NORMAL * self.standard_error

    @classmethod
    def of_influence(cls, value: float, influence: Floats, *, besides: float = 0.0) -> "Estimate":
        r"""An estimate with the error of a mean over samples.

        .. math::

            s^2 = \frac{1}{N (N - 1)} \sum_i \psi_i^2 + b^2

        Args:
            value: the score.
            influence: (N,) psi, of each sample.
            besides: b, a further, independent standard error.
        """
        error = np.hypot(influence.std(ddof=1) / np.sqrt(len(influence)), besides)
        return cls(float(value), float(error), influence)
