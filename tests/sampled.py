"""The best model of normal data, samples of it, and the law that they should have."""

import dataclasses

import numpy as np
import torch
from oracles import GaussianNetwork, oracle_checkpoint, oracle_images
from torch import Tensor

from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.parameterization import Prediction, TimeInput, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.samples.chain import SamplingStep
from ddpmbench.samples.samplers import SamplerChoice

CPU = torch.device("cpu")
SHAPE = (1, 2, 2)
SPREAD = torch.tensor([[[0.9, 0.4], [0.1, 0.02]]], dtype=torch.float64)
MEAN = torch.tensor([[[0.5, -0.3], [0.0, 1.5]]], dtype=torch.float64)


def checkpoint_of(
    schedule: NoiseSchedule,
    *,
    prediction: str = "eps",
    mean: Tensor = MEAN,
    spread: Tensor = SPREAD,
    variance: str = "fixed_small",
) -> Checkpoint:
    """The best model of normal data, of the schedule's family."""
    network = GaussianNetwork(mean, spread, process=str(schedule.process), prediction=prediction)
    return dataclasses.replace(
        oracle_checkpoint(oracle_images(1, shape=tuple(mean.shape)), schedule, clip=False),
        network=network,
        prediction=Prediction(prediction),
        variance=Variance(variance),
        time_input=TimeInput.LOG_SNR,
    )


def steps_of(
    checkpoint: Checkpoint,
    choice: SamplerChoice,
    index: Tensor,
    *,
    seed: int = 0,
    labels: Tensor | None = None,
) -> tuple[Tensor, list[SamplingStep]]:
    """x_T of the samples with these indices, and all steps from there."""
    sampler = choice.prepare(checkpoint, seed=seed, device=CPU)
    size = checkpoint.image_size
    x_t = sampler.start(index, (checkpoint.channels, size, size))
    last = checkpoint.schedule.num_timesteps
    return x_t, list(sampler.steps(x_t, last, sample=index, labels=labels))


def sampled(checkpoint: Checkpoint, choice: SamplerChoice, index: Tensor, **options) -> Tensor:
    """(B, C, H, W) x_0."""
    return steps_of(checkpoint, choice, index, **options)[1][-1].x_previous


def assert_law(x: Tensor, mean: np.ndarray, variance: np.ndarray) -> None:
    """Mean, variance and covariance of the pixels are those, within 4.5 standard errors."""
    n, x = len(x), x.flatten(1).numpy()
    assert np.abs((x.mean(0) - mean) / np.sqrt(variance / n)).max() < 4.5
    scaled = (x - mean) / np.sqrt(variance)
    # A mean of n squares of normals varies by sqrt(2 / n), of products of two by sqrt(1 / n).
    error = np.sqrt((1 + np.eye(4)) / n)
    assert np.abs((scaled.T @ scaled / n - np.eye(4)) / error).max() < 4.5
