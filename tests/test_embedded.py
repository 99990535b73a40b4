"""The embedded default is what it says, and its published result is of this very file."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ddpmbench import assets, load_checkpoint, load_images
from ddpmbench.inputs.checkpoints.weights import sha256_of
from ddpmbench.likelihood.terms import Rows, TermsPass
from ddpmbench.process.units import NATS_PER_BIT

RESULTS = Path(__file__).parents[1] / "results" / "default"


@pytest.fixture(scope="module")
def checkpoint():
    return load_checkpoint()


@pytest.fixture(scope="module")
def published():
    return json.loads((RESULTS / "summary.json").read_text())


def test_it_is_small_and_linear_with_a_thousand_steps(checkpoint):
    assert assets.CHECKPOINT.stat().st_size <= 6_000_000
    assert sum(weight.numel() for weight in checkpoint.network.parameters()) <= 1_500_000
    assert checkpoint.schedule.num_timesteps == 1000
    assert checkpoint.schedule.name == "linear"
    assert (checkpoint.channels, checkpoint.image_size) == (1, 28)


def test_it_was_trained_on_the_training_images(checkpoint):
    record = checkpoint.training
    assert record["data"]["source"] == "fashion-mnist"
    assert record["data"]["split"] == "train"
    assert record["num_images"] == 60_000
    assert record["data"]["sha256"] != load_images("fashion-mnist:test").sha256


def test_it_has_learned(checkpoint):
    # An untrained network predicts noise with an error of 1 at every t.
    steps = pd.read_csv(RESULTS / "per_timestep.csv")
    assert steps.eps_mse[500:].max() < 0.05
    assert steps.eps_mse.mean() < 0.1


def test_the_published_result_is_of_this_file_and_these_images(published):
    assert published["checkpoint"]["sha256"] == sha256_of(assets.CHECKPOINT)
    images = load_images("fashion-mnist:test", num_images=published["num_images"])
    assert published["data"]["sha256"] == images.sha256


def test_the_published_terms_come_out_again(checkpoint, published):
    images = load_images("fashion-mnist:test", num_images=published["num_images"])
    terms_pass = TermsPass(
        checkpoint, images, seed=published["seed"], decoder="exact", device=torch.device("cpu")
    )
    steps = pd.read_csv(RESULTS / "per_timestep.csv").set_index("t").bits_per_dim
    draws = published["conventions"]["draws"]
    for t in (1, 2, 1000):
        image, draw = np.divmod(np.arange(len(images) * draws), draws)
        terms = terms_pass.terms(Rows(image, np.full_like(image, t), draw))
        found = terms.values["nats"].mean() / NATS_PER_BIT
        assert found == pytest.approx(steps[t], rel=1e-4)


def test_the_published_tables_agree(published):
    steps = pd.read_csv(RESULTS / "per_timestep.csv")
    images = pd.read_csv(RESULTS / "per_image.csv")
    bound = published["bits_per_dim"]
    assert steps.bits_per_dim.sum() + published["prior"] == pytest.approx(bound, abs=1e-9)
    assert images.bits_per_dim.mean() == pytest.approx(bound, abs=1e-9)
    assert steps.num_evaluations.sum() == published["num_evaluations"]
