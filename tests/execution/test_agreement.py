"""The package and a second implementation agree, term by term, within their own errors."""

import math

import numpy as np
import pytest
import torch
from peers import UNet2DModel
from scipy import stats

import ddpmbench as db
from ddpmbench.data.load import load_images
from ddpmbench.diffusion.data_range import NATS_PER_BIT
from ddpmbench.likelihood.terms import TermIndex, TermsPass


def reference_terms(network, x_start, t, eps, *, num_timesteps=1000, variance="fixed_large"):
    """(K,) draws of a term in bits/dim: Ho et al. 2020, eqs. 5, 13; linear schedule, eps, clip.

    Args:
        network: a diffusers UNet2DModel.
        x_start: (C, H, W) float64 array in [-1, 1].
        t: 1..T.
        eps: (K, C, H, W) float64 array.
    """
    beta = np.linspace(1e-4, 0.02, num_timesteps)
    bar = np.cumprod(1 - beta)

    def posterior_variance(t):
        return beta[t - 1] * (1 - bar[t - 2]) / (1 - bar[t - 1])

    x_t = math.sqrt(bar[t - 1]) * x_start + math.sqrt(1 - bar[t - 1]) * eps
    with torch.no_grad():
        output = network(torch.from_numpy(x_t).float(), t - 1).sample.double().numpy()
    predicted = (x_t - math.sqrt(1 - bar[t - 1]) * output) / math.sqrt(bar[t - 1])
    predicted = np.clip(predicted, -1, 1)
    if t == 1:
        scale = math.sqrt(posterior_variance(2))
        level = np.rint((x_start + 1) * 127.5)
        low = np.where(level == 0, -np.inf, (x_start - 1 / 255 - predicted) / scale)
        high = np.where(level == 255, np.inf, (x_start + 1 / 255 - predicted) / scale)
        flip = low > 0
        low, high = np.where(flip, -high, low), np.where(flip, -low, high)
        return -np.log2(stats.norm.cdf(high) - stats.norm.cdf(low)).mean((1, 2, 3))
    true = posterior_variance(t)
    model = beta[t - 1] if variance == "fixed_large" else true
    weight = math.sqrt(bar[t - 2]) * beta[t - 1] / (1 - bar[t - 1])
    distance = ((weight * (x_start - predicted)) ** 2).mean((1, 2, 3))
    nats = 0.5 * (math.log(model / true) + true / model - 1 + distance / model)
    return nats / math.log(2)


DRAWS = 5
NUM_IMAGES = 3
STEPS = np.unique(np.geomspace(1, 1000, 20).round().astype(int))


@pytest.fixture(scope="module")
def diffusers_folder(tmp_path_factory):
    """The shipped weights in diffusers' layout; a mistake of the writer would show below."""
    folder = tmp_path_factory.mktemp("diffusers") / "model"
    db.convert_checkpoint(db.load_checkpoint(), folder)
    return folder


@pytest.mark.slow
def test_every_term_agrees_within_its_error(diffusers_folder):
    images = load_images("fashion-mnist:test", num_images=NUM_IMAGES)
    terms_pass = TermsPass(
        db.load_checkpoint(diffusers_folder),
        images,
        seed=0,
        decoder="exact",
        device=torch.device("cpu"),
    )
    image, t, draw = np.meshgrid(np.arange(NUM_IMAGES), STEPS, np.arange(DRAWS), indexing="ij")
    rows = TermIndex(image.ravel(), t.ravel(), draw.ravel())
    bits = terms_pass.terms(rows).values["nats"] / NATS_PER_BIT
    ours = bits.reshape(NUM_IMAGES, len(STEPS), DRAWS)

    network = UNet2DModel.from_pretrained(diffusers_folder, subfolder="unet").eval()
    generator = np.random.default_rng(1)
    theirs = np.empty_like(ours)
    for index in np.ndindex(theirs.shape[:2]):
        x_start = images.pixels[index[0]] / 127.5 - 1
        eps = generator.normal(size=(DRAWS, *x_start.shape))
        theirs[index] = reference_terms(network, x_start, int(STEPS[index[1]]), eps)

    difference = (ours.mean(2) - theirs.mean(2)).sum(0)
    variance = (ours.var(2, ddof=1) + theirs.var(2, ddof=1)).sum(0) / DRAWS
    z = difference / np.sqrt(variance)
    assert np.abs(z).max() < 4.5
    assert 0.6 < np.sqrt((z**2).mean()) < 1.4
    # The errors are small: this is no test of wide intervals.
    assert (np.sqrt(variance) < 0.2 * ours.mean((0, 2)) * NUM_IMAGES).all()
