"""The decoder term (t = 1) under every convention, and for any variance in between.

The published conventions differ in the variance, in the distribution function and in the clip. A
model that visits t = 1 and only some of the other timesteps has the posterior variance of its own
second timestep, between that of t = 2 and beta_1. The exact decoder is evaluated at some nodes in
between, so that it can be interpolated.
"""

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpmbench.diffusion.data_range import UNIT_RANGE, DataRange
from ddpmbench.diffusion.gaussian import discretized_normal_log_prob
from ddpmbench.diffusion.schedule import NoiseSchedule

DECODERS = ("exact", "tanh")
"""The distribution functions of the decoder."""
SCALES = ("posterior", *(f"between{k}" for k in range(1, 6)), "beta")
"""The variances of the exact decoder: the Chebyshev nodes of the log variance, ends included."""
DECODER_COLUMNS = tuple(
    decoder_column
    for clip in ("clip", "noclip")
    for decoder_column in (
        *(f"decoder_{scale}_exact_{clip}" for scale in SCALES),
        *(f"decoder_{scale}_tanh_{clip}" for scale in ("posterior", "beta")),
    )
)
"""The decoder term under each convention: variance, distribution function, clip."""
MODEL_COLUMNS = tuple(f"decoder_model_{decoder}" for decoder in DECODERS)
"""The same with a learned variance, under the clip of the run; NaN where it is fixed."""
WIDEST_RATIO = 3.0
"""Largest ratio of beta_1 to the posterior variance of t = 2 at which the interpolation errs by
less than 1e-6 of the decoder term."""


def decoder_column(scale: str, decoder: str, *, clip: bool) -> str:
    """The column of a convention."""
    return f"decoder_{scale}_{decoder}_{'clip' if clip else 'noclip'}"


@functools.lru_cache(maxsize=16)
def log_variances(schedule: NoiseSchedule) -> NDArray[np.float64]:
    """(7,) log variances of `SCALES`, from the posterior variance of t = 2 up to beta_1.

    With a single timestep all are log beta_1.
    """
    beta = float(schedule.log_forward_variance[0])
    low = float(schedule.log_decoder_variance)
    nodes = low + (beta - low) * 0.5 * (1 - np.cos(np.pi * np.linspace(0, 1, len(SCALES))))
    nodes.flags.writeable = False  # shared by all callers
    return np.asarray(nodes)


def decoder_terms(
    log_variance: NDArray[np.float64],
    x_start: Tensor,
    unclipped: Tensor,
    *,
    data_range: DataRange = UNIT_RANGE,
) -> dict[str, Tensor]:
    r"""The decoder term under each convention.

    .. math:: L_0 = -\frac{1}{D} \sum_{i=1}^D \log \int_{\delta_-(x_i)}^{\delta_+(x_i)}
              \mathcal{N}(x; \hat x_i, \sigma^2) \, dx

    Args:
        log_variance: (7,) of `log_variances`.
        x_start: (B, C, H, W) levels of the data's range.
        unclipped: (B, C, H, W) the predicted x_start.
        data_range: of the images.

    Returns:
        (B,) nats per dimension for each of `DECODER_COLUMNS`.

    Source: Ho, Jain & Abbeel 2020, eq. 13.
    """
    variance_of = dict(zip(SCALES, log_variance.tolist(), strict=True))
    means = {"clip": data_range.clamp(unclipped), "noclip": unclipped}
    result = {}
    for name in DECODER_COLUMNS:
        _, scale, decoder, clip = name.split("_")
        value = torch.as_tensor(variance_of[scale], dtype=x_start.dtype, device=x_start.device)
        log_prob = discretized_normal_log_prob(
            x_start, means[clip], value, decoder=decoder, data_range=data_range
        )
        result[name] = -log_prob.flatten(1).mean(1)
    return result


def interpolated(
    schedule: NoiseSchedule, values: NDArray[np.float64], log_variance: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The exact decoder, interpolated in the log variance.

    Args:
        schedule: the noise schedule.
        values: (7, ...) at the variances of `SCALES`, of single images or means over them.
        log_variance: (K,) between the posterior variance of t = 2 and beta_1.

    Returns:
        (K, ...).

    Raises:
        ValueError: the two ends are further apart than `WIDEST_RATIO`.

    Source: Berrut & Trefethen 2004, "Barycentric Lagrange interpolation".
    """
    nodes = log_variances(schedule)
    if nodes[-1] - nodes[0] > np.log(WIDEST_RATIO):
        raise ValueError("beta_1 and the posterior variance of t = 2 are too far apart")
    if nodes[-1] == nodes[0]:
        return np.broadcast_to(values[0], log_variance.shape + values.shape[1:])
    weights = (-1.0) ** np.arange(len(nodes))  # barycentric, of Chebyshev nodes with both ends
    weights[[0, -1]] /= 2
    distance = log_variance[:, None] - nodes
    at_node = distance == 0
    kernel = weights / np.where(at_node, 1.0, distance)
    kernel = np.where(at_node.any(1, keepdims=True), at_node, kernel)
    return np.asarray(np.tensordot(kernel / kernel.sum(1, keepdims=True), values, 1))
