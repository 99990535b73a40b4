"""From a path or a hub id to a checkpoint: which family it is, told by its layout and names."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ddpmbench import assets
from ddpmbench.checkpoints import hub
from ddpmbench.checkpoints.custom import read_network_code, read_network_file
from ddpmbench.checkpoints.diffusers import TELLING as DIFFUSERS
from ddpmbench.checkpoints.diffusers import is_diffusers, read_diffusers
from ddpmbench.checkpoints.diffusers_files import (
    INDEX,
    NETWORKS,
    WeightFiles,
    files_in,
    is_model,
    model_folder,
    other_weights_in,
    read_shards,
    set_of,
)
from ddpmbench.checkpoints.lucidrains import TELLING as LUCIDRAINS
from ddpmbench.checkpoints.lucidrains import (
    is_lucidrains,
    other_lucidrains,
    read_lucidrains,
    version_in,
)
from ddpmbench.checkpoints.native import is_native, read_native
from ddpmbench.checkpoints.openai import TELLING as OPENAI
from ddpmbench.checkpoints.openai import is_openai, read_openai
from ddpmbench.checkpoints.pesser import TELLING as PESSER
from ddpmbench.checkpoints.pesser import is_pesser, read_pesser
from ddpmbench.checkpoints.schedule_tables import BUFFERS, ScheduleTables, alike
from ddpmbench.checkpoints.schedules import NO_TABLES, read_schedule
from ddpmbench.checkpoints.settings import CheckpointSettings, MissingSettingsError
from ddpmbench.checkpoints.state_dicts import StateDict, find_state, model_beside
from ddpmbench.checkpoints.weights import containers, read_state
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError, listed, printable

_TABLE = bytes.fromhex("57fb808b247547db")  # the last bytes of an index
_CONVERTED = (
    "google/ddpm-cifar10-32 and google/ddpm-ema-bedroom-256, -cat-256, -church-256, "
    "-celebahq-256 on the Hugging Face Hub, or the .ckpt files of pesser/pytorch_diffusion"
)


def refuse_tensorflow(path: Path) -> None:
    """Raise InputError if a path is, or holds, a checkpoint of TensorFlow.

    Args:
        path: a file of it, their common beginning (`model.ckpt-790000`), or a folder of them.
    """
    if (index := _index(path)) is not None:
        raise InputError(
            f"{path}: a checkpoint of TensorFlow ({index}), which is not read; those of Ho et al. "
            f"are published in formats that are: {_CONVERTED}"
        )


def _index(path: Path) -> str | None:
    """The file that tells it; None if it is none."""
    if path.is_dir():
        found = sorted(path.glob("*.index"))
        return next((index.name for index in found if _is_table(index)), None)
    if path.is_file():
        for suffix in (".index", ".meta", ".data-"):
            begin, found_suffix, _ = path.name.rpartition(suffix)
            if found_suffix and (index := path.with_name(f"{begin}.index")).is_file():
                return index.name if _is_table(index) else None
        return path.name if _is_table(path) else None
    index = path.with_name(f"{path.name}.index")
    return index.name if path.name and _is_table(index) else None


def _is_table(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size < len(_TABLE):
        return False
    with path.open("rb") as file:
        file.seek(-len(_TABLE), 2)
        return file.read() == _TABLE


FAMILIES = "native, diffusers, openai, pesser, lucidrains"
DISTRIBUTED = ".metadata"
"""The file that tells a folder of torch.distributed.checkpoint."""
BESIDE = "copy its config.json and scheduler_config.json"
"""What weights without their folder need."""
_SHARD = re.compile(r"-\d+-of-\d+")
_DIGITS = re.compile(r"(\d+)")
_LATENT = ("first_stage_model.", "cond_stage_model.", "conditioner.")


def what_it_is(path: Path, content: Mapping[str, object]) -> str:
    """Why a file is not read, as the rest of a line that begins with its path.

    Args:
        path: the file.
        content: what it holds.
    """
    if {"state", "param_groups"} <= set(content):
        return f"an optimizer's state, not a model; {model_beside(path)}"
    names = _names(content)
    if (why := other_lucidrains(names)) is not None:
        return why
    if (averages := _without_names(content)) is not None:
        return (
            f"averaged weights without names ({averages}), which only the training code can put "
            "back into its network; save that network's state dict: "
            "torch.save(model.state_dict(), PATH)"
        )
    if any("lora_" in name or ".lora." in name for name in names):
        return "an adapter (LoRA), not a model; merge it into its model and save that"
    if any(name.startswith("network.time_1.") for name in names):
        return "a native file that has lost its record; copy it again from where it was written"
    if _SHARD.search(path.name):
        return (
            "one of several files that hold the weights together; the others, their index "
            f"(.index.json) and config.json must lie beside it: {BESIDE} and pass the folder"
        )
    if any("encoder.down" in name for name in names):
        return "an autoencoder, not a diffusion model"
    if any("down_blocks." in name or "conv_norm_out." in name for name in names):
        return (
            "not the whole network of diffusers' UNet2DModel; save it again: "
            "unet.save_pretrained(FOLDER), and the scheduler likewise"
        )
    first = next(iter(names), None)
    if first is None:
        return "holds no weights" if content else "it is empty, and so no model"
    return (
        f"of no family that is read ({FAMILIES}): its first weight is {first}; a network of your "
        "own is read with --network FILE.py:NAME"
    )


def latent(content: Mapping[str, object], weights: Mapping[str, object]) -> str | None:
    """Why a state dict of a known grammar is no model of images; None if it may be one.

    Args:
        content: the dict that it was in.
        weights: the state dict.
    """
    if any("transformer_blocks." in name for name in weights):
        return "a network with cross attention (of latent diffusion); only DDPMs can be read"
    if found := next((name for name in content if name.startswith(_LATENT)), None):
        return (
            f"a model of an autoencoder's latents ({found.split('.')[0]} is beside it), not of "
            "images; it has no likelihood in bits/dim of pixels"
        )
    return None


def distributed(folder: Path) -> str:
    """What to do with a folder that torch.distributed.checkpoint has written, likewise."""
    return (
        "a distributed checkpoint of PyTorch; gather it with python -m "
        f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} FILE.pt, and pass FILE.pt"
    )


def what_folder_is(folder: Path) -> str:
    """Why a folder is not read, as the rest of a line that begins with its path."""
    inside = [path for path in folder.iterdir() if path.is_dir()]
    for place in (folder, *sorted(inside)):
        if (place / DISTRIBUTED).is_file():
            return distributed(place)
        if (place / "zero_to_fp32.py").is_file():
            return (
                f"a checkpoint of DeepSpeed; gather it with python {place / 'zero_to_fp32.py'} "
                f"{place} OUT, and pass the file that this writes"
            )
    deeper = [path for place in inside for path in place.iterdir() if path.is_dir()]
    if models := sorted(filter(_is_readable, inside), key=_by_number) or sorted(
        filter(_is_readable, deeper), key=_by_number
    ):
        more = f" ({len(models)} folders in it can be read)" if models[1:] else ""
        return f"holds no model itself; pass the folder in it: {models[-1]}{more}"
    for place in inside:
        if place.name in NETWORKS and other_weights_in(place):
            return f"{place.name}/config.json is missing; copy it there from where they came"
    files = [folder / name for name in other_weights_in(folder)] or [
        place / name for place in sorted(inside, key=_by_number) for name in other_weights_in(place)
    ][-1:]
    if any(_SHARD.search(file.name) for file in files) or (files and _is_of_diffusers(files[0])):
        return (
            f"holds no config.json that says what {files[0].name} is; {BESIDE} into "
            f"{files[0].parent}, or build it with --network FILE.py:NAME"
        )
    if not files:
        return "holds no config.json of a diffusers model, and no file of weights"
    if len(files) > 1:
        names = listed([file.name for file in files])
        return f"holds no config.json of a diffusers model; pass a file in it: {names}"
    return f"holds no config.json of a diffusers model; pass the file itself: {files[0]}"


def _is_readable(folder: Path) -> bool:
    return is_model(folder) or (folder / "checkpoint.safetensors").is_file()


def _by_number(folder: Path) -> list[tuple[int, str]]:
    """Sorts checkpoint-1000 behind checkpoint-500."""
    return [
        (int(part), "") if part.isdecimal() else (0, part) for part in _DIGITS.split(str(folder))
    ]


def _is_of_diffusers(path: Path) -> bool:
    if path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return {"conv_in.weight", "conv_norm_out.weight"} <= set(file.keys())
    except (SafetensorError, OSError):
        return False


def _names(content: Mapping[str, object]) -> list[str]:
    """The names of all tensors but those of optimizers."""
    return [
        name
        for place in containers(content)
        if not place.is_list and place.optimizer is None
        for name, value in place.items.items()
        if isinstance(value, Tensor)
    ]


def _without_names(content: Mapping[str, object]) -> str | None:
    """Where a list of tensors is that an average may be; None if there is none."""
    for place in containers(content):
        tensors = any(isinstance(value, Tensor) for value in place.items.values())
        if place.is_list and place.optimizer is None and tensors:
            return "/".join(place.keys)
    return None


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
            raise InputError(f"`ckpt={source}`: no such file or folder")
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
        raise InputError(f"`ckpt={source}`: no such file")
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
    except MissingSettingsError:
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
