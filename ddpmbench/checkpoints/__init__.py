"""One reader a family of files; every one returns a `Checkpoint`."""

from ddpmbench.checkpoints.load import load_checkpoint
from ddpmbench.checkpoints.settings import CheckpointSettings
from ddpmbench.diffusion.model import Checkpoint, TimeInput

__all__ = ["Checkpoint", "CheckpointSettings", "TimeInput", "load_checkpoint"]
