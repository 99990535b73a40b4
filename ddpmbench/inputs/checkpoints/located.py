"""Which files the weights of a checkpoint are in."""

from pathlib import Path

from ddpmbench import assets
from ddpmbench.inputs.checkpoints import hub
from ddpmbench.inputs.checkpoints.diffusers_files import find_layout
from ddpmbench.inputs.checkpoints.load import DEFAULT, TRAINED
from ddpmbench.inputs.checkpoints.settings import CheckpointSettings


def weight_files_of(source: str | Path, settings: CheckpointSettings) -> tuple[Path, ...]:
    """The files that `load_checkpoint` takes the weights from, after it has.

    Args:
        source: as `load_checkpoint` was given it. A model of the hub is looked for in the cache
            alone.
        settings: likewise.

    Returns:
        One file, the shards of one, or none where they are not known.
    """
    path = assets.CHECKPOINT if source == DEFAULT else Path(source)
    if not path.exists():
        cached = hub.cached(str(source))
        if cached is None:
            return ()
        path = cached
    if (path / TRAINED).is_file():
        return (path / TRAINED,)
    if path.is_dir():
        return find_layout(path, weights=settings.weights).weights.files
    return (path,)
