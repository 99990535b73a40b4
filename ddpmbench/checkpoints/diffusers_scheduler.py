"""The schedule and the conventions in a `scheduler_config.json` of diffusers."""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec
from torch import Tensor

from ddpmbench.checkpoints.schedule_tables import ScheduleTables
from ddpmbench.checkpoints.settings import CheckpointFile, Stated
from ddpmbench.checkpoints.weights import AGAIN, FileError, naming
from ddpmbench.diffusion.process import Prediction, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError

T = TypeVar("T")


def read_object(path: Path) -> dict[str, object]:
    """The JSON object in a file.

    Raises:
        InputError: the file cannot be read, or does not hold a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(path, f"cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise FileError(path, f"broken JSON ({error}); {AGAIN}") from error
    if not isinstance(value, dict):
        raise FileError(path, f"holds a JSON {type(value).__name__}, not an object; {AGAIN}")
    return value


@dataclasses.dataclass(frozen=True)
class Fields:
    """The fields of a configuration, completed by defaults of the class that wrote it.

    Attributes:
        path: the file, named in every error.
        values: the fields by name.
        given: the names that the file itself states.
        remedy: ends every refusal.
    """

    path: Path
    values: dict[str, object]
    given: frozenset[str]
    remedy: str = ""

    @classmethod
    def read(
        cls,
        path: Path,
        defaults: Mapping[str, object],
        old_names: Mapping[str, str],
        *,
        remedy: str = "",
    ) -> Self:
        """Read a file; old names of fields are replaced by current ones."""
        renamed = {old_names.get(name, name): value for name, value in read_object(path).items()}
        return cls(path, {**defaults, **renamed}, frozenset(renamed), remedy)

    def refusal(self, name: str, problem: str) -> FileError:
        """An error that names a field, its value and the problem."""
        shown = json.dumps(self.values.get(name))
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return FileError(self.path, f"{name} = {shown}: {problem}{self.remedy}")

    def require(self, name: str, allowed: tuple[object, ...]) -> None:
        """Refuse a field with another value than those allowed."""
        if self.values.get(name) not in allowed:
            choices = " or ".join(json.dumps(value) for value in allowed)
            raise self.refusal(name, f"only {choices} can be read")

    def require_given(self, *names: str) -> None:
        """Refuse a file without one of these fields."""
        if missing := [name for name in names if name not in self.given]:
            raise FileError(self.path, f"does not say {', '.join(missing)}")

    def get(self, name: str, kind: type[T]) -> T:
        """A field of this type."""
        try:
            return msgspec.convert(self.values[name], kind)
        except msgspec.ValidationError as error:
            raise self.refusal(name, str(error).replace("`", "")) from error


DEFAULT = "diffusers' default"
"""The source of a field that the file lacks and the library has a default for."""

# The defaults of diffusers' classes. A field that changes the bound is required nevertheless,
# unless it did not exist when the file was written.
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
# Schedulers of the same forward process, with the same fields and defaults for its variances.
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
PREDICTIONS = {
    "epsilon": Prediction.EPSILON,
    "sample": Prediction.X_START,
    "v_prediction": Prediction.V,
}
VARIANCES = {
    "fixed_small": Variance.FIXED_SMALL,
    "fixed_small_log": Variance.FIXED_SMALL,
    "fixed_large": Variance.FIXED_LARGE,
    "fixed_large_log": Variance.FIXED_LARGE,
    "learned_range": Variance.LEARNED_RANGE,
}


# Fields introduced with or after `prediction_type`; every file since then has them.
_SINCE_PREDICTION_TYPE = {
    *("clip_sample_range", "dynamic_thresholding_ratio", "rescale_betas_zero_snr"),
    *("sample_max_value", "thresholding", "timestep_spacing"),
}
_PREDICTION_TYPE_SINCE = (0, 12)
"""The version of diffusers that introduced `prediction_type`."""


_ASKED = ("schedule", "prediction", "variance")
"""Settings without a default, if no scheduler states them."""


def read_scheduler(
    path: Path, file: CheckpointFile, *, weights: Mapping[str, Tensor]
) -> dict[str, Any]:
    """The schedule, the conventions, notes and sources, from `scheduler_config.json`.

    A setting replaces a field that is missing or that this package cannot express. Without the
    file the settings must state everything but the clipping.

    Args:
        path: of `scheduler_config.json`.
        file: of the weights.
        weights: its tensors.

    Raises:
        MissingSettingsError: a field is missing or cannot be expressed, and its setting is not
            given.
        InputError: its scheduler is not supported.

    Source: the documented defaults of diffusers' DDPMScheduler. Its betas are read, never its
    variances, which are clamped and in float32.
    """
    settings, problem, hint = file.settings, None, ""
    fields = nothing = Fields(path, _DEFAULTS, frozenset())
    if path.is_file():
        fields = Fields.read(path, _DEFAULTS, _OLD_NAMES)
    else:
        problem = FileError(path, "missing, so nothing says the noise schedule")
        hint = "or copy the file there from where the model came"
    if fields.values["_class_name"] not in _DDPM + _OTHER_SAMPLERS:
        kind = "not a scheduler of a DDPM that can be read"
        problem, fields = fields.refusal("_class_name", kind), nothing
        if any(getattr(settings, name) is None for name in _ASKED):
            remedy = "pass `schedule`, `prediction` and `variance` as it was trained"
            raise InputError(f"{problem}; if the model is one, {remedy}")
    stated: dict[str, Stated] = {n: functools.partial(r, fields) for n, r in _READERS.items()}
    if problem is not None:
        stated = {**dict.fromkeys(_ASKED, problem), "clip": lambda: True}
    examples, steps = {}, fields.values["num_train_timesteps"]
    if "num_train_timesteps" in fields.given and type(steps) is int and steps > 1:
        examples["schedule"] = ScheduleTables(steps={"num_train_timesteps": steps}).example
    if str(fields.values["variance_type"]).startswith("learned"):
        examples["variance"] = "learned_range"
    values, notes = file.settle(stated, weights=weights, examples=examples, hint=hint)
    sources = {}
    if settings.prediction is None and _lacks_prediction(fields):
        sources["prediction"] = DEFAULT
        notes.append(f"prediction {values['prediction']}: {DEFAULT}, {path.name} does not say")
    if settings.clip is None and "clip_sample" not in fields.given:
        sources["clip"] = DEFAULT
        notes.append(f"x_start is clipped: {DEFAULT}, {path.name} does not say (or `clip=False`)")
    return {**values, "notes": tuple(notes), "sources": sources}


def _schedule(fields: Fields) -> NoiseSchedule:
    fields.require("rescale_betas_zero_snr", (False, None))
    if fields.values["trained_betas"] is not None:
        betas = fields.get("trained_betas", tuple[float, ...])
        total = fields.values["num_train_timesteps"]
        if "num_train_timesteps" in fields.given and len(betas) != total:
            raise fields.refusal(
                "trained_betas", f"{len(betas)} of them, but num_train_timesteps is {total}"
            )
        with naming(fields.path):
            return NoiseSchedule.from_betas(betas, name="trained_betas")
    fields.require_given("num_train_timesteps", "beta_schedule")
    num_timesteps, name = fields.get("num_train_timesteps", int), fields.get("beta_schedule", str)
    if num_timesteps < 1:
        raise fields.refusal("num_train_timesteps", "must be at least 1")
    with naming(fields.path):
        if name == "squaredcos_cap_v2":
            return NoiseSchedule.cosine(num_timesteps)
        if name not in _BY_ENDS:
            choices = ", ".join(_BY_ENDS)
            raise fields.refusal(
                "beta_schedule", f"only {choices} and squaredcos_cap_v2 can be read"
            )
        fields.require_given("beta_start", "beta_end")
        start, end = fields.get("beta_start", float), fields.get("beta_end", float)
        return _BY_ENDS[name](num_timesteps, beta_start=start, beta_end=end)


_BY_ENDS: dict[str, Callable[..., NoiseSchedule]] = {
    "linear": NoiseSchedule.linear,
    "scaled_linear": NoiseSchedule.scaled_linear,
    "sigmoid": NoiseSchedule.sigmoid_betas,
}


def _prediction(fields: Fields) -> Prediction:
    # Before diffusers 0.12 the field was a flag of this name.
    if "prediction_type" not in fields.given and fields.values.get("predict_epsilon") is False:
        return Prediction.X_START
    if _lacks_prediction(fields) and not _is_before_prediction_type(fields):
        fields.require_given("prediction_type")
    if (prediction := PREDICTIONS.get(fields.get("prediction_type", str))) is None:
        raise fields.refusal("prediction_type", "not known")
    return prediction


def _lacks_prediction(fields: Fields) -> bool:
    return fields.given.isdisjoint({"prediction_type", "predict_epsilon"})


def _is_before_prediction_type(fields: Fields) -> bool:
    """Whether the file dates from when every network of diffusers predicted the noise."""
    if fields.given.isdisjoint({"beta_schedule", "trained_betas"}):
        return False  # not written by any version of diffusers
    if fields.get("_class_name", str) == "GaussianDDPMScheduler":
        return True
    version = re.match(r"(\d+)\.(\d+)", str(fields.values.get("_diffusers_version", "")))
    if version is not None:
        return (int(version[1]), int(version[2])) < _PREDICTION_TYPE_SINCE
    return fields.given.isdisjoint(_SINCE_PREDICTION_TYPE)


def _variance(fields: Fields) -> Variance:
    name = fields.get("_class_name", str)
    if name not in _DDPM:
        raise FileError(fields.path, f"a {name} does not say the variance of the reverse process")
    fields.require_given("variance_type")
    kind = fields.get("variance_type", str)
    if kind == "learned":
        raise fields.refusal(
            "variance_type",
            "diffusers takes the output for the variance, ddpmbench for its logarithm",
        )
    if (variance := VARIANCES.get(kind)) is None:
        raise fields.refusal("variance_type", "not known")
    return variance


def _clip(fields: Fields) -> bool:
    fields.require("thresholding", (False, None))
    if fields.get("_class_name", str) in _DDPM:
        fields.require_given("clip_sample")
    clip = fields.get("clip_sample", bool)
    if clip and fields.get("clip_sample_range", float) != 1.0:
        raise fields.refusal("clip_sample_range", "x_start can only be clipped to [-1, 1]")
    return clip


_READERS = {"schedule": _schedule, "prediction": _prediction, "variance": _variance, "clip": _clip}
