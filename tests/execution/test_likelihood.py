"""A run of every pair gives the same numbers however it is batched or fed."""

import pytest
import torch
from run_folders import assert_same_numbers
from sealing import edit_npz, read_npz, terms_in

import ddpmbench as db
from ddpmbench.errors import InputError
from ddpmbench.evaluate.nll import evaluate_nll
from ddpmbench.unet.unet import UNet


@pytest.fixture
def report(runs):
    return runs["every-pair"]


@pytest.mark.parametrize("batch_size", [1, 64])
def test_batch_size_cannot_change_a_number(small_model, small_images, report, batch_size):
    other = evaluate_nll(small_model, small_images, estimator="every-pair", batch_size=batch_size)
    assert_same_numbers(other, report)


def test_the_parts_sum_to_the_bound_and_every_table_agrees(report):
    summary = report.summary
    parts = summary["prior"] + summary["kl"] + summary["decoder"]
    assert parts == pytest.approx(summary["bits_per_dim"], abs=1e-12)
    steps = report.per_timestep.bits_per_dim
    assert steps.sum() + summary["prior"] == pytest.approx(summary["bits_per_dim"], abs=1e-12)
    assert steps[0] == pytest.approx(summary["decoder"], abs=1e-12)
    assert report.per_image.bits_per_dim.mean() == pytest.approx(summary["bits_per_dim"], abs=1e-12)
    rate = report.rate_distortion.rate_bits_per_dim[0] + summary["decoder"]
    assert rate == pytest.approx(summary["bits_per_dim"], abs=1e-12)
    assert report.per_timestep.num_evaluations.sum() == summary["num_evaluations"]


def test_one_draw_leaves_the_noise_unknown(small_model, small_images):
    report = evaluate_nll(small_model, small_images, estimator="every-pair", draws=1)
    assert report.summary["half_width"] is None
    assert report.summary["half_width_population"] > 0
    assert report.per_timestep.standard_error.isna().all()


def test_a_single_image_leaves_the_population_unknown(small_model, small_images):
    report = evaluate_nll(small_model, small_images.subset(1), estimator="every-pair")
    assert report.summary["half_width_population"] is None
    assert report.summary["half_width"] > 0


@pytest.mark.parametrize(
    ("value", "words"), [(torch.nan, "not finite"), (torch.inf, "not finite"), (3e38, "too large")]
)
def test_an_output_without_an_error_is_named_and_nothing_is_lost(
    small_model, small_images, tmp_path, monkeypatch, value, words
):
    body = UNet.body

    def broken(network, x_t, times):
        output = body(network, x_t, times)
        broken.calls += 1
        if broken.calls > 10:
            output[0] = value
        return output

    broken.calls = 0
    monkeypatch.setattr(UNet, "body", broken)
    with pytest.raises(InputError, match=rf"output is {words} for image 1 at t = 1;"):
        evaluate_nll(small_model, small_images, estimator="every-pair", batch_size=8, out=tmp_path)
    assert len(terms_in(tmp_path)) == 80


@pytest.mark.parametrize(
    ("shape", "remedy"),
    [((-1, 2, 8, 8), "if half of it is a variance"), ((-1, 1, 1, 1), "let forward return")],
)
def test_an_output_of_another_shape_is_refused(
    small_model, small_images, monkeypatch, shape, remedy
):
    def other(network, x_t, times):
        return torch.zeros(len(x_t), *shape[1:])

    monkeypatch.setattr(UNet, "body", other)
    with pytest.raises(InputError, match=rf"gives \(.* for x_t of .*; {remedy}"):
        evaluate_nll(small_model, small_images, estimator="every-pair")


def test_rows_in_the_wrong_shard_are_refused(small_model, small_images, tmp_path):
    evaluate_nll(small_model, small_images, estimator="every-pair", draws=1, out=tmp_path)
    (shard,) = (tmp_path / "shards").iterdir()
    edit_npz(shard, t=read_npz(shard)["t"] + 1)
    (tmp_path / "summary.json").unlink()  # a finished run is not reduced again
    with pytest.raises(InputError, match="delete these shards"):
        evaluate_nll(small_model, small_images, estimator="every-pair", draws=1, out=tmp_path)


def test_the_user_s_network_stays_as_it_was(small_images):
    network = torch.nn.Conv2d(1, 1, 3, padding=1)

    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network
            self.dropout = torch.nn.Dropout(0.5)

        def forward(self, x_t, time):
            return self.dropout(self.inner(x_t))

    plain = Plain()
    checkpoint = db.wrap_network(plain, schedule=db.NoiseSchedule.linear(30))
    first, second = (
        evaluate_nll(checkpoint, small_images, estimator="every-pair", draws=1).summary
        for _ in range(2)
    )
    assert first["bits_per_dim"] == second["bits_per_dim"], "dropout was on"
    assert plain.training
    assert plain.dropout.training
    assert all(parameter.requires_grad for parameter in plain.parameters())
