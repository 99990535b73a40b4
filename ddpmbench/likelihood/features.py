"""What is known of every image at every step without the network.

A network's term at (image, step) is close to the one a linear denoiser would have, and images that
compress badly are predicted badly. Neither needs a network call.
"""

import dataclasses
from collections.abc import Iterator
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from ddpmbench.array_store import release
from ddpmbench.process.data_range import UNIT_RANGE, DataRange
from ddpmbench.process.schedule import NoiseSchedule

CHUNK_BYTES = 2**23
"""Images are taken in portions whose arrays of float64 have about this many bytes each."""
MOMENT_IMAGES = 20_000
"""The mean and the spectrum are those of at most this many images, evenly spaced in the set."""
LEVELS = 512
"""The spectrum has at most this many different values."""


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianFeatures:
    """The terms of the best denoiser of a normal distribution with the images' spectrum.

    The coefficients of an image are those of its 2-D cosine transform along the principal axes of
    its colors; the distribution has them independent.

    Attributes:
        mean: (C, H, W) of the images in the data's range.
        color: (C, C) orthonormal, one axis a column.
        level: (D,) which level of the spectrum each coefficient has, D = C H W.
        spectrum: (K,) variance of the coefficients of each level.
        schedule: the noise schedule.
        data_range: the numbers an image is made of.

    Source: Wiener filter; `likelihood.md` names the formula.
    """

    mean: NDArray[np.float64]
    color: NDArray[np.float64]
    level: NDArray[np.int64]
    spectrum: NDArray[np.float64]
    schedule: NoiseSchedule
    data_range: DataRange = UNIT_RANGE

    @classmethod
    def fit(
        cls,
        pixels: NDArray[np.uint8],
        schedule: NoiseSchedule,
        data_range: DataRange = UNIT_RANGE,
    ) -> Self:
        """The distribution with the mean and the spectrum of images.

        Args:
            pixels: (N, C, H, W) 8-bit levels.
            schedule: the noise schedule.
            data_range: the numbers an image is made of.
        """
        sample = pixels[:: -(-len(pixels) // MOMENT_IMAGES)]
        channels, height, width = pixels.shape[1:]
        first = np.zeros((channels, height, width))
        second = np.zeros((channels, channels, height, width))
        for part in portions(sample):
            x = _cosine_transform(data_range.array_to_model(sample[part]))
            first += x.sum(0)
            second += np.einsum("nchw,ndhw->cdhw", x, x)
        first /= len(sample)
        covariance = second / len(sample) - first[:, None] * first[None, :]
        _, color = np.linalg.eigh(covariance.mean((2, 3)))
        variance = np.einsum("ca,cdhw,da->ahw", color, covariance, color).ravel()
        variance = np.maximum(variance, 0.0) + (2 * data_range.half_bin) ** 2 / 12  # of rounding
        level = np.empty(variance.size, dtype=np.int64)
        groups = np.array_split(np.argsort(variance, kind="stable"), min(LEVELS, variance.size))
        for k, group in enumerate(groups):
            level[group] = k
        spectrum = np.array([variance[group].mean() for group in groups])
        mean = fft.idctn(first, axes=(1, 2), norm="ortho")
        return cls(np.asarray(mean), color, level, spectrum, schedule, data_range)

    @property
    def weight(self) -> NDArray[np.float64]:
        """(T - 1,) nats at t = 2..T for a mean squared error of 1 in x_start, fixed_small."""
        snr = self.schedule.snr.numpy()
        return np.asarray((snr[:-1] - snr[1:]) / 2)

    def divergence(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """The terms at every step.

        Args:
            pixels: (B, C, H, W) 8-bit levels.

        Returns:
            (B, T - 1) for t = 2..T, positive, nats per dimension: the expectation over the noise
            of the term of a model with variance fixed_small.
        """
        factor, constant = self._coefficients()
        return np.asarray(self._squares(pixels) @ factor + constant)

    def divergence_at(self, pixels: NDArray[np.uint8], t: NDArray[np.int64]) -> NDArray[np.float64]:
        """The terms at some steps of each image.

        Args:
            pixels: (B, C, H, W) 8-bit levels.
            t: (R, B) steps in 2..T.

        Returns:
            (R, B) nats per dimension.
        """
        factor, constant = self._coefficients()
        squares, columns = self._squares(pixels), factor.T
        # A rotation at a time: together they could be many times the images.
        dots = [np.einsum("bk,bk->b", squares, columns[step - 2]) for step in t]
        return np.stack(dots) + constant[t - 2]

    def _squares(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """(B, K) sum of the squared coefficients of each level."""
        z = _cosine_transform(self.data_range.array_to_model(pixels) - self.mean)
        squares = np.square(np.einsum("ca,nchw->nahw", self.color, z)).reshape(len(z), -1)
        order = np.argsort(self.level, kind="stable")
        starts = np.searchsorted(self.level[order], np.arange(len(self.spectrum)))
        return np.asarray(np.add.reduceat(squares[:, order], starts, axis=1))

    def _coefficients(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(K, T - 1) and (T - 1,): the term is squares @ the first + the second."""
        signal = self.schedule.alphas_cumprod.numpy()[1:]
        noise = self.schedule.one_minus_alphas_cumprod.numpy()[1:]
        v = self.spectrum[:, None]
        total = signal * v + noise
        scale = self.weight / len(self.level)
        kept = noise / total  # 1 - a W without the difference
        wiener = np.sqrt(signal) * v / total
        count = np.bincount(self.level, minlength=len(self.spectrum))
        return scale * np.square(kept), scale * noise * (count @ np.square(wiener))


def code_length(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What a lossless code of each image takes, a stand-in for the size of its PNG.

    Every level is predicted from three neighbors as in JPEG-LS; the length is the entropy of the
    errors' histogram. Unlike the size of a PNG it does not depend on a library's version.

    Args:
        pixels: (B, C, H, W) 8-bit levels.

    Returns:
        (B,) nats per dimension.

    Source: Weinberger, Seroussi & Sapiro 2000, "The LOCO-I lossless image compression algorithm".
    """
    padded = np.pad(pixels, ((0, 0), (0, 0), (1, 0), (1, 0))).astype(np.int16)
    left, above, corner = padded[..., 1:, :-1], padded[..., :-1, 1:], padded[..., :-1, :-1]
    low, high = np.minimum(left, above), np.maximum(left, above)
    error = (padded[..., 1:, 1:] - np.clip(left + above - corner, low, high)) % 256
    flat = error.reshape(len(pixels), -1) + 256 * np.arange(len(pixels))[:, None]
    histogram = np.bincount(flat.ravel(), minlength=256 * len(pixels)).reshape(-1, 256)
    share = histogram / max(flat.shape[1], 1)
    return np.asarray(-(share * np.log(np.where(share > 0, share, 1.0))).sum(1))


def portions(pixels: NDArray[np.uint8], width: int = 256) -> Iterator[slice]:
    """Slices that cover the images, each small enough to be worked on in memory.

    Args:
        pixels: (N, C, H, W), let go of after each slice if they lie in a file.
        width: how many numbers are worked out of an image, if more than it has pixels; the
            histogram of a code length has 256.
    """
    size = max(1, CHUNK_BYTES // (8 * max(width, pixels[:1].size)))
    for start in range(0, len(pixels), size):
        yield slice(start, min(start + size, len(pixels)))
        release(pixels)


def _cosine_transform(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(fft.dctn(x, axes=(2, 3), norm="ortho"))
