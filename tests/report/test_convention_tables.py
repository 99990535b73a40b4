"""The tables of conventions and of models that skip steps, as a run writes them."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
from sealing import write_frame

import ddpmbench as db
from ddpmbench.report.conventions import (
    CONVENTION_COLUMNS,
    RESPACINGS,
    SUB_SCHEDULE_COLUMNS,
    THIS_RUN,
)


@pytest.fixture(params=["every-pair", "importance"])
def report(request, runs):
    return runs[request.param]


@pytest.fixture(scope="module")
def longer(small_images, small_model):
    """A run of more steps than people respace to."""
    model = dataclasses.replace(small_model, schedule=db.NoiseSchedule.linear(120))
    return db.evaluate_nll(model, small_images.subset(2), estimator="every-pair")


def test_no_source_is_named_for_another_process(small_images, small_model):
    schedule = db.NoiseSchedule.variance_exploding(60, sigma_min=0.05, sigma_max=20.0)
    model = dataclasses.replace(small_model, schedule=schedule)
    run = db.evaluate_nll(
        model, small_images.subset(2), estimator="every-pair", check=False, progress=False
    )
    assert (run.conventions.num_timesteps < 60).any()
    assert set(run.conventions.used_by) == {""}


def test_the_first_row_is_the_run(report):
    own = report.conventions.iloc[0]
    assert own.convention == THIS_RUN
    assert own.difference == 0
    assert own.bits_per_dim == pytest.approx(report.summary["bits_per_dim"], abs=1e-12)
    assert own.half_width == pytest.approx(report.summary["half_width"], rel=1e-9)
    assert own.decoder_bits_per_dim == pytest.approx(report.summary["decoder"], abs=1e-12)
    for name in ("variance", "clip", "decoder"):
        assert own[name] == report.summary["conventions"][name]


def test_the_parts_of_every_row_are_its_bound(report, longer):
    for frame in (report.conventions, longer.conventions):
        parts = frame.rate_bits_per_dim + frame.decoder_bits_per_dim
        np.testing.assert_allclose(parts, frame.bits_per_dim, rtol=1e-12)
        skips = frame.used_by.str.contains("Bao|Watson|Nichol & Dhariwal 2021, section")
        whole = frame[~skips]
        np.testing.assert_allclose(whole.bits_per_dim[0] + whole.difference, whole.bits_per_dim)
        # With so few rows the errors at some step cannot be known, nor what skips to it.
        assert frame.half_width[frame.variance != "best_constant"].notna().all()


def test_what_skips_steps_is_compared_with_what_skips_none(report, longer):
    for found in (report, longer):
        frame, table = found.conventions, found.sub_schedules
        of = (table.variance == "fixed_large") & (table.spacing == "evenly spaced")
        (all_steps,) = table.bits_per_dim[of & (table.num_timesteps == frame.num_timesteps[0])]
        skips = frame[frame.used_by.str.contains("Bao|Watson|Nichol & Dhariwal 2021, section")]
        assert len(skips)
        np.testing.assert_allclose(skips.difference, skips.bits_per_dim - all_steps)


def test_the_best_constant_variance_is_paired_with_the_run(report):
    frame = report.conventions
    (row,) = frame[(frame.variance == "best_constant") & (frame.spacing == "all")].itertuples()
    known = frame.difference_half_width.notna()
    assert row.difference <= 0
    # With so few terms the error at some timestep has no known variance.
    if report.summary["estimator"] == "every-pair":
        assert 0 < row.difference_half_width < row.half_width
        assert list(frame.index[known]) == [row.Index]
    assert known.sum() <= 1


def test_results_without_intervals_of_differences_are_read(report, tmp_path):
    folder = shutil.copytree(report.folder, tmp_path / "run")
    shutil.rmtree(folder / "shards")
    earlier = report.conventions.drop(columns="difference_half_width")
    write_frame(folder / "conventions.csv", earlier)
    expected = report.conventions.assign(difference_half_width=np.nan)
    pd.testing.assert_frame_equal(db.load_report(folder).conventions, expected)


def test_no_two_rows_are_of_one_name(report, longer):
    for frame in (report.conventions, longer.conventions):
        assert frame.convention.is_unique
        what = ["variance", "clip", "decoder", "decoder_variance", "num_timesteps", "spacing"]
        assert not frame.duplicated(what).any()


def test_each_published_number_has_its_row(longer):
    frame = longer.conventions
    ours = frame[frame.used_by.str.startswith("Ho et al. 2020")]
    assert ours[["variance", "decoder", "decoder_variance"]].to_numpy().tolist() == [
        ["fixed_large", "tanh", "posterior"]
    ]
    assert ours["clip"].all()
    lengths = set(frame.num_timesteps)
    assert lengths == {120, *(k for k in RESPACINGS if k < 120)}
    assert set(frame[frame.num_timesteps == 50].spacing) == {"evenly spaced", "best"}
    assert (frame[frame.num_timesteps == 120].spacing == "all").all()


def test_the_table_of_sub_schedules_holds_those_rows(longer):
    of_table = longer.sub_schedules.set_index(["variance", "spacing", "num_timesteps"])
    skipping = longer.conventions[longer.conventions.num_timesteps < 120]
    assert len(skipping) == 3 * 2 * 2
    for row in skipping.itertuples():
        found = of_table.loc[(row.variance, row.spacing, row.num_timesteps)]
        assert found.bits_per_dim == row.bits_per_dim
        steps = [int(word) for word in found.steps.split()]
        if row.spacing == "best":
            assert len(steps) == row.num_timesteps
            assert (steps[0], steps[-1]) == (1, 120)
        else:
            assert not steps


def test_all_of_the_steps_are_the_bound_itself(report):
    # Of every pair exactly, of few rows within the two intervals.
    table = report.sub_schedules
    whole = table[(table.num_timesteps == 40) & (table.spacing == "evenly spaced")]
    whole = whole.set_index("variance")
    for row in report.conventions.itertuples():
        if row.decoder == "exact" and row.decoder_variance == "posterior" and row.clip:
            off = abs(whole.bits_per_dim[row.variance] - row.bits_per_dim)
            if report.summary["estimator"] == "every-pair":
                assert off < 1e-9
            elif not np.isnan(whole.half_width[row.variance]):
                assert off < row.half_width + whole.half_width[row.variance]


def test_the_files_are_the_tables(report):
    for name, columns in (
        ("conventions", CONVENTION_COLUMNS),
        ("sub_schedules", SUB_SCHEDULE_COLUMNS),
    ):
        frame = getattr(report, name)
        assert list(frame) == list(columns)
        there = pd.read_csv(report.folder / f"{name}.csv", keep_default_na=False, dtype=str)
        for column, kind in columns.items():
            if kind == "float64":
                values = there[column].replace("", "nan").map(float)
                np.testing.assert_array_equal(values, frame[column])
            else:
                assert list(there[column]) == [str(value) for value in frame[column]]
