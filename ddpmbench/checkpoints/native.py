"""The family of this project: one safetensors file with a JSON record in its metadata."""

import dataclasses
import json
import operator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ddpmbench.checkpoints.settings import WEIGHTS
from ddpmbench.checkpoints.weights import (
    FileError,
    build_unet,
    check_outputs,
    naming,
    rounding_notes,
    sha256_of,
)
from ddpmbench.diffusion.data_range import UNIT_RANGE, DataRange
from ddpmbench.diffusion.model import Checkpoint, TimeInput
from ddpmbench.diffusion.process import Prediction, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.files import os_errors, replacing
from ddpmbench.unet.unet import UNet, UNetConfig

FORMAT = 2
"""The latest; readers of format 1 would ignore a clip or a data range other than the default."""
_RECORD = "ddpmbench"
_BETAS = "schedule.betas"
_NETWORK = "network."


def is_native(path: Path) -> bool:
    """Whether the file is of this family: safetensors with our record in the metadata."""
    if not path.is_file() or path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return _RECORD in (file.metadata() or {})
    except SafetensorError:
        return False


def read_native(path: Path) -> Checkpoint:
    """Read a native file.

    Raises:
        InputError: the file is truncated, of a newer format, or its weights do not fit.
    """
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads(file.metadata()[_RECORD])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except RecursionError as error:
        raise FileError(path, "its record is nested too deep; copy it again") from error
    except (SafetensorError, ValueError) as error:
        raise FileError(
            path, f"not a whole safetensors file ({error}); copy or download it again"
        ) from error
    if not isinstance(record, dict):
        raise FileError(path, f"its record is a {type(record).__name__}, not an object")
    if record.get("format") not in range(1, FORMAT + 1):
        raise FileError(
            path,
            f"native format {record.get('format')}; this version reads up to {FORMAT}, install a "
            "newer ddpmbench",
        )
    try:
        with naming(path):
            config = UNetConfig.from_dict(record["network"])
            schedule = NoiseSchedule.from_betas(tensors.pop(_BETAS), name=record["schedule"])
            conventions = _conventions(record)
        prediction, variance = Prediction(record["prediction"]), Variance(record["variance"])
        time_input, image_size = TimeInput(record["time_input"]), record["image_size"]
        if isinstance(image_size, list):
            image_size = (int(image_size[0]), int(image_size[1]))
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise FileError(path, f"its record lacks or misspells {error}") from error
    check_outputs(config, variance, source=path)
    weights = {name.removeprefix(_NETWORK): tensor for name, tensor in tensors.items()}
    return Checkpoint(
        network=build_unet(config, weights, source=str(path)),
        schedule=schedule,
        prediction=prediction,
        variance=variance,
        time_input=time_input,
        channels=config.in_channels,
        image_size=image_size,
        size_multiple=config.size_multiple,
        num_classes=config.num_classes,
        family="native",
        source=str(path),
        sha256=sha256_of(path),
        training=record.get("training"),
        notes=rounding_notes(weights),
        **conventions,
    )


def _conventions(record: dict[str, Any]) -> dict[str, Any]:
    """The optional fields of a record, which it has only where they are not the default.

    Raises:
        InputError: the data range is none.
        KeyError: the data range lacks a field.
        ValueError: a field is of another type.
    """
    fields: dict[str, Any] = {name: record[name] for name in ("clip", "weights") if name in record}
    if not isinstance(fields.get("clip", True), bool):
        raise ValueError(f"clip = {fields['clip']!r}")
    if fields.get("weights") not in (None, *WEIGHTS):
        raise ValueError(f"weights = {fields['weights']!r}")
    if "data_range" in record:
        low, high, levels = (record["data_range"][name] for name in ("low", "high", "levels"))
        fields["data_range"] = DataRange(float(low), float(high), operator.index(levels))
    return fields


def write_native(
    path: Path,
    checkpoint: Checkpoint,
    *,
    weights: dict[str, Tensor] | None = None,
    training: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint as one safetensors file with a JSON record, atomically.

    Args:
        path: the file to write, ending in `.safetensors`.
        checkpoint: its network must be the built-in U-Net, its schedule the one of the training.
        weights: written instead of the network's own, under the same names.
        training: the record of the training, as `Checkpoint.training`.

    Raises:
        InputError: the network is another, the schedule is respaced, or the file cannot be
            written.
    """
    network = checkpoint.network
    if not isinstance(network, UNet):
        raise FileError(checkpoint.source, "only the built-in U-Net can be written as native")
    if checkpoint.schedule.num_timesteps != checkpoint.schedule.num_original_timesteps:
        raise FileError(
            checkpoint.source, "a respaced schedule is not written; respace it when it is read"
        )
    conventions: dict[str, Any] = {} if checkpoint.clip else {"clip": False}
    if checkpoint.data_range != UNIT_RANGE:
        conventions["data_range"] = dataclasses.asdict(checkpoint.data_range)
    record = {
        # without conventions every version can read it
        "format": FORMAT if conventions else 1,
        "network": network.config.to_dict(),
        "schedule": checkpoint.schedule.name,
        "prediction": checkpoint.prediction,
        "variance": checkpoint.variance,
        "time_input": checkpoint.time_input,
        "image_size": checkpoint.image_size,
        "training": training,
        **conventions,
        **({} if checkpoint.weights is None else {"weights": checkpoint.weights}),
    }
    state = weights if weights is not None else network.state_dict()
    tensors = {
        _NETWORK + name: tensor.detach().cpu().contiguous() for name, tensor in state.items()
    }
    tensors[_BETAS] = checkpoint.schedule.betas.to(torch.float64)
    with replacing(path) as temporary, os_errors():
        save_file(tensors, temporary, metadata={_RECORD: json.dumps(record)})
        temporary.chmod(0o644)  # safetensors makes it the writer's alone
