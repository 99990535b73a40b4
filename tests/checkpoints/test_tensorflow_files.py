"""Checkpoints of Ho et al.'s own code, with TensorFlow's reader or arrays in its place."""

import dataclasses
import functools
import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peers import refused

from ddpmbench import CheckpointSettings, load_checkpoint
from ddpmbench.checkpoints import ho_et_al
from ddpmbench.checkpoints.settings import MissingSettingsError
from ddpmbench.diffusion.parameterization import Prediction, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule

FILE = Path(__file__).parents[1] / "data" / "ho_tensorflow.npz"
PREFIX = "model.ckpt-790000"
TABLE_END = bytes.fromhex("57fb808b247547db")
CIFAR10 = {
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "num_diffusion_timesteps": 1000,
    "model_mean_type": "eps",
    "model_var_type": "fixedlarge",
    "loss_type": "mse",
}
LSUN = {n: v for n, v in CIFAR10.items() if not n.startswith("model_")} | {
    "loss_type": "noisepred",
    "block_size": 1,
}
needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None,
    reason="TensorFlow is not installed: pip install 'ddpmbench[tensorflow]'",
)


@functools.cache
def recorded():
    with np.load(FILE) as arrays:
        return dict(arrays)


def variables():
    """The variables of the recorded network by name, averaged ones and those of training too."""
    random, result = np.random.RandomState(0), {}
    for line in recorded()["variables"]:
        name, sides = str(line).split(" ")
        shape = tuple(map(int, sides.split(",")))
        values = random.standard_normal(shape)
        if len(shape) > 1:
            values /= np.sqrt(np.prod(shape[:-1]))
        else:
            values = 0.2 * values + (1.0 if name.endswith("gamma") else 0.0)
        average = values.astype(np.float32) + 0.05 * random.standard_normal(shape).astype(
            np.float32
        )
        result[name] = values.astype(np.float32)
        result[f"{name}/ExponentialMovingAverage"] = average.astype(np.float32)
        result[f"{name}/Adam"] = np.zeros(shape, np.float32)
    return result | {"global_step": np.asarray(790000), "beta1_power": np.float32(0.0)}


class Arrays:
    """What TensorFlow's reader gives, from a dict."""

    def __init__(self, arrays):
        self.arrays = arrays

    def get_variable_to_shape_map(self):
        return {name: list(np.shape(values)) for name, values in self.arrays.items()}

    def get_tensor(self, name):
        return self.arrays[name]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Files with TensorFlow's names, and arrays in the place of what they hold."""
    (tmp_path / f"{PREFIX}.index").write_bytes(b"\0" * 40 + TABLE_END)
    with (tmp_path / f"{PREFIX}.data-00000-of-00001").open("wb") as file:
        file.truncate(20_000_000)
    (tmp_path / "kwargs.json").write_text(json.dumps(CIFAR10))
    held = variables()
    monkeypatch.setattr(ho_et_al, "_tensorflow_reader", lambda *given: Arrays(held))
    return tmp_path


def replaced(monkeypatch, **changes):
    """Other arrays in the files; None leaves one out."""
    held = variables()
    for name, values in changes.items():
        held.pop(name) if values is None else held.update({name: values})
    monkeypatch.setattr(ho_et_al, "_tensorflow_reader", lambda *given: Arrays(held))


def agrees(checkpoint, key):
    record = recorded()
    x_t, t = torch.from_numpy(record["x_t"]), torch.from_numpy(record["t"]).long() + 1
    with torch.no_grad():
        output = checkpoint.model_output(x_t, t).numpy()
    return np.abs(output - record[key]).max() < 1e-5 * np.abs(record[key]).max()


@pytest.mark.parametrize(("weights", "kind"), [(None, "ema"), ("ema", "ema"), ("raw", "raw")])
def test_outputs_are_those_of_ho_et_al_s_own_code(folder, weights, kind):
    checkpoint = load_checkpoint(folder, CheckpointSettings(weights=weights))
    assert agrees(checkpoint, kind)
    assert not agrees(checkpoint, "raw" if kind == "ema" else "ema")
    assert (checkpoint.weights, checkpoint.family) == (kind, "tensorflow")
    assert torch.equal(checkpoint.schedule.betas, NoiseSchedule.linear(1000).betas)
    assert checkpoint.variance is Variance.FIXED_LARGE
    assert checkpoint.clip


@needs_tensorflow
def test_files_that_tensorflow_wrote(tmp_path):
    import tensorflow

    held = {name: np.asarray(values) for name, values in variables().items()}
    tensorflow.raw_ops.SaveV2(
        prefix=str(tmp_path / PREFIX),
        tensor_names=list(held),
        shape_and_slices=[""] * len(held),
        tensors=[tensorflow.constant(values) for values in held.values()],
    )
    (tmp_path / "kwargs.json").write_text(json.dumps(CIFAR10))
    assert agrees(load_checkpoint(tmp_path), "ema")
    data = tmp_path / f"{PREFIX}.data-00000-of-00001"
    os.truncate(data, data.stat().st_size // 2)
    with refused(tmp_path):
        load_checkpoint(tmp_path)
    index = tmp_path / f"{PREFIX}.index"
    index.write_bytes(index.read_bytes()[-60:])
    with refused(tmp_path, "a damaged checkpoint of TensorFlow"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["", PREFIX, f"{PREFIX}.index", f"{PREFIX}.data-00000-of-00001"])
def test_every_name_is_the_same_checkpoint(folder, name):
    checkpoint = load_checkpoint(str(folder / name))
    assert [Path(file).name for file in checkpoint.files] == [
        f"{PREFIX}.index",
        f"{PREFIX}.data-00000-of-00001",
    ]
    assert checkpoint.sha256 == load_checkpoint(folder).sha256


@pytest.mark.parametrize(
    ("record", "prediction", "variance"),
    [
        (CIFAR10, Prediction.EPSILON, Variance.FIXED_LARGE),
        (CIFAR10 | {"model_var_type": "fixedsmall"}, Prediction.EPSILON, Variance.FIXED_SMALL),
        (CIFAR10 | {"model_mean_type": "xstart"}, Prediction.X_START, Variance.FIXED_LARGE),
        (CIFAR10 | {"model_mean_type": "xprev"}, Prediction.PREVIOUS_MEAN, Variance.FIXED_LARGE),
        (LSUN, Prediction.EPSILON, Variance.FIXED_SMALL),
    ],
)
def test_the_training_record_says_the_process(folder, record, prediction, variance):
    (folder / "kwargs.json").write_text(json.dumps(record))
    checkpoint = load_checkpoint(folder)
    assert (checkpoint.prediction, checkpoint.variance) == (prediction, variance)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("quad", NoiseSchedule.scaled_linear(100, beta_start=1e-4, beta_end=0.02)),
        ("warmup10", NoiseSchedule.warmup(100, share=0.1, beta_start=1e-4, beta_end=0.02)),
        ("const", NoiseSchedule.warmup(100, share=0.0, beta_end=0.02)),
    ],
)
def test_its_schedules(folder, name, expected):
    record = CIFAR10 | {"beta_schedule": name, "num_diffusion_timesteps": 100}
    (folder / "kwargs.json").write_text(json.dumps(record))
    assert torch.equal(load_checkpoint(folder).schedule.betas, expected.betas)


def test_without_its_record_the_process_is_asked_for(folder):
    (folder / "kwargs.json").unlink()
    with pytest.raises(MissingSettingsError) as caught:
        load_checkpoint(folder)
    assert set(caught.value.missing) == {"schedule", "prediction", "variance"}
    assert "\n" not in str(caught.value)
    assert "kwargs.json" in str(caught.value)
    given = CheckpointSettings(schedule="linear:1000", prediction="eps", variance="fixed_small")
    checkpoint = load_checkpoint(folder, given)
    assert checkpoint.variance is Variance.FIXED_SMALL
    with pytest.raises(MissingSettingsError) as caught:
        load_checkpoint(folder, dataclasses.replace(given, variance=None))
    assert set(caught.value.missing) == {"variance"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"beta_schedule": "jsd"}, ("jsd", "pass `schedule=")),
        ({"num_diffusion_timesteps": None}, ("pass `schedule=",)),
        ({"model_mean_type": "score"}, ("model_mean_type", "pass `prediction=")),
        ({"model_var_type": ["learned"]}, ("model_var_type", "pass `variance=")),
        ({"model_var_type": "learned"}, ("variance is learned", "3 channels")),
        ({"block_size": 2}, ("block_size",)),
    ],
)
def test_a_record_that_is_not_read(folder, changes, words):
    (folder / "kwargs.json").write_text(json.dumps(CIFAR10 | changes))
    with refused(folder, *words):
        load_checkpoint(folder)


def test_a_setting_replaces_what_the_record_says_otherwise(folder):
    (folder / "kwargs.json").write_text(json.dumps(CIFAR10 | {"beta_schedule": "jsd"}))
    checkpoint = load_checkpoint(folder, CheckpointSettings(schedule="linear:1000"))
    assert torch.equal(checkpoint.schedule.betas, NoiseSchedule.linear(1000).betas)
    (folder / "kwargs.json").write_text(json.dumps(CIFAR10))
    checkpoint = load_checkpoint(folder, CheckpointSettings(variance="fixed_small"))
    assert checkpoint.variance is Variance.FIXED_SMALL


def test_another_network_is_refused(folder, monkeypatch):
    monkeypatch.setattr(
        ho_et_al, "_tensorflow_reader", lambda *given: Arrays({"conv1/kernel": np.ones(3)})
    )
    with refused(folder, "not of Ho et al.'s network", "conv1/kernel"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("model/mid/block_1/conv1/W", None, ("mid.block_1.conv1.weight missing",)),
        ("model/mid/block_1/conv9/W", np.ones(3), ("mid.block_1.conv9.weight left over",)),
        ("model/mid/block_1/conv1/b", np.ones(3), ("the network takes [64]",)),
        ("model/mid/block_1/conv1/b", np.full(64, np.nan), ("NaN",)),
        ("model/conv_in/W", np.ones((3, 3)), ("the network takes",)),
        ("model/conv_in/W", np.broadcast_to(np.float32(1), (3, 3, 10**6, 10**6)), ("larger",)),
    ],
)
def test_weights_that_are_not_the_network(folder, monkeypatch, name, values, words):
    replaced(monkeypatch, **{f"{name}/ExponentialMovingAverage": values})
    with refused(folder, *words):
        load_checkpoint(folder)


def test_without_averages_the_last_weights_are_read(folder, monkeypatch):
    averaged = {name: None for name in variables() if name.endswith("MovingAverage")}
    replaced(monkeypatch, **averaged)
    assert load_checkpoint(folder).weights == "raw"
    with refused(folder, "`weights=ema`"):
        load_checkpoint(folder, CheckpointSettings(weights="ema"))


def test_files_that_are_not_whole(folder):
    other = folder / "model.ckpt-1.index"
    other.write_bytes((folder / f"{PREFIX}.index").read_bytes())
    with refused(folder, "several checkpoints", other, f"{PREFIX}.index"):
        load_checkpoint(folder)
    with refused(other, "model.ckpt-1.data-*"):
        load_checkpoint(other)


@pytest.mark.parametrize("setting", [{"network": "net.py:Net"}, {"model_flags": "--image_size 8"}])
def test_settings_of_other_families_are_refused(folder, setting):
    with refused(folder, f"`{next(iter(setting))}`"):
        load_checkpoint(folder, CheckpointSettings(**setting))


def test_without_tensorflow_the_line_to_type(tmp_path, monkeypatch):
    (tmp_path / f"{PREFIX}.index").write_bytes(b"\0" * 40 + TABLE_END)
    (tmp_path / f"{PREFIX}.data-00000-of-00001").write_bytes(b"\0" * 80)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    before = dict(os.environ)
    with refused(tmp_path, "pip install 'ddpmbench[tensorflow]'"):
        load_checkpoint(tmp_path)
    assert dict(os.environ) == before
