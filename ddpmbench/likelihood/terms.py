"""The terms of the variational bound: one network evaluation each.

The index of a term is its image, timestep and draw of noise. A term depends on nothing else,
because the noise is a function of the index (`diffusion.noise`). This is the only module that
evaluates the network for likelihood.
"""

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.data_range import NATS_PER_BIT, UNIT_RANGE, DataRange
from ddpmbench.diffusion.gaussian import discretized_normal_log_prob, normal_kl
from ddpmbench.diffusion.model import Checkpoint, ModelOutput
from ddpmbench.diffusion.noise import normal_noise
from ddpmbench.diffusion.process import GaussianDiffusion, Prediction, ReverseStep, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.likelihood.decoders import (
    DECODER_COLUMNS,
    DECODERS,
    MODEL_COLUMNS,
    decoder_terms,
    log_variances,
)
from ddpmbench.records import short_repr

BLOCK_TERMS = 4096
"""About this many terms in temporary arrays, which fit into the processor's cache."""


def image_blocks(num_images: int, terms_an_image: int = 1) -> Iterator[slice]:
    """Slices that cover the images, each of at most about `BLOCK_TERMS` terms."""
    size = max(1, BLOCK_TERMS // terms_an_image)
    for start in range(0, num_images, size):
        yield slice(start, min(start + size, num_images))


_AT_EVERY_TIMESTEP = ("nats", "x_start_mse", "x_start_mse_noclip", "eps_mse")
VALUE_COLUMNS = (*_AT_EVERY_TIMESTEP, *DECODER_COLUMNS, *MODEL_COLUMNS)
"""The columns of a `TermTable`."""


def columns_of_bound(*, clip: bool) -> tuple[str, str, str]:
    """The columns of a bound: the term, the squared errors of x_start, clipped or not, and eps."""
    return "nats", "x_start_mse" if clip else "x_start_mse_noclip", "eps_mse"


@dataclasses.dataclass(frozen=True, eq=False)
class BoundTerms:
    """B terms of the bound, and the prediction errors.

    Attributes:
        nats: (B,) the term, nats per dimension: KL divergence at t >= 2, decoder at t = 1.
        x_start_mse: (B,) mean squared error of the predicted x_start, clipped to the data range.
        x_start_mse_noclip: (B,) the same without clipping.
        eps_mse: (B,) mean squared error of the predicted noise, without clipping.
        decoders: a (B,) tensor for each of `DECODER_COLUMNS` and `MODEL_COLUMNS`, in this order,
            nats per dimension; NaN at t >= 2.
    """

    nats: Tensor
    x_start_mse: Tensor
    x_start_mse_noclip: Tensor
    eps_mse: Tensor
    decoders: dict[str, Tensor]

    __repr__ = short_repr

    @property
    def bits_per_dim(self) -> Tensor:
        """(B,) the term in bits per dimension."""
        return self.nats / NATS_PER_BIT

    @property
    def columns(self) -> dict[str, Tensor]:
        """A (B,) tensor for each of `VALUE_COLUMNS`."""
        return {**{name: getattr(self, name) for name in _AT_EVERY_TIMESTEP}, **self.decoders}

    def table(self, index: "TermIndex") -> "TermTable":
        """The terms with their index, the input of `estimate_bound`.

        Args:
            index: (B,) image, timestep and draw of each term.

        Raises:
            ValueError: their numbers differ.
        """
        if len(index) != len(self.nats):
            raise ValueError(f"{len(self.nats)} terms need an index of as many, not {len(index)}")
        return TermTable(index, {k: _to_numpy(v.detach()) for k, v in self.columns.items()})


def bound_terms(
    schedule: NoiseSchedule,
    x_start: Tensor,
    t: Tensor,
    eps: Tensor,
    model_output: Tensor,
    *,
    prediction: str = "eps",
    variance: str = "fixed_large",
    clip: bool = True,
    decoder: str = "exact",
    data_range: DataRange = UNIT_RANGE,
) -> BoundTerms:
    r"""The terms of the bound from a network's outputs, in nats per dimension.

    .. math::
        L_{t-1} &= D_{KL}\bigl(q(x_{t-1} | x_t, x_0) \,\|\, p(x_{t-1} | x_t)\bigr) / D,
                   \quad t > 1 \\
        L_0 &= -\log p(x_0 | x_1) / D, \quad t = 1

    with D = C H W. L_0 takes the probability that a normal distribution gives to the bin of each
    level, the outermost bins extended to infinity.

    Args:
        schedule: the noise schedule.
        x_start: (B, C, H, W) levels of the data range, as `DataRange.to_model` gives them.
        t: (B,) int64 timesteps in 1..T.
        eps: (B, C, H, W) the noise in x_t = sqrt(ab_t) x_start + sqrt(1 - ab_t) eps.
        model_output: (B, C, H, W) output of the network for x_t and t; (B, 2C, H, W) where the
            variance is learned.
        prediction: "eps", "x_start", "v" or "previous_mean".
        variance: "fixed_small", "fixed_large", "learned_range" or "learned".
        clip: whether the predicted x_start is clamped to the data range.
        decoder: "exact" normal distribution function, or its "tanh" approximation.
        data_range: the values of an image, and the number of levels.

    Returns:
        The terms, float64.

    Raises:
        ValueError: a name is unknown, a shape or dtype does not fit, or a timestep is outside
            1..T.

    Source: Sohl-Dickstein et al. 2015, eq. 14; Ho, Jain & Abbeel 2020, eqs. 5 and 13; Nichol &
    Dhariwal 2021, eqs. 4 to 7, and eq. 15 for "learned_range".
    """
    diffusion = GaussianDiffusion(
        schedule,
        Prediction(prediction),
        Variance(variance),
        clip,
        data_range,
        device=x_start.device,
    )
    channels = x_start.shape[1] * (2 if diffusion.variance.is_learned else 1)
    expected = (x_start.shape[0], channels, *x_start.shape[2:])
    if eps.shape != x_start.shape or model_output.shape != expected:
        raise ValueError(
            f"x_start {tuple(x_start.shape)} goes with eps of the same shape and model_output "
            f"{expected}, not {tuple(eps.shape)} and {tuple(model_output.shape)}"
        )
    if t.shape != x_start.shape[:1]:
        raise ValueError(f"t must hold one timestep per image, not {tuple(t.shape)}")
    if not x_start.is_floating_point():
        raise ValueError(
            f"x_start must be floating point on {data_range.interval}, not {x_start.dtype}"
        )
    if decoder not in DECODERS:
        raise ValueError(f"decoder must be one of {DECODERS}, not {decoder!r}")
    if bool((t < 1).any()) or bool((t > schedule.num_timesteps).any()):
        raise ValueError(f"t must lie in 1..{schedule.num_timesteps}")
    return diffusion_terms(diffusion, x_start, t, eps, model_output, decoder=decoder)


def diffusion_terms(
    diffusion: GaussianDiffusion,
    x_start: Tensor,
    t: Tensor,
    eps: Tensor,
    model_output: Tensor,
    *,
    decoder: str = "exact",
    first: Tensor | None = None,
    conventions: bool = True,
) -> BoundTerms:
    """`bound_terms` of a diffusion process, without checks.

    `first` is (K,) int64, the positions of t = 1; finding them would wait for the GPU. Without
    `conventions` the `decoders` are left out.
    """
    x_start, eps = x_start.to(diffusion.dtype), eps.to(diffusion.dtype)
    x_t = diffusion.q_sample(x_start, t, eps)
    true_mean, true_log_variance = diffusion.q_posterior_mean_variance(x_start, x_t, t)
    step = diffusion.p_mean_variance(model_output, x_t, t)
    nats = _mean(normal_kl(true_mean, true_log_variance, step.mean, step.log_variance))
    prediction = step.unclipped_pred_x_start, step.pred_eps
    errors = prediction_errors(diffusion, x_start, eps, *prediction)
    return with_first_terms(
        *(diffusion, step, x_start, t, nats, errors, decoder, first), conventions=conventions
    )


class PredictionErrors(NamedTuple):
    """(B,) each, as in `BoundTerms`."""

    x_start_mse: Tensor
    x_start_mse_noclip: Tensor
    eps_mse: Tensor


def prediction_errors(
    diffusion: GaussianDiffusion, x_start: Tensor, eps: Tensor, unclipped: Tensor, pred_eps: Tensor
) -> PredictionErrors:
    """The mean squared errors of the predicted x_start and noise, (B, C, H, W) each."""
    return PredictionErrors(
        _mean((x_start - diffusion.data_range.clamp(unclipped)).square()),
        _mean((x_start - unclipped).square()),
        _mean((eps - pred_eps).square()),
    )


def with_first_terms(
    diffusion: GaussianDiffusion,
    step: ReverseStep,
    x_start: Tensor,
    t: Tensor,
    nats: Tensor,
    errors: PredictionErrors,
    decoder: str,
    first: Tensor | None,
    *,
    conventions: bool = True,
) -> BoundTerms:
    """(B,) terms, with the decoder terms at t = 1; `step` is the reverse step."""
    if first is None:
        first = (t == 1).nonzero().squeeze(1)
    names = (*DECODER_COLUMNS, *MODEL_COLUMNS) if conventions else ()
    decoders = {name: torch.full_like(nats, torch.nan) for name in names}
    if len(first):
        nats = nats.index_put((first,), _decoder(diffusion, step, x_start, first, decoder))
    if len(first) and conventions:
        of_first = decoder_terms(
            log_variances(diffusion.schedule),
            x_start[first],
            step.unclipped_pred_x_start[first],
            data_range=diffusion.data_range,
        )
        if diffusion.variance.is_learned:
            for kind, name in zip(DECODERS, MODEL_COLUMNS, strict=True):
                of_first[name] = _decoder(diffusion, step, x_start, first, kind)
        for name, value in of_first.items():
            decoders[name][first] = value.detach()
    return BoundTerms(nats, *errors, decoders)


def _decoder(
    diffusion: GaussianDiffusion, step: ReverseStep, x_start: Tensor, first: Tensor, decoder: str
) -> Tensor:
    """(K,) the decoder terms at the positions `first`, with the model's own variance."""
    log_prob = discretized_normal_log_prob(
        x_start[first],
        step.mean[first],
        step.log_variance.expand_as(step.mean)[first],
        decoder=decoder,
        data_range=diffusion.data_range,
    )
    return -_mean(log_prob)


def _mean(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)


def prior_nats(diffusion: GaussianDiffusion, x_start: Tensor) -> Tensor:
    r"""(B,) the prior term L_T of (B, C, H, W) images in the data range, nats per dimension.

    .. math:: L_T = D_{KL}\bigl(q(x_T | x_0) \,\|\, p(x_T)\bigr) / D

    with p(x_T) = N(0, I), or N(0, s_T^2 I) of a variance exploding process.

    It has a closed form without the network.

    Source: Ho, Jain & Abbeel 2020, eq. 5.
    """
    x_start = x_start.to(diffusion.dtype)
    last = torch.full((len(x_start),), diffusion.schedule.num_timesteps, device=x_start.device)
    mean = diffusion.q_sample(x_start, last, torch.zeros_like(x_start))
    log_variance = diffusion.schedule.one_minus_alphas_cumprod[-1].log().to(mean)
    prior = diffusion.schedule.log_prior_variance.to(mean)
    return _mean(normal_kl(mean, log_variance, torch.zeros_like(prior), prior))


def prior_bits_per_dim(schedule: NoiseSchedule, x_start: Tensor) -> Tensor:
    """The prior term L_T in bits per dimension; see `prior_nats`.

    Args:
        schedule: the noise schedule.
        x_start: (B, C, H, W) in the data range of the model.

    Returns:
        (B,) bits per dimension, float64.

    Source: Ho, Jain & Abbeel 2020, eq. 5.
    """
    return prior_nats(GaussianDiffusion(schedule, device=x_start.device), x_start) / NATS_PER_BIT


@dataclasses.dataclass(frozen=True, eq=False)
class TermIndex:
    """The index of B terms: image, timestep and draw of each.

    Attributes:
        image: (B,) int64 position in the image set.
        t: (B,) int64 timestep in 1..T.
        draw: (B,) int64 draw of the noise.
    """

    image: NDArray[np.int64]
    t: NDArray[np.int64]
    draw: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index: slice) -> "TermIndex":
        return TermIndex(self.image[index], self.t[index], self.draw[index])


@dataclasses.dataclass(frozen=True, eq=False)
class TermTable:
    """B terms with their index.

    Attributes:
        index: image, timestep and draw of each.
        values: a (B,) float64 array for each of `VALUE_COLUMNS`, nats per dimension.
    """

    index: TermIndex
    values: dict[str, NDArray[np.float64]]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: slice) -> "TermTable":
        return TermTable(self.index[index], {k: v[index] for k, v in self.values.items()})


def concatenate(tables: Sequence[TermTable]) -> TermTable:
    """The tables in sequence, as one."""
    names = ("image", "t", "draw")
    index = TermIndex(
        *(np.concatenate([getattr(table.index, n) for table in tables]) for n in names)
    )
    columns = tables[0].values
    values = {n: np.concatenate([table.values[n] for table in tables]) for n in columns}
    return TermTable(index, values)


class TermAddress(NamedTuple):
    """Image, timestep and draw of B terms, (B,) int64 each, on a device."""

    image: Tensor
    t: Tensor
    draw: Tensor


class TermsPass:
    """Evaluates terms with a network.

    Attributes:
        model_output: evaluates the network.
        num_evaluations: network evaluations so far, one per term.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        images: ImageSet,
        *,
        seed: int,
        decoder: str,
        device: torch.device,
        model_output: ModelOutput | None = None,
    ) -> None:
        """Prepare a model and images.

        Args:
            checkpoint: the model.
            images: the image set.
            seed: of the noise, 0 <= seed < 2^64.
            decoder: "exact" or "tanh".
            device: where the network runs.
            model_output: evaluates the network; None for the checkpoint's own `model_output`.
        """
        self.checkpoint = checkpoint.to(device)
        self.model_output = model_output or self.checkpoint.model_output
        self.diffusion = checkpoint.diffusion.to(device)
        self.images, self.seed, self.decoder, self.device = images, seed, decoder, device
        self.num_evaluations = 0

    def calling(self, model_output: ModelOutput) -> "TermsPass":
        """The same with another function that evaluates the network, and its own count."""
        other = copy.copy(self)
        other.model_output, other.num_evaluations = model_output, 0
        return other

    def prior(self, image: NDArray[np.int64]) -> NDArray[np.float64]:
        """(B,) L_T of the images with these indices, nats per dimension."""
        return _to_numpy(prior_nats(self.diffusion, self.x_start(image)))

    def x_start(self, image: NDArray[np.int64]) -> Tensor:
        """(B, C, H, W) the images with these indices, in the data range."""
        return self._x_start(self._pixels(image))

    def labels(self, image: NDArray[np.int64]) -> NDArray[np.int64]:
        """(B,) classes of the images; empty where the network is not conditioned on them."""
        labels = self.images.labels
        if not self.checkpoint.num_classes or labels is None:
            return np.empty(0, np.int64)
        return labels[image]

    @torch.inference_mode()
    def terms(self, index: TermIndex) -> TermTable:
        """The terms of one batch."""
        first = np.flatnonzero(index.t == 1)
        labels = self.labels(index.image)
        addresses = np.concatenate([index.image, index.t, index.draw, first, labels])
        pixels, sent = self._pixels(index.image), torch.from_numpy(addresses).to(self.device)
        values = self._values(pixels, sent, len(index), len(first))
        self.num_evaluations += len(index)
        return TermTable(index, dict(zip(VALUE_COLUMNS, _to_numpy(values), strict=True)))

    @torch.inference_mode()
    def short_terms(
        self, index: TermIndex, processes: Sequence[GaussianDiffusion], eps: Tensor
    ) -> list[TermTable]:
        """The terms of one batch under processes that share x_t and the network's outputs.

        Without the decoder under each convention.

        Args:
            index: image, timestep and draw of each.
            processes: of one schedule and data range.
            eps: (B, C, H, W) the noise, as `noise` gives it.
        """
        t, labels, first = (
            torch.from_numpy(column).to(self.device)
            for column in (index.t, self.labels(index.image), np.flatnonzero(index.t == 1))
        )
        x_start = self.x_start(index.image)
        x_t = processes[0].q_sample(x_start, t, eps.to(x_start.dtype))
        output = self.model_output(x_t, t, labels if len(labels) else None)
        self.num_evaluations += len(index)
        tables = []
        for process in processes:
            terms = diffusion_terms(
                *(process, x_start, t, eps, output),
                decoder=self.decoder,
                first=first,
                conventions=False,
            )
            tables.append(terms.table(index))
        return tables

    def noise(self, index: TermIndex) -> Tensor:
        """(B, C, H, W) float32, the noise of terms."""
        address = (
            torch.from_numpy(column).to(self.device)
            for column in (index.image, index.t, index.draw)
        )
        return normal_noise(*address, shape=self.images.pixels.shape[1:], seed=self.seed)

    def _values(self, pixels: Tensor, addresses: Tensor, size: int, firsts: int) -> Tensor:
        """(number of `VALUE_COLUMNS`, B); nothing is copied to or from the device here.

        Args:
            pixels: (B, C, H, W) uint8.
            addresses: the images, timesteps and draws of the terms, the positions of t = 1, and
                the classes if there are any, one after another.
            size: B.
            firsts: number of terms at t = 1.
        """
        image, t, draw, first, labels = torch.split(
            addresses, [size, size, size, firsts, len(addresses) - 3 * size - firsts]
        )
        x_start = self._x_start(pixels)
        eps = normal_noise(image, t, draw, shape=tuple(x_start.shape[1:]), seed=self.seed)
        terms = self._terms(x_start, TermAddress(image, t, draw), eps, first, labels)
        return torch.stack(list(terms.columns.values()))

    def _terms(
        self, x_start: Tensor, address: TermAddress, eps: Tensor, first: Tensor, labels: Tensor
    ) -> BoundTerms:
        x_t = self.diffusion.q_sample(x_start, address.t, eps.to(x_start.dtype))
        output = self.model_output(x_t, address.t, labels if len(labels) else None)
        return diffusion_terms(
            self.diffusion, x_start, address.t, eps, output, decoder=self.decoder, first=first
        )

    def _pixels(self, image: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.images.pixels[image])).to(self.device)

    def _x_start(self, pixels: Tensor) -> Tensor:
        return self.diffusion.data_range.to_model(pixels, self.diffusion.dtype)


def _to_numpy(values: Tensor) -> NDArray[np.float64]:
    return values.cpu().numpy().astype(np.float64)
