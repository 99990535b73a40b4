"""The files of Ho et al.'s own code, which are TensorFlow's: recognized, and not read.

The format needs no TensorFlow, but the only reader without it (tensorflow-checkpoint-reader) was
last released in 2023 as a work in progress.
"""

from pathlib import Path

from ddpmbench.errors import InputError

_TABLE = bytes.fromhex("57fb808b247547db")  # the last bytes of an index
_CONVERTED = (
    "google/ddpm-cifar10-32 and google/ddpm-ema-bedroom-256, -cat-256, -church-256, "
    "-celebahq-256 on the Hugging Face Hub, or the .ckpt files of pesser/pytorch_diffusion"
)


def refuse_tensorflow(path: Path) -> None:
    """Raise InputError if a path is, or holds, a checkpoint of TensorFlow.

    Args:
        path: a file of it, their common beginning (`model.ckpt-790000`), or a folder of them.
    """
    if (index := _index(path)) is not None:
        raise InputError(
            f"{path}: a checkpoint of TensorFlow ({index}), which is not read; those of Ho et al. "
            f"are published in formats that are: {_CONVERTED}"
        )


def _index(path: Path) -> str | None:
    """The file that tells it; None if it is none."""
    if path.is_dir():
        found = sorted(path.glob("*.index"))
        return next((index.name for index in found if _is_table(index)), None)
    if path.is_file():
        for suffix in (".index", ".meta", ".data-"):
            begin, found_suffix, _ = path.name.rpartition(suffix)
            if found_suffix and (index := path.with_name(f"{begin}.index")).is_file():
                return index.name if _is_table(index) else None
        return path.name if _is_table(path) else None
    index = path.with_name(f"{path.name}.index")
    return index.name if path.name and _is_table(index) else None


def _is_table(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size < len(_TABLE):
        return False
    with path.open("rb") as file:
        file.seek(-len(_TABLE), 2)
        return file.read() == _TABLE
