"""The likelihood of images by each published convention, side by side."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ddpmbench.data.load import ImageSource, load_images
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.probability_flow import ProbabilityFlow
from ddpmbench.errors import InputError, whole_number
from ddpmbench.evaluate.evaluation import Evaluation, check_arguments, check_images, note_images
from ddpmbench.evaluate.nll import evaluate_nll
from ddpmbench.evaluate.ode import BOUND, STORE, evaluate_ode, why_no_ode
from ddpmbench.evaluate.progress import PartListener, reported_session
from ddpmbench.execution.devices import evaluating_checkpoint, is_out_of_memory, strict_float32
from ddpmbench.execution.folder import run_store
from ddpmbench.execution.network_check import CONTINUOUS_FROM, why_left_out
from ddpmbench.execution.store import MemoryStore, num_missing
from ddpmbench.execution.worker import RunListener
from ddpmbench.likelihood.importance_estimator import initial_terms
from ddpmbench.likelihood.ode import OdeSettings, evaluations_per_image
from ddpmbench.report.conventions import CONTINUOUS_TIME
from ddpmbench.report.likelihoods import (
    ODE,
    LikelihoodsReport,
    likelihoods_frame,
    published_bound,
    rows_of,
)
from ddpmbench.report.nll import NllReport
from ddpmbench.report.ode import OdeReport
from ddpmbench.unet.unet import UNet
from ddpmbench.user_code import user_errors

OF_ODE = "ode"


def evaluate_likelihoods(
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
    seed: int = 0,
    device: str = "auto",
    batch_size: int | None = None,
    check: bool | None = None,
    out: str | Path | None = None,
    command: list[str] | None = None,
    listener: RunListener | None = None,
    progress: bool = True,
) -> LikelihoodsReport:
    """The likelihoods of a checkpoint by the published conventions, in bits per dimension.

    They are the variational bound, the same with the best constant variance per timestep, the
    bound in continuous time, and the likelihood of the probability-flow ODE. All are for the same
    images and seed, each with its 95 % interval and its paired difference from the first. Those
    that the checkpoint does not have are left out, with the reason. The numbers are those of
    `evaluate_nll` and `evaluate_ode`; each term is evaluated once. In processes that torchrun
    started, each computes a share, and all return the report.

    Args:
        checkpoint: what `load_checkpoint` returns; its conventions are those of the bound.
        images: what `load_images` returns or takes: a name, a path, a uint8 array.
        dequantization: dequantization of the ODE; like the options up to `num_ode_images`, see
            `evaluate_ode`.
        trace: see `evaluate_ode`.
        probes: see `evaluate_ode`.
        solver: see `evaluate_ode`.
        solver_steps: see `evaluate_ode`.
        num_ode_images: see `evaluate_ode`.
        half_width: half width of the variational bound's interval; see `evaluate_nll`.
        seed: seed of all random numbers, 0 <= seed < 2^64.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps"; the network computes in strict float32.
        batch_size: network evaluations in a batch, None for what suits the device. Another one
            changes a number by float rounding.
        check: whether a sanity check evaluates the checkpoint under other parameterizations
            first; None where the run is long.
        out: the run folder; one that holds the same run unfinished, or finished with a wider
            interval, is resumed. Its subfolders `bound` and `ode` hold the two runs. None keeps
            the run in memory.
        command: the command line, for the record.
        listener: called as the run proceeds.
        progress: whether progress, warnings and notes go to standard error where there is no
            listener.

    Raises:
        InputError: an argument, the images or the folder is unsuitable, or the ODE of an image
            is not finite.
        ProcessLostError: another process of the run has stopped.

    Source: Ho, Jain & Abbeel 2020, eq. 5; Bao et al. 2022, theorem 1; Kingma et al. 2021, eq. 18;
        Song et al. 2021, section 4.3.
    """
    seed, batch_size = check_arguments(checkpoint, listener, seed, batch_size)
    named: dict[str, Any] = {"dequantization": dequantization, "trace": trace, "solver": solver}
    named |= {"probes": probes, "solver_steps": solver_steps}
    settings = OdeSettings(**named)
    num_ode_images = whole_number("num_ode_images", num_ode_images, 1)
    if checkpoint.schedule.is_continuous:
        raise InputError(
            "`timesteps=continuous`: continuous time is one of the likelihoods; leave it out"
        )
    images = load_images(images)
    check_images(checkpoint, images)
    count = min(num_ode_images, len(images))
    with reported_session("likelihoods", device, out, command, listener, shown=progress) as (
        session,
        reporter,
    ):
        evaluation = Evaluation(checkpoint, images, session, reporter, seed, batch_size).checked()
        absent = session.ranks.once(partial(_absent, evaluation))
        own = {"num_ode_images": count, **settings.record}
        identity = evaluation.identity(LikelihoodsReport.SCHEMA, own)
        folder = evaluation.folder(identity, half_width=half_width, check=check)
        note_images(checkpoint, images, reporter)
        cost = 0 if absent[ODE] else evaluations_per_image(settings, evaluation.shape)[0]
        evaluations = initial_terms(len(images)) + count * cost
        checked = evaluation.sanity_check(check, evaluations, folder)
        path = session.out
        store = MemoryStore() if path is None else run_store(path / OF_ODE, STORE)
        missing = num_missing(store, count) * cost
        shared: dict[str, Any] = {
            "half_width": half_width,
            "seed": seed,
            "device": device,
            "batch_size": batch_size,
        }
        bound = evaluate_nll(
            checkpoint,
            images,
            continuous=absent[CONTINUOUS_TIME] is None,
            # Checked above, or switched off; else the bound alone may be long.
            check=check if checked is None else False,
            out=None if path is None else path / BOUND,
            listener=PartListener.of(reporter, start=lambda n: reporter.start(n + missing)),
            **shared,
        )
        ode = None
        if absent[ODE] is None:
            ode = evaluate_ode(
                checkpoint,
                images,
                num_ode_images=count,
                bound=bound,
                check=False,
                out=None if path is None else path / OF_ODE,
                listener=PartListener.of(reporter, start=lambda n: None),
                **named,
                **shared,
            )
        frame = _frame(checkpoint, bound, ode, absent)
        summary = {**_summary(bound, ode, frame), "check": checked or bound.summary["check"]}
        resolved = {**identity, "half_width": half_width}
        report = LikelihoodsReport(summary, frame, path)
        evaluation.write(folder, report, resolved)
        return report


def _absent(evaluation: Evaluation) -> dict[str, str | None]:
    """Why the model lacks a likelihood, by name; None where it has it."""
    model, shape, device = evaluation.checkpoint, evaluation.shape, evaluation.session.device
    return {
        CONTINUOUS_TIME: why_left_out(model, shape, None, CONTINUOUS_FROM, device=device),
        ODE: why_no_ode(model, shape, device) or _why_no_divergence(model, shape, device),
    }


def _frame(
    checkpoint: Checkpoint,
    bound: NllReport,
    ode: OdeReport | None,
    absent: Mapping[str, str | None],
) -> pd.DataFrame:
    # A folder of this name is not a model on the hub.
    hub_id = "" if os.path.exists(checkpoint.source) else checkpoint.source
    return likelihoods_frame(
        bound.summary,
        bound.conventions,
        None if ode is None else ode.summary,
        absent=absent,
        published=published_bound(hub_id, bound.summary),
    )


def _why_no_divergence(
    checkpoint: Checkpoint, shape: tuple[int, ...], device: torch.device
) -> str | None:
    """Why the network has no gradient to take a divergence of; None if it has one."""
    if isinstance(checkpoint.network, UNet):
        return None
    x = torch.zeros((1, *shape), device=device)
    labels = torch.zeros(1, dtype=torch.int64, device=device) if checkpoint.num_classes else None
    with evaluating_checkpoint(checkpoint), strict_float32():
        try:
            with user_errors(checkpoint.network_name):
                flow = ProbabilityFlow(checkpoint, device)
                flow.field(labels=labels, probes=torch.ones_like(x)[None])(flow.start, x)
        except InputError as error:
            if error.__cause__ is not None and is_out_of_memory(error.__cause__):
                return None
            return str(error)
    return None


def _summary(bound: NllReport, ode: OdeReport | None, frame: pd.DataFrame) -> dict[str, Any]:
    """The object of `summary.json`, without the check."""
    summaries = [bound.summary] + ([] if ode is None else [ode.summary])
    names = ("num_images", "num_timesteps", "conventions", "checkpoint", "data", "seed")
    errors = ("solver_error", "probe_error_per_image")
    return {
        "schema": LikelihoodsReport.SCHEMA,
        "likelihoods": rows_of(frame),
        **{name: bound.summary[name] for name in names},
        "num_ode_images": None if ode is None else ode.summary["num_ode_images"],
        "num_evaluations": int(frame.num_evaluations.sum()),
        "num_vjps": int(frame.num_vjps.sum()),
        "ode": None
        if ode is None
        else {**ode.summary["ode"], **{name: ode.summary[name] for name in errors}},
        "device": " + ".join(sorted({summary["device"] for summary in summaries})),
        "precision": bound.summary["precision"],
        "seconds": round(sum(summary["seconds"] for summary in summaries), 3),
    }
