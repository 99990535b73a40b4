"""Forward processes of other families: their scales, on which likelihood does not depend."""

import dataclasses

import numpy as np
import pytest
import torch
from oracles import gaussian_denoiser, oracle_checkpoint, oracle_images
from torch import nn
from torch.distributions import Normal, kl_divergence

from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.continuous import refined
from ddpmbench.diffusion.forward_process import log_scale
from ddpmbench.diffusion.model import TimeInput
from ddpmbench.diffusion.parameterization import Prediction, Process, Variance
from ddpmbench.diffusion.process import GaussianDiffusion
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError
from ddpmbench.evaluate.nll import evaluate_nll
from ddpmbench.likelihood.designs import EveryPairDesign
from ddpmbench.likelihood.terms import TermsPass, prior_nats

SHAPE = (1, 2, 2)
SPREAD = torch.tensor([[[0.3, 0.2], [0.1, 0.02]]], dtype=torch.float64)
SIGMA = np.geomspace(0.01, 20.0, 24)
EXPLODING = NoiseSchedule.variance_exploding(24, sigma_min=0.01, sigma_max=20.0)
STEPS = torch.arange(1, 25)


def signal_and_noise(schedule):
    """(T,) a and s at the scale of the network."""
    scale = schedule.log_scale.exp()
    return scale * schedule.alphas_cumprod.sqrt(), scale * schedule.one_minus_alphas_cumprod.sqrt()


# ---- scales


@pytest.mark.parametrize(
    ("process", "is_right"),
    [
        (Process.VP, lambda a, s: a**2 + s**2 - 1),
        (Process.SUB_VP, lambda a, s: a**2 + s - 1),
        (Process.VE, lambda a, s: a - 1),
        (Process.FLOW, lambda a, s: a + s - 1),
    ],
)
def test_a_family_has_its_scale(process, is_right):
    log_snr = torch.linspace(-30, 30, 301, dtype=torch.float64)
    scale = log_scale(process, log_snr).exp()
    a, s = scale * log_snr.sigmoid().sqrt(), scale * (-log_snr).sigmoid().sqrt()
    assert is_right(a, s).abs().max() < 1e-12
    torch.testing.assert_close(2 * (a.log() - s.log()), log_snr, rtol=1e-10, atol=1e-10)


def test_the_levels_are_those_that_were_named():
    a, s = signal_and_noise(EXPLODING)
    torch.testing.assert_close(a, torch.ones_like(a))
    torch.testing.assert_close(s, torch.from_numpy(SIGMA))
    a, s = signal_and_noise(NoiseSchedule.flow(9))
    torch.testing.assert_close(s, torch.arange(1, 10, dtype=torch.float64) / 10)
    torch.testing.assert_close(a, 1 - s)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (2.0, 1.0), (0.1, np.inf), (np.nan, 1.0)])
def test_levels_that_do_not_rise_are_refused(low, high):
    with pytest.raises(InputError, match="schedule ve"):
        NoiseSchedule.variance_exploding(10, sigma_min=low, sigma_max=high)


# ---- the parts of the bound


def test_the_prior_of_ve_is_as_wide_as_its_noise():
    x_start = torch.rand(3, *SHAPE, dtype=torch.float64) * 2 - 1
    end = torch.tensor(SIGMA[-1], dtype=torch.float64)
    expected = kl_divergence(Normal(x_start, end), Normal(torch.zeros_like(end), end))
    got = prior_nats(GaussianDiffusion(EXPLODING), x_start)
    torch.testing.assert_close(got, expected.flatten(1).mean(1), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("schedule", [NoiseSchedule.flow(9), NoiseSchedule.linear(50)])
def test_the_prior_of_the_others_is_standard_normal(schedule):
    x_start = torch.rand(3, *SHAPE, dtype=torch.float64) * 2 - 1
    a, s = (of[-1] for of in signal_and_noise(schedule))
    expected = kl_divergence(Normal(a * x_start, s), Normal(0.0 * s, 1.0 + 0.0 * s))
    got = prior_nats(GaussianDiffusion(schedule), x_start)
    torch.testing.assert_close(got, expected.flatten(1).mean(1), rtol=1e-10, atol=1e-14)


def test_the_variances_of_ve_are_those_of_its_own_scale():
    variances = {}
    for variance in (Variance.FIXED_LARGE, Variance.FIXED_SMALL):
        process = GaussianDiffusion(EXPLODING, variance=variance)
        x_t = torch.zeros(24, *SHAPE, dtype=torch.float64)
        log = process.p_mean_variance(x_t, x_t, STEPS).log_variance.flatten()
        previous_scale = torch.cat([torch.zeros(1), EXPLODING.log_scale[:-1]])
        variances[variance] = (log + 2 * previous_scale).exp().numpy()
    added = np.diff(SIGMA**2)
    np.testing.assert_allclose(variances[Variance.FIXED_LARGE][1:], added)
    posterior = added * SIGMA[:-1] ** 2 / SIGMA[1:] ** 2
    np.testing.assert_allclose(variances[Variance.FIXED_SMALL][1:], posterior)
    for of in variances.values():
        assert of[0] == pytest.approx(SIGMA[0] ** 2)


# ---- the network


class OfOwnScale(nn.Module):
    """The denoiser of data from N(0, diag(spread)), which takes x_t and sigma of its process."""

    def __init__(self, schedule, prediction):
        super().__init__()
        self.schedule, self.prediction = schedule, prediction
        self.a, self.s = signal_and_noise(schedule)

    def forward(self, x, time):
        is_edm = self.prediction is Prediction.EDM
        noise = (self.s / self.a if is_edm else self.s).float().double()
        index = ((time.double()[:, None] - noise).abs() / noise).argmin(1)
        a, s = (of[index][:, None, None, None] for of in (self.a, self.s))
        x = x.double()
        if is_edm:
            assert torch.allclose(time.double(), noise[index], rtol=1e-5)
            # Table 1 of Karras et al. 2022, where x = c_in (x_start + sigma eps).
            sigma = s / a
            width = sigma**2 + 0.5**2
            noisy = x * width.sqrt()
            x_start = SPREAD / (SPREAD + sigma**2) * noisy
            return ((x_start - 0.25 / width * noisy) / (0.5 * sigma / width.sqrt())).float()
        x_start = a * SPREAD / (a**2 * SPREAD + s**2) * x
        eps = (x - a * x_start) / s
        return {
            Prediction.SCORE: -eps / s,
            Prediction.VELOCITY: eps - x_start,
            Prediction.EPSILON: eps,
            Prediction.X_START: x_start,
        }[self.prediction].float()


def model_of(schedule, prediction=Prediction.SCORE, **changes):
    checkpoint = oracle_checkpoint(oracle_images(1, shape=SHAPE), schedule, clip=False)
    return dataclasses.replace(
        checkpoint,
        network=OfOwnScale(schedule, prediction),
        prediction=prediction,
        time_input=TimeInput.SIGMA,
        **changes,
    )


def images_of_data(count=4):
    values = np.random.default_rng(0).normal(size=(count, *SHAPE)) * np.sqrt(SPREAD.numpy())
    pixels = np.rint((values.clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    return ImageSet(pixels, [str(i) for i in range(count)], "normal data")


def terms_of(checkpoint, images):
    """(N, T) nats."""
    design = EveryPairDesign(len(images), checkpoint.schedule.num_timesteps, 1)
    terms = TermsPass(checkpoint, images, seed=1, decoder="exact", device=torch.device("cpu"))
    table = terms.terms(design.index(0, len(design)))
    return table.values["nats"].reshape(len(images), -1)


@pytest.mark.parametrize("schedule", [EXPLODING, NoiseSchedule.flow(24)])
@pytest.mark.parametrize(
    "prediction",
    [
        *(Prediction.SCORE, Prediction.VELOCITY, Prediction.EPSILON, Prediction.X_START),
        Prediction.EDM,
    ],
)
def test_a_network_of_any_scale_has_the_terms_of_the_same_noise_levels(schedule, prediction):
    images = images_of_data()
    preserving = dataclasses.replace(schedule, process=Process.VP)
    same = dataclasses.replace(
        oracle_checkpoint(oracle_images(1, shape=SHAPE), preserving, clip=False),
        network=gaussian_denoiser(SPREAD, preserving, variance="fixed_small"),
    )
    got, expected = (terms_of(of, images) for of in (model_of(schedule, prediction), same))
    np.testing.assert_allclose(got[:, 1:], expected[:, 1:], rtol=0, atol=1e-6)
    np.testing.assert_allclose(got[:, 1:], expected[:, 1:], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("time_input", "expected"),
    [
        (TimeInput.SIGMA, SIGMA),
        (TimeInput.LOG_SIGMA, np.log(SIGMA)),
        (TimeInput.QUARTER_LOG_SIGMA, np.log(SIGMA) / 4),
        (TimeInput.LOG_SNR, -2 * np.log(SIGMA)),
        (TimeInput.REVERSED_INDEX, np.arange(24)[::-1]),
    ],
)
def test_a_time_input_of_the_noise(time_input, expected):
    checkpoint = model_of(EXPLODING, **{"variance": Variance.FIXED_SMALL})
    checkpoint = dataclasses.replace(checkpoint, time_input=time_input)
    np.testing.assert_allclose(checkpoint.network_time(STEPS).numpy(), expected, rtol=1e-6)
    # Between the timesteps, and in a respaced and a refined model, as at them.
    np.testing.assert_allclose(checkpoint.time_at(STEPS.double()).numpy(), expected, rtol=1e-6)
    kept = checkpoint.respaced(5)
    positions = kept.schedule.original_timesteps.numpy() - 1
    np.testing.assert_allclose(
        kept.network_time(torch.arange(1, 6)).numpy(), np.asarray(expected)[positions], rtol=1e-6
    )
    finer = dataclasses.replace(checkpoint, schedule=refined(EXPLODING, 47))
    every_second = finer.network_time(torch.arange(1, 48, 2)).numpy()
    np.testing.assert_allclose(every_second, expected, rtol=1e-6)
    between = finer.network_time(torch.arange(2, 47, 2)).numpy()
    if time_input is TimeInput.SIGMA:
        np.testing.assert_allclose(between, np.sqrt(SIGMA[1:] * SIGMA[:-1]), rtol=1e-6)


def test_the_fingerprint_tells_a_family_from_another():
    model = model_of(EXPLODING)
    other = dataclasses.replace(EXPLODING, process=Process.VP)
    assert model.fingerprint != dataclasses.replace(model, schedule=other).fingerprint
    assert model.with_conventions(schedule=other).schedule.process is Process.VP


@pytest.mark.parametrize("process", list(Process))
def test_the_sub_schedule_of_all_timesteps_is_the_run(process):
    schedule = NoiseSchedule.linear(100, beta_start=1e-3, beta_end=0.2).in_family(process)
    images = oracle_images(3, shape=SHAPE)
    model = dataclasses.replace(
        oracle_checkpoint(images, schedule, spread=0.05),
        network=NoiseOnly(),  # some network, whatever the scale
    )
    report = evaluate_nll(model, images, estimator="every-pair", draws=1)
    rows = report.sub_schedules
    own = rows[(rows.variance == "fixed_small") & (rows.spacing != "best")]
    whole = own[own.num_timesteps == 100].bits_per_dim.item()
    assert whole == pytest.approx(report.summary["bits_per_dim"], rel=1e-6)


class NoiseOnly(nn.Module):
    """Predicts a tenth of what it is given."""

    def forward(self, x, time):
        return 0.1 * x


def test_a_learned_variance_is_at_the_scale_of_the_network():
    process = GaussianDiffusion(EXPLODING, variance=Variance.LEARNED)
    x_t = torch.zeros(24, *SHAPE, dtype=torch.float64)
    output = torch.cat([x_t, torch.full_like(x_t, 0.5)], dim=1)
    log = process.p_mean_variance(output, x_t, STEPS).log_variance[:, 0, 0, 0]
    previous = torch.cat([torch.zeros(1), EXPLODING.log_scale[:-1]])
    torch.testing.assert_close(log, 0.5 - 2 * previous)
