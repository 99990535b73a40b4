"""What --precision names on a device, and that processes cannot change a corrected number."""

import json
import signal

import pytest
import torch
from engines import install
from processes import Command, ranks

import ddpmbench as db
from ddpmbench.execution import devices as module
from ddpmbench.execution import worker
from ddpmbench.execution.devices import resolve_precision
from ddpmbench.unet.precision import Precision

CPU = torch.device("cpu")
OPTIONS = {"half_width": 0.1, "precision": "bf16", "batch_size": 8}


def test_auto_is_strict_float32_but_on_cuda():
    cuda = torch.device("cuda", 0)
    assert resolve_precision("auto", CPU) is Precision.FP32
    assert resolve_precision("auto", torch.device("mps")) is Precision.FP32
    assert resolve_precision("auto", cuda) is Precision.FP16
    assert resolve_precision("auto", cuda, on_cuda=Precision.BF16) is Precision.BF16
    assert resolve_precision("bf16", CPU) is Precision.BF16


def test_no_such_precision():
    with pytest.raises(db.InputError, match="`precision=int8`: choose fp32, tf32, bf16, fp16 or"):
        resolve_precision("int8", CPU)


def test_tf32_needs_tensor_cores(monkeypatch):
    with pytest.raises(db.InputError, match=r"`precision=tf32`: .* this run is on cpu; choose"):
        resolve_precision("tf32", CPU)
    for capability, has_it in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        cuda = torch.device("cuda", 0)
        if has_it:
            assert resolve_precision("tf32", cuda) is Precision.TF32
        else:
            with pytest.raises(db.InputError, match="from Ampere on"):
                resolve_precision("tf32", cuda)


def test_a_device_that_cannot_compute_in_it(monkeypatch):
    def conv2d(x, weight, padding):
        raise RuntimeError("not implemented for 'Half'")

    monkeypatch.setattr(module, "conv2d", conv2d)
    with pytest.raises(db.InputError, match=r"`precision=fp16`: cpu cannot .*; choose fp32"):
        resolve_precision("fp16", CPU)
    assert resolve_precision("fp32", CPU) is Precision.FP32


def stand_ins():
    """Engines are stand-ins; the shards are so small that a run can be killed among them."""
    worker.SHARD_SECONDS = 0.0
    install(pytest.MonkeyPatch())


@pytest.mark.slow
def test_killed_and_finished_by_many_processes(
    small_model, small_images, small_checkpoint, small_npz, tmp_path, monkeypatch
):
    install(monkeypatch)
    alone = db.evaluate_nll(small_model, small_images, **OPTIONS).summary
    out = tmp_path / "run"
    options = [f"--{n.replace('_', '-')}={value}" for n, value in OPTIONS.items()]
    inputs = ["--ckpt", small_checkpoint, "--data", small_npz]
    command = ["nll", *inputs, *options, "--out", out]
    running = Command(*command, setup=stand_ins)
    running.wait_until(lambda: list(out.glob("shards/correction-fp32-*")))
    assert running.kill() == -signal.SIGKILL, "the run ended before it could be killed"
    for result in ranks(2, *command, setup=stand_ins):
        assert result.returncode == 0, result.stderr
    found = json.loads((out / "summary.json").read_text())
    for name in ("bits_per_dim", "half_width", "half_width_population", "kl", "decoder"):
        assert found[name] == pytest.approx(alone[name], abs=1e-6)
    assert found["num_evaluations"] == alone["num_evaluations"]
    assert found["precision_correction"] == pytest.approx(alone["precision_correction"], abs=1e-6)
