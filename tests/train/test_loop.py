import dataclasses
import json
import os
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from unet_configs import TINY_CONFIG

from ddpmbench.checkpoints.native import read_native
from ddpmbench.cli.main import stopping
from ddpmbench.data.load import load_images
from ddpmbench.diffusion.process import GaussianDiffusion, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError
from ddpmbench.evaluate.nll import evaluate_nll
from ddpmbench.train import loop
from ddpmbench.train.loop import train
from ddpmbench.train.objectives import training_loss
from ddpmbench.train.recipe import TrainingRecipe

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def crops():
    whole = load_images("fashion-mnist:test", num_images=300)
    pixels = np.ascontiguousarray(whole.pixels[:, :, 6:22:2, 6:22:2])
    return dataclasses.replace(whole, pixels=pixels, source="crops", split=None)


def recipe(objective="simple", **changes):
    learned = objective == "hybrid" or changes.get("variance") == Variance.LEARNED_RANGE
    network = dataclasses.replace(
        TINY_CONFIG, out_channels=2 if learned else 1, attention=(False, False), dropout=0.1
    )
    settings = {
        "network": network,
        "image_size": 8,
        "num_timesteps": 50,
        "objective": objective,
        "variance": Variance.LEARNED_RANGE if learned else Variance.FIXED_LARGE,
        "batch_size": 32,
        "learning_rate": 3e-3,
        "warmup_steps": 5,
        "ema_decay": 0.95,
    }
    return TrainingRecipe(**{**settings, **changes})


def weights(path):
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "variance", "process", "num_steps"),
    [
        ("simple", Variance.FIXED_LARGE, "sub-vp", 120),
        ("vlb", Variance.FIXED_SMALL, "flow", 60),
        ("vlb", Variance.LEARNED_RANGE, "vp", 60),
        ("hybrid", Variance.LEARNED_RANGE, "ve:0.05:20", 60),
        ("sliced", Variance.FIXED_SMALL, "ve:0.05:20", 60),
    ],
)
def test_training_lowers_the_bound(objective, variance, process, num_steps, crops, tmp_path):
    images = crops.subset(8)
    before = after = None
    quick = {"batch_size": 16, "learning_rate": 2e-2, "ema_decay": 0.9}
    trained = recipe(objective, variance=variance, process=process, **quick)
    for steps in (1, num_steps):
        path = train(trained, crops, tmp_path, steps=steps, device=CPU)
        checkpoint = read_native(path)
        assert checkpoint.schedule.process == process.partition(":")[0]
        if "0.05" in process:
            levels = (-0.5 * checkpoint.schedule.log_snr).exp()
            torch.testing.assert_close(levels[[0, -1]], torch.tensor([0.05, 20]).double())
        before, after = after, evaluate_nll(checkpoint, images, estimator="every-pair", draws=1)
    assert after.summary["bits_per_dim"] < before.summary["bits_per_dim"] - 0.5
    assert after.per_timestep.eps_mse.mean() < 0.7 * before.per_timestep.eps_mse.mean()


@pytest.mark.parametrize(
    ("process", "schedule", "problem"),
    [
        ("ve:0.1", None, "takes its first and its last sigma"),
        ("ve:low:high", None, "takes its first and its last sigma"),
        ("ve:0.01:50:1000", None, "takes its first and its last sigma"),
        ("ve:50:0.01", None, "the smaller one first"),
        ("vp:3", None, "choose from vp, sub-vp, ve, ve:SIGMA_MIN:SIGMA_MAX, flow"),
        ("edm", None, "choose from vp, sub-vp, ve, ve:SIGMA_MIN:SIGMA_MAX, flow"),
        ("ve", "cosine", "ve has its own noise levels"),
        ("flow", "linear", "flow has its own noise levels"),
    ],
)
def test_a_process_that_is_none_is_refused(process, schedule, problem, crops, tmp_path):
    with pytest.raises(InputError, match=problem):
        train(recipe(process=process, schedule=schedule), crops, tmp_path, steps=1, device=CPU)
    assert not list(tmp_path.iterdir())


def test_hybrid_moves_the_mean_by_l_simple_alone():
    # L_vlb reaches only the variance channels: the mean's channels see L_simple's gradient.
    diffusion = GaussianDiffusion(NoiseSchedule.linear(50), variance=Variance.LEARNED_RANGE)
    generator = torch.Generator().manual_seed(0)
    x_start, eps = torch.randn(2, 4, 1, 8, 8, generator=generator).clamp(-1, 1)
    output = torch.randn(4, 2, 8, 8, generator=generator).requires_grad_()
    t = torch.tensor([1, 2, 30, 50])
    training_loss("hybrid", diffusion, x_start, t, eps, output).backward()
    simple = 2 * (output[:, :1] - eps).detach() / eps.numel()
    torch.testing.assert_close(output.grad[:, :1], simple)
    assert output.grad[:, 1:].abs().max() > 0


@pytest.fixture(scope="module")
def whole(crops, tmp_path_factory):
    """The checkpoint of a run of 60 steps."""
    return train(recipe(), crops, tmp_path_factory.mktemp("whole"), steps=60, device=CPU)


@pytest.mark.parametrize("killed_at", [50, 57])
def test_killed_and_resumed_is_the_run_that_was_not(crops, whole, tmp_path, monkeypatch, killed_at):
    step = loop._train_step

    def killed(state, *arguments):
        if state.step == killed_at:
            raise SystemExit
        if state.step == killed_at - 3:
            loop.SAVE_SECONDS = 0
        return step(state, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "SAVE_SECONDS", loop.SAVE_SECONDS)
        patch.setattr(loop, "_train_step", killed)
        with pytest.raises(SystemExit):
            train(recipe(), crops, tmp_path, steps=60, device=CPU)
    assert torch.load(tmp_path / "training_state.pt")["step"] == killed_at
    resumed = train(recipe(), crops, tmp_path, steps=60, device=CPU)
    expected, result = weights(whole), weights(resumed)
    assert expected.keys() == result.keys()
    for name in expected:
        torch.testing.assert_close(result[name], expected[name], rtol=0, atol=0)
    curves = [pd.read_csv(path.with_name("training_curve.csv")) for path in (whole, resumed)]
    pd.testing.assert_frame_equal(*curves, check_exact=True)
    assert list(curves[0].step) == [50, 60]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_lets_the_step_complete(crops, tmp_path, monkeypatch, name):
    step, number = loop._train_step, getattr(signal, name)

    def signaled(state, *arguments):
        if state.step == 3:
            os.kill(os.getpid(), number)
        return step(state, *arguments)

    monkeypatch.setattr(loop, "_train_step", signaled)
    with stopping() as stopped:
        before = signal.getsignal(number)
        with pytest.raises(KeyboardInterrupt):
            train(recipe(), crops, tmp_path, steps=60, device=CPU)
        assert signal.getsignal(number) == before
    assert stopped.number == number
    assert torch.load(tmp_path / "training_state.pt")["step"] == 4


def test_another_run_of_a_folder_is_refused_and_the_folder_left_alone(crops, whole):
    before = whole.read_bytes()
    for of, steps, problem in (
        (recipe(), 59, r"`steps=59`: .* already at step 60"),
        (recipe(seed=1), 60, "another recipe"),
    ):
        with pytest.raises(InputError, match=problem):
            train(of, crops, whole.parent, steps=steps, device=CPU)
    assert whole.read_bytes() == before


def test_the_record_says_how_it_was_trained(crops, whole):
    record = read_native(whole).training
    assert record["steps"] == 60
    assert record["data"]["sha256"] == crops.sha256
    assert record["recipe"] == json.loads(json.dumps(recipe().to_dict()))


def test_a_folder_with_other_files_is_refused(crops, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="holds files but no training run"):
        train(recipe(), crops, tmp_path, steps=2, device=CPU)


@pytest.mark.parametrize(
    ("objective", "variance"),
    [("simple", Variance.LEARNED_RANGE), ("hybrid", Variance.FIXED_LARGE)],
)
def test_an_objective_that_does_not_train_the_variance_is_refused(objective, variance):
    with pytest.raises(InputError, match=f"`objective={objective}`"):
        TrainingRecipe(
            network=recipe().network, image_size=8, objective=objective, variance=variance
        )


def test_the_caller_s_random_state_is_not_touched(crops, tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    train(recipe(), crops, tmp_path, steps=2, device=CPU)
    torch.testing.assert_close(torch.rand(4), expected, rtol=0, atol=0)
