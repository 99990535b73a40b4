import pytest
import torch

from ddpmbench.diffusion.noise import philox_4x32
from ddpmbench.errors import InputError
from ddpmbench.execution import devices
from ddpmbench.execution.devices import (
    device_name,
    evaluating,
    resolve_device,
    resolve_precision,
    strict_float32,
)
from ddpmbench.execution.folder import describe_devices
from ddpmbench.execution.worker import BatchSize
from ddpmbench.unet.timed_unet import Precision

CPU = torch.device("cpu")


def batch(given=None, warnings=None):
    warn = ([] if warnings is None else warnings).append
    return BatchSize(given, device=CPU, image_shape=(1, 28, 28), warn=warn)


def fits(limit):
    def compute(rows):
        return torch.empty(rows * 2**50) if rows > limit else rows  # the real allocator's error

    return compute


def test_auto_halves_until_it_fits_and_stays_there():
    warnings = []
    size = batch(warnings=warnings)
    assert size.attempt(fits(40)) == 24
    assert size.attempt(fits(1000)) == 24
    assert [line.rsplit(" ", 1)[1] for line in warnings] == ["`batch_size=24`"]


@pytest.mark.parametrize(
    ("given", "limit", "words"),
    [
        (64, 40, "`batch_size=64`: does not fit into memory; choose a smaller one"),
        (None, 0, "one image does not fit into memory; take another `device`"),
        (1, 0, "one image does not fit into memory; take another `device`"),
    ],
)
def test_a_given_size_and_a_single_image_must_fit(given, limit, words):
    with pytest.raises(InputError, match=f"^{words}$"):
        batch(given).attempt(fits(limit))


def test_another_error_is_not_mistaken_for_a_lack_of_memory():
    def compute(rows):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        batch().attempt(compute)


@pytest.mark.parametrize("name", ["gpu", "cpu:1", "cuda:x", "cuda:99", "mps:0", ""])
def test_a_device_that_is_not_there_is_named(name):
    with pytest.raises(InputError, match=f"`device={name}`"):
        resolve_device(name)


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
    assert device_name(CPU) == f"cpu, {words}"
    assert describe_devices()[0].endswith(f", {words}")


def test_auto_is_strict_float32_but_on_cuda():
    cuda = torch.device("cuda", 0)
    assert resolve_precision("auto", CPU) is Precision.FP32
    assert resolve_precision("auto", torch.device("mps")) is Precision.FP32
    assert resolve_precision("auto", cuda) is Precision.FP16
    assert resolve_precision("auto", cuda, on_cuda=Precision.BF16) is Precision.BF16
    assert resolve_precision("bf16", CPU) is Precision.BF16


def test_no_such_precision():
    with pytest.raises(InputError, match="`precision=int8`: choose fp32, tf32, bf16, fp16 or"):
        resolve_precision("int8", CPU)


def test_tf32_needs_tensor_cores(monkeypatch):
    with pytest.raises(InputError, match=r"`precision=tf32`: .* this run is on cpu; choose"):
        resolve_precision("tf32", CPU)
    for capability, has_it in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        cuda = torch.device("cuda", 0)
        if has_it:
            assert resolve_precision("tf32", cuda) is Precision.TF32
        else:
            with pytest.raises(InputError, match="from Ampere on"):
                resolve_precision("tf32", cuda)


def test_a_device_that_cannot_compute_in_it(monkeypatch):
    def conv2d(x, weight, padding):
        raise RuntimeError("not implemented for 'Half'")

    monkeypatch.setattr(devices, "conv2d", conv2d)
    with pytest.raises(InputError, match=r"`precision=fp16`: cpu cannot .*; choose fp32"):
        resolve_precision("fp16", CPU)
    assert resolve_precision("fp32", CPU) is Precision.FP32
