"""What commands in processes of their own are patched with: see `setup` of `processes.Command`.

A process imports this module anew, so it imports nothing that is slow to.
"""

import time

from ddpmbench.execution import worker
from ddpmbench.execution.engine import Engine
from ddpmbench.metrics.feature_networks import FeatureNetwork
from ddpmbench.train import loop


def slow(kind, name, seconds):
    """Let a method take longer."""
    real = getattr(kind, name)

    def slower(*arguments):
        time.sleep(seconds)
        return real(*arguments)

    setattr(kind, name, slower)


def one_shard_a_batch():
    """A shard for every batch, and a moment between two of them."""
    slow(worker._ShardWriter, "add", 0.05)
    worker.SHARD_BYTES = 1


def slow_samples():
    """Small shards, written so slowly that a run can be killed between two of them."""
    worker.SHARD_SECONDS = 0.0
    slow(Engine, "model_output", 0.002)
    slow(FeatureNetwork, "__call__", 0.03)


def save_often():
    """A training that is saved all the time."""
    loop.SAVE_SECONDS = 0.1
