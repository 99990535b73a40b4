"""Normal data, a model of it and the options of its code, for the tests of compressed files."""

from normal_data import trained_on_normal_data

import ddpmbench as db
from ddpmbench.diffusion.schedule import NoiseSchedule

SILENT = {"progress": False}
QUIET = {"compare": False, "verify": "none", **SILENT}
OPTIONS = {"timesteps": 20, "block_images": 30, "batch_size": 16, **QUIET}
T = 60
LINEAR = NoiseSchedule.linear(T, beta_start=1e-4, beta_end=0.2)


def linear_model(**changes):
    """The best model on the timesteps of `LINEAR`."""
    return trained_on_normal_data(**{"schedule": LINEAR, **changes})


def restored(report, checkpoint, **options):
    """The images of a compressed file."""
    return db.decompress(report.file, checkpoint, progress=False, **options)
