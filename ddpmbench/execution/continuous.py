"""The difference of the bound in continuous time from that of a run, from terms of its own."""

import dataclasses

import torch

from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.process import Prediction
from ddpmbench.errors import InputError
from ddpmbench.execution.devices import evaluating_checkpoint, strict_float32
from ddpmbench.execution.store import num_missing
from ddpmbench.execution.terms import Stores, TermsRun, checked, read_terms
from ddpmbench.likelihood.continuous import (
    ContinuousDesign,
    ContinuousDifference,
    ContinuousTermsPass,
    estimate_difference,
)
from ddpmbench.likelihood.terms import concatenate
from ddpmbench.unet.unet import UNet
from ddpmbench.user_code import calling

CONTINUOUS, AT_TIMESTEPS = "continuous", "continuous-at-timesteps"
"""The stores of the terms in continuous time, and of the same terms at the timesteps."""


def why_whole_timesteps(
    checkpoint: Checkpoint, shape: tuple[int, ...], device: torch.device
) -> str | None:
    """Why a model has no bound in continuous time; None where it has.

    Any network but this package's U-Net is called between two timesteps, and at both.

    Args:
        checkpoint: the model, on the device.
        shape: (C, H, W) of an image.
        device: where it runs.
    """
    schedule = checkpoint.as_trained.schedule
    if checkpoint.prediction is Prediction.PREVIOUS_MEAN:
        return "the network predicts the mean at its next timestep, and has none between two"
    if schedule.num_timesteps != schedule.num_original_timesteps:
        return f"the model visits {schedule.num_timesteps} of its timesteps only"
    if schedule.num_timesteps < 2:
        return "the model has a single timestep"
    if isinstance(checkpoint.network, UNet):
        return None
    x = torch.randn((3, *shape), generator=torch.Generator().manual_seed(0))[:1].expand(3, *shape)
    middle = float(max(schedule.num_timesteps // 2, 1))
    u = torch.tensor([middle, middle + 0.5, middle + 1], device=device)
    labels = torch.zeros(3, dtype=torch.int64, device=device) if checkpoint.num_classes else None
    with (
        torch.inference_mode(),
        torch.random.fork_rng(devices=[]),
        evaluating_checkpoint(checkpoint),
        strict_float32(),
    ):
        try:
            low, between, high = calling(
                lambda: checkpoint.model_output(x.to(device).contiguous(), u, labels),
                checkpoint.network_name,
            )
        except InputError as error:
            return f"it takes whole timesteps only ({error})"
    if not bool(between.isfinite().all()):
        return "its output between two timesteps is not finite"
    is_rounded = torch.equal(between, low) or torch.equal(between, high)
    if is_rounded and not torch.equal(low, high):
        return "it rounds the time that it is given to a whole timestep"
    return None


def check_between(checkpoint: Checkpoint, shape: tuple[int, ...], device: torch.device) -> None:
    """Refuse a model at fractional timesteps that takes whole ones.

    Raises:
        InputError: the schedule has fractional timesteps, and the network does not take them.
    """
    if checkpoint.schedule.trained is None:
        return
    why = why_whole_timesteps(checkpoint, shape, device)
    if why is not None:
        total = checkpoint.schedule.num_original_timesteps
        raise InputError(
            f"{checkpoint.network_name}: cannot be evaluated between its timesteps: {why}; choose "
            f"`timesteps` of at most {total:,}"
        )


class ContinuousRun:
    """Evaluates terms at timesteps and in continuous time, and estimates the difference."""

    def __init__(self, run: TermsRun, design: ContinuousDesign, stores: Stores) -> None:
        """The difference from a run.

        Args:
            run: of the bound.
            design: the terms.
            stores: hold the terms of earlier sessions, and receive the others.
        """
        of = run.terms_pass
        continuous = ContinuousTermsPass.like(of).at(design.fractions)
        self._design, self._discrete = design, run
        self._continuous = dataclasses.replace(run, terms_pass=continuous)
        self._stores = stores(CONTINUOUS), stores(AT_TIMESTEPS)

    @property
    def num_missing(self) -> int:
        """How many network evaluations are missing."""
        return sum(num_missing(store, len(self._design)) for store in self._stores)

    def compute(self, *, before: int) -> ContinuousDifference:
        """Evaluate the missing terms, and reduce all of them to the difference of the bounds.

        Args:
            before: network evaluations of the run, for the progress.

        Raises:
            InputError: see `TermsRun.compute`.
        """
        size, (continuous, discrete) = len(self._design), self._stores
        self._continuous.compute(self._design, continuous, before=before, after=size)
        self._discrete.compute(self._design, discrete, before=before + size)
        return self._discrete.ranks.once(self._reduce)

    def _reduce(self) -> ContinuousDifference:
        columns = ("nats", "eps_mse")
        tables = (
            concatenate(list(checked(read_terms(store, len(self._design), columns), self._design)))
            for store in self._stores
        )
        return estimate_difference(self._design, *tables)
