"""The number of processes cannot change a number, whichever of them die."""

import contextlib
import subprocess
import sys

import pytest
from processes import STREAMS, Result, ranks, started_ranks
from run_folders import assert_same_numbers
from setups import one_shard_a_batch

import ddpmbench as db
from ddpmbench.cli.main import run
from ddpmbench.execution.distributed import Ranks

OPTIONS = {
    "importance": ("--half-width", "0.07"),
    "every-pair": ("--estimator", "every-pair"),
}


@pytest.fixture(scope="module")
def inputs(small_checkpoint, small_npz):
    return ["nll", "--ckpt", str(small_checkpoint), "--data", str(small_npz), "--batch-size", "8"]


def torchrun(count, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(count), "-m", "ddpmbench", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return [Result(done.returncode, done.stdout, done.stderr)]


@pytest.fixture(scope="module")
def alone(inputs, tmp_path_factory):
    """The report of one process without torchrun, by estimator."""
    by_estimator = {}
    for name, options in OPTIONS.items():
        out = tmp_path_factory.mktemp("alone") / name
        assert run([*inputs, *options, "--out", str(out)]) == 0
        by_estimator[name] = db.load_report(out)
    return by_estimator


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "start", "count"), [("importance", ranks, 3), ("every-pair", torchrun, 2)]
)
def test_the_number_of_processes_cannot_change_a_number(
    inputs, alone, tmp_path, monkeypatch, estimator, start, count
):
    monkeypatch.chdir(tmp_path)
    results = start(count, *inputs, *OPTIONS[estimator])
    out, err = ("".join(getattr(result, name) for result in results) for name in STREAMS)
    assert {result.returncode for result in results} == {0}, err
    # Without --out one process chooses the folder for all.
    (folder,) = (tmp_path / "runs").iterdir()
    assert_same_numbers(db.load_report(folder), alone[estimator])
    assert out.count("NLL <= ") == out.count("part ") == 1
    assert err.count("Run folder: ") == 1
    assert err.count("network evaluations at first") == 1
    by_name = [path.name.split("-") for path in (folder / "shards").iterdir()]
    for name in {kind for kind, *_ in by_name}:
        spans = sorted(
            (int(start), int(stop.split(".")[0])) for kind, start, stop in by_name if kind == name
        )
        assert len(spans) >= count, "one process did the work of all"
        ends = [0] + [stop for _, stop in spans]
        assert [start for start, _ in spans] == ends[:-1], "a row twice, or not at all"


def test_a_lost_process_ends_the_others_and_another_number_of_them_finishes(
    inputs, alone, tmp_path
):
    arguments = [*inputs, *OPTIONS["every-pair"], "--out", str(tmp_path / "run")]
    survivor, victim = started_ranks(arguments, arguments, setup=one_shard_a_batch)
    shards = tmp_path / "run" / "shards"
    survivor.wait_until(lambda: shards.exists() and len(list(shards.iterdir())) > 1)
    victim.kill()
    result = survivor.result()
    assert result.returncode == 1, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error")]
    assert line == "Error: another process of this run has stopped; run the same command again"
    assert not (tmp_path / "run" / "summary.json").exists()
    assert run(arguments) == 0
    assert_same_numbers(db.load_report(tmp_path / "run"), alone["every-pair"])


@pytest.mark.parametrize(
    ("options", "other", "fact"),
    [
        (("--half-width", "9"), ("--half-width", "8"), "half_width_goal is 9.0 there, 8.0 here"),
        ((), ("--ckpt", "missing.safetensors"), "missing.safetensors"),
    ],
)
def test_processes_that_are_not_one_run_are_refused(inputs, tmp_path, options, other, fact):
    out = ("--out", str(tmp_path / "run"))
    started = started_ranks([*inputs, *options, *out], [*inputs, *other, *out])
    first, second = (command.result() for command in started)
    assert (first.returncode, second.returncode) == (2, 2), (first, second)
    assert "Error" not in first.stderr, "the other one reports it"
    (line,) = [line for line in second.stderr.splitlines() if line.startswith("Error")]
    assert fact in line
    assert not (tmp_path / "run").exists()


def test_several_processes_need_a_folder(small_model, small_images, monkeypatch):
    two = contextlib.nullcontext(Ranks(0, 2))
    monkeypatch.setattr("ddpmbench.execution.session.joined", lambda: two)
    with pytest.raises(db.InputError, match="`out`: several processes need a folder that they sha"):
        db.evaluate_nll(small_model, small_images)
