"""The schedule and the conventions in the scheduler file of a diffusers folder."""

import dataclasses
from pathlib import Path

from ddpmbench.errors import InputError
from ddpmbench.inputs.checkpoints.fields import Fields
from ddpmbench.inputs.checkpoints.weights import naming
from ddpmbench.process.prediction import Prediction, Variance
from ddpmbench.process.schedule import NoiseSchedule

# What the classes of diffusers take where a file lacks the field.
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


@dataclasses.dataclass(frozen=True)
class Conventions:
    """What a scheduler file says of the process.

    Attributes:
        schedule: the noise schedule.
        prediction: what the network outputs.
        variance: the variance of the reverse process.
        clip: whether the predicted x_start is clamped to the data's range.
        notes: what the file did not say and an option settled, a line each.
    """

    schedule: NoiseSchedule
    prediction: Prediction
    variance: Variance
    clip: bool
    notes: tuple[str, ...]


class UnsaidError(InputError):
    """A scheduler's file does not say something; `options`, each with a value to begin with, do."""

    def __init__(self, message: InputError | str, *options: str) -> None:
        super().__init__(str(message))
        self.options = options


def read_scheduler(
    path: Path, *, prediction: Prediction | None = None, variance: Variance | None = None
) -> Conventions:
    """What a `scheduler_config.json` says.

    Args:
        path: the file.
        prediction: what the network outputs, where the file does not say.
        variance: the variance of the reverse process, where the file does not say.

    Raises:
        UnsaidError: the file does not say something that an option would settle.
        InputError: it says something this package cannot express; the line names the field.

    Source: the documented defaults of diffusers' DDPMScheduler. Only its betas are taken, never
    its variances, which are in float32 and clamped.
    """
    fields = Fields.read(path, _DEFAULTS, _OLD_NAMES)
    name = fields.text("_class_name")
    if name not in _DDPM + _OTHER_SAMPLERS:
        raise fields.refusal("_class_name", "not a scheduler of a DDPM that can be read")
    fields.require("rescale_betas_zero_snr", (False,))
    fields.require("thresholding", (False, None))
    notes: list[str] = []
    clip = fields.flag("clip_sample")
    if name not in _DDPM and "clip_sample" not in fields.given:
        notes.append(f"x_start is clipped: the {name} does not say (--no-clip to change it)")
    if clip and fields.number("clip_sample_range") != 1.0:
        raise fields.refusal("clip_sample_range", "x_start can only be clipped to [-1, 1]")
    if name in _DDPM and variance is None:
        kind = _variance(fields)
    elif name in _DDPM and variance is not None:
        kind = variance
        if _VARIANCES.get(fields.text("variance_type")) is not kind:
            notes.append(f"--variance {kind} overrides {fields.text('variance_type')}")
    elif variance is not None:
        kind = variance
        notes.append(f"--variance {variance}: the {name} does not say")
    else:
        raise UnsaidError(
            f"{path}: a {name} does not say the variance of the reverse process; settle it with "
            "--variance fixed_small|fixed_large|learned_range|learned",
            "--variance fixed_small",
        )
    return Conventions(
        schedule=_schedule(fields),
        prediction=_prediction(fields, prediction),
        variance=kind,
        clip=clip,
        notes=tuple(notes),
    )


def _schedule(fields: Fields) -> NoiseSchedule:
    num_timesteps = fields.integer("num_train_timesteps")
    if num_timesteps < 1:
        raise fields.refusal("num_train_timesteps", "must be at least 1")
    start, end = fields.number("beta_start"), fields.number("beta_end")
    with naming(fields.path):
        if fields.values["trained_betas"] is not None:
            betas = fields.numbers("trained_betas")
            if len(betas) != num_timesteps:
                raise fields.refusal(
                    "trained_betas",
                    f"{len(betas)} of them, but num_train_timesteps is {num_timesteps}",
                )
            return NoiseSchedule.from_betas(betas, name="trained_betas")
        match fields.text("beta_schedule"):
            case "linear":
                return NoiseSchedule.linear(num_timesteps, beta_start=start, beta_end=end)
            case "scaled_linear":
                return NoiseSchedule.scaled_linear(num_timesteps, beta_start=start, beta_end=end)
            case "squaredcos_cap_v2":
                return NoiseSchedule.cosine(num_timesteps)
            case "sigmoid":
                return NoiseSchedule.sigmoid_betas(num_timesteps, beta_start=start, beta_end=end)
    raise fields.refusal(
        "beta_schedule", "only linear, scaled_linear, squaredcos_cap_v2 and sigmoid can be read"
    )


def _prediction(fields: Fields, prediction: Prediction | None) -> Prediction:
    # Until diffusers 0.12 the field was a flag under this name.
    if "prediction_type" not in fields.given and fields.values.get("predict_epsilon") is False:
        return Prediction.X_START
    found = _PREDICTIONS.get(fields.text("prediction_type"), prediction)
    if found is None:
        choices = "--prediction eps|x_start|v|previous_mean"
        refusal = fields.refusal("prediction_type", f"not known; settle it with {choices}")
        raise UnsaidError(refusal, "--prediction eps")
    return found


def _variance(fields: Fields) -> Variance:
    kind = fields.text("variance_type")
    if kind == "learned":
        refusal = fields.refusal(
            "variance_type",
            "diffusers takes the output for the variance, ddpmbench for its logarithm; "
            "--variance learned or learned_range says how it was trained",
        )
        raise UnsaidError(refusal, "--variance learned_range")
    found = _VARIANCES.get(kind)
    if found is None:
        choices = "--variance fixed_small|fixed_large|learned_range"
        refusal = fields.refusal("variance_type", f"not known; settle it with {choices}")
        raise UnsaidError(refusal, "--variance fixed_small")
    return found
