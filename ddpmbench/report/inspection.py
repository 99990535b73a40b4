"""What a checkpoint is, as the object that `inspect` prints and writes."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ddpmbench.checkpoints.provenance import Said
from ddpmbench.diffusion.data_range import NATS_PER_BIT
from ddpmbench.diffusion.model import ImageSize, size_words
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.unet.outline import Outline
from ddpmbench.user_code import OwnCode

SCHEMA = "ddpmbench.inspect/1"
CURVE_POINTS = 480
"""Of so many steps at most a printed plot is made."""


@dataclasses.dataclass(frozen=True)
class FileFacts:
    """The file with the weights.

    Attributes:
        source: as the user named it.
        files: those with the weights, one or the shards of one; none where they are not known.
        family: of files.
        sha256: of the file.
        weights: "ema" or "raw"; None if that is not known.
        notes: what was settled by a preset or an option, a line each.
        training: the record of its training, where the file holds one.
        code: the user's own code that builds the network, where it is not of this package.
    """

    source: str
    files: tuple[Path, ...]
    family: str
    sha256: str
    weights: str | None
    notes: tuple[str, ...]
    training: dict[str, object] | None
    code: OwnCode | None


@dataclasses.dataclass(frozen=True)
class CallFacts:
    """What one call of the network is.

    Attributes:
        channels: of an image; None if nothing says them.
        size: its height and width; None if there was nothing to call.
        size_said: whether the checkpoint or an option says the size, or it was chosen.
        flop: floating point operations of a call; None where they could not be counted.
        tried_channels: of the image that it was called with; None where it was not called.
        uncounted: why they could not be counted, where the network failed.
    """

    channels: int | None = None
    size: ImageSize | None = None
    size_said: bool = False
    flop: int | None = None
    tried_channels: int | None = None
    uncounted: str | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is to be typed.

    Attributes:
        command: the words of the command that evaluates the checkpoint, with placeholders for
            what is open.
        missing: options that have to be settled before it runs, each with a placeholder.
        data: what `--data` has to be, in words; None where the command is whole.
        refused: why a run would refuse the network; None where nothing speaks against it.
    """

    command: tuple[str, ...]
    missing: tuple[str, ...]
    data: str | None
    refused: str | None = None


def inspection_summary(
    file: FileFacts,
    *,
    network: dict[str, Any],
    process: dict[str, Any] | None,
    said: Sequence[Said],
    evaluation: Evaluation,
) -> dict[str, Any]:
    """The object of `inspect.json`.

    Args:
        file: the file with the weights.
        network: see `network_record`.
        process: see `process_record`; None where the schedule is open.
        said: everything a number depends on besides, and who says so.
        evaluation: what is to be typed.
    """
    summary: dict[str, Any] = {
        "schema": SCHEMA,
        "settled": not evaluation.missing,
        "checkpoint": {
            "source": file.source,
            "family": file.family,
            "sha256": file.sha256,
            "weights": file.weights,
            "training": file.training,
            "code": None if file.code is None else dataclasses.asdict(file.code),
            "files": [path.name for path in file.files],
            "bytes": sum(path.stat().st_size for path in file.files) or None,
        },
        "network": network,
        "process": process,
        "said": [dataclasses.asdict(item) for item in said],
        "notes": list(file.notes),
        "missing": list(evaluation.missing),
        "command": list(evaluation.command),
        "data": evaluation.data,
        "refused": evaluation.refused,
    }
    # As JSON has it: what is read again is the same.
    return dict(json.loads(json.dumps(summary)))


def network_record(outline: Outline, call: CallFacts) -> dict[str, Any]:
    """What the network is made of.

    Args:
        outline: of the network, or of its weights.
        call: one of its calls.
    """
    config = outline.config
    size = call.size if call.size_said else None
    return {
        "kind": outline.kind or None,
        "parameters": outline.parameters,
        "channels": call.channels,
        "image_size": size,
        "flop_per_call": call.flop,
        "flop_image_size": None if call.flop is None else call.size,
        "flop_channels": None if call.flop is None else call.tried_channels or call.channels,
        "uncounted": call.uncounted,
        "levels": [
            {
                **dataclasses.asdict(level),
                "size": None if size is None else _at(size, level.divisor),
            }
            for level in outline.levels
        ],
        "config": None if config is None else config.to_dict(),
        "layers": dict(outline.layers),
        "ends": {name: list(shape) for name, shape in outline.ends},
    }


def _at(size: ImageSize, divisor: int) -> ImageSize:
    """The size of images at a resolution of the network."""
    if isinstance(size, int):
        return size // divisor
    return size[0] // divisor, size[1] // divisor


def process_record(schedule: NoiseSchedule) -> dict[str, Any]:
    """The forward process in a few numbers, and a curve of it.

    `log_snr` is the natural logarithm of the signal-to-noise ratio, `prior` L_T in bits per
    dimension for data of unit mean square, whose expectation depends on nothing else:
    -log(1 - alphas_cumprod_T) / 2.

    Args:
        schedule: the noise schedule.
    """
    total = schedule.num_timesteps
    steps = sorted({1, (total + 1) // 2, total})
    log_snr = log_snr_of(schedule)
    at = [
        {
            "t": t,
            "beta": schedule.betas[t - 1].item(),
            "alphas_cumprod": schedule.alphas_cumprod[t - 1].item(),
            "log_snr": log_snr[t - 1].item(),
        }
        for t in steps
    ]
    last = schedule.one_minus_alphas_cumprod[-1].item()
    curve = torch.linspace(0, total - 1, min(total, CURVE_POINTS), dtype=torch.float64)
    return {
        "schedule": schedule.name,
        "num_timesteps": total,
        "num_original_timesteps": schedule.num_original_timesteps,
        "steps": at,
        "prior": -0.5 * math.log(last) / NATS_PER_BIT,
        "alphas_cumprod": schedule.alphas_cumprod[curve.round().long()].tolist(),
    }


def image_words(channels: int | None, size: ImageSize | list[int] | None) -> str:
    """What images a network takes: 32x32 RGB images."""
    kind = {None: "", 1: "gray ", 3: "RGB "}.get(channels)
    side = "" if size is None else f"{shown_size(size)} "
    return f"{side}images of {channels} channels" if kind is None else f"{side}{kind}images"


def shown_size(size: ImageSize | list[int]) -> str:
    """As people write it: 32x16. A pair is a list in JSON."""
    return size_words(size if isinstance(size, int) else (size[0], size[1]))


def log_snr_of(schedule: NoiseSchedule) -> torch.Tensor:
    """(T,) natural logarithm of alphas_cumprod / (1 - alphas_cumprod), without cancellation."""
    return schedule.log_alphas_cumprod - schedule.one_minus_alphas_cumprod.log()
