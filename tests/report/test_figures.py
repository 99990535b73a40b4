"""Figures: the numbers behind them, and that they can be read."""

import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from run_folders import extremes, smooth_run, sub_schedules

from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.execution.folder import write_figure
from ddpmbench.report.compare_nll import difference_figure
from ddpmbench.report.figures import COLORS, GRID, INK, log_axis, shown
from ddpmbench.report.nll_figures import (
    bound_figure,
    calls_figure,
    continuous_figure,
    images_figure,
    schedule_figure,
    sub_schedules_figure,
)
from ddpmbench.report.rate_distortion import rate_distortion_figure

SUMMARY = {"num_timesteps": 40, "bits_per_dim": 3.0}


def density(num_timesteps):
    share = 1.0 / np.arange(2, num_timesteps + 1)
    return pd.DataFrame({"t": np.arange(2, num_timesteps + 1), "density": share / share.sum()})


def terms_between(num_timesteps):
    t = np.repeat(np.arange(2, num_timesteps + 1), 3)
    noise = 1 + 0.1 * np.cos(np.arange(len(t)))
    return pd.DataFrame(
        {"t": t, "u": t - 0.5, "eps_mse": noise / (t - 0.5), "eps_mse_at_t": noise / t}
    )


def steps_of_runs(num_timesteps, names=("one", "other")):
    per_timestep, curve = smooth_run(num_timesteps)
    steps = per_timestep.merge(curve, on="t")
    return pd.concat([steps.assign(run=name) for name in names], ignore_index=True)


def steps_of_schedule(schedule):
    return pd.DataFrame(
        {
            "t": range(1, schedule.num_timesteps + 1),
            "beta": schedule.betas.numpy(),
            "alphas_cumprod": schedule.alphas_cumprod.numpy(),
            "log_snr": schedule.snr.log().numpy(),
        }
    )


def every_figure(num_timesteps=40):
    """Each figure there is, by name, with the numbers behind it."""
    per_timestep, curve = smooth_run(num_timesteps)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 3, 8, 8), dtype=np.uint8)
    bits = np.linspace(1, 2, len(pixels))
    return {
        "bound": bound_figure(per_timestep, curve),
        "rate_distortion": rate_distortion_figure(curve),
        "images": images_figure(bits, "Bits", extremes(pixels)),
        "calls": calls_figure(
            per_timestep, density(num_timesteps), num_images=3, num_sampled=3, num_replicates=2
        ),
        "sub_schedules": sub_schedules_figure(sub_schedules(SUMMARY)),
        "continuous": continuous_figure(terms_between(num_timesteps)),
        "difference": difference_figure(steps_of_runs(num_timesteps), "baseline"),
        "schedule": schedule_figure(steps_of_schedule(NoiseSchedule.cosine(num_timesteps))),
    }


@pytest.fixture(scope="module")
def laid_out():
    """Those figures, with everything in its place."""
    figures = {name: figure for name, (figure, _) in every_figure().items()}
    for figure in figures.values():
        figure.get_layout_engine().execute(figure)
    return figures


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The folder with all of them."""
    folder = tmp_path_factory.mktemp("drawn")
    for name, (figure, numbers) in every_figure().items():
        write_figure(folder, name, figure, numbers)
    return folder / "figures"


# ---- the numbers behind them


@pytest.mark.parametrize("num_timesteps", [1, 2, 3, 40, 1000])
def test_the_groups_of_steps_sum_to_the_bound(num_timesteps):
    per_timestep, curve = smooth_run(num_timesteps)
    _, numbers = bound_figure(per_timestep, curve)
    whole = per_timestep.bits_per_dim.sum()
    size = numbers.t_last - numbers.t_first + 1
    assert size.sum() == num_timesteps
    assert (numbers.bits_per_step * size).sum() == pytest.approx(whole)
    assert numbers.cumulative[0] == pytest.approx(whole + 1e-4)
    for group in numbers.itertuples():
        later = per_timestep.bits_per_dim[per_timestep.t >= group.t_first].sum()
        assert group.cumulative == pytest.approx(later + 1e-4)
    squares = np.square(numbers.half_width * size).sum()
    assert squares == pytest.approx(1.96**2 * np.square(per_timestep.standard_error).sum())
    # Where a group is one step, it is that step.
    alone = numbers[size == 1].merge(per_timestep, left_on="t_first", right_on="t")
    np.testing.assert_allclose(alone.bits_per_step, alone.bits_per_dim)


@pytest.mark.parametrize("num_timesteps", [1, 2, 40, 4000])
def test_a_curve_keeps_every_step_in_its_numbers_and_few_in_its_picture(num_timesteps, tmp_path):
    _, curve = smooth_run(num_timesteps)
    figure, numbers = rate_distortion_figure(curve)
    assert len(numbers) == num_timesteps
    np.testing.assert_allclose(numbers.rate_half_width, 1.96 * curve.rate_standard_error)
    write_figure(tmp_path, "rate_distortion", figure, numbers)
    assert (tmp_path / "figures" / "rate_distortion.svg").stat().st_size < 150_000


@pytest.mark.parametrize("length", [1, 2, 240, 241, 1000, 4000])
def test_what_is_shown_of_a_curve_has_its_ends_and_no_gap(length):
    steps = shown(length)
    assert (steps[0], steps[-1]) == (0, length - 1)
    assert (np.diff(steps) > 0).all()
    assert np.diff(steps).max(initial=0) <= max(1, length / 79 + 1)
    assert len(steps) <= 330


def test_calls_meant_are_those_of_all_replicates():
    per_timestep, _ = smooth_run(40)
    _, numbers = calls_figure(
        per_timestep, density(40), num_images=7, num_sampled=7, num_replicates=3
    )
    assert numbers.expected.sum() == pytest.approx(3 * 7)
    assert np.isnan(numbers.expected[0])
    assert (numbers.every_pair == 7).all()
    np.testing.assert_array_equal(numbers.num_evaluations, per_timestep.num_evaluations)


@pytest.mark.parametrize("num_images", [1, 2, 10_000])
@pytest.mark.parametrize("is_alike", [True, False])
def test_a_histogram_counts_each_image_once(num_images, is_alike):
    bits = np.random.default_rng(0).normal(3, 1, num_images)
    if is_alike:
        bits[:] = 2.5
    _, numbers = images_figure(bits, "Bits", None)
    assert numbers.num_images.sum() == num_images
    assert numbers.bits_from.iloc[0] <= bits.min() <= bits.max() <= numbers.bits_to.iloc[-1]
    assert len(numbers) <= 60


# ---- what they look like


def test_the_same_figure_is_the_same_file(drawn, tmp_path):
    figures = every_figure()
    for name in ("bound", "images", "sub_schedules"):  # markers, pictures, a legend and texts
        write_figure(tmp_path, name, *figures[name])
        for kind in ("svg", "csv", "png"):
            again = (tmp_path / "figures" / f"{name}.{kind}").read_bytes()
            assert again == (drawn / f"{name}.{kind}").read_bytes(), f"{name}.{kind}"


def test_the_last_bits_of_a_layout_do_not_matter(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 1, 8, 8), dtype=np.uint8)
    written = set()
    for shift in (0.0, 1e-12):
        figure, numbers = images_figure(np.linspace(1, 2, 8), "Bits", extremes(pixels))
        figure.get_layout_engine().execute(figure)
        figure.set_layout_engine(None)
        for axes in figure.get_axes():
            axes.set_position([at + shift for at in axes.get_position().bounds])
        write_figure(tmp_path, "images", figure, numbers)
        written.add((tmp_path / "figures" / "images.svg").read_text())
    assert len(written) == 1


def test_a_page_can_give_every_ink_a_color_of_its_own(drawn):
    for path in drawn.glob("*.svg"):
        root = ElementTree.parse(path).getroot()
        styles = [element.get("style", "") for element in root.iter()]
        inks = set(re.findall(r"#[0-9a-f]{3,8}\b", " ".join(styles)))
        assert inks <= {INK, GRID, *COLORS}, path.name
        for text in root.iter("{http://www.w3.org/2000/svg}text"):
            assert f"fill: {INK}" in text.get("style", ""), (path.name, text.text)
        assert "fill: #ffffff" not in path.read_text(), path.name


def test_every_text_fits_into_its_panel(laid_out):
    for name, figure in laid_out.items():
        for part in figure.subfigs:
            box = part.bbox
            for axes in part.axes:
                inside = axes.get_tightbbox()
                assert inside.x0 >= box.x0 - 1, name
                assert inside.x1 <= box.x1 + 1, name
                assert inside.y0 >= box.y0 - 1, name
                assert inside.y1 <= box.y1 + 1, name


def test_every_axis_has_a_name_and_numbers(laid_out):
    for name, figure in laid_out.items():
        for axes in (axes for part in figure.subfigs for axes in part.axes if axes.axison):
            assert axes.get_title(loc="left"), name
            assert axes.get_xlabel(), name
            assert re.search(
                "bits/dim|images|evaluations|RMSE|squared error|nats|alphas_cumprod|beta",
                axes.get_ylabel(),
            ), name
            for axis in (axes.xaxis, axes.yaxis):
                low, high = axis.get_view_interval()
                named = [tick for tick in axis.get_majorticklocs() if low <= tick <= high]
                assert len(named) >= 2, name


@pytest.mark.parametrize(
    ("low", "high"),
    [(3.3, 5.1), (1.9, 5.1), (1, 4), (2, 9), (1, 10), (0.8, 30.0), (2.0, 40.0), (1e-6, 2.0)],
)
def test_a_logarithmic_range_has_numbers_however_short_it_is(low, high):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    log_axis(axes, "y")
    axes.set_ylim(low, high)
    inside = [tick for tick in axes.yaxis.get_majorticklocs() if low <= tick <= high]
    assert 3 <= len(inside) <= 12


@pytest.mark.parametrize("times", [0.01, 2.9, 3.1, 100.0, 1e9])
def test_no_panel_is_empty_whatever_the_bounds(times):
    table = sub_schedules(SUMMARY)
    one = table.variance == table.variance.iloc[-1]
    assert not one.all()
    table.loc[one, "bits_per_dim"] *= times
    figure, _ = sub_schedules_figure(table)
    for part, (_, of) in zip(figure.subfigs, table.groupby("variance", sort=False), strict=True):
        low, high = part.axes[0].get_ylim()
        assert ((of.bits_per_dim > low) & (of.bits_per_dim < high)).sum() >= 2


def test_nothing_in_a_legend_can_be_taken_for_data():
    steps = steps_of_runs(40, ("one", "a run whose name is long enough"))
    for figure, _ in (
        difference_figure(steps, "first"),
        sub_schedules_figure(sub_schedules(SUMMARY)),
    ):
        figure.draw_without_rendering()
        for part in figure.subfigs:
            axes = part.axes[0]
            box, whole = axes.get_legend().get_window_extent(), part.bbox
            assert not box.overlaps(axes.get_window_extent())
            assert not box.overlaps(axes.xaxis.label.get_window_extent())
            assert whole.y0 <= box.y0
            assert whole.x0 <= box.x0
            assert box.x1 <= whole.x1


def test_a_bound_of_thousands_of_bits_does_not_flatten_the_others():
    table = sub_schedules(SUMMARY)
    table.loc[table.num_timesteps == 2, "bits_per_dim"] = 9000.0
    figure, numbers = sub_schedules_figure(table)
    assert numbers.bits_per_dim.max() == 9000
    for part, (_, of) in zip(figure.subfigs, table.groupby("variance"), strict=True):
        low, high = part.axes[0].get_ylim()
        assert low < of.bits_per_dim.min() < high < 10 * of.bits_per_dim.min()


def test_no_interval_of_a_bound_beyond_the_axis_stands_in_the_panel():
    table = sub_schedules(SUMMARY).assign(half_width=0.1)
    table.loc[table.num_timesteps == 2, ["bits_per_dim", "half_width"]] = [9000.0, 8999.0]
    figure, numbers = sub_schedules_figure(table)
    assert numbers.half_width.max() == 8999
    for part in figure.subfigs:
        (axes,) = part.axes
        for drawn in axes.containers:
            for segment in drawn.lines[2][0].get_segments():
                assert len(segment) == 0 or segment[0][1] > axes.get_ylim()[0] - 0.2


def test_lines_of_a_panel_differ_without_color(laid_out):
    for name in ("sub_schedules", "difference"):
        figure = laid_out[name]
        for part in figure.subfigs:
            lines = [line for line in part.axes[0].lines if not line.get_label().startswith("_")]
            looks = {(line.get_linestyle(), line.get_marker()) for line in lines}
            looks |= {
                (line.lines[0].get_linestyle(), line.lines[0].get_marker())
                for line in part.axes[0].containers
            }
            labels = [text.get_text() for text in part.axes[0].get_legend().get_texts()]
            assert len(looks) == len(labels) == 2, name


def test_long_names_do_not_crowd_out_a_figure():
    long = "runs/" + "x" * 200
    figure, numbers = difference_figure(steps_of_runs(40, (long,)), long)
    assert set(numbers.run) == {long}
    figure.get_layout_engine().execute(figure)
    for part in figure.subfigs:
        assert part.axes[0].get_position().width > 0.6


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 200, 120)])
def test_pictures_are_those_of_the_images(shape, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, *shape), dtype=np.uint8)
    figure, numbers = images_figure(np.linspace(1, 2, 8), "Bits", extremes(pixels))
    write_figure(tmp_path, "images", figure, numbers)
    svg = ElementTree.parse(tmp_path / "figures" / "images.svg")
    pictures = list(svg.iter("{http://www.w3.org/2000/svg}image"))
    assert len(pictures) == 8
    shown_pixels = [axes.images[0].get_array() for part in figure.subfigs[1:] for axes in part.axes]
    assert max(picture.shape[0] for picture in shown_pixels) <= 96
    if shape == (1, 8, 8):
        np.testing.assert_array_equal(shown_pixels[0], pixels[0, 0])
        np.testing.assert_array_equal(shown_pixels[4], pixels[7, 0])


def test_a_step_without_bits_or_without_an_interval_is_drawn_all_the_same(tmp_path):
    per_timestep, curve = smooth_run(40)
    per_timestep.loc[5:8, "bits_per_dim"] = -0.01
    per_timestep["standard_error"] = np.nan
    curve[["rate_standard_error", "distortion_standard_error"]] = np.nan
    curve.loc[30:, "distortion_rmse"] = np.nan
    for name, (figure, numbers) in {
        "bound": bound_figure(per_timestep, curve),
        "rate_distortion": rate_distortion_figure(curve),
    }.items():
        write_figure(tmp_path, name, figure, numbers)
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 5000


def test_errors_between_timesteps_are_means_of_groups_with_their_intervals():
    terms = terms_between(40)
    _, numbers = continuous_figure(terms)
    assert numbers.t.is_monotonic_increasing
    assert (numbers.u < numbers.t).all()
    first = terms[terms.t == 2]
    assert numbers.eps_mse[0] == pytest.approx(first.eps_mse.mean())
    assert numbers.eps_mse_half_width[0] == pytest.approx(
        1.96 * first.eps_mse.std() / np.sqrt(len(first)), rel=1e-3
    )
