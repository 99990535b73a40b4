"""Whatever interrupts a run, the same command goes on, computes nothing twice, ends the same."""

import signal

import numpy as np
import pytest
from engines import install
from processes import Command
from run_folders import assert_same_numbers
from setups import one_shard_a_batch

import ddpmbench as db
from ddpmbench.cli.main import run
from ddpmbench.execution import worker
from ddpmbench.execution.worker import RunListener
from ddpmbench.unet.unet import UNet

# A half width that takes several looks: six images take 720 evaluations until the first.
EVERY_PAIR = {"estimator": "every-pair", "batch_size": 50}
IMPORTANCE = {"half_width": 0.06, "precision": "bf16", "batch_size": 150}


@pytest.mark.parametrize("options", [EVERY_PAIR, IMPORTANCE], ids=["every-pair", "importance"])
def test_interrupted_after_every_batch(small_model, small_images, tmp_path, monkeypatch, options):
    rows = install(monkeypatch)  # stand-ins: rounding in bf16 is that of the batch
    expected = db.evaluate_nll(small_model, small_images, **options)
    computed = sum(size for _, size in rows)
    rows.clear()
    sessions = 0

    def stop(now):
        if len(rows) > before:
            raise KeyboardInterrupt

    while True:
        before, sessions = len(rows), sessions + 1
        try:
            report = db.evaluate_nll(
                small_model,
                small_images,
                **options,
                out=tmp_path,
                listener=RunListener(progress=stop),
            )
            break
        except KeyboardInterrupt:
            assert len(rows) == before + 1, "a session that was interrupted computed one batch"
    assert sessions == len(rows) + 1 > 8
    assert sum(size for _, size in rows) == computed == report.summary["num_evaluations"]
    assert_same_numbers(report, expected)


def test_samples_interrupted_after_every_batch(small_model, tmp_path, monkeypatch):
    few, calls, body = small_model.respaced(3), [], UNet.body

    def counted(network, x_t, times):
        calls.append(len(x_t))
        return body(network, x_t, times)

    expected = db.generate_samples(few, 10, batch_size=3).images.pixels
    monkeypatch.setattr(UNet, "body", counted)

    def stop(now):
        seen.append(now)
        if len(seen) == 1 + 3 + 1:  # the start, three steps, and the batch
            raise KeyboardInterrupt

    for _ in range(4):
        seen = []
        with pytest.raises(KeyboardInterrupt):
            db.generate_samples(
                few, 10, batch_size=3, out=tmp_path, listener=RunListener(progress=stop)
            )
    report = db.generate_samples(few, 10, batch_size=3, out=tmp_path)
    assert sum(calls) == report.summary["num_evaluations"] == 30
    np.testing.assert_array_equal(report.images.pixels, expected)


def test_killed_by_the_system(small_checkpoint, small_npz, small_images, tmp_path, monkeypatch):
    """The one test of a real SIGKILL: what a process leaves is what it had written whole."""
    out = tmp_path / "run"
    options = ["--half-width", "0.1", "--batch-size", "50", "--out", str(out)]
    command = ["nll", "--ckpt", str(small_checkpoint), "--data", str(small_npz), *options]
    running = Command(*command, setup=one_shard_a_batch)
    running.wait_until(lambda: len(list(out.glob("shards/terms-*.npz"))) >= 3)
    assert running.kill() == -signal.SIGKILL, "the run ended before it could be killed"
    assert not (out / "summary.json").exists()
    monkeypatch.setattr(worker, "SHARD_BYTES", 1)
    assert run(command) == 0
    alone = db.evaluate_nll(db.load_checkpoint(small_checkpoint), small_images, half_width=0.1)
    resumed = db.load_report(out)
    assert_same_numbers(resumed, alone)
