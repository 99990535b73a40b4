"""Where a folder of diffusers keeps its files, and which of them hold the weights."""

import dataclasses
import re
from pathlib import Path

from ddpmbench.errors import InputError
from ddpmbench.inputs.checkpoints.fields import read_object

STEM = "diffusion_pytorch_model"
KINDS = ("safetensors", "bin")
"""How weights are written, the one that is taken first before the other."""
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
    """The files that together hold the weights.

    Attributes:
        files: one file, or its shards in the order of their names.
        index: the JSON file that says which shard holds which weight; None of a single file.
        variant: "fp16" or the like where they are a variant of the weights; None if plain.
    """

    files: tuple[Path, ...]
    index: Path | None = None
    variant: str | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a folder keeps what a checkpoint is made of.

    Attributes:
        config: the network's configuration.
        scheduler: the scheduler's; may be missing.
        weights: the files of weights.
        averaged: whether they are averaged over the training; None if nothing says so.
        notes: what was chosen, a line each.
    """

    config: Path
    scheduler: Path
    weights: WeightFiles
    averaged: bool | None
    notes: tuple[str, ...]


def find_layout(folder: Path, *, weights: str | None = None) -> Layout:
    """Where the files of a model are.

    Args:
        folder: flat, a pipeline (`unet/`, `scheduler/`), or what diffusers' training script saves
            on its way (`checkpoint-500/` with `unet/` and `unet_ema/`, the scheduler above it).
        weights: "raw" takes the last weights where both are there, and not the averaged ones.

    Raises:
        InputError: a file is missing, or the pipeline is of another kind.
    """
    networks = [name for name in NETWORKS if (folder / name).is_dir()]
    network = folder / _chosen(folder, networks, weights) if networks else folder
    config = network / "config.json"
    if not config.is_file():
        files = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".pt"))
        remedy = f"; pass the file itself: {folder / files[0]}" if files else ""
        if len(files) > 1:
            remedy = f"; pass a file in it: {', '.join(files[:3])}{', ...' if files[3:] else ''}"
        raise InputError(f"{folder}: holds no config.json of a diffusers model{remedy}")
    _refuse_other_pipelines(folder / "model_index.json")
    notes = []
    averaged = _averaged(network, networks, config)
    if len(networks) > 1:
        notes.append(f"weights: {'EMA' if averaged else 'raw'} ({network.name}/)")
    scheduler = _scheduler(folder, flat=not networks)
    if scheduler.is_file() and folder not in scheduler.parents:
        notes.append(f"schedule: of {scheduler}")
    found = weight_files(network)
    if found is None:
        raise InputError(
            f"{network}: holds no weights, neither {STEM}.safetensors nor {STEM}.bin, whole or in "
            "shards"
        )
    if found.variant is not None:
        file = (found.index or found.files[0]).name
        notes.append(f"weights: only their variant {found.variant} is there ({file})")
    return Layout(config, scheduler, found, averaged, tuple(notes))


def weight_files(folder: Path) -> WeightFiles | None:
    """The weights in the folder of a network; None if there are none.

    One file comes before shards, safetensors before bin, and a variant is taken only where there
    are no plain weights.

    Raises:
        InputError: an index is damaged or names what is no file of the folder, or there are
            several variants and nothing besides.
    """
    for kind in KINDS:
        if (single := folder / f"{STEM}.{kind}").is_file():
            return WeightFiles((single,))
        if (index := folder / f"{STEM}.{kind}.index.json").is_file():
            return WeightFiles(_shards(index, kind), index)
    variants: dict[str, WeightFiles] = {}
    for path in sorted(folder.glob(f"{STEM}.*")):
        for kind in KINDS[::-1]:
            if found := re.fullmatch(rf"{STEM}\.(\w+)\.{kind}", path.name):
                variants[found[1]] = WeightFiles((path,), None, found[1])
            elif found := re.fullmatch(rf"{STEM}\.{kind}\.index\.(\w+)\.json", path.name):
                variants.setdefault(found[1], WeightFiles(_shards(path, kind), path, found[1]))
    if len(variants) > 1:
        raise InputError(
            f"{folder}: holds only variants of the weights ({', '.join(sorted(variants))}); name "
            f"the one to read {STEM}.safetensors or .bin as it is"
        )
    return next(iter(variants.values()), None)


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


def _chosen(folder: Path, networks: list[str], weights: str | None) -> str:
    if len(networks) == 1:
        return networks[0]
    return "unet" if weights == "raw" else "unet_ema"


def _averaged(network: Path, networks: list[str], config: Path) -> bool | None:
    """Whether weights are averaged: said by the folder's name, or by what EMAModel writes."""
    if network.name == "unet_ema" or AVERAGING & set(read_object(config)):
        return True
    return False if len(networks) > 1 else None


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
    if flat:
        return folder / _SCHEDULER_FILE
    # the training script saves the scheduler only with the pipeline, above its checkpoint-500/
    above = [folder.resolve().parent] if folder.resolve().name.startswith("checkpoint-") else []
    places = [base / name / _SCHEDULER_FILE for base in (folder, *above) for name in _SCHEDULERS]
    return next((path for path in places if path.is_file()), places[0])
