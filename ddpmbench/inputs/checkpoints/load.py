"""From a path or a hub id to a checkpoint: which family it is, told by its layout and names."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from ddpmbench import assets
from ddpmbench.errors import InputError, printable
from ddpmbench.inputs.checkpoints import hub
from ddpmbench.inputs.checkpoints.checkpoint import Checkpoint
from ddpmbench.inputs.checkpoints.diffusers import TELLING as DIFFUSERS
from ddpmbench.inputs.checkpoints.diffusers import is_diffusers, read_diffusers
from ddpmbench.inputs.checkpoints.diffusers_files import (
    NETWORKS,
    WeightFiles,
    is_model,
    model_folder,
    set_of,
)
from ddpmbench.inputs.checkpoints.files_of_weights import INDEX, files_in, read_shards
from ddpmbench.inputs.checkpoints.lucidrains import TELLING as LUCIDRAINS
from ddpmbench.inputs.checkpoints.lucidrains import is_lucidrains, read_lucidrains, version_in
from ddpmbench.inputs.checkpoints.native import is_native, read_native
from ddpmbench.inputs.checkpoints.network_file import read_network_code, read_network_file
from ddpmbench.inputs.checkpoints.openai import TELLING as OPENAI
from ddpmbench.inputs.checkpoints.openai import is_openai, read_openai
from ddpmbench.inputs.checkpoints.pesser import TELLING as PESSER
from ddpmbench.inputs.checkpoints.pesser import is_pesser, read_pesser
from ddpmbench.inputs.checkpoints.schedule_option import NO_TABLES, read_schedule
from ddpmbench.inputs.checkpoints.schedule_tables import BUFFERS, ScheduleTables, alike
from ddpmbench.inputs.checkpoints.settings import CheckpointSettings
from ddpmbench.inputs.checkpoints.states import StateDict, find_state
from ddpmbench.inputs.checkpoints.tensorflow import refuse_tensorflow
from ddpmbench.inputs.checkpoints.unknown import (
    BESIDE,
    DISTRIBUTED,
    distributed,
    latent,
    what_folder_is,
    what_it_is,
)
from ddpmbench.inputs.checkpoints.unsettled import UnsettledError
from ddpmbench.inputs.checkpoints.weights import read_state
from ddpmbench.process.schedule import NoiseSchedule

DEFAULT = "default"
"""The source that names the checkpoint in the package."""
TRAINED = "checkpoint.safetensors"
"""What a training run calls its checkpoint."""
_KNOWN = (*OPENAI, *PESSER, *LUCIDRAINS, *DIFFUSERS)


def load_checkpoint(
    source: str | Path = DEFAULT, settings: CheckpointSettings | None = None
) -> Checkpoint:
    """The checkpoint in a file, a folder or a model on the Hugging Face Hub.

    Nothing in it is run: weights are read with safetensors or `torch.load(weights_only=True)`. The
    file that `settings.network` names is the user's own code, and is.

    Args:
        source: a native file or the folder of a training run, a state dict of
            improved-diffusion, guided-diffusion, pytorch_diffusion or
            denoising-diffusion-pytorch, alone or in what training code wraps it in, a folder of
            diffusers, or a hub id `owner/name`; "default" is the one in the package, and with
            `settings.network` no file: its code loads the weights.
        settings: what is said of it besides.

    Raises:
        InputError: the source is missing, damaged, of no family that is read, or does not say
            something that an option has to settle.
    """
    settings = settings or CheckpointSettings()
    try:
        checkpoint = _load(source, settings)
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror or error})") from error
    _check_weights(checkpoint, settings.weights)
    notes = tuple(map(printable, checkpoint.notes))
    return dataclasses.replace(checkpoint, notes=notes).with_conventions(
        prediction=settings.prediction,
        variance=settings.variance,
        clip=settings.clip,
        data_range=settings.data_range_over(checkpoint.data_range),
    )


def _load(source: str | Path, settings: CheckpointSettings) -> Checkpoint:
    if not str(source).strip():
        raise InputError("--ckpt: is empty; name a file, a folder or a hub id, or leave it out")
    path = assets.CHECKPOINT if source == DEFAULT else Path(source)
    name = str(source)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise InputError(f"--ckpt {source}: a pipe, socket or device; write it to a file first")
    refuse_tensorflow(path)
    if settings.network is not None and source == DEFAULT:
        return _with_process(read_network_code(settings), settings)
    if settings.network is not None:
        _refuse_other_families(path, name, settings.network)
        content = read_shards(path) if path.name.endswith(INDEX) else read_state(path)
        tables = ScheduleTables.within(content, source=str(path))
        checkpoint = read_network_file(path, content, source=name, settings=settings, tables=tables)
        if not checkpoint.files:
            checkpoint = dataclasses.replace(checkpoint, files=(name,))
        return _with_process(checkpoint, settings, tables)
    if not path.exists():
        if not isinstance(source, str) or not hub.is_hub_id(source):
            raise InputError(f"--ckpt {source}: no such file or folder")
        path = hub.download(source)
    if is_native(path / TRAINED):
        _refuse_two_models(path)
        path = path / TRAINED
    if path.is_dir():
        if not is_model(path):
            raise InputError(f"{path}: {what_folder_is(path)}")
        _refuse_flags(settings.model_flags, name)
        checkpoint = read_diffusers(path, source=name, settings=settings)
    elif is_native(path):
        _refuse_flags(settings.model_flags, name)
        checkpoint = dataclasses.replace(read_native(path), source=name)
    elif (found := set_of(path)) is not None:
        _refuse_flags(settings.model_flags, name)
        folder, chosen = found
        checkpoint = read_diffusers(folder, source=name, settings=settings, chosen=chosen)
    else:
        return _read_state_dict(path, source=name, settings=settings)
    if not checkpoint.files:
        checkpoint = dataclasses.replace(checkpoint, files=(str(path),))
    return _with_process(checkpoint, settings)


def _refuse_two_models(folder: Path) -> None:
    """Refuse a folder that a training run and diffusers have both written a model into."""
    theirs = [place for place in (*(folder / name for name in NETWORKS), folder) if is_model(place)]
    if theirs:
        raise InputError(
            f"{folder}: holds {TRAINED} and a model of diffusers in {theirs[0]}; pass --ckpt "
            f"{folder / TRAINED}, or a file of weights in {theirs[0]}"
        )


def _refuse_other_families(path: Path, source: str, network: str) -> None:
    """Refuse what `--network` has no use for: it takes one file of weights."""
    if not path.exists():
        raise InputError(f"--ckpt {source}: no such file")
    if path.is_dir():
        raise InputError(f"--ckpt {source}: a folder; with --network {files_in(path)}")
    if is_native(path):
        raise InputError(f"--ckpt {source}: says what its network is; leave out --network")


def _check_weights(checkpoint: Checkpoint, asked: str | None) -> None:
    if asked is not None and asked != checkpoint.weights:
        kind = {"ema": "averaged", "raw": "its last", None: "not known to be either"}
        raise InputError(
            f"--weights {asked}: {checkpoint.source} holds one set of weights, "
            f"{kind[checkpoint.weights]}; leave --weights out"
        )


def _refuse_flags(model_flags: str | None, source: str) -> None:
    if model_flags is not None:
        raise InputError(
            f"--model-flags: {source} says what it is itself; the flags are for state dicts of "
            "improved-diffusion and guided-diffusion"
        )


def _read_state_dict(path: Path, *, source: str, settings: CheckpointSettings) -> Checkpoint:
    """The checkpoint in a file of weights, whatever they are wrapped in."""
    if path.suffix == ".json":
        folder = model_folder(path.parent)
        raise InputError(f"{path}: a configuration, not weights; pass the folder: {folder}")
    if path.suffix == ".distcp" and (path.parent / DISTRIBUTED).is_file():
        raise InputError(f"{path}: in {distributed(path.parent)}")
    content = read_state(path)
    state = find_state(content, path=path, known=_KNOWN, weights=settings.weights)
    if state is None:
        # perhaps a network that lacks what it is told by; its reader says what is missing
        state = StateDict(dict(content), kind=settings.weights)
    if (why := latent(state.beside, state.weights)) is not None:
        raise InputError(f"{path}: {why}")
    tables = ScheduleTables.within(content, source=str(path))
    try:
        return _of_family(path, content, state, tables, source=source, settings=settings)
    except UnsettledError:
        raise
    except InputError as error:
        if state.kind != "ema" or state.alone or settings.weights is not None:
            raise
        raise InputError(f"{error}; or pass --weights raw, for the last weights") from error


def _of_family(
    path: Path,
    content: Mapping[str, object],
    state: StateDict,
    tables: ScheduleTables,
    *,
    source: str,
    settings: CheckpointSettings,
) -> Checkpoint:
    """The checkpoint of the family that the names of its weights are of."""
    weights = state.weights
    if is_pesser(weights):
        _refuse_flags(settings.model_flags, source)
        checkpoint = read_pesser(path, weights, source=source, settings=settings, tables=tables)
    elif is_openai(weights):
        checkpoint = read_openai(path, weights, source=source, settings=settings)
    elif is_lucidrains(weights):
        _refuse_flags(settings.model_flags, source)
        version = version_in(content)
        checkpoint = read_lucidrains(
            path, weights, source=source, settings=settings, version=version
        )
    elif is_diffusers(weights):
        _refuse_flags(settings.model_flags, source)
        return _read_alone(path, state, source=source, settings=settings)
    else:
        raise InputError(f"{path}: {what_it_is(path, content)}")
    read_checkpoint = dataclasses.replace(
        checkpoint,
        weights=state.kind,
        files=(str(path),),
        part="" if state.alone else state.where,
        where=state.where,
        notes=(*state.notes, *checkpoint.notes),
    )
    return _with_process(read_checkpoint, settings, tables)


def _read_alone(
    path: Path, state: StateDict, *, source: str, settings: CheckpointSettings
) -> Checkpoint:
    """The checkpoint of a file of diffusers' weights that has the rest of its folder beside it."""
    if not (path.parent / "config.json").is_file():
        raise InputError(
            f"{path}: weights of diffusers' UNet2DModel, which do not say what it is; {BESIDE} "
            f"beside it, into {path.parent}, or build it with --network FILE.py:NAME"
        )
    chosen = WeightFiles((path,), kind=state.kind)
    checkpoint = read_diffusers(
        model_folder(path.parent), source=source, settings=settings, chosen=chosen, state=state
    )
    return _with_process(checkpoint, settings)


def _with_process(
    checkpoint: Checkpoint, settings: CheckpointSettings, tables: ScheduleTables = NO_TABLES
) -> Checkpoint:
    """The same with the schedule and the time input that the options say, if they do.

    Tables in the file that are of another schedule, and a number of steps there, are noted where
    the option says it; the tables are refused where only the file's name or its flags do.
    """
    option = settings.schedule
    if option is None:
        if tables and checkpoint.schedule.name != BUFFERS:
            _refuse_other_tables(checkpoint, settings, tables)
        result = checkpoint.with_process(time_input=settings.time_input)
    else:
        if option.partition(":")[0] == BUFFERS and tables is NO_TABLES:
            raise InputError(
                f"--schedule {BUFFERS}: {checkpoint.source} says its schedule itself; leave "
                "--schedule out"
            )
        schedule = read_schedule(option, tables)
        result = checkpoint.with_process(schedule=schedule, time_input=settings.time_input)
    notes = _notes(result.schedule, tables, option)
    return dataclasses.replace(result, notes=(*result.notes, *notes))


def _notes(schedule: NoiseSchedule, tables: ScheduleTables, option: str | None) -> tuple[str, ...]:
    """What is worth saying of a schedule beside what the file has of one, a line each."""
    notes: list[str] = []
    stated = f"the {schedule.name} schedule" if option is None else f"--schedule {option}"
    if schedule.name == BUFFERS:
        notes += tables.notes(schedule)
    elif tables and option is not None and (why := _contradiction(schedule, tables)) is not None:
        notes.append(f"{stated} is not that of the tables in the file ({why})")
    elif tables and tables.contradiction is None and not tables.readings:
        notes.append(f"{stated} cannot be compared with the tables in the file")
    total = schedule.num_original_timesteps
    if tables.steps and total not in tables.steps.values():
        name, steps = next(iter(tables.steps.items()))
        notes.append(f"{stated} has {total:,} steps, and the file says {name} = {steps:,}")
    return tuple(notes)


def _refuse_other_tables(
    checkpoint: Checkpoint, settings: CheckpointSettings, tables: ScheduleTables
) -> None:
    if (why := _contradiction(checkpoint.schedule, tables)) is None:
        return
    name, steps = checkpoint.schedule.name, checkpoint.schedule.num_timesteps
    said_by, remedy = "its name says", "rename it"
    if settings.model_flags is not None:
        said_by, remedy = "--model-flags say", "correct the flags"
    elif checkpoint.family == "lucidrains":
        said_by, remedy = "the network's buffers say", "copy it again"
    raise InputError(
        f"{checkpoint.source}: {said_by} the {name} schedule of {steps:,} steps, but {why}; "
        f"{remedy}, or pass --schedule {BUFFERS} or the one it was trained on"
    )


def _contradiction(schedule: NoiseSchedule, tables: ScheduleTables) -> str | None:
    """How the tables of a file contradict a schedule; None if they say the same, or nothing."""
    if (why := tables.contradiction) is not None or not (readings := tables.readings):
        return why
    for theirs in readings:
        kept = theirs
        if theirs.num_timesteps == schedule.num_original_timesteps:
            kept = theirs.subset(schedule.original_timesteps.tolist())
        if alike(schedule, theirs) or alike(schedule, kept):
            return None
    of_steps = " or ".join(f"{theirs.num_timesteps:,}" for theirs in readings)
    return f"the table {tables.read_from} says another, of {of_steps} steps"
