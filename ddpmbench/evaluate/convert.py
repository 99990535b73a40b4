"""Write a model in the format of another family, and verify it before replacing a file."""

import dataclasses
import json
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ddpmbench.checkpoints.diffusers_writer import refuse_inexpressible, write_diffusers
from ddpmbench.checkpoints.load import load_checkpoint
from ddpmbench.checkpoints.native import write_native
from ddpmbench.diffusion.model import Checkpoint, sides_of
from ddpmbench.errors import InputError
from ddpmbench.files import move_into_place, named_path, scratch_folder, writing_to
from ddpmbench.report.display import Card, Shown
from ddpmbench.unet.unet import UNet

FAMILIES = ("native", "diffusers")
"""Families that can be written."""
SCHEMA = "ddpmbench.convert/1"
_SUFFIX = ".safetensors"
_OF_FILES = (".pt", ".pth", ".ckpt", ".bin")
"""File endings that are never written, and unlikely for the name of a folder."""
_PIPELINE = {"model_index.json", "unet", "scheduler", "README.md", ".gitattributes"}
"""Everything in the folder of a pipeline that may be overwritten."""
_SIZE = 16
"""Height and width of the image for the comparison, where the checkpoint does not say."""
_TOLERANCE = 1e-5
"""The largest difference of outputs, relative to the largest output."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Conversion(Shown):
    """A converted checkpoint, verified to be the original.

    Attributes:
        checkpoint: the converted checkpoint, read from `path`.
        path: the file or folder.
        summary: the record of both, as the command prints it in JSON.
    """

    checkpoint: Checkpoint
    path: Path
    summary: dict[str, Any]

    def _card(self) -> Card:
        return Card(f"wrote {self.summary['path']}", {}, _facts(self.summary))


def convert_checkpoint(
    checkpoint: Checkpoint, out: str | Path, *, to: str | None = None, overwrite: bool = False
) -> Conversion:
    """Write a checkpoint in the format of another family.

    The result is read back before it is moved into place: everything that a number depends on and
    all weights must be the same, and the output for one random input.

    Args:
        checkpoint: one with the U-Net of this package and the schedule that it was trained on.
        out: a file `*.safetensors` in native format, or a folder for diffusers' DDPMPipeline.
        to: "native" or "diffusers"; None decides by the ending of `out`.
        overwrite: whether a file or a folder of a pipeline may be replaced.

    Raises:
        InputError: `out` exists, or the family cannot express the model.
    """
    place = named_path(out)
    family = _family(place, to)
    _check_place(place, family, overwrite=overwrite)
    if not isinstance(checkpoint.network, UNet):
        raise InputError(
            f"{checkpoint.source}: only the U-Net of Ho et al. and its kin can be converted, not "
            f"a network of the kind {type(checkpoint.network).__name__}"
        )
    schedule = checkpoint.schedule
    if schedule.num_timesteps != schedule.num_original_timesteps:
        raise InputError(
            f"{checkpoint.source}: respaced to {schedule.num_timesteps:,} of "
            f"{schedule.num_original_timesteps:,} steps; convert the original, and respace it "
            "when it is evaluated"
        )
    if family == "diffusers":
        refuse_inexpressible(checkpoint)
    with writing_to(place, "`out`"), scratch_folder(place) as scratch:
        target = scratch / place.name
        if family == "native":
            write_native(target, checkpoint, training=checkpoint.training)
        else:
            write_diffusers(target, checkpoint)
        written = load_checkpoint(target)
        _check_meaning(checkpoint, written, family)
        _check_network(checkpoint, written)
        move_into_place(target, place)
    written = dataclasses.replace(written, source=str(place))
    summary = {
        "schema": SCHEMA,
        "source": _record(checkpoint),
        "written": _record(written),
        "path": str(place),
        "notes": _notes(checkpoint, written),
    }
    return Conversion(written, place, summary)


def _family(place: Path, to: str | None) -> str:
    """The family to write, from `to` or the name; the two must agree."""
    if place.name in ("", ".."):
        raise InputError(f"`out` {place}: has no name of its own; name the file or folder to write")
    by_name = "native" if place.suffix == _SUFFIX else "diffusers"
    if to not in (None, *FAMILIES):
        raise InputError(f"`to={to}`: choose from {', '.join(FAMILIES)}")
    if to is not None and to != by_name:
        needs = f"is a file that ends in {_SUFFIX}" if to == "native" else "is a folder"
        raise InputError(f"`out` {place}: {to} {needs}; give it another name")
    if to is None and place.suffix.lower() in _OF_FILES:
        raise InputError(
            f"`out` {place}: no {place.suffix} file is written; name it "
            f"{place.with_suffix(_SUFFIX).name} (native), or pass `to=diffusers` for a folder"
        )
    return by_name


def _check_place(place: Path, family: str, *, overwrite: bool) -> None:
    """Refuse an existing file or folder, unless it may be overwritten and is of the same kind."""
    if not (place.exists() or place.is_symlink()):
        return
    if not overwrite:
        raise InputError(f"`out` {place}: exists; pass `overwrite` or another name")
    if place.is_dir() != (family == "diffusers"):
        kind = "folder" if place.is_dir() else "file"
        raise InputError(f"`out` {place}: is a {kind}; give it another name")
    if place.is_dir():
        names = {path.name for path in place.iterdir()}
        if names and (others := sorted(names - _PIPELINE) or "model_index.json" not in names):
            name = others[0] if isinstance(others, list) else "no model_index.json"
            raise InputError(
                f"`out` {place}: holds {name}, so it is more than a pipeline of diffusers and not "
                "overwritten; give it another name"
            )


def _check_meaning(one: Checkpoint, other: Checkpoint, family: str) -> None:
    """Raise InputError if the files do not hold everything that a number depends on."""
    names = ("schedule.process", "prediction", "variance", "clip", "data_range")
    for name in (*names, "image_size", "channels", "num_classes"):
        ours, theirs = map(operator.attrgetter(name), (one, other))
        if ours != theirs:
            raise InputError(
                f"{one.source}: {family} files do not hold its {name}, {ours}; they would be read "
                f"as {theirs}"
            )
    steps = torch.arange(1, one.schedule.num_timesteps + 1)
    same = other.schedule.num_timesteps == len(steps) and torch.allclose(
        one.schedule.betas, other.schedule.betas, rtol=1e-11, atol=0.0
    )
    if not same or not torch.equal(one.network_time(steps), other.network_time(steps)):
        raise InputError(f"{one.source}: {family} files do not hold its schedule or time input")


def _check_network(one: Checkpoint, other: Checkpoint) -> None:
    """Raise RuntimeError unless weights and output are the same; else it is a bug of this package.

    Heads, padding and the order of an embedding show in no weight, but in the output.
    """
    others = other.network.state_dict()
    for name, weight in one.network.state_dict().items():
        if name not in others or not torch.equal(weight.cpu(), others[name]):
            raise RuntimeError(f"{one.source}: what was written has another weight {name}")
    multiple = one.size_multiple
    sides = sides_of(one.image_size or multiple * -(-_SIZE // multiple))
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn((1, one.channels or 1, *sides), generator=generator)
    t, label = torch.tensor([one.schedule.num_timesteps]), torch.zeros(1, dtype=torch.int64)
    with torch.inference_mode():
        device = next(one.network.parameters()).device
        output = one.model_output(x_t.to(device), t.to(device), label.to(device)).cpu()
        difference = float((other.model_output(x_t, t, label) - output).abs().max())
    if not difference <= _TOLERANCE * (largest := float(output.abs().max())):
        raise RuntimeError(
            f"{one.source}: the output of what was written differs by {difference:.3g} of "
            f"{largest:.3g}"
        )


def _record(checkpoint: Checkpoint) -> dict[str, object]:
    return {
        "source": checkpoint.source,
        "family": checkpoint.family,
        "sha256": checkpoint.sha256,
    }


def _notes(read: Checkpoint, written: Checkpoint) -> list[str]:
    """What a user of the result has to know."""
    notes = []
    if written.family == "diffusers" and read.weights is not None:
        kind = {"ema": "averaged weights", "raw": "a training's last weights, not averaged"}
        notes.append(f"diffusers' files do not say that these are {kind[read.weights]}")
    if written.family == "diffusers" and written.num_classes:
        notes.append(
            "DDPMPipeline passes no class; call its unet with class_labels, and its scheduler"
        )
    if written.family == "diffusers" and written.image_size is None:
        notes.append(
            "DDPMPipeline cannot sample before sample_size in unet/config.json says the image size"
        )
    return notes


def printed_conversion(summary: Mapping[str, Any], output_format: str) -> str:
    """The summary of `convert` for standard output.

    Args:
        summary: the summary of a `Conversion`.
        output_format: "table" for reading, "json" for the object itself, "quiet" for the path
            only.
    """
    match output_format:
        case "json":
            return json.dumps(summary, indent=2)
        case "quiet":
            return str(summary["path"])
    return "\n".join(f"{name:<10}{fact}" for name, fact in _facts(summary).items())


def _facts(summary: Mapping[str, Any]) -> dict[str, str]:
    """Both checkpoints, of which the second is verified."""
    return {
        "read": _line(summary["source"]),
        "written": _line(summary["written"]),
        "verified": "the same settings, weights and output",
    }


def _line(checkpoint: Mapping[str, str]) -> str:
    return f"{checkpoint['source']} ({checkpoint['family']}, {checkpoint['sha256'][:12]})"
