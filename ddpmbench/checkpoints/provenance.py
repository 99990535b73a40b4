"""Who says what of a checkpoint: its file, its family, a library's default, an option, nobody."""

import dataclasses

from ddpmbench.checkpoints.schedule_tables import BUFFERS
from ddpmbench.checkpoints.settings import CheckpointSettings
from ddpmbench.diffusion.data_range import UNIT_RANGE, DataRange
from ddpmbench.diffusion.model import Checkpoint, TimeInput, size_words

FILE, FAMILY, DATA, ASSUMED = "the file", "its family", "the images", "assumed"
_NAME, _SCHEDULER, _CONFIG = "its published name", "its scheduler", "its config"
_FLAGS = "--model-flags"
# What is open -> the options that can settle it, the family's own first.
_OPTIONS = {
    "heads": (_FLAGS,),
    "order of the attention's rows": (_FLAGS,),
    "image size": (_FLAGS,),
    "schedule": ("--schedule", _FLAGS),
    "prediction": ("--prediction", _FLAGS),
    "variance": ("--variance", _FLAGS),
    "clip": ("--clip/--no-clip", "--clip"),
    "time input": ("--time-input", _FLAGS),
    "data range": ("--data-range",),
    "levels": ("--levels",),
    "weights": ("--weights",),
}
# Who says it in each family, where no option does; what is not named here is its family's custom.
_SAYS = {
    "native": dict.fromkeys(("image size", "schedule", "prediction", "variance"), FILE)
    | {"time input": FILE},
    "diffusers": {"image size": _CONFIG}
    | dict.fromkeys(("schedule", "prediction", "variance", "clip"), _SCHEDULER),
    "openai": dict.fromkeys(
        ("heads", "image size", "schedule", "prediction", "variance", "clip", "time input"), _NAME
    ),
    "pesser": dict.fromkeys(("image size", "schedule", "variance", "weights"), _NAME),
    "lucidrains": dict.fromkeys(("schedule", "prediction"), FILE),
    "own network": {"image size": "its code"},
}
_WITHOUT_CUSTOM = ("own network",)
_CLIP = {True: "x_start is clamped", False: "no"}
_TIMES = {
    TimeInput.INDEX: "t - 1",
    TimeInput.ONE_BASED: "t",
    TimeInput.FRACTION: "t / T",
    TimeInput.RESCALED_1000: "(t - 1) 1000 / T",
}


@dataclasses.dataclass(frozen=True)
class Said:
    """One thing that has to be known of a model.

    Attributes:
        what: it is.
        value: as it is taken; None where it is open.
        by: who says so: the file, a part of it, the family's custom, an option, or "assumed" where
            nobody does; None where it is open.
        option: what settles or changes it.
    """

    what: str
    value: str | None
    by: str | None
    option: str


def what_is_said(checkpoint: Checkpoint, settings: CheckpointSettings) -> tuple[Said, ...]:
    """Everything a number depends on besides the weights, and who says so.

    Args:
        checkpoint: as it was loaded.
        settings: with which.
    """
    values = {
        "image size": _image_size(checkpoint),
        "schedule": f"{checkpoint.schedule.name}, T = {checkpoint.schedule.num_timesteps:,}",
        "prediction": str(checkpoint.prediction),
        "variance": str(checkpoint.variance),
        "clip": _CLIP[checkpoint.clip],
        "time input": f"{_TIMES[checkpoint.time_input]}  ({checkpoint.time_input})",
        "data range": checkpoint.data_range.interval,
        "levels": str(checkpoint.data_range.levels),
        "weights": checkpoint.weights,
    }
    return tuple(
        Said(what, value, _by(what, checkpoint, settings), _OPTIONS[what][0])
        for what, value in values.items()
        if value is not None
    )


def what_is_open(
    missing: tuple[str, ...], said: tuple[Said, ...], settings: CheckpointSettings
) -> tuple[Said, ...]:
    """The same of a file that leaves something open.

    Args:
        missing: the options that settle it, each with a placeholder of a value.
        said: of the file read with something put in place of what is open; empty where it cannot
            be read so.
        settings: what is said of it besides.
    """
    needed = {option.split()[0]: option for option in missing}
    known = {item.what: item for item in said}
    result = []
    for what, options in _OPTIONS.items():
        option = next((needed[option] for option in options if option in needed), None)
        if option is not None:
            result.append(Said(what, None, None, option))
        elif what in known:
            result.append(known[what])
        elif (value := _given(what, settings)) is not None:
            result.append(Said(what, value, options[0], options[0]))
    return tuple(result)


def _by(what: str, checkpoint: Checkpoint, settings: CheckpointSettings) -> str:
    if _given(what, settings) is not None:
        return _OPTIONS[what][0]
    if what == "image size" and checkpoint.image_size is None:
        return DATA
    if what in checkpoint.sources:
        return checkpoint.sources[what]
    family = checkpoint.family
    if family == "native" and _in_record(what, checkpoint, settings):
        return FILE
    custom = FILE if what == "weights" else ASSUMED if family in _WITHOUT_CUSTOM else FAMILY
    by = _SAYS.get(family, {}).get(what, custom)
    of_file = checkpoint.schedule.name == BUFFERS if what == "schedule" else bool(checkpoint.where)
    if by == _NAME and what in ("schedule", "weights") and of_file:
        return FILE
    return _FLAGS if by == _NAME and settings.model_flags is not None else by


def _in_record(what: str, checkpoint: Checkpoint, settings: CheckpointSettings) -> bool:
    """Whether it stands in a native file, which says these only where they are not the custom."""
    of = checkpoint.data_range
    if what == "clip":
        return not checkpoint.clip
    if what not in ("data range", "levels"):
        return False
    if settings.data_range is None and settings.levels is None:
        return of != UNIT_RANGE
    # What an option says hides what the file does; the other half is still the file's.
    if what == "data range":
        return of.interval != UNIT_RANGE.interval
    return of.levels != UNIT_RANGE.levels


def _given(what: str, settings: CheckpointSettings) -> str | None:
    """What an option says of it."""
    value = getattr(settings, what.replace(" ", "_"), None)
    if value is None:
        return None
    if what == "clip":
        return _CLIP[value]
    return DataRange(*value).interval if what == "data range" else str(value)


def _image_size(checkpoint: Checkpoint) -> str:
    if checkpoint.image_size is None:
        return "that of --data"
    return size_words(checkpoint.image_size)
