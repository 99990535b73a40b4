"""The families with the network of Ho et al. 2020: pesser/pytorch_diffusion and TensorFlow.

pesser: a bare state dict. TensorFlow: as saved by Ho et al.'s own code, hojonathanho/diffusion.
"""

import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpmbench.checkpoints.diffusers_scheduler import Fields, read_object
from ddpmbench.checkpoints.network_weights import (
    Renames,
    build_unet,
    check_outputs,
    count,
    importing,
    shape_of,
)
from ddpmbench.checkpoints.schedules import read_schedule
from ddpmbench.checkpoints.settings import CheckpointFile, Family, Stated
from ddpmbench.checkpoints.weights import OWN, FileError, first_line, naming
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.parameterization import Prediction, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.files import sha256_of
from ddpmbench.unet.unet import UNet, UNetConfig

# ---- pytorch_diffusion


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


def read_pesser(file: CheckpointFile) -> Checkpoint:
    """The checkpoint in a state dict of the project, or of another with its network.

    Raises:
        MissingSettingsError: schedule or variance are not given, and the file is not a published
            one.
        InputError: weights are missing, or our U-Net cannot express the network.

    Source: Ho et al. 2020 and pytorch_diffusion's model.py and diffusion.py.
    """
    path, settings, tables, weights = file.path, file.settings, file.tables, file.weights
    config = network_config(weights, path)
    notes = []
    if (name := _published_name(path, config)) is not None:
        published = PUBLISHED[name.removeprefix("ema_")]
        schedule = NoiseSchedule.linear(1000)
        variance, image_size = published.variance, published.image_size
        notes.append(f"by its name the published {name}: linear schedule of 1000 steps, {variance}")
    else:
        image_size = None
        channels = ", ".join(map(str, config.channels))
        problem = FileError(
            path,
            f"weights of pesser/pytorch_diffusion's network ({channels} channels, "
            f"{config.num_blocks} blocks each), which do not say how they were trained",
        )
        stated: dict[str, Stated] = {"schedule": problem, "variance": problem}
        if tables and settings.schedule is None:
            with naming(path):
                own_schedule = tables.schedule()
            stated["schedule"] = lambda: own_schedule
            notes.append("schedule: that of the tables beside the weights")
        values, _ = file.settle(
            stated,
            weights=weights,
            examples={"variance": "fixed_large"},
            config=config,
            hint="published files are known by their names, ema_cifar10.ckpt, and their network",
        )
        schedule, variance = values["schedule"], values["variance"]
    return Checkpoint(
        network=_network(config, variance, weights, path),
        schedule=schedule,
        prediction=Prediction.EPSILON,
        variance=variance,
        channels=config.in_channels,
        image_size=image_size,
        size_multiple=config.size_multiple,
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


def _network(
    config: UNetConfig, variance: Variance, weights: Mapping[str, Tensor], path: Path
) -> UNet:
    """The network with the weights under pytorch_diffusion's names."""
    check_outputs(config, variance, source=f"{path}: `variance={variance}`")
    return build_unet(config, weights, _renames(config), parts=("q", "k", "v"), source=path)


def _published_name(path: Path, config: UNetConfig) -> str | None:
    """The name of the published file that a path matches; None if it is another network's.

    A short name without `ema_` does not count: any user's file may be called cifar10.ckpt.
    """
    for name, published in PUBLISHED.items():
        for prefix in ("ema_", ""):
            folder = f"{prefix}diffusion_{name}_model"
            named = path.stem in ((folder, f"ema_{name}") if prefix else (folder,))
            in_folder = path.parent.name == folder and path.stem == f"model-{published.step}"
            if (named or in_folder) and config.channels == published.channels:
                return prefix + name
    return None


def _renames(config: UNetConfig) -> Renames:
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


PESSER = Family(
    name="pesser",
    projects="pytorch_diffusion",
    read=read_pesser,
    names=(
        ("temb.dense.0.weight", "conv_in.weight"),
        ("down.0.block.0.temb_proj.weight", "conv_out.weight"),
    ),
    stated_by=("its name says", "rename it"),
)


# ---- TensorFlow

_TABLE_END = bytes.fromhex("57fb808b247547db")  # the end of TensorFlow's index
_VARIABLE = re.compile(r"model/(.+)/(W|b|gamma|beta)(/ExponentialMovingAverage)?")
_LEAVES = {"W": "weight", "gamma": "weight", "b": "bias", "beta": "bias"}
_KWARGS = "kwargs.json"
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
"""Environment variables that keep TensorFlow from logging during import."""
_PREDICTIONS = {
    "eps": Prediction.EPSILON,
    "xstart": Prediction.X_START,
    "xprev": Prediction.PREVIOUS_MEAN,
}
_VARIANCES = {
    "fixedlarge": Variance.FIXED_LARGE,
    "fixedsmall": Variance.FIXED_SMALL,
    "learned": Variance.LEARNED,
}


def tensorflow_index(path: Path) -> Path | None:
    """The index of a TensorFlow checkpoint; None if the path is not one.

    Args:
        path: the index, a file beside it, their common prefix, or their folder.

    Raises:
        InputError: a folder holds several.
    """
    stem = re.sub(r"\.(index|meta|data-[\d-]+of-\d+)$", "", path.name)
    candidates = (
        sorted(path.glob("*.index")) if path.is_dir() else [path.with_name(f"{stem}.index")]
    )
    indices = [index for index in candidates if index.is_file() and _is_table(index)]
    if len(indices) > 1:
        names = ", ".join(str(index) for index in indices)
        raise FileError(path, f"holds several checkpoints of TensorFlow; pass one of {names}")
    return indices[0] if indices else None


def _is_table(index: Path) -> bool:
    with index.open("rb") as file:
        file.seek(max(0, index.stat().st_size - len(_TABLE_END)))
        return file.read() == _TABLE_END


def read_tensorflow(file: CheckpointFile) -> Checkpoint:
    """The checkpoint in TensorFlow's files beside an index.

    Averaged weights are read if there are any. The process is that of the training record
    `kwargs.json` beside it; a record without a variance is from the project's scripts for larger
    images, which sample with the posterior variance.

    Raises:
        MissingSettingsError: there is no record, and the settings do not state the process.
        InputError: TensorFlow is missing, or the files are damaged or hold another network.

    Source: Ho et al. 2020, and the project's unet.py, nn.py and scripts.
    """
    index, source = file.path, file.source
    prefix = index.with_suffix("")
    data = sorted(index.parent.glob(f"{prefix.name}.data-*-of-*"))
    if not data:
        raise FileError(index, f"its numbers are missing; copy {prefix.name}.data-* beside it")
    reader = _tensorflow_reader(prefix, source)
    size = sum(file.stat().st_size for file in data)
    averaged, weights = _read_weights(reader, source, size, raw=file.settings.weights == "raw")
    values, notes = _process(file, weights)
    config = network_config(weights, index)
    digest = hashlib.sha256("".join(map(sha256_of, (index, *data))).encode())
    return Checkpoint(
        network=_network(config, values["variance"], weights, index),
        **values,
        weights="ema" if averaged else "raw",
        files=tuple(map(str, (index, *data))),
        channels=config.in_channels,
        size_multiple=config.size_multiple,
        sha256=digest.hexdigest(),
        notes=notes,
    )


def _tensorflow_reader(prefix: Path, source: str) -> Any:  # noqa: ANN401 - of TensorFlow
    before = {name: os.environ.get(name) for name in _QUIET}
    os.environ.update(_QUIET)
    try:
        with importing("tensorflow", source, "its files are read by TensorFlow"):
            import tensorflow
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    try:
        return tensorflow.train.load_checkpoint(str(prefix))
    except Exception as error:  # many kinds, depending on the damaged bytes
        raise _damaged(source, error) from error


def _damaged(source: str, error: Exception) -> FileError:
    return FileError(
        source, f"a damaged checkpoint of TensorFlow ({first_line(error)}); copy it again"
    )


def _read_weights(
    reader: Any,  # noqa: ANN401 - of TensorFlow
    source: str,
    size: int,
    *,
    raw: bool,
) -> tuple[bool, dict[str, Tensor]]:
    """Whether they are averaged, and the weights under the names of pytorch_diffusion."""
    shapes = reader.get_variable_to_shape_map()
    matches = [m for m in map(_VARIABLE.fullmatch, shapes) if m is not None]
    averaged = not raw and any(match[3] for match in matches)
    wanted = [match for match in matches if bool(match[3]) == averaged]
    if not {"conv_in", "temb/dense0"} <= {match[1] for match in wanted}:
        first = next(iter(shapes), "nothing")
        raise FileError(
            source,
            f"a checkpoint of TensorFlow, but not of Ho et al.'s network: it holds {first}; save "
            f"its weights with torch, and {OWN}",
        )
    # a shape that declares more than the files hold is never allocated
    if sum(4 * int(np.prod(shapes[match[0]], dtype=object)) for match in wanted) > size:
        raise FileError(source, "its variables are larger than its files; copy them again")
    weights = {}
    for match in wanted:
        try:
            values = np.asarray(reader.get_tensor(match[0]), dtype=np.float32)
        except Exception as error:  # as above
            raise _damaged(source, error) from error
        weights[f"{_pesser_name(match[1])}.{_LEAVES[match[2]]}"] = _as_torch(match[1], values)
    return averaged, weights


def _pesser_name(scope: str) -> str:
    """pytorch_diffusion's name for the scope of a layer; it has the same network."""
    name = re.sub(r"^(down|up)_(\d+)/", r"\1.\2.", scope)
    name = re.sub(r"^((?:down|up)\.\d+\.)(block|attn)_(\d+)", r"\1\2.\3", name)
    return re.sub(r"^temb/dense(\d)", r"temb.dense.\1", name).replace("/", ".")


def _as_torch(scope: str, values: NDArray[np.float32]) -> Tensor:
    """Kernels as (out, in, height, width), or (out, in) for time layers."""
    tensor = torch.from_numpy(values)
    if values.ndim == 4:
        return tensor.permute(3, 2, 0, 1)
    if values.ndim != 2:
        return tensor
    of_time = scope.startswith("temb/") or scope.endswith("temb_proj")
    return tensor.T if of_time else tensor.T[:, :, None, None]


def _process(
    file: CheckpointFile, weights: Mapping[str, Tensor]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Schedule, prediction and variance, of the training record or the user, and notes."""
    path = file.path.parent / _KWARGS
    has_record = path.is_file()
    record = read_object(path) if has_record else {}
    if record.get("block_size", 1) != 1:
        raise FileError(
            path,
            f"block_size: a network of blocks of pixels; save its weights with torch, and {OWN}",
        )
    if "model_mean_type" not in record and record.get("loss_type") == "noisepred":
        record = {"model_mean_type": "eps", "model_var_type": "fixedsmall", **record}
    fields = Fields(path, record, frozenset(record))
    values, notes = file.settle(
        {n: functools.partial(read, fields) for n, read in _RECORDED.items()}
        if has_record
        else dict.fromkeys(_RECORDED, FileError(path, "missing, so nothing says the process")),
        weights=weights,
        examples={"variance": "fixed_large"},
        hint="" if has_record else "or copy the file there from where the model came",
    )
    stated_by = (f"schedule, prediction and variance: {_KWARGS}",) if has_record else ()
    return values, (*stated_by, *notes)


def _recorded_schedule(fields: Fields) -> NoiseSchedule:
    fields.require_given("beta_schedule", "num_diffusion_timesteps")
    name = fields.values["beta_schedule"]
    ends = [fields.values.get(end) for end in ("beta_start", "beta_end")]
    form = (
        name,
        fields.values["num_diffusion_timesteps"],
        *(ends[1:] if name == "const" else ends),
    )
    with naming(fields.path):
        return read_schedule(":".join(map(str, form)))


def _recorded_choice(key: str, known: Mapping[str, object]) -> Callable[[Fields], object]:
    def read(fields: Fields) -> object:
        fields.require_given(key)
        if (value := fields.values[key]) not in [*known]:
            raise fields.refusal(key, "not known")
        return known[str(value)]

    return read


_RECORDED = {
    "schedule": _recorded_schedule,
    "prediction": _recorded_choice("model_mean_type", _PREDICTIONS),
    "variance": _recorded_choice("model_var_type", _VARIANCES),
}


TENSORFLOW = Family(
    name="tensorflow", projects="Ho et al.", read=read_tensorflow, find=tensorflow_index
)
