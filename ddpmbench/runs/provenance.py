"""What a result was obtained with: versions, device, source revision, arguments."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

from ddpmbench.runs.devices import device_name
from ddpmbench.version import __version__

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "pandas",
    "pyarrow",
    "safetensors",
    "huggingface_hub",
    "clean-fid",
    "matplotlib",
    "pillow",
    "click",
    "rich",
)


def versions() -> dict[str, str | None]:
    """Installed versions of what a result depends on; None where a package is missing."""
    found: dict[str, str | None] = {"ddpmbench": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def source_revision() -> str | None:
    """The git revision of the package's source, "+" where it was changed; None if installed."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        revision = _git(folder, "rev-parse", "HEAD")
        return revision + ("+" if _git(folder, "status", "--porcelain", "ddpmbench") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def describe_devices() -> list[str]:
    """Every device PyTorch can compute on here."""
    names = [
        f"cpu: {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    ]
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
    """The record kept beside a result.

    Args:
        device: where it was computed.
        given: the command line as it was typed; None when called from Python.
        resolved: the settings it came to mean.
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
