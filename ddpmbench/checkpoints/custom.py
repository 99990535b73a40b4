"""A network of the user's own: weights in a file, and the user's code that builds the network."""

import contextlib
import dataclasses
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ddpmbench.checkpoints.custom_call import (
    BATCH_COUNT,
    BuiltTwice,
    check_finite,
    first_difference,
    load_own,
    unused_class,
)
from ddpmbench.checkpoints.diffusers_files import INDEX, sha256_of_shards
from ddpmbench.checkpoints.schedule_tables import ScheduleTables
from ddpmbench.checkpoints.schedules import NO_TABLES, read_schedule
from ddpmbench.checkpoints.settings import CheckpointSettings, UnsettledError
from ddpmbench.checkpoints.state_dicts import StateDict, find_state, network_digest
from ddpmbench.checkpoints.weights import sha256_of, some_weights, tensors_in
from ddpmbench.diffusion.data_range import UNIT_RANGE, DataRange
from ddpmbench.diffusion.model import Checkpoint, ImageSize, TimeInput
from ddpmbench.diffusion.process import Prediction, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError
from ddpmbench.user_code import OwnFile, calling, described_value, own_file

FAMILY = "own network"
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
"""Modules that keep the network itself as `module`."""

_PLACEHOLDERS = {
    "prediction": "--prediction PREDICTION",
    "variance": "--variance VARIANCE",
    "time_input": "--time-input TIME",
}
_MEANT = {
    "PREDICTION": ", ".join(Prediction),
    "VARIANCE": ", ".join(Variance),
    "TIME": ", ".join(TimeInput),
}
"""What a placeholder stands for."""


def read_network_file(
    path: Path,
    state: Mapping[str, object],
    *,
    source: str,
    settings: CheckpointSettings,
    tables: ScheduleTables,
) -> Checkpoint:
    """The network that the user's file builds, with the weights of another file.

    NAME without parameters gives a torch module, which receives the weights, all of them and no
    other. NAME of one parameter is called with what the file of weights holds, and gives the
    finished module. A module's attributes `image_channels`, `image_size`, `num_classes` and
    `null_class`, where it has them, say what it takes; with classes it is called with labels, too.

    Args:
        path: the file of weights.
        state: what it holds, as `read_state` gives it.
        source: the path as the user gave it.
        settings: its `network` names the file and what in it builds the network. The schedule,
            what it predicts, its variance and its time must be there.
        tables: of a schedule, where the file has them.

    Raises:
        UnsettledError: one of these is not.
        InputError: the user's code fails, or what it builds does not go with the weights.
    """
    _refuse_flags(settings)
    if {"state", "param_groups"} <= set(state):
        raise InputError(f"{path}: an optimizer's state, not a model; pass the model's file")
    _require(settings, path, state, tables)
    with own_file(str(settings.network)) as file:
        built, state_dict = _build(file, state, path, settings.weights)
    notes: list[str] = []
    if state_dict is not None:
        notes += state_dict.notes
        if state_dict.alone and (other := _other_weights(state_dict)):
            them = f"{len(other)} tensors" if other[1:] else "1 tensor"
            more = ", ..." if other[1:] else ""
            notes.append(f"weights: {them} beside them ({other[0]}{more}) are not read")
    checkpoint = dataclasses.replace(
        _checkpoint(file, built, settings, tables),
        source=source,
        sha256=sha256_of_shards(path) if path.name.endswith(INDEX) else sha256_of(path),
        weights=None if state_dict is None else state_dict.kind,
        part="" if state_dict is None or state_dict.alone else state_dict.where,
        where="" if state_dict is None else state_dict.where,
    )
    return _with_notes(checkpoint, notes, built, settings)


def read_network_code(settings: CheckpointSettings) -> Checkpoint:
    """The network that the user's function gives with its weights in it, without another file.

    As a function that loads a TorchScript program does, or one that fetches weights by itself.

    Args:
        settings: as `read_network_file` takes them.

    Raises:
        UnsettledError: the schedule or something else is not there.
        InputError: the user's code fails, or its network has another weight each time.
    """
    option = str(settings.network)
    _refuse_flags(settings)
    if settings.weights is not None:
        raise InputError(
            f"--weights {settings.weights}: chooses among those in a file, and there is none; "
            "pass --ckpt FILE or leave --weights out"
        )
    with own_file(option) as file:
        if _takes_state(file):
            raise InputError(
                f"--network {option}: is to be given what a file of weights holds; pass the file "
                "with --ckpt FILE"
            )
        built = _twice(file, lambda: _network(file), without_file=True)
    _require(settings, file.path, built.network.state_dict(), NO_TABLES)
    check_finite(built.network, f"--network {option}")
    checkpoint = dataclasses.replace(
        _checkpoint(file, built, settings, NO_TABLES),
        source=option,
        sha256=network_digest(built.network, f"--network {option}"),
    )
    notes = ["weights: those that the code of --network loads; no --ckpt was given"]
    return _with_notes(checkpoint, notes, built, settings)


def _refuse_flags(settings: CheckpointSettings) -> None:
    if settings.model_flags is not None:
        raise InputError("--model-flags: are of other families; with --network leave them out")


def _checkpoint(
    file: OwnFile, built: BuiltTwice, settings: CheckpointSettings, tables: ScheduleTables
) -> Checkpoint:
    """All but where its weights are from."""
    network = built.network
    return Checkpoint(
        network=network,
        schedule=read_schedule(str(settings.schedule), tables),
        prediction=Prediction(str(settings.prediction)),
        variance=Variance(str(settings.variance)),
        time_input=TimeInput(str(settings.time_input)),
        data_range=settings.data_range_over(UNIT_RANGE),
        channels=_attribute(file, network, "image_channels") or None,
        image_size=_image_size(file, network),
        num_classes=_attribute(file, network, "num_classes"),
        null_class=_null_class(file, network),
        family=FAMILY,
        source="",
        sha256="",
        code=file.code,
        imports=file.imports,
    )


def _with_notes(
    checkpoint: Checkpoint, notes: list[str], built: BuiltTwice, settings: CheckpointSettings
) -> Checkpoint:
    if settings.data_range is None:
        notes = ["images are taken to be in [-1, 1] unless --data-range says otherwise", *notes]
    name = unused_class(checkpoint.network)
    if name is not None and not checkpoint.num_classes:
        notes.append(
            f"the network's forward takes {name}, and is called without it; an attribute "
            "num_classes says how many classes it is conditioned on"
        )
    return dataclasses.replace(checkpoint, notes=(*notes, *_notes_of(built, checkpoint)))


def _notes_of(built: BuiltTwice, checkpoint: Checkpoint) -> tuple[str, ...]:
    steps = torch.tensor([1, checkpoint.schedule.num_timesteps])

    def output(network: nn.Module, x_t: Tensor) -> Tensor:
        of = dataclasses.replace(checkpoint, network=network)
        return of.model_output(x_t, steps, torch.zeros_like(steps))

    with checkpoint.running():
        return built.notes(checkpoint.channels, checkpoint.image_size, output)


def _require(
    settings: CheckpointSettings, path: Path, state: Mapping[str, object], tables: ScheduleTables
) -> None:
    placeholders = {"schedule": tables.example, **_PLACEHOLDERS}
    missing = tuple(
        placeholder for name, placeholder in placeholders.items() if getattr(settings, name) is None
    )
    if missing:
        values = (option.partition(" ")[2] for option in missing)
        meant = "; ".join(f"{value}: {_MEANT[value]}" for value in values if value in _MEANT)
        raise UnsettledError(
            f"--network {settings.network}: no file of weights says how it was trained; add "
            f"{' '.join(missing)} as it was" + (f" ({meant})" if meant else ""),
            family=FAMILY,
            path=path,
            weights=dict(tensors_in(state)),
            missing=missing,
        )


def _build(
    file: OwnFile, content: Mapping[str, object], path: Path, weights: str | None
) -> tuple[BuiltTwice, StateDict | None]:
    """The finished network, and where in the file its weights are; None if only its code knows."""
    if _takes_state(file):
        if weights is not None:
            raise InputError(
                f"--weights {weights}: the function of --network {file.option} is given all that "
                "the file holds and chooses itself; leave --weights out"
            )
        return _checked(_twice(file, lambda: _network(file, content)), path), None
    found: list[StateDict] = []

    def build() -> nn.Module:
        network = _network(file)
        if not found:
            found.append(_state_dict(network, content, path, weights, file.option))
        load_own(network, found[0], path, file.option)
        return network

    return _checked(_twice(file, build), path), found[0]


def _checked(built: BuiltTwice, path: Path) -> BuiltTwice:
    check_finite(built.network, path)
    return built


def _network(file: OwnFile, *arguments: object) -> nn.Module:
    network = _unwrapped(file.call(*arguments))
    if not isinstance(network, nn.Module):
        raise InputError(
            f"--network {file.option}: gives {described_value(network)}, not a torch module; "
            "return the network"
        )
    if any(nn.parameter.is_lazy(parameter) for parameter in network.parameters()):
        raise InputError(
            f"--network {file.option}: has lazy layers, which have no weights before their first "
            "call; name their sizes"
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


def _twice(
    file: OwnFile, build: Callable[[], nn.Module], *, without_file: bool = False
) -> BuiltTwice:
    """What is built, if its weights are the same whatever random numbers are drawn on the way."""
    built = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            built.append(build())
    one, other = built
    if without_file and one is other:
        raise InputError(
            f"--network {file.option}: gives the same module each time, so that random weights "
            "would not show; build it and load its weights inside the function"
        )
    if (name := _difference(one, other)) is not None:
        line = f"--network {file.option}: {name} is another each time the network is built"
        if without_file:
            raise InputError(
                f"{line}: its weights are random; pass the file of its weights with --ckpt FILE, "
                "or load them in the function"
            )
        raise InputError(
            f"{line}, and so it is not what was trained; it must come from the file of weights (a "
            "parameter or a registered buffer does), or be built the same every time"
        )
    return BuiltTwice(one, other, file.option)


def _takes_state(file: OwnFile) -> bool:
    """Whether NAME is to be called with what the file of weights holds."""
    found, option = file.found, file.option
    name = option.rpartition(":")[2]
    if isinstance(found, nn.Module) or not callable(found):
        what = "a network that is built already" if callable(found) else f"{found!r:.50}"
        raise InputError(
            f"--network {option}: {name} is {what}; name the class, or a function that builds it"
        )
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return False
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p for p in parameters if p.default is p.empty and p.kind not in variadic]
    if not needed:
        return False
    if inspect.isclass(found) or len(needed) > 1 or needed[0].kind is needed[0].KEYWORD_ONLY:
        names = ", ".join(parameter.name for parameter in needed)
        raise InputError(
            f"--network {option}: {name} cannot be called without {names}; name a function that "
            f"calls it as it was when it was trained: def build(): return {name}(...)"
        )
    return True


def _state_dict(
    network: nn.Module, content: Mapping[str, object], path: Path, weights: str | None, option: str
) -> StateDict:
    """The part of the file that has the network's names."""
    names = list(network.state_dict())
    if not names:
        raise InputError(
            f"--network {option}: gives a network without weights to load, as a frozen one is; if "
            f"its code loads them, leave --ckpt {path} out"
        )
    try:
        found = _find(names, content, path, weights)
    except InputError:
        _refuse_without_buffers(network, content, path, weights)
        raise
    if found is None:
        _refuse_without_buffers(network, content, path, weights)
        # Not all of them: where the first is, so that the rest can be named.
        found = _find(names, content, path, weights, needed=names[:1])
    return found or StateDict(dict(content), kind=weights)


def _find(
    names: Sequence[str],
    content: Mapping[str, object],
    path: Path,
    weights: str | None,
    needed: Sequence[str] | None = None,
) -> StateDict | None:
    """The weights with the network's names, or with all of them less one prefix.

    An adapter that keeps the trained network in `self.net` has names `net.x` for the file's x.

    Args:
        names: all of the network's.
        content: what the file holds.
        path: the file to name in an error.
        weights: "ema" or "raw".
        needed: those that must be there; all of them if absent.
    """
    needed = [n for n in needed or names if not n.endswith(BATCH_COUNT)]
    for prefix in ("", *_common_prefixes(names)):
        known = [name.removeprefix(prefix) for name in needed]
        found = find_state(content, path=path, known=[known] if known else [], weights=weights)
        if found is None:
            continue
        if not prefix:
            return found
        if other := _other_weights(found):
            raise InputError(
                f"{path}: {other[0]} is beside the network's weights, and so its names are not "
                f"those of the network without {prefix}; a function of --network that takes what "
                "the file holds, NAME(state), can choose them"
            )
        named = {prefix + name: value for name, value in found.weights.items()}
        return dataclasses.replace(found, weights=named, added=prefix)
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
    """Names of what may be another network's beside these: all but tables and single numbers."""
    tables = ScheduleTables.among(dict(state.beside)).names
    return [name for name, t in state.beside.items() if t.numel() > 1 and name not in tables]


def _refuse_without_buffers(
    network: nn.Module, content: Mapping[str, object], path: Path, weights: str | None
) -> None:
    """Refuse weights that lack nothing but buffers, as averages of the parameters alone do."""
    parameters = [name for name, _ in network.named_parameters()]
    found = None
    with contextlib.suppress(InputError):  # of weights that cannot be chosen among
        found = _find(parameters, content, path, weights) if parameters else None
    if found is None:
        return
    # torch itself does without the count of batches, which old files have not
    missing = [
        name
        for name in network.state_dict()
        if name not in found.weights and not name.endswith(BATCH_COUNT)
    ]
    if missing:
        kind = {"ema": "averaged weights", "raw": "last weights", None: "weights"}[found.kind]
        where = f" ({found.where})" if found.where else ""
        other = ", or pass --weights raw" if found.kind == "ema" and not found.alone else ""
        raise InputError(
            f"{path}: {some_weights(missing)} missing: its {kind}{where} are parameters alone, "
            "without the network's buffers; register those that the code computes with "
            "persistent=False; where the file has them, a function of --network that takes what it "
            f"holds, NAME(state), can join them{other}"
        )


def _difference(one: nn.Module, other: nn.Module) -> str | None:
    """The first parameter or buffer, saved or not, that is not the same in both."""
    return first_difference(_weights_of(one), _weights_of(other))


def _weights_of(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters()
    yield from network.named_buffers()


def _null_class(file: OwnFile, network: nn.Module) -> int | None:
    value = _number(file, network, "null_class")
    return value if value is not None and value >= 0 else None


def _attribute(file: OwnFile, network: nn.Module, name: str) -> int:
    """A whole number above 0 that the module says of itself; 0 if it does not."""
    value = _number(file, network, name)
    return value if value is not None and value > 0 else 0


def _image_size(file: OwnFile, network: nn.Module) -> ImageSize | None:
    """Height and width that the module says of itself; None if it does not."""
    value = _value(file, network, "image_size")
    given = value if isinstance(value, tuple | list) else (value, value)
    sides = [side for item in given if (side := _whole(item)) is not None and side > 0]
    if len(given) != 2 or len(sides) != 2:
        return None
    height, width = sides
    return height if height == width else (height, width)


def _number(file: OwnFile, network: nn.Module, name: str) -> int | None:
    """A whole number that the module has as an attribute, of whatever kind of number."""
    return _whole(_value(file, network, name))


def _value(file: OwnFile, network: nn.Module, name: str) -> object:
    return calling(lambda: getattr(network, name, None), f"--network {file.option}: {name}")


def _whole(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


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
    """A trained network as something that can be evaluated.

    The module itself is kept: an evaluation moves it to its device and leaves it there, and leaves
    its weights and its mode, train or eval, as they were.

    Args:
        network: called as network(x_t, time) with x_t (B, C, H, W) float32 and time (B,), or as
            network(x_t, time, labels) with labels (B,) int64 where there are classes; gives
            (B, C, H, W), or (B, 2C, H, W) where the variance is learned.
        schedule: the schedule it was trained on: a record or, as `--schedule` takes it, text.
        channels: C; None takes images of any.
        num_classes: classes it is conditioned on.
        null_class: the label that stands for none of them.
        prediction: "eps", "x_start", "v" or "previous_mean".
        variance: "fixed_small", "fixed_large", "learned_range" or "learned".
        time_input: what it is given for step t = 1..T: "index" t - 1 or "one-based" t, int64;
            "fraction" t / T or "rescaled-1000" (t - 1) 1000 / T, float32.
        data_range: lowest and highest value of an image, or the record that has the number of
            levels too.

    Raises:
        InputError: it is no torch module, or one without finite weights; a name is unknown; the
            range or the schedule is none.
    """
    if not isinstance(network, nn.Module):
        raise InputError(f"wrap_network: takes a torch module, not a {type(network).__name__}")
    said = CheckpointSettings(prediction=prediction, variance=variance, time_input=time_input)
    check_finite(network, "wrap_network")
    return Checkpoint(
        network=network,
        schedule=read_schedule(schedule) if isinstance(schedule, str) else schedule,
        prediction=Prediction(str(said.prediction)),
        variance=Variance(str(said.variance)),
        time_input=TimeInput(str(said.time_input)),
        data_range=data_range if isinstance(data_range, DataRange) else DataRange(*data_range),
        channels=channels,
        num_classes=num_classes,
        null_class=null_class,
        family="wrapped",
        source=type(network).__name__,
        sha256=network_digest(network, "wrap_network"),
    )
