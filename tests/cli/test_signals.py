"""What stops a command: one line, the status that a shell expects, and what is whole is kept."""

import os
import re
import signal
import subprocess
import sys

import pytest
from feature_networks import write_network

from ddpmbench.cli import main
from ddpmbench.execution.store import FolderStore
from ddpmbench.unet.unet import UNet


@pytest.fixture
def nll(invoke, small_checkpoint, small_npz):
    options = ["--estimator", "every-pair", "--timesteps", 5, "--batch-size", 4, "--draws", 1]
    command = ["nll", "--ckpt", small_checkpoint, "--data", small_npz, *options]
    return lambda *more: invoke(*command, "--format", "quiet", *more)


@pytest.fixture
def stopped_by(monkeypatch):
    """The network sends this signal to its process at its third call."""

    def arrange(number):
        body, calls = UNet.body, []

        def sending(network, x_t, times):
            calls.append(len(x_t))
            if calls.count(4) == 4:
                os.kill(os.getpid(), number)
            return body(network, x_t, times)

        monkeypatch.setattr(UNet, "body", sending)
        return lambda: monkeypatch.setattr(UNet, "body", body)

    return arrange


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_each_is_an_interruption_and_says_how_to_resume(
    nll, stopped_by, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(getattr(signal, name))
    go_on = stopped_by(getattr(signal, name))
    status, printed, message = nll()
    assert status == 128 + getattr(signal, name)
    assert printed == ""
    remedy = r"Interrupted: run the same command with (--out) (runs/nll-\S+) to resume"
    again = re.fullmatch(remedy, message.splitlines()[-1]).groups()
    assert "Traceback" not in message
    assert signal.getsignal(getattr(signal, name)) == before
    kept = list((tmp_path / again[1] / "shards").iterdir())
    assert len(kept) == 1
    content = kept[0].read_bytes()
    go_on()
    status, printed, _ = nll(*again)
    assert status == 0
    assert float(printed) > 0
    assert kept[0].read_bytes() == content


@pytest.mark.parametrize("command", ["sample", "fid"])
def test_samples_say_how_to_resume(
    command, invoke, completed, small_checkpoint, small_npz, stopped_by, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = [command, "--ckpt", small_checkpoint, "--timesteps", 3, "--batch-size", 4]
    if command == "fid":
        network = write_network(tmp_path / "n.pt", num_features=6, num_classes=4)
        words += ["--data", small_npz, "--feature-network", network, "--num-generated", 8]
    go_on = stopped_by(signal.SIGINT)
    status, printed, message = invoke(*words)
    assert (status, printed) == (130, "")
    again = re.search(rf"(--out) (runs/{command}-\S+) to resume$", message.splitlines()[-1])
    go_on()
    completed(*words, *again.groups())


def test_compress_says_how_to_resume(invoke, small_checkpoint, small_npz, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ddpmbench.evaluate.compress.compress", stop)
    out = tmp_path / "images of mine"
    words = ("compress", "--ckpt", small_checkpoint, "--data", small_npz, "--out", out)
    status, _, message = invoke(*words)
    assert (status, message.splitlines()[-1]) == (
        130, f"Interrupted: run the same command with --out '{out}' to resume"
    )  # fmt: skip


def test_a_second_one_does_not_stop_what_is_being_kept(nll, stopped_by, monkeypatch, tmp_path):
    stopped_by(signal.SIGINT)
    save = FolderStore.save

    def impatient(*of, **more):
        os.kill(os.getpid(), signal.SIGINT)
        save(*of, **more)

    monkeypatch.setattr(FolderStore, "save", impatient)
    status, _, message = nll("--out", tmp_path / "run")
    assert status == 130
    assert message.count("Interrupted") == 1
    assert len(list((tmp_path / "run" / "shards").iterdir())) == 1


def test_one_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with main.stopping():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_one_after_the_end_prints_nothing():
    late = (
        "import atexit, os, signal\n"
        "from ddpmbench.cli.main import main\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
        "main(['--version'])"
    )
    done = subprocess.run([sys.executable, "-c", late], capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT
    assert "version" in done.stdout
    assert done.stderr == ""
