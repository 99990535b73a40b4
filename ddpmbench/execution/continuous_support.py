"""Whether a model can be evaluated in continuous time, between the timesteps of its training."""

import torch
from torch import Tensor

from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.process import Prediction
from ddpmbench.errors import InputError
from ddpmbench.execution.devices import evaluating_checkpoint, is_out_of_memory, strict_float32
from ddpmbench.unet.unet import UNet
from ddpmbench.user_code import calling

CONTINUOUS_FROM = 10_000
"""Network evaluations from which on a run estimates its bound in continuous time as well."""

_TOLERANCE = 1e-3
"""Relative to the change between timesteps, or to the output: far more than rounding."""


def why_not_continuous(
    checkpoint: Checkpoint, shape: tuple[int, ...], device: torch.device
) -> str | None:
    """Why a model cannot be evaluated in continuous time; None if it can.

    Any network but this package's U-Net is evaluated at two timesteps and between them.

    Args:
        checkpoint: the model, on the device.
        shape: (C, H, W) of an image.
        device: where the network is evaluated.
    """
    schedule = checkpoint.as_trained.schedule
    if checkpoint.prediction is Prediction.PREVIOUS_MEAN:
        return "the network predicts the mean at its next timestep, and has none between two"
    if schedule.num_timesteps != schedule.num_original_timesteps:
        return f"the model visits {schedule.num_timesteps} of its timesteps only"
    if schedule.num_timesteps < 2:
        return "the model has a single timestep"
    if isinstance(checkpoint.network, UNet):
        return None
    with (
        torch.inference_mode(),
        torch.random.fork_rng(devices=[]),
        evaluating_checkpoint(checkpoint),
        strict_float32(),
    ):
        try:
            return _why_integers_only(checkpoint.as_trained, shape, device)
        except InputError as error:
            if error.__cause__ is not None and is_out_of_memory(error.__cause__):
                return None
            return f"it takes whole timesteps only ({error})"


def why_left_out(
    checkpoint: Checkpoint,
    shape: tuple[int, ...],
    requested: bool | None,
    num_evaluations: int,
    *,
    device: torch.device,
) -> str | None:
    """Why a run does not estimate the bound in continuous time as well; None if it does.

    Raises:
        InputError: it is requested, but the model has none.
    """
    if checkpoint.schedule.is_continuous:
        if requested:
            raise InputError(
                "`continuous=True`: the run itself is in continuous time; leave one of them out"
            )
        return "the run is in continuous time"
    if checkpoint.schedule.trained is not None:
        return "the model visits timesteps between those of its training"
    if requested is False:
        return "`continuous=False` left it out"
    if requested is None and num_evaluations < CONTINUOUS_FROM:
        return "the run is short; `continuous=True` asks for it"
    why = why_not_continuous(checkpoint, shape, device)
    if why is not None and requested:
        raise InputError(
            f"`continuous=True`: {checkpoint.network_name} has no bound in continuous time: {why}; "
            "leave it out"
        )
    return why


def _why_integers_only(
    checkpoint: Checkpoint, shape: tuple[int, ...], device: torch.device
) -> str | None:
    """Why the outputs at a timestep, beyond it and at the next rule it out; None if they do not.

    Raises:
        InputError: the network fails.
    """
    x = torch.randn((1, *shape), generator=torch.Generator().manual_seed(0)).to(device)
    labels = torch.zeros(1, dtype=torch.int64, device=device) if checkpoint.num_classes else None
    t = max(checkpoint.schedule.num_timesteps // 2, 1)

    def output(timestep: float) -> Tensor:
        time = torch.tensor([timestep], device=device)
        result: Tensor = calling(
            lambda: checkpoint.model_output(x.clone(), time, labels), checkpoint.network_name
        )
        return result

    integer, low, between, high = output(t), output(float(t)), output(t + 0.5), output(t + 1.0)
    change = float((high - low).abs().max())
    if not _is_near(integer, low, max(change, float(integer.abs().max()))):
        return "it reads a timestep that is given as a floating-point number otherwise"
    if not bool(between.isfinite().all()):
        return "its output between two timesteps is not finite"
    if change > 0 and (_is_near(between, low, change) or _is_near(between, high, change)):
        return "it rounds the time that it is given to a whole timestep"
    return None


def _is_near(one: Tensor, other: Tensor, scale: float) -> bool:
    return float((one - other).abs().max()) <= _TOLERANCE * scale


def check_continuous(
    checkpoint: Checkpoint, shape: tuple[int, ...], device: torch.device, *, remedy: str
) -> None:
    """Refuse a model that cannot be evaluated between its timesteps; see `why_not_continuous`.

    Raises:
        InputError: the model cannot; the message ends with the remedy.
    """
    why = why_not_continuous(checkpoint, shape, device)
    if why is not None:
        raise InputError(
            f"{checkpoint.network_name}: cannot be evaluated between its timesteps: {why}; {remedy}"
        )
