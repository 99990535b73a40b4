"""A network of one's own: a folder as people have it, and what the commands do with it."""

import math
import os
import textwrap

import torch
from torch import nn

import ddpmbench as db
from ddpmbench.cli import options
from ddpmbench.cli.launch import open_inputs
from ddpmbench.cli.likelihood import nll

NET = """
import torch
from torch import nn

class Net(nn.Module):
    image_channels, image_size = 1, 8

    def __init__(self, width=4):
        super().__init__()
        self.time = nn.Embedding(20, width)
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.last = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x, t):
        h = self.norm(self.first(x)) + self.time(t)[:, :, None, None]
        return self.last(torch.relu(h))
"""
SETTINGS = {
    "schedule": "linear:20:0.001:0.3",
    "prediction": "v",
    "variance": "fixed_small",
    "time_input": "index",
}


class Own:
    """A folder with net.py, which has Net and more code, and weights.pt, those of `net`.

    `ckpt=None` leaves out the file of weights; what is `changed` are settings, or options of `nll`.
    """

    def __init__(self, path, code="", *, name="Net", data=None):
        self.path, self.data = path, data
        self.add(code)
        spaces = {"__name__": "net"}
        exec((path / "net.py").read_text(), spaces)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.net = spaces[name]().eval()
            for norm in self.net.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    norm.running_mean.normal_()
                    norm.running_var.uniform_(0.5, 2)
                    norm.num_batches_tracked.fill_(3)
        self.save(self.net.state_dict())

    def code(self, text, file="net.py"):
        """Written in one and the same second, always."""
        (self.path / file).write_text(textwrap.dedent(text))
        os.utime(self.path / file, (1, 1))

    def add(self, text, file="net.py"):
        self.code(NET + textwrap.dedent(text), file)

    def save(self, content, file="weights.pt"):
        torch.save(content, self.path / file)

    def option(self, name="Net", file="net.py"):
        return f"{self.path / file}:{name}"

    def given(self, name="Net", *, ckpt="weights.pt", file="net.py", **changed):
        """The arguments of `load_checkpoint` and `inspect_checkpoint`."""
        settings = {**SETTINGS, "network": self.option(name, file), **changed}
        source = {} if ckpt is None else {"source": self.path / ckpt}
        return {**source, "settings": db.CheckpointSettings(**settings)}

    def load(self, name="Net", **changed):
        return db.load_checkpoint(**self.given(name, **changed))

    def inspect(self, name="Net", **changed):
        return db.inspect_checkpoint(**self.given(name, **changed))

    def words(self, name="Net", *, ckpt="weights.pt", file="net.py", **changed):
        words = ["--network", self.option(name, file), "--data", self.data, "--num-images", "1"]
        words += [] if ckpt is None else ["--ckpt", self.path / ckpt]
        for key, value in {**SETTINGS, **changed}.items():
            words += [] if value is None else [f"--{key.replace('_', '-')}", value]
        return words

    def open(self, name="Net", **changed):
        """The checkpoint as the command opens it."""
        return opened(self.words(name, **changed))[0]

    def bound(self, name="Net", **changed):
        return bound_of(self.words(name, **changed))


def opened(words):
    """The checkpoint and the images that the options of `nll` name."""
    given = nll.make_context("nll", [str(word) for word in words]).params
    return open_inputs({name: given[name] for name in options.INPUTS})


def bound_of(words):
    """The number that `nll` with these options arrives at, with as few calls as there may be."""
    checkpoint, images = opened(words)
    report = db.evaluate_nll(checkpoint, images, estimator="every-pair", draws=1, device="cpu")
    assert math.isfinite(report.summary["bits_per_dim"])
    return report.summary["bits_per_dim"]
