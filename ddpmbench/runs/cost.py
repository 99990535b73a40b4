"""What a quality run will take on a device, measured before it begins."""

import dataclasses
from collections.abc import Callable

import numpy as np
import torch

from ddpmbench.quality.features import FeatureNetwork
from ddpmbench.runs.samples import SamplesRun
from ddpmbench.runs.timing import timer

WORTH_SAYING = 60.0
"""Seconds from which on it is said how long a run takes."""
_MEASURED = 0.3  # seconds, at least


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds that a run takes, and what it would take with other settings.

    Attributes:
        per_call: of a sample and step.
        per_image: of an image's features.
        num_samples: that are still to be made.
        num_timesteps: of each.
        num_images: whose features are still to be made, samples and references.
    """

    per_call: float
    per_image: float
    num_samples: int
    num_timesteps: int
    num_images: int

    @property
    def seconds(self) -> float:
        """Of the run."""
        return self.sampling + self.per_image * self.num_images

    @property
    def sampling(self) -> float:
        """Of the samples alone."""
        return self.per_call * self.num_samples * self.num_timesteps

    def with_timesteps(self, num_timesteps: int) -> "Cost":
        """That of a sampler of so many steps."""
        return dataclasses.replace(self, num_timesteps=num_timesteps)

    def with_samples(self, num_samples: int) -> "Cost":
        """That of so many samples."""
        fewer = self.num_samples - num_samples
        return dataclasses.replace(
            self, num_samples=num_samples, num_images=self.num_images - fewer
        )


def seconds_per_call(run: SamplesRun, rows: int) -> float:
    """Of a sample and step, as they come in batches of so many."""
    sample = torch.arange(rows, device=run.parts.device)
    labels = None
    if run.labels is not None:
        labels = torch.from_numpy(run.labels(np.arange(rows))).to(run.parts.device)
    x_t = run.sampler.start(sample, run.shape)
    steps = run.sampler.steps(x_t, run.num_timesteps, sample=sample, labels=labels)
    with run.engine.running():
        return _measured(lambda: next(steps, None) is not None, run.parts.device) / rows


def seconds_per_image(network: FeatureNetwork, shape: tuple[int, ...], rows: int) -> float:
    """Of an image's features, (C, H, W), as they come in batches of so many."""
    pixels = np.zeros((rows, *shape), np.uint8)
    return _measured(lambda: network(pixels) is not None, torch.device("cpu")) / len(pixels)


def _measured(call: Callable[[], bool], device: torch.device) -> float:
    """Seconds a call, without the first, which warms up; there may be few of them."""
    call()
    clock = timer(device)
    since, count = clock(), 0
    while clock() - since < _MEASURED and call():
        count += 1
    return (clock() - since) / max(count, 1)
