"""Where a folder of diffusers keeps its files, and which of them hold the weights."""

import dataclasses
import hashlib
import re
from pathlib import Path

from torch import Tensor

from ddpmbench.checkpoints.diffusers_scheduler import read_object
from ddpmbench.checkpoints.weights import only_tensors, read_state, sha256_of
from ddpmbench.errors import InputError, listed

STEM = "diffusion_pytorch_model"
KINDS = ("safetensors", "bin")
"""How weights are written, the one that is taken first before the other."""
_OTHER_STEMS = ("model", "pytorch_model")
"""What accelerate and others call the weights that diffusers calls `STEM`."""
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
NO_WEIGHTS = re.compile(r"(optim|scheduler|scaler|sampler|training_args|random_states|rng)|opt\d")
NETWORKS = ("unet", "unet_ema")
"""Folders of a network: as trained last, and averaged over the training."""
_SCHEDULERS = ("scheduler", "noise_scheduler")
_SCHEDULER_FILE = "scheduler_config.json"
# Only ever the name of a file in the same folder.
_SHARD = re.compile(r"\w[\w.-]*\.(safetensors|bin)")
# Written into the network's configuration by diffusers' EMAModel; they say nothing of the network.
AVERAGING = frozenset(
    {
        "decay",
        "inv_gamma",
        "min_decay",
        "optimization_step",
        "power",
        "update_after_step",
        "use_ema_warmup",
    }
)


@dataclasses.dataclass(frozen=True)
class WeightFiles:
    """The files that together hold one set of weights.

    Attributes:
        files: one file, or its shards in the order of their names.
        index: the JSON file that says which shard holds which weight; None of a single file.
        variant: "fp16" or the like where they are a variant of the weights; None if plain.
        kind: "ema" where they are averaged over the training, "raw" where they are its last; None
            if nothing says so.
    """

    files: tuple[Path, ...]
    index: Path | None = None
    variant: str | None = None
    kind: str | None = None

    @property
    def path(self) -> Path:
        """The file that names them: their index, or the only one."""
        return self.index or self.files[0]

    @property
    def folder(self) -> Path:
        """The folder of their network."""
        return self.path.parent


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a folder keeps what a checkpoint is made of.

    Attributes:
        config: the network's configuration.
        scheduler: the scheduler's; may be missing.
        candidates: the sets of weights of the kind asked for, the first to be taken first.
        notes: what was chosen, a line each.
    """

    config: Path
    scheduler: Path
    candidates: tuple[WeightFiles, ...]
    notes: tuple[str, ...]


def find_layout(
    folder: Path, *, weights: str | None = None, chosen: WeightFiles | None = None
) -> Layout:
    """Where the files of a model are.

    Args:
        folder: flat, a pipeline (`unet/`, `scheduler/`), or what diffusers' training script saves
            on its way (`checkpoint-500/` with `unet/` and `unet_ema/`, the scheduler above it).
        weights: "ema" or "raw" of averaged weights and the last ones; None takes averaged ones
            where there are any.
        chosen: the weights to read; None leaves the choice to what is there.

    Raises:
        InputError: a file is missing, or the pipeline is of another kind.
    """
    networks = [folder / name for name in NETWORKS if (folder / name).is_dir()]
    flat = not networks if chosen is None else chosen.folder.resolve() == folder.resolve()
    places = [folder] if flat and chosen is not None else networks or [folder]
    _refuse_other_pipelines(folder / "model_index.json")
    if chosen is None:
        # weights of an older version, or an average, may lie beside unet/ or below a flat folder
        places = list(dict.fromkeys([*places, folder, *_other_networks(folder)]))
    sets = _with_kinds([found for place in places for found in weight_sets(place)])
    if chosen is not None:
        sets = [found for found in sets if found.path == chosen.path] or [chosen]
    if not sets:
        raise InputError(
            f"{places[0]}: holds no weights, neither {STEM}.safetensors nor {STEM}.bin, whole or "
            "in shards"
        )
    wanted = weights or ("ema" if any(found.kind == "ema" for found in sets) else "raw")
    kinds = (wanted,) if weights is not None else (wanted, None)
    # where there is one kind alone, that another is asked for is refused by whoever asked
    candidates = sorted(
        [found for found in sets if found.kind in kinds] or sets,
        key=lambda found: found.kind != wanted,
    )
    config = candidates[0].folder / "config.json"
    if not config.is_file():
        raise InputError(f"{config}: missing; copy it there from where the weights came")
    scheduler = _scheduler(folder, flat=flat)
    notes = []
    if chosen is None:
        notes += [*_choice(candidates[0], sets, folder), *_passed_over(folder, places, sets)]
    if scheduler.is_file() and folder not in scheduler.parents:
        notes.append(f"schedule: of {scheduler}")
    return Layout(config, scheduler, tuple(candidates), tuple(notes))


def _other_networks(folder: Path) -> list[Path]:
    """Folders of a network below a model's, whatever they are called."""
    return [path.parent for path in sorted(folder.glob("*/config.json")) if _is_network(path)]


def _is_network(config: Path) -> bool:
    is_file = config.is_file() and config.parent.name not in NETWORKS
    return is_file and str(read_object(config).get("_class_name")).startswith("UNet")


def weight_sets(folder: Path) -> tuple[WeightFiles, ...]:
    """The sets of weights in the folder of a network, plain ones before variants.

    Raises:
        InputError: an index is damaged or names what is no file of the folder.
    """
    for stem in (STEM, *_OTHER_STEMS):
        if found := _sets_called(folder, stem):
            return found
    return ()


def _sets_called(folder: Path, stem: str) -> tuple[WeightFiles, ...]:
    single = re.compile(rf"{stem}(?:\.(\w+))?\.(safetensors|bin)")
    # the variant stands behind .index, or before the kind in what old versions wrote
    index = re.compile(rf"{stem}(?:\.(\w+))?\.(safetensors|bin)\.index(?:\.(\w+))?\.json")
    found: dict[tuple[bool, str, bool, bool, str], WeightFiles] = {}
    absent = []
    for path in sorted(folder.glob(f"{stem}.*")):
        shards = match = index.fullmatch(path.name)
        match = match or single.fullmatch(path.name)
        if match is None or not path.is_file():
            continue
        variant, kind = match[1] or (shards and shards[3]) or None, match[2]
        order = (variant is not None, variant or "", kind == "bin", bool(shards), path.name)
        if shards and not any((folder / name).is_file() for name in weight_map(path).values()):
            absent.append((path, kind))
        else:
            files = _shards(path, kind) if shards else (path,)
            of = {None: None, True: "raw", False: "ema"}[_is_raw(variant)]
            found[order] = WeightFiles(files, path if shards else None, variant, of)
    if not found and absent:
        _shards(*absent[0])  # names the file that is missing
    return tuple(found[order] for order in sorted(found))


def _is_raw(variant: str | None) -> bool | None:
    """Whether a variant is of the last weights, or else of the averaged ones; None of neither."""
    if variant is None or not re.search(r"(?<![a-z])ema(?![a-z])", variant):
        return None
    return bool(re.search(r"(?<![a-z])no[nt]?_?ema", variant))


def is_model(folder: Path) -> bool:
    """Whether a folder has the configuration of a network, in it or in `unet/`."""
    return any((folder / name / "config.json").is_file() for name in (".", *NETWORKS))


def set_of(path: Path) -> tuple[Path, WeightFiles] | None:
    """The model's folder and the set of weights that a file of it names; None if there is none.

    Args:
        path: a file of weights, a shard or an index, with the network's `config.json` beside it.

    Raises:
        InputError: an index is damaged or names what is no file of the folder.
    """
    folder, config = path.parent, path.parent / "config.json"
    if not config.is_file() or not str(read_object(config).get("_class_name")).startswith("UNet"):
        return None
    for found in weight_sets(folder):
        if path in (found.path, *found.files):
            return model_folder(folder), found
    return None


def model_folder(network: Path) -> Path:
    """The folder of the model whose network is in this one: itself, or above `unet/`."""
    path = network.resolve()
    beside = ("model_index.json", *_SCHEDULERS)
    is_below = any((path.parent / name).exists() for name in beside)
    is_alone = any((path / name).exists() for name in (*beside, _SCHEDULER_FILE))
    return path.parent if path.name in NETWORKS or (is_below and not is_alone) else network


def other_weights_in(folder: Path) -> list[str]:
    """Names of files in a folder that look like weights, in order; not those of optimizers."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix in SUFFIXES and not NO_WEIGHTS.match(path.name) and path.is_file()
    )


def _with_kinds(sets: list[WeightFiles]) -> list[WeightFiles]:
    """The same with what each must be beside the others."""
    sets = [
        dataclasses.replace(found, kind=found.kind or ("ema" if _is_average(found) else None))
        for found in sets
    ]
    kinds = {found.kind for found in sets} - {None}
    if len(kinds) != 1:
        return sets
    (kind,) = kinds
    other = "raw" if kind == "ema" else "ema"
    return [dataclasses.replace(found, kind=found.kind or other) for found in sets]


def _is_average(found: WeightFiles) -> bool:
    """Whether the folder's name, or what EMAModel writes, says that weights are averaged."""
    config = found.folder / "config.json"
    return _is_raw(found.folder.name.lower()) is False or (
        config.is_file() and bool(AVERAGING & set(read_object(config)))
    )


def _choice(first: WeightFiles, sets: list[WeightFiles], folder: Path) -> list[str]:
    """A note of what is taken where there was a choice, or nothing but a variant."""
    if len({found.kind for found in sets}) > 1:
        alone = sum(found.folder == first.folder for found in sets) == 1
        place = f"{first.folder.name}/" if alone else relative(first.path, folder)
        name = {"ema": "EMA", "raw": "raw", None: "not known to be EMA or raw"}[first.kind]
        return [f"weights: {name} ({place})"]
    if len(sets) == 1 and first.variant is not None:
        return [f"weights: only their variant {first.variant} is there ({first.path.name})"]
    return []


def _passed_over(folder: Path, places: list[Path], sets: list[WeightFiles]) -> list[str]:
    """A note of files that look like weights and are in none of the sets."""
    known = {file for found in sets for file in (*found.files, found.path)}
    files = [
        file
        for place in dict.fromkeys((*places, folder))
        for file in (
            *(place / name for name in other_weights_in(place)),
            *sorted(place.glob(f"{STEM}.*.index*.json")),  # the shards may be missing
        )
    ]
    names = [relative(file, folder) for file in files if file not in known]
    if not names:
        return []
    return [f"other weights in the folder are not read: {listed(names)}"]


def relative(path: Path, folder: Path) -> str:
    """A path as seen from a folder that it may be in."""
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def weight_map(index: Path) -> dict[str, str]:
    """Which file holds which weight, as an index says.

    Raises:
        InputError: it is damaged, or names something that cannot be a file beside it.
    """
    found = read_object(index).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise InputError(f"{index}: has no weight_map; copy or download it again")
    for weight, file in found.items():
        if not isinstance(file, str) or not _SHARD.fullmatch(file):
            raise InputError(
                f"{index}: {weight} is said to be in {file!r}, which is no file of weights in its "
                "own folder"
            )
    return found


def _shards(index: Path, kind: str) -> tuple[Path, ...]:
    files = tuple(index.parent / name for name in sorted(set(weight_map(index).values())))
    for file in files:
        if file.suffix != f".{kind}" or not file.is_file():
            raise InputError(
                f"{file}: missing, but {index.name} names it; copy or download it again"
            )
    return files


def _refuse_other_pipelines(index: Path) -> None:
    if not index.is_file():
        return
    for name, value in read_object(index).items():
        known = name.startswith("_") or name in (*NETWORKS, *_SCHEDULERS)
        if not known and value not in (None, [None, None]):
            raise InputError(
                f"{index}: the pipeline has a {name} besides unet and scheduler; only models of "
                "the images themselves can be read"
            )


def _scheduler(folder: Path, *, flat: bool) -> Path:
    """The scheduler's file, or where it should be."""
    # the training script saves the scheduler only with the pipeline, above its checkpoint-500/
    above = [folder.resolve().parent] if folder.resolve().name.startswith("checkpoint-") else []
    places = [base / name / _SCHEDULER_FILE for base in (folder, *above) for name in _SCHEDULERS]
    root = folder / _SCHEDULER_FILE
    places = [root, *places] if flat else [*places, root]
    return next((path for path in places if path.is_file()), places[0])


INDEX = ".index.json"
"""How the name of a file ends that says which shard holds which weight."""
_SUFFIXES = (*SUFFIXES, INDEX)
_SHARD_NAME = re.compile(r".*-\d+-of-\d+\.\w+")


def files_in(folder: Path) -> str:
    """Which files of weights to pass in place of a folder, as the rest of a line.

    Args:
        folder: with files of weights, or folders that have some, in it.
    """
    found = [
        path
        for path in sorted([*folder.glob("*"), *folder.glob("*/*")])
        if path.name.endswith(_SUFFIXES)
        and path.is_file()
        and not NO_WEIGHTS.match(path.name)
        and not _SHARD_NAME.fullmatch(path.name)
    ]
    if not found:
        return f"pass a file of weights ({', '.join(_SUFFIXES)}), of which it holds none"
    if len(found) == 1:
        return f"pass the file of weights in it: --ckpt {found[0]}"
    return f"pass a file of weights in it, as --ckpt {listed([*map(str, found)])}"


def read_shards(index: Path) -> dict[str, object]:
    """All weights of the shards beside an index.

    Raises:
        InputError: the index or a shard is damaged or missing, or they do not go together.
    """
    places = weight_map(index)
    weights: dict[str, Tensor] = {}
    for shard in _listed_shards(index):
        weights |= only_tensors(read_state(shard), source=str(shard))
    if wrong := sorted(set(places) ^ set(weights)):
        has = "no shard has" if wrong[0] in places else "a shard has, and it does not name,"
        raise InputError(f"{index}: {has} {wrong[0]}; copy or download all of them again")
    return dict(weights)


def sha256_of_shards(index: Path) -> str:
    """Of the lines that `sha256sum` prints of the shards, in the order of their names."""
    lines = "".join(f"{sha256_of(shard)}  {shard.name}\n" for shard in _listed_shards(index))
    return hashlib.sha256(lines.encode()).hexdigest()


def _listed_shards(index: Path) -> list[Path]:
    return [index.parent / name for name in sorted(set(weight_map(index).values()))]
