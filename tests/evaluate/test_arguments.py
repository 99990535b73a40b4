"""Arguments of another type are one line that names the parameter."""

import numpy as np
import pytest
import torch

import ddpmbench as db

EVERY_PAIR = {"estimator": "every-pair", "draws": 1, "progress": False}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("draws", value) for value in (-1, 1.5, True, "2")],
        *[("seed", value) for value in (-1, 1.5, "0", 2**64)],
        *[("batch_size", value) for value in (0, 2.0, "auto")],
        *[("device", value) for value in (None, 0, "gpu")],
        *[("out", value) for value in (b"runs", 5, "a\0b", "x" * 300, " ")],
        ("listener", 3),
        ("decoder", "exactly"),
        *[("half_width", value) for value in ("x", float("nan"))],
        ("max_evaluations", 1e3),
        ("terms_of", 3),
        *[("checkpoint", value) for value in (None, "default", torch.nn.Identity())],
    ],
)
def test_of_evaluate_nll(small_model, small_images, name, value):
    is_of_importance = name in ("half_width", "max_evaluations", "terms_of")
    how = {"progress": False} if is_of_importance else EVERY_PAIR
    with pytest.raises(db.InputError, match=f"^`{name}[`=]") as refused:
        db.evaluate_nll(**{"checkpoint": small_model, "images": small_images, **how, name: value})
    assert name != "checkpoint" or "load_checkpoint" in str(refused.value)


@pytest.mark.parametrize("source", [None, b"default", 5])
def test_what_names_no_checkpoint(source):
    with pytest.raises(db.InputError, match=r"^`source="):
        db.load_checkpoint(source)


def test_settings_and_timesteps_and_padding(small_model):
    with pytest.raises(db.InputError, match=r"^`settings="):
        db.load_checkpoint("default", "eps")
    for value in (5.0, "5", 0):
        with pytest.raises(db.InputError, match=r"^`timesteps="):
            small_model.respaced(value)
    with pytest.raises(db.InputError, match=r"^`pad="):
        db.load_images("fashion-mnist:test", num_images=1, pad=32.0)


def test_numbers_of_numpy_and_devices_are_taken(small_model, small_images, tmp_path):
    options = {"estimator": "every-pair", "progress": False, "out": tmp_path / "run"}
    numbers = {"draws": np.int64(1), "seed": np.int64(3), "batch_size": np.int64(4)}
    report = db.evaluate_nll(
        small_model, small_images, device=torch.device("cpu"), **options, **numbers
    )
    same = db.evaluate_nll(small_model, small_images, **{**EVERY_PAIR, "seed": 3, "batch_size": 4})
    assert report.summary["bits_per_dim"] == same.summary["bits_per_dim"]
