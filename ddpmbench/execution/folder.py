"""The run folder: the identity of a run, its shards and its tables."""

import contextlib
import functools
import importlib.metadata
import platform
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from ddpmbench.checksums import CHECKSUMS, DamageError, checksum, read_json, write_json
from ddpmbench.diffusion.model import OUTPUT, same_output
from ddpmbench.errors import InputError, shown_value
from ddpmbench.execution.devices import cpu_threads, device_name
from ddpmbench.execution.store import FolderStore
from ddpmbench.files import is_temporary, replacing, writing_to
from ddpmbench.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure


PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "pandas",
    "pyarrow",
    "msgspec",
    "safetensors",
    "huggingface_hub",
    "clean-fid",
    "matplotlib",
    "pillow",
    "click",
    "rich",
)


def versions() -> dict[str, str | None]:
    """Installed versions of the packages that a result depends on; None where one is missing."""
    versions: dict[str, str | None] = {
        "ddpmbench": __version__,
        "python": platform.python_version(),
    }
    return versions | {name: _version(name) for name in PACKAGES}


@functools.cache
def _version(name: str) -> str | None:
    """That of the first call, as what was imported does not change later."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def source_revision() -> str | None:
    """The git revision of the source, with "+" for uncommitted changes; None if installed.

    That of the first call, as what was imported does not change later.
    """
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        revision = _git(folder, "rev-parse", "HEAD")
        return revision + ("+" if _git(folder, "status", "--porcelain", "ddpmbench") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def describe_devices() -> list[str]:
    """Every device on which PyTorch can compute here."""
    names = [f"cpu: {platform.processor() or platform.machine()}, {cpu_threads()}"]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = properties.total_memory / 2**30
            names.append(f"cuda:{index}: {properties.name}, {memory:.0f} GiB")
    if torch.backends.mps.is_available():
        names.append("mps")
    return names


def environment(
    device: torch.device, *, given: list[str] | None, resolved: dict[str, object]
) -> dict[str, object]:
    """The record of the environment of a result.

    Args:
        device: where it was computed.
        given: the command line as typed; None when called from Python.
        resolved: the settings after defaults and "auto" were resolved.
    """
    return {
        "versions": versions(),
        "git_revision": source_revision(),
        "platform": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}",
        "device": device_name(device),
        "arguments": {"given": given, "resolved": resolved},
    }


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


IDENTITY, SHARDS = "run.json", "shards"
_DOTS_AN_INCH = 144
LEFTOVER_SECONDS = 600.0
"""An older temporary file was left by a killed run."""


class RunFolder:
    """A folder that holds one run.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        """Begin a run in a new or empty folder, or resume the same run in its folder.

        Args:
            path: the folder.
            identity: everything that determines the run's numbers, as JSON.

        Raises:
            InputError: the path is not a folder, holds something else, or cannot be written.
        """
        self.path = path
        self._tables: dict[str, str] = {}
        with writing_to(path):
            if path.exists() and not path.is_dir():
                raise InputError(f"`out={path}`: is a file; name a folder")
            if (path / IDENTITY).exists():
                _refuse_another_run(path, identity)
            elif path.exists() and any(map(_is_foreign, path.iterdir())):
                raise InputError(
                    f"`out={path}`: holds files but no run of ddpmbench; name a new folder"
                )
            path.mkdir(parents=True, exist_ok=True)
            if not (path / IDENTITY).exists():
                self.write_json(IDENTITY, identity)
            _remove_leftovers(path)

    def shards(self, name: str) -> FolderStore:
        """The store of this name."""
        return run_store(self.path, name)

    def refuse_more(self, name: str, count: int) -> None:
        """Refuse to replace a result by one with fewer samples.

        Args:
            name: the field of `summary.json` with the number of samples.
            count: the requested number of samples.

        Raises:
            InputError: the result in the folder has more samples.
        """
        try:
            held = read_json(self.path / "summary.json").get(name)
        except DamageError:
            return  # unfinished, or will be rewritten
        if isinstance(held, int) and held > count:
            raise InputError(
                f"`out={self.path}`: holds {held:,} samples, more than the {count:,} asked for; "
                "name a new folder"
            )

    def write_json(self, name: str, record: Mapping[str, Any]) -> None:
        """Write a record with its checksum, atomically."""
        with self.replacing(name) as temporary:
            write_json(temporary, record)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`, with the checksums of the tables written before."""
        with self.replacing("summary.json") as temporary:
            write_json(temporary, summary, self._tables)

    @contextlib.contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """A path to write to; it replaces the file `name` if no error occurs."""
        with writing_to(self.path), replacing(self.path / name) as temporary:
            yield temporary

    @contextlib.contextmanager
    def replacing_table(self, name: str) -> Iterator[Path]:
        """The same for a table, whose checksum goes into `summary.json`."""
        with self.replacing(name) as temporary:
            yield temporary
            self._tables[name] = checksum(temporary)

    def keeps_table(self, name: str, known: str) -> bool:
        """Whether a table still has the checksum `known`; it then stays in `summary.json`."""
        try:
            if checksum(self.path / name) != known:
                return False
        except DamageError:
            return False
        self._tables[name] = known
        return True

    def checksum_of(self, name: str) -> str:
        """The checksum of a table that was written or kept."""
        return self._tables[name]

    def write_frame(self, name: str, frame: pd.DataFrame) -> None:
        """Write a table as csv, atomically; floating point numbers keep all their digits."""
        with self.replacing_table(name) as temporary:
            frame.to_csv(temporary, index=False)


def run_store(path: Path, name: str) -> FolderStore:
    """The store of this name in a run folder."""
    return FolderStore(path / SHARDS, name, run=tag(path))


def tag(path: Path) -> str | None:
    """The identifier of the run in its shards; None where the folder has no `run.json`.

    Raises:
        InputError: the file cannot be read.
    """
    if not (path / IDENTITY).exists():
        return None
    try:
        return checksum(path / IDENTITY)
    except DamageError as error:
        raise InputError(f"{path / IDENTITY}: cannot be read ({error})") from error


def write_figure(folder: Path, name: str, figure: "Figure", numbers: pd.DataFrame) -> str:
    """Write a figure as svg and png under `figures/`, and the numbers behind it as csv.

    The svg has no background and real text, and the same figure always gives the same file; the png
    is on white.

    Returns:
        The text of the svg.

    Raises:
        InputError: the folder cannot be written.
    """
    import matplotlib

    figures = folder / "figures"
    kinds: dict[str, dict[str, Any]] = {
        "svg": {"transparent": True, "metadata": {"Date": None, "Creator": None}},
        "png": {"facecolor": "white", "dpi": _DOTS_AN_INCH},
    }
    # The layout is computed once, not for each file.
    if (layout := figure.get_layout_engine()) is not None:
        layout.execute(figure)
        figure.set_layout_engine(None)
    # The last bits of a layout vary between calls.
    for part in figure.subfigs:
        part.bbox_relative.set_points(part.bbox_relative.get_points().round(9))
    for axes in figure.get_axes():
        x, y, width, height = axes.get_position(original=True).bounds
        axes.set_position((round(x, 5), round(y, 5), round(width, 5), round(height, 5)))
    with (
        writing_to(folder, ""),
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ddpmbench"}),
    ):
        figures.mkdir(exist_ok=True)
        for kind, how in kinds.items():
            with replacing(figures / f"{name}.{kind}") as temporary:
                figure.savefig(temporary, format=kind, **how)
                if kind == "svg":
                    svg = temporary.read_text(encoding="utf-8")
        with replacing(figures / f"{name}.csv") as temporary:
            numbers.to_csv(temporary, index=False)
    return svg


def _is_foreign(path: Path) -> bool:
    """Whether a file cannot have been left by a run that was killed at its start."""
    return not is_temporary(path) and not (path.name == SHARDS and not any(path.iterdir()))


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of killed runs; files that are being written now are younger."""
    for leftover in filter(is_temporary, path.rglob("*.tmp")):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                leftover.unlink()


def _refuse_another_run(path: Path, identity: dict[str, Any]) -> None:
    try:
        recorded = read_json(path / IDENTITY)
    except DamageError as error:
        raise InputError(
            f"`out={path}`: {IDENTITY} is damaged ({error}), so that the run of the folder is "
            "unknown; name a new folder"
        ) from error
    recorded.pop(CHECKSUMS, None)
    refuse_other(f"`out={path}`: holds another run", recorded, identity, "name a new folder")


def refuse_other(
    what: str,
    there: Mapping[str, Any],
    here: Mapping[str, Any],
    remedy: str,
    *,
    names: Iterable[str] | None = None,
) -> None:
    """Refuse a record that is not of the same run or model.

    Args:
        what: the first part of the message, as in "FILE: is of another model".
        there: the record.
        here: the one that it must equal; the output of a network, but for rounding.
        remedy: the last part of the message.
        names: the fields to compare, in order; None for all, those of `here` first.

    Raises:
        InputError: they differ; the message names the first field that does, in a nested record
            that of the record, and its two values.
    """
    for name in [*here, *there] if names is None else names:
        of_there, of_here = there.get(name), here.get(name)
        if of_there == of_here or (name == OUTPUT and same_output(of_there, of_here)):
            continue
        if isinstance(of_there, Mapping) and isinstance(of_here, Mapping):
            refuse_other(what, of_there, of_here, remedy)
        values = f"{shown_value(of_there)} there, {shown_value(of_here)} here"
        raise InputError(f"{what} ({name} is {values}); {remedy}")
