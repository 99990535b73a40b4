"""What a process of a run takes until it computes, and for a network call; torchrun starts it.

    torchrun --nproc-per-node 2 benchmarks/scaling_probe.py OUT DEVICE CKPT DATA NUM_IMAGES

`scaling_measure` reads OUT/rank-K.json. The environment's DDPMBENCH_PROBED_AT says when the command
was given, in seconds since the epoch.
"""

import json
import os
import sys
import time
from pathlib import Path

BEGAN = time.time()

import numpy as np  # noqa: E402
import torch  # noqa: E402

import ddpmbench.evaluate.nll  # noqa: E402
from ddpmbench.checkpoints import load_checkpoint  # noqa: E402
from ddpmbench.data.images import load_images  # noqa: E402
from ddpmbench.execution.devices import resolve_device  # noqa: E402
from ddpmbench.execution.distributed import Ranks, joined  # noqa: E402
from ddpmbench.execution.engine import BatchSize, Engine  # noqa: E402
from ddpmbench.execution.engine_choice import at_once  # noqa: E402
from ddpmbench.execution.timing import seconds_per_call  # noqa: E402
from ddpmbench.likelihood.terms import Rows, TermsPass  # noqa: E402
from ddpmbench.unet.precision import Precision  # noqa: E402

MEETINGS, MEASURED = 50, 2.0  # seconds


def main() -> None:
    """Write what this process found."""
    out, device_option, ckpt, data, num_images = sys.argv[1:]
    with joined() as ranks:
        started = time.time()
        begin = time.perf_counter()
        checkpoint, images = load_checkpoint(ckpt), load_images(data, num_images=int(num_images))
        read = time.perf_counter() - begin
        device = resolve_device(device_option, ranks.local_rank)
        engine = Engine(
            checkpoint, device=device, choice=at_once(checkpoint, device, Precision.FP32)
        )
        terms_pass = TermsPass(
            checkpoint,
            images,
            seed=0,
            decoder="exact",
            device=device,
            model_output=engine.model_output,
        )
        batch = BatchSize(
            None, device=device, image_shape=images.pixels.shape[1:], warn=lambda line: None
        )
        ranks.wait()
        begin = time.perf_counter()
        for _ in range(MEETINGS):
            ranks.wait()
        meet = (time.perf_counter() - begin) / MEETINGS
        sizes = sorted({1, -(-batch.rows // 8), batch.rows})
        with engine.running():
            calls = [seconds_of_call(terms_pass, rows, ranks) for rows in sizes]
        found = {
            "began": BEGAN - float(os.environ["DDPMBENCH_PROBED_AT"]),
            "start": started - BEGAN,
            "read": read,
            "meet": meet,
            "sizes": sizes,
            "calls": calls,
            "bytes": images.pixels.nbytes + bytes_of(checkpoint.network),
        }
        (Path(out) / f"rank-{ranks.rank}.json").write_text(json.dumps(found))
        ranks.wait()


def bytes_of(network: torch.nn.Module) -> int:
    """Of the weights."""
    return sum(weight.numel() * weight.element_size() for weight in network.parameters())


def seconds_of_call(terms_pass: TermsPass, rows: int, ranks: Ranks) -> float:
    """Of so many rows, while the other processes have as many."""
    position = np.arange(rows, dtype=np.int64)
    table = Rows(
        image=position % len(terms_pass.images),
        t=1 + position * 7 % terms_pass.diffusion.schedule.num_timesteps,
        draw=position,
    )
    ranks.wait()
    return seconds_per_call(lambda: terms_pass.terms(table), terms_pass.device, at_least=MEASURED)


if __name__ == "__main__":
    assert ddpmbench.evaluate.nll  # what the command imports before it reads
    torch.set_num_threads(1)
    main()
