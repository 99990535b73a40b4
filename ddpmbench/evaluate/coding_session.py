"""Set-up of encoding and decoding: the checkpoint on its device, and what both must share."""

import contextlib
import dataclasses
import hashlib
import platform
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy
import torch

from ddpmbench.codec.chain import Chain, ReverseProcess
from ddpmbench.codec.rans import DamageError
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.errors import InputError
from ddpmbench.execution.devices import device_name
from ddpmbench.execution.engine import Engine
from ddpmbench.execution.engine_choice import at_once
from ddpmbench.execution.session import Session, session
from ddpmbench.execution.worker import RunListener, RunProgress
from ddpmbench.unet.precision import Precision
from ddpmbench.user_code import user_errors


@dataclasses.dataclass(frozen=True, eq=False)
class CodingSession:
    """A checkpoint set up for encoding or decoding.

    Attributes:
        checkpoint: on the device, after the network check.
        device: where the network is evaluated.
        engine: evaluates the network.
    """

    checkpoint: Checkpoint
    device: torch.device
    engine: Engine

    def chain(self, process: ReverseProcess) -> Chain:
        """The code with these timesteps and variances."""
        output = self.engine.model_output
        return Chain(self.checkpoint, process, device=self.device, model_output=output)

    @property
    def machine(self) -> dict[str, Any]:
        """What the floating-point numbers of a code depend on."""
        return {
            "device": device_name(self.device),
            "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
            "engine": str(self.engine.choice),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        }


@contextlib.contextmanager
def coding(checkpoint: Checkpoint, shape: tuple[int, ...], device: str) -> Iterator[CodingSession]:
    """The checkpoint on a device, set up so that equal inputs always give equal outputs."""
    if checkpoint.schedule.is_continuous:
        raise InputError("`checkpoint`: a code visits whole timesteps; leave out continuous time")
    with session(device, None) as run_session:
        _refuse_processes(run_session)
        checkpoint = run_session.checked(checkpoint, shape)
        target = run_session.device
        choice = at_once(checkpoint, target, Precision.FP32)
        engine = Engine(checkpoint, device=target, choice=choice)
        with (
            user_errors(checkpoint.network_name),
            engine.running(),
            _same_kernels(),
            torch.inference_mode(),
        ):
            yield CodingSession(checkpoint, target, engine)


@contextlib.contextmanager
def _same_kernels() -> Iterator[None]:
    """Within, cuDNN uses the same deterministic kernels for the same shapes."""
    cudnn: Any = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before


def _refuse_processes(run_session: Session) -> None:
    if run_session.ranks.count > 1:
        raise InputError("a code is written by one process; start the command without torchrun")


def model_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """What identifies a model and the conventions of its code."""
    table = checkpoint.schedule.log_alphas_cumprod.numpy().tobytes()
    return {
        "checkpoint": checkpoint.sha256,
        "prediction": str(checkpoint.prediction),
        "clip": checkpoint.clip,
        "time_input": str(checkpoint.time_input),
        "process": str(checkpoint.schedule.process),
        "schedule": hashlib.sha256(table).hexdigest(),
        **checkpoint.data_range.record,
        "network": checkpoint.fingerprint,
        "network_output": list(checkpoint.output_numbers),
    }


@contextlib.contextmanager
def damage_as(refusal: InputError) -> Iterator[None]:
    """Raise this error where the bits were damaged."""
    try:
        yield
    except DamageError as error:
        raise refusal from error


class Counter:
    """Reports the number of images done to the listener."""

    def __init__(self, reporter: RunListener, total: int, done: int = 0) -> None:
        self._reporter, self._total, self._done = reporter, total, done
        self(0)

    def __call__(self, images: int) -> None:
        """Add images to those done."""
        self._done += images
        self._reporter.progress(RunProgress(self._done, self._total))
