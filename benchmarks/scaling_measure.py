"""What the parts of a run take on this machine, by the package's own code and in run folders."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scaling_model import Costs

from ddpmbench.execution.folder import RunFolder
from ddpmbench.likelihood.terms import VALUE_COLUMNS, Rows, TermTable, columns_of_bound

PROBE = Path(__file__).with_name("scaling_probe.py")
REDUCTIONS = 4
"""A run reads the terms in its shards for the bound with and without regression, for the distortion
and for the other conventions."""
_SHARDS = 40
ENDLESS = 9.0
"""Bits/dim: the first look at the bound ends the run."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What is run, in the options of `ddpmbench nll`.

    Attributes:
        device: --device.
        ckpt: --ckpt.
        data: --data.
    """

    device: str
    ckpt: str
    data: str

    def command(self, estimator: str, num_images: int, out: Path) -> list[str]:
        """The arguments of a run whose number of calls is known before it begins."""
        kinds = {
            "rotated-warp": ["--half-width", str(ENDLESS)],
            "every-pair": ["--draws", "1"],
        }
        return [
            *("-m", "ddpmbench", "nll", "--device", self.device),
            *("--ckpt", self.ckpt, "--data", self.data, "--num-images", str(num_images)),
            *("--estimator", estimator, *kinds[estimator]),
            *("--no-check", "--out", str(out), "--format", "quiet"),
        ]


@dataclasses.dataclass(frozen=True)
class Probed:
    """What processes that begin together found.

    Attributes:
        launch: seconds of torchrun until they began.
        start: of a process for its imports.
        read: of a process for checkpoint and images.
        meet: of a meeting of all.
        sizes: rows of the network calls that were timed.
        calls: seconds of them.
        read_bytes: of checkpoint and images.
    """

    launch: float
    start: float
    read: float
    meet: float
    sizes: list[int]
    calls: list[float]
    read_bytes: int


def probe(inputs: Inputs, processes: int, num_images: int) -> Probed:
    """Start so many processes and let each say what it took; the medians over them."""
    with tempfile.TemporaryDirectory() as folder:
        at = {"DDPMBENCH_PROBED_AT": repr(time.time())}
        what = [str(PROBE), folder, inputs.device, inputs.ckpt, inputs.data, str(num_images)]
        seconds_of(processes, what, at)
        found = [json.loads(path.read_text()) for path in sorted(Path(folder).iterdir())]

    def median(name: str) -> float:
        return float(np.median([of[name] for of in found]))

    return Probed(
        launch=median("began"),
        start=median("start"),
        read=median("read"),
        meet=median("meet"),
        sizes=found[0]["sizes"],
        calls=list(np.median([of["calls"] for of in found], axis=0)),
        read_bytes=found[0]["bytes"],
    )


def seconds_of(processes: int, what: list[str], environment: dict[str, str] | None = None) -> float:
    """Start a module or script under torchrun, one thread each; the seconds until it is done."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *torchrun, *what],
        env={**os.environ, **threads, **(environment or {})},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(what)} failed:\n{done.stderr}")
    return time.perf_counter() - begin


def costs_of(probed: Probed, meet: float, folder: Path) -> Costs:
    """The costs of a machine.

    Args:
        probed: what one process found.
        meet: seconds of a meeting, for each process.
        folder: an empty folder on the file system that run folders are on.
    """
    batch, row = line_through(probed.sizes, probed.calls)
    write, gather = shard_seconds(folder, probed.sizes[-1])
    return Costs(
        launch=probed.launch,
        start=probed.start,
        read=probed.read,
        read_bytes=probed.read_bytes,
        batch=batch,
        row=row,
        batch_rows=probed.sizes[-1],
        write=write,
        gather=gather,
        meet=meet,
    )


def line_through(sizes: list[int], seconds: list[float]) -> tuple[float, float]:
    """What a call takes whatever its rows, at least nothing, and more for each of them.

    Errors count relative to the seconds.
    """
    weight = 1 / np.asarray(seconds)
    columns = np.stack([np.ones(len(sizes)), np.asarray(sizes, dtype=float)], axis=1)
    (batch, row), *_ = np.linalg.lstsq(columns * weight[:, None], np.ones(len(sizes)), rcond=None)
    if batch < 0:
        return 0.0, float(np.mean(seconds[-1] / sizes[-1]))
    return float(batch), float(row)


def shard_seconds(folder: Path, rows: int) -> tuple[float, float]:
    """What a shard of so many rows takes: to write, and to read in all that reads it."""
    shards = RunFolder(folder, {"schema": "scaling"}).shards("terms")
    address = np.arange(rows, dtype=np.int64)
    table = TermTable(
        Rows(address, address + 1, address), {name: np.ones(rows) for name in VALUE_COLUMNS}
    )
    length = _SHARDS * rows
    clock = [time.perf_counter()]
    for start in range(0, length, rows):
        shards.save(start, table, seconds=1.0, device="cpu")
    clock.append(time.perf_counter())
    for _ in range(REDUCTIONS):
        for _ in shards.tables(length, columns_of_bound(clip=True)):
            pass
    shards.seconds(length)
    shards.devices(length)
    clock.append(time.perf_counter())
    write, gather = np.diff(clock) / _SHARDS
    return float(write), float(gather)
