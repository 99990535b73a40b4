"""`terms.parquet`: the terms of the shards, one row each, derived and never read for a number."""

import os

import numpy as np
import pandas as pd
import pytest
from pyarrow import parquet

import ddpmbench as db
from ddpmbench.execution import terms, worker
from ddpmbench.execution.store import FolderStore
from ddpmbench.execution.terms import write_terms
from ddpmbench.likelihood.terms import VALUE_COLUMNS

COLUMNS = ["image", "t", "draw", *VALUE_COLUMNS]


OPTIONS = {"every-pair": {"draws": 2}, "importance": {"half_width": 5.0}}


@pytest.fixture
def evaluate(small_model, small_images):
    few = small_model.respaced(3)
    return lambda out: db.evaluate_nll(few, small_images, estimator="every-pair", out=out)


def stored(folder, length):
    portions = FolderStore(folder / "shards", "terms").read(length, COLUMNS)
    return pd.concat([pd.DataFrame(arrays)[COLUMNS] for arrays in portions], ignore_index=True)


def assert_holds_the_terms(folder, length):
    table = pd.read_parquet(folder / "terms.parquet")
    assert len(table) == length
    pd.testing.assert_frame_equal(table, stored(folder, length), check_exact=True)


def num_terms(report):
    return report.summary["num_evaluations"] - report.summary["sampling"].get(
        "pilot_evaluations", 0
    )


@pytest.mark.parametrize("estimator", OPTIONS)
def test_its_rows_are_the_terms_of_the_shards(
    estimator, small_model, small_images, tmp_path, monkeypatch
):
    monkeypatch.setattr(worker, "SHARD_BYTES", 2000)
    options = {"estimator": estimator, **OPTIONS[estimator], "batch_size": 32}
    report = db.evaluate_nll(small_model, small_images, out=tmp_path / "run", **options)
    assert len(list((tmp_path / "run" / "shards").glob("terms-*"))) > 5
    assert_holds_the_terms(tmp_path / "run", num_terms(report))


def test_a_correction_and_a_pilot_are_not_in_it(small_model, small_images, tmp_path):
    report = db.evaluate_nll(
        small_model, small_images, half_width=5.0, precision="bf16", out=tmp_path / "run"
    )
    corrected = report.summary["precision_correction"]["num_evaluations"]
    assert_holds_the_terms(tmp_path / "run", num_terms(report) - corrected)


@pytest.mark.parametrize("group", [1, 4, 6, 100])
def test_shards_of_any_size_give_the_same_rows(group, tmp_path, monkeypatch):
    monkeypatch.setattr(terms, "_ROW_GROUP", group)
    store = FolderStore(tmp_path / "shards", "terms")
    for start, stop in [(0, 1), (1, 6), (4, 8), (8, 21), (21, 30)]:
        index = np.arange(start, stop)
        arrays = dict.fromkeys(COLUMNS[:3], index) | dict.fromkeys(VALUE_COLUMNS, index / 7)
        arrays["nats"] = np.where(index % 5, index / 3, np.nan)
        store.save(start, arrays, seconds=0, device="cpu")
    write_terms(tmp_path / "terms.parquet", store, 23)
    assert_holds_the_terms(tmp_path, 23)
    metadata = parquet.read_metadata(tmp_path / "terms.parquet")
    sizes = [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)]
    assert sizes == [group] * (23 // group) + [23 % group] * bool(23 % group)


@pytest.mark.parametrize("fault", ["missing", "half"])
def test_it_is_written_again_without_the_network(fault, evaluate, tmp_path, monkeypatch):
    out = tmp_path / "run"
    length, path = num_terms(evaluate(out)), out / "terms.parquet"
    if fault == "missing":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size // 2)
    monkeypatch.setattr(worker.Worker, "map_chunks", complete_only(worker.Worker.map_chunks))
    evaluate(out)
    assert_holds_the_terms(out, length)


def complete_only(map_chunks):
    def checked(self, function, store, length, **options):
        assert not store.missing(length), "terms are there"
        map_chunks(self, function, store, length, **options)

    return checked


def test_a_narrower_interval_takes_more_rows(small_model, small_images, tmp_path):
    lengths = []
    for half_width in (5.0, 0.06):
        report = db.evaluate_nll(
            small_model, small_images, half_width=half_width, out=tmp_path / "run"
        )
        lengths.append(num_terms(report))
        assert_holds_the_terms(tmp_path / "run", lengths[-1])
    assert lengths[0] < lengths[1]


def test_no_number_is_read_from_it(evaluate, tmp_path):
    out = tmp_path / "run"
    summary = evaluate(out).summary
    differences = db.compare([out, out]).per_timestep
    (out / "terms.parquet").unlink()
    assert db.load_report(out).summary == summary
    pd.testing.assert_frame_equal(db.compare([out, out]).per_timestep, differences)
