r"""The likelihood of the probability-flow ODE.

.. math::
    \log p(u_1) = \log p(u_T)
    + \int_{\log\sigma_1}^{\log\sigma_T} \nabla_u \cdot \sigma \hat\epsilon \; d \log\sigma,
    \qquad \log p(x_1) = \log p(u_1) - D \log a_1

x_T has the prior of the variational bound: N(0, I) for VP, so that u_T has the variance 1 /
a_T^2 = 1 + sigma_T^2; for VE u_T has the variance sigma_T^2. A dequantization turns log p(x_1) into
a bound on the probability of an image, comparable term by term with the variational one.

The grid in log sigma is fixed and the same for all images, so that an image's result depends
neither on its batch nor on the number of processes.

Source: Song et al. 2021, "Score-based generative modeling through stochastic differential
equations", section 4.3 and appendix D.2.
"""

import dataclasses
import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.named_schedules import MAX_TIMESTEPS
from ddpmbench.diffusion.noise import normal_noise, philox_4x32
from ddpmbench.diffusion.probability_flow import ProbabilityFlow, Solver, integrate
from ddpmbench.diffusion.process import GaussianDiffusion
from ddpmbench.errors import InputError, one_of, whole_number
from ddpmbench.likelihood.bound import half_width_of, quantile
from ddpmbench.likelihood.precision import density_in_log_t
from ddpmbench.likelihood.terms import TermIndex, TermsPass
from ddpmbench.records import short_repr

PROBE, PLACE = MAX_TIMESTEPS + 2, MAX_TIMESTEPS + 3
"""In place of t in the addresses of the probes, and of the timesteps of an image's bound. No
schedule has these timesteps."""
BOUND_DRAW = 2**31 + 2**29
"""Draw of the first term of an image's bound; each next term has the next draw. No term of another
design, and no sample, shares their noise."""
IMAGES_PURPOSE = 64
"""Purpose of the random numbers that choose images; see `designs.words`."""
TERMS_OF_BOUND = 48
"""Terms at t = 2..T of an image's bound."""
_LOG_SQRT_TWO_PI = 0.5 * math.log(2 * math.pi)


class Dequantization(StrEnum):
    r"""The distribution q in a bound on the probability of an image's levels.

    .. math::
        -\log P(x_0) \le \mathbb E_{q(x_1 \mid x_0)}
        \left[ -\log P(x_0 \mid x_1) + \log q(x_1 \mid x_0) - \log p(x_1) \right]

    The bound holds for every q. Those that stay in the bin of x_0 have P(x_0 | x_1) = 1.
    """

    DECODER = "decoder"
    """The forward process, N(a x_0, s^2); P(x_0 | x_1) is the decoder of the variational bound."""
    UNIFORM = "uniform"
    """a x_0 plus uniform noise over the bin (Theis et al. 2016; Song et al. 2021)."""
    TRUNCATED_NORMAL = "truncated-normal"
    """The forward process truncated to the bin (Zheng et al. 2023)."""


def sample_x_1(
    dequantization: Dequantization,
    diffusion: GaussianDiffusion,
    x_start: Tensor,
    image: Tensor,
    *,
    seed: int,
) -> tuple[Tensor, Tensor]:
    r"""A sample of q(x_1 | x_0) and its log density.

    .. math::
        x_1 = a x_0 + s \epsilon, \qquad
        \epsilon \sim \mathcal N(0, 1), \quad
        \mathcal U(-\tau, \tau) \quad \text{or} \quad
        \mathcal N(0, 1) \text{ on } [-\tau, \tau], \qquad \tau = a h / s

    with h half the width of a bin. The noise has the address (image, t = 1, draw 0), so that the
    decoder's x_1 is that of the bound's term at t = 1.

    Args:
        dequantization: the distribution q.
        diffusion: the process, on the device of `x_start`.
        x_start: (B, C, H, W) levels of the data's range.
        image: (B,) int64, indices in the image set.
        seed: of the noise, 0 <= seed < 2^64.

    Returns:
        x_1 (B, C, H, W), and log q (B,) in nats.

    Source: Theis, van den Oord & Bethge 2016; Zheng et al. 2023, "Improved techniques for maximum
    likelihood estimation for diffusion ODEs", section 4.
    """
    shape = tuple(x_start.shape[1:])
    first, draw = torch.ones_like(image), torch.zeros_like(image)
    signal = math.exp(0.5 * float(diffusion.schedule.log_alphas_cumprod[0]))
    noise = math.sqrt(float(diffusion.schedule.one_minus_alphas_cumprod[0]))
    edge = signal * diffusion.data_range.half_bin / noise
    if dequantization is Dequantization.DECODER:
        eps = normal_noise(image, first, draw, shape=shape, seed=seed).to(x_start)
        log_density = -0.5 * eps.square() - _LOG_SQRT_TWO_PI
    else:
        words = noise_words(image, first, draw, shape=shape, seed=seed)
        symmetric = (words.to(x_start.dtype) + 0.5) * 2.0**-31 - 1.0  # uniform on (-1, 1)
        if dequantization is Dequantization.UNIFORM:
            eps = edge * symmetric
            log_density = torch.full_like(eps, -math.log(2 * edge))
        else:
            inside = math.erf(edge / math.sqrt(2))
            eps = (math.sqrt(2) * torch.erfinv(inside * symmetric)).clamp(-edge, edge)
            log_density = -0.5 * eps.square() - _LOG_SQRT_TWO_PI - math.log(inside)
    x_1 = signal * x_start + noise * eps
    return x_1, (log_density - math.log(noise)).flatten(1).sum(1)


def noise_words(
    image: Tensor, t: Tensor, draw: Tensor, *, shape: tuple[int, ...], seed: int
) -> Tensor:
    """(B, C, H, W) int64 words of `normal_noise`, uniform on [0, 2^32), equal on every device."""
    size = math.prod(shape)
    block = torch.arange((size + 3) // 4, device=image.device)
    words = philox_4x32((image[:, None], t[:, None], draw[:, None], block[None, :]), seed)
    return torch.stack(words, dim=-1).flatten(1)[:, :size].reshape(-1, *shape)


class Trace(StrEnum):
    """How the divergence is computed."""

    HUTCHINSON = "hutchinson"
    """estimated with random signs, one vector-Jacobian product per probe"""
    EXACT = "exact"
    """the sum of the diagonal, one vector-Jacobian product per dimension"""


@dataclasses.dataclass(frozen=True)
class OdeSettings:
    """How the likelihood of the ODE is computed.

    Attributes:
        dequantization: the distribution of x_1 given the image.
        trace: how the divergence is computed.
        probes: vectors of random signs per image, for `trace=hutchinson`; their error is known from
            2 on.
        solver: the Runge-Kutta method.
        solver_steps: solver steps from timestep 1 to T, even. A run of half as many estimates the
            error.

    Raises:
        InputError: a setting is unknown, or does not apply to the trace.
    """

    dequantization: Dequantization = Dequantization.DECODER
    trace: Trace = Trace.HUTCHINSON
    probes: int = 1
    solver: Solver = Solver.RK4
    solver_steps: int = 12

    def __post_init__(self) -> None:
        """Check every setting, and convert names to members."""
        for name, kind in (
            ("dequantization", Dequantization),
            ("trace", Trace),
            ("solver", Solver),
        ):
            one_of(name, getattr(self, name), kind)
            object.__setattr__(self, name, kind(getattr(self, name)))
        whole_number("probes", self.probes, 1, 1024)
        if whole_number("solver_steps", self.solver_steps, 2, 100_000) % 2:
            raise InputError(
                f"`solver_steps={self.solver_steps}`: half as many steps tell the error; "
                "give an even number"
            )
        if self.trace is Trace.EXACT and self.probes != 1:
            raise InputError(
                f"`probes={self.probes}`: applies only to `trace=hutchinson`; leave it out"
            )

    @property
    def record(self) -> dict[str, Any]:
        """The settings as records of a result hold them."""
        return {
            "dequantization": str(self.dequantization),
            "trace": str(self.trace),
            "probes": self.probes if self.trace is Trace.HUTCHINSON else None,
            "solver": str(self.solver),
            "solver_steps": self.solver_steps,
        }


def probe_signs(image: Tensor, probe: int, *, shape: tuple[int, ...], seed: int) -> Tensor:
    """Random signs (B, C, H, W) int64, a function of seed, image, probe and element."""
    t, draw = torch.full_like(image, PROBE), torch.full_like(image, probe)
    return 1 - 2 * (noise_words(image, t, draw, shape=shape, seed=seed) & 1)


@dataclasses.dataclass(frozen=True, eq=False)
class LogDensity:
    """The log density of x_1 under the ODE, in nats.

    Attributes:
        value: (B,).
        solver_error: (B,) Richardson's estimate of value minus true value.
        probe_error: (B,) standard error from the probes; 0 for the exact trace, NaN for one probe.
    """

    value: Tensor
    solver_error: Tensor
    probe_error: Tensor

    __repr__ = short_repr


def log_density(
    flow: ProbabilityFlow,
    x_1: Tensor,
    *,
    solver: Solver,
    steps: int,
    labels: Tensor | None = None,
    probes: Tensor | None = None,
    names: Sequence[str] | None = None,
) -> LogDensity:
    r"""The log density of x_1 under the ODE.

    The solver's error is estimated from half as many steps by Richardson's extrapolation: (coarse -
    fine) / (2^p - 1) for order p.

    Args:
        flow: the ODE.
        x_1: (B, C, H, W).
        solver: the Runge-Kutta method.
        steps: solver steps from the first timestep to the last, even.
        labels: see `ProbabilityFlow.field`.
        probes: see there.
        names: see there.
    """
    log_signal = 0.5 * flow.checkpoint.schedule.log_alphas_cumprod
    first, last = float(log_signal[0]), float(log_signal[-1])
    prior = float(flow.checkpoint.schedule.log_prior_variance)
    u_1, field = x_1 * math.exp(-first), flow.field(labels=labels, probes=probes, names=names)

    def log_p_1(steps: int) -> Tensor:
        """(B, P)."""
        u_last, integral = integrate(field, u_1, flow.start, flow.stop, steps=steps, solver=solver)
        x_last = u_last * math.exp(last)
        log_p_last = -0.5 * (x_last.square() * math.exp(-prior) + prior + math.log(2 * math.pi))
        # The density of u is a times that of x in each dimension: from x_T to u_T, and from u_1 to
        # x_1.
        return (log_p_last + last - first).flatten(1).sum(1)[:, None] + integral

    fine, coarse = log_p_1(steps), log_p_1(steps // 2)
    value = fine.mean(1)
    if probes is None:
        probe_error = torch.zeros_like(value)
    elif len(probes) == 1:
        probe_error = torch.full_like(value, torch.nan)
    else:
        probe_error = fine.std(1) / math.sqrt(len(probes))
    return LogDensity(value, (coarse.mean(1) - value) / (2**solver.order - 1), probe_error)


def timesteps_of_bound(
    image: NDArray[np.int64], num_timesteps: int, *, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    r"""Timesteps of an image's own bound, stratified evenly in log t.

    .. math:: \sum_{t=2}^T L_{t-1} \approx \sum_{k=1}^K w_k L_{t_k - 1}, \qquad
              w_k = \frac{1}{K p(t_k)}, \quad p(t) \propto \log t - \log (t - 1)

    Args:
        image: (B,) indices in the image set.
        num_timesteps: T, at least 2.
        seed: 0 <= seed < 2^64.

    Returns:
        t_k and w_k, (B, K) each with K = `TERMS_OF_BOUND`.
    """
    density = density_in_log_t(num_timesteps)
    index = torch.from_numpy(image)
    at, shape = torch.full_like(index, PLACE), (TERMS_OF_BOUND,)
    words = noise_words(index, at, torch.zeros_like(index), shape=shape, seed=seed).numpy()
    within = (np.arange(TERMS_OF_BOUND) + (words + 0.5) * 2.0**-32) / TERMS_OF_BOUND
    t = 2 + np.searchsorted(np.cumsum(density)[:-1], within, side="right")
    return t, 1 / (TERMS_OF_BOUND * density[t - 2])


class OdePass:
    """Evaluates the ODE's bound of images, and their variational bound.

    Attributes:
        flow: the ODE of the model.
        settings: how the likelihood is computed.
        shape: (C, H, W) of an image.
    """

    COLUMNS = ("decoder", "log_q", "log_p", "solver_error", "probe_error", "bound")
    """-log P(x_0 | x_1), log q(x_1 | x_0), log p(x_1), the two errors of log p, and an unbiased
    estimate of the variational bound with the ODE's decoder term."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        images: ImageSet,
        settings: OdeSettings,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        """Prepare a model and images.

        Args:
            checkpoint: the model.
            images: the image set.
            settings: how the likelihood is computed.
            seed: of the noise and the probes, 0 <= seed < 2^64.
            device: where the network runs.
        """
        self.flow = ProbabilityFlow(checkpoint, device)
        self._terms = TermsPass(
            self.flow.checkpoint, images, seed=seed, decoder="exact", device=device
        )
        self.settings, self.shape = settings, tuple(images.pixels.shape[1:])
        self._images, self._seed, self._device = images, seed, device

    @property
    def num_evaluations(self) -> int:
        """Network evaluations so far, including those of the variational bound."""
        return self.flow.num_evaluations + self._terms.num_evaluations

    @property
    def num_vjps(self) -> int:
        """Vector-Jacobian products of the network so far."""
        return self.flow.num_vjps

    def evaluate(self, image: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """The parts of the bound, which is decoder + log_q - log_p.

        Args:
            image: (B,) indices in the image set.

        Returns:
            (B,) for each of `COLUMNS`, in nats per dimension.

        Raises:
            InputError: the ODE or its divergence is not finite, or the network has no gradient.
        """
        diffusion, settings = self.flow.diffusion, self.settings
        x_start, shape = self._terms.x_start(image), self.shape
        labels = torch.from_numpy(self._terms.labels(image)).to(self._device)
        index = torch.from_numpy(image).to(self._device)
        kind = settings.dequantization
        x_1, log_q = sample_x_1(kind, diffusion, x_start, index, seed=self._seed)
        probes = None
        if settings.trace is Trace.HUTCHINSON:
            signs = [
                probe_signs(index, probe, shape=shape, seed=self._seed)
                for probe in range(settings.probes)
            ]
            probes = torch.stack(signs).to(x_start)
        log_p = log_density(
            self.flow,
            x_1,
            solver=settings.solver,
            steps=settings.solver_steps,
            labels=labels if len(labels) else None,
            probes=probes,
            names=[self._images.ids[i] for i in image],
        )
        nats = (log_q, log_p.value, log_p.solver_error, log_p.probe_error)
        per_dim = [value.cpu().numpy().astype(np.float64) / math.prod(shape) for value in nats]
        decoder, others = self._variational_bound(image)
        in_bound = decoder if kind is Dequantization.DECODER else np.zeros_like(decoder)
        columns = (in_bound, *per_dim, decoder + others)
        return dict(zip(self.COLUMNS, columns, strict=True))

    def _variational_bound(
        self, image: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(B,) the decoder term, and prior and kl, per dimension."""
        draw = np.zeros_like(image)
        first = TermIndex(image=image, t=np.ones_like(image), draw=draw)
        num_timesteps = self.flow.checkpoint.schedule.num_timesteps
        timesteps, weights = timesteps_of_bound(image, num_timesteps, seed=self._seed)
        others = self._terms.prior(image)
        for k in range(TERMS_OF_BOUND):
            index = TermIndex(image=image, t=timesteps[:, k], draw=draw + BOUND_DRAW + k)
            others = others + weights[:, k] * self._terms.terms(index).values["nats"]
        return self._terms.terms(first).values["nats"], others


def evaluations_per_image(settings: OdeSettings, shape: tuple[int, ...]) -> tuple[int, int]:
    """Network evaluations and vector-Jacobian products of `OdePass` per image (C, H, W)."""
    of_ode = settings.solver.num_stages * (settings.solver_steps + settings.solver_steps // 2)
    vjps = math.prod(shape) if settings.trace is Trace.EXACT else settings.probes
    return of_ode + 1 + TERMS_OF_BOUND, of_ode * vjps


@dataclasses.dataclass(frozen=True, eq=False)
class OdeEstimate:
    """The ODE's bound of a set of N images, in nats per dimension.

    Attributes:
        nats: the bound.
        half_width: of its 95 % interval for these images; None where the noise is unknown.
        half_width_population: of the interval for the population of the images; None for one image.
        difference: the bound minus the variational bound.
        difference_half_width: of its interval for the population; None for one image.
    """

    nats: float
    half_width: float | None
    half_width_population: float | None
    difference: float
    difference_half_width: float | None

    __repr__ = short_repr


@dataclasses.dataclass(frozen=True)
class KnownBound:
    """The variational bound of all N images.

    Attributes:
        nats: per dimension.
        half_width: of its 95 % interval for these images.
        half_width_population: of that for their population.
        num_images: N.
    """

    nats: float
    half_width: float
    half_width_population: float
    num_images: int


def estimate_ode(
    ode: NDArray[np.float64], bound: NDArray[np.float64], known: KnownBound | None = None
) -> OdeEstimate:
    r"""The ODE's bound from n pairs of ODE bound and unbiased estimate of the variational bound.

    .. math:: \bar b_N + \frac1n \sum_{i=1}^n (o_i - \hat b_i)

    where the variational bound is known for all N images, of which the n are a random sample; else
    the mean of the o_i. The variance of the differences covers the choice of images, the noise of
    the ODE and that of the pairs' bounds.

    Args:
        ode: (n,) o_i, nats per dimension.
        bound: (n,) b_i of the same images, with the same decoder term where the ODE has one.
        known: the variational bound of all images.

    Source: Cochran 1977, section 7.2, "Sampling techniques", on the difference estimator.
    """
    count, differences = len(ode), ode - bound
    difference = float(differences.mean())
    if count == 1:
        nats = float(ode[0]) if known is None else known.nats + difference
        return OdeEstimate(nats, None, None, difference, None)
    of_difference = half_width_of(float(differences.var(ddof=1)) / count, count - 1)
    if known is None:
        population = half_width_of(float(ode.var(ddof=1)) / count, count - 1)
        return OdeEstimate(float(ode.mean()), None, population, difference, of_difference)
    # Images with a high bound may have large differences. The noise of the ODE makes this too
    # large.
    covariance = max(0.0, float(np.cov(ode, differences)[0, 1])) / known.num_images
    together = 2 * quantile(count - 1) ** 2 * covariance
    return OdeEstimate(
        nats=known.nats + difference,
        half_width=math.hypot(known.half_width, of_difference),
        half_width_population=math.sqrt(
            known.half_width_population**2 + of_difference**2 + together
        ),
        difference=difference,
        difference_half_width=of_difference,
    )
