"""The native file: what is written is what is read, to the last bit."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from peers import refused
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ddpmbench import CheckpointSettings, load_checkpoint
from ddpmbench.checkpoints.native import write_native
from ddpmbench.diffusion.data_range import UNIT_RANGE, DataRange
from ddpmbench.diffusion.model import TimeInput
from ddpmbench.diffusion.parameterization import Prediction, Process, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError


def rewrite(path, **record):
    """Change the record of a native file; a value of None removes the field."""
    with safe_open(path, framework="pt") as file:
        old = json.loads(file.metadata()["ddpmbench"])
    new = {name: value for name, value in {**old, **record}.items() if value is not None}
    save_file(load_file(path), path, metadata={"ddpmbench": json.dumps(new)})


@pytest.fixture
def path(small_model, tmp_path):
    write_native(tmp_path / "model.safetensors", small_model)
    return tmp_path / "model.safetensors"


def test_everything_survives(small_model, tmp_path):
    betas = np.random.default_rng(0).uniform(1e-5, 0.1, 40)
    model = dataclasses.replace(
        small_model,
        schedule=NoiseSchedule.from_betas(betas, name="mine"),
        prediction=Prediction.V,
        variance=Variance.FIXED_SMALL,
        time_input=TimeInput.FRACTION,
    )
    path = tmp_path / "model.safetensors"
    write_native(path, model, training={"steps": 3})
    read = load_checkpoint(path)
    assert read.schedule.betas.numpy().tobytes() == betas.tobytes()
    assert read.network.config == model.network.config
    for name, weight in model.network.state_dict().items():
        assert torch.equal(read.network.state_dict()[name], weight), name
    for field in ("prediction", "variance", "time_input", "channels", "image_size"):
        assert getattr(read, field) == getattr(model, field)
    assert read.schedule.name == "mine"
    assert read.training == {"steps": 3}
    assert (read.family, read.source) == ("native", str(path))
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def record_of(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["ddpmbench"])


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"weights": "raw"},
        {"clip": False},
        {"data_range": DataRange(-0.1, 1 / 3, 32)},
        {"clip": False, "data_range": DataRange(0, 255), "weights": "ema"},
    ],
)
def test_what_is_not_the_default_survives(small_model, tmp_path, change):
    model = dataclasses.replace(small_model, **change)
    write_native(tmp_path / "a.safetensors", model)
    record = record_of(tmp_path / "a.safetensors")
    assert record["format"] == 3
    assert set(change) == {"clip", "data_range", "weights"} & set(record)
    read = load_checkpoint(tmp_path / "a.safetensors")
    assert (read.clip, read.data_range, read.weights) == (
        model.clip,
        model.data_range,
        model.weights,
    )
    assert not read.notes


def test_a_process_survives(small_model, tmp_path):
    for schedule in (
        NoiseSchedule.variance_exploding(40, sigma_min=0.01, sigma_max=10.0),
        NoiseSchedule.flow(40),
        small_model.schedule.in_family(Process.SUB_VP),
    ):
        path = tmp_path / f"{schedule.process}.safetensors"
        write_native(path, dataclasses.replace(small_model, schedule=schedule))
        read = load_checkpoint(path)
        assert read.schedule.is_same_process(schedule)
        as_vp = load_checkpoint(path, CheckpointSettings(process="vp"))
        assert as_vp.schedule.process is Process.VP
        assert torch.equal(as_vp.schedule.betas, schedule.betas)
        assert [note for note in as_vp.notes if "`schedule`" in note]


def test_the_a_of_sub_vp_is_that_of_vp(small_model):
    schedule = small_model.schedule.in_family(Process.SUB_VP)
    a = schedule.log_scale.exp() * schedule.alphas_cumprod.sqrt()
    torch.testing.assert_close(a, small_model.schedule.alphas_cumprod.sqrt())
    with pytest.raises(InputError, match="follows from VP"):
        NoiseSchedule.flow(40).in_family(Process.SUB_VP)


def test_options_override_what_a_file_says_of_its_data(small_model, tmp_path):
    path = tmp_path / "a.safetensors"
    write_native(path, dataclasses.replace(small_model, data_range=DataRange(0, 1, 32)))
    for said, of, notes in (
        ({"levels": 32}, DataRange(0, 1, 32), ()),
        ({"levels": 4}, DataRange(0, 1, 4), ("`levels=4` overrides 32",)),
        (
            {"data_range": (-1.0, 1.0), "levels": 256},
            UNIT_RANGE,
            ("`data_range=-1,1` overrides 0,1", "`levels=256` overrides 32"),
        ),
    ):
        read = load_checkpoint(path, CheckpointSettings(**said))
        assert (read.data_range, read.notes) == (of, notes)
    with refused("`data_range=1,0`"):
        load_checkpoint(path, CheckpointSettings(data_range=(1.0, 0.0)))


def test_other_weights_can_be_written_in_place_of_the_networks(small_model, tmp_path):
    doubled = {name: 2 * weight for name, weight in small_model.network.state_dict().items()}
    write_native(tmp_path / "a.safetensors", small_model, weights=doubled)
    read = load_checkpoint(tmp_path / "a.safetensors").network.state_dict()
    assert all(torch.equal(read[name], weight) for name, weight in doubled.items())


def test_what_is_not_written(small_model, tmp_path):
    with refused("small", "respaced"):
        write_native(tmp_path / "a.safetensors", small_model.respaced(5))
    with refused("small", "U-Net"):
        write_native(
            tmp_path / "a.safetensors", dataclasses.replace(small_model, network=torch.nn.ReLU())
        )


@pytest.mark.parametrize(
    ("record", "word"),
    [
        ({"format": 4}, "newer"),
        ({"format": 0}, "format 0"),
        ({"clip": "no"}, "clip"),
        ({"weights": "both"}, "weights"),
        ({"data_range": [0, 1]}, "record"),
        ({"data_range": {"low": 0, "high": 1}}, "levels"),
        ({"data_range": {"low": 1, "high": 0, "levels": 256}}, "data_range=1,0"),
        ({"data_range": {"low": 0, "high": 1, "levels": 1}}, "levels=1"),
        ({"data_range": {"low": 0, "high": 1, "levels": 2.5}}, "record"),
        ({"image_size": -28}, "image_size"),
        ({"image_size": [28, 0]}, "image_size"),
        ({"network": None}, "network"),
        ({"network": {"width": 3}}, "width"),
        ({"network": []}, "record"),
        ({"prediction": "noise"}, "noise"),
        ({"variance": None}, "variance"),
        ({"variance": "learned"}, "learned"),
        ({"schedule": None}, "schedule"),
    ],
)
def test_a_record_that_cannot_be_read(path, record, word):
    rewrite(path, **record)
    with refused(path, word):
        load_checkpoint(path)


def test_betas_that_are_no_schedule(path):
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors["schedule.betas"][3] = 1.5
    save_file(tensors, path, metadata=metadata)
    with refused(path, "beta"):
        load_checkpoint(path)
    del tensors["schedule.betas"]
    save_file(tensors, path, metadata=metadata)
    with refused(path, "schedule.betas"):
        load_checkpoint(path)
