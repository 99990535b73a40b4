"""Features of an image that predict its bound: roughness, flatness, compressibility."""

import numpy as np
from numpy.typing import NDArray

_EDGES = (0, 1, 2, 4, 8, 16, 32, 64)  # of differences and of deviations, in levels
NUM_IMAGE_FEATURES = 6 + 2 * len(_EDGES)


def code_length(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(B,) the length of a lossless code of (B, C, H, W) 8-bit images, nats per dimension.

    Like the size of its PNG, but independent of a library's version: every level is predicted from
    three neighbors as in JPEG-LS; the length is the entropy of the errors' histogram.

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


def image_features(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(B, P) features of (B, C, H, W) 8-bit images, each image by itself.

    The code length; the total variation; histograms of the differences between neighbors, and of
    the standard deviations of 3 x 3 pixels, in bins of powers of two; the shares of pixels that are
    black or white, or nearly so.
    """
    x = pixels.astype(np.int32)
    differences = np.concatenate(
        [np.abs(np.diff(x, axis=axis)).reshape(len(x), -1) for axis in (2, 3)], axis=1
    )
    shares = [_shares(differences, _EDGES), _shares(_squared_deviations(x), _SQUARED_EDGES)]
    flat = x.reshape(len(x), -1)
    ends = [flat == 0, (flat > 0) & (flat < 8), (flat > 247) & (flat < 255), flat == 255]
    single = [code_length(pixels), differences.mean(1) if differences.size else np.zeros(len(x))]
    single += [end.mean(1) for end in ends]
    return np.concatenate([np.stack(single, axis=1), *shares], axis=1)


_SQUARED_EDGES = tuple(81 * edge**2 for edge in _EDGES)


def _squared_deviations(x: NDArray[np.int32]) -> NDArray[np.int32]:
    """(B, C H W) 81 times the variance of the 3 x 3 pixels around each, in integers."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    height, width = x.shape[2:]
    total, squares = np.zeros_like(x), np.zeros_like(x)
    for i in range(3):
        for j in range(3):
            part = padded[:, :, i : i + height, j : j + width]
            total += part
            squares += part * part
    return np.asarray((9 * squares - total * total).reshape(len(x), -1))


def _shares(values: NDArray[np.int32], edges: tuple[int, ...]) -> NDArray[np.float64]:
    """(B, K) of each image's values up to the first edge, and up to each further one."""
    below = np.stack([(values <= edge).sum(1) for edge in edges], axis=1)
    return np.asarray(np.diff(below, axis=1, prepend=0) / max(values.shape[1], 1))
