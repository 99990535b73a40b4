import errno
import os

import numpy as np
import pytest

from ddpmbench.checksums import read_json
from ddpmbench.errors import InputError
from ddpmbench.execution.folder import RunFolder
from ddpmbench.likelihood.terms import VALUE_COLUMNS, TermIndex, TermTable

IDENTITY = {"schema": "ddpmbench.nll/1", "seed": 0}


def table(start, stop):
    position = np.arange(start, stop)
    values = {name: position + 0.25 for name in VALUE_COLUMNS}
    return TermTable(TermIndex(position, position + 1, position * 0), values)


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run", IDENTITY)


@pytest.fixture
def shards(folder):
    return folder.shards("terms")


def positions(shards, length):
    return [int(image) for part in shards.tables(length) for image in part.index.image]


def test_gaps_are_what_no_shard_covers(shards):
    assert shards.missing(20) == [(0, 20)]
    shards.save(4, table(4, 8), seconds=1, device="cpu")
    shards.save(12, table(12, 14), seconds=2, device="cpu")
    assert shards.missing(20) == [(0, 4), (8, 12), (14, 20)]
    assert shards.seconds(20) == 3


def test_overlapping_shards_give_every_row_once(shards):
    for start, stop in [(0, 10), (2, 6), (8, 14), (14, 15)]:
        shards.save(start, table(start, stop), seconds=0, device="cpu")
    assert positions(shards, 15) == list(range(15))
    assert shards.missing(15) == []


@pytest.mark.parametrize("length", [1, 4, 6, 10, 13, 15])
def test_rows_beyond_the_length_asked_for_are_not_there(shards, length):
    for start, stop in [(0, 4), (4, 10), (8, 13), (13, 15)]:
        shards.save(start, table(start, stop), seconds=stop - start, device=f"from {start}")
    assert positions(shards, length) == list(range(length))
    assert shards.missing(length) == []
    # Rows 8 and 9 were computed twice, and took their time twice.
    assert shards.seconds(length) == pytest.approx(length + min(max(length - 8, 0), 2))
    assert ("from 13" in shards.devices(length)) == (length > 13)


def test_the_rows_of_one_name_are_none_of_another(folder, shards):
    folder.shards("pilot").save(0, table(0, 5), seconds=1, device="cpu")
    assert shards.missing(5) == [(0, 5)]
    assert folder.shards("pilot").missing(5) == []


def test_values_come_back_bit_for_bit(shards):
    saved = table(0, 7)
    saved.values["nats"][:] = np.random.default_rng(0).normal(size=7)
    saved.values["decoder_beta_exact_clip"][1:] = np.nan
    shards.save(0, saved, seconds=0, device="cpu")
    (loaded,) = shards.tables(7)
    for name in VALUE_COLUMNS:
        np.testing.assert_array_equal(loaded.values[name], saved.values[name])


def test_the_same_run_goes_on_and_leftovers_go(folder, shards):
    shards.save(0, table(0, 5), seconds=0, device="cpu")
    leftover = folder.path / "shards" / "terms-000000000005-000000000009.parquet.77.ddpmbench.tmp"
    leftover.write_bytes(b"half a shard")
    RunFolder(folder.path, IDENTITY)
    assert leftover.exists(), "another process may be writing it"
    os.utime(leftover, (0, 0))
    again = RunFolder(folder.path, IDENTITY)
    assert again.shards("terms").missing(6) == [(5, 6)]
    assert not leftover.exists()


def test_another_run_is_refused_by_the_field_that_differs(folder):
    with pytest.raises(InputError, match=r"seed is 0 there, 1 here"):
        RunFolder(folder.path, {**IDENTITY, "seed": 1})
    found = read_json(folder.path / "run.json")
    assert {name: found[name] for name in IDENTITY} == IDENTITY


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="holds files but no run"):
        RunFolder(tmp_path, IDENTITY)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("left", ["nothing", "temporary", "shards"])
def test_a_run_killed_at_its_very_start_goes_on(tmp_path, left):
    if left == "temporary":
        (tmp_path / "run.json.77.ddpmbench.tmp").write_text("{")
    elif left == "shards":
        (tmp_path / "shards").mkdir()
    assert RunFolder(tmp_path, IDENTITY).shards("terms").missing(5) == [(0, 5)]


@pytest.mark.parametrize("text", ["", "[]", "[1]", "null", "{"])
def test_a_damaged_identity_is_named(folder, text):
    (folder.path / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"run\.json|holds another run"):
        RunFolder(folder.path, IDENTITY)


def test_it_says_where_everything_was_computed(shards):
    shards.save(0, table(0, 5), seconds=1, device="a GPU")
    shards.save(5, table(5, 6), seconds=1, device="cpu")
    assert shards.devices(6) == {"a GPU", "cpu"}


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        RunFolder(tmp_path / "file", IDENTITY)


@pytest.mark.parametrize("damage", ["truncate", "rename", "garbage"])
def test_a_damaged_shard_is_named(folder, shards, damage):
    shards.save(0, table(0, 50), seconds=0, device="cpu")
    (shard,) = (folder.path / "shards").iterdir()
    if damage == "truncate":
        os.truncate(shard, shard.stat().st_size // 2)
    elif damage == "garbage":
        shard.write_bytes(b"x" * 1000)
    else:
        shard = shard.rename(shard.with_name("terms-000000000000-000000000060.parquet"))
    with pytest.raises(InputError, match=shard.name):
        list(shards.tables(50))


def test_a_write_that_fails_leaves_what_was_there(folder):
    def write_to_a_full_disk():
        with folder.replacing("summary.json") as temporary:
            temporary.write_text("new")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (folder.path / "summary.json").write_text("old")
    with pytest.raises(InputError, match=f"{folder.path}: cannot be written .no space left"):
        write_to_a_full_disk()
    assert (folder.path / "summary.json").read_text() == "old"
    assert not list(folder.path.glob("*.tmp"))
