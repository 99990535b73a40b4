import dataclasses
import errno
import os
import re

import numpy as np
import pytest
import torch

import ddpmbench as db
from ddpmbench.checksums import read_json
from ddpmbench.errors import InputError
from ddpmbench.execution.folder import RunFolder, refuse_other
from ddpmbench.execution.terms import arrays_of, read_terms
from ddpmbench.likelihood.terms import VALUE_COLUMNS, TermIndex, TermTable

IDENTITY = {"schema": "ddpmbench.nll/1", "seed": 0, "data": "0" * 64}


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


def test_values_come_back_bit_for_bit(shards):
    saved = table(0, 7)
    saved.values["nats"][:] = np.random.default_rng(0).normal(size=7)
    saved.values["decoder_beta_exact_clip"][1:] = np.nan
    shards.save(0, arrays_of(saved), seconds=0, device="cpu")
    (loaded,) = read_terms(shards, 7)
    for name in VALUE_COLUMNS:
        np.testing.assert_array_equal(loaded.values[name], saved.values[name])


def test_the_same_run_goes_on_and_leftovers_go(folder, shards):
    shards.save(0, arrays_of(table(0, 5)), seconds=0, device="cpu")
    leftover = folder.path / "shards" / "terms-000000000005-000000000009.npz.77.ddpmbench.tmp"
    leftover.write_bytes(b"half a shard")
    RunFolder(folder.path, IDENTITY)
    assert leftover.exists(), "another process may be writing it"
    os.utime(leftover, (0, 0))
    again = RunFolder(folder.path, IDENTITY)
    assert again.shards("terms").missing(6) == [(5, 6)]
    assert not leftover.exists()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("seed", 1, r"seed is 0 there, 1 here"),
        ("data", "f" * 64, r"data is 0{12} there, f{12} here"),
        ("source", "f" * 65, r"source is None there, f{65} here"),
    ],
)
def test_another_run_is_refused_by_the_field_that_differs(folder, field, value, words):
    with pytest.raises(InputError, match=rf"holds another run \({words}\); name a new folder"):
        RunFolder(folder.path, {**IDENTITY, field: value})
    result = read_json(folder.path / "run.json")
    assert {name: result[name] for name in IDENTITY} == IDENTITY


OURS = {"device": {"name": "cpu"}, "network_output": [0.5, 2.0]}


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        ({"device": {"name": "cuda"}}, "name is cuda there, cpu here"),
        ({"device": "cuda"}, "device is cuda there, {'name': 'cpu'} here"),
        ({"network_output": [0.5, 2.1]}, "network_output is [0.5, 2.1] there, [0.5, 2.0] here"),
        ({"network_output": [0.5]}, "network_output is [0.5] there"),
        ({"network_output": "no numbers"}, "network_output is no numbers there"),
        ({"network_output": 5}, "network_output is 5 there"),
        ({"more": "x" * 100}, f"more is {'x' * 80} there, None here"),
        ({"network_output": [0.5, 2.005]}, None),
        ({"network_output": None}, None),
    ],
)
def test_the_first_difference_of_two_records_is_named(theirs, words):
    if words is None:
        refuse_other("FILE: is another", OURS | theirs, OURS, "take its own")
        return
    with pytest.raises(InputError, match=re.escape(f"FILE: is another ({words}")) as info:
        refuse_other("FILE: is another", OURS | theirs, OURS, "take its own")
    assert str(info.value).endswith("here); take its own")
    refuse_other("FILE: is another", OURS | theirs, OURS, "take its own", names=["seed"])


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


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        RunFolder(tmp_path / "file", IDENTITY)


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


class OfLabels(torch.nn.Module):
    def forward(self, x_t, time, labels):
        return x_t * labels[:, None, None, None] / 4


def test_a_run_does_not_go_on_with_other_labels(small_model, small_images, tmp_path):
    model = dataclasses.replace(small_model.respaced(3), network=OfLabels(), num_classes=4)
    labels = np.arange(6) % 4
    images = dataclasses.replace(small_images, labels=labels)
    db.evaluate_nll(model, images, estimator="every-pair", out=tmp_path)
    others = dataclasses.replace(small_images, labels=labels[::-1].copy())
    with pytest.raises(db.InputError, match="labels_sha256 is"):
        db.evaluate_nll(model, others, estimator="every-pair", out=tmp_path)
