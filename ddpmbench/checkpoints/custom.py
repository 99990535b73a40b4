"""A network of the user's own: their code builds it, and a file or that code has its weights."""

import dataclasses
import inspect
import operator
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ddpmbench.checkpoints.determinism import refuse_random, refuse_untrained
from ddpmbench.checkpoints.diffusers_files import INDEX, sha256_of_shards
from ddpmbench.checkpoints.network_weights import some_weights
from ddpmbench.checkpoints.schedule_tables import NO_TABLES, ScheduleTables
from ddpmbench.checkpoints.schedules import read_schedule
from ddpmbench.checkpoints.settings import CheckpointSettings, MissingSettingsError, parameters
from ddpmbench.checkpoints.state_dicts import StateDict, find_state, network_digest
from ddpmbench.checkpoints.weights import is_plain, kind_of, sha256_of, tensors_in, why_not_plain
from ddpmbench.diffusion.data_range import UNIT_RANGE
from ddpmbench.diffusion.model import Checkpoint, ImageSize, TimeInput
from ddpmbench.diffusion.process import Prediction, Variance
from ddpmbench.errors import InputError
from ddpmbench.user_code import (
    RandomNumbersAreNaN,
    UserFile,
    calling,
    described_value,
    user_file,
)

FAMILY = "own network"
LABELS = frozenset(
    {"y", "c", "cls", "label", "labels", "class_label", "class_labels", "classes"}
    | {"class_id", "class_ids", "class_idx"}
)
"""What a `forward` calls its argument for classes."""

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
"""Modules that keep the network itself as `module`."""
_PLACEHOLDERS = {
    "prediction": ("PREDICTION", ", ".join(Prediction)),
    "variance": ("VARIANCE", ", ".join(Variance)),
    "time_input": ("TIME", ", ".join(TimeInput)),
}
"""A placeholder for each setting that no file of weights has, and its possible values."""
_BATCH_COUNT = "num_batches_tracked"
"""The buffer of a batch normalization that has no effect in evaluation."""


def read_network_file(
    path: Path,
    state: Mapping[str, object],
    *,
    source: str,
    settings: CheckpointSettings,
    tables: ScheduleTables,
) -> Checkpoint:
    """The network that the user's code builds, with the weights of a file.

    NAME without parameters returns a torch module, which receives the weights, all of them and no
    others. NAME of one parameter is called with the content of the file, and returns the finished
    module. A module's attributes `image_channels`, `image_size`, `num_classes` and `null_class`,
    where it has them, describe its input; with classes it is called with labels.

    Args:
        path: the file of weights.
        state: its content, from `read_state`.
        source: the path as the user gave it.
        settings: `network` names the code. The schedule, prediction, variance and time input are
            needed, too.
        tables: of a schedule, where the file has them.

    Raises:
        MissingSettingsError: one of these settings is missing.
        InputError: the user's code fails, or the weights do not fit its network.
    """
    if {"state", "param_groups"} <= set(state):
        raise InputError(f"{path}: an optimizer's state, not a model; pass the model's file")
    _require(settings, path, state, tables)

    def build(file: UserFile) -> tuple[nn.Module, StateDict]:
        if not _takes_state(file):
            network = _network(file)
            state_dict = _state_dict(file, network, state, path, settings.weights)
            _load(file, network, state_dict, path)
            return network, state_dict
        if settings.weights is not None:
            raise InputError(
                f"`weights={settings.weights}`: the function of {file.who} receives the whole "
                "file and chooses itself; leave out `weights`"
            )
        return _network(file, _copied(state)), StateDict({}, kind=None)

    with RandomNumbersAreNaN(), user_file(str(settings.network)) as file:
        network, state_dict = build(file)
        refuse_untrained(file, network, None if _takes_state(file) else path)
        checkpoint = _checkpoint(file, network, settings, tables)
    refuse_random(file, network, lambda file: build(file)[0])
    notes = [*state_dict.notes]
    if state_dict.alone and (other := _other_weights(state_dict)):
        them = f"{len(other)} tensors" if other[1:] else "1 tensor"
        more = ", ..." if other[1:] else ""
        notes.append(f"weights: {them} beside them ({other[0]}{more}) are not read")
    return dataclasses.replace(
        checkpoint,
        code=dataclasses.replace(file.code, imported=file.modules.sha256()),
        source=source,
        sha256=sha256_of_shards(path) if path.name.endswith(INDEX) else sha256_of(path),
        files=(source,),
        weights=state_dict.kind,
        part="" if state_dict.alone else state_dict.where,
        where=state_dict.where,
        notes=(*notes, *checkpoint.notes),
    )


def read_network_code(settings: CheckpointSettings) -> Checkpoint:
    """The network whose weights the user's code loads itself, as from a TorchScript program.

    Args:
        settings: as for `read_network_file`.

    Raises:
        MissingSettingsError: the schedule or another setting is missing.
        InputError: the user's code fails, or leaves weights random.
    """
    if settings.weights is not None:
        raise InputError(
            f"`weights={settings.weights}`: chooses among those in a file; pass `ckpt=FILE` or "
            "leave out `weights`"
        )

    def build(file: UserFile) -> nn.Module:
        if _takes_state(file):
            raise InputError(
                f"{file.who}: takes the content of a file of weights; pass `ckpt=FILE`"
            )
        return _network(file)

    with RandomNumbersAreNaN(), user_file(str(settings.network)) as file:
        network = build(file)
        _require(settings, file.path, network.state_dict(), NO_TABLES)
        refuse_untrained(file, network)
        checkpoint = _checkpoint(file, network, settings, NO_TABLES)
    refuse_random(file, network, build)
    note = "weights: those that the code of `network` loads; no `ckpt` was given"
    return dataclasses.replace(
        checkpoint,
        code=dataclasses.replace(file.code, imported=file.modules.sha256()),
        source=file.code.name,
        sha256=network_digest(network, file.who),
        notes=(note, *checkpoint.notes),
    )


def _require(
    settings: CheckpointSettings, path: Path, state: Mapping[str, object], tables: ScheduleTables
) -> None:
    """Refuse settings of other families, and name those that no file of weights has."""
    if settings.model_flags is not None:
        raise InputError("`model_flags`: are of other families; with `network` leave them out")
    examples = {"schedule": tables.example}
    examples |= {name: example for name, (example, _) in _PLACEHOLDERS.items()}
    missing = {n: example for n, example in examples.items() if getattr(settings, n) is None}
    if not missing:
        return
    known = (_PLACEHOLDERS[name] for name in missing if name in _PLACEHOLDERS)
    meant = "; ".join(f"{example}: {values}" for example, values in known)
    raise MissingSettingsError(
        f"`network={settings.network}`: no file of weights says how it was trained; add "
        f"{' '.join(parameters(missing))} as it was" + (f" ({meant})" if meant else ""),
        family=FAMILY,
        path=path,
        weights=dict(tensors_in(state)),
        missing=missing,
    )


def _checkpoint(
    file: UserFile, network: nn.Module, settings: CheckpointSettings, tables: ScheduleTables
) -> Checkpoint:
    """All but the source of its weights."""
    channels, size, num_classes, null_class = (
        calling(lambda name=name: getattr(network, name, None), f"{file.who}: {name}")  # type: ignore[misc]
        for name in ("image_channels", "image_size", "num_classes", "null_class")
    )
    notes = []
    if settings.data_range is None:
        notes.append("images are taken to be in [-1, 1] unless `data_range` says otherwise")
    label = next((name for name in signature_of(network) or () if name in LABELS), None)
    if label is not None and not _whole(num_classes):
        notes.append(
            f"the network's forward takes {label}, and is called without it; an attribute "
            "num_classes says how many classes it is conditioned on"
        )
    return Checkpoint(
        network=network,
        schedule=read_schedule(str(settings.schedule), tables),
        prediction=Prediction(str(settings.prediction)),
        variance=Variance(str(settings.variance)),
        time_input=TimeInput(str(settings.time_input)),
        data_range=settings.data_range_over(UNIT_RANGE),
        channels=_whole(channels) or None,
        image_size=_image_size(size),
        num_classes=_whole(num_classes) or 0,
        null_class=_whole(null_class),
        family=FAMILY,
        source="",
        sha256="",
        code=file.code,
        modules=file.modules,
        notes=tuple(notes),
    )


def signature_of(network: nn.Module) -> Mapping[str, inspect.Parameter] | None:
    """The parameters of its `forward`; None where it has no signature, as a program."""
    try:
        return inspect.signature(network.forward).parameters
    except (TypeError, ValueError):
        return None


# ---- what the code builds


def _takes_state(file: UserFile) -> bool:
    """Whether NAME is to be called with the content of the file of weights."""
    value, name = file.value, file.code.builder
    if isinstance(value, nn.Module) or not callable(value):
        what = "a network that is built already" if callable(value) else f"{value!r:.50}"
        raise InputError(
            f"{file.who}: {name} is {what}; name the class, or a function that builds it"
        )
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return False
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p for p in parameters if p.default is p.empty and p.kind not in variadic]
    if not needed:
        return False
    if inspect.isclass(value) or len(needed) > 1 or needed[0].kind is needed[0].KEYWORD_ONLY:
        names = ", ".join(parameter.name for parameter in needed)
        raise InputError(
            f"{file.who}: {name} cannot be called without {names}; name a function that calls it "
            f"as it was when it was trained: def build(): return {name}(...)"
        )
    return True


def _copied(content: Any) -> Any:  # noqa: ANN401 - the content of a file
    """Its dicts and lists anew, around the same tensors: code may take entries out of them."""
    if type(content) is dict:
        return {key: _copied(value) for key, value in content.items()}
    return [_copied(value) for value in content] if type(content) is list else content


def _network(file: UserFile, *arguments: object) -> nn.Module:
    network = _unwrapped(file.call(*arguments))
    if not isinstance(network, nn.Module):
        raise InputError(
            f"{file.who}: gives {described_value(network)}, not a torch module; return the network"
        )
    if any(nn.parameter.is_lazy(parameter) for parameter in network.parameters()):
        raise InputError(
            f"{file.who}: has lazy layers, which have no weights before their first call; name "
            "their sizes"
        )
    return network.float().eval()


def _unwrapped(built: object) -> object:
    """The network in DataParallel or AveragedModel, and the one that torch.compile was given."""
    while True:
        if isinstance(built, _WRAPPERS):
            built = built.module
        elif type(built).__name__ == "OptimizedModule":
            built = getattr(built, "_orig_mod")  # noqa: B009 - of a class that torch keeps private
        else:
            return built


def _image_size(value: object) -> ImageSize | None:
    """Height and width; None if it is neither a number nor a pair of them."""
    sides = list(map(_whole, value)) if isinstance(value, tuple | list) else [_whole(value)] * 2
    if len(sides) != 2 or not (sides[0] and sides[1]):
        return None
    return sides[0] if sides[0] == sides[1] else (sides[0], sides[1])


def _whole(value: object) -> int | None:
    """A whole number from 0, of whatever type."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None
    return number if number >= 0 else None


# ---- its weights in a file


def _state_dict(
    file: UserFile,
    network: nn.Module,
    content: Mapping[str, object],
    path: Path,
    weights: str | None,
) -> StateDict:
    """The part of the file that has the network's names."""
    names = list(network.state_dict())
    if not names:
        raise InputError(
            f"{file.who}: gives a network without weights to load, as a frozen one is; if its code "
            f"loads them, leave out `ckpt={path}`"
        )
    needed = [n for n, _ in network.named_parameters()] or [
        name for name in names if not name.endswith(_BATCH_COUNT)
    ]
    # After all of them the first: loading then names those that are missing beside it.
    for known in (needed, needed[:1]):
        match = _find(needed, known, content, path, weights) if known else None
        if match is not None:
            return match
    return StateDict(dict(content), kind=weights)


def _find(
    names: Sequence[str],
    needed: Sequence[str],
    content: Mapping[str, object],
    path: Path,
    weights: str | None,
) -> StateDict | None:
    """The weights with the network's names, or with all of them less one prefix.

    An adapter that keeps the trained network in `self.net` has names `net.x` for the file's x.

    Args:
        names: the network's.
        needed: those that must be there.
        content: of the file.
        path: the file to name in an error.
        weights: "ema" or "raw".
    """
    for prefix in ("", *_common_prefixes(names)):
        known = [name.removeprefix(prefix) for name in needed]
        match = find_state(content, path=path, known=[known], weights=weights)
        if match is None:
            continue
        if not prefix:
            return match
        if other := _other_weights(match):
            raise InputError(
                f"{path}: {other[0]} is beside the network's weights, and so its names are not "
                f"those of the network without {prefix}; a function of `network` that takes the "
                "content of the file, NAME(state), can choose them"
            )
        named = {prefix + name: value for name, value in match.weights.items()}
        return dataclasses.replace(match, weights=named, added=prefix)
    return None


def _common_prefixes(names: Sequence[str]) -> Iterator[str]:
    """Those of whole parts that all names begin with, the shortest first."""
    first, *others = names
    parts = first.split(".")[:-1]
    for count in range(1, len(parts) + 1):
        prefix = ".".join(parts[:count]) + "."
        if not all(name.startswith(prefix) for name in others):
            return
        yield prefix


def _other_weights(state: StateDict) -> list[str]:
    """Names of tensors beside these that may be another network's: no table, no single number."""
    tables = ScheduleTables.within(state.beside).names
    return [name for name, t in state.beside.items() if t.numel() > 1 and name not in tables]


def _load(file: UserFile, network: nn.Module, state: StateDict, path: Path) -> None:
    """Put weights into the network, as float32: one for each parameter and buffer, and no other.

    Tables of a schedule beside them are no weights.

    Raises:
        InputError: one is missing, left over, of another shape, or of another kind of number.
    """
    tensors = {n: value for n, value in state.weights.items() if isinstance(value, Tensor)}
    # A module may keep anything as its extra state.
    expected = {n: t for n, t in network.state_dict().items() if isinstance(t, Tensor)}
    tables = ScheduleTables.within({n: t for n, t in tensors.items() if n not in expected})
    weights = {name: tensor for name, tensor in tensors.items() if name not in tables.names}
    for name, wanted in expected.items():
        if name not in weights:
            continue
        if name.endswith(_BATCH_COUNT):
            weights[name] = _batch_count(weights[name], wanted)
        # A weight of another shape may declare more than there is memory for.
        if weights[name].shape == wanted.shape:
            weights[name] = _as_wanted(weights[name], wanted, f"{path}: {name}", file.who)
    # What was made in torch.inference_mode cannot be written to.
    assign = any(p.is_meta or p.is_inference() for p in network.parameters())

    def load() -> tuple[list[str], list[str]]:
        missing, unexpected = network.load_state_dict(weights, strict=False, assign=assign)
        return missing, unexpected

    missing, unexpected = calling(load, f"{file.who}: {path} does not fit")
    if not missing and not unexpected:
        return
    if not unexpected and not set(missing) & dict(network.named_parameters()).keys() and tensors:
        kind = {"ema": "averaged weights", "raw": "last weights", None: "weights"}[state.kind]
        where = f" ({state.where})" if state.where else ""
        other = ", or pass `weights=raw`" if state.kind == "ema" and not state.alone else ""
        raise InputError(
            f"{path}: {some_weights(missing)} missing: its {kind}{where} are parameters alone, "
            "without the network's buffers; register those that the code computes with "
            "persistent=False; where the file has them, a function of `network` that takes its "
            f"content, NAME(state), can join them{other}"
        )
    sides = (("missing", missing), ("left over", unexpected))
    what = "; ".join(f"{some_weights(names)} {side}" for side, names in sides if names)
    raise InputError(f"{path}: {what}; these are not the weights of {file.who}")


def _batch_count(count: Tensor, wanted: Tensor) -> Tensor:
    """Zero in place of a count of batches that is an average, cast, or of shape (1,)."""
    is_other = count.is_floating_point() or count.shape != wanted.shape
    return torch.zeros_like(wanted) if is_other and count.numel() == wanted.numel() == 1 else count


def _as_wanted(tensor: Tensor, wanted: Tensor, named: str, who: str) -> Tensor:
    """A weight as the network computes with it; of another kind of number it is not one.

    Copying would make floats of integers, and drop imaginary parts, silently.
    """
    is_float = wanted.is_floating_point()
    if tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized:
        raise InputError(f"{named} {why_not_plain(tensor)}")
    if tensor.is_floating_point() != is_float or tensor.is_complex() != wanted.is_complex():
        raise InputError(
            f"{named} is {kind_of(tensor)}, and {who} has {kind_of(wanted)} there; save it as "
            f"{kind_of(wanted)}"
        )
    if is_float and not is_plain(tensor):
        raise InputError(f"{named} {why_not_plain(tensor)}")
    return tensor.float() if is_float else tensor
