"""The schedule and the conventions in the scheduler file of a diffusers folder."""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from ddpmbench.checkpoints.schedule_tables import ScheduleTables
from ddpmbench.checkpoints.schedules import read_schedule
from ddpmbench.checkpoints.settings import CheckpointSettings
from ddpmbench.checkpoints.weights import naming
from ddpmbench.diffusion.process import Prediction, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError


def read_object(path: Path) -> dict[str, object]:
    """The JSON object in a file.

    Raises:
        InputError: the file cannot be read, or holds no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: broken JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds a JSON {type(value).__name__}, not an object")
    return value


@dataclasses.dataclass(frozen=True)
class Fields:
    """A file's fields, completed by the defaults of the class that wrote it.

    Attributes:
        path: the file, named in every error.
        values: the fields by name.
        given: the names the file itself holds.
    """

    path: Path
    values: dict[str, object]
    given: frozenset[str]

    @classmethod
    def read(cls, path: Path, defaults: Mapping[str, object], old_names: Mapping[str, str]) -> Self:
        """Read a file; a field under an old name counts as the one it became."""
        found = read_object(path)
        renamed = {old_names.get(name, name): value for name, value in found.items()}
        return cls(path, {**defaults, **renamed}, frozenset(renamed))

    def refusal(self, name: str, remedy: str) -> InputError:
        """The error that names a field, its value and what to do."""
        shown = json.dumps(self.values.get(name))
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return InputError(f"{self.path}: {name} = {shown}: {remedy}")

    def require(self, name: str, allowed: tuple[object, ...]) -> None:
        """Refuse a field that holds anything but one of the values allowed."""
        if self.values.get(name) not in allowed:
            choices = " or ".join(json.dumps(value) for value in allowed)
            raise self.refusal(name, f"only {choices} can be read")

    def integer(self, name: str) -> int:
        """A field that is a whole number of at least 0."""
        value = self.values[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.refusal(name, "must be a whole number")
        return value

    def number(self, name: str) -> float:
        """A field that is a number."""
        value = self.values[name]
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.refusal(name, "must be a number")
        if not -1e9 < value < 1e9:
            raise self.refusal(name, "must be a finite number of a sensible size")
        return float(value)

    def flag(self, name: str) -> bool:
        """A field that is true or false."""
        value = self.values[name]
        if not isinstance(value, bool):
            raise self.refusal(name, "must be true or false")
        return value

    def text(self, name: str) -> str:
        """A field that is a string."""
        value = self.values[name]
        if not isinstance(value, str):
            raise self.refusal(name, "must be a string")
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """A field that is a list of whole numbers."""
        value = self.values[name]
        if not isinstance(value, list | tuple) or not all(type(item) is int for item in value):
            raise self.refusal(name, "must be a list of whole numbers")
        return tuple(value)

    def numbers(self, name: str) -> tuple[float, ...]:
        """A field that is a list of numbers."""
        value = self.values[name]
        if not isinstance(value, list) or not all(type(item) in (int, float) for item in value):
            raise self.refusal(name, "must be a list of numbers")
        return tuple(value)

    def texts(self, name: str) -> tuple[str, ...]:
        """A field that is a list of strings."""
        value = self.values[name]
        if not isinstance(value, list | tuple) or not all(type(item) is str for item in value):
            raise self.refusal(name, "must be a list of strings")
        return tuple(value)


DEFAULT = "diffusers' default"
"""Who says what a file lacks, where the library has one value for it."""

# What the classes of diffusers take where a file lacks the field; nothing is taken so that changes
# the number, unless the field did not exist when the file was written.
_DEFAULTS: dict[str, object] = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "variance_type": "fixed_small",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "prediction_type": "epsilon",
    "thresholding": False,
    "rescale_betas_zero_snr": False,
}
_OLD_NAMES = {"timesteps": "num_train_timesteps", "clip_predicted_image": "clip_sample"}
_DDPM = ("DDPMScheduler", "GaussianDDPMScheduler", "DDPMParallelScheduler")
# Samplers of the same forward process, with the same fields and defaults for its variances.
_OTHER_SAMPLERS = (
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
)
_PREDICTIONS = {
    "epsilon": Prediction.EPSILON,
    "sample": Prediction.X_START,
    "v_prediction": Prediction.V,
}
_VARIANCES = {
    "fixed_small": Variance.FIXED_SMALL,
    "fixed_small_log": Variance.FIXED_SMALL,
    "fixed_large": Variance.FIXED_LARGE,
    "fixed_large_log": Variance.FIXED_LARGE,
    "learned_range": Variance.LEARNED_RANGE,
}


_STEPS = "num_train_timesteps"
# Fields that came when `prediction_type` had, or later: every file written since has them.
_SINCE_PREDICTION_TYPE = {
    *("clip_sample_range", "dynamic_thresholding_ratio", "rescale_betas_zero_snr"),
    *("sample_max_value", "thresholding", "timestep_spacing"),
}
_PREDICTION_TYPE_SINCE = (0, 12)
"""The version from which on a file of diffusers always has `prediction_type`."""
_REMEDIES = {
    "schedule": "--schedule names the one to evaluate",
    "prediction": "settle it with --prediction eps|x_start|v|previous_mean",
    "variance": "settle it with --variance fixed_small|fixed_large|learned_range|learned",
    "clip": "--clip or --no-clip says whether x_start is clamped to the data's range",
}


@dataclasses.dataclass(frozen=True)
class Conventions:
    """What a scheduler file says of the process.

    Attributes:
        schedule: the noise schedule.
        prediction: what the network outputs.
        variance: the variance of the reverse process.
        clip: whether the predicted x_start is clamped to the data's range.
        notes: what the file did not say and an option or a default settled, a line each.
        sources: who says what of them the file does not say.
    """

    schedule: NoiseSchedule
    prediction: Prediction
    variance: Variance
    clip: bool
    notes: tuple[str, ...] = ()
    sources: dict[str, str] = dataclasses.field(default_factory=dict)


class UnsaidError(InputError):
    """A scheduler's file does not say something; `options`, each with a value to begin with, do."""

    def __init__(self, message: str | Exception, *options: str) -> None:
        """Keep the options that settle it beside the line."""
        super().__init__(str(message))
        self.options = options


def read_scheduler(path: Path, settings: CheckpointSettings) -> Conventions:
    """What `scheduler_config.json` says of the process.

    An option comes before a field that is missing, or that this package cannot express.

    Args:
        path: the file.
        settings: the options; one that contradicts a field that can be read is left to whoever
            calls, but for the variance, which the network's outputs depend on.

    Raises:
        UnsaidError: the file does not say something, or something that cannot be expressed, and
            the option that settles it is not given.
        InputError: it is of no scheduler that can be read.

    Source: the documented defaults of diffusers' DDPMScheduler. Only its betas are taken, never
    its variances, which are in float32 and clamped.
    """
    fields = Fields.read(path, _DEFAULTS, _OLD_NAMES)
    name = fields.values["_class_name"]
    if name not in _DDPM + _OTHER_SAMPLERS:
        return _of_another_class(fields, settings)
    readers: dict[str, Callable[[Fields], object]] = {
        "schedule": _schedule,
        "prediction": _prediction,
        "variance": _variance,
        "clip": _clip,
    }
    values: dict[str, object] = {}
    notes: list[str] = []
    unsaid: dict[str, str] = {}
    for setting, read in readers.items():
        try:
            values[setting] = read(fields)
        except InputError as error:
            option = getattr(settings, setting)
            if option is None:
                unsaid[setting] = str(error)
                continue
            values[setting] = _given(setting, option)
            notes.append(f"{_shown(setting, option)} is taken: {error}")
    if unsaid:
        raise _unsaid(fields, unsaid)
    stated = Conventions(**values)  # type: ignore[arg-type]
    if settings.variance is not None and settings.variance != stated.variance:
        notes.append(f"--variance {settings.variance} overrides {fields.text('variance_type')}")
        stated = dataclasses.replace(stated, variance=Variance(settings.variance))
    sources = {}
    if settings.prediction is None and _lacks_prediction(fields):
        sources["prediction"] = DEFAULT
        notes.append(f"prediction {stated.prediction}: {DEFAULT}, {path.name} does not say")
    if settings.clip is None and "clip_sample" not in fields.given:
        sources["clip"] = DEFAULT
        notes.append(f"x_start is clipped: the {name} does not say (--no-clip to change it)")
    return dataclasses.replace(stated, notes=tuple(notes), sources=sources)


def _of_another_class(fields: Fields, settings: CheckpointSettings) -> Conventions:
    """As the options say, if they say all of it."""
    if None in (settings.schedule, settings.prediction, settings.variance):
        raise fields.refusal(
            "_class_name",
            "not a scheduler of a DDPM that can be read; if the model is one, say how it was "
            "trained with --schedule, --prediction and --variance",
        )
    shown = " ".join(
        _shown(name, getattr(settings, name)) for name in ("schedule", "prediction", "variance")
    )
    return Conventions(
        schedule=read_schedule(str(settings.schedule)),
        prediction=Prediction(str(settings.prediction)),
        variance=Variance(str(settings.variance)),
        clip=True,
        notes=(
            f"{fields.path} is of a {fields.values['_class_name']}; as the options say: {shown}",
        ),
        sources={"clip": DEFAULT},
    )


def _unsaid(fields: Fields, unsaid: dict[str, str]) -> UnsaidError:
    """The error for all that is missing or cannot be read, with the options that settle it."""
    steps = {n: v for n in fields.given & {_STEPS} if type(v := fields.values[n]) is int and v > 1}
    examples = {
        "schedule": ScheduleTables(steps=steps).example,
        "prediction": "--prediction eps",
        "variance": "--variance fixed_small",
        "clip": "--clip",
    }
    if str(fields.values.get("variance_type")).startswith("learned"):
        examples["variance"] = "--variance learned_range"
    options = [examples[setting] for setting in unsaid]
    first, *others = unsaid.values()
    if not others:
        return UnsaidError(f"{first}; {_REMEDIES[next(iter(unsaid))]}", *options)
    rest = "".join(f"; {text.removeprefix(f'{fields.path}: ')}" for text in others)
    return UnsaidError(
        f"{first}{rest}; say how it was trained: {' '.join(options)}, or whatever it was", *options
    )


def _given(setting: str, option: object) -> object:
    match setting:
        case "schedule":
            return read_schedule(str(option))
        case "prediction":
            return Prediction(str(option))
        case "variance":
            return Variance(str(option))
    return option


def _shown(setting: str, option: object) -> str:
    if setting == "clip":
        return "--clip" if option else "--no-clip"
    return f"--{setting} {option}"


def _require_given(fields: Fields, *names: str) -> None:
    missing = [name for name in names if name not in fields.given]
    if missing:
        raise InputError(f"{fields.path}: does not say {', '.join(missing)}")


def _schedule(fields: Fields) -> NoiseSchedule:
    fields.require("rescale_betas_zero_snr", (False, None))
    trained = fields.values["trained_betas"] is not None
    if not trained:
        _require_given(fields, "num_train_timesteps", "beta_schedule")
    with naming(fields.path):
        if trained:
            betas = fields.numbers("trained_betas")
            total = fields.values["num_train_timesteps"]
            if "num_train_timesteps" in fields.given and len(betas) != total:
                raise fields.refusal(
                    "trained_betas", f"{len(betas)} of them, but num_train_timesteps is {total}"
                )
            return NoiseSchedule.from_betas(betas, name="trained_betas")
        num_timesteps = fields.integer("num_train_timesteps")
        if num_timesteps < 1:
            raise fields.refusal("num_train_timesteps", "must be at least 1")
        name = fields.text("beta_schedule")
        if name == "squaredcos_cap_v2":
            return NoiseSchedule.cosine(num_timesteps)
        if name not in _BY_ENDS:
            raise fields.refusal(
                "beta_schedule",
                "only linear, scaled_linear, squaredcos_cap_v2 and sigmoid can be read",
            )
        _require_given(fields, "beta_start", "beta_end")
        start, end = fields.number("beta_start"), fields.number("beta_end")
        return _BY_ENDS[name](num_timesteps, beta_start=start, beta_end=end)


_BY_ENDS: dict[str, Callable[..., NoiseSchedule]] = {
    "linear": NoiseSchedule.linear,
    "scaled_linear": NoiseSchedule.scaled_linear,
    "sigmoid": NoiseSchedule.sigmoid_betas,
}


def _prediction(fields: Fields) -> Prediction:
    # Until diffusers 0.12 the field was a flag under this name.
    if "prediction_type" not in fields.given and fields.values.get("predict_epsilon") is False:
        return Prediction.X_START
    if _lacks_prediction(fields) and not _is_before_prediction_type(fields):
        raise InputError(f"{fields.path}: does not say prediction_type")
    found = _PREDICTIONS.get(fields.text("prediction_type"))
    if found is None:
        raise fields.refusal("prediction_type", "not known")
    return found


def _lacks_prediction(fields: Fields) -> bool:
    return fields.given.isdisjoint({"prediction_type", "predict_epsilon"})


def _is_before_prediction_type(fields: Fields) -> bool:
    """Whether the file was written when every network of diffusers predicted the noise."""
    if fields.given.isdisjoint({"beta_schedule", "trained_betas"}):
        return False  # no diffusers has written it
    if fields.text("_class_name") == "GaussianDDPMScheduler":
        return True
    version = re.match(r"(\d+)\.(\d+)", str(fields.values.get("_diffusers_version", "")))
    if version is not None:
        return (int(version[1]), int(version[2])) < _PREDICTION_TYPE_SINCE
    return fields.given.isdisjoint(_SINCE_PREDICTION_TYPE)


def _variance(fields: Fields) -> Variance:
    name = fields.text("_class_name")
    if name not in _DDPM:
        raise InputError(
            f"{fields.path}: a {name} does not say the variance of the reverse process"
        )
    _require_given(fields, "variance_type")
    kind = fields.text("variance_type")
    if kind == "learned":
        raise fields.refusal(
            "variance_type",
            "diffusers takes the output for the variance, ddpmbench for its logarithm",
        )
    found = _VARIANCES.get(kind)
    if found is None:
        raise fields.refusal("variance_type", "not known")
    return found


def _clip(fields: Fields) -> bool:
    fields.require("thresholding", (False, None))
    if fields.text("_class_name") in _DDPM:
        _require_given(fields, "clip_sample")
    clip = fields.flag("clip_sample")
    if clip and fields.number("clip_sample_range") != 1.0:
        raise fields.refusal("clip_sample_range", "x_start can only be clipped to [-1, 1]")
    return clip
