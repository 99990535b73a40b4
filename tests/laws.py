"""Laws of the bound, as plain functions that raise AssertionError where the package breaks one.

`likelihood/test_oracles.py` holds the package to them; `likelihood/test_mutations.py` plants
mistakes in it and sees each one caught. They find the package's functions when they are called,
so that what was planted is what they run.
"""

import dataclasses
import itertools
import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from oracles import (
    entropy_bits_per_dim,
    exact_alphas_cumprod,
    expected_terms,
    gaussian_denoiser,
    log_snr_schedule,
    model_range,
    oracle_checkpoint,
    oracle_images,
    reference_prior,
    reference_terms,
    scaled_schedule,
    unit_range,
)
from scipy.stats import norm
from torch import Tensor

from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion import noise
from ddpmbench.diffusion.data_range import DataRange
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.process import GaussianDiffusion, Prediction, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.likelihood import bound, terms
from ddpmbench.likelihood.decoders import decoder_column
from ddpmbench.likelihood.designs import EveryPairDesign

CPU = torch.device("cpu")
LN2 = math.log(2)


def evaluate(
    checkpoint: Checkpoint,
    images: ImageSet,
    *,
    draws: int = 1,
    seed: int = 0,
    pairs_per_batch: int = 64,
) -> bound.BoundEstimate:
    """The bound as a run computes it: rows in batches, then the reduction."""
    terms_pass = terms.TermsPass(checkpoint, images, seed=seed, decoder="exact", device=CPU)
    design = EveryPairDesign(len(images), checkpoint.schedule.num_timesteps, draws)
    size = pairs_per_batch * draws
    tables = [
        terms_pass.terms(design.index(start, min(start + size, len(design))))
        for start in range(0, len(design), size)
    ]
    return bound.estimate_bound(design, terms_pass.prior(np.arange(len(images))), tables)


# ---- the schedule and the decoder


def check_schedule_digits() -> None:
    """The tables of linear T = 1000 to 12 digits, from arithmetic with 50."""
    schedule = NoiseSchedule.linear(1000)
    with localcontext() as context:
        context.prec = 50
        product, previous = Decimal(1), Decimal(1)
        for i in range(1000):
            # The doubles nearest to the variances are what the schedule is made of.
            beta = Decimal(float(np.linspace(1e-4, 0.02, 1000)[i]))
            product = previous * (1 - beta)
            expected = {
                "betas": beta,
                "alphas_cumprod": product,
                "one_minus_alphas_cumprod": 1 - product,
                "snr": product / (1 - product),
                "posterior_variance": beta * (1 - previous) / (1 - product),
            }
            for name, value in expected.items():
                got = getattr(schedule, name)[i].item()
                assert got == pytest.approx(float(value), rel=1e-12, abs=1e-300), (name, i)
            previous = product


def check_decoder_known_answers() -> None:
    """A residual of RMSE 0.95 of 255 costs 1.975 bits/dim with pv_2, 2.093 with beta_1."""
    schedule = NoiseSchedule.linear(1000)
    n = 50_000  # quantiles of the residual's distribution instead of draws of it
    residual = torch.from_numpy(norm.ppf((np.arange(n) + 0.5) / n)) * 0.95 / 127.5
    x_start = torch.full((1, 1, 1, n), 130 / 127.5 - 1, dtype=torch.float64)
    for variance in ("fixed_small", "fixed_large"):
        result = terms.bound_terms(
            schedule,
            x_start,
            torch.tensor([1]),
            torch.zeros_like(x_start),
            x_start + residual,
            prediction="x_start",
            variance=variance,
        )
        assert result.bits_per_dim.item() == pytest.approx(1.975, abs=5e-4), variance
    for scale, expected in (("posterior", 1.975), ("beta", 2.093)):
        for decoder, tolerance in (("exact", 5e-4), ("tanh", 1e-3)):
            for clip in (True, False):
                name = decoder_column(scale, decoder, clip=clip)
                found = result.decoders[name].item() / LN2
                assert found == pytest.approx(expected, abs=tolerance), name


def check_prior_known_answers() -> None:
    """Data of mean square 1/4 under linear T = 1000: 7.3e-6 bits/dim; cosine: 4e-10."""
    x_start = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    for schedule, expected in (
        (NoiseSchedule.linear(1000), 7.3e-6),
        (NoiseSchedule.cosine(1000), 4.4e-10),
    ):
        got = terms.prior_bits_per_dim(schedule, x_start).item()
        assert got == pytest.approx(expected, rel=0.01)
        reference = reference_prior(exact_alphas_cumprod(schedule), x_start).item() / LN2
        assert got == pytest.approx(reference, rel=1e-6)


def check_fixed_large_constant() -> None:
    """A perfect network pays 0.486 bits/dim for fixed_large over t >= 2, linear T = 1000."""
    schedule = NoiseSchedule.linear(1000)
    t = torch.arange(1, 1001)
    x_start = torch.zeros(1000, 1, 1, 1, dtype=torch.float64)
    eps = torch.ones_like(x_start)
    for variance, expected in (("fixed_large", 0.4864), ("fixed_small", 0.0)):
        result = terms.bound_terms(schedule, x_start, t, eps, eps, variance=variance)
        assert result.bits_per_dim[1:].sum().item() == pytest.approx(expected, abs=1e-4), variance


# ---- Gaussian data


def gaussian_gap(spread: Tensor, schedule: NoiseSchedule, variance: str) -> float:
    """Bound minus entropy, bits/dim, of N(0, diag(spread)) with its best denoiser, exactly.

    The terms are quadratic in (x_start, eps), so their mean over the signs of one standard
    deviation each is their expectation. The decoder is the continuous one.
    """
    steps = torch.arange(1, schedule.num_timesteps + 1)
    network = gaussian_denoiser(spread, schedule, variance=variance)
    deviation = spread.double().sqrt()
    diffusion = GaussianDiffusion(schedule, Prediction.EPSILON, Variance(variance), clip=False)
    nats = 0.0
    for x_sign in (1, -1):
        for eps_sign in (1, -1):
            x_start = (x_sign * deviation).expand(len(steps), *spread.shape)
            eps = eps_sign * torch.ones_like(x_start)
            x_t = diffusion.q_sample(x_start, steps, eps)
            output = network(x_t, (steps - 1).float())
            result = terms.bound_terms(
                schedule, x_start, steps, eps, output, variance=variance, clip=False
            )
            first = diffusion.p_mean_variance(output[:1], x_t[:1], steps[:1])
            error = (x_start[:1] - first.mean).square()
            decoder = math.log(2 * math.pi) + first.log_variance
            decoder = 0.5 * (decoder + error * torch.exp(-first.log_variance))
            prior = terms.prior_bits_per_dim(schedule, x_start[:1]) * LN2
            nats += (result.nats[1:].sum() + decoder.mean() + prior).item() / 4
    return nats / LN2 - entropy_bits_per_dim(spread)


def check_gaussian_entropy(num_timesteps: int) -> None:
    """With matched variances the bound is the entropy, at any number of steps."""
    generator = torch.Generator().manual_seed(0)
    for spread in (torch.full((1, 2, 2), 0.25), torch.rand(3, 2, 2, generator=generator) + 0.01):
        for schedule in (NoiseSchedule.linear(num_timesteps), NoiseSchedule.cosine(num_timesteps)):
            gap = gaussian_gap(spread, schedule, "learned")
            assert gap == pytest.approx(0.0, abs=5e-6), schedule.name


def check_gaussian_fixed_gaps() -> None:
    """White data of variance 1/4, linear T = 1000: what each fixed variance costs."""
    spread, schedule = torch.full((1, 1, 1), 0.25), NoiseSchedule.linear(1000)
    for variance, expected in (("fixed_small", 0.822), ("fixed_large", 0.165)):
        assert gaussian_gap(spread, schedule, variance) == pytest.approx(expected, abs=5e-4)


# ---- a finite set of images


def one_pixel_bits(schedule: NoiseSchedule) -> float:
    """Total bits of a pixel with 8 equally likely levels, by quadrature over the noise."""
    pixels = np.arange(0, 256, 36, dtype=np.uint8).reshape(8, 1, 1, 1)
    images = ImageSet(pixels, [str(i) for i in range(8)], "eight levels")
    checkpoint = oracle_checkpoint(images, schedule)
    nodes = torch.linspace(-8, 8, 161, dtype=torch.float64)  # rare noise counts at large weights
    weights = torch.exp(-nodes.square() / 2)
    steps = torch.arange(1, schedule.num_timesteps + 1)
    level, t, eps = (
        grid.flatten()
        for grid in torch.meshgrid(
            unit_range(images).flatten(), steps.double(), nodes, indexing="ij"
        )
    )
    level, eps = level[:, None, None, None], eps[:, None, None, None]
    t = t.long()
    x_t = checkpoint.diffusion.q_sample(level, t, eps)
    output = checkpoint.network(x_t, checkpoint.network_time(t))
    result = terms.bound_terms(schedule, level, t, eps, output, variance="fixed_small")
    prior = terms.prior_bits_per_dim(schedule, unit_range(images)).mean()
    expected = result.bits_per_dim.reshape(8, -1, len(nodes)) @ (weights / weights.sum())
    return (expected.mean(0).sum() + prior).item()


def check_finite_set_rate() -> None:
    """The bound on one of 8 levels is above 3 bits; more steps bring it there as 1 / T."""
    gaps = [one_pixel_bits(log_snr_schedule(n)) - 3 for n in (50, 100, 200, 400)]
    assert min(gaps) > 0
    assert gaps[-1] < 0.1
    ratios = [coarse / fine for coarse, fine in itertools.pairwise(gaps)]
    assert ratios == pytest.approx([2, 2, 2], rel=0.12)


def finite_set_bits(schedule: NoiseSchedule, *, draws: int) -> tuple[float, float]:
    """Total bits of an image among 8, as a run computes them; and their standard error."""
    images = oracle_images(8, shape=(1, 2, 2))
    result = evaluate(oracle_checkpoint(images, schedule), images, draws=draws)
    error = math.sqrt(np.square(result.term_standard_error).sum())
    return result.nats * 4 / LN2, error * 4 / LN2


def check_finite_set_bound() -> None:
    """A run finds one of 8 images to cost 3 bits, and what its 200 steps add."""
    bits, error = finite_set_bits(log_snr_schedule(200), draws=60)
    assert -4 * error < bits - 3 < 0.2 + 4 * error


def check_finite_set_with_short_chain() -> None:
    """A chain that stops early still knows the image: the prior pays for it."""
    bits, error = finite_set_bits(log_snr_schedule(200, last=0.0), draws=8)
    assert bits > 3 - 4 * error


# ---- rows, one at a time, against a second implementation


def check_rows(*, schedule: NoiseSchedule | None = None, **conventions: object) -> None:
    """Every value of the pass is that of `reference_terms` with the noise at the row's address."""
    images = oracle_images(5, shape=(2, 3, 4), num_classes=2)
    checkpoint = oracle_checkpoint(images, schedule, spread=0.01, **conventions)
    check_checkpoint_rows(checkpoint, images, exact_alphas_cumprod(checkpoint.schedule))


def check_checkpoint_rows(
    checkpoint: Checkpoint, images: ImageSet, alphas_cumprod: np.ndarray
) -> None:
    """`check_rows` for a checkpoint and the cumulative products it ought to have."""
    num_timesteps, seed = len(alphas_cumprod), 5
    design = EveryPairDesign(len(images), num_timesteps, 1)
    rows = design.index(0, len(design))
    terms_pass = terms.TermsPass(checkpoint, images, seed=seed, decoder="exact", device=CPU)
    got = terms_pass.terms(rows).values["nats"]
    image, t, draw = (torch.from_numpy(part) for part in (rows.image, rows.t, rows.draw))
    eps = noise.normal_noise(image, t, draw, shape=images.pixels.shape[1:], seed=seed)
    x_start = model_range(images, checkpoint.data_range)
    labels = None if images.labels is None else torch.from_numpy(images.labels)[image]
    expected = reference_terms(checkpoint, alphas_cumprod, x_start[image], rows.t, eps, labels)
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-5)
    prior = terms_pass.prior(np.arange(len(images)))
    np.testing.assert_allclose(prior, reference_prior(alphas_cumprod, x_start), rtol=1e-6)


def check_respaced() -> None:
    """A respaced model visits fewer steps of the same process and is told where they lie."""
    images = oracle_images(5)
    full = oracle_checkpoint(images, NoiseSchedule.linear(61), spread=0.01)
    steps = np.array([1, 11, 21, 31, 41, 51, 61])
    alphas_cumprod = exact_alphas_cumprod(full.schedule)[steps - 1]
    respaced = full.respaced(7)
    assert respaced.schedule.num_timesteps == 7
    assert respaced.schedule.num_original_timesteps == 61
    check_checkpoint_rows(respaced, images, alphas_cumprod)


# ---- a range of the data that is not [-1, 1] with 256 levels

RANGES = [DataRange(0, 1), DataRange(-0.5, 0.5), DataRange(0, 255), DataRange(-3, 1, 32)]


def check_rows_in_ranges() -> None:
    """`check_rows` in every range, of 32 and of 2 levels among them."""
    for of in (*RANGES, DataRange(0, 1, 2)):
        check_rows(variance="learned", data_range=of)
        check_rows(variance="fixed_large", clip=False, data_range=of)


def check_terms_do_not_depend_on_the_range() -> None:
    """A model of the affine images of another's data, with its schedule scaled, has its terms.

    With x' = a + s x and SNR' = SNR / s^2, x'_t = sqrt(ab'_t) a + r_t x_t with the same noise, and
    so a variance of p(x_{t-1} | x_t) is r_{t-1}^2 times the other's, r_0 = s. That of the posterior
    is by itself, and a learned one where the network says so; at t = 1 a fixed one is not.
    """
    generator = torch.Generator().manual_seed(0)
    schedule, t = NoiseSchedule.cosine(30), torch.arange(1, 31)
    eps, error, extra = torch.randn(3, 30, 1, 3, 3, generator=generator, dtype=torch.float64)
    pixels = torch.randint(0, 256, eps.shape, generator=generator, dtype=torch.uint8)
    for of in RANGES:
        scaled, plain = scaled_schedule(schedule, of), DataRange(levels=of.levels)
        half = (of.high - of.low) / 2
        own, its = (torch.cat([torch.ones(1), s.alphas_cumprod]) for s in (schedule, scaled))
        ratio = half * (its / own).sqrt()
        log_ratio = ratio[:-1].log().reshape(-1, 1, 1, 1)
        for variance, clip in itertools.product(("fixed_small", "learned"), (True, False)):
            output = eps + 0.3 * error
            here, there = output, output
            if variance == "learned":
                log_variance = (0.1 * schedule.betas).log().reshape(-1, 1, 1, 1) + extra
                here = torch.cat([output, log_variance], 1)
                there = torch.cat([output, log_variance + 2 * log_ratio], 1)
            options = {"variance": variance, "clip": clip}
            expected = terms.bound_terms(
                schedule, plain.to_model(pixels), t, eps, here, **options, data_range=plain
            )
            found = terms.bound_terms(
                scaled, of.to_model(pixels), t, eps, there, **options, data_range=of
            )
            where = f"{of}, {variance}, clip {clip}"
            first = 0 if variance == "learned" else 1
            np.testing.assert_allclose(
                found.nats[first:], expected.nats[first:], rtol=1e-9, err_msg=where
            )
            for name in ("x_start_mse", "x_start_mse_noclip"):
                values = getattr(found, name) / half**2
                np.testing.assert_allclose(values, getattr(expected, name), rtol=1e-9)
            np.testing.assert_allclose(found.eps_mse, expected.eps_mse, rtol=1e-9)
            if variance == "learned":
                for name in ("decoder_model_exact", "decoder_model_tanh"):
                    got = found.decoders[name][0].item()
                    assert got == pytest.approx(expected.decoders[name][0].item(), rel=1e-9), name


def uniform_pixel_bits(
    of: DataRange, num_timesteps: int, *, finest: float, terms_a_step: int
) -> float:
    """Total bits of a pixel that has any level of a range, as a run computes them.

    Its first noise is so many times finer than the distance of two levels.
    """
    pixels = np.ceil(np.arange(of.levels) * 256 / of.levels).astype(np.uint8).reshape(-1, 1, 1, 1)
    images = ImageSet(pixels, [str(i) for i in range(of.levels)], "all levels")
    noise_of_first = (of.high - of.low) / (of.levels - 1) / finest
    largest = max(abs(of.low), abs(of.high))
    schedule = log_snr_schedule(
        num_timesteps, first=-2 * math.log(noise_of_first), last=-2 * math.log(largest) - 9
    )
    checkpoint = oracle_checkpoint(images, schedule, variance="learned", data_range=of)
    return evaluate(checkpoint, images, draws=terms_a_step // of.levels).nats / LN2


def check_uniform_levels_cost_their_logarithm() -> None:
    """A pixel that may have any of L levels costs log2 L bits, whatever numbers they are.

    Where x_1 leaves it open which level it was, wrong bins would cost less than that, or much more.
    """
    for of in (DataRange(0, 1, 32), DataRange(-3, 5, 32), DataRange(0, 1, 2), DataRange(0, 255, 2)):
        gap = uniform_pixel_bits(of, 100, finest=3, terms_a_step=1500) - math.log2(of.levels)
        assert 0 < gap < 0.15, of
    for of in (DataRange(-3, 5, 32), DataRange(0, 1, 2)):
        gap = uniform_pixel_bits(of, 200, finest=6, terms_a_step=3000) - math.log2(of.levels)
        assert 0 < gap < 0.03, of


# ---- noise


class Recorder(torch.nn.Module):
    """A network that says 0 and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Tensor] = []

    def forward(self, x_t: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        self.asked.append(x_t.double())
        return torch.zeros_like(x_t)


def check_noise_is_fresh() -> None:
    """The noise of a row is uncorrelated with that of any other image, step or draw."""
    images = oracle_images(2, shape=(1, 64, 64))
    checkpoint = oracle_checkpoint(images, NoiseSchedule.linear(40))
    recorder = Recorder()
    checkpoint = dataclasses.replace(checkpoint, network=recorder)
    design = EveryPairDesign(2, 40, 2)
    rows = design.index(0, len(design))
    terms.TermsPass(checkpoint, images, seed=0, decoder="exact", device=CPU).terms(rows)
    ab = torch.from_numpy(exact_alphas_cumprod(checkpoint.schedule))[rows.t - 1, None, None, None]
    eps = (recorder.asked[0] - ab.sqrt() * unit_range(images)[rows.image]) / (1 - ab).sqrt()
    correlation = torch.corrcoef(eps.flatten(1)) - torch.eye(len(rows))
    assert correlation.abs().max() < 6 / 64  # 1 / 64 is its standard deviation


# ---- the reduction


def check_estimate_is_the_brute_force_mean() -> None:
    """Per image and in total, the estimate is the expectation; batches of any size agree."""
    images = oracle_images(5)
    checkpoint = oracle_checkpoint(images, NoiseSchedule.linear(24), spread=0.05)
    expected = expected_terms(checkpoint, images, draws=400)
    draws = 40
    estimates = [
        evaluate(checkpoint, images, draws=draws, pairs_per_batch=size) for size in (50, 120, 7)
    ]
    result = estimates[0]
    variance = expected.standard_error**2 * (1 + 400 / draws)
    error = np.sqrt(variance.sum(1))
    per_image = expected.prior + expected.term.sum(1)
    assert (np.abs(result.total - per_image) < 4.5 * error).all()
    per_step = np.sqrt(variance.sum(0)) / len(images)
    assert (np.abs(result.term - expected.term.mean(0)) < 4.5 * per_step).all()
    assert abs(result.nats - expected.nats) < 4.5 * math.sqrt(variance.sum()) / len(images)
    np.testing.assert_allclose(result.prior, expected.prior, rtol=1e-9)
    expected_error = np.sqrt(np.square(expected.standard_error).sum(0) * 400 / draws) / len(images)
    np.testing.assert_allclose(result.term_standard_error, expected_error, rtol=0.5)
    for other in estimates[1:]:
        np.testing.assert_allclose(other.term, result.term, rtol=1e-6)
        np.testing.assert_allclose(other.total, result.total, rtol=1e-6)
        assert other.nats == pytest.approx(result.nats, rel=1e-7)
