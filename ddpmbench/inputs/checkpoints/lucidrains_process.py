"""Schedule and objective of lucidrains' GaussianDiffusion, read from its buffers."""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ddpmbench.errors import InputError
from ddpmbench.inputs.checkpoints.weights import naming
from ddpmbench.process.prediction import Prediction
from ddpmbench.process.schedule import NoiseSchedule

_ULP = 2.0**-23
"""Two float32 numbers that differ by less, relatively, may be roundings of the same one."""
_ROUNDING = 5e-7
"""How far beta and the ratio of two products may be from adding up to 1, as float32."""
_NAMED: dict[str, Callable[[int], NoiseSchedule]] = {
    "linear": NoiseSchedule.linear,
    "cosine": NoiseSchedule.cosine,
    "sigmoid": NoiseSchedule.sigmoid,
}
_AGREEMENT = 1e-3
"""How far, relatively, a loss weight may be from the one its objective would have."""


def read_schedule(buffers: Mapping[str, Tensor], *, path: Path) -> NoiseSchedule:
    """The schedule in the buffers `betas` and `alphas_cumprod`, which are float32.

    A linear or cosine schedule that rounds to them is taken as it is in float64. Of any other,
    beta is right to 6e-8 and 1 - beta to 2e-7, relatively: where beta is large, 1 - beta is the
    ratio of two of the cumulative products, because the difference would have lost its digits.

    Args:
        buffers: (T,) each, under the package's names.
        path: the file to name in an error.

    Raises:
        InputError: a buffer is missing or no schedule, or the two contradict each other.
    """
    betas = _buffer(buffers, "betas", path)
    alphas_cumprod = _buffer(buffers, "alphas_cumprod", path)
    if betas.shape != alphas_cumprod.shape:
        raise InputError(
            f"{path}: betas is {list(betas.shape)}, alphas_cumprod {list(alphas_cumprod.shape)}; "
            "the file is not whole"
        )
    previous = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1]])
    remaining = alphas_cumprod / previous
    wrong = ~((remaining - (1 - betas)).abs() <= _ROUNDING)
    if bool(wrong.any()):
        raise InputError(
            f"{path}: betas and alphas_cumprod contradict each other at t = "
            f"{1 + int(wrong.nonzero()[0])}; they were changed or rounded after the training, "
            "copy the file again"
        )
    with naming(path):
        return _named(NoiseSchedule.from_betas(torch.where(betas > 0.5, 1 - remaining, betas)))


def _named(schedule: NoiseSchedule) -> NoiseSchedule:
    """The schedule with its name; in float64 where it is one that rounds to it."""
    for name, make in _NAMED.items():
        with contextlib.suppress(InputError):  # too few steps for a schedule of that name
            known = make(schedule.num_timesteps)
            off = (schedule.betas / known.betas - 1).abs()
            if bool((off <= _ULP).all()):
                return known
            # The package's sigmoid has ends in float32, which shows where little is left.
            if name == "sigmoid" and bool((off[:-1] < 1e-2).all()):
                return NoiseSchedule.from_betas(schedule.betas, name=name)
    return schedule


def read_prediction(schedule: NoiseSchedule, loss_weight: Tensor | None) -> Prediction | None:
    """What the network outputs, told by how the loss was weighted over t; None if nothing tells.

    With s = min(snr, gamma), gamma infinite by default, the weight is s / snr where the target is
    the noise, s where it is x_start and s / (snr + 1) where it is v.

    Args:
        schedule: of T steps.
        loss_weight: (T,); None if the file has none.

    Source: Hang et al. 2023; GaussianDiffusion of the package.
    """
    if loss_weight is None or loss_weight.shape != schedule.snr.shape:
        return None
    weight, snr = loss_weight.double(), schedule.snr
    implied = {
        Prediction.EPSILON: weight * snr,
        Prediction.X_START: weight,
        Prediction.V: weight * (snr + 1),
    }
    found = [prediction for prediction, values in implied.items() if _is_clipped(values, snr)]
    return found[0] if len(found) == 1 else None


def _is_clipped(values: Tensor, snr: Tensor) -> bool:
    """Whether the values are min(snr, gamma) of some gamma."""
    gamma = values.max()
    expected = snr.clamp(max=float(gamma))
    return bool(((values - expected).abs() <= _AGREEMENT * expected).all())


def _buffer(buffers: Mapping[str, Tensor], name: str, path: Path) -> Tensor:
    values = buffers.get(name)
    if values is None:
        raise InputError(f"{path}: has no buffer {name}; the file is not whole")
    if values.ndim != 1 or not len(values) or not values.is_floating_point():
        raise InputError(
            f"{path}: {name} is {list(values.shape)} {values.dtype}, not one row of numbers"
        )
    return values.detach().cpu().double()
