"""A peer in its own process, without any setting of our engine.

On a CPU the engine tells the C library to keep freed memory, which would also speed up peers in the
same process. The two processes take turns: one waits while the other works.
"""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from per_step_loop import PerStepLoop, improved_diffusion
from subjects import images_for, load_subject, shortened

from ddpmbench.diffusion.data_range import UNIT_RANGE
from ddpmbench.execution.devices import evaluating

LOOP, PIPELINE = "loop", "pipeline"
_DONE = "done"


@dataclasses.dataclass(frozen=True)
class Peer:
    """The work of a peer.

    Attributes:
        kind: `LOOP` or `PIPELINE`.
        model: one of `cases.MODELS`.
        ckpt: the value of `--ckpt` in place of the model, or None.
        batch: images.
        num_timesteps: of the shortened model.
        checkout: of improved-diffusion, or None.
    """

    kind: str
    model: str
    ckpt: str | None
    batch: int
    num_timesteps: int
    checkout: str | None = None

    def work(self) -> Callable[[], object]:
        """The timed function, on the CPU, with the peer's defaults."""
        checkpoint = load_subject(self.model, self.ckpt)
        if self.kind == PIPELINE:
            from diffusers_peer import pipeline

            of_theirs = pipeline(checkpoint, self.num_timesteps)
            return lambda: of_theirs(
                batch_size=self.batch, num_inference_steps=self.num_timesteps, output_type="np"
            )
        betas = shortened(checkpoint, self.num_timesteps).schedule.betas.numpy()
        checkout = self.checkout
        loop = improved_diffusion(Path(checkout), betas) if checkout else PerStepLoop(betas)
        pixels = torch.tensor(images_for(checkpoint, self.batch).pixels)
        x_start = UNIT_RANGE.to_model(pixels, torch.float32)

        def evaluate() -> object:
            with evaluating(checkpoint.network):
                return loop.calc_bpd_loop(lambda x, t: checkpoint.model_output(x, t + 1), x_start)

        return evaluate


class OwnProcess:
    """Callable that does a peer's work once and returns when it is done."""

    def __init__(self, peer: Peer) -> None:
        """Start the process, and do the work once to warm up."""
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(dataclasses.asdict(peer))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self()

    def __call__(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        if self._process.stdout.readline().strip() != _DONE:
            raise RuntimeError("the peer's process has ended; its errors are above")

    def __enter__(self) -> "OwnProcess":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def main() -> None:
    """Work once per line of standard input."""
    # Libraries may print; standard output is for the signal alone.
    pipe, sys.stdout = sys.stdout, sys.stderr
    work = Peer(**json.loads(sys.argv[1])).work()
    for _ in sys.stdin:
        work()
        print(_DONE, file=pipe, flush=True)


if __name__ == "__main__":
    main()
