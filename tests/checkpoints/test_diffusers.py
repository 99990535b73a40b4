"""Folders of diffusers: layouts, schedules, conventions, old spellings, and what is refused."""

import json
import warnings

import numpy as np
import pytest
import torch
from peers import (
    CIFAR10_UNET,
    SMALL_UNET,
    DDPMScheduler,
    diffusers_unet,
    edit_json,
    refused,
    same_weights,
    save_flat,
    save_pipeline,
)
from safetensors.torch import load_file, save_file

from ddpmbench import CheckpointSettings, load_checkpoint
from ddpmbench.diffusion.process import Prediction, Variance
from ddpmbench.files import sha256_of

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def peer():
    return diffusers_unet(SMALL_UNET)


@pytest.fixture
def folder(peer, tmp_path):
    return save_flat(tmp_path / "model", peer)


def test_both_layouts_hold_the_same_model(peer, tmp_path):
    flat = load_checkpoint(save_flat(tmp_path / "flat", peer))
    pipeline = load_checkpoint(str(save_pipeline(tmp_path / "pipeline", peer)))
    assert flat.sha256 == pipeline.sha256 == sha256_of(tmp_path / "flat" / WEIGHTS)
    assert same_weights(flat, pipeline)
    assert pipeline.source == str(tmp_path / "pipeline")
    assert flat.family == "diffusers"
    assert not flat.notes


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_train_timesteps": 100},
        {"beta_start": 1e-3, "beta_end": 0.3, "num_train_timesteps": 50},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "sigmoid"},
        {"trained_betas": [0.01, 0.02, 0.5], "num_train_timesteps": 3},
    ],
)
def test_betas_are_those_of_diffusers(peer, tmp_path, settings):
    scheduler = DDPMScheduler(**settings)
    schedule = load_checkpoint(save_flat(tmp_path, peer, scheduler)).schedule
    betas = scheduler.betas.double().numpy()
    # theirs are rounded to float32 on the way
    np.testing.assert_allclose(schedule.betas.numpy(), betas, rtol=2e-6, atol=3e-9)


def test_a_large_variance_said_as_its_logarithm(peer, tmp_path):
    """Other conventions are those of the reverse step, in test_diffusers_process.py."""
    folder = save_flat(tmp_path, peer, DDPMScheduler(variance_type="fixed_large_log"))
    assert load_checkpoint(folder).variance is Variance.FIXED_LARGE


def test_what_a_config_lacks_is_what_the_class_takes(folder, peer):
    before = load_checkpoint(folder)
    kept = {**{name: peer.config[name] for name in SMALL_UNET}, "_class_name": "UNet2DModel"}
    (folder / "config.json").write_text(json.dumps(kept))
    assert load_checkpoint(folder).network.config == before.network.config


def test_old_spellings(folder):
    before = load_checkpoint(folder)
    edit_json(
        folder / "config.json",
        remove=("down_block_types", "up_block_types"),
        _class_name="UNetModel",
        down_blocks=["UNetResDownBlock2D", "UNetResAttnDownBlock2D"],
        up_blocks=["UNetResAttnUpBlock2D", "UNetResUpBlock2D"],
    )
    edit_json(
        folder / "scheduler_config.json",
        remove=("num_train_timesteps", "prediction_type", "clip_sample"),
        _class_name="GaussianDDPMScheduler",
        timesteps=1000,
        clip_predicted_image=False,
    )
    weights = load_file(folder / WEIGHTS)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, name in old.items():
        weights = {key.replace(f".{new}.", f".{name}."): w for key, w in weights.items()}
    # as convolutions of one pixel, the way the first files had them
    weights = {
        key: w[..., None, None] if ".attentions." in key and w.ndim == 2 else w
        for key, w in weights.items()
    }
    (folder / WEIGHTS).unlink()
    torch.save(weights, folder / "diffusion_pytorch_model.bin")
    after = load_checkpoint(folder)
    assert same_weights(after, before)
    assert torch.equal(after.schedule.betas, before.schedule.betas)
    assert before.clip
    assert not after.clip


def test_predict_epsilon_false_is_a_prediction_of_x_start(folder):
    edit_json(folder / "scheduler_config.json", remove=("prediction_type",), predict_epsilon=False)
    assert load_checkpoint(folder).prediction is Prediction.X_START


def test_reading_touches_no_global_randomness(folder):
    before = torch.random.get_rng_state()
    load_checkpoint(folder)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_another_sampler_leaves_the_variance_to_an_option(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import DDIMScheduler, PNDMScheduler
    path = folder / "scheduler_config.json"
    DDIMScheduler(beta_schedule="scaled_linear").save_pretrained(folder)
    with refused(path, "DDIMScheduler", "`variance="):
        load_checkpoint(folder)
    checkpoint = load_checkpoint(folder, CheckpointSettings(variance="fixed_small"))
    assert checkpoint.variance is Variance.FIXED_SMALL
    assert checkpoint.schedule.name == "scaled_linear"
    assert any("`variance=fixed_small`" in note for note in checkpoint.notes)
    PNDMScheduler().save_pretrained(folder)
    assert any(
        "`clip=False`" in n
        for n in load_checkpoint(folder, CheckpointSettings(variance="fixed_large")).notes
    )


def test_an_option_overrides_what_the_file_says_and_is_noted(folder):
    checkpoint = load_checkpoint(folder, CheckpointSettings(variance="fixed_large", prediction="v"))
    assert (checkpoint.variance, checkpoint.prediction) == (Variance.FIXED_LARGE, Prediction.V)
    assert len(checkpoint.notes) == 2
    with refused("`variance=learned_range`"):
        load_checkpoint(folder, CheckpointSettings(variance="learned_range"))
    with refused("`variance=huge`", "fixed_small"):
        load_checkpoint(folder, CheckpointSettings(variance="huge"))
    with refused("`prediction=noise`", "eps"):
        load_checkpoint(folder, CheckpointSettings(prediction="noise"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("_class_name", "UNet2DConditionModel"),
        ("act_fn", "gelu"),
        ("add_attention", False),
        ("attention_head_dim", 5),
        ("attention_head_dim", 0),
        ("attn_norm_num_groups", 4),
        ("block_out_channels", [16, "32"]),
        ("block_out_channels", []),
        ("center_input_sample", True),
        ("class_embed_type", "timestep"),
        ("down_block_types", ["SkipDownBlock2D", "AttnDownBlock2D"]),
        ("down_block_types", ["ResnetDownsampleBlock2D", "AttnDownBlock2D"]),
        ("down_block_types", ["DownBlock2D"]),
        ("downsample_padding", 2),
        ("freq_shift", None),
        ("layers_per_block", "2"),
        ("mid_block_scale_factor", 1.41),
        ("mid_block_type", None),
        ("norm_num_groups", 2.5),
        ("resnet_time_scale_shift", "spatial"),
        ("resnet_time_scale_shift", "scale_shift"),
        ("sample_size", [8, 16, 16]),
        ("sample_size", [8, -16]),
        ("sample_size", -28),
        ("num_class_embeds", -3),
        ("time_embedding_dim", 100),
        ("time_embedding_type", "fourier"),
        ("up_block_types", ["UpBlock2D", "AttnUpBlock2D"]),
        ("wavelets", True),
    ],
)
def test_a_network_that_cannot_be_expressed(folder, field, value):
    edit_json(folder / "config.json", **{field: value})
    path = folder / "config.json"
    # scale_shift is refused for what it does to the middle attention of diffusers
    named = {"scale_shift": "attn_norm_num_groups"}.get(str(value), field)
    if field == "down_block_types" and value[0].startswith("Resnet"):
        named = "up_block_types"  # where the second way of resampling is found
    with refused(path, named):
        load_checkpoint(folder)


def test_a_missing_field_that_no_shape_determines_is_noted(folder):
    config = json.loads((folder / "config.json").read_text())
    for name in ("freq_shift", "norm_eps", "act_fn"):
        del config[name]
    (folder / "config.json").write_text(json.dumps(config))
    (note,) = load_checkpoint(folder).notes
    assert note == (
        "not in config.json, taken as diffusers has it by default: freq_shift 0, norm_eps 1e-05"
    )


def test_a_variance_the_network_has_no_output_for(folder):
    edit_json(folder / "scheduler_config.json", variance_type="learned_range")
    with refused("scheduler_config.json", "learned_range", "outputs 3 channels"):
        load_checkpoint(folder)


def test_a_pipeline_of_latents(peer, tmp_path):
    save_pipeline(tmp_path, peer)
    edit_json(tmp_path / "model_index.json", vqvae=["diffusers", "VQModel"])
    with refused("model_index.json", "vqvae"):
        load_checkpoint(tmp_path)


def test_the_flags_of_another_family(folder):
    with refused("`model_flags`", folder):
        load_checkpoint(folder, CheckpointSettings(model_flags="--image_size 32"))


def test_the_settings_of_google_ddpm_cifar10_32_are_all_understood(tmp_path):
    # read up to the weights, which are not there
    (tmp_path / "config.json").write_text(
        json.dumps({"_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", **CIFAR10_UNET})
    )
    scheduler = {
        "_class_name": "DDPMScheduler",
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "clip_sample": True,
        "num_train_timesteps": 1000,
        "trained_betas": None,
        "variance_type": "fixed_large",
    }
    (tmp_path / "scheduler_config.json").write_text(json.dumps(scheduler))
    save_file({"conv_in.weight": torch.zeros(1)}, tmp_path / WEIGHTS)
    with refused(WEIGHTS, "missing"):
        load_checkpoint(tmp_path)
