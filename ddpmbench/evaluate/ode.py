"""The likelihood of images under a model's probability-flow ODE."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from ddpmbench.data.images import ImageSource, load_images
from ddpmbench.diffusion.data_range import NATS_PER_BIT
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.errors import InputError, whole_number
from ddpmbench.evaluate.inputs import (
    check_arguments,
    check_images,
    conventions_of,
    images_identity,
    model_identity,
    note_images,
)
from ddpmbench.evaluate.nll import evaluate_nll
from ddpmbench.evaluate.nll_report import NllReport
from ddpmbench.evaluate.progress import reported_session
from ddpmbench.execution.continuous import why_not_continuous
from ddpmbench.execution.devices import evaluating_checkpoint, strict_float32
from ddpmbench.execution.finished import ENVIRONMENT, PER_IMAGE
from ddpmbench.execution.session import Session
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
from ddpmbench.report.card import Card, Draw, PageReport
from ddpmbench.report.contents import read_environment
from ddpmbench.report.ode import ode_card, ode_page
from ddpmbench.report.text import raw_pixels_warning
from ddpmbench.sanity_check.run import PreliminaryCheck
from ddpmbench.user_code import user_errors

SCHEMA = "ddpmbench.ode/1"
STORE, BOUND = "ode", "bound"
PER_IMAGE_COLUMNS = (
    *("bits_per_dim", "decoder", "log_q", "log_p", "solver_error", "probe_error"),
    "variational_bound",
)
"""The columns of `per_image.csv` after `image_id`, in bits per dimension."""
_GRAPH = 4
"""Memory of an evaluation with its gradient, in evaluations without."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class OdeReport(PageReport):
    """The likelihood of a checkpoint's ODE on images.

    Attributes:
        summary: the object of `summary.json`.
        per_image: one row per image whose ODE was solved, in bits per dimension: `image_id`,
            `bits_per_dim` = `decoder` + `log_q` - `log_p`, its `solver_error` and `probe_error`,
            and `variational_bound`, an unbiased estimate.
        folder: the run folder; None if the run was kept in memory.
    """

    summary: dict[str, Any]
    per_image: pd.DataFrame
    folder: Path | None

    def _card(self) -> Card:
        return ode_card(self.summary, self.folder)

    def _figures(self) -> Mapping[str, Draw]:
        from ddpmbench.report.figures.images import pairs_figure

        return {"pairs": partial(pairs_figure, self.per_image)}

    def _page(self, folder: Path, svgs: Mapping[str, str]) -> str:
        return ode_page(self.summary, read_environment(folder), svgs)


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
        half_width: half width of the variational bound's interval on all images; see
            `evaluate_nll`.
        bound: the bound on all images, if it is known already: of the same checkpoint, images and
            seed, in strict float32 with the exact decoder. None evaluates it.
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
    shape = images.pixels.shape[1:]
    with reported_session("ode", device, out, command, listener, shown=progress) as (
        run_session,
        reporter,
    ):
        checkpoint = run_session.checked(checkpoint, shape)
        why = run_session.ranks.once(partial(why_no_ode, checkpoint, shape, run_session.device))
        if why is not None:
            raise InputError(
                f"{checkpoint.network_name}: its ODE cannot be solved: {why}; evaluate the model "
                "at the timesteps that it was trained on"
            )
        conventions = conventions_of(checkpoint, images, decoder="exact")
        identity = {
            "schema": SCHEMA,
            **images_identity(checkpoint, images),
            "num_ode_images": len(chosen),
            **settings.record,
            **model_identity(
                checkpoint, conventions, seed=seed, tables=run_session.dtype_of_tables(checkpoint)
            ),
        }
        if bound is not None:
            expected = {
                "checkpoint": checkpoint.record,
                "data": images.record,
                "num_timesteps": checkpoint.schedule.num_timesteps,
                "conventions": {**conventions, **checkpoint.data_range.record},
                "seed": seed,
                "precision": "fp32",
            }
            _check_bound(bound.summary, expected)
        run_session.agree(identity, half_width=half_width, check=check)
        folder = run_session.folder(identity, reporter.warn)
        has_bound = bound is not None or len(images) > len(chosen)
        if not has_bound:  # otherwise the run of the bound notes them
            note_images(checkpoint, images, reporter)
        per_image_evaluations, per_image_vjps = evaluations_per_image(settings, shape)
        evaluations = len(chosen) * per_image_evaluations
        preliminary = PreliminaryCheck(check, evaluations, seed, batch_size, reporter)
        checked = preliminary.run(checkpoint, images, run_session, folder)
        ode_pass = OdePass(checkpoint, images, settings, seed=seed, device=run_session.device)
        store = run_session.store(STORE)
        with (
            user_errors(checkpoint.network_name),
            evaluating_checkpoint(ode_pass.flow.checkpoint),
            strict_float32(),
        ):
            _compute(ode_pass, chosen, store, run_session, reporter, batch_size)
        known, bound_record = None, None
        if len(images) > len(chosen):
            full_bound = bound or evaluate_nll(
                checkpoint,
                images,
                half_width=half_width,
                seed=seed,
                device=device,
                batch_size=batch_size,
                # Checked above, or switched off; else the bound alone may be long.
                check=False if preliminary.is_needed else check,
                continuous=False,
                out=None if folder is None else folder.path / BOUND,
                listener=dataclasses.replace(reporter, start=lambda calls: None),
            )
            known, bound_record = _known(full_bound.summary)
            checked = checked or full_bound.summary.get("check")
        columns = {name: gathered(store, name, len(chosen)) for name in OdePass.COLUMNS}
        estimate = estimate_ode(
            columns["decoder"] + columns["log_q"] - columns["log_p"], columns["bound"], known
        )
        per_image = _per_image(columns, [images.ids[i] for i in chosen])
        summary = {
            "schema": SCHEMA,
            **_numbers(estimate, per_image),
            "num_images": len(images),
            "num_ode_images": len(chosen),
            "num_timesteps": checkpoint.schedule.num_timesteps,
            "num_evaluations": evaluations,
            "num_vjps": len(chosen) * per_image_vjps,
            "ode": settings.record,
            "bound": bound_record,
            "conventions": {**conventions, **checkpoint.data_range.record},
            "checkpoint": checkpoint.record,
            "data": images.record,
            "seed": seed,
            "device": " + ".join(sorted(store.devices(len(chosen)))),
            "precision": "fp32",
            "seconds": round(store.seconds(len(chosen)), 3),
            "check": checked,
        }
        line = raw_pixels_warning(summary)
        if line and not has_bound:  # otherwise the run of the bound warns
            reporter.warn(line)
        report = OdeReport(summary, per_image, None if folder is None else folder.path)
        if folder is not None and run_session.ranks.reports:
            folder.write_frame(PER_IMAGE, per_image)
            resolved = {**identity, "half_width": half_width}
            folder.write_json(ENVIRONMENT, run_session.environment(resolved, batch_size=batch_size))
            folder.write_summary(summary)
        run_session.ranks.wait()
        return report


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


def _check_bound(bound: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise InputError where a bound has no interval, or is not for the images of the ODE."""
    for name, value in expected.items():
        theirs = bound[name]
        if name in ("checkpoint", "data"):
            name, theirs, value = f"{name}.sha256", theirs["sha256"], value["sha256"]
        if theirs != value:
            raise InputError(
                f"`bound`: its {name} is {theirs}, not {value} as of the ODE; give the bound "
                "of the same evaluation, or leave it out"
            )
    if bound["half_width"] is None:
        raise InputError("`bound`: its interval is unknown; give one with 2 `draws` or more")


def _compute(
    ode_pass: OdePass,
    chosen: NDArray[np.int64],
    store: Store,
    run_session: Session,
    listener: RunListener,
    batch_size: int | None,
) -> None:
    channels, height, width = ode_pass.shape
    worker = run_session.worker(
        (channels, _GRAPH * height, width), batch_size=batch_size, listener=listener
    )
    cost, _ = evaluations_per_image(ode_pass.settings, ode_pass.shape)
    listener.start(num_missing(store, len(chosen)) * cost)

    def columns(index: NDArray[np.int64], report: Callable[[int], None]) -> Arrays:
        return dict(ode_pass.evaluate(chosen[index]))

    worker.map_chunks(columns, store, len(chosen), cost=cost)


def _known(summary: dict[str, Any]) -> tuple[KnownBound, dict[str, Any]]:
    """The bound on all images, and its part of the record."""
    names = ("bits_per_dim", "half_width", "half_width_population")
    nats, half_width, population = (float(summary[name]) * NATS_PER_BIT for name in names)
    known = KnownBound(nats, half_width, population, summary["num_images"])
    return known, {name: summary[name] for name in (*names, "num_evaluations", "estimator")}


def _per_image(columns: dict[str, NDArray[np.float64]], ids: list[str]) -> pd.DataFrame:
    bits = {name: column / NATS_PER_BIT for name, column in columns.items()}
    bits["bits_per_dim"] = bits["decoder"] + bits["log_q"] - bits["log_p"]
    bits["solver_error"] *= -1  # the sign of the bound, not of log_p
    bits["variational_bound"] = bits["bound"]
    return pd.DataFrame({"image_id": ids, **{name: bits[name] for name in PER_IMAGE_COLUMNS}})


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
