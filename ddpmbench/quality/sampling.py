"""Samples of a model: its reverse process, from x_t down to x_0.

Sample i is a function of (checkpoint, seed, i) alone, because its noise is addressed
(`process.noise`): neither its neighbors in a batch nor how many there are can change it.
"""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from ddpmbench.errors import InputError
from ddpmbench.inputs.checkpoints.checkpoint import Checkpoint
from ddpmbench.process.noise import normal_noise
from ddpmbench.process.schedule import MAX_TIMESTEPS

SAMPLE_DRAW = 2**31
"""The draw of a sample's noise: no row of a likelihood estimate, nor of a pilot, shares it."""
START = MAX_TIMESTEPS + 1
"""In the place of t for the noise that a chain starts from: a step that no schedule has, so that
chains of any number of steps start alike."""


@dataclasses.dataclass(frozen=True, eq=False)
class SamplingStep:
    """One step of B chains.

    Attributes:
        t: the step, from x_t to x_{t-1}.
        x_previous: (B, C, H, W) x_{t-1}.
        pred_x_start: (B, C, H, W) what the network made of x_t, clipped if the checkpoint says so.
    """

    t: int
    x_previous: Tensor
    pred_x_start: Tensor


class AncestralSampler:
    """Takes the steps p(x_{t-1} | x_t) with the checkpoint's own variance and clip.

    Attributes:
        checkpoint: the model, on the device.
        diffusion: its process, on the device.

    Source: Ho, Jain & Abbeel 2020, Algorithm 2.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        seed: int,
        device: torch.device,
        draw: int = SAMPLE_DRAW,
    ) -> None:
        """Prepare a model for sampling.

        Args:
            checkpoint: the model.
            seed: of the noise, 0 <= seed < 2^64.
            device: where it is sampled.
            draw: of the noise; chains that must share none with other chains have their own.
        """
        self.checkpoint = checkpoint.to(device)
        self.diffusion = checkpoint.diffusion.to(device)
        self._seed, self._draw = seed, draw

    def start(self, sample: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The noise that chains start from, which is x_T where they start at T.

        Args:
            sample: (B,) int64, which samples.
            shape: (C, H, W).

        Returns:
            (B, C, H, W) standard normal.
        """
        return self._noise(sample, START, shape)

    def steps(
        self, x_t: Tensor, t: int, *, sample: Tensor, labels: Tensor | None = None
    ) -> Iterator[SamplingStep]:
        """All steps from t down to 1, one at a time; the last adds no noise.

        Args:
            x_t: (B, C, H, W).
            t: the step it is at, in 1..T.
            sample: (B,) int64, whose noise each chain has.
            labels: (B,) int64 classes, where the network is conditioned on them.

        Raises:
            InputError: x_{t-1} is not finite, or the network's output has another shape.
        """
        for step in range(t, 0, -1):
            taken = self._step(x_t, step, sample, labels)
            yield taken
            x_t = taken.x_previous

    @torch.inference_mode()
    def _step(self, x_t: Tensor, t: int, sample: Tensor, labels: Tensor | None) -> SamplingStep:
        steps = torch.full_like(sample, t)
        output = self.checkpoint.model_output(x_t, steps, labels)
        reverse = self.diffusion.p_mean_variance(output, x_t, steps)
        x_previous = reverse.mean
        if t > 1:
            noise = self._noise(sample, t, tuple(x_t.shape[1:]))
            x_previous = x_previous + (0.5 * reverse.log_variance).exp() * noise
        if not bool(torch.isfinite(x_previous).all()):
            raise InputError(
                f"--ckpt {self.checkpoint.source}: a sample is not finite after step t = {t}; "
                "see whether --clip keeps it in range, or leave the pictures out (--pictures none)"
            )
        return SamplingStep(t, x_previous, reverse.pred_x_start)

    def _noise(self, sample: Tensor, t: int, shape: tuple[int, ...]) -> Tensor:
        steps, draws = torch.full_like(sample, t), torch.full_like(sample, self._draw)
        noise = normal_noise(sample, steps, draws, shape=shape, seed=self._seed)
        return noise.to(self.diffusion.dtype)
