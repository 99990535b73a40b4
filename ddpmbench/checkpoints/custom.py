"""The user's own networks: a module in memory, or one that their code builds."""

import contextlib
import dataclasses
import inspect
import operator
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

from ddpmbench.checkpoints.network_weights import (
    ALL_ZERO,
    BATCH_COUNT,
    NOT_FINITE,
    all_zero,
    load_into,
    not_finite,
)
from ddpmbench.checkpoints.schedule_tables import ScheduleTables, notes_on
from ddpmbench.checkpoints.schedules import read_schedule
from ddpmbench.checkpoints.settings import SETTINGS, CheckpointFile, CheckpointSettings, Family
from ddpmbench.checkpoints.state_dicts import StateDict, find_state, network_digest
from ddpmbench.checkpoints.weights import FileError, tensors_in
from ddpmbench.diffusion.data_range import UNIT_RANGE, DataRange
from ddpmbench.diffusion.model import WRAPPED, Checkpoint, ImageSize, TimeInput
from ddpmbench.diffusion.process import Prediction, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError, whole_number
from ddpmbench.records import short_value
from ddpmbench.user_code import (
    RandomNumbersAreNaN,
    UserFile,
    calling,
    described_value,
    user_file,
)

LABELS = frozenset(
    {"y", "c", "cls", "label", "labels", "class_label", "class_labels", "classes"}
    | {"class_id", "class_ids", "class_idx"}
)
"""Names of the argument of `forward` for classes."""

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
"""Wrappers that hold the network as `module`."""


def read_own(file: CheckpointFile) -> Checkpoint:
    """The network of `read_again`, in which what torch draws at random while it is built is NaN."""
    with RandomNumbersAreNaN():
        return read_again(file)


def read_again(file: CheckpointFile) -> Checkpoint:
    """The network that the user's code builds, with the weights of a file or those it loads itself.

    NAME without parameters returns a torch module, which must take exactly the weights of the file.
    NAME with one parameter is called with the content of the file, and returns the finished module.
    The module's attributes `image_channels`, `image_size`, `num_classes` and `null_class`, if
    present, describe its input; with classes it is called with labels.

    Args:
        file: `settings.network` names the code. Schedule, prediction, variance and time input are
            also needed. A file without `sha256` is none: the code loads the weights, as of a
            TorchScript program.

    Raises:
        MissingSettingsError: one of these settings is missing.
        InputError: the user's code fails, leaves random weights, or the weights do not fit its
            network.
    """
    settings, has_file = file.settings, bool(file.sha256)
    if has_file:
        values = _values(file, file.content)
    elif settings.weights is not None:
        raise InputError(
            f"`weights={settings.weights}`: chooses among those in a file; pass `ckpt=FILE` or "
            "leave out `weights`"
        )

    with user_file(str(settings.network)) as code:
        network, state = _built(code, file)
        if not has_file:
            values = _values(dataclasses.replace(file, path=code.path), network.state_dict())
        _refuse_untrained(code, network, file.path if state is not None else None)
        checkpoint = _checkpoint(code, network, settings, values)
    checkpoint = dataclasses.replace(
        checkpoint,
        code=dataclasses.replace(code.code, imported=code.modules.sha256()),
        sha256=file.sha256 or network_digest(network, code.who),
        files=(file.source,) if has_file else (),
    )
    if not has_file:
        note = "weights: those that the code of `network` loads; no `ckpt` was given"
        return dataclasses.replace(checkpoint, notes=(note, *checkpoint.notes))
    if state is None:
        return checkpoint
    notes = [*state.notes]
    if state.alone and (other := _other_weights(state)):
        them = f"{len(other)} tensors" if other[1:] else "1 tensor"
        more = ", ..." if other[1:] else ""
        notes.append(f"weights: {them} beside them ({other[0]}{more}) are not read")
    return dataclasses.replace(
        checkpoint,
        weights=state.kind,
        part="" if state.alone else state.where,
        where=state.where,
        notes=(*notes, *checkpoint.notes),
    )


OWN_NETWORK = Family(name="own network", read=read_own)


def _values(file: CheckpointFile, state: Mapping[str, object]) -> dict[str, Any]:
    """The settings that no file of weights states."""
    names = ("schedule", "prediction", "variance", "time_input")
    problem = "no file of weights says how it was trained"
    values, _ = file.settle(
        dict.fromkeys(names, FileError(f"`network={file.settings.network}`", problem)),
        weights=dict(tensors_in(state)),
        examples={name: SETTINGS[name].placeholder for name in names[1:]},
    )
    return values


def _checkpoint(
    file: UserFile, network: nn.Module, settings: CheckpointSettings, values: Mapping[str, Any]
) -> Checkpoint:
    """The checkpoint without the source of its weights."""
    channels, size, num_classes, null_class = (
        calling(lambda name=name: getattr(network, name, None), f"{file.who}: {name}")  # type: ignore[misc]
        for name in ("image_channels", "image_size", "num_classes", "null_class")
    )
    notes = []
    if settings.data_range is None:
        notes.append("images are taken to be in [-1, 1] unless `data_range` says otherwise")
    after_time = list(signature_of(network) or ())[2:]  # whatever the name of the time
    label = next((name for name in after_time if name in LABELS), None)
    if label is not None and not _whole(num_classes):
        notes.append(
            f"the network's forward takes {label}, and is called without it; an attribute "
            "num_classes says how many classes it is conditioned on"
        )
    return Checkpoint(
        network=network,
        **values,
        data_range=settings.data_range_over(UNIT_RANGE),
        channels=_whole(channels) or None,
        image_size=_image_size(size),
        num_classes=_whole(num_classes) or 0,
        null_class=_whole(null_class),
        code=file.code,
        modules=file.modules,
        notes=tuple(notes),
    )


def signature_of(network: nn.Module) -> Mapping[str, inspect.Parameter] | None:
    """The parameters of `forward`; None without a signature, as for a TorchScript program."""
    try:
        return inspect.signature(network.forward).parameters
    except (TypeError, ValueError):
        return None


# ---- what the code builds


def _built(code: UserFile, file: CheckpointFile) -> tuple[nn.Module, StateDict | None]:
    """The network with its weights, and those of the file if it takes no more of it."""
    takes_content, weights = _takes_state(code), file.settings.weights
    if takes_content and not file.sha256:
        raise InputError(f"{code.who}: takes the content of a file of weights; pass `ckpt=FILE`")
    if takes_content and weights is not None:
        raise InputError(
            f"`weights={weights}`: the function of {code.who} receives the whole file and chooses "
            "itself; leave out `weights`"
        )
    network = _network(code, *([_copied(file.content)] if takes_content else []))
    if takes_content or not file.sha256:
        return network, None
    state = _weights_in_file(code, network, file.content, file.path, weights)
    load_into(code, network, state, file.path)
    return network, state


def _takes_state(file: UserFile) -> bool:
    """Whether NAME takes the content of the file of weights."""
    value, name = file.value, file.code.builder
    if isinstance(value, nn.Module) or not callable(value):
        kind = "a network that is built already" if callable(value) else f"{value!r:.50}"
        raise InputError(
            f"{file.who}: {name} is {kind}; name the class, or a function that builds it"
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
    """A copy of its dicts and lists with the same tensors, since user code may modify them."""
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
    """The network inside DataParallel, AveragedModel or torch.compile."""
    while True:
        if isinstance(built, _WRAPPERS):
            built = built.module
        elif type(built).__name__ == "OptimizedModule":
            built = getattr(built, "_orig_mod")  # noqa: B009 - of a private class of torch
        else:
            return built


def _image_size(value: object) -> ImageSize | None:
    """Height and width; None if the value is neither a number nor a pair of numbers."""
    sides = list(map(_whole, value)) if isinstance(value, tuple | list) else [_whole(value)] * 2
    if len(sides) != 2 or not (sides[0] and sides[1]):
        return None
    return sides[0] if sides[0] == sides[1] else (sides[0], sides[1])


def _whole(value: object) -> int | None:
    """A whole number from 0 of any type, or None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None
    return number if number >= 0 else None


# ---- its weights


def _weights_in_file(
    file: UserFile,
    network: nn.Module,
    content: Mapping[str, object],
    path: Path,
    weights: str | None,
) -> StateDict:
    """The state dict in a file that has the network's names."""
    names = list(network.state_dict())
    if not names:
        raise InputError(
            f"{file.who}: gives a network without weights to load, as a frozen one is; if its code "
            f"loads them, leave out `ckpt={path}`"
        )
    needed = [n for n, _ in network.named_parameters()] or [
        name for name in names if not name.endswith(BATCH_COUNT)
    ]
    # Otherwise the first: loading it reports the missing weights.
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
    """The weights with the network's names, or with these minus a common prefix.

    An adapter that holds the trained network as `self.net` has names `net.x` for the file's x.
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
    """Common prefixes of the names, of whole parts, the shortest first."""
    first, *others = names
    parts = first.split(".")[:-1]
    for count in range(1, len(parts) + 1):
        prefix = ".".join(parts[:count]) + "."
        if not all(name.startswith(prefix) for name in others):
            return
        yield prefix


def _other_weights(state: StateDict) -> list[str]:
    """Names of other tensors that may be a network's: neither tables nor single numbers."""
    tables = ScheduleTables.within(state.beside).names
    return [name for name, t in state.beside.items() if t.numel() > 1 and name not in tables]


def _refuse_untrained(file: UserFile, network: nn.Module, path: Path | None = None) -> None:
    """Refuse weights or buffers that are random, not finite, or all zero."""
    if all_zero(network.parameters()):
        raise FileError(path or file.who, ALL_ZERO)
    if (name := not_finite(network)) is None:
        return
    if path is None:
        raise InputError(
            f"{file.who}: {name} holds NaN or infinite weights, or random ones that its code does "
            "not load; pass the file of its weights as `ckpt=FILE`, or load all of them in the "
            "function"
        )
    if name in network.state_dict():
        raise FileError(path, f"{name} {NOT_FINITE}")
    raise InputError(
        f"{file.who}: {name} is random and in no file, and so it is not what was trained; "
        "register it as a buffer that is saved, or draw it with "
        "generator=torch.Generator().manual_seed(SEED)"
    )


# ---- a module in memory


def wrap_network(
    network: nn.Module,
    *,
    schedule: NoiseSchedule | str,
    channels: int | None = None,
    num_classes: int = 0,
    null_class: int | None = None,
    prediction: str = "eps",
    variance: str = "fixed_large",
    time_input: str = "index",
    data_range: DataRange | tuple[float, float] = UNIT_RANGE,
) -> Checkpoint:
    """A checkpoint of a trained network that you have in memory.

    The module is not changed: an evaluation on another device uses a copy; one on its own device
    restores its mode, train or eval.

    Args:
        network: called as network(x_t, time) with x_t (B, C, H, W) float32 and time (B,), or as
            network(x_t, time, labels) with labels (B,) int64 where there are classes; returns
            (B, C, H, W), or (B, 2C, H, W) where the variance is learned.
        schedule: the noise schedule of the training: a record, or text such as `linear:1000`; of
            another process `ve:0.01:50:1000` (first and last sigma, number of levels) or
            `flow:1000`.
        channels: C; None for any, where images say it (samples need it).
        num_classes: number of classes it is conditioned on.
        null_class: the label for no class.
        prediction: "eps", "x_start", "v", "score", "velocity", "edm" or "previous_mean".
        variance: "fixed_small", "fixed_large", "learned_range" or "learned".
        time_input: its input for timestep t = 1..T: "index" t - 1, "one-based" t or
            "reversed-index" T - t, int64; "fraction" t / T, "rescaled-1000" (t - 1) 1000 / T, or
            of the noise in x_t "sigma", "log-sigma", "quarter-log-sigma" or "log-snr", float32.
        data_range: lowest and highest value of an image, or a record that also has the number of
            levels.

    Raises:
        InputError: it is not a torch module, or its weights are not finite or all zero; a name is
            unknown; the range, the schedule or a number is invalid; `null_class` is given without
            classes.
    """
    if not isinstance(network, nn.Module):
        raise InputError(
            f"wrap_network: takes a torch module, not a {type(network).__name__}; pass the network "
            "with its weights loaded"
        )
    names = CheckpointSettings(
        prediction=_word(prediction), variance=_word(variance), time_input=_word(time_input)
    )
    if not isinstance(schedule, NoiseSchedule | str):
        raise InputError(
            f"`schedule={short_value(schedule)}`: takes a text as linear:1000, or a NoiseSchedule; "
            "NoiseSchedule.from_betas(betas) makes one of numbers"
        )
    channels = None if channels is None else whole_number("channels", channels, 1)
    num_classes = whole_number("num_classes", num_classes, 0)
    if null_class is not None:
        null_class = whole_number("null_class", null_class, 0)
        if not num_classes:
            raise InputError(
                f"`null_class={null_class}`: is of a network with classes; add `num_classes`, or "
                "leave it out"
            )
    if (name := not_finite(network)) is not None:
        raise InputError(f"wrap_network: {name} {NOT_FINITE}")
    if all_zero(network.parameters()):
        raise InputError(f"wrap_network: {ALL_ZERO}")
    return Checkpoint(
        network=network,
        schedule=read_schedule(schedule) if isinstance(schedule, str) else schedule,
        prediction=Prediction(str(names.prediction)),
        variance=Variance(str(names.variance)),
        time_input=TimeInput(str(names.time_input)),
        data_range=_range(data_range),
        channels=channels,
        num_classes=num_classes,
        null_class=null_class,
        family=WRAPPED,
        source=type(network).__name__,
        sha256=network_digest(network, "wrap_network"),
        notes=notes_on(schedule) if isinstance(schedule, str) else (),
    )


def _word(value: object) -> str:
    return value if isinstance(value, str) else short_value(value)


def _range(value: object) -> DataRange:
    """A data range from its record or its two ends."""
    if isinstance(value, DataRange):
        return value
    if isinstance(value, tuple | list) and len(value) == 2:
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            low, high = (
                None if isinstance(end, bool | str | bytes) else float(end) for end in value
            )
            if low is not None and high is not None:
                return DataRange(low, high)
    raise InputError(
        f"`data_range={short_value(value)}`: takes its lowest and its highest value, as in "
        "(-1, 1); DataRange(low, high, levels) has the number of levels, too"
    )
