"""Figures of the quality of samples: the numbers beside them, the pixels and words in them."""

import base64
import io
import re

import numpy as np
import pandas as pd
import pytest
from fidelity_folders import SIZES, against_n, nearest, reference, summary
from PIL import Image

import ddpmbench as db
from ddpmbench.report.fidelity import NUM_SHOWN
from ddpmbench.report.figures.fidelity import against_n_figure, differences_figure
from ddpmbench.report.figures.images import per_image_figure
from ddpmbench.report.figures.pictures import nearest_figure, samples_figure

ENDS = {"fashion-mnist:test": (11.9, 0.25)}


@pytest.fixture(scope="module")
def pixels():
    return np.asarray(db.load_images("fashion-mnist:test", num_images=160).pixels)


def embedded(figure):
    """The pictures in the svg, from the top left on, as arrays."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True)
    found = re.findall(r"data:image/png;base64,([^\"]+)\"", out.getvalue())
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in found]


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


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


# ---- pictures


@pytest.mark.parametrize("number", [1, 12, 13, NUM_SHOWN, 120])
def test_the_first_samples_are_shown_in_order(pixels, number):
    figure, numbers = samples_figure(pixels[:number])
    shown = min(number, NUM_SHOWN)
    found = embedded(figure)
    assert len(found) == len(numbers) == shown
    for picture, sample in zip(found, pixels[:shown], strict=True):
        np.testing.assert_array_equal(picture[..., 0], sample[0])
    assert list(12 * numbers.row + numbers.column) == list(range(shown))


def test_a_sample_has_its_class_under_it(pixels):
    labels = np.arange(30) + 100
    figure, numbers = samples_figure(pixels[:30], labels)
    assert list(numbers.label) == list(labels)
    assert [text for text in texts(figure) if text.isdecimal()] == [str(of) for of in labels]


@pytest.mark.parametrize("samples", [1, 3, 8])
def test_a_sample_stands_beside_its_nearest(pixels, samples):
    of = nearest(pixels, 120, samples=samples)
    figure, numbers = nearest_figure(of)
    found = iter(embedded(figure))
    for sample, neighbors in zip(of.samples, of.references, strict=True):
        for expected in (sample, *neighbors[:4]):
            np.testing.assert_array_equal(next(found)[..., 0], expected[0])
    assert next(found, None) is None
    np.testing.assert_array_equal(numbers.distance, of.distance.flatten())
    assert list(numbers["rank"][:6]) == [1, 2, 3, 4, 5, 1][: len(numbers)]
    said = texts(figure)
    for k in range(samples):
        assert f"no. {k}" in said
        assert f"{of.distance[k, 0]:#.4g}" in said


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
    table = pd.DataFrame({"nearest_reference_distance": np.nan, "class_entropy": [0.1, 0.2]})
    figure, numbers = per_image_figure(table)
    assert len(figure.axes) == 1
    assert set(numbers.measure) == {"class_entropy"}
    assert per_image_figure(table.assign(class_entropy=np.nan)) is None


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
