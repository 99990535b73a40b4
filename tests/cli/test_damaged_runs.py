"""Runs of newer versions; runs whose shards are not all whole."""

import dataclasses
import os
import shutil

import numpy as np
import pytest
from sealing import edit, edit_npz, read_npz

import ddpmbench as db
from ddpmbench import checksums
from ddpmbench.execution import worker
from ddpmbench.execution.estimators import refuse_missing_shards
from ddpmbench.execution.finished_runs import FinishedRun
from ddpmbench.execution.store import FolderStore
from ddpmbench.execution.terms import arrays_of
from ddpmbench.likelihood.terms import VALUE_COLUMNS, TermIndex, TermTable

OPTIONS = {"pairs": {"estimator": "every-pair"}, "importance": {"half_width": 5.0}}
SHARD = 20
IMAGES = {"pairs": 6, "importance": 80}


@pytest.fixture(scope="module")
def evaluate(small_model):
    """Makes the run of an estimator, or goes on with it."""
    whole = db.load_images("fashion-mnist:test", num_images=IMAGES["importance"])
    crops = np.ascontiguousarray(whole.pixels[:, :, 10:18, 10:18])
    images = dataclasses.replace(whole, pixels=crops, source="crops", split=None)

    def run(kind, out):
        options = {**OPTIONS[kind], "batch_size": SHARD, "out": out}
        return db.evaluate_nll(small_model, images.subset(IMAGES[kind]), **options)

    return run


@pytest.fixture(scope="module")
def runs(evaluate, tmp_path_factory):
    """A run of each estimator, in many shards."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "SHARD_BYTES", 1)
        for kind in OPTIONS:
            evaluate(kind, root / kind)
    return root


@pytest.fixture(params=list(OPTIONS))
def run(request, runs, tmp_path):
    """A copy of one of them."""
    return shutil.copytree(runs / request.param, tmp_path / request.param)


@pytest.fixture
def pairs(runs, tmp_path):
    return shutil.copytree(runs / "pairs", tmp_path / "pairs")


@pytest.fixture
def importance(runs, tmp_path):
    return shutil.copytree(runs / "importance", tmp_path / "importance")


def shards(folder):
    return sorted((folder / "shards").glob("terms-*"))


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- newer versions


@pytest.mark.parametrize("version", ["0.0.9", db.__version__, f"{db.__version__}rc2"])
def test_a_run_of_an_older_version_is_read(completed, importance, version):
    edit(importance / "run.json", ddpmbench=version)
    shutil.rmtree(importance / "shards")  # which are of the run of this version
    completed("rd", "--run", importance)


def test_a_later_result_of_another_kind_is_no_newer_version(refused, importance, pairs):
    edit(importance / "summary.json", schema="ddpmbench.comparison/2")
    line = refused("rd", "--run", importance)
    assert "is a comparison, not a run of nll" in line
    assert "upgrade" not in line
    edit(pairs / "run.json", ddpmbench="latest")
    assert "run.json is damaged" in refused("rd", "--run", pairs)


# ---- what is gone is named


def truncate(path):
    os.truncate(path, path.stat().st_size - 9)
    return f"{path.name} is damaged"


def rename(path):
    start, stop = (int(word) for word in path.stem.split("-")[1:])
    path.rename(path.with_name(f"terms-{start + 10**6:012d}-{stop + 10**6:012d}.npz"))
    return f"no shard holds terms {start} to {stop - 1}"


def shorten(path):
    shorter = {name: array[:-2] for name, array in read_npz(path).items() if array.ndim}
    edit_npz(path, **shorter)
    return f"{path.name} holds {SHARD - 2} entries, not {SHARD}"


def swap(path):
    """Nothing is missing, and both are whole."""
    other = shards(path.parents[1])[2]
    contents = path.read_bytes(), other.read_bytes()
    for place, content in zip((other, path), contents, strict=True):
        place.write_bytes(content)
    return f"{path.name} holds other entries than its name says"


def without_a_column(path):
    edit_npz(path, eps_mse=None)
    return f"{path.name} lacks eps_mse: an earlier version wrote it"


DAMAGES = [truncate, rename, shorten, swap, without_a_column]


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_named_and_mended_as_the_message_says(
    refused, invoke, runs, run, damage, evaluate, monkeypatch
):
    before = (run / "rate_distortion.csv").read_bytes()
    named = damage(shards(run)[1])
    line = refused("compare", runs / run.name, run)
    assert line.startswith(f"Error: {run}: ")
    assert named in line
    line = refused("rd", "--run", run)
    assert line.startswith(f"Error: --run {run}: ")
    assert named in line
    assert ("into a new folder" if damage is without_a_column else f"--out {run}") in line
    assert not (run / "figures").exists()
    (run / "rate_distortion.csv").unlink()
    if damage is without_a_column:
        run = run.parent / "again" / run.name
        monkeypatch.setattr(worker, "SHARD_BYTES", 1)  # the terms are summed in the same portions
    evaluate(run.name, run)
    assert invoke("rd", "--run", run)[0] == 0
    assert (run / "rate_distortion.csv").read_bytes() == before


def test_a_run_of_an_earlier_version_is_refused_and_kept(refused, runs, pairs, evaluate):
    for path in shards(pairs):
        without_a_column(path)
    edit(pairs / "run.json", ddpmbench="0.0.9")
    kept = content(pairs)
    for command in (("rd", "--run", pairs), ("report", pairs), ("compare", runs / "pairs", pairs)):
        line = refused(*command)
        assert "an earlier version wrote it" in line
        assert "run its command again into a new" in line
    with pytest.raises(db.InputError, match=r"ddpmbench is 0\.0\.9 there"):
        evaluate("pairs", pairs)
    assert content(pairs) == kept


def test_a_few_are_named_and_the_others_counted(refused, pairs):
    paths = shards(pairs)
    for path in paths[3:5]:  # neighbors, which are one range
        path.unlink()
    faults = [f"no shard holds terms {3 * SHARD} to {5 * SHARD - 1}"]
    faults += [truncate(path) for path in paths[6:14]]
    line = refused("rd", "--run", pairs)
    assert all(words in line for words in faults[:3])
    assert not any(words in line for words in faults[3:])
    assert "and 6 more" in line


def test_a_published_folder_has_no_shards(invoke, completed, run, runs):
    shutil.rmtree(run / "shards")
    printed, _ = completed("rd", "--run", run)
    assert printed == invoke("rd", "--run", runs / run.name)[1]


def test_rows_beyond_the_result_and_the_pilot_are_not_looked_at(importance):
    last = shards(importance)[-1]
    start, length = (int(word) for word in last.stem.split("-")[1:])
    # One shard goes beyond the result, another begins there.
    longer = last.rename(last.with_name(f"terms-{start:012d}-{length + 2:012d}.npz"))
    arrays = {name: array for name, array in read_npz(longer).items() if array.ndim}
    edit_npz(longer, **{name: np.append(array, array[:2]) for name, array in arrays.items()})
    for name in (f"terms-{length:012d}-{length + 9:012d}.npz", "pilot-1.npz", "terms.txt"):
        (importance / "shards" / name).write_bytes(b"")
    run = FinishedRun.open(importance, option="", schema="ddpmbench.nll/1")
    refuse_missing_shards(run, option="", reads_terms=True)


def test_shards_are_hashed_once_and_by_who_reads_them(tmp_path, monkeypatch):
    images, steps, size = 320, 256, 2**12  # in 20 shards
    (tmp_path / "shards").mkdir()
    store = FolderStore(tmp_path / "shards", "terms")
    zeros = np.zeros(size, dtype=np.int64)
    values = {name: zeros.astype(np.float64) for name in VALUE_COLUMNS}
    for start in range(0, images * steps, size):
        table = TermTable(TermIndex(zeros, zeros, zeros), values)
        store.save(start, arrays_of(table), seconds=1.0, device="cpu")
    summary = {
        "num_images": images,
        "num_timesteps": steps,
        "estimator": "every-pair",
        "sampling": {"draws": 1},
        "conventions": {"clip": True},
    }

    monkeypatch.setattr("ddpmbench.execution.store.read_npz", None)  # no shard is loaded
    hashed, digest = [], checksums._digest

    def count(file, place):
        hashed.append(file.name)
        return digest(file, place)

    monkeypatch.setattr(checksums, "_digest", count)
    run = FinishedRun(tmp_path, summary)
    refuse_missing_shards(run, option="")
    assert hashed == []
    for _ in range(2):  # of the second, all is known
        refuse_missing_shards(run, option="", reads_terms=True)
    assert len(hashed) == len(set(hashed)) == 20
