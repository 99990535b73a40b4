"""What a family of checkpoints is, the user's settings, and the error if one is missing."""

import dataclasses
import shlex
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from ddpmbench.checkpoints.network_weights import only_tensors
from ddpmbench.checkpoints.schedule_tables import NO_TABLES, ScheduleTables
from ddpmbench.checkpoints.schedules import read_schedule
from ddpmbench.checkpoints.state_dicts import StateDict
from ddpmbench.checkpoints.weights import FileError
from ddpmbench.diffusion.data_range import DataRange
from ddpmbench.diffusion.model import Checkpoint, TimeInput
from ddpmbench.diffusion.parameterization import Prediction, Process, Variance
from ddpmbench.errors import InputError
from ddpmbench.records import short_repr
from ddpmbench.unet.unet import UNetConfig

WEIGHTS = ("ema", "raw")
"""Kinds of weights: averaged over the training, or last."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting that a family's files may leave open.

    Attributes:
        kind: of the value, and from the user's to the checkpoint's; that of a schedule is its form.
        example: a usual value.
        placeholder: for a value, if nothing in the file makes one more likely than another.
    """

    kind: type[StrEnum | str | bool]
    example: str | bool
    placeholder: str = ""

    @property
    def choices(self) -> tuple[str, ...]:
        """The values, if they are a few words."""
        return tuple(map(str, self.kind)) if issubclass(self.kind, StrEnum) else ()


SETTINGS = {
    "schedule": Setting(str, "linear:1000"),
    "prediction": Setting(Prediction, "eps", "PREDICTION"),
    "variance": Setting(Variance, "fixed_small", "VARIANCE"),
    "time_input": Setting(TimeInput, "index", "TIME"),
    "clip": Setting(bool, True),
}
"""By field of `CheckpointSettings`."""
Stated: TypeAlias = Callable[[], object] | FileError
"""How a setting is read from a file, which may raise a FileError; or such an error."""

PROCESSES = ("vp", "sub-vp", "ve", "ve:SIGMA_MIN:SIGMA_MAX:LEVELS", "flow", "flow:T")
"""Values of `process`."""


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    """Settings that a checkpoint lacks, or that override it; None leaves it to the checkpoint.

    Attributes:
        network: `FILE.py:NAME`, the user's callable that builds the network.
        model_flags: for improved-diffusion, guided-diffusion and score_sde: the training's flags in
            the project's spelling, or the name of a published file or configuration.
        weights: "ema" (averaged over the training) or "raw" (last); None takes averaged ones if
            there are any.
        schedule: the noise schedule, such as `linear:1000`.
        process: the forward process, "vp", "sub-vp", "ve" or "flow", with the checkpoint's
            signal-to-noise ratios; or with its own noise levels, which are a schedule,
            "ve:SIGMA_MIN:SIGMA_MAX:LEVELS" or "flow:T".
        prediction: "eps", "x_start", "v", "score", "velocity", "edm" or
            "previous_mean".
        variance: "fixed_small", "fixed_large", "learned_range" or "learned".
        clip: whether the predicted x_start is clamped to the data's range.
        time_input: the network's input for t: "index", "one-based", "fraction", "rescaled-1000",
            "reversed-index", "sigma", "log-sigma", "quarter-log-sigma" or "log-snr".
        data_range: lowest and highest pixel value of the network's input.
        levels: number of levels of a pixel, 2..256.

    Raises:
        InputError: a value is not one of the choices.
    """

    network: str | None = None
    model_flags: str | None = None
    weights: str | None = None
    schedule: str | None = None
    process: str | None = None
    prediction: str | None = None
    variance: str | None = None
    clip: bool | None = None
    time_input: str | None = None
    data_range: tuple[float, float] | None = None
    levels: int | None = None

    def __post_init__(self) -> None:
        """Refuse values that are not among the choices."""
        choices_of = {"weights": WEIGHTS, **{n: s.choices for n, s in SETTINGS.items()}}
        for name, choices in choices_of.items():
            value = getattr(self, name)
            if choices and value is not None and value not in choices:
                raise InputError(f"`{name}={value}`: choose from {', '.join(choices)}")
        name, colon, _ = ("" if self.process is None else self.process).partition(":")
        forms = [form.partition(":")[0] for form in PROCESSES if not colon or ":" in form]
        if self.process is not None and name not in forms:
            raise InputError(f"`process={self.process}`: choose from {', '.join(PROCESSES)}")
        if colon:
            if self.schedule not in (None, self.process):
                raise InputError(
                    f"`process={self.process}`: names noise levels, and `schedule={self.schedule}` "
                    "others; leave one of them out"
                )
            object.__setattr__(self, "schedule", self.process)

    @property
    def other_process(self) -> Process | None:
        """The process that replaces the checkpoint's, with the same signal-to-noise ratios."""
        has_name = self.process is not None and ":" not in self.process
        return Process(self.process) if has_name and self.process else None

    __repr__ = short_repr

    def data_range_over(self, own: DataRange) -> DataRange:
        """The data range with `data_range` and `levels` in place of the checkpoint's own.

        Raises:
            InputError: the range or the number of levels is invalid.
        """
        low, high = (own.low, own.high) if self.data_range is None else self.data_range
        levels = own.levels if self.levels is None else self.levels
        return DataRange(float(low), float(high), levels)


def parameters(values: Mapping[str, object]) -> list[str]:
    """Settings in the form of messages: `name=value`, in backticks."""
    return [f"`{name}={shlex.quote(str(value))}`" for name, value in values.items()]


class MissingSettingsError(InputError):
    """A checkpoint of a known family needs settings that it does not state.

    Attributes:
        family: as in `Checkpoint.family`; `load_checkpoint` sets it.
        path: the file.
        weights: the file's tensors by name.
        missing: missing fields of `CheckpointSettings` -> an example or placeholder of the value,
            such as `linear:T:START:END`.
        config: the U-Net, if the weights determine one.
    """

    family = ""

    def __init__(
        self,
        problem: str,
        missing: Mapping[str, object],
        *,
        path: Path,
        weights: Mapping[str, Tensor],
        config: UNetConfig | None = None,
        hint: str = "",
    ) -> None:
        words = [s for n, s in SETTINGS.items() if missing.get(n) == s.placeholder]
        meant = "; ".join(f"{s.placeholder}: {', '.join(s.choices)}" for s in words)
        super().__init__(
            f"{problem}; pass {' '.join(parameters(missing))}"
            + (" (or `clip=False`)" if "clip" in missing else "")
            + ", or whatever it was trained with"
            + (f" ({hint or meant})" if hint or meant else "")
        )
        self.path = path
        self.weights = weights
        self.missing = dict(missing)
        self.config = config


@dataclasses.dataclass(frozen=True, eq=False)
class CheckpointFile:
    """What the reader of a family is given.

    Attributes:
        path: the file or folder.
        source: the path or hub id as the user gave it.
        settings: the user's settings.
        content: the content of a file of weights; empty if the family reads its files itself.
        state: the state dict in it; None likewise, and for the user's own network.
        tables: the tables of a schedule in it.
        sha256: of the file of weights of the user's own network; empty where their code loads
            the weights, and for any other family.
    """

    path: Path
    source: str
    settings: CheckpointSettings
    content: Mapping[str, object] = dataclasses.field(default_factory=dict)
    state: StateDict | None = None
    tables: ScheduleTables = NO_TABLES
    sha256: str = ""

    @property
    def weights(self) -> dict[str, Tensor]:
        """The tensors of the state dict.

        Raises:
            InputError: it holds something else.
        """
        assert self.state is not None
        return only_tensors(self.state.weights, source=str(self.path))

    def settle(
        self,
        stated: Mapping[str, Stated],
        *,
        examples: Mapping[str, object] | None = None,
        **about: Any,  # noqa: ANN401 - of several types
    ) -> tuple[dict[str, Any], list[str]]:
        """Settings as the file states them, or else the user, and notes on the latter.

        A contradiction is left to `Checkpoint.with_conventions`, except for the variance, which the
        network's outputs depend on: the user's replaces that of the file.

        Args:
            stated: by name in `SETTINGS`.
            examples: in place of those in `SETTINGS`.
            about: further arguments of the error.

        Raises:
            MissingSettingsError: neither the file nor the user states one of them.
        """
        values: dict[str, Any] = {}
        missing: dict[str, FileError] = {}
        notes: dict[str, list[str]] = {}
        for name, read in stated.items():
            given = getattr(self.settings, name)
            try:
                if isinstance(read, FileError):
                    raise read
                values[name] = read()
                if name != "variance" or given in (None, values[name]):
                    continue
                why = f"overrides {values[name]}"
            except FileError as error:
                if given is None:
                    missing[name] = error
                    continue
                why = f"is used: {error}"
            notes.setdefault(why, []).extend(parameters({name: given}))
            if name == "schedule":
                beside = None if self.tables is NO_TABLES else self.tables.schedule
                values[name] = read_schedule(given, beside)
            else:
                values[name] = SETTINGS[name].kind(given)
        if missing:
            likely: dict[str, object] = {"schedule": self.tables.example, **(examples or {})}
            asked = {name: likely.get(name, SETTINGS[name].example) for name in missing}
            source, *_ = (error.source for error in missing.values())
            problems = "; ".join(dict.fromkeys(error.problem for error in missing.values()))
            raise MissingSettingsError(f"{source}: {problems}", asked, path=self.path, **about)
        return values, [f"{' '.join(shown)} {why}" for why, shown in notes.items()]


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of checkpoints: files that are recognized and read in one way.

    A state dict is recognized by the names of its weights, anything else by its files.

    Attributes:
        name: as in `Checkpoint.family`.
        read: returns the checkpoint; its family and source, and for a state dict the file, are
            filled in afterwards. It raises MissingSettingsError for a setting that is needed.
        projects: whose files they are, unless the name says it.
        names: groups of names of weights; a state dict of this family has all names of a group.
        find: from a path to the path to read; None if it is not of this family.
        prepare: from the content of a file, its path and `weights` to a content in which every
            state dict has names.
        takes_flags: whether `model_flags` complete it.
        stated_by: where its schedule is stated, and the remedy if tables in the file contradict it.
    """

    name: str
    read: Callable[[CheckpointFile], Checkpoint]
    projects: str = ""
    names: tuple[tuple[str, ...], ...] = ()
    find: Callable[[Path], Path | None] | None = None
    prepare: Callable[[Mapping[str, object], Path, str | None], Mapping[str, object]] | None = None
    takes_flags: bool = False
    stated_by: tuple[str, str] = ("its files say", "correct them")

    def has(self, names: Mapping[str, object]) -> bool:
        """Whether a state dict has the names of this family."""
        return any(set(group) <= names.keys() for group in self.names)
