"""The likelihood of images under a model's probability-flow ODE."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from ddpmbench.data.load import ImageSource, load_images
from ddpmbench.diffusion.data_range import NATS_PER_BIT
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.errors import InputError, whole_number
from ddpmbench.evaluate.evaluation import (
    Evaluation,
    check_arguments,
    check_images,
    computed_in,
    note_images,
)
from ddpmbench.evaluate.nll import evaluate_nll
from ddpmbench.evaluate.progress import PartListener, reported_session
from ddpmbench.execution.devices import evaluating_checkpoint, strict_float32
from ddpmbench.execution.folder import refuse_other
from ddpmbench.execution.network_check import why_not_continuous
from ddpmbench.execution.store import Arrays, Store, gathered, num_missing
from ddpmbench.execution.worker import RunListener
from ddpmbench.likelihood.designs import random_images
from ddpmbench.likelihood.ode import (
    IMAGES_PURPOSE,
    KnownBound,
    OdeEstimate,
    OdePass,
    OdeSettings,
    estimate_ode,
    evaluations_per_image,
)
from ddpmbench.report.nll import NllReport
from ddpmbench.report.ode import PER_IMAGE_COLUMNS, OdeReport
from ddpmbench.report.text import raw_pixels_warning
from ddpmbench.unet.timed_unet import Precision
from ddpmbench.user_code import user_errors

STORE, BOUND = "ode", "bound"
_GRAPH = 4
"""Memory of an evaluation with its gradient, in evaluations without."""


def evaluate_ode(
    checkpoint: Checkpoint,
    images: ImageSource,
    *,
    dequantization: str = "decoder",
    trace: str = "hutchinson",
    probes: int = 1,
    solver: str = "rk4",
    solver_steps: int = 12,
    num_ode_images: int = 256,
    half_width: float | None = None,
    bound: NllReport | None = None,
    seed: int = 0,
    device: str = "auto",
    batch_size: int | None = None,
    check: bool | None = None,
    out: str | Path | None = None,
    command: list[str] | None = None,
    listener: RunListener | None = None,
    progress: bool = True,
) -> OdeReport:
    """The likelihood of the probability-flow ODE, in bits per dimension.

    The ODE is solved for a random sample of the images, each paired with an estimate of its
    variational bound. If there are more images, `evaluate_nll` bounds all of them, and adding the
    mean difference of the pairs estimates the ODE's likelihood on all. In processes that torchrun
    started, each computes a share, and all return the report.

    Args:
        checkpoint: what `load_checkpoint` returns. Its network must accept fractional timesteps,
            although it was trained on integers only.
        images: what `load_images` returns or takes: a name, a path, a uint8 array.
        dequantization: "decoder", the forward process to x_1 with the decoder of the variational
            bound; "uniform", or "truncated-normal" within the bin of each level.
        trace: estimator of the divergence: "hutchinson" with random signs, or "exact".
        probes: hutchinson: vectors of random signs per image.
        solver: "heun" or "rk4", exponential Runge-Kutta methods of order 2 and 4.
        solver_steps: an even number of steps, evenly spaced in log sigma.
        num_ode_images: the most images whose ODE is solved.
        half_width: half width of the interval of a variational bound that is evaluated on all
            images; see `evaluate_nll`.
        bound: the bound on all images, if it is known already: of the same checkpoint, images and
            seed, in strict float32 with the exact decoder. None evaluates it. It has no effect
            where the ODE of every image is solved, which needs no bound.
        seed: seed of noise, probes and the choice of images, 0 <= seed < 2^64.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        batch_size: images in a batch, None for what suits the device. Another one
            changes a number by float rounding.
        check: whether a sanity check evaluates the checkpoint under other parameterizations
            first; None where the run is long.
        out: the run folder; one that holds the same run unfinished is resumed. None keeps the run
            in memory.
        command: the command line, for the record.
        listener: called as the run proceeds.
        progress: whether progress, warnings and notes go to standard error where there is no
            listener.

    Raises:
        InputError: an argument, the images, the network or the folder is unsuitable, or the ODE
            of an image is not finite.
        ProcessLostError: another process of the run has stopped.

    Source: Song et al. 2021, section 4.3.
    """
    seed, batch_size = check_arguments(checkpoint, listener, seed, batch_size)
    named: dict[str, Any] = {"dequantization": dequantization, "trace": trace, "solver": solver}
    settings = OdeSettings(**named, probes=probes, solver_steps=solver_steps)
    num_ode_images = whole_number("num_ode_images", num_ode_images, 1)
    images = load_images(images)
    check_images(checkpoint, images)
    chosen = random_images(len(images), num_ode_images, seed, IMAGES_PURPOSE)
    needs_bound = len(images) > len(chosen)
    amount = "network evaluations with gradients at first"
    run_arguments = (device, out, command, listener)
    with reported_session("ode", *run_arguments, shown=progress, amount=amount) as (
        session,
        reporter,
    ):
        evaluation = Evaluation(checkpoint, images, session, reporter, seed, batch_size).checked()
        _check_ode(evaluation)
        if bound is not None:
            _check_bound(bound.summary, evaluation)
        own = {"num_ode_images": len(chosen), **settings.record}
        identity = evaluation.identity(OdeReport.SCHEMA, own)
        folder = evaluation.folder(identity, half_width=half_width, check=check)
        is_part = isinstance(listener, PartListener)
        if not is_part:
            note_images(checkpoint, images, reporter)
        per_image_evaluations, per_image_vjps = evaluations_per_image(settings, evaluation.shape)
        evaluations = len(chosen) * per_image_evaluations
        checked = evaluation.sanity_check(check, evaluations, folder)
        store = session.store(STORE)
        _compute(evaluation, settings, chosen, store)
        known, bound_record = None, None
        if needs_bound:
            # Checked above, or switched off; else the bound alone may be long.
            asked = check if checked is None else False
            full_bound = bound or _bound_of_all(evaluation, half_width, device, asked)
            known, bound_record = _known(full_bound.summary)
            checked = checked or full_bound.summary.get("check")
        per_image, numbers = _estimated(store, [images.ids[i] for i in chosen], known)
        summary = {
            "schema": OdeReport.SCHEMA,
            **numbers,
            "num_images": len(images),
            "num_ode_images": len(chosen),
            "num_timesteps": checkpoint.schedule.num_timesteps,
            "num_evaluations": evaluations,
            "num_vjps": len(chosen) * per_image_vjps,
            "ode": settings.record,
            "bound": bound_record,
            **evaluation.record,
            **computed_in([(store, len(chosen))]),
            "check": checked,
        }
        line, is_bounded_here = raw_pixels_warning(summary), needs_bound and bound is None
        if line and not (is_part or is_bounded_here):  # else the run of the bound warns
            reporter.warn(line)
        resolved = {**identity, "half_width": half_width}
        report = OdeReport(summary, per_image, session.out)
        evaluation.write(folder, report, resolved)
        return report


def _check_ode(evaluation: Evaluation) -> None:
    """Raise InputError where the ODE of the model cannot be solved."""
    checkpoint, session = evaluation.checkpoint, evaluation.session
    why = session.ranks.once(partial(why_no_ode, checkpoint, evaluation.shape, session.device))
    if why is not None:
        raise InputError(
            f"{checkpoint.network_name}: its ODE cannot be solved: {why}; evaluate the model "
            "at the timesteps that it was trained on"
        )


def why_no_ode(checkpoint: Checkpoint, shape: tuple[int, ...], device: torch.device) -> str | None:
    """Why the ODE of a model cannot be solved; None if it can.

    Args:
        checkpoint: the model, on the device.
        shape: (C, H, W) of an image.
        device: where the network is evaluated.
    """
    if checkpoint.schedule.trained is not None:
        return "the model visits timesteps between those of its training"
    return why_not_continuous(checkpoint, shape, device)


def _check_bound(bound: dict[str, Any], evaluation: Evaluation) -> None:
    """Raise InputError where a bound has no interval, or is not for the images of the ODE."""
    num_timesteps = evaluation.checkpoint.schedule.num_timesteps
    expected = {**evaluation.record, "num_timesteps": num_timesteps, "precision": Precision.FP32}
    there, here = (
        {**of, "checkpoint": of["checkpoint"]["sha256"], "data": of["data"]["sha256"]}
        for of in (bound, expected)
    )
    names = ("checkpoint", "data", "num_timesteps", "conventions", "seed", "precision")
    remedy = "give the bound of the same evaluation, or leave it out"
    refuse_other("`bound`: is of another evaluation", there, here, remedy, names=names)
    if bound["half_width"] is None:
        raise InputError("`bound`: its interval is unknown; give one with 2 `draws` or more")


def _compute(
    evaluation: Evaluation, settings: OdeSettings, chosen: NDArray[np.int64], store: Store
) -> None:
    """Solve the ODE of the chosen images that the store lacks."""
    checkpoint, (channels, height, width) = evaluation.checkpoint, evaluation.shape
    ode_pass = OdePass(
        checkpoint,
        evaluation.images,
        settings,
        seed=evaluation.seed,
        device=evaluation.session.device,
    )
    cost, _ = evaluations_per_image(settings, evaluation.shape)
    worker = evaluation.worker((channels, _GRAPH * height, width))
    evaluation.reporter.start(num_missing(store, len(chosen)) * cost)

    def columns(index: NDArray[np.int64], report: Callable[[int], None]) -> Arrays:
        return dict(ode_pass.evaluate(chosen[index]))

    with (
        user_errors(checkpoint.network_name),
        evaluating_checkpoint(ode_pass.flow.checkpoint),
        strict_float32(),
    ):
        worker.map_chunks(columns, store, len(chosen), cost=cost)


def _bound_of_all(
    evaluation: Evaluation, half_width: float | None, device: str, check: bool | None
) -> NllReport:
    """The variational bound on all images, in a folder within that of the run."""
    out = evaluation.session.out
    return evaluate_nll(
        evaluation.checkpoint,
        evaluation.images,
        half_width=half_width,
        seed=evaluation.seed,
        device=device,
        batch_size=evaluation.batch_size,
        check=check,
        continuous=False,
        out=None if out is None else out / BOUND,
        listener=PartListener.of(evaluation.reporter, start=lambda calls: None),
    )


def _known(summary: dict[str, Any]) -> tuple[KnownBound, dict[str, Any]]:
    """The bound on all images, and its part of the record."""
    names = ("bits_per_dim", "half_width", "half_width_population")
    nats, half_width, population = (float(summary[name]) * NATS_PER_BIT for name in names)
    known = KnownBound(nats, half_width, population, summary["num_images"])
    return known, {name: summary[name] for name in (*names, "num_evaluations", "estimator")}


def _estimated(
    store: Store, ids: list[str], known: KnownBound | None
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table of the images, and the numbers of `summary.json`."""
    columns = {name: gathered(store, name, len(ids)) for name in OdePass.COLUMNS}
    nats = columns["decoder"] + columns["log_q"] - columns["log_p"]
    per_image = _per_image(columns, ids)
    return per_image, _numbers(estimate_ode(nats, columns["bound"], known), per_image)


def _per_image(columns: dict[str, NDArray[np.float64]], ids: list[str]) -> pd.DataFrame:
    bits = {name: column / NATS_PER_BIT for name, column in columns.items()}
    bits["bits_per_dim"] = bits["decoder"] + bits["log_q"] - bits["log_p"]
    bits["solver_error"] *= -1  # the sign of the bound, not of log_p
    bits["variational_bound"] = bits["bound"]
    return pd.DataFrame({"image_id": ids, **bits}, columns=list(PER_IMAGE_COLUMNS))


def _numbers(estimate: OdeEstimate, per_image: pd.DataFrame) -> dict[str, Any]:
    nats = {
        "bits_per_dim": estimate.nats,
        "half_width": estimate.half_width,
        "half_width_population": estimate.half_width_population,
        "difference_from_bound": estimate.difference,
        "difference_half_width": estimate.difference_half_width,
    }
    probe_error = float(np.sqrt(per_image.probe_error.pow(2).mean()))
    return {
        **{name: None if value is None else value / NATS_PER_BIT for name, value in nats.items()},
        "solver_error": float(per_image.solver_error.mean()),
        "probe_error_per_image": None if np.isnan(probe_error) else probe_error,
    }
