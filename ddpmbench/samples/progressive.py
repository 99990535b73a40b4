"""Pictures along the chain: progressive decoding, generation and interpolation.

Values outside the data range are clipped.
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
from ddpmbench.samples.chain import SAMPLE_DRAW
from ddpmbench.samples.samplers import SamplerChoice

Pixels = NDArray[np.uint8]
Integers = NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class ProgressiveDecoding:
    """The received and reconstructed images at K timesteps, for N images.

    Attributes:
        num_timesteps: T.
        t: (K,) int64 timesteps.
        image: (N,) int64 index in the image set.
        image_id: (N,) the images' names.
        x_start: (N, C, H, W) uint8 the images.
        x_t: (N, K, C, H, W) uint8 the noisy images received.
        pred_x_start: (N, K, C, H, W) uint8 the reconstructions.
        rmse: (N, K) float64 error of the reconstruction before rounding, on 0..255.
    """

    num_timesteps: int
    t: Integers
    image: Integers
    image_id: NDArray[np.str_]
    x_start: Pixels
    x_t: Pixels
    pred_x_start: Pixels
    rmse: NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class ProgressiveGeneration:
    """N samples, and the predictions of x_start at K timesteps of their chains.

    Attributes:
        num_timesteps: T.
        t: (K,) int64 timesteps.
        pred_x_start: (N, K, C, H, W) uint8.
        samples: (N, C, H, W) uint8 x_0.
    """

    num_timesteps: int
    t: Integers
    pred_x_start: Pixels
    samples: Pixels


@dataclasses.dataclass(frozen=True, eq=False)
class Interpolation:
    """Interpolations between the images of P pairs at W weights.

    Attributes:
        num_timesteps: T.
        depth: the timestep t at which the images are mixed.
        pair: (P, 2) int64 indices in the image set.
        image_id: (P, 2) the images' names.
        weight: (W,) float64 of the second image.
        x_start: (P, 2, C, H, W) uint8 the images.
        decoded: (P, W, C, H, W) uint8 x_0 of the mixtures.
    """

    num_timesteps: int
    depth: int
    pair: Integers
    image_id: NDArray[np.str_]
    weight: NDArray[np.float64]
    x_start: Pixels
    decoded: Pixels


DECODING_DRAW = 0
"""Draw of the noise in x_t when decoding, as in the first likelihood term at a timestep."""
INTERPOLATION_DRAW = SAMPLE_DRAW + 1
"""Draw of a pair's noise, distinct from that of any sample."""
WEIGHTS = tuple(k / 10 for k in range(11))
"""Weights of the second image of a pair."""

_CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True, eq=False)
class PicturePass:
    """A model, images, and how the network is evaluated to make pictures.

    Attributes:
        checkpoint: the model; its network is moved to the device.
        images: the image set.
        seed: of the noise, 0 <= seed < 2^64.
        device: where the network runs.
        batch_size: network evaluations in a batch.
        progress: called with the number of network evaluations done, and their total.
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
        """Slices of at most `batch_size` that cover `length` pictures."""
        for start in range(0, length, self.batch_size):
            yield slice(start, min(start + self.batch_size, length))

    def x_start(self, image: Integers) -> Tensor:
        """(B, C, H, W) the images with these indices, in the data's range."""
        pixels = torch.from_numpy(self.images.pixels[image]).to(self.device)
        diffusion = self.checkpoint.diffusion.to(self.device)
        return diffusion.data_range.to_model(pixels, diffusion.dtype)

    def pixels(self, x: Tensor) -> Pixels:
        """(B, C, H, W) uint8 pixels."""
        pixels: Pixels = self.checkpoint.data_range.to_pixels(x).cpu().numpy()
        return pixels

    def images_shown(self, image: Integers) -> Pixels:
        """(..., C, H, W) uint8, the images with these indices at the levels of the model."""
        return self.checkpoint.data_range.shown(self.images.pixels[image])

    def labels(self, image: Integers) -> Tensor | None:
        """(B,) classes of the images; None for an unconditional network."""
        labels = self.images.labels
        if not self.checkpoint.num_classes or labels is None:
            return None
        return self.put(labels[image])

    def ids(self, image: Integers) -> NDArray[np.str_]:
        """The names of the images with these indices."""
        names = np.array([self.images.ids[int(i)] for i in image.flat], np.str_)
        return names.reshape(image.shape)

    def put(self, values: Integers) -> Tensor:
        """The values on the device."""
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)


def progressive_decoding(
    run: PicturePass, image: Sequence[int], t: Sequence[int]
) -> ProgressiveDecoding:
    r"""Progressive lossy decoding: reconstructions from x_t of N images at K timesteps.

    .. math::

        x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon, \qquad
        \hat x_0 = \frac{x_t - \sqrt{1 - \bar\alpha_t}\, \epsilon_\theta(x_t, t)}
            {\sqrt{\bar\alpha_t}}

    The noise is that of the likelihood term (image, t, draw 0), so that the error equals that
    term's `x_start_mse`. It takes N K network evaluations.

    Args:
        run: the model, the images and the seed.
        image: N indices in its images.
        t: K timesteps in 1..T.

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
    """Samples 0..N - 1 of the model, and its predictions of x_start at K timesteps.

    Where the network is conditioned on classes, sample i has the class of image
    i mod the number of images. It takes N T network evaluations.

    Args:
        run: the model and the seed; its images state the shape.
        num_samples: N.
        t: K timesteps in 1..T whose predictions are kept.

    Raises:
        InputError: a sample is not finite, or the network's output has another shape.

    Source: Ho, Jain & Abbeel 2020, section 4.3 and figure 6.
    """
    sampler = SamplerChoice().prepare(run.checkpoint, seed=run.seed, device=run.device)
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
            evaluations = batch.start * run.num_timesteps
            evaluations += len(index) * (run.num_timesteps + 1 - step.t)
            run.progress(evaluations, num_samples * run.num_timesteps)
        samples[batch] = run.pixels(x_t)
    return ProgressiveGeneration(run.num_timesteps, steps, shown, samples)


def interpolation(run: PicturePass, pair: Sequence[tuple[int, int]], depth: int) -> Interpolation:
    r"""Interpolation of two images: diffuse both to timestep t, mix, and decode.

    .. math::

        \bar x_t = (1 - \lambda)\, x_t^{(1)} + \lambda\, x_t^{(2)}

    Each image has its own forward noise; all mixtures of a pair share the reverse noise. Where the
    network is conditioned on classes, a mixture has the class of the image with the larger weight.
    It takes P W t network evaluations, with W = 11 weights.

    Args:
        run: the model, the images and the seed.
        pair: P pairs of indices in its images; the first one addresses the reverse noise.
        depth: the timestep t in 1..T at which they are mixed.

    Raises:
        InputError: a picture is not finite, or the network's output has another shape.

    Source: Ho, Jain & Abbeel 2020, section 4.3 and figure 8.
    """
    sampler = SamplerChoice().prepare(
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
                run.x_start(image), at, sampler.starting_noise(run.put(image), run.shape)
            )
            for image in ends
        )
        weight = torch.from_numpy(row_weight[rows]).to(first).reshape(-1, 1, 1, 1)
        x_t = (1 - weight) * first + weight * second
        for step in sampler.steps(x_t, depth, sample=sample, labels=labels):
            x_t = step.x_previous
            evaluations = rows.start * depth + len(sample) * (depth + 1 - step.t)
            run.progress(evaluations, len(row_pair) * depth)
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
