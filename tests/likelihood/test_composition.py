"""From a network's outputs to the bound with the public functions alone: the bound of a run."""

import math

import numpy as np
import pytest
import torch

import ddpmbench as db
from ddpmbench.diffusion.noise import normal_noise


def composed(model, images, design, seed):
    """The tables of all terms of a design, in portions."""
    x_start = torch.tensor(images.pixels).double() / 127.5 - 1
    signal = model.schedule.alphas_cumprod
    for start in range(0, len(design), 100):
        index = design.index(start, start + 100)
        image, t, draw = (torch.from_numpy(part) for part in (index.image, index.t, index.draw))
        x, ab = x_start[index.image], signal[t - 1].view(-1, 1, 1, 1)
        eps = normal_noise(image, t, draw, shape=x.shape[1:], seed=seed).double()
        x_t = ab.sqrt() * x + (1 - ab).sqrt() * eps
        with torch.no_grad():
            output = model.model_output(x_t.float(), t, None)
        convention = {"variance": str(model.variance), "clip": model.clip}
        terms = db.bound_terms(model.schedule, x, t, eps, output, **convention)
        yield terms.table(index)


def prior_nats(model, images):
    x_start = torch.tensor(images.pixels).double() / 127.5 - 1
    return db.prior_bits_per_dim(model.schedule, x_start).numpy() * math.log(2)


def test_every_pair_is_the_bound_of_a_run(small_model, small_images):
    report = db.evaluate_nll(small_model, small_images, estimator="every-pair", seed=3)
    design = db.EveryPairDesign(len(small_images), small_model.schedule.num_timesteps, 2)
    tables = composed(small_model, small_images, design, 3)
    bound = db.estimate_bound(design, prior_nats(small_model, small_images), tables)
    assert bound.bits_per_dim == pytest.approx(report.summary["bits_per_dim"], abs=1e-5)
    half_width = bound.half_width / math.log(2)
    assert half_width == pytest.approx(report.summary["half_width"], rel=1e-3)


def test_an_importance_sample_is_the_horvitz_thompson_estimate_of_a_run(
    small_model, small_images, tmp_path
):
    report = db.evaluate_nll(small_model, small_images, half_width=9.0, out=tmp_path, seed=3)
    density = np.loadtxt(tmp_path / "proposal.csv", delimiter=",", skiprows=1)[:, 1]
    design = db.ImportanceDesign(
        len(small_images),
        small_model.schedule.num_timesteps,
        density,
        3,
        report.summary["sampling"]["num_replicates"],
    )
    tables = composed(small_model, small_images, design, 3)
    bound = db.horvitz_thompson(design, prior_nats(small_model, small_images), tables)
    expected = report.summary["sampling"]["horvitz_thompson"]["bits_per_dim"]
    assert bound.bits_per_dim == pytest.approx(expected, abs=1e-5)


def test_terms_need_an_index_of_their_length():
    design, schedule = db.EveryPairDesign(1, 30, 1), db.NoiseSchedule.linear(30)
    x = torch.zeros(4, 1, 2, 2)
    terms = db.bound_terms(schedule, x, torch.arange(1, 5), x, x)
    with pytest.raises(ValueError, match="4 terms need an index of as many, not 3"):
        terms.table(design.index(0, 3))
