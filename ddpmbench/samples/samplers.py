"""Samples of a model: its reverse process, from x_t down to x_0.

Sample i is a function of (checkpoint, sampler, seed, i) alone, because its noise is addressed
(`process.noise`): neither its neighbors in a batch nor how many there are can change it, but for
how a network that is called in another way rounds.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Self

import torch
from torch import Tensor

from ddpmbench.diffusion.model import Checkpoint, ModelOutput
from ddpmbench.diffusion.noise import normal_noise
from ddpmbench.diffusion.process import ReverseStep
from ddpmbench.diffusion.schedule import MAX_TIMESTEPS
from ddpmbench.errors import InputError, number, one_of

SAMPLE_DRAW = 2**31
"""The draw of a sample's noise: no row of a likelihood estimate, nor of a pilot, shares it."""
START = MAX_TIMESTEPS + 1
"""In the place of t for the noise that a chain starts from: a step that no schedule has, so that
chains of any number of steps start alike."""
_STEPS_A_LOOK = 50
"""Steps after which it is seen whether all is finite."""

Step = Callable[..., tuple[Tensor, Tensor]]
"""x_t, t, which samples, and classes if any, to x_{t-1} and the prediction of x_start."""


class AddedNoise(StrEnum):
    """After which steps of the ancestral process noise is added."""

    INNER = "inner"
    """all but the last"""
    EVERY_STEP = "every-step"
    """the last too"""
    NONE = "none"
    """none: the mean of every step"""


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


class Sampler(abc.ABC):
    """Takes B chains from x_t down to x_0.

    Attributes:
        checkpoint: the model, on the device.
        diffusion: its process, on the device.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        seed: int,
        device: torch.device,
        draw: int = SAMPLE_DRAW,
        model_output: ModelOutput | None = None,
    ) -> None:
        """Prepare a model for sampling.

        Args:
            checkpoint: the model.
            seed: of the noise, 0 <= seed < 2^64.
            device: where it is sampled.
            draw: of the noise; chains that must share none with other chains have their own.
            model_output: calls the network; None for the checkpoint's own `model_output`.
        """
        self.checkpoint = checkpoint.to(device)
        self._model_output = model_output or self.checkpoint.model_output
        self.diffusion = checkpoint.diffusion.to(device)
        self._seed, self._draw = seed, draw
        self._step: Step = self._take_step

    def start(self, sample: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The noise that chains start from, which is x_T where they start at T.

        Args:
            sample: (B,) int64, which samples.
            shape: (C, H, W).

        Returns:
            (B, C, H, W) standard normal.
        """
        return self._noise(sample, torch.full_like(sample, START), shape)

    def steps(
        self, x_t: Tensor, t: int, *, sample: Tensor, labels: Tensor | None = None
    ) -> Iterator[SamplingStep]:
        """All steps from t down to 1, one at a time.

        Args:
            x_t: (B, C, H, W).
            t: the step it is at, in 1..T.
            sample: (B,) int64, whose noise each chain has.
            labels: (B,) int64 classes, where the network is conditioned on them.

        Raises:
            InputError: x_{t-1} is not finite, or the network's output has another shape.
        """
        more = () if labels is None else (labels,)
        steps = torch.full_like(sample, t)
        checked = x_t, steps
        for step in range(t, 0, -1):
            x_t, pred_x_start = self._step(x_t, steps, sample, *more)
            steps = steps - 1
            # To look at a number is to wait for the device.
            if (step - 1) % _STEPS_A_LOOK == 0:
                if not bool(torch.isfinite(x_t).all()):
                    raise self._not_finite(*checked, step, sample, *more)
                checked = x_t, steps
            yield SamplingStep(step, x_t, pred_x_start)

    def launched(self, whole_step: Callable[[Step], Step]) -> Self:
        """The same sampler, whose steps are launched otherwise.

        Args:
            whole_step: takes the function of a step, tensors to tensors without a look at any,
                and returns one that gives the same.
        """
        self._step = whole_step(self._take_step)
        return self

    @torch.inference_mode()
    def _take_step(
        self, x_t: Tensor, t: Tensor, sample: Tensor, *labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x_{t-1} and the prediction of x_start; t is (B,)."""
        output = self._model_output(x_t, t, labels[0] if labels else None)
        reverse = self.diffusion.p_mean_variance(output, x_t, t)
        x_previous, deviation = self._law(reverse, x_t, t)
        if deviation is not None:
            x_previous = x_previous + deviation * self._noise(sample, t, tuple(x_t.shape[1:]))
        return x_previous, reverse.pred_x_start

    def _not_finite(
        self, x_t: Tensor, t: Tensor, last: int, sample: Tensor, *labels: Tensor
    ) -> InputError:
        """Names the step, found by taking those down to `last` again from one that was finite."""
        step = int(t[0])
        while step > last:
            x_t, _ = self._take_step(x_t, t, sample, *labels)
            if not bool(torch.isfinite(x_t).all()):
                break
            step, t = step - 1, t - 1
        return InputError(
            f"`ckpt={self.checkpoint.source}`: a sample is not finite after timestep t = {step}; "
            "see whether `clip`, or `precision=fp32`, keeps it in range"
        )

    @abc.abstractmethod
    def _law(self, reverse: ReverseStep, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and standard deviation of x_{t-1}; None where no noise is added."""

    def _noise(self, sample: Tensor, t: Tensor, shape: tuple[int, ...]) -> Tensor:
        draw = torch.full_like(sample, self._draw)
        noise = normal_noise(sample, t, draw, shape=shape, seed=self._seed)
        return noise.to(self.diffusion.dtype)


class AncestralSampler(Sampler):
    """Takes the steps p(x_{t-1} | x_t) with the checkpoint's own variance and clip.

    Source: Ho, Jain & Abbeel 2020, Algorithm 2.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        seed: int,
        device: torch.device,
        draw: int = SAMPLE_DRAW,
        added_noise: AddedNoise = AddedNoise.INNER,
        model_output: ModelOutput | None = None,
    ) -> None:
        """Prepare a model for sampling; the arguments are those of `Sampler`, and one more.

        Args:
            checkpoint: the model.
            seed: of the noise.
            device: where it is sampled.
            draw: of the noise.
            added_noise: after which steps noise is added.
            model_output: calls the network.
        """
        super().__init__(checkpoint, seed=seed, device=device, draw=draw, model_output=model_output)
        self._added_noise = added_noise

    def _law(self, reverse: ReverseStep, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        if self._added_noise == AddedNoise.NONE:
            return reverse.mean, None
        deviation = (0.5 * reverse.log_variance).exp()
        if self._added_noise == AddedNoise.INNER:
            is_inner = (t > 1).reshape(-1, 1, 1, 1)
            deviation = torch.where(is_inner, deviation, torch.zeros_like(deviation))
        return reverse.mean, deviation


class ImplicitSampler(Sampler):
    """Takes the steps of the implicit process (DDIM); the checkpoint's variance has no part.

    Source: Song, Meng & Ermon 2021, eq. 12.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        seed: int,
        device: torch.device,
        eta: float = 0.0,
        model_output: ModelOutput | None = None,
    ) -> None:
        """Prepare a model for sampling; the arguments are those of `Sampler`, and one more.

        Args:
            checkpoint: the model.
            seed: of the noise.
            device: where it is sampled.
            eta: 0 adds no noise after the start, 1 as much as the posterior has.
            model_output: calls the network.
        """
        super().__init__(checkpoint, seed=seed, device=device, model_output=model_output)
        self._eta = eta

    def _law(self, reverse: ReverseStep, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        mean, deviation = self.diffusion.ddim_mean_std(reverse.pred_x_start, x_t, t, eta=self._eta)
        return mean, deviation if self._eta else None


@dataclasses.dataclass(frozen=True)
class SamplerChoice:
    """Which sampler, and its settings.

    Attributes:
        method: "ancestral" or "ddim".
        added_noise: ancestral: after which steps noise is added.
        eta: ddim: how much noise is added, 0..1.

    Raises:
        InputError: there is no such sampler, or it has no such setting.
    """

    method: str = "ancestral"
    added_noise: AddedNoise = AddedNoise.INNER
    eta: float | None = None

    def __post_init__(self) -> None:
        """Refuse settings that the sampler does not have."""
        one_of("sampler", self.method, ("ancestral", "ddim"))
        one_of("added_noise", self.added_noise, AddedNoise)
        if self.method == "ancestral" and self.eta is not None:
            raise InputError(f"`eta={self.eta}`: applies only to `sampler=ddim`; leave it out")
        if self.method == "ddim" and self.added_noise != AddedNoise.INNER:
            raise InputError(
                f"`added_noise={self.added_noise}`: applies only to `sampler=ancestral`; set `eta`"
            )
        if self.eta is not None:
            number("eta", self.eta, 0, 1)

    def prepare(
        self,
        checkpoint: Checkpoint,
        *,
        seed: int,
        device: torch.device,
        model_output: ModelOutput | None = None,
    ) -> Sampler:
        """The sampler of a model; see `Sampler` for the arguments."""
        if self.method == "ddim":
            return ImplicitSampler(
                checkpoint,
                seed=seed,
                device=device,
                eta=self.eta or 0.0,
                model_output=model_output,
            )
        return AncestralSampler(
            checkpoint,
            seed=seed,
            device=device,
            added_noise=self.added_noise,
            model_output=model_output,
        )
