"""Loading a checkpoint from a path or a hub id; layout and names identify its family."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

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
from ddpmbench.checkpoints.schedule_tables import NO_TABLES, ScheduleTables, notes_on
from ddpmbench.checkpoints.schedules import BUFFERS, read_schedule
from ddpmbench.checkpoints.settings import CheckpointSettings, MissingSettingsError
from ddpmbench.checkpoints.state_dicts import StateDict, find_state
from ddpmbench.checkpoints.weights import FileError, containers, read_state
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError, instance_of, listed, path_of, printable

_TABLE_END = bytes.fromhex("57fb808b247547db")  # of an index of TensorFlow
_CONVERTED = (
    "google/ddpm-cifar10-32 and google/ddpm-ema-bedroom-256, -cat-256, -church-256, "
    "-celebahq-256 on the Hugging Face Hub, or the .ckpt files of pesser/pytorch_diffusion"
)
FAMILIES = "native, diffusers, openai, pesser, lucidrains"
BESIDE = "copy its config.json and scheduler_config.json"
"""The remedy for weights without their folder."""
_OWN = "build it with `network=FILE.py:NAME`"
_SHARD = re.compile(r"-\d+-of-\d+")
_DIGITS = re.compile(r"(\d+)")
_LATENT = ("first_stage_model.", "cond_stage_model.", "conditioner.")
_OTHER_NETWORKS = {
    r"lora_|\.lora\.": "an adapter (LoRA), not a model; merge it into its model and save that",
    r"^network\.time_1\.": (
        "a native file that has lost its record; copy it again from where it was written"
    ),
    r"encoder\.down": "an autoencoder, not a diffusion model",
    r"down_blocks\.|conv_norm_out\.": (
        "not the whole network of diffusers' UNet2DModel; save it again: "
        "unet.save_pretrained(FOLDER), and the scheduler likewise"
    ),
}
"""Pattern of a weight's name -> the problem with a file that has one."""


def _tensorflow_index(path: Path) -> str | None:
    """The index of the TensorFlow checkpoint that a path is or holds; None if it is none."""
    stem = re.sub(r"\.(index|meta|data-[\d-]+of-\d+)$", "", path.name)
    indices = (
        sorted(path.glob("*.index")) if path.is_dir() else [Path(f"{path.parent / stem}.index")]
    )
    for index in filter(Path.is_file, indices):
        if index.read_bytes().endswith(_TABLE_END):
            return index.name
    return None


def _file_problem(path: Path, content: Mapping[str, object]) -> str:
    """Why no family reads a file, as the rest of a line that begins with its path."""
    if {"state", "param_groups"} <= set(content):
        return "an optimizer's state, not a model; pass the file of the model that it trained"
    names = [
        name
        for place in containers(content)
        if not place.is_list and place.optimizer is None
        for name, value in place.items.items()
        if isinstance(value, Tensor)
    ]
    if (problem := other_lucidrains(names)) is not None:
        return problem
    if not names:
        return (
            "holds no weights with names; save the network's state dict: "
            "torch.save(model.state_dict(), PATH)"
        )
    if _SHARD.search(path.name):
        return (
            "one of several files that hold the weights together; the others, their index "
            f"(.index.json) and config.json must lie beside it: {BESIDE} and pass the folder"
        )
    for pattern, problem in _OTHER_NETWORKS.items():
        if any(re.search(pattern, name) for name in names):
            return problem
    return (
        f"of no family that is read ({FAMILIES}): its first weight is {names[0]}; {_OWN} if it is "
        "a network of your own"
    )


def _latents_problem(state: StateDict) -> str | None:
    """Why a state dict of a known grammar is no model of images; None if it may be one."""
    part = next((name for name in state.beside if name.startswith(_LATENT)), None)
    if part is None:
        return None
    return (
        f"a model of an autoencoder's latents ({part.split('.')[0]} is beside it), not of images; "
        "it has no likelihood in bits/dim of pixels"
    )


def _sharded_problem(folder: Path) -> str | None:
    """The remedy for a checkpoint that several processes wrote; None if it is none."""
    if (folder / ".metadata").is_file():
        return (
            "a distributed checkpoint of PyTorch; gather it with python -m torch.distributed."
            f"checkpoint.format_utils dcp_to_torch {folder} FILE.pt, and pass FILE.pt"
        )
    if (script := folder / "zero_to_fp32.py").is_file():
        return (
            f"a checkpoint of DeepSpeed; gather it with python {script} {folder} OUT, and pass "
            "the file that this writes"
        )
    return None


def _folder_problem(folder: Path) -> str:
    """Why a folder is not read, as the rest of a line that begins with its path."""
    inside = sorted(filter(Path.is_dir, folder.iterdir()), key=_by_number)
    for place in (folder, *inside):
        if (problem := _sharded_problem(place)) is not None:
            return problem
    for depth in ("*", "*/*"):
        if models := sorted(filter(_is_readable, folder.glob(depth)), key=_by_number):
            more = f" ({len(models)} folders in it can be read)" if models[1:] else ""
            return f"holds no model itself; pass the folder in it: {models[-1]}{more}"
    for place in inside:
        if place.name in NETWORKS and other_weights_in(place):
            return f"{place.name}/config.json is missing; copy it there from where they came"
    files = [folder / name for name in other_weights_in(folder)] or [
        place / name for place in inside for name in other_weights_in(place)
    ][-1:]
    if not files:
        return "holds no config.json of a diffusers model, and no file of weights"
    return (
        f"holds no config.json of a diffusers model; {BESIDE} into {files[0].parent}, or pass a "
        f"file of another family itself: {listed([*map(str, files)])}"
    )


def _is_readable(folder: Path) -> bool:
    return is_model(folder) or (folder / TRAINED).is_file()


def _by_number(folder: Path) -> list[tuple[int, str]]:
    """Sorts checkpoint-1000 behind checkpoint-500."""
    return [
        (int(part), "") if part.isdecimal() else (0, part) for part in _DIGITS.split(str(folder))
    ]


DEFAULT = "default"
"""The source of the checkpoint in the package."""
TRAINED = "checkpoint.safetensors"
"""The name of a training run's checkpoint."""
_KNOWN = (*OPENAI, *PESSER, *LUCIDRAINS, *DIFFUSERS)


def load_checkpoint(
    source: str | Path = DEFAULT, settings: CheckpointSettings | None = None
) -> Checkpoint:
    """Load a checkpoint from a file, a folder or the Hugging Face Hub.

    Nothing in it is run: weights are read with safetensors or `torch.load(weights_only=True)`.
    Only the file that `settings.network` names, the user's own code, is run.

    Args:
        source: a native file or the folder of a training run; a state dict of
            improved-diffusion, guided-diffusion, pytorch_diffusion or
            denoising-diffusion-pytorch, alone or inside a training state; a folder of diffusers;
            a hub id `owner/name`; or "default", the checkpoint in the package (with
            `settings.network` no file: the code loads the weights).
        settings: what the source does not state, or what overrides it.

    Returns:
        The network in evaluation mode, its schedule and its conventions.

    Raises:
        MissingSettingsError: the source leaves something open that a setting has to supply.
        InputError: the source is missing, damaged or of no family that is read.
    """
    settings = CheckpointSettings() if settings is None else settings
    instance_of("settings", settings, CheckpointSettings)
    path_of("source", source)
    try:
        checkpoint = _load(source, settings)
    except OSError as error:
        raise FileError(source, f"cannot be read ({error.strerror or error})") from error
    _check_weights(checkpoint, settings.weights)
    if settings.family is not None:
        schedule = checkpoint.schedule.in_family(settings.family)
        checkpoint = checkpoint.with_process(schedule=schedule)
    notes = tuple(map(printable, checkpoint.notes))
    return dataclasses.replace(checkpoint, notes=notes).with_conventions(
        prediction=settings.prediction,
        variance=settings.variance,
        clip=settings.clip,
        data_range=settings.data_range_over(checkpoint.data_range),
    )


def _load(source: str | Path, settings: CheckpointSettings) -> Checkpoint:
    name = str(source)
    if not name.strip():
        raise InputError("`ckpt` is empty; name a file, a folder or a hub id, or leave it out")
    path = assets.CHECKPOINT if source == DEFAULT else Path(source)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise FileError(source, "a pipe, socket or device; write it to a file first")
    if (index := _tensorflow_index(path)) is not None:
        raise FileError(
            path,
            f"a checkpoint of TensorFlow ({index}), which is not read; those of Ho et al. are "
            f"published in formats that are: {_CONVERTED}",
        )
    if settings.network is not None:
        return _load_own(path, source, settings)
    if not path.exists():
        if not isinstance(source, str) or not hub.is_hub_id(source):
            raise FileError(
                source, "no such file or folder; correct the path, or name owner/name on the Hub"
            )
        path = hub.download(source)
    if is_native(path / TRAINED):
        _refuse_two_models(path)
        path = path / TRAINED
    in_folder = (path, None) if path.is_dir() else None if is_native(path) else set_of(path)
    if in_folder is None and not is_native(path):
        return _read_state_dict(path, source=name, settings=settings)
    _refuse_flags(settings, name)
    if in_folder is None:
        checkpoint = dataclasses.replace(read_native(path), source=name, files=(str(path),))
    else:
        folder, chosen = in_folder
        if not is_model(folder):
            raise FileError(folder, _folder_problem(folder))
        checkpoint = read_diffusers(folder, source=name, settings=settings, chosen=chosen)
    return _with_process(checkpoint, settings)


def _load_own(path: Path, source: str | Path, settings: CheckpointSettings) -> Checkpoint:
    """A network of the user's own, with the weights of one file or none."""
    if source == DEFAULT:
        return _with_process(read_network_code(settings), settings)
    if not path.exists():
        raise FileError(
            source,
            "no such file; name the file of its weights, or leave out `ckpt` where the code of "
            "`network` loads them",
        )
    if path.is_dir():
        raise FileError(source, f"a folder; with `network` {files_in(path)}")
    if is_native(path):
        raise FileError(source, "a native file holds its network; leave out `network`")
    content = dict(read_shards(path)[0]) if path.name.endswith(INDEX) else read_state(path)
    tables = ScheduleTables.within(content, source=str(path))
    checkpoint = read_network_file(
        path, content, source=str(source), settings=settings, tables=tables
    )
    return _with_process(checkpoint, settings, tables)


def _refuse_two_models(folder: Path) -> None:
    """Refuse a folder that a training run and diffusers have both written a model into."""
    for place in (*(folder / name for name in NETWORKS), folder):
        if is_model(place):
            raise FileError(
                folder,
                f"holds {TRAINED} and a model of diffusers in {place}; pass "
                f"`ckpt={folder / TRAINED}`, or a file of weights in {place}",
            )


def _check_weights(checkpoint: Checkpoint, wanted: str | None) -> None:
    if wanted is not None and wanted != checkpoint.weights:
        kind = {"ema": "averaged", "raw": "its last", None: "not known to be either"}
        raise FileError(
            checkpoint.source,
            f"holds one set of weights, {kind[checkpoint.weights]}; leave out `weights={wanted}`",
        )


def _refuse_flags(settings: CheckpointSettings, source: str) -> None:
    if settings.model_flags is not None:
        raise FileError(
            source,
            "states its conventions itself; leave out `model_flags`, which is for state dicts of "
            "improved-diffusion and guided-diffusion",
        )


def _read_state_dict(path: Path, *, source: str, settings: CheckpointSettings) -> Checkpoint:
    """The checkpoint in a file of weights, bare or inside a training state."""
    if path.suffix == ".json":
        folder = model_folder(path.parent)
        raise FileError(path, f"a configuration, not weights; pass the folder: {folder}")
    if path.suffix == ".distcp" and (problem := _sharded_problem(path.parent)) is not None:
        raise FileError(path, f"in {problem}")
    content = read_state(path)
    state = find_state(content, path=path, known=_KNOWN, weights=settings.weights)
    if state is None:
        # perhaps of a network whose identifying names are missing; its reader names them
        state = StateDict(dict(content), kind=settings.weights)
    if (problem := _latents_problem(state)) is not None:
        raise FileError(path, problem)
    if is_diffusers(state.weights) and not (path.parent / "config.json").is_file():
        raise FileError(
            path,
            f"weights of diffusers' UNet2DModel without its configuration; {BESIDE} beside it, "
            f"into {path.parent}, or {_OWN}",
        )
    tables = ScheduleTables.within(content, source=str(path))
    try:
        return _of_family(path, content, state, tables, source=source, settings=settings)
    except MissingSettingsError:
        raise
    except InputError as error:
        if state.kind != "ema" or state.alone or settings.weights is not None:
            raise
        raise InputError(f"{error}; or pass `weights=raw`, for the last weights") from error


def _of_family(
    path: Path,
    content: Mapping[str, object],
    state: StateDict,
    tables: ScheduleTables,
    *,
    source: str,
    settings: CheckpointSettings,
) -> Checkpoint:
    """The checkpoint of the family that the names of its weights identify."""
    weights = state.weights
    if is_pesser(weights) or is_lucidrains(weights) or is_diffusers(weights):
        _refuse_flags(settings, source)
    if is_pesser(weights):
        checkpoint = read_pesser(path, weights, source=source, settings=settings, tables=tables)
    elif is_openai(weights):
        checkpoint = read_openai(path, weights, source=source, settings=settings)
    elif is_lucidrains(weights):
        version = version_in(content)
        checkpoint = read_lucidrains(
            path, weights, source=source, settings=settings, version=version
        )
    elif is_diffusers(weights):
        checkpoint = read_diffusers(
            model_folder(path.parent),
            source=source,
            settings=settings,
            chosen=WeightFiles((path,), kind=state.kind),
            state=state,
        )
        return _with_process(checkpoint, settings)
    else:
        raise FileError(path, _file_problem(path, content))
    checkpoint = dataclasses.replace(
        checkpoint,
        weights=state.kind,
        files=(str(path),),
        part="" if state.alone else state.where,
        where=state.where,
        notes=(*state.notes, *checkpoint.notes),
    )
    return _with_process(checkpoint, settings, tables)


def _with_process(
    checkpoint: Checkpoint, settings: CheckpointSettings, tables: ScheduleTables = NO_TABLES
) -> Checkpoint:
    """The checkpoint with the schedule and the time input of the settings, if any.

    Tables in the file that contradict the schedule are a note where a setting states it, and are
    refused where the file's name or its flags do.
    """
    option, schedule = settings.schedule, None
    if option is not None:
        if option.partition(":")[0] == BUFFERS and tables is NO_TABLES:
            raise FileError(
                checkpoint.source, f"states its schedule itself; leave out `schedule={BUFFERS}`"
            )
        schedule = read_schedule(option, tables)
    elif tables:
        _refuse_other_tables(checkpoint, settings, tables)
    result = checkpoint.with_process(schedule=schedule, time_input=settings.time_input)
    notes = _notes(result.schedule, tables, option)
    return dataclasses.replace(result, notes=(*result.notes, *notes))


def _notes(schedule: NoiseSchedule, tables: ScheduleTables, option: str | None) -> tuple[str, ...]:
    """Notes on a schedule beside the tables in the file, a line each."""
    notes: list[str] = []
    stated = f"the {schedule.name} schedule" if option is None else f"`schedule={option}`"
    if schedule.name == BUFFERS:
        notes += tables.notes(schedule)
    elif tables and option is not None and (why := tables.contradiction_of(schedule)) is not None:
        notes.append(f"{stated} is not that of the tables in the file ({why})")
    elif tables and tables.contradiction is None and not tables.readings:
        notes.append(f"{stated} cannot be compared with the tables in the file")
    notes += notes_on(option or "")
    total = schedule.num_original_timesteps
    if tables.steps and total not in tables.steps.values():
        name, steps = next(iter(tables.steps.items()))
        notes.append(f"{stated} has {total:,} steps, and the file says {name} = {steps:,}")
    return tuple(notes)


def _refuse_other_tables(
    checkpoint: Checkpoint, settings: CheckpointSettings, tables: ScheduleTables
) -> None:
    if (why := tables.contradiction_of(checkpoint.schedule)) is None:
        return
    name, steps = checkpoint.schedule.name, checkpoint.schedule.num_timesteps
    stated_by, remedy = "its name says", "rename it"
    if settings.model_flags is not None:
        stated_by, remedy = "`model_flags` say", "correct the flags"
    elif checkpoint.family == "lucidrains":
        stated_by, remedy = "the network's buffers say", "copy it again"
    raise FileError(
        checkpoint.source,
        f"{stated_by} the {name} schedule of {steps:,} steps, but {why}; {remedy}, or pass "
        f"`schedule={BUFFERS}` or the one it was trained on",
    )
