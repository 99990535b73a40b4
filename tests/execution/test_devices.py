import pytest
import torch

from ddpmbench.diffusion.noise import philox_4x32
from ddpmbench.errors import InputError
from ddpmbench.execution.devices import (
    device_name,
    evaluating,
    resolve_device,
    strict_float32,
)
from ddpmbench.execution.folder import describe_devices
from ddpmbench.execution.worker import BatchSize


def batch(option=None, said=None):
    said = [] if said is None else said
    return BatchSize(option, device=torch.device("cpu"), image_shape=(1, 28, 28), warn=said.append)


def fits(limit):
    def compute(rows):
        if rows > limit:
            raise torch.OutOfMemoryError("out of memory")
        return rows

    return compute


def test_auto_halves_until_it_fits_stays_there_and_says_so():
    said = []
    size = batch(said=said)
    assert size.attempt(fits(40)) == 24
    assert size.attempt(fits(1000)) == 24
    assert [line.rsplit(" ", 1)[1] for line in said] == ["`batch_size=24`"]


def test_what_was_asked_for_is_not_changed():
    with pytest.raises(InputError, match="`batch_size=64`"):
        batch(64).attempt(fits(40))


def test_a_single_row_that_does_not_fit_is_the_end():
    with pytest.raises(InputError, match="`batch_size=1`:"):
        batch().attempt(fits(0))


def test_another_error_is_not_mistaken_for_a_lack_of_memory():
    def compute(rows):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        batch().attempt(compute)


def test_the_real_allocator_is_understood():
    def compute(rows):
        return torch.empty(rows * 2**50) if rows > 1 else rows

    assert batch().attempt(compute) == 1


@pytest.mark.parametrize("name", ["gpu", "cpu:1", "cuda:x", "cuda:99", "mps:0", ""])
def test_a_device_that_is_not_there_is_named(name):
    with pytest.raises(InputError, match=f"`device={name}`"):
        resolve_device(name)


def test_auto_finds_a_device():
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")


def test_float32_is_strict_whatever_the_process_had_chosen():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 256, 256, generator=generator)
    exact = (a.double() @ b.double()).float()
    switch = torch.backends.mkldnn.matmul
    before = switch.fp32_precision
    try:
        switch.fp32_precision = "bf16"
        with strict_float32():
            error = (a @ b - exact).abs().max()
        assert switch.fp32_precision == "bf16", "it was not put back"
    finally:
        switch.fp32_precision = before
    assert error < 1e-4


def test_evaluating_puts_every_part_back():
    network = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Sequential(torch.nn.Dropout()))
    network[1].eval()
    with evaluating(network):
        assert not any(module.training for module in network.modules())
    assert network.training
    assert network[0].training
    assert not network[1][0].training


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_integers_of_the_noise_are_the_same_on_a_gpu():
    words = torch.arange(4096)
    counter = (words, words + 1, words * 977, words * 2**19)
    on_gpu = philox_4x32(tuple(word.cuda() for word in counter), 2**63 + 5)
    for ours, theirs in zip(philox_4x32(counter, 2**63 + 5), on_gpu, strict=True):
        assert torch.equal(ours, theirs.cpu())


@pytest.mark.parametrize(("number", "words"), [(1, "1 thread"), (2, "2 threads")])
def test_the_threads_of_a_cpu_are_counted(monkeypatch, number, words):
    monkeypatch.setattr(torch, "get_num_threads", lambda: number)
    assert device_name(torch.device("cpu")) == f"cpu, {words}"
    assert describe_devices()[0].endswith(f", {words}")
