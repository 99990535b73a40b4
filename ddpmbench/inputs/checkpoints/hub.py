"""Models on the Hugging Face Hub, through its own client, cache and offline mode."""

import re
from pathlib import Path

from ddpmbench.errors import InputError
from ddpmbench.inputs.checkpoints.diffusers import WEIGHTS, weights_file

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".json")


def is_hub_id(source: str) -> bool:
    """Whether a string that names no file or folder can be an id, `owner/name`."""
    return bool(_ID.fullmatch(source)) and not source.endswith(_FILES)


def download(repository: str) -> Path:
    """The folder of a model on the Hub, downloaded or from the cache.

    Args:
        repository: its id, `owner/name`.

    Raises:
        InputError: it does not exist, needs a login, is not in the cache and cannot be reached.
    """
    folder = _snapshot(repository, WEIGHTS[0])
    if weights_file(folder) is None:
        folder = _snapshot(repository, WEIGHTS[1])
    return folder


def cached(repository: str) -> Path | None:
    """The folder of a model in the cache; None if it is not there.

    Args:
        repository: its id, `owner/name`.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, local_files_only=True))
    except Exception:  # what it raises depends on the client's version; all mean the same here
        return None


def check_blob(weights: Path, sha256: str) -> None:
    """Compare the hash of weights with the one the cache stores them under.

    Args:
        weights: the file, in the cache a link to a blob named by its SHA-256.
        sha256: of what the file holds.

    Raises:
        InputError: they differ.
    """
    blob = weights.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", blob) and blob != sha256:
        raise InputError(
            f"{weights.resolve()}: damaged: its SHA-256 is {sha256[:12]}...; delete it and "
            "download it again"
        )


def _snapshot(repository: str, weights: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        patterns = ["*.json", weights, f"unet/{weights}"]
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except GatedRepoError as error:
        reason = "needs a login: run hf auth login and accept its terms on the Hub"
        raise InputError(f"{repository}: {reason}") from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"{repository}: no such file or folder, and no such model on the Hub"
        ) from error
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"{repository}: no such file or folder; as a model on the Hub it is not whole in the "
            "cache, and the Hub cannot be reached (no network, or HF_HUB_OFFLINE is set)"
        ) from error
    except Exception as error:  # what a failing network raises depends on the client's version
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{repository}: cannot be fetched from the Hub ({first})") from error
