"""References that are only the mean and covariance of features, as other tools write them."""

import dataclasses
import hashlib
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddpmbench.errors import InputError
from ddpmbench.inputs.file_kinds import require_regular
from ddpmbench.records import short_repr

_DAMAGE = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error)
_REMEDY = "it must hold mu (D,) and sigma (D, D) as pytorch-fid, clean-fid and ADM write them"


@dataclasses.dataclass(frozen=True, eq=False)
class ReferenceStatistics:
    """Mean and covariance of the features of real images.

    Attributes:
        mean: (D,) float64.
        covariance: (D, D) float64, symmetric.
        source: the path as given.
        sha256: of both.
    """

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    source: str

    __repr__ = short_repr

    @property
    def sha256(self) -> str:
        """Of both: the same for the same numbers in any file."""
        digest = hashlib.sha256(self.mean.tobytes())
        digest.update(np.ascontiguousarray(self.covariance).tobytes())
        return digest.hexdigest()


def is_statistics(spec: str | Path) -> bool:
    """Whether a path is an npz of a mean and a covariance, whatever else it holds."""
    path = Path(spec)
    if path.suffix.lower() != ".npz":
        return False
    try:
        require_regular(path)
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return False
    # The reference batches of ADM hold some of the images beside the moments of all of them.
    return {"mu", "sigma"} <= names or ("arr_0" not in names and bool(names & {"mu", "sigma"}))


def read_statistics(path: Path, *, num_features: int) -> ReferenceStatistics:
    """Read `mu` and `sigma`.

    Args:
        path: an npz.
        num_features: D of the feature network.

    Raises:
        InputError: it does not hold them, they are not finite, or of other features.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [name for name in ("mu", "sigma") if name not in archive.files]
            if missing:
                raise InputError(f"--data {path}: has no {missing[0]}; {_REMEDY}")
            mean, covariance = archive["mu"], archive["sigma"]
    except _DAMAGE as error:
        reason = " ".join(str(error).split())
        raise InputError(f"--data {path}: cannot be read ({reason}); {_REMEDY}") from error
    if covariance.shape != 2 * mean.shape:
        raise InputError(
            f"--data {path}: mu has shape {mean.shape} and sigma {covariance.shape}; {_REMEDY}"
        )
    for name, array, shape in (
        ("mu", mean, (num_features,)),
        ("sigma", covariance, (num_features, num_features)),
    ):
        if array.dtype.kind not in "fiu":
            raise InputError(f"--data {path}: {name} is {array.dtype}; {_REMEDY}")
        if array.shape != shape:
            raise InputError(
                f"--data {path}: {name} has shape {array.shape}, but the feature network has "
                f"{num_features} features; it is of another network"
            )
        if not np.isfinite(array).all():
            raise InputError(
                f"--data {path}: {name} holds numbers that are not finite; write it again"
            )
    covariance = covariance.astype(np.float64)
    scale = np.abs(covariance).max()
    if np.abs(covariance - covariance.T).max() > 1e-6 * scale or (covariance.diagonal() < 0).any():
        raise InputError(
            f"--data {path}: sigma is no covariance: it must be symmetric, and its diagonal "
            "not negative; write it again"
        )
    symmetric = (covariance + covariance.T) / 2
    return ReferenceStatistics(mean.astype(np.float64), symmetric, str(path))
