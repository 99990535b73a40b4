"""Which files the weights of a checkpoint are in."""

from pathlib import Path

from ddpmbench import assets
from ddpmbench.inputs.checkpoints import hub
from ddpmbench.inputs.checkpoints.diffusers import weights_file
from ddpmbench.inputs.checkpoints.load import DEFAULT, TRAINED


def weights_path(source: str | Path) -> Path | None:
    """The file that `load_checkpoint` takes the weights from, after it has; None if not known.

    Args:
        source: as `load_checkpoint` was given it. A model of the hub is looked for in the cache
            alone.
    """
    path = assets.CHECKPOINT if source == DEFAULT else Path(source)
    if not path.exists():
        cached = hub.cached(str(source))
        if cached is None:
            return None
        path = cached
    if (path / TRAINED).is_file():
        return path / TRAINED
    return weights_file(path) if path.is_dir() else path
