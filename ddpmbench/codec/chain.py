"""Bits-back coding of images with the chain x_0, x_1, ..., x_K of a diffusion model.

The variables x_i of the visited timesteps t_1 < ... < t_K are integer multiples of a grid step. To
encode, x_1 is popped from the bits on the stack under q(x_1 | x_0); then for i = 1..K the network
is evaluated at x_i, x_{i-1} is pushed under p(x_{i-1} | x_i), and x_{i+1} is popped under
q(x_{i+1} | x_i); finally x_K is pushed under the prior. Decoding is the same in reverse.
"""

import dataclasses
import math
import sys
from functools import lru_cache
from typing import Annotated

import numpy as np
import torch
from msgspec import Meta, Struct
from numpy.typing import NDArray
from torch import Tensor

from ddpmbench.codec.rans import PRECISION, Coder, Integers, NormalTable
from ddpmbench.diffusion.data_range import NATS_PER_BIT
from ddpmbench.diffusion.gaussian import discretized_normal_log_prob
from ddpmbench.diffusion.model import Checkpoint, ModelOutput
from ddpmbench.diffusion.parameterization import Prediction
from ddpmbench.errors import InputError

Values = NDArray[np.float64]
Timestep = Annotated[int, Meta(ge=1, le=1 << 40)]
Positive = Annotated[float, Meta(gt=0, le=sys.float_info.max)]

STEPS_A_SIGMA = 16
"""Grid steps in the smaller of the two standard deviations of a variable."""
LEAST_BITS = math.log2(STEPS_A_SIGMA)
"""Bits per dimension that decoding takes from the stack first, at least: those of x_K."""
_PLACES, _PLACES_OF_DECODER = 128, 32  # rounded positions of a mean, per standard deviation
_DRAWN, _BOUND = 7.0, 12.0  # standard deviations: of q at most, and of x_i from zero signal
_MOST_PLACES = 1 << 19  # of a table
_TAIL = -PRECISION + 10.0  # log2 probability below which the added 2^-32 matters

_table = lru_cache(maxsize=256)(NormalTable)


class ReverseProcess(Struct, frozen=True, forbid_unknown_fields=True):
    r"""The timesteps that a code visits, and the variances of its reverse process.

    Attributes:
        timesteps: t_1 < ... < t_K of the checkpoint's schedule; t_K is T.
        variances: those of p(x_{i-1} | x_i), i = 1..K, for x of unit scale; the first is the
            decoder's.
        variance: the choice of variances: "best_constant", "fixed_small" or "fixed_large"; empty
            for others.
    """

    timesteps: tuple[Timestep, ...]
    variances: tuple[Positive, ...]
    variance: str = ""


@dataclasses.dataclass(frozen=True)
class _Grid:
    """The grid of x_i, i = 1..K.

    Attributes:
        step: the distance between two values.
        bound: the largest value, in grid steps.
        q_std: standard deviation of q(x_i | x_{i-1}), in grid steps.
        p_std: that of p(x_i | x_{i+1}), or of the prior, in grid steps.
        signal: factor of x_{i-1} in the mean of q(x_i | x_{i-1}).
    """

    step: float
    bound: int
    q_std: float
    p_std: float
    signal: float

    @property
    def q(self) -> NormalTable:
        """The table of the forward process."""
        return _table(self.q_std, math.ceil(_DRAWN * self.q_std) + 1, _phases(self.q_std, _PLACES))

    @property
    def p(self) -> NormalTable:
        """The table of the reverse process; its means lie within the bound, as the values do."""
        return _table(self.p_std, 2 * self.bound + 1, _phases(self.p_std, _PLACES))


class Chain:
    """Encodes and decodes batches of images.

    Attributes:
        num_evaluations: network evaluations so far.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        process: ReverseProcess,
        *,
        device: torch.device,
        model_output: ModelOutput,
    ) -> None:
        """Prepare the grids.

        Args:
            checkpoint: the model.
            process: the timesteps and variances.
            device: where the network is evaluated.
            model_output: evaluates the network.

        Raises:
            InputError: the variances are so small that the grids are too fine.
        """
        self.num_evaluations = 0
        self._process, self._device, self._model_output = process, device, model_output
        self._diffusion = checkpoint.diffusion.to(device)
        self._data_range = data_range = checkpoint.data_range
        schedule = checkpoint.schedule.subset(process.timesteps)
        prior = math.exp(float(schedule.log_prior_variance))
        p_std = np.sqrt(np.append(process.variances[1:], prior))
        q_std, signal = schedule.betas.sqrt().numpy(), (1 - schedule.betas).sqrt().numpy()
        steps = np.minimum(p_std, q_std) / STEPS_A_SIGMA
        total_signal = schedule.alphas_cumprod.sqrt().numpy()
        noise = schedule.one_minus_alphas_cumprod.sqrt().numpy()
        bounds = total_signal * max(abs(data_range.low), abs(data_range.high)) + _BOUND * noise
        columns = (steps, np.ceil(bounds / steps), q_std / steps, p_std / steps, signal)
        self._grids = [
            _Grid(step, int(bound), *scales)
            for step, bound, *scales in zip(*(c.tolist() for c in columns), strict=True)
        ]
        # The means of p(x_{i-1} | x_i) from x_start and x_i: eqs. 6 and 7 of Ho et al. 2020.
        before = np.append(0.0, noise[:-1] ** 2)
        self._x_start_factor = np.append(1.0, total_signal[:-1]) * q_std**2 / noise**2
        self._x_i_factor = signal * before / noise**2
        levels = data_range.levels
        self._level = (data_range.high - data_range.low) / (levels - 1)
        scale = math.sqrt(process.variances[0]) / self._level
        self._margin = math.ceil(_DRAWN * scale)
        phases = _phases(scale, _PLACES_OF_DECODER)
        places = phases * (levels + self._margin)
        if max(places, *(grid.bound * STEPS_A_SIGMA for grid in self._grids)) > _MOST_PLACES:
            raise InputError(
                "a variance of the reverse process is too small to be coded; take fewer `timesteps`"
            )
        self._decoder = NormalTable(scale, levels + self._margin, phases, (0, levels - 1))

    @property
    def bits_of_start(self) -> float:
        """Bits per dimension that encoding takes from the stack before it returns any."""
        return sum(0.5 * math.log2(2 * math.pi * math.e * g.q_std**2) for g in self._grids[:2])

    def encode(self, coder: Coder, pixels: NDArray[np.uint8], labels: Tensor | None) -> Values:
        """Push a batch of images onto the stack.

        Args:
            coder: the stack.
            pixels: (B, C, H, W).
            labels: (B,) classes, where the network is conditioned on them.

        Returns:
            (2, B) bits of each image: its ideal length, the sum of log2 q / p over the drawn values
            with the densities of the model; and the part of it that the tails save, since every
            symbol has probability 2^-32 at least.

        Raises:
            InputError: the network's output is not finite.
        """
        grids, shape = self._grids, pixels.shape
        level = self._data_range.reduced(pixels).ravel().astype(np.int64)
        mean = grids[0].signal / grids[0].step * self._x_start(level)
        x = self._draw(coder, 0, mean)
        bits = np.zeros((2, shape[0]))
        bits[0] += _log_density(x, mean, grids[0].q_std).reshape(shape[0], -1).sum(1)
        previous = level
        for i in range(len(grids)):
            prediction = self._predict(x, i, shape, labels)
            if i == 0:
                coder.push(*self._decoder.at(self._mean_of_decoder(prediction)).interval(level))
                bits += _spent(self._decoder_log_prob(level, prediction), shape)
            else:
                mean = self._mean_of_p(prediction, x, i)
                coder.push(*grids[i - 1].p.at(mean).interval(previous))
                bits += _spent(_log_density(previous, mean, grids[i - 1].p_std), shape)
            if i + 1 < len(grids):
                mean = self._mean_of_q(x, i + 1)
                previous, x = x, self._draw(coder, i + 1, mean)
                drawn = _log_density(x, mean, grids[i + 1].q_std)
                bits[0] += drawn.reshape(shape[0], -1).sum(1)
        mean = np.zeros(x.shape)
        coder.push(*grids[-1].p.at(mean).interval(x))
        return bits + _spent(_log_density(x, mean, grids[-1].p_std), shape)

    def decode(
        self, coder: Coder, shape: tuple[int, ...], labels: Tensor | None
    ) -> NDArray[np.uint8]:
        """Pop a batch of images from the stack; undoes `encode`.

        Args:
            coder: the stack.
            shape: (B, C, H, W).
            labels: the labels at encoding.

        Returns:
            (B, C, H, W) uint8, the pixels.

        Raises:
            DamageError: the stack does not hold such images.
            InputError: the network's output is not finite.
        """
        grids = self._grids
        x = coder.pop(grids[-1].p.at(np.zeros(math.prod(shape))))
        for i in reversed(range(len(grids))):
            prediction = self._predict(x, i, shape, labels)
            if i == 0:
                previous = coder.pop(self._decoder.at(self._mean_of_decoder(prediction)))
                mean = grids[0].signal / grids[0].step * self._x_start(previous)
            else:
                previous = coder.pop(grids[i - 1].p.at(self._mean_of_p(prediction, x, i)))
                mean = self._mean_of_q(previous, i)
            order = _order(len(x))
            coder.push(*grids[i].q.at(mean[order]).interval(x[order]))
            x = previous
        return self._data_range.pixels_of(x.astype(np.uint8).reshape(shape))

    def _draw(self, coder: Coder, i: int, mean: Values) -> Integers:
        """Draw x_i from q(x_i | x_{i-1}), using the bits of other dimensions.

        The last bits on the stack are those of x_{i-2}, in order. If they were popped in order, the
        noise of each dimension would be the deviation of x_{i-2} from its mean there, and the chain
        would not be one of q.
        """
        order = _order(len(mean))
        x = np.empty(len(mean), np.int64)
        x[order] = coder.pop(self._grids[i].q.at(mean[order]))
        return x

    def _x_start(self, level: Integers) -> Values:
        return np.asarray(level * self._level + self._data_range.low)

    def _predict(
        self, x: Integers, i: int, shape: tuple[int, ...], labels: Tensor | None
    ) -> Values:
        """(n,) x_start that the network predicts from x_i."""
        x_t = torch.from_numpy((x * self._grids[i].step).reshape(shape))
        x_t = x_t.to(self._device, self._diffusion.dtype)
        t = torch.full(shape[:1], self._process.timesteps[i], device=self._device)
        output = self._model_output(x_t, t, labels)
        step = self._diffusion.p_mean_variance(output, x_t, t)
        self.num_evaluations += len(t)
        is_mean = self._diffusion.prediction is Prediction.PREVIOUS_MEAN  # and is not clipped
        x_start = step.unclipped_pred_x_start if is_mean else step.pred_x_start
        prediction: Values = x_start.double().cpu().numpy().ravel()
        if not np.isfinite(prediction).all():
            raise InputError(
                f"the network's output at t = {self._process.timesteps[i]} is not finite; "
                "evaluate the model with nll first"
            )
        return prediction

    def _mean_of_q(self, x: Integers, i: int) -> Values:
        """The mean of q(x_i | x_{i-1}), in grid steps of x_i."""
        ratio = self._grids[i].signal * self._grids[i - 1].step / self._grids[i].step
        return np.asarray(ratio * x)

    def _mean_of_p(self, prediction: Values, x: Integers, i: int) -> Values:
        """The mean of p(x_{i-1} | x_i), in grid steps of x_{i-1}."""
        grid, step = self._grids[i - 1], self._grids[i].step
        start_factor, x_factor = (
            self._x_start_factor[i] / grid.step,
            self._x_i_factor[i] * step / grid.step,
        )
        mean = start_factor * prediction + x_factor * x
        return np.asarray(mean.clip(-grid.bound, grid.bound))

    def _mean_of_decoder(self, prediction: Values) -> Values:
        level = (prediction - self._data_range.low) / self._level
        return level.clip(-self._margin, self._data_range.levels - 1 + self._margin)

    def _decoder_log_prob(self, level: Integers, prediction: Values) -> Values:
        """(n,) log2 probability of each level."""
        nats = discretized_normal_log_prob(
            torch.from_numpy(self._x_start(level)),
            torch.from_numpy(prediction),
            torch.tensor(self._process.variances[0], dtype=torch.float64).log(),
            data_range=self._data_range,
        )
        return np.asarray(nats.numpy() / NATS_PER_BIT)


@lru_cache(maxsize=4)
def _order(count: int) -> Integers:
    """A permutation that separates neighbors, by steps of the golden section."""
    step = round(count * (math.sqrt(5) - 1) / 2)
    while math.gcd(step, count) != 1:
        step += 1
    return np.arange(count) * step % count


def _phases(scale: float, places: int) -> int:
    return max(1, math.ceil(places / scale))


def _log_density(x: Integers, mean: Values, scale: float) -> Values:
    """(n,) log2 of a normal density, in grid steps."""
    constant = math.log(2 * math.pi) / 2 + math.log(scale)
    return np.asarray(-(0.5 * np.square((x - mean) / scale) + constant) / NATS_PER_BIT)


def _spent(log_prob: Values, shape: tuple[int, ...]) -> Values:
    """(2, B) bits per image for symbols of these log2 probabilities, and bits saved in tails."""
    saved = np.zeros(log_prob.shape)
    tail = np.flatnonzero(log_prob < _TAIL)
    saved[tail] = np.logaddexp2(log_prob[tail], -PRECISION) - log_prob[tail]
    return np.asarray(np.stack([-log_prob, saved]).reshape(2, shape[0], -1).sum(2))
