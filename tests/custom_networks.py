"""Networks of one's own, evaluated as the command line would, in memory."""

import math

import ddpmbench as db
from ddpmbench.cli import options
from ddpmbench.cli.launch import open_inputs
from ddpmbench.cli.likelihood import nll


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
