"""What the usual questions come to in network calls, and so in seconds on a device."""

import dataclasses
import math

from ddpmbench.likelihood.stopping import first_rotations
from ddpmbench.likelihood.warp import Pilot, num_rows

ROW_HALF_WIDTH = 0.541
"""Bits/dim: the half width of a bound from r rotations of N images, times sqrt(r N), as
`results/estimator` found it for the model in the package; that of another model differs."""
FEW_STEPS = 50
"""A sampler that skips most steps has so many."""


@dataclasses.dataclass(frozen=True)
class RowSeconds:
    """What rows take on a device, one by one as they come in a batch.

    Attributes:
        first: a row of a likelihood evaluation at t = 1, where the decoder is.
        later: one at t = 2..T.
        step: a step of a sample.
    """

    first: float
    later: float
    step: float


@dataclasses.dataclass(frozen=True)
class Workload:
    """A question, and how many rows of each kind answer it.

    Attributes:
        name: in words.
        command: what asks it, without the checkpoint and the images.
        first: rows at t = 1.
        later: rows at t = 2..T.
        steps: steps of samples.
    """

    name: str
    command: str
    first: int = 0
    later: int = 0
    steps: int = 0

    @property
    def num_evaluations(self) -> int:
        """Network calls."""
        return self.first + self.later + self.steps

    def seconds(self, row: RowSeconds) -> float:
        """They take, where a row takes so much."""
        return self.first * row.first + self.later * row.later + self.steps * row.step


def workloads(
    num_images: int, num_timesteps: int, *, half_width: float, num_samples: int
) -> list[Workload]:
    """The bound to a half width and by every pair; samples of all steps and of a few.

    Args:
        num_images: N.
        num_timesteps: T.
        half_width: of the bound, bits per dimension.
        num_samples: how many samples.
    """
    pairs = Workload(
        "every pair, one draw",
        "nll --estimator every-pair --draws 1",
        first=num_images,
        later=num_images * (num_timesteps - 1),
    )
    samples = [
        Workload(
            f"{num_samples:,} samples of {steps:,} steps",
            f"sample -n {num_samples} --timesteps {steps}",
            steps=num_samples * steps,
        )
        for steps in sorted({num_timesteps, min(num_timesteps, FEW_STEPS)}, reverse=True)
    ]
    if num_timesteps < 2:
        return [pairs, *samples]
    return [_sampled_bound(num_images, num_timesteps, half_width), pairs, *samples]


def _sampled_bound(num_images: int, num_timesteps: int, half_width: float) -> Workload:
    enough = math.ceil((ROW_HALF_WIDTH / half_width) ** 2 / num_images)
    rotations = max(first_rotations(num_images), enough)
    pilot, of_rotations = len(Pilot(num_images, num_timesteps, 0)), num_images * rotations
    return Workload(
        f"nll, rd to +- {half_width:g} bits/dim",
        f"nll --half-width {half_width:g}",
        first=num_rows(num_images, rotations) - of_rotations,
        later=of_rotations + pilot,
    )
