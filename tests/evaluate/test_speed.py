"""How fast is a model here: what is said, printed and written."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from sealing import read_record

import ddpmbench as db
from ddpmbench.errors import InputError
from ddpmbench.execution.speed import workloads
from ddpmbench.report.speed import printed_speed
from ddpmbench.report.text import duration


@pytest.fixture(scope="module", autouse=True)
def quick_measurements():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ddpmbench.execution.timing.LEAST_SECONDS", 0.0)
        yield


def quick(model, images=None, *, batch_size=2, out=None, **settings):
    return db.measure_speed(
        model,
        images,
        settings=db.SpeedSettings(**settings),
        device="cpu",
        batch_size=batch_size,
        out=out,
    )


@pytest.fixture(scope="module")
def report(small_model, small_images, tmp_path_factory):
    return quick(small_model, small_images, out=tmp_path_factory.mktemp("speed") / "run")


def test_a_question_takes_as_long_as_its_rows(report):
    rows = report.parts.set_index(["precision", "row"]).ms / 1000
    works = {work.name: work for work in workloads(6, 40, half_width=0.005, num_samples=50_000)}
    assert len(report.predictions) == len(works) * report.parts.precision.nunique()
    for line in report.predictions.itertuples():
        work, row = works[line.question], rows[line.precision]
        assert line.num_evaluations == work.num_evaluations
        expected = sum(count * row[kind] for kind, count in work.evaluations.items())
        assert line.seconds == pytest.approx(expected)


def test_every_speed_stands_with_its_error(report):
    assert (report.calls.evaluations_per_second > 0).all()
    strict = report.calls.precision == "fp32"
    assert (report.calls.eps_error[strict] < 1e-5).all()
    assert report.calls.eps_error.notna().all()
    assert report.calls.share_of_peak.notna().all()


def test_the_summary_holds_the_tables(report):
    summary = json.loads(json.dumps(report.summary, allow_nan=False))
    for name in ("calls", "parts", "predictions"):
        of_summary, frame = pd.DataFrame(summary[name]), getattr(report, name)
        assert list(of_summary) == list(frame)
        numbers = frame.select_dtypes("float64").columns
        np.testing.assert_allclose(of_summary[numbers].astype(float), frame[numbers], rtol=1e-9)


def test_the_folder_holds_them_too(report):
    for name in ("calls", "parts", "predictions"):
        pd.testing.assert_frame_equal(
            pd.read_csv(report.folder / f"{name}.csv"), getattr(report, name), check_dtype=False
        )
    assert read_record(report.folder / "summary.json") == report.summary
    drawn = pd.read_csv(report.folder / "figures" / "calls.csv")
    assert sorted(drawn.per_second) == pytest.approx(sorted(report.calls.evaluations_per_second))
    resolved = json.loads((report.folder / "environment.json").read_text())["arguments"]["resolved"]
    assert resolved["num_images"] == 6


def test_a_new_measurement_takes_the_place_of_the_old_and_of_no_other_model(
    report, small_model, small_images
):
    again = quick(small_model, small_images, out=report.folder, num_samples=3)
    assert read_record(report.folder / "summary.json") == again.summary
    assert "3 samples of 40 steps" in set(again.predictions.question)
    other = dataclasses.replace(small_model, sha256="1" * 64)
    with pytest.raises(InputError, match=r"`out=.*another run"):
        quick(other, small_images, out=report.folder)
    # Nor is it replaced by one of other batches.
    with pytest.raises(InputError, match=r"`out=.*batch_size is 2 there, 1 here"):
        quick(small_model, small_images, batch_size=1, out=report.folder)


def test_images_may_be_left_out_and_are_counted_all_the_same(small_model):
    result = quick(small_model, num_images=123)
    pairs = result.predictions.set_index("question").loc["every pair, one draw"]
    assert set(np.atleast_1d(pairs.num_evaluations)) == {123 * 40}


def test_a_model_of_one_step_is_timed(small_model, small_images):
    result = quick(small_model.respaced(1), small_images)
    assert not result.predictions.question.str.startswith("nll").any()
    first, step = result.parts.ms[result.parts.precision == "fp32"]
    pairs, samples = result.predictions.seconds[result.predictions.precision == "fp32"]
    assert (pairs, samples) == pytest.approx((6 * first / 1000, 50 * step))


def test_the_table_says_about_how_long(report):
    text = printed_speed(report.summary, "table")
    last = report.predictions.iloc[-1]
    assert f"about {duration(last.seconds)}" in text
    assert text.count("about ") == len(report.predictions)
    assert f"{last.num_evaluations:,}" in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_headline_is_the_fastest_strict_one(report):
    strict = report.calls[report.calls.precision == "fp32"]
    best = strict.loc[strict.evaluations_per_second.idxmax()]
    assert (
        f": {best.engine}, {best.batch_size} at once"
        in (printed_speed(report.summary, "table").splitlines()[0])
    )


def test_csv_is_the_calls(report, tmp_path):
    (tmp_path / "calls.csv").write_text(printed_speed(report.summary, "csv"))
    result = pd.read_csv(tmp_path / "calls.csv")
    pd.testing.assert_frame_equal(result, report.calls, check_dtype=False)


def test_images_of_another_size_are_refused(small_model):
    with pytest.raises(InputError, match=r"`data=.*28x28"):
        quick(small_model, db.load_images("fashion-mnist:test", num_images=2))


def test_a_size_that_no_one_says_is_asked_for(small_model):
    unsaid = dataclasses.replace(small_model, image_size=None)
    with pytest.raises(InputError, match="`image_size"):
        quick(unsaid)
    assert quick(unsaid, image_size=8).summary["shape"] == [1, 8, 8]
