"""Figures of the quality of samples: the numbers beside them, the pixels and words in them."""

import numpy as np
import pandas as pd
import pytest
from fidelity_folders import SIZES, against_n, reference, summary

from ddpmbench.report.compare_fid import differences_figure
from ddpmbench.report.fid import AGAINST_N_COLUMNS, FidReport
from ddpmbench.report.fid_figures import against_n_figure, per_image_figure

ENDS = {"fashion-mnist:test": (11.9, 0.25)}
PER_IMAGE = pd.DataFrame({"nearest_reference_distance": np.nan, "class_entropy": [0.1, 0.2]})


# ---- against N


@pytest.mark.parametrize("slope", [52.0, 0.0, -3.0])
def test_the_line_is_that_of_the_fit_that_has_this_end(slope):
    points = against_n(summary())
    points["fid"] += (slope - 52) / points.num_generated
    inverse = 1 / points.num_generated
    fitted, end = np.polyfit(inverse, points.fid, 1)
    ends = {"fashion-mnist:test": (end, 0.1)}
    _, numbers = against_n_figure(points, ends, "FID")
    np.testing.assert_allclose(numbers.line, end + fitted * inverse, rtol=1e-9)
    assert set(numbers.fid_infinity) == {end}
    np.testing.assert_allclose(numbers.half_width, 1.96 * points.standard_error)


def test_the_axis_says_numbers_of_samples_where_their_inverses_are():
    figure, _ = against_n_figure(against_n(summary()), ENDS, "FID")
    (axes,) = figure.axes
    ticks = axes.get_xticks()
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert (ticks[0], labels[0]) == (0, "\u221e")
    for tick, label in zip(ticks[1:], labels[1:], strict=True):
        assert int(label.replace(",", "")) in SIZES
        assert 1 / tick == pytest.approx(int(label.replace(",", "")))
    assert str(min(SIZES)) in labels
    assert axes.get_ylabel() == "FID"


@pytest.mark.parametrize(
    "sizes", [(50_000,), tuple(range(5_000, 50_001, 3_000)), (2, 10**6), (95, 100, 500)]
)
def test_numbers_on_the_axis_do_not_run_into_each_other(sizes):
    table = pd.DataFrame(
        {"reference": "a", "num_generated": sizes, "fid": 3.0, "standard_error": np.nan}
    )
    figure, numbers = against_n_figure(table, {}, "FID")
    ticks = figure.axes[0].get_xticks()
    assert (np.diff(ticks) >= 0.159 * max(ticks)).all()
    assert 1 / max(ticks) == pytest.approx(min(sizes))
    assert numbers.fid_infinity.isna().all()
    assert numbers.line.isna().all()


def test_every_reference_has_a_line_of_its_own():
    of = [reference(), reference("fashion-mnist:train", fid_infinity=2.5)]
    ends = {**ENDS, "fashion-mnist:train": (2.5, None)}
    figure, numbers = against_n_figure(against_n(summary(of)), ends, "FD[0]")
    assert list(numbers.groupby("reference").fid_infinity.first()) == [11.9, 2.5]
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == ["fashion-mnist:test", "fashion-mnist:train"]


@pytest.mark.parametrize("is_old", [False, True])
def test_two_splits_of_one_source_have_their_own_ends_or_none(is_old):
    splits = {"test": 1.0, "train": 2.0}
    of = summary([reference("a", split=name, fid_infinity=end) for name, end in splits.items()])
    names = ["a" if is_old else f"a:{name}" for name in splits]
    points = [(name, count, 3.0, 0.1) for name in names for count in (8, 4)]
    table, unknown = pd.DataFrame(points, columns=list(AGAINST_N_COLUMNS)), PER_IMAGE[:0]
    _, numbers = FidReport(of, unknown, table, None)._figures()["fid_against_n"]()
    ends = numbers.groupby("reference").fid_infinity.first()
    assert list(ends) == pytest.approx([np.nan] if is_old else [1, 2], nan_ok=True)


# ---- histograms


def test_every_sample_is_in_one_bin_of_each_histogram():
    draw = np.random.default_rng(0)
    table = pd.DataFrame(
        {"nearest_reference_distance": draw.gamma(2, 1, 500), "class_entropy": draw.random(500)}
    )
    figure, numbers = per_image_figure(table)
    assert len(figure.axes) == 2
    for name, bins in numbers.groupby("measure"):
        assert bins.num_images.sum() == 500
        assert bins.bin_from.min() == pytest.approx(table[name].min())
        assert bins.bin_to.max() == pytest.approx(table[name].max())


def test_what_is_not_known_has_no_histogram():
    figure, numbers = per_image_figure(PER_IMAGE)
    assert len(figure.axes) == 1
    assert set(numbers.measure) == {"class_entropy"}
    of, none = {"num_generated": 2}, pd.DataFrame()
    assert set(FidReport(of, PER_IMAGE, none, None)._figures()) == {"per_image"}
    assert FidReport(of, PER_IMAGE.assign(class_entropy=np.nan), none, None)._figures() == {}


# ---- differences


def test_differences_are_drawn_where_they_are_with_both_intervals():
    table = pd.DataFrame(
        [
            ("a", "fid", "x", -1.0, 0.25, 0.5, "paired"),
            ("a", "fid", "y", -9.0, 0.25, 0.5, "independent"),
            ("a", "recall", "x", None, None, None, "independent"),
            ("b", "fid", "x", 2.0, None, None, "independent"),
        ],
        columns=["run", "measure", "reference", "difference", "half_width",
                 "half_width_unpaired", "how"],
    )  # fmt: skip
    figure, numbers = differences_figure(table, "FID")
    (axes,) = figure.axes  # nothing is known of recall
    assert list(numbers.difference) == [-1, 2]
    lines = [
        (tuple(map(float, line.get_xdata())), float(line.get_ydata()[0])) for line in axes.lines
    ]
    assert lines[1:] == [
        ((-1.5, -0.5), 0),
        ((-1.25, -0.75), 0),
        ((-1.0,), 0),
        ((2.0,), 1),
    ]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "b"]
    assert differences_figure(table.assign(difference=None), "FID") is None
