"""Files of lucidrains' package mean to us what they mean to its own classes."""

import math
import sys
import warnings

import numpy as np
import pytest
import torch
from lucidrains_files import diffusion, package, saved, trained
from peers import refused
from torch import nn

import ddpmbench as db
from ddpmbench.cli.main import run
from ddpmbench.inputs.checkpoints import CheckpointSettings, load_checkpoint
from ddpmbench.inputs.checkpoints.lucidrains_process import read_prediction, read_schedule
from ddpmbench.inputs.checkpoints.unsettled import UnsettledError
from ddpmbench.process.prediction import Prediction, Variance
from ddpmbench.process.schedule import NoiseSchedule

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from denoising_diffusion_pytorch import (
        ContinuousTimeGaussianDiffusion,
        ElucidatedDiffusion,
        GaussianDiffusion1D,
        KarrasUnet,
        Unet,
        Unet1D,
        WeightedObjectiveGaussianDiffusion,
        classifier_free_guidance,
    )
    from denoising_diffusion_pytorch.learned_gaussian_diffusion import normal_kl

STEPS = torch.tensor([1, 2, 17, 39, 40])


def noised(channels=3, seed=1):
    return torch.randn(5, channels, 8, 8, generator=torch.Generator().manual_seed(seed))


def bare(folder, model):
    """The state dict of a process alone, as users save it."""
    torch.save(model.state_dict(), folder / "model.pt")
    return folder / "model.pt"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A file of their Trainer, and the average in it."""
    return saved(tmp_path_factory.mktemp("trainer"), diffusion())


def edited(path, target, change, **fields):
    """The same file with its average's weights, under the process's names, changed."""
    content = torch.load(path, weights_only=True) | fields
    ema = content["ema"]
    names = {name.removeprefix("ema_model."): ema.pop(name) for name in [*ema] if "ema_" in name}
    ema |= {f"ema_model.{name}": value for name, value in change(names).items()}
    torch.save(content, target)
    return target


class Given(nn.Module):
    """A network that gives what it is told to."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x, t, x_self_cond=None):
        return self.output


@pytest.mark.parametrize(
    "unet",
    [
        {},
        {"dim_mults": (1, 2, 4), "full_attn": (True, False, True), "channels": 1},
        {"dim_mults": (2,), "full_attn": (False,), "init_dim": 12},
        {"attn_heads": (1, 3), "attn_dim_head": (4, 8), "channels": 4, "full_attn": (True, False)},
        {"self_condition": True, "dropout": 0.5},
        {"learned_variance": True, "channels": 1},
    ],
    ids=lambda unet: ",".join(unet) or "small",
)
def test_outputs_are_those_of_the_package(tmp_path, unet):
    path, theirs = saved(tmp_path, diffusion(unet))
    checkpoint = load_checkpoint(path)
    x_t = noised(theirs.channels)
    with torch.no_grad():
        expected = theirs.model(x_t, STEPS - 1)
        output = checkpoint.model_output(x_t, STEPS)
    if checkpoint.variance.is_learned:  # only t = 1, which has a test of its own, is another
        assert torch.equal(output[:, :1], expected[:, :1])
        output, expected = output[1:], expected[1:]
    assert (output - expected).abs().max() < 1e-5
    assert checkpoint.channels == theirs.channels
    assert checkpoint.size_multiple == theirs.model.downsample_factor
    assert checkpoint.family == "lucidrains"
    assert any("self-cond" in note for note in checkpoint.notes) == theirs.self_condition


@pytest.mark.parametrize("beta_schedule", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("objective", ["pred_noise", "pred_x0", "pred_v"])
def test_predictions_and_posterior_are_those_of_the_package(tmp_path, objective, beta_schedule):
    model = diffusion(objective=objective, beta_schedule=beta_schedule)
    checkpoint = load_checkpoint(bare(tmp_path, model))
    x_start, x_t = noised(seed=2).clamp(-1, 1).double(), noised().double()
    output = checkpoint.model_output(x_t, STEPS).detach().double()
    theirs = model.double()  # so that nothing is lost in their differences
    theirs.model = Given(output)
    ours = checkpoint.diffusion
    step = ours.p_mean_variance(output, x_t, STEPS)
    predicted = theirs.model_predictions(x_t, STEPS - 1)
    mean, _, log_variance, pred_x_start = theirs.p_mean_variance(x_t, STEPS - 1)
    posterior, _, _ = theirs.q_posterior(x_start, x_t, STEPS - 1)
    for found, expected in (
        (step.unclipped_pred_x_start, predicted.pred_x_start),
        (step.pred_eps, predicted.pred_noise),
        (step.pred_x_start, pred_x_start),
        (step.mean, mean),
        (ours.q_posterior(x_start, x_t, STEPS)[0], posterior),
    ):
        # of what is rounded: theirs multiplies by float32 numbers before it clips
        size = torch.maximum(expected.abs(), predicted.pred_x_start.abs())
        scale = size.amax((1, 2, 3), keepdim=True).clamp(min=1.0)
        assert ((found - expected).abs() / scale).max() < 1e-5
    # at t = 1, where they add no noise, theirs is that of the variance 1e-20
    assert (step.log_variance - log_variance)[1:].abs().max() < 1e-5
    assert checkpoint.variance is Variance.FIXED_SMALL
    assert checkpoint.clip
    assert checkpoint.schedule.name == beta_schedule


@pytest.mark.parametrize("num_timesteps", [40, 1000, 4000])
@pytest.mark.parametrize(
    ("name", "arguments", "known"),
    [
        ("linear", {}, True),
        ("cosine", {}, True),
        ("cosine", {"s": 0.02}, False),
        ("sigmoid", {}, False),
        ("sigmoid", {"start": -2, "end": 4, "tau": 0.7}, False),
    ],
)
def test_the_schedule_is_recovered_from_float32(tmp_path, num_timesteps, name, arguments, known):
    betas = getattr(package, f"{name}_beta_schedule")(num_timesteps, **arguments)
    truth = NoiseSchedule.from_betas(betas)
    buffers = {"betas": betas.float(), "alphas_cumprod": (1 - betas).cumprod(0).float()}
    schedule = read_schedule(buffers, path=tmp_path)
    assert schedule.name == ("betas" if arguments else name)
    error = (schedule.snr.log() - truth.snr.log()).abs().max()
    assert error < (1e-10 if known else 1e-6)
    assert (schedule.betas / truth.betas - 1).abs().max() < 1e-7
    assert ((1 - schedule.betas) / (1 - truth.betas) - 1).abs().max() < 3e-7


def test_buffers_that_contradict_each_other_are_no_schedule(tmp_path):
    betas = package.cosine_beta_schedule(40)
    products = (1 - betas).cumprod(0)
    for index in (0, 20, 39):
        wrong = products.clone()
        wrong[index] *= 0.999
        with refused(tmp_path, f"t = {index + 1};", "contradict"):
            read_schedule({"betas": betas, "alphas_cumprod": wrong}, path=tmp_path)
    with refused(tmp_path, "alphas_cumprod [39]"):
        read_schedule({"betas": betas, "alphas_cumprod": products[:-1]}, path=tmp_path)
    with refused(tmp_path, "no buffer alphas_cumprod"):
        read_schedule({"betas": betas}, path=tmp_path)
    with refused(tmp_path, "[40, 1]"):
        read_schedule({"betas": betas.view(40, 1)}, path=tmp_path)


@pytest.mark.parametrize("gamma", [None, 5.0, 0.3])
@pytest.mark.parametrize(
    ("objective", "prediction"),
    [("pred_noise", "eps"), ("pred_x0", "x_start"), ("pred_v", "v")],
)
def test_the_loss_weight_tells_what_the_network_predicts(objective, prediction, gamma):
    clipped = {} if gamma is None else {"min_snr_loss_weight": True, "min_snr_gamma": gamma}
    for num_timesteps in (40, 1000):
        for name in ("linear", "cosine", "sigmoid"):
            model = diffusion(
                objective=objective, timesteps=num_timesteps, beta_schedule=name, **clipped
            )
            schedule = NoiseSchedule.from_betas(model.betas)
            assert read_prediction(schedule, model.loss_weight) == prediction
            assert read_prediction(schedule, model.loss_weight * 0.99) is None
    assert read_prediction(schedule, None) is None
    assert read_prediction(schedule, model.loss_weight[1:]) is None


def test_a_loss_weight_that_tells_nothing_takes_an_option(whole, tmp_path):
    path, theirs = tmp_path / "model-1.pt", whole[1]
    edited(whole[0], path, lambda names: names | {"loss_weight": names["loss_weight"].sqrt()})
    with pytest.raises(UnsettledError, match=r"model-1\.pt: .*--prediction") as caught:
        load_checkpoint(path)
    assert caught.value.family == "lucidrains"
    assert caught.value.missing == ("--prediction v",)
    assert set(caught.value.weights) == set(theirs.model.state_dict())
    checkpoint = load_checkpoint(path, CheckpointSettings(prediction="x_start"))
    assert checkpoint.prediction is Prediction.X_START
    assert "--prediction x_start, which the file does not say" in checkpoint.notes


def test_a_learned_variance_is_that_of_the_package_at_every_step(tmp_path):
    # its objective is v by default, and is not asked: its loss is that of the noise
    path, theirs = saved(tmp_path, diffusion({"learned_variance": True}))
    checkpoint = load_checkpoint(path)
    x_t = noised()
    with torch.no_grad():
        step = checkpoint.diffusion.p_mean_variance(checkpoint.model_output(x_t, STEPS), x_t, STEPS)
        mean, _, log_variance, _ = theirs.p_mean_variance(x=x_t, t=STEPS - 1, clip_denoised=True)
    assert (step.log_variance - log_variance).abs().max() < 1e-4
    assert (step.mean - mean).abs().max() < 1e-5
    assert checkpoint.prediction is Prediction.EPSILON
    assert checkpoint.variance is Variance.LEARNED_RANGE


@pytest.mark.parametrize("unet", [{}, {"learned_variance": True}, {"self_condition": True}])
def test_terms_are_divergences_of_the_package_s_distributions(tmp_path, unet):
    theirs = diffusion(unet)
    checkpoint = load_checkpoint(bare(tmp_path, theirs))
    x_start, eps = noised(seed=2).clamp(-1, 1), noised(seed=3)
    x_t = theirs.q_sample(x_start, STEPS - 1, eps)
    with torch.no_grad():
        output = checkpoint.model_output(x_t, STEPS).double()
        given = Given(theirs.model(x_t, STEPS - 1).double())
    x_start, x_t, eps = x_start.double(), x_t.double(), eps.double()
    theirs = theirs.double()  # so that nothing is lost in their differences
    theirs.model = given
    mean, _, log_variance, *_ = theirs.p_mean_variance(x=x_t, t=STEPS - 1, clip_denoised=True)
    posterior, _, log_posterior = theirs.q_posterior(x_start, x_t, STEPS - 1)
    expected = normal_kl(posterior, log_posterior, mean, log_variance).mean((1, 2, 3))
    terms = db.bound_terms(
        checkpoint.schedule,
        x_start,
        STEPS,
        eps,
        output,
        prediction=checkpoint.prediction,
        variance=checkpoint.variance,
        clip=checkpoint.clip,
    )
    found = terms.bits_per_dim * math.log(2)
    assert (found / expected - 1)[1:].abs().max() < 1e-5


def test_a_run_of_nll_says_how_the_file_is_read(whole, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", arr_0=pixels)
    arguments = ["nll", "--ckpt", whole[0], "--data", tmp_path / "images.npz", "--draws", 1]
    arguments += ["--estimator", "every-pair", "--out", tmp_path / "run", "--timesteps", 4]
    assert run([str(argument) for argument in arguments]) == 0
    told = capsys.readouterr()
    for words in ("sigmoid", "v, fixed_small, clip", "(lucidrains, "):
        assert words in told.out
    for words in ("run by denoising-diffusion-pytorch", "EMA (ema/ema_model.)", "--data-range 0,1"):
        assert words in told.err


def test_both_sets_of_weights_of_a_short_training(tmp_path, monkeypatch):
    path, average = trained(tmp_path, diffusion(), monkeypatch)
    x_t = noised()
    ema = load_checkpoint(path)
    raw = load_checkpoint(path, CheckpointSettings(weights="raw"))
    content = torch.load(path, weights_only=True)
    last = diffusion()
    last.load_state_dict(content["model"])
    with torch.no_grad():
        outputs = [each.model_output(x_t, STEPS) for each in (ema, raw)]
        expected = [each.model(x_t, STEPS - 1) for each in (average, last)]
    for output, theirs in zip(outputs, expected, strict=True):
        assert (output - theirs).abs().max() < 1e-5
    assert not torch.allclose(*outputs, atol=1e-4)
    assert (ema.weights, raw.weights) == ("ema", "raw")
    assert "weights: EMA (ema/ema_model.)" in ema.notes
    assert "weights: raw (model)" in raw.notes
    assert ema.fingerprint != raw.fingerprint

    torch.save(content["ema"], tmp_path / "ema.pt")
    torch.save(content["model"], tmp_path / "model.pt")
    with torch.no_grad():
        for name, settings, output in (
            ("ema.pt", CheckpointSettings(), outputs[0]),
            ("ema.pt", CheckpointSettings(weights="raw"), outputs[1]),
            ("model.pt", CheckpointSettings(), outputs[1]),
        ):
            assert torch.equal(
                load_checkpoint(tmp_path / name, settings).model_output(x_t, STEPS), output
            )
    with refused("--weights ema", "model.pt"):
        load_checkpoint(tmp_path / "model.pt", CheckpointSettings(weights="ema"))


def old(names):
    """Names as versions before 2.0 have them: group norms."""
    return {
        name.replace(".norm.g", ".norm.weight") if ".block" in name else name: value
        for name, value in names.items()
    }


def without(*missing):
    return lambda names: {name: value for name, value in names.items() if name not in missing}


def nan(names):
    return names | {"model.final_conv.bias": torch.full((3,), torch.nan)}


@pytest.mark.parametrize(
    ("change", "version", "words"),
    [
        (without("model.time_mlp.1.weight"), "2.3.4", ["time_mlp.1.weight", "not whole"]),
        (without("model.ups.1.2.mem_kv"), "2.3.4", ["ups.1.2.mem_kv", "not whole"]),
        (without("model.ups.1.2.mem_kv"), "9.0", ["9.0", "another", "pytorch==9.0"]),
        (without("alphas_cumprod"), "2.3.4", ["no buffer alphas_cumprod"]),
        (lambda names: names | {"model.more.weight": torch.ones(3)}, "2.3.4", ["left over"]),
        (nan, "2.3.4", ["final_conv.bias", "NaN"]),
        (old, "1.10.17", ["1.10.17", "another", "pip install", "pytorch==1.10.17"]),
        (old, None, ["before 2.0", "--network"]),
        (old, "import os; #", ["before 2.0", "--network"]),
        (lambda names: names | {"loss_weight": 3}, "2.3.4", ["loss_weight is a int"]),
        (lambda names: names | {"betas": torch.ones(40)}, "2.3.4", ["contradict", "t = 1;"]),
    ],
)
def test_files_that_are_not_whole_or_of_another_version(whole, tmp_path, change, version, words):
    path = edited(whole[0], tmp_path / "model-1.pt", change, version=version)
    with refused(path, *words):
        load_checkpoint(path)


def weighted():
    unet = Unet(8, dim_mults=(1, 2), out_dim=8)
    return WeightedObjectiveGaussianDiffusion(unet, image_size=8, timesteps=40)


def guided():
    unet = classifier_free_guidance.Unet(8, num_classes=4, dim_mults=(1, 2))
    return classifier_free_guidance.GaussianDiffusion(unet, image_size=8, timesteps=40)


def one_dimensional():
    unet = Unet1D(8, dim_mults=(1, 2), channels=3)
    return GaussianDiffusion1D(unet, seq_length=8, timesteps=40)


def continuous():
    unet = Unet(8, dim_mults=(1, 2), learned_sinusoidal_cond=True)
    return ContinuousTimeGaussianDiffusion(unet, image_size=8)


def elucidated():
    unet = Unet(8, dim_mults=(1, 2), learned_sinusoidal_cond=True)
    return ElucidatedDiffusion(unet, image_size=8)


def karras():
    unet = KarrasUnet(image_size=8, dim=8, num_downsamples=1, num_blocks_per_stage=1)
    return package.GaussianDiffusion(unet, image_size=8, timesteps=40)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (weighted, ["WeightedObjective"]),
        (guided, ["classes"]),
        (one_dimensional, ["Unet1D"]),
        (continuous, ["without betas"]),
        (elucidated, ["without betas"]),
        (karras, ["another network"]),
        (lambda: Unet(8, dim_mults=(1, 2)), ["alone", "model-N.pt"]),
    ],
)
def test_other_models_of_the_package_are_told_by_name(tmp_path, make, words):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package's own
        state = make().state_dict()
    torch.save(state, tmp_path / "model-1.pt")
    with refused(tmp_path / "model-1.pt", "--network FILE.py:NAME", *words):
        load_checkpoint(tmp_path / "model-1.pt")


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    path = bare(tmp_path, diffusion())
    monkeypatch.setitem(sys.modules, "denoising_diffusion_pytorch", None)
    with refused(path, "pip install 'ddpmbench[lucidrains]'"):
        load_checkpoint(path)


def test_options_of_other_families_are_refused(tmp_path):
    with refused("--model-flags"):
        load_checkpoint(
            bare(tmp_path, diffusion()), CheckpointSettings(model_flags="--num_heads 4")
        )
