"""Models whose answer is known, and their bound worked out without the package.

Nothing here uses the package's arithmetic: the denoisers are Bayes' rule for mixtures of normals,
and `reference_terms` is a second implementation of the bound, in numpy and scipy.
"""

import dataclasses
import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_ndtr
from torch import Tensor, nn

from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.data_range import UNIT_RANGE, DataRange
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.process import Prediction, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule

Array = NDArray[np.float64]


class MixtureDenoiser(nn.Module):
    """The best denoiser there is of data from a mixture of K equally likely normals.

    With K = 1 the data are Gaussian, and it is linear; with no spread the data are a finite set of
    images. It is a network as a `Checkpoint` has it, with `TimeInput.INDEX`. Where the variance is
    learned, it gives that of q(x_{t-1} | x_t) on its own schedule: the matched one.

    Args:
        means: (K, C, H, W).
        schedule: the schedule it is trained on.
        spread: variance about the means, broadcastable to (C, H, W).
        prediction: what it outputs.
        variance: which variance goes with it.
        classes: (K,) the class of each mean; with labels, only means of that class are possible.
    """

    def __init__(
        self,
        means: Tensor,
        schedule: NoiseSchedule,
        *,
        spread: Tensor | float = 0.0,
        prediction: str = "eps",
        variance: str = "fixed_small",
        classes: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.prediction, self.variance = Prediction(prediction), Variance(variance)
        self.schedule = schedule
        alphas_cumprod = torch.from_numpy(exact_alphas_cumprod(schedule))
        self.register_buffer("means", means.double())
        self.register_buffer("spread", torch.as_tensor(spread).double().expand(means.shape[1:]))
        self.register_buffer("alphas_cumprod", alphas_cumprod)
        self.register_buffer("previous", torch.cat([torch.ones(1).double(), alphas_cumprod[:-1]]))
        self.register_buffer("classes", classes)

    def posterior(
        self, x_t: Tensor, alphas_cumprod: Tensor, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of the data given x_t, (B, C, H, W) each, float64."""
        x = x_t.double()[:, None]
        ab = alphas_cumprod.double()[:, None, None, None, None]
        total = ab * self.spread + (1 - ab)
        residual = x - ab.sqrt() * self.means
        log_weight = -0.5 * (residual.square() / total).flatten(2).sum(2)
        if labels is not None:
            log_weight = log_weight.masked_fill(labels[:, None] != self.classes, -torch.inf)
        weight = log_weight.softmax(1)[..., None, None, None]
        mean_of_each = self.means + ab.sqrt() * self.spread / total * residual
        mean = (weight * mean_of_each).sum(1)
        between = (weight * (mean_of_each - mean[:, None]).square()).sum(1)
        return mean, between + (self.spread * (1 - ab) / total)[:, 0]

    def forward(self, x_t: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        index = time.round().long()
        if self.prediction is Prediction.EDM:
            x_t = (x_t * self._width(index)).to(x_t.dtype)
        mean, variance = self.posterior(x_t, self.alphas_cumprod[index], labels)
        ab, previous = (
            table[index][:, None, None, None] for table in (self.alphas_cumprod, self.previous)
        )
        x, beta = x_t.double(), 1 - ab / previous
        eps = (x - ab.sqrt() * mean) / (1 - ab).sqrt()
        x_start_weight = previous.sqrt() * beta / (1 - ab)
        x_t_weight = (ab / previous).sqrt() * (1 - previous) / (1 - ab)
        output = {
            Prediction.EPSILON: eps,
            Prediction.X_START: mean,
            Prediction.V: ab.sqrt() * eps - (1 - ab).sqrt() * mean,
            Prediction.SCORE: -eps / (1 - ab).sqrt(),
            Prediction.VELOCITY: eps - mean,
            Prediction.EDM: self._inside_edm(x, mean, index),
            Prediction.PREVIOUS_MEAN: x_start_weight * mean + x_t_weight * x,
        }[self.prediction]
        if self.variance.is_learned:
            posterior = beta * (1 - previous) / (1 - ab)
            log_matched = (posterior + x_start_weight**2 * variance).clamp_min(1e-9).log()
            if self.variance is Variance.LEARNED_RANGE:
                first = (index == 0)[:, None, None, None]
                low = torch.where(first, self._second_posterior_variance(), posterior).log()
                share = (log_matched - low) / (beta.log() - low)
                log_matched = (2 * share - 1).clamp(-1, 1)
            output = torch.cat([output, log_matched], dim=1)
        return output.to(x_t.dtype)

    def _width(self, index: Tensor) -> Tensor:
        """1 / c_in of EDM, whose data have the deviation 0.5, for x_t of unit scale."""
        ab = self.alphas_cumprod[index][:, None, None, None]
        return (1 - 0.75 * ab).sqrt()

    def _inside_edm(self, x: Tensor, mean: Tensor, index: Tensor) -> Tensor:
        ab = self.alphas_cumprod[index][:, None, None, None]
        width = self._width(index)
        return (mean - 0.25 * ab.sqrt() / width**2 * x) * width / (0.5 * (1 - ab).sqrt())

    def _second_posterior_variance(self) -> Tensor:
        ab, previous = self.alphas_cumprod[1], self.alphas_cumprod[0]
        return (1 - ab / previous) * (1 - previous) / (1 - ab)


class GaussianNetwork(nn.Module):
    """The best predictor there is of data from N(mean, diag(spread)), at any level of noise.

    It takes x at the scale of its family, and the log SNR (`TimeInput.LOG_SNR`).

    Args:
        mean: (C, H, W).
        spread: (C, H, W) variances.
        process: the family: "vp", "sub-vp", "ve" or "flow".
        prediction: what it outputs: "eps", "x_start", "v", "score" or "velocity".
    """

    def __init__(
        self, mean: Tensor, spread: Tensor, *, process: str = "vp", prediction: str = "eps"
    ) -> None:
        super().__init__()
        self.mean, self.spread = mean.double(), spread.double()
        self.process, self.prediction = process, prediction
        self.num_evaluations = 0

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        self.num_evaluations += 1
        sigma = (-0.5 * log_snr.double()).exp()[:, None, None, None]
        unit = 1 / (1 + sigma.square()).sqrt()
        noise = 2 / (1 + (1 + 4 / sigma.square()).sqrt())
        signal = {
            "vp": unit,
            "sub-vp": (1 - noise).sqrt(),
            "ve": torch.ones_like(sigma),
            "flow": 1 / (1 + sigma),
        }[self.process]
        residual = x.double() / signal - self.mean
        eps = sigma * residual / (self.spread + sigma.square())
        x_start = self.mean + self.spread * residual / (self.spread + sigma.square())
        return {
            "eps": eps,
            "x_start": x_start,
            "v": unit * (eps - sigma * x_start),
            "score": -eps / (signal * sigma),
            "velocity": eps - x_start,
        }[self.prediction]


def gaussian_denoiser(
    spread: Tensor, schedule: NoiseSchedule, *, variance: str = "learned"
) -> MixtureDenoiser:
    """The linear denoiser of data from N(0, diag(spread)), spread (C, H, W)."""
    return MixtureDenoiser(
        torch.zeros(1, *spread.shape), schedule, spread=spread, variance=variance
    )


def oracle_images(
    num_images: int = 6,
    *,
    shape: tuple[int, int, int] = (1, 4, 4),
    num_classes: int = 0,
    seed: int = 0,
) -> ImageSet:
    """Random 8-bit images, all different and none its own mirror image."""
    pixels = np.random.default_rng(seed).integers(0, 256, (num_images, *shape), dtype=np.uint8)
    labels = np.arange(num_images) % num_classes if num_classes else None
    ids = [f"oracle-{i}" for i in range(num_images)]
    return ImageSet(pixels, ids, f"oracle images, seed {seed}", labels=labels)


def checkpoint_of(network: nn.Module, schedule: NoiseSchedule, **fields: object) -> Checkpoint:
    """A checkpoint of a network in memory, which predicts the noise in gray images."""
    usual = {
        "prediction": Prediction.EPSILON,
        "variance": Variance.FIXED_SMALL,
        "channels": 1,
        "family": "oracle",
        "source": "oracle",
        "sha256": "0" * 64,
    }
    return Checkpoint(network=network, schedule=schedule, **(usual | fields))


def oracle_checkpoint(
    images: ImageSet,
    schedule: NoiseSchedule | None = None,
    *,
    prediction: str = "eps",
    variance: str = "fixed_small",
    clip: bool = True,
    spread: float = 0.0,
    data_range: DataRange = UNIT_RANGE,
) -> Checkpoint:
    """The best possible model of a set of images that are equally likely.

    With a spread it is that of the images with normal noise on them, which is what makes small
    steps matter, and the predicted x_start leave the data's range.
    """
    schedule = NoiseSchedule.linear(50) if schedule is None else schedule
    classes = None if images.labels is None else torch.from_numpy(images.labels)
    network = MixtureDenoiser(
        model_range(images, data_range),
        schedule,
        spread=spread,
        prediction=prediction,
        variance=variance,
        classes=classes,
    )
    weights = b"".join(
        value.contiguous().numpy().tobytes() for value in network.state_dict().values()
    )
    _, channels, height, width = images.pixels.shape
    return checkpoint_of(
        network,
        schedule,
        prediction=Prediction(prediction),
        variance=Variance(variance),
        channels=channels,
        sha256=hashlib.sha256(weights).hexdigest(),
        clip=clip,
        data_range=data_range,
        image_size=height if height == width else None,
        num_classes=0 if images.labels is None else int(images.labels.max()) + 1,
    )


def unit_range(images: ImageSet) -> Tensor:
    """(N, C, H, W) float64 in [-1, 1]."""
    return torch.from_numpy(images.pixels.astype(np.float64) / 127.5 - 1)


def model_range(images: ImageSet, of: DataRange) -> Tensor:
    """(N, C, H, W) float64, the levels of a range."""
    share = np.floor(images.pixels / 256 * of.levels) / (of.levels - 1)
    return torch.from_numpy(of.low + share * (of.high - of.low))


def scaled_schedule(schedule: NoiseSchedule, of: DataRange) -> NoiseSchedule:
    """Its x_t of data in a range are affine images of what the schedule makes of them on [-1, 1].

    Its signal-to-noise ratio is so many times that of the schedule as data on [-1, 1] have the
    variance of data in the range.
    """
    ab, half = schedule.alphas_cumprod.numpy(), (of.high - of.low) / 2
    return NoiseSchedule.from_alphas_cumprod(ab / (ab + half**2 * (1 - ab)), name="scaled")


class ScaledNetwork(nn.Module):
    """A network for a range of the data that does what another does for [-1, 1].

    Args:
        network: predicts the noise, given the index of a step.
        schedule: its schedule.
        of: the range; `scaled_schedule` goes with it.
    """

    def __init__(self, network: nn.Module, schedule: NoiseSchedule, of: DataRange) -> None:
        super().__init__()
        self.network = network
        own = exact_alphas_cumprod(schedule)
        scaled = exact_alphas_cumprod(scaled_schedule(schedule, of))
        self.shift = torch.from_numpy(np.sqrt(scaled) * (of.low + of.high) / 2)
        self.scale = torch.from_numpy(np.sqrt((1 - scaled) / (1 - own)))

    def forward(self, x_t: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        index, more = time.round().long(), () if labels is None else (labels,)
        shift, scale = (table[index].reshape(-1, 1, 1, 1) for table in (self.shift, self.scale))
        return self.network(((x_t.double() - shift) / scale).to(x_t.dtype), time, *more)


def log_snr_schedule(
    num_timesteps: int, *, first: float = 14.0, last: float = -8.0
) -> NoiseSchedule:
    """Steps evenly spaced in the log of the signal-to-noise ratio, from first to last.

    It starts below the width of a bin, so that the decoder costs nothing once an image is known.
    """
    log_snr = np.linspace(first, last, num_timesteps)
    return NoiseSchedule.from_alphas_cumprod(1 / (1 + np.exp(-log_snr)), name="log_snr")


def exact_alphas_cumprod(schedule: NoiseSchedule) -> Array:
    """(T,) from the variances alone, in more digits than float64 where the machine has them."""
    return np.cumprod(1 - schedule.betas.numpy().astype(np.longdouble)).astype(np.float64)


def entropy_bits_per_dim(spread: Tensor) -> float:
    """The differential entropy of N(0, diag(spread))."""
    return float(0.5 * torch.log2(2 * torch.pi * torch.e * spread.double()).mean())


def reference_terms(
    checkpoint: Checkpoint,
    alphas_cumprod: Array,
    x_start: Tensor,
    t: NDArray[np.int64],
    eps: Tensor,
    labels: Tensor | None = None,
) -> Array:
    """(B,) terms of the bound of an oracle's checkpoint, nats per dimension.

    It takes the schedule as an array and asks the denoiser for the posterior mean at a noise level,
    so that neither the package's tables nor its idea of time enter.
    """
    network = checkpoint.network
    assert isinstance(network, MixtureDenoiser)
    padded = np.append(1.0, alphas_cumprod)
    ab, previous = (padded[i].reshape(-1, 1, 1, 1) for i in (t, t - 1))
    beta = 1 - ab / previous
    posterior = beta * (1 - previous) / (1 - ab)
    second = (1 - padded[2] / padded[1]) * (1 - padded[1]) / (1 - padded[2])
    x0 = x_start.double().numpy()
    x_t = np.sqrt(ab) * x0 + np.sqrt(1 - ab) * eps.double().numpy()
    mean, spread = (
        value.numpy()
        for value in network.posterior(
            torch.from_numpy(x_t), torch.from_numpy(ab.reshape(-1)), labels
        )
    )
    if checkpoint.clip and checkpoint.prediction is not Prediction.PREVIOUS_MEAN:
        mean = mean.clip(checkpoint.data_range.low, checkpoint.data_range.high)
    x_start_weight = np.sqrt(previous) * beta / (1 - ab)
    first = (t == 1).reshape(-1, 1, 1, 1)
    small = np.where(first, second, posterior)
    match checkpoint.variance:
        case Variance.FIXED_SMALL:
            variance = small
        case Variance.FIXED_LARGE:
            variance = np.where(first, second, beta)
        case Variance.LEARNED:
            variance = np.maximum(posterior + x_start_weight**2 * spread, 1e-9)
        case Variance.LEARNED_RANGE:
            matched = np.maximum(posterior + x_start_weight**2 * spread, 1e-9)
            variance = np.clip(matched, np.minimum(small, beta), np.maximum(small, beta))
    error = x_start_weight**2 * (x0 - mean) ** 2
    kl = 0.5 * (np.log(variance / small) + (small + error) / variance - 1)
    decoder = -bin_log_prob(x0, mean, np.sqrt(variance), checkpoint.data_range)
    return np.where(first, decoder, kl).reshape(len(t), -1).mean(1)


def bin_log_prob(x: Array, mean: Array, scale: Array, of: DataRange = UNIT_RANGE) -> Array:
    step = (of.high - of.low) / (of.levels - 1)
    low = np.where(x < of.low + step / 4, -np.inf, (x - mean - step / 2) / scale)
    high = np.where(x > of.high - step / 4, np.inf, (x - mean + step / 2) / scale)
    flip = low > 0  # into the left tail, where log_ndtr has its digits
    low, high = np.where(flip, -high, low), np.where(flip, -low, high)
    return log_ndtr(high) + np.log(-np.expm1(log_ndtr(low) - log_ndtr(high)))


def reference_prior(alphas_cumprod: Array, x_start: Tensor) -> Array:
    """(B,) KL(q(x_T | x_start) || N(0, I)), nats per dimension."""
    last = alphas_cumprod[-1]
    x0 = x_start.double().numpy()
    kl = 0.5 * (last * x0**2 + (1 - last) - 1 - np.log1p(-last))
    return kl.reshape(len(x0), -1).mean(1)


@dataclasses.dataclass(frozen=True, eq=False)
class ExpectedTerms:
    """The expectation of every term over the noise, by brute force.

    Attributes:
        prior: (N,) nats per dimension, exact.
        term: (N, T) mean over the draws, nats per dimension.
        standard_error: (N, T) of that mean.
    """

    prior: Array
    term: Array
    standard_error: Array

    @property
    def nats(self) -> float:
        """The bound, nats per dimension."""
        return float((self.prior + self.term.sum(1)).mean())


def expected_terms(
    checkpoint: Checkpoint, images: ImageSet, *, draws: int, seed: int = 0
) -> ExpectedTerms:
    """Every (image, step) of an oracle's checkpoint, with noise of its own."""
    generator = torch.Generator().manual_seed(seed)
    alphas_cumprod = exact_alphas_cumprod(checkpoint.schedule)
    x_start = unit_range(images)
    labels = None if images.labels is None else torch.from_numpy(images.labels)
    steps = range(1, len(alphas_cumprod) + 1)
    shape = (len(x_start), len(steps))
    term, error = np.empty(shape), np.empty(shape)
    for n, t in np.ndindex(shape):
        x = x_start[n].expand(draws, *x_start.shape[1:])
        values = reference_terms(
            checkpoint,
            alphas_cumprod,
            x,
            np.full(draws, t + 1),
            torch.randn(x.shape, generator=generator, dtype=torch.float64),
            None if labels is None else labels[n].expand(draws),
        )
        term[n, t], error[n, t] = values.mean(), values.std(ddof=1) / np.sqrt(draws)
    return ExpectedTerms(reference_prior(alphas_cumprod, x_start), term, error)
