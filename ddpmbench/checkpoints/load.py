"""Loading a checkpoint from a path or the Hub: the families, and how one is recognized."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ddpmbench import assets
from ddpmbench.checkpoints.custom import OWN_NETWORK, read_again
from ddpmbench.checkpoints.diffusers import DIFFUSERS
from ddpmbench.checkpoints.diffusers_files import (
    BESIDE,
    INDEX,
    KINDS,
    NETWORKS,
    STEM,
    is_model,
    model_folder,
    read_shards,
    weights_within,
)
from ddpmbench.checkpoints.ho_et_al import PESSER, TENSORFLOW
from ddpmbench.checkpoints.lucidrains import LUCIDRAINS
from ddpmbench.checkpoints.native import NATIVE, TRAINED, is_native
from ddpmbench.checkpoints.openai import OPENAI
from ddpmbench.checkpoints.schedule_tables import NO_TABLES, ScheduleTables, notes_on
from ddpmbench.checkpoints.schedules import BUFFERS, read_schedule
from ddpmbench.checkpoints.score_sde import SCORE_SDE
from ddpmbench.checkpoints.settings import (
    CheckpointFile,
    CheckpointSettings,
    Family,
    MissingSettingsError,
)
from ddpmbench.checkpoints.state_dicts import StateDict, find_state
from ddpmbench.checkpoints.weights import OWN, FileError, containers, first_line, read_state
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError, instance_of, listed, path_of, printable
from ddpmbench.files import sha256_of

DEFAULT = "default"
"""The source of the checkpoint in the package."""
FAMILIES: tuple[Family, ...] = (
    OWN_NETWORK,
    TENSORFLOW,
    NATIVE,
    DIFFUSERS,
    OPENAI,
    PESSER,
    LUCIDRAINS,
    SCORE_SDE,
)
"""Every family, in the order in which files are tried; `settings.network` alone decides on one's
own network."""


_SHARD = re.compile(r"-\d+-of-\d+")
_LATENT = ("first_stage_model.", "cond_stage_model.", "conditioner.")


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
    try:
        checkpoint = _load(source, settings)
    except OSError as error:
        raise FileError(source, f"cannot be read ({error.strerror or error})") from error
    _check_weights(checkpoint, settings.weights)
    if settings.other_process is not None:
        schedule = checkpoint.schedule.in_family(settings.other_process)
        checkpoint = checkpoint.with_conventions(schedule=schedule)
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
    path = assets.CHECKPOINT if source == DEFAULT else path_of("source", source)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise FileError(source, "a pipe, socket or device; write it to a file first")
    if settings.network is not None:
        checkpoint = _read(OWN_NETWORK, _own_file(path, source, settings))
        again = functools.partial(_own_again, path, source, settings, _read_of(checkpoint))
        return dataclasses.replace(checkpoint, again=again)
    family, place = _family_of(path)
    if family is None and not path.exists():
        if not isinstance(source, str) or not _is_hub_id(source):
            raise FileError(
                source, "no such file or folder; correct the path, or name owner/name on the Hub"
            )
        path = _download(source)
        family, place = _family_of(path)
    if family is not None:
        return _read(family, CheckpointFile(place, name, settings))
    if path.is_dir():
        raise FileError(path, _folder_problem(path))
    return _read_state_dict(path, name, settings)


def _own_file(path: Path, source: str | Path, settings: CheckpointSettings) -> CheckpointFile:
    """The file of weights for the user's own network; none where their code loads them."""
    if source == DEFAULT:
        return CheckpointFile(path, str(settings.network), settings)
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
    return CheckpointFile(path, str(source), settings, content, tables=tables, sha256=sha256)


def _read_of(checkpoint: Checkpoint) -> tuple[str, str]:
    """The SHA-256 of the code and of the file of weights; "" where there is no such file."""
    assert checkpoint.code is not None
    return checkpoint.code.sha256, checkpoint.sha256 if checkpoint.files else ""


def _own_again(
    path: Path, source: str | Path, settings: CheckpointSettings, known: tuple[str, str]
) -> Checkpoint | None:
    """The user's own network, built once more; None if its files are not the known ones any more.

    Raises:
        InputError: the code fails this time.
    """
    try:
        file = _own_file(path, source, settings)
        code = sha256_of(Path(str(settings.network).rpartition(":")[0]))
    except (InputError, OSError):
        return None
    return read_again(file) if (code, file.sha256) == known else None


def _family_of(path: Path) -> tuple[Family | None, Path]:
    """The family that knows the files at a path, if any, and the path to read."""
    for family in FAMILIES:
        if family.find is not None and (place := family.find(path)) is not None:
            return family, place
    return None, path


def _read(family: Family, file: CheckpointFile) -> Checkpoint:
    """The checkpoint of a family, with the settings of the user for its process."""
    if file.settings.model_flags is not None and not family.takes_flags:
        takers = ", ".join(known.projects for known in FAMILIES if known.takes_flags)
        raise InputError(
            f"{file.source}: `model_flags` are for state dicts of {takers}; leave them out"
        )
    try:
        checkpoint = family.read(file)
    except MissingSettingsError as error:
        error.family = family.name
        raise
    if (state := file.state) is not None:
        checkpoint = dataclasses.replace(
            checkpoint,
            sha256=checkpoint.sha256 or sha256_of(file.path),
            weights=state.kind or checkpoint.weights,
            files=(str(file.path),),
            part="" if state.alone else state.where,
            where=state.where,
            notes=(*state.notes, *checkpoint.notes),
        )
    checkpoint = dataclasses.replace(checkpoint, family=family.name, source=file.source)
    return _with_schedule(checkpoint, family, file)


def _check_weights(checkpoint: Checkpoint, wanted: str | None) -> None:
    if wanted is not None and wanted != checkpoint.weights:
        kind = {"ema": "averaged", "raw": "its last", None: "not known to be either"}
        raise FileError(
            checkpoint.source,
            f"holds one set of weights, {kind[checkpoint.weights]}; leave out `weights={wanted}`",
        )


def _read_state_dict(path: Path, source: str, settings: CheckpointSettings) -> Checkpoint:
    """The checkpoint in a file of weights, bare or inside a training state."""
    if path.suffix == ".json":
        folder = model_folder(path.parent)
        raise FileError(path, f"a configuration, not weights; pass the folder: {folder}")
    if path.suffix == ".distcp" and (problem := _sharded_problem(path.parent)) is not None:
        raise FileError(path, f"in {problem}")
    content: Mapping[str, object] = read_state(path)
    for family in FAMILIES:
        if family.prepare is not None:
            content = family.prepare(content, path, settings.weights)
    names = [group for family in FAMILIES for group in family.names]
    state = find_state(content, path=path, known=names, weights=settings.weights)
    problem = _file_problem(path, content) if state is None else _latents_problem(state)
    if state is None or problem is not None:
        raise FileError(path, problem)
    family = next(family for family in FAMILIES if family.has(state.weights))
    tables = ScheduleTables.within(content, source=str(path))
    file = CheckpointFile(path, source, settings, content, state=state, tables=tables)
    try:
        return _read(family, file)
    except FileError as error:
        if state.kind != "ema" or state.alone or settings.weights is not None:
            raise
        raise InputError(f"{error}; or pass `weights=raw`, for the last weights") from error


def _with_schedule(checkpoint: Checkpoint, family: Family, file: CheckpointFile) -> Checkpoint:
    """The checkpoint with the schedule and the time input of the settings, if any.

    If tables in the file contradict the schedule, a setting's schedule gets a note; one from the
    file's name or flags is refused.
    """
    settings, tables = file.settings, file.tables
    option, schedule = settings.schedule, None
    if option is not None:
        if option.partition(":")[0] == BUFFERS and tables is NO_TABLES:
            raise FileError(
                checkpoint.source, f"states its schedule itself; leave out `schedule={BUFFERS}`"
            )
        schedule = read_schedule(option, tables.schedule)
    elif tables and (why := tables.contradiction_of(checkpoint.schedule)) is not None:
        name, steps = checkpoint.schedule.name, checkpoint.schedule.num_timesteps
        stated_by, remedy = family.stated_by
        if settings.model_flags is not None:
            stated_by, remedy = "`model_flags` say", "correct the flags"
        raise FileError(
            checkpoint.source,
            f"{stated_by} the {name} schedule of {steps:,} steps, but {why}; {remedy}, or pass "
            f"`schedule={BUFFERS}` or the one it was trained on",
        )
    result = checkpoint.with_conventions(schedule=schedule, time_input=settings.time_input)
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


# ---- files and folders that no family reads


def _file_problem(path: Path, content: Mapping[str, object]) -> str:
    """Why no family reads a file, to complete a line that begins with its path."""
    if {"state", "param_groups"} <= set(content):
        return "an optimizer's state, not a model; pass the file of the model that it trained"
    names = [
        name
        for place in containers(content)
        if not place.is_list and place.optimizer is None
        for name, value in place.items.items()
        if isinstance(value, Tensor)
    ]
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
    families = ", ".join(family.name for family in FAMILIES if family is not OWN_NETWORK)
    return (
        f"not a whole network of a family that is read ({families}): its first weight is "
        f"{names[0]}; {OWN} if it is a network of your own"
    )


def _latents_problem(state: StateDict) -> str | None:
    """Why a state dict with known names is not a model of images; None if it may be one."""
    part = next((name for name in state.beside if name.startswith(_LATENT)), None)
    if part is None:
        return None
    return (
        f"a model of an autoencoder's latents ({part.split('.')[0]} is beside it), not of images; "
        "it has no likelihood in bits/dim of pixels"
    )


def _sharded_problem(folder: Path) -> str | None:
    """The remedy for a checkpoint written by several processes; None for any other folder."""
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
    """Why a folder is not read, to complete a line that begins with its path."""
    for place in (folder, *sorted(filter(Path.is_dir, folder.iterdir()))):
        if (problem := _sharded_problem(place)) is not None:
            return problem
    for depth in ("*", "*/*"):
        places = sorted(folder.glob(depth))
        models = [p for p in places if is_model(p) or (p / TRAINED).is_file()]
        if models:
            return f"holds no model itself; pass a folder in it: {listed([*map(str, models)])}"
    files = weights_within(folder)
    if not files:
        return (
            "holds no config.json of a diffusers model, and no file of weights; pass the folder or "
            "the file that a training has written"
        )
    return (
        f"holds no config.json of a diffusers model; {BESIDE} into {files[0].parent}, or pass a "
        f"file of another family itself: {listed([*map(str, files)])}"
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
    except GatedRepoError:
        problem = "needs a login: run hf auth login and accept its terms on the Hub"
        raise FileError(repository, problem) from None
    except RepositoryNotFoundError:
        raise FileError(repository, f"{absent} it does not exist; correct its name") from None
    except LocalEntryNotFoundError:
        raise FileError(
            repository,
            f"{absent} it is not whole in the cache, and the Hub cannot be reached (no network, "
            "or HF_HUB_OFFLINE is set); connect, or pass a folder with its files",
        ) from None
    except Exception as error:  # the exception depends on the client's version
        problem = (
            f"cannot be fetched from the Hub ({first_line(error)}); try again, or pass a folder "
            "with its files"
        )
        raise FileError(repository, problem) from error
