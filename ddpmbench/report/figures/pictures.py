"""Figures of pictures: strips along the chain. Each comes with the numbers behind it."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddpmbench.report.figures.images import GAP, Pixels, Sheet
from ddpmbench.samples.progressive import Interpolation, ProgressiveDecoding, ProgressiveGeneration

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def decoding_figure(
    decoding: ProgressiveDecoding, curve: pd.DataFrame
) -> tuple["Figure", pd.DataFrame]:
    """What a receiver holds and shows after some of T steps, an image in two rows.

    Args:
        decoding: the pictures.
        curve: the rate at every step t = 1..T, in order; see `report.tables.rate_distortion`.

    Returns:
        The figure, and one row a picture: `image_id`, `t`, `num_decoded_steps`,
        `rate_bits_per_dim` of all images and `rmse` of this one, on 0..255.

    Source: Ho, Jain & Abbeel 2020, section 4.3.
    """
    num_images, num_steps = decoding.rmse.shape
    rates = curve.rate_bits_per_dim.to_numpy()[decoding.t - 1]
    numbers = pd.DataFrame(
        {
            "image_id": np.repeat(decoding.image_id, num_steps),
            "t": np.tile(decoding.t, num_images),
            "num_decoded_steps": np.tile(_num_decoded_steps(decoding), num_images),
            "rate_bits_per_dim": np.tile(rates, num_images),
            "rmse": decoding.rmse.flatten(),
        }
    )
    sheet = Sheet(decoding.x_start.shape[2:], columns=num_steps + 1, apart={num_steps})
    sheet.text("steps", [*_steps(decoding), "image"])
    sheet.text("rate, bits/dim", [f"{rate:.5f}" for rate in rates])
    for n in range(num_images):
        sheet.space(GAP)
        sheet.pictures("x_t", list(decoding.x_t[n]))
        sheet.space(GAP // 2)
        sheet.pictures("x_0 predicted", [*decoding.pred_x_start[n], decoding.x_start[n]])
        sheet.text("RMSE", [f"{value:.1f}" for value in decoding.rmse[n]])
    return sheet.figure(), numbers


def generation_figure(
    generation: ProgressiveGeneration,
) -> tuple["Figure", pd.DataFrame]:
    """What the network makes of samples after some of T steps, a sample a row.

    Args:
        generation: the pictures.

    Returns:
        The figure, and one row a picture but the samples: `sample`, `t`, `num_decoded_steps`, and
        `rmse_to_sample` of the two pictures, on 0..255.

    Source: Ho, Jain & Abbeel 2020, figure 6.
    """
    num_samples, num_steps = generation.pred_x_start.shape[:2]
    numbers = pd.DataFrame(
        {
            "sample": np.repeat(np.arange(num_samples), num_steps),
            "t": np.tile(generation.t, num_samples),
            "num_decoded_steps": np.tile(_num_decoded_steps(generation), num_samples),
            "rmse_to_sample": _rmse(generation.pred_x_start, generation.samples[:, None]).flatten(),
        }
    )
    sheet = Sheet(generation.samples.shape[2:], columns=num_steps + 1, apart={num_steps})
    sheet.text("steps", [*_steps(generation), "sample"])
    for n in range(num_samples):
        sheet.pictures(f"sample {n}", [*generation.pred_x_start[n], generation.samples[n]])
        sheet.space(GAP)
    return sheet.figure(), numbers


def interpolation_figure(mixed: Interpolation) -> tuple["Figure", pd.DataFrame]:
    """What lies between two images, a pair a row, with the images at its ends.

    Args:
        mixed: the pictures.

    Returns:
        The figure, and one row a picture between: `first_image_id`, `second_image_id`, `t` at
        which they were mixed, `weight` of the second, and `rmse_to_first` and `rmse_to_second`,
        on 0..255.

    Source: Ho, Jain & Abbeel 2020, figure 8.
    """
    num_pairs, num_weights = mixed.decoded.shape[:2]
    numbers = pd.DataFrame(
        {
            "first_image_id": np.repeat(mixed.image_id[:, 0], num_weights),
            "second_image_id": np.repeat(mixed.image_id[:, 1], num_weights),
            "t": mixed.depth,
            "weight": np.tile(mixed.weight, num_pairs),
            "rmse_to_first": _rmse(mixed.decoded, mixed.x_start[:, :1]).flatten(),
            "rmse_to_second": _rmse(mixed.decoded, mixed.x_start[:, 1:]).flatten(),
        }
    )
    columns = num_weights + 2
    sheet = Sheet(mixed.x_start.shape[3:], columns=columns, apart={1, columns - 1})
    title = f"mixed at t = {mixed.depth} of {mixed.num_timesteps}, weight of the second image"
    sheet.text("", [""] * (columns // 2) + [title])
    sheet.text("", ["image", *(f"{weight:.1f}" for weight in mixed.weight), "image"])
    for pair, ends, between in zip(mixed.pair, mixed.x_start, mixed.decoded, strict=True):
        sheet.pictures(f"images {pair[0]}, {pair[1]}", [ends[0], *between, ends[1]])
        sheet.space(GAP)
    return sheet.figure(), numbers


def _num_decoded_steps(pictures: ProgressiveDecoding | ProgressiveGeneration) -> NDArray[np.int64]:
    return pictures.num_timesteps + 1 - pictures.t


def _steps(pictures: ProgressiveDecoding | ProgressiveGeneration) -> list[str]:
    return [f"{k} of {pictures.num_timesteps}" for k in _num_decoded_steps(pictures)]


def _rmse(pictures: Pixels, others: Pixels) -> NDArray[np.float64]:
    """Root mean squared difference of (..., C, H, W) pictures, on 0..255."""
    squares = np.square(pictures.astype(np.float64) - others)
    rmse: NDArray[np.float64] = np.sqrt(squares.mean(axis=(-3, -2, -1)))
    return rmse
