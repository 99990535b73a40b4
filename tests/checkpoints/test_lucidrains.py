"""Files of lucidrains' package mean to us what they mean to its own classes."""

import math
import warnings

import pytest
import torch
from lucidrains_files import STEPS, bare, diffusion, edited, noised, package, saved, trained
from peers import refused
from torch import nn

import ddpmbench as db
from ddpmbench import CheckpointSettings, load_checkpoint
from ddpmbench.checkpoints.lucidrains import read_prediction, read_schedule
from ddpmbench.checkpoints.settings import MissingSettingsError
from ddpmbench.diffusion.process import Prediction, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from denoising_diffusion_pytorch.learned_gaussian_diffusion import normal_kl


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A file of their Trainer, and the average in it."""
    return saved(tmp_path_factory.mktemp("trainer"), diffusion())


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
        {"attn_heads": (1, 3), "attn_dim_head": (6, 8), "channels": 4, "full_attn": (True, False)},
        {"self_condition": True, "dropout": 0.5},
        {"learned_variance": True, "channels": 1},
    ],
    ids=lambda unet: ",".join(unet) or "small",
)
def test_outputs_are_those_of_the_package(tmp_path, unet):
    theirs = diffusion(unet)
    checkpoint = load_checkpoint(bare(tmp_path, theirs))
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
        (ours.q_posterior_mean_variance(x_start, x_t, STEPS)[0], posterior),
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
    with refused(tmp_path, "differ in length"):
        read_schedule({"betas": betas, "alphas_cumprod": products[:-1]}, path=tmp_path)
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
    with pytest.raises(MissingSettingsError, match=r"model-1\.pt: .*`prediction=v`") as caught:
        load_checkpoint(path)
    assert caught.value.family == "lucidrains"
    assert caught.value.missing == {"prediction": "v"}
    assert set(caught.value.weights) == set(theirs.model.state_dict())
    checkpoint = load_checkpoint(path, CheckpointSettings(prediction="x_start"))
    assert checkpoint.prediction is Prediction.X_START
    assert any("`prediction=x_start` is used: " in note for note in checkpoint.notes)


def test_a_learned_variance_is_that_of_the_package_at_every_step(tmp_path):
    # its objective is v by default, and is not asked: its loss is that of the noise
    theirs = diffusion({"learned_variance": True})
    checkpoint = load_checkpoint(bare(tmp_path, theirs))
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


def test_notes_say_how_the_file_is_read(whole):
    checkpoint = load_checkpoint(whole[0])
    assert (checkpoint.schedule.name, checkpoint.prediction) == ("sigmoid", Prediction.V)
    for words in ("run by denoising-diffusion-pytorch", "EMA (ema/ema_model.)", "`data_range=0,1`"):
        assert any(words in note for note in checkpoint.notes)


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
    with refused("model.pt", "`weights=ema`"):
        load_checkpoint(tmp_path / "model.pt", CheckpointSettings(weights="ema"))
