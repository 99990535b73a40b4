"""Along the chain, to look at: lossy decoding, generation and interpolation, step by step.

What lies outside the data's range is shown as black or white.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.noise import normal_noise
from ddpmbench.errors import InputError
from ddpmbench.samples.samplers import SAMPLE_DRAW, AncestralSampler

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


DECODING_DRAW = 0
"""The draw of the noise in x_t when decoding: that of the first row of likelihood there."""
INTERPOLATION_DRAW = SAMPLE_DRAW + 1
"""The draw of a pair's noise: no sample shares it."""
WEIGHTS = tuple(k / 10 for k in range(11))
"""Of the second image when two are mixed."""

_CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True, eq=False)
class PicturePass:
    """What makes pictures: a model, the images, and how the network is called.

    Attributes:
        checkpoint: the model; its network is moved to the device.
        images: the image set.
        seed: of the noise, 0 <= seed < 2^64.
        device: where the network runs.
        batch_size: network calls made together.
        progress: told how many network calls are done, and of how many.
    """

    checkpoint: Checkpoint
    images: ImageSet
    seed: int = 0
    device: torch.device = _CPU
    batch_size: int = 32
    progress: Callable[[int, int], None] = lambda done, total: None

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of a picture."""
        return self.images.pixels.shape[1:]

    @property
    def num_timesteps(self) -> int:
        """T."""
        return self.checkpoint.schedule.num_timesteps

    def batches(self, length: int) -> Iterator[slice]:
        """Slices that cover so many pictures, each of at most `batch_size`."""
        for start in range(0, length, self.batch_size):
            yield slice(start, min(start + self.batch_size, length))

    def x_start(self, image: Integers) -> Tensor:
        """(B, C, H, W) the images with these indices, in the data's range."""
        pixels = torch.from_numpy(self.images.pixels[image]).to(self.device)
        diffusion = self.checkpoint.diffusion.to(self.device)
        return diffusion.data_range.to_model(pixels, diffusion.dtype)

    def pixels(self, x: Tensor) -> Pixels:
        """(B, C, H, W) uint8, what pictures look like."""
        pixels: Pixels = self.checkpoint.data_range.to_pixels(x).cpu().numpy()
        return pixels

    def images_shown(self, image: Integers) -> Pixels:
        """(..., C, H, W) uint8, the images with these indices in the levels of the model."""
        return self.checkpoint.data_range.shown(self.images.pixels[image])

    def labels(self, image: Integers) -> Tensor | None:
        """(B,) their classes; None where the network is conditioned on none."""
        labels = self.images.labels
        if not self.checkpoint.num_classes or labels is None:
            return None
        return self.put(labels[image])

    def ids(self, image: Integers) -> NDArray[np.str_]:
        """Their names."""
        names = np.array([self.images.ids[int(i)] for i in image.flat], np.str_)
        return names.reshape(image.shape)

    def put(self, values: Integers) -> Tensor:
        """The same on the device."""
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)


def progressive_decoding(
    run: PicturePass, image: Sequence[int], t: Sequence[int]
) -> ProgressiveDecoding:
    """What a receiver shows who has been sent x_t, for each of N images and K steps.

    The noise is that of likelihood's row (image, t, draw 0), so that the error is that row's
    `x_start_mse`. Network calls: N K.

    Args:
        run: makes the pictures.
        image: N indices in its images.
        t: K steps in 1..T.

    Raises:
        InputError: the network's output is not finite or has another shape.

    Source: Ho, Jain & Abbeel 2020, section 4.3.
    """
    checkpoint = run.checkpoint.to(run.device)
    diffusion = checkpoint.diffusion.to(run.device)
    chosen, steps = np.asarray(image, np.int64), np.asarray(t, np.int64)
    row_image, row_t = np.repeat(chosen, len(steps)), np.tile(steps, len(chosen))
    held, shown = np.empty((2, len(row_t), *run.shape), np.uint8)
    rmse = np.empty(len(row_t))
    for rows in run.batches(len(row_t)):
        index, at = run.put(row_image[rows]), run.put(row_t[rows])
        with torch.inference_mode():
            x_start, labels = run.x_start(row_image[rows]), run.labels(row_image[rows])
            draw = torch.full_like(index, DECODING_DRAW)
            eps = normal_noise(index, at, draw, shape=run.shape, seed=run.seed)
            x_t = diffusion.q_sample(x_start, at, eps.to(x_start.dtype))
            output = checkpoint.model_output(x_t, at, labels)
            prediction = diffusion.p_mean_variance(output, x_t, at).pred_x_start
            mse = (x_start - prediction).square().flatten(1).mean(1)
        if not bool(torch.isfinite(mse).all()):
            raise InputError(
                f"`ckpt={checkpoint.source}`: the network's output is not finite for a picture; "
                "`pictures=none` makes none"
            )
        held[rows], shown[rows] = run.pixels(x_t), run.pixels(prediction)
        rmse[rows] = diffusion.data_range.levels_a_unit * np.sqrt(
            mse.cpu().numpy().astype(np.float64)
        )
        run.progress(rows.stop, len(row_t))
    size = (len(chosen), len(steps))
    return ProgressiveDecoding(
        num_timesteps=run.num_timesteps,
        t=steps,
        image=chosen,
        image_id=run.ids(chosen),
        x_start=run.images_shown(chosen),
        x_t=held.reshape(*size, *run.shape),
        pred_x_start=shown.reshape(*size, *run.shape),
        rmse=rmse.reshape(size),
    )


def progressive_generation(
    run: PicturePass, num_samples: int, t: Sequence[int]
) -> ProgressiveGeneration:
    """Samples 0..N - 1 of the model, and what it made of them at K steps along the way.

    Where the network is conditioned on classes, sample i is of the class of image i; after the
    last image the first is next. Network calls: N T.

    Args:
        run: makes the pictures; its images say of what shape.
        num_samples: N.
        t: K steps in 1..T at which the prediction is kept.

    Raises:
        InputError: a sample is not finite, or the network's output has another shape.

    Source: Ho, Jain & Abbeel 2020, section 4.3 and figure 6.
    """
    sampler = AncestralSampler(run.checkpoint, seed=run.seed, device=run.device)
    steps = np.asarray(t, np.int64)
    shown = np.empty((num_samples, len(steps), *run.shape), np.uint8)
    samples = np.empty((num_samples, *run.shape), np.uint8)
    for batch in run.batches(num_samples):
        index = np.arange(batch.start, batch.stop)
        sample, labels = run.put(index), run.labels(index % len(run.images))
        x_t = sampler.start(sample, run.shape)
        for step in sampler.steps(x_t, run.num_timesteps, sample=sample, labels=labels):
            for k in np.flatnonzero(steps == step.t):
                shown[batch, k] = run.pixels(step.pred_x_start)
            x_t = step.x_previous
            calls = batch.start * run.num_timesteps
            calls += len(index) * (run.num_timesteps + 1 - step.t)
            run.progress(calls, num_samples * run.num_timesteps)
        samples[batch] = run.pixels(x_t)
    return ProgressiveGeneration(run.num_timesteps, steps, shown, samples)


def interpolation(run: PicturePass, pair: Sequence[tuple[int, int]], depth: int) -> Interpolation:
    """What lies between two images: both noised up to a step, mixed there, and decoded.

    On the way up each image has a noise of its own, on the way down a pair has one; for all
    mixtures of a pair they are the same. Where the network is conditioned on classes, a mixture is
    of that of the image that weighs more. Network calls: P W depth, with W = 11 weights.

    Args:
        run: makes the pictures.
        pair: P pairs of indices in its images; a pair's noise on the way down is addressed by
            the first.
        depth: the step in 1..T at which they are mixed.

    Raises:
        InputError: a picture is not finite, or the network's output has another shape.

    Source: Ho, Jain & Abbeel 2020, section 4.3 and figure 8.
    """
    sampler = AncestralSampler(
        run.checkpoint, seed=run.seed, device=run.device, draw=INTERPOLATION_DRAW
    )
    pairs, weights = np.asarray(pair, np.int64).reshape(-1, 2), np.array(WEIGHTS)
    row_pair, row_weight = np.repeat(pairs, len(weights), axis=0), np.tile(weights, len(pairs))
    heavier = np.where(row_weight <= 0.5, row_pair[:, 0], row_pair[:, 1])
    decoded = np.empty((len(row_pair), *run.shape), np.uint8)
    for rows in run.batches(len(row_pair)):
        sample, labels = run.put(row_pair[rows, 0]), run.labels(heavier[rows])
        at, ends = torch.full_like(sample, depth), [row_pair[rows, k] for k in (0, 1)]
        first, second = (
            sampler.diffusion.q_sample(
                run.x_start(image), at, sampler.start(run.put(image), run.shape)
            )
            for image in ends
        )
        weight = torch.from_numpy(row_weight[rows]).to(first).reshape(-1, 1, 1, 1)
        x_t = (1 - weight) * first + weight * second
        for step in sampler.steps(x_t, depth, sample=sample, labels=labels):
            x_t = step.x_previous
            calls = rows.start * depth + len(sample) * (depth + 1 - step.t)
            run.progress(calls, len(row_pair) * depth)
        decoded[rows] = run.pixels(x_t)
    return Interpolation(
        num_timesteps=run.num_timesteps,
        depth=depth,
        pair=pairs,
        image_id=run.ids(pairs),
        weight=weights,
        x_start=run.images_shown(pairs),
        decoded=decoded.reshape(len(pairs), len(weights), *run.shape),
    )
