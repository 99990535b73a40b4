"""Pipelines of diffusers with a ScoreSdeVeScheduler, such as google/ncsnpp-*, run by diffusers.

Their networks (Fourier features, resampling filters, image skips) are not our U-Net.
"""

import hashlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddpmbench.checkpoints.diffusers_scheduler import Fields, read_object
from ddpmbench.checkpoints.network_weights import importing, load_weights
from ddpmbench.checkpoints.schedules import read_schedule
from ddpmbench.checkpoints.settings import CheckpointSettings, MissingSettingsError
from ddpmbench.checkpoints.weights import OWN, FileError, first_line, naming
from ddpmbench.diffusion.data_range import DataRange
from ddpmbench.diffusion.model import Checkpoint, TimeInput
from ddpmbench.diffusion.parameterization import Prediction, Process, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.files import sha256_of
from ddpmbench.unet.unet import MAX_BLOCKS

SCHEDULER = "ScoreSdeVeScheduler"
_LEVELS = ("sigma_min", "sigma_max", "num_train_timesteps")


class DiffusersUNet(nn.Module):
    """The network of diffusers, from x_t and the noise level to a tensor."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
        """(B, C, H, W) and sigma (B,) to the score (B, C, H, W)."""
        return self.network(x_t, time).sample  # type: ignore[no-any-return]


def is_score_scheduler(path: Path) -> bool:
    """Whether a `scheduler_config.json` is of a VE process in continuous time."""
    return path.is_file() and read_object(path).get("_class_name") == SCHEDULER


def read_score_network(
    config: Path,
    scheduler: Path,
    weights: Mapping[str, Tensor],
    *,
    file: Path,
    sha256: str,
    settings: CheckpointSettings,
) -> Checkpoint:
    """The checkpoint of a pipeline whose network predicts the score at a noise level.

    The network divides its output by sigma, which is its time input. The pipeline clamps its
    images to [0, 1], never the predicted x_start, and adds the forward variance.

    Raises:
        MissingSettingsError: neither the scheduler nor the settings state the noise levels.
        InputError: the package is missing, or the files are damaged or of another network.

    Source: Song et al. 2021; the package's ScoreSdeVePipeline and UNet2DModel.
    """
    fields = Fields.read(config, {}, {}, remedy=f"; correct it, or {OWN}")
    if fields.values.get("time_embedding_type") != "fourier":
        raise fields.refusal(
            "time_embedding_type", f'only "fourier" can be read beside {SCHEDULER}'
        )
    for name in ("class_embed_type", "num_class_embeds"):
        if fields.values.get(name) is not None:
            raise fields.refusal(name, f"only null can be read beside {SCHEDULER}")
    schedule, notes = _schedule(scheduler, settings, file, weights)
    network, version = _built(fields, config)
    sizes = network.config
    if sizes.in_channels != sizes.out_channels:
        raise fields.refusal("out_channels", "must be in_channels")
    load_weights(network, weights, source=file)
    digest = hashlib.sha256(f"{sha256} {sha256_of(config)}".encode())
    return Checkpoint(
        network=DiffusersUNet(network).eval(),
        schedule=schedule,
        prediction=Prediction.SCORE,
        variance=Variance.FIXED_LARGE,
        clip=False,
        time_input=TimeInput.SIGMA,
        data_range=DataRange(0.0, 1.0, 256),
        channels=sizes.in_channels,
        image_size=sizes.sample_size if isinstance(sizes.sample_size, int) else None,
        size_multiple=2 ** (len(sizes.block_out_channels) - 1),
        sha256=digest.hexdigest(),
        notes=(
            f"network run by diffusers {version}",
            *notes,
            "images in [0, 1], variance fixed_large, no clipping: as its pipeline samples",
        ),
    )


def _schedule(
    path: Path, settings: CheckpointSettings, file: Path, weights: Mapping[str, Tensor]
) -> tuple[NoiseSchedule, tuple[str, ...]]:
    """The scheduler's geometric noise levels, or those of the settings, and notes."""
    fields = Fields.read(path, {}, {})
    missing = [name for name in _LEVELS if name not in fields.given]
    if not missing:
        first, last = fields.get("sigma_min", float), fields.get("sigma_max", float)
        total = fields.get("num_train_timesteps", int)
        with naming(path):
            return NoiseSchedule.variance_exploding(total, sigma_min=first, sigma_max=last), ()
    if settings.schedule is not None and settings.schedule.startswith(f"{Process.VE}:"):
        note = f"`process={settings.schedule}`: {path} does not say {', '.join(missing)}"
        return read_schedule(settings.schedule), (note,)
    raise MissingSettingsError(
        f"{path}: does not say {', '.join(missing)}",
        {"process": "ve:SIGMA_MIN:SIGMA_MAX:LEVELS"},
        path=file,
        weights=weights,
    )


def _built(fields: Fields, config: Path) -> tuple[Any, str]:
    """The network of diffusers without weights, and the version of diffusers."""
    with importing("diffusers", config, "its network runs through diffusers"):
        from diffusers import UNet2DModel
    arguments: dict[str, Any] = {
        name: value for name, value in fields.values.items() if not name.startswith("_")
    }
    layers, levels = (arguments.get(name) for name in ("layers_per_block", "block_out_channels"))
    depth = len(levels) if isinstance(levels, list) else 1
    if isinstance(layers, int) and layers * depth > MAX_BLOCKS:
        raise fields.refusal(
            "layers_per_block",
            f"are {layers * depth:,} blocks in {depth:,} resolutions, more than {MAX_BLOCKS:,}",
        )
    make: Any = UNet2DModel  # diffusers has no types
    try:
        # the meta device allocates nothing before the shapes are checked against the file
        with torch.device("meta"):
            network = make(**arguments)
    except Exception as error:  # many kinds, depending on the fields
        problem = f"no network of the installed diffusers ({first_line(error)})"
        raise FileError(config, f"{problem}; install the version that wrote it") from error
    return network, importlib.metadata.version("diffusers")
