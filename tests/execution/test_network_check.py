"""The check of a network before a run: what the bound assumes, or one line that says why not."""

import contextlib
import dataclasses
import functools
import threading

import numpy as np
import pytest
import torch
from peers import refused
from torch import nn
from torch.nn import functional as F

import ddpmbench as db
from ddpmbench.evaluate.nll import evaluate_nll
from ddpmbench.execution.network_check import check_network

CPU = torch.device("cpu")
SHAPE = (1, 8, 8)


class Calls(nn.Module):
    """A network whose call is a function."""

    def __init__(self, call, **parts):
        super().__init__()
        self.call = call
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x_t, time, *labels):
        return self.call(self, x_t, time, *labels)


def wrapped(call, *, variance="fixed_small", time_input="index", num_classes=0, **parts):
    return db.wrap_network(
        Calls(call, **parts),
        schedule=db.NoiseSchedule.linear(30),
        channels=1,
        variance=variance,
        time_input=time_input,
        num_classes=num_classes,
    )


def check(*given, **named):
    check_network(wrapped(*given, **named), SHAPE, device=CPU)


def embedding(rows):
    return {"steps": nn.Embedding(rows, 1)}


def look_up(net, x, t, *labels):
    return net.conv(x) + net.steps(t)[:, :, None, None]


class Rounds(nn.Embedding):
    """Takes shares of its rows."""

    def forward(self, share):
        return super().forward((share * (self.num_embeddings - 1)).long())


def slope_of(net, x, *contexts):
    """The gradient of an energy."""
    with contextlib.ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        x = x.clone().requires_grad_()
        return torch.autograd.grad(net.conv(x).square().sum(), x)[0]


FINE = {
    "half precision inside": (lambda net, x, t: net.conv(x).bfloat16(), {}),
    "of T + 1, counted from one": (look_up, {**embedding(31), "time_input": "one-based"}),
    "a share as a number": (
        lambda net, x, t: x * net.linear(t[:, None])[:, :, None, None],
        {"linear": nn.Linear(1, 1), "time_input": "fraction"},
    ),
    "a variance beside it": (
        lambda net, x, t: torch.cat([x, x], 1),
        {"variance": "learned_range"},
    ),
    "classes": (
        lambda net, x, t, y: x + net.classes(y)[:, :, None, None],
        {"classes": nn.Embedding(3, 1), "num_classes": 3},
    ),
    "an embedding that rounds": (look_up, {"steps": Rounds(30, 1), "time_input": "fraction"}),
    "an embedding by name": (
        lambda net, x, t: net.conv(x) + net.steps(input=t)[:, :, None, None],
        embedding(30),
    ),
    "an embedding of nothing": (lambda net, x, t: x + net.steps(t[:0]).sum(), embedding(30)),
    "an energy": (
        lambda net, x, t: slope_of(net, x, torch.inference_mode(False), torch.enable_grad()),
        {},
    ),
    "nothing at all": (lambda net, x, t: torch.zeros_like(x), {}),
}


@pytest.mark.parametrize(("call", "named"), FINE.values(), ids=FINE)
def test_what_is_fine_passes(call, named):
    check(call, **named)


def drifting(net, x, t):
    net.offset.data += 1e-3
    return net.conv(x) + net.offset


WRONG = {
    "two outputs": (
        lambda net, x, t: (x, x),
        {},
        ["gives a tuple, not a tensor", "self.net(x_t, time)[0] or .sample"],
    ),
    "another shape": (
        lambda net, x, t: x[..., 1:],
        {},
        ["(3, 1, 8, 7)", "(3, 1, 8, 8)", "let forward return the prediction alone"],
    ),
    "a variance that is not said": (
        lambda net, x, t: torch.cat([x, x], 1),
        {},
        ["(3, 2, 8, 8)", "`variance=learned_range`"],
    ),
    "no variance": (
        lambda net, x, t: x,
        {"variance": "learned"},
        ["`variance=learned`", "`variance=fixed_small` or fixed_large"],
    ),
    "whole numbers": (lambda net, x, t: x.long(), {}, ["gives int64"]),
    "NaN": (lambda net, x, t: x / 0 * 0, {}, ["NaN or infinite"]),
    "what a call leaves behind": (
        drifting,
        {"offset": nn.Parameter(torch.zeros(1))},
        ["another output for the same input each time", "leaves behind"],
    ),
    "chance": (
        lambda net, x, t: F.dropout(x, 0.5),
        {},
        ["another output for the same input each time", "training=self.training"],
    ),
    "the batch": (
        lambda net, x, t: F.batch_norm(x, None, None, training=True),
        {},
        ["other images of its batch", "eval()"],
    ),
    "the deviation of the batch": (lambda net, x, t: x / x.std(), {}, ["other images"]),
    "the first time": (lambda net, x, t: x * t[:1, None, None, None], {}, ["other images"]),
    "the last time": (lambda net, x, t: x * t[-1:, None, None, None], {}, ["other images"]),
    "the first image": (lambda net, x, t: x + x[:1], {}, ["other images"]),
    "the last image": (lambda net, x, t: x + x[-1:], {}, ["other images"]),
    "the mean of the batch": (lambda net, x, t: x - x.mean(), {}, ["other images"]),
    "the largest of the batch": (lambda net, x, t: x / x.abs().max(), {}, ["other images"]),
    "the input in place": (lambda net, x, t: x.mul_(2), {}, ["changes x_t", "in place"]),
    "another number of channels": (
        lambda net, x, t: net.rgb(x),
        {"rgb": nn.Conv2d(3, 1, 1)},
        ["test_network_check.py, line ", "3 channels", "x_t (3, 1, 8, 8) float32"],
    ),
    "one row too few": (
        look_up,
        {**embedding(30), "time_input": "one-based"},
        ["nn.Embedding of 30 rows is asked for row 30", "`time_input=one-based`", "30 steps"],
    ),
    "a share for an embedding": (
        look_up,
        {**embedding(30), "time_input": "fraction"},
        ["indices", "time (3,) float32", "`time_input=fraction`"],
    ),
    "a row too many, by name": (
        lambda net, x, t: x + net.steps(input=t)[:, :, None, None],
        embedding(29),
        ["29 rows is asked for row 29"],
    ),
    "gradients of a tensor without": (
        lambda net, x, t: slope_of(net, x, torch.enable_grad()),
        {},
        ["does not require grad", "torch.inference_mode(False)", "clones of x_t"],
    ),
    "labels that it does not take": (
        lambda net, x, t: x,
        {"num_classes": 2},
        ["TypeError", "labels (3,) int64"],
    ),
}


@pytest.mark.parametrize(("call", "named", "words"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_one_line(call, named, words):
    with refused("network Calls", *words):
        check(call, **named)


class Takes(nn.Module):
    def forward(self, x_t, time, y):
        return x_t


def test_classes_of_a_module_in_hand_are_said_by_an_argument():
    """Which is the remedy: with it nothing is refused."""
    wrap = functools.partial(db.wrap_network, Takes(), schedule=db.NoiseSchedule.linear(30))
    with refused("network Takes", "wrap_network's argument num_classes = 10"):
        check_network(wrap(), SHAPE, device=CPU)
    check_network(wrap(num_classes=10), SHAPE, device=CPU)
    wide = wrapped(
        lambda net, x, t, y: x + net.classes(y)[:, :, None, None],
        num_classes=3,
        classes=nn.Embedding(3, 1),
    )
    with refused("nn.Embedding of 3 rows is asked for row 3"):
        check_network(dataclasses.replace(wide, null_class=3), SHAPE, device=CPU)


def test_nothing_of_the_network_is_changed():
    checkpoint = wrapped(look_up, **embedding(30))
    network = checkpoint.network.train()
    before, state = dict(network.state_dict()), torch.get_rng_state()
    check_network(checkpoint, SHAPE, device=CPU)
    assert network.training
    assert network.drop.training
    assert not network.steps._forward_pre_hooks
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_module_in_hand_stays_on_its_device():
    """Computed is a copy; the meta device stands for another."""
    plain = wrapped(look_up, **embedding(30))
    moved = plain.to(torch.device("meta"))
    assert {p.device.type for p in moved.network.parameters()} == {"meta"}
    assert {p.device.type for p in plain.network.parameters()} == {"cpu"}
    assert plain.to(CPU) is plain
    assert moved.to(torch.device("meta")) is moved
    plain.network.lock = threading.Lock()
    with refused("network Calls", "cannot be copied to meta", "lock"):
        plain.to(torch.device("meta"))


def sampled(out, factor=1.0, *, has_memory=True):
    """Samples of a network that multiplies, whose weights say nothing of the factor."""
    calls = []

    def call(net, x, t):
        calls.append(t)
        if len(calls) == 1 and not has_memory:
            raise torch.OutOfMemoryError("much")
        return factor * x

    checkpoint = dataclasses.replace(wrapped(call), sha256="")
    return db.generate_samples(
        checkpoint, 2, settings=db.SampleSettings(image_size=8), device="cpu", out=out
    )


@pytest.mark.parametrize("factor", [1.05, -1.0, 0.0])
def test_another_output_is_another_run(factor, tmp_path):
    sampled(tmp_path)
    with refused("holds another run", "network_output is"):
        sampled(tmp_path, factor)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({}, {"factor": 1.0001}),  # as rounding on another device
        ({}, {"has_memory": False}),
        ({"has_memory": False}, {}),
    ],
)
def test_a_run_goes_on_on_another_device_and_without_memory_for_the_check(first, then, tmp_path):
    kept = sampled(tmp_path, **first).images
    assert np.array_equal(sampled(tmp_path, **then).images.pixels, kept.pixels)


def test_the_unet_is_not_called(small_model, monkeypatch):
    monkeypatch.setattr(type(small_model.network), "forward", None)
    check_network(small_model, SHAPE, device=CPU)


def test_a_run_does_not_begin_and_leaves_no_folder(small_images, tmp_path):
    with refused("another output"):
        evaluate_nll(
            wrapped(WRONG["chance"][0]),
            small_images,
            estimator="every-pair",
            draws=1,
            out=tmp_path / "run",
        )
    with refused("another output"):
        db.generate_samples(
            wrapped(WRONG["chance"][0]),
            2,
            settings=db.SampleSettings(image_size=8),
            out=tmp_path / "run",
        )
    with refused("another output"):
        db.measure_speed(wrapped(WRONG["chance"][0]), small_images, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---- the time input


@pytest.mark.parametrize(
    ("time_input", "times", "kind"),
    [
        ("index", [0, 14, 29], torch.int64),
        ("one-based", [1, 15, 30], torch.int64),
        ("fraction", [1 / 30, 0.5, 1.0], torch.float32),
        ("rescaled-1000", [0.0, 14 * 1000 / 30, 29 * 1000 / 30], torch.float32),
    ],
)
def test_timesteps_are_whole_numbers_and_shares_are_not(time_input, times, kind):
    """In the checkpoint, in a run, and of a respaced schedule."""
    seen = []

    def call(net, x, t):
        seen.append(t)
        return x

    checkpoint = wrapped(call, time_input=time_input)
    result = checkpoint.network_time(torch.tensor([1, 15, 30]))
    assert result.dtype is kind
    torch.testing.assert_close(result.double(), torch.tensor(times).double())
    respaced = checkpoint.respaced(2).network_time(torch.tensor([1, 2]))
    torch.testing.assert_close(respaced, result[[0, 2]])
    check_network(checkpoint, SHAPE, device=CPU)
    assert {t.dtype for t in seen} == {kind}
