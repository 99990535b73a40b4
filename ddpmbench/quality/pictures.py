"""What is kept of pictures along the chain: 8-bit arrays, with what it takes to draw them."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Integers = NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class ProgressiveDecoding:
    """What a receiver of N images holds and shows at K steps.

    Attributes:
        num_timesteps: T.
        t: (K,) int64 steps.
        image: (N,) int64 index in the image set.
        image_id: (N,) the images' names.
        x_start: (N, C, H, W) uint8 the images.
        x_t: (N, K, C, H, W) uint8 what the receiver holds.
        pred_x_start: (N, K, C, H, W) uint8 what it shows.
        rmse: (N, K) float64 how far that is from the image before it is rounded, on 0..255.

    Raises:
        ValueError: the arrays do not go together.
    """

    num_timesteps: int
    t: Integers
    image: Integers
    image_id: NDArray[np.str_]
    x_start: Pixels
    x_t: Pixels
    pred_x_start: Pixels
    rmse: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Refuse arrays that do not go together."""
        _check_steps(self.t, self.num_timesteps)
        images, steps = len(self.image), len(self.t)
        shape = self.x_start.shape[1:]
        _check(self.image, np.int64, (images,))
        _check(self.image_id, np.str_, (images,))
        _check(self.rmse, np.float64, (images, steps))
        _check_pictures(self.x_start, (images, *shape))
        for pictures in (self.x_t, self.pred_x_start):
            _check_pictures(pictures, (images, steps, *shape))


@dataclasses.dataclass(frozen=True, eq=False)
class ProgressiveGeneration:
    """N samples, and what the network made of them at K steps along the way.

    Attributes:
        num_timesteps: T.
        t: (K,) int64 steps.
        pred_x_start: (N, K, C, H, W) uint8.
        samples: (N, C, H, W) uint8 x_0.

    Raises:
        ValueError: the arrays do not go together.
    """

    num_timesteps: int
    t: Integers
    pred_x_start: Pixels
    samples: Pixels

    def __post_init__(self) -> None:
        """Refuse arrays that do not go together."""
        _check_steps(self.t, self.num_timesteps)
        samples, *shape = self.samples.shape
        _check_pictures(self.samples, (samples, *shape))
        _check_pictures(self.pred_x_start, (samples, len(self.t), *shape))


@dataclasses.dataclass(frozen=True, eq=False)
class Interpolation:
    """What lies between the images of P pairs, at W weights.

    Attributes:
        num_timesteps: T.
        depth: the step t at which they were mixed.
        pair: (P, 2) int64 indices in the image set.
        image_id: (P, 2) the images' names.
        weight: (W,) float64 of the second image.
        x_start: (P, 2, C, H, W) uint8 the images.
        decoded: (P, W, C, H, W) uint8 x_0 of the mixtures.

    Raises:
        ValueError: the arrays do not go together.
    """

    num_timesteps: int
    depth: int
    pair: Integers
    image_id: NDArray[np.str_]
    weight: NDArray[np.float64]
    x_start: Pixels
    decoded: Pixels

    def __post_init__(self) -> None:
        """Refuse arrays that do not go together."""
        _check_steps(np.array([self.depth]), self.num_timesteps)
        pairs, weights = len(self.pair), len(self.weight)
        shape = self.x_start.shape[2:]
        _check(self.pair, np.int64, (pairs, 2))
        _check(self.image_id, np.str_, (pairs, 2))
        _check(self.weight, np.float64, (weights,))
        _check_pictures(self.x_start, (pairs, 2, *shape))
        _check_pictures(self.decoded, (pairs, weights, *shape))


def _check_steps(t: Integers, num_timesteps: int) -> None:
    _check(t, np.int64, (len(t),))
    if not len(t) or t.min() < 1 or t.max() > num_timesteps:
        raise ValueError(f"steps must lie in 1..{num_timesteps}")


def _check_pictures(pictures: Pixels, shape: tuple[int, ...]) -> None:
    _check(pictures, np.uint8, shape)
    if pictures.shape[-3] not in (1, 3) or not pictures.size or len(shape) < 4:
        raise ValueError(f"pictures must be (..., C, H, W), gray or RGB, not {pictures.shape}")


def _check(array: NDArray[np.generic], kind: type, shape: tuple[int, ...]) -> None:
    if not np.issubdtype(array.dtype, kind) or array.shape != shape:
        raise ValueError(f"{array.dtype} {array.shape} in the place of {kind.__name__} {shape}")
