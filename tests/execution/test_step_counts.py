"""What a step costs besides arithmetic: copies, looks at the device, launches, memory.

Counted on a device without numbers, where a look fails and a copy is seen.
"""

import copy
import dataclasses
import gc
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.parameterization import Process
from ddpmbench.execution.engine import Engine, EngineChoice
from ddpmbench.likelihood.terms import VALUE_COLUMNS, TermIndex, TermsPass
from ddpmbench.samples.samplers import AddedNoise, SamplerChoice

META = torch.device("meta")
"""A device that holds no numbers: whoever looks at one there, fails."""


class Dispatched(TorchDispatchMode):
    """Inside, operations are counted, and those that go between devices.

    Attributes:
        operations: how often each was dispatched.
        crossings: the names of those that have tensors both there and elsewhere.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.crossings = Counter(), []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.operations[str(function)] += 1
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if torch.is_tensor(leaf)]
        if len({tensor.device.type for tensor in tensors}) > 1:
            self.crossings.append(str(function))
        return result

    @property
    def total(self) -> int:
        """Operations of all kinds."""
        return self.operations.total()


CPU = torch.device("cpu")
# Of which noise takes 151, as Philox in int64 does on any device.
MOST_OUTSIDE_THE_NETWORK = {"ancestral": 190, "ddim": 40}


@pytest.fixture
def elsewhere(small_model):
    """The model, on a device without numbers."""
    return dataclasses.replace(small_model, network=copy.deepcopy(small_model.network))


def a_step(checkpoint, choice, device):
    engine = Engine(checkpoint, device=device, choice=EngineChoice())
    sampler = choice.prepare(checkpoint, seed=0, device=device, model_output=engine.model_output)
    sample = torch.arange(3, device=device)
    x_t, t = sampler.start(sample, (1, 8, 8)), torch.full_like(sample, 7)
    step = torch.inference_mode()(lambda: sampler._take_step(x_t, t, sample))
    step()  # the first one brings tables to the device
    return step, engine, (x_t, t)


@pytest.mark.parametrize("process", [Process.VP, Process.VE])
@pytest.mark.parametrize(
    "choice",
    [
        SamplerChoice(),
        SamplerChoice(added_noise=AddedNoise.EVERY_STEP),
        SamplerChoice("ddim"),
        SamplerChoice("predictor-corrector"),
    ],
    ids=str,
)
def test_a_step_of_a_sampler_copies_nothing_and_looks_at_nothing(elsewhere, choice, process):
    schedule = elsewhere.schedule.in_family(process)
    elsewhere = dataclasses.replace(elsewhere, schedule=schedule)
    step, _, _ = a_step(elsewhere, choice, META)
    with Dispatched() as seen:
        step()
    assert seen.crossings == []
    # The count sees a copy where there is one: the plain network's times lie on the host.
    plain = choice.prepare(elsewhere, seed=0, device=META)
    sample = torch.arange(3, device=META)
    x_t, t = plain.start(sample, (1, 8, 8)), torch.full_like(sample, 7)
    step = torch.inference_mode()(lambda: plain._take_step(x_t, t, sample))
    step()
    with Dispatched() as seen:
        step()
    assert seen.crossings


@pytest.mark.parametrize("choice", [SamplerChoice(), SamplerChoice("ddim")], ids=str)
def test_operations_of_a_step(small_model, choice):
    step, engine, (x_t, t) = a_step(small_model, choice, CPU)
    with Dispatched() as whole:
        step()
    with Dispatched() as network, torch.inference_mode():
        engine.model_output(x_t, t)
    with Dispatched() as plain, torch.inference_mode():
        small_model.model_output(x_t, t)
    assert 0 < whole.total - network.total <= MOST_OUTSIDE_THE_NETWORK[choice.method]
    # What depends on the step alone is not worked out again: two operations a block, at least.
    blocks = len(small_model.network.residual_blocks())
    assert network.total <= plain.total - blocks


def images_of(n):
    pixels = np.random.default_rng(0).integers(0, 256, (n, 1, 8, 8), np.uint8)
    return ImageSet(pixels, tuple(map(str, range(n))), "random")


def test_terms_copy_addresses_and_pixels_alone(elsewhere):
    """Between the copies there, two, and the one back, nothing is copied or looked at."""
    engine = Engine(elsewhere, device=META, choice=EngineChoice())
    terms = TermsPass(
        elsewhere,
        images_of(4),
        seed=0,
        decoder="exact",
        device=META,
        model_output=engine.model_output,
    )
    rows, copied = TermIndex(np.arange(4), np.array([1, 7, 1, 40]), np.zeros(4, np.int64)), []
    with pytest.raises(NotImplementedError):
        terms.terms(rows)  # brings tables to the device, where there are no values to give back
    inside = terms._values

    def values(pixels, addresses, *sizes):
        copied.append((pixels, addresses))
        with Dispatched() as seen:
            result = inside(pixels, addresses, *sizes)
        assert seen.crossings == []
        assert seen.total > 100
        raise StopIteration(result.shape)

    terms._values = values
    with Dispatched() as around, pytest.raises(StopIteration, match=f"{len(VALUE_COLUMNS)}, 4"):
        terms.terms(rows)
    assert len(copied) == 1
    assert len(around.crossings) == 2


def live_bytes():
    gc.collect()
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in gc.get_objects()
        if type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided  # others that a test left have no storage
    }
    return sum(storages.values())


def test_a_chain_holds_no_more_memory_from_step_to_step(small_model):
    engine = Engine(small_model, device=CPU, choice=EngineChoice())
    sampler = SamplerChoice().prepare(
        small_model, seed=0, device=CPU, model_output=engine.model_output
    )
    sample, held = torch.arange(3), []
    for step in sampler.steps(sampler.start(sample, (1, 8, 8)), 40, sample=sample):
        if step.t in (35, 25, 15):
            held.append(live_bytes())
    assert len(held) == 3
    assert held[2] <= held[1] <= held[0]  # what other tests have left may go


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_on_a_gpu_too(small_model, cuda_graph):
    device = torch.device("cuda")
    on_gpu = dataclasses.replace(small_model, network=copy.deepcopy(small_model.network))
    engine = Engine(on_gpu, device=device, choice=EngineChoice(cuda_graph=cuda_graph))
    sampler = SamplerChoice().prepare(
        on_gpu, seed=0, device=device, model_output=engine.model_output
    )
    sampler.launched(engine.whole_step)
    sample, held = torch.arange(3, device=device), []
    with engine.running():
        for step in sampler.steps(sampler.start(sample, (1, 8, 8)), 40, sample=sample):
            if step.t in (35, 25, 15):
                held.append(torch.cuda.memory_allocated())
    assert held[0] == held[1] == held[2]
    expected = SamplerChoice().prepare(small_model, seed=0, device=CPU)
    sample = sample.cpu()
    *_, wanted = expected.steps(expected.start(sample, (1, 8, 8)), 40, sample=sample)
    torch.testing.assert_close(step.x_previous.cpu(), wanted.x_previous, rtol=0, atol=1e-3)
