"""Names and folders that a command is given: what can be none, and what a folder is good for."""

import json
import os

import numpy as np
import pytest
from feature_networks import write_network
from image_files import random_images, save_folder

import ddpmbench as db
from ddpmbench.cli.launch import open_inputs
from ddpmbench.cli.likelihood import nll
from ddpmbench.execution.folder import RunFolder

OPTIONS = [
    ("nll", "--out"), ("nll", "--ckpt"), ("nll", "--data"), ("nll", "--terms-of"),
    ("rd", "--run"), ("sample", "--out"), ("fid", "--samples"), ("fid", "--inception"),
    ("score", "--data"), ("score", "--terms-of"),
    ("speed", "--out"), ("inspect", "--out"), ("train", "--out"), ("compare", "--out"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_an_empty_name_is_not_the_current_folder(refused, command, option):
    for name in ("", "  "):
        line = refused(command, option, name)
        assert option in line
        assert "is empty" in line


def test_an_empty_name_from_python_is_not_the_current_folder(small_model, small_images):
    for call in (
        lambda: db.evaluate_nll(small_model, small_images, out=" "),
        lambda: db.generate_samples(small_model.respaced(2), 1, out=""),
    ):
        with pytest.raises(db.InputError, match="`out`: is empty"):
            call()


@pytest.mark.parametrize(
    ("name", "word"),
    [("n" * 300, "300 bytes"), ("a/\x1b[31mred", r"\x1b[31mred"), ("a\0b", r"\x00")],
)
def test_a_name_that_no_file_has_is_refused_and_shown(refused, name, word):
    for command in (("nll", "--out", name), ("report", name), ("inspect", name)):
        assert word in refused(*command)


def test_temporary_files_of_others_stay(tmp_path):
    RunFolder(tmp_path, {"schema": "x"})
    paths = [tmp_path / name for name in ("notes.tmp", "summary.json.77.ddpmbench.tmp")]
    for path in paths:
        path.write_text("precious")
        os.utime(path, (0, 0))
    RunFolder(tmp_path, {"schema": "x"})
    assert [path.exists() for path in paths] == [True, False]


@pytest.fixture
def samples(runs):
    return runs["sample"].folder


def test_samples_have_no_page(refused, samples):
    line = refused("report", samples)
    assert "runs of sample have no page" in line
    assert "nll, rd, ode, likelihoods, score or fid" in line


def test_the_samples_of_a_run_are_scored_with_its_record(
    completed, samples, small_npz, tmp_path, monkeypatch
):
    monkeypatch.setenv("DDPMBENCH_CACHE", str(tmp_path / "cache"))
    network = write_network(tmp_path / "stand-in.pt", num_features=6, num_classes=4)
    common = ["--data", small_npz, "--feature-network", network, "--format", "json"]
    result = {}
    for name, given in (("run", samples), ("file", samples / "samples.npz")):
        printed, _ = completed("fid", "--samples", given, *common, "--out", tmp_path / name)
        result[name] = json.loads(printed)
    assert result["run"]["fid"] == result["file"]["fid"]
    record = json.loads((samples / "summary.json").read_text())
    for field in ("checkpoint", "sampler", "seed"):
        assert result["run"][field] == record[field]
    assert result["run"]["protocol"]["eight_bit"] == "round"
    assert result["file"]["sampler"] is None


def test_samples_that_are_not_those_of_their_run_are_refused(refused, samples, tmp_path):
    (tmp_path / "summary.json").write_text((samples / "summary.json").read_text())
    np.savez(tmp_path / "samples.npz", arr_0=np.zeros((8, 8, 8, 1), np.uint8))
    network = write_network(tmp_path / "stand-in.pt", num_features=6, num_classes=4)
    line = refused(
        "fid", "--samples", tmp_path, "--data", tmp_path / "samples.npz",
        "--feature-network", network,
    )  # fmt: skip
    assert "does not hold the samples of its summary.json" in line


# ---- images of one's own

TRAINING = ("--steps", 1, "--channels", "8", "--attention", "0", "--norm-groups", 4)
MEASURING = ("--num-samples", 1, "--precision", "fp32")


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("train", (*TRAINING, "--num-blocks", 1, "--batch-size", 2)),
        ("speed", (*MEASURING, "--batch-size", 2)),
    ],
)
def test_the_remedies_are_options_of_the_commands_that_name_them(
    invoke, small_checkpoint, tmp_path, monkeypatch, command, options
):
    """Those for an image that cannot be read, one of another color, and one that is too small."""
    images = save_folder(tmp_path / "images", random_images(3, 6, 6, 3))
    (images / "9.png").write_bytes(b"no image")
    ckpt = ("--ckpt", small_checkpoint) if command == "speed" else ()
    monkeypatch.setattr("ddpmbench.execution.timing.LEAST_SECONDS", 0.0)
    words = (command, *ckpt, "--data", images, "--out", tmp_path / "out", *options)
    status, _, line = invoke(*words)
    assert (status, line.count("\n")) == (2, 1)
    assert "--on-bad skip" in line
    status, _, lines = invoke(*words, "--on-bad", "skip", "--convert", "gray", "--pad", 8)
    assert status == 0, lines
    assert "1 file of" in lines
    assert "9.png" in lines
    assert "--pad 8" in lines


@pytest.mark.parametrize("names", ["dog,cat", "{file}"])
def test_names_of_classes_are_a_list_or_the_lines_of_a_file(tmp_path, names):
    for name in ("cat", "dog"):
        save_folder(tmp_path / "classes" / name, random_images(1, 28, 28))
    (tmp_path / "names.txt").write_text("dog\n\n cat\n")
    words = [
        "--data",
        tmp_path / "classes",
        "--class-names",
        names.format(file=tmp_path / "names.txt"),
    ]
    given = nll.make_context("nll", [str(word) for word in words]).params
    assert open_inputs(given)[1].classes == ("dog", "cat")
