"""A converted checkpoint is the same model: to its own reader, and to diffusers itself."""

import dataclasses
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from peers import (
    SHARED,
    SMALL_UNET,
    DDPMPipeline,
    DDPMScheduler,
    diffusers_unet,
    needs_shared,
    openai_weights,
    pesser_weights,
    random_model,
    refused,
    same_weights,
    save_pipeline,
)
from unet_configs import SMALL_CONFIG

import ddpmbench as db
from ddpmbench.checkpoints.native import write_native
from ddpmbench.diffusion.data_range import DataRange
from ddpmbench.diffusion.model import TimeInput
from ddpmbench.diffusion.parameterization import Process
from ddpmbench.diffusion.process import Prediction, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.evaluate import convert as module
from ddpmbench.evaluate.convert import printed_conversion
from ddpmbench.files import sha256_of
from ddpmbench.likelihood.bound import estimate_bound
from ddpmbench.likelihood.designs import EveryPairDesign
from ddpmbench.likelihood.terms import TermsPass

CPU = torch.device("cpu")
FLAGS = (
    "--image_size 8 --num_channels 32 --num_res_blocks 1 --channel_mult 1,2 "
    "--attention_resolutions 4 --learn_sigma True --diffusion_steps 40 --noise_schedule cosine"
)
NETWORKS = {
    "learned range, scale and shift, heads": dataclasses.replace(
        SMALL_CONFIG,
        out_channels=2,
        attention=(False, True),
        num_heads=4,
        scale_shift=True,
        symmetric_padding=True,
        cosine_first=True,
        frequency_shift=0.0,
        norm_eps=1e-5,
    ),
    "classes": dataclasses.replace(SMALL_CONFIG, num_classes=7, attention=(True, True)),
    "blocks that resample": dataclasses.replace(
        SMALL_CONFIG,
        channels=(32, 32, 64),
        attention=(False, True, False),
        resampling="block",
        head_channels=8,
        scale_shift=True,
        norm_groups=16,
        num_classes=3,
    ),
}


def terms_and_bound(checkpoint, images):
    design = EveryPairDesign(len(images), checkpoint.schedule.num_timesteps, draws=1)
    terms = TermsPass(checkpoint, images, seed=3, decoder="exact", device=CPU)
    table = terms.terms(design.index(0, len(design)))
    prior = terms.prior(np.arange(len(images)))
    return table.values["nats"], estimate_bound(design, prior, [table]).total


def check_same_terms(images, one, *others):
    terms, bound = terms_and_bound(one, images)
    for other in others:
        other_terms, other_bound = terms_and_bound(other, images)
        np.testing.assert_allclose(other_terms, terms, rtol=0, atol=1e-6)
        assert other_bound == pytest.approx(bound, abs=1e-6)


# ---- the same terms, whatever the files


def test_improved_diffusion_to_native(tmp_path, small_images):
    torch.save(openai_weights(images=1), tmp_path / "ema_0.9999_500000.pt")
    read = db.load_checkpoint(
        tmp_path / "ema_0.9999_500000.pt",
        db.CheckpointSettings(model_flags=f"{FLAGS} --rescale_timesteps True"),
    )
    assert read.time_input is TimeInput.RESCALED_1000
    made = db.convert_checkpoint(read, tmp_path / "model.safetensors")
    written = db.load_checkpoint(tmp_path / "model.safetensors")
    assert (written.family, written.sha256) == ("native", made.summary["written"]["sha256"])
    assert written.time_input is TimeInput.RESCALED_1000
    assert same_weights(read, written)
    check_same_terms(small_images, read, written)


def test_a_native_file_holds_all_that_a_number_depends_on(tmp_path, small_images):
    start = random_model(
        clip=False,
        data_range=DataRange(-0.5, 0.5, levels=32),
        prediction=Prediction.PREVIOUS_MEAN,
        time_input=TimeInput.FRACTION,
        schedule=NoiseSchedule.from_betas(np.linspace(1e-3, 0.3, 40) ** 1.1, name="mine"),
        weights="ema",
        training={"steps": 7},
    )
    written = db.convert_checkpoint(start, tmp_path / "model.safetensors").checkpoint
    for field in ("clip", "data_range", "prediction", "variance", "time_input", "weights"):
        assert getattr(written, field) == getattr(start, field), field
    assert written.training == start.training
    assert torch.equal(written.schedule.betas, start.schedule.betas)
    check_same_terms(small_images, start, written)


def test_pesser_diffusers_and_native_are_one_model(tmp_path, small_images):
    start = random_model(prediction=Prediction.EPSILON, schedule=NoiseSchedule.linear(40))
    torch.save(pesser_weights(start.network), tmp_path / "model.ckpt")
    settings = db.CheckpointSettings(schedule="linear:40:0.0025:0.5", variance="fixed_small")
    pesser = db.load_checkpoint(tmp_path / "model.ckpt", settings)
    native = db.convert_checkpoint(pesser, tmp_path / "model.safetensors").checkpoint
    diffusers = db.convert_checkpoint(native, tmp_path / "model").checkpoint
    back = db.convert_checkpoint(diffusers, tmp_path / "again.safetensors").checkpoint
    assert [c.family for c in (pesser, native, diffusers, back)] == [
        *("pesser", "native", "diffusers", "native")
    ]
    for checkpoint in (pesser, native, diffusers, back):
        assert same_weights(start, checkpoint)
    check_same_terms(small_images, start, pesser, native, diffusers, back)


def test_a_folder_of_diffusers_comes_back(tmp_path):
    scheduler = DDPMScheduler(prediction_type="sample", beta_schedule="sigmoid", clip_sample=False)
    peer = diffusers_unet(SMALL_UNET)
    folder = save_pipeline(tmp_path / "theirs", peer, scheduler)
    db.convert_checkpoint(db.load_checkpoint(folder), tmp_path / "ours")
    for name in ("unet/config.json", "scheduler/scheduler_config.json", "model_index.json"):
        ours = json.loads((tmp_path / "ours" / name).read_text())
        theirs = json.loads((folder / name).read_text())
        for field, value in ours.items():
            if field == "freq_shift" or not isinstance(value, float):
                # null is the number of groups of all other normalizations
                same = {value, theirs[field]} == {None, 8} if "attn_norm" in field else False
                assert same or theirs[field] == value, field
            else:
                assert value == pytest.approx(theirs[field], rel=1e-12)
    again = DDPMPipeline.from_pretrained(tmp_path / "ours").unet.state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in peer.state_dict().items())


# ---- diffusers itself


def pipeline_of(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        pipeline = DDPMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.eval()
    return pipeline


def check_with_diffusers(checkpoint, folder):
    """Its own pipeline has the same process and gives the same outputs."""
    pipeline = pipeline_of(folder)
    steps = checkpoint.schedule.num_timesteps
    assert len(pipeline.scheduler) == steps
    expected = checkpoint.schedule.alphas_cumprod.numpy()
    np.testing.assert_allclose(pipeline.scheduler.alphas_cumprod.numpy(), expected, atol=1e-5)
    size, t = checkpoint.image_size, torch.tensor([1, 2, steps // 2, steps])
    x_t = torch.randn(
        4, checkpoint.channels, size, size, generator=torch.Generator().manual_seed(1)
    )
    labels = torch.arange(4) % checkpoint.num_classes if checkpoint.num_classes else None
    with torch.no_grad():
        theirs = pipeline.unet(x_t, t - 1, class_labels=labels).sample
        ours = checkpoint.model_output(x_t, t, labels)
    scale = float(theirs.abs().max())
    assert (ours - theirs).abs().max() < 1e-5 * max(scale, 1.0)
    assert theirs.std() > 0.1 * scale / 4
    return pipeline


def test_the_checkpoint_of_the_package_in_diffusers(tmp_path):
    checkpoint = db.load_checkpoint()
    made = db.convert_checkpoint(checkpoint, tmp_path / "model")
    assert made.checkpoint.schedule.name == "linear"
    check_with_diffusers(checkpoint, tmp_path / "model")


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_every_kind_in_diffusers(tmp_path, name):
    checkpoint = random_model(NETWORKS[name])
    made = db.convert_checkpoint(checkpoint, tmp_path / "model")
    pipeline = check_with_diffusers(checkpoint, tmp_path / "model")
    assert pipeline.scheduler.config.beta_schedule == "squaredcos_cap_v2"
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.scheduler.config.variance_type == checkpoint.variance
    classes = [note for note in made.summary["notes"] if "class_labels" in note]
    assert len(classes) == bool(checkpoint.num_classes)


def test_guided_diffusion_in_diffusers(tmp_path):
    """Its attention rows, its way to resample and its embedding, by its own file."""
    torch.save(openai_weights(updown=True, images=1), tmp_path / "model.pt")
    flags = (
        f"{FLAGS} --resblock_updown True --num_head_channels 16 --use_new_attention_order True "
        "--diffusion_steps 1000"
    )
    read = db.load_checkpoint(tmp_path / "model.pt", db.CheckpointSettings(model_flags=flags))
    db.convert_checkpoint(read, tmp_path / "model")
    check_with_diffusers(read, tmp_path / "model")


@needs_shared
@pytest.mark.parametrize(
    ("file", "recorded"),
    [
        ("guided_diffusion_tiny.pt", "guided_diffusion_tiny_io.npz"),
        ("pesser_tiny.ckpt", "pesser_tiny_io.npz"),
    ],
)
def test_diffusers_gives_what_the_projects_own_code_did(tmp_path, file, recorded):
    recorded = np.load(SHARED / recorded)
    settings = {"schedule": "linear:1000", "variance": "fixed_large"}
    if "flags" in recorded:
        settings = {"model_flags": str(recorded["flags"])}
    read = db.load_checkpoint(SHARED / file, db.CheckpointSettings(**settings))
    db.convert_checkpoint(read, tmp_path / "model")
    x_t, t = torch.from_numpy(recorded["x_t"]), torch.from_numpy(recorded["t"])
    with torch.no_grad():
        output = pipeline_of(tmp_path / "model").unet(x_t, t).sample.numpy()
    assert np.abs(output - recorded["output"]).max() < 1e-5


def test_the_pipeline_samples_with_what_ours_would_say(tmp_path):
    checkpoint = random_model(NETWORKS["learned range, scale and shift, heads"])
    db.convert_checkpoint(checkpoint, tmp_path / "model")
    pipeline, seen = pipeline_of(tmp_path / "model"), []
    pipeline.unet.register_forward_hook(
        lambda _, inputs, output: seen.append((*inputs, output.sample))
    )
    images = pipeline(batch_size=2, num_inference_steps=40, output_type="np").images
    assert images.shape == (2, 8, 8, 1)
    assert [int(t) for _, t, _ in seen] == list(range(39, -1, -1))
    for x_t, t, output in seen:
        ours = checkpoint.model_output(x_t, torch.full((2,), int(t) + 1))
        assert (ours - output).abs().max() < 1e-5 * max(1.0, float(output.abs().max()))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "another weight norm_out.bias"),
        ({"num_heads": 4}, "the output"),
        ({"symmetric_padding": True}, "the output"),
        ({"cosine_first": True}, "the output"),
        ({"frequency_shift": 0.0}, "the output"),
    ],
)
def test_another_network_is_not_moved_into_place(tmp_path, monkeypatch, changes, words):
    """By a weight, or by what shows in no weight but in the output."""
    other = random_model(dataclasses.replace(SMALL_CONFIG, **changes))
    if not changes:
        other.network.norm_out.bias.data[3] += 1e-6
    monkeypatch.setattr(
        module, "write_native", lambda path, checkpoint, **_: write_native(path, other)
    )
    with pytest.raises(RuntimeError, match=words):
        db.convert_checkpoint(random_model(), tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_printed_result_names_both_files(tmp_path):
    read, out = tmp_path / "read.safetensors", tmp_path / "model"
    write_native(read, random_model())
    summary = db.convert_checkpoint(db.load_checkpoint(read), out).summary
    lines = printed_conversion(summary, "table").splitlines()
    assert [line.split()[0] for line in lines] == ["read", "written", "verified"]
    weights = out / "unet" / "diffusion_pytorch_model.safetensors"
    assert lines[0].endswith(f"{read} (native, {sha256_of(read)[:12]})")
    assert lines[1].endswith(f"{out} (diffusers, {sha256_of(weights)[:12]})")
    assert json.loads(printed_conversion(summary, "json")) == summary
    assert printed_conversion(summary, "quiet") == str(out)


# ---- what is refused


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        ({}, {"schedule": NoiseSchedule.linear(40).in_family(Process.VE)}, "process but vp"),
        ({}, {"time_input": TimeInput.ONE_BASED}, "time input"),
        ({}, {"time_input": TimeInput.FRACTION}, "time input"),
        ({}, {"time_input": TimeInput.RESCALED_1000}, "975 at timestep 40"),
        ({}, {"prediction": Prediction.PREVIOUS_MEAN}, "previous_mean"),
        ({}, {"data_range": DataRange(0.0, 1.0)}, "data range"),
        ({}, {"data_range": DataRange(levels=32)}, "32 levels"),
        ({"out_channels": 2}, {"variance": Variance.LEARNED}, "learned"),
        ({"resampling": "pool"}, {}, "pooling"),
        ({"num_heads": 4, "attention": (True, True)}, {}, "4 heads of 8 and 16 channels"),
        ({"num_heads": 4, "attention": (True, False)}, {}, "4 heads of 8 and 16 channels"),
        ({"model_channels": 64}, {}, "64 channels"),
    ],
)
def test_what_diffusers_cannot_express(tmp_path, config, changes, words):
    model = random_model(dataclasses.replace(SMALL_CONFIG, **config), **changes)
    with refused("made", words, ".safetensors"):
        db.convert_checkpoint(model, tmp_path / "deep" / "model")
    assert not list(tmp_path.iterdir())


def test_a_rescaled_time_that_is_the_step_itself_is_one(tmp_path):
    rescaled = random_model(schedule=NoiseSchedule.linear(1000), time_input=TimeInput.RESCALED_1000)
    db.convert_checkpoint(rescaled, tmp_path / "model")
    check_with_diffusers(rescaled, tmp_path / "model")


@pytest.mark.parametrize("out", ["model", "model.safetensors"])
def test_neither_family_takes_these(tmp_path, out):
    with refused("made", "convert the original", "respace it"):
        db.convert_checkpoint(random_model().respaced(5), tmp_path / out)
    with refused("made", "ReLU"):
        db.convert_checkpoint(random_model(network=torch.nn.ReLU()), tmp_path / out)
    assert not list(tmp_path.iterdir())


def test_what_a_family_would_lose_is_refused(tmp_path, monkeypatch):
    """Whatever a writer leaves out, the file read back tells."""
    forgetful = dataclasses.replace(random_model(), prediction=Prediction.EPSILON)
    monkeypatch.setattr(
        module, "write_native", lambda path, checkpoint, **_: write_native(path, forgetful)
    )
    with refused("made", "prediction", "eps"):
        db.convert_checkpoint(random_model(), tmp_path / "model.safetensors")
    other = dataclasses.replace(random_model(), schedule=NoiseSchedule.cosine(41))
    monkeypatch.setattr(
        module, "write_native", lambda path, checkpoint, **_: write_native(path, other)
    )
    with refused("made", "schedule"):
        db.convert_checkpoint(random_model(), tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


# ---- what is there already


def test_nothing_is_overwritten_unasked(tmp_path):
    for name in ("model", "model.safetensors"):
        first = db.convert_checkpoint(random_model(), tmp_path / name).checkpoint
        with refused(tmp_path / name, "`overwrite`"):
            db.convert_checkpoint(random_model(prediction=Prediction.EPSILON), tmp_path / name)
        assert db.load_checkpoint(tmp_path / name).prediction is first.prediction is Prediction.V
        db.convert_checkpoint(
            random_model(prediction=Prediction.EPSILON), tmp_path / name, overwrite=True
        )
        assert db.load_checkpoint(tmp_path / name).prediction is Prediction.EPSILON
    assert sorted(os.listdir(tmp_path)) == ["model", "model.safetensors"]


def test_a_folder_that_is_more_than_a_pipeline_stays(tmp_path):
    db.convert_checkpoint(random_model(), tmp_path / "model")
    (tmp_path / "model" / "thesis.tex").touch()
    with refused(tmp_path / "model", "thesis.tex"):
        db.convert_checkpoint(random_model(), tmp_path / "model", overwrite=True)
    (tmp_path / "other" / "unet").mkdir(parents=True)
    with refused(tmp_path / "other", "model_index.json"):
        db.convert_checkpoint(random_model(), tmp_path / "other", overwrite=True)
    (tmp_path / "file").touch()
    with refused(tmp_path / "file", "is a file"):
        db.convert_checkpoint(random_model(), tmp_path / "file", overwrite=True)
    (tmp_path / "folder.safetensors").mkdir()
    with refused("folder.safetensors", "is a folder"):
        db.convert_checkpoint(random_model(), tmp_path / "folder.safetensors", overwrite=True)


def test_a_checkpoint_may_be_replaced_by_itself(tmp_path):
    start = random_model()
    for name in ("model", "model.safetensors"):
        db.convert_checkpoint(start, tmp_path / name)
        read = db.load_checkpoint(tmp_path / name)
        db.convert_checkpoint(read, tmp_path / name, overwrite=True)
        assert same_weights(start, db.load_checkpoint(tmp_path / name))


def test_a_name_that_contradicts_the_family(tmp_path):
    with refused("`out`", "native", ".safetensors"):
        db.convert_checkpoint(random_model(), tmp_path / "model", to="native")
    with refused("`out`", "diffusers", "folder"):
        db.convert_checkpoint(random_model(), tmp_path / "model.safetensors", to="diffusers")
    with refused("`to=onnx`", "native, diffusers"):
        db.convert_checkpoint(random_model(), tmp_path / "model", to="onnx")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".PT"])
def test_a_folder_is_not_called_as_files_are_unless_asked_for(tmp_path, suffix):
    place = tmp_path / f"a{suffix}"
    with refused(f"`out` {place}", "a.safetensors", "`to=diffusers`"):
        db.convert_checkpoint(random_model(), place)
    assert not place.exists()
    if suffix == ".pt":
        assert db.convert_checkpoint(random_model(), place, to="diffusers").checkpoint.family
        assert place.is_dir()


@pytest.mark.parametrize("out", [".", "..", "model/..", "/"])
def test_a_place_without_a_name(tmp_path, monkeypatch, out):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with refused("`out`", "no name"):
        db.convert_checkpoint(random_model(), out, overwrite=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["here"]


@pytest.mark.parametrize(
    ("move", "after", "left"),
    [(1, False, "v"), (1, True, "v"), (2, False, "v"), (2, True, "eps")],
)
def test_an_interruption_leaves_what_was_there(tmp_path, monkeypatch, move, after, left):
    """Or what was to be, once it is; whichever of the two moves it falls before or after."""
    db.convert_checkpoint(random_model(), tmp_path / "model")
    replace, moves = Path.replace, []

    def interrupted(path, target):
        moves.extend([target] if path.name == "model" else [])
        is_now = path.name == "model" and len(moves) == move
        if is_now and not after:
            raise KeyboardInterrupt
        replace(path, target)
        if is_now:
            raise KeyboardInterrupt

    other = random_model(prediction=Prediction.EPSILON)
    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        db.convert_checkpoint(other, tmp_path / "model", overwrite=True)
    assert len(moves) == move
    assert os.listdir(tmp_path) == ["model"]
    assert db.load_checkpoint(tmp_path / "model").prediction == left


@pytest.mark.parametrize(("weights", "words"), [("ema", ["averaged"]), ("raw", ["last"])])
def test_what_diffusers_does_not_say_of_weights_is_said(tmp_path, weights, words):
    """Native files hold it."""
    made = db.convert_checkpoint(random_model(weights=weights), tmp_path / "model")
    (note,) = made.summary["notes"]
    assert all(word in note for word in ("diffusers", *words))
    assert made.checkpoint.weights is None
    made = db.convert_checkpoint(random_model(weights=weights), tmp_path / "model.safetensors")
    assert made.summary["notes"] == []
    assert made.checkpoint.weights == weights
    assert db.convert_checkpoint(random_model(), tmp_path / "other").summary["notes"] == []


def test_an_image_size_that_nobody_knows(tmp_path):
    made = db.convert_checkpoint(random_model(image_size=None), tmp_path / "model")
    assert any("sample_size" in note for note in made.summary["notes"])
    assert made.checkpoint.image_size is None
