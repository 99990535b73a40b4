"""Files that are not read: their kind, and the command that converts them.

Nothing in them is run: a pickle's opcodes are listed, of the others the headers are read.
"""

import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path

from ddpmbench.data.idx_files import open_maybe_gzip
from ddpmbench.errors import InputError, refusal

_TAR = "tar archive"
_TORCH = "torch file"


def other_file(path: Path, kind: str) -> InputError | None:
    """The error for a file of a kind that is not read; None for any other.

    Args:
        path: a regular file.
        kind: by its first bytes; see `folder_contents.kind_of`.
    """
    if kind == "gzip file" and (path.suffix.lower() == ".tgz" or _is_tar(path)):
        kind = _TAR
    if kind in ("bzip2 file", "xz file") and ".t" in path.name.lower():
        kind = _TAR
    suffix = path.suffix.lower()
    if (kind == "zip archive" and _is_torch(path)) or (kind == "pickle" and suffix in _TORCH_NAMES):
        kind = _TORCH
    if kind in ("", "gzip file", "idx file"):
        return None
    try:
        remedy = _REMEDIES.get(kind, _export)(path)
    except Exception:  # whatever the readers of a damaged file raise
        remedy = "it cannot be read; copy or save it again"
    return refusal(path, f"is a {kind}; {remedy}")


def _is_tar(path: Path) -> bool:
    try:
        with open_maybe_gzip(path) as file:
            return file.read(512)[257:262] == b"ustar"
    except (OSError, EOFError):
        return False


def _is_torch(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _python(path: Path, imports: str, pixels: str, *, first: str = "", labels: str = "") -> str:
    """The command that writes an npz beside it."""
    target = str(path.with_suffix(".npz"))
    more = f", arr_1={labels}" if labels else ""
    code = f"import numpy as np, {imports}; {first}np.savez({target!r}, arr_0={pixels}{more})"
    return f'make an npz with: python -c "{code}", and give {target}'


def _unpack(module: str) -> Callable[[Path], str]:
    def remedy(path: Path) -> str:
        target = f"{path}-images"
        return f"unpack it with: python -m {module} -e {path} {target}, and give {target}"

    return remedy


def _export(path: Path) -> str:
    return "save its images as PNG files in a folder, or as uint8 (N, H, W, C) with np.savez"


def _parquet(path: Path) -> str:
    import pyarrow
    from pyarrow import parquet

    schema = parquet.read_schema(path)
    of_files = {
        field.name: "v['bytes']" if pyarrow.types.is_struct(field.type) else "v"
        for field in schema
        if pyarrow.types.is_binary(field.type)
        or (pyarrow.types.is_struct(field.type) and "bytes" in {f.name for f in field.type})
    }
    if not of_files:
        return f"none of its columns, {', '.join(schema.names)}, holds image files"
    name, content = next(iter(of_files.items()))
    labels = [
        field.name
        for field in schema
        if pyarrow.types.is_integer(field.type) and ("label" in field.name or "class" in field.name)
    ]
    image = f"np.asarray(PIL.Image.open(io.BytesIO({content})))"
    return _python(
        path,
        "pandas as pd, io, PIL.Image",
        f"np.stack([{image} for v in d[{name!r}]])",
        first=f"d = pd.read_parquet({str(path)!r}); ",
        labels=f"d[{labels[0]!r}]" if labels else "",
    )


def _matlab(path: Path) -> str:
    from scipy.io import whosmat

    images = [(name, shape) for name, shape, _ in whosmat(str(path)) if len(shape) in (3, 4)]
    if not images:
        return "none of its arrays has the shape of images"
    name, shape = images[0]
    # MATLAB counts along the last axis what NumPy counts along the first.
    is_last = shape[-1] not in (1, 3) if len(shape) == 4 else shape[0] == shape[1]
    order = (".transpose(3, 0, 1, 2)" if len(shape) == 4 else ".transpose(2, 0, 1)") * is_last
    return _python(path, "scipy.io", f"scipy.io.loadmat({str(path)!r})[{name!r}]{order}")


def _hdf5(path: Path) -> str:
    name = "NAME"
    try:
        import h5py  # type: ignore[import-not-found]  # which is no dependency

        with h5py.File(path) as file:
            name = next(n for n in file if getattr(file[n], "ndim", 0) in (3, 4))
    except (ImportError, StopIteration):
        pass
    return _python(path, "h5py", f"h5py.File({str(path)!r})[{name!r}][:]")


def _torch(path: Path) -> str:
    import torch

    read = f"torch.load({str(path)!r}, weights_only=True)"
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception:  # whatever a file that is more than tensors leads it to
        return "it holds more than tensors; save its pixels as uint8 (N, H, W, C) with np.savez"
    if isinstance(content, torch.Tensor):
        return _python(path, "torch", _channels_last("x", content), first=f"x = {read}; ")
    parts = enumerate(content) if isinstance(content, tuple | list) else _items(content)
    tensors = [(key, part) for key, part in parts if isinstance(part, torch.Tensor)]
    images = [(key, part) for key, part in tensors if part.ndim in (3, 4)]
    if not images:
        return "none of its tensors has the shape of images (a checkpoint is given as `ckpt`)"
    key, tensor = images[0]
    labels = [
        key
        for key, part in tensors
        if part.shape == tensor.shape[:1] and not part.is_floating_point()
    ]
    return _python(
        path,
        "torch",
        _channels_last(f"x[{key!r}]", tensor),
        first=f"x = {read}; ",
        labels=f"x[{labels[0]!r}].numpy()" if labels else "",
    )


def _items(content: object) -> "list[tuple[object, object]]":
    return list(content.items()) if isinstance(content, dict) else []


def _channels_last(name: str, tensor: "object") -> str:
    shape, dtype = tensor.shape, str(tensor.dtype)  # type: ignore[attr-defined]
    order = ".permute(0, 2, 3, 1)" if len(shape) == 4 and shape[1] in (1, 3) else ""
    scaled = name
    if "float" in dtype:
        low = float(tensor.min())  # type: ignore[attr-defined]
        scaled = f"(127.5 * {name} + 127.5)" if low < 0 else f"(255 * {name})"
        scaled += ".round().byte()"
    elif dtype != "torch.uint8":
        scaled += ".byte()"
    return f"{scaled}{order}.numpy()"


def _pickle(path: Path) -> str:
    with path.open("rb") as file:
        texts = {
            argument.decode("latin1") if isinstance(argument, bytes) else argument
            for opcode, argument, _ in pickletools.genops(file)
            if isinstance(argument, str | bytes) and len(argument) < 100
        }
    read = f"pickle.load(open({str(path)!r}, 'rb'), encoding='latin1')"
    warning = "loading a pickle runs whatever code is in it: only of a source that you trust, "
    if "data" not in texts or not {"labels", "fine_labels"} & texts:
        return f"{warning}load it and save its pixels as uint8 (N, H, W, C) with np.savez"
    labels = "labels" if "labels" in texts else "fine_labels"
    return warning + _python(
        path,
        "pickle",
        "d['data'].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)",
        first=f"d = {read}; ",
        labels=f"d[{labels!r}]",
    )


_TORCH_NAMES = (".pt", ".pth", ".ckpt", ".bin")
_REMEDIES: dict[str, Callable[[Path], str]] = {
    "zip archive": _unpack("zipfile"),
    _TAR: _unpack("tarfile"),
    "parquet file": _parquet,
    "MATLAB file": _matlab,
    "HDF5 file": _hdf5,
    "pickle": _pickle,
    _TORCH: _torch,
}
