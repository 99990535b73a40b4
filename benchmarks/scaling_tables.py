"""What rank 0 does for a run besides rows and shards: reductions, tables, the page."""

import dataclasses
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from scaling_measure import ENDLESS, Inputs, seconds_of
from scaling_model import Costs, Job

from ddpmbench.checkpoints import Checkpoint, load_checkpoint
from ddpmbench.data.images import ImageSet, load_images
from ddpmbench.evaluate.nll import evaluate_nll
from ddpmbench.likelihood.decoders import DECODER_COLUMNS, MODEL_COLUMNS
from ddpmbench.likelihood.terms import VALUE_COLUMNS, Rows, TermsPass, TermTable


@dataclasses.dataclass(frozen=True)
class Tables:
    """Seconds of rank 0 for all that is no row and no shard: reductions, tables, page.

    Attributes:
        fixed: whatever the job.
        per_row: more for each of its rows.
    """

    fixed: float
    per_row: float

    def job(self, estimator: str, num_images: int, num_timesteps: int) -> Job:
        """A job with what its tables take."""
        kind = {"rotated-warp": Job.sampled, "every-pair": Job.every_pair}[estimator]
        rows = kind(num_images, num_timesteps, tables=0.0).rows
        return kind(num_images, num_timesteps, tables=self.fixed + self.per_row * rows)


def measure_tables(
    inputs: Inputs, estimator: str, sizes: tuple[int, int], costs: Costs, folder: Path
) -> Tables:
    """From one command given again, and from two runs whose rows are made up.

    A finished run's command makes no network call: what it takes is what does not divide.

    Args:
        inputs: what is run.
        estimator: of the runs.
        sizes: a small and a large number of images.
        costs: what the command takes before it reads the terms.
        folder: for run folders.
    """
    checkpoint = load_checkpoint(inputs.ckpt)
    jobs = [Tables(0.0, 0.0).job(estimator, n, checkpoint.schedule.num_timesteps) for n in sizes]
    small, large = (
        reduction_seconds(
            estimator,
            checkpoint,
            load_images(inputs.data, num_images=num_images),
            folder / f"made-up-{estimator}-{num_images}",
        )
        for num_images in sizes
    )
    per_row = max(0.0, (large - small) / (jobs[1].rows - jobs[0].rows))
    command = inputs.command(estimator, sizes[0], folder / f"small-{estimator}")
    seconds_of(1, command)
    again = seconds_of(1, command) - costs.launch - costs.start - costs.read
    return Tables(max(0.0, again - per_row * jobs[0].rows), per_row)


def reduction_seconds(
    estimator: str, checkpoint: Checkpoint, images: ImageSet, folder: Path
) -> float:
    """Seconds of one core that a run takes whose rows are all there.

    The rows come without the network, which would take hours, and have values of no model.
    """
    options: dict[str, Any] = {
        "rotated-warp": {"half_width": ENDLESS},
        "every-pair": {"draws": 1},
    }[estimator]

    def evaluate() -> None:
        evaluate_nll(checkpoint, images, estimator=estimator, out=folder, **options)

    with mock.patch.object(TermsPass, "terms", made_up_terms):
        evaluate()
    # Of the process: a small part of a long time, which whatever else runs would hide.
    begin = time.process_time()
    evaluate()
    return time.process_time() - begin


def made_up_terms(terms_pass: TermsPass, rows: Rows) -> TermTable:
    """Values that fall with t and differ from image to image, in place of `TermsPass.terms`."""
    generator = np.random.default_rng(rows.image)
    size = 1 / rows.t * np.exp(0.3 * generator.standard_normal(len(rows)))
    values = {name: size.copy() for name in VALUE_COLUMNS}
    for name in (*DECODER_COLUMNS, *MODEL_COLUMNS):
        values[name][rows.t > 1] = np.nan
    return TermTable(rows, values)
