"""The importance estimator gives the same numbers however a run is batched, or grown."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from run_folders import assert_same_numbers
from sealing import edit, terms_in, write_frame, write_text

from ddpmbench.data.load import load_images
from ddpmbench.diffusion.process import Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError
from ddpmbench.evaluate.compare import compare
from ddpmbench.evaluate.nll import evaluate_nll
from ddpmbench.execution import importance
from ddpmbench.execution.importance import Importance
from ddpmbench.execution.worker import RunListener
from ddpmbench.likelihood import designs, importance_estimator
from ddpmbench.likelihood.designs import PilotDesign, num_terms
from ddpmbench.unet.timed_unet import Precision
from ddpmbench.unet.unet import UNet

# Six images take 67 replicates until a first look. The first half width is reached there, the
# second some looks later.
WIDE, NARROW = 0.1, 0.06


@dataclasses.dataclass
class Calls:
    rows: int = 0


@pytest.fixture
def calls(small_model, monkeypatch):
    """Counts the rows the network is called with."""
    counted = Calls()
    body = UNet.body

    def counting(network, x_t, times):
        counted.rows += len(x_t)
        return body(network, x_t, times)

    monkeypatch.setattr(UNet, "body", counting)
    return counted


@pytest.fixture(scope="module")
def warnings():
    """Those of both runs."""
    return []


@pytest.fixture(scope="module")
def wide(small_model, small_images, warnings, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "wide"
    listener = RunListener(warn=warnings.append)
    return evaluate_nll(small_model, small_images, half_width=WIDE, out=out, listener=listener)


@pytest.fixture(scope="module")
def narrow(small_model, small_images, warnings):
    listener = RunListener(warn=warnings.append)
    return evaluate_nll(small_model, small_images, half_width=NARROW, listener=listener)


@pytest.fixture
def wide_folder(wide):
    return wide.folder


def terms_of(folder):
    """(image, t, draw) of the rows of the estimate, in the order of the design."""
    return terms_in(folder)[["image", "t", "draw"]].to_numpy()


# ---- nothing but the rows determines a number


def test_batch_size_cannot_change_a_number(small_model, small_images, narrow):
    other = evaluate_nll(small_model, small_images, half_width=NARROW, batch_size=23)
    assert_same_numbers(other, narrow)


def test_a_narrower_half_width_goes_on_and_a_wider_one_goes_back(
    small_model, small_images, wide, narrow, calls, tmp_path
):
    def evaluate(half_width):
        return evaluate_nll(small_model, small_images, half_width=half_width, out=tmp_path)

    assert_same_numbers(evaluate(WIDE), wide)
    assert_same_numbers(evaluate(NARROW), narrow)
    assert calls.rows == narrow.summary["num_evaluations"] > wide.summary["num_evaluations"]
    again = evaluate(WIDE)
    assert calls.rows == narrow.summary["num_evaluations"], "what is there was computed again"
    assert_same_numbers(again, wide)


# ---- what the tables say


def test_the_parts_sum_to_the_bound_and_every_table_agrees(narrow):
    summary, steps, rate = narrow.summary, narrow.per_timestep, narrow.rate_distortion
    pilot = summary["sampling"]["pilot_evaluations"]
    assert pilot == len(PilotDesign(6, 40, 0))
    assert steps.num_evaluations.sum() == summary["num_evaluations"] - pilot
    bound = pytest.approx(summary["bits_per_dim"], abs=1e-7)  # the features are float32
    assert summary["prior"] + summary["kl"] + summary["decoder"] == bound
    assert summary["prior"] + steps.bits_per_dim.sum() == bound
    assert steps.bits_per_dim[0] == pytest.approx(summary["decoder"], abs=1e-12)
    rates = rate.set_index("t").rate_bits_per_dim
    assert rates[1] + summary["decoder"] == bound
    assert rates[40] == pytest.approx(summary["prior"], abs=1e-12)
    # What a step adds to the rate is its term.
    np.testing.assert_allclose(-np.diff(rates), steps.bits_per_dim[1:], rtol=0, atol=1e-12)
    assert narrow.per_image[["kl", "bits_per_dim"]].isna().all(axis=None)
    assert narrow.per_image.decoder.mean() == pytest.approx(summary["decoder"], abs=1e-12)
    assert narrow.per_image.prior.mean() == pytest.approx(summary["prior"], abs=1e-12)


def test_the_errors_of_the_rate_end_at_those_of_the_parts(narrow):
    error = narrow.rate_distortion.set_index("t").rate_standard_error
    assert error[40] == 0
    # At t = 1 the rate lacks nothing but the decoder, whose noise is apart from it.
    of_decoder = narrow.per_timestep.standard_error[0]
    half_width = narrow.summary["half_width"]
    assert 1.96 * np.hypot(error[1], of_decoder) == pytest.approx(half_width, rel=0.1)


# ---- when it ends


def test_the_half_width_is_reached_and_nothing_is_said(wide, narrow, warnings):
    assert wide.summary["half_width"] <= WIDE
    assert narrow.summary["half_width"] <= NARROW
    assert all("raw pixels" in line for line in warnings)  # of a network with random weights


@pytest.mark.parametrize("cap", [720, 1200])
def test_the_cap_holds_and_is_used(small_model, small_images, cap):
    warnings = []
    report = evaluate_nll(
        small_model,
        small_images,
        max_evaluations=cap,
        listener=RunListener(warn=warnings.append),
    )
    summary = report.summary
    next_replicate = num_terms(6, summary["sampling"]["num_replicates"] + 1)
    assert summary["num_evaluations"] <= cap
    assert cap < next_replicate + summary["sampling"]["pilot_evaluations"]
    (line,) = (line for line in warnings if "raw pixels" not in line)
    assert f"+- {summary['half_width']:.4f}" in line
    assert f"`max_evaluations={cap:,}`" in line


def test_a_cap_below_the_first_look_is_refused_before_any_call(
    small_model, small_images, calls, tmp_path
):
    line = (
        r"^`max_evaluations=719`: 6 images take 720 network evaluations .*allow that many or "
        "choose `estimator=every-pair`, which takes 480$"
    )
    with pytest.raises(InputError, match=line):
        evaluate_nll(small_model, small_images, max_evaluations=719, out=tmp_path / "run")
    assert calls.rows == 0


def test_every_pair_is_no_remedy_where_it_takes_more(small_model, small_images):
    longer = dataclasses.replace(small_model, schedule=NoiseSchedule.linear(1000))
    with pytest.raises(InputError, match=r"until an interval is known; allow that many$"):
        evaluate_nll(longer, small_images, max_evaluations=719)


@pytest.mark.parametrize("continuous", [None, True, False])
def test_where_every_pair_takes_fewer_evaluations_a_note_says_so(
    small_model, small_images, continuous
):
    notes = []
    listener = RunListener(note=notes.append)
    how = {"half_width": 9.0, "continuous": continuous, "listener": listener}
    evaluate_nll(small_model, small_images, **how)
    (line,) = [line for line in notes if "every-pair" in line]
    assert line == (
        "importance sampling takes at least 720 network evaluations here, every pair of image and "
        "timestep 480; choose `estimator=every-pair`"
    )
    assert Importance().note(10_000, 1000, Precision.FP32) is None


# ---- options that make no sense


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"draws": 2}, "`draws=2`: goes with `estimator=every-pair`"),
        ({"estimator": "every-pair", "half_width": 1}, "`half_width=1`: goes with `estimator=imp"),
        ({"half_width": 0}, "`half_width=0`: must be positive and finite"),
        ({"half_width": np.inf}, "`half_width=inf`: must be positive and finite"),
        ({"max_evaluations": 0}, "`max_evaluations=0`: give a whole number from 1 on"),
        ({"estimator": "uniform"}, "`estimator=uniform`: choose importance or every-pair"),
    ],
)
def test_options_that_make_no_sense_are_named(small_model, small_images, tmp_path, options, named):
    with pytest.raises(InputError, match=f"^{named}"):
        evaluate_nll(small_model, small_images, out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_single_timestep_is_for_every_pair(small_model, small_images):
    with pytest.raises(InputError, match="`timesteps=1`: too few for `estimator=importance`"):
        evaluate_nll(small_model.respaced(1), small_images)


def another(name, changes):
    def change(folder):
        edit(folder / name, **changes)

    return change


def of_fewer_timesteps(folder):
    edit(folder / "summary.json", num_timesteps=9)
    write_frame(folder / "proposal.csv", {"t": range(2, 10), "density": [1 / 8] * 8})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (another("summary.json", {"seed": 1}), "`seed`: the terms of"),
        (another("summary.json", {"num_images": 5}), "`num_images`: the terms of"),
        (of_fewer_timesteps, "`timesteps`: the terms of"),
        (lambda folder: (folder / "proposal.csv").unlink(), "is no run of the importance esti"),
        (lambda folder: write_text(folder / "proposal.csv", ""), "proposal.csv: missing or dama"),
    ],
)
def test_terms_of_an_unfit_run_are_refused(
    small_model, small_images, wide_folder, tmp_path, change, problem
):
    folder = shutil.copytree(wide_folder, tmp_path / "unfit")
    change(folder)
    with pytest.raises(InputError, match=problem) as error:
        evaluate_nll(small_model, small_images, terms_of=folder, out=tmp_path / "run")
    assert str(folder) in str(error.value)
    assert not (tmp_path / "run").exists()


# ---- the rows of another run


def test_the_rows_of_another_run_are_computed(
    small_model, small_images, wide_folder, calls, tmp_path
):
    """Another model, whose own pilot would choose other rows, on the same rows and noise."""
    other = dataclasses.replace(small_model, variance=Variance.FIXED_SMALL, sha256="1" * 64)
    own = evaluate_nll(other, small_images, max_evaluations=1000, out=tmp_path / "own")
    calls.rows = 0
    report = evaluate_nll(
        other, small_images, max_evaluations=900, terms_of=wide_folder, out=tmp_path / "paired"
    )
    assert calls.rows == report.summary["num_evaluations"]
    assert report.summary["sampling"]["pilot_evaluations"] == 0
    theirs, ours = terms_of(wide_folder), terms_of(tmp_path / "paired")
    shared = min(len(theirs), len(ours))
    np.testing.assert_array_equal(ours[:shared], theirs[:shared])
    assert (terms_of(tmp_path / "own")[:shared] != theirs[:shared]).any()
    error = np.hypot(own.summary["half_width"], report.summary["half_width"]) / 1.96
    assert abs(own.summary["bits_per_dim"] - report.summary["bits_per_dim"]) < 4 * error


def test_the_half_width_of_another_run_is_the_default(wide_folder):
    assert Importance(terms_of=wide_folder).goal == WIDE
    assert Importance(terms_of=wide_folder, half_width=0.3).goal == 0.3


def test_the_rows_of_a_folder_are_part_of_what_a_run_is(
    small_model, small_images, wide_folder, tmp_path
):
    evaluate_nll(small_model, small_images, half_width=WIDE, out=tmp_path)
    with pytest.raises(InputError, match=r"holds another run .terms_of is None there"):
        evaluate_nll(small_model, small_images, terms_of=wide_folder, out=tmp_path)


# ---- what the network says wrong


@pytest.mark.parametrize("where", ["pilot", "terms"])
def test_an_output_that_is_not_finite_is_named_and_nothing_is_lost(
    small_model, small_images, wide_folder, tmp_path, monkeypatch, where
):
    body = UNet.body
    pilot = PilotDesign(6, 40, 0)
    good = 32 if where == "pilot" else -(-len(pilot) // 8) * 8 + 320
    batches = 0

    def broken(network, x_t, times):
        nonlocal batches
        output = body(network, x_t, times)
        batches += 1
        if batches > -(-good // 8):
            output[3] = torch.nan
        return output

    monkeypatch.setattr(UNet, "body", broken)
    with pytest.raises(InputError, match="not finite for image") as error:
        evaluate_nll(small_model, small_images, half_width=WIDE, batch_size=8, out=tmp_path)
    kept = {name: len(terms_in(tmp_path, name)) for name in ("pilot", "terms")}
    if where == "pilot":
        assert kept == {"pilot": 32, "terms": 0}
        rows = pilot.index(35, 36)
        image, t = int(rows.image[0]), int(rows.t[0])
    else:
        assert kept == {"pilot": len(pilot), "terms": 320}
        image, t, _ = terms_of(wide_folder)[323]
    assert f"for image {small_images.ids[image]} at t = {t};" in str(error.value)


def test_a_second_sitting_shows_the_bound_at_once(small_model, small_images, tmp_path):
    seen = []

    def stop(now):
        if now.bound is not None and now.done > 400:
            raise KeyboardInterrupt

    arguments = {"half_width": NARROW, "batch_size": 16, "out": tmp_path}
    listener = RunListener(progress=stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate_nll(small_model, small_images, **arguments, listener=listener)
    evaluate_nll(small_model, small_images, **arguments, listener=RunListener(progress=seen.append))
    first = next(now for now in seen if now.done > 400 + 32)
    assert first.bound is not None


# ---- a sample of the images


@pytest.fixture
def many_images(monkeypatch):
    """Forty crops, in ten blocks of four; the first interval is that of two blocks."""
    monkeypatch.setattr(designs, "BLOCK_IMAGES", 4)
    monkeypatch.setattr(importance_estimator, "INITIAL_TERMS", 80)
    whole = load_images("fashion-mnist:test", num_images=40)
    pixels = np.ascontiguousarray(whole.pixels[:, :, 10:18, 10:18])
    return dataclasses.replace(whole, pixels=pixels, source="crops", split=None)


def test_a_narrower_run_takes_more_images_and_computes_no_row_again(
    small_model, many_images, calls, tmp_path
):
    def measured(half_width, out=None, **options):
        before = calls.rows
        report = evaluate_nll(small_model, many_images, half_width=half_width, out=out, **options)
        sampling = report.summary["sampling"]
        return report, sampling["num_sampled_images"], calls.rows - before

    first, few, _ = measured(9, tmp_path / "run")
    assert few == 8
    known = first.per_image.decoder.notna()
    assert known.sum() == 8
    assert first.per_image.prior.notna().all()
    goal = 0.7 * first.summary["half_width"]
    longer, more, added = measured(goal, tmp_path / "run")
    fresh, again, _ = measured(goal, batch_size=7)
    assert 8 < more == again < 40
    assert longer.summary["half_width"] <= goal
    assert added == longer.summary["num_evaluations"] - first.summary["num_evaluations"]
    assert_same_numbers(longer, fresh)
    whole, every, _ = measured(goal / 20, tmp_path / "run")
    assert every == 40
    assert whole.summary["sampling"]["num_replicates"] > 2
    assert whole.per_image.decoder.notna().all()
    truth = evaluate_nll(small_model, many_images, estimator="every-pair").summary
    for report in (first, longer, whole):
        error = report.summary["bits_per_dim"] - truth["bits_per_dim"]
        assert abs(error) < 2.5 * report.summary["half_width"]


def test_runs_on_other_samples_of_the_images_are_compared(
    small_model, many_images, tmp_path, monkeypatch
):
    for name, half_width in (("few", 9), ("more", 0.3)):
        evaluate_nll(small_model, many_images, half_width=half_width, out=tmp_path / name)
    runs = compare([tmp_path / "few", tmp_path / "more"]).runs
    assert runs.difference[1] == pytest.approx(0, abs=1e-9)
    assert runs.difference_half_width[1] == pytest.approx(0, abs=1e-9)


def test_a_run_on_the_terms_of_another_has_all_of_them(
    small_model, many_images, tmp_path, monkeypatch
):
    base = evaluate_nll(small_model, many_images, half_width=0.3, out=tmp_path / "base")
    theirs = base.summary["sampling"]["num_sampled_images"]
    assert theirs > 8
    # Whatever its own interval is by then.
    monkeypatch.setattr(importance, "design_needed", lambda design, bound, half_width: design)
    for half_width, expected in ((0.3, theirs), (0.2, theirs), (0.31, 8)):
        other = evaluate_nll(
            small_model, many_images, half_width=half_width, terms_of=tmp_path / "base"
        )
        assert other.summary["sampling"]["num_sampled_images"] == expected
