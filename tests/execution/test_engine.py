"""Engines give what the network gives, whatever makes them fast."""

import copy
import dataclasses
import os
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

from ddpmbench.execution import engine as engines
from ddpmbench.execution.devices import products_of
from ddpmbench.execution.engine import Engine, EngineChoice
from ddpmbench.unet.timed_unet import Precision
from ddpmbench.unet.unet import UNet

CPU = torch.device("cpu")


def batch(rows=5, num_timesteps=40):
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(rows, 1, 8, 8, generator=generator, dtype=torch.float64)
    return x_t, torch.randint(1, num_timesteps + 1, (rows,), generator=generator)


class Own(nn.Module):
    """A network of someone's own, which takes a time."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, time):
        return self.conv(x) * time[:, None, None, None].cos()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("num_timesteps", [40, 7, 1])
@torch.no_grad()
def test_an_engine_gives_what_the_checkpoint_gives(small_model, channels_last, num_timesteps):
    model = small_model.respaced(num_timesteps)
    engine = Engine(model, device=CPU, choice=EngineChoice(channels_last=channels_last))
    x_t, t = batch(num_timesteps=num_timesteps)
    output = engine.model_output(x_t, t)
    assert output.dtype is torch.float32
    torch.testing.assert_close(output, model.model_output(x_t, t), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_any_network_can_be_called(small_model):
    own = dataclasses.replace(small_model, network=Own())
    x_t, t = batch()
    expected = own.model_output(x_t, t)
    plain = Engine(own, device=CPU, choice=EngineChoice()).model_output(x_t, t)
    assert torch.equal(plain, expected)
    low = Engine(own, device=CPU, choice=EngineChoice(Precision.BF16)).model_output(x_t, t)
    assert low.dtype is torch.float32
    assert 0 < (low - expected).abs().max() < 0.05


@torch.no_grad()
def test_calls_of_a_compiled_network_are_of_one_size(small_model, monkeypatch):
    """What is compiled for one shape is not compiled again for the batch that is left over."""
    sizes = []

    def compiled(network, **options):
        assert options["dynamic"] is False

        def call(*given):
            sizes.append({len(values) for values in given})
            return network(*given)

        return call

    monkeypatch.setattr(engines.torch, "compile", compiled)
    choice = EngineChoice(compiled=True)
    engine = Engine(small_model, device=CPU, choice=choice, rows=6)
    x_t, t = batch(6)
    for rows in (2, 6, 5):
        result = engine.model_output(x_t[:rows], t[:rows])
        expected = small_model.model_output(x_t[:rows], t[:rows])
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
    assert sizes == [{6}] * 3


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError(), RuntimeError("can't allocate memory")], ids=str
)
@torch.no_grad()
def test_when_memory_is_short_smaller_calls_are_smaller(small_model, monkeypatch, error):
    sizes = []

    def compiled(network, **options):
        def call(x_t, t):
            sizes.append(len(x_t))
            if len(x_t) > 4:
                raise error
            return network(x_t, t)

        return call

    monkeypatch.setattr(engines.torch, "compile", compiled)
    engine = Engine(small_model, device=CPU, choice=EngineChoice(compiled=True))
    x_t, t = batch(8)
    with pytest.raises(RuntimeError):
        engine.model_output(x_t, t)
    engine.model_output(x_t[:4], t[:4])
    assert sizes == [8, 4]


@pytest.mark.slow
def test_a_compiled_network_gives_the_same(small_model, monkeypatch):
    """With the real compiler, if this machine has one.

    A whole U-Net, and probing which vector instructions the machine has, take 10 s each.
    """
    from torch._inductor.exc import InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.config.cpp.vec_isa_ok", False)
    small = dataclasses.replace(small_model, network=Own().eval())
    x_t, t = batch()
    eager = Engine(small, device=CPU, choice=EngineChoice(Precision.BF16))
    engine = Engine(small, device=CPU, choice=EngineChoice(Precision.BF16, compiled=True))
    with torch.inference_mode(), engine.running():
        try:
            result = engine.model_output(x_t, t)
        except RuntimeError as error:
            if isinstance(error.__cause__, InvalidCxxCompiler) or "C++" in str(error):
                pytest.skip("needs a C++ compiler")
            raise
        few = engine.model_output(x_t[:2], t[:2])
        expected = eager.model_output(x_t, t)
    torch.testing.assert_close(result, expected, rtol=0.02, atol=0.02)
    torch.testing.assert_close(few, result[:2], rtol=0.02, atol=0.02)


def test_inside_the_network_evaluates_and_afterwards_it_is_as_it_was(small_model):
    model = dataclasses.replace(small_model, network=copy.deepcopy(small_model.network).train())
    for choice in (EngineChoice(), EngineChoice(channels_last=True)):
        engine = Engine(model, device=CPU, choice=choice)
        with engine.running():
            inner = engine._network.unet
            assert isinstance(inner, UNet)
            assert not inner.training
            assert not inner.residual_blocks()[0].dropout.training
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        assert model.network.training


def test_products_are_rounded_on_a_gpu_alone_and_only_if_asked():
    backends = torch.backends
    before = backends.cuda.matmul.fp32_precision
    with products_of(Precision.TF32):
        assert backends.cuda.matmul.fp32_precision == "tf32"
        assert backends.cudnn.conv.fp32_precision == "tf32"
        assert backends.mkldnn.conv.fp32_precision == "ieee"
    with products_of(Precision.BF16):
        assert backends.cuda.matmul.fp32_precision == "ieee"
    assert backends.cuda.matmul.fp32_precision == before


def test_a_choice_says_what_it_is():
    assert str(EngineChoice()) == "fp32"
    everything = EngineChoice(Precision.BF16, True, True, True)
    assert str(everything) == "bf16, channels_last, compiled, cuda_graph"


MEMORY = """
import resource, torch
from pathlib import Path
from ddpmbench.execution.devices import keeping_memory

torch.set_num_threads(1)
x = torch.zeros(4, 64, 64, 64)  # 4 MiB

def activations():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        held = [torch.cat([x, x]) for _ in range(8)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def warm():
    activations()
    return activations()

def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 2**20

before = warm()
with keeping_memory():
    with keeping_memory():
        pass
    inside = warm()
    kept = resident()
returned = kept - resident()
least = resident()
block = torch.ones(2**26)  # 256 MiB, more than what was kept
del block
print(before, inside, returned, resident() - least)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_that_is_kept_is_there_for_the_next_call_and_returned_afterwards():
    # Large blocks are the system's from the start, as they are until glibc has learned otherwise.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)

    command = [sys.executable, "-c", MEMORY]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    before, inside, returned, held = map(int, done.stdout.split())
    assert inside < 0.1 * before  # page faults of calls, once warm
    assert returned > 32  # of 64 MiB of activations
    assert held < 32  # of a block that is freed later


def test_the_limit_of_compilations_is_as_it_was(small_model):
    config = torch._dynamo.config
    limit = config.recompile_limit
    engine = Engine(small_model, device=CPU, choice=EngineChoice(compiled=True))
    assert config.recompile_limit == limit
    with engine.running():
        assert config.recompile_limit >= max(limit, 64)
    assert config.recompile_limit == limit
