"""Options of nll and rd: `--precision`."""

import json

import pytest


@pytest.fixture
def inputs(small_checkpoint, small_npz):
    return ["--ckpt", small_checkpoint, "--data", small_npz, "--half-width", 5]


@pytest.mark.parametrize("command", ["nll", "rd"])
def test_what_the_device_has_not_is_one_line(refused, inputs, command):
    line = refused(command, *inputs, "--device", "cpu", "--precision", "tf32")
    assert "--precision tf32" in line
    assert "choose fp32" in line


def test_a_limit_of_calls_that_leaves_none_for_the_correction(refused, inputs):
    line = refused("nll", *inputs, "--precision", "bf16", "--max-evaluations", 900)
    assert "--max-evaluations 900" in line


def test_both_say_what_was_corrected_and_what_not(invoke, inputs, tmp_path):
    options = ["--precision", "bf16", "--out", tmp_path / "run"]
    for command in (["nll"], ["rd", "--pictures", "none"]):
        status, printed, message = invoke(*command, *inputs, *options)
        assert status == 0, message
        assert "bf16, corrected by " in printed
        assert "in bf16, uncorrected" in printed
    status, printed, _ = invoke("rd", "--run", tmp_path / "run", "--format", "json")
    assert status == 0
    assert json.loads(printed)["precision_correction"]["num_evaluations"] == 200
