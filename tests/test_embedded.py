"""The embedded default is what it says, and its published result is of this very file."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ddpmbench import assets, load_checkpoint, load_images
from ddpmbench.diffusion.data_range import NATS_PER_BIT
from ddpmbench.execution.finished_runs import FinishedRun
from ddpmbench.execution.importance import Importance
from ddpmbench.files import sha256_of
from ddpmbench.likelihood.designs import PilotDesign, proposal_density
from ddpmbench.likelihood.terms import TermIndex, TermsPass

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


def test_a_squared_error_is_never_below_zero():
    steps = pd.read_csv(RESULTS / "per_timestep.csv")
    assert steps[["x_start_mse", "eps_mse"]].to_numpy().min() > 0


def test_the_published_result_is_of_this_file_and_these_images(published):
    assert published["checkpoint"]["sha256"] == sha256_of(assets.CHECKPOINT)
    images = load_images("fashion-mnist:test", num_images=published["num_images"])
    assert published["data"]["sha256"] == images.sha256


def test_the_published_rows_follow_from_the_published_density(published):
    design = Importance.design(FinishedRun(RESULTS, published))
    pilot = published["sampling"]["pilot_evaluations"]
    assert len(design) + pilot == published["num_evaluations"]
    steps = pd.read_csv(RESULTS / "per_timestep.csv")
    rows = design.index(0, len(design))
    counted = np.bincount(rows.t, minlength=design.num_timesteps + 1)[1:]
    np.testing.assert_array_equal(counted, steps.num_evaluations)


def test_the_published_terms_come_out_again(checkpoint, published):
    images = load_images("fashion-mnist:test", num_images=published["num_images"])
    terms_pass = TermsPass(
        checkpoint, images, seed=published["seed"], decoder="exact", device=torch.device("cpu")
    )
    run = FinishedRun(RESULTS, published)
    design = Importance.design(run)
    # The density says what the pilot's terms are at every step, but for a common factor.
    pilot = PilotDesign(len(images), design.num_timesteps, published["seed"])
    density = proposal_density(pilot, [terms_pass.terms(pilot.index(0, len(pilot)))])
    np.testing.assert_allclose(density, run.density(), rtol=1e-6)
    # The tables say what the terms are on average, within what some of the rows can tell.
    steps = pd.read_csv(RESULTS / "per_timestep.csv").set_index("t")
    rows = design.index(0, len(design))
    decoder = np.flatnonzero(rows.t == 1)[:300]
    small_steps = np.flatnonzero((rows.t > 1) & (rows.t < 30))[:300]
    for at, rtol in ((decoder, 0.06), (small_steps, 0.12)):
        some = TermIndex(rows.image[at], rows.t[at], rows.draw[at])
        values = terms_pass.terms(some).values
        found = values["nats"].sum() / NATS_PER_BIT
        assert found == pytest.approx(steps.bits_per_dim[some.t].sum(), rel=rtol)
        for name in ("x_start_mse", "eps_mse"):
            assert values[name].sum() == pytest.approx(steps[name][some.t].sum(), rel=rtol)


def test_the_published_tables_agree(published):
    steps = pd.read_csv(RESULTS / "per_timestep.csv")
    rate = pd.read_csv(RESULTS / "rate_distortion.csv").set_index("t").rate_bits_per_dim
    bound = published["bits_per_dim"]
    assert published["num_images"] == 10_000
    assert published["half_width"] <= published["sampling"]["half_width_goal"] == 0.005
    assert steps.bits_per_dim.sum() + published["prior"] == pytest.approx(bound, abs=1e-7)
    assert rate[1] + published["decoder"] == pytest.approx(bound, abs=1e-7)
    assert rate[1000] == pytest.approx(published["prior"], abs=1e-9)
    counted = steps.num_evaluations.sum() + published["sampling"]["pilot_evaluations"]
    assert counted == published["num_evaluations"]
