"""The family of hojonathanho/diffusion: the network of Ho et al. as saved by TensorFlow."""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpmbench.checkpoints.diffusers_scheduler import read_object
from ddpmbench.checkpoints.network_weights import build_unet, check_outputs, importing
from ddpmbench.checkpoints.pesser import network_config, renames
from ddpmbench.checkpoints.schedules import read_schedule
from ddpmbench.checkpoints.settings import CheckpointSettings, MissingSettingsError, parameters
from ddpmbench.checkpoints.weights import FileError, first_line
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.parameterization import Prediction, Variance
from ddpmbench.errors import InputError
from ddpmbench.files import sha256_of

_TABLE_END = bytes.fromhex("57fb808b247547db")  # the end of TensorFlow's index
_VARIABLE = re.compile(r"model/(.+)/(W|b|gamma|beta)(/ExponentialMovingAverage)?")
_LEAVES = {"W": "weight", "gamma": "weight", "b": "bias", "beta": "bias"}
_KWARGS = "kwargs.json"
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
"""Environment variables that keep TensorFlow from logging during import."""
_CONVERTED = (
    "google/ddpm-cifar10-32 and google/ddpm-ema-bedroom-256, -cat-256, -church-256, "
    "-celebahq-256 on the Hugging Face Hub, or the .ckpt files of pesser/pytorch_diffusion"
)
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
_EXAMPLES = {"schedule": "linear:T:START:END", "prediction": "eps", "variance": "fixed_large"}


class Reader(Protocol):
    """The used part of the result of `tf.train.load_checkpoint`."""

    def get_variable_to_shape_map(self) -> Mapping[str, list[int]]:
        """The shape of every variable."""

    def get_tensor(self, name: str) -> NDArray[np.generic]:
        """The numbers of a variable."""


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


def read_tensorflow(
    index: Path,
    *,
    source: str,
    settings: CheckpointSettings,
) -> Checkpoint:
    """The checkpoint in TensorFlow's files beside an index.

    Averaged weights are read if there are any. The process is that of the training record
    `kwargs.json` beside it; a record without a variance is from the project's scripts for larger
    images, which sample with the posterior variance.

    Raises:
        MissingSettingsError: there is no record, and the settings do not state the process.
        InputError: TensorFlow is missing, or the files are damaged or hold another network.

    Source: Ho et al. 2020, and the project's unet.py, nn.py and scripts.
    """
    prefix = index.with_suffix("")
    data = sorted(index.parent.glob(f"{prefix.name}.data-*-of-*"))
    if not data:
        raise FileError(index, f"its numbers are missing; copy {prefix.name}.data-* beside it")
    reader = _tensorflow_reader(prefix, source)
    size = sum(file.stat().st_size for file in data)
    averaged, weights = _read_weights(reader, source, size, raw=settings.weights == "raw")
    schedule, prediction, variance, notes = _process(index, weights, settings)
    config = network_config(weights, index)
    check_outputs(config, variance, source=f"{index}: `variance={variance}`")
    network = build_unet(config, weights, renames(config), parts=("q", "k", "v"), source=index)
    digest = hashlib.sha256("".join(map(sha256_of, (index, *data))).encode())
    return Checkpoint(
        network=network,
        schedule=read_schedule(schedule),
        prediction=prediction,
        variance=variance,
        weights="ema" if averaged else "raw",
        files=tuple(map(str, (index, *data))),
        channels=config.in_channels,
        size_multiple=config.size_multiple,
        family="tensorflow",
        source=source,
        sha256=digest.hexdigest(),
        notes=notes,
    )


def _tensorflow_reader(prefix: Path, source: str) -> Reader:
    before = {name: os.environ.get(name) for name in _QUIET}
    os.environ.update(_QUIET)
    other = f", or take the same weights in other formats: {_CONVERTED}"
    try:
        with importing("tensorflow", source, "its files are read by TensorFlow", remedy=other):
            import tensorflow
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    try:
        reader: Reader = tensorflow.train.load_checkpoint(str(prefix))
    except Exception as error:  # many kinds, depending on the damaged bytes
        raise _damaged(source, error) from error
    return reader


def _damaged(source: str, error: Exception) -> FileError:
    return FileError(
        source, f"a damaged checkpoint of TensorFlow ({first_line(error)}); copy it again"
    )


def _read_weights(
    reader: Reader, source: str, size: int, *, raw: bool
) -> tuple[bool, dict[str, Tensor]]:
    """Whether they are averaged, and the weights under the names of pytorch_diffusion."""
    shapes = reader.get_variable_to_shape_map()
    matches = [m for m in map(_VARIABLE.fullmatch, shapes) if m is not None]
    averaged = not raw and any(match[3] for match in matches)
    wanted = [match for match in matches if bool(match[3]) == averaged]
    if not {"conv_in", "temb/dense0"} <= {match[1] for match in wanted}:
        first = next(iter(shapes), "nothing")
        raise FileError(
            source, f"a checkpoint of TensorFlow, but not of Ho et al.'s network: it holds {first}"
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
    index: Path, weights: Mapping[str, Tensor], settings: CheckpointSettings
) -> tuple[str, Prediction, Variance, tuple[str, ...]]:
    """The form of the schedule, the parameterization, the variance, and notes."""
    path = index.parent / _KWARGS
    recorded = _recorded(path, settings) if path.is_file() else {}
    given = {n: v for n in _EXAMPLES if (v := getattr(settings, n)) is not None}
    missing = {n: _EXAMPLES[n] for n in _EXAMPLES if n not in given and n not in recorded}
    if missing:
        why = "does not say" if path.is_file() else "is missing, so nothing says"
        raise MissingSettingsError(
            f"{path}: {why} {', '.join(missing)}; copy it there from where the model came, or pass "
            f"{' '.join(parameters(missing))}, or whatever it was trained with",
            family="tensorflow",
            path=index,
            weights=weights,
            missing=missing,
        )
    # the caller notes overrides of the record; the variance goes with the outputs
    values = {**given, **recorded}
    variance = Variance(str(given.get("variance", values["variance"])))
    prediction = Prediction(str(values["prediction"]))
    note = f"schedule, prediction and variance: {_KWARGS}" if recorded else f"no {_KWARGS}"
    return str(values["schedule"]), prediction, variance, (note,)


def _recorded(path: Path, stated: CheckpointSettings) -> dict[str, str]:
    """The settings in a training record, by our names.

    The user may state those that cannot be read.
    """
    record = read_object(path)
    if record.get("block_size", 1) != 1:
        raise FileError(path, "block_size: a network of blocks of pixels, which cannot be read")
    settings: dict[str, str] = {}
    name, total = record.get("beta_schedule"), record.get("num_diffusion_timesteps")
    ends = [record.get("beta_start"), record.get("beta_end")]
    if name is not None:
        numbers = ends[1:] if name == "const" else ends
        form = ":".join(map(str, (name, total, *numbers)))
        try:
            read_schedule(form)
            settings["schedule"] = form
        except InputError as error:
            if stated.schedule is None:
                raise FileError(path, f"{error}; or pass another `schedule`") from error
    is_first = "model_mean_type" not in record and record.get("loss_type") == "noisepred"
    for setting, key, known, default in (
        ("prediction", "model_mean_type", _PREDICTIONS, "eps"),
        ("variance", "model_var_type", _VARIANCES, "fixedsmall"),
    ):
        value = record.get(key, default if is_first else None)
        if isinstance(value, str) and value in known:
            settings[setting] = known[value]
        elif value is not None and getattr(stated, setting) is None:
            raise FileError(path, f"{key}: {value!r} is not known; pass `{setting}`")
    return settings
