"""Whatever opens a file refuses what is none, at once and in a line that names it."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch

import ddpmbench as db
from ddpmbench.checkpoints.schedules import read_schedule
from ddpmbench.errors import printable
from ddpmbench.metrics.feature_networks import load_feature_network
from ddpmbench.metrics.feature_weights import inception_file
from ddpmbench.metrics.statistics import is_statistics, read_statistics

CPU = torch.device("cpu")
OWN = {"prediction": "eps", "variance": "fixed_large", "time_input": "index"}


def own(path, code="net.py"):
    settings = db.CheckpointSettings(schedule="linear:9:0.1:0.2", network=f"{code}:Net", **OWN)
    return db.load_checkpoint(path, settings)


OPENERS = {
    "checkpoint": db.load_checkpoint,
    "weights": own,
    "code": lambda path: own("weights.pt", path),
    "schedule": lambda path: read_schedule(f"betas:{path}"),
    "images": db.load_images,
    "statistics": lambda path: is_statistics(path) or read_statistics(path, num_features=4),
    "feature network": lambda path: load_feature_network(path, resize="clean", device=CPU),
    "inception": lambda path: inception_file(Path(path), on_progress=lambda *now: None),
    "compressed": lambda path: db.decompress(path, db.load_checkpoint(), progress=False),
    "report": db.load_report,
}
PATHS = [
    *("pipe", "socket", "/dev/zero", "/dev/null", "nowhere", "folder", "loop", "forbidden"),
    *("x" * 300, f"a/{'b' * 300}", "a/" * 3000 + "a", "a\0b", "a\x1b[2J", "", "  "),
]


@pytest.fixture(params=["", ".pt", ".npz", ".py"])
def ending(request, tmp_path, monkeypatch):
    """The ending of files that are none, in the current folder beside a network."""
    monkeypatch.chdir(tmp_path)  # a socket's path may not be long
    Path("net.py").write_text("from torch import nn\ndef Net(): return nn.Conv2d(1, 1, 1)")
    torch.save(torch.nn.Conv2d(1, 1, 1).state_dict(), "weights.pt")
    os.mkfifo(f"pipe{request.param}")
    os.mkdir(f"folder{request.param}")
    os.symlink(f"loop{request.param}", f"loop{request.param}")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"socket{request.param}")
    np.save("forbidden.npy", np.zeros((4, 8, 8), np.uint8))
    os.chmod("forbidden.npy", 0)
    os.rename("forbidden.npy", f"forbidden{request.param}")
    return request.param


@pytest.mark.parametrize("opener", OPENERS)
def test_what_is_no_file_is_refused_and_named(opener, ending):
    for start in PATHS:
        path = start + ending if start.strip(" /") and start[0] != "/" else start
        if start == "forbidden" and os.access(path, os.R_OK):
            continue  # whoever runs this may read everything
        with pytest.raises(db.InputError) as caught:
            OPENERS[opener](path)
        line = str(caught.value)
        assert line.isprintable()
        # A name that no file can have need not be shown.
        whys = "more than 255 bytes", "File name too long", "null character"
        name = printable(path) if path.strip() else ""
        assert any(words in line for words in (name, *whys)), line
