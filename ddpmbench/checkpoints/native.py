"""The family of this project: one safetensors file with a JSON record in its metadata."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ddpmbench.checkpoints.diffusers_files import NETWORKS, is_model
from ddpmbench.checkpoints.network_weights import build_unet, check_outputs, only_tensors
from ddpmbench.checkpoints.settings import WEIGHTS, Family
from ddpmbench.checkpoints.weights import FileError, naming, rounding_notes
from ddpmbench.diffusion.data_range import UNIT_RANGE, DataRange
from ddpmbench.diffusion.model import Checkpoint, TimeInput, sides_of
from ddpmbench.diffusion.parameterization import Prediction, Process, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.files import os_errors, replacing, sha256_of
from ddpmbench.unet.unet import UNet, UNetConfig

FORMAT = 3
"""The format that is written; earlier ones lack clip and data range (1), or the process (2)."""
TRAINED = "checkpoint.safetensors"
"""File name of a training run's checkpoint."""
_RECORD = "ddpmbench"
_BETAS = "schedule.betas"
_NETWORK = "network."


class _DataRange(msgspec.Struct):
    low: float
    high: float
    levels: int


class _Record(msgspec.Struct, omit_defaults=True):
    network: dict[str, Any]
    schedule: str
    prediction: Prediction
    variance: Variance
    time_input: TimeInput
    image_size: int | tuple[int, int] | None
    training: dict[str, Any] | None = None
    weights: Annotated[str, msgspec.Meta(pattern=f"^({'|'.join(WEIGHTS)})$")] | None = None
    clip: bool = True
    data_range: _DataRange | None = None
    process: Process = Process.VP


def is_native(path: Path) -> bool:
    """Whether a file is of this family: safetensors with our record in the metadata."""
    if not path.is_file() or path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return _RECORD in (file.metadata() or {})
    except SafetensorError:
        return False


def native_file(path: Path) -> Path | None:
    """The native file at a path, or of a training run in it; None if there is none.

    Raises:
        InputError: a folder also holds a model of diffusers.
    """
    if not is_native(path / TRAINED):
        return path if is_native(path) else None
    for place in (*(path / name for name in NETWORKS), path):
        if is_model(place):
            raise FileError(
                path,
                f"holds {TRAINED} and a model of diffusers in {place}; pass "
                f"`ckpt={path / TRAINED}`, or a file of weights in {place}",
            )
    return path / TRAINED


def read_native(path: Path) -> Checkpoint:
    """Read a native file.

    Raises:
        InputError: the file is truncated or of a newer format, or its weights do not fit.
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
        fields = msgspec.convert(record, _Record)
        with naming(path):
            config = UNetConfig.from_dict(fields.network)
            schedule = NoiseSchedule.from_betas(tensors.pop(_BETAS), name=fields.schedule)
            schedule = dataclasses.replace(schedule, process=fields.process)
            data_range = UNIT_RANGE
            if fields.data_range is not None:
                data_range = DataRange(*msgspec.structs.astuple(fields.data_range))
    except (msgspec.ValidationError, LookupError, TypeError) as error:
        problem = str(error).replace("`", "")
        raise FileError(path, f"its record lacks or misspells a field: {problem}") from error
    if fields.image_size is not None and min(sides_of(fields.image_size)) < 1:
        raise FileError(path, f"its image_size is {fields.image_size}, below 1; copy it again")
    check_outputs(config, fields.variance, source=path)
    named = {name.removeprefix(_NETWORK): tensor for name, tensor in tensors.items()}
    weights = only_tensors(named, source=str(path))
    return Checkpoint(
        network=build_unet(config, weights, source=str(path)),
        schedule=schedule,
        prediction=fields.prediction,
        variance=fields.variance,
        clip=fields.clip,
        time_input=fields.time_input,
        data_range=data_range,
        channels=config.in_channels,
        image_size=fields.image_size,
        size_multiple=config.size_multiple,
        num_classes=config.num_classes,
        family=NATIVE.name,
        source=str(path),
        sha256=sha256_of(path),
        files=(str(path),),
        training=fields.training,
        weights=fields.weights,
        notes=rounding_notes(weights),
    )


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
        checkpoint: with the built-in U-Net and the schedule of the training.
        weights: written in place of the network's own, under the same names.
        training: the record of the training, as `Checkpoint.training`.

    Raises:
        InputError: another network, a respaced schedule, or the file cannot be written.
    """
    network = checkpoint.network
    if not isinstance(network, UNet):
        raise FileError(checkpoint.source, "only the built-in U-Net can be written as native")
    if checkpoint.schedule.num_timesteps != checkpoint.schedule.num_original_timesteps:
        raise FileError(
            checkpoint.source, "a respaced schedule is not written; respace it when it is read"
        )
    data_range = checkpoint.data_range
    fields = _Record(
        network=network.config.to_dict(),
        schedule=checkpoint.schedule.name,
        prediction=checkpoint.prediction,
        variance=checkpoint.variance,
        time_input=checkpoint.time_input,
        image_size=checkpoint.image_size,
        weights=checkpoint.weights,
        clip=checkpoint.clip,
        data_range=None if data_range == UNIT_RANGE else _DataRange(**vars(data_range)),
        process=checkpoint.schedule.process,
    )
    record = {"format": FORMAT, "training": training, **msgspec.to_builtins(fields)}
    state = weights if weights is not None else network.state_dict()
    tensors = {
        _NETWORK + name: tensor.detach().cpu().contiguous() for name, tensor in state.items()
    }
    tensors[_BETAS] = checkpoint.schedule.betas.to(torch.float64)
    with replacing(path) as temporary, os_errors():
        save_file(tensors, temporary, metadata={_RECORD: json.dumps(record)})
        temporary.chmod(0o644)  # safetensors makes it readable by the owner only


NATIVE = Family(
    name="native",
    projects="ddpmbench train or convert",
    read=lambda file: read_native(file.path),
    find=native_file,
)
