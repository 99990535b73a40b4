"""What is launched as one graph gives what it gives step by step.

Without a GPU a graph is a tape: inside `torch.cuda.graph` every operation is written down with the
tensors that it had, and a replay does the same operations on the same tensors again.
"""

import contextlib
import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddpmbench.execution.engine import Engine, EngineChoice, GraphedCall
from ddpmbench.samples.samplers import SamplerChoice

CPU = torch.device("cpu")


class Tape(TorchDispatchMode):
    """A graph that a CPU can have."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, result))
        return result

    def replay(self):
        with torch.inference_mode():
            for function, args, kwargs, result in self.operations:
                again = function(*args, **kwargs)
                for held, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if torch.is_tensor(held) and held.data_ptr() != new.data_ptr():
                        held.copy_(new)


class Stream:
    def wait_stream(self, other):
        pass


@pytest.fixture
def devices(monkeypatch):
    """The devices that were made the current one."""
    made = []

    def device(which):
        made.append(which)
        return contextlib.nullcontext()

    for name, fake in (
        ("device", device),
        ("Stream", Stream),
        ("current_stream", Stream),
        ("stream", lambda stream: contextlib.nullcontext()),
        ("CUDAGraph", Tape),
        ("graph", lambda tape, stream: tape),
    ):
        monkeypatch.setattr(torch.cuda, name, fake)
    return made


def test_a_graph_follows_its_arguments(devices):
    called = []

    def function(x, y):
        called.append(len(x))
        return (x * 2 + y).relu(), x - y

    graphed = GraphedCall(function)
    generator, kept = torch.Generator().manual_seed(0), []
    for rows in (3, 3, 3, 5, 3, 5):
        x, y = torch.randn(2, rows, 4, generator=generator)
        kept.append((graphed(x, y), function(x, y)))
        called.pop()
    # What an earlier call gave is not that of a later one.
    for result, expected in kept:
        for one, other in zip(result, expected, strict=True):
            assert torch.equal(one, other)
    # Three times to warm up and once to capture, for each shape; a replay calls no Python.
    assert called == [3] * 4 + [5] * 4
    assert set(devices) == {CPU}


@pytest.mark.parametrize("compiled", [False, True])
@torch.inference_mode()
def test_an_engine_launched_as_a_graph_gives_the_same(small_model, devices, monkeypatch, compiled):
    monkeypatch.setattr(torch, "compile", lambda network, **options: network)
    choice = EngineChoice(compiled=compiled, cuda_graph=True)
    engine = Engine(small_model, device=CPU, choice=choice, rows=6)
    generator = torch.Generator().manual_seed(0)
    for rows in (6, 6, 4, 6):
        x_t = torch.randn(rows, 1, 8, 8, generator=generator)
        t = torch.randint(1, 41, (rows,), generator=generator)
        expected = small_model.model_output(x_t, t)
        torch.testing.assert_close(engine.model_output(x_t, t), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("choice", "compiled"),
    [
        (SamplerChoice(), True),
        (SamplerChoice("ddim", eta=0.5), False),
        (SamplerChoice("predictor-corrector"), False),
        (SamplerChoice("dpm-solver++"), False),
    ],
    ids=str,
)
def test_a_sampler_launched_step_by_step_as_a_graph_gives_the_same(
    small_model, devices, monkeypatch, choice, compiled
):
    monkeypatch.setattr(torch, "compile", lambda network, **options: network)
    model = dataclasses.replace(small_model.respaced(10))

    def chain(of_engine, size):
        engine = Engine(model, device=CPU, choice=of_engine, rows=4)
        sampler = choice.prepare(model, seed=0, device=CPU, model_output=engine.model_output)
        sampler.launched(engine.whole_step)
        sample = torch.arange(size)
        *_, last = sampler.steps(sampler.start(sample, (1, 8, 8)), 10, sample=sample)
        return last.x_previous

    for size in (4, 3):
        result = chain(EngineChoice(compiled=compiled, cuda_graph=True), size)
        torch.testing.assert_close(result, chain(EngineChoice(), size), rtol=0, atol=1e-4)
    assert devices
