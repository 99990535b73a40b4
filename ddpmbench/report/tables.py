"""Records to pandas frames and to the summary: here nats become bits per dimension, once."""

import dataclasses

import numpy as np
import pandas as pd

from ddpmbench.likelihood.bound import BoundEstimate
from ddpmbench.process.units import NATS_PER_BIT

SCHEMA = "ddpmbench.nll/1"


@dataclasses.dataclass(frozen=True)
class Comparability:
    """What makes a number comparable: the part of the summary that no network enters.

    The fields are those of `summary.json`, in its order.
    """

    num_images: int
    num_timesteps: int
    num_evaluations: int
    estimator: str
    conventions: dict[str, object]
    checkpoint: dict[str, object]
    data: dict[str, object]
    seed: int
    device: str
    precision: str
    seconds: float


def summary(bound: BoundEstimate, comparability: Comparability) -> dict[str, object]:
    """The object of `summary.json`: the bound in bits per dimension, and what it is of."""
    return {
        "schema": SCHEMA,
        "bits_per_dim": bound.nats / NATS_PER_BIT,
        "half_width": _bits(bound.half_width),
        "half_width_population": _bits(bound.half_width_population),
        "prior": float(bound.prior.mean()) / NATS_PER_BIT,
        "kl": float(bound.kl.mean()) / NATS_PER_BIT,
        "decoder": float(bound.decoder.mean()) / NATS_PER_BIT,
        **dataclasses.asdict(comparability),
    }


def per_timestep(bound: BoundEstimate) -> pd.DataFrame:
    """One row a step t = 1..T; terms in bits per dimension, errors on [-1, 1]."""
    num_timesteps = len(bound.term)
    return pd.DataFrame(
        {
            "t": np.arange(1, num_timesteps + 1),
            "part": ["decoder"] + ["kl"] * (num_timesteps - 1),
            "bits_per_dim": bound.term / NATS_PER_BIT,
            "standard_error": bound.term_standard_error / NATS_PER_BIT,
            "x_start_mse": bound.x_start_mse,
            "eps_mse": bound.eps_mse,
            "num_evaluations": bound.num_evaluations,
        }
    )


def per_image(bound: BoundEstimate, ids: list[str]) -> pd.DataFrame:
    """One row an image, in bits per dimension."""
    return pd.DataFrame(
        {
            "image_id": ids,
            "prior": bound.prior / NATS_PER_BIT,
            "kl": bound.kl / NATS_PER_BIT,
            "decoder": bound.decoder / NATS_PER_BIT,
            "bits_per_dim": bound.total / NATS_PER_BIT,
        }
    )


def _bits(nats: float | None) -> float | None:
    return None if nats is None else nats / NATS_PER_BIT
