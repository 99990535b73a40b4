"""Models on the Hugging Face Hub, through its own client, cache and offline mode."""

import re
from pathlib import Path, PurePosixPath

from ddpmbench.checkpoints.diffusers_files import KINDS, NETWORKS, STEM, weight_sets
from ddpmbench.checkpoints.weights import FileError, first_line
from ddpmbench.errors import InputError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FOLDERS = tuple(f"{name}/" for name in NETWORKS)
_FILES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".json")
# Patterns to download, one after the other, until a network is complete: in the order of
# preference of `weight_sets`, with the variants of averaged and of last weights.
_STAGES = (
    *(
        (f"{STEM}{shards}.{kind}", f"{STEM}.*ema*.{kind}")
        for kind in KINDS
        for shards in ("", "-*")
    ),
    *((f"{STEM}.*.{kind}",) for kind in KINDS),
)


def is_hub_id(source: str) -> bool:
    """Whether a string may be an id, `owner/name`, if no such file exists."""
    return bool(_ID.fullmatch(source)) and not source.endswith(_FILES)


def download(repository: str) -> Path:
    """The folder of a model on the Hub, downloaded or from the cache.

    Args:
        repository: its id, `owner/name`.

    Raises:
        InputError: it does not exist, needs a login, is not in the cache and cannot be reached.
    """
    first = [f"{place}{pattern}" for place in ("", *_FOLDERS) for pattern in _STAGES[0]]
    folder = _snapshot(repository, first)
    for name in [name for name in NETWORKS if (folder / name).is_dir()] or ["."]:
        for patterns in _STAGES[1:]:
            if _whole(folder / name):
                break
            _snapshot(repository, [str(PurePosixPath(name, pattern)) for pattern in patterns])
    return folder


def _whole(network: Path) -> bool:
    """Whether a network has all its weights; a missing shard is an InputError."""
    try:
        return bool(weight_sets(network))
    except InputError:
        return False


def _snapshot(repository: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    absent = "no such file or folder, and as a model on the Hub"
    try:
        return Path(snapshot_download(repository, allow_patterns=["*.json", *patterns]))
    except GatedRepoError as error:
        problem = "needs a login: run hf auth login and accept its terms on the Hub"
        raise FileError(repository, problem) from error
    except RepositoryNotFoundError as error:
        raise FileError(repository, f"{absent} it does not exist") from error
    except LocalEntryNotFoundError as error:
        raise FileError(
            repository,
            f"{absent} it is not whole in the cache, and the Hub cannot be reached (no network, "
            "or HF_HUB_OFFLINE is set)",
        ) from error
    except Exception as error:  # what a failing network raises depends on the client's version
        problem = f"cannot be fetched from the Hub ({first_line(error)})"
        raise FileError(repository, problem) from error
