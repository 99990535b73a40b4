"""What a scheduler file lacks is asked for, and an option comes before what cannot be read."""

import json
import shutil

import numpy as np
import pytest
import torch
from peers import SMALL_UNET, DDPMScheduler, diffusers_unet, edit_json, refused, save_flat

import ddpmbench as db
from ddpmbench import CheckpointSettings, load_checkpoint
from ddpmbench.checkpoints.settings import MissingSettingsError

SCHEDULE = "linear:20:0.001:0.3"
DEFAULT = "diffusers' default"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_flat(
        tmp_path_factory.mktemp("saved"),
        diffusers_unet(SMALL_UNET),
        DDPMScheduler(num_train_timesteps=20, beta_start=1e-3, beta_end=0.3),
    )


@pytest.fixture
def scheduler(saved):
    """The file, put back when a test has changed it."""
    path = saved / "scheduler_config.json"
    text = path.read_text()
    yield path
    path.write_text(text)


def asked(folder, **given):
    """The line, and what is asked for: a mistake where nothing is."""
    with pytest.raises(MissingSettingsError) as caught:
        load_checkpoint(folder, CheckpointSettings(**given))
    assert "\n" not in str(caught.value)
    return str(caught.value), list(caught.value.missing)


ALL = {"schedule": SCHEDULE, "prediction": "eps", "variance": "fixed_small", "clip": True}


@pytest.mark.parametrize("text", ["{}", '{"_class_name": "DDPMScheduler"}'])
def test_a_file_that_says_nothing_says_nothing(saved, scheduler, text):
    before = load_checkpoint(saved)
    scheduler.write_text(text)
    line, missing = asked(saved)
    assert missing == list(ALL)
    assert "beta_schedule" in line
    for name in ALL:
        _, missing = asked(saved, **{key: value for key, value in ALL.items() if key != name})
        assert missing == [name]
    after = load_checkpoint(saved, CheckpointSettings(**ALL))
    assert torch.equal(after.schedule.betas, before.schedule.betas)
    assert after.sources == {}


@pytest.mark.parametrize(
    ("field", "name", "value"),
    [
        ("num_train_timesteps", "schedule", SCHEDULE),
        ("beta_schedule", "schedule", SCHEDULE),
        ("beta_start", "schedule", SCHEDULE),
        ("beta_end", "schedule", SCHEDULE),
        ("prediction_type", "prediction", "v"),
        ("variance_type", "variance", "fixed_large"),
        ("clip_sample", "clip", False),
    ],
)
def test_a_field_that_changes_the_number_is_asked_for(saved, scheduler, field, name, value):
    edit_json(scheduler, remove=(field,))
    line, missing = asked(saved)
    assert missing == [name]
    assert f"does not say {field}" in line
    checkpoint = load_checkpoint(saved, CheckpointSettings(**{name: value}))
    assert any(field in note for note in checkpoint.notes)


def old(scheduler, *, remove=(), **fields):
    """As diffusers wrote it before it knew of other predictions than the noise."""
    new = ("prediction_type", "thresholding", "clip_sample_range", "rescale_betas_zero_snr")
    new += ("dynamic_thresholding_ratio", "sample_max_value", "timestep_spacing", "steps_offset")
    edit_json(scheduler, remove=(*new, *remove), **fields)


@pytest.mark.parametrize("fields", [{"_diffusers_version": "0.1.1"}, {"remove": "version"}])
def test_an_old_file_predicts_the_noise_by_default(saved, scheduler, fields):
    if "remove" in fields:
        fields = {"remove": ("_diffusers_version",)}
    old(scheduler, **fields)
    checkpoint = load_checkpoint(saved)
    assert checkpoint.prediction == "eps"
    assert checkpoint.record["sources"] == {"prediction": DEFAULT}
    assert any(DEFAULT in note for note in checkpoint.notes)
    assert load_checkpoint(saved, CheckpointSettings(prediction="v")).sources == {}


def test_what_a_whole_file_says_is_no_default(saved):
    checkpoint = load_checkpoint(saved)
    assert checkpoint.sources == {}
    assert "sources" not in checkpoint.record


def test_steps_are_as_many_as_trained_betas(saved, scheduler):
    betas = [0.01, 0.02, 0.5]
    edit_json(scheduler, remove=("num_train_timesteps",), trained_betas=betas)
    assert load_checkpoint(saved).schedule.betas.tolist() == pytest.approx(betas)


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"clip_sample_range": 2.0}, "clip", False),
        ({"clip_sample_range": "wide"}, "clip", True),
        ({"clip_sample": None}, "clip", True),
        ({"thresholding": True}, "clip", False),
        ({"thresholding": True}, "clip", True),
        ({"beta_schedule": "laplace"}, "schedule", SCHEDULE),
        ({"beta_schedule": 3}, "schedule", SCHEDULE),
        ({"rescale_betas_zero_snr": True}, "schedule", SCHEDULE),
        ({"num_train_timesteps": 0}, "schedule", SCHEDULE),
        ({"beta_end": 3.0}, "schedule", SCHEDULE),
        ({"beta_start": "small"}, "schedule", SCHEDULE),
        ({"trained_betas": [0.1, 0.2]}, "schedule", SCHEDULE),
        ({"trained_betas": "none"}, "schedule", SCHEDULE),
        ({"prediction_type": "flow_prediction"}, "prediction", "v"),
        ({"prediction_type": 1}, "prediction", "x_start"),
        ({"variance_type": "huge"}, "variance", "fixed_large"),
    ],
)
def test_an_option_comes_before_what_cannot_be_read(saved, scheduler, fields, name, value):
    edit_json(scheduler, **fields)
    (field,) = fields
    line, missing = asked(saved)
    assert missing == [name]
    assert f"`{name}=" in line
    checkpoint = load_checkpoint(saved, CheckpointSettings(**{name: value}))
    if name == "schedule":
        assert (checkpoint.schedule.name, checkpoint.schedule.num_timesteps) == ("linear", 20)
    else:
        assert getattr(checkpoint, name) == value
    (note,) = checkpoint.notes
    assert "is used" in note
    assert field in note or "beta" in note


def test_the_variance_of_an_option_goes_with_the_outputs(tmp_path):
    folder = save_flat(tmp_path / "six", diffusers_unet({**SMALL_UNET, "out_channels": 6}))
    with refused(folder, "variance is fixed_small"):
        load_checkpoint(folder)
    checkpoint = load_checkpoint(folder, CheckpointSettings(variance="learned_range"))
    assert checkpoint.variance == "learned_range"
    assert "`variance=learned_range` overrides fixed_small" in checkpoint.notes


def test_a_file_of_no_such_scheduler_is_read_where_the_options_say_all(saved, scheduler):
    edit_json(scheduler, _class_name="MyScheduler")
    given = {"schedule": SCHEDULE, "prediction": "eps"}
    with refused(scheduler, "MyScheduler", "`schedule`, `prediction` and `variance`"):
        load_checkpoint(saved, CheckpointSettings(**given))
    checkpoint = load_checkpoint(saved, CheckpointSettings(**given, variance="fixed_large"))
    assert checkpoint.variance == "fixed_large"
    assert any("MyScheduler" in note for note in checkpoint.notes)


def test_inspect_names_what_is_open_and_what_is_a_default(saved, scheduler):
    edit_json(scheduler, remove=("clip_sample",), beta_schedule="laplace")
    summary = db.inspect_checkpoint(saved).summary
    assert list(summary["missing"]) == ["schedule", "clip"]
    missing = {name for name, value in summary["settings"].items() if value is None}
    assert missing == {"schedule", "clip"}
    edit_json(scheduler, beta_schedule="linear", clip_sample=True)
    old(scheduler, _diffusers_version="0.0.4")
    summary = db.inspect_checkpoint(saved).summary
    assert summary["settings"]["prediction"] == "eps"
    assert any(DEFAULT in note for note in summary["notes"])
    assert json.loads(scheduler.read_text())["_diffusers_version"] == "0.0.4"


@pytest.mark.parametrize(
    ("kind", "example"), [("huge", "fixed_small"), ("learned", "learned_range")]
)
def test_the_field_and_no_folder_says_whether_a_variance_is_learned(saved, tmp_path, kind, example):
    folder = shutil.copytree(saved, tmp_path / "learned")
    edit_json(folder / "scheduler_config.json", variance_type=kind)
    with pytest.raises(MissingSettingsError) as caught:
        load_checkpoint(folder)
    assert caught.value.missing == {"variance": example}


@pytest.mark.parametrize(
    ("fields", "given"),
    [
        ({"clip_sample_range": 2.0}, {"clip": False}),
        ({"thresholding": True}, {"clip": True}),
        ({"beta_schedule": "laplace"}, {"schedule": "cosine:20"}),
        ({"rescale_betas_zero_snr": True}, {"schedule": SCHEDULE}),
    ],
)
def test_the_remedy_leads_to_the_number_of_the_option(saved, scheduler, fields, given):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)
    images = db.ImageSet(pixels, ("0", "1"), "random")

    def number():
        checkpoint = load_checkpoint(saved, CheckpointSettings(**given))
        report = db.evaluate_nll(
            checkpoint, images, estimator="every-pair", draws=1, device="cpu", check=False
        )
        return report.summary["bits_per_dim"]

    plain = number()
    edit_json(scheduler, **fields)
    assert number() == plain
