"""Coverage of the 95 % intervals: every kind of interval, over many image sets and seeds.

    python benchmarks/coverage_study.py --out results/coverage

The denoiser is linear, the best one for normal data; the images are normal with more or less
contrast. So the bound of an image, that of its population, and the likelihood of the ODE are known
in closed form. The designs, passes and estimators are those of the package's commands.
"""

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch
from scipy.special import log_ndtr
from scipy.stats import norm
from torch import nn

from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.continuous import ContinuousTime
from ddpmbench.diffusion.data_range import NATS_PER_BIT
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.process import Prediction, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.likelihood.continuous import (
    ContinuousDesign,
    ContinuousTermsPass,
    estimate_difference,
)
from ddpmbench.likelihood.designs import ImportanceDesign, PilotDesign, proposal_density
from ddpmbench.likelihood.image_scores import (
    ImageScores,
    PerImageDesign,
    estimate_image_scores,
    mean_difference,
)
from ddpmbench.likelihood.importance_estimator import (
    SampledBound,
    initial_replicates,
    regression_estimate,
)
from ddpmbench.likelihood.ode import KnownBound, OdePass, OdeSettings, estimate_ode
from ddpmbench.likelihood.regression import FeatureTable, GaussianFeatures
from ddpmbench.likelihood.sub_schedules import Transitions
from ddpmbench.likelihood.terms import TermIndex, TermsPass, TermTable

SHAPE, LEVELS = (1, 4, 4), 256
VARIANCE = np.random.default_rng(1).permutation(np.geomspace(1e-3, 0.5, 16)).reshape(SHAPE)
CONTRASTS = 0.3, 1.7
"""Factors of the images' variance, equally likely."""
SCHEDULE = NoiseSchedule.linear(200)
NUM_IMAGES, NUM_ODE_IMAGES, NUM_SCORED, EVALUATIONS = 100, 20, 16, 64
CONTINUOUS_TERMS = 100
NORMAL = norm.ppf(0.975)
_BATCH = 20_000
_CPU = torch.device("cpu")


class LinearDenoiser(nn.Module):
    """The best predictor of the noise for normal data, at and between timesteps."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.variance = ContinuousTime(SCHEDULE), torch.from_numpy(VARIANCE)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """The predicted noise in x, at a time from 0 to T - 1."""
        log_snr = torch.from_numpy(self.time.log_snr(time.double().numpy() + 1))[
            :, None, None, None
        ]
        signal, noise = log_snr.sigmoid(), (-log_snr).sigmoid()
        return noise.sqrt() / (signal * self.variance + noise) * x


MODEL = Checkpoint(
    network=LinearDenoiser(),
    schedule=SCHEDULE,
    prediction=Prediction.EPSILON,
    variance=Variance.FIXED_SMALL,
    channels=1,
    family="oracle",
    source="normal data",
    sha256="0" * 64,
    clip=False,
)


# ---- the truth


@dataclasses.dataclass(frozen=True)
class Truth:
    """A bound in closed form, a mean over pixels of a function of position and level.

    Attributes:
        table: (D, 256) nats by position and level.
    """

    table: np.ndarray

    def of_images(self, pixels: np.ndarray) -> np.ndarray:
        """(N,) bounds of 8-bit images, nats per dimension."""
        flat = pixels.reshape(len(pixels), -1)
        return self.table[np.arange(flat.shape[1]), flat].mean(1)

    @property
    def of_population(self) -> float:
        """Expected bound under the distribution of the images."""
        edges = (np.arange(1, LEVELS) - 0.5) / 127.5 - 1
        scales = [np.sqrt(contrast * VARIANCE.reshape(-1, 1)) for contrast in CONTRASTS]
        below = np.mean([norm.cdf(edges / scale) for scale in scales], axis=0)
        return float((np.diff(below, prepend=0, append=1) * self.table).sum(1).mean())


def truths() -> dict[str, Truth]:
    """The discrete bound, the bound in continuous time, and that of the ODE."""
    x, v = np.arange(LEVELS) / 127.5 - 1, VARIANCE.reshape(-1, 1)
    snr, signal = SCHEDULE.snr.numpy(), SCHEDULE.alphas_cumprod.numpy()

    def antiderivative(r: float) -> np.ndarray:
        """Half of the squared error of x_start, integrated over the signal-to-noise ratio."""
        return (np.log1p(r * v) + 1 / (1 + r * v) - x**2 / v / (1 + r * v)) / 2

    t = np.arange(2, len(snr) + 1)
    weight = Transitions(SCHEDULE).weight(Variance.FIXED_SMALL, t - 1, t)
    error = [(x**2 + r * v**2) / (1 + r * v) ** 2 for r in snr[1:]]
    last = signal[-1]
    prior = 0.5 * (last * x**2 + (1 - last) - 1 - np.log1p(-last)) + 0 * v
    first = prior + _decoder()
    growth = (v + 1 / snr[-1]) / (v + 1 / snr[0])
    # x_T = g x_1 with x_1 = a x_0 + s eps, and its density under N(0, 1).
    of_x_1 = last / signal[0] * growth
    square = of_x_1 * (signal[0] * x**2 + 1 - signal[0])
    log_p = -0.5 * (square + math.log(2 * math.pi)) + 0.5 * np.log(of_x_1)
    log_q = -0.5 * (1 + math.log(2 * math.pi) + math.log(1 - signal[0]))
    return {
        "discrete": Truth(first + np.tensordot(weight, error, 1)),
        "continuous": Truth(first + antiderivative(snr[0]) - antiderivative(snr[-1])),
        "ode": Truth(_decoder() + log_q - log_p),
    }


def _decoder() -> np.ndarray:
    """(D, 256) expectation of the decoder term, by quadrature over the noise."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    x, v = (np.arange(LEVELS) / 127.5 - 1)[:, None], VARIANCE.reshape(-1, 1, 1)
    signal, scale = float(SCHEDULE.alphas_cumprod[0]), float(SCHEDULE.posterior_variance[1]) ** 0.5
    x_1 = math.sqrt(signal) * x + math.sqrt(1 - signal) * nodes
    mean = math.sqrt(signal) * v / (signal * v + 1 - signal) * x_1
    low = np.where(x > x[0], (x - mean - 1 / 255) / scale, -np.inf)
    high = np.where(x < x[-1], (x - mean + 1 / 255) / scale, np.inf)
    flip = low > 0
    low, high = np.where(flip, -high, low), np.where(flip, -low, high)
    log_p = log_ndtr(high) + np.log(-np.expm1(log_ndtr(low) - log_ndtr(high)))
    return -(log_p @ weights) / weights.sum()


# ---- the package's estimates


def images_of(count: int, seed: int) -> ImageSet:
    """8-bit images from the population."""
    generator = np.random.default_rng(seed)
    contrast = generator.choice(CONTRASTS, size=(count, 1, 1, 1))
    numbers = generator.normal(size=(count, *SHAPE)) * np.sqrt(contrast * VARIANCE)
    pixels = np.rint((numbers.clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    return ImageSet(pixels, [str(i) for i in range(count)], "normal data")


def tables_of(terms_pass: TermsPass, designs: Iterable, offsets: Iterable[int]) -> list[TermTable]:
    """The terms of designs, each on the images from its offset on, evaluated together."""
    indices = [design.index(0, len(design)) for design in designs]
    places = [
        (index.image + offset, index.t, index.draw)
        for index, offset in zip(indices, offsets, strict=True)
    ]
    image, t, draw = (np.concatenate(column) for column in zip(*places, strict=True))
    parts = [
        terms_pass.terms(TermIndex(image[i : i + _BATCH], t[i : i + _BATCH], draw[i : i + _BATCH]))
        for i in range(0, len(image), _BATCH)
    ]
    names = parts[0].values
    values = {name: np.concatenate([part.values[name] for part in parts]) for name in names}
    ends = np.cumsum([len(index) for index in indices])
    return [
        TermTable(index, {name: value[end - len(index) : end] for name, value in values.items()})
        for index, end in zip(indices, ends, strict=True)
    ]


def sampled_bounds(
    terms_pass: TermsPass, pixels: list[np.ndarray], offsets: list[int]
) -> list[SampledBound]:
    """The bound of each image set by the importance estimator with the fewest replicates."""
    schedule, num_images = terms_pass.diffusion.schedule, len(pixels[0])
    size = (num_images, schedule.num_timesteps)
    pilots = [PilotDesign(*size, seed) for seed in range(len(pixels))]
    densities = [
        proposal_density(pilot, [table])
        for pilot, table in zip(pilots, tables_of(terms_pass, pilots, offsets), strict=True)
    ]
    designs = [
        ImportanceDesign(*size, density, seed, initial_replicates(num_images))
        for seed, density in enumerate(densities)
    ]
    bounds = []
    tables = tables_of(terms_pass, designs, offsets)
    for design, table, images, offset in zip(designs, tables, pixels, offsets, strict=True):
        features = FeatureTable.of(GaussianFeatures.fit(images, schedule), images, design)
        prior = terms_pass.prior(np.arange(offset, offset + num_images))
        bounds.append(regression_estimate(design, prior, [table], features, clip=False))
    return bounds


def image_scores(
    terms_pass: TermsPass, offsets: list[int], density: np.ndarray
) -> list[ImageScores]:
    """The scores of the first images of each set."""
    size = (NUM_SCORED, SCHEDULE.num_timesteps)
    designs = [PerImageDesign(*size, density, seed, EVALUATIONS) for seed in range(len(offsets))]
    return [
        estimate_image_scores(
            design, terms_pass.prior(np.arange(offset, offset + NUM_SCORED)), [table]
        )
        for design, table, offset in zip(
            designs, tables_of(terms_pass, designs, offsets), offsets, strict=True
        )
    ]


def study(replications: int, *, seed: int = 0) -> pd.DataFrame:
    """Every interval of every replication, each with its own images and noise.

    Returns:
        `interval`, `of` (these images, or their population), `replication`, `error` of the
        estimate, `half_width`; bits per dimension.
    """
    known = truths()
    of_population = {name: truth.of_population for name, truth in known.items()}
    images = images_of(replications * NUM_IMAGES, seed)
    offsets = [NUM_IMAGES * k for k in range(replications)]
    pixels = [images.pixels[offset : offset + NUM_IMAGES] for offset in offsets]
    of_images = {
        name: truth.of_images(images.pixels).reshape(replications, -1)
        for name, truth in known.items()
    }
    how = {"seed": seed, "decoder": "exact", "device": _CPU}
    discrete = TermsPass(MODEL, images, **how)
    continuous = ContinuousTermsPass(MODEL, images, **how)
    alone = ContinuousTermsPass(MODEL.in_continuous_time(), images, **how)
    rows = []

    def add(interval: str, k: int, error: float, half_width: float, *, population: bool) -> None:
        target = "population" if population else "these images"
        rows.append((interval, target, k, error / NATS_PER_BIT, half_width / NATS_PER_BIT))

    def add_both(interval: str, truth: str, k: int, nats: float, own: float, all_: float) -> None:
        add(interval, k, nats - of_images[truth][k].mean(), own, population=False)
        add(interval, k, nats - of_population[truth], all_, population=True)

    bounds = sampled_bounds(discrete, pixels, offsets)
    continuous_bounds = sampled_bounds(alone, pixels, offsets)
    for name, estimates in (("discrete", bounds), ("continuous", continuous_bounds)):
        for k, bound in enumerate(estimates):
            widths = bound.half_width, bound.half_width_population
            add_both(name, name, k, bound.nats, *widths)
    ode = _ode(images, offsets, seed)
    for k, (bound, offset) in enumerate(zip(bounds, offsets, strict=True)):
        design = ContinuousDesign(NUM_IMAGES, SCHEDULE.num_timesteps, k, CONTINUOUS_TERMS)
        passes = continuous.at(design.fractions), discrete
        tables = [tables_of(one, [design], [offset])[0] for one in passes]
        correction = estimate_difference(design, *tables).correction
        error = bound.nats + correction.nats - of_images["continuous"][k].mean()
        half_width = math.hypot(bound.half_width, correction.half_width)
        add("continuous by difference", k, error, half_width, population=False)
        widths = bound.half_width, bound.half_width_population
        estimate = estimate_ode(*ode[k], KnownBound(bound.nats, *widths, NUM_IMAGES))
        widths = estimate.half_width, estimate.half_width_population
        add_both("ode by difference", "ode", k, estimate.nats, *widths)
    pilot = PilotDesign(len(images.pixels), SCHEDULE.num_timesteps, seed)
    density = proposal_density(pilot, tables_of(discrete, [pilot], [0]))
    scores = image_scores(discrete, offsets, density)
    for k, score in enumerate(scores):
        truth = of_images["discrete"][k][:NUM_SCORED]
        add("image scores", k, (score.total - truth).mean(), score.half_width, population=False)
        error = score.total.mean() - of_population["discrete"]
        add("image scores", k, error, score.half_width_population, population=True)
        for of_one, error in zip(score.standard_error, score.total - truth, strict=True):
            add("score of an image", k, error, NORMAL * of_one, population=False)
        other = scores[(k + 1) % len(scores)]
        difference = mean_difference(score.total, other.total)
        interval = difference.difference, difference.half_width
        add("difference of two sets", k, *interval, population=True)
    return pd.DataFrame(rows, columns=["interval", "of", "replication", "error", "half_width"])


def _ode(images: ImageSet, offsets: list[int], seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The ODE's bound and the variational one of the first images of each set, in pairs."""
    settings = OdeSettings(solver_steps=24)
    ode_pass = OdePass(MODEL, images, settings, seed=seed, device=_CPU)
    chosen = np.concatenate([np.arange(o, o + NUM_ODE_IMAGES) for o in offsets])
    batches = [ode_pass.evaluate(chosen[i : i + _BATCH]) for i in range(0, len(chosen), _BATCH)]
    size = (len(offsets), NUM_ODE_IMAGES)
    columns = {
        name: np.concatenate([batch[name] for batch in batches]).reshape(size)
        for name in OdePass.COLUMNS
    }
    ode = columns["decoder"] + columns["log_q"] - columns["log_p"]
    return list(zip(ode, columns["bound"], strict=True))


def coverage(intervals: pd.DataFrame) -> pd.DataFrame:
    """One row per kind of interval: its coverage and width.

    Args:
        intervals: from `study`.

    Returns:
        `interval`, `of`, `replications`, `coverage` and its `standard_error` (intervals of one
        replication count as one), `mean_half_width`, and `measured`, 1.96 times the RMS error.
    """
    holds = intervals.error.abs() <= intervals.half_width
    groups = intervals.assign(holds=holds).groupby(["interval", "of"], sort=False)
    rows = []
    for (interval, target), group in groups:
        shares = group.groupby("replication").holds.mean()
        rows.append(
            {
                "interval": interval,
                "of": target,
                "replications": len(shares),
                "coverage": shares.mean(),
                "standard_error": shares.std() / math.sqrt(len(shares)),
                "mean_half_width": group.half_width.mean(),
                "measured": NORMAL * math.sqrt(group.error.pow(2).mean()),
            }
        )
    return pd.DataFrame(rows)


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="For the results.")
@click.option("--replications", default=2000, show_default=True, type=click.IntRange(min=2))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
def main(out: Path, replications: int, seed: int) -> None:
    """Measure the coverage of every interval on a model whose bound is known."""
    portion = 500  # replications whose terms are in memory at once
    intervals = []
    for start in range(0, replications, portion):
        part = study(min(portion, replications - start), seed=seed + start)
        intervals.append(part.assign(replication=part.replication + start))
    table = coverage(pd.concat(intervals))
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "coverage.csv", index=False)
    click.echo(table.to_string(index=False))


if __name__ == "__main__":
    main()
