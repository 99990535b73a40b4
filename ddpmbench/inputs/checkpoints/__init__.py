"""One reader a family of files; every one returns a `Checkpoint`."""

from ddpmbench.inputs.checkpoints.checkpoint import Checkpoint, TimeInput
from ddpmbench.inputs.checkpoints.load import load_checkpoint

__all__ = ["Checkpoint", "TimeInput", "load_checkpoint"]
