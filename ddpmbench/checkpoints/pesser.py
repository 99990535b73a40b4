"""The family of pesser/pytorch_diffusion: the network of Ho et al. as a bare state dict."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ddpmbench.checkpoints.network_weights import (
    Renames,
    build_unet,
    check_outputs,
    count,
    only_tensors,
    shape_of,
)
from ddpmbench.checkpoints.schedule_tables import NO_TABLES, ScheduleTables
from ddpmbench.checkpoints.schedules import read_schedule
from ddpmbench.checkpoints.settings import CheckpointSettings, MissingSettingsError, parameters
from ddpmbench.checkpoints.weights import naming
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.process import Prediction, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.files import sha256_of
from ddpmbench.unet.unet import UNetConfig


@dataclasses.dataclass(frozen=True)
class Published:
    """The project's settings of a published file; its name ends in `step`."""

    step: int
    image_size: int
    variance: Variance
    channels: tuple[int, ...]


_CIFAR10 = (128, 256, 256, 256)
_LSUN = (128, 128, 256, 256, 512, 512)
PUBLISHED = {
    "cifar10": Published(790_000, 32, Variance.FIXED_LARGE, _CIFAR10),
    "lsun_bedroom": Published(2_388_000, 256, Variance.FIXED_SMALL, _LSUN),
    "lsun_cat": Published(1_761_000, 256, Variance.FIXED_SMALL, _LSUN),
    "lsun_church": Published(4_432_000, 256, Variance.FIXED_SMALL, _LSUN),
}
"""The published files by name; each also exists with averaged weights, as `ema_NAME`.

The project's own download puts them in folders: `ema_diffusion_cifar10_model/model-790000.ckpt`.
"""

NAMES = (
    ("temb.dense.0.weight", "conv_in.weight"),
    ("down.0.block.0.temb_proj.weight", "conv_out.weight"),
)
"""Groups of names of this family, under any prefix; a file has all names of a group."""


def read_pesser(
    path: Path,
    state: Mapping[str, object],
    *,
    source: str,
    settings: CheckpointSettings,
    tables: ScheduleTables = NO_TABLES,
) -> Checkpoint:
    """The checkpoint in a state dict of the project, or of another with its network.

    `tables` are the schedule tables beside the weights.

    Raises:
        MissingSettingsError: schedule or variance are not given, and the file is not a published
            one.
        InputError: weights are missing, or our U-Net cannot express the network.

    Source: Ho et al. 2020 and pytorch_diffusion's model.py and diffusion.py.
    """
    weights = only_tensors(state, source=str(path))
    config = network_config(weights, path)
    name, published = _published(path, config)
    notes = []
    if published is not None:
        schedule = NoiseSchedule.linear(1000)
        variance, image_size = published.variance, published.image_size
        notes.append(f"by its name the published {name}: linear schedule of 1000 steps, {variance}")
    else:
        reason = "published files are known by their names: ema_cifar10.ckpt, ..."
        if name:
            channels = _listed(PUBLISHED[name.removeprefix("ema_")].channels)
            reason = f"it has the name of the published {name}, whose network is of {channels}"
        examples = {"schedule": tables.example, "variance": "fixed_large"}
        missing = {n: example for n, example in examples.items() if getattr(settings, n) is None}
        if tables:
            missing.pop("schedule", None)
        if missing:
            raise MissingSettingsError(
                f"{path}: weights of pesser/pytorch_diffusion's network "
                f"({_listed(config.channels)}, {config.num_blocks} blocks each), which "
                f"do not say how they were trained; add {' and '.join(parameters(missing))}, or "
                f"whatever it was ({reason})",
                family="pesser",
                path=path,
                weights=weights,
                missing=missing,
            )
        if settings.schedule is not None:
            schedule = read_schedule(settings.schedule, tables)
        else:
            with naming(path):
                schedule = tables.schedule()
            notes.append("schedule: that of the tables beside the weights")
        variance = Variance(str(settings.variance))
        image_size = None
    check_outputs(config, variance, source=f"{path}: `variance={variance}`")
    network = build_unet(config, weights, renames(config), parts=("q", "k", "v"), source=path)
    return Checkpoint(
        network=network,
        schedule=schedule,
        prediction=Prediction.EPSILON,
        variance=variance,
        channels=config.in_channels,
        image_size=image_size,
        size_multiple=config.size_multiple,
        family="pesser",
        source=source,
        sha256=sha256_of(path),
        notes=tuple(notes),
    )


def network_config(weights: Mapping[str, Tensor], path: Path) -> UNetConfig:
    """The network; its weights determine all but the resolution.

    Raises:
        InputError: a required weight is missing, or our U-Net cannot express the network.
    """
    shape = functools.partial(shape_of, weights, source=path)
    levels = range(max(1, count(weights, "down.{}.block.0.conv1.weight")))
    channels = tuple(shape(f"down.{level}.block.0.conv1.weight", 4)[0] for level in levels)
    pooled = len(levels) > 1 and not any("sample.conv." in name for name in weights)
    with naming(path):
        return UNetConfig(
            in_channels=shape("conv_in.weight", 4)[1],
            out_channels=shape("conv_out.weight", 4)[0],
            model_channels=shape("temb.dense.0.weight", 2)[1],
            channels=channels,
            num_blocks=count(weights, "down.0.block.{}.conv1.weight"),
            attention=tuple(f"down.{level}.attn.0.q.weight" in weights for level in levels),
            resampling="pool" if pooled else "conv",
            symmetric_padding=False,
            cosine_first=False,
            frequency_shift=1.0,
            norm_groups=32,
            norm_eps=1e-6,
        )


def _published(path: Path, config: UNetConfig) -> tuple[str, Published | None]:
    """The name of the published file that a path matches, and its record.

    The record is None if the file holds another network. A short name without `ema_` does not
    count: any user's file may be called cifar10.ckpt.
    """
    for name, published in PUBLISHED.items():
        for prefix in ("ema_", ""):
            folder = f"{prefix}diffusion_{name}_model"
            named = path.stem in ((folder, f"ema_{name}") if prefix else (folder,))
            in_folder = path.parent.name == folder and path.stem == f"model-{published.step}"
            if named or in_folder:
                is_its = config.channels == published.channels
                return prefix + name, published if is_its else None
    return "", None


def _listed(channels: tuple[int, ...]) -> str:
    return f"{', '.join(map(str, channels))} channels"


def renames(config: UNetConfig) -> Renames:
    """Our names -> theirs, where the upward path counts resolutions from the image down."""
    last = len(config.channels) - 1
    return (
        (r"^up\.(\d+)\.", lambda match: f"up.{last - int(match[1])}."),
        (r"^time_1\.", "temb.dense.0."),
        (r"^time_2\.", "temb.dense.1."),
        (r"^middle\.attention\.", "mid.attn_1."),
        (r"^middle\.", "mid."),
        (r"^(down|up)\.(\d+)\.blocks\.", r"\1.\2.block."),
        (r"^(down|up)\.(\d+)\.attentions\.", r"\1.\2.attn."),
        (r"^(down|up)\.(\d+)\.resample\.", r"\1.\2.\1sample."),
        (r"\.(norm|conv)_(\d)\.", r".\1\2."),
        (r"\.time\.", ".temb_proj."),
        (r"\.shortcut\.", ".nin_shortcut."),
        (r"\.out\.", ".proj_out."),
    )
