"""The settings of a training run, apart from its data and its length."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from ddpmbench.diffusion.named_schedules import MAX_TIMESTEPS
from ddpmbench.diffusion.parameterization import Process, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import LARGEST_SEED, InputError, number, positive_number, whole_number
from ddpmbench.unet.unet import UNetConfig

MOST_BATCH = 2**16
MOST_CHANNELS = 2**16
"""Far beyond every published network; a larger number is a typing mistake."""

Objective = Literal["simple", "vlb", "hybrid", "sliced"]
_SCHEDULES: Mapping[str, Callable[[int], NoiseSchedule]] = {
    "linear": NoiseSchedule.linear,
    "cosine": NoiseSchedule.cosine,
    "sigmoid": NoiseSchedule.sigmoid,
}


@dataclasses.dataclass(frozen=True)
class TrainingRecipe:
    """The settings of a training run, apart from its data and its length.

    Attributes:
        network: the U-Net.
        image_size: height and width of an image.
        process: family of the forward process; "ve" may have its noise levels,
            "ve:SIGMA_MIN:SIGMA_MAX", by default 0.01 and 50.
        schedule: linear, cosine or sigmoid, for "vp" and "sub-vp"; None for linear. The other
            families have noise levels of their own.
        num_timesteps: T.
        variance: variance of the reverse process; learned_range for the objective "hybrid".
        objective: "simple" is L_simple (Ho et al. 2020, eq. 14), "vlb" the bound itself with
            uniform t, "hybrid" L_simple + 0.001 L_vlb with the mean held fixed in the latter
            (Nichol & Dhariwal 2021, eq. 16), "sliced" sliced score matching (Song et al. 2019).
        batch_size: images in a training step.
        learning_rate: learning rate of Adam, after the warm-up.
        warmup_steps: training steps over which the learning rate rises linearly.
        ema_decay: decay of the moving average of the weights, limited to (1 + step) / (10 + step).
        gradient_clip: largest norm of the gradient.
        horizontal_flip: whether images are mirrored at random.
        precision: "fp32", or "bf16" for the network's forward pass.
        seed: seed of the weights, the order of images, the timesteps and the noise.
    """

    network: UNetConfig
    image_size: int
    process: str = "vp"
    schedule: str | None = None
    num_timesteps: int = 1000
    variance: Variance = Variance.FIXED_LARGE
    objective: Objective = "simple"
    batch_size: int = 128
    learning_rate: float = 2e-4
    warmup_steps: int = 1000
    ema_decay: float = 0.9999
    gradient_clip: float = 1.0
    horizontal_flip: bool = False
    precision: str = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values out of range, and an objective that does not fit the variance."""
        if self.objective == "hybrid" and not self.variance.is_learned:
            raise InputError("`objective=hybrid`: needs `variance=learned_range`")
        if self.objective in ("simple", "sliced") and self.variance.is_learned:
            raise InputError(
                f"`objective={self.objective}`: does not train a variance; choose hybrid or vlb"
            )
        for name in ("learning_rate", "gradient_clip"):
            positive_number(name, getattr(self, name))
        number("ema_decay", self.ema_decay, 0, 1)
        whole_number("seed", self.seed, 0, LARGEST_SEED)
        whole_number("warmup_steps", self.warmup_steps, 1)
        whole_number("num_timesteps", self.num_timesteps, 1, MAX_TIMESTEPS)
        whole_number("batch_size", self.batch_size, 1, MOST_BATCH)
        whole_number("channels", max(self.network.channels), 1, MOST_CHANNELS)
        whole_number("model_channels", self.network.model_channels, 1, MOST_CHANNELS)
        if self.image_size % self.network.size_multiple:
            raise InputError(
                f"`channels`: {len(self.network.channels)} resolutions need height and width to be "
                f"divisible by {self.network.size_multiple}, and the images are "
                f"{self.image_size}x{self.image_size}; name fewer"
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON."""
        return dataclasses.asdict(self)

    def noise_schedule(self) -> NoiseSchedule:
        """The schedule; raises InputError for an unknown name or too many timesteps."""
        family, *levels = self.process.split(":")
        if family not in tuple(Process) or (levels and family != Process.VE):
            raise InputError(
                f"`process={self.process}`: choose from vp, sub-vp, ve, "
                "ve:SIGMA_MIN:SIGMA_MAX, flow"
            )
        if family in (Process.VE, Process.FLOW):
            if self.schedule is not None:
                raise InputError(
                    f"`schedule={self.schedule}`: {family} has its own noise levels; leave it out"
                )
            if family == Process.FLOW:
                return NoiseSchedule.flow(self.num_timesteps)
            return NoiseSchedule.variance_exploding(self.num_timesteps, **self._sigmas(levels))
        name = self.schedule or "linear"
        if name not in _SCHEDULES:
            raise InputError(f"`schedule={name}`: choose linear, cosine or sigmoid")
        return _SCHEDULES[name](self.num_timesteps).in_family(Process(family))

    def _sigmas(self, levels: list[str]) -> dict[str, float]:
        names = ("sigma_min", "sigma_max")
        try:
            return dict(zip(names, map(float, levels), strict=True)) if levels else {}
        except ValueError:
            raise InputError(
                f"`process={self.process}`: takes its first and its last sigma, as in ve:0.01:50; "
                "`num_timesteps` is the number of levels"
            ) from None
