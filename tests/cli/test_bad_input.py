"""A user's mistake: exit 2, one line that names the file or option, nothing written."""

import re
import shlex

import numpy as np
import pytest
import torch
from peers import openai_weights

from ddpmbench.cli.main import ddpmbench

SMALL = "--ckpt {model} --data {images}"
TINY = "--channels 8,8 --attention 1 --norm-groups 4 --num-blocks 1"
COMMON = {
    **dict.fromkeys(("nll", "rd", "ode", "score"), SMALL),
    "train": f"--data fashion-mnist:test --steps 2 --out training {TINY}",
}
"""Given before the mistake, which wins."""
MISTAKES = {
    "evaluate": "evaluate",
    "nll --data imagenet:test": "imagenet",
    "nll --data cifar10": "cifar10",
    "nll --data fashion-mnist:validation": "fashion-mnist",
    "nll --data ''": "--data",
    "nll --convert rgb": "--convert rgb: the checkpoint takes images of 1 channel; leave it out",
    "nll --pad 10": "--pad 10: the checkpoint takes 8x8, which the images are; leave it out",
    "nll --bogus 1": "--bogus",
    "nll --batch-size many": "--batch-size",
    "nll --batch-size 0": "--batch-size",
    "nll --draws 0": "--draws",
    "nll --draws 1.5": "'--draws': '1.5' is not a valid whole number",
    "nll --seed -1": "--seed",
    f"nll --seed {2**64}": "is not a whole number from 0 to 2^64 - 1",
    "nll --num-images 0": "--num-images",
    "nll --num-images 7": "--num-images",
    "nll --timesteps 0": "--timesteps",
    "nll --timesteps none": "--timesteps",
    "nll --device gpu": "--device",
    "nll --device cuda:77": "--device",
    "nll --device cpu --precision tf32": "--precision tf32: rounds the products of CUDA devices",
    "nll --precision bf16 --half-width 5 --max-evaluations 900": "--max-evaluations 900",
    "nll --class 3": "--class",
    "nll --weights raw": "--weights raw",
    "nll --variance learned_range": "--variance",
    "nll --format xml": "--format",
    "nll --out /proc/run": "/proc/run",
    "nll --ckpt nowhere.pt": "nowhere.pt",
    f"nll --ckpt {'x' * 5000}": "5,000 bytes",
    "nll stray": "stray",
    "nll --data-range 1,-1": "--data-range 1,-1: takes two finite numbers, the lower one first",
    "nll --data-range 0,0": "--data-range 0,0: takes two finite numbers, the lower one first",
    "nll --data-range nan,1": "--data-range nan,1: takes two finite numbers, the lower one first",
    "nll --data-range 0:1": "'--data-range': '0:1' is not LOW,HIGH, as in -1,1",
    "nll --data-range 0,1,2": "'--data-range': '0,1,2' is not LOW,HIGH, as in -1,1",
    "nll --levels 1": "'--levels': 1 is not in the range 2<=x<=256",
    "nll --levels 257": "'--levels': 257 is not in the range 2<=x<=256",
    "nll --timesteps continuous --continuous": "--continuous: the run itself is in continuous time",
    "ode --timesteps continuous": "--timesteps",
    "ode --probes 0": "--probes",
    "ode --probes 2 --trace exact": "--probes 2",
    "ode --solver-steps 7": "--solver-steps 7",
    "ode --solver-steps 0": "--solver-steps",
    "ode --solver euler": "--solver",
    "ode --num-ode-images 0": "--num-ode-images",
    "ode --timesteps 80": "timesteps between those of its training",
    "ode --timesteps 5": "visits 5 of its timesteps only",
    "ode --timesteps 1": "visits 1 of its timesteps only",
    "rd --timesteps continuous": "--timesteps",
    "rd --device cpu --precision tf32": "--precision tf32: rounds the products of CUDA devices",
    "rd --pictures some": "--pictures",
    "rd --depth 3": "--depth 3: applies only to --pictures all",
    "rd --depth 3 --pictures none": "--depth 3: applies only to --pictures all",
    "rd --depth 0 --pictures all": "--depth",
    "rd --depth 41 --pictures all": "--depth 41: choose a timestep from 1 to 40",
    "rd --depth 5 --pictures all --timesteps 4": "from 1 to 4",
    "rd --pictures all --num-images 1": "--pictures all: interpolation needs two images",
    "score --timesteps continuous": "--timesteps",
    "score --evaluations-per-image 1": "--evaluations-per-image",
    "score --data {images} --data {images}": "--data: names 3 image sets",
    "score --data fashion-mnist:test": "28x28",
    "score --terms-of .": "--terms-of",
    "sample --timesteps continuous": "--timesteps",
    "sample --sampler ode --timesteps 9 --solver-steps 4": "--solver-steps 4: is a grid over all "
    "1,000 timesteps, and the model visits 9; leave out --timesteps or --solver-steps",
    "sample --class 3": "--class 3: the checkpoint has no classes",
    "sample --image-size 64": "--image-size 64",
    "sample --ckpt nothing": "nothing",
    "sample --timesteps 0": "--timesteps",
    "fid --eta 1": "--eta 1.0: applies only to --sampler ddim",
    "fid --snr .2": "--snr 0.2: applies only to --sampler predictor-corrector",
    "fid --sampler euler": "euler",
    "fid --num-generated 1": "--num-generated",
    "fid --feature-network nothing.pt": "--feature-network nothing.pt: there is no such file",
    "fid --feature-network efficientnet-lite0 --protocol adm": "choose clean",
    "fid --inception nothing.pt": "--inception nothing.pt: cannot be read",
    "fid --samples nothing --data fashion-mnist:test": "nothing: no such file",
    "fid --samples {images}": "--data: name the real images",
    "fid --samples x.npz --timesteps 9": "--timesteps: applies only to a checkpoint",
    "inspect nosuch.pt": "nosuch.pt: no such file",
    "inspect --image-size 27": "--image-size 27: ",
    "inspect --image-size 0": "--image-size",
    "inspect --timesteps 0": "--timesteps",
    "inspect --variance learned": "--variance learned",
    "compare": "RUN",
    "compare nowhere nowhere --out o": "nowhere: is no run folder",
    "report": "Missing argument 'RUN'",
    "train --channels 8,8,8,8": "28x28",
    "train --attention 9": "--attention",
    "train --lr nan": "--learning-rate",
    "train --lr fast": "'fast' is not a valid number",
    "train --timesteps 10": "linear",
    "train --norm-groups 5": "norm groups 5",
    "train --channels 8,x": "--channels",
    "train --data nowhere": "nowhere",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line(refused, small_checkpoint, small_npz, words):
    command, _, mistake = words.partition(" ")
    line = f"{command} {COMMON.get(command, '')} {mistake}"
    line = line.format(model=small_checkpoint, images=small_npz)
    assert MISTAKES[words] in refused(*shlex.split(line))


@pytest.mark.parametrize("words", ["compress", "decompress file.ddpmc", "train --data images"])
def test_what_must_be_given_is_marked_in_help(refused, invoke, words):
    assert "'--out'" in refused(*words.split())
    text = " ".join(invoke(words.split()[0], "--help")[1].split())
    assert re.search(r"--out [A-Z|]+ [^-]*\[required\]", text)


@pytest.mark.parametrize(
    ("option", "sampler"),
    [("--eta", "ddim"), ("--step-size", "langevin"), ("--snr", "predictor-corrector")],
)
def test_limits_are_in_help(refused, option, sampler):
    assert "from 0 to 1" in refused("sample", "--sampler", sampler, option, 1.5)
    (text,) = (p.help for p in ddpmbench.commands["sample"].params if option in p.opts)
    assert re.search("from 0 .* to 1|above 0 and at most 1", text)


def test_a_wrong_file_is_one_line(refused, tmp_path):
    """Which, and which line, is held by tests/checkpoints/test_wrong_files.py."""
    torch.save(openai_weights(), tmp_path / "model.pt")
    line = refused("nll", "--ckpt", tmp_path / "model.pt")
    assert str(tmp_path / "model.pt") in line
    assert "--model-flags" in line


def test_images_that_the_network_cannot_take(refused, small_checkpoint, tmp_path):
    for name, shape in {"size": (2, 12, 12, 1), "channels": (2, 8, 8, 3)}.items():
        path = tmp_path / f"{name}.npz"
        np.savez(path, arr_0=np.zeros(shape, np.uint8))
        line = refused("nll", "--ckpt", small_checkpoint, "--data", path)
        assert str(path) in line
        assert str(small_checkpoint) in line


def test_a_folder_that_belongs_to_another_run(invoke, small_checkpoint, small_npz, tmp_path):
    arguments = ["nll", "--ckpt", small_checkpoint, "--data", small_npz]
    arguments += ["--estimator", "every-pair", "--draws", 1, "--out", tmp_path / "run"]
    assert invoke(*arguments)[0] == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    status, _, line = invoke(*arguments, "--seed", 1)
    assert (status, line.count("\n")) == (2, 1)
    assert str(tmp_path / "run") in line
    assert "seed is 0 there, 1 here" in line
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
