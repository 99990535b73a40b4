"""The files of a diffusers folder: configuration, scheduler, and sets of weights."""

import dataclasses
import hashlib
import re
from pathlib import Path

from torch import Tensor

from ddpmbench.checkpoints.diffusers_scheduler import read_object
from ddpmbench.checkpoints.network_weights import only_tensors
from ddpmbench.checkpoints.weights import FileError, check_blob, read_state
from ddpmbench.errors import listed
from ddpmbench.files import sha256_of

STEM = "diffusion_pytorch_model"
KINDS = ("safetensors", "bin")
"""Formats of weights, in order of preference."""
_OTHER_STEMS = ("model", "pytorch_model")
"""Names by accelerate and others of the weights that diffusers calls `STEM`."""
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
NO_WEIGHTS = re.compile(r"(optim|scheduler|scaler|sampler|training_args|random_states|rng)|opt\d")
NETWORKS = ("unet", "unet_ema")
"""Folders of a network: last weights, and averaged over the training."""
_SCHEDULERS = ("scheduler", "noise_scheduler")
_SCHEDULER_FILE = "scheduler_config.json"
BESIDE = f"copy its config.json and {_SCHEDULER_FILE}"
"""The remedy for weights without their folder."""
# Only names of files in the same folder.
_SHARD = re.compile(r"\w[\w.-]*\.(safetensors|bin)")
# Fields that diffusers' EMAModel adds to the network's configuration.
AVERAGING = {
    *("decay", "inv_gamma", "min_decay", "optimization_step", "power"),
    *("update_after_step", "use_ema_warmup"),
}


@dataclasses.dataclass(frozen=True)
class WeightFiles:
    """The files of one set of weights.

    Attributes:
        files: one file, or its shards in the order of their names.
        index: the JSON file that maps weights to shards; None for a single file.
        variant: such as "fp16"; None for the plain weights.
        kind: "ema" if averaged over the training, "raw" if last; None if unknown.
    """

    files: tuple[Path, ...]
    index: Path | None = None
    variant: str | None = None
    kind: str | None = None

    @property
    def path(self) -> Path:
        """The file that identifies the set: its index, or the only file."""
        return self.index or self.files[0]

    @property
    def folder(self) -> Path:
        """The folder of the network."""
        return self.path.parent


@dataclasses.dataclass(frozen=True)
class Layout:
    """The files of a checkpoint.

    Attributes:
        config: the network's configuration.
        scheduler: the scheduler's; may be missing.
        candidates: the sets of weights of the requested kind, in order of preference.
        notes: on the choice, a line each.
    """

    config: Path
    scheduler: Path
    candidates: tuple[WeightFiles, ...]
    notes: tuple[str, ...]


def find_layout(
    folder: Path, *, weights: str | None = None, chosen: WeightFiles | None = None
) -> Layout:
    """Locate the files of a model.

    Args:
        folder: flat, a pipeline (`unet/`, `scheduler/`), or a checkpoint of diffusers' training
            script (`checkpoint-500/` with `unet/` and `unet_ema/`, the scheduler above it).
        weights: "ema" or "raw"; None takes averaged ones if there are any.
        chosen: the weights to read, if the user named their file.

    Raises:
        InputError: a file is missing, or the pipeline is of another kind.
    """
    networks = [folder / name for name in NETWORKS if (folder / name).is_dir()]
    flat = not networks if chosen is None else chosen.folder.resolve() == folder.resolve()
    places = [folder] if flat and chosen is not None else networks or [folder]
    _refuse_other_pipelines(folder / "model_index.json")
    if chosen is None:
        # weights of an older version, or averaged ones, may be beside unet/ or below a flat folder
        places = list(dict.fromkeys([*places, folder, *_other_networks(folder)]))
    sets = _with_kinds([files for place in places for files in weight_sets(place)])
    if chosen is not None:
        sets = [files for files in sets if files.path == chosen.path] or [chosen]
    if not sets:
        raise FileError(
            places[0],
            f"holds no weights, neither {STEM}.safetensors nor {STEM}.bin, whole or in shards; "
            "copy them there from where the model came",
        )
    wanted = weights or ("ema" if any(files.kind == "ema" for files in sets) else "raw")
    kinds = (wanted,) if weights is not None else (wanted, None)
    # if all are of the other kind, load_checkpoint refuses the request
    candidates = sorted(
        [files for files in sets if files.kind in kinds] or sets,
        key=lambda files: files.kind != wanted,
    )
    config = candidates[0].folder / "config.json"
    if not config.is_file():
        raise FileError(config, "missing; copy it there from where the weights came")
    scheduler = _scheduler(folder, flat=flat)
    notes = []
    if chosen is None:
        notes += [*_choice(candidates[0], sets, folder), *_passed_over(folder, places, sets)]
    if scheduler.is_file() and folder not in scheduler.parents:
        notes.append(f"schedule: of {scheduler}")
    return Layout(config, scheduler, tuple(candidates), tuple(notes))


def _other_networks(folder: Path) -> list[Path]:
    """Folders of a network below a model's folder, other than `NETWORKS`."""
    configs = sorted(folder.glob("*/config.json"))
    return [c.parent for c in configs if c.parent.name not in NETWORKS and _is_network(c)]


def _is_network(config: Path) -> bool:
    return config.is_file() and str(read_object(config).get("_class_name")).startswith("UNet")


def weight_sets(folder: Path) -> tuple[WeightFiles, ...]:
    """The sets of weights in the folder of a network, plain ones before variants.

    Raises:
        InputError: an index is damaged or names no file of the folder.
    """
    for stem in (STEM, *_OTHER_STEMS):
        if sets := _sets_called(folder, stem):
            return sets
    return ()


def _sets_called(folder: Path, stem: str) -> tuple[WeightFiles, ...]:
    single = re.compile(rf"{stem}(?:\.(\w+))?\.(safetensors|bin)")
    # the variant follows .index, or precedes the format in files of old versions
    index = re.compile(rf"{stem}(?:\.(\w+))?\.(safetensors|bin)\.index(?:\.(\w+))?\.json")
    sets: dict[tuple[bool, str, bool, bool, str], WeightFiles] = {}
    absent = []
    for path in sorted(folder.glob(f"{stem}.*")):
        shards = match = index.fullmatch(path.name)
        match = match or single.fullmatch(path.name)
        if match is None or not path.is_file():
            continue
        variant, kind = match[1] or (shards and shards[3]) or None, match[2]
        order = (variant is not None, variant or "", kind == "bin", bool(shards), path.name)
        if shards and not any((folder / name).is_file() for name in weight_map(path).values()):
            absent.append(path)
        else:
            files = _shards(path) if shards else (path,)
            weights = {None: None, True: "raw", False: "ema"}[_is_raw(variant)]
            sets[order] = WeightFiles(files, path if shards else None, variant, weights)
    if not sets and absent:
        _shards(absent[0])  # raises with the name of the missing file
    return tuple(sets[order] for order in sorted(sets))


def _is_raw(variant: str | None) -> bool | None:
    """True if a variant is of the last weights, False if of averaged ones; None if unclear."""
    if variant is None or not re.search(r"(?<![a-z])ema(?![a-z])", variant):
        return None
    return bool(re.search(r"(?<![a-z])no[nt]?_?ema", variant))


def is_model(folder: Path) -> bool:
    """Whether a folder or its `unet/` has the configuration of a network."""
    return any((folder / name / "config.json").is_file() for name in (".", *NETWORKS))


def set_of(path: Path) -> tuple[Path, WeightFiles] | None:
    """The model's folder and the set of weights that a file belongs to; None if to none.

    The file is one of weights, a shard or an index, beside the network's `config.json`.

    Raises:
        InputError: an index is damaged or names no file of the folder.
    """
    if not _is_network(path.parent / "config.json"):
        return None
    for files in weight_sets(path.parent):
        if path in (files.path, *files.files):
            return model_folder(path.parent), files
    return None


def model_folder(network: Path) -> Path:
    """The folder of a network's model: the same, or the one above `unet/`."""
    path = network.resolve()
    beside = ("model_index.json", *_SCHEDULERS)
    is_below = any((path.parent / name).exists() for name in beside)
    is_alone = any((path / name).exists() for name in (*beside, _SCHEDULER_FILE))
    return path.parent if path.name in NETWORKS or (is_below and not is_alone) else network


def other_weights_in(folder: Path) -> list[str]:
    """Names of files in a folder that look like weights, not of optimizers, in order."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix in SUFFIXES and not NO_WEIGHTS.match(path.name) and path.is_file()
    )


def _with_kinds(sets: list[WeightFiles]) -> list[WeightFiles]:
    """The sets, with kinds inferred from one another."""
    sets = [
        dataclasses.replace(files, kind="ema") if not files.kind and _is_average(files) else files
        for files in sets
    ]
    known = {files.kind for files in sets} - {None}
    if len(known) != 1:
        return sets
    other = "raw" if known == {"ema"} else "ema"
    return [dataclasses.replace(files, kind=files.kind or other) for files in sets]


def _is_average(files: WeightFiles) -> bool:
    """Whether the folder's name, or a field of EMAModel, marks weights as averaged."""
    config = files.folder / "config.json"
    return _is_raw(files.folder.name.lower()) is False or (
        config.is_file() and bool(AVERAGING & set(read_object(config)))
    )


def _choice(first: WeightFiles, sets: list[WeightFiles], folder: Path) -> list[str]:
    """A note on the set that is read, if there was a choice or only a variant."""
    if len({files.kind for files in sets}) > 1:
        alone = sum(files.folder == first.folder for files in sets) == 1
        place = f"{first.folder.name}/" if alone else relative(first.path, folder)
        name = {"ema": "EMA", "raw": "raw", None: "not known to be EMA or raw"}[first.kind]
        return [f"weights: {name} ({place})"]
    if len(sets) == 1 and first.variant is not None:
        return [f"weights: only their variant {first.variant} is there ({first.path.name})"]
    return []


def _passed_over(folder: Path, places: list[Path], sets: list[WeightFiles]) -> list[str]:
    """A note on files that look like weights but are in no set."""
    known = {file for each in sets for file in (*each.files, each.path)}
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
    """A path relative to a folder, if inside it."""
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def weight_map(index: Path) -> dict[str, str]:
    """Name of a weight -> the shard that holds it, from an index.

    Raises:
        InputError: it is damaged, or names something other than a file beside it.
    """
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise FileError(index, "has no weight_map; copy or download it again")
    for weight, file in places.items():
        if not isinstance(file, str) or not _SHARD.fullmatch(file):
            raise FileError(
                index,
                f"places {weight} in {file!r}, which is no file of weights in its own folder; "
                "copy or download it again",
            )
    return places


def _shards(index: Path) -> tuple[Path, ...]:
    """The shards that an index names, in the order of their names."""
    kind = "safetensors" if ".safetensors." in index.name else "bin"
    files = tuple(index.parent / name for name in sorted(set(weight_map(index).values())))
    for file in files:
        if file.suffix != f".{kind}" or not file.is_file():
            raise FileError(file, f"missing, but {index.name} names it; copy or download it again")
    return files


def read_shards(index: Path) -> tuple[dict[str, Tensor], str]:
    """All weights of the shards beside an index, and the SHA-256 of sha256sum's output for them.

    Raises:
        InputError: the index or a shard is damaged or missing, or they do not match.
    """
    places, weights, lines = weight_map(index), dict[str, Tensor](), ""
    for file in _shards(index):
        part, digest = read_file(file)
        expected = {name for name, place in places.items() if place == file.name}
        if wrong := sorted(expected ^ set(part)):
            raise FileError(
                file,
                f"{'has no' if wrong[0] in expected else 'has a'} weight {wrong[0]}, in "
                f"contradiction to {index.name}; copy or download both again",
            )
        lines += f"{digest}  {file.name}\n"
        weights |= part
    return weights, hashlib.sha256(lines.encode()).hexdigest()


def read_file(file: Path) -> tuple[dict[str, Tensor], str]:
    """The weights in a file and its SHA-256, which must match its name in the Hub's cache."""
    weights, digest = only_tensors(read_state(file), source=str(file)), sha256_of(file)
    check_blob(file, digest)
    return weights, digest


def _refuse_other_pipelines(index: Path) -> None:
    if not index.is_file():
        return
    for name, value in read_object(index).items():
        known = name.startswith("_") or name in (*NETWORKS, *_SCHEDULERS)
        if not known and value not in (None, [None, None]):
            raise FileError(
                index,
                f"the pipeline has a {name} besides unet and scheduler; only models of the images "
                "themselves can be read",
            )


def _scheduler(folder: Path, *, flat: bool) -> Path:
    """The expected path of the scheduler's file."""
    # the training script saves the scheduler only with the pipeline, above its checkpoint-500/
    above = [folder.resolve().parent] if folder.resolve().name.startswith("checkpoint-") else []
    places = [base / name / _SCHEDULER_FILE for base in (folder, *above) for name in _SCHEDULERS]
    root = folder / _SCHEDULER_FILE
    places = [root, *places] if flat else [*places, root]
    return next((path for path in places if path.is_file()), places[0])


INDEX = ".index.json"
"""Suffix of an index of shards."""


def weights_within(folder: Path) -> list[Path]:
    """Files of weights in a folder and its subfolders; for shards their index, if any."""
    files = [
        place / name
        for place in (folder, *sorted(filter(Path.is_dir, folder.iterdir())))
        for name in (*other_weights_in(place), *(p.name for p in place.glob(f"*{INDEX}")))
    ]
    return [file for file in files if not re.search(r"-\d+-of-\d+\.", file.name)] or files
