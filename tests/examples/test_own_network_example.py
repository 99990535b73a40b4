"""The example of a network of one's own as its README has it, trained less and on fewer images."""

import json
import runpy
import shutil
import sys

import pytest
import torch
from documents import ROOT, blocks, check, commands

import ddpmbench as db
from ddpmbench.cli.main import run

EXAMPLE = ROOT / "examples" / "own_network"
README = (EXAMPLE / "README.md").read_text(encoding="utf-8")
STEPS, IMAGES = ["--steps", "3"], ["--num-images", "3", "--half-width", "1000"]


def command(first):
    (found,) = [words for words in commands(README) if words[0] == first]
    return found[1:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the example in which the training has been run."""
    copy = tmp_path_factory.mktemp("example") / "own_network"
    shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    script, *options = command("python")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(copy)
        patch.syspath_prepend(copy)
        patch.setattr(sys, "argv", [script, *options, *STEPS])
        runpy.run_path(script, run_name="__main__")
    del sys.modules["network"]
    return copy


def test_the_command_gives_what_the_network_in_hand_does(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert run([*command("ddpmbench"), *IMAGES, "--out", "run", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_evaluations"] > 0
    assert found["checkpoint"]["network"] == "network.py:SmallUNet"
    spaces = {}
    exec((folder / "network.py").read_text(encoding="utf-8"), spaces)
    network = spaces["SmallUNet"]()
    network.load_state_dict(torch.load("weights.pt"))
    (python,) = blocks(README, "python")
    said = {"network": network}
    exec(python.partition("report =")[0], said)
    images = db.load_images("fashion-mnist:test", num_images=3)
    report = db.evaluate_nll(said["checkpoint"], images, half_width=1000)
    assert report.summary["bits_per_dim"] == pytest.approx(found["bits_per_dim"], abs=1e-6)


def test_it_can_be_sampled(folder, monkeypatch):
    monkeypatch.chdir(folder)
    arguments = command("ddpmbench")
    options = arguments[1 : arguments.index("--num-images")]
    assert run(["sample", *options, "-n", "2", "--timesteps", "3", "--out", "samples"]) == 0


def test_the_held_out_images_are_the_evaluated_ones():
    arguments = command("ddpmbench")
    held_out = arguments[arguments.index("--num-images") + 1]
    assert f"HELD_OUT = {held_out}\n" in (EXAMPLE / "train.py").read_text(encoding="utf-8")


def test_the_command_parses():
    assert check(["ddpmbench", *command("ddpmbench")])
