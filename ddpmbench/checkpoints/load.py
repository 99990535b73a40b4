"""Loading a checkpoint from a path or the Hub; layout and names identify its family."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from ddpmbench import assets
from ddpmbench.checkpoints import diffusers, lucidrains, openai, pesser, score_sde
from ddpmbench.checkpoints.custom import read_network_code, read_network_file
from ddpmbench.checkpoints.diffusers import read_diffusers
from ddpmbench.checkpoints.diffusers_files import (
    INDEX,
    KINDS,
    NETWORKS,
    STEM,
    WeightFiles,
    is_model,
    model_folder,
    read_shards,
    set_of,
    weights_within,
)
from ddpmbench.checkpoints.lucidrains import read_lucidrains, version_in
from ddpmbench.checkpoints.native import TRAINED, is_native, read_native
from ddpmbench.checkpoints.openai import read_openai
from ddpmbench.checkpoints.pesser import read_pesser
from ddpmbench.checkpoints.schedule_tables import BUFFERS, NO_TABLES, ScheduleTables
from ddpmbench.checkpoints.schedules import notes_on, read_schedule
from ddpmbench.checkpoints.score_sde import read_score_sde, with_named_average
from ddpmbench.checkpoints.settings import OWN, CheckpointSettings
from ddpmbench.checkpoints.state_dicts import StateDict, find_state
from ddpmbench.checkpoints.tensorflow_files import read_tensorflow, tensorflow_index
from ddpmbench.checkpoints.unread import (
    BESIDE,
    file_problem,
    folder_problem,
    latents_problem,
    sharded_problem,
)
from ddpmbench.checkpoints.weights import FileError, first_line, read_state
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError, instance_of, listed, path_of, printable
from ddpmbench.files import sha256_of

DEFAULT = "default"
"""The source of the checkpoint in the package."""
_NAMES = {
    "openai": openai.NAMES,
    "pesser": pesser.NAMES,
    "lucidrains": lucidrains.NAMES,
    "diffusers": diffusers.NAMES,
    "score_sde": score_sde.NAMES,
}
"""Family -> groups of names; its state dicts have all names of a group."""


def load_checkpoint(
    source: str | Path = DEFAULT, settings: CheckpointSettings | None = None
) -> Checkpoint:
    """Load a checkpoint from a file, a folder or the Hugging Face Hub.

    No code in it is run: weights are read with safetensors or `torch.load(weights_only=True)`. Only
    the user's own code, the file that `settings.network` names, is run.

    Args:
        source: a native file or the folder of a training run; a state dict of improved-diffusion,
            guided-diffusion, pytorch_diffusion, score_sde_pytorch or denoising-diffusion-pytorch,
            alone or inside a training state; a TensorFlow checkpoint of Ho et al., by any of its
            names; a folder of diffusers; a hub id `owner/name`; or "default", the checkpoint in the
            package (with `settings.network` no file: the code loads the weights).
        settings: those that the source does not state, or that override it.

    Returns:
        The network in evaluation mode, its schedule and its conventions.

    Raises:
        MissingSettingsError: the source does not determine a setting that is needed.
        InputError: the source is missing, damaged, or of an unknown family.
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
    if (index := tensorflow_index(path)) is not None:
        _refuse_flags(settings, name)
        if settings.network is not None:
            raise FileError(path, "written by TensorFlow; leave out `network`, which is torch's")
        return _with_process(read_tensorflow(index, source=name, settings=settings), settings)
    if settings.network is not None:
        return _load_own(path, source, settings)
    if not path.exists():
        if not isinstance(source, str) or not _is_hub_id(source):
            raise FileError(
                source, "no such file or folder; correct the path, or name owner/name on the Hub"
            )
        path = _download(source)
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
            raise FileError(folder, folder_problem(folder))
        checkpoint = read_diffusers(folder, source=name, settings=settings, chosen=chosen)
    return _with_process(checkpoint, settings)


def _load_own(path: Path, source: str | Path, settings: CheckpointSettings) -> Checkpoint:
    """The user's own network, with the weights of one file or none."""
    if source == DEFAULT:
        return _with_process(read_network_code(settings), settings)
    if not path.exists():
        raise FileError(
            source,
            "no such file; name the file of its weights, or leave out `ckpt` where the code of "
            "`network` loads them",
        )
    if path.is_dir():
        files = listed([*map(str, weights_within(path))])
        which = f" in it: `ckpt={files}`" if files else ", of which it holds none"
        raise FileError(source, f"a folder; with `network` pass a file of weights{which}")
    if is_native(path):
        raise FileError(source, "a native file holds its network; leave out `network`")
    content: Mapping[str, object]
    if path.name.endswith(INDEX):
        content, sha256 = read_shards(path)
    else:
        content, sha256 = read_state(path), sha256_of(path)
    tables = ScheduleTables.within(content, source=str(path))
    checkpoint = read_network_file(
        path, content, sha256, source=str(source), settings=settings, tables=tables
    )
    return _with_process(checkpoint, settings, tables)


def _refuse_two_models(folder: Path) -> None:
    """Refuse a folder with both a training run's and diffusers' model."""
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
            "improved-diffusion, guided-diffusion and score_sde",
        )


def _read_state_dict(path: Path, *, source: str, settings: CheckpointSettings) -> Checkpoint:
    """The checkpoint in a file of weights, bare or inside a training state."""
    if path.suffix == ".json":
        folder = model_folder(path.parent)
        raise FileError(path, f"a configuration, not weights; pass the folder: {folder}")
    if path.suffix == ".distcp" and (problem := sharded_problem(path.parent)) is not None:
        raise FileError(path, f"in {problem}")
    content = with_named_average(read_state(path), path, settings.weights)
    known = [names for groups in _NAMES.values() for names in groups]
    state = find_state(content, path=path, known=known, weights=settings.weights)
    problem = file_problem(path, content) if state is None else latents_problem(state)
    if state is None or problem is not None:
        raise FileError(path, problem)
    family = next(
        family
        for family, groups in _NAMES.items()
        if any(set(names) <= state.weights.keys() for names in groups)
    )
    if family == "diffusers" and not (path.parent / "config.json").is_file():
        raise FileError(
            path,
            f"weights of diffusers' UNet2DModel without its configuration; {BESIDE} beside it, "
            f"into {path.parent}, or {OWN}",
        )
    tables = ScheduleTables.within(content, source=str(path))
    try:
        return _of_family(family, path, content, state, tables, source=source, settings=settings)
    except FileError as error:
        if state.kind != "ema" or state.alone or settings.weights is not None:
            raise
        raise InputError(f"{error}; or pass `weights=raw`, for the last weights") from error


def _of_family(
    family: str,
    path: Path,
    content: Mapping[str, object],
    state: StateDict,
    tables: ScheduleTables,
    *,
    source: str,
    settings: CheckpointSettings,
) -> Checkpoint:
    """The checkpoint in a state dict of a family."""
    weights = state.weights
    if family not in ("openai", "score_sde"):
        _refuse_flags(settings, source)
    if family == "pesser":
        checkpoint = read_pesser(path, weights, source=source, settings=settings, tables=tables)
    elif family == "openai":
        checkpoint = read_openai(path, weights, source=source, settings=settings)
    elif family == "score_sde":
        checkpoint = read_score_sde(path, weights, source=source, settings=settings)
    elif family == "lucidrains":
        version = version_in(content)
        checkpoint = read_lucidrains(
            path, weights, source=source, settings=settings, version=version
        )
    else:
        checkpoint = read_diffusers(
            model_folder(path.parent),
            source=source,
            settings=settings,
            chosen=WeightFiles((path,), kind=state.kind),
            state=state,
        )
        return _with_process(checkpoint, settings)
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

    If tables in the file contradict the schedule, a setting's schedule gets a note; one from the
    file's name or flags is refused.
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
    elif tables and tables.contradiction is None and not tables.candidates:
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


# ---- the Hugging Face Hub, through its own client, cache and offline mode

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FOLDERS = tuple(f"{name}/" for name in NETWORKS)
_FILES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".json")


def _is_hub_id(source: str) -> bool:
    """Whether a string may be an id, `owner/name`, if no such file exists."""
    return bool(_ID.fullmatch(source)) and not source.endswith(_FILES)


def _download(repository: str) -> Path:
    """The folder of a model on the Hub, downloaded or from the cache."""
    for kind in KINDS:
        patterns = [f"{place}{STEM}*.{kind}" for place in ("", *_FOLDERS)]
        folder = _snapshot(repository, patterns)
        networks = [folder / name for name in NETWORKS if (folder / name).is_dir()] or [folder]
        # a rounded variant may be of this kind while the weights themselves are of the other
        whole = (f"{STEM}.{kind}", f"{STEM}-*.{kind}", f"{STEM}.*ema*.{kind}")
        if all(any(any(network.glob(name)) for name in whole) for network in networks):
            break
    return folder


def _snapshot(repository: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    absent = "no such file or folder, and as a model on the Hub"
    try:
        return Path(snapshot_download(repository, allow_patterns=["*.json", *patterns]))
    except GatedRepoError as error:
        problem = "needs a login: run hf auth login and accept its terms on the Hub"
        raise FileError(repository, problem) from error
    except RepositoryNotFoundError as error:
        raise FileError(repository, f"{absent} it does not exist") from error
    except LocalEntryNotFoundError as error:
        raise FileError(
            repository,
            f"{absent} it is not whole in the cache, and the Hub cannot be reached (no network, "
            "or HF_HUB_OFFLINE is set)",
        ) from error
    except Exception as error:  # the exception depends on the client's version
        problem = f"cannot be fetched from the Hub ({first_line(error)})"
        raise FileError(repository, problem) from error
