"""A checkpoint as a folder for diffusers: a DDPMPipeline of UNet2DModel and DDPMScheduler.

A model that diffusers cannot express is refused before anything is written.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ddpmbench.checkpoints.diffusers import diffusers_weights
from ddpmbench.checkpoints.diffusers_files import STEM
from ddpmbench.checkpoints.diffusers_scheduler import PREDICTIONS, VARIANCES
from ddpmbench.checkpoints.weights import FileError
from ddpmbench.diffusion.data_range import UNIT_RANGE
from ddpmbench.diffusion.model import Checkpoint, ImageSize
from ddpmbench.diffusion.parameterization import Process
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError
from ddpmbench.files import os_errors
from ddpmbench.unet.unet import UNet, UNetConfig

_PREDICTIONS = {prediction: name for name, prediction in PREDICTIONS.items()}
_VARIANCES = {kind: name for name, kind in VARIANCES.items() if not name.endswith("_log")}
# Whether a resolution has attention -> its kind of block, by the network's resampling.
_BLOCKS = {
    "conv": {False: "{}Block2D", True: "Attn{}Block2D"},
    "block": {False: "Resnet{}sampleBlock2D", True: "Attn{}Block2D"},
}
_SAME = 1e-12
"""Largest relative difference of two betas that count as equal."""
_DIGITS = 12
"""Significant digits of the first and last beta of a named schedule."""


def write_diffusers(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint as a folder for `DDPMPipeline.from_pretrained`.

    Args:
        folder: receives `model_index.json`, `unet/` and `scheduler/`; created if missing.
        checkpoint: its network must be the built-in U-Net.

    Raises:
        InputError: diffusers cannot express the model; the message names the feature.

    Source: diffusers' UNet2DModel, DDPMScheduler and DDPMPipeline.
    """
    refuse_inexpressible(checkpoint)
    network = checkpoint.network
    assert isinstance(network, UNet)
    for name in ("unet", "scheduler"):
        (folder / name).mkdir(parents=True)
    _write(
        folder / "model_index.json",
        {
            "_class_name": "DDPMPipeline",
            "scheduler": ["diffusers", "DDPMScheduler"],
            "unet": ["diffusers", "UNet2DModel"],
        },
    )
    _write(folder / "unet" / "config.json", _network(network.config, checkpoint.image_size))
    _write(folder / "scheduler" / "scheduler_config.json", _scheduler(checkpoint))
    path = folder / "unet" / f"{STEM}.safetensors"
    weights = {n: w.cpu().contiguous() for n, w in diffusers_weights(network).items()}
    with os_errors():
        save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes it readable by the owner only


def refuse_inexpressible(checkpoint: Checkpoint) -> None:
    """Raise InputError if diffusers cannot express a model; the message names the feature."""
    if lacking := next(_lacking(checkpoint), None):
        raise FileError(
            checkpoint.source,
            f"diffusers has no {lacking}; write it as native (OUT ending in .safetensors)",
        )


def _lacking(checkpoint: Checkpoint) -> Iterator[str]:
    """Features of the model that diffusers lacks."""
    network, schedule = checkpoint.network, checkpoint.schedule
    if not isinstance(network, UNet):
        yield f"network of the kind {type(network).__name__}"
        return
    config = network.config
    if schedule.num_timesteps != schedule.num_original_timesteps:
        yield "respaced schedule (and that of the original is the one to convert)"
    if schedule.process is not Process.VP:
        yield f"process but vp in a DDPM scheduler, and this model's is {schedule.process}"
    times = checkpoint.network_time(torch.arange(1, schedule.num_timesteps + 1)).double()
    if not torch.equal(times, torch.arange(schedule.num_timesteps, dtype=torch.float64)):
        last = f"{checkpoint.time_input}: {times[-1]:g} at timestep {schedule.num_timesteps:,}"
        yield f"time input but the timestep itself, from 0 on, and this network takes {last}"
    if checkpoint.prediction not in _PREDICTIONS:
        yield f"prediction of the {checkpoint.prediction}"
    if checkpoint.variance not in _VARIANCES:
        yield f"variance that is {checkpoint.variance} as a logarithm"
    if checkpoint.data_range != UNIT_RANGE:
        yield f"data range but {UNIT_RANGE}, and this model's is {checkpoint.data_range}"
    if config.attend_once or config.rescale_sums or config.least_group:
        yield "network in the form of Song et al. (attention once a resolution, or rescaled sums)"
    if config.resampling == "projected":
        yield "block that resamples with a convolution in its shortcut"
    if config.resampling not in _BLOCKS:
        yield "block with attention that resamples by pooling alone"
    if config.model_channels != config.channels[0]:
        yield (
            f"time embedding of {config.model_channels} channels beside a first resolution of "
            f"{config.channels[0]}"
        )
    if len(widths := _head_widths(config)) > 1:
        listed = " and ".join(map(str, widths))
        yield (
            f"attention heads whose channels vary with the resolution ({config.num_heads} heads "
            f"of {listed} channels)"
        )


def _head_widths(config: UNetConfig) -> list[int]:
    """The widths of attention heads; empty if one head has all channels of a layer."""
    if config.head_channels or config.num_heads == 1:
        return [config.head_channels] if config.head_channels else []
    attended = zip(config.channels, config.attention, strict=True)
    layers = {config.channels[-1], *(width for width, yes in attended if yes)}
    return sorted(width // config.num_heads for width in layers)


def _network(config: UNetConfig, image_size: ImageSize | None) -> dict[str, object]:
    """The fields of UNet2DModel."""
    kinds = [_BLOCKS[config.resampling][yes] for yes in config.attention]
    resampling = {"conv": "conv", "block": "resnet"}[config.resampling]
    shift = config.frequency_shift
    return {
        "_class_name": "UNet2DModel",
        "act_fn": "silu",
        "attention_head_dim": next(iter(_head_widths(config)), None),
        # with scale_shift and null the middle attention would have no normalization
        "attn_norm_num_groups": config.norm_groups if config.scale_shift else None,
        "block_out_channels": list(config.channels),
        "center_input_sample": False,
        "down_block_types": [kind.format("Down") for kind in kinds],
        "downsample_padding": 1 if config.symmetric_padding else 0,
        "downsample_type": resampling,
        "dropout": config.dropout,
        "flip_sin_to_cos": config.cosine_first,
        "freq_shift": int(shift) if float(shift).is_integer() else shift,
        "in_channels": config.in_channels,
        "layers_per_block": config.num_blocks,
        "mid_block_scale_factor": 1,
        "norm_eps": config.norm_eps,
        "norm_num_groups": config.norm_groups,
        "num_class_embeds": config.num_classes or None,
        "out_channels": config.out_channels,
        "resnet_time_scale_shift": "scale_shift" if config.scale_shift else "default",
        "sample_size": image_size,
        "time_embedding_type": "positional",
        "up_block_types": [kind.format("Up") for kind in kinds[::-1]],
        "upsample_type": resampling,
    }


def _scheduler(checkpoint: Checkpoint) -> dict[str, object]:
    """The fields of DDPMScheduler."""
    return {
        "_class_name": "DDPMScheduler",
        "clip_sample": checkpoint.clip,
        "clip_sample_range": 1.0,
        "num_train_timesteps": checkpoint.schedule.num_timesteps,
        "prediction_type": _PREDICTIONS[checkpoint.prediction],
        "rescale_betas_zero_snr": False,
        "thresholding": False,
        "variance_type": _VARIANCES[checkpoint.variance],
        **_betas(checkpoint.schedule),
    }


def _betas(schedule: NoiseSchedule) -> dict[str, object]:
    """The schedule by diffusers' name, or its betas if it has none."""
    steps, betas = schedule.num_timesteps, schedule.betas
    first, last = _short(betas[0]), _short(betas[-1])
    # the ends of a sigmoid on [-6, 6] differ from the first and last beta
    low, high = 1 / (1 + torch.tensor([6.0, -6.0], dtype=torch.float64).exp())
    slope = (betas[-1] - betas[0]) / (high - low)
    start, end = _short(betas[0] - slope * low), _short(betas[0] - slope * low + slope)
    for name, ends, build in (
        ("linear", (first, last), NoiseSchedule.linear),
        ("scaled_linear", (first, last), NoiseSchedule.scaled_linear),
        ("sigmoid", (start, end), NoiseSchedule.sigmoid_betas),
    ):
        with contextlib.suppress(InputError):  # such betas do not fit that schedule
            if _same(build(steps, beta_start=ends[0], beta_end=ends[1]), schedule):
                return {
                    "beta_schedule": name,
                    "beta_start": ends[0],
                    "beta_end": ends[1],
                    "trained_betas": None,
                }
    if _same(NoiseSchedule.cosine(steps), schedule):
        return {"beta_schedule": "squaredcos_cap_v2", "trained_betas": None}
    return {"beta_schedule": "linear", "trained_betas": betas.tolist()}


def _short(beta: Tensor) -> float:
    """A number rounded to `_DIGITS` significant digits."""
    return float(f"{float(beta):.{_DIGITS}g}")


def _same(one: NoiseSchedule, other: NoiseSchedule) -> bool:
    return torch.allclose(one.betas, other.betas, rtol=_SAME, atol=0.0)


def _write(path: Path, fields: dict[str, object]) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
