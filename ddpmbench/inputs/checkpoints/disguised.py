"""Files that are something else than their suffix or their reader takes them for, told by bytes."""

import struct
import zipfile
from pathlib import Path

DAMAGED = "truncated or damaged; copy or download it again"
"""What is said of a file that begins as one of the kind and goes on otherwise."""
_LFS = b"version https://git-lfs"
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z",
}
_HEADER_LENGTH = 8  # safetensors begins with the length of its JSON header, which begins with {
_LONGEST_HEADER = 100_000_000
_DAMAGE = (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error)
"""What zipfile raises where an archive is cut, or its table of contents spoiled."""


def refusal(path: Path) -> str | None:
    """Why a file cannot be weights under its name, and what to do; None if it may be.

    Args:
        path: a file that is not empty.
    """
    with path.open("rb") as file:
        start = file.read(len(_LFS))
    is_safetensors = _is_safetensors(start)
    if start == _LFS:
        return "a pointer of Git LFS, not the file itself; fetch it with git lfs pull"
    if packed := next((kind for magic, kind in _PACKED.items() if start.startswith(magic)), None):
        return f"a file packed with {packed}; unpack it first"
    if path.suffix == ".safetensors":
        if start[:2] == b"PK":
            return "written by torch.save, not safetensors; rename it to .pt"
    elif is_safetensors:
        return "a safetensors file; rename it to .safetensors"
    elif start[:2] == b"PK":
        return _archive(path)
    return None


def _is_safetensors(start: bytes) -> bool:
    length = int.from_bytes(start[:_HEADER_LENGTH], "little")
    return 0 < length < _LONGEST_HEADER and start[_HEADER_LENGTH : _HEADER_LENGTH + 2] == b'{"'


def _archive(path: Path) -> str | None:
    """Why what begins as a zip archive is not what `torch.save` writes."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except _DAMAGE:
        return DAMAGED
    names = [info.filename for info in infos]
    if any(name.endswith("/constants.pkl") for name in names):
        return (
            "a TorchScript program, which is run and not read; let a function of your own load "
            "it, --network FILE.py:NAME without --ckpt: def NAME(): return torch.jit.load(PATH); "
            "or save its weights: torch.save(torch.jit.load(PATH).state_dict(), NEW)"
        )
    if not any(name.endswith("/data.pkl") for name in names):
        if names and all(name.endswith(".npy") for name in names):
            return "arrays of NumPy (npz), not weights; images are passed with --data"
        return "a zip archive, but not one written by torch.save; unpack it and pass a file in it"
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
        # torch.save compresses nothing; what is compressed may take any amount of memory
        return "a compressed archive, which torch.save does not write; save it again with torch"
    return None
