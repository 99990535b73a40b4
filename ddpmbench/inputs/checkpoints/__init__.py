"""One reader a family of files; every one returns a `Checkpoint`."""

from ddpmbench.inputs.checkpoints.checkpoint import Checkpoint, TimeInput
from ddpmbench.inputs.checkpoints.load import load_checkpoint
from ddpmbench.inputs.checkpoints.settings import CheckpointSettings

__all__ = ["Checkpoint", "CheckpointSettings", "TimeInput", "load_checkpoint"]
