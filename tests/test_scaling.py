"""The formula and the simulation of many processes say of them what must be so."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ddpmbench as db
from ddpmbench.cli.main import run
from ddpmbench.execution.distributed import Ranks
from ddpmbench.likelihood.terms import TermsPass

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import scaling
    import scaling_measure as measuring
    import scaling_report as reporting
    import scaling_tables as tables
    from scaling_model import Costs, Job, efficiency, seconds_of, shares
    from scaling_simulation import ALIKE, Cluster, simulate

COSTS = Costs(
    launch=2.0,
    start=1.5,
    read=0.5,
    read_bytes=10**8,
    batch=0.002,
    row=0.001,
    batch_rows=32,
    write=0.003,
    gather=0.001,
    meet=1e-5,
)
NOTHING = Costs(0, 0, 0, 0, 0, 0.001, 32, 0, 0, 0)
"""Of a machine that only computes rows."""
JOB = Job((360, 31_000), 3.0, meetings=21)


@given(rows=st.integers(0, 5000), ranks=st.integers(1, 40), batch=st.integers(1, 64))
def test_the_shares_of_a_round_are_its_rows(rows, ranks, batch):
    found = shares(rows, ranks, batch)
    assert found.rows.sum() == rows
    assert (found.batches * batch >= found.rows).all()
    assert (found.batches <= found.rows).all()


def test_the_rows_of_a_job_are_those_of_a_run(small_model, small_images):
    checkpoint = small_model.respaced(6)
    for estimator, options in (
        ("rotated-warp", {"half_width": measuring.ENDLESS}),
        ("every-pair", {"draws": 1}),
    ):
        report = db.evaluate_nll(checkpoint, small_images, estimator=estimator, **options)
        job = tables.Tables(0.0, 0.0).job(estimator, len(small_images), 6)
        assert report.summary["num_evaluations"] == job.rows


@pytest.mark.parametrize("estimator", ["rotated-warp", "every-pair"])
def test_the_meetings_of_a_job_are_those_of_a_command(
    small_checkpoint, small_npz, tmp_path, monkeypatch, estimator
):
    met = []

    def counted(name):
        real = getattr(Ranks, name)
        monkeypatch.setattr(
            Ranks, name, lambda ranks, compute: met.append(name) or real(ranks, compute)
        )

    counted("once")
    counted("together")
    inputs = measuring.Inputs("cpu", str(small_checkpoint), str(small_npz))
    assert run(inputs.command(estimator, 6, tmp_path / "run")[2:]) == 0
    job = tables.Tables(0.0, 0.0).job(estimator, 6, 40)
    assert len(met) == job.meetings


@pytest.mark.parametrize("ranks", [1, 2, 7, 64])
def test_rows_alone_divide_by_the_ranks(ranks):
    job = Job((64 * 7 * 32 * 10,), 0.0)
    one = seconds_of(job, NOTHING, 1)
    assert seconds_of(job, NOTHING, ranks) == pytest.approx(one / ranks, rel=1e-12)
    seconds = seconds_of(job, NOTHING, ranks)
    assert efficiency(job, NOTHING, ranks, seconds=seconds) == pytest.approx(1, rel=1e-12)


def test_what_does_not_divide_is_paid_whatever_the_ranks():
    per_process = COSTS.launch + COSTS.start + COSTS.read + JOB.tables
    for ranks in (1, 3, 1024):
        assert seconds_of(JOB, COSTS, ranks) > per_process
    more = dataclasses.replace(JOB, tables=JOB.tables + 5)
    assert seconds_of(more, COSTS, 64) == pytest.approx(seconds_of(JOB, COSTS, 64) + 5)


def test_processes_that_share_cores_gain_nothing_in_their_rows():
    job = Job((64 * 32 * 8,), 0.0)
    alone = seconds_of(job, NOTHING, 2)
    assert seconds_of(job, NOTHING, 4, others=2.0) == pytest.approx(alone)


@pytest.mark.parametrize("ranks", [1, 2, 16, 300])
def test_the_simulation_of_processes_that_are_alike_is_the_formula(ranks):
    found = simulate(JOB, COSTS, ALIKE, groups=(1, ranks, 1), seed=0)
    assert found == pytest.approx(seconds_of(JOB, COSTS, ranks), rel=1e-12)


@pytest.mark.parametrize(("groups", "jobs", "waves"), [(4, 4, 1), (4, 5, 2), (3, 100, 34)])
def test_groups_take_the_runs_in_turn(groups, jobs, waves):
    found = simulate(JOB, COSTS, ALIKE, groups=(groups, 2, jobs), seed=0)
    assert found == pytest.approx(waves * seconds_of(JOB, COSTS, 2), rel=1e-12)


def test_a_group_that_is_slow_gets_fewer_runs():
    job, slow = Job((3200,), 0.0), Cluster(0.0, 0.5, 3.0, float("inf"))
    found = [simulate(job, NOTHING, slow, groups=(4, 1, 64), seed=seed) for seed in range(20)]
    alike = 16 * seconds_of(job, NOTHING, 1)
    # Runs handed out in equal numbers would take three times as long once one group is slow.
    assert max(found) <= 3 * alike
    assert np.median(found) < 2.2 * alike


def test_a_run_waits_for_its_slowest_process():
    job, spread = Job((32 * 64 * 100,), 0.0), Cluster(0.1, 0.0, 1.0, float("inf"))
    alike = seconds_of(job, NOTHING, 64)
    slower = [simulate(job, NOTHING, spread, groups=(1, 64, 1), seed=s) / alike for s in range(200)]
    # The mean largest of 64 normals is 2.35, so the slowest takes about exp(0.235) as long.
    assert np.mean(np.log(slower)) == pytest.approx(0.235, abs=0.02)


def test_readers_queue_at_the_file_server():
    costs = dataclasses.replace(NOTHING, read_bytes=10**9)
    server = dataclasses.replace(ALIKE, bytes_per_second=1e9)
    job = Job((64,), 0.0)
    wait = simulate(job, costs, server, groups=(1, 64, 1), seed=0) - seconds_of(job, costs, 64)
    assert wait == pytest.approx(64)
    # As many groups of one wait in one queue.
    wait = simulate(job, costs, server, groups=(64, 1, 64), seed=0) - seconds_of(job, costs, 1)
    assert wait == pytest.approx(64)


def test_a_line_through_calls_is_found_and_never_below_nothing():
    sizes = [1, 6, 48]
    batch, row = measuring.line_through(sizes, [0.01 + 0.002 * n for n in sizes])
    assert (batch, row) == pytest.approx((0.01, 0.002))
    batch, row = measuring.line_through(sizes, [0.002, 0.013, 0.12])
    assert batch == 0
    assert row == pytest.approx(0.12 / 48)


def test_shards_are_timed_in_a_run_folder(tmp_path):
    write, gather = measuring.shard_seconds(tmp_path / "run", 8)
    assert 0 < write < 1
    assert 0 < gather < 1
    assert len(list((tmp_path / "run" / "shards").iterdir())) == 40


@pytest.mark.parametrize("estimator", ["rotated-warp", "every-pair"])
def test_what_rank_0_does_is_timed_without_the_network(
    small_model, small_images, tmp_path, estimator, monkeypatch
):
    monkeypatch.setattr(TermsPass, "terms", lambda *rows: pytest.fail("the network was called"))
    seconds = tables.reduction_seconds(estimator, small_model, small_images, tmp_path / "run")
    assert 0 < seconds < 60
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    job = tables.Tables(0.0, 0.0).job(estimator, len(small_images), 40)
    assert summary["num_evaluations"] == job.rows


def test_a_machine_is_what_was_written_of_it(tmp_path):
    machine = scaling.Machine(
        COSTS, {"rotated-warp": tables.Tables(1.0, 1e-5)}, {1: 1.0, 2: 1.1, 4: 2.2}
    )
    machine.write(tmp_path / "costs.json")
    assert scaling.Machine.read(tmp_path / "costs.json") == machine


def test_the_page_and_the_figure_have_the_numbers(tmp_path):
    kinds = dict.fromkeys(("rotated-warp", "every-pair"), tables.Tables(2.0, 1e-6))
    simulated = scaling.simulation(scaling.Machine(COSTS, kinds, {1: 1.0}), trials=2)
    assert (simulated.efficiency <= 1).all()
    assert (simulated["median"] >= simulated.formula * 0.9).all()
    assert list(simulated.ranks.unique()) == [2**power for power in range(11)]
    checked = pd.DataFrame(
        {
            "estimator": "every-pair",
            "num_evaluations": 8000,
            "processes": [1, 2],
            "measured": [20.0, 12.0],
            "predicted": [22.0, 11.7],
            "error": [0.1, -0.025],
        }
    )
    reporting.draw(simulated, checked, tmp_path)
    assert {path.suffix for path in (tmp_path / "figures").iterdir()} == {".svg", ".png", ".csv"}
    command = ["python", "benchmarks/scaling.py", "--out", "here"]
    page = reporting.readme(COSTS, checked, simulated, cluster=Cluster(), command=command)
    assert "\npython benchmarks/scaling.py --out here\n" in page
    assert "| every-pair | 8,000 | 1 | 20.0 | 22.0 | +10 % |" in page
    assert "off by 10 % at most" in page.replace("\n", " ")
    assert "| one checkpoint, every pair | 1,024 | 1024 |" in page


def test_the_published_page_is_that_of_its_numbers():
    folder = Path(__file__).parents[1] / "results" / "scaling"
    machine = scaling.Machine.read(folder / "costs.json")
    checked, simulated = (pd.read_csv(folder / f"{name}.csv") for name in ("checked", "simulated"))
    record = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    page = reporting.readme(
        machine.costs,
        checked,
        simulated,
        cluster=Cluster(),
        command=record["arguments"]["given"],
    )
    assert (folder / "README.md").read_text(encoding="utf-8") == page
