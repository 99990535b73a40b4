"""Files of weights beside others: in the folder that training leaves, and in shards with an index.

Source: the layout of Accelerate's `save_state` and `save_model`, and of `save_pretrained`.
"""

import hashlib
import re
from pathlib import Path

from torch import Tensor

from ddpmbench.errors import InputError
from ddpmbench.inputs.checkpoints.diffusers_files import NO_WEIGHTS, SUFFIXES, weight_map
from ddpmbench.inputs.checkpoints.weights import only_tensors, read_state, sha256_of
from ddpmbench.inputs.refusals import listed

INDEX = ".index.json"
"""How the name of a file ends that says which shard holds which weight."""
_SUFFIXES = (*SUFFIXES, INDEX)
_SHARD = re.compile(r".*-\d+-of-\d+\.\w+")


def files_in(folder: Path) -> str:
    """Which files of weights to pass in place of a folder, as the rest of a line.

    Args:
        folder: with files of weights, or folders that have some, in it.
    """
    found = [
        path
        for path in sorted([*folder.glob("*"), *folder.glob("*/*")])
        if path.name.endswith(_SUFFIXES)
        and path.is_file()
        and not NO_WEIGHTS.match(path.name)
        and not _SHARD.fullmatch(path.name)
    ]
    if not found:
        return f"pass a file of weights ({', '.join(_SUFFIXES)}), of which it holds none"
    if len(found) == 1:
        return f"pass the file of weights in it: --ckpt {found[0]}"
    return f"pass a file of weights in it, as --ckpt {listed([*map(str, found)])}"


def read_shards(index: Path) -> dict[str, object]:
    """All weights of the shards beside an index.

    Raises:
        InputError: the index or a shard is damaged or missing, or they do not go together.
    """
    places = weight_map(index)
    weights: dict[str, Tensor] = {}
    for shard in _shards(index):
        weights |= only_tensors(read_state(shard), source=str(shard))
    if wrong := sorted(set(places) ^ set(weights)):
        has = "no shard has" if wrong[0] in places else "a shard has, and it does not name,"
        raise InputError(f"{index}: {has} {wrong[0]}; copy or download all of them again")
    return dict(weights)


def sha256_of_shards(index: Path) -> str:
    """Of the lines that `sha256sum` prints of the shards, in the order of their names."""
    lines = "".join(f"{sha256_of(shard)}  {shard.name}\n" for shard in _shards(index))
    return hashlib.sha256(lines.encode()).hexdigest()


def _shards(index: Path) -> list[Path]:
    return [index.parent / name for name in sorted(set(weight_map(index).values()))]
