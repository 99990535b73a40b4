"""The samplers by name, with their settings."""

import dataclasses
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import torch

from ddpmbench.diffusion.model import Checkpoint, ModelOutput
from ddpmbench.diffusion.probability_flow import Solver
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError, number, one_of, positive_number, whole_number
from ddpmbench.records import short_repr
from ddpmbench.samples.ancestral import AddedNoise as AddedNoise
from ddpmbench.samples.ancestral import AncestralSampler, DdimSampler
from ddpmbench.samples.chain import SAMPLE_DRAW, Chain
from ddpmbench.samples.chain import Sampler as Sampler
from ddpmbench.samples.langevin import LangevinSampler, PredictorCorrectorSampler
from ddpmbench.samples.solvers import DpmSolverSampler, OdeSampler

SETTINGS: dict[str, dict[str, Any]] = {
    "ancestral": {"added_noise": AddedNoise.INNER},
    "ddim": {"eta": 0.0},
    "langevin": {"langevin_steps": 5, "step_size": 0.062},
    "predictor-corrector": {"langevin_steps": 1, "snr": 0.16},
    "ode": {"solver": Solver.HEUN, "solver_steps": None},
    "dpm-solver++": {"solver_steps": None},
}
"""The settings of each sampler, with their defaults."""
_SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ancestral": AncestralSampler,
    "ddim": DdimSampler,
    "langevin": LangevinSampler,
    "predictor-corrector": PredictorCorrectorSampler,
    "ode": OdeSampler,
    "dpm-solver++": DpmSolverSampler,
}
USES_VARIANCE = ("ancestral", "predictor-corrector")
"""Samplers that take the checkpoint's variance."""
_MOST_STEPS = 100_000


@dataclasses.dataclass(frozen=True)
class SamplerChoice:
    """A sampler and its settings; None is the sampler's default.

    | method | class | network evaluations per sample, with T timesteps |
    |---|---|---|
    | ancestral | `AncestralSampler` | T |
    | ddim | `DdimSampler` | T |
    | langevin | `LangevinSampler` | L T + 1 |
    | predictor-corrector | `PredictorCorrectorSampler` | (L + 1) T |
    | ode | `OdeSampler` | K N + 1, K = 2 of Heun's method and 4 of rk4 |
    | dpm-solver++ | `DpmSolverSampler` | N + 1 |

    Attributes:
        method: the sampler.
        added_noise: ancestral: at which timesteps noise is added; by default all but the last.
        eta: ddim: amount of noise; 0, the default, adds none, 1 that of the posterior.
        langevin_steps: langevin, predictor-corrector: L, Langevin steps at each timestep; by
            default 5 and 1.
        step_size: langevin: rho, the step alpha over sigma^2, which is epsilon / sigma_min^2 of
            Song & Ermon 2020; by default 0.062, theirs for CIFAR-10.
        snr: predictor-corrector: r, the signal-to-noise ratio of a Langevin step, at most 1;
            by default 0.16.
        solver: ode: the Runge-Kutta method; by default Heun's.
        solver_steps: ode, dpm-solver++: N, steps of an even grid in log sigma from x_T to x_1, for
            which the network is evaluated at fractional timesteps; by default the T - 1 steps
            between the timesteps. rk4 needs it.

    Raises:
        InputError: an unknown sampler, or a setting that it does not have.
    """

    method: str = "ancestral"
    added_noise: AddedNoise | None = None
    eta: float | None = None
    langevin_steps: int | None = None
    step_size: float | None = None
    snr: float | None = None
    solver: Solver | None = None
    solver_steps: int | None = None

    __repr__ = short_repr

    def __post_init__(self) -> None:
        """Refuse settings that the sampler does not have; convert names to members."""
        one_of("sampler", self.method, SETTINGS)
        for field in dataclasses.fields(self)[1:]:
            name, value = field.name, getattr(self, field.name)
            if value is None:
                continue
            object.__setattr__(self, name, _checked(name, value))
            if name not in SETTINGS[self.method]:
                methods = [m for m, settings in SETTINGS.items() if name in settings]
                having = " and ".join(f"`sampler={method}`" for method in methods)
                raise InputError(f"`{name}={value}`: applies only to {having}; leave it out")
        if self.settings.get("solver") is Solver.RK4 and self.solver_steps is None:
            raise InputError(
                f"`solver={Solver.RK4}`: evaluates the network half way between two points of the "
                "grid, which need not be a timestep; choose `solver_steps`"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the sampler by name, with its defaults."""
        defaults = SETTINGS[self.method]
        values = {name: getattr(self, name) for name in defaults}
        return {n: defaults[n] if value is None else value for n, value in values.items()}

    @property
    def record(self) -> dict[str, str | int | float | None]:
        """The settings as records of a result hold them."""
        values = self.settings.items()
        return {name: str(v) if isinstance(v, StrEnum) else v for name, v in values}

    @property
    def is_fractional(self) -> bool:
        """Whether the network is evaluated between timesteps."""
        return self.solver_steps is not None

    def num_evaluations(self, schedule: NoiseSchedule) -> int:
        """Network evaluations per sample."""
        timesteps, settings = schedule.num_timesteps, self.settings
        num_steps = settings.get("solver_steps") or timesteps - 1
        match self.method:
            case "langevin":
                return int(settings["langevin_steps"]) * timesteps + 1
            case "predictor-corrector":
                return (int(settings["langevin_steps"]) + 1) * timesteps
            case "ode":
                return int(settings["solver"].num_stages) * num_steps + 1
            case "dpm-solver++":
                return num_steps + 1
        return timesteps

    def check(self, checkpoint: Checkpoint) -> None:
        """Raise InputError if this sampler does not apply to a model."""
        schedule = checkpoint.schedule
        if checkpoint.schedule.is_continuous:
            raise InputError(
                "`timesteps=continuous`: is a limit of the bound, which has no sampler; choose a "
                "number of timesteps"
            )
        is_whole = schedule.num_timesteps == schedule.num_original_timesteps
        if self.is_fractional and not (is_whole or schedule.trained is not None):
            raise InputError(
                f"`solver_steps={self.solver_steps}`: is a grid over all "
                f"{schedule.num_original_timesteps:,} timesteps, and the model visits "
                f"{schedule.num_timesteps:,}; leave out `timesteps` or `solver_steps`"
            )
        if self.is_fractional and schedule.num_timesteps < 2:
            raise InputError(
                f"`solver_steps={self.solver_steps}`: the model has a single timestep; leave it out"
            )

    def prepare(
        self,
        checkpoint: Checkpoint,
        *,
        seed: int,
        device: torch.device,
        draw: int = SAMPLE_DRAW,
        model_output: ModelOutput | None = None,
    ) -> Sampler:
        """The sampler of a model; see `Chain` for the arguments.

        Raises:
            InputError: the sampler does not apply to the model.
        """
        self.check(checkpoint)
        chain = Chain(checkpoint, seed=seed, device=device, draw=draw, model_output=model_output)
        return _SAMPLERS[self.method](chain, **self.settings)


def _checked(name: str, value: Any) -> Any:  # noqa: ANN401
    """A setting, checked to be within its limits."""
    match name:
        case "added_noise":
            one_of(name, value, AddedNoise)
            return AddedNoise(value)
        case "solver":
            one_of(name, value, Solver)
            return Solver(value)
        case "eta":
            return number(name, value, 0, 1)
        case "step_size" | "snr":
            return number(name, positive_number(name, value), 0, 1)
    return whole_number(name, value, 1, _MOST_STEPS)
