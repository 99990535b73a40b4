"""State dicts of pesser/pytorch_diffusion: the network of Ho et al. under other names."""

import dataclasses

import numpy as np
import pytest
import torch
from peers import (
    SHARED,
    needs_shared,
    pesser_weights,
    random_model,
    refused,
    same_weights,
)
from unet_configs import SMALL_CONFIG

from ddpmbench import CheckpointSettings, load_checkpoint
from ddpmbench.checkpoints.ho_et_al import PUBLISHED, network_config
from ddpmbench.checkpoints.settings import MissingSettingsError
from ddpmbench.diffusion.model import TimeInput
from ddpmbench.diffusion.process import Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError
from ddpmbench.unet.unet import UNet, UNetConfig

SAID = CheckpointSettings(schedule="linear:40:0.0025:0.5", variance="fixed_small")
LINEAR = CheckpointSettings(schedule="linear:1000", variance="fixed_large")


@pytest.fixture
def path(tmp_path):
    torch.save(pesser_weights(random_model().network), tmp_path / "model.ckpt")
    return tmp_path / "model.ckpt"


@needs_shared
def test_recorded_outputs_of_the_projects_own_code():
    recorded = np.load(SHARED / "pesser_tiny_io.npz")
    checkpoint = load_checkpoint(SHARED / "pesser_tiny.ckpt", LINEAR)
    x_t, t = torch.from_numpy(recorded["x_t"]), torch.from_numpy(recorded["t"])
    with torch.no_grad():
        output = checkpoint.network(x_t, checkpoint.network_time(t + 1))
    assert np.abs(output.numpy() - recorded["output"]).max() < 1e-5
    assert checkpoint.family == "pesser"
    assert checkpoint.time_input is TimeInput.INDEX


@pytest.mark.parametrize(
    "changes",
    [
        {"attention": (True, True), "num_blocks": 2},
        {"attention": (False, False)},
        {"channels": (32, 64, 96), "attention": (False, True, False)},
        {"channels": (32,), "attention": (True,)},
        {"in_channels": 3, "out_channels": 3},
        {"resampling": "pool"},
    ],
)
def test_the_network_is_read_from_the_weights(changes, tmp_path):
    model = random_model(dataclasses.replace(SMALL_CONFIG, **changes))
    torch.save(pesser_weights(model.network), tmp_path / "model.ckpt")
    assert same_weights(load_checkpoint(tmp_path / "model.ckpt", SAID), model)


def test_a_learned_variance_takes_an_output_for_it(tmp_path):
    model = random_model(dataclasses.replace(SMALL_CONFIG, out_channels=2))
    torch.save(pesser_weights(model.network), tmp_path / "model.ckpt")
    with refused(tmp_path / "model.ckpt", "`variance=fixed_small`", "2 channels"):
        load_checkpoint(tmp_path / "model.ckpt", SAID)
    learned = dataclasses.replace(SAID, variance="learned_range")
    assert load_checkpoint(tmp_path / "model.ckpt", learned).variance is Variance.LEARNED_RANGE


@pytest.mark.parametrize(
    ("said", "missing"),
    [
        ({}, {"schedule": "linear:T:START:END", "variance": "fixed_large"}),
        ({"schedule": "linear:40:0.0025:0.5"}, {"variance": "fixed_large"}),
        ({"variance": "fixed_small"}, {"schedule": "linear:T:START:END"}),
    ],
)
def test_what_the_file_does_not_say_is_asked_for(path, said, missing):
    with pytest.raises(MissingSettingsError) as caught:
        load_checkpoint(path, CheckpointSettings(**said))
    assert caught.value.missing == missing
    assert (caught.value.family, caught.value.path) == ("pesser", path)
    assert set(caught.value.weights) == set(torch.load(path, weights_only=True))
    for setting in ("schedule", "variance"):
        assert (f"`{setting}=" in str(caught.value)) == (setting in missing)
    assert "\n" not in str(caught.value)


@pytest.fixture
def published(monkeypatch):
    """The published CIFAR-10 file as if its network were the small one."""
    small = dataclasses.replace(PUBLISHED["cifar10"], channels=(32, 64))
    monkeypatch.setitem(PUBLISHED, "cifar10", small)


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("ema_diffusion_cifar10_model/model-790000.ckpt", "ema"),
        ("diffusion_cifar10_model/model-790000.ckpt", "raw"),
        ("ema_diffusion_cifar10_model.ckpt", "ema"),
        ("ema_cifar10.ckpt", "ema"),
    ],
)
def test_a_published_name_says_the_rest(path, tmp_path, name, weights):
    renamed = tmp_path / name
    renamed.parent.mkdir(exist_ok=True)
    checkpoint = load_checkpoint(path.rename(renamed))
    assert torch.equal(checkpoint.schedule.betas, NoiseSchedule.linear(1000).betas)
    assert checkpoint.variance is Variance.FIXED_LARGE
    assert (checkpoint.image_size, checkpoint.weights) == (32, weights)
    assert any("cifar10" in note for note in checkpoint.notes)


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cifar10.ckpt", "published files are known by their names"),
        ("model-790000.ckpt", "published files are known by their names"),
        ("ema_diffusion_cifar10_model/model-10000.ckpt", "published files are known"),
        ("ema_lsun_cat.ckpt", "by their names, ema_cifar10.ckpt, and their network"),
        ("diffusion_lsun_cat_model/model-1761000.ckpt", "network (32, 64 channels"),
    ],
)
def test_a_name_that_is_not_that_of_a_published_file_says_nothing(path, tmp_path, name, words):
    renamed = tmp_path / name
    renamed.parent.mkdir(exist_ok=True)
    with refused(renamed, "`schedule=", words):
        load_checkpoint(path.rename(renamed))


@pytest.mark.usefixtures("published")
def test_a_published_name_does_not_come_before_the_file_s_own_tables(path, tmp_path):
    named, weights = tmp_path / "ema_cifar10.ckpt", torch.load(path, weights_only=True)
    torch.save({"model": weights, "betas": torch.linspace(1e-4, 0.01, 500)}, named)
    with refused(named, "its name says the linear schedule of 1,000", "betas", "500 steps"):
        load_checkpoint(named)
    assert (
        load_checkpoint(named, CheckpointSettings(schedule="buffers")).schedule.betas.numel() == 500
    )
    torch.save({"model": weights, "betas": NoiseSchedule.linear(1000).betas.float()}, named)
    assert torch.equal(load_checkpoint(named).schedule.betas, NoiseSchedule.linear(1000).betas)


def test_the_published_networks_have_the_size_of_the_published_files():
    # Ho et al. 2020, appendix B: 35.7 million parameters for CIFAR-10, 114 million for LSUN.
    for name, attention, millions in (("cifar10", 1, 35.7), ("lsun_cat", 4, 113.7)):
        channels = PUBLISHED[name].channels
        config = UNetConfig(
            in_channels=3,
            out_channels=3,
            model_channels=128,
            channels=channels,
            num_blocks=2,
            attention=tuple(level == attention for level in range(len(channels))),
        )
        with torch.device("meta"):
            weights = pesser_weights(UNet(config))
        assert network_config(weights, "made") == config
        total = sum(weight.numel() for weight in weights.values())
        assert total / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize(
    ("name", "shape", "word"),
    [
        ("down.1.block.0.conv_shortcut.weight", (64, 32, 3, 3), "conv_shortcut"),
        ("conv_out.weight", (32,), "is [32], which no such network has"),
    ],
)
def test_weights_of_a_network_that_cannot_be_read(path, name, shape, word):
    weights = torch.load(path, weights_only=True)
    torch.save({**weights, name: torch.zeros(shape)}, path)
    with refused(path, word):
        load_checkpoint(path, SAID)


@pytest.mark.parametrize("option", ["betas:bad.npy", "betas:", "lineal:1000", "buffers"])
def test_an_error_of_the_option_begins_with_the_option(path, option):
    with pytest.raises(InputError) as caught:
        load_checkpoint(path, dataclasses.replace(SAID, schedule=option))
    assert str(caught.value).startswith(f"`schedule={option}`: ")


def test_flags_of_another_family_are_refused(path):
    with refused(path, "`model_flags`"):
        load_checkpoint(path, dataclasses.replace(SAID, model_flags="--image_size 8"))
