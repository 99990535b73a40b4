"""The number of processes cannot change a number, whichever of them die."""

import contextlib
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

import ddpmbench as db
from ddpmbench.cli.main import run
from ddpmbench.execution.distributed import Ranks

OPTIONS = {
    "importance": ("--half-width", "0.07"),
    "every-pair": ("--estimator", "every-pair"),
}

# Like `python -m ddpmbench`, with a shard for every batch and a moment between two of them.
MODULE = """
import time
from ddpmbench.cli.main import main
from ddpmbench.execution import worker

save = worker._ShardWriter.add
def slow(self, *batch):
    save(self, *batch)
    time.sleep(0.05)

worker._ShardWriter.add = slow
worker.SHARD_BYTES = 1
main()
"""


@pytest.fixture(scope="module")
def inputs(small_checkpoint, small_npz):
    return ["nll", "--ckpt", str(small_checkpoint), "--data", str(small_npz), "--batch-size", "8"]


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    path = tmp_path_factory.mktemp("module") / "slow.py"
    path.write_text(MODULE)
    return path


def by_hand(script, *arguments):
    """A process for each list of arguments; torchrun would end them before they can speak."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    processes = []
    for rank, of_rank in enumerate(arguments):
        world = {"RANK": rank, "WORLD_SIZE": len(arguments), "LOCAL_RANK": rank}
        processes.append(
            subprocess.Popen(
                [sys.executable, str(script), *of_rank],
                env={**os.environ, **{name: str(v) for name, v in world.items()}, **address},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


def torchrun(count, *what):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*command, "--nproc-per-node", str(count), *map(str, what)]


def tables(folder):
    """Everything of a run that is a number and no time."""
    summary = pd.read_json(folder / "summary.json", typ="series")
    names = ("bits_per_dim", "half_width", "half_width_population", "prior", "kl", "decoder")
    steps = pd.read_csv(folder / "per_timestep.csv").drop(columns="part")
    curve = pd.read_csv(folder / "rate_distortion.csv").drop(columns="psnr")
    # In units of the range: 1e-6 of 255 levels.
    frames = [steps, curve / np.where(curve.columns.str.startswith("distortion"), 255, 1)]
    if (folder / "per_image.csv").exists():
        frames.append(pd.read_csv(folder / "per_image.csv").drop(columns="image_id"))
    numbers = [[float(summary[name]) for name in (*names, "num_evaluations")]]
    return np.concatenate(numbers + [frame.to_numpy(float).ravel() for frame in frames])


@pytest.fixture(scope="module")
def alone(inputs, tmp_path_factory):
    """The tables of one process without torchrun, by estimator."""
    by_estimator = {}
    for name, options in OPTIONS.items():
        out = tmp_path_factory.mktemp("alone") / name
        assert run([*inputs, *options, "--out", str(out)]) == 0
        by_estimator[name] = tables(out)
    return by_estimator


@pytest.mark.slow
@pytest.mark.parametrize(("estimator", "count"), [("importance", 3), ("every-pair", 2)])
def test_the_number_of_processes_cannot_change_a_number(inputs, alone, tmp_path, estimator, count):
    command = torchrun(count, "-m", "ddpmbench", *inputs, *OPTIONS[estimator])
    result = subprocess.run(
        command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=120
    )
    # Without --out one process chooses the folder for all.
    (folder,) = (tmp_path / "runs").iterdir()
    np.testing.assert_allclose(tables(folder), alone[estimator], rtol=0, atol=1e-6)
    assert result.stdout.count("NLL <= ") == result.stdout.count("part ") == 1
    assert result.stderr.count("Run folder: ") == 1
    assert result.stderr.count("network evaluations at first") == 1
    by_name = [path.name.split("-") for path in (folder / "shards").iterdir()]
    for name in {kind for kind, *_ in by_name}:
        spans = sorted(
            (int(start), int(stop.split(".")[0])) for kind, start, stop in by_name if kind == name
        )
        assert len(spans) >= count, "one process did the work of all"
        ends = [0] + [stop for _, stop in spans]
        assert [start for start, _ in spans] == ends[:-1], "a row twice, or not at all"


def test_a_lost_process_ends_the_others_and_another_number_of_them_finishes(
    inputs, slow, alone, tmp_path
):
    arguments = [*inputs, *OPTIONS["every-pair"], "--out", str(tmp_path / "run")]
    survivor, victim = by_hand(slow, arguments, arguments)
    shards = tmp_path / "run" / "shards"
    _until(lambda: shards.exists() and len(list(shards.iterdir())) > 1, survivor)
    victim.kill()
    victim.communicate()
    out, err = survivor.communicate(timeout=120)
    assert survivor.returncode == 1, err
    assert out == ""
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("Error")]
    assert line == "Error: another process of this run has stopped; run the same command again"
    assert not (tmp_path / "run" / "summary.json").exists()
    assert run(arguments) == 0
    np.testing.assert_allclose(tables(tmp_path / "run"), alone["every-pair"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "other", "fact"),
    [
        (("--half-width", "9"), ("--half-width", "8"), "half_width_goal is 8.0, but 9.0 in"),
        ((), ("--ckpt", "missing.safetensors"), "missing.safetensors"),
    ],
)
def test_processes_that_are_not_one_run_are_refused(inputs, slow, tmp_path, options, other, fact):
    out = ("--out", str(tmp_path / "run"))
    first, second = by_hand(slow, [*inputs, *options, *out], [*inputs, *other, *out])
    said = [process.communicate(timeout=120) for process in (first, second)]
    assert (first.returncode, second.returncode) == (2, 2), said
    assert "Error" not in said[0][1], "the other one reports it"
    (line,) = [line for line in said[1][1].splitlines() if line.startswith("Error")]
    assert fact in line
    assert not (tmp_path / "run").exists()


def test_several_processes_need_a_folder(small_model, small_images, monkeypatch):
    two = contextlib.nullcontext(Ranks(0, 2))
    monkeypatch.setattr("ddpmbench.execution.session.joined", lambda: two)
    with pytest.raises(db.InputError, match="`out`: several processes need a folder that they sha"):
        db.evaluate_nll(small_model, small_images)


def _until(is_so, process):
    deadline = time.monotonic() + 120
    while not is_so():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_one_process_is_all_there_is():
    ranks = Ranks()
    assert ranks.reports
    assert ranks.once(lambda: 7) == 7
    assert ranks.share([(3, 6), (6, 9)]) == [(3, 6), (6, 9)]
